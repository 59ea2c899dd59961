"""Segments rasters tile by tile, in memory that does not grow with their height."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..bands_catseg import Band, Window
from ..images.origins import Settings, describe_input
from ..pipeline_catseg import OpenVocabularySegmentationPipeline
from ..tiles_catseg import TileBlender, TileGrid, blend_tiles, blocks
from ..utils.files import replaced_file
from .outputs import Outputs, replaced_output
from .parts import Part, Parts
from .reading import RasterReader
from .tiffs import PROBABILITY_STEPS, label_type, write_labels, write_probabilities
from .vectors import Polygonizer, write_polygons


@dataclass(frozen=True)
class RasterSettings:
    """
    How rasters are segmented.

    Args:
        common ([`~images.origins.Settings`]): The model, the classes, the tiles and the rest that holds for any image.
        own_vocabulary (`bool`): Whether the classes are the checkpoint's own, which come with their prompts.
        bands (`tuple[int, ...]`, *optional*), resolution (`float`, *optional*): As [`RasterReader`] takes them.
        batch_size (`int`, *optional*, defaults to 1): Tiles at a time.
    """

    common: Settings
    own_vocabulary: bool = False
    bands: tuple[int, ...] | None = None
    resolution: float | None = None
    batch_size: int = 1

    def open(self, source: str) -> RasterReader:
        """The raster as it is to be seen."""
        return RasterReader(source, self.bands, self.common.value_range, self.resolution)

    def digests(self, source: str, outputs: Outputs) -> dict[str, str]:
        """What finished rows of a raster depend on, by name."""
        own = {
            "input": describe_input(source),
            "bands": self.bands,
            "resolution": self.resolution,
            "batch_size": self.batch_size,
            "vector": outputs.vector is not None,
            "probabilities": outputs.probability_classes,
        }
        own = {name: hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16] for name, value in own.items()}
        return self.common.digests() | own


class RasterSegmenter:
    """
    Segments rasters and writes maps of their classes.

    Args:
        segmenter ([`OpenVocabularySegmentationPipeline`]): The model with its processor.
        settings ([`RasterSettings`]): The classes to tell apart, and how it is done.
    """

    def __init__(self, segmenter: OpenVocabularySegmentationPipeline, settings: RasterSettings):
        self.segmenter, self.settings = segmenter, settings
        self.classes = settings.common.classes

    @torch.inference_mode()
    def segment(
        self,
        raster: RasterReader,
        outputs: Outputs,
        resume: bool = False,
        on_tiles: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """
        Segments a raster. What is finished is kept until the outputs are there, beside them in a hidden folder.

        Args:
            raster ([`RasterReader`]): The raster.
            outputs ([`Outputs`]): The files to write.
            resume (`bool`, *optional*, defaults to `False`): Whether to go on where an earlier run with the same
                settings was stopped, with the same result.
            on_tiles (`Callable`, *optional*): Is called with the number of tiles that are done, and of all.

        Returns:
            `dict[str, float]`: Classes and their shares of the pixels that hold something, in (0, 1], the largest
            first.

        Raises:
            UserError: If the raster cannot be read to its end, there is no room for the outputs, they cannot be
                written, or other settings were begun with.
        """
        dtype, nodata = label_type(len(self.classes.names))
        outputs.check(raster.source, raster.size[0] * raster.size[1], np.dtype(dtype).itemsize)
        common = self.settings.common
        grid = TileGrid.cover(raster.size, min(common.tile_size, max(raster.size)), common.tile_overlap)
        num_bands = len(grid.rows.starts)
        counts = np.zeros(np.iinfo(dtype).max + 1, dtype=np.int64)
        with (
            Parts.open(outputs.labels, self.settings.digests(raster.source, outputs), resume) as parts,
            raster.limited_cache(grid.rows.tile),
        ):
            num_done = parts.count(num_bands)
            if num_done < num_bands:
                run = _Run(self.segmenter, self.settings, raster, grid, outputs)
                for index, part in enumerate(run.parts(num_done, on_tiles), num_done):
                    parts.add(index, part)
            self._write(raster, outputs, parts, num_bands)
            for part in parts.read(num_bands):
                counts += np.bincount(part.labels.ravel(), minlength=len(counts))
            parts.remove()
        counts = counts[: len(self.classes.names)]
        order = np.argsort(-counts, kind="stable")
        return {self.classes.names[index]: float(counts[index] / counts.sum()) for index in order if counts[index]}

    def _write(self, raster: RasterReader, outputs: Outputs, parts: Parts, num_bands: int):
        """All outputs of what is finished; none takes its place before all are made."""
        height, width = raster.size
        profile = {"width": width, "height": height, "crs": raster.crs, "transform": raster.transform}
        names = self.classes.names
        with ExitStack() as stack:
            labels = stack.enter_context(replaced_output(outputs.labels))
            write_labels(labels, ((part.top, part.labels) for part in parts.read(num_bands)), profile, names)
            sidecar = stack.enter_context(replaced_file(f"{outputs.labels}.aux.xml"))
            Path(f"{labels}.aux.xml").rename(sidecar)
            if outputs.probabilities is not None:
                write_probabilities(
                    stack.enter_context(replaced_output(outputs.probabilities)),
                    ((part.top, part.classes) for part in parts.read(num_bands)),
                    profile,
                    [names[index] for index in outputs.probability_classes],
                )
            if outputs.vector is not None:
                polygonizer = Polygonizer(label_type(len(names))[1])
                for part in parts.read(num_bands):
                    polygonizer.add(part.top, part.labels, part.probability)
                polygons = polygonizer.polygons().largest(outputs.min_area)
                if outputs.simplify is not None:
                    polygons = polygons.simplified(outputs.simplify)
                target = stack.enter_context(replaced_output(outputs.vector))
                write_polygons(target, polygons, names, raster.transform, raster.crs, outputs.vector.stem)


class _Run:
    """The model's part of one raster."""

    def __init__(
        self,
        segmenter: OpenVocabularySegmentationPipeline,
        settings: RasterSettings,
        raster: RasterReader,
        grid: TileGrid,
        outputs: Outputs,
    ):
        self.segmenter, self.settings, self.raster, self.grid, self.outputs = (
            segmenter,
            settings,
            raster,
            grid,
            outputs,
        )
        self.classes = settings.common.classes
        self.dtype, self.nodata = label_type(len(self.classes.names))
        words = None if settings.own_vocabulary else segmenter.encode_vocabulary(self.classes.words)
        self.text_embeds = segmenter.model.catseg.encode_vocabulary(words)
        self._ahead: tuple[list[Window], torch.Tensor] | None = None
        self._shape: torch.Size | None = None
        self._strips: dict[int, np.ndarray] = {}

    def parts(self, first_row: int, on_tiles: Callable[[int, int], None] | None) -> Iterator[Part]:
        """The rows from those of a row of tiles on."""
        is_guided = self.settings.common.upsampling == "guided"
        bands = blend_tiles(
            self.grid,
            self._predict,
            self.settings.batch_size,
            on_tiles,
            guide=self._guide if is_guided else None,
            first_row=first_row,
            on_cell=self._keep_probabilities if self.outputs.probability_classes else None,
        )
        for band in bands:
            yield self._part(band)

    def _part(self, band: Band) -> Part:
        segmentation = self.classes.merge_segmentation(band.segmentation)
        threshold = self.settings.common.threshold
        if threshold is not None:
            segmentation = segmentation.masked_fill(band.probability < threshold, -1)
        is_valid = self.raster.is_valid(Window(band.top, 0, *segmentation.shape))
        labels = segmentation.numpy().astype(self.dtype)  # -1 becomes the highest value, nodata
        labels[~is_valid] = self.nodata
        part = Part(band.top, labels)
        if self.outputs.vector is not None:
            part.probability = (band.probability * 255).round().byte().numpy()
        if self.outputs.probability_classes:
            part.classes = self._strips.pop(band.top)
            part.classes[:, ~is_valid] = 255
        return part

    def _predict(self, windows: Sequence[Window]) -> torch.Tensor:
        if self._ahead is not None and self._ahead[0] == list(windows):
            probabilities, self._ahead = self._ahead[1], None
            return probabilities
        probabilities = self._look_at(windows)
        if probabilities is not None:
            return probabilities
        if self._shape is None:
            self._find_shape(windows)
        return torch.zeros(len(windows), *self._shape, device=self.segmenter.device)

    def _look_at(self, windows: Sequence[Window]) -> torch.Tensor | None:
        """Probabilities (B, W, h, w) of tiles, of which the model is given those that hold something, if any do."""
        tiles = [self.raster.read(window) for window in windows]
        held = [index for index, (_, is_valid) in enumerate(tiles) if is_valid.any()]
        if not held:
            return None
        found = self.segmenter.word_probabilities([tiles[index][0] for index in held], self.text_embeds)
        self._shape = found.shape[1:]
        if len(held) == len(tiles):
            return found
        probabilities = found.new_zeros(len(tiles), *self._shape)
        probabilities[held] = found
        return probabilities

    def _find_shape(self, windows: Sequence[Window]):
        """Looks at the next batch of tiles of which one holds something: of what size all are. It is kept for when its
        turn comes."""
        all_windows = [self.grid.window(*place) for place in self.grid.places]
        size = self.settings.batch_size
        start = all_windows.index(windows[0]) + size
        for first in range(start, len(all_windows), size):
            batch = all_windows[first : first + size]
            probabilities = self._look_at(batch)
            if probabilities is not None:
                self._ahead = batch, probabilities
                return
        self._shape = torch.Size([len(self.classes.words), 1, 1])

    def _guide(self, window: Window) -> torch.Tensor:
        return self.raster.read(window)[0].to(self.segmenter.device, non_blocking=True)

    def _keep_probabilities(self, blender: TileBlender, cell: Window):
        """Of the chosen classes in a rectangle of a band: of several words the highest."""
        chosen = self.outputs.probability_classes
        if cell.left == 0:
            self._strips[cell.top] = np.empty((len(chosen), cell.height, self.raster.size[1]), dtype=np.uint8)
        strip = self._strips[cell.top]
        for block in blocks(cell):
            top = block.top - cell.top
            rows, columns = slice(top, top + block.height), slice(block.left, block.left + block.width)
            for place, index in enumerate(chosen):
                words = [word for word, own in enumerate(self.classes.class_indices) if own == index]
                values = blender.blend(block, torch.tensor(words)).amax(dim=0)
                strip[place, rows, columns] = (values * PROBABILITY_STEPS).round().byte().cpu().numpy()

"""Segments image files batch by batch. Reading and writing go on in threads while the model runs."""

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from ..annotations.writing import AnnotationFiles
from ..errors import UserError, printable
from ..image_sources_catseg import read_pixels
from ..pipeline_catseg import OpenVocabularySegmentationPipeline
from ..tiled_image_catseg import check_tile_fits
from ..utils.processes import Processes
from .ahead import map_ahead, worker_threads
from .batches import BatchSegmenter
from .origins import Settings, describe_input
from .results import list_largest, read_result, write_result, write_summary
from .sources import choose_names


READERS, WRITERS = 2, 4
# Of images that are being written or wait for it: about 11 bytes for each, and what the writers need.
MAX_PIXELS = 2**26


@dataclass
class ImageInWork:
    """
    An image on its way.

    Attributes:
        index (`int`): Its place among all.
        origin (`dict`): As [`write_result`] takes it.
        pixels (`torch.Tensor` of shape (3, H, W)): In RGB, unless it could not be read.
        num_pixels (`int`): How many these are.
        error (`str`): Why it could not be read.
        result (`dict`): What the pipeline returned for it.
        record (`dict`): What the summary says of it.
    """

    index: int
    origin: dict[str, Any]
    pixels: torch.Tensor | None = None
    num_pixels: int = 0
    error: str | None = None
    result: dict[str, Any] | None = None
    record: dict[str, Any] | None = None


# What segments batches of the images' indices, and gives each of these images, in any order.
Engine = Callable[[list[range]], Generator[ImageInWork, None, None]]


class FileSegmenter:
    """
    Segments image files and writes an overlay and a label map of each.

    Args:
        segmenter ([`OpenVocabularySegmentationPipeline`]): The model with its processor.
        images (`list[str]`): Paths and URLs.
        output (`Path`): Folder for the results.
        settings ([`Settings`]): The classes to tell apart, and how it is done.
        own_vocabulary (`bool`): Whether the classes are the checkpoint's own, which come with their prompts.
        mask_generator, batch_size: As [`~OpenVocabularySegmentationPipeline.__call__`] takes them.
        annotation_files ([`AnnotationFiles`], *optional*): What else is written from the label maps when all are
            there.
    """

    def __init__(
        self,
        segmenter: OpenVocabularySegmentationPipeline,
        images: list[str],
        output: Path,
        settings: Settings,
        *,
        own_vocabulary: bool = False,
        mask_generator: Callable[[Image.Image], Any] | None = None,
        batch_size: int = 1,
        annotation_files: AnnotationFiles | None = None,
    ):
        self.segmenter, self.images, self.output, self.settings = segmenter, images, output, settings
        self.paths = [output / name for name in choose_names(images, output)]
        self.batch_size, self.is_of_one_image = batch_size, len(images) == 1
        self.batches = BatchSegmenter(
            segmenter, settings, own_vocabulary=own_vocabulary, mask_generator=mask_generator, batch_size=batch_size
        )
        self.annotation_files = annotation_files

    def run(
        self,
        processes: Processes,
        failures: list[tuple[str, str]],
        resume: bool = False,
        engine: Engine | None = None,
    ) -> list[tuple[str, str]]:
        """
        Segments what no other process does, prints a line for every image, and writes the summary of all.

        Args:
            processes ([`Processes`]): Those that share the images, on one file system.
            failures (`list[tuple[str, str]]`): What else the summary names as unreadable, each with a sentence that
                says why.
            resume (`bool`): Whether to leave out batches of images that have their results.
            engine (`Callable`, *optional*): What segments the batches; by default these processes, by [`segment`].

        Returns:
            The images that could not be read in any of the processes, in their order, each with such a sentence.

        Raises:
            UserError: If the results cannot be written, for what the pipeline refuses, and if there are results of
                other settings to go on with.
        """
        self.digests = processes.first(self.settings.digests)
        done = self._find_done(processes) if resume else {}
        starts = range(0, len(self.images), self.batch_size)
        batches = [range(start, min(start + self.batch_size, len(self.images))) for start in starts]
        # Whole ones, since other images of a batch can decide on the last bit of a result.
        left = [batch for batch in batches if not done.keys() >= set(batch)]
        engine = engine or (lambda batches: self.segment(processes.take(batches)))
        segmented, unreadable = processes.each(lambda: self._report(engine(left), left, processes))
        for index in (index for batch in left for index in batch):
            done.pop(index, None)
        records = _merge([done, *processes.gather(segmented)])
        errors = _merge(processes.gather(unreadable))
        results = [{"image": self.images[index], **records[index]} for index in sorted(records)]
        unreadable = [(self.images[index], errors[index]) for index in sorted(errors)]
        processes.first(lambda: write_summary(self.output, self.settings, results, failures + unreadable))
        if self.annotation_files is not None:
            processes.first(lambda: self.annotation_files.write(self.output, results, self.settings.classes.names))
        return unreadable

    def _find_done(self, processes: Processes) -> dict[int, dict[str, Any]]:
        def find() -> dict[int, dict[str, Any]]:
            own = range(len(self.images))[processes.rank :: processes.size]
            results = {index: read_result(self.paths[index], self._origin(index)) for index in own}
            return {index: record for index, record in results.items() if record is not None}

        return _merge(processes.gather(processes.each(find)))

    def segment(self, batches: Iterable[range]) -> Generator[ImageInWork, None, None]:
        """The images of batches, in their order, each when its results are written or it could not be read."""
        with worker_threads(READERS) as readers, worker_threads(WRITERS) as writers:
            read = map_ahead(readers, self._read, batches, READERS)
            segmented = (image for images in read for image in self._segment(images))
            yield from _map_behind(writers, self._write, segmented, MAX_PIXELS)

    def part(self, images: list[str], paths: list[Path], digests: dict[str, str]) -> "FileSegmenter":
        """The same for other images, whose names have been chosen, of a job with these digests of its settings."""
        part = copy(self)
        part.images, part.paths, part.digests = images, paths, digests
        return part

    def _report(
        self, images: Generator[ImageInWork, None, None], batches: list[range], processes: Processes
    ) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """Shows what becomes of the batches; returns records and errors, by the images' indices."""
        records, errors = {}, {}
        num_done = len(self.images) - sum(map(len, batches))
        disable = None if processes.is_first else True
        self.batches.shows_tiles = processes.is_first and sys.stderr.isatty()
        with (
            tqdm(total=len(self.images), initial=num_done, unit="image", disable=disable) as progress,
            closing(images),
        ):
            for image in images:
                if image.error is None:
                    records[image.index] = image.record
                    shares = {segment["label"]: segment["area"] for segment in image.record["segments"]}
                    line = f"{self.images[image.index]}: {list_largest(shares)}"
                    progress.write(printable(line), file=sys.stdout)
                    sys.stdout.flush()  # as a whole line, between those of other processes
                else:
                    errors[image.index] = image.error
                progress.update(num_done + processes.add_done(1) - progress.n)
        return records, errors

    def _read(self, batch: range) -> list[ImageInWork]:
        images = [ImageInWork(index, self._origin(index)) for index in batch]
        for image in images:
            try:
                image.pixels = read_pixels(
                    self.images[image.index],
                    self.segmenter.processor.image_processor,
                    value_range=self.settings.value_range,
                )
                image.num_pixels = image.pixels[0].numel()
            except UserError as error:
                image.error = str(error)
        return images

    def _segment(self, images: list[ImageInWork]) -> list[ImageInWork]:
        readable = [image for image in images if image.error is None]
        tile_size = self.settings.tile_size
        if self.is_of_one_image and tile_size is not None:
            for image in readable:
                check_tile_fits(tile_size, tuple(image.pixels.shape[1:]), f"The image {self.images[image.index]!r}")
        results = self.batches.segment([image.pixels for image in readable])
        for image, result in zip(readable, results, strict=True):
            image.result = result
        return images

    def _write(self, image: ImageInWork) -> ImageInWork:
        if image.error is None:
            path, pixels = self.paths[image.index], Image.fromarray(image.pixels.permute(1, 2, 0).numpy())
            names, has_gaps = self.settings.classes.names, self.batches.has_gaps
            image.record = write_result(path, pixels, image.result, names, has_gaps, image.origin)
            image.pixels = image.result = None
        return image

    def _origin(self, index: int) -> dict[str, Any]:
        return {"settings": self.digests, "input": describe_input(self.images[index])}


def check_output(output: Path):
    """
    Raises:
        UserError: If there cannot be a folder of results.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"The output {str(output)!r} is a file, but a folder is needed.")


def _map_behind(
    threads: ThreadPoolExecutor,
    function: Callable[[ImageInWork], ImageInWork],
    images: Iterable[ImageInWork],
    max_pixels: int,
) -> Iterator[ImageInWork]:
    """What the function returns for each image, in their order and as soon as it is there. While those that are worked
    on or waiting have more than `max_pixels` together, no other one is asked for."""
    waiting, num_pixels = deque(), 0
    for image in images:
        waiting.append(threads.submit(function, image))
        num_pixels += image.num_pixels
        while waiting and (waiting[0].done() or num_pixels > max_pixels):
            image = waiting.popleft().result()
            num_pixels -= image.num_pixels
            yield image
    for future in waiting:
        yield future.result()


def _merge(parts: list[dict]) -> dict:
    return {key: value for part in parts for key, value in part.items()}

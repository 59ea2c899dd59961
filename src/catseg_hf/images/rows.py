"""Images that are rows of a dataset: what each is segmented with, and what becomes a column."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import torch

from ..annotations.rle import encode_coco
from ..class_words_catseg import ClassWords, read_classes
from ..configuration_catseg import CATSegConfig
from ..errors import UserError, first_line
from ..image_sources_catseg import read_pixels
from ..loading import load_segmenter
from ..loading.names import resolve_model
from .ahead import map_ahead, worker_threads
from .batches import BatchSegmenter, check_settings
from .origins import Settings
from .results import draw_label_map, list_segments


READERS = 2
CLASS_MAPS = ("png", "coco_rle")
RESULT_COLUMNS = ("class_map", "width", "height", "no_class", "segments", "error")


@dataclass(frozen=True)
class RowOptions:
    """
    How the images of a dataset are segmented.

    Args:
        model (`str`): "base", "large", a folder or a Hub id, in reach of every process that segments.
        labels (`str` or `list[str]`, *optional*): As `candidate_labels` of [`OpenVocabularySegmentationPipeline`]; by
            default the checkpoint's own vocabulary.
        background_labels, threshold, value_range, upsampling, tile_size, tile_overlap: As the pipeline takes them. An
            image that is smaller than a tile is segmented as a whole.
        dtype (`str`, *optional*, defaults to `"auto"`): As [`~loading.load_segmenter`] takes it.
        batch_size (`int`, *optional*, defaults to 1): Images, or tiles of one, that the model takes at a time. Other
            images of a batch can decide on the last bit of a probability.
        class_maps (`str`, *optional*, defaults to `"png"`): Form of the class maps: `"png"`, the bytes of a PNG of
            class indices; or `"coco_rle"`, run lengths of each segment as pycocotools reads them.
    """

    model: str
    labels: str | Sequence[str] | None = None
    background_labels: str | Sequence[str] | None = None
    threshold: float | None = None
    value_range: tuple[float, float] | None = None
    upsampling: str = "bilinear"
    tile_size: int | None = None
    tile_overlap: float | None = None
    dtype: str = "auto"
    batch_size: int = 1
    class_maps: str = "png"

    @cached_property
    def settings(self) -> Settings:
        """
        What the results depend on beside the images; no weights are loaded for it.

        Raises:
            UserError: If an option is not accepted, or the model's configuration cannot be read.
        """
        if self.class_maps not in CLASS_MAPS:
            accepted = " or ".join(map(repr, CLASS_MAPS))
            raise UserError(f"`class_maps` is {self.class_maps!r}, but {accepted} is accepted: name one of them.")
        is_number = isinstance(self.batch_size, int) and not isinstance(self.batch_size, bool)
        if not is_number or self.batch_size < 1:
            raise UserError(f"`batch_size` is {self.batch_size!r}, but a number of images, at least 1, is needed.")
        model = resolve_model(self.model)
        try:
            config = CATSegConfig.from_pretrained(model)
        except Exception as error:  # transformers raises all kinds for damaged files
            raise UserError(f"The model {self.model!r} could not be loaded: {first_line(error)}.") from error
        classes = read_classes(config.label_names if self.labels is None else self.labels, self.background_labels)
        options = asdict(self)
        names = ("threshold", "value_range", "upsampling", "tile_size", "tile_overlap")
        return check_settings(config, model, classes, self.dtype, **{name: options[name] for name in names})

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns that come to a dataset's own."""
        return RESULT_COLUMNS if self.class_maps == "png" else RESULT_COLUMNS[1:]

    def check_columns(self, columns: Sequence[str], image_column: str):
        """
        Raises:
            UserError: If a dataset of these columns has no such one, or one that results would replace.
        """
        if image_column not in columns:
            raise UserError(
                f"The dataset has no column {image_column!r}, but {', '.join(map(repr, columns)) or 'none at all'}: "
                "name the one that holds the images, as bytes, paths or arrays (`image_column`)."
            )
        if taken := [name for name in self.columns if name in columns and name != image_column]:
            raise UserError(
                f"The dataset has a column {taken[0]!r}, which is what results are called: rename it "
                f"(`rename_columns`), as any of {', '.join(self.columns)}."
            )


class RowSegmenter:
    """
    Segments the images of rows, with a model that is loaded once.

    Args:
        options ([`RowOptions`]): How.
        device (`str` or `torch.device`, *optional*): Where the model runs; by default an accelerator, if any.

    Raises:
        UserError: If the model cannot be loaded, or an option is not accepted.
    """

    def __init__(self, options: RowOptions, device: str | torch.device | None = None):
        self.options, settings = options, options.settings
        self.segmenter = load_segmenter(options.model, device, options.dtype)
        own_vocabulary = options.labels is options.background_labels is None
        if not own_vocabulary:
            self.segmenter.encode_vocabulary(settings.classes.words)  # refused before the first image
        self._batches = BatchSegmenter(
            self.segmenter, settings, own_vocabulary=own_vocabulary, batch_size=options.batch_size
        )

    @property
    def classes(self) -> ClassWords:
        """What is told apart."""
        return self.options.settings.classes

    def segment(self, images: Iterable[Any]) -> list[dict[str, Any]]:
        """
        Segments images.

        Args:
            images: Of any kind that the pipeline takes, or dictionaries with the `bytes` or the `path` of one, as
                `datasets` stores them.

        Returns:
            For each of them a dictionary with
            - `class_map` (`bytes`): With `class_maps="png"`, what `catseg-hf segment` writes as NAME_labels.png,
              without the words on its origin;
            - `width`, `height` (`int`): In pixels, upright;
            - `no_class` (`int` or `None`): The value of pixels of no class, if there may be any;
            - `segments` (`list[dict]`): Those that are there, the largest first, with `index`, `label`, `area` (a
              share of the image) and `score`, the mean probability of the class in it, both in 0..1; with
              `class_maps="coco_rle"` also `counts`, of the RLE of this height and width;
            - `error` (`str` or `None`): Why the image could not be read. All else is `None` then.
        """
        rows, readable = [], []
        with worker_threads(READERS) as readers:
            for row, pixels in map_ahead(readers, self._read, images, READERS):
                rows.append(row)
                if pixels is not None:
                    readable.append((row, pixels))
                if len(readable) == self.options.batch_size:
                    self._segment(readable)
                    readable = []
        self._segment(readable)
        return rows

    def _segment(self, batch: list[tuple[dict[str, Any], torch.Tensor]]):
        results = self._batches.segment([pixels for _, pixels in batch])
        for (row, _), result in zip(batch, results, strict=True):
            row |= self._describe(result)

    def _read(self, image: Any) -> tuple[dict[str, Any], torch.Tensor | None]:
        row = dict.fromkeys(self.options.columns)
        try:
            return row, self._read_pixels(image)
        except UserError as error:
            return {**row, "error": str(error)}, None

    def _read_pixels(self, image: Any) -> torch.Tensor:
        if isinstance(image, Mapping):
            image = image.get("path") if image.get("bytes") is None else image["bytes"]
        if image is None:
            raise UserError("There is no image in this row.")
        if isinstance(image, np.ndarray):
            _refuse_indices(image)
        return read_pixels(
            image, self.segmenter.processor.image_processor, value_range=self.options.settings.value_range
        )

    def _describe(self, result: dict[str, Any]) -> dict[str, Any]:
        segmentation, segments = result["segmentation"], list_segments(result)
        height, width = segmentation.shape
        label_map, no_class = draw_label_map(segmentation, len(self.classes.names), self._batches.has_gaps)
        row = {"width": width, "height": height, "no_class": no_class, "segments": segments}
        if self.options.class_maps == "png":
            file = BytesIO()
            label_map.save(file, format="PNG")
            return {"class_map": file.getvalue(), **row}
        for segment in segments:
            segment["counts"] = encode_coco((segmentation == segment["index"]).numpy())
        return row


def _refuse_indices(image: np.ndarray):
    """Such as Ray's `read_images` makes of palettes, in the shape of grey images."""
    has_one_channel = image.ndim == 2 or (image.ndim == 3 and 1 in (image.shape[0], image.shape[-1]))
    if has_one_channel and image.dtype == np.uint8:
        raise UserError(
            f"The image is an array of shape {image.shape} with one channel, which may be grey or the indices of a "
            "palette: give the file's bytes or path, or an array with three channels (read_images with mode='RGB')."
        )

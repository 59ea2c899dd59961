"""datasets: the images of a `Dataset` or an `IterableDataset`, segmented by `map`."""

from functools import cached_property
from typing import Any

import torch

from ..errors import UserError
from ..images.rows import RowOptions, RowSegmenter


try:
    import datasets
    from datasets.utils.file_utils import xopen
except ImportError as error:
    raise ImportError("This needs datasets: `pip install datasets`.") from error


class MapSegmenter:
    """
    The function for `map` of a dataset, with `batched=True` and, on several processes, `with_rank=True`. Each process
    loads the model when its first batch comes, and takes one GPU after another by its rank.

    Args:
        options ([`~images.rows.RowOptions`]): How images are segmented.
        image_column (`str`): Where they are.
        device (`str`, *optional*): Where the model runs; by default the accelerator of the process's rank, if any.
    """

    def __init__(self, options: RowOptions, image_column: str = "image", device: str | None = None):
        self.options, self.image_column, self.device = options, image_column, device
        # By which `map` tells in its cache whether the result would come out the same.
        self.digests = options.settings.digests()
        self._rank = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_segmenter", "_rank")}

    def __setstate__(self, state: dict[str, Any]):
        vars(self).update(state, _rank=None)

    def __call__(self, batch: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """The new columns of a batch of rows."""
        self._rank = rank
        rows = self._segmenter.segment(map(_fetched, batch[self.image_column]))
        return {name: [row[name] for row in rows] for name in self.options.columns}

    @cached_property
    def _segmenter(self) -> RowSegmenter:
        return RowSegmenter(self.options, self.device or device_of_rank(self._rank))


def _fetched(image: Any) -> Any:
    """An image of a stream, of which there is only an address, with its bytes; as it was where it cannot be opened."""
    if not isinstance(image, dict) or image.get("bytes") is not None or "://" not in (image.get("path") or ""):
        return image
    try:
        with xopen(image["path"], "rb") as file:
            return {**image, "bytes": file.read()}
    except (OSError, ValueError):
        return image


def device_of_rank(rank: int | None) -> torch.device | None:
    """The accelerator for one of several processes, if there is any."""
    if rank is None or not torch.accelerator.is_available():
        return None
    return torch.device(torch.accelerator.current_accelerator().type, rank % torch.accelerator.device_count())


def segment_dataset(
    dataset: "datasets.Dataset | datasets.IterableDataset",
    *,
    image_column: str = "image",
    num_proc: int | None = None,
    device: str | None = None,
    map_options: dict[str, Any] | None = None,
    **options: Any,
) -> "datasets.Dataset | datasets.IterableDataset":
    """
    Adds the segmentation of every image to a dataset.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): With a column of images, or of their bytes or
            paths. A column of the feature `Image` is not decoded by `datasets`, but as `catseg-hf segment` does it.
        image_column (`str`, *optional*, defaults to `"image"`): That column.
        num_proc (`int`, *optional*): Processes that share a `Dataset`, one for each GPU; by default this one alone.
        device (`str`, *optional*): Where the model runs; by default an accelerator, if any, of several the one of the
            process's rank.
        map_options (`dict`, *optional*): Further arguments of `Dataset.map`, such as `load_from_cache_file`.
        options: Of [`~images.rows.RowOptions`]: `model`, `labels` and others.

    Returns:
        The dataset with the columns that [`~images.rows.RowSegmenter.segment`] names. `class_map` is an `Image`, whose
        values are the classes; of an `IterableDataset`, which decodes nothing behind a `map`, it is the bytes of a
        PNG, and the images stay encoded too. A damaged image is a row with its `error`.

    Raises:
        UserError: If there is no such column or one of the results' names, an option is not accepted, the model cannot
            be loaded, or an `IterableDataset` is to be shared by processes.
    """
    options = RowOptions(**options)
    is_streamed = isinstance(dataset, datasets.IterableDataset)
    if is_streamed and dataset.features is None:
        dataset = dataset._resolve_features()
    features = dataset.features
    options.check_columns([*features], image_column)
    if is_streamed and num_proc is not None:
        raise UserError(
            f"`num_proc` is {num_proc}, but an IterableDataset is read by one process: split it among several "
            "(`datasets.distributed.split_dataset_by_node`), or leave `num_proc` out."
        )
    function = MapSegmenter(options, image_column, device)
    is_image = isinstance(features[image_column], datasets.Image)
    if is_image:
        dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    result_features = datasets.Features({**dataset.features, **_features(options, is_streamed)})
    arguments = {"batched": True, "batch_size": 16 * options.batch_size, "features": result_features}
    if not is_streamed:
        arguments |= {"num_proc": num_proc, "with_rank": num_proc is not None, "desc": "Segmenting"}
    dataset = dataset.map(function, **arguments, **(map_options or {}))
    return dataset.cast_column(image_column, features[image_column]) if is_image and not is_streamed else dataset


def _features(options: RowOptions, is_streamed: bool) -> dict[str, Any]:
    segment = {
        "index": datasets.Value("int32"),
        "label": datasets.Value("string"),
        "area": datasets.Value("float64"),
        "score": datasets.Value("float64"),
    }
    if options.class_maps == "coco_rle":
        segment["counts"] = datasets.Value("string")
    features = {
        "class_map": datasets.Value("binary") if is_streamed else datasets.Image(),
        "width": datasets.Value("int32"),
        "height": datasets.Value("int32"),
        "no_class": datasets.Value("int32"),
        "segments": datasets.List(segment),
        "error": datasets.Value("string"),
    }
    return {name: features[name] for name in options.columns}

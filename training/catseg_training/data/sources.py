"""One way in for every source of images and label maps."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from catseg_hf.annotations.registry import refuse_unprepared
from catseg_hf.errors import UserError, first_line

from .coco_stuff import coco_stuff_pairs, is_coco_stuff_folder
from .columns import find_columns, is_label_array
from .examples import LABEL_IDS
from .paired_folders import Pair, folder_pairs, has_label_maps, is_paired_folder
from .tar_shards import tar_dataset, tar_shards


_ENCODED_IMAGE = datasets.Image(decode=False)
# How many parts a local dataset has when it is streamed: at most this many workers of all processes have work.
_NUM_STREAM_SHARDS = 64
# What reads a data file that is given by its path.
_FILE_LOADERS = {".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load_segmentation_data(
    source: str | os.PathLike,
    split: str,
    *,
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_ids: str | None = None,
    reduce_labels: bool = False,
    value_range: Sequence[float] | None = None,
    streaming: bool = False,
    max_samples: int | None = None,
    cache_dir: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Images with label maps from a folder, from files or from the Hub. Nothing is decoded yet: read rows with
    [`read_example`], or through the classes below.

    Args:
        source (`str` or `os.PathLike`):
            A COCO-Stuff download (see `coco_stuff.py`); a folder of pairs, `images/SPLIT/NAME.jpg` with
            `labels/SPLIT/NAME.png` (or `annotations/SPLIT/`); tar files of WebDataset (see `tar_shards.py`); any other
            folder or file that `datasets.load_dataset`
            reads, such as parquet files or an imagefolder with metadata; a folder of `save_to_disk`; or
            the name of a dataset on the Hub.
        split (`str`): Which part, "train" or "validation" say. Of folders of pairs, the folder's name.
        config_name (`str`, *optional*): Which configuration of a dataset that has several.
        image_column (`str`, *optional*): The column of images; found by its name or type otherwise.
        label_column (`str`, *optional*): The column of label maps, as images or as nested lists of integers.
        label_ids (`str`, *optional*):
            What the labels hold: "contiguous" positions in the vocabulary, or "coco_stuff_raw" ids, mapped as they are
            read. By default raw for a COCO-Stuff download and contiguous for everything else.
        reduce_labels (`bool`, *optional*, defaults to `False`):
            Whether ids begin at 1 and 0 is unlabelled: 0 becomes the ignore index, every other id one less.
        value_range (`Sequence[float]`, *optional*): Stored values of images that are black and white, see
            [`~catseg_hf.image_pixels_catseg.rgb_pixels`].
        streaming (`bool`, *optional*, defaults to `False`): Whether to read rows as they come, downloading nothing.
        max_samples (`int`, *optional*): Only the first so many rows.
        cache_dir (`str`, *optional*), revision (`str`, *optional*), token (`str` or `bool`, *optional*):
            As of `datasets.load_dataset`.

    Returns:
        `datasets.Dataset` or, if `streaming`, `datasets.IterableDataset`: Rows with "image" and "label", not decoded,
        "name", for messages, and "label_ids", "reduce_labels" and "value_range", which tell [`read_example`] how to
        read them.

    Raises:
        UserError: In words for the user, if there is no such source, split or column, or nothing in it.
    """
    if label_ids not in (None, *LABEL_IDS):
        raise UserError(f"Unknown label_ids {label_ids!r}: choose one of {', '.join(LABEL_IDS)}.")
    folder = Path(source).expanduser()
    is_coco_stuff = is_coco_stuff_folder(folder)
    if not is_coco_stuff and not has_label_maps(folder):
        refuse_unprepared(folder)
    is_pairs = is_coco_stuff or is_paired_folder(folder)
    shards = [] if is_pairs else tar_shards(folder, split)
    if (is_pairs or shards) and (config_name, image_column, label_column) != (None, None, None):
        raise UserError(
            f"{source} pairs images and labels by name, which has no configuration and no columns: leave them out."
        )
    if shards:
        dataset = tar_dataset(shards, streaming, cache_dir)
    elif is_pairs:
        dataset = _pairs_dataset((coco_stuff_pairs if is_coco_stuff else folder_pairs)(folder, split), folder)
        if streaming:
            dataset = dataset.to_iterable_dataset(num_shards=min(_NUM_STREAM_SHARDS, len(dataset)))
    else:
        dataset = _loaded(
            source,
            split,
            image_column,
            label_column,
            name=config_name,
            streaming=streaming,
            cache_dir=cache_dir,
            revision=revision,
            token=token,
        )
    if max_samples is not None:
        dataset = dataset.take(max_samples if streaming else min(max_samples, len(dataset)))
    if label_ids is None:
        label_ids = "coco_stuff_raw" if is_coco_stuff else "contiguous"
    constants = {"label_ids": label_ids, "reduce_labels": reduce_labels, "value_range": value_range}
    return _with_constants(dataset, split, constants)


def _pairs_dataset(pairs: Sequence[Pair], folder: Path) -> datasets.Dataset:
    columns = {
        "image": [str(image) for image, _ in pairs],
        "label": [str(label) for _, label in pairs],
        "name": [str(image.relative_to(folder)) for image, _ in pairs],
    }
    features = {"image": _ENCODED_IMAGE, "label": _ENCODED_IMAGE, "name": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _loaded(
    source: str | os.PathLike, split: str, image_column: str | None, label_column: str | None, **options
) -> datasets.Dataset | datasets.IterableDataset:
    """Images and labels, not decoded, of what `datasets.load_dataset` makes of a source."""
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in _FILE_LOADERS:
        arguments = {"path": _FILE_LOADERS[path.suffix.lower()], "data_files": {split.partition("[")[0]: str(path)}}
    elif path.exists():
        arguments = {"path": str(path)}
    elif path.is_absolute() or str(source).startswith(("~", ".")):
        raise UserError(f"There is no file or folder {source}.")
    else:
        arguments = {"path": str(source)}
    with _explained_errors(source, split):
        if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
            dataset = _loaded_from_disk(path, split, options["streaming"])
        else:
            dataset = datasets.load_dataset(**arguments, split=split, **options)
    if dataset.features is None:
        raise UserError(f"The columns of {source} are not known while it is streamed: load it without streaming.")
    columns = find_columns(dataset.features, str(source), image_column, label_column)
    has_arrays = is_label_array(dataset.features[columns[1]])
    dataset = dataset.select_columns(columns)
    # Before anything else: a stream would decode images to rename their column, and encode them again.
    for column in columns[:1] if has_arrays else columns:
        dataset = dataset.cast_column(column, _ENCODED_IMAGE)
    # In two steps, so that the columns may also be called the other way round.
    dataset = dataset.rename_columns(dict(zip(columns, ("chosen image", "chosen label"), strict=True)))
    dataset = dataset.rename_columns({"chosen image": "image", "chosen label": "label"})
    if has_arrays:
        dataset = dataset.with_format("numpy")  # as lists, every pixel would be an object
    with _explained_errors(source, split):
        is_empty = next(iter(dataset.take(1)), None) is None if options["streaming"] else len(dataset) == 0
    if is_empty:
        raise UserError(f"The split {split!r} of {source} is empty: choose another one.")
    return dataset


def _loaded_from_disk(path: Path, split: str, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    """What `save_to_disk` wrote: one of several splits, or the only data that there is, whatever the split."""
    dataset = datasets.load_from_disk(path)
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise UserError(f"it has the splits {', '.join(dataset)}")
        dataset = dataset[split]
    return dataset.to_iterable_dataset() if streaming else dataset


@contextmanager
def _explained_errors(source: str | os.PathLike, split: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of the Hub, the network, the file system, Arrow and more
        # This one only says that something went wrong.
        is_vague = isinstance(error, DatasetGenerationError) and error.__cause__ is not None
        cause = error.__cause__ if is_vague else error
        raise UserError(
            f"The split {split!r} of {source} cannot be loaded: {first_line(cause)}. Name a folder that is here, or a "
            "dataset of the Hub without a loading script, and one of its splits."
        ) from error


def _with_constants(
    dataset: datasets.Dataset | datasets.IterableDataset, split: str, constants: Mapping[str, Any]
) -> datasets.Dataset | datasets.IterableDataset:
    """Adds a name for every row that has none, and what [`read_example`] has to know, to all rows."""
    if isinstance(dataset, datasets.IterableDataset):
        dataset = dataset.map(partial(_add_to_row, additions={"name": f"a row of {split}", **constants}))
        return dataset.with_format(None)  # which leaves arrays as they are, and constants too
    columns = {name: [value] * len(dataset) for name, value in constants.items()}
    if "name" not in dataset.column_names:
        columns["name"] = [f"row {row} of {split}" for row in range(len(dataset))]
    extended = datasets.concatenate_datasets([dataset, datasets.Dataset.from_dict(columns)], axis=1)
    if dataset.format["type"] is None:
        return extended
    return extended.with_format(dataset.format["type"], columns=["label"], output_all_columns=True)


def _add_to_row(row: dict[str, Any], additions: Mapping[str, Any]) -> dict[str, Any]:
    return {**additions, **row}

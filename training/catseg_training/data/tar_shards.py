"""Tar files of pairs as of WebDataset: `NAME.jpg` (or another image) with its label map `NAME.seg.png` beside it."""

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from catseg_hf.errors import UserError
from catseg_hf.images.tars import LABEL_SUFFIX, damaged_tar, is_tar, read_members

from .paired_folders import IMAGE_SUFFIXES, SHORT_NAMES, first_names


# Of files that `datasets` loads, beside which a tar file may be anything.
DATA_SUFFIXES = {".parquet", ".arrow", ".json", ".jsonl", ".csv"}


def tar_shards(source: Path, split: str) -> list[Path]:
    """
    The tar files of a source, sorted by name; none if it has no tar files.

    Args:
        source (`Path`): A tar file, whatever the split, or a folder with tar files in `SPLIT/` or whose names begin
            with the split. "validation" and "val" stand for each other.
        split (`str`): Which part.

    Raises:
        UserError: If the folder has tar files of other splits only, and no tables.
    """
    if source.is_file():
        return [source] if is_tar(source) else []
    if not source.is_dir():
        return []
    for name in filter(None, (split, SHORT_NAMES.get(split))):
        folder = source / name
        shards = folder.iterdir() if folder.is_dir() else _named_by(source, name)
        if found := sorted(filter(is_tar, shards)):
            return found
    others = sorted(path.name for path in source.iterdir() if is_tar(path))
    if others and not any(path.suffix.lower() in DATA_SUFFIXES for path in source.rglob("*")):
        raise UserError(
            f"{source} has no tar files for the split {split!r}: it has {first_names(others)}. Name them "
            f"{split}-000.tar and so on, or move them into {source / split}."
        )
    return []


def _named_by(source: Path, split: str) -> list[Path]:
    """Files whose names begin with the split as a word: train-000.tar, not trainval-000.tar."""
    return [path for path in source.glob(f"{split}*") if not path.name[len(split) :][:1].isalpha()]


def tar_dataset(
    shards: Sequence[Path], streaming: bool, cache_dir: str | None = None
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Rows of "image", "label" (not decoded) and "name". A stream has a shard for each file, which is read from its
    beginning to its end; otherwise all is copied to the cache of `datasets` first.

    Raises:
        UserError: Also when rows are read, if a file is damaged or ends early, an image or a label is without the
            other, a sample has two images, or, not streamed, there is none.
    """
    encoded = datasets.Image(decode=False)
    features = datasets.Features({"image": encoded, "label": encoded, "name": datasets.Value("string")})
    # With what tells a file that was made anew, since a copy is known by its arguments.
    arguments = {"shards": [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in shards]}
    if streaming:
        return datasets.IterableDataset.from_generator(read_shards, features=features, gen_kwargs=arguments)
    if next(read_shards(arguments["shards"]), None) is None:
        raise UserError(
            f"There are no pairs in {first_names([str(path) for path in shards])}: tar files with NAME.jpg and "
            f"NAME{LABEL_SUFFIX} are needed."
        )
    try:
        return datasets.Dataset.from_generator(
            read_shards, features=features, gen_kwargs=arguments, cache_dir=cache_dir
        )
    except DatasetGenerationError as error:
        raise (error.__cause__ if isinstance(error.__cause__, UserError) else error) from None


def read_shards(shards: Sequence[tuple[str, int, int]]) -> Iterator[dict[str, Any]]:
    """The rows of tar files, given by path, size and time."""
    for path, *_ in shards:
        yield from _read_shard(path)


def _read_shard(shard: str) -> Iterator[dict[str, Any]]:
    num_read, waiting = 0, {}
    try:
        with open(shard, "rb") as file:
            for member, content in read_members(file, lambda member: _place(member) is not None):
                name, column = _place(member)
                if "image" in waiting and column == "image":
                    if name.startswith(f"{waiting['name']}."):
                        continue  # such as NAME.depth.png: of the same sample, and not what is segmented
                    if name == waiting["name"]:
                        raise UserError(
                            f"The tar file {shard} has two images of the sample {name!r}, the second is "
                            f"{member!r}: write the tar file again with one of them."
                        )
                if waiting and name != waiting["name"]:
                    raise _incomplete(shard, waiting)
                waiting |= {"name": name, column: {"path": None, "bytes": content}}
                if "image" in waiting and "label" in waiting:
                    yield waiting | {"name": f"{name} of {shard}"}
                    num_read, waiting = num_read + 1, {}
    except tarfile.ReadError as error:
        raise damaged_tar(shard, num_read, error) from None
    if waiting:
        raise _incomplete(shard, waiting)


def _place(member: str) -> tuple[str, str] | None:
    """A sample's name, dots and folders included, and which column of it the file is; None for other files."""
    lower = member.lower()
    if lower.endswith(LABEL_SUFFIX):
        return member[: -len(LABEL_SUFFIX)], "label"
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if lower.endswith(suffix)), None)
    return None if suffix is None else (member[: -len(suffix)], "image")


def _incomplete(shard: str, waiting: dict[str, Any]) -> UserError:
    missing = f"label {waiting['name']}{LABEL_SUFFIX}" if "image" in waiting else f"image of {waiting['name']}"
    return UserError(
        f"The tar file {shard} has no {missing} beside {waiting['name']!r}: the files of one sample follow each "
        f"other, NAME.jpg and NAME{LABEL_SUFFIX}. Write the tar file again with both."
    )

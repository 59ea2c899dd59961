"""Finds the files of a source: JSON, images by the names that labels give them, and splits by the words for them."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UserError, first_line
from ..utils.files import read_json


# What training takes.
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_SPLITS = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Of a folder, how many files tell which format it has.
_MAX_COMPARED = 20


def split_of(*texts: str) -> str | None:
    """The split that a word of a file's or folder's name stands for: "train" for instances_train2017. The first text
    with such a word counts."""
    for text in texts:
        for word in re.split(r"[^a-z]+", text.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def files_below(source: Path, suffix: str, depth: int = 2) -> Iterator[Path]:
    """The source itself if it is such a file, or those in the folder and in folders in it, the nearest first."""
    if source.is_file():
        if source.suffix.lower() == suffix:
            yield source
        return
    folders = [source]
    for _ in range(depth + 1):
        below = []
        for folder in folders:
            entries = sorted(folder.iterdir()) if folder.is_dir() else []
            entries = [entry for entry in entries if not entry.name.startswith(".")]
            yield from (entry for entry in entries if entry.suffix.lower() == suffix and entry.is_file())
            below += [entry for entry in entries if entry.is_dir()]
        folders = below


def json_below(source: Path, depth: int = 2) -> Iterator[Path]:
    """The JSON files that tell a source's format."""
    for number, file in enumerate(files_below(source, ".json", depth)):
        if number == _MAX_COMPARED:
            return
        yield file


def load_json(path: Path) -> Any:
    """
    What a JSON file holds, read once for a few of them.

    Raises:
        UserError: If it is damaged.
    """
    try:
        return _load_json(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON that can be read: {first_line(error)}.") from error


@lru_cache(maxsize=8)
def _load_json(path: Path, _: int) -> Any:
    return read_json(path)


def try_json(path: Path) -> Any:
    """What a JSON file holds, or `None` if it is damaged."""
    try:
        return load_json(path)
    except UserError:
        return None


def read_text(path: Path) -> str:
    """
    What a text file holds, in UTF-8.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({first_line(error)}): save it in this encoding.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}.") from error


def read_class_list(path: Path) -> list[str]:
    """
    Names of classes from a JSON list.

    Raises:
        UserError: If it is something else.
    """
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a JSON list of class names: {first_line(error)}.") from error
    if not isinstance(names, list):
        raise UserError(f'{path} has to be a JSON list of class names, such as ["road", "car"].')
    return checked_class_list(names, str(path))


def checked_class_list(names: Sequence[Any], where: str) -> list[str]:
    """
    Names of classes, each of them once.

    Args:
        names (`Sequence`): The names.
        where (`str`): What messages call them.

    Raises:
        UserError: If there are none, one is no text, or one is there twice.
    """
    names = list(names)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f'{where} has to be a list of class names, such as ["road", "car"], got {str(names)[:80]}.')
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where} has {', '.join(map(repr, twice))} more than once: an id needs one name of its own.")
    return names


class ImageFiles:
    """
    Images below some folders, found by the names that labels give them.

    Args:
        folders (`Iterable[Path]`): Where they may lie; the first that has one counts.
    """

    def __init__(self, folders: Iterable[Path]):
        self.folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, name: str, near: Iterable[Path] = (), suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Path:
        """
        The image of a name, which may have folders before it, of its own or of somebody else's machine.

        Raises:
            UserError: If there is none, or there are several in different folders that it may mean.
        """
        name = name.replace("\\", "/")
        for folder in (*near, *self.folders):
            try:
                if (path := folder / name).suffix.lower() in suffixes and path.is_file():
                    return path
            except (OSError, ValueError):  # too long, or with a character that no name has
                continue
        parts = PurePosixPath(name).parts[::-1]
        found = self._index().get(parts[0], []) if parts else []
        found = [path for path in found if path.suffix.lower() in suffixes]
        if not found:
            folders = ", ".join(map(str, self.folders)) or "no folder"
            raise UserError(f"There is no image {name!r} in {folders}: name its folder (--images)")
        # The more folders of the name are the same, the better.
        agreement = [sum(1 for _ in _same_start(path.parts[::-1], parts)) for path in found]
        best = [path for path, count in zip(found, agreement, strict=True) if count == max(agreement)]
        if len(best) > 1:
            raise UserError(f"{name!r} may be {' or '.join(map(str, best))}, images of one name in different folders")
        return best[0]

    def stems(self) -> dict[str, Path]:
        """The images by their name without the suffix."""
        return {Path(name).stem: path for name, paths in self._index().items() for path in paths}

    def _index(self) -> dict[str, list[Path]]:
        if self._by_name is None:
            self._by_name = {}
            seen = set()
            for folder in self.folders:
                for parent, folders, files in os.walk(folder):
                    folders[:] = sorted(name for name in folders if not name.startswith("."))
                    for file in sorted(files):
                        path = Path(parent, file)
                        if path.suffix.lower() in IMAGE_SUFFIXES and path not in seen:
                            seen.add(path)
                            self._by_name.setdefault(file, []).append(path)
        return self._by_name


def _same_start(one: tuple[str, ...], other: tuple[str, ...]) -> Iterator[str]:
    for part, counterpart in zip(one, other, strict=False):
        if part != counterpart:
            return
        yield part

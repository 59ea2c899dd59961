"""What a result was made from and with, to tell whether it would come out the same again."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..class_words_catseg import ClassWords


@dataclass(frozen=True)
class Settings:
    """
    What label maps depend on beside their images.

    Args:
        model, sam (`str`): Folder or Hub id of a checkpoint.
        classes ([`ClassWords`]): What is told apart.
        threshold (`float` or `None`): As the pipeline takes it.
        value_range (`tuple[float, float]` or `None`): As the pipeline takes it.
        dtype (`str`): In which the model computes.
        upsampling (`str`): As the pipeline takes it.
        tile_size (`int` or `None`), tile_overlap (`float` or `None`): As the pipeline takes them.
    """

    model: str
    sam: str | None
    classes: ClassWords
    threshold: float | None
    value_range: tuple[float, float] | None
    dtype: str
    upsampling: str = "bilinear"
    tile_size: int | None = None
    tile_overlap: float | None = None

    def digests(self) -> dict[str, str]:
        """A digest of each setting that is not left out, by its name. Of models in folders the sizes and times of
        their files count as well."""
        words = [self.classes.words, self.classes.class_indices]
        settings = {
            "model": _checkpoint(self.model),
            "labels": self.classes.names if self.classes.are_words else words,
            "threshold": self.threshold,
        }
        settings |= {"dtype": self.dtype, "sam": None if self.sam is None else _checkpoint(self.sam)}
        if self.value_range is not None:
            settings["range"] = self.value_range
        if self.upsampling != "bilinear":
            settings["upsampling"] = self.upsampling
        if self.tile_size is not None:
            settings |= {"tile_size": self.tile_size, "tile_overlap": self.tile_overlap}
        return {name: _digest(value) for name, value in settings.items()}


def other_settings(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """The names of the settings, of their digests, that are not the same."""
    return [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]


def describe_input(source: str) -> str:
    """A digest of an image's URL, or of its path, size and time."""
    return _digest([identity(source), None if is_url(source) else _state(source)])


def identity(source: str) -> str:
    """What tells whether two arguments mean the same image."""
    return source if is_url(source) else os.path.realpath(source)


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _checkpoint(model: str) -> list:
    folder = Path(model)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [identity(model) if files else model, [[path.name, _state(path)] for path in files]]


def _state(path: str | os.PathLike) -> list[int] | None:
    try:
        stat = os.stat(path)
    except OSError:  # said when it is read
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]

"""What a result was made from and with, to tell whether it would come out the same again."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .image_files import identity, is_url


def describe_settings(
    model: str, sam: str | None, labels: list[str], threshold: float | None, dtype: str
) -> dict[str, str]:
    """
    Digests of the settings that label maps depend on, by name. Of models in folders the sizes and times of their files
    count as well.

    Args:
        model, sam (`str`): Folder or Hub id of a checkpoint.
        labels (`list[str]`), threshold (`float` or `None`): As the pipeline takes them.
        dtype (`str`): In which the model computes.
    """
    settings = {"model": _checkpoint(model), "labels": labels, "threshold": threshold, "dtype": dtype}
    settings["sam"] = None if sam is None else _checkpoint(sam)
    return {name: _digest(value) for name, value in settings.items()}


def describe_input(source: str) -> str:
    """A digest of an image's URL, or of its path, size and time."""
    return _digest([identity(source), None if is_url(source) else _state(source)])


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

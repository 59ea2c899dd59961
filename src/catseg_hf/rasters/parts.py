"""What a run has finished of a raster, for another one to go on with: a file for each band of rows, in a hidden folder
beside the output."""

import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..utils.files import clear_folder, explained_write_errors, locked_folder, read_json, replaced_file


SETTINGS = "settings.json"


@dataclass
class Part:
    """
    Finished rows.

    Attributes:
        top (`int`): The first of them.
        labels (`np.ndarray` of shape (h, W)): Of each pixel the class, or the value for none.
        probability (`np.ndarray` of shape (h, W), *optional*): Of each pixel's class, uint8 in 0..255.
        classes (`np.ndarray` of shape (K, h, W), *optional*): Probabilities of chosen classes, uint8.
    """

    top: int
    labels: np.ndarray
    probability: np.ndarray | None = None
    classes: np.ndarray | None = None


class Parts:
    """
    The finished rows of one raster.

    Args:
        folder (`Path`): Where they lie.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    @contextmanager
    def open(cls, output: Path, settings: dict[str, str], resume: bool) -> Iterator["Parts"]:
        """
        Those of an output, which no other run has until the block ends.

        Args:
            output (`Path`): The file that they are for.
            settings (`dict[str, str]`): Digests of what they depend on, by name.
            resume (`bool`): Whether to keep those that are there.

        Raises:
            UserError: If another run writes the output, they were made with other settings, or the folder cannot be
                written.
        """
        folder = output.parent / f".{output.name}.parts"
        with locked_folder(folder, output):
            stored = _read_settings(folder) if resume else None
            if stored is None:
                with explained_write_errors(folder):
                    clear_folder(folder)
                with replaced_file(folder / SETTINGS) as aside:
                    aside.write_text(json.dumps(settings), encoding="utf-8")
            elif stored != settings:
                others = sorted(name for name in settings | stored if settings.get(name) != stored.get(name))
                raise UserError(
                    f"{str(output)!r} was begun with another {', '.join(others)}, so that --resume cannot go on with "
                    "it: give the same settings, or leave --resume out to begin anew."
                )
            yield cls(folder)

    def add(self, index: int, part: Part):
        """Keeps the rows of band `index`."""
        arrays = {name: value for name, value in vars(part).items() if value is not None}
        with replaced_file(self._path(index)) as aside, _archive(aside) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)

    def count(self, total: int) -> int:
        """How many bands are there from the first on, of `total`."""
        return next((index for index in range(total) if not self._path(index).exists()), total)

    def read(self, total: int) -> Iterator[Part]:
        """All bands from top to bottom."""
        for index in range(total):
            with np.load(self._path(index), allow_pickle=False) as arrays:
                part = dict(arrays)
            yield Part(int(part.pop("top")), **part)

    def remove(self):
        """Gives up all that is kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npz"


def _read_settings(folder: Path) -> dict[str, str] | None:
    try:
        return read_json(folder / SETTINGS)
    except (OSError, ValueError):
        return None


def _archive(path: Path) -> zipfile.ZipFile:
    # The fastest level: label maps become small by any.
    return zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)

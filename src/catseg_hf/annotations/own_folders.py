"""Folders of annotations that a later run may replace: as they were written, and not what somebody has corrected."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError
from ..utils.files import aside_of, explained_write_errors, read_json, synchronise_all


CONTRIBUTOR = "catseg-hf segment"  # in JSON files
MARK = ".catseg-hf"  # a file in each of them, which holds a digest of the others


def check_own_folder(folder: Path):
    """
    Raises:
        UserError: If there is something else in the folder than an earlier run has written.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    mark = folder / MARK
    if folder.is_symlink() or not mark.is_file() or mark.read_text() != _digest(folder):
        raise UserError(
            f"{folder} has been changed since it was written, or is no folder of this command, and would be replaced: "
            "move it elsewhere, or name another --output."
        )


def check_own_file(path: Path):
    """
    Raises:
        UserError: If there is a JSON file that no earlier run has written.
    """
    if not path.exists():
        return
    try:
        is_own = read_json(path)["info"]["contributor"] == CONTRIBUTOR
    except (OSError, ValueError, KeyError, TypeError):
        is_own = False
    if not is_own:
        raise UserError(
            f"{path} is no file of this command, and would be replaced: move it elsewhere, or name another --output."
        )


@contextmanager
def replaced_own_folder(folder: Path) -> Iterator[Path]:
    """
    An empty folder to fill, which takes the place of `folder` when the block ends, and is removed if it fails.

    Raises:
        UserError: If it cannot be written, or something else is there.
    """
    check_own_folder(folder)
    aside = aside_of(folder)
    with explained_write_errors(folder):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            yield aside
            (aside / MARK).write_text(_digest(aside))
            synchronise_all(aside)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _digest(folder: Path) -> str:
    """Of the names, contents and links in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path != folder / MARK:
            content = (
                os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
            )
            digest.update(json.dumps([str(path.relative_to(folder)), hashlib.sha256(content).hexdigest()]).encode())
    return digest.hexdigest()

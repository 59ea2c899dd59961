"""Builds a folder aside and moves it into place whole, so that whoever sees it sees all of it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


try:
    import fcntl
except ImportError:  # Windows: two runs into the same folder are then not kept apart
    fcntl = None


def check_output_folder(folder: str | os.PathLike) -> Path:
    """
    The folder's real path.

    Raises:
        ValueError: If something is there that would have to be replaced.
    """
    folder = Path(folder).expanduser().resolve()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file: name a folder that does not exist yet (--output_dir).")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name a folder that does not exist yet, or empty it (--output_dir).")
    return folder


def aside_of(folder: Path) -> Path:
    """Where `folder` is built: beside it, so that the move is a rename. A run that was killed leaves it behind."""
    return folder.parent / f".{folder.name}.incomplete"


@contextmanager
def built_aside(folder: Path) -> Iterator[Path]:
    """
    An empty folder to fill, which becomes `folder` when the block ends and is removed when it fails. What a killed run
    left there is cleared.

    Raises:
        ValueError: If another run is building the same folder.
    """
    created = [parent for parent in folder.parents if not parent.exists()]
    aside = aside_of(folder)
    aside.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(aside, folder)
    try:
        _clear(aside)
        yield aside
        check_output_folder(folder)
        os.replace(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        for parent in created:
            _remove_if_empty(parent)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(aside: Path, folder: Path) -> int | None:
    """Keeps other runs out until the descriptor is closed, by whatever end."""
    if fcntl is None:
        return None
    descriptor = os.open(aside, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The other run may have moved its folder into place between the two calls.
        if not os.path.samestat(os.fstat(descriptor), os.stat(aside)):
            raise FileNotFoundError
    except OSError:
        os.close(descriptor)
        raise ValueError(f"Another run is writing {folder} (in {aside}): wait for it, or name another one.") from None
    return descriptor


def _clear(folder: Path):
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove_if_empty(folder: Path):
    try:
        folder.rmdir()
    except OSError:
        pass

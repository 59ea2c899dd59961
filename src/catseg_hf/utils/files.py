"""Files and folders: what is written is seen whole or not at all, made aside in the same folder and renamed when
complete."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line


try:
    import fcntl
except ImportError:  # Windows: two runs into the same folder are then not kept apart
    fcntl = None


INCOMPLETE = ".incomplete"
SYNCHRONISED = 16  # files at a time
# What a file system answers that has no such call for what it was asked of.
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
# That room has run out, on the disk or for this user.
_FULL = {errno.ENOSPC, errno.EDQUOT}


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds, in UTF-8 with a byte order mark or without."""
    return json.loads(Path(path).read_text(encoding="utf-8-sig"))


def stays_inside(name: str) -> bool:
    """Whether a name that somebody else chose, taken as a path in a folder, leads to nothing outside of it."""
    path = Path(name)
    return not path.anchor and ".." not in path.parts and "\0" not in name


def aside_of(path: Path) -> Path:
    """Where a file or folder is made: beside its place, so that the move is a rename. A process that is killed leaves
    it behind."""
    return path.parent / f".{path.name}{INCOMPLETE}"


@contextmanager
def explained_write_errors(path: str | os.PathLike) -> Iterator[None]:
    """
    Raises:
        UserError: In place of an `OSError`, such as that of a full disk.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"Could not write {path}: {error.strerror or first_line(error)}.") from error


@contextmanager
def replaced_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    A file to write, which takes the place of `path` when the block ends and is removed if it fails. Its folder is made
    where it is missing.

    Raises:
        UserError: If it cannot be written.
    """
    path = Path(path)
    aside = aside_of(path)
    with explained_write_errors(path):
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
        aside.unlink(missing_ok=True)  # a link there would lead what is written elsewhere
        try:
            yield aside
            synchronise(aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def replaced_together(folder: Path) -> Iterator[Path]:
    """
    An empty folder to fill, whose contents move to `folder` when the block ends and are dropped if it fails.

    Raises:
        UserError: If they cannot be written.
    """
    aside = aside_of(folder / "model")
    with explained_write_errors(folder):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            yield aside
            for path in synchronise_all(aside):
                target = folder / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(path, target)
            synchronise(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def link_file(source: Path, link: Path):
    """A link to a file, with a path from the link's folder; a copy where the file system has no links."""
    try:
        os.symlink(os.path.relpath(os.path.realpath(source), os.path.realpath(link.parent)), link)
    except (OSError, ValueError):  # of another drive, or without the right to
        shutil.copyfile(source, link)


def nearest_folder(path: Path) -> Path:
    """The path itself if it exists, or the nearest folder above it that does: on the same disk, once it is made."""
    return next(existing for existing in (path, *path.parents) if existing.exists())


def check_output_folder(folder: str | os.PathLike, option: str = "--output_dir") -> Path:
    """
    The folder's real path. `option` is what messages say it was named with.

    Raises:
        UserError: If something is there that would have to be replaced.
    """
    folder = Path(folder).expanduser().resolve()
    existing = nearest_folder(folder)
    if not existing.is_dir():
        raise UserError(f"{existing} is a file: name a folder that does not exist yet ({option}).")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a folder that does not exist yet, or empty it ({option}).")
    return folder


@contextmanager
def built_aside(folder: Path) -> Iterator[Path]:
    """
    An empty folder to fill, which becomes `folder` when the block ends and is removed when it fails. What a killed run
    left there is cleared.

    Raises:
        UserError: If another run is building the same folder, or it cannot be written.
    """
    created = [parent for parent in folder.parents if not parent.exists()]
    aside = aside_of(folder)
    with explained_write_errors(folder):
        if aside.is_symlink():  # what it leads to is not this run's to clear
            aside.unlink()
    with locked_folder(aside, folder):
        try:
            with explained_write_errors(folder):
                clear_folder(aside)
                yield aside
                synchronise_all(aside)
                check_output_folder(folder)
                os.replace(aside, folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            for parent in created:
                _remove_if_empty(parent)
            raise


@contextmanager
def locked_folder(folder: Path, output: Path | None = None) -> Iterator[None]:
    """
    Keeps other runs out of a folder until the block or the process ends, where the file system knows locks: some
    networks' do not. It is made where it is missing, and removed if nothing was written to it. `output` is what is
    written there, by default the folder.

    Raises:
        UserError: If another run is writing there, or the folder cannot be made.
    """
    is_new = not folder.exists()
    with explained_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = None if fcntl is None else os.open(folder, os.O_RDONLY)
    try:
        if descriptor is not None:
            _lock(descriptor, folder, output)
        try:
            yield
        finally:
            if is_new:  # while no other run can have the lock
                _remove_if_empty(folder)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int, folder: Path, output: Path | None):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        is_free = False
    except OSError:
        is_free = True
    else:
        is_free = _is_at(folder, descriptor)  # the other run may have moved it into place between the two calls
    if not is_free:
        where = "" if output is None else f" (in {folder})"
        raise UserError(f"Another run is writing {output or folder}{where}: wait for it, or name another one.")


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether what is open is what the path leads to."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def clear_folder(folder: Path):
    """Removes all that is in a folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove_if_empty(folder: Path):
    if not folder.is_dir():  # it was moved into place
        return
    try:
        folder.rmdir()
    except OSError:
        pass


def synchronise_all(folder: Path) -> list[Path]:
    """Brings a folder with all in it to the disk, but for what links lead to; returns what is directly in it."""
    paths = [path for path in folder.rglob("*") if not path.is_symlink()]
    with ThreadPoolExecutor(SYNCHRONISED) as executor:  # which a disk brings to an end together
        for _ in executor.map(synchronise, paths):
            pass
    synchronise(folder)
    return sorted(folder.iterdir())


def synchronise(path: Path):
    """
    Brings a file or a folder's entries to the disk, where the file system can: not every one does this for folders.

    Raises:
        OSError: If the disk is full, or what was written to a file is lost.
    """
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _FULL or not (is_folder or error.errno in _UNSUPPORTED):
            raise

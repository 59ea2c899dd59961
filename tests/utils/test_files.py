"""Files that are seen whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest

from catseg_hf.errors import UserError
from catseg_hf.utils import files
from catseg_hf.utils.files import built_aside, locked_folder, replaced_file, replaced_together, synchronise


fcntl = None if os.name == "nt" else pytest.importorskip("fcntl")


def test_nothing_half_written_stays(tmp_path):
    target = tmp_path / "new folder" / "image.png"
    for before in ([], ["image.png"]):
        with pytest.raises(KeyboardInterrupt), replaced_file(target) as aside:
            aside.write_bytes(b"half")
            raise KeyboardInterrupt
        assert [path.name for path in target.parent.iterdir()] == before
        with replaced_file(target) as aside:
            aside.write_bytes(b"whole")
        assert target.read_bytes() == b"whole"


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Could not write .*image\.png: "), replaced_file(tmp_path / "file/image.png"):
        pass
    with (
        pytest.raises(UserError, match=r"Could not write .*image\.png: No space"),
        replaced_file(tmp_path / "image.png"),
    ):
        raise OSError(28, "No space left on device")


def write_everything(folder) -> list[str]:
    """What the functions that write do, one after another; the names of all that was written."""
    with replaced_file(folder / "file") as path:
        path.write_text("")
    with replaced_together(folder) as aside:
        (aside / "together").mkdir()
        (aside / "together" / "file").write_text("")
    with built_aside(folder / "built") as aside:
        (aside / "file").write_text("")
    synchronise(folder)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


WRITTEN = ["built", "built/file", "file", "together", "together/file"]


@pytest.mark.skipif(fcntl is None, reason="there are no such locks here")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EIO])
def test_file_systems_without_locks(code, tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert write_everything(tmp_path) == WRITTEN


@pytest.mark.skipif(fcntl is None, reason="there are no such locks here")
@pytest.mark.parametrize("code", [None, errno.EWOULDBLOCK, errno.EAGAIN])
def test_two_runs_into_one_folder(code, tmp_path, monkeypatch):
    """By a real lock, and by each of the codes for one that somebody else holds."""

    def flock(descriptor, operation):
        raise OSError(code, os.strerror(code))

    with built_aside(tmp_path / "built") as aside:
        (aside / "file").write_text("first")
        if code is not None:
            monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(UserError, match="Another run is writing .*built"), built_aside(tmp_path / "built"):
            pass
    assert (tmp_path / "built" / "file").read_text() == "first"


def refuse_fsync(monkeypatch, code: int, of_folders: bool, of_files: bool):
    fsync = os.fsync

    def refusing(descriptor):
        if of_folders if stat.S_ISDIR(os.fstat(descriptor).st_mode) else of_files:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)


UNSUPPORTED = [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP]


@pytest.mark.parametrize(
    ("code", "of_files"),
    [(code, of_files) for code in UNSUPPORTED for of_files in (False, True)]
    + [(code, False) for code in (errno.EIO, errno.EACCES, errno.EBADF, errno.EROFS)],
)
def test_file_systems_that_synchronise_nothing(code, of_files, tmp_path, monkeypatch):
    """Or no folders, which some say by EIO."""
    refuse_fsync(monkeypatch, code, of_folders=True, of_files=of_files)
    assert write_everything(tmp_path) == WRITTEN


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_file_that_does_not_reach_the_disk_is_no_file(code, tmp_path, monkeypatch):
    refuse_fsync(monkeypatch, code, of_folders=False, of_files=True)
    with pytest.raises(UserError, match=f"Could not write .*file: {os.strerror(code)}"):
        with replaced_file(tmp_path / "file") as path:
            path.write_text("")
    with pytest.raises(UserError, match=f"Could not write .*: {os.strerror(code)}"):
        with replaced_together(tmp_path) as aside:
            (aside / "file").write_text("")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_folder_on_a_full_disk(code, tmp_path, monkeypatch):
    refuse_fsync(monkeypatch, code, of_folders=True, of_files=False)
    with pytest.raises(OSError, match=os.strerror(code)):
        synchronise(tmp_path)


@pytest.mark.skipif(fcntl is None, reason="needs locks")
def test_a_refused_run_leaves_the_folder_of_the_other(tmp_path, monkeypatch):
    """Also if both found that there was none, and made it."""
    folder = tmp_path / "output"
    with locked_folder(folder):
        with monkeypatch.context() as race:
            race.setattr(Path, "exists", lambda path: False)
            with pytest.raises(UserError, match="Another run is writing"), locked_folder(folder):
                pass
        (folder / "image.png").write_bytes(b"")
    assert [path.name for path in folder.iterdir()] == ["image.png"]


@pytest.mark.skipif(fcntl is None, reason="needs locks")
def test_an_empty_folder_is_removed_before_another_run_can_lock_it(tmp_path, monkeypatch):
    folder, remove = tmp_path / "output", files._remove_if_empty

    def remove_if_locked(path):
        with pytest.raises(UserError, match="Another run is writing"), locked_folder(path):
            pass
        remove(path)

    monkeypatch.setattr(files, "_remove_if_empty", remove_if_locked)
    with locked_folder(folder):
        pass
    assert not folder.exists()

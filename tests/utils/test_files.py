"""Files that are seen whole or not at all."""

import errno

import pytest

from catseg_hf.errors import UserError
from catseg_hf.utils import files
from catseg_hf.utils.files import built_aside, replaced_file


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


@pytest.mark.skipif(files.fcntl is None, reason="needs flock")
@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "ENOTSUP", "EBADF", "EISDIR"])
def test_a_file_system_without_locks_for_folders(code, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(getattr(errno, code), code)

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with built_aside(tmp_path / "out") as aside:
        (aside / "file").write_text("mine")
    assert (tmp_path / "out" / "file").read_text() == "mine"

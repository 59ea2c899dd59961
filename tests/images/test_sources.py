"""The images that arguments stand for, and what is said of those that are left out."""

import pytest
from PIL import Image

from catseg_hf.images.sources import UNREAD_FORMATS, find_images


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.jpg")
    return tmp_path


@pytest.mark.parametrize("suffix", UNREAD_FORMATS)
def test_images_that_are_not_read_are_named(folder, suffix, monkeypatch):
    monkeypatch.setattr(Image, "registered_extensions", lambda: {".jpg": "JPEG"})
    (folder / f"b{suffix.upper()}").touch()
    images, failures = find_images([str(folder)])
    ((path, reason),) = failures
    assert images == [str(folder / "a.jpg")]
    assert path == str(folder / f"b{suffix.upper()}") and f"{path} was left out: {UNREAD_FORMATS[suffix]}." == reason


@pytest.mark.parametrize("name", ["notes.txt", ".b.dng", "data.json"])
def test_other_files_are_no_images(folder, name):
    (folder / name).touch()
    assert find_images([str(folder)]) == ([str(folder / "a.jpg")], [])


def test_heic_is_found_where_it_is_read(folder):
    pytest.importorskip("pillow_heif")
    (folder / "b.HEIC").touch()
    assert find_images([str(folder)]) == ([str(folder / "a.jpg"), str(folder / "b.HEIC")], [])

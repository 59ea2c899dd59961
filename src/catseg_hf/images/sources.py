"""Finds the images that arguments of the command line stand for, and names their results."""

import os
from collections.abc import Iterator
from glob import glob, has_magic
from itertools import count
from pathlib import Path
from urllib.parse import unquote, urlparse

from PIL import Image

from ..stored_images_catseg import reads_heic
from .origins import identity, is_url
from .results import KINDS, is_result
from .tars import TAR_SUFFIXES


_RAW = "it is a camera's raw file, save it as TIFF or JPEG"
_HEIF = "HEIC images need pillow-heif, `pip install pillow-heif`"
_VECTOR = "it is no image of pixels, render it as PNG"
# Images in formats that Pillow does not read, or not by itself.
UNREAD_FORMATS = {
    **dict.fromkeys((".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw"), _RAW),
    **dict.fromkeys((".heic", ".heif", ".hif"), _HEIF),
    **dict.fromkeys((".ai", ".pdf", ".svg"), _VECTOR),
    ".avif": "this Pillow has no AVIF, update it",
    ".exr": "it has floating-point pixels, save it with 8 or 16 bits",
    ".hdr": "it has floating-point pixels, save it with 8 or 16 bits",
    ".jxl": "JPEG XL is not read, save it as PNG or JPEG",
    ".xcf": "it is a project of GIMP, export it as PNG",
}

MAX_STEM_BYTES = 200  # file systems take names of 255 with what is added to them


def find_images(arguments: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """
    The paths and URLs of images that files, folders, glob patterns and URLs stand for, each once, and what stands
    for none, or is left out of a folder, with a sentence that says so. Folders and patterns leave out what an earlier
    run wrote.
    """
    extensions = image_extensions()
    images, failures = {}, []
    for argument in arguments:
        if reason := _why_not_read(argument):
            failures.append((argument, reason))
            continue
        if is_url(argument):
            found = [argument]
        elif os.path.isdir(argument):
            try:
                names = sorted(os.listdir(argument))
            except OSError as error:
                failures.append((argument, f"The folder {argument!r} cannot be read: {error.strerror}."))
                continue
            found = [os.path.join(argument, name) for name in names if _suffix(name) in extensions]
            found = [path for path in found if os.path.isfile(path) and not is_result(path)]
            failures += _list_unread(argument, [name for name in names if _suffix(name) not in extensions])
            if not found:
                accepted = ", ".join(sorted(extensions))
                failures.append((argument, f"The folder {argument!r} has no images: files of {accepted} are read."))
        elif has_magic(argument) and not os.path.exists(argument):
            found = sorted(glob(argument, recursive=True))
            found = [path for path in found if os.path.isfile(path) and not is_result(path)]
            if not found:
                failures.append((argument, f"No file matches {argument!r}."))
        else:
            found = [argument]
        for image in found:
            images.setdefault(identity(image), image)
    return list(images.values()), failures


def _why_not_read(argument: str) -> str | None:
    """Why an argument stands for no images here, if it is what `integrations.ray_data` reads."""
    if os.path.isdir(argument):
        return None
    other = "read it from Python with `catseg_hf.integrations.ray_data`"
    scheme, is_address, _ = argument.partition("://")
    if is_address and not is_url(argument):
        return (
            f"{argument!r} is on the file system {scheme!r}, but files, folders and URLs of http:// and https:// are "
            f"read here: mount it, or {other}."
        )
    if (urlparse(argument).path if is_address else argument).lower().endswith(TAR_SUFFIXES):
        return f"{argument!r} is a tar file, but images are read here: unpack it, or {other}."
    return None


def image_extensions() -> set[str]:
    """Of the files that are read here, in small letters and with their dots."""
    reads_heic()
    return {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}


def _list_unread(folder: str, names: list[str]) -> list[tuple[str, str]]:
    """The files of a folder that are images, of formats that are not read here."""
    failures = []
    for name in names:
        path = os.path.join(folder, name)
        if _suffix(name) in UNREAD_FORMATS and not name.startswith(".") and os.path.isfile(path):
            failures.append((path, f"{path} was left out: {UNREAD_FORMATS[_suffix(name)]}."))
    return failures


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def choose_names(images: list[str], output: Path) -> list[str]:
    """
    For every image the stem under which its results lie in the folder `output`: each another, whatever the case of its
    letters, and none that would replace an image.
    """
    inputs, taken, candidates = {identity(image) for image in images}, set(), {}

    def is_free(name: str) -> bool:
        paths = (str(output / f"{name}_{kind}.png") for kind in KINDS)
        return name.casefold() not in taken and not any(identity(path) in inputs for path in paths)

    names = []
    for image in images:
        stem = _stem(image)
        names.append(next(filter(is_free, candidates.setdefault(stem, numbered(stem)))))
        taken.add(names[-1].casefold())
    return names


def _stem(image: str) -> str:
    stem = Path(unquote(urlparse(image).path) if is_url(image) else image).stem or "image"
    stem = stem.replace("\0", "")
    if len(os.fsencode(stem)) > MAX_STEM_BYTES:
        stem = os.fsencode(stem)[:MAX_STEM_BYTES].decode(errors="ignore")
    return stem


def numbered(stem: str) -> Iterator[str]:
    """The stem, and then with each number from 2 on behind it."""
    yield stem
    for number in count(2):
        yield f"{stem}_{number}"

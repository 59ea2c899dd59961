"""Finds the images that arguments of the command line stand for, and names their results."""

import os
from glob import glob, has_magic
from pathlib import Path
from urllib.parse import unquote, urlparse

from PIL import Image

from .results import is_result


MAX_STEM_BYTES = 200  # file systems take names of 255 with what is added to them


def find_images(arguments: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """
    The paths and URLs of images that files, folders, glob patterns and URLs stand for, each once, and what stands
    for none with a sentence that says so. Folders and patterns leave out what an earlier run wrote.
    """
    extensions = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    images, failures = {}, []
    for argument in arguments:
        if argument.startswith(("http://", "https://")):
            found = [argument]
        elif os.path.isdir(argument):
            try:
                names = sorted(name for name in os.listdir(argument) if Path(name).suffix.lower() in extensions)
            except OSError as error:
                failures.append((argument, f"The folder {argument!r} cannot be read: {error.strerror}."))
                continue
            found = [os.path.join(argument, name) for name in names]
            found = [path for path in found if os.path.isfile(path) and not is_result(path)]
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


def choose_name(source: str, output: Path, names: set[str], inputs: set[str]) -> str:
    """A stem that is new among `names` (and is added to them) and under which no image of `inputs` is replaced."""
    is_url = source.startswith(("http://", "https://"))
    stem = Path(unquote(urlparse(source).path) if is_url else source).stem or "image"
    stem = stem.replace("\0", "")
    if len(os.fsencode(stem)) > MAX_STEM_BYTES:
        stem = os.fsencode(stem)[:MAX_STEM_BYTES].decode(errors="ignore")
    name, number = stem, 1
    while name.casefold() in names or any(
        identity(str(output / f"{name}_{kind}.png")) in inputs for kind in ("overlay", "labels")
    ):
        number += 1
        name = f"{stem}_{number}"
    names.add(name.casefold())
    return name


def identity(source: str) -> str:
    return source if source.startswith(("http://", "https://")) else os.path.realpath(source)

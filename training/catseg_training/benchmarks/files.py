"""Where a benchmark's images and labels lie in a folder of downloads."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from catseg_hf.errors import UserError
from catseg_hf.utils.files import stays_inside

from .context_annotations import read_annotations
from .description import Benchmark


class ImageFiles(NamedTuple):
    """One image: its name, unique in the benchmark, its file, and the file that its label is in."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True)
class BenchmarkFiles:
    """
    What was found of a benchmark.

    Attributes:
        images (`Path`), labels (`Path`): Folders that are used, or the file with all labels.
        files (`list[ImageFiles]`): All images that the benchmark has here, sorted by name.
    """

    images: Path
    labels: Path
    files: list[ImageFiles]

    def missing(self) -> list[Path]:
        """Files that do not exist, of images without a label or labels without an image."""
        return [path for _, image, label in self.files for path in (image, label) if not path.exists()]


def find_files(benchmark: Benchmark, data_root: Path) -> BenchmarkFiles:
    """
    Finds a benchmark's files.

    Args:
        benchmark ([`Benchmark`]): Tells what to look for.
        data_root (`Path`): The folder of downloads, or the benchmark's own folder.

    Raises:
        UserError: If folders or lists are missing, or there is no image; says what, and where to get it.
    """
    for folder in benchmark.roots:
        root = Path(data_root) / folder
        images, labels = _first(root, benchmark.images), _first(root, benchmark.labels)
        id_list = None if benchmark.id_list is None else root / benchmark.id_list
        if images and labels and (id_list is None or id_list.is_file()):
            break
    else:
        raise UserError(_what_is_missing(benchmark, Path(data_root)))
    if benchmark.label_format == "context_json":
        names = read_annotations(labels).names
        files = [ImageFiles(name, images / f"{name}{benchmark.image_suffix}", labels) for name in names]
    else:
        files = _paired(benchmark, images, labels, id_list)
    if not files:
        raise UserError(
            f"{benchmark.name}: there is no image with a name ending in {benchmark.image_suffix} in {images}, or none "
            f"of the benchmark's.{_source(benchmark, data_root)}"
        )
    if outside := [file.name for file in files if not stays_inside(file.name)]:
        raise UserError(
            f"{benchmark.name}: the list of its images has {outside[0]!r}, which predictions cannot be called: names, "
            "and paths in the folder of images, are accepted."
        )
    return BenchmarkFiles(images, labels, sorted(files))


def _first(root: Path, places: tuple[str, ...]) -> Path | None:
    return next((root / place for place in places if (root / place).exists()), None)


def _paired(benchmark: Benchmark, images: Path, labels: Path, id_list: Path | None) -> list[ImageFiles]:
    if id_list is not None:
        places = id_list.read_text(encoding="utf-8-sig").split()
    elif benchmark.own_id_list is not None:
        listed = Path(__file__).with_name("data").joinpath(benchmark.own_id_list).read_text().split()
        places = [name for name in listed if (labels / f"{name}{benchmark.label_suffix}").exists()]
    else:
        of_labels = _places(labels, benchmark.label_suffix)
        of_images = _places(images, benchmark.image_suffix)
        if images == labels:  # a label's name may end as an image's does
            ending = benchmark.label_suffix.removesuffix(benchmark.image_suffix)
            of_images = {place for place in of_images if place.removesuffix(ending) not in of_labels - {place}}
        places = of_labels if benchmark.labels_decide else of_images | of_labels
    places = set(places)
    # Files in subfolders are called by their last part alone, as long as that tells them apart.
    names = {place: place.rpartition("/")[2] for place in places}
    if len(set(names.values())) < len(places):
        names = {place: place for place in places}
    return [
        ImageFiles(name, images / f"{place}{benchmark.image_suffix}", labels / f"{place}{benchmark.label_suffix}")
        for place, name in names.items()
    ]


def _places(folder: Path, suffix: str) -> set[str]:
    """Where in a folder and its subfolders there are files with the suffix, which is left out."""

    def refuse(error: OSError):
        raise UserError(f"The folder {error.filename} cannot be read: {error.strerror}.")

    return {
        Path(parent, file).relative_to(folder).as_posix().removesuffix(suffix)
        for parent, _, files in os.walk(folder, onerror=refuse, followlinks=True)
        for file in files
        if file.endswith(suffix) and not file.startswith(".")
    }


def _what_is_missing(benchmark: Benchmark, data_root: Path) -> str:
    if not data_root.is_dir():
        return f"The data root {data_root} is no folder."
    # The root that is there in part, or else the one that is expected.
    folder = next((folder for folder in benchmark.roots if folder and (data_root / folder).is_dir()), None)
    root = data_root / (benchmark.roots[0] if folder is None else folder)
    wanted = [benchmark.images, benchmark.labels, *([(benchmark.id_list,)] if benchmark.id_list else [])]
    missing = [" or ".join(places) for places in wanted if _first(root, places) is None]
    return f"{benchmark.name}: {root} lacks {', '.join(missing)}.{_source(benchmark, data_root)}"


def _source(benchmark: Benchmark, data_root: Path) -> str:
    if benchmark.preparation:
        return f" Prepare it with `{benchmark.preparation} {shlex.quote(str(data_root))}` ({benchmark.source})."
    return f" Get it from {benchmark.source}." if benchmark.source else ""

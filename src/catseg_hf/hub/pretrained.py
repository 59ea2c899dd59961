"""The released models by name: fetched from the Hub and converted once, kept beside its cache."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import huggingface_hub
from filelock import SoftFileLock, Timeout
from huggingface_hub import HfFileMetadata, constants
from huggingface_hub.utils import WeakFileLock

from ..conversion import CONVERTER_VERSION, TOKENIZER
from ..errors import UserError, did_you_mean, first_line
from ..utils.files import INCOMPLETE, explained_write_errors, nearest_folder
from ..utils.processes import speaks_for_all
from ..version import __version__
from .released_weights import (
    APPROXIMATE_BYTES,
    RELEASE,
    VARIANTS,
    cached_checkpoint,
    checked_etag,
    download_checkpoint,
    etag_of,
    gigabytes,
    published_checkpoint,
)


LOCK = ".lock"


def pretrained(name: str) -> str:
    """
    The folder of a released model, for `pipeline`, `from_pretrained` and wherever a folder is taken. The first call
    downloads the authors' checkpoint from the Hub, compares its SHA-256, converts it and compares the result with a
    literal implementation. Later calls ask the Hub whether it has another one by now, and work without it as well.
    The result is kept with huggingface_hub's assets (HF_HOME, HF_ASSETS_CACHE), for this checkpoint and this version
    of the converter. It may be deleted at any time.

    Args:
        name (`str`): "base" (CLIP ViT-B/16, 1.2 GB of disk) or "large" (CLIP ViT-L/14, 3.5 GB).

    Raises:
        UserError: If there is no such model, it cannot be downloaded or is damaged, or the disk is too small.
    """
    if name not in VARIANTS:
        known = " and ".join(VARIANTS)
        raise UserError(f"There are no released weights {name!r}{did_you_mean(name, VARIANTS)}: there are {known}.")
    results = _results_folder(name)
    published = published_checkpoint(name)
    if folder := _converted(name, results, published):
        return str(folder)
    with _one_at_a_time(results):
        folder = _converted(name, results, published) or _fetch_and_convert(name, results, published)
    return str(folder)


def _results_folder(name: str) -> Path:
    try:
        return huggingface_hub.cached_assets_path("catseg_hf", RELEASE, name, assets_dir=constants.HF_ASSETS_CACHE)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Converted weights cannot be kept in {constants.HF_ASSETS_CACHE} ({first_line(error)}): name a folder "
            "that can be written in HF_HOME."
        ) from error


def _converted(name: str, results: Path, published: HfFileMetadata | None) -> Path | None:
    """The folder of a complete conversion of what the Hub holds or, if it does not answer, held when last seen."""
    if published is not None:
        etag = published.etag
    elif cached := cached_checkpoint(name):
        etag = etag_of(cached)
    else:
        complete = [path for path in results.iterdir() if path.name.endswith(_version())]
        return max(complete, key=os.path.getmtime, default=None)
    folder = results / _folder_name(etag)
    return folder if folder.is_dir() else None


def _folder_name(etag: str) -> str:
    return re.sub(r"\W", "-", etag)[:64] + _version()


def _version() -> str:
    # The package's own, since its code goes with a checkpoint.
    return f"-{__version__}-{CONVERTER_VERSION}"


@contextmanager
def _one_at_a_time(results: Path) -> Iterator[None]:
    lock = results / LOCK
    with ExitStack() as stack:
        with explained_write_errors(lock):
            try:
                stack.enter_context(WeakFileLock(lock, timeout=1))
            except Timeout:
                if speaks_for_all():
                    _tell(f"Waiting for another process that fetches or converts the weights {results.name!r}")
                stack.enter_context(WeakFileLock(lock))
            except OSError:  # a file system without locks, or that cannot be written
                stack.enter_context(SoftFileLock(results / f"{LOCK}-soft"))
        yield


def _fetch_and_convert(name: str, results: Path, published: HfFileMetadata | None) -> Path:
    for rest in results.glob(f".*{INCOMPLETE}"):  # of killed runs, also of other versions
        shutil.rmtree(rest, ignore_errors=True)
    checkpoint = cached_checkpoint(name)
    if checkpoint is not None and published is not None and etag_of(checkpoint) != published.etag:
        checkpoint = None
    size = checkpoint.stat().st_size if checkpoint else (published and published.size) or APPROXIMATE_BYTES[name]
    _check_disk_space(name, results, size, is_cached=checkpoint is not None)
    if checkpoint is None and published is None:
        checkpoint = download_checkpoint(name)  # which says what is missing
    _fetch_tokenizer(name)
    if checkpoint is None:
        checkpoint = download_checkpoint(name)
    folder = results / _folder_name(checked_etag(checkpoint, published and published.etag))
    if not folder.is_dir():  # the Hub's may have changed since it was asked
        _convert(name, checkpoint, folder)
    return folder


def _check_disk_space(name: str, results: Path, size: int, is_cached: bool):
    """
    Raises:
        UserError: If a disk has too little room for the download and the result, which is about as large.
    """
    places = {results: f"{gigabytes(size)} for the converted checkpoint in {results}"}
    if not is_cached:
        cache = Path(constants.HF_HUB_CACHE)
        places = {cache: f"{gigabytes(size)} for the download in {cache}"} | places
    disks = {}
    for folder, need in places.items():
        existing = nearest_folder(folder)
        disks.setdefault(existing.stat().st_dev, (existing, []))[1].append(need)
    for existing, needs in disks.values():
        free = shutil.disk_usage(existing).free
        if size * len(needs) > free:
            raise UserError(
                f"The weights {name!r} need {' and '.join(needs)}, but only {gigabytes(free)} of that disk are free: "
                "make room, or name a folder on a larger disk in HF_HOME."
            )


def _fetch_tokenizer(name: str):
    """
    Raises:
        UserError: If it cannot be had, which is better known before the large download.
    """
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(TOKENIZER)
    except Exception as error:  # anything from a missing network to a damaged file
        raise UserError(
            f"The weights {name!r} need CLIP's tokenizer too, {TOKENIZER} on the Hub (a few MB), which is not in the "
            f"cache {constants.HF_HUB_CACHE} and could not be had from {constants.ENDPOINT}: {first_line(error)}."
        ) from error


def _convert(name: str, checkpoint: Path, folder: Path):
    import torch

    from ..conversion.converter import convert

    _tell(f"Converting {checkpoint.name} for transformers, once: this takes up to a minute")
    older = sorted(str(path) for path in folder.parent.iterdir() if path.is_dir())
    with torch.random.fork_rng(devices=[]):  # what the caller draws must not depend on whether this was the first call
        convert(checkpoint, folder, tokenizer=TOKENIZER, repo_id=f"catseg-{name}", report=lambda message: None)
    _tell(f"Kept in {folder}")
    if older:
        _tell(f"Conversions of older checkpoints or by older versions can be deleted: {', '.join(older)}")


def _tell(message: str):
    print(f"catseg_hf: {message}", file=sys.stderr, flush=True)

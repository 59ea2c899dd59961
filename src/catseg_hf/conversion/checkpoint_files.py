"""Opens checkpoints without running anything in them, and tells what is wrong."""

import os
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import UserError, first_line
from .original_architecture import listing


ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"


def open_checkpoint(path: str | os.PathLike) -> Mapping[str, Any]:
    """
    The contents of a `.pth` or `.safetensors` file. Pickles are opened with `weights_only=True`: nothing in them runs.
    Where the format allows, tensors stay on disk until they are used.

    Raises:
        UserError: With one sentence, if the file is missing, truncated, of another kind, or wants to run code.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the checkpoint file in it.")
    if not path.exists():
        raise UserError(f"There is no file {path}.")
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if not start:
        raise UserError(f"{path} is empty: its download must have failed, fetch it again.")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer and not the file itself: fetch it with `git lfs pull`.")
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return _open_safetensors(path)
    if start.startswith(ZIP_MAGIC):
        return _open_zip(path)
    if start.startswith(PICKLE_MAGIC):
        return _open_pickle(path, mmap=False)
    hint = ", but a web page" if start.lstrip()[:1] == b"<" else ""
    raise UserError(f"{path} is not a checkpoint of PyTorch or safetensors{hint}.")


def _open_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path} is truncated, damaged or not a safetensors file: fetch it again ({error}).") from None


def _open_zip(path: Path) -> Mapping[str, Any]:
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is truncated: it begins as a checkpoint but ends too early, after {path.stat().st_size:,} bytes. "
            "Fetch it again."
        )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name for name in names):
        raise UserError(
            f"{path} is a TorchScript archive, as OpenAI's plain CLIP weights are, and not a checkpoint of CAT-Seg."
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise UserError(f"{path} is a zip archive, but not a checkpoint of PyTorch.")
    return _open_pickle(path, mmap=True)


def _open_pickle(path: Path, mmap: bool) -> Mapping[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise UserError(_refusal(path)) from None
    except Exception as error:  # torch raises all kinds for damaged files
        raise UserError(f"{path} is truncated or damaged: fetch it again ({first_line(error)}).") from None
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"{path} holds a {type(checkpoint).__name__} and not the named tensors of a checkpoint.")
    return checkpoint


def _refusal(path: Path) -> str:
    """Why the weights-only unpickler refused a file."""
    names = _called_names(path)
    if any(name.startswith(("mmengine.", "mmcv.", "mmseg.")) for name in names):
        return f"{path} is a checkpoint of mmsegmentation and not of CAT-Seg: take the authors' own `.pth` file."
    if names:
        return (
            f"{path} was refused and nothing in it was run: it is a pickle that calls code ({listing(names)}), and "
            "a checkpoint needs none."
        )
    return f"{path} is not a checkpoint of PyTorch, or it is damaged: fetch it again."


def _called_names(path: Path) -> list[str]:
    """Functions and classes, other than those that rebuild tensors, that a pickle names: read, not loaded."""
    if zipfile.is_zipfile(path):
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    names, strings = set(), ["", ""]
    with path.open("rb") as file, suppress(ValueError, UnicodeDecodeError):
        while True:  # PyTorch's old format is several pickles in a row
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    names.add(argument.replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.add(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    return sorted(name for name in names if not name.startswith(("torch.", "collections.")))

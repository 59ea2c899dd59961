"""Ids of label maps as the downloads store them."""

from pathlib import Path

import numpy as np
from scipy.io import loadmat

from catseg_hf.errors import UserError

from ..data.examples import decoded_image, stored_ids
from .context_annotations import read_annotations


HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def read_label_ids(label_format: str, path: Path, name: str) -> np.ndarray:
    """
    Stored ids of an image's label map.

    Args:
        label_format (`str`):
            "ids": an image with one channel, or a palette, of ids with 8 or 16 bits.
            "ade20k_full": the `_seg.png` of ADE20K's full release, class `R // 10 * 256 + G`.
            "matlab": a `.mat` file with a matrix `LabelMap`, as of PASCAL Context.
            "context_json": PASCAL Context's `trainval_merged.json`.
        path (`Path`): The file.
        name (`str`): The image's name, which "context_json" needs.

    Returns:
        `np.ndarray` of shape `(H, W)`, integers.

    Raises:
        ValueError: If the file is missing, damaged or of another form; names it.
    """
    return _READERS[label_format](path, name)


def _read_ids(path: Path, name: str) -> np.ndarray:
    return stored_ids({"path": str(path), "bytes": None}, str(path))


def _read_ade20k_full(path: Path, name: str) -> np.ndarray:
    image = decoded_image({"path": str(path), "bytes": None}, str(path))
    if image.mode != "RGB":
        raise UserError(f"{path} is an image of mode {image.mode}, but ADE20K's full release has RGB labels.")
    red, green, _ = np.moveaxis(np.asarray(image), -1, 0)
    return red // 10 * np.uint16(256) + green


def _read_matlab(path: Path, name: str) -> np.ndarray:
    try:
        label = loadmat(path)["LabelMap"]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: restore the file.") from None
    except KeyError:
        raise UserError(f"{path} has no matrix LabelMap: it is not a label of PASCAL Context.") from None
    except Exception as error:  # scipy raises all kinds for damaged files
        if _is_hdf5(path):
            raise UserError(
                f"{path} is a file of MATLAB v7.3 (HDF5), but formats up to v7 are read: load it in MATLAB and save "
                "it again by save(NAME, 'LabelMap', '-v7')."
            ) from None
        raise UserError(
            f"{path} is truncated, damaged or no .mat file: fetch it again ({error or type(error).__name__})."
        ) from None
    if label.ndim != 2 or label.dtype.kind not in "iu":
        raise UserError(f"{path} has a LabelMap of type {label.dtype} and {label.ndim} axes, but needs integers, 2.")
    return label


def _is_hdf5(path: Path) -> bool:
    """Also behind the header of 512 bytes that MATLAB puts before it."""
    with path.open("rb") as file:
        return HDF5_SIGNATURE in (file.read(8), file.read(512)[-8:])


def _read_context_json(path: Path, name: str) -> np.ndarray:
    try:
        return read_annotations(path).label_ids(name)
    except ValueError as error:
        raise UserError(f"{path} has damaged segments for {name}: {error}") from None


_READERS = {
    "ids": _read_ids,
    "ade20k_full": _read_ade20k_full,
    "matlab": _read_matlab,
    "context_json": _read_context_json,
}

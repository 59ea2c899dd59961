"""Run-length encodings of masks: COCO's, CVAT's and Label Studio's."""

import operator
from collections.abc import Sequence

import numpy as np

from ..errors import UserError


# Of Label Studio's, which packs bits: values have 8, a run's length has 3, 4, 8 or 16.
_VALUE_BITS = 8
_LENGTH_BITS = (3, 4, 8, 16)


def decode_coco(counts: list[int] | str | bytes, size: tuple[int, int]) -> np.ndarray:
    """
    The mask that COCO's run lengths stand for, as pycocotools decodes them where they are whole.

    Args:
        counts (`list[int]`, `str` or `bytes`): Lengths of runs by columns, of the outside first, or their text.
        size (`tuple[int, int]`): Height and width.

    Returns:
        `np.ndarray` of shape (H, W), bool.

    Raises:
        UserError: If they are damaged, or not of a mask of this size.
    """
    if isinstance(counts, str | bytes):
        lengths = _read_coco_text(counts)
    else:
        lengths = _to_lengths(counts)
    height, width = size
    return _draw_runs(lengths, (width, height)).T


def encode_coco(mask: np.ndarray) -> str:
    """COCO's run lengths of a mask (H, W), as the text that pycocotools writes: the `counts` of an RLE."""
    lengths = _run_lengths(np.asarray(mask, bool).T)
    steps = lengths.copy()
    steps[3:] -= lengths[1:-2]
    characters, is_written = [], []
    more = np.ones(len(steps), bool)
    while more.any():
        low = steps & 31
        steps >>= 5
        is_written.append(more)
        more = more & (steps != np.where(low & 16, -1, 0))
        characters.append(low + 32 * more + 48)
    text = np.stack(characters, axis=1)[np.stack(is_written, axis=1)]
    return text.astype(np.uint8).tobytes().decode("ascii")


def decode_cvat(lengths: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """
    The mask that CVAT's run lengths stand for.

    Args:
        lengths (`Sequence[int]`): Lengths of runs by rows, of the outside first; without the box that may follow.
        size (`tuple[int, int]`): Height and width of the box.

    Returns:
        `np.ndarray` of shape (H, W), bool.

    Raises:
        UserError: If they are damaged, or not of a box of this size.
    """
    return _draw_runs(_to_lengths(lengths), size)


def encode_cvat(mask: np.ndarray) -> list[int]:
    """CVAT's run lengths of a mask (H, W), which is the box that the shape lies in."""
    return _run_lengths(np.asarray(mask, bool)).tolist()


def decode_label_studio(rle: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """
    The mask that a brush of Label Studio has painted.

    Args:
        rle (`Sequence[int]`): Bytes, 0..255, in which an RGBA image is packed.
        size (`tuple[int, int]`): Height and width.

    Returns:
        `np.ndarray` of shape (H, W), bool: what is not fully transparent.

    Raises:
        UserError: If they are damaged, or not of an image of this size.
    """
    try:
        values = np.asarray(rle)
    except ValueError:  # of lists of several lengths
        values = np.zeros(1)
    is_list = values.ndim == 1 and (values.dtype.kind in "iu" or values.size == 0)
    if not is_list or ((values < 0) | (values > 255)).any():
        raise UserError("The brush's RLE is not a list of whole numbers from 0 to 255: export the labels again.")
    bits = _Bits(values.astype(np.uint8).tobytes())
    height, width = size
    num_values = bits.read(32)
    if num_values != 4 * height * width:
        raise UserError(
            f"The brush's RLE is of {num_values} values, but an image of {width} x {height} pixels has "
            f"{4 * height * width}, 4 for each pixel: it is damaged or of another image."
        )
    if (value_bits := bits.read(5) + 1) != _VALUE_BITS:
        raise UserError(f"The brush's RLE has values of {value_bits} bits, but they are of {_VALUE_BITS}.")
    length_bits = [bits.read(4) + 1 for _ in _LENGTH_BITS]
    pixels = np.empty(num_values, np.uint8)
    start = 0
    while start < num_values:
        is_run, kind = divmod(bits.read(3), 4)
        stop = start + bits.read(length_bits[kind]) + 1
        if stop > num_values:
            raise UserError(f"The brush's RLE goes on behind its {num_values} values: it is damaged.")
        pixels[start:stop] = bits.read(_VALUE_BITS) if is_run else bits.read_bytes(stop - start)
        start = stop
    return pixels.reshape(height, width, 4)[..., 3] > 0


def encode_label_studio(mask: np.ndarray) -> list[int]:
    """A mask (H, W) as what a brush of Label Studio has painted, bytes 0..255."""
    mask = np.asarray(mask, bool)
    lengths = 4 * _run_lengths(mask)
    values = np.arange(len(lengths)) % 2 * 255
    longest = 2 ** _LENGTH_BITS[-1]
    repeats = -(-lengths // longest)
    values = np.repeat(values, repeats)
    is_last = np.zeros(len(values), bool)
    is_last[np.cumsum(repeats)[repeats > 0] - 1] = True
    pieces = np.full(len(values), longest)
    pieces[is_last] = ((lengths - 1) % longest + 1)[repeats > 0]
    kinds = np.searchsorted([2**bits for bits in _LENGTH_BITS], pieces)
    length_bits = np.array(_LENGTH_BITS)[kinds]
    codes = ((4 + kinds) << length_bits | (pieces - 1)) << _VALUE_BITS | values
    header = [_to_bits(4 * mask.size, 32), _to_bits(_VALUE_BITS - 1, 5)]
    header += [_to_bits(bits - 1, 4) for bits in _LENGTH_BITS]
    rows = np.unpackbits(codes.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    is_used = np.arange(32) >= 32 - (3 + length_bits + _VALUE_BITS)[:, None]
    return np.packbits(np.concatenate([*header, rows[is_used]])).tolist()


class _Bits:
    """Reads a few bits after another, the highest first."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def read(self, count: int) -> int:
        """The next bits, at most 32, as a number."""
        first, offset = divmod(self.position, 8)
        self._move(count)
        return int.from_bytes(self.data[first : first + 5].ljust(5, b"\0")) >> (40 - offset - count) & (2**count - 1)

    def read_bytes(self, count: int) -> np.ndarray:
        """The next `count` numbers of 8 bits."""
        first, offset = divmod(self.position, 8)
        self._move(8 * count)
        data = np.frombuffer(self.data[first : first + count + 1].ljust(count + 1, b"\0"), np.uint8).astype(np.uint16)
        return (((data[:-1] << 8) | data[1:]) >> (8 - offset) & 255).astype(np.uint8)

    def _move(self, count: int):
        self.position += count
        if self.position > 8 * len(self.data):
            raise UserError(f"The brush's RLE ends within a run, after {len(self.data)} bytes: it was cut off.")


def _to_bits(value: int, count: int) -> np.ndarray:
    return (value >> np.arange(count - 1, -1, -1) & 1).astype(np.uint8)


def _read_coco_text(text: str | bytes) -> np.ndarray:
    """Numbers in groups of 5 bits, the lowest first; from the fourth on they are steps from the last but one."""
    characters = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    data = np.frombuffer(characters, np.uint8).astype(np.int64) - 48
    if len(data) == 0:
        return data
    if (unknown := (data < 0) | (data > 63)).any():
        character = chr(int(data[unknown][0]) + 48)
        raise UserError(f"COCO's RLE has the character {character!r}, which is none of its own: it is damaged.")
    is_last = data < 32
    if not is_last[-1]:
        raise UserError("COCO's RLE ends within a number: it was cut off.")
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    num_groups = ends - starts + 1
    if num_groups.max() > 12:
        raise UserError("COCO's RLE has a number of more than 60 bits: it is damaged.")
    places = 5 * (np.arange(len(data)) - np.repeat(starts, num_groups))
    steps = np.add.reduceat((data & 31) << places, starts)
    steps -= np.where(data[ends] & 16, 1 << (5 * num_groups), 0)
    steps[1::2] = np.cumsum(steps[1::2])
    steps[2::2] = np.cumsum(steps[2::2])
    return steps


def _to_lengths(counts: Sequence[int]) -> np.ndarray:
    try:
        return np.array([operator.index(count) for count in counts], np.int64)
    except (TypeError, OverflowError) as error:
        raise UserError(f"Run lengths have to be a list of whole numbers, got {str(counts)[:60]!r}.") from error


def _draw_runs(lengths: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if (lengths < 0).any():
        raise UserError(f"The RLE has a run of length {lengths[lengths < 0][0]}: it is damaged.")
    total, num_pixels = int(lengths.sum()), shape[0] * shape[1]
    if total != num_pixels or (lengths > num_pixels).any():
        raise UserError(
            f"The RLE's runs have {total} pixels together, but the mask has {num_pixels}: it is damaged, or of an "
            "image of another size."
        )
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(shape)


def _run_lengths(mask: np.ndarray) -> np.ndarray:
    """Lengths of the runs of a mask by rows, of the outside first, which may be 0."""
    pixels = mask.ravel()
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    return np.diff(np.concatenate([[0], changes, [pixels.size]]))

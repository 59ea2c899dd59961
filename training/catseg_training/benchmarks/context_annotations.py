"""The annotations of PASCAL Context's `trainval_merged.json`: segments as COCO's run-length codes."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from catseg_hf.errors import UserError
from catseg_hf.utils.files import read_json


class ContextAnnotations:
    """
    The images of one phase, and their label maps.

    Args:
        path (`Path`): `trainval_merged.json`.
        phase (`str`): "train" or "val".

    Raises:
        UserError: If the file is not complete or not of this form.
    """

    def __init__(self, path: Path, phase: str = "val"):
        try:
            content = read_json(path)
            self._images = {
                image["file_name"].rsplit(".", 1)[0]: image for image in content["images"] if image["phase"] == phase
            }
            by_image = {image["image_id"]: [] for image in self._images.values()}
            for segment in content["annos_segmentation"]:
                if segment["image_id"] in by_image:
                    by_image[segment["image_id"]].append((segment["category_id"], segment["segmentation"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise UserError(
                f"{path} is damaged or not PASCAL Context's trainval_merged.json, fetch it again: {reason}"
            ) from None
        self._segments = by_image

    @property
    def names(self) -> list[str]:
        """Names of the images, sorted."""
        return sorted(self._images)

    def label_ids(self, name: str) -> np.ndarray:
        """
        Category of every pixel `(H, W)`, int32, 0 where there is no segment. Of segments on top of each other the last
        one counts.

        Raises:
            ValueError: If a segment is not a run-length code of the image's size.
        """
        image = self._images[name]
        size = (image["height"], image["width"])
        label = np.zeros(size, dtype=np.int32)
        for category, segmentation in self._segments[image["image_id"]]:
            if tuple(segmentation["size"]) != size:
                raise UserError(f"a segment of category {category} is {segmentation['size']} and not {list(size)}")
            label[decode_mask(segmentation["counts"], *size)] = category
        return label


def decode_mask(counts: str | Sequence[int], height: int, width: int) -> np.ndarray:
    """
    A mask `(height, width)`, bool, of a run-length code: lengths of alternating runs outside and inside, down one
    column after the other, as integers or as COCO's text.

    Raises:
        ValueError: If the runs do not fill the mask.
    """
    lengths = _decode_lengths(counts) if isinstance(counts, str) else list(counts)
    if sum(lengths) != height * width or min(lengths, default=0) < 0:
        raise UserError(f"a run-length code of {sum(lengths)} pixels is not one of {height} x {width}")
    is_inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(is_inside, lengths).reshape(width, height).T


def _decode_lengths(text: str) -> list[int]:
    """Five bits in each character, the lowest first; the sixth says that more follow. From the fourth run on, a number
    is the difference to the run before the last."""
    lengths: list[int] = []
    value = shift = 0
    for code in text.encode("ascii"):
        code -= 48
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:  # the sign
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return lengths


@lru_cache(maxsize=2)
def read_annotations(path: Path) -> ContextAnnotations:
    """The annotations of the phase "val". The file has 590 MB: it is read once."""
    return ContextAnnotations(path)

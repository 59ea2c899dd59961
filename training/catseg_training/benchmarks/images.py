"""A benchmark's images and labels, as they are scored: ids mapped, sizes reduced where the protocol asks for it."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from catseg_hf.errors import UserError

from ..data.examples import read_image
from .description import Benchmark
from .files import ImageFiles
from .labels import read_label_ids


MAX_NAMED_IDS = 5


class BenchmarkImages(Dataset):
    """
    Images and labels of a benchmark.

    Args:
        benchmark ([`Benchmark`]): Tells how to read them.
        files (`list[ImageFiles]`): Where they lie.
    """

    def __init__(self, benchmark: Benchmark, files: list[ImageFiles]):
        self.benchmark = benchmark
        self.files = files

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        `index`, `name`, `image` (H, W, 3), RGB, uint8, and `label` (H, W), int32; or, of an image that cannot be
        scored, `index`, `name` and `problem`, which says why.
        """
        example = {"index": index, "name": self.files[index].name}
        try:
            image, label = self.read(index)
        except (OSError, ValueError) as error:
            return example | {"problem": str(error)}
        return example | {"image": image, "label": label}

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Image and label.

        Raises:
            ValueError: If a file is missing or damaged, an id is none of the benchmark's, or sizes differ.
        """
        name, image_path, label_path = self.files[index]
        image = read_image({"path": str(image_path), "bytes": None}, str(image_path), self.benchmark.value_range)
        ids = read_label_ids(self.benchmark.label_format, label_path, name)
        if ids.shape != image.shape[:2]:
            sizes = " and ".join(f"{width} x {height}" for height, width in (image.shape[:2], ids.shape))
            raise UserError(f"{image_path} and its label {label_path} differ in size (width x height): {sizes}.")
        return shrink(image, self._classes(ids, f"{label_path} ({name})"), self.benchmark.max_shortest_edge)

    def _classes(self, ids: np.ndarray, name: str) -> np.ndarray:
        """Classes, int32, in place of stored ids."""
        table = self.benchmark.label_table
        is_inside = (ids >= 0) & (ids < len(table)) if ids.dtype not in (np.uint8, np.uint16) else None
        if is_inside is None or is_inside.all():
            label = table[ids]
            if label.min(initial=0) >= 0:
                return label
            is_inside = label >= 0
        unknown = np.unique(ids[~is_inside]).tolist()
        named = ", ".join(map(str, unknown[:MAX_NAMED_IDS])) + (", ..." if len(unknown) > MAX_NAMED_IDS else "")
        raise UserError(
            f"{name} holds the id{'s' if len(unknown) > 1 else ''} {named}, which {self.benchmark.name} does not "
            "know: is it another benchmark's label, or one that was converted?"
        )


def shrink(image: np.ndarray, label: np.ndarray, max_shortest_edge: int | None) -> tuple[np.ndarray, np.ndarray]:
    """
    Image `(H, W, 3)`, uint8, and label `(H, W)` with the shorter side reduced to `max_shortest_edge` if it is longer,
    bilinear without antialiasing and nearest.

    The authors then store the image as JPEG once more, which costs it some quality. This is not done here.
    """
    height, width = label.shape
    if max_shortest_edge is None or min(height, width) <= max_shortest_edge:
        return image, label
    new_height = max_shortest_edge if width >= height else round(height / width * max_shortest_edge)
    new_width = round(width / height * max_shortest_edge) if width >= height else max_shortest_edge
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, (new_height, new_width), mode="bilinear", align_corners=False)
    pixels = pixels[0].round().byte().permute(1, 2, 0).contiguous()
    rows, columns = np.arange(new_height) * height // new_height, np.arange(new_width) * width // new_width
    return pixels.numpy(), label[rows[:, None], columns]

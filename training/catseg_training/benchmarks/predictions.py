"""Predictions as image files of class ids, to be saved and evaluated again, or evaluated without a model."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from catseg_hf.utils.files import replaced_file

from ..data.examples import stored_ids
from .images import BenchmarkImages


def prediction_file(folder: Path, benchmark: str, name: str) -> Path:
    """Where the prediction for an image lies."""
    return folder / benchmark / f"{name}.png"


def save_prediction(file: Path, prediction: np.ndarray, num_classes: int):
    """Writes class ids `(H, W)`, in 8 bits if all classes fit and in 16 otherwise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(prediction.astype(np.uint8 if num_classes <= 256 else np.uint16))
    with replaced_file(file) as path:
        image.save(path, format="png")


class SavedPredictions(Dataset):
    """
    A benchmark's examples with the predictions that lie in a folder.

    Args:
        images ([`BenchmarkImages`]): The benchmark.
        folder (`Path`): Its subfolder of the benchmark's name has `NAME.png` for every image.
    """

    def __init__(self, images: BenchmarkImages, folder: Path):
        self.images = images
        self.folder = folder

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As of [`BenchmarkImages`], with `prediction` (H, W), integers, if nothing is wrong with it."""
        example = self.images[index]
        if "problem" in example:
            return example
        file = prediction_file(self.folder, self.images.benchmark.name, example["name"])
        try:
            prediction = stored_ids({"path": str(file), "bytes": None}, str(file))
        except ValueError as error:
            return example | {"problem": str(error)}
        if prediction.shape != example["label"].shape:
            sizes = " and ".join(f"{w} x {h}" for h, w in (prediction.shape, example["label"].shape))
            return example | {"problem": f"{file} has not the size that is scored (width x height): {sizes}."}
        return example | {"prediction": prediction.astype(np.int64)}

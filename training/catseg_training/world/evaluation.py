"""What a model of the emoji world can do: with all words, with the scene's own, with words that are not there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoModelForSemanticSegmentation, AutoProcessor, CLIPModel, CLIPTokenizer

import catseg_hf  # noqa: F401  (registers CAT-Seg with the Auto classes)
from catseg_hf.errors import UserError
from catseg_hf.guided_upsampling_catseg import as_guide, check_upsampling, most_probable_guided_class
from catseg_hf.loading import resolve_model
from catseg_hf.modeling_catseg_cost_volume import cost_volume, dense_image_features
from catseg_hf.utils.files import replaced_file

from ..boundary_iou import BoundaryIou
from .captions import PROMPT
from .contrastive import text_embeds
from .folders import NO_CLASS
from .pretraining import pixel_values
from .scoring import word_iou
from .words import classes, seen_words, unseen_words


# Words that are not in a scene, asked for beside those that are.
NUM_ABSENT = 10


def read_scenes(folder: Path, split: str, num_scenes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """
    Images `(N, H, W, 3)` and label maps `(N, H, W)` of a dataset that [`write_scenes`] wrote.

    Raises:
        UserError: If there is no such split.
    """
    if not (folder / "images" / split).is_dir():
        raise UserError(f"{folder} has no scenes of the split {split!r}: draw them with training/emoji_world.py.")
    paths = sorted((folder / "images" / split).iterdir())[:num_scenes]
    images = [np.asarray(Image.open(path)) for path in paths]
    labels = [np.asarray(Image.open(folder / "labels" / split / f"{path.stem}.png")) for path in paths]
    return np.stack(images), np.stack(labels)


def classes_of(labels: np.ndarray) -> np.ndarray:
    """The class ids, ascending, that a label map has."""
    return np.unique(labels[labels != NO_CLASS]).astype(int)


def mean_ious(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean intersection over union, in [0, 1], of the seen and the unseen words that occur."""
    return _means(word_iou(predictions, labels), labels)


def boundary_ious(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean Boundary IoU, in [0, 1], of the seen and the unseen words that occur."""
    counts = BoundaryIou(len(classes()), NO_CLASS)
    for prediction, label in zip(predictions, labels, strict=True):
        counts.add(prediction, label)
    ious = dict(zip(classes(), counts.scores()["per_category_boundary_iou"].tolist(), strict=True))
    return {f"boundary_{name}": score for name, score in _means(ious, labels).items()}


def _means(ious: dict[str, float], labels: np.ndarray) -> dict[str, float]:
    present = {classes()[index] for index in classes_of(labels)}
    return {
        name: float(np.mean([ious[word] for word in words if word in present]))
        for name, words in (("seen", seen_words()), ("unseen", unseen_words()))
    }


def _device() -> torch.device:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


@torch.no_grad()
def evaluate_clip(folder: Path, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The arg max of the cost volume of a CLIP on its own, with all words and with each scene's own."""
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).to(_device()).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    prompts = tokenizer([PROMPT.format(word) for word in classes()], padding=True, return_tensors="pt")
    words = text_embeds(clip, prompts.input_ids.to(clip.device))[:, None]
    all_words, own_words = [], []
    for image, label in zip(images, labels, strict=True):
        cost = cost_volume(dense_image_features(clip, pixel_values(image[None]).to(clip.device), ())[0], words)[0]
        cost = F.interpolate(cost, size=label.shape, mode="bilinear")[0].cpu()
        own = torch.from_numpy(classes_of(label))
        all_words.append(cost.argmax(dim=0).numpy())
        own_words.append(own[cost[own].argmax(dim=0)].numpy())
    return {
        "all_words": mean_ious(np.stack(all_words), labels),
        "own_words": mean_ious(np.stack(own_words), labels),
    }


class Segmenter:
    """
    A CAT-Seg that gives every pixel of a scene one of some words.

    Args:
        model (`str` or `Path`): The name of released weights, or the folder or Hub id of a checkpoint.
        dtype (`torch.dtype`): What it computes in.
        sliding_window (`bool`): Whether it sees windows of the enlarged scene, or the scene as it is.
        compiled (`bool`): Whether `torch.compile` has its forward pass.
        upsampling (`str`): `"bilinear"`, of logits, or `"guided"`, where borders follow those in the scene.
    """

    def __init__(
        self,
        model: str | Path,
        dtype: torch.dtype = torch.float32,
        sliding_window: bool = False,
        compiled: bool = False,
        upsampling: str = "bilinear",
    ):
        model = resolve_model(model)
        self._model = AutoModelForSemanticSegmentation.from_pretrained(model, dtype=dtype).to(_device()).eval()
        self._processor = AutoProcessor.from_pretrained(model)
        self._sliding_window = sliding_window
        self._upsampling = check_upsampling(upsampling)
        input_ids = self._processor(text=list(classes())).input_ids.to(self._model.device)
        with torch.no_grad():
            self._text_embeds = self._model.get_text_embeds(input_ids)
        self._forward = torch.compile(self._model) if compiled else self._model

    @torch.no_grad()
    def __call__(self, image: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
        """The class id, one of `class_ids`, of every pixel of an image `(H, W, 3)`: `(H, W)`."""
        inputs = self._processor(images=Image.fromarray(image), sliding_window=self._sliding_window)
        logits = self._forward(
            inputs.pixel_values.to(self._model.device, self._model.dtype),
            text_embeds=self._text_embeds[class_ids.tolist()],
            sliding_window=self._sliding_window,
        ).logits
        if self._upsampling == "guided":
            return class_ids[most_probable_guided_class(logits[0], as_guide(image))[0].cpu().numpy()]
        logits = F.interpolate(logits.float(), size=image.shape[:2], mode="bilinear")
        return class_ids[logits[0].argmax(dim=0).cpu().numpy()]


def evaluate_all_words(segment: Segmenter, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """[`mean_ious`] and [`boundary_ious`] with all words as the vocabulary."""
    every = np.arange(len(classes()))
    predictions = np.stack([segment(image, every) for image in tqdm(images, mininterval=20)])
    return mean_ious(predictions, labels) | boundary_ious(predictions, labels)


def evaluate_catseg(segment: Segmenter, images: np.ndarray, labels: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """
    A CAT-Seg with all words, with each scene's own, and with these and a few others: `absent_share` of the pixels go
    to words that are not in the scene.
    """
    rng = np.random.default_rng(seed)
    every = np.arange(len(classes()))
    own_words, absent = [], []
    for image, label in tqdm(list(zip(images, labels, strict=True)), mininterval=20):
        own = classes_of(label)
        others = rng.choice(np.setdiff1d(every, own), NUM_ABSENT, replace=False)
        own_words.append(segment(image, own))
        absent.append(np.isin(segment(image, np.concatenate([own, others])), others).mean())
    return {
        "all_words": evaluate_all_words(segment, images, labels),
        "own_words": mean_ious(np.stack(own_words), labels) | boundary_ious(np.stack(own_words), labels),
        "absent_share": float(np.mean(absent)),
    }


def write_evaluation(path: Path, results: dict[str, Any]):
    with replaced_file(path) as file:
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

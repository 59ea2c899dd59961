"""Margins of `max_classes_per_image="auto"`: what they cost and save on images with labels, and where they are stored.

A class that wins a pixel when all classes are aggregated misses the best one at each stage by some shortfall. A margin
as large as the shortfalls of a share of all pixels keeps the classes of these.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from tqdm import tqdm

from catseg_hf import CATSegForSemanticSegmentation, CATSegProcessor
from catseg_hf.class_chunks_catseg import ClassChunks
from catseg_hf.class_selection_catseg import sample_weights, shortfalls
from catseg_hf.configuration_catseg import SELECTION_STAGES
from catseg_hf.sliding_window_catseg import split_windows
from catseg_hf.utils.files import read_json, replaced_file

from .data.examples import EvaluationImages
from .evaluation import evaluate_model


SHARES = (0.9, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0)


@dataclass
class Row:
    """
    What a choice of margins costs and saves.

    Attributes:
        share (`float`, *optional*): Of the pixels whose class is kept at each stage; `None` for all classes. The last
            of several that have the same margins.
        margins (`dict[str, float]`): One for each stage.
        seconds (`float`): In the model, for an image.
        mean_iou (`float`): In 0..1, of the classes in labels.
        num_classes (`dict[str, float]`): Classes of a view, on average, in the first layer ("cost"), in each further
            one ("layers") and in the decoder ("decoder").
    """

    share: float | None
    margins: dict[str, float]
    seconds: float
    mean_iou: float
    num_classes: dict[str, float] = field(default_factory=dict)


class ModelClock:
    """Counts, while its model runs in [`watched`], seconds and the classes at each stage of every view."""

    def __init__(self):
        self.seconds = 0.0
        self.classes: Counter[str] = Counter()
        self.views: Counter[str] = Counter()
        self._start = 0.0

    def start(self, *_: Any):
        self._start = _now()

    def stop(self, *_: Any):
        self.seconds += _now() - self._start

    def count(self, stage: str, tokens: torch.Tensor | ClassChunks):
        """Counts the classes of tokens `(B, T, H, W, C)`."""
        chunks = [tokens] if isinstance(tokens, torch.Tensor) else tokens
        self.classes[stage] += chunks[0].shape[0] * sum(chunk.shape[1] for chunk in chunks)
        self.views[stage] += chunks[0].shape[0]

    def num_classes(self) -> dict[str, float]:
        """Of a view, on average."""
        return {stage: self.classes[stage] / self.views[stage] for stage in SELECTION_STAGES if self.views[stage]}


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


@contextmanager
def watched(model: CATSegForSemanticSegmentation) -> Iterator[ModelClock]:
    """A [`ModelClock`] of what the model does in the block."""
    clock = ModelClock()

    def count(stage: str):
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
            if not kwargs.get("is_coarse"):
                clock.count(stage, args[0])

        return hook

    first, *others = model.catseg.aggregator.layers
    hooks = [model.register_forward_pre_hook(clock.start), model.register_forward_hook(clock.stop)]
    for stage, modules in zip(SELECTION_STAGES, ([first], others, [model.decoder]), strict=True):
        hooks += [module.register_forward_pre_hook(count(stage), with_kwargs=True) for module in modules]
    try:
        yield clock
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def winners_shortfalls(
    model: CATSegForSemanticSegmentation, view: torch.Tensor, text_embeds: torch.Tensor
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """By how much the classes that win a pixel of a view `(1, 3, H, W)`, when all are aggregated, miss the best one at
    each stage, and how many pixels each wins. Of the layers it is the most that they miss after one of them."""
    outputs = model.catseg(view, text_embeds=text_embeds, output_hidden_states=True)
    cost, guidance_states = outputs.cost_volume.amax(dim=1), outputs.guidance_states
    if outputs.class_indices is not None:
        cost = cost[:, outputs.class_indices[0]]
    pixels = model.decoder(outputs.last_hidden_state, guidance_states).argmax(dim=1).flatten()
    pixels = pixels.bincount(minlength=cost.shape[1])
    coarse = [
        shortfalls(model.decoder(ClassChunks([tokens]), guidance_states, is_coarse=True))[0]
        for tokens in outputs.hidden_states[1:]
    ]
    layers = torch.stack([torch.zeros_like(coarse[0]), *coarse[:-1]]).amax(dim=0)
    missing = dict(zip(SELECTION_STAGES, (shortfalls(cost)[0], layers, coarse[-1]), strict=True))
    wins = pixels > 0
    return {stage: values[wins].cpu().numpy() for stage, values in missing.items()}, pixels[wins].cpu().numpy()


def least_margins(shortfalls_of_wins: np.ndarray, pixels: np.ndarray, shares: Sequence[float]) -> list[float]:
    """The least margins that keep the classes of these shares of the pixels."""
    order = np.argsort(shortfalls_of_wins)
    kept = np.cumsum(pixels[order])
    places = np.searchsorted(kept, np.asarray(shares) * kept[-1])
    return [float(shortfalls_of_wins[order][min(place, len(order) - 1)]) for place in places]


@torch.no_grad()
def margins_by_share(
    model: CATSegForSemanticSegmentation,
    processor: CATSegProcessor,
    images: EvaluationImages,
    shares: Sequence[float],
    sliding_window: bool,
) -> list[dict[str, float]]:
    """The margins of every share, from all views of all images."""
    text_embeds = model.catseg.encode_vocabulary()
    found, pixels = {stage: [] for stage in SELECTION_STAGES}, []
    for index in tqdm(range(len(images)), desc="Margins", leave=False):
        inputs = processor(images=Image.fromarray(images[index]["image"]), sliding_window=sliding_window).to(
            model.device
        )
        views = [inputs["pixel_values"]]
        if sliding_window:
            views = [*split_windows(views[0], model.config), inputs["global_pixel_values"]]
        for view in views:
            missing, counts = winners_shortfalls(model, view, text_embeds)
            pixels.append(counts)
            for stage, values in missing.items():
                found[stage].append(values)
    by_stage = {
        stage: least_margins(np.concatenate(values), np.concatenate(pixels), shares) for stage, values in found.items()
    }
    return [{stage: by_stage[stage][index] for stage in SELECTION_STAGES} for index in range(len(shares))]


def selection_of(model: CATSegForSemanticSegmentation, margins: Mapping[str, float]) -> dict[str, Any]:
    """`config.class_selection` of these margins for the weights that the model has."""
    return {**margins, "weights": sample_weights(model)}


def measure_shares(
    model: CATSegForSemanticSegmentation,
    processor: CATSegProcessor,
    images: EvaluationImages,
    accelerator: Accelerator,
    shares: Sequence[float],
    sliding_window: bool,
) -> list[Row]:
    """
    Scores all classes, then what the margins of every share leave of them. The model's configuration is changed.

    Args:
        model ([`CATSegForSemanticSegmentation`]): With the images' classes as its vocabulary.
        processor ([`CATSegProcessor`]): Its processor.
        images ([`EvaluationImages`]): Images and labels.
        accelerator (`Accelerator`): On whose device the model is.
        shares (`Sequence[float]`): In (0, 1], ascending.
        sliding_window (`bool`): Whether windows and a global view are averaged.
    """
    config = model.config

    def row(share: float | None, margins: dict[str, float]) -> Row:
        with watched(model) as clock:
            evaluation = evaluate_model(
                model,
                processor,
                images,
                accelerator,
                num_labels=config.num_labels,
                ignore_index=config.semantic_loss_ignore_index,
                sliding_window=sliding_window,
            )
        mean_iou = float(evaluation.scores["mean_iou_present"])
        return Row(share, margins, clock.seconds / len(images), mean_iou, clock.num_classes())

    config.max_classes_per_image = None
    row(None, {})  # encodes the vocabulary, which is kept, and warms up: no row's time has either
    rows = [row(None, {})]
    margins_of = margins_by_share(model, processor, images, shares, sliding_window)
    config.max_classes_per_image = "auto"
    for share, margins in zip(shares, margins_of, strict=True):
        if margins == rows[-1].margins:
            rows[-1].share = share
            continue
        config.class_selection = selection_of(model, margins)
        rows.append(row(share, margins))
    return rows


def choose(rows: Sequence[Row], tolerance: float) -> Row | None:
    """The fastest row that is faster than the first, all classes, and at most `tolerance` points of mean IoU, in per
    cent, below it."""
    exact, *others = rows
    good = [
        row for row in others if 100 * (exact.mean_iou - row.mean_iou) <= tolerance and row.seconds < exact.seconds
    ]
    return min(good, key=lambda row: row.seconds, default=None)


def table(rows: Sequence[Row], num_classes: int) -> str:
    """The rows for people."""
    lines = [
        f"classes of a view in the first layer, in further layers and in the decoder, of {num_classes}",
        f"{'share':>8} {'margins: cost, layers, decoder':>32} {'classes':>22} {'ms/image':>9} {'ratio':>6} "
        f"{'mIoU %':>7} {'change':>7}",
    ]
    exact = rows[0]
    for row in rows:
        share = "all" if row.share is None else f"{row.share:.2%}"
        margins = ", ".join(f"{margin:.3f}" for margin in row.margins.values())
        classes = " / ".join(f"{row.num_classes[stage]:.1f}" for stage in SELECTION_STAGES if stage in row.num_classes)
        lines.append(
            f"{share:>8} {margins:>32} {classes:>22} {1000 * row.seconds:>9.1f} {exact.seconds / row.seconds:>6.2f} "
            f"{100 * row.mean_iou:>7.2f} {100 * (row.mean_iou - exact.mean_iou):>+7.2f}"
        )
    return "\n".join(lines)


def store_selection(folder: Path, selection: Mapping[str, Any]):
    """Writes `class_selection` into the `config.json` of a model's folder, whole or not at all."""
    path = folder / "config.json"
    fields = {**read_json(path), "class_selection": dict(selection)}
    with replaced_file(path) as file:
        file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")

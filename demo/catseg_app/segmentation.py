"""Segments an image and answers questions about the result."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from catseg_hf import EMBEDDED_MODEL
from catseg_hf.class_words_catseg import ClassWords, read_classes
from catseg_hf.errors import UserError
from catseg_hf.image_io_catseg import open_image
from catseg_hf.image_sources_catseg import read_pixels
from catseg_hf.images.results import list_segments
from catseg_hf.loading import load_mask_generator, load_segmenter
from catseg_hf.pipeline_catseg import OpenVocabularySegmentationPipeline
from catseg_hf.tiles_catseg import DEFAULT_TILE_OVERLAP


MAX_MEGAPIXELS = 50
# Probabilities of more values than this are kept at a lower resolution: 256 MB in half precision.
MAX_PROBABILITIES = 2**27
EMBEDDED = "embedded"  # the name under which `EMBEDDED_MODEL` is offered
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Segmentation:
    """
    An image and what was found in it.

    Attributes:
        image (`PIL.Image.Image`): In RGB, upright, in its full size.
        model (`str`): Name, folder or Hub id of the checkpoint.
        classes ([`ClassWords`]): The classes, T, their words, and those of the background.
        threshold (`float`), sliding_window (`bool`), sam (`str` or `None`): As they were given.
        segmentation (`torch.ShortTensor` of shape (H, W)): Class of every pixel, -1 for none.
        segments (`list[dict]`): `index`, `label`, `area` (share in 0..1) and `score` (mean probability in 0..1) of
            every class in the segmentation, the largest first.
        probabilities (`torch.HalfTensor` of shape (T, h, w)): Of all classes in 0..1, at the model's resolution.
        upsampling (`str`): As it was given.
        tile_size (`int` or `None`), tile_overlap (`float`): As the pipeline takes them.
    """

    image: Image.Image
    model: str
    classes: ClassWords
    threshold: float
    sliding_window: bool
    sam: str | None
    segmentation: torch.Tensor
    segments: list[dict[str, Any]]
    probabilities: torch.Tensor
    upsampling: str = "bilinear"
    tile_size: int | None = None
    tile_overlap: float = DEFAULT_TILE_OVERLAP

    @property
    def labels(self) -> list[str]:
        """The names of the classes."""
        return self.classes.names


@lru_cache(maxsize=2)
def load_model(model: str) -> OpenVocabularySegmentationPipeline:
    """
    The pipeline of a checkpoint by name, folder or Hub id. The last two are kept.

    Raises:
        UserError: If it cannot be loaded or is not CAT-Seg.
    """
    segmenter = load_segmenter(model)
    segmenter.model.name_or_path = model  # of released weights the name, and not where they lie
    return segmenter


load_masks = lru_cache(maxsize=1)(load_mask_generator)


def find_model(name: str, offered: list[str]) -> str:
    """
    The name, folder or Hub id of a model that somebody chose or typed.

    Raises:
        UserError: If it is neither among those that are offered nor a Hub id: no other folder is opened.
    """
    if name == EMBEDDED:
        return EMBEDDED_MODEL
    if name not in offered and (not HUB_ID.fullmatch(name) or Path(name).exists()):
        raise UserError(f"{name!r} is no model: choose one from the list, or type a Hub id such as owner/name.")
    return name


def read_image(path: str | PathLike) -> tuple[Image.Image, int]:
    """
    An image file, upright, and the number of its frames, of which this is the first.

    Raises:
        UserError: If it cannot be read, or has more pixels than are accepted, which is seen before they are decoded.
    """
    name = repr(Path(path).name)
    accepted = f"at most {MAX_MEGAPIXELS} megapixels are accepted: scale it down, or use `catseg-hf segment`."
    try:
        with Image.open(path) as image:
            width, height = image.size
            frames = getattr(image, "n_frames", 1)
    except Image.DecompressionBombError as error:
        raise UserError(f"The image {name} is too large: {accepted}") from error
    except Exception:  # Pillow raises all kinds, and `open_image` says what is wrong
        return open_image(path, name), 1
    if width * height > MAX_MEGAPIXELS * 10**6:
        megapixels = f"{width * height / 10**6:.0f} megapixels ({width} x {height})"
        raise UserError(f"The image {name} has {megapixels}, but {accepted}")
    return open_image(path, name), frames


def segment(
    segmenter: OpenVocabularySegmentationPipeline,
    image: Image.Image,
    classes: list[str] | ClassWords,
    threshold: float = 0.0,
    sliding_window: bool = False,
    sam: str | None = None,
    upsampling: str = "bilinear",
    tile_size: int | None = None,
    tile_overlap: float = DEFAULT_TILE_OVERLAP,
    on_tiles: Callable[[int, int], None] | None = None,
) -> Segmentation:
    """
    Segments an image.

    Args:
        segmenter ([`OpenVocabularySegmentationPipeline`]): The pipeline.
        image (`PIL.Image.Image`): The image, of any mode.
        classes (`list[str]` or [`ClassWords`]): The classes.
        threshold (`float`, *optional*, defaults to 0): Pixels less probable than this get no class.
        sliding_window (`bool`, *optional*, defaults to `False`): Whether to average overlapping windows.
        sam (`str`, *optional*): Folder or Hub id of a Segment Anything model, whose masks the classes follow.
        upsampling (`str`, *optional*, defaults to `"bilinear"`): `"guided"` lets borders follow those in the image.
        tile_size (`int`, *optional*), tile_overlap (`float`), on_tiles (`Callable`, *optional*): As the pipeline takes
            them.

    Raises:
        ValueError: What the pipeline refuses, or if the Segment Anything model cannot be loaded.
    """
    classes = read_classes(classes)
    pixels = read_pixels(image, segmenter.processor.image_processor)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    result = segmenter(
        image,
        candidate_labels=classes,
        threshold=threshold,
        sliding_window=sliding_window,
        mask_generator=load_masks(sam) if sam else None,
        upsampling=upsampling,
        tile_size=tile_size,
        tile_overlap=tile_overlap,
        on_tiles=on_tiles,
        return_segmentation_map=True,
        return_probabilities=True,
    )
    return Segmentation(
        image=image,
        model=segmenter.model.name_or_path,
        classes=classes,
        threshold=threshold,
        sliding_window=sliding_window,
        sam=sam,
        segmentation=result["segmentation"].short(),
        segments=list_segments(result),
        probabilities=_shrink(result["probabilities"]).half(),
        upsampling=upsampling,
        tile_size=tile_size,
        tile_overlap=tile_overlap,
    )


def top_labels(result: Segmentation, x: float, y: float, count: int = 5) -> dict[str, float]:
    """
    The most probable labels at a pixel and their probabilities, the best first.

    Args:
        result ([`Segmentation`]): The result.
        x (`float`), y (`float`): Column and row of a pixel of the full image; from outside, the nearest one counts.
        count (`int`, *optional*, defaults to 5): How many labels.
    """
    size = torch.tensor(result.image.size)
    place = torch.minimum(torch.tensor([x, y]).clamp(min=0).floor(), size - 1)
    # As in a bilinear resize to the image's size, of which only this pixel is wanted.
    grid = (2 * (place + 0.5) / size - 1).view(1, 1, 1, 2)
    probabilities = result.probabilities.float()[None]  # (1, T, h, w)
    values = F.grid_sample(probabilities, grid, padding_mode="border", align_corners=False).flatten()
    best = values.topk(min(count, len(values)))
    return {
        result.labels[index]: value for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    }


def probability_map(result: Segmentation, label: str, size: tuple[int, int]) -> torch.Tensor:
    """
    The probability of one label, as a `torch.FloatTensor` of shape `size` (height, width) in 0..1.

    Raises:
        UserError: If it is not one of the result's labels.
    """
    if label not in result.labels:
        raise UserError(f"{label!r} was not looked for: choose one of the {len(result.labels)} classes.")
    probabilities = result.probabilities[result.labels.index(label)].float()
    return F.interpolate(probabilities[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def _shrink(probabilities: torch.Tensor) -> torch.Tensor:
    """Probabilities (T, h, w) at a resolution at which at most `MAX_PROBABILITIES` are left."""
    scale = (MAX_PROBABILITIES / probabilities.numel()) ** 0.5
    if scale >= 1:
        return probabilities
    size = [max(1, int(side * scale)) for side in probabilities.shape[-2:]]
    return F.adaptive_avg_pool2d(probabilities, size)

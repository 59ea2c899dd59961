"""Open-vocabulary segmentation pipeline of CAT-Seg ("CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic
Segmentation", CVPR 2024): the task "zero-shot-image-segmentation"."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from threading import Lock
from types import GeneratorType
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset
from transformers.pipelines.base import Pipeline
from transformers.utils import logging

from .bands_catseg import Band, Window, join_bands
from .class_words_catseg import ClassWords, read_classes
from .errors import UserError
from .guided_upsampling_catseg import as_guide, check_upsampling, most_probable_guided_bands
from .image_pixels_catseg import check_value_range
from .image_sources_catseg import URL_TIMEOUT, is_encoded, read_pixels, read_tiled
from .post_processing_catseg import is_large, most_probable_bands
from .refinement import refine_segmentation
from .segment_tally_catseg import SegmentTally, check_threshold, count_segments
from .tiled_image_catseg import TiledImage, check_tile_overlap, check_tile_size
from .tiles_catseg import DEFAULT_TILE_OVERLAP, GridAverage, blend_tiles


logger = logging.get_logger(__name__)

# More masks than this, in bytes, are kept as TIFFs that Pillow unpacks when they are looked at.
_MAX_MASK_BYTES = 256 * 2**20
# Processors are many times slower on the probabilities of classes that were cut away, whose logits are lower.
_LEAST_LOGIT = -80.0
# Of an image in tiles, probabilities of more values than this are kept at a lower resolution: half a gigabyte.
_MAX_PROBABILITIES = 2**27
# A fast tokenizer cannot be set up by one thread while it is being used by another.
_TOKENIZER_LOCK = Lock()


class OpenVocabularySegmentationPipeline(Pipeline):
    """
    Segments images into classes named in words, all of them in one pass of a CAT-Seg model.

    Args:
        model ([`CATSegForSemanticSegmentation`]): The model. It is put into evaluation mode.
        processor ([`CATSegProcessor`]): Its processor.
        kwargs: Arguments of [`Pipeline`], and defaults for those of [`~OpenVocabularySegmentationPipeline.__call__`].

    Raises:
        UserError: If the model is not CAT-Seg, or the processor is missing.

    Example:

    ```python
    >>> from catseg_hf import EMBEDDED_MODEL  # importing it registers the task
    >>> from transformers import pipeline

    >>> segmenter = pipeline("zero-shot-image-segmentation", model=EMBEDDED_MODEL)
    >>> for segment in segmenter("demo/scene.png", candidate_labels=["cat", "grass"]):
    ...     print(segment["label"], segment["score"], segment["mask"].size)
    ```"""

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False
    _load_tokenizer = False

    def __init__(self, model, processor=None, **kwargs):
        model_type = getattr(getattr(model, "config", None), "model_type", None)
        if model_type != "catseg" or not hasattr(model, "decoder"):
            raise UserError(
                f"The model is a {type(model).__name__} (model type {model_type!r}), but only "
                "CATSegForSemanticSegmentation is accepted: load a CAT-Seg checkpoint."
            )
        if not hasattr(processor, "encode_vocabulary"):
            raise UserError(
                f"The processor is a {type(processor).__name__}, but a CATSegProcessor is needed: pass "
                "`processor=AutoProcessor.from_pretrained(...)` of the same checkpoint."
            )
        super().__init__(model, processor=processor, **kwargs)
        self.model.eval()

    def __call__(
        self, image: Any = None, candidate_labels: str | Iterable[str] | None = None, **kwargs: Any
    ) -> "list[dict[str, Any]] | dict[str, Any] | list | Iterable":
        """
        Args:
            image:
                An image: path, URL, base64 text, an image file's bytes or a binary file, PIL image (shown upright, as
                its EXIF orientation says), or array or tensor of shape (H, W), (H, W, C) or (C, H, W), see
                [`CATSegImageProcessorPil.preprocess`]. Or several: a list or tuple of images gives a list of
                results; a generator, another iterable, a dataset of images (such as `KeyDataset`) or a column of
                one (`dataset["image"]`) gives an iterator of results, which takes images as it goes. May also be
                named `images` or `inputs`.
            candidate_labels (`str` or `Iterable[str]`, *optional*):
                The classes to tell apart: a list of labels, or one string of labels separated by commas. In a list,
                "tree, oak" is one label with a synonym, and the first word is what is looked for. "sofa|couch|settee"
                is one class of several words, all of which are looked for, and is shown as the first. At most 4096
                words. By default the checkpoint's own vocabulary, `model.config.id2label`.
            background_labels (`str` or `Iterable[str]`, *optional*):
                What is in the image beside the classes, in the same form: it is segmented with them, and its pixels
                then belong to no segment. A `threshold` asks how sure a class is, this what else it could be.
            threshold (`float`, *optional*):
                Pixels whose best class has a probability below it, between 0 and 1, belong to no segment. By default
                every pixel belongs to one.
            prompt_templates (`str` or `list[str]`, *optional*):
                Sentences in which `{}` stands for the class, in place of the processor's: as many as the model was
                trained with (`config.num_prompts`). Also as `hypothesis_template`.
            subtask (`str`, *optional*, defaults to `"semantic"`):
                The only one there is. The thresholds that transformers' image segmentation has for the others,
                `mask_threshold` and `overlap_mask_area_threshold`, change nothing: a pixel is in one mask at most.
            top_k (`int`, *optional*):
                How many segments to return, the largest ones. By default all.
            sliding_window (`bool`, *optional*):
                Whether to average overlapping windows and a global view of the image. By default as the checkpoint's
                processor and configuration say.
            max_classes_per_image (`int` or `"auto"`, *optional*):
                Of more labels only so many, those most similar to the image, are told apart in it (in each of its
                views, with the sliding window), which takes less time; "auto": those that can still win by the margins
                that were chosen for the model. By default as the configuration says.
            return_segmentation_map (`bool`, *optional*, defaults to `False`):
                Whether to return the map of classes too.
            return_probabilities (`bool`, *optional*, defaults to `False`):
                Whether to return the probabilities of all classes too.
            tile_size (`int`, *optional*):
                Segments the image in overlapping tiles of so many pixels, each of which the model sees as an image, at
                a resolution of its own: for images that show more than one view can hold. At least one patch of the
                model, at most the image's longer side, where the result is that without tiles. By default the image
                is segmented as a whole.
            tile_overlap (`float`, *optional*, defaults to 0.25):
                What neighbouring tiles have in common, at least: a share of a tile, 0 to 0.5. Their probabilities are
                blended, those near a tile's border counting less.
            on_tiles (`Callable[[int, int], None]`, *optional*):
                Is called after every batch of tiles with the number of those that the model was given, and of all.
            mask_generator (`Callable`, *optional*):
                Makes the segments follow class-agnostic masks, see [`~refinement.refine_with_masks`]: a pipeline for
                "mask-generation" (SAM, SAM 2 or SAM 3), or any function that takes a PIL image in RGB, in the
                image's own size, and returns its masks, or a dictionary with these `masks`. For the generators of
                segment-anything and sam2, which take arrays: `lambda image: generator.generate(np.asarray(image))`.
                Probabilities that are returned stay as they were. Of an image in tiles the masks are those of the
                whole image, and their classes come of the `probabilities` below.
            upsampling (`str`, *optional*, defaults to `"bilinear"`):
                `"guided"` makes the segments' borders follow those in the image, see
                [`~guided_upsampling_catseg.most_probable_guided_class`]; pixels count in `score` and for the
                `threshold` with the probability that this gives them. Probabilities that are returned stay as they
                were, and pixels under a mask of the `mask_generator` follow that.
            value_range (`tuple[float, float]`, *optional*):
                The stored values that become black and white, for images that use another part of their type's
                range, see [`CATSegImageProcessorKwargs`]. By default the processor's.
            timeout (`float`, *optional*, defaults to 30):
                Seconds that a URL may take to answer.
            batch_size (`int`, *optional*, defaults to 1):
                Images, or tiles of one, that the model takes at a time.
            num_workers (`int`, *optional*, defaults to 0):
                Processes that read images.

        Returns:
            For each image a list of its segments, the largest first; classes without a pixel are left out. A segment
            is a dictionary with
            - `label` (`str`), one of the labels as it was given;
            - `score` (`float`), the mean over its mask of the probability of its class, in 0..1, where pixels under a
              mask of the `mask_generator` count with the mean over that mask, as they do for the `threshold`;
            - `mask` (`PIL.Image.Image` of mode "L" in the image's size), 255 in the segment and 0 elsewhere.

            With `return_segmentation_map=True` or `return_probabilities=True` it is a dictionary with these
            `segments` and, of what was asked for,
            - `segmentation`, a `torch.LongTensor` of shape (H, W): the index in `candidate_labels` of every pixel's
              class, -1 for none;
            - `probabilities`, a `torch.FloatTensor` of shape (T, h, w), in 0..1 and at the model's own resolution
              (resized to the image it would take 4 * T * H * W bytes): of several words for a class the highest. Of an
              image in tiles, those of all its tiles, at the resolution that a tile has, or a lower one where these
              would be more than 2 ** 27 values.

        Raises:
            UserError: For an image that cannot be read; tiles that are smaller than a patch or larger than the image,
                or overlap by more than half; what [`read_classes`] or
                [`CATSegProcessor.encode_vocabulary`] refuses of the labels; a threshold that is not between 0 and 1;
                another number of prompt templates than the model's; an upsampling that does not exist; a mask
                generator that gives no masks of booleans, or masks of another aspect ratio than the image's.
        """
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        for name in ("images", "inputs"):
            if name in kwargs:
                image = kwargs.pop(name)
        if image is None:
            raise UserError("No image was given: pass a path, a URL, a PIL image, an array or a tensor.")
        kwargs["tiles_at_once"] = kwargs.get("batch_size") or self._batch_size or 1
        if isinstance(image, list | tuple):
            # The base class looks at the first of them.
            return super().__call__(list(image), **kwargs) if len(image) else []
        single = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor | Mapping
        if is_encoded(image):
            image = bytes(image) if isinstance(image, bytes | bytearray | memoryview) else image.read()
        elif not isinstance(image, single | Dataset | GeneratorType):
            if isinstance(image, Sequence):
                image = Subset(image, range(len(image)))
            elif isinstance(image, Iterable):
                image = (item for item in image)
        return super().__call__(image, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any):
        """Saves the model and the processor, for [`pipeline`] to load."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(
        self,
        candidate_labels: str | Iterable[str] | None = None,
        background_labels: str | Iterable[str] | None = None,
        threshold: float | None = None,
        prompt_templates: str | list[str] | None = None,
        return_segmentation_map: bool | None = None,
        return_probabilities: bool | None = None,
        sliding_window: bool | None = None,
        max_classes_per_image: int | Literal["auto"] | None = None,
        timeout: float | None = None,
        value_range: tuple[float, float] | None = None,
        mask_generator: Callable[[Image.Image], Any] | None = None,
        upsampling: str | None = None,
        tile_size: int | None = None,
        tile_overlap: float | None = None,
        on_tiles: Callable[[int, int], None] | None = None,
        tiles_at_once: int | None = None,
        hypothesis_template: str | None = None,
        subtask: str | None = None,
        mask_threshold: float | None = None,
        overlap_mask_area_threshold: float | None = None,
        top_k: int | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess_kwargs, forward_kwargs, postprocess_kwargs = {}, {}, {}
        if subtask not in (None, "semantic"):
            raise UserError(f"`subtask` is {subtask!r}, but CAT-Seg does semantic segmentation only: leave it out.")
        if mask_threshold is not None or overlap_mask_area_threshold is not None:
            logger.warning_once(
                "`mask_threshold` and `overlap_mask_area_threshold` change nothing in semantic segmentation: pass "
                "`threshold` for the least probability of a pixel."
            )
        if hypothesis_template is not None:
            if prompt_templates is not None:
                raise UserError("Got both `hypothesis_template` and `prompt_templates`, which are the same: give one.")
            prompt_templates = hypothesis_template
        if top_k is not None:
            if not isinstance(top_k, int) or top_k < 1:
                raise UserError(f"`top_k` is {top_k!r}, but a number of segments, at least 1, is needed.")
            postprocess_kwargs["top_k"] = top_k
        if timeout is not None:
            preprocess_kwargs["timeout"] = timeout
        if value_range is not None:
            preprocess_kwargs["value_range"] = check_value_range(value_range)
        if candidate_labels is not None or background_labels is not None:
            labels = self.model.config.label_names if candidate_labels is None else candidate_labels
            forward_kwargs["classes"] = read_classes(labels, background_labels)
        if prompt_templates is not None:
            forward_kwargs["prompt_templates"] = prompt_templates
        if threshold is not None:
            forward_kwargs["threshold"] = postprocess_kwargs["threshold"] = check_threshold(threshold)
        if return_segmentation_map is not None:
            postprocess_kwargs["return_segmentation_map"] = return_segmentation_map
        if return_probabilities is not None:
            forward_kwargs["return_probabilities"] = return_probabilities
        if sliding_window is not None:
            preprocess_kwargs["sliding_window"] = forward_kwargs["sliding_window"] = sliding_window
        if max_classes_per_image is not None:
            forward_kwargs["max_classes_per_image"] = max_classes_per_image
        if tile_size is not None:
            preprocess_kwargs["tile_size"] = check_tile_size(tile_size, self.model.config)
        if tile_overlap is not None:
            preprocess_kwargs["tile_overlap"] = check_tile_overlap(tile_overlap)
        if on_tiles is not None:
            if not callable(on_tiles):
                raise UserError(
                    f"`on_tiles` is {on_tiles!r}, but a function of two numbers, the tiles that are done and all of "
                    "them, is needed."
                )
            forward_kwargs["on_tiles"] = on_tiles
        if tiles_at_once is not None:
            forward_kwargs["tiles_at_once"] = tiles_at_once
        if mask_generator is not None:
            if not callable(mask_generator):
                raise UserError(
                    f"`mask_generator` is {mask_generator!r}, but a pipeline for 'mask-generation', or a function "
                    "from an image to masks, is needed."
                )
            preprocess_kwargs["keep_image"] = True
            forward_kwargs["mask_generator"] = mask_generator
        if upsampling is not None:
            forward_kwargs["upsampling"] = check_upsampling(upsampling)
            if upsampling == "guided":
                preprocess_kwargs["keep_image"] = True
        return preprocess_kwargs, forward_kwargs, postprocess_kwargs

    def preprocess(
        self,
        image: Any,
        timeout: float = URL_TIMEOUT,
        keep_image: bool = False,
        value_range: tuple[float, float] | None = None,
        tile_size: int | None = None,
        tile_overlap: float = DEFAULT_TILE_OVERLAP,
        **images_kwargs: bool,
    ) -> dict[str, Any]:
        image_processor = self.processor.image_processor
        if tile_size is not None:
            return {"tiled": read_tiled(image, image_processor, timeout, value_range, tile_size, tile_overlap)}
        pixels = read_pixels(image, image_processor, timeout, value_range)
        inputs = {**self._views([pixels], **images_kwargs), "target_size": tuple(pixels.shape[-2:])}
        if keep_image:
            inputs["image"] = self._to_pil(pixels)
        return inputs

    def _views(self, images: "list[Image.Image | torch.Tensor]", **images_kwargs: bool) -> dict[str, torch.Tensor]:
        """What the model takes of images in RGB, or of shape (3, H, W)."""
        inputs = self.processor(images=images, input_data_format="channels_first", value_range=None, **images_kwargs)
        return dict(inputs.to(self.dtype))

    def _views_on_device(
        self, images: "list[Image.Image | torch.Tensor]", sliding_window: bool | None
    ) -> dict[str, torch.Tensor]:
        images_kwargs = {} if sliding_window is None else {"sliding_window": sliding_window}
        views = self._views(images, **images_kwargs)
        return {name: view.to(self.device, non_blocking=True) for name, view in views.items()}

    def word_probabilities(
        self,
        images: "list[Image.Image | torch.Tensor]",
        text_embeds: torch.Tensor,
        sliding_window: bool | None = None,
        max_classes_per_image: int | Literal["auto"] | None = None,
    ) -> torch.Tensor:
        """
        What the model says of images, such as the tiles of one.

        Args:
            images: B of them in RGB, or uint8 of shape (3, H, W), whose pixels have been checked.
            text_embeds (`torch.Tensor` of shape (W, P, D)): Of W words, see `get_text_embeds` of the model.
            sliding_window, max_classes_per_image: As `__call__` takes them.

        Returns:
            `torch.FloatTensor` of shape (B, W, h, w), in 0..1, at the model's own resolution and on its device.
        """
        outputs = self.model(
            **self._views_on_device(images, sliding_window),
            text_embeds=text_embeds,
            check_values=False,
            sliding_window=sliding_window,
            max_classes_per_image=max_classes_per_image,
        )
        return outputs.logits.float().sigmoid()

    def _to_pil(self, image: "Image.Image | torch.Tensor") -> Image.Image:
        if isinstance(image, Image.Image):
            return image
        return _to_pil(image, 255 if self.processor.image_processor.do_rescale else 1)

    def _forward(
        self,
        model_inputs: Mapping[str, Any],
        classes: ClassWords | None = None,
        prompt_templates: str | list[str] | None = None,
        sliding_window: bool | None = None,
        max_classes_per_image: int | Literal["auto"] | None = None,
        threshold: float | None = None,
        return_probabilities: bool = False,
        mask_generator: Callable[[Image.Image], Any] | None = None,
        upsampling: str = "bilinear",
        on_tiles: Callable[[int, int], None] | None = None,
        tiles_at_once: int = 1,
    ) -> dict[str, list]:
        # Lists are what the base class collates batches to.
        model_inputs = {
            name: value if isinstance(value, list | torch.Tensor) else [value] for name, value in model_inputs.items()
        }
        names = self.model.config.label_names
        input_ids = None
        if classes is not None or prompt_templates is not None:
            classes = classes or read_classes(names)
            input_ids = self.encode_vocabulary(classes.words, prompt_templates)
        asked = _Asked(
            classes=classes or ClassWords(names, names, list(range(len(names)))),
            input_ids=input_ids,
            options={"sliding_window": sliding_window, "max_classes_per_image": max_classes_per_image},
            threshold=threshold,
            return_probabilities=return_probabilities,
            mask_generator=mask_generator,
            is_guided=upsampling == "guided",
        )
        if "tiled" in model_inputs:
            results = [self._segment_tiled(image, asked, tiles_at_once, on_tiles) for image in model_inputs["tiled"]]
        else:
            results = self._segment_views(model_inputs, asked)
        return {name: [result[name] for result in results] for name in results[0]}

    def _segment_views(self, model_inputs: dict[str, Any], asked: "_Asked") -> list[dict[str, Any]]:
        """A batch of images, as the model sees them: for each what `postprocess` takes."""
        target_sizes = model_inputs.pop("target_size")
        images = model_inputs.pop("image", [None] * len(target_sizes))
        outputs = self.model(**model_inputs, input_ids=asked.input_ids, **asked.options)
        results = []
        # Here and not in `postprocess`: it is done where the logits are, which need not be moved or kept then.
        for logits, size, image in zip(outputs.logits, target_sizes, images, strict=True):
            probabilities = logits.float().sigmoid() if asked.return_probabilities else None
            if asked.is_guided:
                bands = most_probable_guided_bands(logits, as_guide(image))
            else:
                bands = most_probable_bands(logits, size)
            if is_large(size) and asked.mask_generator is None:
                results.append(asked.tally(bands, size, probabilities))
                continue
            pair = join_bands(bands, size)
            if asked.mask_generator is not None:
                masks = _generate_masks(asked.mask_generator, image)
                pair = refine_segmentation(*pair, logits.float().clamp(min=_LEAST_LOGIT).sigmoid_(), masks)
            results.append(asked.result(*pair, probabilities))
        return results

    def _segment_tiled(
        self,
        image: TiledImage,
        asked: "_Asked",
        tiles_at_once: int,
        on_tiles: Callable[[int, int], None] | None,
    ) -> dict[str, Any]:
        """An image in tiles: what `postprocess` takes."""
        grid, size = image.grid, (image.grid.rows.length, image.grid.columns.length)

        def crops(windows: Sequence[Window]) -> "list[Image.Image | torch.Tensor]":
            return [image.crop(window) for window in windows]

        if len(grid.places) == 1:
            views = self._views_on_device(crops([grid.window(0, 0)]), asked.options["sliding_window"])
            inputs = {**views, "target_size": [size]}
            if asked.is_guided or asked.mask_generator is not None:
                inputs["image"] = [self._to_pil(image.image)]
            (result,) = self._segment_views(inputs, asked)
            return result
        text_embeds = self.model.catseg.encode_vocabulary(asked.input_ids)

        def predict(windows: Sequence[Window]) -> torch.Tensor:
            return self.word_probabilities(crops(windows), text_embeds, **asked.options)

        average = None
        if asked.return_probabilities or asked.mask_generator is not None:
            average = GridAverage(grid, _MAX_PROBABILITIES)
        guide = None
        if asked.is_guided:

            def guide(window: Window) -> torch.Tensor:
                return as_guide(self._to_pil(image.crop(window))).to(self.device, non_blocking=True)

        bands = blend_tiles(grid, predict, tiles_at_once, on_tiles, average, guide)
        if asked.mask_generator is None:
            return asked.tally(bands, size, average)
        segmentation, probability = join_bands(bands, size)
        masks = _generate_masks(asked.mask_generator, self._to_pil(image.image))
        pair = refine_segmentation(segmentation, probability, average.probabilities.cpu(), masks)
        return asked.result(*pair, average.probabilities if asked.return_probabilities else None)

    def postprocess(
        self,
        model_outputs: Mapping[str, Any],
        threshold: float | None = None,
        return_segmentation_map: bool = False,
        top_k: int | None = None,
    ) -> list[dict[str, Any]] | dict[str, Any]:
        segmentation, probability, totals, labels = (
            model_outputs[name][0] for name in ("segmentation", "probability", "totals", "labels")
        )
        if not totals.numel():
            segmentation, totals = count_segments(segmentation, probability, len(labels), threshold)
        areas, sums = totals
        del probability
        present = [int(index) for index in areas.argsort(descending=True, stable=True) if areas[index]]
        present = present[:top_k]
        compress = len(present) * segmentation.numel() > _MAX_MASK_BYTES
        class_map = segmentation.to(torch.int16).numpy()
        segments = [
            {
                "label": labels[index],
                "score": float(sums[index] / areas[index]),
                "mask": _draw_mask(class_map == index, compress),
            }
            for index in present
        ]
        maps = {"segmentation": segmentation.long()} if return_segmentation_map else {}
        if "probabilities" in model_outputs:
            maps["probabilities"] = model_outputs["probabilities"][0]
        return {"segments": segments, **maps} if maps else segments

    def encode_vocabulary(
        self, labels: list[str], prompt_templates: str | list[str] | None = None
    ) -> torch.LongTensor:
        """[`CATSegProcessor.encode_vocabulary`] of labels, of shape (T, P, L), in any of several threads."""
        processor = self.processor
        if prompt_templates is not None:
            processor = type(processor)(processor.image_processor, processor.tokenizer, prompt_templates)
        num_templates, num_prompts = len(processor.prompt_templates), self.model.config.num_prompts
        if num_templates != num_prompts:
            raise UserError(
                f"There are {num_templates} prompt templates, but the model takes {num_prompts} for every label "
                f"(`config.num_prompts`): pass {num_prompts} as `prompt_templates`."
            )
        with _TOKENIZER_LOCK:
            return processor.encode_vocabulary(labels)


@dataclass(frozen=True)
class _Asked:
    """
    What is asked of every image of a call.

    Attributes:
        classes ([`ClassWords`]): What is told apart.
        input_ids (`torch.LongTensor`, *optional*): The prompts; by default those of the model's own vocabulary.
        options (`dict`): Further arguments of the model.
        threshold, return_probabilities, mask_generator: As the pipeline's `__call__` takes them.
        is_guided (`bool`): Whether borders follow the image's.
    """

    classes: ClassWords
    input_ids: torch.LongTensor | None
    options: dict[str, Any]
    threshold: float | None
    return_probabilities: bool
    mask_generator: Callable[[Image.Image], Any] | None
    is_guided: bool

    def result(
        self, segmentation: torch.Tensor, probability: torch.Tensor, probabilities: torch.Tensor | None
    ) -> dict[str, Any]:
        """What `postprocess` takes of an image whose pixels have these words, of which it counts the segments."""
        segmentation = self.classes.merge_segmentation(segmentation)
        return self._joined(segmentation, probability, torch.empty(0), probabilities)

    def tally(
        self, bands: Iterable[Band], size: tuple[int, int], probabilities: "torch.Tensor | GridAverage | None"
    ) -> dict[str, Any]:
        """The same of a large image, whose segments are counted band by band. An average is there after the last."""
        tally = SegmentTally(size, self.classes, self.threshold)
        for band in bands:
            tally.add(band)
        if isinstance(probabilities, GridAverage):
            probabilities = probabilities.probabilities
        return self._joined(tally.segmentation, torch.empty(0), tally.totals, probabilities)

    def _joined(
        self,
        segmentation: torch.Tensor,
        probability: torch.Tensor,
        totals: torch.Tensor,
        probabilities: torch.Tensor | None,
    ) -> dict[str, Any]:
        # An array: unlike a list it is given its batch axis back when the base class takes a batch apart.
        labels = np.array(self.classes.names, dtype=object)
        parts = {"segmentation": segmentation, "probability": probability, "totals": totals, "labels": labels}
        if probabilities is not None:
            parts["probabilities"] = self.classes.merge_probabilities(probabilities)
        return parts


def _to_pil(pixels: torch.Tensor, highest: int) -> Image.Image:
    """Pixels (3, H, W), as uint8 or as floats up to `highest`, as an image."""
    if pixels.is_floating_point():
        pixels = (pixels * (255 / highest)).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _generate_masks(mask_generator: Callable[[Image.Image], Any], image: Image.Image) -> Any:
    result = mask_generator(image)
    return result["masks"] if isinstance(result, Mapping) and "masks" in result else result


def _draw_mask(mask: np.ndarray, compress: bool) -> Image.Image:
    pixels = mask.view(np.uint8)
    pixels *= np.uint8(255)
    image = Image.fromarray(pixels)
    if not compress:
        return image
    buffer = BytesIO()
    image.save(buffer, format="TIFF", compression="packbits")  # several times faster than PNG
    return Image.open(buffer)


__all__ = ["OpenVocabularySegmentationPipeline"]

"""Open-vocabulary segmentation pipeline of CAT-Seg ("CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic
Segmentation", CVPR 2024): the task "zero-shot-image-segmentation"."""

import base64
import binascii
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from numbers import Real
from threading import Lock
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import httpx
from PIL import Image
from torch.utils.data import Dataset, Subset
from transformers.pipelines.base import Pipeline
from transformers.utils import logging

from .class_words_catseg import ClassWords, read_classes
from .errors import UserError, first_line
from .guided_upsampling_catseg import as_guide, check_upsampling
from .image_io_catseg import open_image, upright
from .image_pixels_catseg import check_value_range
from .refinement import refine_segmentation


logger = logging.get_logger(__name__)

URL_TIMEOUT = 30.0

# More masks than this, in bytes, are kept as PNGs that Pillow unpacks when they are looked at.
_MAX_MASK_BYTES = 256 * 2**20
# Processors are many times slower on the probabilities of classes that were cut away, whose logits are lower.
_LEAST_LOGIT = -80.0
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
            max_classes_per_image (`int`, *optional*):
                Of more labels only so many, those most similar to the image, are told apart in it (in each of its
                views, with the sliding window), which takes less time. By default as the configuration says.
            return_segmentation_map (`bool`, *optional*, defaults to `False`):
                Whether to return the map of classes too.
            return_probabilities (`bool`, *optional*, defaults to `False`):
                Whether to return the probabilities of all classes too.
            mask_generator (`Callable`, *optional*):
                Makes the segments follow class-agnostic masks, see [`~refinement.refine_with_masks`]: a pipeline for
                "mask-generation" (SAM, SAM 2 or SAM 3), or any function that takes a PIL image in RGB, in the
                image's own size, and returns its masks, or a dictionary with these `masks`. For the generators of
                segment-anything and sam2, which take arrays: `lambda image: generator.generate(np.asarray(image))`.
                Probabilities that are returned stay as they were.
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
                Images that the model takes at a time.
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
              (resized to the image it would take 4 * T * H * W bytes): of several words for a class the highest.

        Raises:
            UserError: For an image that cannot be read; what [`read_classes`] or
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
        if isinstance(image, list | tuple):
            # The base class looks at the first of them.
            return super().__call__(list(image), **kwargs) if len(image) else []
        single = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor | Mapping
        if _is_encoded(image):
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
        max_classes_per_image: int | None = None,
        timeout: float | None = None,
        value_range: tuple[float, float] | None = None,
        mask_generator: Callable[[Image.Image], Any] | None = None,
        upsampling: str | None = None,
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
            is_number = isinstance(threshold, Real) and not isinstance(threshold, bool)
            if not is_number or not 0 <= threshold <= 1:
                raise UserError(f"`threshold` must be a probability between 0 and 1, got {threshold!r}.")
            postprocess_kwargs["threshold"] = threshold
        if return_segmentation_map is not None:
            postprocess_kwargs["return_segmentation_map"] = return_segmentation_map
        if return_probabilities is not None:
            forward_kwargs["return_probabilities"] = return_probabilities
        if sliding_window is not None:
            preprocess_kwargs["sliding_window"] = forward_kwargs["sliding_window"] = sliding_window
        if max_classes_per_image is not None:
            forward_kwargs["max_classes_per_image"] = max_classes_per_image
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
        **images_kwargs: bool,
    ) -> dict[str, Any]:
        pixels = read_pixels(image, self.processor.image_processor, timeout, value_range)
        inputs = self.processor(
            images=pixels, input_data_format="channels_first", value_range=None, **images_kwargs
        ).to(self.dtype)
        inputs = {**inputs, "target_size": tuple(pixels.shape[-2:])}
        if keep_image:
            inputs["image"] = _to_pil(pixels, 255 if self.processor.image_processor.do_rescale else 1)
        return inputs

    def _forward(
        self,
        model_inputs: Mapping[str, torch.Tensor],
        classes: ClassWords | None = None,
        prompt_templates: str | list[str] | None = None,
        sliding_window: bool | None = None,
        max_classes_per_image: int | None = None,
        return_probabilities: bool = False,
        mask_generator: Callable[[Image.Image], Any] | None = None,
        upsampling: str = "bilinear",
    ) -> dict[str, list]:
        model_inputs = dict(model_inputs)
        # Lists are what the base class collates batches to.
        target_sizes, images = (
            value if isinstance(value, list) else [value]
            for value in (model_inputs.pop("target_size"), model_inputs.pop("image", None))
        )
        input_ids = None
        if classes is not None or prompt_templates is not None:
            classes = classes or read_classes(self.model.config.label_names)
            input_ids = self.encode_vocabulary(classes.words, prompt_templates)
        outputs = self.model(
            **model_inputs,
            input_ids=input_ids,
            sliding_window=sliding_window,
            max_classes_per_image=max_classes_per_image,
        )
        # Here and not in `postprocess`: it is done where the logits are, which need not be moved or kept then.
        guides = [as_guide(image) for image in images] if upsampling == "guided" else None
        pairs = self.processor.image_processor.post_process_most_probable_class(outputs, target_sizes, guides)
        if mask_generator is not None:
            pairs = [
                refine_segmentation(
                    *pair, logits.float().clamp(min=_LEAST_LOGIT).sigmoid_(), _generate_masks(mask_generator, image)
                )
                for pair, logits, image in zip(pairs, outputs.logits, images, strict=True)
            ]
        segmentations, probabilities = zip(*pairs, strict=True)
        all_probabilities = list(outputs.logits.float().sigmoid()) if return_probabilities else []
        labels = self.model.config.label_names
        if classes is not None:
            labels = classes.names
            segmentations = map(classes.merge_segmentation, segmentations)
            all_probabilities = list(map(classes.merge_probabilities, all_probabilities))
        return {
            "segmentation": list(segmentations),
            "probability": list(probabilities),
            # An array: unlike a list it is given its batch axis back when the base class takes a batch apart.
            "labels": [np.array(labels, dtype=object)] * len(pairs),
            **({"probabilities": all_probabilities} if return_probabilities else {}),
        }

    def postprocess(
        self,
        model_outputs: Mapping[str, Any],
        threshold: float | None = None,
        return_segmentation_map: bool = False,
        top_k: int | None = None,
    ) -> list[dict[str, Any]] | dict[str, Any]:
        segmentation, probability, labels = (
            model_outputs[name][0] for name in ("segmentation", "probability", "labels")
        )
        if threshold is not None:
            segmentation = segmentation.masked_fill(probability < threshold, -1)
        classes = (segmentation + 1).flatten()
        areas = torch.bincount(classes, minlength=len(labels) + 1)[1:]
        sums = torch.bincount(classes, weights=probability.flatten().double(), minlength=len(labels) + 1)[1:]
        del classes, probability
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
        maps = {"segmentation": segmentation} if return_segmentation_map else {}
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


def read_pixels(
    image: Any,
    image_processor: Any,
    timeout: float | None = URL_TIMEOUT,
    value_range: tuple[float, float] | None = None,
) -> torch.Tensor:
    """
    Reads an image of any kind that [`OpenVocabularySegmentationPipeline`] takes.

    Args:
        image: Path, URL, base64 text, bytes, binary file, PIL image, array or tensor.
        image_processor ([`CATSegImageProcessor`] or [`CATSegImageProcessorPil`]): Converts it.
        timeout (`float`, *optional*, defaults to 30): Seconds that a URL may take to answer; `None` waits forever.
        value_range (`tuple[float, float]`, *optional*): The stored values that become black and white; by default the
            image processor's.

    Returns:
        `torch.Tensor` of shape (3, H, W): RGB as uint8, or as float32 for a float array.

    Raises:
        UserError: If it cannot be read, with a sentence that names the image.
    """
    is_text = isinstance(image, str | os.PathLike)
    name = f"The image {_shorten(image)}" if is_text else f"The image of type {type(image).__name__}"
    value_range = value_range or image_processor.value_range
    try:
        if not _is_decoded(image):
            image, value_range = _open(image, name, timeout, value_range), None
        elif isinstance(image, Image.Image):
            image = upright(image, name)
    except (OSError, UnicodeError, binascii.Error, httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"{name} could not be read: {first_line(error)}.") from error
    try:
        return image_processor.process_image(image, value_range=value_range)
    except UserError as error:
        raise UserError(f"{name} could not be read: {first_line(error)}.") from error


def _is_decoded(image: Any) -> bool:
    return isinstance(image, Image.Image | np.ndarray | torch.Tensor)


def _open(image: Any, name: str, timeout: float | None, value_range: tuple[float, float] | None) -> Image.Image:
    if isinstance(image, str | os.PathLike):
        if os.path.isfile(image):
            return open_image(image, name, value_range)
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            response = httpx.get(image, timeout=timeout, follow_redirects=True)
            return open_image(response.raise_for_status().content, name, value_range)
        if isinstance(image, str) and not os.path.exists(image):
            return _decode_base64(image, name, value_range)
        raise FileNotFoundError("there is no such file")
    if _is_encoded(image):
        return open_image(image, name, value_range)
    raise UserError(
        f"{name} could not be read: paths, URLs, bytes, binary files, PIL images, arrays and tensors are accepted, of "
        "a dataset its column of images (`dataset['image']`)."
    )


def _is_encoded(image: Any) -> bool:
    """Whether it is an image file's contents, as bytes or as a file to read them from."""
    return isinstance(image, bytes | bytearray | memoryview) or hasattr(image, "read")


def _decode_base64(text: str, name: str, value_range: tuple[float, float] | None) -> Image.Image:
    is_data_url = text.startswith("data:image/")
    try:
        return open_image(base64.decodebytes(text.rpartition(",")[2].encode()), name, value_range)
    except (UserError, UnicodeError, binascii.Error) as error:
        if is_data_url:
            raise
        raise FileNotFoundError("there is no such file") from error


def _shorten(text: str | os.PathLike, length: int = 200) -> str:
    text = os.fspath(text)
    return repr(text if len(text) <= length else f"{text[:length]}...")


def _to_pil(pixels: torch.Tensor, highest: int) -> Image.Image:
    """Pixels (3, H, W), as uint8 or as floats up to `highest`, as an image."""
    if pixels.is_floating_point():
        pixels = (pixels * (255 / highest)).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _generate_masks(mask_generator: Callable[[Image.Image], Any], image: Image.Image) -> Any:
    result = mask_generator(image)
    return result["masks"] if isinstance(result, Mapping) and "masks" in result else result


def _draw_mask(mask: np.ndarray, compress: bool) -> Image.Image:
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    if not compress:
        return image
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return Image.open(buffer)


__all__ = ["OpenVocabularySegmentationPipeline"]

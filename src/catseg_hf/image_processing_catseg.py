"""Image processors of CAT-Seg ("CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation", CVPR 2024).

Evaluation looks at an image twice, and so do the processors here:

1. the image is resized on its own grey levels until its shorter side is 640 and its longer side at most 2560;
2. the result of 1 is squeezed to 640 x 640, out of which the model cuts its windows (`pixel_values`);
3. the result of 1 is squeezed to 384 x 384, the view of the whole image (`global_pixel_values`).

Both classes share everything but step 1: Pillow does it in `CATSegImageProcessorPil`, torchvision (on any device) in
`CATSegImageProcessor`. They differ by at most one grey level there.
"""

import os
from collections.abc import Mapping
from copy import deepcopy
from functools import reduce
from operator import index as as_index
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import validate_typed_dict
from PIL import Image
from transformers import PreTrainedConfig
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, logging, requires_backends
from typing_extensions import Self

from .errors import UserError, refuse_misspelt
from .image_io_catseg import open_image
from .remote_code_catseg import IMAGE_PROCESSOR_AUTO_MAP


logger = logging.get_logger(__name__)

MAX_SIDE = 2**14

UNSUPPORTED_KWARGS = ("crop_size", "do_center_crop", "do_pad", "pad_size")

# Bounds what the arg max over classes may hold at a time, whatever the number of classes and the image's size. On the
# CPU, larger tensors are slower: their memory is not used again, but comes from the system each time.
_MAX_CHUNK_BYTES, _MAX_CPU_CHUNK_BYTES = 128 * 2**20, 24 * 2**20
# Processors are many times slower on numbers as small as the probabilities of classes that were cut away. A power of
# two lifts them above that and changes no other bit.
_PROBABILITY_SCALE = 2.0**60
# By how much, relatively, rounding may move what is resized, at most.
_ROUNDING = 1e-4
# Values that stay in the processor's cache while classes are compared.
_MAX_CELLS = 2**17


class CATSegImageProcessorKwargs(ImagesKwargs, total=False):
    """
    Arguments of the CAT-Seg image processors, at construction or per call.

    Args:
        sliding_window (`bool`, *optional*, defaults to `True`):
            Whether to prepare the two views of the sliding window (steps 1 to 3 above). Otherwise the image is
            resized once, to `image_size` x `image_size`.
        window_image_size (`int`, *optional*, defaults to 640):
            Side in pixels of the square that the windows are cut out of (step 2).
        sliding_window_size (`int`, *optional*, defaults to 384):
            Side in pixels of a window, hence of the global view (step 3).
        image_size (`int`, *optional*, defaults to 384):
            Side in pixels of the model's input without the sliding window.
        size (`dict[str, int]`, *optional*, defaults to `{"shortest_edge": 640, "longest_edge": 2560}`):
            With the sliding window, the size of step 1. Without it the image is resized to `image_size`, or to this
            size if it is a `height` and a `width`.
        do_reduce_labels (`bool`, *optional*, defaults to `False`):
            Whether the ids of `segmentation_maps` begin at 1, and 0 stands for no class: 0 becomes 255 and every other
            id one less, but 255 stays.
    """

    sliding_window: bool
    window_image_size: int
    sliding_window_size: int
    image_size: int
    do_reduce_labels: bool


def get_resized_size(height: int, width: int, shortest_edge: int, longest_edge: int | None = None) -> tuple[int, int]:
    """
    Size of an image after step 1, as detectron2 rounds it; a side never falls below one pixel.

    Args:
        height (`int`), width (`int`): Size of the image in pixels.
        shortest_edge (`int`): Wanted length of the shorter side.
        longest_edge (`int`, *optional*): Limit of the longer side, which wins over `shortest_edge`.

    Returns:
        `tuple[int, int]`: New height and width.
    """
    scale = shortest_edge / min(height, width)
    sides = (shortest_edge, scale * width) if height < width else (scale * height, shortest_edge)
    if longest_edge is not None and max(sides) > longest_edge:
        scale = longest_edge / max(sides)
        sides = (sides[0] * scale, sides[1] * scale)
    return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))


def _resize_bilinear(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Float bilinear resize without antialiasing of (C, H, W), as in steps 2 and 3 and after the model."""
    images = images.float()
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images[None], size=size, mode="bilinear", align_corners=False)[0]


def _nearest_source(old: int, new: int) -> torch.Tensor:
    """Which of `old` positions each of `new` positions takes: Pillow's own choice, made on a row of indices, so that
    any integer type can be resized as Pillow would."""
    row = Image.fromarray(np.arange(old, dtype=np.int32)[None])
    return torch.from_numpy(np.array(row.resize((new, 1), Image.Resampling.NEAREST))[0]).long()


def _height_and_width(size: Any) -> dict[str, int]:
    """A `size` for the one resize without the sliding window: the sides, or one side of a square."""
    if isinstance(size, int):
        return {"height": size, "width": size}
    if isinstance(size, Mapping | SizeDict) and size.get("height") and size.get("width"):
        return {"height": size["height"], "width": size["width"]}
    raise UserError(
        f"`size` is {size!r}, but without the sliding window an image is resized to a height and a width: pass "
        "`size={'height': ..., 'width': ...}` or `image_size`."
    )


def _reduce_labels(label: torch.Tensor) -> torch.Tensor:
    """Ids that begin at 1 as ids that begin at 0, with 255 for the former 0."""
    if label.max() > 255:
        raise UserError(
            f"A segmentation map holds the id {int(label.max())}, but `do_reduce_labels` takes ids of at most 255, "
            "which stands for no class: take 1 from the ids before."
        )
    is_class = (label != 0) & (label != 255)
    return torch.where(is_class, label - 1, 255)


def _to_tensor(array: "np.ndarray | torch.Tensor") -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array
    array = np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
    if min(array.strides, default=0) < 0:  # of an axis of length 1
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise UserError(f"An array of type {array.dtype} is not accepted: pass integers or floats.") from error


def _check_range(image: torch.Tensor, index: int) -> None:
    if not torch.isfinite(image).all():
        raise UserError(
            f"Image {index} holds NaN or infinite pixels, but only finite values are accepted: 0 to 255, or 0 to 1 "
            "with `do_rescale=False`. Repair the image or leave it out."
        )
    if image.abs().max() > 65535:
        raise UserError(
            f"Image {index} holds values from {image.min():.3g} to {image.max():.3g}, but 0 to 255 are accepted, or 0 "
            "to 1 with `do_rescale=False`. Rescale its values first."
        )


def _to_8_bit(image: torch.Tensor, index: int) -> torch.Tensor:
    """Integer pixels as uint8: those wider than 8 bits are scaled from 16 bits, never clipped."""
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    is_16_bit = image.dtype == torch.uint16
    image = image.to(torch.int32 if is_16_bit else torch.int64)
    lowest, highest = int(image.min()), int(image.max())
    if lowest < 0 or highest > 65535:
        raise UserError(
            f"Image {index} holds integers from {lowest} to {highest}, but only 0 to 255 (8 bits) and 0 to 65535 "
            "(16 bits) are accepted. Rescale its values first."
        )
    return ((image + 128) // 257 if is_16_bit or highest > 255 else image).to(torch.uint8)


def _open_pil(image: Image.Image, index: int) -> np.ndarray:
    """A PIL image of any mode as an array that is RGB in 8 bits, or grey in integers of 8 to 32 bits."""
    if image.mode == "F":
        pixels = np.array(image)
        _check_range(torch.from_numpy(pixels), index)
        # A float image does not tell its range: 0..1, 0..255 and 0..65535 are told apart by the brightest pixel.
        return np.rint(pixels * 255 if pixels.max() <= 1 else pixels).astype(np.int64)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return np.array(image)
    try:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        elif image.mode == "La":
            image = image.convert("LA")
        return np.array(image.convert("RGB"))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"Image {index} of mode {image.mode!r} cannot be made RGB ({error}): leave out its `info['transparency']`."
        ) from error


def _flatten(images: Any, ndim: int) -> list[Any]:
    """One image, a batched array, or lists of them, as a flat list of images with at most `ndim` axes."""
    if isinstance(images, list | tuple):
        return [image for item in images for image in _flatten(item, ndim)]
    is_batch = not isinstance(images, Image.Image) and images.ndim == ndim + 1
    return list(images) if is_batch else [images]


class _CATSegImageProcessing:
    """What both backends share; they add `_resize_to`, the antialiased resize of step 1."""

    _auto_class = "AutoImageProcessor"
    valid_kwargs = CATSegImageProcessorKwargs
    model_input_names = ["pixel_values", "global_pixel_values"]
    default_to_square = False

    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 640, "longest_edge": 2560}
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    sliding_window = True
    window_image_size = 640
    sliding_window_size = 384
    image_size = 384
    do_reduce_labels = False

    def __init__(self, **kwargs: Unpack[CATSegImageProcessorKwargs]):
        refuse_misspelt(kwargs, self.valid_kwargs.__annotations__)
        super().__init__(**kwargs)

    @classmethod
    def from_model_config(cls, config: PreTrainedConfig) -> Self:
        """An image processor that prepares images as a model of this [`CATSegConfig`] takes them."""
        side = config.sliding_window_image_size
        return cls(
            size={"shortest_edge": side, "longest_edge": 4 * side},
            image_size=config.image_size,
            sliding_window=config.sliding_window,
            sliding_window_size=config.sliding_window_size,
            window_image_size=side,
        )

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "auto_map": deepcopy(IMAGE_PROCESSOR_AUTO_MAP)}

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[CATSegImageProcessorKwargs],
    ) -> BatchFeature:
        """
        Prepares images, of any size and aspect ratio, and their label maps for the model.

        Args:
            images (`ImageInput`):
                One image or several: PIL images of any mode, paths or URLs, or arrays and tensors of shape (H, W),
                (H, W, C) or (C, H, W) with 1, 3 or 4 channels (where both ends could be the channels, 3 is preferred
                to 4 to 1, and then the front; `input_data_format` settles it). Alpha is dropped. Integers of 16 bits
                are scaled to 8. Float arrays are 0..255, or 0..1 with `do_rescale=False`; they stay float throughout,
                so that nothing is rounded to grey levels.
            segmentation_maps (`ImageInput`, *optional*):
                One label map per image, of the image's size: PIL (`P` gives its palette indices), path, array or
                tensor, with one channel. Resized with Pillow's nearest to the size of `pixel_values`; the values are
                never changed.
            kwargs:
                See [`CATSegImageProcessorKwargs`] and `ImagesKwargs`. `device` is for the torchvision class.

        Returns:
            `BatchFeature` with
            - `pixel_values` (`torch.FloatTensor` of shape (B, 3, H, W)), normalised; H = W = `window_image_size` with
              the sliding window, `image_size` without, the image's own size with `do_resize=False`;
            - `global_pixel_values` (`torch.FloatTensor` of shape (B, 3, `sliding_window_size`,
              `sliding_window_size`)), only with the sliding window and `do_resize=True`;
            - `labels` (`torch.LongTensor` of shape (B, H, W)), only with `segmentation_maps`.
            Without `return_tensors` each is a list of B tensors.

        Raises:
            `UserError`: for an image that is empty, not finite or not an image; for a label map that is not one
            per image, of another size than its image, in colour or fractional; for a `size` that the sliding
            window, or its absence, does not take; for images of several sizes with `do_resize=False` and
            `return_tensors`; for cropping and padding, which these processors do not do.
        """
        if refused := sorted(name for name in UNSUPPORTED_KWARGS if kwargs.get(name)):
            raise UserError(f"CAT-Seg's image processors neither crop nor pad: leave out {', '.join(refused)}.")
        if kwargs.get("size") is not None and not kwargs.get("sliding_window", self.sliding_window):
            kwargs["size"] = _height_and_width(kwargs["size"])
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _standardize_kwargs(self, **kwargs) -> dict[str, Any]:
        try:
            return super()._standardize_kwargs(**kwargs)
        except (AttributeError, LookupError, TypeError) as error:
            raise UserError(
                f"`size` {kwargs.get('size')!r}, `image_mean` {kwargs.get('image_mean')!r} and `image_std` "
                f"{kwargs.get('image_std')!r} are not accepted together: pass the sides of `size` by their names, and "
                "one number for each of three channels."
            ) from error

    def _validate_preprocess_kwargs(self, **kwargs):
        """Checks arguments of a call, and settings that may come out of a file, by type and by value."""
        accepted = self.valid_kwargs.__annotations__.keys() - {"size"}
        given = {name: kwargs[name] for name in accepted & kwargs.keys() if kwargs[name] is not None}
        validate_typed_dict(self.valid_kwargs, given)
        super()._validate_preprocess_kwargs(**kwargs)
        sides = {name: kwargs[name] for name in ("window_image_size", "sliding_window_size", "image_size")}
        sides |= {f"size[{name!r}]": side for name, side in dict(kwargs["size"] or {}).items()}
        for name, side in sides.items():
            if not isinstance(side, int) or not 1 <= side <= MAX_SIDE:
                raise UserError(f"`{name}` is {side!r}, but a number of pixels from 1 to {MAX_SIDE} is needed.")
        for name in ("image_mean", "image_std"):
            if kwargs["do_normalize"] and np.size(kwargs[name]) not in (1, 3):
                raise UserError(f"`{name}` is {kwargs[name]!r}, but a number for each of three channels is needed.")

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Loads paths and URLs. Local files keep their mode, unlike in transformers, which would clip 16 bits to
        white and turn label maps into colours."""
        if isinstance(image_url_or_urls, str | os.PathLike) and os.path.isfile(image_url_or_urls):
            return open_image(image_url_or_urls)
        try:
            return super().fetch_images(image_url_or_urls)
        except TypeError as error:
            raise UserError(
                f"An image of type {type(image_url_or_urls).__name__} was given, but paths, URLs, PIL images, arrays "
                "and tensors are accepted, one or a list of them."
            ) from error

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = True,
        input_data_format: str | ChannelDimension | None = None,
        device: "str | torch.device | None" = None,
        index: int = 0,
        **kwargs,
    ) -> torch.Tensor:
        """
        One image as an RGB tensor of shape (3, H, W): uint8 in 0..255, or float32 in the range that it came in.

        `index` is the image's place in the batch, for the errors; see `preprocess` for the other arguments.
        """
        if isinstance(image, Image.Image):
            image = _open_pil(image, index) if do_convert_rgb else np.array(image)
            input_data_format = ChannelDimension.LAST
        image = _to_tensor(image).to(device)
        shape = tuple(image.shape)
        if image.ndim == 2:
            image, input_data_format = image[None], ChannelDimension.FIRST
        if image.ndim != 3 or 0 in shape:
            raise UserError(
                f"Image {index} has shape {shape}, but at least one pixel is needed, in shape (H, W), (H, W, C) or "
                "(C, H, W). Leave it out or repair it."
            )
        if input_data_format is None:
            ends = [(c, axis) for c in (3, 4, 1) for axis in (0, 2) if shape[axis] == c]
            input_data_format = ChannelDimension.LAST if ends and ends[0][1] == 2 else ChannelDimension.FIRST
            if len(ends) == 2:
                layout = "(H, W, C)" if input_data_format == ChannelDimension.LAST else "(C, H, W)"
                logger.warning_once(
                    f"An image of shape {shape} may have its channels first or last and is taken as {layout}: pass "
                    "`input_data_format`, or a PIL image, if that is wrong."
                )
        if ChannelDimension(input_data_format) == ChannelDimension.LAST:
            image = image.permute(2, 0, 1)
        if image.shape[0] not in ((1, 3, 4) if do_convert_rgb else (3,)):
            raise UserError(
                f"Image {index} has shape {shape} and so {image.shape[0]} channels, but "
                f"{'1, 3 or 4 are' if do_convert_rgb else '3 without `do_convert_rgb` are'} accepted. Pass it as RGB."
            )
        if image.is_floating_point():
            image = image.float()
            _check_range(image, index)
            if kwargs.get("do_rescale") and image.max() <= 1:
                logger.warning_once(
                    "A float image with values of at most 1 is being rescaled by `rescale_factor`: pass "
                    "`do_rescale=False` if its values are 0 to 1."
                )
        else:
            image = _to_8_bit(image, index)
        return image[:3].expand(3, -1, -1).contiguous()

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        images = _flatten(self.fetch_images(images), ndim=3)
        if not images:
            raise UserError("No images were given: an empty list is not accepted, pass at least one image.")
        data: dict[str, list[torch.Tensor]] = {}
        sizes = []
        for index, image in enumerate(images):
            image = self.process_image(image, index=index, **kwargs)
            sizes.append(tuple(image.shape[-2:]))
            for name, view in self._preprocess(image, **kwargs).items():
                data.setdefault(name, []).append(view)
        if segmentation_maps is not None:
            labels = self._prepare_labels(segmentation_maps, sizes, data["pixel_values"])
            data["labels"] = [_reduce_labels(label) for label in labels] if kwargs["do_reduce_labels"] else labels
        if return_tensors is None:
            return BatchFeature(data)
        if len({view.shape for view in data["pixel_values"]}) > 1:
            raise UserError(
                f"Images of sizes {sorted(set(sizes))} (height, width) cannot make one batch without a resize: pass "
                "`do_resize=True`, `return_tensors=None`, or images of one size."
            )
        return BatchFeature({name: torch.stack(views) for name, views in data.items()}, tensor_type=return_tensors)

    def _preprocess(
        self,
        image: torch.Tensor,
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | tuple[float, ...],
        image_std: float | tuple[float, ...],
        sliding_window: bool,
        window_image_size: int,
        sliding_window_size: int,
        image_size: int,
        **kwargs,
    ) -> dict[str, torch.Tensor]:
        """Resized and normalised views of one image (3, H, W): steps 1 to 3."""
        sizes = {}
        if do_resize and sliding_window:
            if not size.shortest_edge:
                raise UserError(
                    f"`size` is {dict(size)}, but `shortest_edge` (and, if wanted, `longest_edge`) is needed for the "
                    "sliding window: pass for example {'shortest_edge': 640, 'longest_edge': 2560}."
                )
            resized_size = get_resized_size(*image.shape[-2:], size.shortest_edge, size.longest_edge)
            image = self._resize_to(image, resized_size, resample)
            sizes = {"pixel_values": (window_image_size,) * 2, "global_pixel_values": (sliding_window_size,) * 2}
        elif do_resize:
            sizes = {"pixel_values": (size.height or image_size, size.width or image_size)}
        views = {name: _resize_bilinear(image, size) for name, size in sizes.items()}
        views = views or {"pixel_values": image.float()}
        for name, view in views.items():
            if do_rescale:
                view = view * rescale_factor
            if do_normalize:
                mean, std = (torch.tensor(x, device=view.device).view(-1, 1, 1) for x in (image_mean, image_std))
                view = (view - mean) / std
            views[name] = view
        return views

    def _prepare_labels(
        self, segmentation_maps: ImageInput, sizes: list[tuple[int, int]], pixel_values: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Label maps as int64 tensors of shape (H, W), resized to their `pixel_values`."""
        maps = self.fetch_images(segmentation_maps)
        if not isinstance(maps, list | Image.Image):
            # With one image, three axes are one map with a channel axis, not a batch of maps.
            maps = list(maps) if maps.ndim == 4 or (maps.ndim == 3 and len(sizes) > 1) else [maps]
        maps = _flatten(maps, ndim=3)
        if len(maps) != len(sizes):
            raise UserError(
                f"{len(maps)} segmentation maps were given for {len(sizes)} images: pass one map per image."
            )
        labels = []
        for index, (label, size, pixels) in enumerate(zip(maps, sizes, pixel_values, strict=True)):
            label = _to_tensor(np.array(label) if isinstance(label, Image.Image) else label)
            shape = tuple(label.shape)
            if label.ndim == 3:
                label = label[0] if shape[0] == 1 else label[..., 0] if shape[-1] == 1 else label
            if label.ndim != 2:
                raise UserError(
                    f"Segmentation map {index} has shape {shape}, but one class index per pixel is accepted, in shape "
                    "(H, W): turn colours into class indices first."
                )
            if tuple(label.shape) != size:
                raise UserError(
                    f"Segmentation map {index} has size {tuple(label.shape)} (height, width), but its image has size "
                    f"{size}: pass maps of the size of their images."
                )
            # frac() is not 0 for NaN and infinity either.
            if label.is_floating_point() and (label.double().frac() != 0).any():
                raise UserError(
                    f"Segmentation map {index} holds values that are not whole numbers, but class indices are "
                    "accepted only: pass integers."
                )
            label = label.to(pixels.device, torch.int64)
            rows, columns = (
                _nearest_source(old, new).to(pixels.device) for old, new in zip(size, pixels.shape[-2:], strict=True)
            )
            labels.append(label[rows][:, columns])
        return labels

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: "list[tuple[int, int]] | torch.Tensor | None" = None,
        return_segmentation_scores: bool = False,
    ) -> "list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]":
        """
        Turns the model's logits into label maps: the probabilities `sigmoid(logits)`, not the logits, are resized to
        the image (step 6 of the evaluation), then the most probable class is taken, the first one of several.

        Memory stays bounded for any number of classes, unless the scores are asked for.

        Args:
            outputs:
                The model's output, with `logits` of shape (B, T, h, w).
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape (B, 2), *optional*):
                Height and width in pixels of every image. By default nothing is resized.
            return_segmentation_scores (`bool`, *optional*, defaults to `False`):
                Whether to return the resized probabilities too, in 0..1.

        Returns:
            A list of B `torch.LongTensor` of shape (H, W), or, with `return_segmentation_scores=True`, a list of B
            `SemanticSegmentationPostProcessorOutput` with `segmentation` (H, W) and `segmentation_scores` (T, H, W).

        Raises:
            `UserError`: when there is not one target size per image, or one is not two positive integers.
        """
        results = []
        for image_logits, size in _with_target_sizes(outputs.logits, target_sizes):
            if return_segmentation_scores:
                scores = _resize_bilinear(image_logits.float().sigmoid(), size)
                data = {"segmentation": scores.argmax(dim=0), "segmentation_scores": scores}
                results.append(SemanticSegmentationPostProcessorOutput(data=data))
            else:
                results.append(_most_probable_class(image_logits, size)[0])
        return results

    def post_process_most_probable_class(
        self, outputs: Any, target_sizes: "list[tuple[int, int]] | torch.Tensor | None" = None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """
        What `post_process_semantic_segmentation` gives, with the probability of the class that was taken. Memory stays
        bounded for any number of classes.

        Args:
            outputs:
                The model's output, with `logits` of shape (B, T, h, w).
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape (B, 2), *optional*):
                Height and width in pixels of every image. By default nothing is resized.

        Returns:
            A list of B pairs: the classes, a `torch.LongTensor` of shape (H, W), and their probabilities, a
            `torch.FloatTensor` of shape (H, W) in 0..1.

        Raises:
            `UserError`: when there is not one target size per image, or one is not two positive integers.
        """
        pairs = _with_target_sizes(outputs.logits, target_sizes)
        return [_most_probable_class(image_logits, size) for image_logits, size in pairs]


def _with_target_sizes(
    logits: torch.Tensor, target_sizes: "list[tuple[int, int]] | torch.Tensor | None"
) -> list[tuple[torch.Tensor, tuple[int, int]]]:
    """Every image's logits (T, h, w) and the size (height, width) that is wanted of it."""
    if target_sizes is None:
        target_sizes = [tuple(logits.shape[-2:])] * len(logits)
    elif isinstance(target_sizes, torch.Tensor):
        target_sizes = target_sizes.tolist()
    if len(target_sizes) != len(logits):
        raise UserError(
            f"{len(target_sizes)} target sizes were given for {len(logits)} images in the logits: pass one "
            "(height, width) per image."
        )
    return list(zip(logits, map(_check_target_size, target_sizes), strict=True))


def _check_target_size(size: Any) -> tuple[int, int]:
    try:
        height, width = (as_index(side) for side in size)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise UserError(f"The target size {size!r} is not accepted: pass (height, width), two positive integers.")
    return height, width


def _most_probable_class(logits: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Arg max over T of the probabilities (T, h, w) resized to `size`, and its probability, a few classes at a
    time."""
    logits = logits.detach()
    pixels = size[0] * size[1] + 2 * logits.shape[-2] * logits.shape[-1]
    best = torch.full(size, -1.0, device=logits.device)
    segmentation = torch.zeros(size, dtype=torch.int64, device=logits.device)
    if logits.device.type == "cpu":
        possible, max_bytes = _possible_classes(logits), _MAX_CPU_CHUNK_BYTES
    else:  # would have to be waited for, which costs more than it saves
        possible, max_bytes = torch.arange(len(logits), device=logits.device), _MAX_CHUNK_BYTES
    # The resize rounds a class by itself differently, so that there are at least two in every chunk.
    max_classes = max(3, max_bytes // (4 * pixels))
    for indices in possible.tensor_split(-(-len(possible) // max_classes)):
        # The first of equal classes, here as in the comparison with those before.
        probabilities = logits[indices].float().sigmoid() * _PROBABILITY_SCALE
        scores, places = _resize_bilinear(probabilities, size).max(dim=0)
        is_better = scores > best
        segmentation = torch.where(is_better, indices[places], segmentation)
        best = torch.where(is_better, scores, best)
    return segmentation, best / _PROBABILITY_SCALE


def _possible_classes(logits: torch.Tensor) -> torch.Tensor:
    """
    Indices of the classes that may be the most probable one somewhere, whatever size the probabilities of the logits
    (T, h, w) are resized to. Between four pixels, probabilities are a weighted mean of those at the pixels, with one
    set of weights for all classes: a class loses there if at each pixel it is below the mean of the four winners.
    """
    rows, columns = (torch.arange(side + 1).clamp(max=side - 1) for side in logits.shape[1:])
    corners = [(i, j) for i in (rows[:-1, None], rows[1:, None]) for j in (columns[:-1], columns[1:])]
    winner = logits.max(dim=0).indices
    winners = torch.stack([winner[corner] for corner in corners])
    means = torch.stack([logits[(winners, *corner)].double().sigmoid().mean(dim=0) for corner in corners])
    to_reach = (means * (1 - _ROUNDING) - torch.finfo(torch.float32).tiny).clamp(min=0).logit().float()
    loses = []
    for chunk in logits.split(max(1, _MAX_CELLS // winner.numel())):
        values = F.pad(chunk.float(), (0, 1, 0, 1), mode="replicate")
        at_corners = (values[:, :-1, :-1], values[:, :-1, 1:], values[:, 1:, :-1], values[:, 1:, 1:])
        lead = reduce(torch.maximum, map(torch.sub, at_corners, to_reach))
        loses.append(lead.flatten(1).amax(dim=1) < 0)
    return torch.cat(loses).logical_not().nonzero()[:, 0]


class CATSegImageProcessorPil(_CATSegImageProcessing, PilBackend):
    """
    CAT-Seg image processor that needs Pillow and torch only, and follows the evaluation protocol to the grey level.

    Args:
        kwargs: See [`CATSegImageProcessorKwargs`] and `ImagesKwargs`; the defaults are the class's attributes.
    """

    def process_image(self, image: ImageInput, device: "str | torch.device | None" = None, **kwargs) -> torch.Tensor:
        return super().process_image(image, device="cpu", **kwargs)

    def _resize_to(self, image: torch.Tensor, size: tuple[int, int], resample: PILImageResampling) -> torch.Tensor:
        # Pillow resizes single channels both as uint8 and as float32.
        channels = [Image.fromarray(channel.numpy()).resize(size[::-1], resample) for channel in image.detach()]
        return torch.from_numpy(np.stack(channels))


class CATSegImageProcessor(_CATSegImageProcessing, TorchvisionBackend):
    """
    CAT-Seg image processor on torchvision: takes `device=`, and differs from Pillow by at most one grey level.

    Args:
        kwargs: See [`CATSegImageProcessorKwargs`] and `ImagesKwargs`; the defaults are the class's attributes.

    Raises:
        `ImportError`: when torchvision is not installed; [`CATSegImageProcessorPil`] works without.
    """

    def __init__(self, **kwargs: Unpack[CATSegImageProcessorKwargs]):
        requires_backends(self, ["torch", "torchvision"])
        super().__init__(**kwargs)

    def _resize_to(self, image: torch.Tensor, size: tuple[int, int], resample: PILImageResampling) -> torch.Tensor:
        return self.resize(image, SizeDict(height=size[0], width=size[1]), resample=resample)


__all__ = ["CATSegImageProcessor", "CATSegImageProcessorPil"]

"""Image processors of CAT-Seg ("CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation", CVPR 2024).

Evaluation looks at an image twice, and so do the processors here:

1. the image is resized on its own grey levels until its shorter side is 640 and its longer side at most 2560;
2. the result of 1 is squeezed to 640 x 640, out of which the model cuts its windows (`pixel_values`);
3. the result of 1 is squeezed to 384 x 384, the view of the whole image (`global_pixel_values`).

Both classes share everything but step 1: Pillow does it in `CATSegImageProcessorPil`, torchvision (on any device) in
`CATSegImageProcessor`. They differ by at most one grey level there.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
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

from .bands_catseg import Band, join_bands, label_map
from .errors import UserError, refuse_misspelt
from .guided_upsampling_catseg import check_upsampling, most_probable_guided_bands
from .image_io_catseg import open_image
from .image_pixels_catseg import check_value_range, flatten_images, rgb_pixels
from .label_maps_catseg import open_label_maps, prepare_label_map, reduce_labels
from .post_processing_catseg import is_large, most_probable_bands, with_target_sizes
from .remote_code_catseg import IMAGE_PROCESSOR_AUTO_MAP
from .resizing_catseg import get_resized_size
from .tensor_ops_catseg import resize_bilinear, shrink_bilinear


logger = logging.get_logger(__name__)

MAX_SIDE = 2**14

UNSUPPORTED_KWARGS = ("crop_size", "do_center_crop", "do_pad", "pad_size")


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
        value_range (`tuple[float, float]`, *optional*):
            The stored values that become black and white, for images that use another part of their type's range:
            reflectances of 0 to 3000, or cameras of 12 bits, in files of 16. What lies outside is cut off. By default
            integers of 8 bits are 0..255 and those of 16 bits 0..65535.
        do_reduce_labels (`bool`, *optional*, defaults to `False`):
            Whether the ids of `segmentation_maps` begin at 1, and 0 stands for no class: 0 becomes 255 and every other
            id one less, but 255 stays.
    """

    sliding_window: bool
    window_image_size: int
    sliding_window_size: int
    image_size: int
    value_range: Any  # checked by value: two numbers or None
    do_reduce_labels: bool


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


def _bands(logits: torch.Tensor, size: tuple[int, int], guide: torch.Tensor | None, index: int) -> Iterator[Band]:
    """The most probable classes, and their probabilities, of the image at a place in the batch."""
    if guide is None:
        return most_probable_bands(logits, size)
    if tuple(guide.shape[1:]) != tuple(size):
        raise UserError(
            f"Image {index} has size {tuple(guide.shape[1:])} (height, width), but its target size is {tuple(size)}: "
            "guided upsampling follows an image at its own size, pass that as the target size, or leave it out."
        )
    return most_probable_guided_bands(logits, guide)


def _resize_image(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return resize_bilinear(image.float()[None], size)[0]


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
    value_range = None
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
        accepted = self.valid_kwargs.__annotations__.keys() - {"size", "value_range"}
        given = {name: kwargs[name] for name in accepted & kwargs.keys() if kwargs[name] is not None}
        validate_typed_dict(self.valid_kwargs, given)
        super()._validate_preprocess_kwargs(**kwargs)
        if kwargs["value_range"] is not None:
            check_value_range(kwargs["value_range"])
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

    def _open_and_process_image(
        self, image: ImageInput, value_range: tuple[float, float] | None, **kwargs
    ) -> torch.Tensor:
        if isinstance(image, str | os.PathLike) and os.path.isfile(image):
            return self.process_image(open_image(image, value_range=value_range), **kwargs)
        return self.process_image(self.fetch_images(image), value_range=value_range, **kwargs)

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = True,
        input_data_format: str | ChannelDimension | None = None,
        device: "str | torch.device | None" = None,
        index: int = 0,
        value_range: tuple[float, float] | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        One image as an RGB tensor of shape (3, H, W): uint8 in 0..255, or float32 in the range that it came in.

        `index` is the image's place in the batch, for the errors; see `preprocess` for the other arguments.
        """
        return rgb_pixels(
            image,
            f"Image {index}",
            value_range=value_range,
            do_convert_rgb=do_convert_rgb,
            input_data_format=input_data_format,
            do_rescale=kwargs.get("do_rescale"),
            device=device,
        )

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        images = flatten_images(images, ndim=3)
        if not images:
            raise UserError("No images were given: an empty list is not accepted, pass at least one image.")
        data: dict[str, list[torch.Tensor]] = {}
        sizes = []
        for index, image in enumerate(images):
            image = self._open_and_process_image(image, index=index, **kwargs)
            sizes.append(tuple(image.shape[-2:]))
            for name, view in self._preprocess(image, **kwargs).items():
                data.setdefault(name, []).append(view)
        if segmentation_maps is not None:
            labels = self._prepare_labels(segmentation_maps, sizes, data["pixel_values"])
            data["labels"] = [reduce_labels(label) for label in labels] if kwargs["do_reduce_labels"] else labels
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
        resize = shrink_bilinear if is_large(image.shape[-2:]) else _resize_image
        views = {name: resize(image, size) for name, size in sizes.items()}
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
        maps = self.fetch_images(open_label_maps(segmentation_maps))
        if not isinstance(maps, list | Image.Image):
            # With one image, three axes are one map with a channel axis, not a batch of maps.
            maps = list(maps) if maps.ndim == 4 or (maps.ndim == 3 and len(sizes) > 1) else [maps]
        maps = flatten_images(maps, ndim=3)
        if len(maps) != len(sizes):
            raise UserError(
                f"{len(maps)} segmentation maps were given for {len(sizes)} images: pass one map per image."
            )
        return [
            prepare_label_map(label, index, size, pixels)
            for index, (label, size, pixels) in enumerate(zip(maps, sizes, pixel_values, strict=True))
        ]

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: "list[tuple[int, int]] | torch.Tensor | None" = None,
        return_segmentation_scores: bool = False,
        upsampling: str = "bilinear",
        images: ImageInput | None = None,
    ) -> "list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]":
        """
        Turns the model's logits into label maps: the probabilities `sigmoid(logits)`, not the logits, are resized to
        the image (step 6 of the evaluation), then the most probable class is taken, the first one of several.

        Memory stays bounded for any number of classes and, but for the label map itself, for any size of the image,
        unless the scores are asked for.

        Args:
            outputs:
                The model's output, with `logits` of shape (B, T, h, w).
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape (B, 2), *optional*):
                Height and width in pixels of every image. By default nothing is resized, or with `images` to their
                sizes.
            return_segmentation_scores (`bool`, *optional*, defaults to `False`):
                Whether to return the probabilities too, in 0..1 and resized bilinearly whatever the `upsampling`.
            upsampling (`str`, *optional*, defaults to `"bilinear"`):
                `"guided"` makes the classes' borders follow those in the images.
            images (`ImageInput`, *optional*):
                With `upsampling="guided"` the images in their own sizes, as `preprocess` took them.

        Returns:
            A list of B `torch.LongTensor` of shape (H, W), or, with `return_segmentation_scores=True`, a list of B
            `SemanticSegmentationPostProcessorOutput` with `segmentation` (H, W) and `segmentation_scores` (T, H, W).

        Raises:
            `UserError`: when there is not one target size per image, or one is not two positive integers; for an
            upsampling that does not exist, and for `"guided"` without one image for each, of the target size.
        """
        guides = None
        if check_upsampling(upsampling) == "guided":
            guides = self._guides(images, len(outputs.logits))
            target_sizes = [guide.shape[1:] for guide in guides] if target_sizes is None else target_sizes
        results = []
        for index, (image_logits, size) in enumerate(with_target_sizes(outputs.logits, target_sizes)):
            guide = None if guides is None else guides[index]
            if return_segmentation_scores:
                scores = resize_bilinear(image_logits.float().sigmoid()[None], size)[0]
                segmentation = scores.argmax(dim=0)
                if guide is not None:
                    segmentation = label_map(_bands(image_logits, size, guide, index), size)
                data = {"segmentation": segmentation, "segmentation_scores": scores}
                results.append(SemanticSegmentationPostProcessorOutput(data=data))
            else:
                results.append(label_map(_bands(image_logits, size, guide, index), size))
        return results

    def _guides(self, images: ImageInput | None, count: int) -> list[torch.Tensor]:
        """Images of any kind as guides (3, H, W)."""
        images = [] if images is None else flatten_images(images, ndim=3)
        if len(images) != count:
            raise UserError(
                f'{len(images)} images were given for {count} in the logits, but `upsampling="guided"` follows the '
                "borders of each: pass `images`, as they were given to the processor."
            )
        settings = {"do_convert_rgb": self.do_convert_rgb, "do_rescale": self.do_rescale}
        guides = [
            self._open_and_process_image(image, value_range=self.value_range, index=index, **settings)
            for index, image in enumerate(images)
        ]
        is_255 = [self.do_rescale and guide.is_floating_point() for guide in guides]
        return [guide / 255 if scale else guide for guide, scale in zip(guides, is_255, strict=True)]

    def post_process_most_probable_class(
        self,
        outputs: Any,
        target_sizes: "list[tuple[int, int]] | torch.Tensor | None" = None,
        guides: Sequence[torch.Tensor] | None = None,
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """
        What `post_process_semantic_segmentation` gives, with the probability of the class that was taken. Memory stays
        bounded for any number of classes.

        Args:
            outputs:
                The model's output, with `logits` of shape (B, T, h, w).
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape (B, 2), *optional*):
                Height and width in pixels of every image. By default nothing is resized.
            guides (`Sequence[torch.Tensor]`, *optional*):
                For guided upsampling each image in its target size (3, H, W), RGB, uint8 or float in 0..1.

        Returns:
            A list of B pairs: the classes, a `torch.LongTensor` of shape (H, W), and their probabilities, a
            `torch.FloatTensor` of shape (H, W) in 0..1.

        Raises:
            `UserError`: when there is not one target size per image, one is not two positive integers, or a guide is
            of another size.
        """
        pairs = with_target_sizes(outputs.logits, target_sizes)
        guides = [None] * len(pairs) if guides is None else guides
        return [
            join_bands(_bands(image_logits, size, guide, index), size)
            for index, ((image_logits, size), guide) in enumerate(zip(pairs, guides, strict=True))
        ]


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

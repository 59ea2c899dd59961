"""What CAT-Seg's models refuse, and what they warn of."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.utils import TransformersKwargs, logging

from .configuration_catseg import CATSegConfig
from .errors import UserError
from .tensor_ops_catseg import all_true


logger = logging.get_logger(__name__)


def check_kwargs(kwargs: TransformersKwargs):
    """Raises a TypeError for an argument that no model of transformers takes."""
    unknown = [name for name in kwargs if name not in TransformersKwargs.__annotations__]
    if unknown:
        raise TypeError(f"CAT-Seg takes no argument {', '.join(map(repr, unknown))}.")


def check_replica(model: nn.Module, **vocabulary: torch.Tensor | None):
    """Refuses a vocabulary that was given to a replica of `torch.nn.DataParallel`, which has only some of its
    classes."""
    given = [f"`{name}`" for name, tensor in vocabulary.items() if tensor is not None]
    if given and getattr(model, "_is_replica", False):
        raise ValueError(
            f"`torch.nn.DataParallel`, which `Trainer` uses where a process sees several GPUs, gives each GPU only a "
            f"part of the classes of {' and '.join(given)}: start a process for each GPU with `torchrun` or "
            "`accelerate launch` (DistributedDataParallel), or leave the vocabulary out and give it to the model "
            "before, `model.set_vocabulary(labels, input_ids)`."
        )


def check_labels_of_vocabulary(labels: Sequence[str], num_classes: int):
    """Refuses the names of `num_classes` classes if one is no string or stands for two of them."""
    if others := [label for label in labels if not isinstance(label, str)]:
        raise ValueError(f"Labels must be strings, got {others[:10]}.")
    if duplicates := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"Every label must be given once, but {duplicates} were given more often.")
    if len(labels) != num_classes:
        raise ValueError(f"Got {len(labels)} labels and the prompts of {num_classes} classes: give one for each.")


def check_input_ids(input_ids: torch.LongTensor, config: CATSegConfig) -> torch.LongTensor:
    """`input_ids` as `(num_classes, num_prompts, length)`."""
    text_config = config.clip_config.text_config
    num_prompts, context_length = config.num_prompts, text_config.max_position_embeddings
    shape = tuple(input_ids.shape)
    if input_ids.ndim == 2:
        input_ids = input_ids[:, None]
    if input_ids.ndim != 3 or 0 in shape or input_ids.shape[1] != num_prompts or shape[-1] > context_length:
        raise ValueError(
            f"`input_ids` of shape {shape} must have the shape (num_classes, {num_prompts}, length)"
            f"{' or (num_classes, length)' if num_prompts == 1 else ''}, with at least one class, "
            f"`config.num_prompts` = {num_prompts} prompts for each and at most {context_length} tokens."
        )
    # Elsewhere it would have to be waited for.
    is_here = input_ids.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_here and not 0 <= input_ids.min() <= input_ids.max() < text_config.vocab_size:
        raise ValueError(
            f"`input_ids` has ids from {int(input_ids.min())} to {int(input_ids.max())}, but the text tower knows "
            f"0 to {text_config.vocab_size - 1}: make them with the model's processor."
        )
    return input_ids


def check_text_embeds(text_embeds: torch.FloatTensor, config: CATSegConfig):
    """Refuses text features that are not `(num_classes, num_prompts, projection_dim)`."""
    expected = (config.num_prompts, config.clip_config.projection_dim)
    if text_embeds.ndim != 3 or text_embeds.shape[0] == 0 or tuple(text_embeds.shape[1:]) != expected:
        raise ValueError(
            f"`text_embeds` of shape {tuple(text_embeds.shape)} must have the shape (num_classes, "
            f"{expected[0]}, {expected[1]}): num_classes >= 1, `config.num_prompts` and CLIP's projection size."
        )


def check_class_limit(max_classes_per_image: int | None):
    """Refuses a number of classes that is none; "auto" is none of a CATSegModel, which has no decoder to ask."""
    if max_classes_per_image == "auto":
        raise UserError(
            "`max_classes_per_image='auto'` asks the decoder which classes can still win, and a `CATSegModel` has "
            "none: use `CATSegForSemanticSegmentation`, or give a number of classes."
        )
    if max_classes_per_image is not None and not (
        isinstance(max_classes_per_image, int) and max_classes_per_image >= 1
    ):
        raise ValueError(
            f"`max_classes_per_image` must be an integer of at least 1, got {max_classes_per_image}, or 'auto'."
        )


def check_only_logits(output_hidden_states: bool | None, output_attentions: bool | None, config: CATSegConfig):
    """Refuses hidden states and attentions of views that select classes of their own, each another number."""
    hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
    attentions = config.output_attentions if output_attentions is None else output_attentions
    if hidden_states or attentions:
        raise UserError(
            "With `max_classes_per_image='auto'` every layer and view has other classes, so there are no "
            "`hidden_states` and `attentions` of all: give a number of classes, or ask for neither."
        )


def check_class_mask(class_mask: torch.Tensor, num_classes: int, class_limit: int, config: CATSegConfig):
    """Refuses a mask that is not one boolean for each row of the text features, and rows that a class cut would take
    for classes."""
    if class_mask.dtype != torch.bool or tuple(class_mask.shape) != (num_classes,):
        raise ValueError(
            f"`class_mask` of shape {tuple(class_mask.shape)} and type {class_mask.dtype} must be booleans of the "
            f"shape (num_classes,) = ({num_classes},), as `pad_classes` gives them."
        )
    if config.attention_type != "linear":
        raise ValueError(
            f"`class_mask` needs `config.attention_type` 'linear', but it is {config.attention_type!r}: leave it out, "
            "and give the text features of the classes alone."
        )
    if class_limit and num_classes > class_limit:
        raise ValueError(
            f"The text features have {num_classes} rows, but the model aggregates {class_limit} classes at most "
            "(`config.num_class_tokens`, `max_classes_per_image`): fill them up to no more than that, or leave "
            "`class_mask` out."
        )


def check_pixel_values(pixel_values: torch.FloatTensor):
    """Refuses pixels that are not `(batch_size, 3, height, width)`."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or 0 in pixel_values.shape:
        raise ValueError(
            f"`pixel_values` of shape {tuple(pixel_values.shape)} must have the shape (batch_size, 3, height, "
            "width), with at least one image and one pixel."
        )


def check_finite(pixel_values: torch.FloatTensor):
    """Refuses pixels that are not finite. The host waits for an accelerator."""
    if not pixel_values.isfinite().all():
        index = int((~pixel_values.isfinite()).flatten(1).any(dim=1).nonzero()[0])
        raise ValueError(
            f"Image {index} of `pixel_values` has NaN or infinite values: check how it was read and normalised."
        )


def check_views(
    pixel_values: torch.FloatTensor,
    global_pixel_values: torch.FloatTensor | None,
    sliding_window: bool,
    config: CATSegConfig,
):
    """Refuses views that are no images, or not of the same ones, and warns if they were prepared for the sliding
    window and it is off, or the other way round."""
    if not torch.compiler.is_compiling():
        _compare_views(pixel_values, global_pixel_values, sliding_window, config.sliding_window_image_size)
    check_pixel_values(pixel_values)
    if not sliding_window or global_pixel_values is None:
        return
    check_pixel_values(global_pixel_values)
    if global_pixel_values.shape[0] != pixel_values.shape[0]:
        raise ValueError(
            f"Got {pixel_values.shape[0]} images in `pixel_values` and {global_pixel_values.shape[0]} in "
            "`global_pixel_values`: give the global view of every image."
        )


def _compare_views(
    pixel_values: torch.Tensor, global_pixel_values: torch.Tensor | None, sliding_window: bool, side: int
):
    if not sliding_window and global_pixel_values is not None:
        logger.warning_once(
            "The images were prepared for the sliding window (`global_pixel_values` are given), but the model "
            "looks at them once: pass `sliding_window=False` to the processor, or `True` to the model."
        )
    if sliding_window and global_pixel_values is None and pixel_values.shape[-2:] != (side, side):
        logger.warning_once(
            f"The model averages windows of images of {side} x {side} pixels, but these are "
            f"{' x '.join(map(str, pixel_values.shape[-2:]))}, so they are resized: pass `sliding_window=True` to "
            "the processor, or `False` to the model."
        )


def check_labels(labels: torch.Tensor, batch_size: int, class_mask: torch.Tensor | None):
    """Refuses label maps that are not integers `(batch_size, height, width)`, or of classes and rows that are none."""
    if class_mask is not None:
        raise ValueError(
            "Got both `labels` and `class_mask`, but the loss is a mean over all rows of the text features: give "
            "those of the classes alone."
        )
    is_map = labels.ndim == 3 and 0 not in labels.shape
    if not is_map or labels.shape[0] != batch_size or labels.is_floating_point():
        raise ValueError(
            f"`labels` of shape {tuple(labels.shape)} and type {labels.dtype} must be integers of the shape "
            f"(batch_size = {batch_size}, height, width)."
        )


def check_all_values(
    pixel_values: torch.Tensor,
    global_pixel_values: torch.Tensor,
    labels: torch.Tensor | None,
    num_classes: int,
    config: CATSegConfig,
):
    """Refuses pixels that are not finite and labels out of range. The host waits once, and looks for what is wrong
    only if something is."""
    ignore_index = config.semantic_loss_ignore_index
    views = [pixel_values] if global_pixel_values is pixel_values else [pixel_values, global_pixel_values]
    conditions = [view.isfinite().all() for view in views]
    if labels is not None:
        if 0 <= ignore_index < num_classes:
            logger.warning_once(
                f"`config.semantic_loss_ignore_index` ({ignore_index}) is one of the {num_classes} classes: its "
                "pixels count as pixels of no class. If that is not meant, choose a value that is none of "
                "them, for instance 65535, there and in `labels`."
            )
        out_of_range = ((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)
        conditions.append(~out_of_range.any())
    if all_true(conditions):
        return
    for view in views:
        check_finite(view)
    values = labels[out_of_range].unique().tolist()
    raise ValueError(
        f"`labels` has the values {values[:10]}, but there are {num_classes} classes: label ids must lie in "
        f"[0, {num_classes - 1}], or be `config.semantic_loss_ignore_index` ({ignore_index}) for pixels of no "
        "class."
    )

"""The docstrings of the models' `forward`, which share most of their arguments."""

from collections.abc import Callable
from typing import TypeVar


Function = TypeVar("Function", bound=Callable)

VOCABULARY_ARGUMENTS = """\
    input_ids (`torch.LongTensor` of shape `(num_classes, length)` or `(num_classes, num_prompts, length)`):
        Prompts of ONE vocabulary for the whole batch, at most 77 tokens each. Without them, and without `text_embeds`,
        the model's own vocabulary is used. `torch.nn.DataParallel` would split the classes: there it is the only one.
    attention_mask (`torch.LongTensor`, *optional*):
        Mask of `input_ids`, in their shape. Not needed for prompts that are padded at their end.
    text_embeds (`torch.FloatTensor` of shape `(num_classes, num_prompts, projection_dim)`, *optional*):
        Normalised text features in place of `input_ids`, as `get_text_embeds` gives them."""

MODEL_FORWARD = f"""
Args:
    pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
        Normalised pixels of images of any size; they are resized to `config.image_size`, whatever their aspect ratio.
{VOCABULARY_ARGUMENTS}
    output_hidden_states (`bool`, *optional*):
        Whether to return the cost volume's tokens before and after every aggregation layer.
    output_attentions (`bool`, *optional*):
        Whether to return the spatial attention weights (with `attn_implementation="eager"`).
    max_classes_per_image (`int`, *optional*):
        Of more classes only so many are aggregated for each image, those most similar to it, padded with tokens as in
        training; `class_indices` tells which. Defaults to `config.max_classes_per_image` at evaluation and to no limit
        while training.
    class_mask (`torch.BoolTensor` of shape `(num_classes,)`, *optional*):
        False where a row of `text_embeds` is no class but fills them up to a fixed number, as [`pad_classes`] does for
        a graph that serves any number of classes: the classes are segmented as without these rows.
    check_values (`bool`, *optional*, defaults to `True`):
        Whether to look for pixels that are not finite, for which the host waits for an accelerator. Compiled code
        never looks.
    class_selection ([`ClassSelection`], *optional*):
        What leaves out the classes that can no longer win of one view, in place of `max_classes_per_image`.

Returns:
    [`CATSegModelOutput`]

Raises:
    ValueError: If an argument has another shape, pixels are not finite, both or (without a vocabulary of the model's
        own) neither of `input_ids` and `text_embeds` are given, or one of them in `torch.nn.DataParallel`.
"""

SEMANTIC_SEGMENTATION_FORWARD = f"""
Args:
    pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
        Normalised pixels of images of any size. The sliding window works on 640 x 640 (as the image processor gives
        them), everything else on `config.image_size`; other sizes are resized, whatever their aspect ratio.
{VOCABULARY_ARGUMENTS}
    global_pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`, *optional*):
        The whole images at the size of one window, for the sliding window's global view. Made from `pixel_values` if
        not given.
    labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
        Class of every pixel, in [0, num_classes) or `config.semantic_loss_ignore_index`, at any size.
    sliding_window (`bool`, *optional*):
        Whether to average overlapping windows and a global view. Defaults to `config.sliding_window` at evaluation and
        to `False` while training.
    output_hidden_states (`bool`, *optional*):
        Whether to return the cost volume's tokens before and after every aggregation layer, each of shape
        `(batch_size, num_classes, size, size, hidden_size)`. With the sliding window, those of the global view.
    output_attentions (`bool`, *optional*):
        Whether to return the spatial attention weights (see [`CATSegModelOutput`]), likewise.
    max_classes_per_image (`int` or `"auto"`, *optional*):
        Of more classes only so many are aggregated for each image, those most similar to it, padded with tokens as in
        training; the others have the logit -100. "auto": those that can still win before the first layer, after each
        layer and before the decoder, by the margins that `config.class_selection` has for these weights; approximate,
        without hidden states and attentions, and no part of a graph. With the sliding window each view has its own.
        Defaults to `config.max_classes_per_image` at evaluation and to no limit while training.
    class_mask (`torch.BoolTensor` of shape `(num_classes,)`, *optional*):
        False where a row of `text_embeds` is no class but fills them up to a fixed number, as [`pad_classes`] does for
        a graph that serves any number of classes: the classes are segmented as without these rows, which have
        the logit -100.
    check_values (`bool`, *optional*, defaults to `True`):
        Whether to look for pixels that are not finite and labels out of range, for which the host waits for an
        accelerator, once. Compiled code never looks.

Returns:
    [`~transformers.modeling_outputs.SemanticSegmenterOutput`] with `logits` of shape `(batch_size, num_classes, h,
    w)`, of which `sigmoid(logits)` are the probabilities in [0, 1]: h and w are four times the side of the feature
    grid, or 640 with the sliding window. Classes cut away (`config.num_class_tokens`, `max_classes_per_image`) have
    the logit -100, or about -87 with the sliding window, which averages probabilities.

Raises:
    ValueError: If an argument has another shape, pixels are not finite, labels are out of range, both or (without a
        vocabulary of the model's own) neither of `input_ids` and `text_embeds` are given, or one of them in
        `torch.nn.DataParallel`.
    UserError: If "auto" has no margins, or those of other weights.
"""


def documented(docstring: str) -> Callable[[Function], Function]:
    """Decorates a function whose docstring stands in this file."""

    def decorate(function: Function) -> Function:
        function.__doc__ = docstring
        return function

    return decorate

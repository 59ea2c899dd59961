"""Vocabularies filled up to a fixed number of classes, so that one graph serves all of them."""

import torch
import torch.nn.functional as F


def pad_classes(text_embeds: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Fills the text features of a vocabulary up to a fixed number of rows. A graph for fixed shapes (`torch.compile`
    with `dynamic=False`, CUDA graphs) then serves every vocabulary of up to that number, and segments it as it is:

    ```python
    padded, class_mask = pad_classes(text_embeds, 256)
    logits = compiled(pixel_values, text_embeds=padded, class_mask=class_mask).logits[:, : len(text_embeds)]
    ```

    Args:
        text_embeds (`torch.FloatTensor` of shape `(T, num_prompts, projection_dim)`): The vocabulary's.
        num_classes (`int`): Rows of the result. All are worked on, so that time and memory are those of so many
            classes.

    Returns:
        `text_embeds` `(num_classes, num_prompts, projection_dim)` with zeros behind the classes, and `class_mask`
        `(num_classes,)`, true for the classes.

    Raises:
        ValueError: If there are more than `num_classes` already.
    """
    missing = num_classes - text_embeds.shape[0]
    if missing < 0:
        raise ValueError(
            f"A vocabulary of {text_embeds.shape[0]} classes cannot be filled up to {num_classes}: give at least its "
            "own number, for instance the next multiple of 64."
        )
    class_mask = torch.arange(num_classes, device=text_embeds.device) < text_embeds.shape[0]
    return F.pad(text_embeds, (0, 0, 0, 0, 0, missing)), class_mask

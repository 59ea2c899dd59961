"""CAT-Seg's text features (section 3.1 of the paper): CLIP's features of prompts, and their reuse for as long as
nothing has changed."""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel

from .tensor_ops_catseg import all_true, independent_chunks


PROMPTS_PER_BATCH = 256


def longest_prompt(clip: CLIPModel, prompts: torch.LongTensor) -> tuple[torch.LongTensor, int]:
    """
    The row `(1,)` of the prompt `(num_prompts_in_all, length)` that ends last, and its tokens up to its end, found as
    CLIP's text model finds it.

    Raises:
        ValueError: If a prompt has no end-of-text token.
    """
    end_of_text = clip.config.text_config.eos_token_id
    if end_of_text == 2:  # CLIP's first configs name a wrong id: there the highest id ends the text
        ends = prompts.argmax(dim=-1)
    else:
        matches = prompts == end_of_text
        ends = matches.int().argmax(dim=-1).masked_fill(~matches.any(dim=-1), prompts.shape[-1])
    last, row = ends.max(dim=0, keepdim=True)
    length = int(last) + 1
    if length > prompts.shape[-1]:
        index = int(row)
        raise ValueError(
            f"Prompt {index} of `input_ids`, {prompts[index].tolist()}, has no end-of-text token ({end_of_text}): "
            "make the ids with the model's processor, which ends every prompt with it."
        )
    return row, length


def encode_prompts(
    clip: CLIPModel, prompts: torch.LongTensor, attention_mask: torch.LongTensor | None = None
) -> torch.FloatTensor:
    """CLIP's text features `(num_prompts_in_all, projection_dim)` of prompts and their mask `(num_prompts_in_all,
    length)`, not normalised."""
    return clip.get_text_features(prompts, attention_mask, return_dict=True).pooler_output


def text_features(
    clip: CLIPModel, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None
) -> torch.FloatTensor:
    """
    CLIP's features of every prompt of a vocabulary (section 3.1), at its end-of-text token.

    Args:
        clip (`CLIPModel`): The CLIP model.
        input_ids (`torch.LongTensor` of shape `(num_classes, num_prompts, length)`): The prompts.
        attention_mask (`torch.LongTensor`, *optional*): Their mask, in the shape of `input_ids` or with the first two
            axes as one.

    Returns:
        `torch.FloatTensor` of shape `(num_classes, num_prompts, projection_dim)`, of norm 1.

    Raises:
        ValueError: If the mask has another shape, or a prompt has no end-of-text token.
    """
    prompts = input_ids.flatten(0, 1)
    if attention_mask is not None and attention_mask.shape not in (prompts.shape, input_ids.shape):
        raise ValueError(
            f"`attention_mask` of shape {tuple(attention_mask.shape)} must have that of the prompts, "
            f"{tuple(prompts.shape)} or {tuple(input_ids.shape)}."
        )
    mask = None if attention_mask is None else attention_mask.reshape(prompts.shape)
    if not torch.compiler.is_compiling():
        # Under the causal mask nothing behind the last end-of-text token counts.
        _, length = longest_prompt(clip, prompts)
        prompts, mask = prompts[:, :length], None if mask is None else mask[:, :length]
    batches = independent_chunks(prompts, 0, prompts.shape[1], PROMPTS_PER_BATCH)
    masks = [None] * len(batches)
    if mask is not None:
        masks = independent_chunks(mask, 0, prompts.shape[1], PROMPTS_PER_BATCH)
    embeds = [encode_prompts(clip, *batch) for batch in zip(batches, masks, strict=True)]
    return F.normalize(torch.cat(embeds), dim=-1).unflatten(0, input_ids.shape[:2])


def count_changes(clip: CLIPModel) -> list[tuple[nn.Parameter, int]]:
    """The text tower's parameters, and how often each was changed in place: without those that are offloaded or made
    in inference mode, of which torch does not count it."""
    parameters = itertools.chain(clip.text_model.parameters(), clip.text_projection.parameters())
    return [(weight, weight._version) for weight in parameters if not (weight.is_meta or weight.is_inference())]


def probe_text_tower(
    clip: CLIPModel, input_ids: torch.LongTensor, longest: tuple[torch.LongTensor, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of all token embeddings, and the features of the longest prompt."""
    row, length = longest
    prompts = input_ids.flatten(0, 1)[:, :length]
    token_embeds = clip.text_model.embeddings.token_embedding(prompts)
    return token_embeds.sum(dim=-1), encode_prompts(clip, prompts.index_select(0, row))


def same_kind(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    """Whether two tensors agree in device, type and shape."""
    if first is None or second is None:
        return first is second
    return (first.device, first.dtype, first.shape) == (second.device, second.dtype, second.shape)


@dataclass
class KeptTextEmbeds:
    """
    The text features of a vocabulary, with what they were made from.

    Args:
        input_ids (`torch.LongTensor` of shape `(num_classes, num_prompts, length)`): The ids of its prompts.
        attention_mask (`torch.LongTensor`, *optional*): Their mask.
        longest (`tuple[torch.LongTensor, int]`): The row `(1,)` of the longest prompt, and its tokens.
        probe (`tuple[torch.Tensor, ...]`): What the text tower then made of them, to tell whether it has changed.
        changes (`list[tuple[nn.Parameter, int]]`): Its parameters, and how often each was changed in place.
        text_embeds (`torch.FloatTensor` of shape `(num_classes, num_prompts, projection_dim)`): The features.
    """

    input_ids: torch.LongTensor
    attention_mask: torch.LongTensor | None
    longest: tuple[torch.LongTensor, int]
    probe: tuple[torch.Tensor, ...]
    changes: list[tuple[nn.Parameter, int]]
    text_embeds: torch.FloatTensor

    @classmethod
    def keep(
        cls,
        clip: CLIPModel,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None,
        text_embeds: torch.FloatTensor,
    ) -> "KeptTextEmbeds":
        """Keeps features that were just made, with copies of what the caller may change."""
        longest = longest_prompt(clip, input_ids.flatten(0, 1))
        return cls(
            input_ids=input_ids.clone(),
            attention_mask=None if attention_mask is None else attention_mask.clone(),
            longest=longest,
            probe=probe_text_tower(clip, input_ids, longest),
            changes=count_changes(clip),
            text_embeds=text_embeds,
        )

    def holds(
        self,
        clip: CLIPModel,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None,
        *conditions: torch.BoolTensor,
    ) -> bool:
        """Whether encoding these ids now would give what is kept, and all of the conditions, each without axes, are
        true."""
        if not (same_kind(self.input_ids, input_ids) and same_kind(self.attention_mask, attention_mask)):
            return False
        changes = count_changes(clip)
        if len(changes) != len(self.changes) or any(
            before is not now or count != new_count
            for (before, count), (now, new_count) in zip(self.changes, changes, strict=True)
        ):
            return False
        probe = probe_text_tower(clip, input_ids, self.longest)
        if not all(map(same_kind, self.probe, probe)):
            return False
        pairs = [(self.input_ids, input_ids), *zip(self.probe, probe, strict=True)]
        if attention_mask is not None:
            pairs.append((self.attention_mask, attention_mask))
        return all_true([*((before == now).all() for before, now in pairs), *conditions])

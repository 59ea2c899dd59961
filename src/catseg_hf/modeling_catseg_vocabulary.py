"""The vocabulary that a CAT-Seg model carries and segments when it is given no other, and its text features."""

from collections.abc import Sequence
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import nn

from .argument_checks_catseg import check_input_ids, check_labels_of_vocabulary, check_text_embeds
from .configuration_catseg import CATSegConfig
from .modeling_catseg_text import KeptTextEmbeds, longest_prompt, text_features
from .repeated_prompts_catseg import warn_of_repeated_prompts
from .tracing_catseg import traces_one_graph


def labels_checksum(labels: Sequence[str]) -> int:
    """A number that tells lists of labels apart, never 0."""
    return crc32("\n".join(labels).encode()) + 1


class CATSegVocabulary(nn.Module):
    """The token ids of the model's own vocabulary, saved with the weights, and a checksum of the labels they spell."""

    def __init__(self, config: CATSegConfig):
        super().__init__()
        context_length = config.clip_config.text_config.max_position_embeddings
        input_ids = torch.zeros(config.num_labels, config.num_prompts, context_length, dtype=torch.long)
        self.input_ids = nn.Buffer(input_ids)
        self.checksum = nn.Buffer(torch.zeros(1, dtype=torch.long))

    def replace(self, labels: Sequence[str], input_ids: torch.LongTensor):
        """
        Takes other labels and the ids `(num_classes, num_prompts, length)` of their prompts.

        Raises:
            ValueError: If the buffers are offloaded, from where they could not be replaced.
        """
        if self.input_ids.is_meta:
            raise ValueError(
                "The model's vocabulary is offloaded, so it cannot be replaced: load the model without "
                "`offload_buffers`, or save it with the other vocabulary first."
            )
        padding = self.input_ids.shape[-1] - input_ids.shape[-1]
        self.input_ids = F.pad(input_ids, (0, padding)).to(self.input_ids.device)
        self.checksum = torch.full_like(self.checksum, labels_checksum(labels))

    def forward(self) -> tuple[torch.LongTensor, torch.LongTensor]:
        """The ids `(num_classes, num_prompts, length)`, and the checksum `(1,)` of their labels: 0 if there are
        none."""
        return self.input_ids, self.checksum


class CATSegVocabularyMixin:
    """What [`CATSegModel`] does with words: its own vocabulary, which can be changed, and the text features of any. It
    has `clip`, and its `vocabulary` is a [`CATSegVocabulary`]."""

    _kept_text_embeds: KeptTextEmbeds | None = None

    def set_vocabulary(self, labels: Sequence[str], input_ids: torch.LongTensor):
        """
        Makes `labels` the classes that are segmented when no others are given, and that `save_pretrained` saves. Warns
        once of labels whose prompts are the same.

        Args:
            labels (`Sequence[str]`): The `num_classes` names, all different; they become `config.id2label`.
            input_ids (`torch.LongTensor` of shape `(num_classes, length)` or `(num_classes, num_prompts, length)`):
                Their prompts, as [`CATSegProcessor`] gives them.

        Raises:
            ValueError: If there are no labels, one is no string, two are equal, `input_ids` do not fit them, or a
                prompt has no end-of-text token. Nothing is changed then.
        """
        labels, input_ids = list(labels), self._to_text_tower(input_ids)
        check_labels_of_vocabulary(labels, input_ids.shape[0])
        longest_prompt(self.clip, input_ids.flatten(0, 1))
        warn_of_repeated_prompts(labels, input_ids)
        self.vocabulary.replace(labels, input_ids)
        self.config.id2label = dict(enumerate(labels))
        self.config.label2id = {label: index for index, label in enumerate(labels)}

    def get_text_embeds(
        self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None
    ) -> torch.FloatTensor:
        """
        CLIP's text features of a vocabulary, at the prompts' end-of-text token.

        Args:
            input_ids (`torch.LongTensor` of shape `(num_classes, length)` or `(num_classes, num_prompts, length)`):
                Prompts of at most 77 tokens, the end-of-text token included.
            attention_mask (`torch.LongTensor`, *optional*): As CLIP's text model takes it, in the shape of
            `input_ids`.

        Returns:
            `torch.FloatTensor` of shape `(num_classes, num_prompts, projection_dim)`, of norm 1.

        Raises:
            ValueError: If a shape does not fit the model, or a prompt has no end-of-text token.
        """
        return text_features(self.clip, self._to_text_tower(input_ids), attention_mask)

    def encode_vocabulary(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        text_embeds: torch.FloatTensor | None = None,
    ) -> torch.FloatTensor:
        """
        The text features that [`~CATSegModel.forward`] uses for these arguments: `text_embeds` themselves, those of
        `input_ids`, or those of the model's own vocabulary.

        At evaluation, without gradients, the features of the last vocabulary are kept. They are used again only if the
        same ids are given and the text tower is the same: torch has counted no change of its weights and, for changes
        that it does not count (`.data`, fused optimizers), the sums of the token embeddings and the longest prompt's
        features have the same bits. This cannot be part of a graph, so compiled code does it between two; a single
        graph (`fullgraph=True`) encodes the vocabulary in every call.
        """
        if text_embeds is not None:
            if input_ids is not None:
                raise ValueError("Got both `input_ids` and `text_embeds`: give the vocabulary in one form only.")
            check_text_embeds(text_embeds, self.config)
            return text_embeds
        checksum = None
        if input_ids is None:
            input_ids, checksum = self.vocabulary()
        if self.training or torch.is_grad_enabled() or traces_one_graph():
            if not torch.compiler.is_compiling():
                self._check_vocabulary(checksum)
            return self.get_text_embeds(input_ids, attention_mask)
        return self._keep_text_embeds(input_ids, attention_mask, checksum)

    @torch.compiler.disable  # whether the kept text features still hold depends on their values
    def _keep_text_embeds(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None,
        checksum: torch.LongTensor | None,
    ) -> torch.FloatTensor:
        input_ids = self._to_text_tower(input_ids)
        kept = self._kept_text_embeds
        conditions = [] if checksum is None else [(checksum == labels_checksum(self.config.label_names)).all()]
        if kept is None or not kept.holds(self.clip, input_ids, attention_mask, *conditions):
            self._check_vocabulary(checksum)
            text_embeds = self.get_text_embeds(input_ids, attention_mask)
            kept = self._kept_text_embeds = KeptTextEmbeds.keep(self.clip, input_ids, attention_mask, text_embeds)
        return kept.text_embeds.clone()  # the caller may change it

    def _check_vocabulary(self, checksum: torch.LongTensor | None):
        """Refuses a vocabulary of the model's own that was not made from its labels."""
        if checksum is None or int(checksum) == labels_checksum(self.config.label_names):
            return
        reason = "`config.id2label` that its prompts were not made from"
        if not checksum:
            reason = "no prompts for its own vocabulary"
        raise ValueError(
            f"The model has {reason}: give `input_ids` or `text_embeds`, or call "
            "`model.set_vocabulary(labels, processor(text=labels).input_ids)` once."
        )

    def _to_text_tower(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        """`input_ids` as `(num_classes, num_prompts, length)`, where the text tower is."""
        input_ids = check_input_ids(input_ids, self.config)
        device = self.get_input_embeddings().weight.device
        return input_ids if device.type == "meta" else input_ids.to(device)  # offloaded: its hook takes the ids along

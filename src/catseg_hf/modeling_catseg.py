"""CAT-Seg (Cho et al., "CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation", CVPR 2024).

The paper's parts have files of their own: dense CLIP features and the cost volume (`modeling_catseg_cost_volume.py`),
text features (`modeling_catseg_text.py`) and the vocabulary they are of (`modeling_catseg_vocabulary.py`), spatial and
class aggregation (`modeling_catseg_aggregation.py`), the upsampling decoder (`modeling_catseg_decoder.py`), the loss
(`modeling_catseg_loss.py`) and the sliding window (`sliding_window_catseg.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .argument_checks_catseg import (
    check_all_values,
    check_class_limit,
    check_class_mask,
    check_finite,
    check_kwargs,
    check_labels,
    check_only_logits,
    check_pixel_values,
    check_replica,
    check_views,
)
from .class_selection_catseg import ClassSelection, check_no_graph, stored_margins
from .configuration_catseg import CATSegConfig
from .docstrings_catseg import MODEL_FORWARD, SEMANTIC_SEGMENTATION_FORWARD, documented
from .errors import first_line
from .modeling_catseg_aggregation import CATSegAggregator, CATSegAggregatorLayer, CATSegClassBlock
from .modeling_catseg_cost_volume import (
    CUT_CLASS_LOGIT,
    cost_volume,
    cut_classes,
    dense_image_features,
    restore_classes,
    unused_parameters,
)
from .modeling_catseg_decoder import CATSegDecoder
from .modeling_catseg_loss import CATSegLoss
from .modeling_catseg_vocabulary import CATSegVocabulary, CATSegVocabularyMixin
from .sliding_window_catseg import merge_windows, split_windows
from .tensor_ops_catseg import resize_bilinear


# The image-segmentation pipeline looks names up here and not in the Auto classes.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault("catseg", "CATSegForSemanticSegmentation")


@dataclass
class CATSegModelOutput(ModelOutput):
    """
    Output of [`CATSegModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_classes, size, size, hidden_size)`):
            The aggregated cost volume on CLIP's feature grid of `size` x `size`. Has at most `config.num_class_tokens`
            and `max_classes_per_image` classes: the ones listed in `class_indices`.
        cost_volume (`torch.FloatTensor` of shape `(batch_size, num_prompts, num_classes, size, size)`):
            Cosine similarities of image and text features, in [-1, 1], of all classes (section 3.2, equation 1).
        image_embeds (`torch.FloatTensor` of shape `(batch_size, size, size, projection_dim)`):
            Dense CLIP image features, not normalised.
        text_embeds (`torch.FloatTensor` of shape `(num_classes, num_prompts, projection_dim)`):
            CLIP text features, normalised.
        guidance_states (`tuple(torch.FloatTensor)` of shape `(batch_size, size, size, vision_hidden_size)`):
            Outputs of the vision blocks `config.guidance_layers`, without the class position.
        class_indices (`torch.LongTensor` of shape `(batch_size, num_kept_classes)`, *optional*):
            The classes that were aggregated, ascending; `None` when all were.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*):
            The cost embedding and the output of every aggregation layer, each of `last_hidden_state`'s shape.
        attentions (`tuple(torch.FloatTensor)`, *optional*):
            For every aggregation layer, the spatial attention weights of shape `(batch_size, num_classes, 2,
            num_windows, num_heads, window_size ** 2, window_size ** 2)`: the plain block's, then the shifted one's.
    """

    last_hidden_state: torch.FloatTensor | None = None
    cost_volume: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    guidance_states: tuple[torch.FloatTensor, ...] | None = None
    class_indices: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class CATSegPreTrainedModel(PreTrainedModel):
    config: CATSegConfig
    base_model_prefix = "catseg"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # `Trainer` has to average the losses of accumulated batches itself
    _supports_sdpa = True
    _no_split_modules = ["CLIPModel", "CATSegAggregator", "CATSegDecoder"]

    if not hasattr(PreTrainedModel, "activation_checkpointing_enable"):  # its name in older releases
        activation_checkpointing_enable = PreTrainedModel.gradient_checkpointing_enable
        activation_checkpointing_disable = PreTrainedModel.gradient_checkpointing_disable

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """
        See [`PreTrainedModel.from_pretrained`].

        Raises:
            OSError: If a file of weights is damaged, or a pickle that would run code.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except (SafetensorError, UnpicklingError) as error:
            raise OSError(
                f"The weights of {str(pretrained_model_name_or_path)!r} are truncated, damaged or refused, fetch them "
                f"again: {first_line(error)}."
            ) from error

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.LayerNorm, nn.GroupNorm)):
            module.reset_parameters()
        elif isinstance(module, CATSegClassBlock) and module.num_class_tokens:
            init.zeros_(module.padding_token)
            init.zeros_(module.padding_guidance)
        elif isinstance(module, CATSegVocabulary):
            init.zeros_(module.input_ids)
            init.zeros_(module.checksum)

    def _adjust_missing_and_unexpected_keys(self, loading_info):
        """Another number of labels than the checkpoint's leaves them without prompts, for which the model asks when it
        needs them: no reason not to load it."""
        super()._adjust_missing_and_unexpected_keys(loading_info)
        loading_info.mismatched_keys = {
            mismatch for mismatch in loading_info.mismatched_keys if not mismatch[0].endswith("vocabulary.input_ids")
        }


class CATSegModel(CATSegVocabularyMixin, CATSegPreTrainedModel):
    """
    CLIP and the cost aggregation, without the upsampling decoder.

    The model carries its own vocabulary, `config.id2label` with its prompts' token ids, and segments it when it is
    given no other. See [`~CATSegModel.set_vocabulary`].
    """

    _can_record_outputs = {"hidden_states": CATSegAggregatorLayer, "attentions": CATSegAggregatorLayer}

    def __init__(self, config: CATSegConfig):
        super().__init__(config)
        self.clip = CLIPModel._from_config(config.clip_config, dtype=torch.get_default_dtype())
        self.aggregator = CATSegAggregator(config)
        self.vocabulary = CATSegVocabulary(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.clip.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module):
        self.clip.text_model.embeddings.token_embedding = value

    @documented(MODEL_FORWARD)
    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        text_embeds: torch.FloatTensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        max_classes_per_image: int | None = None,
        class_mask: torch.BoolTensor | None = None,
        check_values: bool = True,
        class_selection: ClassSelection | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CATSegModelOutput:
        check_kwargs(kwargs)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        # Without `check_values` it is part of a CATSegForSemanticSegmentation, which gives it all classes.
        own_embeds = text_embeds if check_values else None
        check_replica(self, input_ids=input_ids, attention_mask=attention_mask, text_embeds=own_embeds)
        check_pixel_values(pixel_values)
        if check_values and not torch.compiler.is_compiling():
            check_finite(pixel_values)
        text_embeds = self.encode_vocabulary(input_ids, attention_mask, text_embeds)

        pixel_values = resize_bilinear(pixel_values, (self.config.image_size,) * 2)
        image_embeds, guidance_states = dense_image_features(self.clip, pixel_values, self.config.guidance_layers)
        text_embeds = text_embeds.to(image_embeds)
        cost = cost_volume(image_embeds, text_embeds)
        class_limit = self._class_limit(max_classes_per_image, class_selection)
        if class_mask is not None:
            check_class_mask(class_mask, text_embeds.shape[0], class_limit, self.config)
        kept_cost, kept_text_embeds, class_indices = cut_classes(cost, text_embeds, class_limit)
        if class_selection is not None:
            kept_cost, kept_text_embeds = class_selection.start(
                kept_cost, kept_text_embeds, class_indices, guidance_states
            )
        outputs = self._aggregate(
            kept_cost,
            image_embeds,
            kept_text_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            class_mask=class_mask,
            class_selection=class_selection,
        )
        return CATSegModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            cost_volume=cost,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            guidance_states=guidance_states,
            class_indices=class_indices if class_selection is None else class_selection.class_indices,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @capture_outputs
    def _aggregate(
        self,
        cost: torch.FloatTensor,
        image_embeds: torch.FloatTensor,
        text_embeds: torch.FloatTensor,
        output_hidden_states: bool,
        output_attentions: bool,
        class_mask: torch.BoolTensor | None,
        class_selection: ClassSelection | None,
    ) -> BaseModelOutput:
        """The aggregator's tokens, with what `_can_record_outputs` names. CLIP stays outside: its layers have hooks
        of the same kind."""
        hidden_states = self.aggregator(
            cost, image_embeds, text_embeds, output_hidden_states, output_attentions, class_mask, class_selection
        )
        return BaseModelOutput(last_hidden_state=hidden_states)

    def _class_limit(self, max_classes_per_image: int | None, class_selection: ClassSelection | None) -> int:
        """How many classes are aggregated for an image at most, 0 for no limit."""
        if class_selection is not None:
            return self.config.num_class_tokens
        if max_classes_per_image is None and not self.training:
            max_classes_per_image = self.config.max_classes_per_image
        check_class_limit(max_classes_per_image)
        limits = [limit for limit in (self.config.num_class_tokens, max_classes_per_image) if limit]
        return min(limits) if limits else 0


class CATSegForSemanticSegmentation(CATSegPreTrainedModel):
    """CAT-Seg with its upsampling decoder, loss and sliding window: segments an image into classes named in words."""

    _auto_class = "AutoModelForSemanticSegmentation"

    def __init__(self, config: CATSegConfig):
        super().__init__(config)
        self.catseg = CATSegModel(config)
        self.decoder = CATSegDecoder(config)
        self.criterion = CATSegLoss(config)
        self.post_init()

    @property
    def clip(self) -> CLIPModel:
        return self.catseg.clip

    def get_input_embeddings(self) -> nn.Module:
        return self.catseg.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.catseg.set_input_embeddings(value)

    def get_text_embeds(
        self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None
    ) -> torch.FloatTensor:
        """See [`CATSegModel.get_text_embeds`]."""
        return self.catseg.get_text_embeds(input_ids, attention_mask)

    def set_vocabulary(self, labels: Sequence[str], input_ids: torch.LongTensor):
        """See [`CATSegModel.set_vocabulary`]."""
        self.catseg.set_vocabulary(labels, input_ids)

    def freeze_clip(self, mode: str = "attention"):
        """
        Chooses what of CLIP is trained; everything else is trained always (section 4.1 of the paper).

        Args:
            mode (`"attention"`, `"full"` or `"none"`, *optional*, defaults to `"attention"`):
                `"attention"` trains the query and value projection weights of every attention block of both towers, as
                published; `"full"` all of CLIP; `"none"` nothing of it. What no gradient reaches, the last vision
                block's queries among it, is trained by none of them: several processes would wait for it.
        """
        if mode not in ("attention", "full", "none"):
            raise ValueError(f"`mode` must be 'attention', 'full' or 'none' (what of CLIP is trained), got {mode!r}.")
        unused = unused_parameters(self.clip)
        for name, parameter in self.clip.named_parameters():
            is_query_or_value = name.endswith(("self_attn.q_proj.weight", "self_attn.v_proj.weight"))
            is_chosen = mode == "full" or (mode == "attention" and is_query_or_value)
            parameter.requires_grad_(is_chosen and parameter not in unused)

    @documented(SEMANTIC_SEGMENTATION_FORWARD)
    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        text_embeds: torch.FloatTensor | None = None,
        global_pixel_values: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        sliding_window: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        max_classes_per_image: int | Literal["auto"] | None = None,
        class_mask: torch.BoolTensor | None = None,
        check_values: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        check_kwargs(kwargs)
        check_replica(self, input_ids=input_ids, attention_mask=attention_mask, text_embeds=text_embeds)
        if sliding_window is None:
            sliding_window = self.config.sliding_window and not self.training
        check_views(pixel_values, global_pixel_values, sliding_window, self.config)
        if not sliding_window or global_pixel_values is None:
            global_pixel_values = pixel_values
        text_embeds = self.catseg.encode_vocabulary(input_ids, attention_mask, text_embeds)
        if labels is not None:
            check_labels(labels, pixel_values.shape[0], class_mask)
        if check_values and not torch.compiler.is_compiling():
            check_all_values(pixel_values, global_pixel_values, labels, text_embeds.shape[0], self.config)
        options = {
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
            "max_classes_per_image": max_classes_per_image,
            "class_mask": class_mask,
            "margins": self._margins(max_classes_per_image, class_mask),
        }
        if options["margins"] is not None:
            check_only_logits(output_hidden_states, output_attentions, self.config)
        if sliding_window:
            outputs = self._segment_windows(pixel_values, global_pixel_values, text_embeds, **options)
        else:
            outputs = self._segment(pixel_values, text_embeds, **options)
        if labels is not None:
            outputs.loss = self.criterion(outputs.logits, labels)
        return outputs

    def _margins(
        self, max_classes_per_image: int | str | None, class_mask: torch.Tensor | None
    ) -> dict[str, float] | None:
        """The margins by which each view selects classes of its own; `None` unless that is "auto"."""
        if max_classes_per_image is None and not self.training:
            max_classes_per_image = self.config.max_classes_per_image
        if max_classes_per_image != "auto":
            return None
        check_no_graph(class_mask)
        return stored_margins(self)

    def _segment(
        self,
        pixel_values: torch.FloatTensor,
        text_embeds: torch.FloatTensor,
        margins: dict[str, float] | None,
        **options: int | torch.Tensor | None,
    ) -> SemanticSegmenterOutput:
        """Views at once or, where each selects classes of its own, one after the other: what is selected, and so the
        logits of an image, must not depend on its batch."""
        if margins is None:
            return self._segment_together(pixel_values, text_embeds, **options)
        logits = []
        for view in pixel_values.split(1):
            selection = ClassSelection(self.config, margins, self.decoder)
            outputs = self._segment_together(view, text_embeds, class_selection=selection, **options)
            logits.append(outputs.logits)
        return SemanticSegmenterOutput(logits=torch.cat(logits))

    def _segment_together(
        self,
        pixel_values: torch.FloatTensor,
        text_embeds: torch.FloatTensor,
        **options: "int | torch.Tensor | ClassSelection | None",
    ) -> SemanticSegmenterOutput:
        outputs = self.catseg(pixel_values, text_embeds=text_embeds, check_values=False, **options)
        logits = self.decoder(outputs.last_hidden_state, outputs.guidance_states)
        if outputs.class_indices is not None:
            logits = restore_classes(logits, outputs.class_indices, text_embeds.shape[0])
        if (class_mask := options["class_mask"]) is not None:
            logits = logits.masked_fill(~class_mask[:, None, None], CUT_CLASS_LOGIT)
        return SemanticSegmenterOutput(
            logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _segment_windows(
        self,
        pixel_values: torch.FloatTensor,
        global_pixel_values: torch.FloatTensor,
        text_embeds: torch.FloatTensor,
        **options: "int | torch.Tensor | dict[str, float] | None",
    ) -> SemanticSegmenterOutput:
        """Segments the windows and the global view, as many of them at once as the device is best at."""
        batch_size, size = pixel_values.shape[0], self.config.sliding_window_size
        views = [*split_windows(pixel_values, self.config), resize_bilinear(global_pixel_values, (size, size))]
        views_at_once = self.config.sliding_window_batch_size
        if views_at_once is None:
            views_at_once = 1 if pixel_values.device.type == "cpu" else len(views)
        logits = []
        for start in range(0, len(views), views_at_once):
            outputs = self._segment(torch.cat(views[start : start + views_at_once]), text_embeds, **options)
            logits += outputs.logits.split(batch_size)

        def of_global_view(states: tuple[torch.Tensor, ...] | None) -> tuple[torch.Tensor, ...] | None:
            return None if states is None else tuple(state[-batch_size:] for state in states)

        return SemanticSegmenterOutput(
            logits=merge_windows(logits, self.config),
            hidden_states=of_global_view(outputs.hidden_states),
            attentions=of_global_view(outputs.attentions),
        )


__all__ = ["CATSegForSemanticSegmentation", "CATSegModel", "CATSegModelOutput", "CATSegPreTrainedModel"]

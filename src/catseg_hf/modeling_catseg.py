"""CAT-Seg (Cho et al., "CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation", CVPR 2024).

The paper's parts in its order: dense CLIP features and the cost volume are here, the text features in
`modeling_catseg_text.py`, spatial and class aggregation in `modeling_catseg_aggregation.py`, the upsampling decoder in
`modeling_catseg_decoder.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn
from torch.func import functional_call
from transformers import CLIPModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging
from transformers.utils.output_capturing import capture_outputs

from .configuration_catseg import CATSegConfig
from .errors import first_line
from .modeling_catseg_aggregation import CATSegAggregator, CATSegAggregatorLayer, CATSegClassBlock
from .modeling_catseg_decoder import CATSegDecoder
from .modeling_catseg_text import CATSegVocabulary, KeptTextEmbeds, labels_checksum, longest_prompt, text_features
from .sliding_window_catseg import merge_windows, split_windows
from .tensor_ops_catseg import RecomputedLayer, all_true, at_least_float32, independent_chunks, resize_bilinear


# The image-segmentation pipeline looks names up here and not in the Auto classes.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault("catseg", "CATSegForSemanticSegmentation")

logger = logging.get_logger(__name__)

CUT_CLASS_LOGIT = -100.0


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


def embed_patches(embeddings: CLIPVisionEmbeddings, pixel_values: torch.Tensor) -> torch.Tensor:
    """CLIP's tokens `(batch_size, 1 + num_patches, vision_hidden_size)`, class token first, of images of any size."""
    if not embeddings.position_embedding.weight.is_meta:
        pixel_values = pixel_values.to(embeddings.position_embedding.weight.device)
        return embeddings(pixel_values, interpolate_pos_encoding=True)
    # Offloaded weights are brought back for a module that is called, but to resize these CLIP only reads them.
    positions = {"position_embedding.weight": embeddings.position_embedding(embeddings.position_ids)[0]}
    return functional_call(embeddings, positions, (pixel_values,), {"interpolate_pos_encoding": True})


def dense_image_features(
    clip: CLIPModel, pixel_values: torch.Tensor, guidance_layers: Sequence[int]
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """
    CLIP's features of every patch (section 3.1). The last vision block attends to nothing: each position keeps its own
    value, added to the class token instead of to itself.

    Args:
        clip (`CLIPModel`): The CLIP model.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): Normalised pixels.
        guidance_layers (`Sequence[int]`): 0-based blocks whose outputs are returned too.

    Returns:
        The projected features `(batch_size, rows, columns, projection_dim)` and, for each guidance layer, its output
        `(batch_size, rows, columns, vision_hidden_size)`.
    """
    vision_model = clip.vision_model
    grid = [side // vision_model.embeddings.patch_size for side in pixel_values.shape[-2:]]
    hidden_states = vision_model.pre_layrnorm(embed_patches(vision_model.embeddings, pixel_values))

    *blocks, last_block = vision_model.encoder.layers
    guidance_states = []
    for index, block in enumerate(blocks):
        hidden_states = block(hidden_states, None)
        if index in guidance_layers:
            guidance_states.append(hidden_states[:, 1:].unflatten(1, grid))

    class_token, patch_tokens = hidden_states[:, :1], hidden_states[:, 1:]
    values = last_block.self_attn.v_proj(last_block.layer_norm1(patch_tokens))
    patch_tokens = last_block.self_attn.out_proj(values) + class_token
    patch_tokens = patch_tokens + last_block.mlp(last_block.layer_norm2(patch_tokens))
    image_embeds = clip.visual_projection(vision_model.post_layernorm(patch_tokens))
    return image_embeds.unflatten(1, grid), tuple(guidance_states)


def cost_volume(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """
    Cosine similarity of every position with every prompt (section 3.2, equation 1).

    Args:
        image_embeds (`torch.FloatTensor` of shape `(batch_size, rows, columns, projection_dim)`): Image features.
        text_embeds (`torch.FloatTensor` of shape `(num_classes, num_prompts, projection_dim)`): Normalised text
        features.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_prompts, num_classes, rows, columns)`, in [-1, 1].
    """
    return torch.einsum("bhwd,tpd->bpthw", F.normalize(image_embeds, dim=-1), text_embeds)


def most_similar_classes(cost: torch.Tensor, num_kept_classes: int) -> torch.Tensor:
    """Indices `(B, num_kept_classes)`, ascending, of the classes with the highest maximum in a cost volume
    `(B, P, T, H, W)`."""
    similarity = cost.amax(dim=(1, 3, 4))
    indices = similarity.topk(num_kept_classes, dim=1).indices
    return indices.topk(num_kept_classes, dim=1, largest=False).values  # sorted as ExecuTorch can


def refuse_unknown(kwargs: TransformersKwargs):
    """Raises a TypeError for an argument that no model of transformers takes."""
    unknown = [name for name in kwargs if name not in TransformersKwargs.__annotations__]
    if unknown:
        raise TypeError(f"CAT-Seg takes no argument {', '.join(map(repr, unknown))}.")


def is_exporting() -> bool:
    """Whether this is being traced by torch.export."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def traces_one_graph() -> bool:
    """Whether this is being traced by torch.export, or compiled with `fullgraph=True`."""
    return is_exporting() or (torch.compiler.is_dynamo_compiling() and _compiles_one_graph())


@torch.compiler.assume_constant_result
def _compiles_one_graph() -> bool:
    # Slow to import, and imported already when this is called.
    from torch._dynamo.symbolic_convert import InstructionTranslator

    return InstructionTranslator.current_tx().one_graph


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


class CATSegModel(CATSegPreTrainedModel):
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
        self._kept_text_embeds = None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.clip.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module):
        self.clip.text_model.embeddings.token_embedding = value

    def set_vocabulary(self, labels: Sequence[str], input_ids: torch.LongTensor):
        """
        Makes `labels` the classes that are segmented when no others are given, and that `save_pretrained` saves.

        Args:
            labels (`Sequence[str]`): The `num_classes` names, all different; they become `config.id2label`.
            input_ids (`torch.LongTensor` of shape `(num_classes, length)` or `(num_classes, num_prompts, length)`):
                Their prompts, as [`CATSegProcessor`] gives them.

        Raises:
            ValueError: If there are no labels, one is no string, two are equal, `input_ids` do not fit them, or a
                prompt has no end-of-text token. Nothing is changed then.
        """
        labels = list(labels)
        if others := [label for label in labels if not isinstance(label, str)]:
            raise ValueError(f"Labels must be strings, got {others[:10]}.")
        if duplicates := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"Every label must be given once, but {duplicates} were given more often.")
        input_ids = self._check_input_ids(input_ids)
        if len(labels) != input_ids.shape[0]:
            raise ValueError(
                f"Got {len(labels)} labels and the prompts of {input_ids.shape[0]} classes: give one for each."
            )
        longest_prompt(self.clip, input_ids.flatten(0, 1))
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
        return text_features(self.clip, self._check_input_ids(input_ids), attention_mask)

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
            return self._check_text_embeds(text_embeds)
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
        input_ids = self._check_input_ids(input_ids)
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

    def _check_input_ids(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        """`input_ids` as `(num_classes, num_prompts, length)`."""
        num_prompts, context_length = self.config.num_prompts, self.vocabulary.input_ids.shape[-1]
        shape = tuple(input_ids.shape)
        if input_ids.ndim == 2:
            input_ids = input_ids[:, None]
        if input_ids.ndim != 3 or 0 in shape or input_ids.shape[1] != num_prompts or shape[-1] > context_length:
            raise ValueError(
                f"`input_ids` of shape {shape} must have the shape (num_classes, {num_prompts}, length)"
                f"{' or (num_classes, length)' if num_prompts == 1 else ''}, with at least one class, "
                f"`config.num_prompts` = {num_prompts} prompts for each and at most {context_length} tokens."
            )
        vocab_size = self.config.clip_config.text_config.vocab_size
        # Elsewhere it would have to be waited for.
        is_here = input_ids.device.type == "cpu" and not torch.compiler.is_compiling()
        if is_here and not 0 <= input_ids.min() <= input_ids.max() < vocab_size:
            raise ValueError(
                f"`input_ids` has ids from {int(input_ids.min())} to {int(input_ids.max())}, but the text tower knows "
                f"0 to {vocab_size - 1}: make them with the model's processor."
            )
        device = self.get_input_embeddings().weight.device
        return input_ids if device.type == "meta" else input_ids.to(device)  # offloaded: its hook takes the ids along

    def _check_text_embeds(self, text_embeds: torch.FloatTensor) -> torch.FloatTensor:
        expected = (self.config.num_prompts, self.config.clip_config.projection_dim)
        if text_embeds.ndim != 3 or text_embeds.shape[0] == 0 or tuple(text_embeds.shape[1:]) != expected:
            raise ValueError(
                f"`text_embeds` of shape {tuple(text_embeds.shape)} must have the shape (num_classes, "
                f"{expected[0]}, {expected[1]}): num_classes >= 1, `config.num_prompts` and CLIP's projection size."
            )
        return text_embeds

    def _check_pixel_values(self, pixel_values: torch.FloatTensor):
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or 0 in pixel_values.shape:
            raise ValueError(
                f"`pixel_values` of shape {tuple(pixel_values.shape)} must have the shape (batch_size, 3, height, "
                "width), with at least one image and one pixel."
            )

    @staticmethod
    def _check_finite(pixel_values: torch.FloatTensor):
        if not pixel_values.isfinite().all():
            index = int((~pixel_values.isfinite()).flatten(1).any(dim=1).nonzero()[0])
            raise ValueError(
                f"Image {index} of `pixel_values` has NaN or infinite values: check how it was read and normalised."
            )

    def _class_limit(self, max_classes_per_image: int | None) -> int:
        """How many classes are aggregated for an image at most, 0 for no limit."""
        if max_classes_per_image is None and not self.training:
            max_classes_per_image = self.config.max_classes_per_image
        if max_classes_per_image is not None and not (
            isinstance(max_classes_per_image, int) and max_classes_per_image >= 1
        ):
            raise ValueError(f"`max_classes_per_image` must be an integer of at least 1, got {max_classes_per_image}.")
        limits = [limit for limit in (self.config.num_class_tokens, max_classes_per_image) if limit]
        return min(limits) if limits else 0

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
        check_values: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CATSegModelOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                Normalised pixels of images of any size; they are resized to `config.image_size`, whatever their
                aspect ratio.
            input_ids (`torch.LongTensor` of shape `(num_classes, length)` or `(num_classes, num_prompts, length)`):
                Prompts of ONE vocabulary for the whole batch, at most 77 tokens each. Without them, and without
                `text_embeds`, the model's own vocabulary is used.
            attention_mask (`torch.LongTensor`, *optional*):
                Mask of `input_ids`, in their shape. Not needed for prompts that are padded at their end.
            text_embeds (`torch.FloatTensor` of shape `(num_classes, num_prompts, projection_dim)`, *optional*):
                Normalised text features in place of `input_ids`, as [`~CATSegModel.get_text_embeds`] gives them.
            output_hidden_states (`bool`, *optional*):
                Whether to return the cost volume's tokens before and after every aggregation layer.
            output_attentions (`bool`, *optional*):
                Whether to return the spatial attention weights (with `attn_implementation="eager"`).
            max_classes_per_image (`int`, *optional*):
                Of more classes only so many are aggregated for each image, those most similar to it, padded with
                tokens as in training; `class_indices` tells which. Defaults to `config.max_classes_per_image` at
                evaluation and to no limit while training.
            check_values (`bool`, *optional*, defaults to `True`):
                Whether to look for pixels that are not finite, for which the host waits for an accelerator. Compiled
                code never looks.

        Returns:
            [`CATSegModelOutput`]

        Raises:
            ValueError: If an argument has another shape, pixels are not finite, both or (without a vocabulary of the
                model's own) neither of `input_ids` and `text_embeds` are given.
        """
        refuse_unknown(kwargs)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        self._check_pixel_values(pixel_values)
        if check_values and not torch.compiler.is_compiling():
            self._check_finite(pixel_values)
        text_embeds = self.encode_vocabulary(input_ids, attention_mask, text_embeds)

        pixel_values = resize_bilinear(pixel_values, (self.config.image_size,) * 2)
        image_embeds, guidance_states = dense_image_features(self.clip, pixel_values, self.config.guidance_layers)
        text_embeds = text_embeds.to(image_embeds)
        cost = cost_volume(image_embeds, text_embeds)
        kept_cost, kept_text_embeds, class_indices = cost, text_embeds[None], None
        class_limit = self._class_limit(max_classes_per_image)
        # An exported graph must do for any number of classes: of few, it takes the most similar ones too, that is all.
        if 0 < class_limit and (is_exporting() or class_limit < cost.shape[2]):
            class_indices = most_similar_classes(cost, torch.sym_min(class_limit, cost.shape[2]))
            indices = class_indices[:, None, :, None, None].expand(-1, cost.shape[1], -1, *cost.shape[3:])
            kept_cost = cost.gather(2, indices)
            kept_text_embeds = text_embeds[class_indices]
        outputs = self._aggregate(
            kept_cost,
            image_embeds,
            kept_text_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return CATSegModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            cost_volume=cost,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            guidance_states=guidance_states,
            class_indices=class_indices,
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
    ) -> BaseModelOutput:
        """The aggregator's tokens, with what `_can_record_outputs` names. CLIP stays outside: its layers have hooks
        of the same kind."""
        hidden_states = self.aggregator(cost, image_embeds, text_embeds, output_hidden_states, output_attentions)
        return BaseModelOutput(last_hidden_state=hidden_states)


class CATSegCrossEntropy(RecomputedLayer):
    """Binary cross-entropy of every pixel and class (section 4.1), summed."""

    def forward(self, logits: torch.Tensor, own_class: torch.Tensor) -> torch.Tensor:
        """
        Logits `(B, T, h, w)`, resized to `own_class` `(B, H, W)`, each pixel's class or any number outside [0, T) for
        none.

        With one-hot targets it is softplus(logit), less the logit of each pixel's own class, so that no targets are
        built.
        """
        logits = at_least_float32(resize_bilinear(logits, own_class.shape[-2:]))
        has_class = (own_class >= 0) & (own_class < logits.shape[1])
        own_logits = logits.gather(1, torch.where(has_class, own_class, 0)[:, None])[:, 0]
        return F.softplus(logits).sum() - own_logits.masked_fill(~has_class, 0.0).sum()


class CATSegForSemanticSegmentation(CATSegPreTrainedModel):
    """CAT-Seg with its upsampling decoder, loss and sliding window: segments an image into classes named in words."""

    _auto_class = "AutoModelForSemanticSegmentation"

    def __init__(self, config: CATSegConfig):
        super().__init__(config)
        self.catseg = CATSegModel(config)
        self.decoder = CATSegDecoder(config)
        self.cross_entropy = CATSegCrossEntropy()
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
                published; `"full"` all of CLIP; `"none"` nothing of it.
        """
        if mode not in ("attention", "full", "none"):
            raise ValueError(f"`mode` must be 'attention', 'full' or 'none' (what of CLIP is trained), got {mode!r}.")
        for name, parameter in self.clip.named_parameters():
            is_query_or_value = name.endswith(("self_attn.q_proj.weight", "self_attn.v_proj.weight"))
            parameter.requires_grad_(mode == "full" or (mode == "attention" and is_query_or_value))

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
        max_classes_per_image: int | None = None,
        check_values: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                Normalised pixels of images of any size. The sliding window works on 640 x 640 (as the image
                processor gives them), everything else on `config.image_size`; other sizes are resized, whatever their
                aspect ratio.
            input_ids (`torch.LongTensor` of shape `(num_classes, length)` or `(num_classes, num_prompts, length)`):
                Prompts of ONE vocabulary for the whole batch, at most 77 tokens each. Without them, and without
                `text_embeds`, the model's own vocabulary is used.
            attention_mask (`torch.LongTensor`, *optional*):
                Mask of `input_ids`, in their shape. Not needed for prompts that are padded at their end.
            text_embeds (`torch.FloatTensor` of shape `(num_classes, num_prompts, projection_dim)`, *optional*):
                Normalised text features in place of `input_ids`, as [`~CATSegForSemanticSegmentation.get_text_embeds`]
                gives them.
            global_pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`, *optional*):
                The whole images at the size of one window, for the sliding window's global view. Made from
                `pixel_values` if not given.
            labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                Class of every pixel, in [0, num_classes) or `config.semantic_loss_ignore_index`, at any size.
            sliding_window (`bool`, *optional*):
                Whether to average overlapping windows and a global view. Defaults to `config.sliding_window` at
                evaluation and to `False` while training.
            output_hidden_states (`bool`, *optional*):
                Whether to return the cost volume's tokens before and after every aggregation layer, each of shape
                `(batch_size, num_classes, size, size, hidden_size)`. With the sliding window, those of the global
                view.
            output_attentions (`bool`, *optional*):
                Whether to return the spatial attention weights (see [`CATSegModelOutput`]), likewise.
            max_classes_per_image (`int`, *optional*):
                Of more classes only so many are aggregated for each image, those most similar to it, padded with
                tokens as in training; the others have the logit -100. With the sliding window each view has its own.
                Defaults to `config.max_classes_per_image` at evaluation and to no limit while training.
            check_values (`bool`, *optional*, defaults to `True`):
                Whether to look for pixels that are not finite and labels out of range, for which the host waits for
                an accelerator, once. Compiled code never looks.

        Returns:
            [`~transformers.modeling_outputs.SemanticSegmenterOutput`] with `logits` of shape `(batch_size,
            num_classes, h, w)`, of which `sigmoid(logits)` are the probabilities in [0, 1]: h and w are four times the
            side of the feature grid, or 640 with the sliding window. Classes cut away (`config.num_class_tokens`,
            `max_classes_per_image`) have the logit -100, or about -87 with the sliding window, which averages
            probabilities.

        Raises:
            ValueError: If an argument has another shape, pixels are not finite, labels are out of range, both or
                (without a vocabulary of the model's own) neither of `input_ids` and `text_embeds` are given.
        """
        refuse_unknown(kwargs)
        if sliding_window is None:
            sliding_window = self.config.sliding_window and not self.training
        self._compare_views(pixel_values, global_pixel_values, sliding_window)
        views = [pixel_values]
        if sliding_window and global_pixel_values is not None:
            views.append(global_pixel_values)
        for view in views:
            self.catseg._check_pixel_values(view)
        self._check_global_view(views[0], views[-1])
        text_embeds = self.catseg.encode_vocabulary(input_ids, attention_mask, text_embeds)
        if labels is not None:
            self._check_labels(labels, pixel_values.shape[0])
        if check_values and not torch.compiler.is_compiling():
            self._check_values(views, labels, text_embeds.shape[0])
        options = {
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
            "max_classes_per_image": max_classes_per_image,
        }
        if sliding_window:
            outputs = self._segment_windows(views[0], views[-1], text_embeds, **options)
        else:
            outputs = self._segment(pixel_values, text_embeds, **options)
        if labels is not None:
            outputs.loss = self._loss(outputs.logits, labels)
        return outputs

    def _segment(
        self, pixel_values: torch.FloatTensor, text_embeds: torch.FloatTensor, **options: int | None
    ) -> SemanticSegmenterOutput:
        outputs = self.catseg(pixel_values, text_embeds=text_embeds, check_values=False, **options)
        logits = self.decoder(outputs.last_hidden_state, outputs.guidance_states)
        if outputs.class_indices is not None:
            all_logits = logits.new_full((logits.shape[0], text_embeds.shape[0], *logits.shape[2:]), CUT_CLASS_LOGIT)
            indices = outputs.class_indices[:, :, None, None].expand_as(logits)
            logits = all_logits.scatter(1, indices, logits)
        return SemanticSegmenterOutput(
            logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _segment_windows(
        self,
        pixel_values: torch.FloatTensor,
        global_pixel_values: torch.FloatTensor,
        text_embeds: torch.FloatTensor,
        **options: int | None,
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

    @staticmethod
    def _check_global_view(pixel_values: torch.Tensor, global_pixel_values: torch.Tensor):
        if global_pixel_values.shape[0] != pixel_values.shape[0]:
            raise ValueError(
                f"Got {pixel_values.shape[0]} images in `pixel_values` and {global_pixel_values.shape[0]} in "
                "`global_pixel_values`: give the global view of every image."
            )

    def _compare_views(
        self, pixel_values: torch.Tensor, global_pixel_values: torch.Tensor | None, sliding_window: bool
    ):
        """Warns if the images were prepared for the sliding window and it is off, or the other way round."""
        if torch.compiler.is_compiling():
            return
        if not sliding_window and global_pixel_values is not None:
            logger.warning_once(
                "The images were prepared for the sliding window (`global_pixel_values` are given), but the model "
                "looks at them once: pass `sliding_window=False` to the processor, or `True` to the model."
            )
        side = self.config.sliding_window_image_size
        if sliding_window and global_pixel_values is None and pixel_values.shape[-2:] != (side, side):
            logger.warning_once(
                f"The model averages windows of images of {side} x {side} pixels, but these are "
                f"{' x '.join(map(str, pixel_values.shape[-2:]))}, so they are resized: pass `sliding_window=True` to "
                "the processor, or `False` to the model."
            )

    @staticmethod
    def _check_labels(labels: torch.Tensor, batch_size: int):
        is_map = labels.ndim == 3 and 0 not in labels.shape
        if not is_map or labels.shape[0] != batch_size or labels.is_floating_point():
            raise ValueError(
                f"`labels` of shape {tuple(labels.shape)} and type {labels.dtype} must be integers of the shape "
                f"(batch_size = {batch_size}, height, width)."
            )

    def _check_values(self, views: Sequence[torch.Tensor], labels: torch.Tensor | None, num_classes: int):
        """Refuses pixels that are not finite and labels out of range. The host waits once, and looks for what is wrong
        only if something is."""
        conditions = [view.isfinite().all() for view in views]
        ignore_index = self.config.semantic_loss_ignore_index
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
            self.catseg._check_finite(view)
        values = labels[out_of_range].unique().tolist()
        raise ValueError(
            f"`labels` has the values {values[:10]}, but there are {num_classes} classes: label ids must lie in "
            f"[0, {num_classes - 1}], or be `config.semantic_loss_ignore_index` ({ignore_index}) for pixels of no "
            "class."
        )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy of every pixel and class, averaged over all of them (section 4.1 of the paper). Pixels
        to be ignored count too: they belong to no class."""
        own_class = labels.long().masked_fill(labels == self.config.semantic_loss_ignore_index, -1)
        total, first = 0.0, 0
        for chunk in independent_chunks(logits, 1, labels.numel()):
            total = total + self.cross_entropy(chunk, own_class - first)
            first += chunk.shape[1]
        return total / (logits.shape[1] * labels.numel())


__all__ = ["CATSegForSemanticSegmentation", "CATSegModel", "CATSegModelOutput", "CATSegPreTrainedModel"]

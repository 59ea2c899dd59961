"""Configuration of CAT-Seg (Cho et al., "CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation", CVPR
2024)."""

import json
import os
from copy import deepcopy
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, PreTrainedConfig

from .coco_stuff_catseg import COCO_STUFF_LABELS
from .errors import first_line, refuse_misspelt
from .remote_code_catseg import AUTO_MAP, CUSTOM_PIPELINES


# What transformers raises for JSON of another shape than it expects.
MISSHAPEN = (ArithmeticError, AttributeError, LookupError, TypeError)
SWITCHES = ("output_hidden_states", "output_attentions")  # which transformers leaves unchecked
COUNTS = (
    "image_size",
    "num_prompts",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "mlp_ratio",
    "window_size",
    "text_guidance_size",
    "appearance_guidance_size",
    "sliding_window_size",
    "sliding_window_batch_size",
    "max_classes_per_image",
    "class_chunk_size",
)
# What `max_classes_per_image="auto"` has a margin for.
SELECTION_STAGES = ("cost", "layers", "decoder")
CHOOSE_MARGINS = "choose them with `python training/select_classes.py --model DIR --dataset_name DATA`"
PAIRS = (
    "guidance_layers",
    "pooling_size",
    "eval_pooling_size",
    "decoder_sizes",
    "decoder_guidance_channels",
    "decoder_guidance_sizes",
)


def default_clip_config() -> CLIPConfig:
    """CLIP ViT-B/16, the backbone of the released base model."""
    return CLIPConfig(vision_config={"patch_size": 16})


def guidance_layers_by_depth(num_blocks: int) -> list[int]:
    """The 0-based vision blocks after one and two thirds of a tower, as in both published models: 3 and 7 of 12, 7 and
    15 of 24."""
    return [-(-num_blocks // 3) - 1, -(-2 * num_blocks // 3) - 1]


def is_class_selection(selection: dict[str, Any]) -> bool:
    """Whether `class_selection` has a margin for every stage, a number of at least 0, and numbers as `weights`."""
    margins, weights = [selection.get(stage) for stage in SELECTION_STAGES], selection.get("weights")
    if not isinstance(weights, list) or not all(isinstance(value, (int, float)) for value in [*margins, *weights]):
        return False
    return all(0 <= margin < float("inf") for margin in margins)


@strict
class CATSegConfig(PreTrainedConfig):
    r"""
    Configuration of [`CATSegModel`] and [`CATSegForSemanticSegmentation`]. The defaults are the released ViT-B/16
    model.

    Args:
        clip_config (`dict` or `CLIPConfig`, *optional*, defaults to CLIP ViT-B/16):
            The CLIP model that gives the dense image features and the text features.
        image_size (`int`, *optional*, defaults to 384):
            Side in pixels to which every image (or window) is resized before CLIP. With CLIP's patch size it sets
            the side of the feature grid: 384 / 16 = 24.
        guidance_layers (`list[int]`, *optional*, defaults to `[3, 7]`):
            0-based vision blocks whose outputs guide the two decoder stages, the earlier one first.
        num_prompts (`int`, *optional*, defaults to 1):
            Prompts per class, which are the input channels of the cost embedding.
        hidden_size (`int`, *optional*, defaults to 128):
            Channels of the aggregated cost volume.
        num_hidden_layers (`int`, *optional*, defaults to 2):
            Aggregation layers, each a spatial followed by a class aggregation.
        num_attention_heads (`int`, *optional*, defaults to 4):
            Heads of both aggregations.
        mlp_ratio (`int`, *optional*, defaults to 4):
            Hidden channels of the aggregations' MLPs, as a multiple of `hidden_size`.
        window_size (`int`, *optional*, defaults to 12):
            Side of the spatial aggregation's attention windows, in feature grid cells.
        pooling_size (`list[int]`, *optional*, defaults to `[2, 2]`):
            Average pooling (rows, columns) before the class aggregation while training.
        eval_pooling_size (`list[int]`, *optional*, defaults to `[1, 1]`):
            The same at evaluation.
        num_class_tokens (`int`, *optional*, defaults to 256):
            Classes aggregated together: fewer are padded with a learned token, of more only the most similar ones are
            kept for each image. 0 turns both off.
        max_classes_per_image (`int` or `"auto"`, *optional*):
            Classes aggregated together at evaluation, if fewer than `num_class_tokens`: of more only the most similar
            ones are kept for each image, padded as above. With large vocabularies it takes less time and memory.
            "auto": for each view those that can still win by the margins of `class_selection`.
        class_selection (`dict`, *optional*):
            What `training/select_classes.py` chose for these weights: the margins "cost", in cosine similarity,
            "layers" and "decoder", in logits, each at least 0, and "weights", a few of the weights that they hold for.
        attention_type (`"linear"` or `"full"`, *optional*, defaults to `"linear"`):
            Attention over the classes: with the feature map ELU + 1, or softmax.
        text_guidance_size (`int`, *optional*, defaults to 128):
            Channels of the text guidance of the class aggregation.
        appearance_guidance_size (`int`, *optional*, defaults to 128):
            Channels of the appearance guidance of the spatial aggregation.
        decoder_sizes (`list[int]`, *optional*, defaults to `[64, 32]`):
            Output channels of the two decoder stages, each a multiple of 16.
        decoder_guidance_channels (`list[int]`, *optional*, defaults to `[256, 128]`):
            Channels of the upsampled CLIP features of `guidance_layers`.
        decoder_guidance_sizes (`list[int]`, *optional*, defaults to `[32, 16]`):
            Channels to which the decoder projects them.
        sliding_window (`bool`, *optional*, defaults to `True`):
            Whether evaluation averages four overlapping windows and a global view of each image.
        sliding_window_size (`int`, *optional*, defaults to 384):
            Side of a window in pixels.
        sliding_window_overlap (`float`, *optional*, defaults to 0.333):
            Share of its side by which a window overlaps the next one.
        sliding_window_batch_size (`int`, *optional*):
            Windows (and the global view) of each image that the model takes at once, which changes speed and memory
            but no result. By default one on the CPU, and all five elsewhere.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
            Label of pixels that belong to no class. The loss does not leave them out: their target is all zeros.
        class_chunk_size (`int`, *optional*):
            Classes that spatial aggregation and decoder work on at once, which changes speed and memory but no result.
            Chosen from the sizes if not given.
        id2label (`dict[int, str]`, *optional*, defaults to COCO-Stuff's 171 classes):
            The model's own vocabulary, which it segments when it is given no other.

    Raises:
        StrictDataclassError: If a value is of the wrong type, or the parts of the architecture do not fit together.

    Example:

    ```python
    >>> from catseg_hf import CATSegConfig, CATSegForSemanticSegmentation

    >>> config = CATSegConfig()
    >>> model = CATSegForSemanticSegmentation(config)
    ```"""

    model_type = "catseg"
    _auto_class = "AutoConfig"
    sub_configs = {"clip_config": CLIPConfig}

    clip_config: dict | CLIPConfig | None = None
    image_size: int = 384
    guidance_layers: list[int] | tuple[int, ...] = (3, 7)
    num_prompts: int = 1
    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    mlp_ratio: int = 4
    window_size: int = 12
    pooling_size: list[int] | tuple[int, ...] = (2, 2)
    eval_pooling_size: list[int] | tuple[int, ...] = (1, 1)
    num_class_tokens: int = 256
    max_classes_per_image: int | Literal["auto"] | None = None
    class_selection: dict | None = None
    attention_type: Literal["linear", "full"] = "linear"
    text_guidance_size: int = 128
    appearance_guidance_size: int = 128
    decoder_sizes: list[int] | tuple[int, ...] = (64, 32)
    decoder_guidance_channels: list[int] | tuple[int, ...] = (256, 128)
    decoder_guidance_sizes: list[int] | tuple[int, ...] = (32, 16)
    sliding_window: bool = True
    sliding_window_size: int = 384
    sliding_window_overlap: float | int = 0.333
    sliding_window_batch_size: int | None = None
    semantic_loss_ignore_index: int = 255
    class_chunk_size: int | None = None

    def __post_init__(self, **kwargs):
        refuse_misspelt(kwargs, CATSegConfig.__annotations__)
        if self.clip_config is None:
            self.clip_config = default_clip_config()
        elif isinstance(self.clip_config, dict):
            self.clip_config = CLIPConfig(**self.clip_config)
        id2label, label2id = self._read_labels("id2label"), self._read_labels("label2id")
        self._require(
            None in (id2label, label2id) or id2label == label2id,
            f"`id2label` {self.id2label} and `label2id` {self.label2id} contradict each other: give one of them.",
        )
        self.id2label = label2id if id2label is None else id2label
        if self.id2label is None and kwargs.get("num_labels") in (None, len(COCO_STUFF_LABELS)):
            self.id2label = dict(enumerate(COCO_STUFF_LABELS))
        # The installed package registers the task: pipelines must not ask for trust in the folder's copy of its code.
        is_remote_code = __name__.startswith("transformers_modules.")
        kwargs["custom_pipelines"] = deepcopy(CUSTOM_PIPELINES) if is_remote_code else {}  # pipelines write into it
        for name in PAIRS:
            setattr(self, name, list(getattr(self, name)))
        super().__post_init__(**kwargs)
        self.id2label = dict(sorted((int(index), label) for index, label in self.id2label.items()))
        self.label2id = {label: index for index, label in self.id2label.items()}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """
        As in every configuration, but `id2label` or `label2id` among `kwargs` is in place of both of the dictionary's.

        Raises:
            ValueError, StrictDataclassError: If a value, at any depth, is of the wrong type, or two do not fit.
        """
        labels = {name: kwargs.pop(name) for name in ("id2label", "label2id") if name in kwargs}
        if labels:
            config_dict = {**config_dict, "id2label": None, "label2id": None, **labels}
        try:
            return super().from_dict(config_dict, **kwargs)
        except MISSHAPEN as error:
            raise ValueError(
                f"The configuration has a value of the wrong type or lacks one ({type(error).__name__}: "
                f"{first_line(error)}): compare it with that of another CAT-Seg checkpoint."
            ) from error

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        content = super()._dict_from_json_file(json_file)
        if not isinstance(content, dict):
            raise OSError(
                f"The configuration file {str(json_file)!r} holds {json.dumps(content):.50}, not a JSON object: "
                "compare it with that of another CAT-Seg checkpoint."
            )
        return content

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "auto_map": deepcopy(AUTO_MAP), "custom_pipelines": deepcopy(CUSTOM_PIPELINES)}

    @property
    def label_names(self) -> list[str]:
        """The classes' names in the order of their indices."""
        return [self.id2label[index] for index in sorted(self.id2label)]

    @property
    def feature_size(self) -> int:
        """Side of the grid of CLIP features and of the cost volume."""
        return self.image_size // self.clip_config.vision_config.patch_size

    @property
    def sliding_window_stride(self) -> int:
        """Pixels from one window to the next."""
        return int(self.sliding_window_size * (1 - self.sliding_window_overlap))

    @property
    def sliding_window_image_size(self) -> int:
        """Side in pixels of the square image that two windows a side cover."""
        return self.sliding_window_size + self.sliding_window_stride

    def _read_labels(self, name: str) -> dict[int, str] | None:
        """The labels by their indices out of `id2label` or `label2id`."""
        mapping = getattr(self, name)
        if mapping is None:
            return None
        try:
            pairs = [pair if name == "id2label" else pair[::-1] for pair in mapping.items()]
            labels = {int(index): label for index, label in pairs if isinstance(label, str)}
        except (AttributeError, OverflowError, TypeError, ValueError):
            labels = {}
        self._require(
            bool(labels) and len(mapping) == len(labels) == len(set(labels.values())),
            f"`{name}` {mapping} must be a dictionary of one index for each of the classes' names, all different.",
        )
        return labels

    def validate_architecture(self):
        """Part of `@strict`-powered validation: refuses what cannot work, with a sentence that says why."""
        text_config, vision_config = self.clip_config.text_config, self.clip_config.vision_config
        patch_size, num_blocks = vision_config.patch_size, vision_config.num_hidden_layers
        self._require(
            isinstance(patch_size, int) and patch_size >= 1, f"CLIP's patch size must be at least 1, got {patch_size}."
        )
        self._require(
            text_config.layer_norm_eps is not None,
            "`layer_norm_eps` in `clip_config.text_config` must be a number, got None.",
        )
        self._require(
            isinstance(text_config.eos_token_id, int),
            "`eos_token_id` in `clip_config.text_config` must be the id that ends a prompt, got "
            f"{text_config.eos_token_id!r}.",
        )
        for config in (self.clip_config, text_config, vision_config):
            self._require(
                config.dtype is None or str(config.dtype).startswith("torch."),
                f"`dtype` {config.dtype!r} in `clip_config` must name a type of torch, such as 'float32'.",
            )
        for config in (self, self.clip_config, text_config, vision_config):
            for name in SWITCHES:
                value = getattr(config, name)
                self._require(
                    value is None or isinstance(value, bool), f"`{name}` must be true or false, got {value!r}."
                )
        for name in COUNTS:
            value = getattr(self, name)
            self._require(value is None or value == "auto" or value >= 1, f"`{name}` must be at least 1, got {value}.")
        self._require(
            self.class_selection is None or is_class_selection(self.class_selection),
            f"`class_selection` {self.class_selection} must have a margin for each of {', '.join(SELECTION_STAGES)}, "
            f"at least 0, since below that no class would be left, and a list of `weights`: {CHOOSE_MARGINS}.",
        )
        for name in PAIRS:
            self._require(len(getattr(self, name)) == 2, f"`{name}` must have two entries, got {getattr(self, name)}.")
        self._require(
            self.image_size % patch_size == 0,
            f"`image_size` ({self.image_size}) must be a multiple of CLIP's patch size ({patch_size}).",
        )
        self._require(
            self.feature_size % self.window_size == 0,
            f"The feature grid of {self.feature_size} x {self.feature_size} (`image_size` {self.image_size} / patch "
            f"size {patch_size}) cannot be cut into windows of {self.window_size}: choose a `window_size` that "
            f"divides {self.feature_size}.",
        )
        self._require(
            self.hidden_size % self.num_attention_heads == 0,
            f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` "
            f"({self.num_attention_heads}).",
        )
        early, late = self.guidance_layers
        self._require(
            0 <= early < late < num_blocks - 1,
            f"`guidance_layers` {[early, late]} must be two ascending 0-based indices of vision blocks before the "
            f"last one, that is between 0 and {num_blocks - 2}.",
        )
        for name in ("pooling_size", "eval_pooling_size"):
            self._require(
                all(1 <= size <= self.feature_size for size in getattr(self, name)),
                f"`{name}` {getattr(self, name)} must lie between 1 and the feature grid's side "
                f"({self.feature_size}).",
            )
        self._require(
            self.num_class_tokens >= 0,
            "`num_class_tokens` must be positive, or 0 to turn padding and class cut off, got "
            f"{self.num_class_tokens}.",
        )
        in_channels = self.hidden_size
        for out_channels, guidance_channels, guidance_size in zip(
            self.decoder_sizes, self.decoder_guidance_channels, self.decoder_guidance_sizes, strict=True
        ):
            self._require(
                out_channels >= 16 and out_channels % 16 == 0,
                f"`decoder_sizes` {self.decoder_sizes} must be multiples of 16, the channels of a normalisation "
                "group.",
            )
            self._require(
                guidance_channels >= 1 and 1 <= guidance_size < in_channels,
                f"`decoder_guidance_sizes` {self.decoder_guidance_sizes} must be positive and leave room in the "
                f"decoder's input channels {[self.hidden_size, self.decoder_sizes[0]]}, and "
                f"`decoder_guidance_channels` {self.decoder_guidance_channels} must be positive.",
            )
            in_channels = out_channels
        self._require(
            0 <= self.sliding_window_overlap < 1 and self.sliding_window_stride >= 1,
            f"`sliding_window_overlap` must lie in [0, 1) and leave a stride of at least one pixel, got "
            f"{self.sliding_window_overlap} for windows of {self.sliding_window_size}.",
        )

    @staticmethod
    def _require(condition: bool, message: str):
        if not condition:
            raise ValueError(message)


__all__ = ["CATSegConfig"]

"""Processor of CAT-Seg: images through the image processor, a vocabulary through prompts and CLIP's tokenizer."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.tokenization_utils_base import LARGE_INTEGER

from .class_words_catseg import BAR, split_labels
from .errors import UserError, first_line
from .image_processing_catseg import CATSegImageProcessorKwargs
from .remote_code_catseg import PROCESSOR_AUTO_MAP


DEFAULT_PROMPT_TEMPLATES = ["A photo of a {} in the scene"]
CLIP_MAX_LENGTH = 77
TEXT_KWARGS = {"max_length", "padding", "return_tensors", "truncation"}


class CATSegProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: CATSegImageProcessorKwargs
    _defaults = {}


class CATSegProcessor(ProcessorMixin):
    """
    Combines a CAT-Seg image processor and a CLIP tokenizer.

    Args:
        image_processor ([`CATSegImageProcessor`] or [`CATSegImageProcessorPil`]):
            Prepares images and label maps.
        tokenizer ([`CLIPTokenizer`]):
            Tokenises the prompts.
        prompt_templates (`list[str]`, *optional*, defaults to `["A photo of a {} in the scene"]`):
            Sentences in which `{}` stands for the class; P templates make P prompts per class. Saved with the
            processor.

    Raises:
        `UserError`: for no templates, or one that does not hold exactly one `{}` and no other brace.
    """

    _auto_class = "AutoProcessor"
    valid_processor_kwargs = CATSegProcessorKwargs

    def __init__(self, image_processor, tokenizer, prompt_templates: list[str] | None = None):
        self.prompt_templates = _check_templates(
            DEFAULT_PROMPT_TEMPLATES if prompt_templates is None else prompt_templates
        )
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """
        See [`ProcessorMixin.from_pretrained`].

        Raises:
            OSError: If a file is missing or damaged.
        """
        try:
            processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
            processor.encode_vocabulary(["a"])  # some damage shows in use only
            return processor
        except (ImportError, OSError, UserError):
            raise
        except Exception as error:  # tokenizers and transformers raise all kinds for damaged files
            raise OSError(
                f"The processor of {str(pretrained_model_name_or_path)!r} could not be loaded, its files may be "
                f"damaged: {first_line(error)}."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "auto_map": dict(PROCESSOR_AUTO_MAP)}

    @property
    def unused_input_names(self) -> list[str]:
        # Under the text tower's causal mask nothing behind the end-of-text token counts.
        return ["attention_mask"]

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[CATSegProcessorKwargs],
    ) -> BatchFeature:
        """
        Prepares images and/or a vocabulary for the model.

        Args:
            images (`ImageInput`, *optional*):
                One image or several, see [`CATSegImageProcessorPil.preprocess`].
            text (`str` or `list[str]`, *optional*):
                The vocabulary: T labels, shared by all images, see `encode_vocabulary`.
            segmentation_maps (`ImageInput`, *optional*):
                One label map per image.
            kwargs:
                Arguments of the image processor, also as `images_kwargs={...}`; `padding` and `max_length`, see
                `encode_vocabulary`; `truncation`, which changes nothing, since prompts are never cut;
                `return_tensors`, by default `"pt"`, else `"np"` or `None` for lists.

        Returns:
            `BatchFeature` with `pixel_values`, `global_pixel_values` and `labels` as the image processor returns them,
            and `input_ids` of shape (T, L) for one prompt template, (T, P, L) for several; no attention mask.

        Raises:
            `TypeError`: for arguments that are not listed here.
            `UserError`: when neither images nor a vocabulary are given, maps without images, or what the image
            processor and `encode_vocabulary` refuse.
        """
        if images is None and text is None:
            raise UserError("Neither `images` nor `text` was given: pass images, a vocabulary (labels), or both.")
        if images is None and segmentation_maps is not None:
            raise UserError("`segmentation_maps` were given without `images`: pass the images they belong to.")
        self._check_kwargs(kwargs)
        kwargs = self._merge_kwargs(CATSegProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        text_kwargs = kwargs["text_kwargs"]
        return_tensors = text_kwargs.get("return_tensors", "pt")
        data = {}
        if images is not None:
            images_kwargs = kwargs["images_kwargs"] | {"return_tensors": return_tensors}
            data.update(self.image_processor(images, segmentation_maps=segmentation_maps, **images_kwargs))
        if text is not None:
            input_ids = self.encode_vocabulary(text, text_kwargs.get("padding", True), text_kwargs.get("max_length"))
            input_ids = input_ids[:, 0] if len(self.prompt_templates) == 1 else input_ids
            data["input_ids"] = input_ids.tolist() if return_tensors is None else input_ids
        return BatchFeature(data, tensor_type=return_tensors)

    def _check_kwargs(self, kwargs: dict[str, Any]):
        images_kwargs = self.image_processor.valid_kwargs.__annotations__.keys()
        accepted = TEXT_KWARGS | images_kwargs | {"common_kwargs", "images_kwargs", "text_kwargs"}
        refused = sorted({*kwargs, *kwargs.get("text_kwargs", {})} - accepted)
        if refused:
            raise TypeError(
                f"{type(self).__name__} takes no argument {', '.join(map(repr, refused))}: beside the image "
                f"processor's, {', '.join(map(repr, sorted(TEXT_KWARGS)))} are accepted."
            )

    def encode_vocabulary(
        self, labels: str | list[str], padding: bool | str = True, max_length: int | None = None
    ) -> torch.LongTensor:
        """
        Tokenises every label in every prompt template.

        Args:
            labels (`str` or `list[str]`):
                T labels: a list, or one string of labels separated by commas. In a list, "a, b, c" is one label with
                synonyms, of which the first is prompted.
            padding (`bool` or `str`, *optional*, defaults to `True`):
                `"max_length"` pads to `max_length` tokens, everything else to the longest prompt.
            max_length (`int`, *optional*):
                Most tokens of a prompt. By default as many as CLIP takes, 77.

        Returns:
            `torch.LongTensor` of shape (T, P, L): begin of text, the prompt, end of text, then padding on the right up
            to L tokens.

        Raises:
            `UserError`: for no labels; a label that is not a string, is blank or occurs twice; a prompt of more than
            `max_length` tokens, or a `max_length` that is more than CLIP takes.
        """
        labels = split_labels(labels)
        names = _first_synonyms(labels)
        prompts = [template.replace("{}", name) for name in names for template in self.prompt_templates]
        # A label that spells out "<|endoftext|>" is text like any other, not the end of its prompt.
        token_ids = self.tokenizer(
            prompts, padding=False, truncation=False, split_special_tokens=True, verbose=False
        ).input_ids
        context_length = self.tokenizer.model_max_length
        context_length = context_length if context_length < LARGE_INTEGER else CLIP_MAX_LENGTH
        max_length = context_length if max_length is None else max_length
        if max_length > context_length:
            raise UserError(f"`max_length` is {max_length}, but CLIP takes at most {context_length} tokens.")
        for index, ids in enumerate(token_ids):
            if len(ids) > max_length:
                raise UserError(
                    f"The prompt for label {labels[index // len(self.prompt_templates)]!r} has {len(ids)} tokens, but "
                    f"at most {max_length} are accepted: shorten the label or the prompt template."
                )
        pad_token_id = self.tokenizer.pad_token_id
        pad_token_id = self.tokenizer.eos_token_id if pad_token_id is None else pad_token_id
        length = max_length if padding == "max_length" else max(map(len, token_ids))
        input_ids = torch.full((len(prompts), length), pad_token_id)
        for row, ids in zip(input_ids, token_ids, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return input_ids.view(len(labels), len(self.prompt_templates), -1)

    def post_process_semantic_segmentation(self, *args: Any, **kwargs: Any) -> list:
        """See [`CATSegImageProcessorPil.post_process_semantic_segmentation`]."""
        return self.image_processor.post_process_semantic_segmentation(*args, **kwargs)


def _check_templates(templates: str | Iterable[str]) -> list[str]:
    if not isinstance(templates, Iterable):
        raise UserError(f"`prompt_templates` is {templates!r}, but a list of sentences with a {{}} is needed.")
    templates = [templates] if isinstance(templates, str) else list(templates)
    if not templates:
        raise UserError("`prompt_templates` is empty: pass at least one sentence with a {}.")
    for template in templates:
        is_text = isinstance(template, str) and _is_unicode(template)
        if not is_text or template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
            raise UserError(
                f"The prompt template {template!r} is not accepted: pass a string with exactly one {{}} and no other "
                "brace."
            )
    return templates


def _is_unicode(text: str) -> bool:
    """Whether text can be encoded, unlike that with halves of surrogate pairs, which JSON may hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _first_synonyms(labels: list[str]) -> list[str]:
    """The first synonym of every label, after a check of the vocabulary."""
    if not labels:
        raise UserError("The vocabulary is empty: pass at least one label.")
    seen: dict[str, int] = {}
    names = []
    for index, label in enumerate(labels):
        if not isinstance(label, str):
            raise UserError(f"Label {index} is {label!r}, but only strings are accepted: pass class names.")
        name = label.split(",")[0].strip()
        if not name:
            raise UserError(
                f"Label {index} is {label!r}, which has a blank first synonym: pass a name, or leave the label out."
            )
        if not _is_unicode(label):
            raise UserError(f"Label {index} is {label!r}, which is no Unicode text: it has half of a surrogate pair.")
        if BAR in label:
            raise UserError(
                f"Label {index} is {label!r}: several words for one class, with bars between them, are taken by the "
                "pipeline's `candidate_labels` and by --labels; name one of them here."
            )
        if label in seen:
            raise UserError(
                f"Label {label!r} occurs twice (places {seen[label]} and {index}), but labels must differ: keep one."
            )
        seen[label] = index
        names.append(name)
    return names


__all__ = ["CATSegProcessor", "CATSegProcessorKwargs"]

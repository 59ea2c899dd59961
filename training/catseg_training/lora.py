"""LoRA (Hu et al., 2021) on CLIP's attention, in place of training its query and value projections, through peft."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from catseg_hf import CATSegForSemanticSegmentation


if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_CONFIG = "adapter_config.json"


def add_lora(model: CATSegForSemanticSegmentation, rank: int) -> "PeftModel":
    """
    Puts LoRA on the query and value projections of both CLIP towers, except where the model does not compute them.
    Outside CLIP everything is trained, and saved with the adapter.

    Args:
        model ([`CATSegForSemanticSegmentation`]): The model, which is changed.
        rank (`int`): Rank of every update. It is not scaled: alpha is the rank.

    Returns:
        `PeftModel`, whose trained parameters are LoRA's and copies of the aggregator and the decoder.

    Raises:
        ValueError: If peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError("--lora_rank needs peft: install it (pip install peft).") from None
    last_block = len(model.clip.vision_model.encoder.layers) - 1
    unused = f"vision_model.encoder.layers.{last_block}.self_attn.q_proj"
    projections = [
        name
        for name, _ in model.named_modules()
        if name.endswith(("self_attn.q_proj", "self_attn.v_proj")) and not name.endswith(unused)
    ]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=projections, modules_to_save=["aggregator", "decoder"])
    return get_peft_model(model, config)


def save_adapter(model: "PeftModel", folder: Path, base: str, state_dict: dict[str, Any] | None = None):
    """
    Writes the adapter that `PeftModel.from_pretrained(base_model, folder)` loads.

    Args:
        model (`PeftModel`): Of [`add_lora`].
        folder (`Path`): Where to.
        base (`str`): The checkpoint that the adapter belongs to, as the adapter names it.
        state_dict (`dict`, *optional*): The weights, if they are not to be taken from the model.
    """
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    # Embeddings are not trained; to find out by itself peft would ask the Hub.
    model.save_pretrained(folder, save_embedding_layers=False, state_dict=state_dict)


def is_adapter(folder: str) -> bool:
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def load_adapter(folder: str, **options: Any) -> CATSegForSemanticSegmentation:
    """
    A model with an adapter merged into its weights.

    Args:
        folder (`str`): What [`save_adapter`] wrote.
        options: As of `CATSegForSemanticSegmentation.from_pretrained`, for the checkpoint that the adapter names.

    Raises:
        ValueError: If peft is not installed.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError:
        raise ValueError(f"{folder} is an adapter, which needs peft: install it (pip install peft).") from None
    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    if (Path(folder) / base).is_dir():  # written beside the adapter
        base = str(Path(folder) / base)
    model = CATSegForSemanticSegmentation.from_pretrained(base, **options)
    return PeftModel.from_pretrained(model, folder).merge_and_unload()


def is_lora(model: nn.Module) -> bool:
    """Whether a model is one of [`add_lora`]."""
    return hasattr(model, "peft_config")

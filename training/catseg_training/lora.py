"""LoRA (Hu et al., 2021) on CLIP's attention, in place of training its query and value projections, through peft."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from catseg_hf import CATSegForSemanticSegmentation
from catseg_hf.errors import UserError
from catseg_hf.modeling_catseg_cost_volume import unused_parameters


if TYPE_CHECKING:
    from peft import PeftModel

# The folder of the adapter, beside the merged model.
ADAPTER = "adapter"
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
        UserError: If peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("--lora_rank needs peft: install it (pip install peft).") from None
    unused = unused_parameters(model.clip)
    projections = [
        name
        for name, module in model.named_modules()
        if name.endswith(("self_attn.q_proj", "self_attn.v_proj")) and module.weight not in unused
    ]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=projections, modules_to_save=["aggregator", "decoder"])
    return get_peft_model(model, config)


def save_adapter(model: "PeftModel", folder: Path, base: str | None, state_dict: dict[str, Any] | None = None):
    """
    Writes the adapter that `PeftModel.from_pretrained(base_model, folder)` loads.

    Args:
        model (`PeftModel`): Of [`add_lora`].
        folder (`Path`): Where to.
        base (`str`, *optional*): The repository on the Hub that the adapter belongs to. A folder is not named: the
            name would mean another one elsewhere.
        state_dict (`dict`, *optional*): The weights, if they are not to be taken from the model.
    """
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    # Embeddings are not trained; to find out by itself peft would ask the Hub.
    model.save_pretrained(folder, save_embedding_layers=False, state_dict=state_dict)


def merged_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Weights of a model of [`add_lora`], with every update added to the weight that it is for, under the names of the
    model without LoRA. Unlike peft's `merge_and_unload` it takes what was gathered from a sharded model.
    """
    merged = {}
    for name, tensor in state_dict.items():
        if ".original_module." in name or ".lora_" in name:
            continue
        if ".base_layer.weight" in name:
            down, up = (state_dict[name.replace("base_layer", f"lora_{part}.default")] for part in "AB")
            tensor = tensor + up @ down  # alpha is the rank: nothing is scaled
        name = name.removeprefix("base_model.model.")
        merged[name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")] = tensor
    return merged


def is_lora(model: nn.Module) -> bool:
    """Whether a model is one of [`add_lora`]."""
    return hasattr(model, "peft_config")

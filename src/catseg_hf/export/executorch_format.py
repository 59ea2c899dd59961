"""ExecuTorch with XNNPACK: a fixed artefact is a program, and its metadata in `model.json` beside it, since the
program's file has no place for them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


FILE = "model.pte"
OPTIONS = {"backend": "xnnpack"}


def prepare(module: nn.Module):
    """Writes attention out: XNNPACK takes its products and its softmax, but not the checks for queries without any key
    that torch's own attention comes with."""
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            part.config._attn_implementation = "eager"


def finish(program: Any, example: Mapping[str, torch.Tensor], dynamic_shapes: Mapping[str, Any]):
    """Nothing is left to do."""


def save(component: Any, path: Path, metadata: Mapping[str, str]):
    """Writes a program, and the metadata, whose values are JSON."""
    with path.open("wb") as file:
        component.program.write_to_file(file)
    values = {name: json.loads(value) for name, value in metadata.items()}
    path.with_suffix(".json").write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

"""The weights of an original CAT-Seg checkpoint as those of [`CATSegForSemanticSegmentation`]."""

from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch

from ..configuration_catseg import CATSegConfig
from ..errors import UserError
from ..modeling_catseg import CATSegForSemanticSegmentation
from .original_architecture import refuse_other_models
from .original_layout import DROPPED, RULES, original_tensors, source_names


MAX_LISTED = 10


def convert_state_dict(state_dict: Mapping[str, Any], config: CATSegConfig) -> dict[str, torch.Tensor]:
    """
    Parameters of [`CATSegForSemanticSegmentation`] from an original checkpoint. They share the memory of the given
    tensors where their layout is the same.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`):
            Tensors under the authors' names, possibly with `module.` in front or under "model".
        config (`CATSegConfig`): Their architecture.

    Returns:
        `dict[str, torch.Tensor]`: Every parameter of the model.

    Raises:
        UserError: If tensors are of no known use, missing, of another shape or not finite, with their names; or if it
        is a checkpoint of another model.
    """
    tensors = original_tensors(state_dict)
    refuse_other_models(tensors)
    expected = expected_shapes(config)
    problems: dict[str, list[str]] = defaultdict(list)
    converted: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        if DROPPED.fullmatch(key):
            continue
        parts = _convert_tensor(key, tensor, config)
        if parts is None or not parts.keys() <= expected.keys():
            problems["of no known use"].append(key)
        elif parts.keys() & converted.keys():
            problems["given twice"].append(key)
        elif any(part is None or part.shape != expected[name] for name, part in parts.items()):
            wanted = " and ".join(str(list(expected[name])) for name in parts)
            problems["misshapen"].append(f"{key} {list(tensor.shape)}, which has to give {wanted}")
        elif not tensor.is_floating_point():
            problems["without a floating-point type"].append(f"{key} ({tensor.dtype})")
        elif not tensor.isfinite().all():
            problems["not finite"].append(key)
        converted.update(parts or {})
    if missing := expected.keys() - converted.keys():
        problems["missing"] = _sources(missing, config)
    if problems:
        raise UserError(_describe(problems))
    return {name: part.contiguous() for name, part in converted.items()}


def _convert_tensor(key: str, tensor: torch.Tensor, config: CATSegConfig) -> dict[str, torch.Tensor | None] | None:
    """What a tensor gives, by our names: `None` if it has no use; the parts are `None` if it cannot be split so."""
    for pattern, targets, transform in RULES:
        if match := pattern.fullmatch(key):
            names = [match.expand(target) for target in targets]
            try:
                return dict(zip(names, transform(tensor, config), strict=True))
            except (IndexError, RuntimeError, ValueError):
                return dict.fromkeys(names)
    return None


def _sources(targets: set[str], config: CATSegConfig) -> list[str]:
    """The authors' names of the tensors that would give these parameters."""
    clip_config = config.clip_config
    num_layers = max(
        config.num_hidden_layers,
        clip_config.vision_config.num_hidden_layers,
        clip_config.text_config.num_hidden_layers,
    )
    names = source_names(num_layers)
    return sorted({names.get(target, target) for target in targets})


def _describe(problems: dict[str, list[str]]) -> str:
    """All kinds of problems with their counts, the rarest first, and at most ten names in all."""
    lines, room = ["The checkpoint does not fit this architecture of CAT-Seg."], MAX_LISTED
    for index, (kind, keys) in enumerate(sorted(problems.items(), key=lambda item: len(item[1]))):
        shown = keys[: room // (len(problems) - index)]
        room -= len(shown)
        more = [f"and {len(keys) - len(shown)} more"] if len(keys) > len(shown) else []
        lines.append(f"{len(keys)} tensor{'s' * (len(keys) > 1)} {kind}: " + "; ".join(shown + more))
    return "\n  ".join(lines)


def expected_shapes(config: CATSegConfig) -> dict[str, torch.Size]:
    """Shapes of all parameters of the model."""
    with torch.device("meta"):
        model = CATSegForSemanticSegmentation(deepcopy(config))  # a model writes into its configuration
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def build_model(converted: dict[str, torch.Tensor], config: CATSegConfig) -> CATSegForSemanticSegmentation:
    """
    The model with these parameters themselves (not copies), at evaluation, and with no vocabulary yet.

    Raises:
        UserError: If they are not exactly the parameters that the architecture has.
    """
    given, expected = {name: tensor.shape for name, tensor in converted.items()}, expected_shapes(config)
    if wrong := sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name)):
        details = [f"{name}: {given.get(name)} instead of {expected.get(name)}" for name in wrong[:MAX_LISTED]]
        raise UserError(f"{len(wrong)} parameters do not fit the architecture: {details}")
    with torch.device("meta"):
        model = CATSegForSemanticSegmentation(config)
    model.load_state_dict(converted, strict=False, assign=True)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            persistent = name not in module._non_persistent_buffers_set
            values = torch.zeros_like(buffer, device="cpu")
            if name == "position_ids":
                values = torch.arange(buffer.shape[-1]).expand(buffer.shape).clone()
            module.register_buffer(name, values, persistent=persistent)
    return model.eval()

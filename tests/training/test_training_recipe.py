"""Gradients and steps of the published recipe against the authors' code; `test_train_exact.py` has all ten of them."""

import json
from collections.abc import Iterable

import pytest
import torch
from safetensors.torch import load_file

from catseg_hf.conversion.original_layout import RULES
from catseg_training.optimization import MAX_GRAD_NORM, build_optimizer, build_scheduler
from conftest import FIXTURES


@pytest.fixture(scope="module")
def golden_training():
    return json.loads((FIXTURES / "training.json").read_text())


def targets_of(original_name: str) -> list[str]:
    """Our parameters that hold a parameter of the authors' code."""
    for pattern, targets, _ in RULES:
        if match := pattern.fullmatch(original_name):
            return [match.expand(target) for target in targets]
    raise KeyError(original_name)


def total_norm(tensors: Iterable[torch.Tensor | None]) -> float:
    norms = [tensor.detach().norm() for tensor in tensors if tensor is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def test_recipe(model, golden_inputs, golden_training):
    labels = load_file(FIXTURES / "training_labels.safetensors")["labels"].long()
    model.train()
    model.freeze_clip("attention")
    optimizer = build_optimizer(
        model,
        learning_rate=golden_training["base_lr"],
        clip_lr_multiplier=golden_training["clip_lr_multiplier"],
        weight_decay=golden_training["weight_decay"],
    )
    scheduler = build_scheduler(optimizer, golden_training["max_iter"])
    parameters = dict(model.named_parameters())
    expected = {tuple(targets_of(row["name"])): row for row in golden_training["params"]}
    # The authors leave one weight to train that no gradient reaches, and that never changes.
    unreached = {names for names, row in expected.items() if row["grad_norm_step0"] == 0}
    assert [len(names) for names in unreached] == [1]
    for (name,) in unreached:
        assert not parameters[name].requires_grad
        assert float(parameters[name].norm()) == pytest.approx(expected[name,]["final_norm"], rel=1e-6)

    trainable = {name for name, parameter in parameters.items() if parameter.requires_grad}
    assert trainable == {name for names in expected.keys() - unreached for name in names}
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    assert groups.keys() == {parameters[name] for name in trainable}
    for names, row in expected.items():
        for name in set(names) & trainable:
            group = groups[parameters[name]]
            assert group["lr"] == pytest.approx(row["lr"]) and group["weight_decay"] == row["weight_decay"], name

    for step, (loss, norm) in enumerate(
        zip(golden_training["losses"][:3], golden_training["grad_norms"], strict=False)
    ):
        outputs = model(**golden_inputs, labels=labels)
        outputs.loss.backward()
        if step == 0:
            for names, row in expected.items():
                gradient = total_norm(parameters[name].grad for name in names)
                assert gradient == pytest.approx(row["grad_norm_step0"], rel=1e-3, abs=1e-7), names
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        assert outputs.loss.item() == pytest.approx(loss, rel=1e-3)
        assert grad_norm.item() == pytest.approx(norm, rel=1e-3)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("mode, share", [("none", 0.0), ("attention", 0.15), ("full", 0.97)])
def test_freeze_clip(model, mode, share):
    model.freeze_clip("full")
    model.freeze_clip(mode)
    clip = list(model.clip.parameters())
    trained = sum(parameter.numel() for parameter in clip if parameter.requires_grad)
    assert trained / sum(parameter.numel() for parameter in clip) == pytest.approx(share, abs=0.02)
    outside = set(model.parameters()) - set(clip)
    assert all(parameter.requires_grad for parameter in outside)


def test_freeze_clip_refuses_other_modes(model):
    with pytest.raises(ValueError, match="'attention', 'full' or 'none'.*got 'all'"):
        model.freeze_clip("all")


def test_schedule_falls_to_zero(model):
    optimizer = build_optimizer(model)
    scheduler = build_scheduler(optimizer, num_training_steps=4, num_warmup_steps=1)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    peak = max(rates)
    assert rates == pytest.approx([0, peak, 0.75 * peak, 0.25 * peak, 0], abs=1e-12)

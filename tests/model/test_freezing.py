"""What `freeze_clip` leaves to train gets a gradient, in one process and in several that wait for all of them."""

import os
import subprocess
import sys

import pytest
import torch

from catseg_hf import CATSegForSemanticSegmentation
from catseg_hf.conversion.original_architecture import infer_config
from conftest import ROOT


MODES = ["attention", "full", "none"]


def loss_of(model: CATSegForSemanticSegmentation, num_classes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_classes)
    size = model.config.image_size
    input_ids = torch.randint(1, 400, (num_classes, 1, 8), generator=generator)
    input_ids[..., -1] = model.config.clip_config.text_config.eos_token_id
    pixel_values = torch.randn(1, 3, size, size, generator=generator)
    labels = torch.randint(num_classes, (1, size, size), generator=generator)
    return model(pixel_values, input_ids, labels=labels).loss


@pytest.mark.parametrize(("num_classes", "num_class_tokens"), [(3, 0), (3, 4), (4, 4), (5, 4)])
@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_reaches_all_that_is_left_to_train(mode, num_classes, num_class_tokens, original_state_dict):
    config = infer_config(original_state_dict)
    config.num_class_tokens = num_class_tokens
    model = CATSegForSemanticSegmentation(config).train()
    model.freeze_clip(mode)
    loss_of(model, num_classes).backward()
    unreached = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not unreached


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_those_without_freezing_what_no_gradient_reaches(mode, model):
    """AdamW leaves a weight without a gradient as it is, decay included."""
    results = []
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for all_of_it in (False, True):
        model.load_state_dict(start)
        model.train().freeze_clip(mode)
        if all_of_it:
            attention = model.clip.vision_model.encoder.layers[-1].self_attn
            for value in (model.clip.logit_scale, *attention.q_proj.parameters(), *attention.k_proj.parameters()):
                value.requires_grad_(True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        loss_of(model, 3).backward()
        optimizer.step()
        model.zero_grad()
        results.append({name: value.clone() for name, value in model.state_dict().items()})
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
    assert any(not torch.equal(value, start[name]) for name, value in results[0].items())


@pytest.mark.slow
def test_own_loop_in_two_processes(small_checkpoint):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*launcher, ROOT / "tests" / "catseg_testing" / "parallel_loop.py", small_checkpoint, *MODES]
    result = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == MODES

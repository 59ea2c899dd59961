"""The model as FSDP shards it. accelerate does that on GPUs only, so that torch's part of it is tested here."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed
from accelerate.utils import DistributedType
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from catseg_testing.tiny_training import save_checkpoint
from catseg_training.model import load_checkpoint
from catseg_training.sharding import WRAPPED_MODULES, prepare_for_sharding


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def accelerator_of(distributed_type: DistributedType, wrapped: list[str] | None = None) -> SimpleNamespace:
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=wrapped)
    return SimpleNamespace(distributed_type=distributed_type, state=SimpleNamespace(fsdp_plugin=plugin))


def test_only_for_fsdp(tmp_path):
    model, _ = load_checkpoint(str(save_checkpoint(tmp_path)))
    prepare_for_sharding(accelerator_of(DistributedType.MULTI_GPU), model)
    assert isinstance(model.clip.logit_scale, torch.nn.Parameter)
    accelerator = accelerator_of(DistributedType.FSDP, ["CLIPMLP"])
    prepare_for_sharding(accelerator, model)
    assert accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap == ["CLIPMLP"]


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
def test_sharded(group, tmp_path):
    model, _ = load_checkpoint(str(save_checkpoint(tmp_path)))
    expected, _ = load_checkpoint(str(tmp_path))
    accelerator = accelerator_of(DistributedType.FSDP)
    prepare_for_sharding(accelerator, model)
    assert accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap == WRAPPED_MODULES
    assert model.state_dict().keys() == expected.state_dict().keys()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    wrapped = [module for module in model.modules() if type(module).__name__ in WRAPPED_MODULES]
    assert {type(module).__name__ for module in wrapped} == set(WRAPPED_MODULES)
    for module in (*wrapped, model):
        fully_shard(module, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())

    generator = torch.Generator().manual_seed(0)
    inputs = {
        "pixel_values": torch.randn(2, 3, 32, 32, generator=generator),
        "labels": torch.randint(5, (2, 32, 32), generator=generator),
    }
    losses = [each.train()(**inputs).loss for each in (model, expected)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in expected.named_parameters():
        if parameter.grad is not None and parameter.grad.any():
            torch.testing.assert_close(gradients[name].full_tensor(), parameter.grad)
    for each in (model, expected):
        each.eval()
    with torch.no_grad():
        logits = [each(inputs["pixel_values"], sliding_window=True).logits for each in (model, expected)]
    torch.testing.assert_close(*logits)

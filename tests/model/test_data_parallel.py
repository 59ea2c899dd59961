"""Replicas of `torch.nn.DataParallel`, which gives each a chunk of every tensor argument: of the images, and of the
classes too."""

from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn.parallel import replicate


NUM_REPLICAS = 2


@pytest.fixture
def data_parallel(monkeypatch):
    """Calls a model as `torch.nn.DataParallel` does on two devices, on the CPU: only the copies of tensors from device
    to device are left out."""

    def copies(tensors: list[torch.Tensor], devices: list[int], detach: bool = False) -> list[list[torch.Tensor]]:
        return [[tensor.detach() if detach else tensor.view_as(tensor) for tensor in tensors] for _ in devices]

    module = import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", copies)
    monkeypatch.setattr(module, "_get_device_index", lambda device, optional: device)

    def call(model: nn.Module, check_values: bool = True, **tensors: torch.Tensor) -> list:
        chunks = {name: tensor.chunk(NUM_REPLICAS) for name, tensor in tensors.items()}
        inputs = [dict(zip(chunks, values, strict=True)) for values in zip(*chunks.values(), strict=False)]
        replicas = replicate(model, list(range(len(inputs))), detach=not torch.is_grad_enabled())
        return [
            replica(**arguments, check_values=check_values)
            for replica, arguments in zip(replicas, inputs, strict=True)
        ]

    return call


@pytest.fixture
def model(model_with_vocabulary):
    return model_with_vocabulary


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vocabularies(model, processor):
    """Four classes as each argument takes them."""
    input_ids = processor(text=["horse", "road", "tree", "car"]).input_ids
    text_embeds = model.get_text_embeds(input_ids).detach()
    return {
        "input_ids": {"input_ids": input_ids},
        "attention_mask": {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)},
        "text_embeds": {"text_embeds": text_embeds},
    }


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "text_embeds"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("part", [lambda model: model, lambda model: model.catseg], ids=["whole", "without decoder"])
def test_a_vocabulary_is_refused(data_parallel, model, pixel_values, vocabularies, name, training, part):
    model.train(training)
    with pytest.raises(ValueError, match=rf"DataParallel.*`{name}`.*torchrun.*set_vocabulary"):
        data_parallel(part(model), pixel_values=pixel_values, **vocabularies[name])
    with pytest.raises(ValueError, match="DataParallel"):
        data_parallel(part(model), pixel_values=pixel_values[:1], **vocabularies[name])


def test_it_is_refused_without_a_look_at_values(data_parallel, model, pixel_values, vocabularies):
    with pytest.raises(ValueError, match="DataParallel.*`text_embeds`"):
        data_parallel(model, pixel_values=pixel_values, check_values=False, **vocabularies["text_embeds"])


@torch.no_grad()
def test_the_models_own_vocabulary_is_segmented(data_parallel, model, pixel_values):
    model.config.sliding_window = False
    for _ in range(2):  # before and after the model has kept its text features
        outputs = data_parallel(model.eval(), pixel_values=pixel_values)
        logits = torch.cat([output.logits for output in outputs])
        torch.testing.assert_close(logits, model(pixel_values).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_models_own_vocabulary_is_trained(data_parallel, model, pixel_values, checkpointing):
    labels = torch.randint(4, (2, 24, 24), generator=torch.Generator().manual_seed(0))
    weight = model.train().clip.text_model.encoder.layers[0].self_attn.q_proj.weight
    model(pixel_values, labels=labels).loss.backward()
    expected, weight.grad = weight.grad, None
    if checkpointing:
        model.activation_checkpointing_enable()
    outputs = data_parallel(model, pixel_values=pixel_values, labels=labels)
    torch.stack([output.loss for output in outputs]).mean().backward()
    torch.testing.assert_close(weight.grad, expected, rtol=1e-3, atol=1e-6)
    assert expected.abs().max() > 1e-4

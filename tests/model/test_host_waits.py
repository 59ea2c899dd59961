"""How often a call waits for an accelerator, counted on the CPU."""

import pytest
import torch
from PIL import Image

from catseg_hf import OpenVocabularySegmentationPipeline, post_processing_catseg
from catseg_testing.host_waits import HostWaits


@pytest.fixture
def model(model_with_vocabulary):
    return model_with_vocabulary.eval()


@pytest.fixture(autouse=True)
def as_on_an_accelerator(monkeypatch):
    """The arg max takes all classes, as it does anywhere but on the CPU."""
    monkeypatch.setattr(post_processing_catseg, "_possible_classes", lambda logits: torch.arange(len(logits)))


@pytest.fixture
def pixel_values():
    return torch.randn(1, 3, 640, 640, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "call, kind",
    [
        (lambda tensor: bool(tensor.any()), "_local_scalar_dense"),
        (lambda tensor: tensor.sum().item(), "_local_scalar_dense"),
        (lambda tensor: torch.arange(4)[tensor[0].long()], "_local_scalar_dense"),
        (lambda tensor: tensor.nonzero(), "nonzero"),
        (lambda tensor: tensor[tensor > 0], "index"),
        (lambda tensor: torch.equal(tensor, tensor.clone()), "equal"),
        (lambda tensor: tensor.unique(), "unique"),
        (lambda tensor: tensor.tolist(), "tolist"),
        (lambda tensor: tensor.to("meta"), "_to_copy"),
    ],
)
def test_waits_are_found(call, kind):
    with HostWaits() as host:
        call(torch.ones(4))
    assert len(host.waits) == 1 and kind in host.waits[0]


def test_what_stays_on_the_device_is_no_wait():
    with HostWaits() as host:
        tensor = torch.ones(4).to(torch.float64)
        tensor[tensor.argsort()].masked_fill(tensor > 0, 1.0).isfinite().all()
    assert host.waits == []


@torch.no_grad()
def test_sliding_window(model, processor, pixel_values):
    model(pixel_values)  # encodes the vocabulary
    with HostWaits() as host:
        outputs = model(pixel_values, sliding_window=True)
        processor.image_processor.post_process_semantic_segmentation(outputs, [(480, 640)])
    assert len(host.waits) <= 2, host.waits


@torch.no_grad()
@pytest.mark.parametrize("sliding_window", [False, True])
def test_given_text_features(model, processor, pixel_values, sliding_window):
    text_embeds = model.get_text_embeds(processor(text=["cat", "dog"]).input_ids)
    inputs = {"text_embeds": text_embeds, "global_pixel_values": pixel_values, "sliding_window": sliding_window}
    with HostWaits() as host:
        model(pixel_values, **inputs)
    assert len(host.waits) <= 1, host.waits
    with HostWaits() as host:
        model(pixel_values, **inputs, check_values=False)
    assert host.waits == []


@torch.no_grad()
def test_class_cut(model, pixel_values):
    model.config.num_class_tokens = 3
    text_embeds = torch.nn.functional.normalize(torch.randn(5, 1, 64), dim=-1)
    with HostWaits() as host:
        model(pixel_values, text_embeds=text_embeds, sliding_window=False, check_values=False)
    assert host.waits == []


@pytest.mark.parametrize("recomputed", [True, False])
def test_training_step(model, processor, pixel_values, recomputed):
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    input_ids = processor(text=["cat", "dog"]).input_ids
    if recomputed:
        model.activation_checkpointing_enable()
    with HostWaits() as host:
        model.train()(pixel_values, input_ids=input_ids, labels=labels).loss.backward()
    assert len(host.waits) <= 2, host.waits


def test_pipeline(model, processor):
    segmenter = OpenVocabularySegmentationPipeline(model, processor)
    inputs = segmenter.preprocess(Image.new("RGB", (64, 48)))
    segmenter.forward(inputs)
    with HostWaits() as host:
        segmenter.forward(inputs)
    assert len(host.waits) <= 2, host.waits

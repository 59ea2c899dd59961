"""What users of transformers expect of a model: outputs, errors, recomputation, half precision."""

import logging
import re
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from catseg_hf import CATSegModelOutput, CATSegPreTrainedModel, argument_checks_catseg
from catseg_hf.conversion.literal import literal_loss
from catseg_hf.modeling_catseg_decoder import CATSegDecoder
from catseg_hf.tensor_ops_catseg import resize_bilinear


@pytest.fixture
def inputs(golden_inputs):
    return {**golden_inputs, "sliding_window": False}


def test_outputs(model, golden_inputs):
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model.catseg(**golden_inputs, output_hidden_states=True, output_attentions=True)
    assert isinstance(model, CATSegPreTrainedModel) and isinstance(outputs, CATSegModelOutput)
    assert outputs.last_hidden_state.shape == (2, 5, 24, 24, 48)
    assert outputs.cost_volume.shape == (2, 1, 5, 24, 24)
    assert outputs.image_embeds.shape == (2, 24, 24, 64)
    assert outputs.text_embeds.shape == (5, 1, 64)
    assert [state.shape for state in outputs.guidance_states] == [(2, 24, 24, 128)] * 2
    assert outputs.class_indices is None
    assert [state.shape for state in outputs.hidden_states] == [(2, 5, 24, 24, 48)] * 3
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert [weights.shape for weights in outputs.attentions] == [(2, 5, 2, 4, 4, 144, 144)] * 2
    for weights in outputs.attentions:
        assert torch.allclose(weights.sum(dim=-1), torch.ones(()))


@pytest.mark.parametrize("sliding_window", [False, True])
def test_head_outputs(model, golden_inputs, sliding_window):
    model.set_attn_implementation("eager")
    inputs = {**golden_inputs, "pixel_values": golden_inputs["pixel_values"][:1], "sliding_window": sliding_window}
    with torch.no_grad():
        plain = model(**inputs)
        full = model(**inputs, output_hidden_states=True, output_attentions=True)
        as_tuple = model(**inputs, return_dict=False)
    side = 640 if sliding_window else 96
    assert plain.logits.shape == (1, 5, side, side)
    assert plain.hidden_states is None and plain.attentions is None
    assert torch.equal(plain.logits, full.logits)
    assert len(full.hidden_states) == 3 and len(full.attentions) == 2
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], plain.logits)


@torch.no_grad()
@pytest.mark.parametrize(
    "views_at_once", [pytest.param(None, marks=pytest.mark.slow), 2, pytest.param(5, marks=pytest.mark.slow)]
)
def test_recorded_states_of_the_sliding_window_are_the_global_views(model, golden_inputs, views_at_once):
    model.set_attn_implementation("eager")
    model.config.sliding_window_batch_size = views_at_once
    recorded = {"output_hidden_states": True, "output_attentions": True}
    windows = model(**golden_inputs, sliding_window=True, **recorded)
    global_view = resize_bilinear(golden_inputs["pixel_values"], (model.config.sliding_window_size,) * 2)
    expected = model(global_view, golden_inputs["input_ids"], sliding_window=False, **recorded)
    for name in ("hidden_states", "attentions"):
        torch.testing.assert_close(windows[name], expected[name], rtol=0, atol=1e-4)


def test_output_flags_of_the_config(model, inputs):
    model.config.output_hidden_states = True
    with torch.no_grad():
        assert len(model(**inputs).hidden_states) == 3


def test_hidden_states_are_what_the_layers_work_on(model, golden_inputs):
    outputs = model.catseg(**golden_inputs, output_hidden_states=True)
    for hidden_states in outputs.hidden_states:
        hidden_states.retain_grad()
    outputs.last_hidden_state.sum().backward()
    assert all(hidden_states.grad is not None for hidden_states in outputs.hidden_states)


def test_eager_and_sdpa_agree(model, inputs):
    with torch.no_grad():
        logits = {}
        for implementation in ("eager", "sdpa"):
            model.set_attn_implementation(implementation)
            logits[implementation] = model(**inputs).logits
    assert torch.allclose(logits["eager"], logits["sdpa"], atol=1e-4)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_half_precision(model, inputs, dtype, tolerance):
    with torch.no_grad():
        expected = model(**inputs).logits
        logits = model.to(dtype)(**inputs).logits
    assert logits.dtype == dtype and logits.isfinite().all()
    assert (logits - expected).abs().mean() < tolerance  # of logits whose standard deviation is 0.47
    with torch.no_grad():
        merged = model(**{**inputs, "sliding_window": True}).logits
    assert merged.isfinite().all()


@pytest.mark.slow
def test_bfloat16_decides_alike(model, inputs):
    """Of a model that has learned to tell classes apart: with random weights the best two logits are nearly equal."""
    quadrants = torch.arange(4).view(2, 2).repeat_interleave(48, dim=0).repeat_interleave(48, dim=1)
    labels = torch.stack([quadrants, 4 - quadrants])
    model.freeze_clip("none")
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.02, total_iters=40)
    for _ in range(45):
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    with torch.no_grad():
        expected = model(**inputs).logits.argmax(dim=1)
        decided = model.to(torch.bfloat16)(**inputs).logits.argmax(dim=1)
    assert (expected == labels).float().mean() > 0.9
    assert (decided == expected).float().mean() > 0.99


def test_autocast(model, inputs):
    with torch.no_grad():
        expected = model(**inputs).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, expected)  # features encoded under autocast are not kept
    assert (logits - expected).abs().max() < 0.2


def set_recomputation(model, mode):
    """Off, everywhere (by either kind of checkpointing), or everywhere but in CLIP."""
    if mode == "off":
        model.activation_checkpointing_disable()
        return
    model.activation_checkpointing_enable({"use_reentrant": mode == "reentrant"})
    if mode == "outside CLIP":
        CATSegPreTrainedModel.activation_checkpointing_disable(model.clip)


def layers_by_recomputation(model) -> dict[bool, set[str]]:
    """Classes of the layers that are computed again for the gradients, and of those that are not."""
    layers = {True: set(), False: set()}
    for module in model.modules():
        if isinstance(module, (GradientCheckpointingLayer, CATSegDecoder)):
            layers[module.gradient_checkpointing].add(type(module).__name__)
    return layers


def test_recomputation_is_off_until_it_is_switched_on(model, tmp_path):
    everything = {"CATSegSpatialBlock", "CATSegClassBlock", "CATSegDecoder", "CATSegCrossEntropy"}
    everything.add("CLIPEncoderLayer")
    model.activation_checkpointing_enable()
    model.save_pretrained(tmp_path)
    for new in (type(model)(model.config), type(model).from_pretrained(tmp_path)):
        assert layers_by_recomputation(new.train()) == {True: set(), False: everything}
        new.gradient_checkpointing_enable()
        assert layers_by_recomputation(new) == {True: everything, False: set()}
        new.gradient_checkpointing_disable()
        assert layers_by_recomputation(new) == {True: set(), False: everything}


def gradients(model, inputs) -> dict[str, torch.Tensor]:
    """Of the loss, with the same random numbers in every call."""
    labels = torch.randint(0, 5, (1, 50, 40), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model.zero_grad()
    model(**{**inputs, "pixel_values": inputs["pixel_values"][:1]}, labels=labels).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mode", ["outside CLIP", "everywhere", "reentrant"])
def test_recomputation_changes_no_gradient(model, inputs, mode):
    expected = gradients(model.train(), inputs)
    set_recomputation(model, mode)
    actual = gradients(model, inputs)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "name",
    [
        "catseg.aggregator.layers.0.spatial_aggregation.blocks.1.attention.v_proj",
        "catseg.aggregator.layers.0.spatial_aggregation.blocks.0.mlp.fc1",
        "catseg.aggregator.layers.1.class_aggregation.block.attention.q_proj",
        "catseg.aggregator.layers.1.class_aggregation.block.mlp.fc1",
        "decoder.stages.1.conv2",
    ],
)
def test_recomputation_draws_the_same_random_numbers(model, inputs, name):
    """Dropout on any layer inside what is computed again, such as that of LoRA."""
    model.train().get_submodule(name).register_forward_hook(lambda _, inputs, output: F.dropout(output, p=0.3))
    expected = gradients(model, inputs)
    model.activation_checkpointing_enable()
    actual = gradients(model, inputs)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(actual[parameter], gradient, rtol=1e-4, atol=1e-7)


def kept_bytes(model, inputs) -> int:
    """Of the activations that a forward pass keeps for the gradients."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**inputs, labels=torch.zeros(2, 96, 96, dtype=torch.long)).loss
    del loss
    return sum(kept.values())


@pytest.mark.slow
def test_recomputation_keeps_less(model, inputs):
    kept = {"never switched on": kept_bytes(model.train(), inputs)}
    for mode in ("everywhere", "outside CLIP", "off"):
        set_recomputation(model, mode)
        kept[mode] = kept_bytes(model, inputs)
    assert kept["everywhere"] < kept["outside CLIP"] < kept["off"] / 2
    assert kept["off"] == kept["never switched on"]


@pytest.mark.parametrize("recomputed", [True, False])
def test_recomputed_layers(model, inputs, recomputed):
    """Which layers run once more for the gradients, when recomputation is on and by default."""
    if recomputed:
        model.activation_checkpointing_enable()
    layers = {
        name: module
        for name, module in model.named_modules()
        if name.endswith(("attention.v_proj", "mlp.fc1", "stages.0.conv2", "stages.1.conv2")) and "clip" not in name
    }
    calls = Counter()
    for name, module in layers.items():
        module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    logits = model.train()(**inputs).logits
    once = Counter(calls)
    logits.sum().backward()
    assert len(once) == 14
    assert calls == Counter({name: (1 + recomputed) * count for name, count in once.items()})


@pytest.mark.parametrize("size", [(30, 20), (96, 96), (17, 120)])
@pytest.mark.parametrize("ignore_index", [255, 3])
def test_loss(model, inputs, size, ignore_index):
    model.config.semantic_loss_ignore_index = ignore_index
    labels = torch.randint(0, 5, (2, *size), generator=torch.Generator().manual_seed(0))
    labels[:, :5] = ignore_index
    with torch.no_grad():
        outputs = model(**inputs, labels=labels)
    resized = F.interpolate(outputs.logits, size=size, mode="bilinear")
    assert outputs.loss.item() == pytest.approx(literal_loss(resized, labels, ignore_index).item(), rel=1e-5)


@pytest.mark.parametrize("ignore_index", [255, 3])
def test_an_ignore_index_that_is_a_class_is_said(model, inputs, ignore_index, caplog):
    argument_checks_catseg.logger.warning_once.cache_clear()
    model.config.semantic_loss_ignore_index = ignore_index
    with torch.no_grad():
        model(**inputs, labels=torch.zeros(2, 8, 8, dtype=torch.long))
    assert ("(3) is one of the 5 classes" in caplog.text) == (ignore_index == 3)


@pytest.mark.slow
def test_trainer_accumulates_the_mean(model, inputs, tmp_path):
    """Two images at once, and one after the other: the same loss and gradient."""
    model.set_vocabulary(list("abcde"), inputs["input_ids"])
    results = []
    examples = [
        {"pixel_values": pixels, "labels": torch.zeros(8, 8, dtype=torch.long)} for pixels in inputs["pixel_values"]
    ]
    for batch_size in (2, 1):
        arguments = TrainingArguments(
            tmp_path,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=2 // batch_size,
            learning_rate=0.0,
            max_steps=1,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
        )
        trainer = Trainer(model, arguments, train_dataset=examples)
        trainer.train()
        results.append({name: trainer.state.log_history[0][name] for name in ("loss", "grad_norm")})
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_loss_with_the_sliding_window(model, golden_inputs):
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    with torch.no_grad():
        assert model(**golden_inputs, labels=labels, sliding_window=True).loss.isfinite()


def test_any_picture_size(model, golden_inputs):
    for size in ((1, 1), (3, 700), (640, 480)):
        with torch.no_grad():
            assert model(torch.zeros(1, 3, *size), input_ids=golden_inputs["input_ids"]).logits.shape[2:] == (640, 640)


def test_sliding_window_default(model, golden_inputs):
    with torch.no_grad():
        assert model(**golden_inputs).logits.shape[-1] == 640
        assert model.train()(**golden_inputs).logits.shape[-1] == 96
        model.eval().config.sliding_window = False
        assert model(**golden_inputs).logits.shape[-1] == 96


BAD_INPUTS = {
    "grey image": (
        {"pixel_values": torch.zeros(1, 1, 8, 8)},
        r"shape \(1, 1, 8, 8\) must have the shape \(batch_size, 3",
    ),
    "no batch": ({"pixel_values": torch.zeros(3, 8, 8)}, r"shape \(3, 8, 8\) must have"),
    "empty image": ({"pixel_values": torch.zeros(1, 3, 0, 8)}, "at least one image and one pixel"),
    "nan": ({"pixel_values": torch.full((1, 3, 8, 8), float("nan"))}, "Image 0 .*NaN or infinite"),
    "infinite": ({"pixel_values": torch.full((1, 3, 8, 8), float("inf"))}, "Image 0 .*NaN or infinite"),
    "both texts": ({"text_embeds": torch.zeros(5, 1, 64)}, "both `input_ids` and `text_embeds`"),
    "empty vocabulary": ({"input_ids": torch.zeros(0, 77, dtype=torch.long)}, "at least one class"),
    "long prompts": ({"input_ids": torch.zeros(2, 78, dtype=torch.long)}, r"shape \(2, 78\).*at most 77 tokens"),
    "prompts": ({"input_ids": torch.zeros(2, 3, 77, dtype=torch.long)}, r"shape \(2, 3, 77\).*num_prompts` = 1"),
    "embeds": ({"input_ids": None, "text_embeds": torch.zeros(5, 64)}, r"`text_embeds` of shape \(5, 64\).*1, 64\)"),
    "no classes": ({"input_ids": None, "text_embeds": torch.zeros(0, 1, 64)}, "num_classes >= 1"),
    "label shape": ({"labels": torch.zeros(1, 1, 8, 8, dtype=torch.long)}, r"`labels` of shape \(1, 1, 8, 8\)"),
    "label batch": ({"labels": torch.zeros(2, 8, 8, dtype=torch.long)}, r"batch_size = 1"),
    "label type": ({"labels": torch.zeros(1, 8, 8)}, "torch.float32 must be integers"),
    "label range": ({"labels": torch.full((1, 8, 8), 5)}, r"values \[5\], but there are 5 classes.*\[0, 4\]"),
    "negative label": ({"labels": torch.full((1, 8, 8), -1)}, r"values \[-1\]"),
    "mask": ({"attention_mask": torch.ones(5, 76)}, r"`attention_mask` of shape \(5, 76\) must have.*\(5, 77\)"),
    "no whole number": ({"max_classes_per_image": 1.5}, "integer of at least 1, got 1.5"),
    "global views": (
        {"global_pixel_values": torch.zeros(2, 3, 8, 8), "sliding_window": True},
        "1 images in `pixel_values` and 2 in `global_pixel_values`",
    ),
}


@pytest.mark.parametrize("bad, message", BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input(model, inputs, bad, message):
    good = {"pixel_values": inputs["pixel_values"][:1], "input_ids": inputs["input_ids"], "sliding_window": False}
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        model(**{**good, **bad})


@pytest.mark.parametrize("part", [lambda model: model, lambda model: model.catseg])
def test_unknown_arguments_are_refused(model, golden_inputs, part):
    with torch.no_grad(), pytest.raises(TypeError, match="takes no argument 'slidng_window'"):
        part(model)(**golden_inputs, slidng_window=False)


PREPARED = {"pixel_values": torch.zeros(1, 3, 640, 640), "global_pixel_values": torch.zeros(1, 3, 384, 384)}


@pytest.mark.parametrize(
    ("views", "sliding_window", "warning"),
    [
        (PREPARED, True, ""),
        (PREPARED, False, "prepared for the sliding window .* `sliding_window=False` to the processor"),
        ({"pixel_values": torch.zeros(1, 3, 96, 96)}, False, ""),
        ({"pixel_values": torch.zeros(1, 3, 96, 96)}, True, "640 x 640 pixels, but these are 96 x 96"),
        ({"pixel_values": torch.zeros(1, 3, 640, 640)}, True, ""),
    ],
    ids=["both windows", "processor only", "neither", "model only", "without the global view"],
)
def test_processor_and_model_that_disagree_say_so(
    model, golden_inputs, caplog, monkeypatch, views, sliding_window, warning
):
    monkeypatch.setattr(argument_checks_catseg.logger, "warning_once", argument_checks_catseg.logger.warning)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with torch.no_grad():
        model(**views, input_ids=golden_inputs["input_ids"], sliding_window=sliding_window)
    assert re.search(warning, caplog.text) if warning else not caplog.text


def test_no_second_copy_of_clip(model):
    from transformers import CLIPModel

    assert isinstance(model.catseg.clip, CLIPModel)
    outside = [
        name for name, module in model.named_modules() if isinstance(module, nn.Embedding) and "clip" not in name
    ]
    assert outside == []

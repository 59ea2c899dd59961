"""`max_classes_per_image="auto"`: each view goes on with the classes that can still win by the model's margins."""

import copy

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from catseg_hf import CATSegConfig, CATSegForSemanticSegmentation, OpenVocabularySegmentationPipeline
from catseg_hf.class_chunks_catseg import ClassChunks
from catseg_hf.class_selection_catseg import ClassSelection, sample_weights, shortfalls, stored_margins
from catseg_hf.conversion.literal import literal_logits
from catseg_hf.errors import UserError


NUM_CLASSES = 12
CUT_CLASS_LOGIT = -100.0
ALL = 1e9
COMMAND = "python training/select_classes.py --model DIR --dataset_name DATA"


@pytest.fixture
def inputs(model):
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, 3, 96, 96, generator=generator)
    text_embeds = torch.randn(NUM_CLASSES, 1, model.config.clip_config.projection_dim, generator=generator)
    return {"pixel_values": pixel_values, "text_embeds": F.normalize(text_embeds, dim=-1), "sliding_window": False}


def give_margins(model, cost: float = ALL, layers: float = ALL, decoder: float = ALL):
    margins = {"cost": cost, "layers": layers, "decoder": decoder}
    model.config.class_selection = {**margins, "weights": sample_weights(model)}


def middle(missing: torch.Tensor) -> float:
    """A margin that about half of the shortfalls exceed."""
    return float(missing.sort().values[len(missing) // 2 - 1 : len(missing) // 2 + 1].mean())


def even_out_coarse_logits(model, monkeypatch):
    """Random weights let every class win somewhere: here each has its mean everywhere."""
    coarse_logits = model.decoder.coarse_logits

    def means(*args):
        logits = coarse_logits(*args)
        return logits.mean(dim=(-2, -1), keepdim=True).expand_as(logits)

    monkeypatch.setattr(model.decoder, "coarse_logits", means)


def left_out(logits: torch.Tensor) -> torch.Tensor:
    return (logits == CUT_CLASS_LOGIT).all(dim=(-2, -1))


def test_a_class_misses_the_best_one_least_where_it_comes_closest():
    scores = torch.tensor([[[5.0, 1.0]], [[4.0, 3.0]], [[1.0, 2.5]]])[None]  # three classes, two positions
    assert shortfalls(scores).tolist() == [[0.0, 0.0, 0.5]]


@torch.no_grad()
@pytest.mark.parametrize("num_class_tokens", [256, 8])
@pytest.mark.parametrize("sliding_window", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_margins_that_all_classes_keep_change_no_bit(model, inputs, sliding_window, num_class_tokens):
    for layer in model.catseg.aggregator.layers:
        layer.class_aggregation.block.num_class_tokens = num_class_tokens
    model.config.num_class_tokens = num_class_tokens
    inputs |= {"sliding_window": sliding_window, "pixel_values": inputs["pixel_values"][:1]}
    expected = model(**inputs).logits
    give_margins(model)
    assert torch.equal(model(**inputs, max_classes_per_image="auto").logits, expected)


@torch.no_grad()
def test_classes_that_the_cost_volume_leaves_are_segmented_as_if_alone(model, inputs):
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    missing = shortfalls(model.catseg(inputs["pixel_values"], text_embeds=inputs["text_embeds"]).cost_volume[:, 0])[0]
    give_margins(model, cost=middle(missing))
    logits = model(**inputs, max_classes_per_image="auto").logits
    kept = missing <= middle(missing)
    assert 1 < kept.sum() < NUM_CLASSES and torch.equal(left_out(logits)[0], ~kept)
    expected = literal_logits(model, inputs["pixel_values"], inputs["text_embeds"][kept])
    torch.testing.assert_close(logits[:, kept], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_further_layers_see_what_the_tokens_leave(model, inputs, monkeypatch):
    even_out_coarse_logits(model, monkeypatch)
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    outputs = model.catseg(inputs["pixel_values"], text_embeds=inputs["text_embeds"], output_hidden_states=True)
    after_first = outputs.hidden_states[1]
    missing = shortfalls(model.decoder(ClassChunks([after_first]), outputs.guidance_states, is_coarse=True))[0]
    kept = missing <= middle(missing)
    give_margins(model, layers=middle(missing))
    logits = model(**inputs, max_classes_per_image="auto").logits
    assert len(model.catseg.aggregator.layers) == 2
    assert 1 < kept.sum() < NUM_CLASSES and torch.equal(left_out(logits)[0], ~kept)
    aggregator = model.catseg.aggregator
    tokens, _ = aggregator.layers[1](
        after_first[:, kept],
        aggregator.project_appearance(outputs.image_embeds),
        aggregator.project_text(outputs.text_embeds[None, kept]),
    )
    expected = model.decoder(tokens, outputs.guidance_states)
    torch.testing.assert_close(logits[:, kept], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_decoder_runs_on_what_a_coarse_logit_leaves(model, inputs, monkeypatch):
    even_out_coarse_logits(model, monkeypatch)
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    outputs = model.catseg(inputs["pixel_values"], text_embeds=inputs["text_embeds"])
    tokens = ClassChunks([outputs.last_hidden_state])
    missing = shortfalls(model.decoder(tokens, outputs.guidance_states, is_coarse=True))[0]
    kept = missing <= middle(missing)
    exact = model(**inputs).logits
    give_margins(model, decoder=middle(missing))
    decoded = []
    model.decoder.stages[0].register_forward_hook(lambda module, args, output: decoded.append(len(args[0])))
    logits = model(**inputs, max_classes_per_image="auto").logits
    assert 1 < kept.sum() < NUM_CLASSES and torch.equal(left_out(logits)[0], ~kept)
    assert sum(decoded) == kept.sum()
    torch.testing.assert_close(logits[:, kept], exact[:, kept], rtol=0, atol=1e-5)


@torch.no_grad()
def test_coarse_logits_are_the_decoder_s_where_maps_are_constant(model):
    """Without norms, whose statistics the borders change, and with kernels that upsample to constant maps."""
    decoder = model.decoder
    for upsample in [*decoder.guidance_upsamplers, *(stage.upsample for stage in decoder.stages)]:
        upsample.weight.copy_(upsample.weight.mean(dim=(2, 3), keepdim=True).expand_as(upsample.weight))
    for stage in decoder.stages:
        stage.norm1, stage.norm2 = nn.Identity(), nn.Identity()
    generator = torch.Generator().manual_seed(0)
    side, width = model.config.feature_size, model.config.clip_config.vision_config.hidden_size
    tokens = torch.randn(1, 3, 1, 1, model.config.hidden_size, generator=generator).expand(-1, -1, side, side, -1)
    guidance = [torch.randn(1, 1, 1, width, generator=generator).expand(-1, side, side, -1) for _ in range(2)]
    inner = slice(side // 2, side // 2 + 1)
    coarse = decoder(ClassChunks([tokens]), guidance, is_coarse=True)[..., inner, inner]
    fine = decoder(tokens.contiguous(), guidance)[..., 4 * (side // 2) + 1, 4 * (side // 2) + 1]
    torch.testing.assert_close(coarse.flatten(), fine.flatten(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_image_s_logits_do_not_depend_on_its_batch(model, inputs):
    cost = model.catseg(inputs["pixel_values"], text_embeds=inputs["text_embeds"]).cost_volume[:, 0]
    give_margins(model, cost=middle(shortfalls(cost)[0]))
    logits = model(**inputs, max_classes_per_image="auto").logits
    assert len(left_out(logits).unique(dim=0)) == 2
    for index, pixel_values in enumerate(inputs["pixel_values"]):
        alone = model(**{**inputs, "pixel_values": pixel_values[None]}, max_classes_per_image="auto").logits
        assert torch.equal(logits[index], alone[0])


@torch.no_grad()
def test_each_view_of_the_sliding_window_has_its_own_classes(model, inputs):
    pixel_values = F.interpolate(inputs["pixel_values"], size=(640, 640))[:1]
    cost = model.catseg(inputs["pixel_values"], text_embeds=inputs["text_embeds"]).cost_volume[:, 0]
    give_margins(model, cost=middle(shortfalls(cost)[0]))
    kept = []
    model.catseg.register_forward_hook(lambda module, args, outputs: kept.append(outputs.class_indices))
    options = {"text_embeds": inputs["text_embeds"], "sliding_window": True, "max_classes_per_image": "auto"}
    assert model(pixel_values, **options).logits.isfinite().all()
    assert len(kept) == 5 and len({tuple(indices[0].tolist()) for indices in kept}) > 1


@torch.no_grad()
def test_what_is_not_finite_keeps_all_classes(model, inputs):
    give_margins(model, cost=0.0, layers=0.0, decoder=0.0)
    inputs["pixel_values"][0, 0, 0, 0] = float("nan")
    logits = model(**inputs, max_classes_per_image="auto", check_values=False).logits
    assert logits[0].isnan().all() and not logits[1].isnan().any()


@torch.no_grad()
def test_the_configuration_counts_at_evaluation_only(model, inputs):
    exact = model(**inputs).logits
    give_margins(model, cost=0.0)
    model.config.max_classes_per_image = "auto"
    assert left_out(model(**inputs).logits).any()
    assert not left_out(model(**inputs, max_classes_per_image=NUM_CLASSES).logits).any()
    assert not left_out(model.train()(**inputs).logits).any()
    assert not left_out(exact).any()


def test_without_margins_it_is_refused_with_the_command(model, inputs):
    with pytest.raises(UserError, match=f"has none .*{COMMAND}"):
        model(**inputs, max_classes_per_image="auto")


def one_step(model):
    parameters = [*model.catseg.aggregator.parameters(), *model.decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def change_uncounted(model):
    model.decoder.head.weight.data.mul_(1.001)


@torch.no_grad()
@pytest.mark.parametrize("change", [one_step, change_uncounted])
def test_margins_of_other_weights_are_refused(model, inputs, change, tmp_path):
    give_margins(model)
    with torch.enable_grad():
        change(model)
    model.save_pretrained(tmp_path)
    for changed in (model, CATSegForSemanticSegmentation.from_pretrained(tmp_path)):
        with pytest.raises(UserError, match=f"chosen for other weights.*{COMMAND}.*leave `max_classes_per_image` out"):
            changed(**inputs, max_classes_per_image="auto")
    model(**inputs)


@torch.no_grad()
@pytest.mark.parametrize("loaded_as", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("saved_as", [torch.float32, torch.bfloat16, torch.float16])
def test_margins_hold_for_a_saved_model_in_every_type(model, saved_as, loaded_as, tmp_path):
    give_margins(model)
    selection = model.config.class_selection
    model.to(saved_as).save_pretrained(tmp_path)
    loaded = CATSegForSemanticSegmentation.from_pretrained(tmp_path, dtype=loaded_as)
    assert loaded.config.class_selection == selection
    assert stored_margins(loaded) == {"cost": ALL, "layers": ALL, "decoder": ALL}


@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions"])
def test_hidden_states_are_refused(model, inputs, option):
    give_margins(model)
    model.set_attn_implementation("eager")
    refused = pytest.raises(UserError, match="there are no `hidden_states`.*give a number")
    model.catseg.register_forward_pre_hook(lambda *_: pytest.fail("segmented before it was refused"))
    with torch.no_grad():
        with refused:
            model(**inputs, max_classes_per_image="auto", **{option: True})
        setattr(model.config, option, True)
        with refused:
            model(**inputs, max_classes_per_image="auto")


def test_a_model_without_a_decoder_refuses_it(model, inputs):
    del inputs["sliding_window"]
    with torch.no_grad(), pytest.raises(UserError, match="`CATSegModel` has none.*give a number"):
        model.catseg(**inputs, max_classes_per_image="auto")


def test_a_graph_refuses_it(model, inputs):
    give_margins(model)
    model.config.max_classes_per_image = "auto"
    with torch.no_grad(), pytest.raises(Exception, match="cannot take `max_classes_per_image='auto'`.*give a number"):
        torch.export.export(model, (inputs.pop("pixel_values"),), inputs)


@torch.no_grad()
@pytest.mark.slow
def test_compiled(model, inputs):
    cost = model.catseg(inputs["pixel_values"], text_embeds=inputs["text_embeds"]).cost_volume[:, 0]
    give_margins(model, cost=middle(shortfalls(cost)[0]))
    expected = model(**inputs, max_classes_per_image="auto").logits
    compiled = torch.compile(copy.deepcopy(model), dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs, max_classes_per_image="auto").logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [{"cost": -0.1}, {"layers": float("nan")}, {"decoder": float("inf")}, {"cost": "0.1"}, {"weights": None}],
)
def test_margins_that_keep_nothing_or_are_none_are_refused(change):
    selection = {"cost": 0.1, "layers": 1.0, "decoder": 1.0, "weights": [0.5]}
    assert CATSegConfig(class_selection=selection).class_selection == selection
    with pytest.raises(
        StrictDataclassError, match=f"(?s)`class_selection` .* at least 0, since below that no class.*{COMMAND}"
    ):
        CATSegConfig(class_selection={**selection, **change})


def test_another_word_than_auto_is_refused(model, inputs):
    with pytest.raises(ValueError, match="an integer of at least 1, got all, or 'auto'"):
        model(**inputs, max_classes_per_image="all")
    with pytest.raises(StrictDataclassError, match="max_classes_per_image"):
        CATSegConfig(max_classes_per_image="all")


@pytest.mark.parametrize("tiles", [{}, {"tile_size": 32}])
def test_pipeline(model_with_vocabulary, processor, monkeypatch, tiles):
    segmenter = OpenVocabularySegmentationPipeline(model_with_vocabulary, processor)
    image = (torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(1)) * 255).to(torch.uint8)
    options = {"candidate_labels": ["cat", "sky", "tree"], "sliding_window": False, "max_classes_per_image": "auto"}
    with pytest.raises(UserError, match=COMMAND):
        segmenter(image, **options, **tiles)
    give_margins(model_with_vocabulary)
    assert len(segmenter(image, **options, **tiles)) > 1
    monkeypatch.setattr(ClassSelection, "_can_win", lambda self, scores, stage: torch.arange(scores.shape[1]) == 0)
    assert [segment["label"] for segment in segmenter(image, **options, **tiles)] == ["cat"]

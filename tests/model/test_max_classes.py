"""`max_classes_per_image`: the classes most similar to an image are segmented as if no others had been given."""

import pytest
import torch
import torch.nn.functional as F

from catseg_hf import OpenVocabularySegmentationPipeline
from catseg_hf.conversion.literal import literal_logits
from catseg_hf.modeling_catseg_cost_volume import cut_classes


NUM_CLASSES = 12
CUT_CLASS_LOGIT = -100.0


@pytest.fixture
def inputs(model):
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, 3, 96, 96, generator=generator)
    text_embeds = torch.randn(NUM_CLASSES, 1, model.config.clip_config.projection_dim, generator=generator)
    return {"pixel_values": pixel_values, "text_embeds": F.normalize(text_embeds, dim=-1)}


@torch.no_grad()
@pytest.mark.parametrize("limit", [1, 5])
@pytest.mark.parametrize("num_class_tokens", [256, 8])
def test_kept_classes_are_segmented_as_if_alone(model, inputs, limit, num_class_tokens):
    for layer in model.catseg.aggregator.layers:
        layer.class_aggregation.block.num_class_tokens = num_class_tokens
    model.config.num_class_tokens = num_class_tokens
    cost = model.catseg(**inputs).cost_volume
    logits = model(**inputs, sliding_window=False, max_classes_per_image=limit).logits
    for index, pixel_values in enumerate(inputs["pixel_values"]):
        kept = cost[index].amax(dim=(0, 2, 3)).topk(limit).indices.sort().values
        expected = literal_logits(model, pixel_values[None], inputs["text_embeds"][kept])
        torch.testing.assert_close(logits[index, kept], expected[0], rtol=0, atol=1e-4)
        others = [other for other in range(NUM_CLASSES) if other not in kept]
        assert (logits[index, others] == CUT_CLASS_LOGIT).all()


@torch.no_grad()
@pytest.mark.parametrize("sliding_window", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_limit_that_cuts_nothing_changes_no_bit(model, inputs, sliding_window):
    expected = model(**inputs, sliding_window=sliding_window).logits
    for limit in (None, NUM_CLASSES, 1000):
        logits = model(**inputs, sliding_window=sliding_window, max_classes_per_image=limit).logits
        assert torch.equal(logits, expected)


@torch.no_grad()
def test_each_view_of_the_sliding_window_has_its_own_classes(model, inputs):
    pixel_values = F.interpolate(inputs["pixel_values"], size=(640, 640))
    kept = []
    forward = model.catseg.forward

    def record(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        kept.append(outputs.class_indices)
        return outputs

    model.catseg.forward = record
    outputs = model(pixel_values, text_embeds=inputs["text_embeds"], sliding_window=True, max_classes_per_image=3)
    kept = torch.cat(kept)
    assert kept.shape == (10, 3) and len(kept.unique(dim=0)) > 1
    assert outputs.logits.isfinite().all()


def test_the_configuration_counts_at_evaluation_only(model, inputs):
    model.config.max_classes_per_image = 3
    with torch.no_grad():
        assert model.catseg(**inputs).class_indices.shape == (2, 3)
        assert model.catseg(**inputs, max_classes_per_image=4).class_indices.shape == (2, 4)
        assert model.train().catseg(**inputs).class_indices is None


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_leaves_nothing_is_refused(model, inputs, limit):
    with pytest.raises(ValueError, match=f"`max_classes_per_image` must be an integer of at least 1, got {limit}"):
        model(**inputs, max_classes_per_image=limit)


def test_pipeline(model_with_vocabulary, processor):
    segmenter = OpenVocabularySegmentationPipeline(model_with_vocabulary, processor)
    image = (torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(1)) * 255).to(torch.uint8)
    options = {"candidate_labels": ["cat", "sky", "tree"], "sliding_window": False}
    assert len(segmenter(image, **options, max_classes_per_image=1)) == 1


class CutClasses(torch.nn.Module):
    """What an exported model does with the classes, before it aggregates them."""

    def forward(self, cost: torch.Tensor, text_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cost, text_embeds, class_indices = cut_classes(cost, text_embeds, class_limit=4)
        return cost, class_indices


def test_a_graph_cuts_any_number_of_classes():
    generator = torch.Generator().manual_seed(0)
    num_classes = torch.export.Dim("num_classes", min=1)
    example = torch.rand(1, 1, 3, 2, 2, generator=generator), torch.rand(3, 1, 8, generator=generator)
    program = torch.export.export(
        CutClasses(),
        example,
        dynamic_shapes=({2: num_classes}, {0: num_classes}),
        prefer_deferred_runtime_asserts_over_guards=True,
    ).module()
    for count in (3, 4, 5, 50):
        cost = torch.rand(1, 1, count, 2, 2, generator=generator)
        kept, class_indices = program(cost, torch.rand(count, 1, 8, generator=generator))
        expected = cost.amax(dim=(1, 3, 4)).topk(min(count, 4)).indices.sort().values
        assert torch.equal(class_indices, expected) and torch.equal(kept, cost[:, :, expected[0]])

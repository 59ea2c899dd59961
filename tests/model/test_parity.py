"""Every stage against what the authors' code computes, on the small checkpoint."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from catseg_hf.class_chunks_catseg import ClassChunks
from conftest import FIXTURES, converted_model


TOLERANCE = {"rtol": 0, "atol": 1e-4}
PROBABILITY_TOLERANCE = {"rtol": 0, "atol": 1e-5}


def channels_first(tokens: torch.Tensor) -> torch.Tensor:
    """`(B, T, H, W, C)` to the authors' `(B, C, T, H, W)`."""
    return tokens.permute(0, 4, 1, 2, 3)


def channels_last(maps: torch.Tensor) -> torch.Tensor:
    """The inverse."""
    return maps.permute(0, 2, 3, 4, 1).contiguous()


@pytest.fixture(scope="module")
def stages(original_state_dict, golden_inputs):
    """Our stages, under the goldens' names and in their layout."""
    model = converted_model(original_state_dict)
    aggregator, decoder = model.catseg.aggregator, model.decoder
    recorded = {}

    def record(name, module, convert):
        module.register_forward_hook(lambda _, inputs, output: recorded.update({name: convert(inputs, output)}))

    record("clip_input", model.clip.vision_model.embeddings, lambda inputs, _: inputs[0])
    record("appearance_guidance", aggregator.appearance_projection, lambda _, output: F.relu(output))
    for index in range(2):
        record(f"upsample{index + 1}", decoder.guidance_upsamplers[index], lambda _, output: output)
        record(f"decoder_guidance_{index}", decoder.guidance_projections[index], lambda _, output: F.relu(output))
    with torch.no_grad():
        recorded["logits"] = model(**golden_inputs, sliding_window=False).logits
        outputs = model.catseg(**golden_inputs, output_hidden_states=True)
        recorded["text_guidance"] = aggregator.project_text(outputs.text_embeds).expand(2, -1, -1)
    recorded["clip_dense_features"] = outputs.image_embeds.flatten(1, 2)
    recorded["text_embeds"] = outputs.text_embeds
    recorded["cost_volume"] = outputs.cost_volume
    recorded["cost_embedding"] = channels_first(outputs.hidden_states[0])
    return recorded


@pytest.mark.parametrize(
    "name",
    [
        "clip_input",
        "clip_dense_features",
        "text_embeds",
        "cost_volume",
        "cost_embedding",
        "appearance_guidance",
        "text_guidance",
        "upsample1",
        "upsample2",
        "decoder_guidance_0",
        "decoder_guidance_1",
        "logits",
    ],
)
def test_stage(name, stages, golden):
    expected = golden[name]
    if name == "clip_dense_features":
        expected = expected[:, 1:]  # the class position, which we do not compute
    ours = stages[name][: len(expected)]
    if ours.ndim >= 4:  # of large maps the fixture keeps every third or fourth row and column
        step = -(-ours.shape[-1] // expected.shape[-1])
        ours = ours[..., ::step, ::step]
    torch.testing.assert_close(ours, expected, **TOLERANCE)


@pytest.mark.parametrize("index", [0, 1])
def test_aggregation_layer(index, model, golden):
    """
    Each layer on the golden output of the one before. Through both layers the synthetic weights amplify the rounding
    of CLIP's features until the golden `layer1_out` itself is 1.1e-4 away from its float64 value.
    """
    layer = model.catseg.aggregator.layers[index]
    tokens = channels_last(golden["cost_embedding" if index == 0 else f"layer{index - 1}_out"])
    appearance_guidance = golden["appearance_guidance"][:1].permute(0, 2, 3, 1)
    with torch.no_grad():
        (spatial,), _ = layer.spatial_aggregation(ClassChunks([tokens]), appearance_guidance)
        (out,), _ = layer(ClassChunks([tokens]), appearance_guidance, golden["text_guidance"][:1])
    torch.testing.assert_close(channels_first(spatial), golden[f"layer{index}_spatial"], **TOLERANCE)
    torch.testing.assert_close(channels_first(out), golden[f"layer{index}_out"], **TOLERANCE)


def test_probabilities_without_sliding_window(stages, golden):
    probabilities = F.interpolate(stages["logits"][:1].sigmoid(), size=(384, 384), mode="bilinear")[0, :, ::8, ::8]
    torch.testing.assert_close(probabilities, golden["sem_seg_probabilities_image0"], **PROBABILITY_TOLERANCE)


def test_training_pooling(model, golden, golden_inputs):
    with torch.no_grad():
        logits = model.train()(**golden_inputs).logits
    torch.testing.assert_close(logits[..., ::4, ::4], golden["logits_pooling_2x2"], **TOLERANCE)


def test_class_cut(model, golden_inputs):
    many = load_file(FIXTURES / "many_classes.safetensors")
    pixel_values = golden_inputs["pixel_values"][:1]
    with torch.no_grad():
        outputs = model.catseg(pixel_values, input_ids=many["input_ids"])
        logits = model(pixel_values, input_ids=many["input_ids"], sliding_window=False).logits
    assert outputs.class_indices[0].tolist() == many["kept"].nonzero()[:, 0].tolist()
    torch.testing.assert_close(
        outputs.cost_volume.amax(dim=(1, 3, 4)), many["max_similarity"], **PROBABILITY_TOLERANCE
    )
    torch.testing.assert_close(logits[..., ::12, ::12], many["logits_stride12"], **TOLERANCE)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_sliding_window(model, processor, golden, batch_size):
    expected = load_file(FIXTURES / "sliding_window.safetensors")
    image = Image.open(FIXTURES / "picture.png")
    inputs = processor(images=[image] * batch_size)
    with torch.no_grad():
        outputs = model(**inputs, input_ids=golden["input_ids"])
    target_sizes = [(image.height, image.width)] * batch_size
    for result in processor.post_process_semantic_segmentation(outputs, target_sizes, return_segmentation_scores=True):
        torch.testing.assert_close(
            result["segmentation_scores"][:, ::4, ::4],
            expected["sem_seg_probabilities_stride4"],
            **PROBABILITY_TOLERANCE,
        )
        decided = expected["decided"]
        assert (result["segmentation"] == expected["segmentation"])[decided].all()


def test_global_view_made_by_the_model_is_close(model, processor, golden):
    inputs = processor(images=Image.open(FIXTURES / "picture.png"))
    with torch.no_grad():
        exact = model(**inputs, input_ids=golden["input_ids"]).logits.sigmoid()
        made = model(inputs.pixel_values, input_ids=golden["input_ids"]).logits.sigmoid()
    assert 0 < (exact - made).abs().max() < 0.05


def test_wrong_weights_are_noticed(model, golden, golden_inputs):
    with torch.no_grad():
        nn.init.zeros_(model.catseg.aggregator.layers[0].class_aggregation.block.padding_token)
        logits = model(**golden_inputs, sliding_window=False).logits
    assert (logits - golden["logits"]).abs().max() > 1e-3

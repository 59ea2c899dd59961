"""Small Segment Anything models of random weights in the pipeline and on the command line."""

import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    PreTrainedModel,
    Sam2Config,
    Sam2Model,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    SamConfig,
    SamModel,
    pipeline,
)
from transformers.utils import is_torchvision_available

from catseg_hf import EMBEDDED_MODEL, cli, refine_with_masks
from catseg_hf.loading import load_mask_generator
from conftest import FIXTURES


SCENE = FIXTURES / "emoji_world" / "images" / "gate" / "000.jpg"
WORDS = ["cat", "grass", "water"]
needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="Segment Anything needs torchvision")
PROMPT_ENCODER = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
MASK_DECODER = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
TWO_SIZES = {"size": {"height": 64, "width": 64}, "mask_size": {"height": 16, "width": 16}}


def small_sam() -> tuple[PreTrainedModel, object]:
    from transformers import SamImageProcessor

    vision = {"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 64, "num_pos_feats": 8, "window_size": 4, "global_attn_indexes": [0], "mlp_dim": 16}
    config = SamConfig(vision_config=vision, prompt_encoder_config=PROMPT_ENCODER, mask_decoder_config=MASK_DECODER)
    sizes = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}, "mask_size": {"longest_edge": 16}}
    return SamModel(config), SamImageProcessor(**sizes)


def small_sam2() -> tuple[PreTrainedModel, object]:
    from transformers import Sam2ImageProcessor

    backbone = {"model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64]}
    backbone |= {"blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64]}
    backbone |= {"num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4] * 4}
    vision = {"backbone_config": {**backbone, "global_attention_blocks": [3]}, "fpn_hidden_size": 16}
    vision |= {"backbone_channel_list": [64, 32, 16, 8], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=PROMPT_ENCODER, mask_decoder_config=MASK_DECODER)
    return Sam2Model(config), Sam2ImageProcessor(**TWO_SIZES)


def small_sam3() -> tuple[PreTrainedModel, object]:
    from transformers import Sam3ImageProcessor

    backbone = {"model_type": "sam3_vit_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    backbone |= {"num_attention_heads": 2, "image_size": 64, "pretrain_image_size": 64, "patch_size": 16}
    vision = {"model_type": "sam3_vision_model", "backbone_config": backbone | {"global_attn_indexes": [0]}}
    vision |= {"fpn_hidden_size": 16, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
    config = Sam3TrackerConfig(
        vision_config=vision, prompt_encoder_config=PROMPT_ENCODER, mask_decoder_config=MASK_DECODER
    )
    return Sam3TrackerModel(config), Sam3ImageProcessor(**TWO_SIZES)


@pytest.fixture(params=[small_sam, small_sam2, small_sam3])
def sam(request, tmp_path):
    """The folder of a Segment Anything of random weights that is sure of its masks, and of their edges."""
    torch.manual_seed(0)
    model, image_processor = request.param()
    with torch.no_grad():
        model.mask_decoder.iou_prediction_head.proj_out.bias.fill_(10)
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight.mul_(1e9)
    model.save_pretrained(tmp_path / "sam")
    image_processor.save_pretrained(tmp_path / "sam")
    return str(tmp_path / "sam")


@pytest.fixture(scope="module")
def segmenter():
    return pipeline("zero-shot-image-segmentation", model=EMBEDDED_MODEL, device="cpu")


@pytest.fixture(scope="module")
def image():
    """Not square, and of another size than the models'."""
    return Image.open(SCENE).crop((0, 0, 128, 90)).resize((200, 140))


def refine(segmenter, image: Image.Image, masks: list) -> torch.Tensor:
    probabilities = segmenter(image, WORDS, return_probabilities=True)["probabilities"]
    resized = torch.nn.functional.interpolate(probabilities[None], size=(image.height, image.width), mode="bilinear")
    return refine_with_masks(resized[0], masks)


@needs_torchvision
def test_segment_anything(sam, segmenter, image):
    options = {"points_per_crop": 4, "crops_nms_thresh": 1.0}
    generator = pipeline("mask-generation", model=sam, device="cpu", **options)
    masks = generator(image)["masks"]
    assert len(masks) > 10
    expected = refine(segmenter, image, masks)
    result = segmenter(image, WORDS, mask_generator=generator, return_segmentation_map=True)
    assert torch.equal(result["segmentation"], expected)
    loaded = load_mask_generator(sam, "cpu", **options)(image)["masks"]
    assert np.array_equal(np.stack(loaded), np.stack(masks))
    none = pipeline("mask-generation", model=sam, device="cpu", points_per_crop=4, pred_iou_thresh=1e9)
    result = segmenter(image, WORDS, mask_generator=none, return_segmentation_map=True)
    assert torch.equal(result["segmentation"], refine(segmenter, image, []))
    assert not torch.equal(result["segmentation"], expected)


@needs_torchvision
@pytest.mark.parametrize("sam", [small_sam], indirect=True)
def test_command_line(sam, segmenter, image, tmp_path, monkeypatch):
    load_quick_generator = partial(load_mask_generator, points_per_crop=4)
    monkeypatch.setattr("catseg_hf.loading.load_mask_generator", load_quick_generator)
    image.save(tmp_path / "scene.png")
    output = tmp_path / "output"
    arguments = ["--labels", ", ".join(WORDS), "--sam", sam, "--device=cpu", f"--output={output}"]
    assert cli.main(["segment", str(tmp_path / "scene.png"), *arguments]) == 0
    expected = refine(segmenter, image, load_quick_generator(sam, "cpu")(image)["masks"])
    assert not torch.equal(expected, refine(segmenter, image, []))
    assert np.array_equal(np.array(Image.open(output / "scene_labels.png")), expected.numpy())
    assert json.loads((output / "summary.json").read_text())["sam"] == sam


@needs_torchvision
def test_fewer_points_at_a_time_for_large_images(monkeypatch):
    given = []

    def generator(image, points_per_batch):
        given.append(points_per_batch)
        return {"masks": []}

    monkeypatch.setattr("catseg_hf.loading.mask_generator.pipeline", lambda *args, **kwargs: generator)
    generate = load_mask_generator("sam")
    for size in ((640, 480), (4000, 3000), (20000, 10000)):
        generate(Image.new("1", size))
    assert given == [64, 5, 1]


@pytest.mark.parametrize(
    ("is_available", "message"),
    [
        (False, "needs torchvision.*`pip install torchvision`"),
        (True, "could not be loaded: .* of SAM, SAM 2 or SAM 3"),
    ],
)
@pytest.mark.parametrize("sam", ["no/such/sam", EMBEDDED_MODEL])
def test_segment_anything_that_cannot_be_loaded(image, tmp_path, capsys, monkeypatch, sam, is_available, message):
    monkeypatch.setattr("catseg_hf.loading.mask_generator.is_torchvision_available", lambda: is_available)
    image.save(tmp_path / "scene.png")
    arguments = ["--labels=grass", f"--sam={sam}", f"--output={tmp_path / 'output'}"]
    assert cli.main(["segment", str(tmp_path / "scene.png"), *arguments]) == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("catseg-hf: error:"))
    assert re.search(message, error)
    assert not (tmp_path / "output").exists()

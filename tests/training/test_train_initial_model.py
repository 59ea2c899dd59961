"""What train.py starts from, and what of it is trained."""

import json
import shutil

import pytest
import torch
from PIL import Image
from transformers import BertConfig, CLIPModel

from catseg_hf import load_vocabulary
from catseg_testing.tiny_training import CLASSES, save_checkpoint, save_clip
from catseg_testing.tokenizer import tiny_tokenizer
from catseg_training.lora import add_lora, merged_state_dict
from catseg_training.model import (
    build_from_clip,
    freeze_unused,
    load_checkpoint,
    read_vocabulary,
    set_classes,
)
from catseg_training.optimization import build_optimizer
from conftest import FIXTURES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return str(save_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return str(save_clip(tmp_path_factory.mktemp("clip")))


def test_from_clip(clip):
    torch.manual_seed(1)
    model, processor = build_from_clip(clip)
    assert model.config.image_size == 24 * 8 and model.config.guidance_layers == [0, 1]
    assert processor.image_processor.image_size == 24 * 8
    expected = CLIPModel.from_pretrained(clip).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.clip.state_dict().items())
    set_classes(model, processor, CLASSES, None)
    with torch.inference_mode():
        logits = model(torch.zeros(1, 3, 192, 192), sliding_window=False).logits
    assert logits.shape == (1, 5, 96, 96) and logits.std() > 0
    torch.manual_seed(1)
    again, _ = build_from_clip(clip)
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_a_saved_model_does_not_name_the_folder_of_its_clip(clip, tmp_path):
    build_from_clip(clip)[0].save_pretrained(tmp_path)
    assert clip not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("num_blocks, patch_size, image_size, layers", [(12, 16, 384, [3, 7]), (24, 14, 336, [7, 15])])
def test_published_architectures(num_blocks, patch_size, image_size, layers, tmp_path, clip):
    """What is derived for CLIP's two sizes, on narrow towers of their depth and patches."""
    config = CLIPModel.from_pretrained(clip).config
    config.vision_config.num_hidden_layers, config.vision_config.patch_size = num_blocks, patch_size
    CLIPModel(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, _ = build_from_clip(str(tmp_path))
    assert (model.config.image_size, model.config.guidance_layers) == (image_size, layers)


def test_half_precision_is_trained_in_float32(checkpoint, tmp_path):
    model, processor = load_checkpoint(checkpoint)
    model.half().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in load_checkpoint(str(tmp_path))[0].parameters()} == {torch.float32}


def test_another_architecture(checkpoint, clip, tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="architecture 'clip', but --model_name_or_path takes 'catseg'"):
        load_checkpoint(clip)
    with pytest.raises(ValueError, match="architecture 'catseg', but --clip_model_name_or_path takes 'clip'"):
        build_from_clip(checkpoint)
    with pytest.raises(ValueError, match="architecture 'bert'"):
        build_from_clip(str(tmp_path))


@pytest.mark.parametrize("load, kind", [(load_checkpoint, "CAT-Seg"), (build_from_clip, "CLIP")])
def test_no_checkpoint(load, kind, tmp_path):
    with pytest.raises(ValueError, match=f"Could not load the .*Give a .*{kind}"):
        load(str(tmp_path))


def test_damaged_checkpoint(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "damaged")
    file = tmp_path / "damaged" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="Could not load the checkpoint"):
        load_checkpoint(str(tmp_path / "damaged"))


def test_clip_that_is_not_deep_enough(clip, tmp_path):
    config = CLIPModel.from_pretrained(clip).config
    config.vision_config.num_hidden_layers = 2
    CLIPModel(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not suit CAT-Seg: `guidance_layers`"):
        build_from_clip(str(tmp_path))


def test_clip_without_its_tokenizer(clip, tmp_path):
    CLIPModel.from_pretrained(clip).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Could not load the CLIP checkpoint.*with its tokenizer"):
        build_from_clip(str(tmp_path))


@pytest.mark.parametrize(
    "content", [["cat", "sofa"], {"0": "cat", "1": "sofa"}, {"id2label": {"1": "sofa", "0": "cat"}}]
)
def test_vocabulary_of_a_file(content, tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps(content))
    assert read_vocabulary(str(tmp_path / "classes.json")) == ["cat", "sofa"]


def test_vocabulary_by_name():
    assert read_vocabulary("ade20k_150") == load_vocabulary("ade20k_150")


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"1": "cat", "2": "sofa"}', "none with the id 0"),
        ("[]", "must hold a list of class names"),
        ("[1, 2]", "must hold a list of class names"),
        ('{"cat": 0}', "nor a JSON file"),
        ("{", "nor a JSON file"),
        (None, "neither one of coco_stuff_171"),
    ],
)
def test_no_vocabulary(content, message, tmp_path):
    path = tmp_path / "classes.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_vocabulary(str(path))


def test_ignore_index(checkpoint):
    model, processor = load_checkpoint(checkpoint)
    set_classes(model, processor, None, None)
    assert model.config.semantic_loss_ignore_index == 255
    with pytest.raises(ValueError, match="--ignore_index 3 is the id of a class"):
        set_classes(model, processor, None, 3)
    names = [f"class {index}" for index in range(300)]
    set_classes(model, processor, names, None)
    assert model.config.semantic_loss_ignore_index == 65535 and model.config.num_labels == 300


@pytest.mark.parametrize("num_classes", [5, 300])
@pytest.mark.parametrize("mode", ["attention", "full", "none", "lora"])
def test_a_gradient_reaches_all_that_is_trained(mode, num_classes, checkpoint):
    model, processor = load_checkpoint(checkpoint)
    set_classes(model, processor, [f"class {index}" for index in range(num_classes)], None)
    config = model.config
    if mode == "lora":
        model = add_lora(model, rank=2)
    else:
        model.freeze_clip(mode)
    chosen = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    freeze_unused(model, config, config.num_labels)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    # A and B of LoRA have no gradient at once, so several steps are taken.
    optimizer = build_optimizer(model, learning_rate=0.1)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(2):
        pixel_values = torch.randn(2, 3, 32, 32, generator=generator)
        labels = torch.randint(num_classes, (2, 32, 32), generator=generator)
        model.train()(pixel_values=pixel_values, labels=labels).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and name in chosen:
                seen.add(name)
        optimizer.step()
    assert seen == trained
    assert bool(chosen - trained) == (num_classes == 300)


def test_merged_state_dict_equals_pefts_merging(checkpoint):
    model, _ = load_checkpoint(checkpoint)
    model = add_lora(model, rank=2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    merged = merged_state_dict(model.state_dict())
    expected = model.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, msg=name)


def test_only_lora_is_trained_of_clip(checkpoint):
    model, _ = load_checkpoint(checkpoint)
    model = add_lora(model, rank=3)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    of_clip = [name for name in trained if ".clip." in name]
    # Two matrices for q and v of three vision blocks and one text block, less q of the last vision block.
    assert len(of_clip) == 2 * (2 * 4 - 1) and all("lora_" in name for name in of_clip)
    assert {min(trained[name].shape) for name in of_clip} == {3}
    optimizer = build_optimizer(model, learning_rate=1.0, clip_lr_multiplier=0.01)
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert {rates[trained[name]] for name in of_clip} == {0.01}
    assert {rates[parameter] for name, parameter in trained.items() if name not in of_clip} == {1.0}


def test_processor_of_a_fresh_model_does_the_published_protocol(clip):
    """Its views of an image are those of a converted model's processor, but for the size without windows."""
    _, processor = build_from_clip(clip)
    image = Image.open(FIXTURES / "picture.png")
    views = processor(images=image)
    assert views["pixel_values"].shape == (1, 3, 640, 640) and views["global_pixel_values"].shape == (1, 3, 384, 384)
    assert processor(images=image, sliding_window=False)["pixel_values"].shape == (1, 3, 192, 192)
    assert views["pixel_values"].isfinite().all()

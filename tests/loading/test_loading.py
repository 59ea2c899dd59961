"""Saving, loading and the Auto classes."""

import filecmp
import subprocess
import sys

import accelerate
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
    CLIPModel,
)

from catseg_hf import (
    CATSegConfig,
    CATSegForSemanticSegmentation,
    CATSegImageProcessorPil,
    CATSegModel,
    CATSegProcessor,
)
from catseg_hf.loading import load_segmenter


PIXELS = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def segment(model):
    with torch.no_grad():
        return model.eval()(PIXELS, sliding_window=False).logits


@pytest.fixture
def saved(model_with_vocabulary, processor, tmp_path):
    model_with_vocabulary.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def save_again(folder, again, **arguments):
    CATSegForSemanticSegmentation.from_pretrained(folder).save_pretrained(again, **arguments)
    names = sorted(path.name for path in again.iterdir())
    assert names == sorted(path.name for path in folder.iterdir())
    return filecmp.cmpfiles(folder, again, names, shallow=False)[0] == names


def test_save_load_and_save_again(model_with_vocabulary, tmp_path):
    model_with_vocabulary.save_pretrained(tmp_path / "first")
    assert save_again(tmp_path / "first", tmp_path / "second")


def test_shards(model_with_vocabulary, tmp_path):
    model_with_vocabulary.save_pretrained(tmp_path / "first", max_shard_size="1MB")
    assert (tmp_path / "first" / "model.safetensors.index.json").exists()
    assert len(list((tmp_path / "first").glob("*.safetensors"))) > 1
    loaded = CATSegForSemanticSegmentation.from_pretrained(tmp_path / "first").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model_with_vocabulary.state_dict().items())
    # Loading leaves transformers another order of the tensors, so that they fall into other shards once.
    save_again(tmp_path / "first", tmp_path / "second", max_shard_size="1MB")
    assert save_again(tmp_path / "second", tmp_path / "third", max_shard_size="1MB")


def test_auto_classes(saved, model_with_vocabulary):
    model = AutoModelForSemanticSegmentation.from_pretrained(saved)
    assert type(model) is CATSegForSemanticSegmentation and not model.training
    assert torch.equal(segment(model), segment(model_with_vocabulary))
    assert type(AutoConfig.from_pretrained(saved)) is CATSegConfig
    processor = AutoProcessor.from_pretrained(saved)
    assert type(processor) is CATSegProcessor
    assert type(processor.image_processor) is type(AutoImageProcessor.from_pretrained(saved))
    assert type(AutoImageProcessor.from_pretrained(saved, backend="pil")) is CATSegImageProcessorPil
    base = AutoModel.from_pretrained(saved)
    assert type(base) is CATSegModel
    with torch.no_grad():
        assert base(PIXELS).last_hidden_state.shape == (1, 4, 24, 24, 48)


def test_loading_says_nothing_about_weights(saved, caplog, capfd):
    CATSegForSemanticSegmentation.from_pretrained(saved)
    assert "MISSING" not in capfd.readouterr().err + caplog.text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.float64])
def test_dtype(saved, dtype):
    model = AutoModelForSemanticSegmentation.from_pretrained(saved, dtype=dtype)
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert model.dtype == expected
    logits = segment(model)
    assert logits.dtype == expected and logits.isfinite().all()


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_attention_implementation(saved, model_with_vocabulary, attn_implementation):
    model = AutoModelForSemanticSegmentation.from_pretrained(saved, attn_implementation=attn_implementation)
    for config in (model.config, model.clip.config.vision_config, model.clip.config.text_config):
        assert config._attn_implementation == attn_implementation
    torch.testing.assert_close(segment(model), segment(model_with_vocabulary), rtol=0, atol=1e-4)


def test_device_map(saved, model_with_vocabulary):
    model = AutoModelForSemanticSegmentation.from_pretrained(saved, device_map="auto")
    assert torch.equal(segment(model), segment(model_with_vocabulary))


PARTS = {"catseg.clip": "cpu", "catseg.aggregator": "cpu", "catseg.vocabulary": "cpu", "decoder": "cpu"}
VISION = {"vision_model": "disk", "visual_projection": "disk", "text_model": "cpu", "text_projection": "cpu"}
VISION_ON_DISK = {
    **{name: place for name, place in PARTS.items() if name != "catseg.clip"},
    **{f"catseg.clip.{name}": place for name, place in {**VISION, "logit_scale": "cpu"}.items()},
}


@pytest.mark.parametrize(
    "placement",
    [
        {"device_map": "cpu"},
        {"device_map": {"": "disk"}},
        {"device_map": {**PARTS, "catseg.aggregator": "disk", "decoder": "disk"}},
        {"device_map": {**PARTS, "catseg.clip": "disk"}},
        {"device_map": VISION_ON_DISK},
        {"device_map": "auto", "max_memory": {"cpu": 200_000}},
        {"device_map": "auto", "max_memory": {"cpu": 200_000}, "offload_buffers": True},
    ],
    ids=["cpu", "disk", "aggregator and decoder", "CLIP", "vision tower", "little memory", "buffers"],
)
def test_placed_weights(saved, model_with_vocabulary, processor, tmp_path, placement):
    model = AutoModelForSemanticSegmentation.from_pretrained(saved, offload_folder=tmp_path / "offload", **placement)
    expected = segment(model_with_vocabulary)
    for _ in range(2):  # the second time with kept text features
        assert torch.equal(segment(model), expected)
    ids = processor(text=["dog"]).input_ids
    if "offload_buffers" in placement:
        with pytest.raises(ValueError, match="vocabulary is offloaded"):
            model.set_vocabulary(["dog"], ids)
        assert torch.equal(segment(model), expected)
    else:
        model.set_vocabulary(["dog"], ids)
        model_with_vocabulary.set_vocabulary(["dog"], ids)
        torch.testing.assert_close(segment(model), segment(model_with_vocabulary), rtol=0, atol=1e-5)


def test_hooks_on_clip(model_with_vocabulary):
    expected = segment(model_with_vocabulary)
    accelerate.cpu_offload(model_with_vocabulary.clip)
    assert torch.equal(segment(model_with_vocabulary), expected)


def test_new_model_is_initialised():
    config = CATSegConfig(num_labels=3)
    with torch.device("meta"):
        model = CATSegForSemanticSegmentation(config)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    for module in model.modules():
        module._is_hf_initialized = False
    for parameter in model.parameters():
        parameter._is_hf_initialized = False
    model.initialize_weights()
    broken = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    assert broken == ["catseg.clip.logit_scale"]  # left as it is by CLIP, unused here


def test_missing_weights_are_initialised(saved, model_with_vocabulary):
    state_dict = model_with_vocabulary.state_dict()
    missing = [name for name in state_dict if "decoder" in name or "padding" in name or "vocabulary" in name]
    for name in missing:
        del state_dict[name]
    model = CATSegForSemanticSegmentation.from_pretrained(
        None, config=model_with_vocabulary.config, state_dict=state_dict
    )
    for name in missing:
        assert model.state_dict()[name].isfinite().all()
    assert not model.catseg.vocabulary.input_ids.any()


@pytest.mark.parametrize(
    "labels",
    [{"id2label": {0: "dog"}, "label2id": {"dog": 0}}, {"num_labels": 3}, {"id2label": dict(enumerate("abcd"))}],
    ids=str,
)
def test_other_labels_ask_for_a_vocabulary(saved, processor, labels):
    model = AutoModelForSemanticSegmentation.from_pretrained(saved, **labels)
    assert model.config.num_labels == labels.get("num_labels", len(labels.get("id2label", ())))
    with pytest.raises(ValueError, match="call `model.set_vocabulary"):
        segment(model)
    names = list(model.config.id2label.values())
    model.set_vocabulary(names, processor(text=names).input_ids)
    assert segment(model).shape[1] == len(names)


def test_other_shapes_are_refused_still(saved):
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        CATSegForSemanticSegmentation.from_pretrained(saved, hidden_size=64)


def test_prompt_templates_are_saved(saved, tmp_path):
    processor = AutoProcessor.from_pretrained(saved)
    processor.prompt_templates = ["a {}.", "many {}."]
    processor.save_pretrained(tmp_path / "again")
    assert AutoProcessor.from_pretrained(tmp_path / "again").prompt_templates == ["a {}.", "many {}."]


def test_the_backbone_is_a_clip_model(saved, tmp_path):
    model = CATSegForSemanticSegmentation.from_pretrained(saved)
    model.clip.save_pretrained(tmp_path / "clip")
    clip = CLIPModel.from_pretrained(tmp_path / "clip")
    for name, parameter in clip.named_parameters():
        assert torch.equal(parameter, model.clip.get_parameter(name))


def test_import_is_cheap():
    """Beside what CLIP and pipelines need anyway it loads no other package and no other model of transformers."""
    code = (
        "import sys, torch; from transformers import AutoModel, CLIPModel, pipeline; before = set(sys.modules);"
        "import catseg_hf; print(*(set(sys.modules) - before))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {name.split(".")[0] for name in loaded} <= {"catseg_hf", "transformers"}
    assert not [name for name in loaded if name.startswith("transformers.models.")]


@pytest.mark.parametrize(
    ("saved_as", "multiplies_bfloat16", "asked_for", "loaded_as"),
    [
        (torch.bfloat16, True, "auto", torch.bfloat16),
        (torch.bfloat16, False, "auto", torch.float32),
        (torch.float16, True, "auto", torch.float32),
        (torch.float16, False, "float16", torch.float16),
        (torch.float32, True, "auto", torch.float32),
    ],
)
def test_automatic_type_is_fast_on_cpu(
    model_with_vocabulary, processor, tmp_path, monkeypatch, saved_as, multiplies_bfloat16, asked_for, loaded_as
):
    model_with_vocabulary.to(saved_as).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: multiplies_bfloat16)
    assert load_segmenter(str(tmp_path), torch.device("cpu"), asked_for).model.dtype == loaded_as

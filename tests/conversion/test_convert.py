"""The converter: the small checkpoint in all its forms, to a folder that computes what the authors' code computes."""

import filecmp
import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSemanticSegmentation, AutoProcessor

import convert_catseg_original_to_hf as converter
from catseg_hf import CATSegConfig, CATSegForSemanticSegmentation
from catseg_hf.coco_stuff_catseg import COCO_STUFF_LABELS
from catseg_hf.conversion.original_architecture import AGGREGATOR, CLIP
from catseg_hf.conversion.original_layout import DROPPED, source_names
from catseg_hf.conversion.state_dict_conversion import build_model, expected_shapes
from catseg_testing.full_size import ARCHITECTURES
from catseg_testing.hub_server import metadata_errors
from catseg_testing.tokenizer import TOKENIZER
from conftest import FIXTURES, ROOT
from convert_catseg_original_to_hf import convert_state_dict, infer_config


ORIGINAL = FIXTURES / "original.pth"


def run(*arguments) -> int:
    return converter.main([str(argument) for argument in arguments])


def convert(checkpoint, output, *arguments) -> int:
    return run("--checkpoint_path", checkpoint, "--output_dir", output, "--tokenizer", TOKENIZER, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The small checkpoint, converted by the command line."""
    folder = tmp_path_factory.mktemp("converted") / "catseg-tiny"
    assert convert(ORIGINAL, folder) == 0
    return folder


def assert_same_weights(first: Path, second: Path):
    weights, others = (load_file(path / "model.safetensors") for path in (first, second))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_golden_outputs(folder, golden, golden_inputs):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert not model.training
    with torch.no_grad():
        logits = model(**golden_inputs, sliding_window=False).logits
    torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=1e-4)


def test_the_whole_protocol(folder, golden):
    expected = load_file(FIXTURES / "sliding_window.safetensors")
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    image = Image.open(FIXTURES / "picture.png")
    with torch.no_grad():
        outputs = model(**processor(images=image), input_ids=golden["input_ids"])
    (segmentation,) = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])
    assert (segmentation == expected["segmentation"])[expected["decided"]].all()


def test_its_own_vocabulary(folder):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert list(model.config.id2label.values()) == list(COCO_STUFF_LABELS)
    assert model.config.num_labels == 171 and model.config.label2id["wood"] == 170
    input_ids = AutoProcessor.from_pretrained(folder)(text=list(COCO_STUFF_LABELS)).input_ids
    with torch.no_grad():
        own, given = (model.catseg.encode_vocabulary(ids) for ids in (None, input_ids))
    torch.testing.assert_close(own, given, rtol=0, atol=1e-6)


def test_files(folder):
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "LICENSE",
        "README.md",
        "config.json",
        "configuration_catseg.py",
        "model.safetensors",
        "modeling_catseg.py",
        "processor_config.json",
        "tokenizer.json",
    }
    assert not any(name.startswith(".") or name == "preprocessor_config.json" for name in names)
    config = json.loads((folder / "config.json").read_text())
    assert set(config["auto_map"]) >= {"AutoConfig", "AutoModel", "AutoModelForSemanticSegmentation"}
    assert "zero-shot-image-segmentation" in config["custom_pipelines"]
    assert filecmp.cmp(folder / "LICENSE", ROOT / "LICENSE", shallow=False)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_model_card(folder):
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "image-segmentation" and data["library_name"] == "transformers"
    assert data["license"] == "mit" and data["base_model"] and data["datasets"] and "catseg" in data["tags"]
    assert metadata_errors(card.content) == []
    assert "{" not in re.sub(r"```.*?```|\{\}", "", card.text.split("## How")[0], flags=re.DOTALL)
    for part in ("trust_remote_code=True", 'pipeline("image-segmentation"', "candidate_labels", "not measured with"):
        assert part in card.text
    assert "| CAT-Seg (B), CLIP ViT-B/16 | 12.0 | 19.0 | 31.8 | 57.5 | 94.6 | 77.3 |" in card.text
    assert "| CAT-Seg (L), CLIP ViT-L/14 | 16.0 | 23.8 | 37.9 | 63.3 | 97.0 | 82.5 |" in card.text
    for snippet in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        compile(snippet, "README.md", "exec")


def test_it_says_what_it_did(tmp_path, capsys):
    assert convert(ORIGINAL, tmp_path / "out") == 0
    output = capsys.readouterr().out
    assert "Dropped 2" in output and "layers.1.swin_block.block_2.attn_mask" in output
    difference = float(re.search(r"Largest difference .*: (\S+) \(", output)[1])
    assert 0 <= difference < 1e-4


@pytest.mark.parametrize("form", ["bare", "module", "joined", "legacy", "text features", "safetensors"])
def test_every_form_of_the_checkpoint(form, folder, original_state_dict, tmp_path):
    tensors, path, arguments = dict(original_state_dict), tmp_path / "checkpoint.pth", {}
    if form == "module":
        tensors = {f"module.{key}": tensor for key, tensor in tensors.items()}
    elif form == "joined":
        tensors = with_joined_attention(tensors)
        assert len(tensors) < len(original_state_dict)
    elif form == "legacy":
        tensors, arguments = {"model": tensors, "iteration": 3}, {"_use_new_zipfile_serialization": False}
    elif form == "text features":
        tensors["sem_seg_head.predictor.train_text_features"] = torch.zeros(1, 2, 3)
        tensors["pixel_mean"] = torch.zeros(3, 1, 1)
    if form == "safetensors":
        path = tmp_path / "checkpoint.safetensors"
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path, **arguments)
    assert convert(path, tmp_path / "out") == 0
    assert_same_weights(tmp_path / "out", folder)


def with_joined_attention(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    joined = {key: tensor for key, tensor in tensors.items() if "_proj_weight" not in key}
    for key in tensors:
        if key.endswith("q_proj_weight"):
            parts = [tensors[key.replace("q_proj", f"{name}_proj")] for name in "qkv"]
            joined[key.replace("q_proj", "in_proj")] = torch.cat(parts)
    return joined


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype, folder, tmp_path):
    assert convert(ORIGINAL, tmp_path / "out", "--dtype", dtype) == 0
    expected = load_file(folder / "model.safetensors")
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        if expected[name].is_floating_point():
            assert tensor.dtype == getattr(torch, dtype)
            assert torch.equal(tensor, expected[name].to(tensor.dtype))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == dtype


def test_config_path(folder, tmp_path):
    config = infer_config(torch.load(ORIGINAL, weights_only=True)).to_dict()
    config |= {"guidance_layers": [0, 1], "sliding_window": False, "id2label": {"0": "cat", "1": "dog"}}
    config.pop("label2id")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert convert(ORIGINAL, tmp_path / "out", "--config_path", tmp_path / "config.json") == 0
    written = CATSegConfig.from_pretrained(tmp_path / "out")
    assert (written.guidance_layers, written.sliding_window) == ([0, 1], False)
    assert written.id2label == {0: "cat", 1: "dog"}
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights["catseg.vocabulary.input_ids"].shape[:2] == (2, 1)


def test_several_prompts(original_state_dict, tmp_path, capsys):
    tensors = original_state_dict | {f"{AGGREGATOR}conv1.weight": torch.ones(48, 2, 7, 7)}
    torch.save(tensors, tmp_path / "checkpoint.pth")
    assert convert(tmp_path / "checkpoint.pth", tmp_path / "out") == 1
    assert "trained with 2 prompts for each class, and there are 1" in capsys.readouterr().err
    templates = ["a {}.", "many {}."]
    assert convert(tmp_path / "checkpoint.pth", tmp_path / "out", "--prompt_templates", *templates) == 0
    assert AutoProcessor.from_pretrained(tmp_path / "out").prompt_templates == templates


def test_parameters_survive_exactly(original_state_dict):
    config = infer_config(original_state_dict)
    converted = convert_state_dict(original_state_dict, config)
    assert {name: tensor.shape for name, tensor in converted.items()} == expected_shapes(config)
    assert sum(tensor.numel() for tensor in converted.values()) == sum(
        tensor.numel() for key, tensor in original_state_dict.items() if not DROPPED.fullmatch(key)
    )
    model = build_model(converted, config)
    assert all(torch.equal(parameter, converted[name]) for name, parameter in model.named_parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_the_checkpoint_is_not_changed(original_state_dict):
    before = {key: tensor.clone() for key, tensor in original_state_dict.items()}
    convert_state_dict(original_state_dict, infer_config(original_state_dict))
    assert before.keys() == original_state_dict.keys()
    assert all(torch.equal(before[key], tensor) for key, tensor in original_state_dict.items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_released_architectures(architecture):
    manifest = json.loads((FIXTURES / "full" / f"{architecture}.manifest.json").read_text())
    config = infer_config({key: torch.empty(shape, device="meta") for key, shape in manifest.items()})
    is_base = architecture == ARCHITECTURES[0]
    assert config.image_size == (384 if is_base else 336) and config.feature_size == 24
    assert config.guidance_layers == ([3, 7] if is_base else [7, 15])
    vision_config, text_config = config.clip_config.vision_config, config.clip_config.text_config
    assert (vision_config.hidden_size, vision_config.num_attention_heads) == ((768, 12) if is_base else (1024, 16))
    assert (text_config.vocab_size, text_config.eos_token_id) == (49408, 49407)
    defaults = CATSegConfig()
    for name in ("hidden_size", "num_hidden_layers", "mlp_ratio", "window_size", "decoder_sizes", "num_class_tokens"):
        assert getattr(config, name) == getattr(defaults, name)
    sources = set(source_names(24).values())
    assert {key for key in manifest if not DROPPED.fullmatch(key)} <= sources


def test_other_architectures(original_state_dict):
    """Whatever the key layout can express: another depth, width or size is read off the tensors."""
    config = infer_config(original_state_dict)
    changed = CATSegConfig.from_dict(
        config.to_dict()
        | {
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "mlp_ratio": 2,
            "num_class_tokens": 0,
            "text_guidance_size": 20,
            "appearance_guidance_size": 28,
            "decoder_sizes": [48, 16],
            "decoder_guidance_channels": [40, 24],
            "decoder_guidance_sizes": [10, 6],
        }
    )
    original = original_shapes(changed)
    inferred = infer_config(original)
    assert inferred.to_dict() == changed.to_dict()
    assert convert_state_dict(original, inferred).keys() == expected_shapes(changed).keys()


def original_shapes(config: CATSegConfig) -> dict[str, torch.Tensor]:
    """A checkpoint of zeros in the authors' layout."""
    targets, parts = expected_shapes(config), {}
    for target, source in source_names(12).items():
        if target in targets:
            parts.setdefault(source, []).append(torch.zeros(targets[target]))
    joined = {}
    for source, tensors in parts.items():
        tensor = tensors[0]
        if len(tensors) > 1:
            tensor = torch.cat(tensors, dim=0 if "in_proj" in source else 1)
        tensor = tensor.T.contiguous() if source.endswith((".proj", "text_projection")) else tensor
        joined[source] = tensor[None] if "padding_" in source else tensor
    return joined


def test_architecture_without_masks(original_state_dict):
    tensors = {key: tensor for key, tensor in original_state_dict.items() if not key.endswith("attn_mask")}
    assert infer_config(tensors).to_dict() == infer_config(original_state_dict).to_dict()


@pytest.mark.parametrize("key", [f"{AGGREGATOR}conv1.weight", f"{CLIP}ln_final.weight", "upsample1.weight"])
def test_one_odd_tensor_does_not_change_the_architecture(key, original_state_dict):
    expected = infer_config(original_state_dict).to_dict()
    assert infer_config(original_state_dict | {key: original_state_dict[key][:5]}).to_dict() == expected


def test_verify_only(folder, tmp_path, capsys):
    assert run("--verify_only", folder) == 0
    assert "Largest difference" in capsys.readouterr().out
    assert run("--verify_only", tmp_path / "nowhere") == 1
    assert "There is no folder" in capsys.readouterr().err
    assert run("--verify_only", tmp_path) == 1
    assert "does not load" in capsys.readouterr().err


def test_a_wrong_result_is_not_published(tmp_path, capsys, monkeypatch):
    save_pretrained = CATSegForSemanticSegmentation.save_pretrained

    def save_something_else(model, *arguments, **options):
        with torch.no_grad():
            model.decoder.head.bias.data = model.decoder.head.bias.data + 1e-3
        return save_pretrained(model, *arguments, **options)

    monkeypatch.setattr(CATSegForSemanticSegmentation, "save_pretrained", save_something_else)
    assert convert(ORIGINAL, tmp_path / "out") == 1
    assert "the conversion is wrong" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--checkpoint_path", "a.pth"],
        ["--checkpoint_path", "a.pth", "--variant", "base", "--output_dir", "out"],
        ["--variant", "huge", "--output_dir", "out"],
        ["--verify_only", "out", "--variant", "base"],
        ["--checkpoint_path", "a.pth", "--output_dir", "out", "--private"],
    ],
)
def test_command_lines_that_make_no_sense(arguments):
    with pytest.raises(SystemExit) as exit:
        run(*arguments)
    assert exit.value.code == 2


def test_help(capsys):
    with pytest.raises(SystemExit) as exit:
        run("--help")
    assert exit.value.code == 0
    output = capsys.readouterr().out
    for part in ("--variant base", "--variant large", "--push_to_hub", "GB of disk", "memory"):
        assert part in output

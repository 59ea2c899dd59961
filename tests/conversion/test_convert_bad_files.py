"""Files that the converter must refuse: exit status 1, an explanation, no traceback, nothing run, nothing written."""

import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import convert_catseg_original_to_hf as converter
from catseg_hf import CATSegProcessor
from catseg_hf.conversion.original_architecture import AGGREGATOR, CLIP
from catseg_hf.conversion.original_layout import source_names
from catseg_hf.conversion.state_dict_conversion import expected_shapes
from catseg_testing.tokenizer import TOKENIZER
from conftest import FIXTURES
from convert_catseg_original_to_hf import convert_state_dict, infer_config


ORIGINAL = FIXTURES / "original.pth"


@pytest.fixture
def refusal(tmp_path, capsys):
    """Converts a file, which must fail, and returns the explanation."""

    def convert(path: Path, *arguments) -> str:
        output = tmp_path / "new" / "out"
        before = sorted(tmp_path.rglob("*"))
        options = ["--checkpoint_path", path, "--output_dir", output, "--tokenizer", TOKENIZER, *arguments]
        assert converter.main([str(option) for option in options]) == 1
        assert sorted(tmp_path.rglob("*")) == before
        error = "".join(capsys.readouterr().err.partition("error: ")[1:])  # behind transformers' progress bars
        assert error and "Traceback" not in error and len(error) < 3000
        return error

    return convert


@pytest.fixture
def saved(tmp_path):
    def save(contents, name: str = "checkpoint.pth") -> Path:
        torch.save(contents, tmp_path / name)
        return tmp_path / name

    return save


def zeros(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(2, 2) for name in names}


HEAD = "sem_seg_head.predictor.transformer.head.weight"
OTHER_MODELS = {
    "2023 ResNet": (zeros("backbone.res2.0.conv1.weight", "backbone.stem.conv1.weight", HEAD), "earlier .* of 2023"),
    "2023 Swin": (zeros("backbone.layers.0.blocks.0.attn.qkv.weight", HEAD), "earlier .* of 2023"),
    "OpenAI's CLIP": (zeros("visual.conv1.weight", "token_embedding.weight", "logit_scale"), "plain CLIP"),
    "OpenAI's CLIP ResNet": (zeros("visual.layer1.0.conv1.weight", "positional_embedding"), "plain CLIP"),
    "CLIP of transformers": (zeros("vision_model.encoder.layers.0.layer_norm1.weight"), "plain CLIP"),
    "mmsegmentation": (
        {"meta": {"CLASSES": ["a"]}, "state_dict": zeros("backbone.patch_embed.weight", "decode_head.conv.weight")},
        "mmsegmentation",
    ),
    "another segmentation model": (zeros("backbone.conv1.weight", "classifier.weight"), "another segmentation model"),
    "another model": (zeros("fc.weight"), "another model: CAT-Seg's tensors begin with"),
    "already converted": (zeros("catseg.clip.logit_scale", "decoder.head.weight"), "converted already"),
    "nothing": ({"model": {}}, "no tensors"),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_other_models(name, prefix, saved, refusal):
    contents, explanation = OTHER_MODELS[name]
    if prefix and not any(isinstance(value, dict) for value in contents.values()):
        contents = {"model": {prefix + key: value for key, value in contents.items()}}
    assert re.search(explanation, refusal(saved(contents)))


def test_other_models_with_a_configuration(saved, refusal, tmp_path, original_state_dict):
    (tmp_path / "config.json").write_text(infer_config(original_state_dict).to_json_string())
    path = saved(OTHER_MODELS["2023 Swin"][0])
    assert "of 2023" in refusal(path, "--config_path", tmp_path / "config.json")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.9999])
def test_truncated_download(share, tmp_path, refusal):
    content = ORIGINAL.read_bytes()
    (tmp_path / "model_base.pth").write_bytes(content[: int(share * len(content))])
    error = refusal(tmp_path / "model_base.pth")
    assert "model_base.pth is empty" in error if share == 0 else "is truncated" in error


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.9999])
@pytest.mark.parametrize("kind", ["legacy pickle", "safetensors"])
def test_truncated_in_other_formats(kind, share, tmp_path, refusal, original_state_dict):
    path = tmp_path / ("checkpoint.pth" if kind == "legacy pickle" else "checkpoint.safetensors")
    if kind == "legacy pickle":
        torch.save({"model": original_state_dict}, path, _use_new_zipfile_serialization=False)
    else:
        save_file({key: tensor.clone() for key, tensor in original_state_dict.items()}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert re.search("truncated|damaged", refusal(path))


def write_zip(path: Path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("holiday.txt", "beach")


def write_torchscript(path: Path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


NO_CHECKPOINTS = {
    "text": (lambda path: path.write_text("weights"), "not a checkpoint of PyTorch or safetensors"),
    "web page": (lambda path: path.write_text("<!doctype html><p>Not found"), "but a web page"),
    "image": (lambda path: path.write_bytes((FIXTURES / "picture.png").read_bytes()), "not a checkpoint"),
    "LFS pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "zip": (write_zip, "a zip archive, but not a checkpoint"),
    "TorchScript": (write_torchscript, "OpenAI's plain CLIP"),
    "list": (lambda path: torch.save([torch.zeros(2)], path), "holds a list"),
    "tensor": (lambda path: torch.save(torch.zeros(2), path), "holds a Tensor"),
    "number among the tensors": (lambda path: torch.save({HEAD: torch.zeros(2), "step": 3}, path), "'step' is a int"),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "not a checkpoint|damaged"),
    "module": (lambda path: torch.save(torch.nn.Linear(2, 2), path), r"was refused and nothing .*torch.nn.*Linear"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "missing": (lambda path: None, "There is no file"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Detected pickle protocol")
def test_no_checkpoint(name, tmp_path, refusal):
    write, explanation = NO_CHECKPOINTS[name]
    write(tmp_path / "file.pth")
    error = refusal(tmp_path / "file.pth")
    assert re.search(explanation, error) and str(tmp_path / "file.pth") in error or "'step'" in error


def test_safetensors_of_nothing(tmp_path, refusal):
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    assert "not a safetensors file" in refusal(tmp_path / "model.safetensors")


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_a_pickle_that_runs_code(form, tmp_path, refusal, original_state_dict):
    path, crater = tmp_path / "checkpoint.pth", tmp_path / "crater"
    contents = {"model": original_state_dict, "hook": Bomb(crater)}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(contents["hook"]))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=form == "zip")
    error = refusal(path)
    assert not crater.exists()
    assert "refused and nothing in it was run" in error and "mkdir" in error


CHANGES = {
    "extra": ({f"{AGGREGATOR}third.weight": torch.zeros(2)}, [], r"1 tensor of no known use: .*transformer\.third"),
    "extra layer": (
        {f"{AGGREGATOR}decoder3.up.weight": torch.zeros(2), "optimizer.step": torch.zeros(2)},
        [],
        "2 tensors of no known use",
    ),
    "missing": ({}, [f"{AGGREGATOR}head.bias"], r"1 tensor missing: sem_seg_head.predictor.transformer.head.bias"),
    "missing in a layer": (
        {},
        [f"{CLIP}visual.transformer.resblocks.1.attn.k_proj_weight"],
        r"1 tensor missing: .*visual.transformer.resblocks.1.attn.k_proj_weight",
    ),
    "misshapen": (
        {f"{AGGREGATOR}decoder1.conv.double_conv.3.weight": torch.zeros(8, 8)},
        [],
        r"1 tensor misshapen: .*decoder1.conv.double_conv.3.weight \[8, 8\], which has to give \[32, 32, 3, 3\]",
    ),
    "too many axes": ({f"{CLIP}visual.proj": torch.zeros(2, 2, 2)}, [], "1 tensor misshapen: .*visual.proj"),
    "no axes": ({f"{AGGREGATOR}layers.0.attention.attention.q.weight": torch.tensor(1.0)}, [], "1 tensor misshapen"),
    "several padding tokens": (
        {f"{AGGREGATOR}layers.0.attention.padding_tokens": torch.zeros(3, 1, 48)},
        [],
        r"1 tensor misshapen: .*padding_tokens \[3, 1, 48\]",
    ),
    "one odd tensor that tells the architecture": (
        {f"{AGGREGATOR}conv1.weight": torch.zeros(7, 1, 7, 7)},
        [],
        "1 tensor misshapen: .*conv1.weight",
    ),
    "NaN": ({f"{CLIP}ln_final.weight": torch.full((64,), torch.nan)}, [], "1 tensor not finite: .*ln_final.weight"),
    "infinite": ({"upsample2.bias": torch.full((12,), torch.inf)}, [], "1 tensor not finite: upsample2.bias"),
    "integers": (
        {f"{AGGREGATOR}head.bias": torch.zeros(1, dtype=torch.long)},
        [],
        "1 tensor without a floating-point type: .*head.bias .torch.int64",
    ),
    "joined and split": (
        {f"{CLIP}transformer.resblocks.0.attn.in_proj_weight": torch.zeros(192, 64)},
        [],
        "given twice",
    ),
    "with and without module": ({f"module.{AGGREGATOR}head.bias": torch.zeros(1)}, [], "head.bias' twice"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_tensors_that_do_not_fit(name, original_state_dict, saved, refusal):
    added, removed, explanation = CHANGES[name]
    tensors = {key: tensor for key, tensor in original_state_dict.items() if key not in removed} | added
    error = refusal(saved({"model": tensors}))
    assert re.search(explanation, error), error


@pytest.mark.parametrize("name", CHANGES)
def test_convert_state_dict_refuses_by_itself(name, original_state_dict):
    added, removed, explanation = CHANGES[name]
    config = infer_config(original_state_dict)
    tensors = {key: tensor for key, tensor in original_state_dict.items() if key not in removed} | added
    with pytest.raises(ValueError, match=explanation):
        convert_state_dict(tensors, config)


def test_the_authors_names_are_known(original_state_dict):
    config = infer_config(original_state_dict)
    sources = source_names(config.clip_config.vision_config.num_hidden_layers)
    wanted = {sources[target] for target in expected_shapes(config)}
    assert wanted == {key for key in original_state_dict if not key.endswith("attn_mask")}


def test_every_tensor_is_missed(original_state_dict):
    config = infer_config(original_state_dict)
    for key in list(original_state_dict)[::12]:
        tensors = {other: tensor for other, tensor in original_state_dict.items() if other != key}
        if key.endswith("attn_mask"):
            assert convert_state_dict(tensors, config)
            continue
        with pytest.raises(ValueError, match=f"1 tensor missing: {re.escape(key)}$"):
            convert_state_dict(tensors, config)


def test_at_most_ten_keys_are_listed(original_state_dict, saved, refusal):
    tensors = original_state_dict | {f"{AGGREGATOR}extra.{index}": torch.zeros(1) for index in range(50)}
    error = refusal(saved({"model": tensors | {f"{AGGREGATOR}head.bias": torch.zeros(2)}}))
    assert "50 tensors of no known use" in error and "1 tensor misshapen" in error and "head.bias" in error
    assert error.count("extra.") == 9 and "and 41 more" in error


def test_half_of_the_tensors(original_state_dict, saved, refusal):
    tensors = {key: tensor for key, tensor in original_state_dict.items() if key.startswith(AGGREGATOR)}
    assert "lacks tensors that tell its architecture" in refusal(saved(tensors))


def test_an_architecture_that_cannot_work(original_state_dict, saved, refusal):
    tensors = dict(original_state_dict)
    for key in list(tensors):
        if ".visual." in key and not any(f"resblocks.{index}." in key for index in (0, 1)) and "resblocks" in key:
            del tensors[key]
    assert "architecture that cannot work: `guidance_layers`" in refusal(saved(tensors))


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"model_type": "clip"}', '{"hidden_size": 50}', '{"image_size": "large"}']
)
def test_config_files(content, tmp_path, refusal):
    (tmp_path / "config.json").write_text(content)
    error = refusal(ORIGINAL, "--config_path", tmp_path / "config.json")
    assert "is not the configuration of a CAT-Seg model" in error


def test_missing_config_file(tmp_path, refusal):
    assert "is not the configuration" in refusal(ORIGINAL, "--config_path", tmp_path / "config.json")


def test_config_of_another_architecture(tmp_path, refusal):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "catseg"}))
    assert "tensors misshapen" in refusal(ORIGINAL, "--config_path", tmp_path / "config.json")


@pytest.mark.parametrize("kind", ["file", "folder with files", "below a file"])
def test_output_folder_that_is_taken(kind, tmp_path, capsys):
    output = tmp_path / "out"
    if kind == "folder with files":
        output.mkdir()
        (output / "mine.txt").write_text("keep")
    else:
        output.write_text("keep")
    if kind == "below a file":
        output = output / "below"
    before = sorted(tmp_path.rglob("*"))
    # The check comes before any work: the checkpoint does not even exist.
    assert converter.main(["--checkpoint_path", "missing.pth", "--output_dir", str(output)]) == 1
    assert re.search("is a file|is not empty", capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before


def test_full_disk(tmp_path, refusal, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "of the disk are free" in refusal(ORIGINAL)


def test_failure_while_writing(tmp_path, refusal, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CATSegProcessor, "save_pretrained", fail)
    assert "No space left on device" in refusal(ORIGINAL)

"""`catseg-hf convert` and `catseg-hf export` do what the scripts in convert/ do."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

import convert_catseg_original_to_hf
import export_catseg
from catseg_hf import cli, load_vocabulary
from catseg_hf.conversion import converter
from catseg_testing.tokenizer import TOKENIZER
from conftest import FIXTURES


ORIGINAL = FIXTURES / "original.pth"
SCRIPTS = {"convert": convert_catseg_original_to_hf, "export": export_catseg}


def run(command: str, arguments: Sequence[object], by_script: bool) -> int:
    """The exit status of a command, or of the script that does the same."""
    arguments = [str(argument) for argument in arguments]
    return SCRIPTS[command].main(arguments) if by_script else cli.main([command, *arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_checkpoint_is_converted(tmp_path, capsys, golden, golden_inputs):
    folders = {by_script: tmp_path / str(by_script) / "catseg-tiny" for by_script in (False, True)}
    for by_script, folder in folders.items():
        options = ["--checkpoint_path", ORIGINAL, "--tokenizer", TOKENIZER, "--output_dir", folder]
        assert run("convert", options, by_script) == 0
        printed = capsys.readouterr().out
        assert "Largest difference from the literal implementation" in printed and f"Wrote {folder}" in printed
    assert contents(folders[False]) == contents(folders[True])
    model = AutoModelForSemanticSegmentation.from_pretrained(folders[False])
    with torch.no_grad():
        logits = model(**golden_inputs, sliding_window=False).logits
    torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=1e-4)

    assert run("convert", ["--verify_only", folders[False]], by_script=False) == 0
    assert "Largest difference from the literal implementation" in capsys.readouterr().out


@pytest.mark.parametrize("by_script", [False, True])
def test_every_option_of_a_conversion_is_passed_on(by_script, tmp_path, monkeypatch):
    calls = []

    def convert(*arguments, **options) -> str:
        calls.append((arguments, options))
        return "converted"

    monkeypatch.setattr("catseg_hf.commands.convert.download_checkpoint", lambda variant: f"{variant}.pth")
    monkeypatch.setattr(converter, "convert", convert)
    monkeypatch.setattr(converter, "push", lambda *arguments: calls.append(arguments))
    options = ["--variant", "large", "--output_dir", tmp_path / "out", "--config_path", "config.json"]
    options += ["--tokenizer", "words", "--dtype", "bfloat16", "--push_to_hub", "me/catseg", "--private"]
    options += ["--prompt_templates", "a {}", "the {}", "--endpoint_handler"]
    assert run("convert", options, by_script) == 0
    conversion = {
        "config_path": "config.json",
        "tokenizer": "words",
        "prompt_templates": ["a {}", "the {}"],
        "dtype": torch.bfloat16,
        "repo_id": "me/catseg",
        "endpoint_handler": True,
    }
    assert calls == [(("large.pth", str(tmp_path / "out")), conversion), ("converted", "me/catseg", True)]


@pytest.mark.parametrize("by_script", [False, True])
def test_every_option_of_an_export_is_passed_on(by_script, tmp_path, monkeypatch):
    pytest.importorskip("transformers.exporters", reason="transformers has no exporters before 5.24")
    calls = []

    def export(*arguments, **options):
        calls.append((arguments, options))

    monkeypatch.setattr("catseg_hf.export.graphs.export", export)
    monkeypatch.setattr("catseg_hf.export.fixed.export_fixed", export)
    monkeypatch.setattr("catseg_hf.export.formats.find_spec", lambda package: package)  # as if all were installed
    words = tmp_path / "words.txt"
    words.write_text("cat\nsofa")
    base = ["--model", "catseg-base", "--output", "out"]
    assert run("export", [*base, "--format", "onnx", "--quantize", "int8"], by_script) == 0
    assert run("export", [*base, "--format", "executorch", "--batch_size", 2, "--num_classes", 9], by_script) == 0
    assert calls == [
        (("catseg-base", "out", "onnx"), {"quantize": "int8", "batch_size": 1, "num_classes": None}),
        (("catseg-base", "out", "executorch"), {"quantize": None, "batch_size": 2, "num_classes": 9}),
    ]
    calls.clear()
    assert run("export", [*base, "--format", "openvino", "--labels", "cat, sofa"], by_script) == 0
    assert run("export", [*base, "--format", "onnx", "--vocabulary", "pascal_voc_20"], by_script) == 0
    options = ["--vocabulary", words, "--target", "gis", "--resolution", "30", "--quantize", "int8"]
    assert run("export", [*base, "--format", "onnx", *options], by_script) == 0
    plain = {"target": None, "quantize": None, "resolution": 10.0}
    assert calls == [
        (("catseg-base", "out", "openvino", "cat, sofa"), plain),
        (("catseg-base", "out", "onnx", load_vocabulary("pascal_voc_20")), plain),
        (("catseg-base", "out", "onnx", ["cat", "sofa"]), {"target": "gis", "quantize": "int8", "resolution": 30.0}),
    ]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("convert", []),
        ("convert", ["--checkpoint_path", "a.pth"]),
        ("convert", ["--checkpoint_path", "a.pth", "--variant", "base", "--output_dir", "out"]),
        ("convert", ["--variant", "huge", "--output_dir", "out"]),
        ("convert", ["--variant", "base", "--output_dir", "out", "--dtype", "int8"]),
        ("convert", ["--verify_only", "out", "--variant", "base"]),
        ("convert", ["--verify_only", "out", "--endpoint_handler"]),
        ("convert", ["--checkpoint_path", "a.pth", "--output_dir", "out", "--private"]),
        ("export", []),
        ("export", ["--model", "model", "--output", "out", "--format", "tflite"]),
        ("export", ["--model", "model", "--output", "out", "--format", "openvino", "--quantize", "int8"]),
        ("export", ["--model", "model", "--output", "out", "--format", "executorch", "--num_classes", "0"]),
    ],
)
def test_wrong_options(command, options, capsys):
    sentences = []
    for by_script in (False, True):
        with pytest.raises(SystemExit) as exit:
            run(command, options, by_script)
        assert exit.value.code == 2
        sentences.append(capsys.readouterr().err.splitlines()[-1].partition("error: ")[2])
    assert sentences[0] == sentences[1] != ""


def test_what_the_user_has_to_mend(tmp_path, capsys):
    """The command says it as the script does, with its own exit status."""
    pytest.importorskip("transformers.exporters", reason="transformers has no exporters before 5.24")
    wrong = {
        "convert": ["--checkpoint_path", tmp_path / "missing.pth", "--output_dir", tmp_path / "out"],
        "export": ["--model", tmp_path, "--format", "onnx", "--output", tmp_path / "out"],
    }
    for command, options in wrong.items():
        assert run(command, options, by_script=True) == 1
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert run(command, options, by_script=False) == 2
        assert f"catseg-hf: {said}" in capsys.readouterr().err.splitlines() and str(tmp_path) in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_model_is_exported(small_checkpoint, tmp_path, capsys):
    pytest.importorskip("transformers.exporters", reason="transformers has no exporters before 5.24")
    options = ["--model", small_checkpoint, "--format", "torch_export", "--output", tmp_path / "exported"]
    assert run("export", options, by_script=False) == 0
    assert f"Wrote {tmp_path / 'exported'}" in capsys.readouterr().out
    assert {"vocabulary.json", "text_embeds.npy"} < {path.name for path in (tmp_path / "exported").iterdir()}

"""The registry of export formats: what a format cannot do is said in its own words, before anything heavy is
imported."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import catseg_hf
import export_catseg
from catseg_hf import cli
from catseg_hf.errors import UserError
from catseg_hf.export import formats
from catseg_hf.export.formats import FORMATS, FREE_SIZES, GIS, INT8
from catseg_hf.vocabularies import read_vocabulary


PACKAGE = Path(catseg_hf.__file__).parent
BASE = ["--model=model", "--output=exported"]


def test_every_format_has_a_module_of_its_own():
    modules = [known.module for known in FORMATS.values()]
    assert len(set(modules)) == len(modules) == 4
    for name, known in FORMATS.items():
        assert known.name == name and known.cannot.keys() <= {INT8, FREE_SIZES, GIS}
        tree = ast.parse((PACKAGE / "export" / f"{known.module}.py").read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        defined |= {node.targets[0].id for node in tree.body if isinstance(node, ast.Assign)}
        assert defined >= {"FILE", "OPTIONS", "prepare", "finish", "save"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format=torch_export", "--quantize=int8"], "--quantize goes with --format onnx, not with torch_export: "),
        (["--format=openvino", "--quantize=int8"], "bfloat16 by itself"),
        (["--format=executorch", "--quantize=int8"], "XNNPACK takes the weights as they are"),
        (["--format=openvino", "--labels=a", "--target=gis"], "--target gis goes with --format onnx, not with openvi"),
        (["--format=onnx", "--target=gis"], "--target gis needs the words"),
        (["--format=onnx", "--labels=a", "--resolution=10"], "--resolution goes with --target gis"),
        (["--format=onnx", "--labels=a", "--target=gis", "--resolution=0"], "0 is not positive"),
        (["--format=onnx", "--labels=a", "--vocabulary=ade20k_150"], "not allowed with"),
        (["--format=onnx", "--labels=a", "--batch_size=4"], "--batch_size does not go with words: their graph takes"),
        (["--format=onnx", "--num_classes=4"], "--num_classes does not go with --format onnx, whose graphs take any"),
    ],
)
def test_what_does_not_go_together(options, message, capsys):
    with pytest.raises(SystemExit) as exit:
        export_catseg.main([*BASE, *options])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, known in FORMATS.items() if known.packages])
def test_missing_packages_are_named(name, monkeypatch, capsys):
    missing = FORMATS[name].packages[-1]
    monkeypatch.setattr(formats, "find_spec", lambda package: None if package == missing else package)
    with pytest.raises(SystemExit) as exit:
        cli.main(["export", *BASE, f"--format={name}"])
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert f"--format {name} needs {missing}, which this Python does not have: `pip install {missing}`" in said
    with pytest.raises(UserError, match=f"needs {missing}"):
        FORMATS[name].load()


def test_transformers_without_exporters(monkeypatch):
    monkeypatch.setattr(formats, "version", lambda package: "5.23.1")
    with pytest.raises(UserError, match=r'needs transformers>=5.24, which .*: `pip install "transformers>=5.24"`\.'):
        FORMATS["torch_export"].check_installed()
    monkeypatch.setattr(formats, "version", lambda package: "6.0.0.dev0")
    FORMATS["torch_export"].check_installed()


def test_nothing_heavy_is_imported_to_refuse():
    code = """
import json, sys
sys.argv[0] = "catseg-hf"
from catseg_hf import cli
from catseg_hf.export import formats
formats.find_spec = lambda package: None
codes = []
for options in (["--format=onnx"], ["--format=openvino", "--quantize=int8"], ["--format=openvino", "--labels=a"]):
    try:
        cli.main(["export", "--model=model", "--output=exported", *options])
    except SystemExit as exit:
        codes.append(exit.code)
heavy = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino"}
print(json.dumps([codes, sorted(heavy & set(sys.modules))]))
"""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[2, 2, 2], []]


@pytest.mark.parametrize(
    ("name", "text"),
    [("words.txt", "cat\n\n tree, oak \nsofa|couch\n"), ("words.json", '["cat", "tree, oak", "sofa|couch"]')],
)
def test_words_of_a_file(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_vocabulary(tmp_path / name) == ["cat", "tree, oak", "sofa|couch"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("words.txt", None, "could not be read .No such file or directory.: name a file with a label on each line"),
        ("words.txt", "\n \n", "holds no labels"),
        ("words.json", '["cat"', "could not be read"),
        ("words.json", '{"0": "cat"}', "holds no JSON list of strings"),
        ("words.json", "[1]", "holds no JSON list of strings"),
    ],
)
def test_files_without_words(name, text, message, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_vocabulary(tmp_path / name)

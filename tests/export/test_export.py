"""The graphs that `convert/export_catseg.py` writes, and the example that runs them without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, AutoProcessor, pipeline

import export_catseg
from catseg_hf import CATSegImageProcessorPil, CATSegProcessor
from catseg_hf.errors import UserError
from catseg_hf.export import formats
from catseg_testing.full_size import full_size_state_dict
from conftest import FIXTURES, ROOT, converted_model


exporters = pytest.importorskip("transformers.exporters", reason="transformers has no exporters before 5.24")
graphs = pytest.importorskip("catseg_hf.export.graphs")
fixed = pytest.importorskip("catseg_hf.export.fixed")

IMAGE = FIXTURES / "picture.png"
# Runs a script as a machine without torch would.
WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = None
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PARITY = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def checkpoint(original_state_dict, processor, tmp_path_factory) -> Path:
    model = converted_model(original_state_dict)
    labels = ["cat", "sofa", "sky", "tree, oak"]
    model.set_vocabulary(labels, processor(text=labels).input_ids)
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    image_processor = CATSegImageProcessorPil.from_model_config(model.config)
    CATSegProcessor(image_processor, processor.tokenizer).save_pretrained(folder)
    return folder


def run_export(checkpoint: Path, output: Path, *options: str) -> exporters.ExportedModel:
    """The exported model, loaded from the folder that the command line wrote."""
    code = export_catseg.main([f"--model={checkpoint}", f"--output={output}", *options])
    assert code == 0
    return exporters.ExportedModel.from_pretrained(output, trust_remote_code=True)


def require_onnx():
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="the extra `export` is not installed")


@pytest.fixture(scope="module")
def onnx_folder(checkpoint, tmp_path_factory) -> Path:
    require_onnx()
    folder = tmp_path_factory.mktemp("onnx") / "exported"
    run_export(checkpoint, folder, "--format=onnx")
    return folder


def assert_parity(exported: exporters.ExportedModel, checkpoint: Path, sizes: list[tuple[int, int]]):
    """Logits of batches and vocabularies of these sizes, and text features, as the model computes them."""
    model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    segmenter, text_encoder = exported.runners["segmenter"], exported.runners["text_encoder"]
    with torch.no_grad():
        for batch_size, num_classes in sizes:
            inputs = graphs.random_inputs(model, batch_size, num_classes)
            del inputs["input_ids"]
            expected = model(**inputs, sliding_window=False).logits
            torch.testing.assert_close(segmenter(**inputs)["logits"], expected, **PARITY)
            input_ids = processor(text=[f"word {index}" for index in range(num_classes)]).input_ids[:, None]
            input_ids = F.pad(input_ids, (0, 77 - input_ids.shape[-1]), value=processor.tokenizer.eos_token_id)
            found = text_encoder(input_ids=input_ids)["text_embeds"]
            torch.testing.assert_close(found, model.get_text_embeds(input_ids), **PARITY)


ANY_SIZES = [(1, 1), (3, 20), (1, 171), (2, 300)]


@pytest.mark.slow
def test_onnx(onnx_folder, checkpoint):
    from onnxruntime import SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = 1  # its threads would wait for each other on a busy machine
    assert_parity(exporters.ExportedModel.from_pretrained(onnx_folder, session_options=options), checkpoint, ANY_SIZES)


@pytest.mark.slow
def test_onnx_in_one_session_and_in_any_order(onnx_folder, checkpoint):
    """Some runtimes keep the sizes of an earlier call."""
    exported = exporters.ExportedModel.from_pretrained(onnx_folder)
    assert_parity(exported, checkpoint, [(1, 20), (1, 1), (2, 135), (1, 4), (3, 20), (1, 20)])


@pytest.mark.slow
def test_nodes_that_runtimes_compute_wrongly(onnx_folder):
    """WebGPU: gathering in five axes, or by tuples of indices; OpenCV: Einsum; both: antialiased Resize."""
    import onnx

    for name in ("text_encoder", "segmenter"):
        model = onnx.shape_inference.infer_shapes(onnx.load(onnx_folder / f"{name}.onnx"))
        assert not {node.op_type for node in model.graph.node} & {"GatherND", "ScatterND", "Einsum", "Resize"}
        ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
        gathered = [ranks[node.output[0]] for node in model.graph.node if node.op_type == "GatherElements"]
        assert max(gathered, default=0) <= 4 and bool(gathered) == (name == "segmenter")


@pytest.mark.slow
def test_onnx_of_the_base_model():
    require_onnx()
    model = converted_model(full_size_state_dict("vit_b_16_384")).eval().requires_grad_(False)
    exported = graphs.export_graphs(model, graphs.GraphExporter("onnx"))
    assert graphs.largest_difference(exported, model, [(1, 20), (1, 171)]) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("export_format", ["torch_export", "openvino"])
def test_other_formats_of_any_size(export_format, checkpoint, tmp_path):
    if export_format == "openvino":
        pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    exported = run_export(checkpoint, tmp_path / "exported", f"--format={export_format}")
    if export_format == "openvino":
        exported.to(config={"INFERENCE_PRECISION_HINT": "f32"})
    assert_parity(exported, checkpoint, ANY_SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 1), (1, 20), (3, 171), (3, 300)])
def test_executorch(sizes, checkpoint, tmp_path):
    pytest.importorskip("executorch", reason="the extra `export` leaves ExecuTorch and its many dependencies out")
    batch_size, num_classes = sizes
    exported = run_export(
        checkpoint,
        tmp_path / "exported",
        "--format=executorch",
        f"--batch_size={batch_size}",
        f"--num_classes={num_classes}",
    )
    assert_parity(exported, checkpoint, [sizes])


@pytest.mark.slow
def test_what_lies_beside_the_graphs(onnx_folder, checkpoint):
    model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint).eval()
    processor, beside = AutoProcessor.from_pretrained(checkpoint), AutoProcessor.from_pretrained(onnx_folder)
    labels = json.loads((onnx_folder / "vocabulary.json").read_text())
    assert labels == ["cat", "sofa", "sky", "tree, oak"]
    with torch.no_grad():
        expected = model.get_text_embeds(processor(text=labels).input_ids)
    torch.testing.assert_close(torch.from_numpy(np.load(onnx_folder / "text_embeds.npy")), expected, rtol=0, atol=1e-6)
    image = Image.open(IMAGE)
    for name, pixels in processor(images=image, text=labels).items():
        assert torch.equal(pixels, beside(images=image, text=labels)[name])
    settings = json.loads((onnx_folder / "preprocessor_config.json").read_text())
    assert settings["image_size"] == model.config.image_size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "background", "sliding_window"),
    [
        (None, None, True),
        (["cat", "tree, oak", "sofa"], None, False),
        (["cat|sofa", "tree, oak"], ["sky"], True),
        (None, ["wall", "floor"], False),
    ],
)
def test_example_needs_no_torch(labels, background, sliding_window, onnx_folder, checkpoint, tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    for path in onnx_folder.iterdir():
        (folder / path.name).symlink_to(path)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "sliding_window": sliding_window}))

    options = [f"--model={folder}", f"--image={IMAGE}", f"--output={tmp_path / 'labels.png'}"]
    options += ["--labels", *labels] if labels else []
    options += ["--background", *background] if background else []
    script = ROOT / "demo" / "segment_onnx.py"
    environment = {"PATH": "", "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, script, *options], check=True, env=environment)
    found = np.asarray(Image.open(tmp_path / "labels.png"))

    segmenter = pipeline("zero-shot-image-segmentation", model=str(checkpoint))
    words = {"candidate_labels": labels, "background_labels": background}
    expected = segmenter(IMAGE, **words, sliding_window=sliding_window, return_segmentation_map=True)["segmentation"]
    assert (expected == -1).any() == bool(background)
    assert (found == (expected % 65536).numpy()).mean() > 0.999


@pytest.mark.slow
def test_int8(checkpoint, onnx_folder, tmp_path):
    exported = run_export(checkpoint, tmp_path / "int8", "--format=onnx", "--quantize=int8")
    assert "MatMulInteger" in {node.op_type for node in exported.components["segmenter"].program.graph}
    sizes = [
        sum(path.stat().st_size for path in folder.glob("*.onnx*")) for folder in (tmp_path / "int8", onnx_folder)
    ]
    assert sizes[0] < 0.8 * sizes[1]
    model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint).eval()
    inputs = graphs.random_inputs(model, 2, 20)
    del inputs["input_ids"]
    with torch.no_grad():
        expected = model(**inputs, sliding_window=False).logits.sigmoid()
    found = exported.runners["segmenter"](**inputs)["logits"].sigmoid()
    assert (found - expected).abs().mean() < 0.02


@pytest.mark.parametrize("kept", [("README.md", "NOTICE"), ("LICENSE",), ()])
def test_what_a_model_says_of_its_terms_lies_beside_its_graphs(kept, checkpoint, tmp_path, monkeypatch):
    source = tmp_path / "model"
    shutil.copytree(checkpoint, source)
    for name in kept:
        (source / name).write_text(f"the {name}")
    monkeypatch.setattr(graphs, "export_graphs", lambda *arguments: exporters.ExportedModel({}, "dynamo"))
    monkeypatch.setattr(graphs, "largest_difference", lambda *arguments: 0.0)
    folder = graphs.export(source, tmp_path / "exported", "torch_export")
    found = {name for name in ("README.md", "NOTICE", "LICENSE") if (folder / name).exists()}
    assert found == set(kept) and all((folder / name).read_text() == f"the {name}" for name in kept)


def test_a_difference_leaves_nothing(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(graphs, "export_graphs", lambda *arguments: None)
    monkeypatch.setattr(graphs, "largest_difference", lambda *arguments: float("nan"))
    output = tmp_path / "exported"
    assert export_catseg.main([f"--model={checkpoint}", f"--output={output}", "--format=onnx"]) == 1
    assert "away from the model's" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    exported = exporters.ExportedModel({}, "onnx")
    monkeypatch.setattr(graphs, "export_graphs", lambda *arguments: exported)
    monkeypatch.setattr(graphs, "largest_difference", lambda *arguments: 0.0)
    monkeypatch.setattr(np, "save", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        graphs.export(checkpoint, tmp_path / "exported", "torch_export")
    assert list(tmp_path.iterdir()) == []


def test_missing_package(checkpoint, tmp_path, monkeypatch):
    def needs(*arguments):
        raise ImportError("OnnxExporter requires you to install onnxscript.")

    monkeypatch.setattr(graphs.AutoHfExporter, "from_config", needs)
    with pytest.raises(UserError, match="--format torch_export needs other packages: .*onnxscript"):
        graphs.export(checkpoint, tmp_path / "exported", "torch_export")


@pytest.mark.parametrize("name", [name for name, known in formats.FORMATS.items() if known.packages])
def test_packages_are_there_before_a_model_is_loaded(name, tmp_path, monkeypatch):
    missing = formats.FORMATS[name].packages[0]
    find_spec = formats.find_spec
    monkeypatch.setattr(formats, "find_spec", lambda package: None if package == missing else find_spec(package))
    for module in (graphs, fixed):
        monkeypatch.setattr(module, "load", lambda path: 1 / 0)
    with pytest.raises(UserError, match=f"--format {name} needs .*{missing}.*: `pip install"):
        graphs.export("a-model", tmp_path / "exported", name)
    with pytest.raises(UserError, match=f"--format {name} needs .*{missing}.*: `pip install"):
        fixed.export_fixed("a-model", tmp_path / "exported", name, "cat")


def test_integers_that_a_format_has_not_are_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "load", lambda path: 1 / 0)
    with pytest.raises(UserError, match="--quantize goes with --format onnx, not with torch_export"):
        graphs.export("a-model", tmp_path / "exported", "torch_export", quantize="int8")


def test_not_a_model(tmp_path, capsys):
    assert export_catseg.main([f"--model={tmp_path}", f"--output={tmp_path / 'exported'}", "--format=onnx"]) == 1
    assert f"error: {tmp_path} does not load as a CAT-Seg model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format=tflite"], "invalid choice"),
        (["--format=openvino", "--quantize=int8"], "--quantize goes with --format onnx"),
        (["--format=executorch", "--num_classes=0"], "must be at least 1"),
    ],
)
def test_refused_arguments(options, message, capsys):
    with pytest.raises(SystemExit):
        export_catseg.main(["--model=model", "--output=exported", *options])
    assert message in capsys.readouterr().err

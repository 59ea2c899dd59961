"""One graph with the words in it: what it computes, what is in its file, and who reads it."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, AutoProcessor, PreTrainedModel, pipeline

import export_catseg
from catseg_hf import CATSegImageProcessorPil, CATSegProcessor
from catseg_hf.class_words_catseg import read_classes
from catseg_hf.errors import UserError
from catseg_hf.export import runtime
from catseg_hf.export.formats import FORMATS
from catseg_hf.visualization.colors import class_color
from conftest import FIXTURES, converted_model


pytest.importorskip("transformers.exporters", reason="transformers has no exporters before 5.24")
fixed = pytest.importorskip("catseg_hf.export.fixed")
executorch_format = pytest.importorskip("catseg_hf.export.executorch_format")
graphs = pytest.importorskip("catseg_hf.export.graphs")
artefact_metadata = pytest.importorskip("catseg_hf.export.metadata").artefact_metadata

IMAGE = FIXTURES / "picture.png"
LABELS = "cat, sofa|couch|settee, sky"
WORDS = ["cat", "sofa", "couch", "settee", "sky"]
NAMES = ["cat", "sofa", "sky"]
CARD = "---\nlicense: cc-by-4.0\n---\n# A model\n"
# What runtimes were seen to compute wrongly, or not at all.
REFUSED_NODES = {"GatherND", "ScatterND", "Einsum", "If", "Loop", "NonZero", "Resize"}


@pytest.fixture(scope="module")
def checkpoint(original_state_dict, processor, tmp_path_factory) -> Path:
    model = converted_model(original_state_dict)
    model.config.class_chunk_size = 3  # of five words: parts of two sizes
    folder = tmp_path_factory.mktemp("models") / "catseg-tiny"
    model.save_pretrained(folder)
    image_processor = CATSegImageProcessorPil.from_model_config(model.config)
    CATSegProcessor(image_processor, processor.tokenizer).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint):
    return AutoModelForSemanticSegmentation.from_pretrained(checkpoint).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def text_embeds(model, checkpoint):
    return model.get_text_embeds(AutoProcessor.from_pretrained(checkpoint)(text=WORDS).input_ids)


def expected(model, text_embeds, pixel_values) -> torch.Tensor:
    """Probabilities of the three classes, by the model's own way."""
    with torch.no_grad():
        logits = model(pixel_values, text_embeds=text_embeds, sliding_window=False).logits
    cat, *sofa, sky = logits.sigmoid().unbind(1)
    return torch.stack([cat, torch.stack(sofa).amax(dim=0), sky], dim=1)


def random_images(model, count: int) -> torch.Tensor:
    side = model.config.image_size
    return torch.randn(count, 1, 3, side, side, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def test_the_module_computes_what_the_model_does(model, text_embeds):
    module = fixed.FixedSegmenter(model, text_embeds, read_classes(LABELS)).eval()
    (pixel_values,) = random_images(model, 1)
    outputs = module(pixel_values)
    probabilities = expected(model, text_embeds, pixel_values)
    torch.testing.assert_close(outputs["probabilities"], probabilities, rtol=0, atol=1e-6)
    assert outputs["labels"].dtype == torch.int32
    assert torch.equal(outputs["labels"].long(), outputs["probabilities"].argmax(dim=1))


@torch.no_grad()
def test_the_module_for_gis_takes_colours(model, text_embeds, checkpoint):
    processor = AutoProcessor.from_pretrained(checkpoint)
    module = fixed.GisSegmenter(model, text_embeds, read_classes(LABELS), processor).eval()
    side = model.config.image_size
    pixels = torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    outputs = module(pixels[None] / 255)
    pixel_values = processor(images=pixels, sliding_window=False).pixel_values
    probabilities = expected(model, text_embeds, pixel_values)
    upsampled = F.interpolate(probabilities, size=(side, side), mode="bilinear")
    assert outputs.keys() == {"probabilities"} and outputs["probabilities"].shape == (1, 3, side, side)
    torch.testing.assert_close(outputs["probabilities"], upsampled, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_text_encoder_takes_the_end_of_each_prompt(model, checkpoint):
    input_ids = AutoProcessor.from_pretrained(checkpoint)(text=["cat", "a much longer name", "sky"]).input_ids[:, None]
    found = graphs.TextEncoder(model)(input_ids)["text_embeds"]
    torch.testing.assert_close(found, model.get_text_embeds(input_ids), rtol=0, atol=1e-6)


def test_positions_are_resized_once(model):
    """CLIP's own resize of them, which is no part of the graph."""
    module = graphs.Segmenter(model)
    side = model.config.image_size
    embeddings = module.model.clip.vision_model.embeddings
    assert len(embeddings.position_embedding.weight) == 1 + (side // embeddings.patch_size) ** 2
    (pixel_values,) = random_images(model, 1)
    before, after = (one.clip.vision_model.embeddings for one in (model, module.model))
    expected_tokens = before(pixel_values, interpolate_pos_encoding=True)
    assert torch.equal(after(pixel_values, interpolate_pos_encoding=True), expected_tokens)


def run_export(checkpoint: Path, folder: Path, *options: str) -> Path:
    assert export_catseg.main([f"--model={checkpoint}", f"--output={folder}", *options]) == 0
    return folder


@pytest.fixture(scope="module")
def onnx_file(checkpoint, tmp_path_factory) -> Path:
    for package in FORMATS["onnx"].packages:
        pytest.importorskip(package, reason="the extra `export` is not installed")
    folder = tmp_path_factory.mktemp("fixed") / "exported"
    run_export(checkpoint, folder, "--format=onnx", f"--labels={LABELS}")
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def gis_file(checkpoint, tmp_path_factory) -> Path:
    for package in FORMATS["onnx"].packages:
        pytest.importorskip(package, reason="the extra `export` is not installed")
    folder = tmp_path_factory.mktemp("gis") / "exported"
    words = tmp_path_factory.mktemp("words") / "words.txt"
    words.write_text("\n".join(NAMES))
    options = ["--format=onnx", f"--vocabulary={words}", "--target=gis", "--resolution=25"]
    return run_export(checkpoint, folder, *options) / "model.onnx"


def shapes(values) -> dict[str, list[int]]:
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}


@pytest.mark.slow
def test_the_graph(onnx_file, model):
    """Static, of few kinds of nodes, with 32-bit integers wherever something is computed with them."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(onnx_file)).graph
    side = model.config.image_size
    assert shapes(graph.input) == {"pixel_values": [1, 3, side, side]}
    (height, width) = shapes(graph.output)["labels"][1:]
    assert shapes(graph.output) == {"probabilities": [1, 3, height, width], "labels": [1, height, width]}
    assert not {node.op_type for node in graph.node} & REFUSED_NODES
    int64 = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.INT64}
    assert {node.op_type for node in graph.node if int64 & {*node.output}} <= {"ArgMax", "Constant"}
    assert all(min(sizes, default=1) > 0 for sizes in shapes(graph.value_info).values())
    upsampled = [shapes(graph.value_info)[node.output[0]][0] for node in graph.node if node.op_type == "ConvTranspose"]
    assert sorted(upsampled)[-4:] == [2, 2, 3, 3]  # words that are decoded together


@pytest.mark.slow
def test_one_session_segments_images_as_the_model_does(onnx_file, model, text_embeds):
    from onnxruntime import InferenceSession

    session = InferenceSession(onnx_file)
    for pixel_values in random_images(model, 3)[[0, 1, 0, 2]]:
        probabilities, labels = session.run(["probabilities", "labels"], {"pixel_values": pixel_values.numpy()})
        np.testing.assert_allclose(probabilities, expected(model, text_embeds, pixel_values), rtol=0, atol=1e-4)
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, probabilities.argmax(axis=1))


@pytest.mark.slow
def test_opencv_reads_it(onnx_file, model, text_embeds):
    cv2 = pytest.importorskip("cv2")
    if int(cv2.__version__.split(".")[0]) < 5:
        pytest.skip("OpenCV's importer of ONNX lacks LayerNormalization before 5.0")
    net = cv2.dnn.readNetFromONNX(str(onnx_file))
    for pixel_values in random_images(model, 2):
        net.setInput(pixel_values.numpy(), "pixel_values")
        found = net.forward("probabilities")
        np.testing.assert_allclose(found, expected(model, text_embeds, pixel_values), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_metadata(onnx_file, gis_file, model, checkpoint):
    import onnx

    stored = {entry.key: entry.value for entry in onnx.load(onnx_file).metadata_props}
    metadata = {name: json.loads(value) for name, value in stored.items() if not name.startswith("pkg.")}
    settings = AutoProcessor.from_pretrained(checkpoint).image_processor
    side = model.config.image_size
    assert metadata["class_names"] == NAMES
    assert metadata["words"] == [["cat"], ["sofa", "couch", "settee"], ["sky"]]
    assert metadata["palette"] == [list(class_color(index)) for index in range(3)]
    assert metadata["size"] == [side, side]
    assert metadata["mean"] == list(settings.image_mean) and metadata["std"] == list(settings.image_std)
    assert metadata["preprocessor_config"]["image_size"] == settings.image_size
    assert metadata["licence"] == "cc-by-4.0" and metadata["model"] == "catseg-tiny" and metadata["commit"] is None

    stored = {entry.key: entry.value for entry in onnx.load(gis_file).metadata_props}
    assert stored["model_type"] == '"Segmentor"'
    assert json.loads(stored["class_names"]) == {"0": "cat", "1": "sofa", "2": "sky"}
    assert json.loads(stored["resolution"]) == 25 and json.loads(stored["tile_size"]) == side
    assert json.loads(stored["tiles_overlap"]) == 15
    assert json.loads(stored["seg_thresh"]) == json.loads(stored["seg_small_segment"]) == 0
    assert not {"mean", "std", "preprocessor_config", "tiles_size"} & stored.keys()


@pytest.mark.slow
def test_the_graph_for_gis(gis_file, model, checkpoint):
    """Colours in 0..1 to probabilities of the same size, and no other input or output."""
    from onnxruntime import InferenceSession

    session = InferenceSession(gis_file)
    side = model.config.image_size
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("image", [1, 3, side, side])]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("probabilities", [1, 3, side, side])]
    image = np.asarray(Image.open(IMAGE).convert("RGB").resize((side, side)))
    (probabilities,) = session.run(None, {"image": image.transpose(2, 0, 1)[None].astype(np.float32) / 255})
    segmenter = pipeline("zero-shot-image-segmentation", model=str(checkpoint))
    options = {"candidate_labels": NAMES, "sliding_window": False, "return_segmentation_map": True}
    expected_map = segmenter(Image.fromarray(image), **options)["segmentation"].numpy()
    assert (probabilities[0].argmax(axis=0) == expected_map).mean() > 0.999


class TorchSession:
    """What ONNX Runtime's session of a fixed artefact would be, in PyTorch."""

    def __init__(self, module, metadata: dict[str, object]):
        self.module, self.metadata = module, metadata

    def get_modelmeta(self) -> SimpleNamespace:
        return SimpleNamespace(custom_metadata_map={name: json.dumps(value) for name, value in self.metadata.items()})

    @torch.no_grad()
    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        outputs = self.module(torch.from_numpy(inputs["pixel_values"]))
        return [outputs[name].numpy() for name in names]


def torch_segmenter(model, checkpoint: Path, labels: str, monkeypatch) -> runtime.FixedSegmenter:
    """The runtime's segmenter with the model in place of a graph."""
    processor, classes = AutoProcessor.from_pretrained(checkpoint), read_classes(labels)
    text_embeds = model.get_text_embeds(processor(text=classes.words).input_ids)
    session = TorchSession(
        fixed.FixedSegmenter(model, text_embeds, classes).eval(),
        artefact_metadata(model, processor, classes, "catseg-tiny", str(checkpoint)),
    )
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "_session", lambda path: session)
        return runtime.FixedSegmenter(Path("model.onnx"))


@pytest.mark.parametrize("sliding_window", [True, False])
def test_the_runtime_finds_what_the_pipeline_does(sliding_window, model, checkpoint, monkeypatch):
    segmenter = torch_segmenter(model, checkpoint, ", ".join(NAMES), monkeypatch)
    assert segmenter.settings["sliding_window"] and segmenter.names == NAMES
    segmenter.settings["sliding_window"] = sliding_window
    found = segmenter(runtime.read_image(IMAGE)).class_map
    reference = pipeline("zero-shot-image-segmentation", model=str(checkpoint))
    options = {"candidate_labels": NAMES, "sliding_window": sliding_window, "return_segmentation_map": True}
    assert (found == reference(IMAGE, **options)["segmentation"].numpy()).mean() > 0.999


@pytest.mark.slow
def test_the_runtime_with_the_graph(onnx_file, model, checkpoint, monkeypatch):
    segmenter = torch_segmenter(model, checkpoint, LABELS, monkeypatch)
    found = runtime.load_segmenter(onnx_file)(runtime.read_image(IMAGE))
    wanted = segmenter(runtime.read_image(IMAGE))
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, rtol=0, atol=1e-4)
    assert found.names == NAMES and (found.class_map == wanted.class_map).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("export_format", [name for name in FORMATS if name != "onnx"])
def test_other_formats(export_format, checkpoint, model, text_embeds, tmp_path):
    for package in FORMATS[export_format].packages:
        pytest.importorskip(package, reason=f"{package} is not installed")
    folder = run_export(checkpoint, tmp_path / "fixed", f"--format={export_format}", f"--labels={LABELS}")
    run, metadata = READERS[export_format](folder)
    assert metadata["class_names"] == NAMES and metadata["licence"] == "cc-by-4.0"
    for pixel_values in random_images(model, 2):
        probabilities, labels = run(pixel_values)
        wanted = expected(model, text_embeds, pixel_values)
        np.testing.assert_allclose(probabilities, wanted, rtol=0, atol=1e-4)
        assert (np.asarray(labels) == probabilities.argmax(axis=1)).all()
    side = model.config.image_size
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        run(torch.zeros(1, 3, side // 2, 2 * side))


def test_executorch_gets_attention_written_out(model, text_embeds):
    module = fixed.FixedSegmenter(model, text_embeds, read_classes(LABELS))
    executorch_format.prepare(module)
    parts = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    assert len(parts) > 1 and {part.config._attn_implementation for part in parts} == {"eager"}
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.slow
def test_what_executorch_runs_slowly_or_not_at_all(model, text_embeds):
    """torch's own attention, and copies whose channels come last."""
    module = fixed.FixedSegmenter(model, text_embeds, read_classes(LABELS)).eval().requires_grad_(False)
    executorch_format.prepare(module)
    (pixel_values,) = random_images(model, 1)
    program = torch.export.export(module, (pixel_values,))
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    assert len(nodes) > 100 and not [node for node in nodes if "scaled_dot_product" in str(node.target)]
    assert not [node for node in nodes if node.kwargs.get("memory_format") == torch.channels_last]
    found = program.module()(pixel_values)["probabilities"]
    torch.testing.assert_close(found, expected(model, text_embeds, pixel_values), rtol=0, atol=1e-5)


def read_torch_export(folder: Path):
    files = {"metadata.json": ""}
    program = torch.export.load(folder / "model.pt2", extra_files=files).module()
    return lambda pixel_values: tuple(
        program(pixel_values=pixel_values)[name].numpy() for name in ("probabilities", "labels")
    ), json.loads(files["metadata.json"])


def read_openvino(folder: Path):
    import openvino

    model = openvino.Core().read_model(folder / "model.xml")
    metadata = {name: json.loads(value) for name, value in model.get_rt_info(["catseg"]).value.items()}
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(pixel_values):
        outputs = compiled({"pixel_values": pixel_values.numpy()})
        return outputs["probabilities"], outputs["labels"]

    return run, metadata


def read_executorch(folder: Path):
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(folder / "model.pte").load_method("forward")
    metadata = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    return lambda pixel_values: tuple(output.numpy() for output in method.execute([pixel_values])), metadata


READERS = {"torch_export": read_torch_export, "openvino": read_openvino, "executorch": read_executorch}


def test_a_difference_leaves_nothing(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fixed, "export_fixed_graph", lambda *arguments: None)
    monkeypatch.setattr(fixed, "largest_fixed_difference", lambda *arguments: 1e-3)
    options = ["--format=torch_export", "--labels=cat"]
    assert export_catseg.main([f"--model={checkpoint}", f"--output={tmp_path / 'exported'}", *options]) == 1
    assert "1.0e-03 away from the model's, more than 1e-04" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [("", "has no labels: name at least one class"), ("cat, sofa|", "a bar with no word on one side")],
)
def test_labels_that_are_none(labels, message, checkpoint, tmp_path, capsys):
    options = ["--format=torch_export", f"--labels={labels}"]
    assert export_catseg.main([f"--model={checkpoint}", f"--output={tmp_path / 'exported'}", *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "message"), [(1, "There are 1 classes, .* takes 2 to 255"), (256, "name what else")]
)
def test_classes_that_gis_does_not_take(count, message, checkpoint, tmp_path):
    with pytest.raises(UserError, match=message):
        labels = [f"class {index}" for index in range(count)]
        fixed.export_fixed(checkpoint, tmp_path / "exported", "onnx", labels, target="gis")

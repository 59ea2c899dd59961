"""The interactive demo: its functions, and the page through Gradio's client."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import ExifTags, Image

from catseg_app import segmentation
from catseg_app.downloads import python_code, summarize, write_files
from catseg_app.drawing import annotations, display_size, displayed, heat_map, overlay, to_image_pixel
from catseg_app.labels import format_labels, parse_classes, parse_labels
from catseg_app.segmentation import (
    EMBEDDED,
    Segmentation,
    find_model,
    load_model,
    probability_map,
    read_image,
    segment,
    top_labels,
)
from catseg_hf import EMBEDDED_MODEL, VOCABULARIES, load_vocabulary
from catseg_hf.class_words_catseg import read_classes
from catseg_hf.errors import UserError
from catseg_hf.image_io_catseg import open_image
from catseg_hf.loading import names
from catseg_hf.visualization import class_color, draw_segmentation
from conftest import ROOT


pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")

SCENE = ROOT / "demo" / "scene.png"
LABELS = ["snow", "balloon", "water", "broccoli"]


@pytest.fixture(scope="module")
def segmenter():
    return load_model(EMBEDDED_MODEL)


@pytest.fixture(scope="module")
def result(segmenter):
    return segment(segmenter, Image.open(SCENE), LABELS)


def made_up(size: tuple[int, int], num_classes: int) -> Segmentation:
    """A result with a column of pixels, or several, for every class."""
    width, height = size
    classes = (torch.arange(width) * num_classes // width).short().expand(height, width)
    labels = [f"class {index}" for index in range(num_classes)]
    segments = [
        {"index": index, "label": label, "area": 1 / num_classes, "score": 0.5} for index, label in enumerate(labels)
    ]
    probabilities = torch.rand(num_classes, 4, 4, generator=torch.Generator().manual_seed(0)).half()
    return Segmentation(
        Image.new("RGB", size), "model", read_classes(labels), 0.0, False, None, classes, segments, probabilities
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat, dog,sofa", ["cat", "dog", "sofa"]),
        (" cat ,,  dog , cat, ", ["cat", "dog"]),
        ("fire   engine", ["fire engine"]),
        ("tree, oak\n\n  cat,\ntree, oak", ["tree, oak", "cat"]),
    ],
)
def test_labels(text, expected):
    assert parse_labels(text) == expected


@pytest.mark.parametrize(("text", "message"), [(" ,\n", "No classes"), ("\n".join(map(str, range(5000))), "5000")])
def test_labels_that_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_classes(text)


@pytest.mark.parametrize("labels", [load_vocabulary(name) for name in VOCABULARIES] + [["cat"]])
def test_presets_are_read_back(labels):
    assert parse_labels(format_labels(labels)) == [label.strip() for label in labels]


def test_models():
    assert find_model(EMBEDDED, []) == EMBEDDED_MODEL
    assert find_model("owner/name", []) == "owner/name"
    assert find_model("/models/catseg-base", ["/models/catseg-base"]) == "/models/catseg-base"
    for name in ("/etc", "../..", "name", str(ROOT), ""):
        with pytest.raises(UserError, match=re.escape(repr(name))):
            find_model(name, [])


def test_a_model_that_is_none(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        load_model(str(tmp_path))


def test_images_are_upright_and_frames_are_counted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    image, frames = read_image(tmp_path / "turned.jpg")
    assert image.size == (20, 30) and frames == 1
    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    red.save(tmp_path / "animation.gif", save_all=True, append_images=[blue])
    image, frames = read_image(tmp_path / "animation.gif")
    assert frames == 2 and image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(("side", "message"), [(10_000, "100 megapixels"), (15_000, "too large")])
def test_images_that_are_too_large(tmp_path, side, message):
    Image.new("1", (side, side)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match=f"'large.png'.*{message}.*at most 50"):
        read_image(tmp_path / "large.png")


def test_bad_files(tmp_path):
    (tmp_path / "note.png").write_text("no image")
    with pytest.raises(UserError, match="'note.png' could not be read"):
        read_image(tmp_path / "note.png")


@pytest.mark.parametrize("sliding_window", [False, True])
def test_results_are_the_pipelines(segmenter, sliding_window):
    image = Image.open(SCENE)
    result = segment(segmenter, image, LABELS, threshold=0.45, sliding_window=sliding_window)
    expected = segmenter(
        image,
        candidate_labels=LABELS,
        threshold=0.45,
        sliding_window=sliding_window,
        return_segmentation_map=True,
        return_probabilities=True,
    )
    assert torch.equal(result.segmentation.long(), expected["segmentation"])
    assert (result.segmentation < 0).any()
    torch.testing.assert_close(result.probabilities.float(), expected["probabilities"], atol=1e-3, rtol=0)
    for found, other in zip(result.segments, expected["segments"], strict=True):
        assert found["label"] == other["label"] == LABELS[found["index"]]
        assert found["score"] == pytest.approx(other["score"], abs=1e-6)
        assert found["area"] == pytest.approx(np.mean(np.array(other["mask"]) == 255), abs=1e-6)


def test_classes_follow_the_masks_of_segment_anything(segmenter, tmp_path, monkeypatch):
    def halves(image: Image.Image) -> np.ndarray:
        left = np.arange(image.width) < image.width // 2
        return np.stack([left, ~left])[:, None].repeat(image.height, axis=1)

    monkeypatch.setattr(segmentation, "load_masks", {"owner/sam": halves}.get)
    result = segment(segmenter, Image.open(SCENE), LABELS, sam="owner/sam")
    expected = segmenter(
        Image.open(SCENE), candidate_labels=LABELS, mask_generator=halves, return_segmentation_map=True
    )
    assert torch.equal(result.segmentation.long(), expected["segmentation"])
    assert (result.segmentation[:, :256] == result.segmentation[0, 0]).all()
    assert summarize(result)["sam"] == "owner/sam"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("catseg_hf.loading.load_mask_generator", {"owner/sam": halves}.get)
    result.image.save("image.jpg")
    exec(python_code(result, opacity=0.4), {})
    drawn = np.array(Image.open("overlay.png").crop((0, 0, 256, 512)), dtype=int)
    assert np.abs(drawn - np.array(overlay(result, 0.4).crop((0, 0, 256, 512)))).mean() < 5


def test_images_of_any_mode(segmenter):
    image = Image.open(SCENE).convert("RGB")
    transparent = segment(segmenter, image.convert("RGBA"), LABELS)
    assert transparent.image.mode == "RGB"
    assert torch.equal(transparent.segmentation, segment(segmenter, image, LABELS).segmentation)


@pytest.mark.parametrize("place", [(0, 0), (511, 511), (100, 300), (257, 12)])
def test_top_labels(result, place):
    x, y = place
    resized = F.interpolate(result.probabilities.float()[None], (512, 512), mode="bilinear")[0, :, y, x]
    order = resized.argsort(descending=True).tolist()
    best = top_labels(result, x, y, count=3)
    assert list(best) == [LABELS[index] for index in order[:3]]
    assert list(best.values()) == pytest.approx(resized[order[:3]].tolist(), abs=1e-5)
    assert len(top_labels(result, x, y)) == 4
    assert top_labels(result, x + 0.7, y + 0.7) == top_labels(result, x, y)


def test_top_labels_beside_the_image(result):
    assert top_labels(result, -5, 900) == top_labels(result, 0, 511)


def test_probability_map(result):
    values = probability_map(result, "water", (512, 512))
    resized = F.interpolate(result.probabilities.float()[None], (512, 512), mode="bilinear")[0, 2]
    torch.testing.assert_close(values, resized)
    with pytest.raises(UserError, match="'fire'"):
        probability_map(result, "fire", (8, 8))


def test_probabilities_are_kept_in_bounded_memory(segmenter, monkeypatch):
    monkeypatch.setattr(segmentation, "MAX_PROBABILITIES", 4 * 20 * 20)
    result = segment(segmenter, Image.open(SCENE), LABELS)
    assert result.probabilities.shape == (4, 20, 20) and result.segmentation.shape == (512, 512)


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 300), (512, 300)), ((4096, 2048), (1024, 512)), ((1, 9000), (1, 1024))]
)
def test_large_images_are_scaled_for_display_only(size, expected):
    result = made_up(size, 1)
    image, classes = displayed(result)
    assert display_size(size) == image.size == classes.shape[::-1] == expected
    assert overlay(result, 0.5).size == heat_map(result, "class 0").size == expected
    assert result.segmentation.shape == size[::-1]
    last = (expected[0] - 1, expected[1] - 1)
    assert all(
        0 <= full - place < full / 200 + 1 for place, full in zip(to_image_pixel(result, *last), size, strict=True)
    )
    assert to_image_pixel(result, 0, 0) == tuple(
        full // shown // 2 for full, shown in zip(size, expected, strict=True)
    )


def test_annotations(result):
    image, masks, colors = annotations(result, opacity=0.4)
    assert image.size == (512, 512) and len(masks) == len(result.segments) == 4
    for found, (mask, text) in zip(result.segments, masks, strict=True):
        assert text == f"{found['label']}  {found['area']:.1%}"
        assert colors[text] == "#" + "".join(f"{channel:02x}" for channel in class_color(found["index"]))
        assert np.array_equal(mask, 0.4 * (result.segmentation == found["index"]).numpy())
    _, alone, _ = annotations(result, opacity=0.4, alone=1)
    assert np.array_equal(alone[1][0], masks[1][0])
    assert [text for _, text in alone] == [text for _, text in masks]
    assert not any(mask.any() for place, (mask, _) in enumerate(alone) if place != 1)


@pytest.mark.parametrize(("num_classes", "entries"), [(40, 40), (41, 40), (300, 40)])
def test_a_legend_of_many_classes_ends(num_classes, entries):
    _, masks, colors = annotations(made_up((600, 10), num_classes), opacity=1)
    assert len(masks) == len(colors) == entries
    assert sum(mask for mask, _ in masks).min() == sum(mask for mask, _ in masks).max() == 1
    assert (masks[-1][1] == f"and {num_classes - 39} more") == (num_classes > 40)


def test_the_overlay_is_the_librarys(result):
    drawn = draw_segmentation(result.image, result.segmentation, LABELS, opacity=0.3)
    assert np.array_equal(np.array(overlay(result, 0.3)), np.array(drawn)[:512, :512])


def test_a_heat_map_is_brighter_where_the_class_is_more_probable(result):
    brightness = np.array(heat_map(result, "water").convert("L"), dtype=float)
    values = probability_map(result, "water", (512, 512)).numpy()
    assert brightness[values > 0.9].min() > brightness[values < 0.1].max()


def test_guided_upsampling(segmenter, result, tmp_path, monkeypatch):
    guided = segment(segmenter, Image.open(SCENE), LABELS, upsampling="guided")
    expected = segmenter(Image.open(SCENE), candidate_labels=LABELS, upsampling="guided", return_segmentation_map=True)
    assert torch.equal(guided.segmentation.long(), expected["segmentation"])
    assert (guided.segmentation != result.segmentation).float().mean() > 0.001
    assert torch.equal(guided.probabilities, result.probabilities)
    assert summarize(guided)["upsampling"] == "guided" and summarize(result)["upsampling"] == "bilinear"
    assert "upsampling" not in python_code(result, 0.4)
    monkeypatch.chdir(tmp_path)
    guided.image.save("image.jpg", format="PNG")
    exec(python_code(guided, opacity=0.4), {})
    drawn = draw_segmentation(guided.image, guided.segmentation, LABELS, 0.4)
    assert np.array_equal(np.array(Image.open("overlay.png")), np.array(drawn))


@pytest.mark.parametrize("threshold", [0.0, 0.45])
def test_files(segmenter, tmp_path, threshold):
    result = segment(segmenter, Image.open(SCENE), LABELS, threshold)
    label_map, summary, overlay = write_files(result, 0.6, tmp_path)
    classes = np.array(Image.open(label_map)).astype(int)
    no_class = json.loads(summary.read_text()).pop("no_class")
    assert no_class == (255 if threshold else None)
    assert np.array_equal(np.where(classes == no_class, -1, classes), result.segmentation.numpy())
    assert json.loads(summary.read_text()) == {**summarize(result), "no_class": no_class}
    drawn = draw_segmentation(result.image, result.segmentation, LABELS, 0.6)
    assert np.array_equal(np.array(Image.open(overlay)), np.array(drawn))


def test_the_code_does_the_same(segmenter, tmp_path, monkeypatch):
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.open(SCENE).convert("RGB").crop((0, 0, 512, 400)).save(tmp_path / "image.jpg", exif=turned)
    labels = [*LABELS, 'the "best"', "tree, oak"]
    result = segment(segmenter, open_image(tmp_path / "image.jpg"), labels, 0.2, sliding_window=True)
    assert result.image.size == (400, 512)
    monkeypatch.chdir(tmp_path)
    exec(python_code(result, opacity=0.4), {})
    expected = draw_segmentation(result.image, result.segmentation, labels, 0.4)
    assert np.array_equal(np.array(Image.open("overlay.png")), np.array(expected))


def test_the_code_names_models_and_vocabularies(result):
    other = Segmentation(
        **{
            **vars(result),
            "model": "owner/name",
            "classes": read_classes(parse_labels(format_labels(load_vocabulary("ade20k_150")))),
        }
    )
    code = python_code(other, 0.6)
    assert 'model="owner/name"' in code and 'load_vocabulary("ade20k_150")' in code
    compile(code, "code", "exec")
    code = python_code(Segmentation(**{**vars(result), "model": "base"}), 0.6)
    assert 'model=pretrained("base")' in code and "from catseg_hf import pretrained" in code


def test_released_weights_are_offered_and_loaded_when_chosen(small_checkpoint, monkeypatch):
    pytest.importorskip("gradio", reason="the app needs Gradio: pip install .[app]")
    from app import build_app

    resolved = []
    monkeypatch.setattr(names, "pretrained", lambda name: resolved.append(name) or str(small_checkpoint))
    (choices,) = (
        block.choices for block in build_app(["large"]).blocks.values() if getattr(block, "label", "") == "Model"
    )
    assert [value for _, value in choices] == ["large", EMBEDDED, "base"] and resolved == []
    loaded = load_model(find_model("base", ["base"]))
    assert resolved == ["base"] and loaded.model.name_or_path == "base"
    load_model.cache_clear()


def test_the_space_installs_what_the_library_needs():
    _, metadata, _ = (ROOT / "demo" / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(metadata)
    assert metadata["sdk"] == "gradio" and (ROOT / "demo" / metadata["app_file"]).is_file()
    setup = (ROOT / "setup.cfg").read_text()
    (needed,) = re.findall(r"install_requires =\n((?:    .+\n)+)", setup)
    (gradio,) = re.findall(r"app =\n    gradio>=(.+)\n", setup)
    installed = (ROOT / "demo" / "requirements.txt").read_text().split()
    assert installed == sorted([*needed.split(), "torchvision"])  # for Segment Anything
    assert metadata["sdk_version"].startswith(gradio)


class Visitor:
    """A session of the page's API."""

    def __init__(self, url: str):
        from gradio_client import Client

        self.client = Client(url, verbose=False, httpx_kwargs={"timeout": 600})

    def segment(self, labels: str, image: Path = SCENE, **settings) -> dict:
        from gradio_client import handle_file

        return self.client.predict(handle_file(image), labels, **settings, api_name="/segment")

    def call(self, name: str, *arguments):
        return self.client.predict(*arguments, api_name=f"/{name}")


@pytest.fixture(scope="module")
def url():
    pytest.importorskip("gradio", reason="the app needs Gradio: pip install .[app]")
    from app import LAUNCH_OPTIONS, build_app

    app = build_app()
    _, url, _ = app.launch(prevent_thread_lock=True, quiet=True, **LAUNCH_OPTIONS)
    yield url
    app.close()


@pytest.fixture
def visitor(url):
    return Visitor(url)


def test_api(visitor, segmenter, tmp_path):
    result = segment(segmenter, Image.open(SCENE), LABELS, 0.3)
    assert visitor.segment(", ".join(LABELS), threshold=0.3) == summarize(result)
    for served, written in zip(visitor.call("files", 0.6), write_files(result, 0.6, tmp_path), strict=True):
        assert Path(served).name == written.name and Path(served).read_bytes() == written.read_bytes()
    heat = np.array(Image.open(visitor.call("heat_map", "water")).convert("L"), dtype=float)
    assert np.abs(heat - np.array(heat_map(result, "water").convert("L"))).mean() < 3
    best = visitor.call("top_labels", 300, 100)["confidences"]
    found = {entry["label"]: pytest.approx(entry["confidence"], abs=1e-6) for entry in best}
    assert found == top_labels(result, 300, 100)


def test_everybody_gets_their_own_answer(url, segmenter):
    words = ["snow", "balloon", "water", "broccoli", "corn", "zebra"]
    vocabularies = [words[index % 6 :] + [f"thing {index}"] for index in range(8)]

    def visit(labels: list[str]) -> tuple[dict, dict]:
        visitor = Visitor(url)
        return visitor.segment(", ".join(labels)), visitor.call("top_labels", 100, 400)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(visit, vocabularies))
    for labels, (summary, best) in zip(vocabularies, answers, strict=True):
        result = segment(segmenter, Image.open(SCENE), labels)
        assert summary == summarize(result)
        assert [entry["label"] for entry in best["confidences"]] == list(top_labels(result, 100, 400))


def test_messages(visitor, tmp_path):
    (tmp_path / "note.png").write_text("no image")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    too_many = "\n".join(map(str, range(5000)))
    requests = {
        "'note.png' could not be read": lambda: visitor.segment("cat", tmp_path / "note.png"),
        "'large.png' has 100 megapixels": lambda: visitor.segment("cat", tmp_path / "large.png"),
        "No classes were named": lambda: visitor.segment(" , "),
        "5000 labels and words, but at most 4096": lambda: visitor.segment(too_many),
        "There is no image yet": lambda: visitor.call("segment", None, "cat"),
        "'/etc' is no model": lambda: visitor.segment("cat", model="/etc"),
        "'/srv' is no model": lambda: visitor.segment("cat", sam="/srv"),
        "Nothing is segmented yet": lambda: visitor.call("heat_map", "cat"),
    }
    for message, request in requests.items():
        with pytest.raises(Exception, match=message):
            request()
    assert visitor.segment("snow, water")["segments"]


def test_labels_with_the_same_prompt_are_told(visitor, result, monkeypatch):
    from app import compare_labels

    messages = []
    monkeypatch.setattr("gradio.Warning", messages.append)
    visitor.segment("snow, water")
    compare_labels(result, "snow, ice", 0.6)
    assert messages == []
    visitor.segment("snow, Snow, water")
    compare_labels(result, "Ice, ice", 0.6)
    assert [message.split(".")[0] for message in messages] == [
        "Labels have the same prompt: 'snow' and 'Snow'",
        "Labels have the same prompt: 'Ice' and 'ice'",
    ]


@pytest.mark.slow
def test_animations_and_cancelled_requests_leave_the_app_running(visitor, tmp_path):
    from gradio_client import handle_file

    red, blue = (Image.new("RGB", (64, 48), color) for color in ("red", "blue"))
    red.save(tmp_path / "animation.gif", save_all=True, append_images=[blue])
    assert visitor.segment("snow, water", tmp_path / "animation.gif")["width"] == 64
    vocabulary = format_labels(load_vocabulary("ade20k_150"))
    jobs = [
        visitor.client.submit(handle_file(SCENE), vocabulary, sliding_window=True, api_name="/segment")
        for _ in range(3)
    ]
    for job in jobs[1:]:
        job.cancel()
    assert len(visitor.segment("snow, water")["segments"]) == 2

"""The static page of demo/web in a headless browser, from an image file to what is downloaded.

It is built here, unless the environment variable WEB_PAGE names the folder that `make web` wrote.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, pipeline

from build_web import DEMO, build
from catseg_hf import EMBEDDED_MODEL, VOCABULARIES, cli, load_vocabulary
from catseg_testing.page_server import PageServer
from conftest import FIXTURES, ROOT


pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="the browser needs Playwright: pip install playwright")
pytest.importorskip("transformers.exporters", reason="transformers has no exporters before 5.24")
pytest.importorskip("onnxscript", reason="the export needs onnxscript: pip install .[export]")
for program in ("chromium", "npm"):
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program}: apt-get install {program}", allow_module_level=True)

SCENE = ROOT / "demo" / "scene.png"
PHOTOGRAPH = FIXTURES / "emoji_world" / "images" / "gate" / "000.jpg"
LARGEST_VISIT = 25_000_000  # bytes
AGREEMENT = 0.999
PATIENCE = 120_000  # milliseconds, on a machine that is busy
WEBGPU_ON_CPU = [
    "--enable-unsafe-webgpu",
    "--enable-features=Vulkan",
    "--use-vulkan=swiftshader",
    "--use-webgpu-adapter=swiftshader",
]
takes_minutes = pytest.mark.skipif(
    "WEB_PAGE" not in os.environ,
    reason="a WebGPU adapter on the processor takes minutes: run it with WEB_PAGE=build/web, what `make web` wrote",
)
HARD_WORDS = ["endoftext", "Ärger", "naïve café", "日本", "don't", "x2", "😀", "a - b", "İstanbul"]
# What npm says where there is no network.
NO_REGISTRY = re.compile("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT")
playwright.expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if "WEB_PAGE" in os.environ:
        return Path(os.environ["WEB_PAGE"])
    folder = tmp_path_factory.mktemp("web")
    (folder / "packages").mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(DEMO / "web" / name, folder / "packages")
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    installed = subprocess.run(command, cwd=folder / "packages", capture_output=True, text=True)
    if NO_REGISTRY.search(installed.stderr):
        pytest.skip("npm's registry cannot be reached")
    assert installed.returncode == 0, installed.stderr
    assert cli.main(["export", "--model", EMBEDDED_MODEL, "--format", "onnx", "--output", str(folder / "model")]) == 0
    (folder / "page").mkdir()
    build(folder / "model", folder / "packages" / "node_modules", folder / "page")
    return folder / "page"


@pytest.fixture
def server(site):
    with PageServer(site) as server:
        yield server


@pytest.fixture(scope="module")
def browsers():
    """A browser for each list of its options."""
    with playwright.sync_playwright() as started:
        open_ones = {}

        def get(*options: str):
            if options not in open_ones:
                open_ones[options] = started.chromium.launch(
                    executable_path=shutil.which("chromium"), args=["--no-sandbox", *options]
                )
            return open_ones[options]

        yield get
        for browser in open_ones.values():
            browser.close()


@pytest.fixture(scope="module")
def segmenter():
    return pipeline("zero-shot-image-segmentation", model=EMBEDDED_MODEL)


class Visit:
    """What a person does on the page, and sees."""

    def __init__(self, browser, server: PageServer, query: str = "", script: str = ""):
        self.context = browser.new_context()
        self.context.set_default_timeout(PATIENCE)
        self.image = None
        self.page = self.context.new_page()
        if script:
            self.page.add_init_script(script)
        self.page.goto(server.url + query)

    def until_ready(self) -> "Visit":
        playwright.expect(self.page.locator("#offline")).to_contain_text("works without a network")
        return self

    def segment(self, image: Path, words: list[str]):
        self.page.locator("#words").fill(", ".join(words))
        if image == self.image:
            self.page.get_by_role("button", name="Segment", exact=True).click()
        else:
            self.page.locator("#file").set_input_files(image)
            self.image = image
        found = re.compile(rf"{re.escape(image.name)}: \d+ of {len(words)} classes found")
        playwright.expect(self.page.locator("#busy")).to_have_text(found)

    def download(self, button: str, target: Path) -> Path:
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=button).click()
        download.value.save_as(target)
        return target

    @property
    def alert(self):
        return self.page.get_by_role("alert")


@pytest.fixture
def visit(browsers, server):
    """Opens pages, which are closed when the test ends."""
    opened = []

    def open_page(query: str = "", script: str = "", options: tuple[str, ...] = ()) -> Visit:
        opened.append(Visit(browsers(*options), server, query, script))
        return opened[-1]

    yield open_page
    for one in opened:
        one.context.close()


@pytest.fixture(scope="module")
def ready(browsers, site):
    """A page that has loaded, on WebAssembly with one thread."""
    with PageServer(site) as server:
        visit = Visit(browsers(), server, "?threads=1").until_ready()
        yield visit
        visit.context.close()


def vocabularies() -> list[list[str]]:
    words = list(json.loads((Path(EMBEDDED_MODEL) / "config.json").read_text())["id2label"].values())
    assert len(words) == 135
    known = json.loads((DEMO / "scene_labels.json").read_text())
    return [known[:4], [*known, *(word for word in words if word not in known)][:20], words]


@pytest.mark.parametrize(
    ("query", "options", "where", "images"),
    [
        ("?device=wasm&threads=1", (), "WebAssembly, 1 thread)", (SCENE, PHOTOGRAPH)),
        ("?device=wasm&threads=2", (), "WebAssembly, 2 threads)", (SCENE, PHOTOGRAPH)),
        pytest.param("?device=webgpu", WEBGPU_ON_CPU, "WebGPU)", (PHOTOGRAPH,), marks=takes_minutes),
    ],
)
def test_the_pipelines_map(query, options, where, images, visit, server, segmenter, tmp_path):
    page = visit(query, options=tuple(options)).until_ready()
    assert server.sent <= LARGEST_VISIT
    runtime = page.page.locator("#runtime").inner_text()
    if where not in runtime and "no WebGPU adapter" in runtime:
        pytest.skip("this browser offers no WebGPU adapter on the processor")
    assert where in runtime
    for image in images:
        for words in vocabularies():
            page.segment(image, words)
            found = Image.open(page.download("label map", tmp_path / "labels.png"))
            expected = segmenter(str(image), candidate_labels=words, return_segmentation_map=True)
            agreement = (torch.from_numpy(np.array(found)) == expected["segmentation"]).double().mean()
            print(f"{where} {image.name}, {len(words)} words: {agreement:.4%}")
            assert agreement >= AGREEMENT
    assert found.mode == "P"
    summary = json.loads(page.download("segments", tmp_path / "segments.json").read_text())
    assert summary["labels"] == words and summary["image"] == image.name
    assert [segment["label"] for segment in summary["segments"][:5]] == [
        segment["label"] for segment in expected["segments"][:5]
    ]
    assert summary["segments"][0]["score"] == pytest.approx(expected["segments"][0]["score"], abs=1e-3)


def test_a_pixels_probabilities(ready, segmenter):
    page, words = ready, vocabularies()[0]
    page.segment(SCENE, words)
    width, height = Image.open(SCENE).size
    overlay = page.page.locator("#overlay")
    box = overlay.bounding_box()
    overlay.click(position={"x": box["width"] * 0.25, "y": box["height"] * 0.5})
    text = page.page.locator("#pixel").inner_text()
    x, y = map(int, re.search(r"\((\d+), (\d+)\)", text).groups())
    assert (x, y) == (pytest.approx(0.25 * width, abs=3), pytest.approx(0.5 * height, abs=3))
    result = segmenter(str(SCENE), candidate_labels=words, return_probabilities=True)
    expected = torch.nn.functional.interpolate(result["probabilities"][None], (height, width), mode="bilinear")[0]
    for word, probability in zip(words, expected[:, y, x], strict=True):
        shown = float(re.search(rf"{word} ([\d.]+)%", text)[1])
        assert shown == pytest.approx(100 * probability.item(), abs=0.1)


def test_words_for_one_class(ready, segmenter, tmp_path):
    ready.segment(SCENE, ["snow|water", "zebra"])
    found = Image.open(ready.download("label map", tmp_path / "labels.png"))
    expected = segmenter(str(SCENE), candidate_labels=["snow|water", "zebra"], return_segmentation_map=True)
    assert (np.array(found) == expected["segmentation"].numpy()).mean() >= AGREEMENT
    assert ready.page.locator("#legend").inner_text().startswith("snow")


def test_the_tokenizer(ready):
    words = [*dict.fromkeys(word for name in VOCABULARIES for word in load_vocabulary(name)), *HARD_WORDS]
    script = """async (words) => {
        const { PromptTokenizer } = await import("./segmenter.js");
        const { fetchJson } = await import("./downloads.js");
        const names = ["tokenizer", "tokenizer_config", "settings"];
        const [tokenizer, config, settings] = await Promise.all(names.map((name) => fetchJson(`${name}.json`)));
        const { ids, length } = new PromptTokenizer(tokenizer, config, settings.prompts).encode(words);
        return [Array.from(ids, Number), length];
    }"""
    ids, length = ready.page.evaluate(script, words)
    expected = AutoProcessor.from_pretrained(EMBEDDED_MODEL).encode_vocabulary(words)[:, 0]
    assert torch.equal(torch.tensor(ids).view(-1, length), expected)


def test_without_a_network(visit, server, tmp_path):
    page = visit("?threads=2").until_ready()
    server.is_down, server.requests = True, 0
    page.context.set_offline(True)
    page.page.reload()
    playwright.expect(page.page.locator("#input")).not_to_have_attribute("inert", "")
    playwright.expect(page.page.locator("#runtime")).to_contain_text("2 threads")
    page.page.get_by_role("button", name="Take the example").click()
    playwright.expect(page.page.locator("#legend li").first).to_be_visible()
    assert server.requests == 0 and page.alert.is_hidden()


def test_what_is_downloaded_is_said(visit, site):
    """And how much of it has come, while a file does not."""
    page = visit("?threads=1", script="crypto.subtle.digest = () => new Promise(() => {})")
    manifest = json.loads((site / "manifest.json").read_text())
    named = f"The model is {manifest['title']} (licence: {manifest['licence']})."
    playwright.expect(page.page.locator("#model")).to_have_text(named)
    text = page.page.locator("#what")
    playwright.expect(text).to_contain_text("Downloads ONNX Runtime (")
    playwright.expect(text).to_contain_text("the text encoder (")
    total = float(re.search(r"of ([\d.]+) MB", text.inner_text())[1])
    sizes = [float(size) for size in re.findall(r"\(([\d.]+) MB\)", text.inner_text())]
    assert len(sizes) == 5 and sum(sizes) == pytest.approx(total, abs=0.2)
    playwright.expect(text).to_contain_text(f"once: {total} MB of {total} MB")
    assert page.page.locator("#progress").evaluate("bar => bar.value") == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data[:-1000], r"segmenter.onnx.packed was cut off: \d+ of its \d+ bytes arrived. Try again."),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "is damaged, its SHA-256 is not that of the manifest"),
    ],
)
def test_a_damaged_model_is_refused_and_fetched_again(change, sentence, visit, server):
    server.damage["segmenter.onnx"] = change
    page = visit("?threads=1")
    playwright.expect(page.alert).to_contain_text(re.compile(sentence))
    server.damage.clear()
    page.page.get_by_role("button", name="Try again").click()
    page.until_ready()
    assert page.alert.is_hidden()


def test_without_simd(visit):
    page = visit(script="WebAssembly.validate = () => false")
    playwright.expect(page.alert).to_contain_text("This browser has no WebAssembly SIMD")


def test_without_threads(visit, server):
    server.headers = False
    page = visit("?threads=2").until_ready()
    page.page.get_by_role("button", name="Segment", exact=True).click()
    playwright.expect(page.alert).to_contain_text("There is no image yet")
    runtime = page.page.locator("#runtime")
    playwright.expect(runtime).to_contain_text("WebAssembly, 1 thread)")
    playwright.expect(runtime).to_contain_text("The model runs on one thread: this page's server does not send")


def test_what_is_refused(ready, tmp_path):
    page = ready
    (tmp_path / "note.png").write_text("no image")
    page.page.locator("#file").set_input_files(tmp_path / "note.png")
    playwright.expect(page.alert).to_contain_text("note.png cannot be decoded by this browser")
    page.segment(SCENE, ["snow", "water"])
    assert page.alert.is_hidden()
    for words, sentence in {
        " , ": "No words were given",
        "snow|": '"snow|" has a bar with no word on one side',
        "snow, water|snow": '"snow" is there twice',
        "x" * 400: "tokens, but at most 77 are taken: shorten it",
    }.items():
        page.page.locator("#words").fill(words)
        page.page.get_by_role("button", name="Segment", exact=True).click()
        playwright.expect(page.alert).to_contain_text(sentence)


def test_what_the_address_asks_for(visit):
    playwright.expect(visit("?threads=none").alert).to_contain_text("The address asks for ?threads=none")

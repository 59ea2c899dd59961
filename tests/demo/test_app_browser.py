"""The interactive demo in a headless browser, as `make app` starts it.

Screenshots are kept in the folder that the environment variable SCREENSHOTS names.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from io import BytesIO
from itertools import combinations
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

from catseg_app.segmentation import load_model, segment, top_labels
from catseg_hf import EMBEDDED_MODEL, load_vocabulary
from catseg_hf.visualization import legend_text
from catseg_training.world.words import classes
from conftest import FIXTURES, ROOT


pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="the app needs Gradio: pip install .[app]")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser needs Playwright: pip install playwright")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("there is no chromium: apt-get install chromium", allow_module_level=True)

SCENE = ROOT / "demo" / "scene.png"
SCENES = FIXTURES / "emoji_world" / "images" / "gate"
LABELS = ["snow", "balloon", "water", "broccoli", "corn", "zebra"]
# Images load when they come into view, out of which the layout may move them again.
SCROLLED_TO_AND_LOADED = """selector => {
    const image = document.querySelector(selector)
    image.scrollIntoView({block: "center", behavior: "instant"})
    return image.naturalHeight > 0
}"""
WIDTHS = {"desktop": 1280, "mobile": 390}
PATIENCE = 120_000  # milliseconds, on a machine that is busy
playwright.expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("app") / "log.txt"
    command = [sys.executable, ROOT / "demo" / "app.py", "--port", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    while "Running on" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """What a person does on the page, and sees."""

    def __init__(self, page, device: str, screenshots: Path):
        self.page, self.device, self.screenshots = page, device, screenshots
        self.hosts = set()
        page.on("request", lambda request: self.hosts.add(urlparse(request.url).hostname))

    def choose(self, image: Path, labels: list[str]):
        self.page.locator("#image input[type=file]").set_input_files(image)
        self.page.locator("#image img").wait_for()
        self.page.get_by_label("Classes", exact=False).first.fill(", ".join(labels))

    def press(self, name: str):
        self.page.get_by_role("button", name=name, exact=True).click()

    def segment(self, image: Path, labels: list[str]):
        self.choose(image, labels)
        self.press("Segment")
        self.legend().first.wait_for()

    def legend(self, place: int = 0):
        """The entries of the legend of one of the page's segmentations."""
        return self.page.locator(".segmentation").nth(place).locator(".legend-item")

    def open(self, tab: str):
        button = self.page.get_by_role("tab", name=tab, exact=True)
        if not button.first.is_visible():
            self.page.locator(".overflow-menu button").first.click()
            button = self.page.locator(".overflow-dropdown button", has_text=tab)
        button.first.click()

    def keep(self, name: str):
        """Keeps a screenshot of the whole page, which must not be wider than the screen."""
        self.page.wait_for_function("[...document.images].every(image => image.complete)")
        self.page.mouse.move(1, 1)
        self.page.wait_for_timeout(500)  # transitions
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        self.page.screenshot(path=self.screenshots / f"{self.device}_{name}.png", full_page=True)


@pytest.fixture(params=WIDTHS)
def visit(request, browser, url, tmp_path):
    screenshots = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    screenshots.mkdir(parents=True, exist_ok=True)
    context = browser.new_context(viewport={"width": WIDTHS[request.param], "height": 900})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(url)
    page.get_by_role("button", name="Segment", exact=True).wait_for()
    visit = Visit(page, request.param, screenshots)
    yield visit
    assert visit.hosts <= {"127.0.0.1", None}  # None: data URLs
    context.close()


@pytest.fixture(scope="module")
def segmenter():
    return load_model(EMBEDDED_MODEL)


@pytest.fixture(scope="module")
def result(segmenter):
    return segment(segmenter, Image.open(SCENE), LABELS)


def test_overlay_and_legend(visit, result):
    visit.keep("start")
    visit.segment(SCENE, LABELS)
    expected = [legend_text(found["label"], found["area"]) for found in result.segments]
    playwright.expect(visit.legend()).to_have_text(expected)
    assert visit.page.locator(".segmentation").first.locator("img.mask").count() == len(expected)
    visit.keep("segmentation")
    visit.open("Before and after")
    visit.keep("before_and_after")
    visit.open("Python")
    visit.page.get_by_text("zero-shot-image-segmentation").wait_for()
    visit.keep("python")


def test_a_class_alone(visit):
    visit.segment(SCENE, LABELS)

    def visible() -> list[bool]:
        masks = visit.page.locator(".segmentation").first.locator("img.mask").all()
        alphas = [visit.page.request.get(mask.get_attribute("src")).body() for mask in masks]
        return [np.array(Image.open(BytesIO(body)))[..., 3].any() for body in alphas]

    assert all(visible())
    source = visit.page.locator(".segmentation").first.locator("img.mask").first.get_attribute("src")
    visit.legend().nth(1).click()
    visit.page.wait_for_function(f"document.querySelector('.segmentation img.mask').src != {source!r}")
    assert [place for place, seen in enumerate(visible()) if seen] == [1]
    visit.keep("class_alone")


def test_opacity(visit):
    visit.segment(SCENE, LABELS)

    def strongest() -> int:
        mask = visit.page.locator(".segmentation img.mask").first.get_attribute("src")
        return np.array(Image.open(BytesIO(visit.page.request.get(mask).body())))[..., 3].max()

    assert strongest() == int(0.6 * 255)
    source = visit.page.locator(".segmentation img.mask").first.get_attribute("src")
    visit.page.get_by_label("number input for Opacity").fill("0.2")
    visit.page.keyboard.press("Tab")
    visit.page.wait_for_function(f"document.querySelector('.segmentation img.mask').src != {source!r}")
    assert strongest() == int(0.2 * 255)


def test_presets(visit):
    visit.page.get_by_label("Preset").click()
    visit.page.get_by_role("option", name="pascal_voc_20", exact=True).click()
    playwright.expect(visit.page.get_by_label("Classes").first).to_have_value(
        ", ".join(load_vocabulary("pascal_voc_20"))
    )


def test_a_pixel_and_a_heat_map(visit, result):
    visit.segment(SCENE, LABELS)
    visit.open("Probabilities")
    heat = visit.page.locator("#heat img")
    before = heat.get_attribute("src")
    visit.page.get_by_label("Class", exact=True).click()
    visit.page.get_by_role("option", name="zebra").click()
    visit.page.wait_for_function(f"document.querySelector('#heat img').src != {before!r}")
    visit.page.wait_for_function(SCROLLED_TO_AND_LOADED, arg="#heat img")
    box = heat.bounding_box()
    heat.click(position={"x": box["width"] * 0.25, "y": box["height"] * 0.5})
    x, y = (visit.page.get_by_label(name, exact=True) for name in "xy")
    playwright.expect(x).not_to_have_value("256")
    place = [int(number.input_value()) for number in (x, y)]
    assert place == pytest.approx([128, 256], abs=8)
    best = [re.compile(f"{label}.*{value:.0%}", re.DOTALL) for label, value in top_labels(result, *place).items()]
    playwright.expect(visit.page.locator(".confidence-set")).to_have_text(best)
    visit.keep("probabilities")


def test_a_second_label_set(visit, segmenter):
    visit.segment(SCENE, LABELS)
    visit.open("Compare")
    other = ["water", "tree", "zebra"]
    visit.page.get_by_label("Other classes for the same image").fill(", ".join(other))
    visit.press("Compare")
    visit.legend(2).first.wait_for()
    found = segment(segmenter, Image.open(SCENE), other).segments
    playwright.expect(visit.legend(2)).to_have_text([legend_text(entry["label"], entry["area"]) for entry in found])
    assert visit.legend(1).count() == visit.legend(0).count()
    visit.keep("compare")


def test_downloads(visit, result, tmp_path):
    visit.segment(SCENE, LABELS)
    visit.open("Download")
    visit.keep("download")
    with visit.page.expect_download() as download:
        visit.page.locator("#files a[download='labels.png']").click()
    download.value.save_as(tmp_path / "labels.png")
    assert np.array_equal(np.array(Image.open(tmp_path / "labels.png")), result.segmentation.numpy())


def test_a_legend_of_many_classes(visit, tmp_path):
    canvas = Image.new("RGB", (512, 384))
    for place, path in enumerate(sorted(SCENES.glob("*.jpg"))[:12]):
        canvas.paste(Image.open(path), (128 * (place % 4), 128 * (place // 4)))
    canvas.save(tmp_path / "many.png")
    visit.segment(tmp_path / "many.png", classes())
    entries = visit.legend().all()
    assert len(entries) >= 20
    boxes = [entry.bounding_box() for entry in entries]
    for box in boxes:
        assert box["x"] >= 0 and box["x"] + box["width"] <= WIDTHS[visit.device]
    for one, other in combinations(boxes, 2):
        beside = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
        below = one["y"] + one["height"] <= other["y"] or other["y"] + other["height"] <= one["y"]
        assert beside or below
    visit.keep("many_classes")


def test_messages_and_cancelling(visit, tmp_path):
    visit.page.get_by_text("Settings").last.click()
    visit.keep("settings")
    visit.choose(SCENE, [" "])
    visit.press("Segment")
    visit.page.get_by_text("No classes were named").wait_for()
    visit.keep("message")
    visit.page.get_by_label("Sliding window").check()
    visit.choose(SCENE, [f"thing {index}" for index in range(2000)])
    visit.press("Segment")
    visit.page.wait_for_timeout(500)
    visit.press("Cancel")
    visit.page.get_by_text("Cancelled.").wait_for()
    assert visit.legend().count() == 0
    visit.page.get_by_label("Sliding window").uncheck()
    visit.segment(SCENE, LABELS)

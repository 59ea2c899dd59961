"""Names of classes in other scripts than ASCII: in a font that has their letters, or as numbers."""

import json
import unicodedata
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, features

from catseg_hf import cli
from catseg_hf.class_words_catseg import read_classes
from catseg_hf.video import VideoSummary
from catseg_hf.visualization import (
    MAX_NAME_LENGTH,
    describe_numbers,
    draw_legend,
    draw_segmentation,
    figure,
    fonts,
    numbered_labels,
    plot_segmentation,
)
from conftest import FIXTURES


pytest.importorskip("matplotlib")
ttLib = pytest.importorskip("fontTools.ttLib")
write_font = pytest.importorskip("catseg_testing.fonts").write_font

WITH_DEJAVU = {
    "German": "Bäume, Straße",
    "French": "œuvre d'église",
    "Spanish": "árbol, niño",
    "Polish": "człowiek, żółw",
    "Czech": "člověk",
    "Turkish": "ağaç, ışık",
    "Icelandic": "þak",
    "Vietnamese": "Việt Nam",
    "Cyrillic": "Небо, їжа",
    "Greek": "ουρανός",
    "Armenian": "երկինք",
    "decomposed": unicodedata.normalize("NFD", "café, Bäume, Việt"),
    "symbols": "½ ™ → ♥",
    "cut": "Ä" * (MAX_NAME_LENGTH + 5),
}
TO_BE_JOINED = {"Arabic": "سماء", "Hebrew": "שמיים", "Persian": "می\u200cخواهم"}
WITHOUT_FONT = {
    "Chinese": "雪",
    "Japanese": "そら",
    "Korean": "하늘",
    "Hindi": "आकाश",
    "Tamil": "வானம்",
    "Thai": "ท้องฟ้า",
    "Ethiopic": "ሰማይ",
    "emoji": "👩\u200d👧",
    "mixed": "sky 雪",
}


def clear():
    for function in (fonts.font_files, fonts.font_file):
        function.cache_clear()


@pytest.fixture(autouse=True)
def system_fonts(tmp_path, monkeypatch):
    """A folder that has all the system's fonts, none yet."""
    folder = tmp_path / "fonts"
    folder.mkdir()
    monkeypatch.setattr(fonts, "_system_folders", lambda: [folder])
    monkeypatch.setattr(features, "check", lambda feature: True)
    clear()
    yield folder
    clear()


@pytest.fixture
def written(monkeypatch):
    """What is written into images, each text with the name of its font's file, or `None` for Pillow's own."""
    texts, text = [], ImageDraw.ImageDraw.text

    def record(draw, place, string, *args, font, **kwargs):
        texts.append((string, Path(font.path).name if isinstance(font.path, str) else None))
        text(draw, place, string, *args, font=font, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return texts


def legend(name: str) -> Image.Image:
    return draw_legend({0: 0.5, 1: 0.5}, ["snow", name], (300, 200))


def expected_name(name: str) -> str:
    name = unicodedata.normalize("NFC", name)
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 3]}..."


def letters_of(file: str) -> set[str]:
    return set(map(chr, ttLib.TTFont(file).getBestCmap()))


@pytest.mark.parametrize("name", [*WITH_DEJAVU.values(), *TO_BE_JOINED.values()], ids=[*WITH_DEJAVU, *TO_BE_JOINED])
def test_dejavu_comes_with_matplotlib(name, written):
    legend(name)
    assert written == [("snow  50.0%", None), (expected_name(name), "DejaVuSans.ttf"), ("  50.0%", None)]
    (dejavu,) = fonts.font_files()
    assert set(expected_name(name)) - {"\u200c"} <= letters_of(dejavu)
    assert numbered_labels(["snow", name]) == {} and describe_numbers(["snow", name]) is None


@pytest.mark.parametrize("name", WITHOUT_FONT.values(), ids=WITHOUT_FONT)
def test_names_without_a_font_are_numbers(name, written):
    legend(name)
    assert written == [("snow  50.0%", None), ("#1  50.0%", None)]
    labels = {1: name, 7: "Bäume", 12: f"{name} 2"}
    assert numbered_labels(labels) == {1: name, 12: f"{name} 2"}
    assert describe_numbers(labels).splitlines()[1:] == [f"  #1 {name}", f"  #12 {name} 2"]


@pytest.mark.parametrize("name", WITHOUT_FONT.values(), ids=WITHOUT_FONT)
def test_the_systems_fonts_are_used(name, written, system_fonts):
    write_font(system_fonts / "sub" / "script.ttf", name)
    legend(name)
    assert written[1:] == [(name, "script.ttf"), ("  50.0%", None)]
    assert numbered_labels([name]) == {}


@pytest.mark.parametrize("name", TO_BE_JOINED.values(), ids=TO_BE_JOINED)
def test_letters_that_cannot_be_joined_are_numbers(name, written, monkeypatch):
    monkeypatch.setattr(features, "check", lambda feature: False)
    legend(name)
    legend("Небо")
    assert [text for text, _ in written] == ["snow  50.0%", "#1  50.0%", "snow  50.0%", "Небо", "  50.0%"]


def test_the_first_font_with_all_letters_counts(written, system_fonts):
    write_font(system_fonts / "a-Sans-Bold.ttf", "雪空")
    write_font(system_fonts / "a-Math.ttf", "雪")
    write_font(system_fonts / "a-Sans.otf", "雪")
    write_font(system_fonts / "b.ttf", "雪空")
    write_font(system_fonts / "LastResort.ttf", "雪空海")
    (system_fonts / "0.ttf").write_bytes(b"no font")
    (system_fonts / "1.ttf").write_bytes((system_fonts / "b.ttf").read_bytes()[:300])
    draw_legend(dict.fromkeys(range(5), 0.2), ["空", "雪", "雪空", "海", "Небо"], (300, 200))
    assert [text for text in written if "%" not in text[0]] == [
        ("空", "b.ttf"),
        ("雪", "a-Sans.otf"),
        ("雪空", "b.ttf"),
        ("Небо", "DejaVuSans.ttf"),
    ]
    assert numbered_labels(["空", "雪", "雪空", "海"]) == {3: "海"}


def test_ascii_is_as_without_any_font(monkeypatch, written):
    labels = ["snow", "tree, oak", "~!@#$%^&*()", "x" * 40]
    drawn = draw_legend(dict.fromkeys(range(4), 0.25), labels, (640, 480))
    assert {font for _, font in written} == {None} and len(written) == 4
    monkeypatch.setattr(fonts, "_system_folders", lambda: pytest.fail("fonts are looked for"))
    clear()
    assert drawn == draw_legend(dict.fromkeys(range(4), 0.25), labels, (640, 480))


def test_names_end_before_the_edge(system_fonts):
    write_font(system_fonts / "wide.ttf", "雪")
    for size in ((32, 32), (640, 480), (2000, 1500)):
        image = Image.new("RGB", size)
        segmentation = np.arange(size[0] * size[1]).reshape(size[::-1]) % 3
        drawn = draw_segmentation(image, segmentation, ["雪" * 32, "Straße", "sky"])
        dark = (np.array(drawn)[:, size[0] :].sum(axis=-1) < 200).any(axis=0)
        assert dark.any() and not dark[-2:].any()


SEGMENTATION = np.arange(60 * 40).reshape(40, 60) % 5
NAMES = ["snow", "Straße", "Небо", "雪", "하늘"]


def plotted(names: list[str]) -> list[str]:
    """The texts of a figure's legend, of which matplotlib has every letter when it is drawn."""
    plot = plot_segmentation(Image.new("RGB", (60, 40)), SEGMENTATION % len(names), names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot.canvas.draw()
    texts = sorted(text.get_text() for text in plot.legends[0].get_texts())
    return [text.rpartition("  ")[0] for text in texts]


def test_figure(system_fonts):
    assert plotted(NAMES) == ["#3", "#4", "Straße", "snow", "Небо"]
    write_font(system_fonts / "script.ttf", "雪하늘")
    clear()
    assert plotted(NAMES) == sorted(NAMES)
    assert plotted(["Bäume", unicodedata.normalize("NFD", "é")]) == ["Bäume", "é"]


@pytest.mark.parametrize("name", TO_BE_JOINED.values(), ids=TO_BE_JOINED)
@pytest.mark.parametrize("shapes", [True, False])
def test_figure_with_letters_to_be_joined(name, shapes, monkeypatch):
    monkeypatch.setattr(figure, "_matplotlib_shapes", lambda: shapes)
    (text,) = plotted([name])
    assert text.strip("\u200e") == (name if shapes else "#0")


def test_training_and_evaluation_draw_names_in_the_same_fonts(system_fonts, written):
    from catseg_training.benchmarks.charts import confusion_chart
    from catseg_training.report.charts import class_chart
    from catseg_training.report.results import prediction_grid

    write_font(system_fonts / "script.ttf", "雪")
    expected = ["snow", "Straße", "Небо", "雪", "#4"]
    rows = [{"name": name, "iou": 0.5, "accuracy": 0.5 if index else np.nan} for index, name in enumerate(NAMES)]
    bars = class_chart(rows)
    absent = class_chart([{**row, "accuracy": np.nan} for row in rows])
    confusions = confusion_chart(np.ones((5, 5), dtype=int), NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for chart in (bars, absent, confusions):
            chart.canvas.draw()
    assert sorted(label.get_text() for label in bars.axes[0].get_yticklabels()) == sorted(expected[1:])
    assert absent.texts[-1].get_text() == "Not in the labels (5): " + "; ".join(expected)
    for labels in (confusions.axes[0].get_xticklabels(), confusions.axes[0].get_yticklabels()):
        assert [label.get_text() for label in labels] == expected

    examples = [
        {"image": Image.new("RGB", (60, 40)), "label": SEGMENTATION, "name": name} for name in ("Bäume 1", "하늘 2")
    ]
    prediction_grid(examples, NAMES)
    assert ("Bäume 1", "DejaVuSans.ttf") in written and ("\\ud558\\ub298 2", None) in written
    assert {("Небо", "DejaVuSans.ttf"), ("雪", "script.ttf"), ("#4  20.0%", None)} <= set(written)


def test_the_command_says_what_numbers_stand_for(small_checkpoint, tmp_path, capsys):
    output = tmp_path / "output"
    arguments = ["--model", str(small_checkpoint), "--labels", "雪, Bäume, 하늘, snow", f"--output={output}"]
    assert cli.main(["segment", str(FIXTURES / "picture.png"), *arguments]) == 0
    (image,) = json.loads((output / "summary.json").read_text())["images"]
    found = {segment["index"]: segment["label"] for segment in image["segments"]}
    printed = capsys.readouterr().out.splitlines()
    lines = [f"  #{index} {found[index]}" for index in (0, 2) if index in found]
    assert [line for line in printed if line.startswith("  #")] == lines and lines


@pytest.mark.parametrize(("shares", "lines"), [({2: 0.7, -1: 0.2, 0: 0.1}, ["  #0 雪", "  #2 하늘"]), ({1: 1.0}, [])])
def test_the_command_for_videos_says_it(shares, lines, tmp_path, capsys, monkeypatch):
    pytest.importorskip("av", reason="the extra `video` is not installed")
    monkeypatch.setattr("catseg_hf.video.VideoReader", nullcontext)
    monkeypatch.setattr("catseg_hf.video.check_audio_output", lambda video, output: None)
    loaded = (None, read_classes(["雪", "Bäume", "하늘"]))
    monkeypatch.setattr("catseg_hf.commands.video.load_model", lambda arguments: loaded)
    monkeypatch.setattr("catseg_hf.video.segment_video", lambda *args, **kwargs: VideoSummary(1, shares))
    assert cli.main(["video", "in.mp4", f"--output={tmp_path / 'out.mp4'}"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("  #")] == lines

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from catseg_hf import load_vocabulary
from catseg_hf.visualization import (
    area_shares,
    class_color,
    draw_legend,
    draw_segmentation,
    legend_text,
    overlay_segmentation,
    plot_segmentation,
)


def checkerboard(height, width, num_classes, cell):
    """Class indices (height, width) that take turns in squares."""
    rows, columns = np.arange(height)[:, None] // cell, np.arange(width) // cell
    return (rows * (width // cell + 1) + columns) % num_classes


def legend_of(drawn, picture):
    return np.array(drawn)[:, picture.width :]


def colors_in(pixels):
    return {tuple(pixel) for pixel in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}


def test_colors_are_stable_and_distinct():
    colors = [class_color(index) for index in range(1024)]
    assert len(set(colors)) == 1024
    # The same in another process, in which other colours were asked for before.
    code = "from catseg_hf.visualization import class_color as c; print(c(846), [c(i) for i in range(847)])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == f"{colors[846]} {colors[:847]}\n"
    for count, least in ((20, 60), (171, 30), (847, 14)):
        first = np.array(colors[:count])
        distances = np.abs(first[:, None] - first[None]).sum(axis=-1) + 1000 * np.eye(count)
        assert distances.min() > least
    assert min(sum(color) for color in colors[:20]) > 60 and max(sum(color) for color in colors[:20]) < 690


def test_area_shares_are_sorted():
    segmentation = torch.tensor([[2, 2, 2], [0, 0, 5]])
    assert area_shares(segmentation) == {2: pytest.approx(1 / 2), 0: pytest.approx(1 / 3), 5: pytest.approx(1 / 6)}
    assert list(area_shares(segmentation)) == [2, 0, 5]


def test_overlay():
    image = Image.new("RGB", (60, 40), "white")
    segmentation = np.zeros((40, 60), dtype=np.int64)
    segmentation[:, 30:], segmentation[:, 50:] = 1, -1
    drawn = draw_segmentation(image, segmentation, ["cat", "sofa"], opacity=1.0)
    assert drawn.mode == "RGB" and drawn.width > 60 and drawn.height >= 40
    assert drawn.getpixel((0, 0)) == class_color(0)
    assert drawn.getpixel((40, 20)) == class_color(1)
    assert drawn.getpixel((55, 20)) == (255, 255, 255)
    assert {class_color(0), class_color(1)} <= colors_in(legend_of(drawn, image))


def test_opacity():
    image = Image.new("RGB", (4, 4), (100, 50, 0))
    drawn = draw_segmentation(image, np.full((4, 4), 3), {3: "cat"}, opacity=0.25)
    expected = 0.75 * np.array((100, 50, 0)) + 0.25 * np.array(class_color(3))
    assert np.abs(np.array(drawn.getpixel((1, 1))) - expected).max() <= 1
    unchanged = draw_segmentation(image, np.full((4, 4), 3), {3: "cat"}, opacity=0)
    assert unchanged.getpixel((1, 1)) == (100, 50, 0)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (640, 480), (1200, 30), (30, 1200)])
@pytest.mark.parametrize("num_classes", [1, 171])
def test_legend_is_readable_at_any_size(size, num_classes):
    image = Image.new("RGB", size)
    segmentation = checkerboard(size[1], size[0], num_classes, cell=max(1, min(size) // 16))
    labels = load_vocabulary("coco_stuff_171")
    drawn = draw_segmentation(image, segmentation, labels)
    legend = legend_of(drawn, image)
    # The squares of the legend are as high as its text.
    largest = next(iter(area_shares(segmentation)))
    height = (legend[:, :, :] == class_color(largest)).all(axis=-1).any(axis=1).sum()
    assert height >= 14 and height >= 0.03 * (size[0] * size[1]) ** 0.5
    assert drawn.height <= max(size[1], 300) and drawn.width - size[0] <= max(size[0], 500)
    dark = (legend.sum(axis=-1) < 200).any(axis=0)
    assert dark.any() and not dark[-2:].any()  # text is there and ends before the edge


def test_long_legends_are_cut():
    image = Image.new("RGB", (40, 40))
    segmentation = np.arange(1600).reshape(40, 40) % 800
    labels = [f"class {index}" for index in range(800)]
    many = draw_segmentation(image, segmentation, labels)
    assert many.height <= 300 and many.width <= 600
    # Few classes are listed in as many columns as they need.
    few = draw_segmentation(image, segmentation % 20, labels)
    listed = colors_in(legend_of(few, image))
    assert all(class_color(index) in listed for index in range(20))
    assert not all(class_color(index) in colors_in(legend_of(many, image)) for index in range(800))


def test_long_labels_are_shortened():
    image = Image.new("RGB", (40, 40))
    segmentation = np.zeros((40, 40), dtype=int)
    widths = [draw_segmentation(image, segmentation, ["word " * count]).width for count in (20, 100)]
    assert widths[0] == widths[1] < 500
    assert draw_segmentation(image, segmentation, ["two\nlines"]).height < 60


def test_figure():
    pytest.importorskip("matplotlib")
    image = Image.new("RGB", (60, 40), "white")
    segmentation = torch.tensor(checkerboard(40, 60, 100, cell=2))
    segmentation[0, 0] = -1
    labels = ["_cat", *load_vocabulary("coco_stuff_171")]
    figure = plot_segmentation(image, segmentation, labels)
    (axes,) = figure.axes
    drawn = draw_segmentation(image, segmentation, labels).crop((0, 0, 60, 40))
    assert np.array_equal(axes.images[0].get_array(), np.array(drawn))
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    shares = area_shares(segmentation[segmentation >= 0])
    assert len(texts) == 72 and texts[-1] == "and 29 more"
    first = next(iter(shares))
    assert texts[0].startswith(f"{labels[first]}  ") and texts[0].endswith("%")
    assert any(text.startswith("_cat") for text in texts)


def test_figure_is_saved(tmp_path):
    pytest.importorskip("matplotlib")
    for name, size, segmentation in (
        ("one", (60, 40), np.zeros((40, 60), dtype=int)),
        ("none", (30, 90), np.full((90, 30), -1)),
    ):
        plot_segmentation(Image.new("RGB", size), segmentation, ["cat"]).savefig(tmp_path / f"{name}.png")
        assert Image.open(tmp_path / f"{name}.png").height >= 300
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"catseg_hf\[plot\]"):
        plot_segmentation(Image.new("RGB", (4, 4)), np.zeros((4, 4), dtype=int), ["cat"])


def test_overlay_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(40, 61\).*\(40, 60\)"):
        draw_segmentation(Image.new("RGB", (60, 40)), np.zeros((40, 61), dtype=int), ["cat"])


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("\x1b[31mcat\x07", r"\x1b[31mcat\x07"),
        ("cat\n\tsofa\r", "cat sofa"),
        ("\x9b2Jcat\x7f\0", r"\x9b2Jcat\x7f\x00"),
        ("\u202etac", r"\u202etac"),
        ("Straße 猫 קטע 👩\u200d👧", "Straße 猫 קטע 👩\u200d👧"),
    ],
    ids=["colour", "lines", "control", "direction", "unicode"],
)
def test_a_legend_has_no_control_characters(label, shown):
    assert legend_text(label, 0.5) == f"{shown}  50.0%"


def test_classes_without_a_name_are_refused():
    with pytest.raises(ValueError, match=r"\[1\] .* no name among the 1 labels"):
        draw_segmentation(Image.new("RGB", (2, 1)), np.array([[0, 1]]), ["cat"])


@pytest.mark.parametrize("opacity", [-0.1, 1.1])
def test_opacity_out_of_range_is_refused(opacity):
    with pytest.raises(ValueError, match=f"between 0 and 1, got {opacity}"):
        draw_segmentation(Image.new("RGB", (1, 1)), np.array([[0]]), ["cat"], opacity)


def test_a_large_picture_is_drawn():
    image = Image.new("RGB", (4000, 3000))
    drawn = draw_segmentation(image, checkerboard(3000, 4000, 171, cell=300), load_vocabulary("coco_stuff_171"))
    assert drawn.height == 3000 and 4500 < drawn.width < 8000


def test_overlay_and_legend_make_the_drawing():
    image = Image.new("RGB", (60, 40), "white")
    segmentation = checkerboard(40, 60, 3, cell=7)
    segmentation[:, 50:] = -1
    drawn = np.array(draw_segmentation(image, segmentation, ["cat", "sofa", "sky"]))
    legend = draw_legend(area_shares(segmentation), ["cat", "sofa", "sky"], image.size)
    assert np.array_equal(drawn[:40, :60], np.array(overlay_segmentation(image, segmentation)))
    assert np.array_equal(drawn[: legend.height, 60:], np.array(legend))

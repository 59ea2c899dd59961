import numpy as np
import pytest
import torch
from PIL import Image

from catseg_hf.visualization import area_shares, class_color, draw_segmentation


def test_colors_are_stable_and_distinct():
    colors = [class_color(index) for index in range(847)]
    assert colors == [class_color(index) for index in range(847)]
    assert len(set(colors)) > 840
    first = np.array(colors[:20])
    distances = np.abs(first[:, None] - first[None]).sum(axis=-1) + 1000 * np.eye(20)
    assert distances.min() > 50


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
    legend = np.array(drawn)[:, 60:].reshape(-1, 3)
    assert {class_color(0), class_color(1)} <= {tuple(pixel) for pixel in legend.tolist()}


def test_overlay_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(40, 61\).*\(40, 60\)"):
        draw_segmentation(Image.new("RGB", (60, 40)), np.zeros((40, 61), dtype=int), ["cat"])

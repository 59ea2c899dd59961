"""What a run leaves: results, charts, images of predictions and the model card."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import EvalResult, ModelCard
from matplotlib.figure import Figure
from PIL import Image

from catseg_hf import load_vocabulary
from catseg_hf.errors import UserError
from catseg_hf.visualization import class_color
from catseg_testing.hub_server import metadata_errors
from catseg_training.report.card import TrainingData, write_training_card
from catseg_training.report.charts import class_chart, curves_chart
from catseg_training.report.results import plot_curves, prediction_grid, write_results
from conftest import FIXTURES


NAMES = ["cat", "sofa", "sky, heaven"]
RESULTS = {
    "mean_iou": 0.25,
    "mean_iou_present": np.float64(0.375),
    "mean_accuracy": 0.5,
    "overall_accuracy": torch.tensor(0.75),
    "per_category_iou": np.array([0.25, 0.0, 0.5]),
    "per_category_accuracy": np.array([0.5, math.nan, 1.0]),
}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def class_rows(iou, names=None, absent=()):
    names = names or [f"class {index}" for index in range(len(iou))]
    return [
        {"id": index, "name": name, "iou": value, "accuracy": math.nan if index in absent else value}
        for index, (name, value) in enumerate(zip(names, iou, strict=True))
    ]


def texts_of(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def bar_names(figure: Figure) -> list[str]:
    return [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]


def test_results(tmp_path):
    more = {
        "train_steps": np.int64(3),
        "loss": math.nan,
        "rates": [1e-4, math.inf],
        "folder": Path("a/b"),
        "tf32": True,
    }
    write_results(tmp_path / "new", RESULTS | {"environment": more}, NAMES)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "all_results.json",
        "per_class_iou.csv",
        "per_class_iou.json",
        "per_class_iou.png",
    }
    written = json.loads((tmp_path / "new" / "all_results.json").read_text(), parse_constant=pytest.fail)
    assert written == {
        "mean_iou": 0.25,
        "mean_iou_present": 0.375,
        "mean_accuracy": 0.5,
        "overall_accuracy": 0.75,
        "per_category_iou": [0.25, 0.0, 0.5],
        "per_category_accuracy": [0.5, None, 1.0],
        "environment": {"train_steps": 3, "loss": None, "rates": [1e-4, None], "folder": "a/b", "tf32": True},
    }
    rows = [
        {"id": 0, "name": "cat", "iou": 0.25, "accuracy": 0.5},
        {"id": 1, "name": "sofa", "iou": 0.0, "accuracy": None},
        {"id": 2, "name": "sky, heaven", "iou": 0.5, "accuracy": 1.0},
    ]
    assert json.loads((tmp_path / "new" / "per_class_iou.json").read_text()) == rows
    assert read_csv(tmp_path / "new" / "per_class_iou.csv") == [
        {key: "" if value is None else str(value) for key, value in row.items()} for row in rows
    ]


def test_results_without_an_evaluation(tmp_path):
    write_results(tmp_path, {"train_loss": 0.5}, NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["all_results.json"]


def test_results_with_other_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        write_results(tmp_path, RESULTS, NAMES[:2])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_files_of_before(tmp_path, monkeypatch):
    write_results(tmp_path, RESULTS, NAMES)
    plot_curves([{"step": 1, "loss": 2.0}], tmp_path / "curves.png")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(figure, path, **_):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(UserError, match="No space"):
        write_results(tmp_path, RESULTS, NAMES)
    with pytest.raises(UserError, match="No space"):
        plot_curves([{"step": 1, "loss": 3.0}], tmp_path / "curves.png")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_bars_are_sorted_and_absent_classes_apart():
    names = ["cat", "sofa", "sky $x$", "tree", "a name, " * 10]
    figure = class_chart(class_rows([0.25, 0.0, 0.5, math.nan, 0.9], names, absent=(1, 3)))
    assert bar_names(figure) == ["a name, a name, a name, a nam...", "sky $x$", "cat"]
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.9, 0.5, 0.25]
    assert [text.get_text() for text in axes.texts] == ["90.0%", "50.0%", "25.0%"]
    assert "Mean IoU 55.0% of the 3 classes in the labels" in texts_of(figure)
    assert "41.2% of 4 with those that are only predicted" in texts_of(figure)
    assert "Not in the labels (2): sofa; tree" in texts_of(figure)
    figure.savefig(Path("/dev/null"), format="png")  # the dollar signs are no formula


def test_chart_without_a_class():
    figure = class_chart(class_rows([math.nan, math.nan], absent=(0, 1)))
    assert "No class occurs" in texts_of(figure) and bar_names(figure) == []


@pytest.mark.parametrize(
    "vocabulary, share_absent",
    [
        ("pascal_voc_20", 0),
        ("coco_stuff_171", 0),
        pytest.param("ade20k_847", 0, marks=pytest.mark.slow),
        ("ade20k_847", 0.5),
    ],
)
def test_charts_grow_with_the_classes_and_stay_readable(vocabulary, share_absent, tmp_path):
    names = load_vocabulary(vocabulary)
    generator = np.random.default_rng(0)
    absent = set(generator.permutation(len(names))[: int(share_absent * len(names))].tolist())
    iou = generator.random(len(names)).tolist()
    figure = class_chart(class_rows(iou, names, absent))
    assert len(bar_names(figure)) == len(names) - len(absent)
    width, height = figure.get_size_inches()
    per_bar = [
        axes.get_position().height * height / (abs(axes.get_ylim()[0] - axes.get_ylim()[1])) for axes in figure.axes
    ]
    assert min(per_bar) > 7 / 72  # a line of the names' 7 points
    assert height < 20 and width < 45
    figure.savefig(tmp_path / "chart.png", dpi=30)
    # No name reaches out of the image or into the bars before it.
    ends = [0.0]
    for axes in figure.axes:
        extents = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert min(extent.x0 for extent in extents) >= ends[-1]
        ends.append(axes.get_window_extent().x0 + max(bar.get_window_extent().width for bar in axes.patches))
    for text in figure.texts:
        extent = text.get_window_extent()
        assert extent.x1 <= figure.bbox.x1 and extent.y1 <= figure.bbox.y1
    foot = figure.texts[-1].get_window_extent()
    assert foot.y1 < min(label.get_window_extent().y0 for axes in figure.axes for label in axes.get_xticklabels())


def history(num_logs):
    entries = [
        {"step": 10 * index, "loss": 1 / index, "grad_norm": 2.0, "learning_rate": 1e-4 / index, "memory_gb": 3.0}
        for index in range(1, num_logs + 1)
    ]
    return [{"step": 10 * num_logs, "mean_iou": 0.25, "mean_iou_present": 0.5, "eval_seconds": 1.0}, *entries]


@pytest.mark.parametrize("num_logs", [1, 5, 400])
def test_curves(num_logs, tmp_path):
    figure = curves_chart(history(num_logs))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["Loss", "Gradient norm before clipping", "Learning rate outside CLIP", "Mean IoU"]
    loss = figure.axes[0].lines[0]
    assert loss.get_xdata().tolist() == [10 * index for index in range(1, num_logs + 1)]
    assert loss.get_ydata().tolist() == [1 / index for index in range(1, num_logs + 1)]
    # Many points are drawn with their moving average, which has the same area and lies where they do.
    assert len(figure.axes[0].lines) == (2 if num_logs >= 100 else 1)
    if num_logs >= 100:
        steps, means = figure.axes[0].lines[1].get_data()
        middle = 200
        place = steps.tolist().index(10 * middle)
        assert means[place] == pytest.approx(np.mean([1 / index for index in range(middle - 8, middle + 8)]), rel=1e-2)
    assert [line.get_ydata().tolist() for line in figure.axes[3].lines] == [[0.5], [0.25]]
    plot_curves(history(num_logs), tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (1200, 720)


def test_curves_of_a_part_and_of_nothing(tmp_path):
    figure = curves_chart([{"step": 1, "loss": math.nan}, {"step": 2, "loss": 0.5}, {"step": 3, "grad_norm": 0.0}])
    assert [axes.get_title() for axes in figure.axes] == ["Loss", "Gradient norm before clipping"]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [2]
    assert len(curves_chart(history(3)[1:]).axes) == 3
    plot_curves([], tmp_path / "curves.png")
    plot_curves([{"step": 1, "loss": math.nan, "memory_gb": 1.0}], tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


def example(height=32, width=40, **more):
    image = np.full((height, width, 3), 200, dtype=np.uint8)
    label = np.zeros((height, width), dtype=np.uint8)
    label[:, : width // 2] = 255
    prediction = np.ones((height, width), dtype=np.int64)
    prediction[: height // 2] = 0
    return {"image": image, "label": label, "prediction": prediction, **more}


def test_prediction_grid():
    grid = prediction_grid([example(name="a.jpg"), example(height=64, width=16)], NAMES)
    assert grid.mode == "RGB"
    pixels = np.array(grid)

    def blend(index):
        return tuple(np.round(0.4 * 200 + 0.6 * np.array(class_color(index))).astype(int).tolist())

    def area(color, rows):
        return (np.abs(pixels[rows].astype(int) - color).max(axis=-1) <= 1).sum()

    # Each row is 320 pixels high: the first one's images are 400 wide, the second one's 80.
    middle = 24 + 12 + 24 + 320 + 12
    for rows, width in ((slice(0, middle), 400), (slice(middle, None), 80)):
        # The input, what the label ignores, and a few pixels of text.
        assert area((200, 200, 200), rows) == pytest.approx(320 * width * 1.5, rel=1e-3)
        assert area(blend(0), rows) == 320 * width  # half of the label and half of the prediction
        assert area(blend(1), rows) == 160 * width
        assert area(class_color(0), rows) and area(class_color(1), rows)  # in the legends


def test_kinds_of_pictures_in_a_grid():
    plain = example()
    others = {
        "image": Image.fromarray(plain["image"]),
        "label": torch.from_numpy(np.where(plain["label"] == 255, 65535, 0)),
        "prediction": torch.from_numpy(plain["prediction"]),
    }
    expected = prediction_grid([plain], NAMES)
    assert prediction_grid([others], NAMES, ignore_index=65535).tobytes() == expected.tobytes()
    grey = plain | {"image": plain["image"][..., 0], "label": plain["label"].astype(np.uint16)}
    assert prediction_grid(iter([grey]), NAMES).tobytes() == expected.tobytes()
    assert prediction_grid([], NAMES).size[0] > 0


def test_wide_and_large_pictures_in_a_grid():
    grid = prediction_grid([example(height=3000, width=4000), example(height=20, width=900)], NAMES)
    assert grid.width < 2600 and grid.height < 900


def test_bad_pictures_in_a_grid_are_refused():
    with pytest.raises(ValueError, match=r"\(32, 40\).*\(16, 40\)"):
        prediction_grid([example() | {"image": Image.new("RGB", (40, 16))}], NAMES)
    with pytest.raises(ValueError, match=r"\[3\].*no name"):
        prediction_grid([example() | {"prediction": np.full((32, 40), 3)}], NAMES)
    with pytest.raises(ValueError, match=r"\[255\].*no name"):
        prediction_grid([example()], NAMES, ignore_index=65535)


DATA = TrainingData("/private/data/coco_stuff164k/", None, "train", "validation", 118287, 5000)


def write_card(folder: Path, **arguments) -> ModelCard:
    arguments = {
        "name": "tester/catseg-coco",
        "data": DATA,
        "hyperparameters": {"steps": 80000, "learning rate": 2e-4, "jitter": True, "a|b": None, "schedule": "cosine"},
        "results": RESULTS | {"overall_accuracy": 0.75, "sliding_window": True},
        "base_model": "openai/clip-vit-base-patch16",
        **arguments,
    }
    write_training_card(folder, **arguments)
    card = ModelCard.load(folder / "README.md")
    assert metadata_errors(card.content) == []
    assert "{" not in re.sub(r"```.*?```", "", card.text, flags=re.DOTALL) and "\n\n\n" not in card.text.strip()
    for snippet in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        compile(snippet, "README.md", "exec")
    return card


def test_card(tmp_path, model):
    for name in ("training_curves.png", "per_class_iou.png", "per_class_iou.csv"):
        (tmp_path / name).touch()
    card = write_card(tmp_path, config=model.config)
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "image-segmentation"
    assert data["license"] == "mit" and data["base_model"] == "openai/clip-vit-base-patch16"
    assert data["metrics"] == ["mean_iou"] and "datasets" not in data and "catseg" in data["tags"]
    for row in (
        "| steps | 80,000 |",
        "| learning rate | 0.0002 |",
        "| jitter | yes |",
        r"| a\|b | none |",
        "| mIoU of the classes that occur in the labels | 37.5 |",
        "| mIoU of the classes that occur in labels or predictions | 25.0 |",
        "| share of the pixels that are right | 75.0 |",
    ):
        assert row in card.text
    for text in (
        "118,287 images",
        "5,000 images, with the sliding window",
        "split `validation`",
        "per_class_iou.csv",
    ):
        assert text in card.text
    assert re.findall(r"!\[.*?\]\((.*?)\)", card.text) == ["training_curves.png", "per_class_iou.png"]
    assert "/private" not in card.content and "`coco_stuff164k`" in card.text
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_results_in_the_metadata(tmp_path, model):
    data = TrainingData("owner/data", "full", "train", "test", None, 3, on_hub=True)
    card = write_card(tmp_path, config=model.config, data=data, results=RESULTS | {"mean_iou_present": math.nan})
    assert card.data.to_dict()["datasets"] == ["owner/data"] and card.data.model_name == "catseg-coco"
    common = {
        "task_type": "image-segmentation",
        "task_name": "Semantic segmentation",
        "dataset_type": "owner/data",
        "dataset_name": "data",
        "dataset_config": "full",
        "dataset_split": "test",
    }
    assert card.data.eval_results == [
        EvalResult(metric_type="mean_iou", metric_name="Mean IoU", metric_value=0.25, **common),
        EvalResult(metric_type="mean_accuracy", metric_name="Mean accuracy", metric_value=0.5, **common),
        EvalResult(metric_type="overall_accuracy", metric_name="Overall accuracy", metric_value=0.75, **common),
    ]
    # Through the metadata and back.
    assert ModelCard(card.content).data.eval_results == card.data.eval_results
    assert "[owner/data](https://huggingface.co/datasets/owner/data) (full)" in card.text
    assert "| mIoU of the classes that occur in the labels | none |" in card.text


def test_card_without_results(tmp_path, model):
    data = TrainingData("owner/data", None, "train", on_hub=True)
    card = write_card(tmp_path, config=model.config, name="run", data=data, results=None, base_model="/home/me/start")
    assert "It has not been evaluated." in card.text and "model-index" not in card.content
    assert "base_model" not in card.data.to_dict() and "the checkpoint `start`" in card.text
    assert "/home" not in card.content and "model_name" not in card.content


def test_the_cards_code_runs(tmp_path, model_with_vocabulary, processor, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model_with_vocabulary.save_pretrained("run")
    processor.save_pretrained("run")
    Image.open(FIXTURES / "picture.png").convert("RGB").resize((90, 60)).save("image.jpg")
    card = write_card(tmp_path / "run", config=model_with_vocabulary.config, name="run")
    for snippet in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        variables = {}
        exec(snippet, variables)
    assert variables["segmentation"].shape == (60, 90)
    assert re.search(r"^(cat|sofa|wall) 0\.\d+ \(90, 60\)$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("base", "place"),
    [("owner/catseg", "[owner/catseg](https://huggingface.co/owner/catseg)"), ("/home/me/catseg", "`catseg`")],
)
def test_card_tells_of_an_adapter(base, place, tmp_path, model):
    card = write_card(tmp_path, config=model.config, base_model=base, has_adapter=True)
    assert card.data.library_name == "transformers" and "/home" not in card.content
    usage = card.text[card.text.index("peft") : card.text.index("## Training")]
    assert place in usage and 'from_pretrained(base_model, "tester/catseg-coco", subfolder="adapter")' in usage

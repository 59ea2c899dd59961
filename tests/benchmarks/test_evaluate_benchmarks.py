"""evaluate_benchmarks.py: protocol, metric, and everything that a run leaves."""

import csv
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub import ModelCard
from PIL import Image

import evaluate_benchmarks
from catseg_hf import CATSegForSemanticSegmentation, CATSegProcessor, load_vocabulary
from catseg_hf.guided_upsampling_catseg import UPSAMPLINGS
from catseg_testing.benchmark_folders import LABELS, expected_labels, stored_maps, write_benchmark, write_own_benchmark
from catseg_testing.tiny_training import save_checkpoint
from catseg_testing.workers import no_worker_is_left
from catseg_training.benchmarks import evaluation
from catseg_training.benchmarks.charts import confused_classes
from catseg_training.benchmarks.evaluation import evaluate_benchmark
from catseg_training.benchmarks.files import find_files
from catseg_training.benchmarks.images import BenchmarkImages
from catseg_training.benchmarks.predictions import prediction_file
from catseg_training.benchmarks.predictors import ModelPredictor
from catseg_training.benchmarks.published import find_benchmark
from catseg_training.benchmarks.tally import Tally
from catseg_training.boundary_iou import BoundaryIou
from catseg_training.views import View, Views


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def loaded(checkpoint):
    model = CATSegForSemanticSegmentation.from_pretrained(checkpoint).eval()
    return model, CATSegProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """A folder of downloads for each benchmark."""
    root = tmp_path_factory.mktemp("downloads")
    return {name: write_benchmark(name, root / name, stored_maps(name)) for name in LABELS}


@pytest.fixture
def without_report(monkeypatch):
    """Drawing takes longer than everything else."""
    monkeypatch.setattr(evaluation, "NUM_DRAWN", 0)
    monkeypatch.setattr(evaluate_benchmarks, "write_benchmark_report", lambda folder, result: None)


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    reset_accelerate()


def reset_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run(*arguments: object) -> int:
    """evaluate_benchmarks.py in this process; its exit status."""
    try:
        return evaluate_benchmarks.main([str(each) for each in ("--dataloader_num_workers", 0, *arguments)])
    finally:
        reset_accelerate()


def results_in(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def predictor_of(model, processor, views=None, batch_size=1, num_workers=0, exact=True) -> ModelPredictor:
    views = views or Views(sliding_window=False)
    device = torch.device("cpu")
    return ModelPredictor(model, processor, "model", device, "no", views, batch_size, num_workers, exact)


def brute_force(pairs: list[tuple[np.ndarray, np.ndarray]], num_classes: int, ignore_index: int) -> dict:
    """Scores of (prediction, label) pairs, pixel by pixel."""
    right, labelled, predicted = ([0] * num_classes for _ in range(3))
    for prediction, label in pairs:
        for predicted_class, label_class in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
            if label_class != ignore_index:
                labelled[label_class] += 1
                predicted[predicted_class] += 1
                right[label_class] += label_class == predicted_class
    unions = [labelled[index] + predicted[index] - right[index] for index in range(num_classes)]
    iou = [right[index] / unions[index] if unions[index] else None for index in range(num_classes)]
    present = [iou[index] for index in range(num_classes) if labelled[index]]
    in_union = [value for value in iou if value is not None]
    return {
        "mean_iou": sum(in_union) / len(in_union),
        "mean_iou_present": sum(present) / len(present),
        "overall_accuracy": sum(right) / sum(labelled),
        "per_category_iou": iou,
    }


def segmented(loaded, names: list[str], image: Image.Image, sliding_window: bool, **upsampling) -> np.ndarray:
    """What a user gets for one image, in the classes of a vocabulary."""
    model, processor = loaded
    inputs = processor(images=image, text=names, sliding_window=sliding_window)
    with torch.inference_mode():
        outputs = model(**inputs, sliding_window=sliding_window)
    (prediction,) = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)], **upsampling)
    return prediction.numpy()


@pytest.mark.parametrize("name, sliding_window", [*((name, False) for name in LABELS), ("pascal_voc_20b", True)])
def test_end_to_end(name, sliding_window, loaded, roots, checkpoint, tmp_path, without_report):
    """Scores are those of the images one by one, counted pixel by pixel."""
    vocabulary = load_vocabulary({"coco_stuff": "coco_stuff_171"}.get(name, name))
    pairs = []
    for stem, stored in stored_maps(name).items():
        (file,) = roots[name].rglob(f"{stem}.jpg")
        prediction = segmented(loaded, vocabulary, Image.open(file), sliding_window)
        if name == "pascal_voc_20b":
            prediction = np.where(prediction >= 20, 20, prediction)
        pairs.append((prediction, expected_labels(name, stored)))
    num_classes = 21 if name == "pascal_voc_20b" else len(vocabulary)
    ignore_index = {"ade20k_847": 65535, "pascal_context_459": 459}.get(name, 255)
    window = "--sliding_window" if sliding_window else "--no-sliding_window"
    arguments = ["--model", checkpoint, "--data_root", roots[name], "--output_dir", tmp_path, "--benchmarks", name]
    assert run(*arguments, window) == 0
    result = results_in(tmp_path)[name]
    for key, value in brute_force(pairs, num_classes, ignore_index).items():
        assert result[key] == pytest.approx(value, abs=1e-12), key
    assert result["overall_accuracy"] > 0 or name == "ade20k_847"
    assert result["num_images"] == 3 and result["num_images_left_out"] == 0
    assert result["num_images_expected"] == {"pascal_context_59": 3}.get(name, find_benchmark(name).num_images)
    labels = np.concatenate([label.ravel() for _, label in pairs])
    assert result["num_ignored_pixels"] == (labels == ignore_index).sum()
    assert result["num_pixels"] == (labels != ignore_index).sum()


class StandIn(torch.nn.Module):
    """Answers with a class index for every pixel, instead of looking at it."""

    def __init__(self, answers, num_classes: int):
        super().__init__()
        self.answers = answers
        self.num_classes = num_classes

    def set_vocabulary(self, labels, input_ids):
        assert len(labels) == len(input_ids) == self.num_classes

    def forward(self, pixel_values, **inputs):
        answer = self.answers(pixel_values)
        logits = torch.full((1, self.num_classes, *answer.shape), -10, dtype=torch.int8)
        return SimpleNamespace(logits=logits.scatter_(1, torch.from_numpy(answer)[None, None], 10))


def enlarged(label: np.ndarray) -> np.ndarray:
    """Twice as large, so that the prediction must be resized."""
    return label.repeat(2, axis=0).repeat(2, axis=1).astype(np.int64)


def answers_of(images: BenchmarkImages, processor) -> dict[bytes, np.ndarray]:
    """Labels by the pixels that the model sees, in the indices of the prompted names."""
    answers = {}
    for example in map(images.__getitem__, range(len(images))):
        label = example["label"].astype(np.int64)
        if images.benchmark.name == "pascal_voc_20b":  # any of the context's names, one after the other
            label = np.where(label == 20, 20 + np.arange(label.size).reshape(label.shape) % 39, label)
        label[example["label"] == images.benchmark.ignore_index] = 1
        pixels = processor(images=Image.fromarray(example["image"]), sliding_window=False).pixel_values
        answers[pixels.numpy().tobytes()] = enlarged(label)
    return answers


@pytest.mark.parametrize("name", LABELS)
def test_oracle(name, roots, loaded, accelerator, tmp_path):
    """A model that knows the labels has everything right, images that are shrunk included."""
    benchmark = find_benchmark(name)
    if benchmark.max_shortest_edge:
        benchmark = replace(benchmark, max_shortest_edge=21)
    files = find_files(benchmark, roots[name])
    answers = answers_of(BenchmarkImages(benchmark, files.files), loaded[1])
    model = StandIn(lambda pixels: answers[pixels.numpy().tobytes()], len(benchmark.vocabulary))
    result = evaluate_benchmark(benchmark, files, predictor_of(model, loaded[1]), accelerator, tmp_path)
    for score in ("mean_iou", "mean_iou_present", "mean_accuracy", "overall_accuracy"):
        assert result.values[score] == 1, score
    if benchmark.max_shortest_edge:
        assert {min(row["height"], row["width"]) for row in result.rows} == {20, 21}
    assert all(row["overall_accuracy"] == 1 for row in result.rows)


@pytest.mark.parametrize(
    "name, answer, right",
    [
        ("ade20k_150", 149, 149),
        ("pascal_voc_20b", 20, 20),
        ("pascal_voc_20b", 58, 20),
        ("pascal_context_459", 255, 255),
    ],
)
def test_constant_answer(name, answer, right, roots, loaded, accelerator, tmp_path):
    """One class gets the share of its pixels, all others of the labels nothing."""
    benchmark = find_benchmark(name)
    model = StandIn(lambda pixels: np.full((8, 8), answer), len(benchmark.vocabulary))
    files = find_files(benchmark, roots[name])
    result = evaluate_benchmark(benchmark, files, predictor_of(model, loaded[1]), accelerator, tmp_path)
    labels = np.concatenate([expected_labels(name, stored).ravel() for stored in stored_maps(name).values()])
    labels = labels[labels != benchmark.ignore_index]
    share = (labels == right).mean()
    assert result.values["overall_accuracy"] == pytest.approx(share)
    assert result.values["mean_iou_present"] == pytest.approx(share / len(np.unique(labels)))
    assert result.values["mean_iou"] == result.values["mean_iou_present"]


def test_rules_differ(roots, loaded, accelerator, tmp_path):
    """A class that is only predicted counts in one of them."""
    benchmark = find_benchmark("ade20k_150")
    files = find_files(benchmark, roots["ade20k_150"])
    answers = answers_of(BenchmarkImages(benchmark, files.files), loaded[1])
    wrong = [np.where(answer == 0, 100, answer) for answer in answers.values()]
    answers = dict(zip(answers, wrong, strict=True))
    model = StandIn(lambda pixels: answers[pixels.numpy().tobytes()], 150)
    result = evaluate_benchmark(benchmark, files, predictor_of(model, loaded[1]), accelerator, tmp_path)
    assert result.values["mean_iou_present"] == pytest.approx(2 / 3)  # of classes 0, 7, 149
    assert result.values["mean_iou"] == pytest.approx(2 / 4)


@pytest.mark.parametrize("margin, expected", [(0.001, 114), (0.0, 114), (2.0, 252)])
def test_ties_of_equal_prompts(margin, expected, loaded):
    """Rounding does not decide between the classes called "bag": the first of them wins. More than rounding does."""

    class Bags(StandIn):
        def forward(self, pixel_values, **inputs):
            logits = torch.zeros(1, 847, 4, 4)
            logits[:, 114], logits[:, 191], logits[:, 252] = 1, 1 + margin / 2, 1 + margin
            return SimpleNamespace(logits=logits)

    benchmark = find_benchmark("ade20k_847")
    image = {"index": 0, "name": "x", "image": np.zeros((4, 4, 3), np.uint8), "label": np.zeros((4, 4), int)}
    images = [image]
    images = type("Images", (list,), {"benchmark": benchmark})(images)
    (examples,) = predictor_of(Bags(None, 847), loaded[1]).batches(images, [0], evaluation.ALONE)
    assert np.unique(examples[0]["prediction"]).tolist() == [expected]


def test_prompt_with_a_space_at_its_end(loaded):
    """ade20k_150's eighth name, as it is: the tokenizer takes two spaces for one."""
    processor = loaded[1]
    ids = processor.tokenizer("A photo of a bed  in the scene").input_ids
    assert load_vocabulary("ade20k_150")[7] == "bed "
    assert processor(text=["bed "]).input_ids.tolist() == [ids]


@pytest.mark.parametrize("name", ["pascal_voc_20", "pascal_voc_20b", "ade20k_150"])
def test_images_with_nothing_to_score(name, checkpoint, tmp_path, without_report):
    """PASCAL VOC leaves them out, the others count them."""
    maps = stored_maps(name)
    first = next(iter(maps))
    maps[first] = np.full_like(maps[first], 0 if name == "ade20k_150" else 255)
    write_benchmark(name, tmp_path, maps)
    arguments = [
        "--model",
        checkpoint,
        "--data_root",
        tmp_path,
        "--output_dir",
        tmp_path / "out",
        "--benchmarks",
        name,
    ]
    assert run(*arguments, "--no-sliding_window") == 0
    result = results_in(tmp_path / "out")[name]
    skipped = 0 if name == "ade20k_150" else 1
    assert (result["num_images"], result["num_images_skipped"]) == (3 - skipped, skipped)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> SimpleNamespace:
    """Images of several sizes with few classes: their `folder` and the `file` that describes them."""
    folder = tmp_path_factory.mktemp("own")
    return SimpleNamespace(folder=folder, file=write_own_benchmark(folder))


@pytest.fixture
def own_command(own, checkpoint) -> list:
    command = ["--model", checkpoint, "--data_root", own.folder, "--benchmarks", own.file]
    return [*command, "--no-sliding_window", "--batch_size", 2]


def count(own, loaded, accelerator, folder, order=1, **options) -> np.ndarray:
    benchmark = find_benchmark(str(own.file))
    files = find_files(benchmark, own.folder)
    files = replace(files, files=files.files[::order])
    return evaluate_benchmark(benchmark, files, predictor_of(*loaded, **options), accelerator, folder).matrix


@pytest.fixture
def counted(own, loaded, accelerator, tmp_path) -> np.ndarray:
    """The confusion matrix of one image after the other."""
    return count(own, loaded, accelerator, tmp_path / "counted")


@pytest.mark.parametrize("batch_size, num_workers, order", [(2, 0, 1), (3, 2, 1), (7, 0, -1), (1, 2, -1)])
def test_counts_do_not_depend_on_batches(batch_size, num_workers, order, own, counted, loaded, accelerator, tmp_path):
    options = {"batch_size": batch_size, "num_workers": num_workers}
    matrix = count(own, loaded, accelerator, tmp_path / "batches", order, **options)
    assert (matrix > 0).sum() > 6
    np.testing.assert_array_equal(matrix, counted)


def test_sliding_window_in_batches(own, loaded, accelerator, tmp_path):
    views = Views(sliding_window=True)
    alone, batches = (
        count(own, loaded, accelerator, tmp_path / str(size), views=views, batch_size=size) for size in (1, 3)
    )
    np.testing.assert_array_equal(batches, alone)


class Rounding(torch.nn.Module):
    """A model that may round batches in another way than single images, and notes how many images it gets."""

    def __init__(self, model: torch.nn.Module, margin: float):
        super().__init__()
        self.model = model
        self.margin = margin
        self.set_vocabulary = model.set_vocabulary
        self.batch_sizes = []

    def forward(self, pixel_values, **inputs):
        self.batch_sizes.append(len(pixel_values))
        logits = torch.cat([self.model(pixels[None], **inputs).logits for pixels in pixel_values])
        logits[:, 1] += self.margin * (len(pixel_values) - 1)
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(
    "margin, exact, batch_sizes",
    [
        (0.0, True, [1, 1, 1, 3, 3, 1]),  # the first batch is tried, and those behind it go together
        (1e-6, True, [1, 1, 1, 3, 1, 1, 1, 1]),
        (1.0, True, [1, 1, 1, 3, 1, 1, 1, 1]),
        (1.0, False, [3, 3, 1]),
    ],
)
def test_batches_of_the_model(margin, exact, batch_sizes, own, counted, loaded, accelerator, tmp_path, monkeypatch):
    """Images of several sizes go together where they get the bits that they get alone."""
    monkeypatch.setattr(evaluation, "NUM_DRAWN", 0)
    model = Rounding(loaded[0], margin)
    matrix = count(own, (model, loaded[1]), accelerator, tmp_path / "batches", batch_size=3, exact=exact)
    assert model.batch_sizes == batch_sizes
    assert np.array_equal(matrix, counted) == exact


class Interrupted(Exception):
    pass


def test_resumed_after_an_interruption(own, counted, loaded, accelerator, tmp_path):
    """Nothing is counted twice or left out, half-written and damaged files included."""
    benchmark, predictor = find_benchmark(str(own.file)), predictor_of(*loaded)
    files, folder = find_files(benchmark, own.folder), tmp_path / "tally"
    seen = []

    class Stopping:
        identity = predictor.identity
        prepare = predictor.prepare

        def __init__(self, stop_after):
            self.stop_after = stop_after

        def batches(self, images, indices, share, stop=lambda: False):
            for number, examples in enumerate(predictor.batches(images, indices, share, stop)):
                if number == self.stop_after:
                    raise Interrupted
                seen.extend(example["index"] for example in examples)
                yield examples

    options = {"resume": True, "save_seconds": 0}
    for stop_after in (2, 0, 3):
        with pytest.raises(Interrupted):
            evaluate_benchmark(benchmark, files, Stopping(stop_after), accelerator, folder, **options)
    assert seen == [0, 1, 2, 3, 4]
    parts = sorted(folder.glob("part-*.json"), key=os.path.getmtime)
    (folder / f".{parts[-1].name}.incomplete").write_text("{")
    parts[-1].write_text(parts[-1].read_text()[:-10])
    result = evaluate_benchmark(benchmark, files, Stopping(None), accelerator, folder, **options)
    assert seen[5:8] == [4, 5, 6]
    np.testing.assert_array_equal(result.matrix, counted)
    assert [row["index"] for row in result.rows] == list(range(7))


def test_other_evaluations_are_not_continued(own_command, tmp_path, capsys, without_report):
    arguments = [*own_command, "--output_dir", tmp_path]
    assert run(*arguments) == 0
    before = results_in(tmp_path)["own"]
    assert run(*arguments, "--resume") == 0
    same = ("mean_iou", "mean_iou_present", "per_category_iou", "num_images")
    assert all(results_in(tmp_path)["own"][key] == before[key] for key in same)
    assert run(*arguments, "--sliding_window", "--resume") == 1
    assert "another sliding_window" in capsys.readouterr().err
    (part,) = (tmp_path / "own" / "tally").glob("part-*")
    content = json.loads(part.read_text())
    part.write_text(json.dumps(content | {"rows": content["rows"][:-1]}))
    assert run(*arguments) == 1
    assert "--resume" in capsys.readouterr().err
    (tmp_path / "own" / "tally" / "run.json").write_text("{")
    assert run(*arguments, "--resume") == 1
    assert "run.json is damaged" in capsys.readouterr().err


def test_finished_evaluations_can_be_repeated(own_command, tmp_path, without_report):
    assert run(*own_command, "--output_dir", tmp_path) == 0
    counted = set((tmp_path / "own" / "tally").glob("part-*"))
    assert run(*own_command, "--output_dir", tmp_path, "--tta") == 0
    assert results_in(tmp_path)["own"]["settings"]["flip"]
    assert counted and counted.isdisjoint((tmp_path / "own" / "tally").glob("part-*"))


def test_terminated(own_command, tmp_path, monkeypatch, without_report):
    read = BenchmarkImages.read

    def terminate(images, index):
        if index == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(images, index)

    monkeypatch.setattr(BenchmarkImages, "read", terminate)
    assert run(*own_command, "--output_dir", tmp_path) == 143
    assert not (tmp_path / "results.json").exists()
    monkeypatch.undo()
    assert run(*own_command, "--output_dir", tmp_path, "--resume") == 0
    assert results_in(tmp_path)["own"]["num_images"] == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_with_its_workers(number, start_method, own_command, tmp_path, monkeypatch, without_report):
    """No process that loads images is left, and what was counted is."""
    add, kill = Tally.add, iter([os.kill])

    def stop(tally, example):
        for each in kill:  # once
            each(os.getpid(), number)
        add(tally, example)

    monkeypatch.setattr(Tally, "add", stop)
    status = run(*own_command, "--batch_size", 1, "--output_dir", tmp_path, "--dataloader_num_workers", 2)
    assert status == 128 + number
    assert no_worker_is_left()
    assert 0 < len(list((tmp_path / "own" / "tally").glob("part-*")))
    assert not (tmp_path / "results.json").exists()


def test_bad_files_are_named_and_counted(checkpoint, tmp_path, caplog, without_report):
    """The others are scored; once they are repaired, the same command completes the result."""
    name = "ade20k_150"
    maps = stored_maps(name)
    root = write_benchmark(name, tmp_path / "data", maps) / "ADEChallengeData2016"
    complete = shutil.copytree(root, tmp_path / "complete")
    image, label = (
        root / "images" / "validation" / "ADE_val_00000001.jpg",
        root / "annotations" / "validation" / "ADE_val_00000002.png",
    )
    image.write_bytes(image.read_bytes()[:100])
    Image.fromarray(np.full(maps["ADE_val_00000002"].shape, 200, np.uint8)).save(label)
    arguments = ["--model", checkpoint, "--data_root", tmp_path / "data", "--output_dir", tmp_path / "out"]
    arguments += ["--benchmarks", name, "--no-sliding_window"]
    assert run(*arguments) == 1
    result = results_in(tmp_path / "out")[name]
    assert (result["num_images"], result["num_images_left_out"], result["num_images_expected"]) == (1, 2, 2000)
    assert [each["name"] for each in result["left_out"]] == ["ADE_val_00000001", "ADE_val_00000002"]
    assert str(image) in result["left_out"][0]["problem"] and "200" in result["left_out"][1]["problem"]
    assert "1 of 2,000, 2 left out" in (tmp_path / "out" / "results.md").read_text()
    assert str(label) in caplog.text
    shutil.copytree(complete, root, dirs_exist_ok=True)
    assert run(*arguments, "--resume") == 0
    assert results_in(tmp_path / "out")[name]["num_images"] == 3


@pytest.mark.parametrize("name", ["pascal_context_459", "pascal_voc_20b"])
def test_predictions_are_saved_and_evaluated_again(name, roots, checkpoint, tmp_path, without_report):
    common = ["--data_root", roots[name], "--benchmarks", name]
    saved = tmp_path / "predictions"
    arguments = ["--model", checkpoint, "--no-sliding_window", "--predictions_dir", saved]
    assert run(*common, *arguments, "--output_dir", tmp_path / "model") == 0
    assert run(*common, "--from_predictions", saved, "--output_dir", tmp_path / "files") == 0
    first, second = (results_in(tmp_path / folder)[name] for folder in ("model", "files"))
    for key in ("mean_iou", "mean_iou_present", "overall_accuracy", "per_category_iou", "num_pixels"):
        assert first[key] == second[key]
    for stem, stored in stored_maps(name).items():
        image = Image.open(saved / name / f"{stem}.png")
        assert image.mode == ("I;16" if name == "pascal_context_459" else "L")
        assert image.size == stored.shape[::-1]
        assert np.asarray(image).max() <= (458 if name == "pascal_context_459" else 20)


def test_predictions_of_another_model(roots, tmp_path, without_report):
    """Labels as predictions have everything right; what is missing or does not fit is named."""
    name = "pascal_context_459"
    folder = tmp_path / "predictions" / name
    folder.mkdir(parents=True)
    for stem, stored in stored_maps(name).items():
        ids = np.where(stored == 0, 65535, expected_labels(name, stored))  # what is ignored may be anything
        Image.fromarray(ids.astype(np.uint16)).save(folder / f"{stem}.png")
    arguments = ["--from_predictions", folder.parent, "--data_root", roots[name], "--benchmarks", name]
    assert run(*arguments, "--output_dir", tmp_path / "right") == 0
    assert results_in(tmp_path / "right")[name]["mean_iou"] == 1
    stems = list(stored_maps(name))
    (folder / f"{stems[0]}.png").unlink()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / f"{stems[1]}.png")
    Image.fromarray(np.full((28, 28), 459, np.uint16)).save(folder / f"{stems[2]}.png")
    assert run(*arguments, "--output_dir", tmp_path / "wrong") == 1
    result = results_in(tmp_path / "wrong")[name]
    assert result["num_images"] == 0 and result["mean_iou"] is None
    for problem, words in zip(result["left_out"], ("does not exist", "3 x 3", "459"), strict=True):
        assert words in problem["problem"]


@pytest.mark.parametrize("sliding_window", [True, False])
def test_tta(sliding_window, loaded, own):
    """Probabilities of three scales and their mirror images, each predicted as an image of its own, are averaged."""
    benchmark = find_benchmark(str(own.file))
    images = BenchmarkImages(benchmark, find_files(benchmark, own.folder).files)
    predictor = predictor_of(*loaded, Views(sliding_window, scales=evaluate_benchmarks.TTA_SCALES, flip=True))
    predictor.prepare(benchmark)
    (examples,) = predictor.batches(images, [3], evaluation.ALONE)
    image = examples[0]["image"]
    height, width = image.shape[:2]
    assert (height, width) == (23, 24)

    def probabilities(part: np.ndarray) -> torch.Tensor:
        """Of the image and of its mirror image."""
        model, processor = loaded
        total = 0
        for step in (1, -1):
            seen = Image.fromarray(np.ascontiguousarray(part[:, ::step]))
            inputs = processor(images=seen, sliding_window=sliding_window)
            with torch.inference_mode():
                logits = model(**inputs, sliding_window=sliding_window).logits
            resized = torch.nn.functional.interpolate(logits.sigmoid(), part.shape[:2], mode="bilinear")[0]
            total = total + resized.numpy()[..., ::step] / 2
        return total

    framed = np.full((round(height / 0.75), round(width / 0.75), 3), 128, np.uint8)
    framed[:height, :width] = image
    mean = probabilities(image) + probabilities(framed)[:, :height, :width]
    rows, columns = round(height / 1.25), round(width / 1.25)
    total, count = np.zeros_like(mean), np.zeros((height, width))
    for top in (0, height - rows):
        for left in (0, width - columns):
            part = (slice(top, top + rows), slice(left, left + columns))
            total[(slice(None), *part)] += probabilities(image[part])
            count[part] += 1
    mean += total / count
    second, best = np.sort(mean, axis=0)[-2:]
    clear = best - second > 1e-4
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(examples[0]["prediction"].numpy()[clear], mean.argmax(axis=0)[clear])


@pytest.mark.parametrize("tta", [False, True])
def test_guided_upsampling(tta, loaded, own, own_command, tmp_path, without_report):
    """Predictions are the processor's, and the results say how they were made."""
    benchmark = find_benchmark(str(own.file))
    command = [*own_command, "--no-sliding_window", "--upsampling", "guided", *["--tta"] * tta]
    assert run(*command, "--output_dir", tmp_path / "out", "--predictions_dir", tmp_path / "saved") == 0
    num_changed = 0
    for example in map(BenchmarkImages(benchmark, find_files(benchmark, own.folder).files).__getitem__, range(7)):
        image = Image.fromarray(example["image"])
        saved = np.asarray(Image.open(prediction_file(tmp_path / "saved", benchmark.name, example["name"])))
        plain = segmented(loaded, list(benchmark.vocabulary), image, False)
        num_changed += (saved != plain).sum()
        if not tta:
            guided = segmented(loaded, list(benchmark.vocabulary), image, False, upsampling="guided", images=image)
            np.testing.assert_array_equal(saved, guided)
    assert num_changed > 0
    result = results_in(tmp_path / "out")["own"]
    assert result["settings"]["upsampling"] == "guided"
    assert ", guided upsampling |" in (tmp_path / "out" / "results.md").read_text()
    assert run(*own_command, "--no-sliding_window", "--output_dir", tmp_path / "out", "--resume") == 1


def test_guided_upsampling_in_the_card(roots, checkpoint, tmp_path, without_report):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    arguments = ["--model", model, "--data_root", roots["ade20k_150"], "--no-sliding_window", "--write_model_card"]
    for upsampling in UPSAMPLINGS:
        output = tmp_path / upsampling
        assert run(*arguments, "--benchmarks", "ade20k_150", "--upsampling", upsampling, "--output_dir", output) == 0
        card = ModelCard((model / "README.md").read_text())
        is_guided = upsampling == "guided"
        expected = {"upsampling": "guided"} if is_guided else None
        assert all(each.metric_args == expected for each in card.data.eval_results)
        assert ("ADE20K-150, guided upsampling" in card.text) == is_guided


def test_boundary_iou(own, own_command, loaded, tmp_path, without_report):
    """That of all images together, without what is ignored."""
    assert run(*own_command, "--no-sliding_window", "--output_dir", tmp_path, "--batch_size", 3) == 0
    benchmark = find_benchmark(str(own.file))
    counts = BoundaryIou(len(benchmark.class_names), benchmark.ignore_index)
    for example in map(BenchmarkImages(benchmark, find_files(benchmark, own.folder).files).__getitem__, range(7)):
        prediction = segmented(loaded, list(benchmark.vocabulary), Image.fromarray(example["image"]), False)
        counts.add(np.minimum(prediction, benchmark.last_class), example["label"])
    result, expected = results_in(tmp_path)["own"], counts.scores()
    assert 0 < expected["mean_boundary_iou_present"] < 1
    for name, value in expected.items():
        found = np.array(result[name], dtype=float)  # null is NaN
        np.testing.assert_array_equal(found, value, err_msg=name)
    assert f"| {100 * expected['mean_boundary_iou_present']:.1f} |" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize("scale, parts", [(0.75, 1), (1.0, 1), (1.25, 4), (2.0, 4), (2.5, 9)])
def test_scales(scale, parts):
    """Together the parts of a scale cover the image, and each fills the model's input."""
    views = Views(sliding_window=True, scales=(scale,))
    image = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    covered = np.zeros((40, 60), dtype=bool)
    for view in views.parts:
        cut, box = view.cut(image), view.box(40, 60)
        assert cut.shape == (round(40 / scale), round(60 / scale), 3)
        np.testing.assert_array_equal(cut[:40, :60], image[box])
        assert (cut[40:] == 128).all() and (cut[:, 60:] == 128).all()
        covered[box] = True
    assert covered.all() and len(views.parts) == parts
    assert views.is_single == (scale == 1)


def test_the_model_sees_another_scale(loaded):
    """A square has other sides in what the model gets, with the sliding window and without."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:16, :16] = 255
    for inputs in ({"sliding_window": True}, {"sliding_window": False}):
        for scale in evaluate_benchmarks.TTA_SCALES:
            views = loaded[1](images=Image.fromarray(View(scale).cut(image)), **inputs)
            for pixels in views.values():
                bright = (pixels[0, 0, 0] > 1).float().mean().item()
                assert bright == pytest.approx(0.25 * scale, abs=1.5 / pixels.shape[-1])


def test_report(roots, checkpoint, tmp_path):
    """Of a published benchmark and of one's own, in one run."""
    own = tmp_path / "mine.json"
    description = {"name": "mine", "vocabulary": ["wall", "bed", "flag"], "label_map": {"0": 255, "1": 0, "8": 1}}
    description["label_map"] |= {"150": 2}
    folder = "ADEChallengeData2016/{}/validation"
    description |= {"images": folder.format("images"), "labels": folder.format("annotations")}
    own.write_text(json.dumps(description))
    output = tmp_path / "out"
    arguments = ["--model", checkpoint, "--data_root", roots["ade20k_150"], "--output_dir", output]
    assert run(*arguments, "--benchmarks", "ade20k_150", own, "--no-sliding_window") == 0
    results = results_in(output)
    assert list(results) == ["ade20k_150", "mine"] and results["mine"]["num_images_expected"] == 3
    for name in results:
        files = {path.name for path in (output / name).iterdir()}
        expected = {"all_results.json", "per_class_iou.csv", "per_class_iou.json", "per_class_iou.png"}
        expected |= {"confusions.png", "best_images.png", "worst_images.png", "images.parquet", "tally"}
        assert files == expected
    rows = list(csv.DictReader((output / "results.csv").open()))
    assert [row["benchmark"] for row in rows] == ["ADE20K-150", "mine"]
    assert rows[0]["paper, ViT-B/16"] == "31.8" and rows[1]["paper, ViT-L/14"] == ""
    assert float(rows[1]["mIoU, classes in the labels"]) == 100 * results["mine"]["mean_iou_present"]
    table = (output / "results.md").read_text()
    assert "| ADE20K-150 |" in table and "| 3 of 2,000 | 31.8 | 37.9 |" in table and "detectron2" in table
    images = pq.read_table(output / "mine" / "images.parquet").to_pandas()
    assert images["name"].tolist() == sorted(stored_maps("ade20k_150"))
    assert images["num_pixels"].sum() == results["mine"]["num_pixels"]
    weighted = (images["overall_accuracy"] * images["num_pixels"]).sum() / images["num_pixels"].sum()
    assert weighted == pytest.approx(results["mine"]["overall_accuracy"])


def test_best_and_worst_images():
    rows = [
        {"index": index, "num_pixels": pixels, "mean_iou_present": score}
        for index, (pixels, score) in enumerate([(9, 0.5), (9, 0.9), (0, float("nan")), (9, 0.5), (9, 0.1)])
    ]
    assert evaluation._by_score([*rows, {"index": 5, "problem": "damaged"}]) == [1, 0, 3, 4]


def test_confused_classes():
    matrix = np.diag([50] * 6)
    matrix[4, 1], matrix[1, 4], matrix[0, 4], matrix[3, 2] = 9, 2, 8, 1
    assert confused_classes(matrix, max_classes=2) == [1, 4]
    assert confused_classes(matrix, max_classes=3) == [0, 1, 4]
    assert confused_classes(matrix) == [0, 1, 2, 3, 4]
    assert confused_classes(np.diag([1, 2])) == []


def test_model_card(roots, checkpoint, tmp_path, without_report):
    """Results are metadata beside those that the card has; the second time they take the place of the first."""
    model = shutil.copytree(checkpoint, tmp_path / "model")
    (model / "README.md").write_text(
        "---\nlicense: mit\nmodel-index:\n- name: mine\n  results:\n  - task: {type: image-segmentation}\n"
        "    dataset: {type: other, name: Other}\n    metrics: [{type: mean_iou, value: 0.5}]\n---\n\n# Mine\n"
    )
    for attempt in ("first", "second"):
        arguments = ["--model", model, "--data_root", roots["ade20k_150"], "--output_dir", tmp_path / attempt]
        arguments += ["--benchmarks", "ade20k_150", "--no-sliding_window", "--write_model_card"]
        assert run(*arguments) == 0
    result = results_in(tmp_path / "second")["ade20k_150"]
    card = ModelCard((model / "README.md").read_text())
    assert (tmp_path / "second" / "README.md").read_text() == str(card)
    assert card.data.license == "mit" and card.text.count("# Mine") == 1 and card.text.count("| ADE20K-150 |") == 1
    found = {(each.dataset_type, each.metric_type): each for each in card.data.eval_results}
    assert len(found) == len(card.data.eval_results) == 4
    assert found["other", "mean_iou"].metric_value == 0.5
    assert found["ade20k_150", "mean_iou_present"].metric_value == result["mean_iou_present"]
    assert found["ade20k_150", "mean_iou"].metric_name == "mIoU of the classes in labels or predictions"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "one of --model and --from_predictions"),
        (["--model", "x", "--from_predictions", "y"], "one of --model and --from_predictions"),
        (["--from_predictions", "y", "--tta"], "need --model"),
        (["--from_predictions", "y", "--upsampling", "guided"], "need --model"),
        (["--model", "x", "--upsampling", "cubic"], "'cubic'"),
        (["--model", "x", "--batch_size", "0"], "--batch_size"),
    ],
)
def test_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run("--benchmarks", "ade20k_150", "--data_root", "d", "--output_dir", "o", *arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--benchmarks", "ade", "--model", "x"], "no benchmark 'ade'"),
        (["--benchmarks", "ade20k_150", "--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--benchmarks", "ade20k_150", "coco_stuff", "--model", "x"], "coco_stuff"),
        (["--benchmarks", "ade20k_150", "--from_predictions", "nowhere"], "nowhere"),
    ],
)
def test_refusals_before_anything_is_written(arguments, message, roots, tmp_path, capsys):
    assert run("--data_root", roots["ade20k_150"], "--output_dir", tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()

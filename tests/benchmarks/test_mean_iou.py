"""The metric against a literal computation of evaluate's definition."""

import doctest
import json
import math
import socket
import subprocess
import sys
import tracemalloc

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import ROOT


METRIC = ROOT / "training" / "metrics" / "mean_iou"
MeanIou = type(evaluate.load(str(METRIC)))
MEANS = ("mean_iou", "mean_iou_present", "mean_accuracy", "overall_accuracy")
ARRAYS = ("per_category_iou", "per_category_accuracy")


def brute_force(predictions, references, num_labels, ignore_index):
    """evaluate's definition, class by class: areas over all pixels that count, means over what is defined."""
    predictions, references = (np.concatenate([np.ravel(ids) for ids in maps]) for maps in (predictions, references))
    counted = references != ignore_index
    predictions, references = predictions[counted], references[counted]
    iou, accuracy, present = [], [], []
    for index in range(num_labels):
        predicted, labelled = predictions == index, references == index
        intersection, union = (predicted & labelled).sum(), (predicted | labelled).sum()
        iou.append(intersection / union if union else math.nan)
        accuracy.append(intersection / labelled.sum() if labelled.any() else math.nan)
        present.append(labelled.any())

    def mean(values):
        values = [value for value in values if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan

    return {
        "mean_iou": mean(iou),
        "mean_iou_present": mean([value for value, is_present in zip(iou, present, strict=True) if is_present]),
        "mean_accuracy": mean(accuracy),
        "overall_accuracy": (predictions == references).mean() if references.size else math.nan,
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


def assert_same(results, expected):
    assert set(results) == set(expected) == {*MEANS, *ARRAYS}
    for key, value in expected.items():
        np.testing.assert_allclose(results[key], value, rtol=1e-12, err_msg=key)
    assert all(type(results[key]) is float for key in MEANS)
    assert all(results[key].dtype == np.float64 for key in ARRAYS)


def random_maps(generator, num_labels, ignore_index, dtype, num_images=4):
    """Predictions and labels of different sizes that have a part of the classes each, most of them in common."""
    classes = generator.permutation([index for index in range(num_labels) if index != ignore_index])
    num_labelled = max(1, 2 * len(classes) // 3)
    labelled, predicted = classes[:num_labelled], classes[num_labelled // 4 :]
    predictions, references = [], []
    for _ in range(num_images):
        size = generator.integers(1, 40, 2)
        reference = generator.choice(labelled, size)
        is_right = (generator.random(size) < 0.6) & np.isin(reference, predicted)
        predictions.append(np.where(is_right, reference, generator.choice(predicted, size)))
        if ignore_index is not None:
            reference[generator.random(size) < 0.2] = ignore_index
        references.append(reference.astype(dtype))
    return predictions, references


@pytest.fixture
def load(tmp_path):
    def load(**arguments):
        return evaluate.load(str(METRIC), cache_dir=str(tmp_path), **arguments)

    return load


@pytest.mark.parametrize(
    "num_labels, ignore_index, dtype",
    [
        (1, 255, np.uint8),
        (5, 255, np.uint8),
        (171, 255, np.int64),
        (255, 255, np.uint8),
        (459, 459, np.uint16),  # 255 is a class
        (847, 65535, np.uint16),
        (847, None, np.int32),
        (5, 0, np.uint8),  # a class that does not count
        (5, -100, np.int64),
    ],
)
def test_definition(load, num_labels, ignore_index, dtype):
    generator = np.random.default_rng(num_labels)
    metric, told = load(), load(num_labels=num_labels, ignore_index=ignore_index)
    for _ in range(3):
        predictions, references = random_maps(generator, num_labels, ignore_index, dtype)
        expected = brute_force(predictions, references, num_labels, ignore_index)
        metric.add_batch(predictions=predictions, references=references)
        assert_same(metric.compute(num_labels=num_labels, ignore_index=ignore_index), expected)
        for prediction, reference in zip(predictions, references, strict=True):
            told.add(prediction=prediction, reference=reference)
        matrix = told.confusion_matrix()
        assert_same(told.scores(matrix), expected)
        assert_same(told.compute(), expected)
        assert matrix.sum() == sum((reference != ignore_index).sum() for reference in references)


def test_the_example_of_evaluate(load):
    """What the documentation of evaluate's metric shows; some predictions are ignored together with their labels."""
    predictions = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    references = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    for metric in (load(), load(num_labels=10, ignore_index=255)):
        results = metric.compute(predictions=predictions, references=references, num_labels=10, ignore_index=255)
        assert results["mean_iou"] == pytest.approx(0.4775) and results["mean_accuracy"] == pytest.approx(0.591666667)
        assert results["overall_accuracy"] == pytest.approx(0.526315789)
        np.testing.assert_allclose(results["per_category_iou"], [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1])


def test_255_is_a_class_if_something_else_is_ignored(load):
    labels = np.array([[255, 255, 65535, 254]], dtype=np.uint16)
    metric = load(num_labels=847, ignore_index=65535)
    results = metric.compute(predictions=[[[255, 3, 255, 254]]], references=[labels])
    assert results["per_category_iou"][[254, 255, 3]].tolist() == [1, 0.5, 0]
    assert results["mean_iou"] == 0.5 and results["mean_iou_present"] == 0.75
    assert results["overall_accuracy"] == pytest.approx(2 / 3)


def test_all_ignored(load, recwarn):
    labels = np.full((3, 4), 255, dtype=np.uint8)
    results = load().compute(predictions=[np.zeros((3, 4), int)], references=[labels], num_labels=2, ignore_index=255)
    assert all(math.isnan(results[key]) for key in MEANS) and all(np.isnan(results[key]).all() for key in ARRAYS)
    metric = load(num_labels=2, ignore_index=255)
    metric.add(prediction=np.zeros((3, 4), int), reference=labels)
    assert not metric.confusion_matrix().any()
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]


KINDS = {
    "uint8": lambda ids: ids.astype(np.uint8),
    "uint16": lambda ids: ids.astype(np.uint16),
    "int32": lambda ids: ids.astype(np.int32),
    "uint64": lambda ids: ids.astype(np.uint64),
    "strided": lambda ids: np.repeat(ids, 2, axis=1)[:, ::2],
    "transposed": lambda ids: np.asfortranarray(ids),
    "lists": lambda ids: ids.tolist(),
    "torch": torch.from_numpy,
    "torch uint8": lambda ids: torch.from_numpy(ids).byte(),
    "PIL": lambda ids: Image.fromarray(ids.astype(np.uint8)),
    "PIL 16 bit": lambda ids: Image.fromarray(ids.astype(np.uint16)),
    "PIL 32 bit": lambda ids: Image.fromarray(ids.astype(np.int32)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_images(kind):
    (prediction,), (reference,) = random_maps(np.random.default_rng(0), 5, 255, np.int64, num_images=1)
    metric = MeanIou(num_labels=5, ignore_index=255)
    metric.add(prediction=KINDS[kind](prediction), reference=KINDS[kind](reference))
    expected = brute_force([prediction], [reference], 5, 255)
    assert_same(metric.compute(), expected)
    assert reference.max() == 255  # what is given stays as it is


def test_masks_of_two_classes():
    metric = MeanIou(num_labels=2)
    metric.add(prediction=np.array([True, False]), reference=torch.tensor([True, True]))
    assert metric.compute()["per_category_iou"].tolist() == [0, 0.5]


def test_where_arguments_are_given(load):
    predictions, references = random_maps(np.random.default_rng(1), 7, 255, np.uint8)
    expected = brute_force(predictions, references, 7, 255)
    at_load, at_compute, mixed = load(num_labels=7, ignore_index=255), load(), load(num_labels=5, ignore_index=None)
    for metric in (at_load, at_compute, mixed):
        for prediction, reference in zip(predictions, references, strict=True):
            metric.add(prediction=prediction, reference=reference)
    assert_same(at_load.compute(), expected)
    assert_same(at_compute.compute(num_labels=7, ignore_index=255), expected)
    assert_same(mixed.compute(num_labels=7, ignore_index=255), expected)
    assert_same(at_load.compute(predictions=predictions, references=references), expected)
    at_load.add(prediction=predictions[0], reference=references[0])
    assert_same(at_load.compute(predictions=predictions[1:], references=references[1:]), expected)


def test_empty_after_compute():
    metric = MeanIou(num_labels=2)
    metric.add(prediction=[[0]], reference=[[1]])
    assert metric.compute()["overall_accuracy"] == 0
    metric.add(prediction=[[0]], reference=[[0]])
    assert metric.compute()["overall_accuracy"] == 1
    with pytest.raises(ValueError, match="nothing to compute"):
        metric.compute()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "`num_labels`.*got None"),
        ({"num_labels": 0}, "`num_labels`.*got 0"),
        ({"num_labels": 3.0}, r"`num_labels`.*got 3\.0"),
        ({"num_labels": 3, "ignore_index": "255"}, "`ignore_index`.*got '255'"),
        (
            {"num_labels": 3, "ignore_index": 255},
            r"label has the id 3; 0 to 2 are accepted \(`num_labels` is 3\)",
        ),
        ({"num_labels": 4}, "label has the id 255; .* is None"),
        (
            {"num_labels": 4, "ignore_index": 255, "predictions": [[[4]]], "references": [[[0]]]},
            "prediction has the id 4; 0 to 3 are accepted",
        ),
        ({"num_labels": 4, "ignore_index": 255, "predictions": [[[0]], [[1]]], "references": [[[0]]]}, "as many"),
        ({"num_labels": 4, "ignore_index": 255, "predictions": [[[0]]]}, "both"),
    ],
)
def test_errors_in_compute_lose_nothing(arguments, message):
    metric = MeanIou()
    metric.add(prediction=[[0, 1, 2, 3]], reference=[[0, 3, 255, 1]])
    with pytest.raises(ValueError, match=message):
        metric.compute(**arguments)
    assert metric.compute(num_labels=4, ignore_index=255)["overall_accuracy"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "prediction, reference, message",
    [
        ([[0, 1]], [[0], [1]], r"\(1, 2\).*\(2, 1\)"),
        ([[0, 1]], [[0, 2]], "label has the id 2; 0 to 1 are accepted .* 255.*`reduce_labels`"),
        ([[0, 1]], [[0, -1]], "label has the id -1"),
        ([[0, 2]], [[0, 1]], "prediction has the id 2; 0 to 1 are accepted"),
        ([[0, -1]], [[0, 1]], "prediction has the id -1"),
        ([[0, 255]], [[0, 1]], "prediction has the id 255"),
        ([[0, 1]], [[0, 70000]], "label has the id 70000"),
        ([[0, -(2**40)]], [[0, 1]], "prediction has the id -1099511627776"),
        ([[0.0, 1.0]], [[0, 1]], "prediction must hold class ids.*float64.*arg max"),
        (torch.zeros(1, 2, dtype=torch.float16), [[0, 1]], "prediction must hold class ids.*float16"),
        ([[0, 1], [1]], [[0, 1], [1, 0]], "inhomogeneous"),
        (None, [[0, 1]], "prediction must hold"),
    ],
)
def test_bad_images_are_not_counted(prediction, reference, message):
    good = np.array([[0, 1]])
    metric = MeanIou(num_labels=2, ignore_index=255)
    metric.add(prediction=good, reference=good)
    with pytest.raises(ValueError, match=message):
        metric.add(prediction=prediction, reference=reference)
    with pytest.raises(ValueError, match=message):
        metric.add_batch(predictions=[good, prediction], references=[good, reference])
    assert metric.confusion_matrix().tolist() == [[1, 0], [0, 1]]
    assert metric.compute()["overall_accuracy"] == 1


def test_ids_that_are_no_classes_take_no_memory():
    noise = np.arange(20_000)
    metric = MeanIou(num_labels=2, ignore_index=-100)
    metric.add(prediction=[1, -1], reference=[0, -100])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 8192 different ids"):
            metric.add_batch(predictions=[[0], noise], references=[[0], noise])
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert metric.confusion_matrix().tolist() == [[0, 1], [0, 0]]


def test_ids_beyond_the_small_ones():
    """Large and negative ids, not the same in all images."""
    predictions, references = [[2000, 1500], [1024, 0], [-1, 1500]], [[1500, -7], [1024, 1023], [-7, 1500]]
    metric = MeanIou()
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    matrix = metric.confusion_matrix(num_labels=2001, ignore_index=-7)
    assert {(1500, 2000): 1, (1024, 1024): 1, (1023, 0): 1, (1500, 1500): 1} == {
        (label, prediction): matrix[label, prediction] for label, prediction in np.argwhere(matrix).tolist()
    }
    with pytest.raises(ValueError, match="label has the id -7"):
        metric.compute(num_labels=2001)


def test_unknown_inputs_are_refused():
    with pytest.raises(TypeError, match="masks"):
        MeanIou().add_batch(predictions=[[[0]]], references=[[[0]]], masks=[[[0]]])
    with pytest.raises(ValueError, match="both"):
        MeanIou().add_batch(predictions=[[[0]]])
    with pytest.raises(ValueError, match="got -1"):
        MeanIou(num_labels=-1)
    with pytest.raises(ValueError, match="got 0"):
        MeanIou(num_labels=0)
    with pytest.raises(TypeError, match="num_classes"):
        MeanIou().compute(predictions=[[[0]]], references=[[[0]]], num_classes=1)


def test_nan_to_num(load):
    results = load().compute(predictions=[[[0]]], references=[[[0]]], num_labels=3, nan_to_num=0)
    assert results["mean_iou"] == 1 and results["per_category_iou"].tolist() == [1, 0, 0]


@pytest.mark.parametrize("ignore_index", [255, 65535])
def test_reduce_labels(load, ignore_index):
    """0 is the background; 255 is class 254 unless it is ignored, which stays so."""
    reference = np.array([[0, 1, 2, 255, ignore_index]], dtype=np.uint16)
    prediction = np.array([[0, 0, 0, 254, 1]])
    reduced = np.array([[ignore_index, 0, 1, 254 if ignore_index == 65535 else 255, ignore_index]])
    expected = brute_force([prediction], [reduced], 300, ignore_index)
    results = load().compute(
        predictions=[prediction], references=[reference], num_labels=300, ignore_index=ignore_index, reduce_labels=True
    )
    assert_same(results, expected)
    results = load().compute(predictions=[[[1, 0]]], references=[[[0, 1]]], num_labels=1, reduce_labels=True)
    assert results["overall_accuracy"] == 1


def test_combine(load):
    combined = evaluate.combine([load(), load(num_labels=2)], force_prefix=True)
    combined.add(prediction=[[0, 1]], reference=[[0, 0]])
    combined.add_batch(predictions=[[[0]]], references=[[[0]]])
    results = combined.compute(num_labels=2)
    assert results["mean_iou_0_overall_accuracy"] == results["mean_iou_1_overall_accuracy"] == pytest.approx(2 / 3)


images = st.lists(
    st.integers(1, 30).flatmap(
        lambda size: st.tuples(
            st.lists(st.sampled_from([0, 1, 2, 5]), min_size=size, max_size=size),
            st.lists(st.sampled_from([0, 1, 3, 5, 65535]), min_size=size, max_size=size),
        )
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=50)
@given(images=images, data=st.data())
def test_order_batches_and_processes_do_not_matter(images, data):
    expected = brute_force(*map(list, zip(*[map(np.array, image) for image in images], strict=True)), 6, 65535)
    images = data.draw(st.permutations(images))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(images)), max_size=3)))
    parts = [images[start:end] for start, end in zip([0, *cuts], [*cuts, len(images)], strict=True)]
    metric, matrices = MeanIou(), []
    for part in parts:
        inputs = {"predictions": [prediction for prediction, _ in part], "references": [label for _, label in part]}
        of_part = MeanIou(num_labels=6, ignore_index=65535)
        for each in (metric, of_part):
            each.add_batch(**inputs)
        matrices.append(of_part.confusion_matrix())
    assert_same(metric.compute(num_labels=6, ignore_index=65535), expected)
    assert_same(metric.scores(sum(matrices)), expected)


def test_processes_add_their_matrices(load):
    """Each has a metric of its own; several in one are refused."""
    predictions, references = random_maps(np.random.default_rng(0), 5, 255, np.uint8)
    matrices = []
    for prediction, reference in zip(predictions, references, strict=True):
        metric = load(num_labels=5, ignore_index=255)
        metric.add(prediction=prediction, reference=reference)
        matrices.append(metric.confusion_matrix())
    assert_same(metric.scores(sum(matrices)), brute_force(predictions, references, 5, 255))
    with pytest.raises(ValueError, match="without `num_process`.*`confusion_matrix"):
        load(num_process=2, process_id=1)


def test_loads_offline(load, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load(num_labels=1).compute(predictions=[[[0]]], references=[[[0]]])["mean_iou"] == 1


def test_memory_does_not_grow():
    generator = np.random.default_rng(0)
    different = [random_maps(generator, 171, 255, np.uint8, num_images=1) for _ in range(5)]
    metric = MeanIou()

    def peak(count):
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        for index in range(count):
            metric.add_batch(predictions=different[index % 5][0], references=different[index % 5][1])
        return tracemalloc.get_traced_memory()[1] - before

    peak(5)
    tracemalloc.start()
    try:
        first, later = peak(20), peak(500)
    finally:
        tracemalloc.stop()
    assert later < first + 10_000


def test_card():
    results = doctest.testfile(str(METRIC / "README.md"), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert results.attempted >= 6 and results.failed == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path):
    file = tmp_path / "result.json"
    subprocess.run([sys.executable, ROOT / "benchmarks" / "mean_iou.py", "--json", file], check=True)
    result = json.loads(file.read_text())
    assert result["max_abs_difference"] < 1e-12
    assert result["peak_memory_mb_of_ten_times_as_many"] < 30 < result["reference_peak_memory_mb"]

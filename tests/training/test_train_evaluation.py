"""Evaluation during and after training: every image once, at its own size."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from catseg_testing.tiny_training import CLASSES, save_checkpoint, write_pairs
from catseg_training import evaluation, inference, metric
from catseg_training.data.examples import EvaluationImages
from catseg_training.data.sources import load_segmentation_data
from catseg_training.evaluation import evaluate_model
from catseg_training.inference import Share, load_batches, segment_images
from catseg_training.metric import load_metric
from catseg_training.model import load_checkpoint
from catseg_training.views import Views


NUM_LABELS = len(CLASSES)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> EvaluationImages:
    folder = write_pairs(tmp_path_factory.mktemp("data"), num_train=0, num_validation=5)
    return EvaluationImages(load_segmentation_data(folder, "validation"), NUM_LABELS)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_checkpoint(str(save_checkpoint(tmp_path_factory.mktemp("checkpoint"))))


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def evaluated(loaded, images, accelerator, **options):
    model, processor = loaded
    settings = {"num_labels": NUM_LABELS, "ignore_index": 255, "sliding_window": True} | options
    return evaluate_model(model, processor, images, accelerator, **settings)


@pytest.mark.parametrize("sliding_window, batch_size", [(True, 2), (False, 1), (False, 7)])
def test_scores(sliding_window, batch_size, loaded, images, accelerator):
    """They are those of one image after the other, segmented as a user does."""
    model, processor = loaded
    expected = load_metric(NUM_LABELS, 255)
    predictions = []
    for index in range(len(images)):
        example = images[index]
        inputs = processor(images=example["image"].copy(), sliding_window=sliding_window)
        with torch.inference_mode():
            outputs = model.eval()(**inputs, sliding_window=sliding_window)
        (prediction,) = processor.post_process_semantic_segmentation(outputs, [example["label"].shape])
        expected.add(prediction=prediction, reference=example["label"])
        predictions.append(prediction.numpy())
    result = evaluated(loaded, images, accelerator, sliding_window=sliding_window, batch_size=batch_size)
    assert result.num_examples == 5 and result.scores["mean_iou"] > 0
    for name, value in expected.compute().items():
        np.testing.assert_allclose(result.scores[name], value, rtol=1e-3, err_msg=name)
    assert [example["name"] for example in result.examples] == [images[index]["name"] for index in range(4)]
    for example, prediction in zip(result.examples, predictions, strict=False):
        assert (example["prediction"] == prediction).mean() > 0.999


@pytest.mark.parametrize("world_size, batch_size", [(2, 1), (2, 2), (3, 1), (4, 2), (7, 1)])
def test_shared_by_processes(world_size, batch_size, loaded, images):
    """Every image counts in one process, and all run the model as often."""
    counted, num_batches = [], set()
    for rank in range(world_size):
        batches = list(load_batches(images, Share(rank, world_size), batch_size, num_workers=0, prepare=len))
        num_batches.add(tuple(number for number, _ in batches))
        counted += [example["name"] for _, examples in batches for example in examples]
    assert len(num_batches) == 1
    assert sorted(counted) == sorted(images[index]["name"] for index in range(len(images)))


@pytest.mark.parametrize("flip", [False, True])
def test_arg_max_beside_the_model(flip, loaded, images, monkeypatch):
    """An image's classes are found while the model is at the next image, by one thread: no second team of them."""
    model, processor = loaded
    changed, num_calls, is_ahead, num_threads = threading.Condition(), [0], [], []

    def begin(*arguments):
        with changed:
            num_calls[0] += 1
            changed.notify()

    def arg_max(*arguments, original=inference._most_probable_class):
        following = min(len(is_ahead) + 1, len(images) - 1)
        with changed:
            is_ahead.append(changed.wait_for(lambda: num_calls[0] > following * (1 + flip), timeout=20))
        num_threads.append(torch.get_num_threads())
        return original(*arguments)

    monkeypatch.setattr(inference, "_most_probable_class", arg_max)
    monkeypatch.setattr(inference, "available_cpus", lambda: 3)
    hook, threads_before = model.register_forward_pre_hook(begin), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        views = Views(sliding_window=False, flip=flip)
        segmented = list(segment_images(model.eval(), processor, images, torch.device("cpu"), views=views))
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as thread:  # one that was started later
            assert thread.submit(torch.get_num_threads).result() == 2
    finally:
        hook.remove()
        torch.set_num_threads(threads_before)
    assert is_ahead == [True] * len(images) and num_threads == [1] * len(images)
    assert [example["name"] for (example,) in segmented] == [images[index]["name"] for index in range(len(images))]


def test_no_core_for_the_arg_max(loaded, images, monkeypatch):
    """Where the model uses all cores, classes are found in its own thread, with all cores as well."""
    model, processor = loaded
    threads = []
    original = inference._most_probable_class
    monkeypatch.setattr(
        inference, "_most_probable_class", lambda *args: threads.append(threading.get_ident()) or original(*args)
    )
    monkeypatch.setattr(inference, "available_cpus", torch.get_num_threads)
    list(segment_images(model.eval(), processor, images, torch.device("cpu"), views=Views(False)))
    assert set(threads) == {threading.get_ident()}


@pytest.mark.parametrize("training", [True, False])
def test_stopped(training, loaded, images, accelerator):
    answers = iter([False, False, True])
    loaded[0].train(training)
    assert evaluated(loaded, images, accelerator, stop=lambda: next(answers)) is None
    assert loaded[0].training == training


def test_another_package_called_metrics(monkeypatch):
    """The metric is found whatever is installed under the name of its parent folder."""
    for name in [name for name in sys.modules if name.startswith("metrics.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "metrics", ModuleType("metrics"))
    for module in (metric, evaluation):
        spec = spec_from_file_location(module.__name__, module.__file__)
        again = module_from_spec(spec)
        spec.loader.exec_module(again)
    assert again.load_metric(2, 255).confusion_matrix().shape == (2, 2)

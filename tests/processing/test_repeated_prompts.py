"""Labels whose prompts are the same: whoever gives them is told, once."""

import random
from collections import Counter

import pytest
import torch
import torch.distributed
from PIL import Image

from catseg_app.labels import format_labels, parse_labels
from catseg_hf import VOCABULARIES, CATSegProcessor, cli, load_vocabulary
from catseg_hf.loading import load_segmenter
from catseg_hf.repeated_prompts_catseg import REPEATED_BY_PROTOCOL, logger, repeated_prompts
from catseg_hf.video import FrameSegmenter
from catseg_training.benchmarks.description import Benchmark
from catseg_training.benchmarks.predictors import ModelPredictor
from catseg_training.model import set_classes
from catseg_training.views import Views
from conftest import FIXTURES


PICTURE = FIXTURES / "picture.png"
LABELS = ["sky", "snow", "balloon", "Snow"]
WARNING = "Labels have the same prompt: 'snow' and 'Snow'. Only the first"


@pytest.fixture(autouse=True)
def nothing_was_said():
    logger.warning_once.cache_clear()


@pytest.fixture(scope="module")
def segmenter(small_checkpoint):
    return load_segmenter(str(small_checkpoint), device="cpu")


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        (["snow", "Snow"], [["snow", "Snow"]]),
        (["SNOW", "ice", "snow"], [["SNOW", "snow"]]),
        (["snow", "snow "], [["snow", "snow "]]),
        (["fire engine", "fire  engine", "fire\tengine"], [["fire engine", "fire  engine", "fire\tengine"]]),
        (["tree, oak", "tree, pine", "tree"], [["tree, oak", "tree, pine", "tree"]]),
        (["caf\u00e9", "cafe\u0301"], [["caf\u00e9", "cafe\u0301"]]),
        (["a", "b", "A", "c", "B"], [["a", "A"], ["b", "B"]]),
        (["pot", "Pot", "pot, flowerpot"], [["pot", "Pot", "pot, flowerpot"]]),
        (["pot", "pot, flowerpot"], []),
        (["snow", "snowy", "snow man"], []),
        (["oak, tree", "pine, tree"], []),
    ],
)
@pytest.mark.parametrize("templates", [None, ["a {}", "the {} here"]])
def test_labels_with_the_same_prompts(labels, groups, templates, processor):
    processor = CATSegProcessor(processor.image_processor, processor.tokenizer, templates)
    assert repeated_prompts(labels, processor.encode_vocabulary(labels)) == groups
    assert repeated_prompts(labels, processor(text=labels).input_ids) == groups


def through_the_processor(labels, processor, segmenter, folder):
    processor(text=labels)
    processor.encode_vocabulary(labels, padding="max_length")


def through_the_model(labels, processor, segmenter, folder):
    words = [label.casefold() for label in labels]
    input_ids = torch.tensor([[510, words.index(word), 511] for word in words])
    segmenter.model.set_vocabulary(labels, input_ids)


def through_a_saved_vocabulary(labels, processor, segmenter, folder):
    segmenter.model.set_vocabulary(labels, processor(text=labels).input_ids)


def through_the_pipeline(labels, processor, segmenter, folder):
    for count in (1, 3):
        list(segmenter([PICTURE] * count, candidate_labels=labels, sliding_window=False))


def through_a_string(labels, processor, segmenter, folder):
    segmenter(PICTURE, candidate_labels=", ".join(labels))


def through_a_video(labels, processor, segmenter, folder):
    segment_frame = FrameSegmenter(segmenter, labels, sliding_window=False)
    for time in (0.0, 0.1):
        segment_frame(Image.open(PICTURE).convert("RGB"), time)


def through_the_command(labels, processor, segmenter, folder):
    images = [str(PICTURE)] * 3
    assert cli.main(["segment", *images, "--labels", ", ".join(labels), f"--output={folder / 'output'}"]) == 0


def through_training(labels, processor, segmenter, folder):
    set_classes(segmenter.model, processor, labels, None)


def through_the_evaluation(labels, processor, segmenter, folder):
    predictor = ModelPredictor(segmenter.model, processor, "", torch.device("cpu"), "no", Views(False), 1, 0)
    predictor.prepare(Benchmark("mine", tuple(labels), ("images",), ("labels",), 255, {}))


WAYS = [value for name, value in globals().items() if name.startswith("through_")]


@pytest.fixture
def say(processor, segmenter, tmp_path, caplog, monkeypatch):
    """What is logged about labels that are given in some way."""
    own = list(segmenter.model.config.label_names)
    monkeypatch.setattr("catseg_hf.loading.load_segmenter", lambda *args, **kwargs: segmenter)

    def say(way, labels) -> list[str]:
        way(labels, processor, segmenter, tmp_path)
        return [record.message for record in caplog.records if "same prompt" in record.message]

    yield say
    segmenter.model.set_vocabulary(own, processor(text=own).input_ids)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_says_it_once(way, say):
    (message,) = say(way, LABELS)
    assert message.startswith(WARNING)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_other_labels_are_no_news(way, say):
    assert say(way, ["sky", "snow", "balloon", "snowy"]) == []


def test_other_labels_are_said_as_well(say):
    say(through_the_processor, LABELS)
    assert len(say(through_the_processor, ["sky", "Sky"])) == 2


@pytest.mark.parametrize(("rank", "count"), [(0, 1), (1, 0)])
def test_the_first_of_several_processes_says_it(rank, count, say, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    assert len(say(through_the_processor, LABELS)) == count


def test_many_are_counted(say):
    labels = [word for index in range(8) for word in (f"word {index}", f"Word {index}")]
    (message,) = say(through_the_processor, labels)
    assert "'word 4' and 'Word 4'; and 3 more such groups." in message and "word 5" not in message


@pytest.mark.parametrize("name", VOCABULARIES)
def test_shipped_vocabularies_are_silent(name, say):
    labels = load_vocabulary(name)
    for way in (through_the_processor, through_a_saved_vocabulary, through_training, through_the_evaluation):
        assert say(way, labels) == []
    assert say(through_the_processor, random.Random(0).sample(labels, len(labels))) == []
    assert say(through_the_processor, parse_labels(format_labels(labels))) == []


def test_what_the_protocol_repeats():
    expected = set()
    for name in VOCABULARIES:
        labels = load_vocabulary(name)
        names = [label.split(",")[0].strip() for label in labels]
        expected |= {label for label, name in zip(labels, names, strict=True) if Counter(names)[name] > 1}
    assert expected == REPEATED_BY_PROTOCOL

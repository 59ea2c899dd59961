import json
from pathlib import Path

import pytest

import catseg_hf
from catseg_hf import VOCABULARIES, CATSegConfig, load_vocabulary


SIZES = {
    "coco_stuff_171": 171,
    "ade20k_150": 150,
    "ade20k_847": 847,
    "pascal_context_59": 59,
    "pascal_context_459": 459,
    "pascal_voc_20": 20,
    "pascal_voc_20b": 59,
}
FILES = [name for name in SIZES if name != "coco_stuff_171"]  # whose names are code, beside the configuration's


def test_names():
    assert sorted(VOCABULARIES) == sorted(SIZES)
    files = Path(catseg_hf.__file__).with_name("vocabularies").glob("*.json")
    assert sorted(path.name for path in files) == sorted(f"{name}.json" for name in FILES)


@pytest.mark.parametrize("name", SIZES)
def test_vocabulary(name, processor):
    labels = load_vocabulary(name)
    assert len(labels) == SIZES[name] == len(set(labels))
    assert processor.encode_vocabulary(labels).shape[:2] == (SIZES[name], 1)
    labels.append("changed")
    assert len(load_vocabulary(name)) == SIZES[name]


@pytest.mark.parametrize("name", FILES)
def test_files_are_in_the_hubs_form(name):
    text = Path(catseg_hf.__file__).with_name("vocabularies").joinpath(f"{name}.json").read_text()
    assert json.loads(text) == {str(index): label for index, label in enumerate(load_vocabulary(name))}


@pytest.mark.parametrize(
    ("name", "index", "label"),
    [
        ("coco_stuff_171", 170, "wood"),
        ("ade20k_150", 1, "building"),
        ("ade20k_847", 11, "person, individual, someone, somebody, mortal, soul"),
        # Prompts depend on the spelling, so that the published one stays.
        ("ade20k_150", 7, "bed "),
        ("pascal_context_59", 58, "wood"),
        ("pascal_context_459", 2, "airconditioner"),
        ("pascal_voc_20", 10, "diningtable"),
        ("pascal_voc_20b", 20, "bag"),
    ],
)
def test_spelling_and_order(name, index, label):
    assert load_vocabulary(name)[index] == label


def test_vocabularies_agree():
    assert load_vocabulary("coco_stuff_171") == list(CATSegConfig().id2label.values())
    assert load_vocabulary("pascal_voc_20b")[:20] == load_vocabulary("pascal_voc_20")


@pytest.mark.parametrize("name", ["coco", "../pascal_voc_20", "", None])
def test_unknown_name(name):
    with pytest.raises(ValueError, match="pascal_voc_20b"):
        load_vocabulary(name)

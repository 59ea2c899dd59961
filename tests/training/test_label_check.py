"""Labels that cannot be meant are found before a run."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from catseg_hf.errors import UserError
from catseg_testing.tiny_training import CLASSES, QUICK, run_train, save_checkpoint, write_pairs
from catseg_training.data.label_check import MAX_LABELS, check_labels


def rows(*values: int, count: int = 1, **constants) -> list[dict]:
    """Rows without an image that could be decoded: it is not needed."""
    file = io.BytesIO()
    Image.fromarray(np.array([values], np.uint8)).save(file, format="PNG")
    row = {"label": {"bytes": file.getvalue(), "path": None}, "label_ids": "contiguous", "reduce_labels": False}
    return [{**row, **constants, "image": None, "name": f"row {index} of train"} for index in range(count)]


UNUSABLE = {
    "masks": (rows(0, 0, 255), r"ids 0 and 255, and 255 is ignored.*class ids themselves, 0 and 1.*--reduce_labels"),
    "masks, each of one id": (rows(0) + rows(255), r"ids 0 and 255, .*class ids themselves, 0 and 1"),
    "masks and --reduce_labels": (rows(0, 255, reduce_labels=True), r"hold 0, 255, .*0 and 1, .*without --reduce"),
    "zeros and --reduce_labels": (rows(0, 0, reduce_labels=True), r"hold 0, .*If 0 is a class, leave it out"),
    "nothing labelled": (rows(255, 255), r"all pixels are ignored; they hold 255, .*ids of classes, from 0"),
    "raw ids": (rows(255, label_ids="coco_stuff_raw"), r"all pixels are ignored; they hold 255"),
}


@pytest.mark.parametrize("labels, message", UNUSABLE.values(), ids=UNUSABLE)
def test_labels_from_which_nothing_can_be_learned_are_refused(labels, message):
    names = ["a"] * 171 if labels[0]["label_ids"] == "coco_stuff_raw" else ["background", "crack"]
    with pytest.raises(UserError, match=message) as error:
        check_labels(labels, "train", names)
    assert f"{len(labels)} of the {len(labels)} labels of the split 'train'" in str(error.value)


@pytest.mark.parametrize(
    "labels, message",
    [
        (rows(0, 0), r"1 of 3 classes occur: a \(2 pixels\)\. 0% of the pixels \(0\) are ignored"),
        (rows(1, 255), r"1 of 3 classes occur: b \(1 pixels\)\. 50% of the pixels \(1\) are ignored"),
        (rows(0, 1, 255, 255, 255), r"2 of 3 classes occur: a \(1 pixels\), b \(1 pixels\)\. 60% of the pixels \(3\)"),
    ],
    ids=["one class", "one class and ignored", "mostly ignored"],
)
def test_labels_that_may_not_be_meant_are_warned_of(labels, message):
    assert re.search(message, check_labels(labels, "train", ["a", "b", "c"]))


@pytest.mark.parametrize(
    "labels, names",
    [
        (rows(0, 1, 255, 255, 255), ["a", "b"]),
        (rows(0, 1, 255), ["a", "b", "c"]),
        (rows(0, 0, 1, reduce_labels=True), ["a"]),
    ],
    ids=["all classes", "little ignored", "the only class and the rest"],
)
def test_labels_that_may_be_meant_pass(labels, names):
    assert check_labels(labels, "train", names) is None


def test_sample_is_spread_over_all_labels():
    labels = [row for index in range(1000) for row in rows(index // 100, 255, 255)]
    warning = check_labels(labels, "train", [str(index) for index in range(11)])
    assert f"{MAX_LABELS} of the 1,000 labels" in warning and "10 of 11 classes" in warning


@pytest.mark.parametrize("split", ["train", "validation"])
def test_masks_of_0_and_255_end_a_run_before_it_begins(tmp_path, capsys, split):
    data = write_pairs(tmp_path / "data", num_train=1, num_validation=1)
    path = data / "labels" / split / "picture0.png"
    Image.fromarray(np.where(np.asarray(Image.open(path)) == 1, 255, 0).astype(np.uint8)).save(path)
    start = save_checkpoint(tmp_path / "start", CLASSES)
    options = [*QUICK, "--dataset_name", data, "--output_dir", tmp_path / "out", "--max_train_steps", 1]
    options += ["--skip_evaluation"] if split == "train" else ["--eval_only"]
    assert run_train("--model_name_or_path", start, *options) == 1
    message = capsys.readouterr().err
    assert f"split '{split}'" in message and "0 and 1" in message

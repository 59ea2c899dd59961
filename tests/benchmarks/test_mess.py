"""MESS: what the package registers is found in the folders that it prepares, and scores are those of its own code."""

import csv
import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

import check_benchmark_data
import evaluate_benchmarks
from catseg_hf.errors import UserError
from catseg_training.benchmarks import evaluation
from catseg_training.benchmarks.files import find_files
from catseg_training.benchmarks.mess import MEMBERS, NUM_DATASETS, TABLES, mess_means
from catseg_training.benchmarks.published import find_benchmark, find_benchmarks
from catseg_training.benchmarks.report import write_summary


# Label maps and predictions with what the package's evaluator and its tables make of them, see judge_mess.sh.
SCORED = json.loads((Path(__file__).parent / "peers" / "mess_scores.json").read_text())
CONSTANT = 1
# As the package's scripts leave them, of image and label, where the catalogue's endings are more than a format.
FILES = {
    "Dark_Zurich": ("GOPR0356_frame_000321", "_rgb_anon.png", "_gt_labelIds.png"),
    "cwfid": ("001_", "image.png", "annotation.png"),
}


def files_of(member) -> tuple[str, str, str]:
    """The name of its only image, and how the files of the image and the label end."""
    return FILES.get(member.roots[0], ("a.1", member.image_suffix, member.label_suffix))


def prediction_of(member, kind: str) -> np.ndarray:
    maps = SCORED["maps"][member.name]
    label = np.array(maps["label"])
    if kind == "oracle":
        return np.where(label == member.ignore_index, 0, label)
    return np.full(label.shape, CONSTANT) if kind == "constant" else np.array(maps["prediction"])


def save(path: Path, ids: np.ndarray):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint8)).save(path, format="png")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """An image of every dataset, in the layout of the package's catalogue, and one that has no label."""
    root = tmp_path_factory.mktemp("datasets")
    for member in MEMBERS:
        label = np.array(SCORED["maps"][member.name]["label"])
        folder = root / member.roots[0]
        name, image_suffix, label_suffix = files_of(member)
        save(folder / member.labels[0] / f"{name}{label_suffix}", label)
        for each in (name, "b"):
            path = folder / member.images[0] / f"{each}{image_suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image_format = "jpeg" if path.suffix.startswith(".jp") else "png"
            Image.fromarray(np.zeros((*label.shape, 3), np.uint8)).save(path, format=image_format)
    return root


@pytest.fixture(scope="module")
def scored(prepared, tmp_path_factory):
    """A function for the folder of results of predictions of a kind, for all that is registered."""
    done = {}

    def score(kind: str) -> Path:
        if kind not in done:
            done[kind] = out = tmp_path_factory.mktemp(kind)
            for member in MEMBERS:
                file = out / "predictions" / member.name / f"{files_of(member)[0]}.png"
                save(file, prediction_of(member, kind))
            names = [member.name for member in MEMBERS if member.name not in TABLES]
            assert run(prepared, out, "--from_predictions", out / "predictions", "--benchmarks", "mess", *names) == 0
        return done[kind]

    def write_all(folder: Path, results: dict, benchmarks: list):
        if len(results) == len(benchmarks):
            write_summary(folder, results, benchmarks)

    # Drawing, and writing everything after each of them, takes longer than the rest.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "NUM_DRAWN", 0)
        patch.setattr(evaluate_benchmarks, "write_summary", write_all)
        patch.setattr(evaluate_benchmarks, "write_benchmark_report", lambda folder, result: None)
        yield score


def run(root: Path, output_dir: Path, *arguments: object) -> int:
    arguments = ["--data_root", root, "--output_dir", output_dir, "--dataloader_num_workers", 0, *arguments]
    try:
        return evaluate_benchmarks.main(list(map(str, arguments)))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def results_in(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_catalogue():
    assert len(MEMBERS) == len(SCORED["maps"]) and {member.name for member in MEMBERS} == SCORED["maps"].keys()
    assert len(TABLES) == 25 and NUM_DATASETS == 22
    domains = [entry.domain for entry in TABLES.values() if entry.dataset != "PAXRay-4"]
    counts = {domain: domains.count(domain) for domain in domains}
    assert counts == {
        "General": 6,
        "Earth Monitoring": 5,
        "Medical Sciences": 3,
        "Engineering": 4,
        "Agriculture and Biology": 3,
    }
    assert [entry.domain for entry in TABLES.values() if entry.dataset == "PAXRay-4"] == ["Medical Sciences"] * 4
    for member in MEMBERS:
        assert max(member.classes_of_interest) < len(member.vocabulary) <= member.ignore_index == 255
    potsdam = find_benchmark("isprs_potsdam_sem_seg_test_irrg")
    assert potsdam.vocabulary == ("road", "building", "grass", "tree", "car", "others")
    assert potsdam.classes_of_interest == (0, 1, 2, 3, 4) and potsdam.num_images == 504


def test_names():
    names = [benchmark.name for benchmark in find_benchmarks(["ade20k_150", "mess", "suim_sem_seg_test"])]
    assert names == ["ade20k_150", *TABLES]
    with pytest.raises(
        UserError, match="suim_sem_seg_train.*ade20k_150.*mess, or a dataset of it, such as suim_sem_seg_test"
    ):
        find_benchmark("suim_sem_seg_train")


def test_description_of_the_same_name(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mess", "vocabulary": ["a"], "images": "a", "labels": "b"}))
    with pytest.raises(UserError, match="another name"):
        find_benchmark(str(path))


def test_scores_are_those_of_the_package(scored):
    results = results_in(scored("drawn"))
    for name, expected in SCORED["maps"].items():
        assert 100 * results[name]["mean_iou"] == pytest.approx(expected["mIoU"], abs=1e-9), name
        of_interest = results[name]["coi_mean_iou"]
        of_interest = math.nan if of_interest is None else of_interest
        assert 100 * of_interest == pytest.approx(expected["CoI-mIoU"], abs=1e-9, nan_ok=True), name
        assert results[name]["published_rule"] == "mean_iou"
    assert any(results[name]["mean_iou"] != results[name]["mean_iou_present"] for name in results)


def test_means_are_those_of_the_package(scored):
    means = json.loads((scored("drawn") / "mess.json").read_text())
    datasets, domains = (SCORED["tables"][key] for key in ("Dataset", "Domain"))
    assert means["datasets"].keys() == datasets.keys() - {"Mean"} and len(means["datasets"]) == 22
    assert means["domains"].keys() == domains.keys() - {"Mean"}
    assert means["all"]["Mean"]["num_datasets"] == 22
    assert means["domains"]["Medical Sciences"]["num_datasets"] == 4
    for found, expected in (
        (means["datasets"], datasets),
        (means["domains"], domains),
        (means["all"], datasets),
        (means["all"], domains),
    ):
        for name, values in found.items():
            assert 100 * values["mean_iou"] == pytest.approx(expected[name]["mIoU"], abs=1e-9), name
            assert 100 * values["coi_mean_iou"] == pytest.approx(expected[name]["CoI-mIoU"], abs=1e-9), name


def test_oracle(scored):
    folder = scored("oracle")
    for name, result in results_in(folder).items():
        assert result["mean_iou"] == result["overall_accuracy"] == 1, name
        label = np.array(SCORED["maps"][name]["label"])
        has_interest = np.isin(label, find_benchmark(name).classes_of_interest).any()
        assert result["coi_mean_iou"] == (1 if has_interest else None), name
    assert "| mean | 22 of 22 datasets | 100.00 | 100.00 |" in (folder / "results.md").read_text()
    assert len(list(csv.reader((folder / "results.csv").open()))) == 1 + len(MEMBERS)


def test_constant_answer(scored):
    results = results_in(scored("constant"))
    for member in MEMBERS:
        label = np.array(SCORED["maps"][member.name]["label"])
        classes, counts = np.unique(label[label != member.ignore_index], return_counts=True)
        share = (label == CONSTANT).sum() / counts.sum()
        occurring = {*classes.tolist(), CONSTANT}
        assert results[member.name]["mean_iou"] == pytest.approx(share / len(occurring)), member.name
        of_interest = occurring & {*member.classes_of_interest}
        expected = (share if CONSTANT in of_interest else 0) / len(of_interest) if of_interest else None
        assert results[member.name]["coi_mean_iou"] == pytest.approx(expected), member.name


def test_parts_of_a_dataset_that_are_missing():
    parts = [name for name, entry in TABLES.items() if entry.dataset == "PAXRay-4"]
    results = {name: {"mean_iou": 0.2 * place, "coi_mean_iou": math.nan} for place, name in enumerate(parts[:3])}
    means = mess_means({**results, "deepcrack_sem_seg_test": {"mean_iou": 0.6, "coi_mean_iou": 0.5}, "mine": {}})
    assert means["datasets"].keys() == {"PAXRay-4", "DeepCrack"}
    assert means["datasets"]["PAXRay-4"]["mean_iou"] == pytest.approx(0.2)
    assert means["all"]["Mean"] == {"num_datasets": 2, "mean_iou": pytest.approx(0.4), "coi_mean_iou": 0.5}
    assert mess_means({"isprs_potsdam_sem_seg_test_rgb": {}, "ade20k_150": {}}) == {}


def test_data_that_are_not_prepared(prepared, tmp_path, capsys):
    root = tmp_path / "my data"
    (root / "SUIM" / "TEST").mkdir(parents=True)
    arguments = ["--from_predictions", tmp_path, "--benchmarks", "suim_sem_seg_test"]
    assert run(root, tmp_path / "out", *arguments) == 1
    message = capsys.readouterr().err
    suim = find_benchmark("suim_sem_seg_test")
    assert str(root / "SUIM") in message and suim.labels[0] in message
    assert f"python -m mess.prepare_all_datasets --dataset_dir {shlex.quote(str(root))}" in message
    assert not (tmp_path / "out").exists()


def test_check_of_the_data(prepared, tmp_path, capsys):
    arguments = ["--data_root", prepared, "--output_dir", tmp_path, "--dataloader_num_workers", 0]
    arguments += ["--benchmarks", "cwfid_sem_seg_test"]
    assert check_benchmark_data.main(list(map(str, arguments))) == 1
    assert "1 images, but 21 are published. Source: mess-benchmark 0.2" in capsys.readouterr().out


def test_members_are_not_looked_for_in_each_others_folders(prepared):
    """Many of them have the same folders below their own."""
    with pytest.raises(UserError, match="paxray_dataset"):
        find_files(find_benchmark("paxray_sem_seg_test_lungs"), prepared / "paxray_dataset")

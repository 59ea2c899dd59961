"""What SECURITY.md says: nothing is written outside the folder that the user names, and no checkpoint runs code."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation, AutoProcessor

from catseg_hf.errors import UserError
from catseg_hf.images.sources import choose_names
from catseg_hf.remote_code_catseg import AUTO_MAP
from catseg_hf.utils.files import built_aside, replaced_file
from catseg_testing.tiny_training import save_checkpoint
from catseg_training.benchmarks.description import Benchmark, read_description
from catseg_training.benchmarks.files import find_files


NAMES_OUTSIDE = ["../x", "../../x", "/x", "a/../../x", "..", "a\0b"]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "original")


@pytest.fixture
def checkpoint(original, tmp_path) -> Path:
    """A checkpoint whose files a test may replace."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in original.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def replace(path: Path, content: bytes):
    path.unlink(missing_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "source",
    [
        *("https://host/..%2f..%2fx.png", "https://host/%2fx.png", "https://host/..", "https://host/%00.png"),
        *("https://host/a%00b.png", "https://host/" + "x" * 1000, "https://host/%F0%9F%90%88" * 40, "../../x.png"),
    ],
)
def test_results_of_images_lie_in_the_output_folder(source, tmp_path):
    output = tmp_path / "output"
    (name,) = choose_names([source], output)
    path = output / f"{name}_overlay.png"
    with replaced_file(path) as file:
        file.write_bytes(b"")
    assert path.resolve().parent == output and sorted(tmp_path.rglob("*")) == [output, path]


def test_links_are_replaced_and_not_followed(tmp_path):
    outside, output = tmp_path / "outside", tmp_path / "output"
    outside.write_text("mine")
    output.mkdir()
    for name in ("a.png", ".a.png.incomplete"):
        (output / name).symlink_to(outside)
    with replaced_file(output / "a.png") as file:
        file.write_text("result")
    assert outside.read_text() == "mine" and (output / "a.png").read_text() == "result"
    assert not (output / "a.png").is_symlink()


def test_a_link_in_the_place_of_an_unfinished_folder_is_not_cleared(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    (tmp_path / ".model.incomplete").symlink_to(outside)
    with built_aside(tmp_path / "model") as aside:
        (aside / "config.json").write_text("{}")
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", [name for name in NAMES_OUTSIDE if name != ".."])
def test_a_list_of_images_names_no_prediction_outside(name, tmp_path):
    annotations = {
        "images": [{"file_name": f"{name}.jpg", "phase": "val", "image_id": 1, "height": 1, "width": 1}],
        "annos_segmentation": [],
    }
    (tmp_path / "images").mkdir()
    (tmp_path / "labels.json").write_text(json.dumps(annotations))
    benchmark = Benchmark("mine", ("cat",), ("images",), ("labels.json",), 255, {}, label_format="context_json")
    with pytest.raises(UserError, match="predictions cannot be called"):
        find_files(benchmark, tmp_path)


def test_an_id_list_names_no_prediction_outside(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "ids.txt").write_text("../../x\na/x\n")
    benchmark = Benchmark("mine", ("cat",), ("images",), ("labels",), 255, {}, id_list="ids.txt")
    with pytest.raises(UserError, match=r"'\.\./\.\./x'"):
        find_files(benchmark, tmp_path)


@pytest.mark.parametrize("name", NAMES_OUTSIDE)
def test_a_description_names_no_folder_outside(name, tmp_path):
    description = {"name": name, "vocabulary": ["cat"], "images": "images", "labels": "labels"}
    (tmp_path / "mine.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="cannot be that of a folder"):
        read_description(tmp_path / "mine.json")


def test_a_tokenizers_templates_name_no_file_outside(checkpoint, tmp_path):
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    templates = [
        {"name": name, "template": "x"} for name in ("default", "../../../escaped", str(tmp_path / "escaped"))
    ]
    replace(checkpoint / "tokenizer_config.json", json.dumps({**config, "chat_template": templates}).encode())
    try:
        AutoProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path / "a" / "b" / "saved")
    except ValueError:
        pass  # refused by name
    assert not list(tmp_path.rglob("escaped*"))


def test_code_that_a_checkpoint_names_is_neither_run_nor_saved(checkpoint, tmp_path):
    config = json.loads((checkpoint / "config.json").read_text())
    other = {name: "../evil.Evil" for name in AUTO_MAP}
    replace(checkpoint / "config.json", json.dumps({**config, "auto_map": other}).encode())
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path / "saved")
    assert type(model).__module__ == "catseg_hf.modeling_catseg" and not (tmp_path / "ran").exists()
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert not list((tmp_path / "saved").rglob("evil*"))


class RunsCode:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_of_weights_runs_nothing(checkpoint, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    with (checkpoint / "pytorch_model.bin").open("wb") as file:
        torch.save({"weight": RunsCode(tmp_path / "ran")}, file)
    with pytest.raises(OSError, match="refused"):
        AutoModelForSemanticSegmentation.from_pretrained(checkpoint)
    assert not (tmp_path / "ran").exists()

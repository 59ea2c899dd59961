"""The shipped folder: what is written from a trained model and from its scores."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ship_world_model
from catseg_hf import EMBEDDED_MODEL
from catseg_training.world.shipping import NOTICE, card, results_table


RESULTS = {
    "catseg": {
        "num_scenes": 7,
        "all_words": {"seen": 0.8, "unseen": 0.7},
        "own_words": {"seen": 0.9, "unseen": 0.85},
        "absent_share": 0.0123,
    },
    "bfloat16": {"num_scenes": 7, "all_words": {"seen": 0.79, "unseen": 0.69}},
}


def test_table():
    *_, catseg, bfloat16 = results_table(RESULTS).splitlines()
    assert catseg == "| CAT-Seg | 80.0 | 70.0 | 90.0 | 85.0 |"
    assert bfloat16 == "| CAT-Seg, bfloat16 | 79.0 | 69.0 |  |  |"


def test_ship(tmp_path):
    results = tmp_path / "results.json"
    results.write_text(json.dumps(RESULTS))
    folder = tmp_path / "shipped"
    arguments = ["--model", EMBEDDED_MODEL, "--results", str(results), "--output", str(folder)]
    assert ship_world_model.main(arguments) == 0
    assert {path.name for path in folder.iterdir()} == {path.name for path in Path(EMBEDDED_MODEL).iterdir()}
    shipped, weights = (load_file(Path(name) / "model.safetensors") for name in (EMBEDDED_MODEL, folder))
    assert all(tensor.dtype != torch.float32 and tensor.equal(shipped[name]) for name, tensor in weights.items())
    text = (folder / "README.md").read_text()
    assert "7 test scenes" in text and "1.230 % of the pixels" in text
    assert "H100" not in text  # how the committed weights came about is said with their own results
    results.write_text(json.dumps({"provenance": "\nTrained by hand.\n", **RESULTS}))
    (folder / "mine.py").touch()
    assert ship_world_model.main(arguments) == 0
    assert "\nTrained by hand.\n" in (folder / "README.md").read_text()
    assert (folder / "mine.py").exists()


def test_the_committed_card_is_that_of_its_results():
    folder = Path(EMBEDDED_MODEL)
    assert (folder / "README.md").read_text() == card(json.loads((folder / "results.json").read_text()))
    assert (folder / "NOTICE").read_text() == NOTICE


@pytest.mark.parametrize(
    "arguments, message",
    [(["--model", "/nowhere"], "/nowhere is no folder"), (["--results", "results.json"], "no scores called 'catseg'")],
)
def test_incomplete_input(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("results.json").write_text("{}")
    assert ship_world_model.main([*arguments, "--output", "shipped"]) == 1
    assert message in capsys.readouterr().err and not Path("shipped").exists()


def test_nothing_to_ship(tmp_path, capsys):
    with pytest.raises(SystemExit):
        ship_world_model.main(["--output", str(tmp_path / "shipped")])
    assert "--model, --results or both" in capsys.readouterr().err

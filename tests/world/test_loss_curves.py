"""Short trainings follow the committed curves of loss and gradient norm, in both precisions."""

import json

import pytest

from catseg_hf.errors import UserError
from catseg_training.processes import usable_precision
from conftest import ROOT


GOLDEN = ROOT / "benchmarks" / "results" / "loss_curves"


@pytest.fixture
def loss_curves(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import loss_curves

    return loss_curves


@pytest.fixture(params=["no", "bf16"])
def golden(request, loss_curves) -> dict:
    return loss_curves.read_curves(GOLDEN / f"{request.param}.json")


@pytest.mark.slow
def test_training_follows_the_curves(loss_curves, golden):
    names = ("mixed_precision", "steps", "batch_size", "seed")
    mixed_precision, num_steps, batch_size, seed = (golden[name] for name in names)
    if usable_precision(mixed_precision) != mixed_precision:
        pytest.skip("training goes on in float32 on this processor")
    actual = loss_curves.train(mixed_precision, num_steps, batch_size, seed)
    assert loss_curves.compare(golden, actual) == []


def test_a_precision_that_would_not_be_trained_in_is_refused(loss_curves, monkeypatch):
    monkeypatch.setattr(loss_curves, "usable_precision", lambda wanted: "no")
    with pytest.raises(UserError, match="does not train in bf16 on this processor"):
        loss_curves.train("bf16", num_steps=1, batch_size=1, seed=1)


@pytest.mark.parametrize("name", ["mixed_precision", "seed", "batch_size", "steps"])
def test_curves_that_do_not_say_what_they_are_of_are_refused(loss_curves, golden, name, tmp_path):
    del golden[name]
    (tmp_path / "curves.json").write_text(json.dumps(golden))
    with pytest.raises(UserError, match=f"curves.json does not say {name} of its training"):
        loss_curves.read_curves(tmp_path / "curves.json")


def test_curves_name_what_they_ran_on_and_learn(golden):
    assert golden["machine"] and golden["torch"]
    assert golden["loss"][-1] < 0.8 * golden["loss"][0]


def test_both_precisions_learn_alike(loss_curves):
    files = (GOLDEN / f"{precision}.json" for precision in ("no", "bf16"))
    curves, halved = (loss_curves.read_curves(path) for path in files)
    assert curves["loss"] != halved["loss"]
    assert loss_curves.compare(curves, halved) == []


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("change, differs", [(0.5, False), (2, True)])
def test_tolerances(loss_curves, golden, name, change, differs):
    tolerance = loss_curves.TOLERANCES[golden["mixed_precision"]][name]
    curve = list(golden[name])
    curve[3] += change * tolerance * sum(curve) / len(curve)
    lines = loss_curves.compare(golden, {**golden, name: curve})
    assert len(lines) == differs and all(f"{name} of step 4 is" in line for line in lines)


def test_a_curve_that_is_not_finite_is_another(loss_curves, golden):
    changed = {**golden, "loss": [*golden["loss"][:-1], float("nan")]}
    assert "loss of step 20 is nan" in loss_curves.compare(golden, changed)[0]


def test_curves_of_another_training_are_refused(loss_curves, golden):
    with pytest.raises(UserError, match="seed is 1 in one and 2 in the other"):
        loss_curves.compare(golden, {**golden, "seed": 2})


def test_command(loss_curves, golden, tmp_path, capsys):
    path, changed, broken = (tmp_path / name for name in ("golden.json", "changed.json", "broken.json"))
    path.write_text(json.dumps(golden))
    changed.write_text(json.dumps({**golden, "loss": [2 * loss for loss in golden["loss"]]}))
    broken.write_text(json.dumps({**golden, "loss": golden["loss"][1:]}))
    assert loss_curves.main(["compare", str(path), str(path)]) == 0
    assert loss_curves.main(["compare", str(path), str(changed)]) == 1
    assert loss_curves.main(["compare", str(path), str(broken)]) == 1
    assert loss_curves.main(["compare", str(path), str(tmp_path / "missing.json")]) == 1
    printed = capsys.readouterr()
    assert "The curves agree." in printed.out and "loss of step" in printed.out
    assert "not one number of each curve for each of its steps" in printed.err and "holds no curves" in printed.err

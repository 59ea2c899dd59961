"""train.py from the command to the saved model, and what it says when something is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSemanticSegmentation, AutoProcessor, pipeline
from transformers.modeling_layers import GradientCheckpointingLayer

import prepare_coco_stuff
import train
from catseg_hf import CATSegForSemanticSegmentation, load_vocabulary
from catseg_hf.loading import load_segmenter
from catseg_hf.modeling_catseg_decoder import CATSegDecoder
from catseg_hf.modeling_catseg_loss import CATSegLoss
from catseg_testing.coco_stuff_folder import write_coco_stuff_folder
from catseg_testing.hub_server import HubServer
from catseg_testing.tiny_training import (
    CLASSES,
    QUICK,
    history,
    run_train,
    save_checkpoint,
    save_clip,
    weights,
    write_pairs,
)
from catseg_training import evaluation
from catseg_training.metric import MEAN_IOU
from catseg_training.model import load_checkpoint
from catseg_training.report.hub import published_files
from catseg_training.run import Run


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def command(data, checkpoint) -> list:
    """A run of two steps without evaluation; options that are given again count."""
    options = ["--max_train_steps", 2, "--per_device_train_batch_size", 2, "--skip_evaluation"]
    return ["--model_name_or_path", checkpoint, "--dataset_name", data, *QUICK, *options]


@pytest.fixture(scope="module")
def evaluating(command) -> list:
    return [option for option in command if option != "--skip_evaluation"]


def results(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


LEFT_BEHIND = {
    *("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "modeling_catseg.py"),
    *("README.md", "LICENSE", "training_state.json", "all_results.json", "training_curves.png", "predictions.png"),
    *("per_class_iou.csv", "per_class_iou.json", "per_class_iou.png", "logs", "checkpoint-2"),
}


def check_coco_stuff_run(output: Path, evaluated: Path):
    assert names(output) >= LEFT_BEHIND
    assert not [name for name in names(output) if name.endswith(".incomplete")]
    found = results(output)
    assert found["train_steps"] == 2 and found["eval_images"] == 2 and found["sliding_window"]
    assert len(found["per_category_iou"]) == 171 and 0 <= found["mean_iou"] <= found["mean_iou_present"] <= 1
    assert (output / "per_class_iou.csv").read_text().count("\n") == 172
    assert "mean_iou" in (output / "README.md").read_text()
    model = AutoModelForSemanticSegmentation.from_pretrained(output)
    assert list(model.config.id2label.values()) == load_vocabulary("coco_stuff_171")
    processor = AutoProcessor.from_pretrained(output)
    with torch.inference_mode():
        outputs = model.eval()(**processor(images=Image.new("RGB", (50, 40))))
    assert processor.post_process_semantic_segmentation(outputs, [(40, 50)])[0].shape == (40, 50)
    metrics = ("mean_iou", "mean_iou_present", "mean_accuracy", "overall_accuracy", "per_category_iou")
    again = results(evaluated)
    assert {name: again[name] for name in metrics} == {name: found[name] for name in metrics}
    assert "model.safetensors" not in names(evaluated)


def test_coco_stuff_all_the_way(tmp_path, capsys):
    """Checks a download, trains on it, evaluates, saves and loads again."""
    source = write_coco_stuff_folder(tmp_path / "coco_stuff", num_train=3, num_val=2)
    start = save_checkpoint(tmp_path / "start", load_vocabulary("coco_stuff_171"))
    assert prepare_coco_stuff.main(["--data_dir", str(source), "--allow_partial"]) == 0
    options = [*QUICK, "--dataset_name", source, "--max_train_steps", 2, "--report_to", "tensorboard"]
    output, evaluated = tmp_path / "out", tmp_path / "evaluated"
    assert run_train("--model_name_or_path", start, *options, "--output_dir", output) == 0
    assert run_train("--model_name_or_path", output, *options, "--eval_only", "--output_dir", evaluated) == 0
    check_coco_stuff_run(output, evaluated)
    check_tracked(output)


def check_tracked(output: Path):
    events = EventAccumulator(str(output / "logs" / "catseg"))
    events.Reload()
    scalars = {"loss", "learning_rate", "clip_learning_rate", "grad_norm", "images_per_second", "memory_gb"}
    assert {f"train/{name}" for name in scalars} | {"eval/mean_iou"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["eval/predictions"]
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    losses = [entry["loss"] for entry in history(output) if "loss" in entry]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)


@pytest.mark.slow
def test_coco_stuff_one_command_each(tmp_path):
    """The same as a user does it, with workers."""
    source = write_coco_stuff_folder(tmp_path / "coco_stuff", num_train=3, num_val=2)
    start = save_checkpoint(tmp_path / "start", load_vocabulary("coco_stuff_171"))
    scripts = Path(train.__file__).parent
    output, evaluated = tmp_path / "out", tmp_path / "evaluated"
    options = ["--dataset_name", source, "--crop_size", 64, "--report_to", "tensorboard", "--max_train_steps", 2]
    commands = [
        [scripts / "prepare_coco_stuff.py", "--data_dir", source, "--allow_partial"],
        [scripts / "train.py", "--model_name_or_path", start, *options, "--output_dir", output],
        [scripts / "train.py", "--model_name_or_path", output, *options, "--eval_only", "--output_dir", evaluated],
    ]
    for command in commands:
        arguments = [sys.executable, *map(str, command)]
        result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    check_coco_stuff_run(output, evaluated)


@pytest.mark.slow
def test_from_clip_on_coco_stuff(tmp_path):
    """With the vocabulary that is the default then."""
    source = write_coco_stuff_folder(tmp_path / "coco_stuff", num_train=3, num_val=1)
    arguments = ["--clip_model_name_or_path", save_clip(tmp_path / "clip"), "--dataset_name", source, *QUICK]
    arguments += ["--max_train_steps", 1, "--per_device_train_batch_size", 1, "--skip_evaluation"]
    assert run_train(*arguments, "--output_dir", tmp_path / "out") == 0
    config = CATSegForSemanticSegmentation.from_pretrained(tmp_path / "out").config
    assert list(config.id2label.values()) == load_vocabulary("coco_stuff_171")


def test_from_clip(data, tmp_path):
    """A fresh aggregator on a CLIP, with a vocabulary of one's own."""
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    arguments = ["--clip_model_name_or_path", save_clip(tmp_path / "clip"), "--vocabulary", tmp_path / "classes.json"]
    arguments += ["--dataset_name", data, *QUICK, "--max_train_steps", 1, "--skip_evaluation"]
    assert run_train(*arguments, "--output_dir", tmp_path / "out", "--per_device_train_batch_size", 1) == 0
    model = CATSegForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert list(model.config.id2label.values()) == CLASSES
    trained = load_file(tmp_path / "out" / "model.safetensors")
    start = load_file(tmp_path / "clip" / "model.safetensors")
    changed = {name for name in start if not torch.equal(start[name], trained[f"catseg.clip.{name}"])}
    assert changed and all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)
    assert "mean_iou" not in results(tmp_path / "out") and "It has not been evaluated" in card(tmp_path / "out")


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


@pytest.fixture(scope="module")
def lora_run(evaluating, tmp_path_factory) -> Path:
    """A run with LoRA and a vocabulary of its own, which its start does not have."""
    folder = tmp_path_factory.mktemp("lora")
    (folder / "classes.json").write_text(json.dumps(["one", "two", "three", "four", "five"]))
    options = ["--lora_rank", 2, "--vocabulary", folder / "classes.json", "--eval_steps", "end"]
    assert run_train(*evaluating, *options, "--learning_rate", 0.01, "--output_dir", folder / "base") == 0
    return folder / "base"


def test_lora_is_saved_merged(lora_run, checkpoint):
    """The folder loads as any other model, and its adapter gives the same on top of the start."""
    from peft import PeftModel

    merged = AutoModelForSemanticSegmentation.from_pretrained(lora_run).eval()
    assert merged.config.id2label[0] == "one"
    start = CATSegForSemanticSegmentation.from_pretrained(checkpoint).eval()
    adapted = PeftModel.from_pretrained(start, lora_run, subfolder="adapter").eval()
    generator = torch.Generator().manual_seed(1)
    text_embeds = torch.nn.functional.normalize(torch.randn(5, 1, 32, generator=generator), dim=-1)
    inputs = {"pixel_values": torch.randn(1, 3, 48, 48, generator=generator), "text_embeds": text_embeds}
    with torch.inference_mode():
        torch.testing.assert_close(merged(**inputs).logits, adapted(**inputs).logits, atol=1e-5, rtol=0)
        start = CATSegForSemanticSegmentation.from_pretrained(checkpoint).eval()
        assert (merged(**inputs).logits - start(**inputs).logits).abs().max() > 1e-3
    assert 'subfolder="adapter"' in card(lora_run)


@pytest.mark.parametrize("name", ["{}", "../lora0/base", "./base"])
def test_a_lora_run_does_not_depend_on_the_current_folder(name, lora_run, tmp_path, monkeypatch):
    """Another model of the name that was once written beside adapters must not be taken for the base."""
    monkeypatch.chdir(lora_run.parent)
    (tmp_path / "elsewhere").mkdir()
    if name == "{}":
        monkeypatch.chdir(tmp_path / "elsewhere")
        save_checkpoint(tmp_path / "elsewhere" / "base")
    name = name.format(lora_run) if "lora0" not in name else os.path.join("..", lora_run.parent.name, "base")
    labels = {"one", "two", "three", "four", "five"}
    assert set(AutoModelForSemanticSegmentation.from_pretrained(name).config.id2label.values()) == labels
    segments = pipeline("image-segmentation", model=name)(Image.new("RGB", (40, 30)))
    assert {segment["label"] for segment in segments} <= labels
    assert load_segmenter(name).model.config.id2label[0] == "one"
    assert load_checkpoint(name)[0].config.id2label[0] == "one"


def test_scores_of_a_run_are_those_of_a_later_evaluation(lora_run, evaluating, tmp_path):
    assert run_train(*evaluating, "--eval_only", "--model_name_or_path", lora_run, "--output_dir", tmp_path / "e") == 0
    later, earlier = results(tmp_path / "e"), results(lora_run)
    assert later["per_category_iou"] == earlier["per_category_iou"] and later["mean_iou"] == earlier["mean_iou"]
    assert later["image_processor"] == earlier["image_processor"] == "CATSegImageProcessorPil"


def test_an_adapter_alone_is_no_checkpoint(lora_run, command, tmp_path, capsys):
    assert run_train(*command, "--model_name_or_path", lora_run / "adapter", "--output_dir", tmp_path / "out") == 1
    assert "give the folder above it, which holds the merged model" in capsys.readouterr().err


def test_output_folder(command, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").touch()
    assert run_train(*command, "--output_dir", output) == 1
    assert "is not empty: continue its run with --resume_from_checkpoint latest" in capsys.readouterr().err
    assert names(output) == {"mine.txt"}
    assert run_train(*command, "--output_dir", output / "mine.txt") == 1
    assert "mine.txt is a file" in capsys.readouterr().err
    (output / "checkpoint-77").mkdir()
    (output / ".checkpoint-2.incomplete").mkdir()
    (output / "adapter").mkdir()
    assert run_train(*command, "--output_dir", output, "--overwrite_output_dir") == 0
    assert names(output) >= {"mine.txt", "checkpoint-2", "model.safetensors"}
    assert not names(output) & {"checkpoint-77", ".checkpoint-2.incomplete", "adapter"}


@pytest.mark.slow
def test_resumed(command, tmp_path, caplog, capsys):
    """What a resumed run may and may not have otherwise."""
    output = tmp_path / "out"
    resume = [*command, "--resume_from_checkpoint", "latest", "--output_dir", output]
    assert run_train(*resume) == 0
    assert "no checkpoint in" in caplog.text and "starting anew" in caplog.text
    caplog.clear()
    before = weights(output)
    changes = {
        "seed was 42 and is now 1": ["--seed", 1],
        "total_batch_size was 2 and is now 4": ["--gradient_accumulation_steps", 2],
        "num_train_examples was 5 and is now 3": ["--max_train_samples", 3],
        "learning_rate was 0.0002 and is now 0.1": ["--learning_rate", 0.1],
        "clip_finetuning was 'attention' and is now 'full'": ["--clip_finetuning", "full"],
    }
    for change, options in changes.items():
        assert run_train(*resume, *options) == 1
        assert f"belongs to another run: {change}. A resumed run goes on as it began" in capsys.readouterr().err
    assert weights(output) == before
    same = ["--gradient_accumulation_steps", 2, "--per_device_train_batch_size", 1]
    assert run_train(*resume, *same, "--max_train_steps", 3) == 0
    assert "max_train_steps was 2 and is now 3" in caplog.text
    assert [entry["step"] for entry in history(output)] == [1, 2, 3]
    # The cosine of three steps, not of two.
    assert history(output)[-1]["learning_rate"] == pytest.approx(0.25 * 2e-4)
    assert run_train(*resume, "--max_train_steps", 1) == 1
    assert "is at step 3, behind the last one that is wanted (1)" in capsys.readouterr().err
    assert run_train(*command, "--resume_from_checkpoint", tmp_path, "--output_dir", output) == 1
    assert "no checkpoint that this script has written" in capsys.readouterr().err


@pytest.mark.slow
def test_epochs(evaluating, tmp_path):
    """Five images by twos, two and a half times: epochs end with the third and the fifth step."""
    options = ["--num_train_epochs", 2.5, "--checkpointing_steps", "epoch"]
    arguments = [option for option in evaluating if option not in ("--max_train_steps",)]
    arguments.remove(2)
    assert run_train(*arguments, *options, "--no-sliding_window", "--output_dir", tmp_path / "out") == 0
    assert {name for name in names(tmp_path / "out") if name.startswith("checkpoint")} == {
        "checkpoint-3",
        "checkpoint-5",
        "checkpoint-7",
    }
    evaluated = [entry["step"] for entry in history(tmp_path / "out") if "mean_iou" in entry]
    assert evaluated == [3, 5, 7] and results(tmp_path / "out")["train_epochs"] == pytest.approx(2.8)
    assert results(tmp_path / "out")["sliding_window"] is False


def test_loss_is_not_finite(command, tmp_path, capsys, monkeypatch):
    """At the fourth step: it is named with its images, and the checkpoint before it stays."""
    loss = CATSegLoss.forward
    count = 0

    def broken(criterion, logits, labels):
        nonlocal count
        count += 1
        return loss(criterion, logits, labels) * (float("nan") if count == 4 else 1.0)

    monkeypatch.setattr(CATSegLoss, "forward", broken)
    output = tmp_path / "out"
    arguments = [*command, "--max_train_steps", 6, "--checkpointing_steps", 2, "--output_dir", output]
    assert run_train(*arguments) == 1
    error = capsys.readouterr().err
    assert "The loss of step 4 is not finite" in error
    picture = r"images/train/picture"
    assert error.partition("Images: ")[2].count(picture) == 2
    assert names(output) == {"checkpoint-2"}
    monkeypatch.undo()
    assert run_train(*arguments, "--resume_from_checkpoint", "latest") == 0
    assert len(history(output)) == 6


@pytest.mark.parametrize(
    "kind, message, num_workers",
    [
        ("missing", "does not exist: restore the file", 0),
        ("damaged", "could not be read: ", 0),
        ("size", "differ in size", 0),
        ("id", "holds the id 7, but the vocabulary has 5 names", 0),
        ("id", "holds the id 7, but the vocabulary has 5 names", 1),
    ],
)
def test_bad_pictures(kind, message, num_workers, command, data, tmp_path, capsys):
    """They end the run with one sentence, also from a worker."""
    shutil.copytree(data, tmp_path / "data")
    image, label = (tmp_path / "data" / part / "train" / "picture1.png" for part in ("images", "labels"))
    if kind == "missing":
        label.unlink()
        label.symlink_to("nothing")
    elif kind == "damaged":
        image.write_bytes(image.read_bytes()[:60])
    else:
        ids = np.array(Image.open(label))
        ids = ids[:10] if kind == "size" else np.where(ids == 4, 7, ids).astype(np.uint8)
        Image.fromarray(ids).save(label)
    options = ["--dataset_name", tmp_path / "data", "--dataloader_num_workers", num_workers, "--max_train_steps", 3]
    assert run_train(*command, *options, "--output_dir", tmp_path / "out") == 1
    error = capsys.readouterr().err.partition("error: ")[2]
    assert message in error and "picture1.png" in error and "Traceback" not in error


def test_empty_split_and_wrong_vocabulary(command, evaluating, data, tmp_path, capsys):
    assert run_train(*evaluating, "--eval_split", "test", "--output_dir", tmp_path / "a") == 1
    error = capsys.readouterr().err
    assert "test" in error and "--skip_evaluation does without" in error
    (tmp_path / "classes.json").write_text('["cat", "sofa"]')
    assert run_train(*command, "--vocabulary", tmp_path / "classes.json", "--output_dir", tmp_path / "b") == 1
    assert "the vocabulary has 2 names" in capsys.readouterr().err


def test_batch_size_by_default(command, tmp_path, capsys):
    arguments = list(command)
    del arguments[arguments.index("--per_device_train_batch_size") :][:2]
    position = arguments.index("--per_device_train_batch_size")
    del arguments[position : position + 2]
    assert run_train(*arguments, "--gradient_accumulation_steps", 2, "--output_dir", tmp_path / "out") == 0
    assert results(tmp_path / "out")["train_images"] == 8
    assert run_train(*arguments, "--gradient_accumulation_steps", 3, "--output_dir", tmp_path / "b") == 1
    assert "4 images a step cannot be shared" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop_while_it_evaluates(number, status, evaluating, tmp_path, monkeypatch):
    segment = evaluation.segment_images

    def terminate(*arguments, **options):
        os.kill(os.getpid(), number)
        return segment(*arguments, **options)

    monkeypatch.setattr(evaluation, "segment_images", terminate)
    handler = signal.getsignal(number)
    output = tmp_path / "out"
    arguments = [*evaluating, "--eval_steps", 1, "--output_dir", output, "--resume_from_checkpoint", "latest"]
    assert run_train(*arguments) == status
    assert signal.getsignal(number) is handler
    assert names(output) == {"checkpoint-1"}
    monkeypatch.undo()
    assert run_train(*arguments) == 0
    assert [entry["step"] for entry in history(output) if "mean_iou" in entry] == [1, 2]


def test_metric_of_the_hub(evaluating, tmp_path, monkeypatch):
    """evaluate's own is asked for by its name; this project's stands in for it, which has the same keys."""
    load = evaluate.load
    asked = []

    def local(name, **options):
        asked.append(name)
        return load(str(MEAN_IOU), **options)

    monkeypatch.setattr(evaluate, "load", local)
    arguments = [*evaluating, "--eval_only"]
    assert run_train(*arguments, "--metric", "mean_iou", "--output_dir", tmp_path / "hub") == 0
    assert asked == ["mean_iou"]
    assert run_train(*arguments, "--output_dir", tmp_path / "own") == 0
    for key in ("mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou"):
        assert results(tmp_path / "hub")[key] == pytest.approx(results(tmp_path / "own")[key])


@pytest.mark.parametrize(
    "options",
    [["--mixed_precision", "bf16", "--gradient_checkpointing", "--clip_finetuning", "full"], ["--streaming"]],
    ids=["bf16", "streaming"],
)
def test_options(options, evaluating, tmp_path):
    assert run_train(*evaluating, *options, "--output_dir", tmp_path / "out", "--eval_steps", "end") == 0
    assert 0 < results(tmp_path / "out")["train_loss"] < 1
    dtypes = {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()}
    assert dtypes == {torch.float32, torch.int64}


OUTSIDE_CLIP = {"CATSegSpatialBlock", "CATSegClassBlock", "CATSegDecoder", "CATSegCrossEntropy"}


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--no-gradient_checkpointing"], set()),
        ([], OUTSIDE_CLIP),
        (["--lora_rank", 2], OUTSIDE_CLIP),
        (["--gradient_checkpointing"], OUTSIDE_CLIP | {"CLIPEncoderLayer"}),
    ],
    ids=["nowhere", "default", "lora", "everywhere"],
)
def test_recomputed_layers(options, expected, command, tmp_path, monkeypatch):
    """The layers that are computed again for the gradients, of those that could be."""
    layers, train_run = {True: set(), False: set()}, train.train

    def look_and_train(run: Run) -> bool:
        for module in run.model.modules():
            if isinstance(module, (GradientCheckpointingLayer, CATSegDecoder)):
                layers[module.gradient_checkpointing].add(type(module).__name__)
        return train_run(run)

    monkeypatch.setattr(train, "train", look_and_train)
    assert run_train(*command, *options, "--output_dir", tmp_path / "out") == 0
    assert layers == {True: expected, False: (OUTSIDE_CLIP | {"CLIPEncoderLayer"}) - expected}


@pytest.mark.parametrize(
    "options, recomputed",
    [(["--no-gradient_checkpointing"], set()), ([], {"CATSeg"}), (["--gradient_checkpointing"], {"CATSeg", "CLIP"})],
    ids=["nowhere", "default", "everywhere"],
)
def test_recomputed_activations(options, recomputed, command, tmp_path):
    """Whose layers run again while the gradients are computed; the trained weights are the same."""
    found = set()

    def record(module: torch.nn.Module, inputs: tuple):
        in_backward = torch._C._current_graph_task_id() != -1
        found.update(name for name in ("CATSeg", "CLIP") if in_backward and type(module).__name__.startswith(name))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(record)
    try:
        assert run_train(*command, *options, "--output_dir", tmp_path / "out") == 0
    finally:
        hook.remove()
    assert found == recomputed
    assert run_train(*command, "--output_dir", tmp_path / "default") == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "default")


@pytest.mark.slow
def test_compiled(evaluating, tmp_path):
    options = ["--eval_steps", "end", "--max_train_steps", 3]
    for name, compiled in (("eager", []), ("compiled", ["--torch_compile"])):
        assert run_train(*evaluating, *options, *compiled, "--output_dir", tmp_path / name) == 0
    losses = [
        [entry["loss"] for entry in history(tmp_path / name) if "loss" in entry] for name in ("eager", "compiled")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert results(tmp_path / "compiled")["eval_images"] == 3


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub, which huggingface_hub in this process takes for the real one."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with HubServer() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        yield hub


@pytest.mark.parametrize("shows_examples", [True, False])
def test_upload(shows_examples, hub, evaluating, tmp_path, monkeypatch):
    options = ["--push_to_hub", "--hub_private_repo", "--hub_token", hub.token, "--report_to", "tensorboard"]
    options += [] if shows_examples else ["--no-example_images"]
    output = tmp_path / "catseg-tiny"
    output.mkdir()
    (output / "diary.txt").write_text("my own")
    assert (
        run_train(*evaluating, *options, "--overwrite_output_dir", "--eval_steps", "end", "--output_dir", output) == 0
    )
    repository = hub.repositories["models", "tester/catseg-tiny"]
    assert repository.private
    assert set(repository.files) >= {"model.safetensors", "README.md", "modeling_catseg.py", "tokenizer.json"}
    assert not set(repository.files) & {"diary.txt", "training_state.json"}
    assert all(path in repository.files for path in ("predictions.png",)) == shows_examples
    assert ("predictions.png" in card(output)) == shows_examples
    assert repository.files["model.safetensors"] == (output / "model.safetensors").read_bytes()
    assert 'model="tester/catseg-tiny"' in card(output)
    for secret in (hub.token, str(tmp_path), str(evaluating[1].parent)):
        assert [name for name, content in repository.files.items() if secret.encode() in content] == []
    assert not [path for path in output.rglob("*") if path.is_file() and hub.token.encode() in path.read_bytes()]


def test_what_is_uploaded_can_be_loaded(hub, lora_run, tmp_path):
    """All that makes up a run's model, and its adapter, is on the list."""
    for name in published_files(lora_run):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(lora_run / name, tmp_path / name)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    model, processor = load_checkpoint(str(tmp_path))
    expected, _ = load_checkpoint(str(lora_run))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())
    assert processor(text=["one"]).input_ids.shape[0] == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_failed_upload(when, hub, command, tmp_path, capsys, monkeypatch):
    """Known before anything is trained where it can be known, and the model is kept otherwise."""
    output = tmp_path / "out"
    token = "hf_wrong" if when == "before" else hub.token
    if when == "after":
        monkeypatch.setattr(train, "create_repository", lambda name, private, token: f"nobody/{name}")
    options = ["--push_to_hub", "--hub_token", token, "--hub_model_id", "catseg-tiny"]
    assert run_train(*command, *options, "--output_dir", output) == 1
    error = capsys.readouterr().err
    if when == "before":
        assert "There is no writing to catseg-tiny on the Hub" in error and names(output) == set()
    else:
        assert f"{output} is complete: the same command with --resume_from_checkpoint latest" in error
        assert (output / "model.safetensors").exists()


def test_tracker_that_is_not_installed(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("catseg_training.report.trackers.filter_trackers", lambda *arguments, **options: [])
    assert run_train(*command, "--report_to", "wandb", "--output_dir", tmp_path / "out") == 1
    assert "--report_to wandb needs the package" in capsys.readouterr().err


def test_faults_of_the_program_keep_their_traceback(command, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "start_run", lambda *arguments: int("oops"))
    with pytest.raises(ValueError, match="invalid literal for int"):
        run_train(*command, "--output_dir", tmp_path / "out")


def test_a_second_ctrl_c_interrupts_at_once(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "start_run", lambda *arguments: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    assert run_train(*command, "--output_dir", tmp_path / "out") == 130
    assert "interrupted" in capsys.readouterr().err

"""The command line of train.py: the published recipe by default, and a sentence for what does not fit."""

import json

import pytest

from catseg_training.arguments import parse_arguments
from catseg_training.optimization import MAX_GRAD_NORM


BASE = ["--dataset_name", "data", "--output_dir", "out"]
START = ["--clip_model_name_or_path", "openai/clip-vit-base-patch16", *BASE]
CHECKPOINT = ["--model_name_or_path", "catseg-base", *BASE]


def test_published_recipe_by_default():
    args = parse_arguments(START)
    assert (args.learning_rate, args.clip_lr_multiplier, args.weight_decay) == (2e-4, 0.01, 1e-4)
    assert args.max_grad_norm == MAX_GRAD_NORM == 0.01
    assert args.num_warmup_steps == 0 and args.crop_size == 384 and args.color_jitter
    assert args.clip_finetuning == "attention" and args.lora_rank is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (BASE, "one of --model_name_or_path and --clip_model_name_or_path"),
        ([*START, "--model_name_or_path", "catseg-base"], "not both"),
        ([*START, "--eval_only"], "--eval_only needs --model_name_or_path"),
        ([*CHECKPOINT, "--eval_only", "--skip_evaluation"], "nothing to do"),
        ([*CHECKPOINT, "--eval_only", "--push_to_hub"], "leave --resume_from_checkpoint and --push_to_hub out"),
        ([*START, "--max_train_steps", "3", "--num_train_epochs", "3"], "not both"),
        ([*START, "--max_train_steps", "0"], "must be more than 0, got 0"),
        ([*START, "--learning_rate", "nan"], "must be more than 0, got nan"),
        ([*START, "--learning_rate", "fast"], "invalid float value: 'fast'"),
        ([*START, "--checkpointing_steps", "end"], "must be a number of steps or epoch, got 'end'"),
        ([*START, "--eval_steps", "-3"], "must be a number of steps or epoch or end, got '-3'"),
        ([*START, "--ignore_index", "65536"], "at most 65535"),
        ([*START, "--lora_rank", "4", "--clip_finetuning", "full"], "leave --clip_finetuning out"),
        ([*START, "--streaming"], "--streaming needs --max_train_steps"),
        ([*START, "--streaming", "--max_train_steps", "3", "--eval_steps", "epoch"], "not 'epoch'"),
        ([*START, "--resume_from_checkpoint", "latest", "--overwrite_output_dir"], "give one of them"),
        ([*START, "--hub_private_repo"], "need --push_to_hub"),
        ([*START, "--metric", "accuracy"], "invalid choice: 'accuracy'"),
        ([*START, "--learn", "1"], "unrecognized arguments: --learn"),
    ],
)
def test_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse_arguments(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_help_is_grouped(capsys):
    with pytest.raises(SystemExit) as end:
        parse_arguments(["--help"], "What it is for.")
    text = capsys.readouterr().out
    assert end.value.code == 0 and "What it is for." in text
    assert all(
        f"\n{group}" in text for group in ("model", "data", "recipe", "run", "evaluation", "checkpoints", "output")
    )
    assert "80,000" in text and "default: 0.0002" in text


def test_recorded_without_the_token():
    recorded = parse_arguments([*START, "--hub_token", "hf_secret"]).recorded()
    assert "hf_secret" not in json.dumps(recorded) and recorded["output_dir"] == "out"


@pytest.mark.parametrize(
    ("given", "kept"),
    [("/home/me/data", "data"), ("~/data", "data"), ("../data", "data"), ("data/coco", "data/coco"), ("a/b", "a/b")],
)
def test_recorded_without_places_of_this_machine(given, kept):
    args = parse_arguments([*START, "--dataset_name", given, "--output_dir", given])
    assert args.recorded()["dataset_name"] == args.recorded()["output_dir"] == kept

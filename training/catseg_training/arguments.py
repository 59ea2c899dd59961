"""The command line of train.py."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catseg_hf import VOCABULARIES

from .data.examples import LABEL_IDS
from .evaluation import METRICS
from .optimization import MAX_GRAD_NORM


PUBLISHED_BATCH_SIZE = 4
PUBLISHED_TRAIN_STEPS = 80_000
TRACKERS = ("tensorboard", "wandb", "trackio", "all", "none")

# What must not change when a run is resumed: the weights would be those of neither run.
FIXED_ARGUMENTS = (
    "seed",
    "dataset_config_name",
    "train_split",
    "label_ids",
    "reduce_labels",
    "streaming",
    "crop_size",
    "color_jitter",
    "clip_finetuning",
    "lora_rank",
    "learning_rate",
    "clip_lr_multiplier",
    "weight_decay",
    "num_warmup_steps",
    "max_grad_norm",
)
# What may change, with a warning.
WATCHED_ARGUMENTS = ("dataset_name", "model_name_or_path", "clip_model_name_or_path", "max_train_steps")


def parse_arguments(arguments: Sequence[str] | None = None, description: str | None = None) -> argparse.Namespace:
    """
    Parses and checks the command line; what is wrong with it ends the program as argparse does.

    Args:
        arguments (`Sequence[str]`, *optional*): Those of the process if not given.
        description (`str`, *optional*): What `--help` begins with.
    """
    parser = build_parser(description)
    args = parser.parse_args(arguments)
    _check(parser, args)
    return args


def build_parser(description: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    _add_model_arguments(parser.add_argument_group("model (one of the first two)"))
    _add_data_arguments(parser.add_argument_group("data"))
    _add_recipe_arguments(parser.add_argument_group("recipe (the defaults are the published one)"))
    _add_run_arguments(parser.add_argument_group("run"))
    _add_evaluation_arguments(parser.add_argument_group("evaluation"))
    _add_checkpoint_arguments(parser.add_argument_group("checkpoints"))
    _add_output_arguments(parser.add_argument_group("output"))
    return parser


def _add_model_arguments(group: argparse._ArgumentGroup):
    group.add_argument(
        "--model_name_or_path",
        metavar="NAME_OR_DIR",
        help="start from a CAT-Seg checkpoint: a converted one, or one that this script has written",
    )
    group.add_argument(
        "--clip_model_name_or_path",
        metavar="NAME_OR_DIR",
        help="start from a CLIP checkpoint and a fresh aggregator; the architecture follows from CLIP's "
        "(openai/clip-vit-base-patch16 gives the base model, openai/clip-vit-large-patch14-336 the large one)",
    )
    group.add_argument(
        "--vocabulary",
        metavar="NAME_OR_JSON",
        help=f"the classes: one of {', '.join(VOCABULARIES)}, or a JSON file with a list of names or a mapping of ids "
        "to names (default: the checkpoint's own; coco_stuff_171 when starting from CLIP)",
    )
    group.add_argument(
        "--clip_finetuning",
        choices=("attention", "full", "none"),
        default="attention",
        help="what of CLIP is trained: the query and value projections of its attention, all, or nothing "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--lora_rank",
        type=positive(int),
        metavar="R",
        help="train LoRA of this rank on those projections instead of their weights, and save an adapter for peft",
    )


def _add_data_arguments(group: argparse._ArgumentGroup):
    group.add_argument(
        "--dataset_name",
        required=True,
        metavar="NAME_OR_DIR",
        help="a COCO-Stuff download (images/ and stuffthingmaps/), a folder with images/SPLIT and labels/SPLIT, any "
        "folder or file that datasets.load_dataset reads, or a data set on the Hub",
    )
    group.add_argument("--dataset_config_name", metavar="NAME", help="configuration of a data set that has several")
    group.add_argument(
        "--train_split", default="train", metavar="SPLIT", help="what to train on (default: %(default)s)"
    )
    group.add_argument(
        "--eval_split", default="validation", metavar="SPLIT", help="what to evaluate on (default: %(default)s)"
    )
    group.add_argument("--image_column", metavar="NAME", help="column of the pictures (default: found by its type)")
    group.add_argument("--label_column", metavar="NAME", help="column of the label maps (default: found by its type)")
    group.add_argument(
        "--label_ids",
        choices=LABEL_IDS,
        help="what the labels hold: positions in the vocabulary, or COCO-Stuff's raw ids (default: raw for a "
        "COCO-Stuff download, positions for everything else)",
    )
    group.add_argument(
        "--reduce_labels",
        "--do_reduce_labels",
        action="store_true",
        help="the ids begin at 1 and 0 is unlabelled, as in ADE20K",
    )
    group.add_argument(
        "--ignore_index",
        type=positive(int),
        metavar="ID",
        help="label of pixels of no class, up to 65535 (default: the model's, 255; 65535 if that is a class)",
    )
    group.add_argument("--max_train_samples", type=positive(int), metavar="N", help="train on the first N pictures")
    group.add_argument("--max_eval_samples", type=positive(int), metavar="N", help="evaluate on the first N pictures")
    group.add_argument(
        "--streaming",
        action="store_true",
        help="read training pictures as they come instead of downloading the data set first; the undecoded pictures "
        "of the evaluation are held in memory. Needs --max_train_steps; a resumed run reads the pass that it was in "
        "again up to where it was",
    )
    group.add_argument(
        "--dataloader_num_workers",
        type=positive(int, or_zero=True),
        default=2,
        metavar="N",
        help="processes that prepare pictures, for every training process (default: %(default)s)",
    )


def _add_recipe_arguments(group: argparse._ArgumentGroup):
    group.add_argument(
        "--learning_rate", type=positive(float), default=2e-4, metavar="RATE", help="(default: %(default)s)"
    )
    group.add_argument(
        "--clip_lr_multiplier",
        type=positive(float, or_zero=True),
        default=0.01,
        metavar="X",
        help="CLIP's learning rate, as a share of it (default: %(default)s)",
    )
    group.add_argument(
        "--weight_decay",
        type=positive(float, or_zero=True),
        default=1e-4,
        metavar="X",
        help="of everything but norms and embeddings (default: %(default)s)",
    )
    group.add_argument(
        "--max_grad_norm",
        type=positive(float),
        default=MAX_GRAD_NORM,
        metavar="X",
        help="norm that all gradients together are clipped to (default: %(default)s)",
    )
    group.add_argument(
        "--num_warmup_steps",
        type=positive(int, or_zero=True),
        default=0,
        metavar="N",
        help="steps over which the learning rate grows, before its cosine decay to 0 (default: %(default)s)",
    )
    group.add_argument(
        "--max_train_steps",
        type=positive(int),
        metavar="N",
        help=f"optimizer steps in all (default: {PUBLISHED_TRAIN_STEPS:,})",
    )
    group.add_argument(
        "--num_train_epochs", type=positive(float), metavar="X", help="passes over the pictures, instead of steps"
    )
    group.add_argument(
        "--per_device_train_batch_size",
        type=positive(int),
        metavar="N",
        help=f"pictures for one process at a time (default: so that a step has {PUBLISHED_BATCH_SIZE} in all)",
    )
    group.add_argument(
        "--gradient_accumulation_steps",
        type=positive(int),
        default=1,
        metavar="N",
        help="batches of every process that one optimizer step takes (default: %(default)s)",
    )
    group.add_argument(
        "--crop_size",
        type=positive(int),
        default=384,
        metavar="PIXELS",
        help="side of the crops (default: %(default)s)",
    )
    group.add_argument(
        "--color_jitter",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="change brightness, contrast and colours of the crops (default: %(default)s)",
    )
    group.add_argument(
        "--seed",
        type=positive(int, or_zero=True),
        default=42,
        metavar="N",
        help="of the fresh aggregator, the order of the pictures and their augmentation (default: %(default)s)",
    )


def _add_run_arguments(group: argparse._ArgumentGroup):
    group.add_argument(
        "--mixed_precision",
        choices=("no", "fp16", "bf16"),
        help="(default: what `accelerate config` or `accelerate launch` was told)",
    )
    group.add_argument(
        "--gradient_checkpointing", action="store_true", help="compute activations twice rather than keep them"
    )
    group.add_argument("--torch_compile", action="store_true", help="compile the training step's forward pass")
    group.add_argument(
        "--logging_steps",
        type=positive(int),
        default=50,
        metavar="N",
        help="log loss, learning rates, gradient norm, speed and memory every N steps (default: %(default)s)",
    )
    group.add_argument(
        "--report_to",
        choices=TRACKERS,
        default="none",
        help='where to log to as well; "all" is every one that is installed (default: %(default)s)',
    )


def _add_evaluation_arguments(group: argparse._ArgumentGroup):
    group.add_argument("--eval_only", action="store_true", help="evaluate --model_name_or_path and train nothing")
    group.add_argument("--skip_evaluation", action="store_true", help="never evaluate; --eval_split may be missing")
    group.add_argument(
        "--eval_steps",
        type=schedule("epoch", "end"),
        metavar="N|epoch|end",
        help="evaluate every N steps, after every epoch or at the end only (default: at every checkpoint); always at "
        "the end too",
    )
    group.add_argument(
        "--sliding_window",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="average four windows and a global view, as published, or look at a picture once (default: as the "
        "model's configuration says, which is with windows)",
    )
    group.add_argument("--per_device_eval_batch_size", type=positive(int), default=1, metavar="N", help="(default: 1)")
    group.add_argument(
        "--metric",
        choices=METRICS,
        default=METRICS[0],
        help="this project's confusion matrix, or evaluate's mean_iou from the Hub, which keeps all label maps "
        "(default: %(default)s)",
    )


def _add_checkpoint_arguments(group: argparse._ArgumentGroup):
    group.add_argument(
        "--checkpointing_steps",
        type=schedule("epoch"),
        default=5000,
        metavar="N|epoch",
        help="write OUTPUT_DIR/checkpoint-STEP every N steps or after every epoch (default: %(default)s); always at "
        "the end and on SIGTERM too",
    )
    group.add_argument(
        "--checkpoints_total_limit",
        type=positive(int),
        metavar="N",
        help="keep the last N; older ones are removed once a new one is complete (default: all)",
    )
    group.add_argument(
        "--resume_from_checkpoint",
        metavar="latest|DIR",
        help="continue exactly where a checkpoint was written; latest starts anew if there is none",
    )


def _add_output_arguments(group: argparse._ArgumentGroup):
    group.add_argument("--output_dir", required=True, type=Path, metavar="DIR", help="folder for all that is written")
    group.add_argument(
        "--overwrite_output_dir",
        action="store_true",
        help="start anew in a folder that is not empty: its checkpoints are removed, other files replaced one by one",
    )
    group.add_argument("--push_to_hub", action="store_true", help="upload the trained model with its card")
    group.add_argument("--hub_model_id", metavar="NAME", help="where to (default: the name of OUTPUT_DIR)")
    group.add_argument("--hub_private_repo", action="store_true", help="make that repository private if it is new")
    group.add_argument("--hub_token", metavar="TOKEN", help="for the Hub (default: the one that is logged in)")


def positive(kind: type, or_zero: bool = False):
    """An argparse type: a finite number above 0, or at least 0."""

    def parse(text: str) -> Any:
        number = kind(text)
        if not math.isfinite(number) or number < 0 or (number == 0 and not or_zero):
            raise argparse.ArgumentTypeError(f"must be {'at least' if or_zero else 'more than'} 0, got {text}")
        return number

    parse.__name__ = kind.__name__
    return parse


def schedule(*words: str):
    """An argparse type: a positive number of steps, or one of `words`."""

    def parse(text: str) -> int | str:
        if text in words:
            return text
        if not text.isdecimal() or int(text) == 0:
            raise argparse.ArgumentTypeError(f"must be a number of steps or {' or '.join(words)}, got {text!r}")
        return int(text)

    return parse


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace):
    if (args.model_name_or_path is None) == (args.clip_model_name_or_path is None):
        parser.error("give one of --model_name_or_path and --clip_model_name_or_path, and not both")
    if args.eval_only and args.model_name_or_path is None:
        parser.error("--eval_only needs --model_name_or_path: a fresh aggregator has learned nothing yet")
    if args.eval_only and args.skip_evaluation:
        parser.error("--eval_only and --skip_evaluation leave nothing to do")
    if args.eval_only and (args.resume_from_checkpoint is not None or args.push_to_hub):
        parser.error("--eval_only trains and uploads nothing: leave --resume_from_checkpoint and --push_to_hub out")
    if args.max_train_steps is not None and args.num_train_epochs is not None:
        parser.error("give --max_train_steps or --num_train_epochs, not both")
    if args.lora_rank is not None and args.clip_finetuning != "attention":
        parser.error("--lora_rank trains CLIP's attention: leave --clip_finetuning out")
    if args.ignore_index is not None and args.ignore_index > 65535:
        parser.error(f"--ignore_index must be at most 65535, got {args.ignore_index}")
    if args.streaming and not args.eval_only:
        if args.max_train_steps is None:
            parser.error("--streaming needs --max_train_steps: the number of pictures is not known")
        if "epoch" in (args.checkpointing_steps, args.eval_steps):
            parser.error("--streaming needs numbers for --checkpointing_steps and --eval_steps, not 'epoch'")
    if args.resume_from_checkpoint is not None and args.overwrite_output_dir:
        parser.error("--resume_from_checkpoint continues and --overwrite_output_dir starts anew: give one of them")
    if not args.push_to_hub and (args.hub_model_id is not None or args.hub_private_repo):
        parser.error("--hub_model_id and --hub_private_repo need --push_to_hub")


def recorded_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments as JSON values, to be kept with the results: without the token."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    del values["hub_token"]
    return values

"""The command line of train.py."""

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from catseg_hf import VOCABULARIES
from catseg_hf.commands.model_options import MODEL_HELP
from catseg_hf.utils.files import read_json

from .data.examples import LABEL_IDS
from .evaluation import METRICS
from .optimization import MAX_GRAD_NORM
from .workers import DEFAULT_NUM_WORKERS


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
    "value_range",
    "streaming",
    "crop_size",
    "color_jitter",
    "clip_finetuning",
    "config_overrides",
    "prior_probability",
    "classes_per_step",
    "lora_rank",
    "learning_rate",
    "clip_lr_multiplier",
    "weight_decay",
    "num_warmup_steps",
    "max_grad_norm",
)
# What may change, with a warning.
WATCHED_ARGUMENTS = ("dataset_name", "model_name_or_path", "clip_model_name_or_path", "max_train_steps")

MODEL, DATA = "model (one of the first two)", "data"
RECIPE, RUN = "recipe (the defaults are the published one)", "run"
EVALUATION, CHECKPOINTS, OUTPUT = "evaluation", "checkpoints", "output"


def positive(kind: type, or_zero: bool = False) -> Callable[[str], Any]:
    """An argparse type: a finite number above 0, or at least 0."""

    def parse(text: str) -> Any:
        number = kind(text)
        if not math.isfinite(number) or number < 0 or (number == 0 and not or_zero):
            raise argparse.ArgumentTypeError(f"must be {'at least' if or_zero else 'more than'} 0, got {text}")
        return number

    parse.__name__ = kind.__name__
    return parse


def schedule(*words: str) -> Callable[[str], int | str]:
    """An argparse type: a positive number of steps, or one of `words`."""

    def parse(text: str) -> int | str:
        if text in words:
            return text
        if not text.isdecimal() or int(text) == 0:
            raise argparse.ArgumentTypeError(f"must be a number of steps or {' or '.join(words)}, got {text!r}")
        return int(text)

    return parse


def share(text: str) -> float:
    """An argparse type: a number between 0 and 1, both excluded."""
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return number


def json_object(text: str) -> dict[str, Any]:
    """An argparse type: the object in a JSON file."""
    try:
        value = read_json(text)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text} is no JSON file ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text} must hold an object of names and values, got {value!r}")
    return value


def option(group: str, help: str, type: Callable | None = None, default: Any = None, **settings: Any) -> Any:
    """A field that is an option of the command line: its group there, and what `argparse` is told about it."""
    if type is not None:
        settings["type"] = type
    return dataclasses.field(default=default, metadata={"group": group, "help": help, **settings})


def flag(group: str, help: str, *aliases: str) -> Any:
    """An option that is given or not."""
    return option(group, help, default=False, action="store_true", aliases=aliases)


def switch(group: str, help: str, default: bool | None) -> Any:
    """An option that is given as `--name` or as `--no-name`."""
    return option(group, help, default=default, action=argparse.BooleanOptionalAction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """What train.py is told. Options that may be left open are filled in by [`start_run`], in a copy."""

    model_name_or_path: str | None = option(
        MODEL,
        f"start from a CAT-Seg checkpoint, as converted or as this script has written it: {MODEL_HELP}",
        metavar="NAME_OR_DIR",
    )
    clip_model_name_or_path: str | None = option(
        MODEL,
        "start from a CLIP checkpoint and a fresh aggregator; the architecture follows from CLIP's "
        "(openai/clip-vit-base-patch16 gives the base model, openai/clip-vit-large-patch14-336 the large one)",
        metavar="NAME_OR_DIR",
    )
    config_overrides: dict[str, Any] | None = option(
        MODEL,
        "a JSON file with fields of CATSegConfig for that fresh aggregator, where the published ones do not suit: "
        "image_size, window_size, hidden_size, ...",
        json_object,
        metavar="JSON",
    )
    prior_probability: float | None = option(
        MODEL,
        "of a class in a pixel, that the fresh aggregator starts from: the smaller, the less the first steps spend on "
        "classes that are not there (default: the bias of the last convolution is drawn like any other)",
        share,
        metavar="P",
    )
    vocabulary: str | None = option(
        MODEL,
        f"the classes: one of {', '.join(VOCABULARIES)}, or a JSON file with a list of names or a mapping of ids to "
        "names (default: the checkpoint's own; coco_stuff_171 when starting from CLIP)",
        metavar="NAME_OR_JSON",
    )
    clip_finetuning: str = option(
        MODEL,
        "what of CLIP is trained: the query and value projections of its attention, all, or nothing "
        "(default: %(default)s)",
        default="attention",
        choices=("attention", "full", "none"),
    )
    lora_rank: int | None = option(
        MODEL,
        "train LoRA of this rank on those projections instead of their weights; the adapter is saved beside the "
        "merged model",
        positive(int),
        metavar="R",
    )

    dataset_name: str = option(
        DATA,
        "a COCO-Stuff download (images/ and stuffthingmaps/), a folder with images/SPLIT and labels/SPLIT, any folder "
        "or file that datasets.load_dataset reads, or a dataset on the Hub",
        required=True,
        metavar="NAME_OR_DIR",
    )
    dataset_config_name: str | None = option(DATA, "configuration of a dataset that has several", metavar="NAME")
    train_split: str = option(DATA, "what to train on (default: %(default)s)", default="train", metavar="SPLIT")
    eval_split: str = option(DATA, "what to evaluate on (default: %(default)s)", default="validation", metavar="SPLIT")
    image_column: str | None = option(DATA, "column of the images (default: found by its type)", metavar="NAME")
    label_column: str | None = option(DATA, "column of the label maps (default: found by its type)", metavar="NAME")
    label_ids: str | None = option(
        DATA,
        "what the labels hold: positions in the vocabulary, or COCO-Stuff's raw ids (default: raw for a COCO-Stuff "
        "download, positions for everything else)",
        choices=LABEL_IDS,
    )
    reduce_labels: bool = flag(DATA, "the ids begin at 1 and 0 is unlabelled, as in ADE20K", "--do_reduce_labels")
    value_range: list[float] | None = option(
        DATA,
        "stored values of images that are black and white, where they use another part of their type's range, such as "
        "0 3000; saved with the processor (default: the processor's, else 0 255 of 8 bits and 0 65535 of 16)",
        float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        aliases=("--range",),
    )
    ignore_index: int | None = option(
        DATA,
        "label of pixels of no class, up to 65535 (default: the model's, 255; 65535 if that is a class)",
        positive(int),
        metavar="ID",
    )
    max_train_samples: int | None = option(DATA, "train on the first N images", positive(int), metavar="N")
    max_eval_samples: int | None = option(DATA, "evaluate on the first N images", positive(int), metavar="N")
    streaming: bool = flag(
        DATA,
        "read training images as they come instead of downloading the dataset first; the undecoded images of the "
        "evaluation are held in memory. Needs --max_train_steps; a resumed run reads the pass that it was in again up "
        "to where it was",
    )
    dataloader_num_workers: int = option(
        DATA,
        "processes that prepare images, for every training process (default: 2, or 1 where there is one CPU)",
        positive(int, or_zero=True),
        default=DEFAULT_NUM_WORKERS,
        metavar="N",
    )

    training_vocabulary: str | None = option(
        RECIPE,
        "the classes that training labels name, a part of the vocabulary: no step shows the model any other (default: "
        "the whole vocabulary)",
        metavar="NAME_OR_JSON",
    )
    classes_per_step: int | None = option(
        RECIPE,
        "train on N classes at a time, drawn anew for each batch: those in it, and of the others two thirds that its "
        "images are most similar to (default: all)",
        positive(int),
        metavar="N",
    )
    learning_rate: float = option(RECIPE, "(default: %(default)s)", positive(float), default=2e-4, metavar="RATE")
    clip_lr_multiplier: float = option(
        RECIPE,
        "CLIP's learning rate, as a share of it (default: %(default)s)",
        positive(float, or_zero=True),
        default=0.01,
        metavar="X",
    )
    weight_decay: float = option(
        RECIPE,
        "of everything but norms and embeddings (default: %(default)s)",
        positive(float, or_zero=True),
        default=1e-4,
        metavar="X",
    )
    max_grad_norm: float = option(
        RECIPE,
        "norm that all gradients together are clipped to (default: %(default)s)",
        positive(float),
        default=MAX_GRAD_NORM,
        metavar="X",
    )
    num_warmup_steps: int = option(
        RECIPE,
        "steps over which the learning rate grows, before its cosine decay to 0 (default: %(default)s)",
        positive(int, or_zero=True),
        default=0,
        metavar="N",
    )
    max_train_steps: int | None = option(
        RECIPE, f"optimizer steps in all (default: {PUBLISHED_TRAIN_STEPS:,})", positive(int), metavar="N"
    )
    num_train_epochs: float | None = option(
        RECIPE, "passes over the images, instead of steps", positive(float), metavar="X"
    )
    per_device_train_batch_size: int | None = option(
        RECIPE,
        f"images for one process at a time (default: so that a step has {PUBLISHED_BATCH_SIZE} in all)",
        positive(int),
        metavar="N",
    )
    gradient_accumulation_steps: int = option(
        RECIPE,
        "batches of every process that one optimizer step takes (default: %(default)s)",
        positive(int),
        default=1,
        metavar="N",
    )
    crop_size: int = option(
        RECIPE, "side of the crops (default: %(default)s)", positive(int), default=384, metavar="PIXELS"
    )
    color_jitter: bool = switch(
        RECIPE, "change brightness, contrast and colours of the crops (default: %(default)s)", default=True
    )
    seed: int = option(
        RECIPE,
        "of the fresh aggregator, the order of the images and their augmentation (default: %(default)s)",
        positive(int, or_zero=True),
        default=42,
        metavar="N",
    )

    mixed_precision: str | None = option(
        RUN, "(default: what `accelerate config` or `accelerate launch` was told)", choices=("no", "fp16", "bf16")
    )
    gradient_checkpointing: bool | None = switch(
        RUN,
        "compute the activations of all layers twice, which saves memory, or keep all of them, which saves time "
        "(default: CLIP's are kept)",
        default=None,
    )
    torch_compile: bool = flag(RUN, "compile the training step's forward pass")
    logging_steps: int = option(
        RUN,
        "log loss, learning rates, gradient norm, speed and memory every N steps (default: %(default)s)",
        positive(int),
        default=50,
        metavar="N",
    )
    report_to: str = option(
        RUN,
        'where to log to as well; "all" is every one that is installed (default: %(default)s)',
        default="none",
        choices=TRACKERS,
    )

    eval_only: bool = flag(EVALUATION, "evaluate --model_name_or_path and train nothing")
    skip_evaluation: bool = flag(EVALUATION, "never evaluate; --eval_split may be missing")
    eval_steps: int | str | None = option(
        EVALUATION,
        "evaluate every N steps, after every epoch or at the end only (default: at every checkpoint); always at the "
        "end too",
        schedule("epoch", "end"),
        metavar="N|epoch|end",
    )
    sliding_window: bool | None = switch(
        EVALUATION,
        "average four windows and a global view, as published, or look at an image once (default: as the model's "
        "configuration says, which is with windows)",
        default=None,
    )
    per_device_eval_batch_size: int = option(EVALUATION, "(default: 1)", positive(int), default=1, metavar="N")
    metric: str = option(
        EVALUATION,
        "this project's confusion matrix, or evaluate's mean_iou from the Hub, which keeps all label maps "
        "(default: %(default)s)",
        default=METRICS[0],
        choices=METRICS,
    )

    example_images: bool = switch(
        EVALUATION,
        "draw predictions.png, images of the evaluation split with their labels, predictions and names, which is "
        "uploaded with the model (default: %(default)s)",
        default=True,
    )

    checkpointing_steps: int | str = option(
        CHECKPOINTS,
        "write OUTPUT_DIR/checkpoint-STEP every N steps or after every epoch (default: %(default)s); always at the "
        "end, on SIGTERM and on Ctrl-C too",
        schedule("epoch"),
        default=5000,
        metavar="N|epoch",
    )
    checkpoints_total_limit: int | None = option(
        CHECKPOINTS,
        "keep the last N; older ones are removed once a new one is complete (default: all)",
        positive(int),
        metavar="N",
    )
    resume_from_checkpoint: str | None = option(
        CHECKPOINTS,
        "continue exactly where a checkpoint was written; latest starts anew if there is none",
        metavar="latest|DIR",
    )

    output_dir: Path = option(OUTPUT, "folder for all that is written", Path, required=True, metavar="DIR")
    overwrite_output_dir: bool = flag(
        OUTPUT,
        "start anew in a folder that is not empty: its checkpoints are removed, other files replaced one by one",
    )
    push_to_hub: bool = flag(OUTPUT, "upload the trained model with its card")
    hub_model_id: str | None = option(OUTPUT, "where to (default: the name of OUTPUT_DIR)", metavar="NAME")
    hub_private_repo: bool = flag(OUTPUT, "make that repository private if it is new")
    hub_token: str | None = option(OUTPUT, "for the Hub (default: the one that is logged in)", metavar="TOKEN")

    def recorded(self) -> dict[str, Any]:
        """As JSON values, to be kept with the results, which may be published: without the token, and of absolute
        paths the last part only."""
        values = {name: _without_place(value) for name, value in vars(self).items()}
        del values["hub_token"]
        return values


def _without_place(value: Any) -> Any:
    if not isinstance(value, str | Path):
        return value
    path = Path(value).expanduser()
    return path.name if path.is_absolute() or ".." in path.parts else str(value)


def parse_arguments(arguments: Sequence[str] | None = None, description: str | None = None) -> TrainArguments:
    """
    Parses and checks the command line; what is wrong with it ends the program as argparse does.

    Args:
        arguments (`Sequence[str]`, *optional*): Those of the process if not given.
        description (`str`, *optional*): What `--help` begins with.
    """
    parser = build_parser(description)
    args = TrainArguments(**vars(parser.parse_args(arguments)))
    for is_wrong, message in _contradictions(args):
        if is_wrong:
            parser.error(message)
    return args


def build_parser(description: str | None = None) -> argparse.ArgumentParser:
    """A parser with an option for every field of [`TrainArguments`]."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    groups = {}
    for field in dataclasses.fields(TrainArguments):
        settings = dict(field.metadata)
        title, aliases = settings.pop("group"), settings.pop("aliases", ())
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        group.add_argument(f"--{field.name}", *aliases, dest=field.name, default=field.default, **settings)
    return parser


def _contradictions(args: TrainArguments) -> list[tuple[bool, str]]:
    """What cannot be asked for together: whether it was, and what to say then."""
    of_fresh_aggregator = [
        (
            args.clip_model_name_or_path is None and getattr(args, name) is not None,
            f"--{name} is for a fresh aggregator: give it with --clip_model_name_or_path",
        )
        for name in ("config_overrides", "prior_probability")
    ]
    trains_stream = args.streaming and not args.eval_only
    return of_fresh_aggregator + [
        (
            (args.model_name_or_path is None) == (args.clip_model_name_or_path is None),
            "give one of --model_name_or_path and --clip_model_name_or_path, and not both",
        ),
        (
            args.eval_only and args.model_name_or_path is None,
            "--eval_only needs --model_name_or_path: a fresh aggregator has learned nothing yet",
        ),
        (args.eval_only and args.skip_evaluation, "--eval_only and --skip_evaluation leave nothing to do"),
        (
            args.eval_only and (args.resume_from_checkpoint is not None or args.push_to_hub),
            "--eval_only trains and uploads nothing: leave --resume_from_checkpoint and --push_to_hub out",
        ),
        (
            args.max_train_steps is not None and args.num_train_epochs is not None,
            "give --max_train_steps or --num_train_epochs, not both",
        ),
        (
            args.lora_rank is not None and args.clip_finetuning != "attention",
            "--lora_rank trains CLIP's attention: leave --clip_finetuning out",
        ),
        (
            args.ignore_index is not None and args.ignore_index > 65535,
            f"--ignore_index must be at most 65535, got {args.ignore_index}",
        ),
        (
            trains_stream and args.max_train_steps is None,
            "--streaming needs --max_train_steps: the number of images is not known",
        ),
        (
            trains_stream and "epoch" in (args.checkpointing_steps, args.eval_steps),
            "--streaming needs numbers for --checkpointing_steps and --eval_steps, not 'epoch'",
        ),
        (
            args.resume_from_checkpoint is not None and args.overwrite_output_dir,
            "--resume_from_checkpoint continues and --overwrite_output_dir starts anew: give one of them",
        ),
        (
            not args.push_to_hub and (args.hub_model_id is not None or args.hub_private_repo),
            "--hub_model_id and --hub_private_repo need --push_to_hub",
        ),
    ]

"""Trains CAT-Seg, by the published recipe unless told otherwise.

From CLIP on COCO-Stuff, the base and the large model (DIR has images/ and stuffthingmaps/ as downloaded):

  accelerate launch training/train.py --clip_model_name_or_path openai/clip-vit-base-patch16 \\
      --dataset_name DIR --output_dir catseg-base
  accelerate launch training/train.py --clip_model_name_or_path openai/clip-vit-large-patch14-336 \\
      --dataset_name DIR --output_dir catseg-large

From a converted checkpoint on data of one's own (DIR has images/train, labels/train, images/validation and
labels/validation; classes.json lists the classes' names):

  accelerate launch training/train.py --model_name_or_path base --vocabulary classes.json \\
      --dataset_name DIR --max_train_steps 5000 --output_dir catseg-mine

The same command with --resume_from_checkpoint latest continues a run that ended, exactly. One process needs no
`accelerate launch`: `python training/train.py` does.

Exit status: 0 when done, 1 after an error, 130 after Ctrl-C and 143 after SIGTERM. On either signal it writes a
checkpoint first; a second Ctrl-C ends it at once.
"""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, set_seed
from tqdm.contrib.logging import logging_redirect_tqdm

from catseg_hf.errors import UserError, reports_errors
from catseg_hf.utils.files import replaced_together
from catseg_training.arguments import TrainArguments, parse_arguments
from catseg_training.checkpoints import save_unwrapped
from catseg_training.interruption import Stopped, TerminationNotice
from catseg_training.loop import NonFiniteError, train
from catseg_training.processes import build_accelerator, usable_precision
from catseg_training.report.card import TrainingData
from catseg_training.report.hub import create_repository, upload
from catseg_training.report.results import write_results
from catseg_training.report.saved_model import environment, save_trained_model, training_results
from catseg_training.report.trackers import choose_trackers, start_trackers
from catseg_training.run import Run
from catseg_training.start import start_run
from catseg_training.workers import explained_ends_of_workers


logger = get_logger("catseg_training")


@reports_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    args = parse_arguments(arguments, __doc__)
    accelerator = build_run_accelerator(args)
    with logging_redirect_tqdm(), explained_ends_of_workers(), TerminationNotice(accelerator) as notice:
        try:
            is_done = (evaluate_only if args.eval_only else train_and_save)(args, accelerator, notice)
        except Stopped:  # before the first step: nothing is lost
            is_done = False
    accelerator.end_training()
    return 0 if is_done else notice.exit_status


def build_run_accelerator(args: TrainArguments) -> Accelerator:
    precision = usable_precision(args.mixed_precision)
    accelerator = build_accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=precision,
        log_with=choose_trackers(args.report_to),
        project_config=ProjectConfiguration(str(args.output_dir), logging_dir=str(args.output_dir / "logs")),
        # The scheduler counts optimizer steps, not those of all processes together.
        step_scheduler_with_optimizer=False,
    )
    if precision != args.mixed_precision:
        logger.warning(
            f"--mixed_precision {args.mixed_precision or 'bf16'} is known to be faster than float32 on CPUs with "
            "AVX-512's instructions for bfloat16 only, which this one lacks: training in float32, as with "
            "--mixed_precision no."
        )
    save_unwrapped(accelerator)
    if not accelerator.is_main_process:
        datasets.disable_progress_bars()
    set_seed(args.seed)
    return accelerator


def train_and_save(args: TrainArguments, accelerator: Accelerator, notice: TerminationNotice) -> bool:
    """A whole run; returns whether it came to its end."""
    run = start_run(args, accelerator, notice)
    args = run.args
    name, repository = args.output_dir.resolve().name, None
    if args.push_to_hub and accelerator.is_main_process:
        name = repository = create_repository(args.hub_model_id or name, args.hub_private_repo, args.hub_token)
    start_trackers(accelerator, args.recorded(), run.state.run_id, run.state.step + 1)
    try:
        is_done = train(run)
    except NonFiniteError as error:
        raise UserError(explain(run, error)) from None
    if not is_done:
        logger.warning(
            f"Stopped by {signal.Signals(notice.received).name}: continue with --resume_from_checkpoint latest."
        )
        return False

    scores = {} if run.evaluation is None else run.evaluation.scores
    results = {**scores, **training_results(args, accelerator, run.state)}
    save_trained_model(args, accelerator, run.model, run.processor, run.state, results, training_data(run), name)
    logger.info(f"Wrote the trained model to {args.output_dir}")
    if repository is not None:
        logger.info(f"Uploaded it: {upload(args.output_dir, repository, args.hub_token)}")
    return True


def evaluate_only(args: TrainArguments, accelerator: Accelerator, notice: TerminationNotice) -> bool:
    """Evaluates the checkpoint that is given; returns whether it came to the end."""
    run = start_run(args, accelerator, notice)
    start_trackers(accelerator, args.recorded(), run.state.run_id, run.state.step)
    if not run.evaluate():
        return False
    if accelerator.is_main_process:
        results = run.evaluation.scores | {
            "environment": environment(accelerator),
            "arguments": args.recorded(),
        }
        with replaced_together(args.output_dir) as folder:
            write_results(folder, results, run.config.label_names)
        logger.info(f"Wrote {args.output_dir / 'all_results.json'}")
    return True


def explain(run: Run, error: NonFiniteError) -> str:
    """What to tell the user of a step that failed."""
    what = "gradient" if error.losses.isfinite().all() else "loss"
    return (
        f"The {what} of step {run.state.step + 1} is not finite ({error}). Images: "
        f"{run.describe_batches(error.losses)}. Nothing was updated, and the checkpoints in {run.args.output_dir} are "
        "as they were. Look at these images and their labels; otherwise a lower --learning_rate or "
        "--mixed_precision no may help."
    )


def training_data(run: Run) -> TrainingData:
    """What the card says of the data."""
    args = run.args
    return TrainingData(
        name=args.dataset_name,
        config_name=args.dataset_config_name,
        train_split=args.train_split,
        eval_split=None if run.eval_images is None else args.eval_split,
        num_train_samples=run.state.run["num_train_examples"],
        num_eval_samples=None if run.eval_images is None else len(run.eval_images),
        on_hub=not Path(args.dataset_name).expanduser().exists(),
    )


if __name__ == "__main__":
    sys.exit(main())

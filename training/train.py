"""Trains CAT-Seg, by the published recipe unless told otherwise.

From CLIP on COCO-Stuff, the base and the large model (DIR has images/ and stuffthingmaps/ as downloaded):

  accelerate launch training/train.py --clip_model_name_or_path openai/clip-vit-base-patch16 \\
      --dataset_name DIR --output_dir catseg-base
  accelerate launch training/train.py --clip_model_name_or_path openai/clip-vit-large-patch14-336 \\
      --dataset_name DIR --output_dir catseg-large

From a converted checkpoint on data of one's own (DIR has images/train, labels/train, images/validation and
labels/validation; classes.json lists the classes' names):

  accelerate launch training/train.py --model_name_or_path catseg-base --vocabulary classes.json \\
      --dataset_name DIR --max_train_steps 5000 --output_dir catseg-mine

The same command with --resume_from_checkpoint latest continues a run that ended, exactly. One process needs no
`accelerate launch`: `python training/train.py` does.

Exit status: 0 when done, 1 after an error, 130 after Ctrl-C, 143 after SIGTERM, on which it writes a checkpoint first.
"""

import argparse
import logging
import math
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from checkpoints import CheckpointError, replaced_together, save_unwrapped
from hub_upload import create_repository, upload
from interruption import EXIT_STATUS, TerminationNotice
from reporting import write_results
from run_setup import start_run
from trackers import choose_trackers, start_trackers
from train_arguments import parse_arguments, recorded_arguments
from trained_model import class_names, environment, save_trained_model, training_results
from training_card import TrainingData
from training_run import Run


logger = get_logger(__name__)

# Other processes wait for the main one while it writes, or scores with evaluate's metric.
TIMEOUT = timedelta(hours=3)


class NonFiniteError(Exception):
    """
    A loss or the gradient is NaN or infinite. The weights are as before the step.

    Attributes:
        losses (`torch.Tensor` of shape `(num_processes, num_batches)`): Of the step.
        grad_norm (`float`): Of the step.
    """

    def __init__(self, losses: torch.Tensor, grad_norm: float):
        super().__init__(f"losses {losses.tolist()}, gradient norm {grad_norm}")
        self.losses = losses
        self.grad_norm = grad_norm


def training_step(
    model: nn.Module,
    batches: Iterable[Mapping[str, torch.Tensor]],
    optimizer: Optimizer,
    scheduler: LRScheduler,
    accelerator: Accelerator,
    max_grad_norm: float,
) -> tuple[torch.Tensor, float]:
    """
    One optimizer step.

    Args:
        model (`nn.Module`), optimizer (`Optimizer`), scheduler (`LRScheduler`): As `accelerator.prepare` gave them.
        batches (`Iterable[Mapping[str, torch.Tensor]]`):
            The model's arguments for each of `accelerator.gradient_accumulation_steps` batches, `labels` among them.
        accelerator (`Accelerator`): Whose processes all call this together, with batches of one size.
        max_grad_norm (`float`): Norm that the gradients of all parameters together are clipped to.

    Returns:
        The losses `(num_processes, num_batches)`, and the norm of the gradients before they were clipped.

    Raises:
        NonFiniteError: If a loss or the norm is not finite; nothing is updated then.
    """
    losses = []
    for batch in batches:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
        losses.append(loss.detach())
    grad_norm = float(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))
    losses = accelerator.gather(torch.stack(losses)[None])
    # With float16 an infinite norm is no failure: the loss's scale is lowered and the step left out.
    if not losses.isfinite().all() or (accelerator.scaler is None and not math.isfinite(grad_norm)):
        raise NonFiniteError(losses, grad_norm)
    optimizer.step()
    if not accelerator.optimizer_step_was_skipped:
        scheduler.step()
    optimizer.zero_grad()
    return losses, grad_norm


def train(run: Run) -> bool:
    """Trains up to the last step; returns whether it was reached, and not a SIGTERM before it."""
    args, accelerator, state = run.args, run.accelerator, run.state
    progress = tqdm(
        desc="Training", total=args.max_train_steps, initial=state.step, disable=not accelerator.is_main_process
    )
    run.model.train()
    logged_seconds, logged_step = state.train_seconds, state.step
    while True:
        if run.needs_evaluation() and not run.evaluate():
            run.save()
            return False
        if state.step == args.max_train_steps:
            return True

        start = time.perf_counter()
        learning_rate = run.learning_rate()
        losses, grad_norm = training_step(
            run.model, run.next_batches(), run.optimizer, run.scheduler, accelerator, args.max_grad_norm
        )
        state.step += 1
        state.recent_losses.append(losses.mean().item())
        state.train_seconds += time.perf_counter() - start
        progress.update()
        progress.set_postfix(loss=f"{state.recent_losses[-1]:.4f}")

        if run.is_due(args.logging_steps):
            num_images = (state.step - logged_step) * state.run["total_batch_size"]
            run.log(learning_rate, grad_norm, num_images / (state.train_seconds - logged_seconds))
            logged_seconds, logged_step = state.train_seconds, state.step
        must_stop = run.notice.is_due()
        if must_stop or run.is_due(args.checkpointing_steps):
            run.save()
        if must_stop:
            return False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    args = parse_arguments(arguments, __doc__)
    try:
        accelerator = build_accelerator(args)
        with logging_redirect_tqdm(), TerminationNotice(accelerator) as notice:
            is_done = (evaluate_only if args.eval_only else train_and_save)(args, accelerator, notice)
        accelerator.end_training()
    except (OSError, ValueError, CheckpointError) as error:
        # An error in a worker of the loader comes with the worker's traceback before it.
        print(f"error: {str(error).split('ValueError: ')[-1].strip()}", file=sys.stderr)
        # It refers to itself, and so would keep the loader's workers alive, which end with the loader.
        traceback.clear_frames(error.__traceback__)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0 if is_done else EXIT_STATUS


def build_accelerator(args: argparse.Namespace) -> Accelerator:
    accelerator = Accelerator(
        # Without being told, accelerate lets several processes on processors run as if each were alone.
        cpu=not torch.accelerator.is_available(),
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=choose_trackers(args.report_to),
        project_config=ProjectConfiguration(str(args.output_dir), logging_dir=str(args.output_dir / "logs")),
        # The scheduler counts optimizer steps, not those of all processes together.
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    save_unwrapped(accelerator)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    if not accelerator.is_main_process:
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
    set_seed(args.seed)
    return accelerator


def train_and_save(args: argparse.Namespace, accelerator: Accelerator, notice: TerminationNotice) -> bool:
    """A whole run; returns whether it came to its end."""
    run = start_run(args, accelerator, notice)
    name, repository = args.output_dir.resolve().name, None
    if args.push_to_hub and accelerator.is_main_process:
        name = repository = create_repository(args.hub_model_id or name, args.hub_private_repo, args.hub_token)
    start_trackers(accelerator, recorded_arguments(args))
    try:
        is_done = train(run)
    except NonFiniteError as error:
        raise ValueError(explain(run, error)) from None
    if not is_done:
        logger.warning("Stopping, as SIGTERM asked: continue with --resume_from_checkpoint latest.")
        return False

    scores = {} if run.evaluation is None else run.evaluation.scores
    results = {**scores, **training_results(args, accelerator, run.state)}
    save_trained_model(args, accelerator, run.model, run.processor, run.state, results, training_data(run), name)
    logger.info(f"Wrote the trained model to {args.output_dir}")
    if repository is not None:
        logger.info(f"Uploaded it: {upload(args.output_dir, repository, args.hub_token)}")
    return True


def evaluate_only(args: argparse.Namespace, accelerator: Accelerator, notice: TerminationNotice) -> bool:
    """Evaluates the checkpoint that is given; returns whether it came to the end."""
    run = start_run(args, accelerator, notice)
    start_trackers(accelerator, recorded_arguments(args))
    if not run.evaluate():
        return False
    if accelerator.is_main_process:
        results = run.evaluation.scores | {
            "environment": environment(accelerator),
            "arguments": recorded_arguments(args),
        }
        with replaced_together(args.output_dir) as folder:
            write_results(folder, results, class_names(run.config))
        logger.info(f"Wrote {args.output_dir / 'all_results.json'}")
    return True


def explain(run: Run, error: NonFiniteError) -> str:
    """What to tell the user of a step that failed."""
    what = "gradient" if error.losses.isfinite().all() else "loss"
    return (
        f"The {what} of step {run.state.step + 1} is not finite ({error}). Pictures: "
        f"{run.describe_batches(error.losses)}. Nothing was updated, and the checkpoints in {run.args.output_dir} are "
        "as they were. Look at these pictures and their labels; otherwise a lower --learning_rate or "
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

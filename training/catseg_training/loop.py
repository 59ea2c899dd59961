"""The training loop."""

import math
import time
from collections.abc import Iterable, Mapping

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from .interruption import Stopped
from .run import Run


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
    """Trains up to the last step; returns whether it was reached. A signal to stop that comes before is followed after
    the current step, or while the next one's images are waited for."""
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
        try:
            batches = run.next_batches()
        except Stopped:
            run.save()
            return False
        losses, grad_norm = training_step(
            run.model, batches, run.optimizer, run.scheduler, accelerator, args.max_grad_norm
        )
        state.step += 1
        run.position = run.batches.position()
        state.recent_losses.append(losses.mean().item())
        state.train_seconds += time.perf_counter() - start
        progress.update()
        progress.set_postfix(loss=f"{state.recent_losses[-1]:.4f}")

        if run.is_due(args.logging_steps):
            num_images = (state.step - logged_step) * state.run["total_batch_size"]
            run.log(learning_rate, grad_norm, num_images / (state.train_seconds - logged_seconds))
            logged_seconds, logged_step = state.train_seconds, state.step
        if run.is_due(args.checkpointing_steps):
            run.save()

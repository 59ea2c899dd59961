"""One run: all that the training loop works with, and what it does beside its steps: log, save and evaluate."""

import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import send_to_device
from PIL import Image
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from catseg_hf import CATSegConfig, CATSegProcessor
from catseg_hf.utils.files import replaced_file

from .arguments import TrainArguments
from .checkpoints import TrainingState, save_checkpoint
from .data.batches import CropBatches, StreamedBatches
from .data.examples import EvaluationImages
from .evaluation import Evaluation, evaluate_model
from .interruption import TerminationNotice
from .lora import is_lora
from .report.results import prediction_grid
from .report.saved_model import PREDICTIONS
from .report.trackers import log_image, log_values
from .step_vocabulary import StepVocabulary


logger = get_logger(__name__)


@dataclass
class Run:
    """
    A run. `model`, `optimizer` and `scheduler` are as `accelerator.prepare` gave them; `batches` and what follows from
    training are missing where only evaluation is wanted. `position` is where a stream was after the last step.
    """

    args: TrainArguments
    accelerator: Accelerator
    notice: TerminationNotice
    model: nn.Module
    processor: CATSegProcessor
    config: CATSegConfig
    state: TrainingState
    eval_images: EvaluationImages | None
    optimizer: Optimizer | None = None
    scheduler: LRScheduler | None = None
    batches: CropBatches | StreamedBatches | None = None
    position: list[int] | None = None
    step_vocabulary: StepVocabulary | None = None
    evaluation: Evaluation | None = None

    def next_batches(self) -> list[dict[str, torch.Tensor]]:
        """
        This process's batches of one step, on its device.

        Raises:
            Stopped: In all processes, if any was told to stop.
        """
        count, device = self.accelerator.gradient_accumulation_steps, self.accelerator.device
        batches = self.notice.wait_for(lambda: [next(self.batches) for _ in range(count)])
        batches = send_to_device(batches, device, non_blocking=True)
        if self.step_vocabulary is None:
            return batches
        model, rank = self.accelerator.unwrap_model(self.model), self.accelerator.process_index
        return [
            self.step_vocabulary.draw(model, batch, (self.state.step, number, rank))
            for number, batch in enumerate(batches)
        ]

    def is_due(self, schedule: int | str) -> bool:
        """Whether something is to be done after the current step: every so many steps, after every "epoch" or at the
        "end", which is always due."""
        step = self.state.step
        if step == self.args.max_train_steps:
            return True
        if isinstance(schedule, int):
            return step > 0 and step % schedule == 0
        return schedule == "epoch" and step > 0 and self.batches.ends_epoch(step)

    def needs_evaluation(self) -> bool:
        """Whether the model is to be evaluated after the current step, and has not been. The last model is evaluated
        in any case: its results by class are reported, which the history does not have."""
        if self.eval_images is None or not self.is_due(self.args.eval_steps):
            return False
        is_last = self.state.step == self.args.max_train_steps
        return not self.state.is_evaluated() or (is_last and self.evaluation is None)

    def learning_rate(self) -> float:
        """Of the next step, outside CLIP."""
        group = max(self.optimizer.param_groups, key=lambda group: group["initial_lr"])
        return self.args.learning_rate * (group["lr"] / group["initial_lr"])

    def log(self, learning_rate: float, grad_norm: float, images_per_second: float):
        """Logs the steps since the last log."""
        state = self.state
        values = {
            "loss": sum(state.recent_losses) / len(state.recent_losses),
            "learning_rate": learning_rate,
            "clip_learning_rate": learning_rate * self.args.clip_lr_multiplier,
            "grad_norm": grad_norm,
            "images_per_second": images_per_second,
            "memory_gb": _memory_gb(self.accelerator.device),
        }
        state.history.append({"step": state.step, **values})
        state.recent_losses = []
        log_values(self.accelerator, {f"train/{name}": value for name, value in values.items()}, state.step)

    def save(self):
        """Writes a checkpoint."""
        if self.position is not None:
            position = torch.tensor([self.position], device=self.accelerator.device)
            self.state.positions = self.accelerator.gather(position).tolist()
        folder = save_checkpoint(
            self.accelerator,
            self.args.output_dir,
            self.state,
            self.args.checkpoints_total_limit,
            write_more=None if is_lora(self.accelerator.unwrap_model(self.model)) else self._write_config,
        )
        logger.info(f"Step {self.state.step}: wrote {folder}")

    def _write_config(self, folder: Path):
        """Makes a checkpoint one that can be loaded as a model."""
        self.config.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def evaluate(self) -> bool:
        """Evaluates the model as it is and reports; returns whether it came to the end and was not told to stop."""
        args, state = self.args, self.state
        sliding_window = self.config.sliding_window if args.sliding_window is None else args.sliding_window
        start = time.perf_counter()
        # Compiled code cannot keep the vocabulary's features from image to image.
        eager = torch.compiler.set_stance("force_eager") if args.torch_compile else contextlib.nullcontext()
        with eager:
            evaluation = evaluate_model(
                self.model,
                self.processor,
                self.eval_images,
                self.accelerator,
                num_labels=self.config.num_labels,
                ignore_index=self.config.semantic_loss_ignore_index,
                sliding_window=sliding_window,
                batch_size=args.per_device_eval_batch_size,
                metric=args.metric,
                num_workers=args.dataloader_num_workers,
                stop=self.notice.is_due,
            )
        if evaluation is None:
            return False
        self.evaluation = evaluation
        # The last model of a run that was killed afterwards.
        is_known = state.is_evaluated()
        values = {name: value for name, value in evaluation.scores.items() if isinstance(value, float)}
        values["eval_seconds"] = time.perf_counter() - start
        evaluation.scores |= {
            "eval_images": evaluation.num_examples,
            "eval_seconds": values["eval_seconds"],
            "sliding_window": sliding_window,
            "image_processor": type(self.processor.image_processor).__name__,
        }
        state.record_evaluation(values)
        logger.info(f"Step {state.step}: mIoU {values.get('mean_iou', math.nan):.4f}")
        if self.accelerator.is_main_process:
            image = self._keep_evaluation()
            if image is not None and not is_known:
                log_image(self.accelerator, "eval/predictions", image, state.step)
        if not is_known:
            log_values(self.accelerator, {f"eval/{name}": value for name, value in values.items()}, state.step)
        return True

    def _keep_evaluation(self) -> Image.Image | None:
        """Writes what there is to see of an evaluation, and that it was made; returns its picture, if there is one."""
        folder, image = self.args.output_dir, None
        if self.args.example_images:
            names, ignore_index = self.config.label_names, self.config.semantic_loss_ignore_index
            image = prediction_grid(self.evaluation.examples, names, ignore_index)
            with replaced_file(folder / PREDICTIONS) as path:
                image.save(path, format="png")
        checkpoint = folder / f"checkpoint-{self.state.step}"
        if checkpoint.is_dir():
            self.state.write(checkpoint)
        return image

    def describe_batches(self, losses: torch.Tensor) -> str:
        """Which batches of the current step gave losses `(num_processes, num_batches)` that are not finite."""
        bad = (~losses.isfinite()).nonzero().tolist()
        batches = [self.batches.describe(self.state.step, batch, process) for process, batch in bad]
        return "; ".join(batches) or "any of this step"


def _memory_gb(device: torch.device) -> float:
    """Largest memory of the device so far, or what the process holds now where there is no such count."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process().memory_info().rss / 1e9

"""What a finished run leaves in its folder: the model (and its adapter) with processor and code, results and card."""

import platform
import shutil
from collections.abc import Mapping
from typing import Any

import accelerate
import torch
import transformers
from accelerate import Accelerator
from torch import nn

from catseg_hf import CATSegProcessor
from catseg_hf.hub.model_cards import read_licence
from catseg_hf.utils.files import replaced_together

from ..arguments import TrainArguments
from ..checkpoints import TrainingState
from ..lora import ADAPTER, is_lora, merged_state_dict, save_adapter
from .card import TrainingData, is_on_hub, write_training_card
from .results import plot_curves, write_results


PREDICTIONS = "predictions.png"
CURVES = "training_curves.png"


def save_trained_model(
    args: TrainArguments,
    accelerator: Accelerator,
    model: nn.Module,
    processor: CATSegProcessor,
    state: TrainingState,
    results: Mapping[str, Any],
    data: TrainingData,
    name: str,
):
    """
    Writes everything that belongs to a trained model into the run's folder. All processes call this together.

    Args:
        args ([`TrainArguments`]): The run's arguments.
        accelerator (`Accelerator`): Of the run.
        model (`nn.Module`): As `accelerator.prepare` gave it.
        processor ([`CATSegProcessor`]): Its processor.
        state ([`TrainingState`]): At the end.
        results (`Mapping[str, Any]`): Everything for all_results.json.
        data ([`TrainingData`]): What the card says of the data.
        name (`str`): What the card calls the model.
    """
    state_dict = accelerator.get_state_dict(model)
    if not accelerator.is_main_process:
        return
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    base = args.model_name_or_path or args.clip_model_name_or_path
    with replaced_together(args.output_dir) as folder:
        if is_lora(model):
            save_adapter(model, folder / ADAPTER, base if is_on_hub(base) else None, state_dict)
            state_dict, model = merged_state_dict(state_dict), model.get_base_model()
        model.save_pretrained(folder, state_dict=state_dict)
        processor.save_pretrained(folder)
        state.write(folder)
        write_results(folder, results, model.config.label_names)
        plot_curves(state.history, folder / CURVES)
        if (args.output_dir / PREDICTIONS).is_file():
            shutil.copyfile(args.output_dir / PREDICTIONS, folder / PREDICTIONS)
        if (licence := read_licence()) is not None:
            (folder / "LICENSE").write_text(licence, encoding="utf-8")
        write_training_card(
            folder,
            name=name,
            config=model.config,
            data=data,
            hyperparameters=_hyperparameters(args, state),
            results=results if "mean_iou" in results else None,
            base_model=base,
            has_adapter=args.lora_rank is not None,
        )


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a run was done with, for its results."""
    is_cuda = accelerator.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(accelerator.device) if is_cuda else accelerator.device.type,
        "num_processes": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "mixed_precision": accelerator.mixed_precision,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }


def _hyperparameters(args: TrainArguments, state: TrainingState) -> dict[str, Any]:
    """For the card."""
    values = {
        "steps": state.step,
        "images a step": state.run["total_batch_size"],
        "optimizer": "AdamW",
        "learning rate": args.learning_rate,
        "learning rate of CLIP": args.learning_rate * args.clip_lr_multiplier,
        "schedule": "cosine to 0",
        "warmup steps": args.num_warmup_steps,
        "weight decay": args.weight_decay,
        "gradient norm clipped to": args.max_grad_norm,
        "trained of CLIP": args.clip_finetuning if args.lora_rank is None else f"LoRA of rank {args.lora_rank}",
        "crop size": args.crop_size,
        "colour jitter": "yes" if args.color_jitter else "no",
        "mixed precision": state.run["mixed_precision"],
        "seed": args.seed,
    }
    return values | {"trained for": f"{state.train_seconds / 3600:.2f} hours"}


def training_results(args: TrainArguments, accelerator: Accelerator, state: TrainingState) -> dict[str, Any]:
    """What all_results.json says of the training."""
    losses = [entry["loss"] for entry in state.history if "loss" in entry]
    num_images = state.step * state.run["total_batch_size"]
    num_examples = state.run["num_train_examples"]
    return {
        "train_steps": state.step,
        "train_epochs": num_images / num_examples if num_examples else None,
        "train_images": num_images,
        "train_seconds": state.train_seconds,
        "train_images_per_second": num_images / max(state.train_seconds, 1e-9),
        "train_loss": losses[-1] if losses else None,
        "environment": environment(accelerator),
        "arguments": args.recorded(),
    }

"""Builds or loads all that a run needs, up to the step where it continues."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from torch import nn

from catseg_hf import CATSegConfig, CATSegForSemanticSegmentation, CATSegProcessor
from catseg_hf.errors import UserError
from catseg_hf.image_pixels_catseg import check_value_range

from .arguments import FIXED_ARGUMENTS, PUBLISHED_BATCH_SIZE, PUBLISHED_TRAIN_STEPS, WATCHED_ARGUMENTS, TrainArguments
from .attention import choose_attention
from .checkpoints import (
    CheckpointError,
    TrainingState,
    check_same_run,
    complete_checkpoints,
    find_checkpoint,
    remove_checkpoint,
    remove_incomplete,
)
from .data.batches import CropBatches, StreamedBatches
from .data.crops import StreamingCrops, TrainingCrops, idle_workers
from .data.examples import EvaluationImages
from .data.label_check import check_labels
from .data.sources import load_segmentation_data
from .interruption import TerminationNotice
from .lora import ADAPTER, add_lora
from .model import (
    FRESH_VOCABULARY,
    build_from_clip,
    freeze_unused,
    load_checkpoint,
    read_vocabulary,
    recompute_activations,
    set_classes,
)
from .optimization import build_optimizer, build_scheduler
from .run import Run
from .sharding import is_sharded, prepare_for_sharding
from .step_vocabulary import StepVocabulary


logger = get_logger(__name__)


def start_run(args: TrainArguments, accelerator: Accelerator, notice: TerminationNotice) -> Run:
    """
    Builds or loads everything that a run needs, up to where it continues.

    Args:
        args ([`TrainArguments`]): The command line. The run has a copy in which nothing is left open.
        accelerator (`Accelerator`), notice ([`TerminationNotice`]): Of the run.

    Raises:
        UserError: If anything does not fit, in words for the user.
    """
    if accelerator.is_main_process:
        _prepare_output_dir(args)
    accelerator.wait_for_everyone()
    with accelerator.local_main_process_first():
        model, processor = _initial_model(args)
    eval_images = None if args.skip_evaluation else _eval_images(args, accelerator, model.config, processor)
    if args.eval_only:
        state = TrainingState(run={})
        model = accelerator.prepare_model(model, device_placement=True, evaluation_mode=True)
        return Run(args, accelerator, notice, model, processor, model.config, state, eval_images)

    batch_size = _batch_size(args, accelerator)
    batches, num_examples = _batches(args, accelerator, model.config, processor, batch_size)
    total_batch_size = batch_size * accelerator.gradient_accumulation_steps * accelerator.num_processes
    args = _filled_in(args, num_examples, total_batch_size)
    step_vocabulary = _step_vocabulary(args, accelerator, model.config)
    state = TrainingState(run=_identity(args, accelerator, model.config, total_batch_size, num_examples))
    if step_vocabulary is not None:
        state.run["training_vocabulary"] = [
            model.config.id2label[index] for index in step_vocabulary.candidates.tolist()
        ]
    checkpoint = _checkpoint_to_resume(args, state)

    config = model.config
    num_classes = config.num_labels if step_vocabulary is None else step_vocabulary.num_classes
    model = _choose_trained(args, accelerator, model, processor, num_classes)
    trained, total = _parameter_counts(model)
    optimizer = build_optimizer(model, args.learning_rate, args.clip_lr_multiplier, args.weight_decay)
    scheduler = build_scheduler(optimizer, args.max_train_steps, args.num_warmup_steps)
    if args.torch_compile:
        model.compile()
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    run = Run(args, accelerator, notice, model, processor, config, state, eval_images, optimizer, scheduler, batches)
    run.step_vocabulary = step_vocabulary
    if checkpoint is not None:
        run.state = TrainingState.read(checkpoint)
        run.state.run = state.run
        if checkpoint.resolve().parent != args.output_dir.resolve():
            run.state.run_id = state.run_id  # one that branches off
    positions = run.state.positions
    batches.start(run.state.step, positions[accelerator.process_index] if positions else None)
    run.position = batches.position()
    if checkpoint is not None:
        _load_state(accelerator, optimizer, scheduler, checkpoint)
    logger.info(
        f"Training {trained:,} of {total:,} parameters on {num_examples or 'a stream of'} images with "
        f"{config.num_labels} classes, {total_batch_size} a step, from step {run.state.step} to {args.max_train_steps}"
    )
    return run


def _prepare_output_dir(args: TrainArguments):
    folder = args.output_dir
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file: name a folder.")
    remove_incomplete(folder)
    if args.overwrite_output_dir:
        for checkpoint in complete_checkpoints(folder):
            remove_checkpoint(checkpoint)
        shutil.rmtree(folder / ADAPTER, ignore_errors=True)
    elif args.resume_from_checkpoint is None and folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"--output_dir {folder} is not empty: continue its run with --resume_from_checkpoint latest, name another "
            "folder, or start anew in this one with --overwrite_output_dir."
        )
    folder.mkdir(parents=True, exist_ok=True)


def _initial_model(args: TrainArguments) -> tuple[CATSegForSemanticSegmentation, CATSegProcessor]:
    vocabulary = args.vocabulary
    if args.model_name_or_path is not None:
        model, processor = load_checkpoint(args.model_name_or_path, args.hub_token)
    else:
        model, processor = build_from_clip(
            args.clip_model_name_or_path, args.hub_token, args.config_overrides, args.prior_probability
        )
        vocabulary = vocabulary or FRESH_VOCABULARY
    if args.value_range is not None:
        processor.image_processor.value_range = list(check_value_range(args.value_range))
    set_classes(model, processor, None if vocabulary is None else read_vocabulary(vocabulary), args.ignore_index)
    return model, processor


def _load_data(args: TrainArguments, processor: CATSegProcessor, split: str, max_samples: int | None) -> Any:
    return load_segmentation_data(
        args.dataset_name,
        split,
        config_name=args.dataset_config_name,
        image_column=args.image_column,
        label_column=args.label_column,
        label_ids=args.label_ids,
        reduce_labels=args.reduce_labels,
        value_range=processor.image_processor.value_range,
        streaming=args.streaming,
        max_samples=max_samples,
        token=args.hub_token,
    )


def _eval_images(
    args: TrainArguments, accelerator: Accelerator, config: CATSegConfig, processor: CATSegProcessor
) -> EvaluationImages:
    with accelerator.local_main_process_first():
        try:
            dataset = _load_data(args, processor, args.eval_split, args.max_eval_samples)
        except ValueError as error:
            raise UserError(f"{error} (--eval_split names another part, --skip_evaluation does without.)") from None
    if args.streaming:
        dataset = list(dataset)
    _check_labels(dataset, args.eval_split, config)
    return EvaluationImages(dataset, config.num_labels, config.semantic_loss_ignore_index)


def _check_labels(dataset: Any, split: str, config: CATSegConfig):
    warning = check_labels(dataset, split, config.label_names, config.semantic_loss_ignore_index)
    if warning is not None:
        logger.warning(warning)


def _batches(
    args: TrainArguments,
    accelerator: Accelerator,
    config: CATSegConfig,
    processor: CATSegProcessor,
    batch_size: int,
) -> tuple[CropBatches | StreamedBatches, int | None]:
    """Training batches, and how many images they come from if that is known."""
    with accelerator.local_main_process_first():
        dataset = _load_data(args, processor, args.train_split, args.max_train_samples)
    image_processor = processor.image_processor
    options = {
        "num_labels": config.num_labels,
        "size": args.crop_size,
        "image_mean": image_processor.image_mean,
        "image_std": image_processor.image_std,
        "seed": args.seed,
        "ignore_index": config.semantic_loss_ignore_index,
        "color_jitter": args.color_jitter,
    }
    if args.streaming:
        if warning := idle_workers(dataset.num_shards, accelerator.num_processes, args.dataloader_num_workers):
            logger.warning(warning)
        crops = StreamingCrops(
            dataset, **options, rank=accelerator.process_index, world_size=accelerator.num_processes
        )
        return StreamedBatches(crops, batch_size, accelerator, args.dataloader_num_workers), None
    _check_labels(dataset, args.train_split, config)
    crops = TrainingCrops(dataset, **options)
    return CropBatches(crops, args.seed, batch_size, accelerator, args.dataloader_num_workers), len(crops)


def _filled_in(args: TrainArguments, num_examples: int | None, total_batch_size: int) -> TrainArguments:
    """With the number of steps, and when to evaluate, decided."""
    steps = args.max_train_steps or PUBLISHED_TRAIN_STEPS
    if args.num_train_epochs is not None:
        steps = math.ceil(args.num_train_epochs * num_examples / total_batch_size)
    return dataclasses.replace(args, max_train_steps=steps, eval_steps=args.eval_steps or args.checkpointing_steps)


def _step_vocabulary(args: TrainArguments, accelerator: Accelerator, config: CATSegConfig) -> StepVocabulary | None:
    """What chooses the classes of each batch, unless all are trained with."""
    if args.training_vocabulary is None and args.classes_per_step is None:
        return None
    if is_sharded(accelerator):
        raise UserError(
            "--classes_per_step and --training_vocabulary look at CLIP between the steps, which FSDP and DeepSpeed do "
            "not allow: leave them out, or train without sharding."
        )
    candidates = list(range(config.num_labels))
    if args.training_vocabulary is not None:
        names = read_vocabulary(args.training_vocabulary)
        if unknown := [name for name in names if name not in config.label2id]:
            raise UserError(f"--training_vocabulary has {unknown[:5]}, which are not in the model's vocabulary.")
        candidates = sorted(config.label2id[name] for name in names)
    num_classes = args.classes_per_step or len(candidates)
    return StepVocabulary(candidates, num_classes, args.seed, config.semantic_loss_ignore_index)


def _batch_size(args: TrainArguments, accelerator: Accelerator) -> int:
    """Images of one process at a time."""
    if args.per_device_train_batch_size is not None:
        return args.per_device_train_batch_size
    batches = accelerator.num_processes * accelerator.gradient_accumulation_steps
    if PUBLISHED_BATCH_SIZE % batches:
        raise UserError(
            f"The published {PUBLISHED_BATCH_SIZE} images a step cannot be shared by {accelerator.num_processes} "
            f"processes that accumulate {accelerator.gradient_accumulation_steps} batches each: give "
            "--per_device_train_batch_size."
        )
    return PUBLISHED_BATCH_SIZE // batches


def _identity(
    args: TrainArguments,
    accelerator: Accelerator,
    config: CATSegConfig,
    total_batch_size: int,
    num_examples: int | None,
) -> dict[str, Any]:
    """What makes a run this one and no other, see [`check_same_run`]."""
    identity = {name: getattr(args, name) for name in (*FIXED_ARGUMENTS, *WATCHED_ARGUMENTS)}
    identity |= {
        "total_batch_size": total_batch_size,
        "num_train_examples": num_examples,
        "vocabulary": config.label_names,
        "ignore_index": config.semantic_loss_ignore_index,
        "mixed_precision": accelerator.mixed_precision,
    }
    if args.streaming:
        # The order of a stream depends on who reads it.
        identity |= {
            "num_processes": accelerator.num_processes,
            "dataloader_num_workers": args.dataloader_num_workers,
            "gradient_accumulation_steps": accelerator.gradient_accumulation_steps,
            "max_train_samples": args.max_train_samples,
        }
    return identity


def _checkpoint_to_resume(args: TrainArguments, state: TrainingState) -> Path | None:
    if args.resume_from_checkpoint is None:
        return None
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    if checkpoint is None:
        logger.warning(f"There is no checkpoint in {args.output_dir} to resume from: starting anew.")
        return None
    saved = TrainingState.read(checkpoint)
    for change in check_same_run(saved.run, state.run, (*WATCHED_ARGUMENTS, "mixed_precision")):
        logger.warning(f"Resuming from {checkpoint.name}, but {change}.")
    if saved.step > args.max_train_steps:
        raise CheckpointError(
            f"{checkpoint} is at step {saved.step}, behind the last one that is wanted ({args.max_train_steps})."
        )
    return checkpoint


def _choose_trained(
    args: TrainArguments,
    accelerator: Accelerator,
    model: CATSegForSemanticSegmentation,
    processor: CATSegProcessor,
    num_classes: int,
) -> nn.Module:
    config = model.config
    prepare_for_sharding(accelerator, model)
    recompute_activations(model, args.gradient_checkpointing)
    choose_attention(model, accelerator.device, accelerator.mixed_precision)
    if args.lora_rank is None:
        model.freeze_clip(args.clip_finetuning)
    else:
        model = add_lora(model, args.lora_rank)
    freeze_unused(model, config, num_classes)
    return model


def _load_state(
    accelerator: Accelerator, optimizer: AcceleratedOptimizer, scheduler: AcceleratedScheduler, checkpoint: Path
):
    accelerator.load_state(checkpoint)
    # Its count of accumulated batches, with which it finds the last one of a step, may be of another division.
    accelerator.step = 0
    # The rates are the saved ones, but the schedule may have got another end.
    schedule = scheduler.scheduler
    for group, base_rate, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base_rate * factor(schedule.last_epoch)
    logger.info(f"Resuming from {checkpoint}")


def _parameter_counts(model: nn.Module) -> tuple[int, int]:
    """How many numbers are trained, and how many there are."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, is_trained in counts if is_trained), sum(count for count, _ in counts)

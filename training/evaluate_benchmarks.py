"""Evaluates a model on published benchmarks, by the paper's protocol, and on data that a JSON file describes.

  accelerate launch training/evaluate_benchmarks.py --model DIR_OR_ID --data_root DIR --output_dir DIR \\
      --benchmarks ade20k_847 pascal_context_459 ade20k_150 pascal_context_59 pascal_voc_20 pascal_voc_20b
  python training/evaluate_benchmarks.py --from_predictions DIR --data_root DIR --output_dir DIR \\
      --benchmarks ade20k_150

The data root holds the downloads as they were unpacked: `check_benchmark_data.py` tells what is missing and where to
get it. Results are in `results.json`, `results.csv` and `results.md`, and in a folder for each benchmark. The same
command with --resume continues a run that ended, with the same result.

Exit status: 0 when done, 1 after an error or if images had to be left out, 130 after Ctrl-C, 143 after SIGTERM.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.logging import get_logger
from tqdm.contrib.logging import logging_redirect_tqdm

from catseg_hf.commands.model_options import MODEL_HELP
from catseg_hf.errors import UserError, reports_errors
from catseg_hf.guided_upsampling_catseg import UPSAMPLINGS
from catseg_training.benchmarks.card import write_model_card
from catseg_training.benchmarks.evaluation import evaluate_benchmark
from catseg_training.benchmarks.files import find_files
from catseg_training.benchmarks.predictors import FilePredictor, ModelPredictor
from catseg_training.benchmarks.published import PUBLISHED, find_benchmarks
from catseg_training.benchmarks.report import summary_table, write_benchmark_report, write_summary
from catseg_training.interruption import TerminationNotice
from catseg_training.model import load_checkpoint
from catseg_training.processes import build_accelerator
from catseg_training.report.saved_model import environment
from catseg_training.views import Views
from catseg_training.workers import DEFAULT_NUM_WORKERS, explained_ends_of_workers


logger = get_logger("catseg_training")

TTA_SCALES = (0.75, 1.0, 1.25)
MAX_LISTED = 10


@reports_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    args = parse_arguments(arguments)
    accelerator = build_accelerator()
    with logging_redirect_tqdm(), explained_ends_of_workers(), TerminationNotice(accelerator) as notice:
        status = evaluate(args, accelerator, notice)
    accelerator.end_training()
    return status


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="NAME_OR_DIR", help=MODEL_HELP)
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        required=True,
        metavar="NAME_OR_JSON",
        help=f"{', '.join(benchmark.name for benchmark in PUBLISHED)}; mess or members of it, such as "
        "suim_sem_seg_test; or JSON files that describe others",
    )
    parser.add_argument("--data_root", type=Path, required=True, help="folder of the downloads")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--batch_size",
        type=int,
        default=1,
        help="images that a process gives the model at once (%(default)s)",
    )
    parser.add_argument(
        "--exact",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="results do not depend on the batch size in a single pixel: where the device rounds batches in another "
        "way, as GPUs do, the model gets images one by one (default: --exact)",
    )
    parser.add_argument(
        "--dataloader_num_workers",
        type=int,
        default=DEFAULT_NUM_WORKERS,
        help="processes that load images, for each process (2, or 1 where there is one CPU)",
    )
    parser.add_argument(
        "--sliding_window",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="average windows and a global view, as published (default: as the checkpoint says)",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation, no part of the published protocol: average the probabilities of what the model "
        f"sees at the scales {', '.join(map(str, TTA_SCALES))} and in the mirror, twelve predictions for each image",
    )
    parser.add_argument(
        "--upsampling",
        choices=UPSAMPLINGS,
        default="bilinear",
        help="guided, which is no part of the published protocol: borders follow those in the image (%(default)s)",
    )
    parser.add_argument("--predictions_dir", type=Path, help="save predictions here, as BENCHMARK/NAME.png")
    parser.add_argument(
        "--from_predictions",
        type=Path,
        metavar="DIR",
        help="evaluate DIR/BENCHMARK/NAME.png, class ids, without a model",
    )
    parser.add_argument("--resume", action="store_true", help="continue the evaluation in --output_dir")
    parser.add_argument(
        "--save_seconds", type=float, default=30.0, help="how often to save what --resume continues (%(default)s)"
    )
    parser.add_argument(
        "--write_model_card", action="store_true", help="add the results to the model's card, and to the output"
    )
    args = parser.parse_args(arguments)
    if (args.model is None) == (args.from_predictions is None):
        parser.error("give one of --model and --from_predictions")
    needs_model = args.tta or args.predictions_dir or args.write_model_card or args.upsampling != "bilinear"
    if args.from_predictions is not None and needs_model:
        parser.error("--tta, --upsampling guided, --predictions_dir and --write_model_card need --model")
    if args.batch_size < 1 or args.dataloader_num_workers < 0:
        parser.error("--batch_size must be at least 1, --dataloader_num_workers at least 0")
    return args


def evaluate(args: argparse.Namespace, accelerator: Accelerator, notice: TerminationNotice) -> int:
    """Evaluates everything that was asked for; returns the exit status."""
    benchmarks = find_benchmarks(args.benchmarks)
    # Before any time is spent on the first of them.
    files = {benchmark.name: find_files(benchmark, args.data_root) for benchmark in benchmarks}
    predictor = build_predictor(args, accelerator)
    results, num_left_out = {}, 0
    for benchmark in benchmarks:
        found = files[benchmark.name]
        logger.info(f"{benchmark.name}: {len(found.files):,} images in {found.images}, labels in {found.labels}")
        folder = args.output_dir / benchmark.name
        result = evaluate_benchmark(
            benchmark,
            found,
            predictor,
            accelerator,
            folder / "tally",
            resume=args.resume,
            save_seconds=args.save_seconds,
            predictions_dir=args.predictions_dir,
            stop=notice.is_due,
        )
        if notice.is_due():
            logger.warning("Stopped by a signal: continue with --resume.")
            return notice.exit_status
        if accelerator.is_main_process:
            result.values["environment"] = environment(accelerator)
            results[benchmark.name] = result.values
            write_benchmark_report(folder, result)
            write_summary(args.output_dir, results, benchmarks)
            report_left_out(benchmark.name, result.values["left_out"])
            num_left_out += result.values["num_images_left_out"]
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        table = summary_table(results, benchmarks)
        if args.write_model_card:
            write_model_card(args.output_dir, args.model, results, benchmarks, table)
        print(table)
    return 1 if num_left_out else 0


def build_predictor(args: argparse.Namespace, accelerator: Accelerator) -> ModelPredictor | FilePredictor:
    if args.from_predictions is not None:
        if not args.from_predictions.is_dir():
            raise UserError(f"--from_predictions {args.from_predictions} is no folder.")
        return FilePredictor(args.from_predictions, args.batch_size, args.dataloader_num_workers)
    with accelerator.local_main_process_first():
        model, processor = load_checkpoint(args.model, option="--model")
    sliding_window = model.config.sliding_window if args.sliding_window is None else args.sliding_window
    views = Views(sliding_window, scales=TTA_SCALES, flip=True) if args.tta else Views(sliding_window)
    return ModelPredictor(
        accelerator.prepare_model(model, evaluation_mode=True),
        processor,
        args.model,
        accelerator.device,
        accelerator.mixed_precision,
        views,
        args.batch_size,
        args.dataloader_num_workers,
        args.exact,
        args.upsampling,
    )


def report_left_out(name: str, left_out: list[dict[str, str]]):
    """Names the images that could not be scored."""
    if left_out:
        logger.warning(f"{name}: {len(left_out):,} images were left out, results.json has all of them")
    for image in left_out[:MAX_LISTED]:
        logger.warning(f"  {image['name']}: {image['problem']}")


if __name__ == "__main__":
    sys.exit(main())

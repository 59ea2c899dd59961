"""What an evaluation leaves for its readers: a folder for each benchmark, and one table of all of them."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from catseg_hf.utils.files import replaced_file

from ..report.results import prediction_grid, save_figure, write_json, write_results
from .charts import confusion_chart
from .description import Benchmark
from .evaluation import BenchmarkResult
from .mess import mess_means, mess_table


# Of a benchmark's values, what the table has in its columns and under which names.
COLUMNS = {
    "mean_iou_present": "mIoU, classes in the labels",
    "mean_iou": "mIoU, classes in labels or predictions",
    "mean_boundary_iou_present": "Boundary IoU, classes in the labels",
    "overall_accuracy": "pixel accuracy",
}
PAPER_COLUMNS = {"base": "paper, ViT-B/16", "large": "paper, ViT-L/14"}
TABLE_NOTE = """\
Percent. The paper's figures follow the rule of the first column (detectron2 since July 2022: the mean over the classes
that occur in the labels). The second column is the mean over the classes that occur in labels or predictions (the
evaluate library, mmsegmentation, detectron2 before). Boundary IoU (Cheng et al., CVPR 2021) counts only pixels within
2 % of the image's diagonal of the borders.
"""


def write_benchmark_report(folder: Path, result: BenchmarkResult):
    """
    Writes a benchmark's results: the scores and those of every class (`all_results.json`, `per_class_iou.csv`,
    `.json`, `.png`), the largest confusions (`confusions.png`), the best and the worst images (`best_images.png`,
    `worst_images.png`) and the scores of all images (`images.parquet`).

    Args:
        folder (`Path`): Made if it is not there. Each file replaces the one before whole.
        result ([`BenchmarkResult`]): The results.
    """
    benchmark = result.benchmark
    write_results(folder, result.values, benchmark.class_names)
    save_figure(confusion_chart(result.matrix, benchmark.class_names), folder / "confusions.png")
    for name, examples in (("best", result.best), ("worst", result.worst)):
        if examples:
            grid = prediction_grid(examples, benchmark.class_names, benchmark.ignore_index)
            with replaced_file(folder / f"{name}_images.png") as path:
                grid.save(path, format="png")
    table = image_table(result.rows)
    with replaced_file(folder / "images.parquet") as path:
        pq.write_table(table, path)


def image_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """
    A row for each image: `name`, `height` and `width` in pixels, `num_pixels` that count, the metric's scores of the
    image alone (in 0..1), and `problem`, why it could not be scored.
    """
    columns = {"name": pa.string(), "height": pa.int32(), "width": pa.int32(), "num_pixels": pa.int64()}
    scores = ("mean_iou_present", "mean_iou", "mean_accuracy", "overall_accuracy")
    columns |= {name: pa.float64() for name in scores} | {"problem": pa.string()}
    return pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in columns.items()})


def write_summary(folder: Path, results: Mapping[str, Mapping[str, Any]], benchmarks: Sequence[Benchmark]):
    """
    Writes `results.json`, everything by benchmark, and a table of all of them as `results.csv` and `results.md`; of
    datasets of MESS the figures of its tables, too, `mess.json`.

    Args:
        folder (`Path`): Made if it is not there.
        results (`Mapping[str, Mapping[str, Any]]`): A benchmark's values by its name, in the table's order.
        benchmarks (`Sequence[Benchmark]`): The benchmarks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results)
    rows = _rows(results, benchmarks)
    with replaced_file(folder / "results.csv") as path:
        _write_csv(path, rows)
    if means := mess_means(results):
        write_json(folder / "mess.json", means)
    table = summary_table(results, benchmarks)
    with replaced_file(folder / "results.md") as path:
        path.write_text(table, encoding="utf-8")


def summary_table(results: Mapping[str, Mapping[str, Any]], benchmarks: Sequence[Benchmark]) -> str:
    """The table in Markdown, which rule is which, and MESS's own table. Arguments as of `write_summary`."""
    rows = _rows(results, benchmarks)
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(map(_cell, row.values())) for row in rows]
    table = "\n".join(f"| {line} |" for line in lines) + f"\n\n{TABLE_NOTE}"
    return f"{table}\n{mess_table(means)}" if (means := mess_means(results)) else table


def _rows(results: Mapping[str, Mapping[str, Any]], benchmarks: Sequence[Benchmark]) -> list[dict[str, Any]]:
    return [_row(benchmark, results[benchmark.name]) for benchmark in benchmarks if benchmark.name in results]


def _row(benchmark: Benchmark, values: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of the table; scores in percent."""
    num_images, expected = values["num_images"], values["num_images_expected"]
    coverage = f"{num_images:,}" if num_images == expected else f"{num_images:,} of {expected:,}"
    if values["num_images_left_out"]:
        coverage += f", {values['num_images_left_out']:,} left out"
    is_guided = values.get("settings", {}).get("upsampling") == "guided"
    return {
        "benchmark": benchmark.title + ", guided upsampling" * is_guided,
        **{title: 100 * values[name] for name, title in COLUMNS.items()},
        "images": coverage,
        **{title: benchmark.published.get(model) for model, title in PAPER_COLUMNS.items()},
    }


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if math.isfinite(value) else ""
    return "" if value is None else str(value).replace("|", "\\|")


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

"""Results of benchmarks in a model's card, as metadata that the Hub reads."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from catseg_hf.utils.files import replaced_file

from .description import Benchmark


METRICS = {
    "mean_iou_present": "mIoU of the classes in the labels",
    "mean_iou": "mIoU of the classes in labels or predictions",
    "overall_accuracy": "Pixel accuracy",
}
BEGIN, END = "<!-- benchmarks -->", "<!-- end of benchmarks -->"


def write_model_card(
    output_dir: Path,
    model: str,
    results: Mapping[str, Mapping[str, Any]],
    benchmarks: Sequence[Benchmark],
    table: str,
):
    """
    Adds results to the card of a model, with those that it has of other data: `README.md` in `output_dir` and, if the
    model is a local folder, there, too.

    Args:
        output_dir (`Path`): Folder of the results.
        model (`str`): The model's folder or its name on the Hub.
        results (`Mapping[str, Mapping[str, Any]]`): Values of each benchmark by its name.
        benchmarks (`Sequence[Benchmark]`): The benchmarks.
        table (`str`): The results for readers, in Markdown.
    """
    card = _read_card(model)
    names = {benchmark.name for benchmark in benchmarks}
    kept = [result for result in card.data.eval_results or [] if result.dataset_type not in names]
    card.data.eval_results = kept + [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=benchmark.name,
            dataset_name=benchmark.title,
            dataset_split="validation",
            metric_type=key,
            metric_name=title,
            metric_value=results[benchmark.name][key],
            metric_args=_how(results[benchmark.name]),
        )
        for benchmark in benchmarks
        for key, title in METRICS.items()
        if math.isfinite(results[benchmark.name][key])
    ]
    card.data.model_name = card.data.model_name or Path(model.rstrip("/")).name
    card.data.metrics = card.data.metrics or ["mean_iou"]
    card.text = _with_table(card.text, table)
    for folder in {output_dir, Path(model) if Path(model).is_dir() else output_dir}:
        with replaced_file(folder / "README.md") as path:
            path.write_text(str(card), encoding="utf-8")


def _how(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a score depends on that is no part of the published protocol."""
    upsampling = values.get("settings", {}).get("upsampling", "bilinear")
    return None if upsampling == "bilinear" else {"upsampling": upsampling}


def _read_card(model: str) -> ModelCard:
    """The model's own card, or a new one if it has none."""
    try:
        path = Path(model) / "README.md" if Path(model).is_dir() else Path(hf_hub_download(model, "README.md"))
        if path.is_file():
            return ModelCard(path.read_text(encoding="utf-8"))
    except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError):
        pass
    data = ModelCardData(license="mit", library_name="transformers", pipeline_tag="image-segmentation")
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {Path(model.rstrip('/')).name}\n")


def _with_table(text: str, table: str) -> str:
    section = f"{BEGIN}\n## Benchmarks\n\n{table.strip()}\n{END}"
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        return before + section + rest.partition(END)[2]
    return f"{text.rstrip()}\n\n{section}\n"

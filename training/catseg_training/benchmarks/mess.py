"""MESS (Blumenstiel et al., "What a MESS", NeurIPS 2023): 22 datasets of five domains, in the folders that
`mess-benchmark` prepares, and the means that its tables have."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .description import Benchmark


_CATALOGUE = json.loads(Path(__file__).with_name("data").joinpath("mess.json").read_text(encoding="utf-8"))
# Percent of these is what the tables hold, under these titles.
COLUMNS = {"mean_iou": "mIoU", "coi_mean_iou": "CoI-mIoU"}


@dataclass(frozen=True)
class TableEntry:
    """Where a member counts in the tables: its dataset there, of which several members may be parts, and domain."""

    dataset: str
    domain: str


def _benchmark(entry: Mapping[str, Any]) -> Benchmark:
    num_classes, ignore_index = len(entry["vocabulary"]), entry["ignore_index"]
    return Benchmark(
        name=entry["name"],
        title=entry["title"],
        vocabulary=tuple(entry["vocabulary"]),
        roots=(entry["folder"],),
        images=(entry["images"],),
        labels=(entry["labels"],),
        image_suffix=entry["image_suffix"],
        label_suffix=entry["label_suffix"],
        labels_decide=True,
        ignore_index=ignore_index,
        label_map={index: index for index in (*range(num_classes), ignore_index)},
        rule="mean_iou",
        classes_of_interest=tuple(entry["classes_of_interest"]),
        num_images=entry["num_images"],
        source=f"mess-benchmark {_CATALOGUE['version']}, in an environment of its own",
        preparation="python -m mess.prepare_all_datasets --dataset_dir",
    )


# All that the package registers; its tables have those in `TABLES`.
MEMBERS = tuple(map(_benchmark, _CATALOGUE["members"]))
TABLES = {
    entry["name"]: TableEntry(entry["dataset"], entry["domain"]) for entry in _CATALOGUE["members"] if entry["domain"]
}
NUM_DATASETS = len({entry.dataset for entry in TABLES.values()})


def mess_means(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """
    The figures of MESS's tables. As there, a dataset of several parts has their mean, a domain and all together have
    the mean over their datasets, and what was not evaluated is left out.

    Args:
        results (`Mapping[str, Mapping[str, Any]]`): Values of benchmarks by their names, others among them.

    Returns:
        `dict`: `datasets`, `domains` and `all`, each with `mean_iou` and `coi_mean_iou` (in 0..1) by name; domains
        and all with `num_datasets` as well. Empty if none of the datasets was evaluated.
    """
    parts: dict[str, list[Mapping[str, Any]]] = {}
    domains: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, entry in TABLES.items():
        if name in results:
            parts.setdefault(entry.dataset, []).append(results[name])
            domains.setdefault(entry.domain, {})[entry.dataset] = {}
    if not parts:
        return {}
    datasets = {name: _mean(values) for name, values in parts.items()}
    groups = {domain: [datasets[name] for name in names] for domain, names in domains.items()}
    return {
        "datasets": {
            name: {"domain": domain, **datasets[name]} for domain, names in domains.items() for name in names
        },
        "domains": {domain: {"num_datasets": len(group), **_mean(group)} for domain, group in groups.items()},
        "all": {"Mean": {"num_datasets": len(datasets), **_mean(datasets.values())}},
    }


def mess_table(means: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The figures of [`mess_means`], in percent, in Markdown."""
    count = means["all"]["Mean"]["num_datasets"]
    titles = ("MESS", "domain", *COLUMNS.values())
    lines = [titles, ["---"] * len(titles)]
    lines += [(name, values["domain"], *_percent(values)) for name, values in means["datasets"].items()]
    lines += [("mean", domain, *_percent(values)) for domain, values in means["domains"].items()]
    lines += [("mean", f"{count} of {NUM_DATASETS} datasets", *_percent(means["all"]["Mean"]))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _mean(values: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Of both scores, over those that have them."""
    values = list(values)
    means = {}
    for name in COLUMNS:
        scores = [value[name] for value in values if not math.isnan(value[name])]
        means[name] = sum(scores) / len(scores) if scores else math.nan
    return means


def _percent(values: Mapping[str, Any]) -> list[str]:
    return ["" if math.isnan(values[name]) else f"{100 * values[name]:.2f}" for name in COLUMNS]

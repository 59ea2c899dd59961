"""Scores drawn predictions with mess-benchmark's evaluator, and makes its tables: python score_mess.py WORK OUTPUT."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from mess_package import DatasetCatalog, MetadataCatalog, evaluator_class


SIZE = (6, 8)


def draw_some(num_classes: int) -> np.ndarray:
    """A map of a few classes."""
    return generator.choice(generator.choice(num_classes, min(num_classes, 4), replace=False), SIZE)


def number(text: str) -> float | None:
    return None if text in ("", "-") or math.isnan(float(text)) else float(text)


work, generator = Path(sys.argv[1]), np.random.default_rng(22)
evaluator_type, drawn, labels = evaluator_class(), {}, {}
for name in DatasetCatalog:
    metadata = MetadataCatalog.get(name)
    num_classes = len(metadata.stuff_classes)
    if metadata.sem_seg_root not in labels:  # which several of them share
        ignored = generator.random(SIZE) < 0.1
        labels[metadata.sem_seg_root] = np.where(ignored, metadata.ignore_label, draw_some(num_classes))
    label = labels[metadata.sem_seg_root]
    knows = (generator.random(SIZE) < 0.5) & (label != metadata.ignore_label)
    prediction = np.where(knows, label, draw_some(num_classes))
    folder = work / "model" / name
    folder.mkdir(parents=True)
    evaluator = evaluator_type(name, distributed=False, output_dir=str(folder))
    evaluator.count(prediction, label)
    scores = evaluator.evaluate()["sem_seg"]
    drawn[name] = {"label": label.tolist(), "prediction": prediction.tolist()}
    drawn[name] |= {key: float(scores[key]) for key in ("mIoU", "CoI-mIoU")}

# Its files hold numbers of numpy, which newer releases of torch read only if told to.
environment = os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
tables = ["-m", "mess.evaluation.mess_evaluation", "--model_outputs", work / "model", "--results_dir", work / "tables"]
subprocess.run([sys.executable, *tables, "--metrics", "mIoU", "CoI-mIoU"], env=environment, check=True)
rows = {}
for file, key in (("results.csv", "Dataset"), ("domain_results.csv", "Domain")):
    with (work / "tables" / file).open() as opened:
        rows[key] = {
            row[key]: {name: number(row[name]) for name in ("mIoU", "CoI-mIoU")} for row in csv.DictReader(opened)
        }
Path(sys.argv[2]).write_text(json.dumps({"maps": drawn, "tables": rows}) + "\n")
print(rows["Domain"])

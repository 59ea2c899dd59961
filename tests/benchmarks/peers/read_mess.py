"""Writes what mess-benchmark's catalogue and tables say of its datasets: python read_mess.py OUTPUT.json."""

import ast
import json
import os
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from mess.evaluation import mess_evaluation
from mess_package import DatasetCatalog, MetadataCatalog


def expected_lengths() -> dict[str, int]:
    """A table inside a function that prints, in a module that needs all the dependencies."""
    source = Path(find_spec("mess.prepare_all_datasets").origin).read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "expected_dataset_length":
            return ast.literal_eval(node.value)
    raise ValueError("There is no table of lengths.")


def member(name: str) -> dict:
    files, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    images, labels = (os.path.relpath(files[key], os.environ["DETECTRON2_DATASETS"]) for key in ("images", "labels"))
    folder = images.split("/")[0]
    assert labels.split("/")[0] == folder, name
    assert files["images"] == metadata.image_root and files["labels"] == metadata.sem_seg_root, name
    title = mess_evaluation.dataset_names.get(name, name)
    return {
        "name": name,
        "title": title,
        # The tables' script makes one row of these.
        "dataset": "PAXRay-4" if title.startswith("PAXRay-") else title,
        "domain": mess_evaluation.dataset_domains.get(name),
        "num_images": lengths.get(name),
        "folder": folder,
        "images": os.path.relpath(images, folder),
        "labels": os.path.relpath(labels, folder),
        # Most come without their dot.
        **{key: files[key] if "." in files[key] else f".{files[key]}" for key in ("image_suffix", "label_suffix")},
        "ignore_index": metadata.ignore_label,
        "classes_of_interest": list(metadata.classes_of_interest),
        "vocabulary": list(metadata.stuff_classes),
    }


lengths = expected_lengths()
in_tables = [name for name in mess_evaluation.dataset_names if name in DatasetCatalog]
assert len(in_tables) == len(mess_evaluation.dataset_names) - 1  # but for the row of PAXRay-4
others = [name for name in DatasetCatalog if name not in in_tables]
catalogue = {"version": version("mess-benchmark"), "members": [member(name) for name in in_tables + others]}
Path(sys.argv[1]).write_text(json.dumps(catalogue, indent=1) + "\n")
print(f"{len(in_tables)} datasets of the tables, {len(others)} others")

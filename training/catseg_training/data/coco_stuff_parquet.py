"""Writes COCO-Stuff as a dataset that the Hub shows: parquet files, class names and a README."""

import io
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from catseg_hf.errors import UserError
from catseg_hf.utils.files import built_aside

from .coco_stuff import RAW_TO_CONTIGUOUS
from .paired_folders import Pair


FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.Image(), "name": datasets.Value("string")})
# Sizes of files, and of the parts that a reader of one file has to read whole, as usual for images on the Hub.
SHARD_BYTES = 500_000_000
ROWS_PER_GROUP = 100

README = """---
pretty_name: COCO-Stuff 164k
task_categories:
- image-segmentation
configs:
- config_name: default
  data_files:
{data_files}
---
# COCO-Stuff 164k

Images of COCO 2017 with a label map for each (Caesar et al., "COCO-Stuff: Thing and Stuff Classes in Context", CVPR
2018): {sizes}.

| column | |
|---|---|
| `image` | the JPEG file, unchanged |
| `label` | PNG of the same size, 8 bits: the class of every pixel, 0 to {last_id}, and 255 where nothing is labelled |
| `name` | name of both files |

Ids are contiguous: the release's own, 0 to 181 with gaps, in the same order without the gaps. `id2label.json` names
them.

The annotations of COCO-Stuff are licensed under CC BY 4.0; the images are under the terms of their authors on
Flickr.

## Classes

{classes}
"""


def write_parquet(pairs: Mapping[str, Sequence[Pair]], folder: Path, class_names: Sequence[str], num_workers: int = 0):
    """
    Writes all pairs with contiguous ids. The folder appears when it is complete.

    Args:
        pairs (`Mapping[str, Sequence[Pair]]`): Images and labels with raw ids of every split, known to be good.
        folder (`Path`): A folder that does not exist yet, or an empty one.
        class_names (`Sequence[str]`): In the order of the contiguous ids.
        num_workers (`int`): Processes that write; 0 for this one alone.

    Raises:
        UserError: If there is not enough room on the disk.
    """
    sizes = {split: [_num_bytes(pair) for pair in of_split] for split, of_split in pairs.items()}
    needed = sum(map(sum, sizes.values()))
    existing = next(parent for parent in folder.resolve().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(f"{folder} needs about {needed / 1e9:.1f} GB, but {existing} has {free / 1e9:.1f} GB left.")
    with built_aside(folder) as aside:
        (aside / "data").mkdir()
        shards = {}
        for split, of_split in pairs.items():
            num_shards = min(len(of_split), -(-sum(sizes[split]) // SHARD_BYTES))
            for index, rows in enumerate(np.array_split(np.arange(len(of_split)), num_shards)):
                path = aside / "data" / f"{split}-{index:05d}-of-{num_shards:05d}.parquet"
                shards[path] = [of_split[row] for row in rows]
        _write_shards(shards, num_workers)
        id2label = {str(index): name for index, name in enumerate(class_names)}
        (aside / "id2label.json").write_text(json.dumps(id2label, indent=2) + "\n", encoding="utf-8")
        (aside / "README.md").write_text(_readme(pairs, class_names), encoding="utf-8")


def _num_bytes(pair: Pair) -> int:
    return sum(path.stat().st_size for path in pair)


def _write_shards(shards: Mapping[Path, Sequence[Pair]], num_workers: int):
    total = sum(map(len, shards.values()))
    with tqdm(total=total, desc="Writing", unit=" pairs", disable=not sys.stderr.isatty()) as progress:
        if num_workers == 0:
            for path, pairs in shards.items():
                progress.update(_write_shard(path, pairs))
            return
        with ProcessPoolExecutor(num_workers) as executor:
            for count in executor.map(_write_shard, shards.keys(), shards.values()):
                progress.update(count)


def _write_shard(path: Path, pairs: Sequence[Pair]) -> int:
    """Writes one file; returns its number of rows."""
    schema = FEATURES.arrow_schema
    with pq.ParquetWriter(path, schema, use_content_defined_chunking=True, write_page_index=True) as writer:
        for start in range(0, len(pairs), ROWS_PER_GROUP):
            rows = [_row(pair) for pair in pairs[start : start + ROWS_PER_GROUP]]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return len(pairs)


def _row(pair: Pair) -> dict:
    image, label = pair
    encoded = io.BytesIO()
    with Image.open(label) as raw_ids:
        Image.fromarray(RAW_TO_CONTIGUOUS[np.asarray(raw_ids)]).save(encoded, format="PNG")
    return {
        "image": {"bytes": image.read_bytes(), "path": image.name},
        "label": {"bytes": encoded.getvalue(), "path": label.name},
        "name": image.stem,
    }


def _readme(pairs: Mapping[str, Sequence[Pair]], class_names: Sequence[str]) -> str:
    data_files = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in pairs)
    sizes = ", ".join(f"{len(of_split):,} pairs in `{split}`" for split, of_split in pairs.items())
    classes = ", ".join(f"{index} {name}" for index, name in enumerate(class_names))
    return README.format(data_files=data_files, sizes=sizes, last_id=len(class_names) - 1, classes=classes)

#!/usr/bin/env bash
# datasets 5.2.0 with Pillow 12.3.0, images behind a map of an IterableDataset.
# A map that is told features=Features({"mask": Image()}) gives rows with PIL images in a Dataset. An IterableDataset
# says of itself that it has the same feature, Image(decode=True), and gives the bytes that the function returned, also
# after cast_column("mask", Image()): whoever reads np.asarray(row["mask"]) gets an array of one string of bytes.
# Output: "Dataset: PngImageFile, IterableDataset: bytes, after cast_column: bytes, both Image(mode=None, decode=True)".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "datasets==5.2.0" "pillow==12.3.0"
cd "$folder"
HF_HOME="$folder/hub" venv/bin/python - <<'PYTHON'
import io

import datasets
from datasets import Dataset, Features, Image, Value
from PIL import Image as PilImage


datasets.disable_progress_bars()
file = io.BytesIO()
PilImage.new("L", (4, 3)).save(file, "PNG")
features = Features({"id": Value("int64"), "mask": Image()})


def add_masks(batch):
    return {"mask": [file.getvalue()] * len(batch["id"])}


dataset = Dataset.from_dict({"id": [1, 2]})
mapped = dataset.map(add_masks, batched=True, features=features)
streamed = dataset.to_iterable_dataset().map(add_masks, batched=True, features=features)
cast = streamed.cast_column("mask", Image())
kinds = [type(next(iter(rows))["mask"]).__name__ for rows in (mapped, streamed, cast)]
assert mapped.features["mask"] == streamed.features["mask"] == cast.features["mask"]
print(f"Dataset: {kinds[0]}, IterableDataset: {kinds[1]}, after cast_column: {kinds[2]}, both {mapped.features['mask']}")
assert kinds == ["PngImageFile", "bytes", "bytes"]
PYTHON

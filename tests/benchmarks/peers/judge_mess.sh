#!/usr/bin/env bash
# What mess-benchmark's own code says: `bash tests/benchmarks/peers/judge_mess.sh`, with access to PyPI.
# Writes the catalogue that the evaluation reads (training/catseg_training/benchmarks/data/mess.json), and beside this
# script mess_scores.json, label maps with predictions and what the package's evaluator and tables make of them, which
# tests/benchmarks/test_mess.py compares with. PYTHON has numpy, pandas and torch.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Its dependencies, of which the catalogue needs none, would replace torch.
python3 -m pip install --quiet --no-deps --target "$work/package" "mess-benchmark==0.2"
export PYTHONPATH="$work/package" DETECTRON2_DATASETS="$work/data"
"$python" "$here/read_mess.py" "$here/../../../training/catseg_training/benchmarks/data/mess.json"
"$python" "$here/score_mess.py" "$work" "$here/mess_scores.json"

"""Compares a prepared folder with what a tool itself draws: python -m catseg_testing.prepared_folders PREPARED
EXPECTED [NAME ...], with names of the tool that stand for no class. EXPECTED is written by tests/annotations/peers."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def named(labels: np.ndarray, names: Mapping[int, str]) -> np.ndarray:
    """Ids (H, W) as the names of their classes, "" for those without one."""
    table = np.array([names.get(index, "") for index in range(256)], dtype=object)
    return table[labels]


def differences(prepared: Path, expected: Path, no_class: tuple[str, ...] = ()) -> Iterator[tuple[str, int | None]]:
    """
    For each label map of a tool the number of pixels that have another class in a prepared folder, `None` if it is
    missing there. Names in `no_class` are those of a tool that stand for none.
    """
    names = dict(enumerate(json.loads((prepared / "classes.json").read_text())))
    stored = {int(key): name for key, name in json.loads((expected / "classes.json").read_text()).items()}
    tool_names = {number: name for number, name in stored.items() if name not in no_class}
    for path in sorted(expected.rglob("*.png")):
        split = "*" if path.parent.name == "any" else path.parent.name
        found = sorted(prepared.glob(f"labels/{split}/{path.name}"))
        where = str(path.relative_to(expected))
        if len(found) != 1:
            yield where, None
            continue
        ours, theirs = (np.asarray(Image.open(file)) for file in (found[0], path))
        if ours.shape != theirs.shape:
            yield where, None
            continue
        yield where, int((named(ours, names) != named(theirs, tool_names)).sum())


if __name__ == "__main__":
    worst = 0
    for where, count in differences(Path(sys.argv[1]), Path(sys.argv[2]), tuple(sys.argv[3:])):
        print(f"{where}: {'not there' if count is None else f'{count} pixels differ'}")
        worst = max(worst, 1 if count is None else count)
    sys.exit(worst > 0)

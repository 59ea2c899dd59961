"""Label maps of Cityscapes by its own table of labels, as those that its benchmark counts: python draw_cityscapes.py
SOURCE OUTPUT."""

import sys
from pathlib import Path

import numpy as np
from cityscapesscripts.helpers.labels import id2label, labels
from label_maps import write, write_classes
from PIL import Image


source, output = map(Path, sys.argv[1:])
for path in sorted(source.rglob("*_gtFine_*.png")):
    stem, _, kind = path.stem.partition("_gtFine_")
    ids = np.asarray(Image.open(path)).astype(int)
    if kind == "instanceIds":
        ids = np.where(ids < 1000, ids, ids // 1000)
    if kind != "labelTrainIds":
        ids = np.vectorize(lambda number: id2label[number].trainId)(ids)
    write(output, path.parent.parent.name, f"{stem}_leftImg8bit.png", ids)
write_classes(output, {label.trainId: label.name for label in labels if 0 <= label.trainId < 255})

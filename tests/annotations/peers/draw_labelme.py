"""Label maps of Labelme's JSON by Labelme's own reader and rasteriser: python draw_labelme.py SOURCE OUTPUT.

With labels.txt ids are those of its own converter (`__ignore__` -1, `_background_` 0); without it pixels under no
shape are of no class. Label maps are turned as the image inside the JSON asks for."""

import sys
from pathlib import Path

import numpy as np
from label_maps import write, write_classes
from labelme import utils
from labelme._label_file import read_label_file
from PIL import ExifTags, Image, ImageOps


source, output = map(Path, sys.argv[1:])
class_list = source / "labels.txt"
files = sorted(source.glob("*.json"))
labels = {str(path): read_label_file(str(path)) for path in files}
if class_list.is_file():
    ids = {name: index - 1 for index, name in enumerate(class_list.read_text().split("\n")) if name}
    labels = {path: data for path, data in labels.items() if all(shape["label"] in ids for shape in data.shapes)}
    unpainted = 0
else:
    names = sorted({shape["label"] for data in labels.values() for shape in data.shapes})
    ids, unpainted = {name: index for index, name in enumerate(names)}, -1
for path, data in labels.items():
    size = utils.img_data_to_arr(data.image_data).shape
    shifted = {name: number + 2 for name, number in ids.items()}
    drawn, _ = utils.shapes_to_label(size, data.shapes, shifted)
    labels = Image.fromarray(np.where(drawn == 0, unpainted, drawn - 2))
    exif = utils.img_data_to_pil(data.image_data).getexif()
    labels.getexif()[ExifTags.Base.Orientation] = exif.get(ExifTags.Base.Orientation, 1)
    write(output, "default", Path(path).name, np.asarray(ImageOps.exif_transpose(labels)))
write_classes(output, {number: name for name, number in ids.items() if number >= 0})

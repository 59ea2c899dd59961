"""What GeoDeep reads in a folder with `scene.tif` and `model/model.onnx`: `python read_geodeep.py FOLDER OUTPUT`."""

import json
import sys
from pathlib import Path

from geodeep import segment
from geodeep.inference import create_session
from PIL import Image


folder, output = map(Path, sys.argv[1:])
model = str(folder / "model" / "model.onnx")
_, config = create_session(model)
read = {
    name: config[name] for name in sorted(config) if name.startswith(("class_", "input", "model", "res", "seg", "til"))
}
(output / "geodeep.json").write_text(json.dumps(read, indent=1) + "\n")
Image.fromarray(segment(str(folder / "scene.tif"), model)).save(output / "geodeep.png")

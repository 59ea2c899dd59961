#!/usr/bin/env bash
# label-studio-sdk 2.1.2, Converter.convert_to_coco: the annotations of an image are grouped by the kind of their label,
# not in the order in which the regions were drawn, rectangles have an empty segmentation, and brushes are left out with
# no more than a message of the log. So label maps that are painted from the file have another class on top where regions
# overlap. Expected: the order of the regions, the later one above, as in the JSON.
# Output: "regions: a, b, c, d; annotations: a, d, b, the last without a segmentation" (c is the brush).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "label-studio-sdk==2.1.2"
cd "$folder"
venv/bin/python - <<'PYTHON' 2>/dev/null
import json

from label_studio_sdk.converter import Converter, brush

config = """<View><Image name="image" value="$image"/>
<PolygonLabels name="polygon" toName="image"><Label value="a"/><Label value="d"/></PolygonLabels>
<RectangleLabels name="rectangle" toName="image"><Label value="b"/></RectangleLabels>
<BrushLabels name="brush" toName="image"><Label value="c"/></BrushLabels></View>"""


def region(kind, label, **value):
    value[f"{kind}labels"] = [label]
    size = {"original_width": 40, "original_height": 20, "image_rotation": 0}
    names = {"from_name": kind, "to_name": "image", "type": f"{kind}labels"}
    return {"id": label, **names, **size, "value": value}


pixels = brush.encode_rle([0] * 1600 + [255] * 1600)
results = [
    region("polygon", "a", points=[[0, 0], [80, 0], [80, 80]], closed=True),
    region("rectangle", "b", x=10, y=10, width=50, height=50, rotation=0),
    region("brush", "c", format="rle", rle=pixels),
    region("polygon", "d", points=[[20, 0], [90, 0], [90, 80]], closed=True),
]
task = {"id": 1, "data": {"image": "image.png"}, "annotations": [{"id": 1, "result": results}]}
json.dump([task], open("tasks.json", "w"))
Converter(config, ".", download_resources=False).convert_to_coco("tasks.json", "out", is_dir=False)
coco = json.load(open("out/result.json"))
names = {category["id"]: category["name"] for category in coco["categories"]}
order = [names[item["category_id"]] for item in coco["annotations"]]
is_last_empty = not coco["annotations"][-1]["segmentation"]
print(f"regions: {', '.join(item['id'] for item in results)}; annotations: {', '.join(order)}", end="")
print(", the last without a segmentation" * is_last_empty)
assert order == ["a", "d", "b"] and is_last_empty
PYTHON

"""Segments an image with an exported model and ONNX Runtime, without torch: `catseg_hf.export.runtime` does the work.

pip install numpy onnxruntime pillow tokenizers && pip install --no-deps .
python demo/segment_onnx.py --model cats-onnx --image photo.jpg
python demo/segment_onnx.py --model catseg-base-onnx --image photo.jpg --labels cat sofa wall
"""

import argparse
from pathlib import Path

from PIL import Image

from catseg_hf.export.runtime import UserError, load_segmenter, read_image


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder that `catseg-hf export` wrote")
    parser.add_argument("--image", type=Path, required=True, help="image to segment")
    parser.add_argument("--labels", nargs="+", help="classes to look for, bars between several words for one")
    parser.add_argument("--background", nargs="+", default=[], help="what else there is: its pixels get 65535")
    parser.add_argument("--output", type=Path, default="segmentation.png", help="class indices (%(default)s)")
    arguments = parser.parse_args()
    try:
        segmenter = load_segmenter(arguments.model)
        image = read_image(arguments.image, segmenter.settings.get("value_range"))
        result = segmenter(image, arguments.labels, arguments.background)
    except UserError as error:
        parser.exit(1, f"error: {error}\n")
    for name, share in result.shares():
        print(f"{name:>16}  {share:6.1%}")
    Image.fromarray(result.class_map).save(arguments.output)
    print(f"Wrote {arguments.output}")


if __name__ == "__main__":
    main()

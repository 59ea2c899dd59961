"""Converts a small checkpoint, loads it with the Auto classes and segments a photograph.

python demo/segment_photo.py
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import skimage.data
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, AutoProcessor

import catseg_hf  # noqa: F401  (registers the Auto classes)
from catseg_hf.visualization import area_shares, draw_segmentation


ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
LABELS = ["cat", "fur", "eye", "nose", "background"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", nargs="+", default=LABELS, help="classes to look for (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "demo" / "output", help="folder for the results")
    arguments = parser.parse_args()

    checkpoint = arguments.output_dir / "catseg-tiny"
    shutil.rmtree(checkpoint, ignore_errors=True)
    subprocess.run(
        [
            sys.executable,
            ROOT / "convert" / "convert_catseg_original_to_hf.py",
            f"--checkpoint_path={FIXTURES / 'original.pth'}",
            f"--tokenizer={FIXTURES / 'tokenizer'}",
            f"--output_dir={checkpoint}",
        ],
        check=True,
    )

    model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    image = Image.fromarray(skimage.data.chelsea())
    inputs = processor(images=image, text=arguments.labels)
    with torch.inference_mode():
        outputs = model(**inputs)
    target_sizes = [(image.height, image.width)]
    (segmentation,) = processor.post_process_semantic_segmentation(outputs, target_sizes)

    picture = arguments.output_dir / "segmentation.png"
    draw_segmentation(image, segmentation, arguments.labels).save(picture)
    for index, share in area_shares(segmentation).items():
        print(f"{arguments.labels[index]:>12}  {share:6.1%}")
    print(f"Wrote {picture}")
    print(
        "The small checkpoint has random weights: the picture shows that all parts work together, not what is in it."
    )


if __name__ == "__main__":
    main()

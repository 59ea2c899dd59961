"""Segments an image by words with the small model that comes with the package, or with another.

python demo/segment_photo.py
python demo/segment_photo.py --model base --image photo.jpg --labels cat sofa wall
"""

import argparse
import json
from pathlib import Path

from transformers import pipeline

from catseg_hf import EMBEDDED_MODEL
from catseg_hf.commands.model_options import MODEL_HELP
from catseg_hf.image_io_catseg import open_image
from catseg_hf.images.results import list_segments
from catseg_hf.loading import resolve_model
from catseg_hf.utils.threads import limit_threads
from catseg_hf.visualization import draw_segmentation


ROOT = Path(__file__).resolve().parent
SCENE = ROOT / "scene.png"
SCENE_LABELS = ROOT / "scene_labels.json"
NOTES = {"seen": "seen", "unseen": "never shown a mask of it"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, default=SCENE, help="image to segment (default: a drawn scene)")
    parser.add_argument("--labels", nargs="+", help="classes to look for (default: those of the scene, and others)")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help=f"{MODEL_HELP} (default: the one in the package)")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "output", help="folder for the result")
    arguments = parser.parse_args()
    limit_threads()

    labels = arguments.labels or json.loads(SCENE_LABELS.read_text())
    image = open_image(arguments.image).convert("RGB")
    segmenter = pipeline("zero-shot-image-segmentation", model=resolve_model(arguments.model))
    result = segmenter(image, candidate_labels=labels, return_segmentation_map=True)

    words = Path(arguments.model) / "words.json"  # which a model of the emoji world has
    groups = json.loads(words.read_text()) if words.is_file() else {}
    notes = {word: NOTES[group] for group, members in groups.items() for word in members}
    for segment in list_segments(result):
        note = notes.get(segment["label"], "")
        print(f"{segment['label']:>16}  score {segment['score']:.2f}  {segment['area']:6.1%}  {note}".rstrip())
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    drawing = arguments.output_dir / "segmentation.png"
    draw_segmentation(image, result["segmentation"], labels).save(drawing)
    print(f"Wrote {drawing}")


if __name__ == "__main__":
    main()

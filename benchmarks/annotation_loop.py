"""Pre-labels scenes, corrects two classes, prepares what came out, fine-tunes on it: what that is worth.

PYTHONPATH=training python benchmarks/annotation_loop.py --json benchmarks/results/annotation_loop.json

Twenty of the tests' scenes of the emoji world are segmented into all words of that world by `catseg-hf segment
--format coco` with the model that comes with the package. Of the words that two or more of the scenes show, the two
with the lowest IoU are corrected as a person would in a tool: in the COCO file, every pixel that has one of them, or
should, gets the annotation of the truth. `catseg-hf prepare` makes a dataset of the file, on which training/train.py
takes a few steps. Mean IoU of the two words is that on the other scenes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from catseg_hf import EMBEDDED_MODEL
from catseg_hf.annotations.rle import decode_coco, encode_coco
from catseg_hf.loading import load_segmenter
from catseg_training.world.words import classes
from measure import ROOT, machine, write_json


SCENES = ROOT / "tests" / "fixtures" / "emoji_world"
NUM_CORRECTED, MIN_SCENES = 2, 2


def ious(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(T,): Of every word, NaN where there is none."""
    both, either = np.zeros((2, len(classes())))
    for index in range(len(classes())):
        predicted, true = predictions == index, labels == index
        both[index], either[index] = (predicted & true).sum(), (predicted | true).sum()
    with np.errstate(invalid="ignore"):
        return both / either


def segment(model: str | Path, images: list[Path]) -> np.ndarray:
    """Label maps (N, H, W) of images among all words."""
    pipe = load_segmenter(str(model), "cpu")
    results = [pipe(str(path), candidate_labels=list(classes()), return_segmentation_map=True) for path in images]
    return np.stack([result["segmentation"].numpy() for result in results])


def read_label_maps(folder: Path, images: list[Path], pattern: str) -> np.ndarray:
    return np.stack([np.asarray(Image.open(folder / pattern.format(path.stem))) for path in images])


def correct(annotations: Path, truth: dict[str, np.ndarray], words: list[int]) -> int:
    """Gives the pixels of words, in a COCO file or in truth, to what is true; returns how many pixels that changes."""
    data = json.loads(annotations.read_text())
    ids = {category["name"]: category["id"] for category in data["categories"]}
    changed, kept = 0, []
    for image in data["images"]:
        true = truth[Path(image["file_name"]).stem]
        own = [annotation for annotation in data["annotations"] if annotation["image_id"] == image["id"]]
        masks = [decode_coco(annotation["segmentation"]["counts"], true.shape) for annotation in own]
        touched = np.isin(true, words)
        for annotation, mask in zip(own, masks, strict=True):
            if annotation["category_id"] in [ids[classes()[word]] for word in words]:
                touched |= mask
        corrected = [(annotation["category_id"], mask & ~touched) for annotation, mask in zip(own, masks, strict=True)]
        corrected += [(ids[classes()[word]], (true == word) & touched) for word in np.unique(true[touched])]
        for category, mask in corrected:
            if mask.any():
                encoded = {"size": list(mask.shape), "counts": encode_coco(mask)}
                entry = {"image_id": image["id"], "category_id": category, "segmentation": encoded, "iscrowd": 0}
                kept.append({"id": len(kept) + 1, **entry, "area": int(mask.sum())})
        changed += int(touched.sum())
    annotations.write_text(json.dumps({**data, "annotations": kept}))
    return changed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=20, help="to pre-label (default: %(default)s)")
    parser.add_argument("--evaluated_scenes", type=int, metavar="N", help="of the others (default: all)")
    parser.add_argument("--steps", type=int, default=50, help="of fine-tuning (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the scores")
    arguments = parser.parse_args()
    num_images = arguments.evaluated_scenes and arguments.scenes + arguments.evaluated_scenes
    images = sorted((SCENES / "images" / "gate").iterdir())[:num_images]
    training, others = images[: arguments.scenes], images[arguments.scenes :]
    truth = read_label_maps(SCENES / "labels" / "gate", images, "{}.png")
    truth_of_others = truth[arguments.scenes :]

    def run(*command: str | Path):
        subprocess.run([sys.executable, *map(str, command)], check=True, cwd=ROOT)

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "words.json").write_text(json.dumps(list(classes())))
        segmented, data, tuned = work / "segmented", work / "data", work / "tuned"
        labels = ("--labels", ", ".join(classes()))
        run("-m", "catseg_hf.cli", "segment", *training, *labels, "--format", "coco", "--output", segmented)

        drawn = read_label_maps(segmented, training, "{}_labels.png")
        scores = ious(drawn, truth[: arguments.scenes])
        shown = np.array(
            [sum((label == index).any() for label in truth[: arguments.scenes]) for index in range(len(scores))]
        )
        evaluated = np.array([(truth_of_others == index).any() for index in range(len(scores))])
        candidates = np.flatnonzero((shown >= MIN_SCENES) & evaluated)
        words = candidates[np.argsort(scores[candidates], kind="stable")[:NUM_CORRECTED]].tolist()
        by_name = {path.stem: label for path, label in zip(training, truth, strict=False)}
        changed = correct(segmented / "annotations.json", by_name, words)

        prepare = ("prepare", segmented / "annotations.json", "--images", SCENES / "images" / "gate", "--output", data)
        run("-m", "catseg_hf.cli", *prepare, "--classes", work / "words.json", "--validation_share", "0")
        options = ("--crop_size", "128", "--no-color_jitter", "--per_device_train_batch_size", "4")
        options += ("--learning_rate", "2e-4", "--no-gradient_checkpointing", "--skip_evaluation")
        steps = ("--max_train_steps", str(arguments.steps), "--output_dir", tuned)
        model = ("--model_name_or_path", EMBEDDED_MODEL, "--dataset_name", data, "--vocabulary", data / "classes.json")
        run("training/train.py", *model, *options, *steps)
        before, after = (ious(segment(path, others), truth_of_others) for path in (EMBEDDED_MODEL, tuned))

    result = {
        "machine": machine("cpu"),
        "scenes": len(training),
        "scenes_of_the_score": len(others),
        "steps": arguments.steps,
        "words": [classes()[word] for word in words],
        "corrected_pixels": changed,
        "mean_iou_before": round(float(before[words].mean()), 4),
        "mean_iou_after": round(float(after[words].mean()), 4),
        "mean_iou_of_all_words_before": round(float(np.nanmean(before)), 4),
        "mean_iou_of_all_words_after": round(float(np.nanmean(after)), 4),
    }
    write_json(result, arguments.json)


if __name__ == "__main__":
    main()

"""Segments an image with an exported model and ONNX Runtime, without torch.

pip install numpy onnxruntime pillow tokenizers
python demo/segment_onnx.py --model catseg-base-onnx --image photo.jpg --labels cat sofa wall
"""

import argparse
import json
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from PIL import Image, ImageOps
from tokenizers import Tokenizer


NO_CLASS = 65535


def read_image(path: Path, value_range: list[float] | None = None) -> Image.Image:
    """
    An image, upright, as RGB in 8 bits. Grey integers above 255 are those of 16 bits and floats up to 1 go to 1,
    unless the two values that are black and white are given.
    """
    image = Image.open(path)
    tags = getattr(image, "tag_v2", {})
    if max(tags.get(258, (8,))) > 8 and (tags.get(262) == 0 or tags.get(284) == 2):
        raise SystemExit(f"{path} is a TIFF that Pillow alone reads wrongly: save it as PNG.")
    image = ImageOps.exif_transpose(image)
    if image.mode == "P":
        image = image.convert("RGBA")
    if image.mode[0] not in "IF":
        image = image.convert("RGB")
        if value_range is None:
            return image
    pixels = np.asarray(image).astype(np.float64)
    if value_range is None:
        is_16_bit = image.mode.startswith("I;16") or pixels.max() > 255
        value_range = 0, 65535 if is_16_bit else 1 if image.mode == "F" and pixels.max() <= 1 else 255
    low, high = value_range
    pixels = ((pixels - low) * (255 / (high - low))).clip(0, 255)
    return Image.fromarray(np.rint(pixels).astype(np.uint8)).convert("RGB")


def resize_matrix(old: int, new: int) -> np.ndarray:
    """Weights `(new, old)` of a bilinear resize along one axis, without antialiasing."""
    positions = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    lower = np.floor(positions).astype(int)
    upper = np.minimum(lower + 1, old - 1)
    weights = np.zeros((new, old), dtype=np.float32)
    np.add.at(weights, (np.arange(new), lower), 1 - (positions - lower))
    np.add.at(weights, (np.arange(new), upper), positions - lower)
    return weights


def resize(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps `(..., H, W)` at another size."""
    height, width = (resize_matrix(old, new) for old, new in zip(maps.shape[-2:], size, strict=True))
    return height @ maps @ width.T


def most_probable_class(probabilities: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Arg max `(H, W)` over probabilities `(num_classes, h, w)` at another size, which are resized one by one."""
    segmentation, best = np.zeros(size, dtype=np.uint16), np.full(size, -1, dtype=np.float32)
    for index, one in enumerate(probabilities):
        resized = resize(one, size)
        segmentation[resized > best] = index
        best = np.maximum(best, resized)
    return segmentation


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


class OnnxSegmenter:
    """The graphs of a folder that `convert/export_catseg.py` wrote, and how they take images and words."""

    def __init__(self, folder: Path):
        self.settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        self.templates = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))["prompt_templates"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        pad_token = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["pad_token"]
        self.tokenizer.enable_padding(pad_id=self.tokenizer.token_to_id(pad_token), pad_token=pad_token)
        self.tokenizer.encode_special_tokens = True  # what a label spells out is text
        self.text_encoder = InferenceSession(folder / "text_encoder.onnx")
        self.segmenter = InferenceSession(folder / "segmenter.onnx")
        self.vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        self.vocabulary_embeds = np.load(folder / "text_embeds.npy")

    def encode(self, labels: list[str]) -> np.ndarray:
        """Text features `(num_classes, num_prompts, projection_dim)` of labels, of each its first synonym."""
        names = [label.split(",")[0].strip() for label in labels]
        prompts = [template.replace("{}", name) for name in names for template in self.templates]
        input_ids = np.array([encoding.ids for encoding in self.tokenizer.encode_batch(prompts)])
        return self.text_encoder.run(None, {"input_ids": input_ids.reshape(len(labels), len(self.templates), -1)})[0]

    def probabilities(self, image: Image.Image, text_embeds: np.ndarray) -> np.ndarray:
        """Probabilities `(num_classes, h, w)` of an image, as the settings say: of four overlapping windows and a
        global view, or of the whole image at once."""
        settings = self.settings
        if not settings["sliding_window"]:
            return sigmoid(self.logits([self.view(image, settings["image_size"])], text_embeds)[0])
        shortest, longest = settings["size"]["shortest_edge"], settings["size"]["longest_edge"]
        scale = min(shortest / min(image.size), longest / max(image.size))
        image = image.resize([max(1, int(scale * side + 0.5)) for side in image.size], Image.Resampling.BILINEAR)
        side, size = settings["window_image_size"], settings["sliding_window_size"]
        whole, starts = self.view(image, side), (0, side - size)
        windows = [whole[:, y : y + size, x : x + size] for y in starts for x in starts]
        logits = self.logits([*windows, self.view(image, size)], text_embeds)
        *parts, overview = (sigmoid(resize(one, (size, size))) for one in logits)
        total, coverage = np.zeros((len(text_embeds), side, side), np.float32), np.zeros((side, side), np.float32)
        for part, (y, x) in zip(parts, ((y, x) for y in starts for x in starts), strict=True):
            total[:, y : y + size, x : x + size] += part
            coverage[y : y + size, x : x + size] += 1
        return (total / coverage + resize(overview, (side, side))) / 2

    def view(self, image: Image.Image, side: int) -> np.ndarray:
        """Normalised pixels `(3, side, side)`."""
        pixels = resize(np.asarray(image, dtype=np.float32).transpose(2, 0, 1), (side, side))
        mean, std = (np.array(self.settings[name]).reshape(3, 1, 1) for name in ("image_mean", "image_std"))
        return ((pixels * self.settings["rescale_factor"] - mean) / std).astype(np.float32)

    def logits(self, views: list[np.ndarray], text_embeds: np.ndarray) -> np.ndarray:
        """Logits `(num_views, num_classes, h, w)`."""
        pixel_values = resize(np.stack(views), (self.settings["image_size"],) * 2)
        return self.segmenter.run(None, {"pixel_values": pixel_values, "text_embeds": text_embeds})[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder that convert/export_catseg.py wrote")
    parser.add_argument("--image", type=Path, required=True, help="image to segment")
    parser.add_argument(
        "--labels",
        nargs="+",
        help="classes to look for, with bars between several words for one (default: the model's own vocabulary)",
    )
    parser.add_argument(
        "--background", nargs="+", default=[], help="what else there is: its pixels get no class, 65535"
    )
    parser.add_argument("--output", type=Path, default="segmentation.png", help="class indices (%(default)s)")
    arguments = parser.parse_args()

    segmenter = OnnxSegmenter(arguments.model)
    labels, text_embeds = segmenter.vocabulary, segmenter.vocabulary_embeds
    classes = np.arange(len(labels), dtype=np.uint16)
    if arguments.labels or arguments.background:
        groups = [label.split("|") for label in arguments.labels or labels]
        words = [word.strip() for group in groups for word in group] + arguments.background
        labels = [group[0].strip() for group in groups]
        classes = np.repeat(np.arange(len(groups) + 1), [*map(len, groups), len(arguments.background)])
        classes = np.where(classes < len(groups), classes, NO_CLASS).astype(np.uint16)
        text_embeds = segmenter.encode(words)
    image = read_image(arguments.image, segmenter.settings.get("value_range"))
    segmentation = classes[most_probable_class(segmenter.probabilities(image, text_embeds), image.size[::-1])]
    shares = np.bincount(segmentation.ravel(), minlength=len(labels))[: len(labels)] / segmentation.size
    for index in shares.argsort()[::-1]:
        if shares[index]:
            print(f"{labels[index]:>16}  {shares[index]:6.1%}")
    Image.fromarray(segmentation).save(arguments.output)
    print(f"Wrote {arguments.output}")


if __name__ == "__main__":
    main()

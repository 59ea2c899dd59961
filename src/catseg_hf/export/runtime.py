"""Segments images with exported ONNX graphs: numpy, Pillow, ONNX Runtime and, for words, tokenizers are all it takes.

    segmenter = load_segmenter("cats-onnx/model.onnx")  # a fixed artefact, or the folder of an open one
    result = segmenter(read_image("photo.jpg"))
    Image.fromarray(result.class_map).save("segmentation.png")

The package around it need not be installed: an application can take this file over as it is.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps


try:
    from ..errors import UserError
except ImportError:  # taken over by an application
    UserError = ValueError


NO_CLASS = 65535
"""What a class map has where a word of the background is the most probable one."""
FIXED_FILE = "model.onnx"
# Of the image processor's settings, what `segment_views` takes.
_SETTINGS = (
    "image_size",
    "sliding_window",
    "window_image_size",
    "sliding_window_size",
    "size",
    "image_mean",
    "image_std",
    "rescale_factor",
)
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR_CONFIGURATION = 258, 262, 284
# CLIP's tokens, where a tokenizer names no limit but a number that no prompt reaches.
_CLIP_LENGTH, _NO_LENGTH = 77, 10**30


@dataclass(frozen=True)
class Segmentation:
    """
    What an image was segmented into.

    Args:
        names (`list[str]`): The classes.
        class_map (`np.ndarray` of shape (H, W), uint16): The class of every pixel, or [`NO_CLASS`].
        probabilities (`np.ndarray` of shape (num_words, h, w), float32): In 0..1, at the model's resolution; of a
            fixed artefact those of the classes, of an open one those of all words, the background's last.
    """

    names: list[str]
    class_map: np.ndarray
    probabilities: np.ndarray

    def shares(self) -> list[tuple[str, float]]:
        """The classes that occur and their shares of the image, the largest first."""
        counts = np.bincount(self.class_map.ravel(), minlength=len(self.names))[: len(self.names)]
        return [
            (self.names[index], counts[index] / self.class_map.size)
            for index in counts.argsort()[::-1]
            if counts[index]
        ]


def load_segmenter(model: str | Path) -> "ExportedSegmenter":
    """
    Loads what `catseg-hf export --format onnx` wrote.

    Args:
        model (`str`): Its folder, or the file of a fixed artefact.

    Raises:
        UserError: If it is neither, or a file is missing or damaged.
    """
    model = Path(model)
    path = model / FIXED_FILE if model.is_dir() else model
    if path.is_file():
        return FixedSegmenter(path)
    if (model / "segmenter.onnx").is_file():
        return OpenSegmenter(model)
    raise UserError(
        f"{model} is no exported model: name the folder that `catseg-hf export --format onnx` wrote, or the file "
        f"{FIXED_FILE} in it."
    )


class ExportedSegmenter(ABC):
    """
    What segments images with an artefact of either kind.

    Attributes:
        names (`list[str]`): The classes that the artefact has by itself.
        settings (`dict[str, Any]`): Of the image processor.
    """

    names: list[str]
    settings: dict[str, Any]

    def __call__(
        self, image: Image.Image, labels: Sequence[str] | None = None, background: Sequence[str] = ()
    ) -> Segmentation:
        """
        Segments an image.

        Args:
            image (`Image.Image`): In RGB, see [`read_image`].
            labels (`Sequence[str]`, *optional*): The classes, by default the artefact's own, which are all that a
                fixed one takes; bars separate several words for one: "sofa|couch".
            background (`Sequence[str]`, *optional*): What else there is: its pixels get [`NO_CLASS`]. A fixed artefact
                takes none.

        Raises:
            UserError: If the artefact is fixed and the words are others than its own; if it is open and a word has
                more tokens than the text encoder takes, or the tokenizer is missing, in the folder or as a package.
        """
        names, classes, logits = self._prepare(labels, background)
        probabilities = segment_views(image, self.settings, logits)
        class_map = classes[most_probable_class(probabilities, image.size[::-1])]
        return Segmentation(names, class_map, probabilities)

    @abstractmethod
    def _prepare(
        self, labels: Sequence[str] | None, background: Sequence[str]
    ) -> tuple[list[str], np.ndarray, Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]]:
        """The classes; of each probability that the graph gives its class, uint16; and views to logits."""


class FixedSegmenter(ExportedSegmenter):
    """
    A graph with the words in it.

    Args:
        path (`Path`): The file.

    Raises:
        UserError: If it is damaged, or no fixed artefact for images as they are.
    """

    def __init__(self, path: Path):
        self.path = path
        self.session = _session(path)
        stored = self.session.get_modelmeta().custom_metadata_map
        if "class_names" not in stored or "preprocessor_config" not in stored:
            raise UserError(
                f"{path} says nothing of its classes, or was made for a GIS: export one with "
                "`catseg-hf export --format onnx --labels ...` and without --target."
            )
        try:
            self.metadata: dict[str, Any] = {name: json.loads(value) for name, value in stored.items()}
        except ValueError as error:
            raise _incomplete(path, f"its metadata are no JSON: {error}") from error
        self.names = _strings(self.metadata["class_names"], "class_names", path)
        self.settings = _settings(self.metadata["preprocessor_config"], path)
        self.words: list[list[str]] = self.metadata.get("words", [[name] for name in self.names])
        if not isinstance(self.words, list) or len(self.words) != len(self.names):
            raise _incomplete(path, "its words are not those of its classes")

    def _prepare(self, labels, background):
        # The first of a class's words may stand for all of them.
        asked = [_split_words(label) for label in labels or self.names]
        is_own = len(asked) == len(self.words) and all(
            words in (own, own[:1]) for words, own in zip(asked, self.words, strict=True)
        )
        if background or not is_own:
            own = ["|".join(words) for words in self.words]
            others = [*(labels or self.names), *background]
            raise UserError(
                f"{self.path} has {len(own)} classes in it ({_shortened(own)}) and takes no others, but "
                f"{len(others)} were asked for ({_shortened(others)}): export one with these --labels, or without "
                "any, to choose words later."
            )
        return self.names, np.arange(len(self.names), dtype=np.uint16), self.logits

    def logits(self, views: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Logits `(num_classes, h, w)` of each of some views, normalised pixels `(3, image_size, image_size)`."""
        probabilities = [self.session.run(["probabilities"], {"pixel_values": view[None]})[0][0] for view in views]
        bounds = np.finfo(np.float32)
        clipped = [np.clip(one, bounds.tiny, 1 - bounds.epsneg) for one in probabilities]
        return [np.log(one) - np.log1p(-one) for one in clipped]


class OpenSegmenter(ExportedSegmenter):
    """
    Two graphs, for words that are chosen when they run.

    Args:
        folder (`Path`): What `catseg-hf export` wrote.

    Raises:
        UserError: If a file is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / "preprocessor_config.json"
        self.settings = _settings(_read_json(path), path)
        path = folder / "processor_config.json"
        self.templates = _strings(_member(_read_json(path), "prompt_templates", path), "prompt_templates", path)
        path = folder / "vocabulary.json"
        self.names = _strings(_read_json(path), "labels", path)
        path = folder / "text_embeds.npy"
        try:
            self.own_text_embeds = np.load(path)
        except (OSError, ValueError, EOFError) as error:
            raise _incomplete(path, error) from error
        if self.own_text_embeds.shape[:2] != (len(self.names), len(self.templates)):
            raise _incomplete(
                path,
                f"it has features of shape {self.own_text_embeds.shape} for {len(self.names)} labels and "
                f"{len(self.templates)} prompt templates",
            )
        self.text_encoder, self.segmenter = (
            _session(folder / f"{name}.onnx") for name in ("text_encoder", "segmenter")
        )

    def _prepare(self, labels, background):
        names, text_embeds, classes = self.names, self.own_text_embeds, np.arange(len(self.names))
        if labels or background:
            groups = [_split_words(label) for label in labels or self.names]
            names = [words[0] for words in groups]
            others = [word for label in background for word in _split_words(label)]
            text_embeds = self.encode([word for words in groups for word in words] + others)
            classes = np.repeat(np.arange(len(groups) + 1), [*map(len, groups), len(others)])
        classes = np.where(classes < len(names), classes, NO_CLASS).astype(np.uint16)
        return names, classes, lambda views: self.logits(views, text_embeds)

    def encode(self, words: Sequence[str]) -> np.ndarray:
        """
        Text features `(num_words, num_prompts, projection_dim)` of words, of each its first synonym.

        Raises:
            UserError: If a word has more tokens than the text encoder takes, or the tokenizer is missing.
        """
        prompts = [template.replace("{}", word.split(",")[0].strip()) for word in words for template in self.templates]
        tokenizer, length = self._tokenizer
        encodings = tokenizer.encode_batch(prompts)
        for index, encoding in enumerate(encodings):
            if sum(encoding.attention_mask) > length:
                raise UserError(
                    f"The prompt for label {words[index // len(self.templates)]!r} has "
                    f"{sum(encoding.attention_mask)} tokens, but at most {length} are accepted: shorten the label."
                )
        input_ids = np.array([encoding.ids for encoding in encodings])
        input_ids = input_ids.reshape(len(words), len(self.templates), -1)
        return self.text_encoder.run(None, {"input_ids": input_ids})[0]

    def logits(self, views: Sequence[np.ndarray], text_embeds: np.ndarray) -> np.ndarray:
        """Logits `(num_views, num_words, h, w)` of views, normalised pixels `(3, image_size, image_size)`."""
        return self.segmenter.run(None, {"pixel_values": np.stack(views), "text_embeds": text_embeds})[0]

    @cached_property
    def _tokenizer(self) -> tuple[Any, int]:
        """The tokenizer, and how many tokens the text encoder takes."""
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UserError(
                "The package tokenizers, which words are encoded with, is not installed here: "
                "`pip install tokenizers`. Without labels and background it is not needed."
            ) from error
        path = self.folder / "tokenizer_config.json"
        config = _read_json(path)
        pad_token, length = (_member(config, name, path) for name in ("pad_token", "model_max_length"))
        path = self.folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
            tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad_token), pad_token=pad_token)
        except Exception as error:  # of all kinds, by what is wrong
            raise _incomplete(path, error) from error
        tokenizer.encode_special_tokens = True  # what a label spells out is text
        return tokenizer, int(length) if length < _NO_LENGTH else _CLIP_LENGTH


def read_image(path: str | Path, value_range: Sequence[float] | None = None) -> Image.Image:
    """
    An image, upright, as RGB in 8 bits. Grey integers above 255 are those of 16 bits and floats up to 1 go to 1,
    unless the two values that are black and white are given.

    Args:
        path (`str`): The file.
        value_range (`Sequence[float]`, *optional*): Two stored values that become 0 and 255.

    Raises:
        UserError: If Pillow does not read the file, is known to read it wrongly, or takes its size for an attack.
    """
    try:
        stored = Image.open(path)
        tags = getattr(stored, "tag_v2", {})
        is_deep = max(tags.get(_BITS_PER_SAMPLE, (8,))) > 8
        is_misread = is_deep and (tags.get(_PHOTOMETRIC) == 0 or tags.get(_PLANAR_CONFIGURATION) == 2)
        image = stored if is_misread else ImageOps.exif_transpose(stored)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"The image {path} is very large ({error}): if you trust it, raise the limit, "
            "`PIL.Image.MAX_IMAGE_PIXELS`, or give a smaller copy."
        ) from error
    except Exception as error:  # of all kinds, by what is wrong
        raise UserError(f"The image {path} could not be read ({error}): name a file that Pillow opens.") from error
    if is_misread:
        raise UserError(f"{path} is a TIFF that Pillow alone reads wrongly: save it as PNG.")
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


def segment_views(
    image: Image.Image,
    settings: dict[str, Any],
    segment: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]],
) -> np.ndarray:
    """
    Probabilities `(num_classes, h, w)` of an image, as the settings say: of four overlapping windows and a view of the
    whole image, or of the whole image at once.

    Args:
        image (`Image.Image`): In RGB.
        settings (`dict[str, Any]`): Of the image processor.
        segment (`Callable`): Takes views, normalised pixels `(3, image_size, image_size)`, and gives the logits
            `(num_classes, h, w)` of each.
    """
    model_size = (settings["image_size"],) * 2
    if not settings["sliding_window"]:
        return sigmoid(segment([view(image, model_size, settings)])[0])
    shortest, longest = settings["size"]["shortest_edge"], settings["size"]["longest_edge"]
    scale = min(shortest / min(image.size), longest / max(image.size))
    image = image.resize([max(1, int(scale * side + 0.5)) for side in image.size], Image.Resampling.BILINEAR)
    side, size = settings["window_image_size"], settings["sliding_window_size"]
    places = [(y, x) for y in (0, side - size) for x in (0, side - size)]
    whole = view(image, (side, side), settings)
    views = [whole[:, y : y + size, x : x + size] for y, x in places] + [view(image, (size, size), settings)]
    logits = segment([resize(one, model_size) for one in views])
    *parts, overview = (sigmoid(resize(one, (size, size))) for one in logits)
    total, coverage = np.zeros((len(overview), side, side), np.float32), np.zeros((side, side), np.float32)
    for part, (y, x) in zip(parts, places, strict=True):
        total[:, y : y + size, x : x + size] += part
        coverage[y : y + size, x : x + size] += 1
    return (total / coverage + resize(overview, (side, side))) / 2


def view(image: Image.Image, size: tuple[int, int], settings: dict[str, Any]) -> np.ndarray:
    """Normalised pixels `(3, H, W)`, float32, of an image at a size (H, W)."""
    pixels = resize(np.asarray(image, dtype=np.float32).transpose(2, 0, 1), size)
    mean, std = (np.array(settings[name]).reshape(3, 1, 1) for name in ("image_mean", "image_std"))
    return ((pixels * settings["rescale_factor"] - mean) / std).astype(np.float32)


def most_probable_class(probabilities: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Arg max `(H, W)`, uint16, over probabilities `(num_classes, h, w)` at another size, which are resized one by
    one."""
    class_map, best = np.zeros(size, dtype=np.uint16), np.full(size, -1, dtype=np.float32)
    for index, one in enumerate(probabilities):
        resized = resize(one, size)
        class_map[resized > best] = index
        best = np.maximum(best, resized)
    return class_map


def resize(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps `(..., H, W)` at another size, bilinear and without antialiasing."""
    if maps.shape[-2:] == tuple(size):
        return maps
    height, width = (_resize_matrix(old, new) for old, new in zip(maps.shape[-2:], size, strict=True))
    return height @ maps @ width.T


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities in 0..1."""
    return 1 / (1 + np.exp(-np.maximum(logits, -80)))


def _resize_matrix(old: int, new: int) -> np.ndarray:
    """Weights `(new, old)` of a resize along one axis."""
    positions = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    lower = np.floor(positions).astype(int)
    upper = np.minimum(lower + 1, old - 1)
    weights = np.zeros((new, old), dtype=np.float32)
    np.add.at(weights, (np.arange(new), lower), 1 - (positions - lower))
    np.add.at(weights, (np.arange(new), upper), positions - lower)
    return weights


def _session(path: Path) -> Any:
    """
    Raises:
        UserError: If ONNX Runtime is missing or cannot load the file.
    """
    try:
        from onnxruntime import InferenceSession
    except ImportError as error:
        raise UserError("ONNX Runtime is not installed here: `pip install onnxruntime`.") from error
    try:
        return InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # of all kinds, by what is wrong
        raise _incomplete(path, error) from error


def _incomplete(path: Path, reason: object) -> UserError:
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    return UserError(f"{path} is damaged or incomplete ({lines[0]}): copy or export it again.")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _incomplete(path, error) from error


def _member(value: Any, name: str, path: Path) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise _incomplete(path, f"it has no {name}")
    return value[name]


def _settings(value: Any, path: Path) -> dict[str, Any]:
    for name in _SETTINGS:
        _member(value, name, path)
    for name in ("shortest_edge", "longest_edge"):
        _member(value["size"], name, path)
    return value


def _strings(value: Any, name: str, path: Path) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise _incomplete(path, f"its {name} are no list of strings")
    return value


def _split_words(label: str) -> list[str]:
    """The words of a class."""
    return [word.strip() for word in label.split("|")] if "|" in label else [label]


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")

"""What is fuzzed: for each part of the library the input that it gets, and what must hold of its result."""

import json
import re
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import strategies as st
from PIL import Image

from catseg_hf import (
    CATSegConfig,
    CATSegForSemanticSegmentation,
    CATSegImageProcessorPil,
    CATSegProcessor,
    OpenVocabularySegmentationPipeline,
)
from catseg_hf.class_words_catseg import split_labels
from catseg_hf.image_sources_catseg import read_pixels
from catseg_hf.loading import load_segmenter
from catseg_testing.tiny_training import save_checkpoint
from fuzzing.damage import damaged_bytes, json_values, other_json, other_values
from fuzzing.images import arrays, image_files, images, pil_images
from fuzzing.vocabularies import mostly, templates, vocabularies


# How bad input may be refused: by these, with a message. The last one is how configurations of transformers do it.
REFUSALS = (ValueError, OSError, StrictDataclassError)
SECONDS_PER_INPUT = 120  # far more than any takes, on a machine that is busy


class Hang(BaseException):
    """An input took too long. It is no `Exception`, so that nothing takes it for bad input."""


@contextmanager
def limited_time() -> Iterator[None]:
    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_INPUT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Target:
    """
    A part of the library.

    Attributes:
        name (`str`): What it is.
        inputs (`SearchStrategy`): What it gets.
        check (`Callable`): Gives it to the library and asserts that the result has the right size.
        share (`int`): How many of a thousand inputs it gets: the cheaper, the more.
    """

    name: str
    inputs: st.SearchStrategy
    check: Callable[[Any], None]
    share: int

    def run(self, value: Any) -> str:
        """
        Returns:
            "result", or what the input was refused with.

        Raises:
            AssertionError: For a result of the wrong size, or a refusal that says nothing.
            Exception: Any other than a refusal, which is a fault of the library.
        """
        with limited_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self.check(value)
            except REFUSALS as error:
                message = str(error)
                assert re.search(r"\w+\W+\w+\W+\w+\W+\w+", message), f"{type(error).__name__} says {message!r} only"
                return f"{type(error).__name__}: {message}"
        return "result"


@cache
def checkpoint() -> Path:
    """The folder of a tiny model."""
    folder = tempfile.TemporaryDirectory(prefix="catseg-fuzzing-")
    checkpoint.folder = folder  # removed with the process
    return save_checkpoint(Path(folder.name) / "checkpoint")


@cache
def segmenter() -> OpenVocabularySegmentationPipeline:
    return load_segmenter(str(checkpoint()), device=torch.device("cpu"))


def check_vocabulary(value: tuple[Any, Any]):
    labels, prompt_templates = value
    processor = CATSegProcessor(*_parts(segmenter().processor), prompt_templates)
    input_ids = processor.encode_vocabulary(labels)
    assert (
        input_ids.shape[:2] == (len(split_labels(labels)), len(processor.prompt_templates))
        and input_ids.shape[2] <= 77
    )
    assert (input_ids == processor.tokenizer.eos_token_id).any(dim=-1).all()


def _parts(processor: CATSegProcessor) -> tuple[Any, Any]:
    return processor.image_processor, processor.tokenizer


def check_config(fields: dict[str, Any]):
    config = CATSegConfig.from_dict(fields)
    # What is accepted can be saved and loaded.
    saved = config.to_json_string(use_diff=False)
    assert CATSegConfig.from_dict(json.loads(saved)).to_json_string(use_diff=False) == saved
    assert config.num_labels == len(config.id2label)


def check_architecture(fields: dict[str, Any]):
    config = CATSegConfig.from_dict(fields)
    text = config.clip_config.text_config
    model = CATSegForSemanticSegmentation(config).eval()
    with torch.no_grad():
        text_embeds = torch.randn(3, config.num_prompts, config.clip_config.projection_dim)
        logits = model(torch.randn(1, 3, 33, 20), text_embeds=text_embeds).logits
    side = config.sliding_window_image_size if config.sliding_window else 4 * config.feature_size
    assert logits.shape == (1, 3, side, side) and text is not None


def check_image_processing(value: tuple[Any, Any, dict[str, Any]]):
    image, segmentation_map, arguments = value
    processor = CATSegImageProcessorPil.from_model_config(segmenter().model.config)
    data = processor(image, segmentation_maps=segmentation_map, return_tensors="pt", **arguments)
    pixels = data["pixel_values"][0]
    assert pixels.shape[0] == 3 and pixels.dtype == torch.float32 and pixels.isfinite().all()
    if arguments.get("do_resize", True):
        windows = arguments.get("sliding_window", True)
        side = arguments.get("window_image_size", 53) if windows else arguments.get("image_size", 32)
        assert pixels.shape == (3, side, side) and ("global_pixel_values" in data) == windows
    else:
        numel = image.width * image.height if isinstance(image, Image.Image) else int(np.prod(image.shape))
        assert numel % pixels[0].numel() == 0
    if segmentation_map is not None:
        assert data["labels"].shape == (1, *pixels.shape[1:]) and data["labels"].dtype == torch.int64


def check_post_processing(value: tuple[torch.Tensor, Any]):
    logits, target_sizes = value
    processor = segmenter().processor
    outputs = type("Outputs", (), {"logits": logits})
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes)
    sizes = [logits.shape[-2:]] * len(logits) if target_sizes is None else target_sizes
    assert [list(map_.shape) for map_ in maps] == [list(size) for size in sizes]
    assert all(map_.dtype == torch.int64 and 0 <= map_.min() and map_.max() < logits.shape[1] for map_ in maps)


def check_image_file(data: bytes):
    pixels = read_pixels(data, segmenter().processor.image_processor)
    assert pixels.ndim == 3 and len(pixels) == 3 and pixels.numel()


def check_pipeline(value: tuple[Any, Any, dict[str, Any]]):
    image, labels, arguments = value
    result = segmenter()(image, candidate_labels=labels, return_segmentation_map=True, **arguments)
    pixels = read_pixels(image, segmenter().processor.image_processor)
    width, height = pixels.shape[2], pixels.shape[1]
    assert result["segmentation"].shape == (height, width)
    areas = 0
    for segment in result["segments"]:
        assert segment["mask"].size == (width, height) and 0 <= segment["score"] <= 1
        areas += np.count_nonzero(segment["mask"])
    assert areas == int((result["segmentation"] >= 0).sum())
    assert arguments.get("threshold") is not None or areas == width * height
    if "probabilities" in result:
        assert result["probabilities"].min() >= 0 and result["probabilities"].max() <= 1


def check_model(shapes: dict[str, Any]):
    """`shapes` of the tensors, and with `scale` and `last_id` what is odd about their values."""
    torch.manual_seed(0)
    shapes = dict(shapes)
    scale, last_id = shapes.pop("scale"), shapes.pop("last_id")
    inputs = {name: value if isinstance(value, bool) else torch.randn(value) for name, value in shapes.items()}
    inputs["pixel_values"] *= scale
    for name in inputs.keys() & {"input_ids", "labels"}:
        inputs[name] = (inputs[name].abs() * 2).long()
    if "input_ids" in inputs and inputs["input_ids"].ndim:
        inputs["input_ids"][..., -1:] = last_id
    with torch.no_grad():
        outputs = segmenter().model(**inputs)
    num_classes = [len(inputs[name]) for name in ("input_ids", "text_embeds") if name in inputs]
    assert outputs.logits.shape[:2] == (len(inputs["pixel_values"]), *(num_classes or [5]))
    assert outputs.logits.shape[2] == outputs.logits.shape[3] == (53 if inputs.get("sliding_window", True) else 16)
    assert (outputs.loss is None) == ("labels" not in inputs)


def check_config_file(content: bytes):
    with _changed_checkpoint("config.json", content) as folder:
        assert CATSegConfig.from_pretrained(folder).num_labels > 0


def check_processor_file(value: tuple[str, bytes]):
    with _changed_checkpoint(*value) as folder:
        processor = CATSegProcessor.from_pretrained(folder)
        inputs = processor(images=np.zeros((5, 7, 3), np.uint8), text=["cat", "sofa"])
        assert inputs["pixel_values"].ndim == 4 and len(inputs["input_ids"]) == 2


def check_checkpoint(value: tuple[str, bytes]):
    with _changed_checkpoint(*value) as folder:
        loaded = load_segmenter(str(folder), device=torch.device("cpu"))
        result = loaded(Image.new("RGB", (9, 4)), candidate_labels=["cat", "sofa"], return_segmentation_map=True)
        assert result["segmentation"].shape == (4, 9)


@cache
def changed_checkpoint() -> Path:
    """A copy of the tiny model's folder."""
    return Path(shutil.copytree(checkpoint(), checkpoint().with_name("changed")))


@contextmanager
def _changed_checkpoint(name: str, content: bytes) -> Iterator[Path]:
    """The tiny model's folder with another content of one file."""
    path = changed_checkpoint() / name
    path.unlink()  # what has read the file may still have it mapped
    path.write_bytes(content)
    try:
        yield path.parent
    finally:
        path.unlink()
        shutil.copyfile(checkpoint() / name, path)


@st.composite
def configs(draw: st.DrawFn, max_value: int | None = None) -> dict[str, Any]:
    """The tiny model's configuration with other values, of any type, or with `max_value` integers up to it."""
    content = json.loads((checkpoint() / "config.json").read_text())
    if max_value is None:
        return draw(other_values(content).filter(lambda value: isinstance(value, dict)))
    for name in draw(st.lists(st.sampled_from(sorted(content)), min_size=1, max_size=4, unique=True)):
        if isinstance(content[name], bool):
            content[name] = draw(st.booleans())
        elif isinstance(content[name], int):
            content[name] = draw(st.integers(0, max_value))
        elif isinstance(content[name], list) and all(isinstance(item, int) for item in content[name]):
            content[name] = draw(st.lists(st.integers(0, max_value), min_size=1, max_size=3))
        elif isinstance(content[name], float):
            content[name] = draw(st.floats(-0.5, 1.5))
    return content


@st.composite
def changed_files(draw: st.DrawFn, names: list[str]) -> tuple[str, bytes]:
    """One of the tiny model's files, damaged or with other values: in JSON, or in the header of tensors."""
    name = draw(st.sampled_from(names))
    data = (checkpoint() / name).read_bytes()
    if draw(st.booleans()):
        return name, draw(damaged_bytes(data))
    if name.endswith(".json"):
        return name, draw(other_json(data))
    header, tensors = np.split(np.frombuffer(data, np.uint8)[8:], [int.from_bytes(data[:8], "little")])
    header = draw(other_json(header.tobytes()))
    return name, len(header).to_bytes(8, "little") + header + tensors.tobytes()


@st.composite
def image_processing(draw: st.DrawFn) -> tuple[Any, Any, dict[str, Any]]:
    image = draw(images())
    segmentation_map = draw(st.none() | arrays() | pil_images(["L", "I", "P", "1", "I;16"]))
    if isinstance(image, Image.Image) and draw(st.booleans()):
        segmentation_map = Image.new("L", image.size, 3)
    booleans = dict.fromkeys(["do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "sliding_window"])
    optional = {
        **{name: st.booleans() for name in booleans},
        **{name: st.integers(1, 70) for name in ("window_image_size", "sliding_window_size", "image_size")},
        "input_data_format": st.sampled_from(["channels_first", "channels_last"]),
    }
    return image, segmentation_map, draw(st.fixed_dictionaries({}, optional=optional))


@st.composite
def processor_arguments(draw: st.DrawFn) -> tuple[Any, Any, dict[str, Any]]:
    """Arguments of any type, for an image that is fine."""
    names = [
        *("do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
        *("sliding_window", "window_image_size", "sliding_window_size", "image_size", "input_data_format", "device"),
    ]
    arguments = st.dictionaries(st.sampled_from(names), json_values, min_size=1, max_size=2)
    return np.zeros((5, 7, 3), np.uint8), None, draw(arguments)


def check_processor_arguments(value: tuple[Any, Any, dict[str, Any]]):
    image, _, arguments = value
    processor = CATSegImageProcessorPil.from_model_config(segmenter().model.config)
    pixels = processor(image, return_tensors="pt", **arguments)["pixel_values"]
    assert pixels.ndim == 4 and pixels.shape[:2] == (1, 3) and pixels.numel()


def model_inputs() -> st.SearchStrategy[dict[str, Any]]:
    """Shapes that nearly fit."""
    few, sides = mostly(st.just(1), st.integers(0, 2)), mostly(st.integers(1, 70), st.just(0))
    any_shape = st.lists(st.integers(0, 8), max_size=5).map(tuple)
    images = mostly(st.tuples(few, st.just(3), sides, sides), any_shape)
    classes = st.shared(mostly(st.integers(1, 4), st.just(0)), key="classes")
    prompts = st.tuples(classes, st.integers(0, 80)) | st.tuples(classes, few, st.integers(1, 78))
    return st.fixed_dictionaries(
        {
            "pixel_values": images,
            "scale": st.sampled_from([1, 1, 1, 1e30, float("nan")]),
            "last_id": st.sampled_from([511, 511, 511, 3, -1, 512]),
        },
        optional={
            "input_ids": mostly(prompts, any_shape),
            "text_embeds": st.tuples(classes, few, st.sampled_from([32, 32, 31])),
            "global_pixel_values": images,
            "labels": mostly(st.tuples(few, sides, sides), any_shape),
            "sliding_window": st.booleans(),
        },
    )


@st.composite
def post_processing(draw: st.DrawFn) -> tuple[torch.Tensor, Any]:
    shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20)))
    logits = torch.randn(shape) * draw(st.sampled_from([1, 100, 1e30]))
    side = st.integers(1, 60) | st.integers(-1, 1) | st.floats(-2, 9) | st.none()
    sizes = st.lists(st.lists(side, min_size=1, max_size=3), max_size=3)
    fitting = st.lists(st.tuples(*[st.integers(1, 300)] * 2), min_size=shape[0], max_size=shape[0])
    return logits, draw(st.none() | fitting | sizes)


def pipeline_inputs() -> st.SearchStrategy[tuple[Any, Any, dict[str, Any]]]:
    optional = {
        "threshold": st.none() | st.floats(0, 1) | st.floats() | st.text(max_size=2) | st.booleans(),
        "sliding_window": st.booleans(),
        "return_probabilities": st.booleans(),
        "prompt_templates": templates(),
    }
    arguments = st.one_of(st.just({}), st.fixed_dictionaries({}, optional=optional))
    single = images().filter(lambda image: image is not None and not isinstance(image, set))
    return st.tuples(single | image_files(), vocabularies(max_size=6), arguments)


PROCESSOR_FILES = ["processor_config.json", "tokenizer.json", "tokenizer_config.json"]
TARGETS = [
    Target("vocabularies and templates", st.tuples(vocabularies(), templates()), check_vocabulary, 130),
    Target("configuration values", configs(), check_config, 100),
    Target("small architectures", configs(max_value=40), check_architecture, 30),
    Target("images, label maps and their processing", image_processing(), check_image_processing, 110),
    Target("arguments of the image processor", processor_arguments(), check_processor_arguments, 100),
    Target("label maps of logits", post_processing(), check_post_processing, 90),
    Target("image files", image_files(), check_image_file, 130),
    Target("inputs of the model", model_inputs(), check_model, 60),
    Target("inputs of the pipeline", pipeline_inputs(), check_pipeline, 80),
    Target("config.json", changed_files(["config.json"]).map(lambda change: change[1]), check_config_file, 70),
    Target("files of the processor", changed_files(PROCESSOR_FILES), check_processor_file, 50),
    Target("config.json of a model", changed_files(["config.json"]), check_checkpoint, 20),
    Target("model.safetensors", changed_files(["model.safetensors"]), check_checkpoint, 30),
]

"""The command line of catseg_hf.

catseg-hf segment photos/ "more/*.jpg" --labels "cat, sofa" --model catseg-base --output segmented
catseg-hf video clip.mp4 --labels "cat, sofa" --model catseg-base --output segmented.mp4
"""

import argparse
import json
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from glob import glob, has_magic
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from tqdm.auto import tqdm
from transformers import AutoConfig, pipeline

from .errors import UserError, first_line
from .files import replaced_file
from .mask_generation import load_mask_generator
from .pipeline_catseg import OpenVocabularySegmentationPipeline, read_pixels, split_labels
from .remote_code_catseg import OPEN_VOCABULARY_TASK
from .video import DEFAULT_SMOOTHING, DamagedVideoError, legend_path, segment_video
from .video_io import FORMATS, VideoReader, check_video_output
from .visualization import area_shares, class_color, draw_segmentation
from .vocabularies import VOCABULARIES, load_vocabulary


LARGEST_CLASSES = 5
EMBEDDED_MODEL = str(Path(__file__).with_name("embedded_model"))
MAX_STEM_BYTES = 200  # file systems take names of 255 with what is added to them
RESULT_MARK = "catseg-hf segment"  # in every result, which is thereby known from other images


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, 1 if images or parts of a video could not be read, 2 for
    wrong arguments."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # no name or label is worth failing for
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except UserError as error:
        print(f"catseg-hf: error: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="catseg-hf", description="Open-vocabulary segmentation with CAT-Seg.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    segment = commands.add_parser(
        "segment",
        help="segment images into classes named in words",
        description="For every image NAME writes NAME_overlay.png (the image in the colours of its classes, with "
        "a legend) and NAME_labels.png (the class of every pixel), and summary.json for all of them.",
    )
    segment.set_defaults(command=segment_images)
    segment.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder, glob pattern or URL")
    segment.add_argument("--output", required=True, type=Path, help="folder for the results")
    _add_model_options(segment)
    segment.add_argument(
        "--sam", metavar="MODEL", help="folder or Hub id of a Segment Anything model, whose masks the classes follow"
    )
    segment.add_argument("--batch_size", type=_positive, default=1, help="images at a time (default: 1)")
    segment.add_argument(
        "--max_image_pixels",
        type=_positive,
        help="the largest image that is read (default: Pillow's limit, 178956970)",
    )
    video = commands.add_parser(
        "video",
        help="segment a video into classes named in words",
        description="Writes the video in the colours of its classes, with its audio, and the legend of the colours, "
        "NAME_legend.png.",
    )
    video.set_defaults(command=segment_clip)
    video.add_argument("video", metavar="VIDEO", help="file of any kind that FFmpeg reads")
    video.add_argument("--output", required=True, type=Path, help=f"file to write: {', '.join(FORMATS)}")
    _add_model_options(video)
    video.add_argument(
        "--sliding_window",
        action=argparse.BooleanOptionalAction,
        help="average overlapping windows of every frame (default: as the checkpoint says)",
    )
    video.add_argument(
        "--smoothing",
        type=float,
        default=DEFAULT_SMOOTHING,
        metavar="SECONDS",
        help="time over which probabilities are averaged, between cuts (default: %(default)s; 0: not at all)",
    )
    video.add_argument(
        "--opacity", type=_probability, default=0.6, help="of the colours, 0 to 1 (default: %(default)s)"
    )
    return parser


def _add_model_options(command: argparse.ArgumentParser):
    vocabulary = command.add_mutually_exclusive_group()
    vocabulary.add_argument("--labels", help='classes to look for, separated by commas: "cat, sofa"')
    vocabulary.add_argument("--vocabulary", choices=VOCABULARIES, help="the classes of a benchmark")
    command.add_argument(
        "--model",
        default=EMBEDDED_MODEL,
        help="folder or Hub id of a CAT-Seg checkpoint (default: a small one that comes with the package and knows "
        "drawings of emoji only)",
    )
    command.add_argument("--threshold", type=_probability, help="pixels less probable than this get no class")
    command.add_argument("--device", type=_device, help="such as cpu or cuda:0 (default: an accelerator, if any)")
    command.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")


def segment_images(arguments: argparse.Namespace) -> int:
    """The command `segment`."""
    if arguments.max_image_pixels is not None:
        Image.MAX_IMAGE_PIXELS = -(-arguments.max_image_pixels // 2)  # Pillow refuses more than twice as many
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    images, failures = find_images(arguments.images)
    if images:
        if arguments.output.exists() and not arguments.output.is_dir():
            raise UserError(f"The output {str(arguments.output)!r} is a file, but a folder is needed.")
        segmenter = load_segmenter(arguments.model, arguments.device, arguments.dtype)
        labels = _choose_labels(segmenter, arguments)
        mask_generator = load_mask_generator(arguments.sam, arguments.device) if arguments.sam else None
        records = _segment_each(segmenter, images, labels, mask_generator, failures, arguments)
        summary = {
            "model": arguments.model,
            "sam": arguments.sam,
            "labels": labels,
            "threshold": arguments.threshold,
            "images": records,
            "unreadable": [{"image": image, "error": error} for image, error in failures],
        }
        with replaced_file(arguments.output / "summary.json") as file:
            file.write_text(json.dumps(summary, indent=2) + "\n")
        print(f"Segmented {len(records)} image{'s' * (len(records) != 1)} into {arguments.output}")
    for _, error in failures:
        print(f"catseg-hf: {error}", file=sys.stderr)
    return 1 if failures else 0


def segment_clip(arguments: argparse.Namespace) -> int:
    """The command `video`."""
    try:
        check_video_output(arguments.output)
        with VideoReader(arguments.video) as video:
            segmenter = load_segmenter(arguments.model, arguments.device, arguments.dtype)
            labels = _choose_labels(segmenter, arguments)
            summary = segment_video(
                segmenter,
                video,
                arguments.output,
                labels,
                sliding_window=arguments.sliding_window,
                threshold=arguments.threshold,
                smoothing=arguments.smoothing,
                opacity=arguments.opacity,
            )
    except DamagedVideoError as error:
        print(f"catseg-hf: error: {error}", file=sys.stderr)
        return 1
    shares = {labels[index]: share for index, share in summary.shares.items() if index >= 0}
    print(f"{arguments.video}: {_list_largest(shares)}")
    print(
        f"Segmented {summary.num_frames} frame{'s' * (summary.num_frames != 1)} into {arguments.output}, "
        f"with the colours of the classes in {legend_path(arguments.output)}"
    )
    return 0


def find_images(arguments: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """
    The paths and URLs of images that files, folders, glob patterns and URLs stand for, each once, and what stands
    for none with a sentence that says so. Folders and patterns leave out what an earlier run wrote.
    """
    extensions = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    images, failures = {}, []
    for argument in arguments:
        if argument.startswith(("http://", "https://")):
            found = [argument]
        elif os.path.isdir(argument):
            try:
                names = sorted(name for name in os.listdir(argument) if Path(name).suffix.lower() in extensions)
            except OSError as error:
                failures.append((argument, f"The folder {argument!r} cannot be read: {error.strerror}."))
                continue
            found = [os.path.join(argument, name) for name in names]
            found = [path for path in found if os.path.isfile(path) and not _is_result(path)]
            if not found:
                accepted = ", ".join(sorted(extensions))
                failures.append((argument, f"The folder {argument!r} has no images: files of {accepted} are read."))
        elif has_magic(argument) and not os.path.exists(argument):
            found = sorted(glob(argument, recursive=True))
            found = [path for path in found if os.path.isfile(path) and not _is_result(path)]
            if not found:
                failures.append((argument, f"No file matches {argument!r}."))
        else:
            found = [argument]
        for image in found:
            images.setdefault(_identity(image), image)
    return list(images.values()), failures


def load_segmenter(
    model: str, device: torch.device | None = None, dtype: str = "auto"
) -> OpenVocabularySegmentationPipeline:
    """
    The pipeline of a checkpoint, a folder or a Hub id.

    Raises:
        UserError: If it cannot be loaded or is not CAT-Seg.
    """
    if model == EMBEDDED_MODEL:
        print(
            "Using the small model that comes with catseg_hf, which knows 135 words for emoji and textures and "
            "nothing of photographs: give --model a converted checkpoint for these.",
            file=sys.stderr,
        )
    try:
        config = AutoConfig.from_pretrained(model)
    except Exception as error:  # transformers raises all kinds for damaged files
        raise UserError(f"The model {model!r} could not be loaded: {first_line(error)}.") from error
    if config.model_type != "catseg":
        raise UserError(f"The model {model!r} is of type {config.model_type!r}, but a CAT-Seg checkpoint is needed.")
    try:
        return pipeline(OPEN_VOCABULARY_TASK, model=model, device=device, dtype=dtype)
    except Exception as error:
        raise UserError(f"The model {model!r} could not be loaded: {first_line(error)}.") from error


def draw_label_map(segmentation: torch.Tensor, num_labels: int, has_gaps: bool) -> tuple[Image.Image, int | None]:
    """
    A label map as an image.

    Args:
        segmentation (`torch.LongTensor` of shape (H, W)): Class of every pixel, -1 for none.
        num_labels (`int`): Number of classes.
        has_gaps (`bool`): Whether a value is kept for pixels of no class.

    Returns:
        `PIL.Image.Image` whose values are the classes, of mode "P" in the classes' colours, or of mode "I;16" if they
        do not go into 8 bits; and the value of pixels of no class, 255 or 65535, or `None`.
    """
    few = num_labels + has_gaps <= 256
    no_class = 255 if few else 65535
    pixels = segmentation.masked_fill(segmentation < 0, no_class).numpy()
    label_map = Image.fromarray(pixels.astype(np.uint8 if few else np.uint16))
    if few:
        colors = [class_color(index) for index in range(num_labels)] + [(0, 0, 0)] * (256 - num_labels)
        label_map.putpalette([channel for color in colors for channel in color])
    return label_map, no_class if has_gaps else None


def _choose_labels(segmenter: OpenVocabularySegmentationPipeline, arguments: argparse.Namespace) -> list[str]:
    if arguments.vocabulary is not None:
        return load_vocabulary(arguments.vocabulary)
    if arguments.labels is not None:
        return split_labels(arguments.labels)
    id2label = segmenter.model.config.id2label
    return [id2label[index] for index in sorted(id2label)]


def _segment_each(
    segmenter: OpenVocabularySegmentationPipeline,
    images: list[str],
    labels: list[str],
    mask_generator: Callable[[Image.Image], Any] | None,
    failures: list[tuple[str, str]],
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Segments the images and writes what was found; adds those that cannot be read to `failures`."""
    inputs = {_identity(image) for image in images}
    names, records, waiting = set(), [], deque()
    with tqdm(total=len(images), unit="image", disable=None) as progress:

        def read() -> Iterator[torch.Tensor]:
            for source in images:
                try:
                    pixels = read_pixels(source, segmenter.processor.image_processor)
                except UserError as error:
                    failures.append((source, str(error)))
                    progress.update()
                    continue
                waiting.append((source, pixels))
                yield pixels

        results = segmenter(
            read(),
            labels if arguments.labels is not None or arguments.vocabulary is not None else None,
            batch_size=arguments.batch_size,
            threshold=arguments.threshold,
            mask_generator=mask_generator,
            return_segmentation_map=True,
        )
        for result in results:
            source, pixels = waiting.popleft()
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            path = arguments.output / _choose_name(source, arguments.output, names, inputs)
            record = _write_result(path, image, result, labels, arguments.threshold is not None)
            records.append({"image": source, **record})
            shares = {segment["label"]: segment["area"] for segment in record["segments"]}
            progress.write(f"{source}: {_list_largest(shares)}", file=sys.stdout)
            progress.update()
    return records


def _list_largest(shares: dict[str, float]) -> str:
    """The first few labels with their shares of the area."""
    largest = [f"{label} {share:.1%}" for label, share in shares.items()]
    if len(largest) > LARGEST_CLASSES:
        largest = [*largest[:LARGEST_CLASSES], f"and {len(largest) - LARGEST_CLASSES} more"]
    return ", ".join(largest) or "no class"


def _write_result(
    path: Path, image: Image.Image, result: dict[str, Any], labels: list[str], has_gaps: bool
) -> dict[str, Any]:
    """Writes both images of one result under the stem `path` and returns what the summary says of it."""
    label_map, no_class = draw_label_map(result["segmentation"], len(labels), has_gaps)
    drawings = {"overlay": draw_segmentation(image, result["segmentation"], labels), "labels": label_map}
    files = {}
    for kind, drawing in drawings.items():
        target = path.with_name(f"{path.name}_{kind}.png")
        mark = PngImagePlugin.PngInfo()
        mark.add_text("Software", RESULT_MARK)
        with replaced_file(target) as file:
            drawing.save(file, format="PNG", pnginfo=mark)
        files[kind] = target.name
    shares = {index: share for index, share in area_shares(result["segmentation"]).items() if index >= 0}
    segments = [
        {"index": index, "label": segment["label"], "area": round(share, 6), "score": round(segment["score"], 6)}
        for segment, (index, share) in zip(result["segments"], shares.items(), strict=True)
    ]
    return {"width": image.width, "height": image.height, **files, "no_class": no_class, "segments": segments}


def _choose_name(source: str, output: Path, names: set[str], inputs: set[str]) -> str:
    """A stem that is new among `names` (and is added to them) and under which no image of `inputs` is replaced."""
    is_url = source.startswith(("http://", "https://"))
    stem = Path(unquote(urlparse(source).path) if is_url else source).stem or "image"
    stem = stem.replace("\0", "")
    if len(os.fsencode(stem)) > MAX_STEM_BYTES:
        stem = os.fsencode(stem)[:MAX_STEM_BYTES].decode(errors="ignore")
    name, number = stem, 1
    while name.casefold() in names or any(
        _identity(str(output / f"{name}_{kind}.png")) in inputs for kind in ("overlay", "labels")
    ):
        number += 1
        name = f"{stem}_{number}"
    names.add(name.casefold())
    return name


def _is_result(path: str) -> bool:
    """Whether a file was written by this command."""
    if not path.endswith(("_overlay.png", "_labels.png")):
        return False
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == RESULT_MARK
    except Exception:  # whatever it is, it is reported when it is read
        return False


def _identity(source: str) -> str:
    return source if source.startswith(("http://", "https://")) else os.path.realpath(source)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except Exception as error:
        raise argparse.ArgumentTypeError(f"there is no device {text!r} here") from error
    return device


if __name__ == "__main__":
    sys.exit(main())

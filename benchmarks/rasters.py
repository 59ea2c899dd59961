"""What a raster takes beside the model, on a synthetic orthophoto, and what the embedded model finds in it.

PYTHONPATH=training python benchmarks/rasters.py --json result.json
PYTHONPATH=training python benchmarks/rasters.py --architecture embedded --size 3840 2880 --picture docs/rasters.png
PYTHONPATH=training python benchmarks/rasters.py --write orthophoto --size 3840 2880    # the rasters only

The published architecture has random weights, in bfloat16. In one run: seconds, how many of them pass in the model,
and the peak of the process's memory beyond that of the model alone on one batch of tiles.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from PIL import Image
from transformers import AutoTokenizer

from catseg_hf import EMBEDDED_MODEL, CATSegImageProcessorPil, CATSegProcessor, OpenVocabularySegmentationPipeline
from catseg_hf.class_words_catseg import read_classes
from catseg_hf.images.origins import Settings
from catseg_hf.loading import load_segmenter
from catseg_hf.rasters import Outputs, RasterReader, RasterSegmenter, RasterSettings
from catseg_hf.visualization import overlay_segmentation
from catseg_training.world.evaluation import classes_of
from catseg_training.world.scoring import word_iou
from catseg_training.world.words import classes
from measure import ARCHITECTURES, ROOT, build_model, machine, peak_memory, write_json
from orthophoto import NO_CLASS, Orthophoto


SCENES = ROOT / "tests" / "fixtures" / "emoji_world"
OVERLAP = 0.25
PICTURE_SIDE = 640


def build_segmenter(architecture: str, dtype: torch.dtype, device: str) -> OpenVocabularySegmentationPipeline:
    """The embedded model, or one of the published size, without the sliding window."""
    if architecture == "embedded":
        return load_segmenter(EMBEDDED_MODEL, device)
    model = build_model(architecture, device).to(dtype)
    model.config.sliding_window = False
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    model.config.clip_config.text_config.eos_token_id = tokenizer.eos_token_id
    processor = CATSegProcessor(CATSegImageProcessorPil.from_model_config(model.config), tokenizer)
    return OpenVocabularySegmentationPipeline(model, processor, device=device)


def timed_model(segmenter: OpenVocabularySegmentationPipeline) -> list[float]:
    """The seconds of each call of the model from now on."""
    seconds, forward = [], segmenter.model.forward

    def timed(*arguments, **options):
        start = time.perf_counter()
        outputs = forward(*arguments, **options)
        if outputs.logits.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        return outputs

    segmenter.model.forward = timed
    return seconds


def mean_iou(labels: Path, truth: Path, words: list[str]) -> float:
    """Over the words that occur, of a map of `words` against one of all of the world's."""
    with rasterio.open(labels) as found, rasterio.open(truth) as expected:
        to_world = np.array([classes().index(word) for word in words] + [NO_CLASS] * (256 - len(words)))
        true = expected.read(1)[None]
        ious = list(word_iou(to_world[found.read(1)][None], true).values())
    return float(np.mean([ious[index] for index in classes_of(true)]))


def draw(image: Path, labels: Path, path: Path):
    """A corner of the raster, and beside it its classes in colour."""
    with rasterio.open(image) as source, rasterio.open(labels) as found:
        window = rasterio.windows.Window(0, 0, PICTURE_SIDE, PICTURE_SIDE)
        shown = Image.fromarray(source.read(window=window).transpose(1, 2, 0))
        own = found.read(1, window=window).astype(np.int64)
    present = np.unique(own)
    picture = Image.new("RGB", (2 * PICTURE_SIDE + 8, PICTURE_SIDE), "white")
    picture.paste(shown, (0, 0))
    picture.paste(overlay_segmentation(shown, np.searchsorted(present, own), opacity=0.8), (PICTURE_SIDE + 8, 0))
    picture.quantize(128).save(path, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=(*ARCHITECTURES, "embedded"), default="base")
    parser.add_argument("--size", type=int, nargs=2, default=(20_000, 10_000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--classes", type=int, default=20, help="(default: %(default)s; embedded: all words)")
    parser.add_argument("--tile_size", type=int, help="(default: 640; embedded: 128)")
    parser.add_argument("--batch_size", type=int, default=1, help="tiles at a time (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--scenes", type=Path, default=SCENES, metavar="DIR", help="(default: those of the tests)")
    parser.add_argument("--split", default="gate", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the orthophoto (default: %(default)s)")
    parser.add_argument("--write", type=Path, metavar="DIR", help="only draw: orthophoto.tif, truth.tif, classes.json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="where to draw a corner with its classes")
    arguments = parser.parse_args()

    width, height = arguments.size
    orthophoto = Orthophoto(arguments.scenes, arguments.split, arguments.seed)
    if arguments.write is not None:
        arguments.write.mkdir(parents=True, exist_ok=True)
        orthophoto.write(arguments.write / "orthophoto.tif", arguments.write / "truth.tif", width, height)
        write_json(list(classes()), arguments.write / "classes.json")
        return
    is_embedded = arguments.architecture == "embedded"
    words = list(classes() if is_embedded else classes()[: arguments.classes])
    tile_size = arguments.tile_size or (128 if is_embedded else 640)
    with tempfile.TemporaryDirectory() as folder:
        image, truth, labels = (Path(folder, name) for name in ("orthophoto.tif", "truth.tif", "labels.tif"))
        orthophoto.write(image, truth, width, height)
        segmenter = build_segmenter(arguments.architecture, torch.bfloat16, arguments.device)
        settings = Settings(
            arguments.architecture,
            None,
            read_classes(words),
            None,
            None,
            str(segmenter.model.dtype),
            tile_size=tile_size,
            tile_overlap=OVERLAP,
        )
        raster_segmenter = RasterSegmenter(segmenter, RasterSettings(settings, batch_size=arguments.batch_size))
        with torch.inference_mode(), RasterReader(str(image)) as raster:
            text_embeds = segmenter.model.catseg.encode_vocabulary(segmenter.encode_vocabulary(words))
            tile = torch.zeros(3, tile_size, tile_size, dtype=torch.uint8)
            tiles = [tile] * arguments.batch_size
            of_model = peak_memory(lambda: segmenter.word_probabilities(tiles, text_embeds), arguments.device)
            seconds = timed_model(segmenter)
            start = time.perf_counter()
            peak = peak_memory(lambda: raster_segmenter.segment(raster, Outputs(labels)), arguments.device)
            total = time.perf_counter() - start
        result = {
            "machine": machine(arguments.device),
            "architecture": arguments.architecture,
            "size": [width, height],
            "classes": len(words),
            "tile_size": tile_size,
            "tiles": len(seconds) * arguments.batch_size,
            "seconds": round(total, 1),
            "model_seconds": round(sum(seconds), 1),
            "other_share": round(1 - sum(seconds) / total, 4),
            "peak_memory_beyond_the_model_mb": round(peak - of_model, 1),
            "output_mb": round(labels.stat().st_size / 1e6, 1),
        }
        if is_embedded:
            result["mean_iou"] = round(mean_iou(labels, truth, words), 4)
        if arguments.picture is not None:
            draw(image, labels, arguments.picture)
    write_json(result, arguments.json)


if __name__ == "__main__":
    main()

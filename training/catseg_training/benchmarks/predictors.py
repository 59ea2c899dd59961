"""Where predictions come from: a model, or files of another one's."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from catseg_hf import CATSegProcessor
from catseg_hf.guided_upsampling_catseg import check_upsampling

from ..inference import Share, load_batches, segment_images
from ..views import Views
from .description import Benchmark
from .images import BenchmarkImages
from .predictions import SavedPredictions


class ModelPredictor:
    """
    Segments a benchmark's images into its classes.

    Args:
        model (`nn.Module`), processor ([`CATSegProcessor`]): The model, on its device, and its processor.
        name (`str`): What the model is called.
        device (`torch.device`), precision (`str`): Where it is, and its mixed precision.
        views ([`Views`]): How it looks at images.
        batch_size (`int`), num_workers (`int`): Images at a time, and processes that load them.
        exact (`bool`), upsampling (`str`): See [`segment_images`].
    """

    def __init__(
        self,
        model: nn.Module,
        processor: CATSegProcessor,
        name: str,
        device: torch.device,
        precision: str,
        views: Views,
        batch_size: int,
        num_workers: int,
        exact: bool = True,
        upsampling: str = "bilinear",
    ):
        self.model = model.eval()
        self.processor = processor
        self.device = device
        self.views = views
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.exact = exact
        self.upsampling = check_upsampling(upsampling)
        self.identity = {
            "model": name,
            "weights": _digest(model),
            "sliding_window": views.sliding_window,
            "scales": list(views.scales),
            "flip": views.flip,
            "upsampling": upsampling,
            "precision": precision,
            "batch_size": "any" if exact else batch_size,
        }

    def prepare(self, benchmark: Benchmark):
        """Gives the model the benchmark's vocabulary."""
        labels = list(benchmark.vocabulary)
        self.model.set_vocabulary(labels, self.processor(text=labels).input_ids)

    def batches(
        self, images: BenchmarkImages, indices: list[int], share: Share, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[list[dict[str, Any]]]:
        """
        The examples of `indices`, batch by batch, with `prediction` (H, W), a tensor on the device, in the classes
        that are scored.

        Raises:
            Stopped: If `stop` said so, which all processes ask together for every batch.
        """
        for examples in segment_images(
            self.model,
            self.processor,
            Subset(images, indices),
            self.device,
            views=self.views,
            share=share,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            exact=self.exact,
            upsampling=self.upsampling,
            repeated_prompts=images.benchmark.repeated_prompts,
            stop=stop,
        ):
            for example in examples:
                if "prediction" in example:
                    example["prediction"].clamp_(max=images.benchmark.last_class)
            yield examples


class FilePredictor:
    """
    Reads predictions, in the classes that are scored, from `FOLDER/BENCHMARK/NAME.png`.

    Args:
        folder (`Path`): The folder.
        batch_size (`int`), num_workers (`int`): Images that are loaded at a time, and processes that do so.
    """

    def __init__(self, folder: Path, batch_size: int, num_workers: int):
        self.folder = folder
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.identity = {"predictions": str(folder.resolve())}

    def prepare(self, benchmark: Benchmark):
        pass

    def batches(
        self, images: BenchmarkImages, indices: list[int], share: Share, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[list[dict[str, Any]]]:
        """As of [`ModelPredictor`]."""
        dataset = Subset(SavedPredictions(images, self.folder), indices)
        for _, examples in load_batches(dataset, share, self.batch_size, self.num_workers, stop=stop):
            for example in examples:
                if "prediction" in example:
                    example["prediction"] = torch.from_numpy(example["prediction"])
            yield examples


def _digest(model: nn.Module) -> str:
    """Of every bit of the weights."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

"""Small models and data for the tests of training, and ways to run train.py on them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from transformers import CLIPConfig, CLIPModel

import train
from catseg_hf import CATSegConfig, CATSegForSemanticSegmentation, CATSegImageProcessorPil, CATSegProcessor
from catseg_testing.tokenizer import tiny_tokenizer


CLASSES = ["cat", "sofa", "sky", "tree, oak", "road"]
DRIVER = Path(__file__).with_name("training_driver.py")
# Quick, and the same whatever the machine.
QUICK = ["--crop_size", "32", "--dataloader_num_workers", "0", "--logging_steps", "1"]


def tiny_clip_config() -> CLIPConfig:
    tower = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1}
    return CLIPConfig(
        vision_config={**tower, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8},
        text_config={
            **tower,
            "num_hidden_layers": 1,
            "vocab_size": 512,
            "bos_token_id": 510,
            "eos_token_id": 511,
            "pad_token_id": 511,
        },
        projection_dim=32,
    )


def save_checkpoint(folder: Path, labels: list[str] = CLASSES) -> Path:
    """A CAT-Seg of 0.2 million random weights for images of 32 x 32, as a conversion would leave it."""
    config = CATSegConfig(
        clip_config=tiny_clip_config(),
        image_size=32,
        window_size=4,
        guidance_layers=[0, 1],
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        text_guidance_size=16,
        appearance_guidance_size=16,
        decoder_sizes=[16, 16],
        decoder_guidance_channels=[8, 8],
        decoder_guidance_sizes=[8, 8],
        sliding_window_size=32,
    )
    torch.manual_seed(0)
    model = CATSegForSemanticSegmentation(config)
    image_processor = CATSegImageProcessorPil.from_model_config(config)
    processor = CATSegProcessor(image_processor, tiny_tokenizer())
    model.set_vocabulary(labels, processor(text=labels).input_ids)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A CLIP with its tokenizer."""
    torch.manual_seed(0)
    CLIPModel(tiny_clip_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_pairs(root: Path, num_train: int = 5, num_validation: int = 3) -> Path:
    """Images and labels of `CLASSES` in blocks, with pixels of no class, in two sizes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", num_train), ("validation", num_validation)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            height, width = (40, 52) if number % 2 else (48, 40)
            blocks = generator.integers(0, len(CLASSES), (height // 4, width // 4)).astype(np.uint8)
            blocks[0, :2] = 255
            label = blocks.repeat(4, axis=0).repeat(4, axis=1)
            image = np.stack([40 * label, 255 - 30 * label, 10 * label], axis=-1).astype(np.uint8)
            Image.fromarray(image).save(root / "images" / split / f"picture{number}.png")
            Image.fromarray(label).save(root / "labels" / split / f"picture{number}.png")
    return root


def run_train(*arguments: object) -> int:
    """train.py in this process; its exit status."""
    try:
        return train.main([str(argument) for argument in arguments])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def weights(folder: Path) -> dict[str, bytes]:
    """Every bit of a saved model."""
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json")}


def history(folder: Path) -> list[dict]:
    return json.loads((folder / "training_state.json").read_text())["history"]


class TrainingDriver:
    """
    A process that has loaded the libraries and runs train.py in children that it forks, while its `with` block does.
    """

    def __enter__(self) -> "TrainingDriver":
        self._process = subprocess.Popen(
            [sys.executable, DRIVER, *sys.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *exception):
        self._process.stdin.close()
        self._process.wait()

    def run(self, *arguments: object, **options: object) -> dict:
        """
        A run of a script.

        Args:
            arguments: Its command line.
            options: `script`, "train", "evaluate_benchmarks" or "catseg-hf"; `world_size`, the number of processes;
                `killed_at`, before which change of the file system, counted from 1, it is killed; `killed_after`, by
                how many seconds it outlives that change; `terminated`, whether it and its workers get SIGTERM instead.

        Returns:
            `dict`: `status` of every process (negative: killed by that signal), `seconds`, `changes` (how many changes
            there were), `stdout` and `stderr`.
        """
        job = {"arguments": [str(argument) for argument in arguments], **options}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

"""What the benchmarks share: models of the published sizes, time, peak memory and the machine's name."""

import ctypes
import gc
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from transformers import CLIPConfig

from catseg_hf import CATSegConfig, CATSegForSemanticSegmentation


ROOT = Path(__file__).resolve().parent.parent
Output = TypeVar("Output")
ARCHITECTURES = ("base", "large", "tiny")


def build_config(architecture: str) -> CATSegConfig:
    """The released base or large architecture, or a tiny one to try the benchmarks with."""
    if architecture == "base":
        return CATSegConfig()
    if architecture == "large":
        clip_config = CLIPConfig(
            vision_config={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 336,
                "patch_size": 14,
            },
            text_config={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            projection_dim=768,
        )
        return CATSegConfig(clip_config=clip_config, image_size=336, guidance_layers=[7, 15])
    clip_config = CLIPConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 1,
            "image_size": 48,
            "patch_size": 4,
        },
        text_config={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1},
        projection_dim=32,
    )
    return CATSegConfig(
        clip_config=clip_config,
        image_size=48,
        guidance_layers=[1, 2],
        hidden_size=32,
        decoder_sizes=[32, 16],
        decoder_guidance_channels=[16, 8],
        decoder_guidance_sizes=[8, 4],
    )


def build_model(architecture: str, device: str) -> CATSegForSemanticSegmentation:
    """A float32 model with seeded random weights, padding tokens and norms included."""
    torch.manual_seed(0)
    model = CATSegForSemanticSegmentation(build_config(architecture))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "padding" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.to(device).eval()


def random_inputs(
    model: CATSegForSemanticSegmentation, num_classes: int, side: int, batch_size: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels `(batch_size, 3, side, side)` and normalised text features `(num_classes, num_prompts, D)`."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    pixel_values = torch.randn(batch_size, 3, side, side, generator=generator)
    text_embeds = torch.randn(num_classes, config.num_prompts, config.clip_config.projection_dim, generator=generator)
    return pixel_values.to(device), F.normalize(text_embeds, dim=-1).to(device)


def measure(run: Callable[[], Output], device: str, repeats: int) -> tuple[float, float, Output]:
    """
    Shortest of `repeats` times in seconds after one untimed run, the untimed run's peak of memory in MB beyond what
    was held before (of the device's allocator, or of the process; NaN where the system does not tell), and the last
    output.
    """
    peak = peak_memory(run, device)
    seconds = []
    for _ in range(repeats):
        _synchronize(device)
        start = time.perf_counter()
        output = run()
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds), peak, output


def cpu_seconds(run: Callable[[], object]) -> float:
    """What a run takes of this process's processor time, which other programs on the machine change little."""
    start = time.process_time()
    run()
    return time.process_time() - start


def _synchronize(device: str):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory(run: Callable[[], object], device: str) -> float:
    """The peak of memory in MB beyond what was held before: of the device's allocator, or of the process; NaN where
    the system does not tell."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - held) / 1e6
    if platform.system() != "Linux":
        run()
        return float("nan")
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # starts a new peak
    held = _status("VmRSS")
    run()
    return (_status("VmHWM") - held) / 1e3


def _status(field: str) -> float:
    """A field of the process's status in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def machine(device: str) -> str:
    """What the benchmark ran on, for the tables."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    model_name = platform.processor() or platform.machine()
    if platform.system() == "Linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model_name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model_name)
    features = "AMX bfloat16" if torch.cpu._is_amx_tile_supported() else torch.backends.cpu.get_cpu_capability()
    return f"{model_name}, {torch.get_num_threads()} cores, {features}"


def write_json(result: dict, file: Path | None):
    """Prints a result as JSON, and writes it if a file is given."""
    text = json.dumps(result, indent=2)
    print(text)
    if file is not None:
        file.write_text(text + "\n")


def write_result(case: dict, ours: tuple[float, float], reference: tuple[float, float], differences: dict):
    """
    Prints a comparison as JSON, and writes it if a file is given.

    Args:
        case (`dict`): What was run: the script's arguments, `device` and `json` (the file, or none) among them.
        ours, reference (`tuple[float, float]`): Seconds and peak memory in MB, of the model and of the literal one.
        differences (`dict`): How far their outputs are apart.
    """
    file, device = case.pop("json"), case.pop("device")
    result = {
        **case,
        "device": device,
        "machine": machine(device),
        "torch": torch.__version__,
        "seconds": ours[0],
        "reference_seconds": reference[0],
        "ratio": reference[0] / ours[0],
        "peak_memory_mb": ours[1],
        "reference_peak_memory_mb": reference[1],
        **differences,
    }
    write_json(result, file)

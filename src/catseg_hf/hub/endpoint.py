"""A checkpoint as a Hugging Face Inference Endpoint: what has to lie beside it."""

from pathlib import Path


HANDLER = Path(__file__).with_name("endpoint_handler.py")
# What the files that are saved with a model import, but for torch, which endpoints bring for their hardware.
REQUIREMENTS = (
    "huggingface_hub>=1.31",
    "numpy>=2.0",
    "pillow>=11.0",
    "safetensors>=0.8",
    "transformers>=5.20",
    "typing_extensions>=4.12",
)


def write_endpoint_handler(folder: Path):
    """Writes `handler.py` and `requirements.txt` into a checkpoint's folder, which makes it an endpoint."""
    (folder / "handler.py").write_text(HANDLER.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in REQUIREMENTS), encoding="utf-8")

"""What the cards (README.md) of all models have in common."""

from collections.abc import Mapping
from importlib.metadata import distributions
from typing import Any

from huggingface_hub import ModelCardData


PAPER = "https://arxiv.org/abs/2303.11797"
BIBTEX = """\
@inproceedings{cho2024catseg,
  title     = {CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation},
  author    = {Cho, Seokju and Shin, Heeseong and Hong, Sunghwan and Arnab, Anurag and Seo, Paul Hongsuck and
               Kim, Seungryong},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2024}
}"""

TAGS = ["catseg", "open-vocabulary-segmentation", "semantic-segmentation", "zero-shot", "clip", "vision"]

CARD = """\
---
{metadata}
---

# {title}

CAT-Seg segments an image into any classes that are named in words (open-vocabulary semantic segmentation). CLIP's
dense image features and its text features give a cost volume of cosine similarities, which is aggregated over space
and over the classes and upsampled to a mask for each class. It was introduced in [CAT-Seg: Cost Aggregation for
Open-Vocabulary Semantic Segmentation]({paper}) (Cho et al., CVPR 2024).

{introduction}

{sections}

## Licence and citation

{licence}If you use the model, cite the paper:

```bibtex
{bibtex}
```
"""

USAGE = """\
The code of the model comes with these files, so that `trust_remote_code=True` is all that is needed (read the code
first). With the package `catseg_hf` installed, `import catseg_hf` takes its place.

```python
from transformers import pipeline

segmenter = pipeline("zero-shot-image-segmentation", model="{name}", trust_remote_code=True)
for segment in segmenter("image.jpg", candidate_labels=["cat", "sofa", "wall"]):
    print(segment["label"], segment["score"], segment["mask"].size)
```

Without `candidate_labels` it segments its own classes, as does `pipeline("image-segmentation", ...)`. With the Auto
classes:

```python
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, AutoProcessor

model = AutoModelForSemanticSegmentation.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
image = Image.open("image.jpg")
inputs = processor(images=image, text=["cat", "sofa", "wall"])
with torch.inference_mode():
    outputs = model(**inputs)
(segmentation,) = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])
```

`torch.sigmoid(outputs.logits)` are the probabilities."""


def read_licence() -> str | None:
    """The text of the licence, which goes beside a model, or `None` if the package is not installed."""
    for installed in distributions(name="catseg_hf"):  # what a build leaves beside the sources may come first
        for file in installed.files or []:
            if file.name == "LICENSE" and file.locate().is_file():
                return file.read_text()
    return None


def card_metadata(**fields: Any) -> ModelCardData:
    """The metadata for the Hub that all models share, and `fields`."""
    shared = {
        "language": "en",
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "image-segmentation",
        "tags": TAGS,
    }
    return ModelCardData(**shared | fields)


def write_card(
    metadata: ModelCardData,
    title: str,
    introduction: str,
    sections: Mapping[str, str],
    licence: str = "MIT, see LICENSE. ",
) -> str:
    """
    A card.

    Args:
        metadata (`ModelCardData`): For the Hub, see [`card_metadata`].
        title (`str`): Its heading.
        introduction (`str`): What follows on what CAT-Seg is: where this model comes from, and its sizes.
        sections (`Mapping[str, str]`): Their texts by their headings.
        licence (`str`): The sentences on it, with a space behind them.
    """
    return CARD.format(
        metadata=metadata.to_yaml(),
        title=title,
        paper=PAPER,
        introduction=introduction,
        sections="\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items()),
        licence=licence,
        bibtex=BIBTEX,
    )

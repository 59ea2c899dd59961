"""The card (README.md) of a converted model."""

from huggingface_hub import ModelCardData

from catseg_hf import CATSegConfig
from catseg_hf.citation import BIBTEX, PAPER


ORIGINAL_CODE = "https://github.com/KU-CVLAB/CAT-Seg"
ORIGINAL_WEIGHTS = "https://huggingface.co/spaces/hamacojr/CAT-Seg-weights"

# Widths of CLIP's towers and patch size of the released models.
RELEASED = {
    (768, 512, 16): ("CAT-Seg (B), CLIP ViT-B/16 at 384 x 384", "openai/clip-vit-base-patch16"),
    (1024, 768, 14): ("CAT-Seg (L), CLIP ViT-L/14 at 336 x 336", "openai/clip-vit-large-patch14-336"),
}

BODY = """
# {title}

CAT-Seg segments a picture into any classes that are named in words ("open-vocabulary semantic segmentation"). CLIP's
dense image features and its text features give a cost volume of cosine similarities, which is aggregated over space
and over the classes and upsampled to a mask for each class. It was introduced in [CAT-Seg: Cost Aggregation for
Open-Vocabulary Semantic Segmentation]({paper}) (Cho et al., CVPR 2024).

{origin}

It was converted from the authors' checkpoint ([weights]({weights}), [code]({code})) to the format of transformers. The
conversion checks that every tensor is used and that the model computes what a literal implementation computes with the
same weights. The authors of the paper did not make this conversion.

- {num_parameters:,} parameters{dtype_note}
- pictures, or windows of them, at {image_size} x {image_size} pixels
- {num_classes} classes of its own ({first_classes}, ...), and any others that you name

## How to use it

The code of the model comes with these files, so that `trust_remote_code=True` is all that is needed (read the code
first). With the package `catseg_hf` installed, `import catseg_hf` takes its place.

**1. The Auto classes**

```python
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, AutoProcessor

model = AutoModelForSemanticSegmentation.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
image = Image.open("picture.jpg")
inputs = processor(images=image, text=["cat", "sofa", "wall"])
with torch.inference_mode():
    outputs = model(**inputs)
(segmentation,) = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])
```

`torch.sigmoid(outputs.logits)` are the probabilities. Without `text`, the model's own classes are segmented.

**2. The image-segmentation pipeline**, for the model's own classes

```python
from transformers import pipeline

segmenter = pipeline("image-segmentation", model="{name}", trust_remote_code=True)
segments = segmenter("picture.jpg")  # a list of {{"label", "score", "mask"}}
```

**3. The zero-shot-image-segmentation pipeline**, for any classes

```python
from transformers import pipeline

segmenter = pipeline(task="zero-shot-image-segmentation", model="{name}", trust_remote_code=True)
segments = segmenter("picture.jpg", candidate_labels=["cat", "sofa", "wall"])
```

## Training

As published by the authors; nothing was trained for this conversion.

- Data: COCO-Stuff (118k pictures of COCO 2017 with 171 classes of things and stuff), starting from OpenAI's CLIP.
- Trained: everything outside CLIP, and in both of CLIP's towers the query and value projections of the attention.
- Pictures: shorter side 384, random crops of 384 x 384, colour jitter, horizontal flips.
- Loss: binary cross-entropy of every pixel and class. Prompt: "A photo of a {{}} in the scene".
- AdamW, learning rate 2e-4 (CLIP 2e-6), weight decay 1e-4, gradients clipped to norm 0.01, cosine schedule, 80,000
  steps with batches of 4.

## Results

mIoU as the paper reports it for the authors' own code and weights. **These numbers are the paper's ([Cho et al., CVPR
2024]({paper})); they were not measured with this conversion.**

| model | A-847 | PC-459 | A-150 | PC-59 | PAS-20 | PAS-20b |
|---|---|---|---|---|---|---|
| CAT-Seg (B), CLIP ViT-B/16 | 12.0 | 19.0 | 31.8 | 57.5 | 94.6 | 77.3 |
| CAT-Seg (L), CLIP ViT-L/14 | 16.0 | 23.8 | 37.9 | 63.3 | 97.0 | 82.5 |

A: ADE20K with 847 or 150 classes; PC: Pascal Context with 459 or 59; PAS: Pascal VOC with 20, or (b) with background.

## Limits

- It names regions by what their words mean to CLIP, and carries the biases of CLIP's and COCO's pictures and texts.
- Prompts are English and at most 77 tokens. Synonyms, similar classes and a vocabulary without the right class lead to
  confident errors: every pixel gets one of the given classes.
{class_cut}- It segments classes and not single objects; each view's masks are {mask_size} x {mask_size} in size.
- It was published for research on natural photographs. Nobody measured it on medical pictures, surveillance or
  decisions about people, and it is not meant for them.

## Licence and citation

MIT, see LICENSE. If you use the model, cite the paper:

```bibtex
{bibtex}
```
"""

CLASS_CUT = """\
- With more than {0} classes, only the {0} most similar ones compete in each picture.
"""


def model_card(config: CATSegConfig, name: str, num_parameters: int, dtype: str = "float32") -> str:
    """
    The card of a converted model, metadata included.

    Args:
        config (`CATSegConfig`): Its configuration.
        name (`str`): What its users load: a repository on the Hub or a folder.
        num_parameters (`int`): How many parameters it has.
        dtype (`str`): What they are stored in.
    """
    clip_config = config.clip_config
    patch_size = clip_config.vision_config.patch_size
    sizes = clip_config.vision_config.hidden_size, clip_config.text_config.hidden_size, patch_size
    if sizes in RELEASED:
        title, base_model = RELEASED[sizes]
        origin = f"This is {title}."
    else:
        # The backbone of the released model that is nearest in kind, for the Hub's model tree.
        title, base_model = "CAT-Seg", RELEASED[(1024, 768, 14) if patch_size == 14 else (768, 512, 16)][1]
        origin = (
            "This checkpoint has an architecture of its own and is neither of the two released models, of which the "
            "sections on training and results tell."
        )
    data = ModelCardData(
        language="en",
        license="mit",
        library_name="transformers",
        pipeline_tag="image-segmentation",
        base_model=base_model,
        datasets=["coco-stuff"],
        tags=["catseg", "open-vocabulary-segmentation", "semantic-segmentation", "zero-shot", "clip", "vision"],
    )
    body = BODY.format(
        title=title,
        origin=origin,
        name=name,
        paper=PAPER,
        bibtex=BIBTEX,
        code=ORIGINAL_CODE,
        weights=ORIGINAL_WEIGHTS,
        num_parameters=num_parameters,
        dtype_note=f" in {dtype}",
        image_size=config.image_size,
        num_classes=config.num_labels,
        first_classes=", ".join(config.id2label[index] for index in sorted(config.id2label)[:3]),
        class_cut=CLASS_CUT.format(config.num_class_tokens) if config.num_class_tokens else "",
        mask_size=4 * config.feature_size,
    )
    return f"---\n{data.to_yaml()}\n---\n{body}"

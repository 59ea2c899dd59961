"""The card (README.md) of a converted model."""

from ..configuration_catseg import CATSegConfig
from ..hub.model_cards import PAPER, USAGE, card_metadata, write_card


ORIGINAL_CODE = "https://github.com/KU-CVLAB/CAT-Seg"
ORIGINAL_WEIGHTS = "https://huggingface.co/spaces/hamacojr/CAT-Seg-weights"

# Widths of CLIP's towers and patch size of the released models.
RELEASED = {
    (768, 512, 16): ("CAT-Seg (B), CLIP ViT-B/16 at 384 x 384", "openai/clip-vit-base-patch16"),
    (1024, 768, 14): ("CAT-Seg (L), CLIP ViT-L/14 at 336 x 336", "openai/clip-vit-large-patch14-336"),
}

INTRODUCTION = """\
{origin}

It was converted from the authors' checkpoint ([weights]({weights}), [code]({code})) to the format of transformers. The
conversion checks that every tensor is used and that the model computes what a literal implementation computes with the
same weights. The authors of the paper did not make this conversion.

- {num_parameters:,} parameters in {dtype}
- images, or windows of them, at {image_size} x {image_size} pixels
- {num_classes} classes of its own ({first_classes}, ...), and any others that you name"""

TRAINING = """\
As published by the authors; nothing was trained for this conversion.

- Data: COCO-Stuff (118k images of COCO 2017 with 171 classes of things and stuff), starting from OpenAI's CLIP.
- Trained: everything outside CLIP, and in both of CLIP's towers the query and value projections of the attention.
- Images: shorter side 384, random crops of 384 x 384, colour jitter, horizontal flips.
- Loss: binary cross-entropy of every pixel and class. Prompt: "A photo of a {} in the scene".
- AdamW, learning rate 2e-4 (CLIP 2e-6), weight decay 1e-4, gradients clipped to norm 0.01, cosine schedule, 80,000
  steps with batches of 4."""

RESULTS = f"""\
mIoU as the paper reports it for the authors' own code and weights. **These numbers are the paper's ([Cho et al., CVPR
2024]({PAPER})); they were not measured with this conversion.**

| model | A-847 | PC-459 | A-150 | PC-59 | PAS-20 | PAS-20b |
|---|---|---|---|---|---|---|
| CAT-Seg (B), CLIP ViT-B/16 | 12.0 | 19.0 | 31.8 | 57.5 | 94.6 | 77.3 |
| CAT-Seg (L), CLIP ViT-L/14 | 16.0 | 23.8 | 37.9 | 63.3 | 97.0 | 82.5 |

A: ADE20K with 847 or 150 classes; PC: PASCAL Context with 459 or 59; PAS: PASCAL VOC with 20, or (b) with
background."""

LIMITS = """\
- It names regions by what their words mean to CLIP, and carries the biases of CLIP's and COCO's images and texts.
- Prompts are English and at most 77 tokens. Synonyms, similar classes and a vocabulary without the right class lead to
  confident errors: every pixel gets one of the given classes.
{class_cut}- It segments classes and not single objects; each view's masks are {mask_size} x {mask_size} in size.
- It was published for research on natural photographs. Nobody measured it on medical images, surveillance or decisions
  about people, and it is not meant for them."""

CLASS_CUT = """\
- With more than {0} classes, only the {0} most similar ones compete in each image.
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
    metadata = card_metadata(base_model=base_model, datasets=["coco-stuff"])
    introduction = INTRODUCTION.format(
        origin=origin,
        code=ORIGINAL_CODE,
        weights=ORIGINAL_WEIGHTS,
        num_parameters=num_parameters,
        dtype=dtype,
        image_size=config.image_size,
        num_classes=config.num_labels,
        first_classes=", ".join(config.label_names[:3]),
    )
    class_cut = CLASS_CUT.format(config.num_class_tokens) if config.num_class_tokens else ""
    sections = {
        "How to use it": USAGE.format(name=name),
        "Training": TRAINING,
        "Results": RESULTS,
        "Limits": LIMITS.format(class_cut=class_cut, mask_size=4 * config.feature_size),
    }
    return write_card(metadata, title, introduction, sections)

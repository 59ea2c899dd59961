"""What somebody does who has transformers but not catseg_hf: loads a folder in every way, uses it and saves it again.

python remote_code_user.py FOLDER PICTURE SAVED_AGAIN
"""

import sys

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
    pipeline,
)


folder, picture, saved_again = sys.argv[1:]
try:
    import catseg_hf
except ImportError:
    pass
else:
    sys.exit(f"{catseg_hf.__file__} is installed")

image = Image.open(picture)
for auto_class in (AutoConfig, AutoModel, AutoImageProcessor):
    assert type(auto_class.from_pretrained(folder, trust_remote_code=True)).__name__.startswith("CATSeg")
model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)

with torch.inference_mode():
    outputs = model(**processor(images=image, text=["cat", "sofa", "wall"]))
(segmentation,) = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])
print("pixels of each class:", torch.bincount(segmentation.flatten(), minlength=3).tolist())

segments = pipeline("image-segmentation", model=folder, trust_remote_code=True)(image)
print("built-in pipeline:", sorted(segment["label"] for segment in segments))

task = "zero-shot-image-segmentation"
segments = pipeline(task, model=folder, trust_remote_code=True)(image, candidate_labels=["cat", "sofa"])
print("open-vocabulary pipeline:", sorted(segment["label"] for segment in segments))

model.save_pretrained(saved_again)
processor.save_pretrained(saved_again)

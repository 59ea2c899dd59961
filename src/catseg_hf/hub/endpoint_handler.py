"""A Hugging Face Inference Endpoint of the CAT-Seg checkpoint that this file lies beside, as `handler.py`.

It needs the checkpoint's own code and the packages of `requirements.txt`, and not the package `catseg_hf`.
"""

import base64
import binascii
import os
import warnings
from io import BytesIO
from typing import Any

from PIL import Image
from transformers import pipeline


# The largest image that is segmented, in pixels; the endpoint's environment variable of this name changes it.
LIMIT_VARIABLE = "MAX_IMAGE_PIXELS"
DEFAULT_LIMIT = 2**25
# What requests may ask for, and how the pipeline calls it. The last three are those of InferenceClient.
PARAMETERS = {
    "labels": "candidate_labels",
    "candidate_labels": "candidate_labels",
    "background": "background_labels",
    "background_labels": "background_labels",
    "threshold": "threshold",
    "sliding_window": "sliding_window",
    "upsampling": "upsampling",
    "top_k": "top_k",
    "subtask": "subtask",
    "mask_threshold": "mask_threshold",
    "overlap_mask_area_threshold": "overlap_mask_area_threshold",
}


class EndpointHandler:
    """
    What the endpoint calls, see https://huggingface.co/docs/inference-endpoints.

    Args:
        path (`str`): The checkpoint's folder. Its own code is run.

    Raises:
        ValueError: If the environment variable `MAX_IMAGE_PIXELS` is not a positive integer.
    """

    def __init__(self, path: str = ""):
        self.max_image_pixels = _read_limit(os.environ.get(LIMIT_VARIABLE, DEFAULT_LIMIT))
        # Pillow refuses images of more than twice its own limit, and warns of those between.
        Image.MAX_IMAGE_PIXELS = -(-self.max_image_pixels // 2)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        self.pipeline = pipeline("zero-shot-image-segmentation", model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """
        Args:
            data (`dict`): The request:
                - `inputs` (`PIL.Image.Image`, `bytes` or `str`): An image, or an image file's bytes, or these as
                  base64. Paths and URLs are refused: they would be opened here and not where they were written.
                - `parameters` (`dict`, *optional*): `labels` (a list, or a string of them separated by commas; by
                  default the checkpoint's own vocabulary), `background` (labels whose pixels belong to no segment),
                  `threshold` (0..1), `sliding_window` (`bool`), `upsampling` and `top_k`, see the pipeline's
                  `__call__`.

        Returns:
            `list[dict]`: The segments, the largest first, each with its `label`, `score` (0..1) and `mask`, a
            `PIL.Image.Image` of mode "L" in the image's size, 255 in the segment.

        Raises:
            ValueError: For a request without an image, with one that cannot be read or is too large, or with
                parameters that are not accepted. Endpoints answer it with status 400 and the message.
        """
        image = self._read_image(data)
        return self.pipeline(image, **_read_parameters(data.get("parameters")))

    def _read_image(self, data: Any) -> "Image.Image | bytes":
        image = data.get("inputs") if isinstance(data, dict) else None
        if image is None or (isinstance(image, str | bytes) and not image):
            raise ValueError(
                "The request has no image: send an image file's bytes, or JSON with `inputs`, the bytes as base64."
            )
        if isinstance(image, str):
            image = _decode_base64(image)
        if not isinstance(image, Image.Image | bytes):
            raise ValueError(
                f"`inputs` is a {type(image).__name__}, but one image is needed: an image file's bytes as base64."
            )
        self._check_size(image)
        return image

    def _check_size(self, image: "Image.Image | bytes"):
        try:
            width, height = image.size if isinstance(image, Image.Image) else Image.open(BytesIO(image)).size
        except Image.DecompressionBombError:
            width = height = None
        except Exception:
            return  # the pipeline reads more than Pillow, and says what is wrong
        if width is None or width * height > self.max_image_pixels:
            size = "far more pixels" if width is None else f"{width} x {height} pixels"
            raise ValueError(
                f"The image has {size}, but at most {self.max_image_pixels:,} are accepted in all: send a smaller "
                f"one, or raise the endpoint's environment variable {LIMIT_VARIABLE}."
            )


def _read_limit(value: str | int) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"The environment variable {LIMIT_VARIABLE} is {value!r}, but a number of pixels is needed.")
    return int(value)


def _decode_base64(text: str) -> bytes:
    """An image file's bytes, of base64 or of a data URL."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        start = text if len(text) <= 80 else f"{text[:80]}..."
        raise ValueError(
            f"`inputs` is the text {start!r}, but only base64 of an image file's bytes is accepted, neither a path "
            "nor a URL: send the image itself."
        ) from None


def _read_parameters(parameters: Any) -> dict[str, Any]:
    """The pipeline's arguments."""
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise ValueError(f"`parameters` is {parameters!r}, but an object is needed, such as {{'labels': ['cat']}}.")
    arguments = {}
    for name, value in parameters.items():
        if name not in PARAMETERS:
            raise ValueError(f"There is no parameter {name!r}: {', '.join(PARAMETERS)} are accepted.")
        if value is None:
            continue
        if PARAMETERS[name] in arguments:
            raise ValueError(f"`{name}` and `{PARAMETERS[name]}` are the same: give one of them.")
        arguments[PARAMETERS[name]] = value
    sliding_window = arguments.get("sliding_window", False)
    if not isinstance(sliding_window, bool):
        raise ValueError(f"`sliding_window` is {sliding_window!r}, but true or false is needed.")
    return arguments

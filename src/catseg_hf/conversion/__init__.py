"""Converts the authors' checkpoints, and verifies each conversion by a literal implementation of the paper."""

CONVERTER_VERSION = 1
"""Goes up whenever the folder comes out differently for the same checkpoint: kept conversions are then made anew."""

TOKENIZER = "openai/clip-vit-base-patch16"
"""Where CLIP's tokenizer is on the Hub, the same for all released models."""

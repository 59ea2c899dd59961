"""Loads models by name, folder or Hub id: CAT-Seg with its processor, and Segment Anything for masks."""

from .mask_generator import load_mask_generator
from .names import resolve_model
from .segmenter import load_segmenter


__all__ = ["load_mask_generator", "load_segmenter", "resolve_model"]

"""Benchmarks of semantic segmentation: what they are, where their files lie, and how a model is scored on them."""

"""Converts the authors' checkpoints, and verifies each conversion by a literal implementation of the paper."""

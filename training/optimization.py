"""The optimizer and the learning rate schedule of the published recipe."""

from catseg_training.optimization import MAX_GRAD_NORM, build_optimizer, build_scheduler


__all__ = ["MAX_GRAD_NORM", "build_optimizer", "build_scheduler"]

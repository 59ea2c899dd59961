"""The tokens of all classes, held and worked on a few classes at a time."""

from collections.abc import Callable, Iterator, Sequence

import torch
from typing_extensions import Self

from .configuration_catseg import CATSegConfig
from .tensor_ops_catseg import independent_chunks


def split_classes(tensor: torch.Tensor, dim: int, config: CATSegConfig) -> Sequence[torch.Tensor]:
    """A tensor `(B, ...)` with the classes along `dim`, a few at a time: as many as the config says, or as the sizes
    of the aggregation's activations suggest."""
    numel_per_class = tensor.shape[0] * config.feature_size**2 * config.hidden_size * config.mlp_ratio
    return independent_chunks(tensor, dim, numel_per_class, config.class_chunk_size)


class ClassChunks(list[torch.Tensor]):
    """
    Tokens `(B, T, H, W, C)` of all classes, as a list of tensors `(B, t, H, W, C)` of a few classes each.

    What looks at every class alone gives the same result for one chunk after another, whose activations fit a cache.
    Each output takes the place of its chunk, so that memory holds the tokens of all classes once, whatever their
    number. As in PyTorch, a method whose name ends in an underscore changes the chunks themselves.
    """

    def apply_(self, function: Callable[..., torch.Tensor], *operands: Sequence[torch.Tensor]) -> Self:
        """Replaces every chunk by `function(chunk, *operands)` of that chunk and what each operand has for it."""
        for index, chunk in enumerate(self):
            self[index] = function(chunk, *(operand[index] for operand in operands))
        return self

    def across_classes(
        self, function: Callable[[torch.Tensor], torch.Tensor], numel_per_token: int
    ) -> Iterator[torch.Tensor]:
        """
        What a function that looks at every position alone makes of all classes, chunk by chunk.

        Args:
            function (`Callable`): Takes and returns `(T, B, positions, C)`; called for a few positions at a time.
            numel_per_token (`int`): Numbers in its largest activation that come of one token.
        """
        grid, num_classes = self[0].shape[2:4], [chunk.shape[1] for chunk in self]
        numel_per_position = self[0].shape[0] * sum(num_classes) * numel_per_token
        positions = [independent_chunks(chunk.flatten(2, 3), 2, numel_per_position) for chunk in self]
        outputs = []
        for parts in zip(*positions, strict=True):  # the same positions of all classes
            tokens = torch.cat([part.transpose(0, 1) for part in parts])
            outputs.append(function(tokens).transpose(0, 1).split(num_classes, dim=1))
        for parts in zip(*outputs, strict=True):  # all positions of the same classes
            yield torch.cat(parts, dim=2).unflatten(2, grid)

    def select(self, kept: torch.BoolTensor) -> torch.Tensor:
        """The tokens `(B, kept classes, H, W, C)` of some classes in one tensor; `kept` `(T,)` tells which."""
        parts = kept.split([chunk.shape[1] for chunk in self])
        return torch.cat([chunk[:, part] for chunk, part in zip(self, parts, strict=True)], dim=1)

    def join(self) -> torch.Tensor:
        """The tokens `(B, T, H, W, C)` in one tensor."""
        return torch.cat([*self], dim=1)

"""
Muon (Jordan et al., 2024) in float32.

`torch.optim.Muon` orthogonalises in bfloat16, which processors without bfloat16 units do a hundred times more slowly.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist


COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: torch.Tensor, num_steps: int = 5) -> torch.Tensor:
    """Nearly the orthogonal factors of matrices `(N, rows, columns)`, by Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    result = matrices.mT if tall else matrices
    result = result / result.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(num_steps):
        gram = result @ result.mT
        result = a * result + (b * gram + c * gram @ gram) @ result
    return result.mT if tall else result


def orthogonalise_together(matrices: torch.Tensor) -> torch.Tensor:
    """[`orthogonalise`], with the matrices shared out among the processes, all of which hold the same."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return orthogonalise(matrices)
    padding = -len(matrices) % dist.get_world_size()
    parts = torch.cat([matrices, matrices[:1].expand(padding, -1, -1)]).chunk(dist.get_world_size())
    results = [torch.empty_like(part) for part in parts]
    dist.all_gather(results, orthogonalise(parts[dist.get_rank()]))
    return torch.cat(results)[: len(matrices)]


class Muon(torch.optim.Optimizer):
    """
    Momentum whose updates are orthogonalised; matrices of one shape go through the iteration together.

    Args:
        params (`Iterable[torch.nn.Parameter]`): Matrices.
        lr (`float`): Step size of the orthogonal update, which is scaled by `max(1, rows / columns) ** 0.5`.
        momentum (`float`): Nesterov momentum.
        weight_decay (`float`): Decoupled, times `lr`.
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None):
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    average = state.setdefault("momentum", torch.zeros_like(parameter))
                    average.lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(average, group["momentum"]))
                size = group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, orthogonalise_together(torch.stack(updates)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=size)

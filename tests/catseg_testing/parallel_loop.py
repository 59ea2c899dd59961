"""A training loop of one's own in several processes. Takes the model's folder and what of CLIP to train, one after
another; prints each that went through and left all processes with the same weights."""

import sys

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from catseg_hf import CATSegForSemanticSegmentation


def train(folder: str, mode: str) -> torch.Tensor:
    model = CATSegForSemanticSegmentation.from_pretrained(folder).train()
    model.freeze_clip(mode)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-3)
    size, num_labels = model.config.image_size, model.config.num_labels
    torch.manual_seed(torch.distributed.get_rank())
    for _ in range(3):
        labels = torch.randint(num_labels, (1, size, size))
        parallel(pixel_values=torch.randn(1, 3, size, size), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([value.detach().flatten() for value in model.parameters()])


torch.distributed.init_process_group("gloo")
for mode in sys.argv[2:]:
    weights = train(sys.argv[1], mode)
    others = [torch.empty_like(weights) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(others, weights)
    assert all(torch.equal(other, weights) for other in others)
    if torch.distributed.get_rank() == 0:
        print(mode)
torch.distributed.destroy_process_group()

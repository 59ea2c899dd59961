"""The tokens of all classes, a few classes at a time."""

import weakref

import pytest
import torch

from catseg_hf import tensor_ops_catseg
from catseg_hf.class_chunks_catseg import ClassChunks


@pytest.fixture
def tokens():
    return torch.randn(2, 7, 4, 6, 3, generator=torch.Generator().manual_seed(0))


def test_an_output_takes_the_place_of_its_chunk(tokens):
    chunks = ClassChunks(part.clone() for part in tokens.split(3, dim=1))
    inputs = [weakref.ref(part) for part in chunks]
    alive = []

    def scale(part, factor):
        alive.append(sum(reference() is not None for reference in inputs))
        return factor * part

    assert chunks.apply_(scale, (1, 2, 3)) is chunks
    assert alive == [3, 2, 1]
    factors = torch.tensor([1, 1, 1, 2, 2, 2, 3])
    assert torch.equal(chunks.join(), factors[:, None, None, None] * tokens)


@pytest.mark.parametrize("positions", [1, 5, 24])
def test_all_classes_at_a_few_positions(tokens, positions, monkeypatch):
    monkeypatch.setattr(tensor_ops_catseg, "CPU_CHUNK_BYTES", tokens[:, :, 0, 0].nbytes * positions)
    shapes = []

    def subtract_mean(tokens):
        shapes.append(tokens.shape)
        return tokens - tokens.mean(dim=0)

    outputs = list(ClassChunks(tokens.split(3, dim=1)).across_classes(subtract_mean, tokens.shape[-1]))
    assert [output.shape[1] for output in outputs] == [3, 3, 1]
    assert torch.allclose(torch.cat(outputs, dim=1), tokens - tokens.mean(dim=1, keepdim=True), atol=1e-6)
    assert shapes[0] == (7, 2, positions, 3) and len(shapes) == -(-24 // positions)

"""The sequence of training batches."""

from itertools import islice

import pytest

from catseg_training.data.batches import StepSampler


def steps(count: int, num_examples: int, batch_size: int, accumulation_steps: int, world_size: int, first_step=0):
    """The images of each step, in the order of one process with one batch."""
    processes = []
    for rank in range(world_size):
        sampler = StepSampler(num_examples, 7, batch_size, accumulation_steps, rank, world_size)
        sampler.first_step = first_step
        processes.append(list(islice(sampler, count * accumulation_steps)))
    batches = [batch for together in zip(*processes, strict=True) for batch in together]
    pictures = [picture for batch in batches for picture in batch]
    size = batch_size * accumulation_steps * world_size
    return [pictures[start : start + size] for start in range(0, len(pictures), size)]


@pytest.mark.parametrize("num_examples", [1, 5, 12, 100])
@pytest.mark.parametrize("division", [(4, 3, 1), (3, 2, 2), (1, 12, 1), (1, 1, 12), (2, 1, 6), (6, 1, 2)])
def test_a_step_has_the_same_pictures_however_it_is_divided(num_examples, division):
    assert steps(6, num_examples, *division) == steps(6, num_examples, 12, 1, 1)


def test_every_epoch_has_every_picture_once():
    pictures = [picture for step in steps(10, 7, 4, 1, 1) for picture in step]
    epochs = [pictures[start : start + 7] for start in range(0, 35, 7)]
    for number, epoch in enumerate(epochs):
        assert sorted(epoch) == [(number, index) for index in range(7)]
    assert len({tuple(index for _, index in epoch) for epoch in epochs}) > 3


def test_any_step_can_be_the_first():
    assert steps(4, 7, 4, 1, 1, first_step=6) == steps(10, 7, 4, 1, 1)[6:]


def test_ends_of_epochs():
    sampler = StepSampler(10, 0, batch_size=4)
    assert [step for step in range(1, 11) if sampler.ends_epoch(step)] == [3, 5, 8, 10]
    larger = StepSampler(3, 0, batch_size=4)
    assert all(larger.ends_epoch(step) for step in range(1, 5))

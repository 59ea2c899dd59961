"""Several threads share one model."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch

from catseg_hf import CATSegProcessor, OpenVocabularySegmentationPipeline
from catseg_testing.tokenizer import tiny_tokenizer


VOCABULARIES = [[f"{name} {number}" for number in range(1, 3 + index)] for index, name in enumerate("abcdefgh")]
ROUNDS = 4


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def in_threads(call) -> list:
    """Results of `call` for every vocabulary, again and again, all at the same time."""
    barrier = Barrier(len(VOCABULARIES))

    def repeat(labels):
        barrier.wait()
        return [call(labels) for _ in range(ROUNDS)]

    with ThreadPoolExecutor(len(VOCABULARIES)) as threads:
        return list(threads.map(repeat, VOCABULARIES))


@pytest.mark.slow
def test_each_thread_gets_its_own_answer(model_with_vocabulary, processor, image):
    segmenter = OpenVocabularySegmentationPipeline(model_with_vocabulary, processor)

    def segment(labels):
        return segmenter(image, candidate_labels=labels, return_probabilities=True, sliding_window=False)

    expected = [segment(labels) for labels in VOCABULARIES]
    for results, alone in zip(in_threads(segment), expected, strict=True):
        for result in results:
            assert torch.equal(result["probabilities"], alone["probabilities"])
            assert [segment["label"] for segment in result["segments"]] == [
                segment["label"] for segment in alone["segments"]
            ]


def test_threads_share_a_processor(processor):
    processor = CATSegProcessor(processor.image_processor, tiny_tokenizer())
    expected = [processor.encode_vocabulary(labels) for labels in VOCABULARIES]
    for results, alone in zip(in_threads(processor.encode_vocabulary), expected, strict=True):
        assert all(torch.equal(result, alone) for result in results)

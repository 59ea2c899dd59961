import unittest

import torch
import torch.nn.functional as F
from parameterized import parameterized
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import (
    TEST_EAGER_MATCHES_SDPA_INFERENCE_PARAMETERIZATION,
    ModelTesterMixin,
    _test_eager_matches_sdpa_inference,
    floats_tensor,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from catseg_hf import CATSegConfig, CATSegForSemanticSegmentation, CATSegModel


# How the tests know a model without a loss.
MODEL_MAPPING_NAMES.setdefault("catseg", "CATSegModel")


class ConfigOfCommonTests(CATSegConfig):
    """`sliding_window` is a number of tokens in the tests of language models, which they set."""

    def __setattr__(self, name, value):
        if name != "sliding_window" or isinstance(value, bool):
            super().__setattr__(name, value)


class CATSegModelTester:
    """A small CAT-Seg: five classes on a grid of 4 x 4 features, aggregated in windows of 2."""

    batch_size = 2
    num_channels = 3
    image_size = 32
    num_labels = 5
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32
    seq_length = 4  # of a row of the feature grid
    encoder_seq_length = 4  # of an attention window
    is_training = True

    def __init__(self, parent):
        self.parent = parent

    def get_config(self) -> CATSegConfig:
        tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
        return ConfigOfCommonTests(
            clip_config={
                "vision_config": {**tower, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8},
                "text_config": {**tower, "num_hidden_layers": 2, "vocab_size": 99, "eos_token_id": 98},
                "projection_dim": 32,
            },
            image_size=self.image_size,
            guidance_layers=[0, 1],
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            mlp_ratio=2,
            window_size=2,
            num_class_tokens=8,
            text_guidance_size=16,
            appearance_guidance_size=16,
            decoder_sizes=[32, 16],
            decoder_guidance_channels=[16, 16],
            decoder_guidance_sizes=[8, 8],
            sliding_window=False,
            sliding_window_size=32,
            num_labels=self.num_labels,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[CATSegConfig, dict[str, torch.Tensor]]:
        size = (self.batch_size, self.num_channels, self.image_size, self.image_size)
        input_ids = torch.randint(1, 98, (self.num_labels, 7))
        input_ids[:, -1] = 98
        return self.get_config(), {"pixel_values": floats_tensor(size), "input_ids": input_ids}


class CATSegModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (CATSegModel, CATSegForSemanticSegmentation)
    test_resize_embeddings = False  # as of CLIP
    # CLIP's temperature, and the queries and keys of the last vision block, are not used.
    test_all_params_have_gradient = False

    def setUp(self):
        self.model_tester = CATSegModelTester(self)
        self.config_tester = ConfigTester(self, config_class=CATSegConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()

    @parameterized.expand(TEST_EAGER_MATCHES_SDPA_INFERENCE_PARAMETERIZATION)
    def test_eager_matches_sdpa_inference(self, *parameters):
        """With text features: of token ids it would make rows without an end of text."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        generator = torch.Generator().manual_seed(0)
        inputs["text_embeds"] = F.normalize(torch.randn(7, 1, 32, generator=generator), dim=-1)
        inputs["pixel_values"] = torch.rand(inputs["pixel_values"].shape, generator=generator)
        del inputs["input_ids"]
        self.model_tester.prepare_config_and_inputs_for_common = lambda: (config, inputs)
        self.additional_model_inputs = ["text_embeds"]
        _test_eager_matches_sdpa_inference(self, *parameters)

    def test_retain_grad_hidden_states_attentions(self):
        """Of the hidden states: the attention weights are put together of those of a few classes at a time."""
        self.has_attentions = False
        super().test_retain_grad_hidden_states_attentions()

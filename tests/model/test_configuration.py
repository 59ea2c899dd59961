import re

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPConfig

from catseg_hf import CATSegConfig
from catseg_hf.configuration_catseg import guidance_layers_by_depth


def test_defaults_are_the_base_model():
    config = CATSegConfig()
    assert config.model_type == "catseg"
    assert config.clip_config.vision_config.patch_size == 16
    assert config.clip_config.projection_dim == 512
    assert (config.image_size, config.feature_size) == (384, 24)
    assert config.guidance_layers == [3, 7]
    assert (config.sliding_window_stride, config.sliding_window_image_size) == (256, 640)
    assert config.num_labels == 171
    assert config.id2label[0] == "person" and config.id2label[170] == "wood"
    assert config.label2id["wood"] == 170


def test_survives_saving(tmp_path):
    clip_config = CLIPConfig(vision_config={"patch_size": 16, "num_hidden_layers": 6}, projection_dim=64)
    config = CATSegConfig(clip_config=clip_config, guidance_layers=(1, 3), id2label={0: "cat", 1: "dog"})
    config.save_pretrained(tmp_path)
    loaded = CATSegConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == {**config.to_dict(), "_name_or_path": loaded.to_dict().get("_name_or_path")} or (
        loaded.to_diff_dict() == config.to_diff_dict()
    )
    assert loaded.id2label == {0: "cat", 1: "dog"} and loaded.label2id == {"cat": 0, "dog": 1}
    assert loaded.clip_config.vision_config.num_hidden_layers == 6
    assert loaded.guidance_layers == [1, 3]


def test_labels_stay_in_the_order_of_their_ids(tmp_path):
    labels = ["sofa", "dog", *map(str, range(10)), "cat"]
    CATSegConfig(id2label=dict(enumerate(labels))).save_pretrained(tmp_path)
    loaded = CATSegConfig.from_pretrained(tmp_path)
    assert list(loaded.id2label.values()) == list(loaded.label2id) == labels


def test_number_of_labels():
    config = CATSegConfig(num_labels=3)
    assert config.num_labels == 3 and len(config.id2label) == 3
    assert CATSegConfig(id2label={"0": "cat"}).num_labels == 1


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ({"window_size": 7}, "24 x 24.*cannot be cut into windows of 7.*divides 24"),
        ({"image_size": 380}, r"`image_size` \(380\) must be a multiple of CLIP's patch size \(16\)"),
        ({"hidden_size": 130}, r"`hidden_size` \(130\) must be a multiple of `num_attention_heads` \(4\)"),
        ({"guidance_layers": [3, 11]}, r"\[3, 11\].*before the last one.*between 0 and 10"),
        ({"guidance_layers": [7, 3]}, "ascending"),
        ({"guidance_layers": [-1, 3]}, "between 0 and 10"),
        ({"guidance_layers": [3, 5, 7]}, r"two entries, got \[3, 5, 7\]"),
        ({"pooling_size": [2]}, "two entries"),
        ({"pooling_size": [25, 1]}, r"\[25, 1\] must lie between 1 and.*\(24\)"),
        ({"eval_pooling_size": [0, 1]}, r"\[0, 1\] must lie between 1"),
        ({"decoder_sizes": [60, 32]}, "multiples of 16"),
        ({"decoder_guidance_sizes": [128, 16]}, "leave room"),
        ({"decoder_guidance_channels": [0, 128]}, "positive"),
        ({"num_class_tokens": -1}, "0 to turn padding and class cut off, got -1"),
        ({"num_prompts": 0}, "`num_prompts` must be at least 1, got 0"),
        ({"class_chunk_size": 0}, "`class_chunk_size` must be at least 1"),
        ({"max_classes_per_image": 0}, "`max_classes_per_image` must be at least 1"),
        ({"sliding_window_overlap": 1.0}, r"\[0, 1\)"),
        ({"attention_type": "softmax"}, "'linear', 'full'"),
        ({"image_size": "384"}, "expected int"),
        ({"output_hidden_states": "0"}, "`output_hidden_states` must be true or false, got '0'"),
        ({"clip_config": {"text_config": {"output_hidden_states": "0"}}}, "must be true or false, got '0'"),
        ({"clip_config": {"text_config": {"layer_norm_eps": None}}}, "`clip_config.text_config` must be a number"),
        ({"clip_config": {"vision_config": {"layer_norm_eps": None}}}, "expected float, got NoneType"),
        ({"clip_config": {"text_config": {"eos_token_id": None}}}, "must be the id that ends a prompt, got None"),
    ],
)
def test_impossible_architecture(arguments, reason):
    with pytest.raises(StrictDataclassError, match=f"(?s){reason}"):
        CATSegConfig(**arguments)


@pytest.mark.parametrize(
    ("num_blocks", "layers"), [(3, [0, 1]), (4, [1, 2]), (12, [3, 7]), (24, [7, 15]), (32, [10, 21])]
)
def test_guidance_layers_by_depth(num_blocks, layers):
    assert guidance_layers_by_depth(num_blocks) == layers


@pytest.mark.parametrize(
    "labels",
    [
        {"id2label": {0: "cat", 1: "sofa"}},
        {"label2id": {"cat": 0, "sofa": 1}},
        {"id2label": {"0": "cat", "1": "sofa"}, "label2id": {"cat": "0", "sofa": "1"}},
    ],
    ids=str,
)
def test_labels_are_given_by_either_map(tmp_path, labels):
    CATSegConfig(num_labels=3).save_pretrained(tmp_path)
    for config in (CATSegConfig(**labels), CATSegConfig.from_pretrained(tmp_path, **labels)):
        assert config.id2label == {0: "cat", 1: "sofa"}
        assert config.label2id == {"cat": 0, "sofa": 1}


def test_maps_of_labels_that_contradict_each_other():
    with pytest.raises(ValueError, match="contradict each other"):
        CATSegConfig(id2label={0: "cat"}, label2id={"dog": 0})


def test_misspelt_field():
    with pytest.raises(TypeError, match="'slidng_window': did you mean 'sliding_window'"):
        CATSegConfig(slidng_window=False)
    assert CATSegConfig(of_a_later_release=1).of_a_later_release == 1


@pytest.mark.parametrize("content", ["[]", "null", '"catseg"', "3"])
def test_a_file_that_holds_no_settings(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(OSError, match=f"config.json' holds {re.escape(content)}, not a JSON object"):
        CATSegConfig.from_pretrained(tmp_path)


def test_windows_side_by_side():
    assert CATSegConfig(sliding_window_overlap=0).sliding_window_stride == 384

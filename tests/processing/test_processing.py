import json

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoImageProcessor, AutoProcessor, CLIPConfig, CLIPTokenizer

from catseg_hf.errors import UserError
from catseg_hf.image_processing_catseg import CATSegImageProcessorPil
from catseg_hf.processing_catseg import CATSegProcessor
from catseg_testing.tokenizer import TOKENIZER, tiny_tokenizer


BOS, EOS = 510, 511


@pytest.fixture
def processor():
    return CATSegProcessor(CATSegImageProcessorPil(), tiny_tokenizer())


def with_templates(templates):
    return CATSegProcessor(CATSegImageProcessorPil(), tiny_tokenizer(), prompt_templates=templates)


def decode(ids):
    ids = ids.tolist()
    return tiny_tokenizer().decode(ids[1 : ids.index(EOS)])


def test_tiny_tokenizer():
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == 512
    assert tokenizer.convert_tokens_to_ids(["<|startoftext|>", "<|endoftext|>"]) == [BOS, EOS]
    assert tokenizer.decode(tokenizer("A cat, 2 café!").input_ids, skip_special_tokens=True) == "a cat , 2 café !"


def test_prompts(processor):
    input_ids = processor(text=["cat", "sofa"])["input_ids"]
    assert input_ids.dtype == torch.int64
    expected = [tiny_tokenizer()(f"A photo of a {name} in the scene").input_ids for name in ("cat", "sofa")]
    assert input_ids[1].tolist() == expected[1]
    assert input_ids[0].tolist() == expected[0] + [EOS]


def test_padding_is_on_the_right_whatever_the_tokenizer_does():
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    tokenizer.pad_token = "!"
    input_ids = CATSegProcessor(CATSegImageProcessorPil(), tokenizer)(text=["cat", "horse"])["input_ids"]
    assert input_ids[0, 0] == BOS
    assert input_ids[0].tolist().index(EOS) == input_ids.shape[1] - 3
    assert input_ids[0, -2:].tolist() == [tokenizer.pad_token_id] * 2


def test_only_the_first_synonym_counts(processor):
    input_ids = processor(text=[" settee , sofa, couch", "cat"])["input_ids"]
    assert decode(input_ids[0]) == "a photo of a settee in the scene"


def test_labels_that_share_a_synonym_are_different_labels(processor):
    input_ids = processor(text=["field, grass", "field, farm"])["input_ids"]
    assert torch.equal(input_ids[0], input_ids[1])


def test_a_string_is_split_at_its_commas(processor):
    assert processor(text="cat")["input_ids"].shape[0] == 1
    assert torch.equal(processor(text="cat, sofa,")["input_ids"], processor(text=["cat", "sofa"])["input_ids"])


def test_several_templates_are_several_prompts_per_class():
    processor = with_templates(["a {}", "one {} here"])
    input_ids = processor(text=["cat", "sofa", "tree"])["input_ids"]
    assert input_ids.shape[:2] == (3, 2)
    assert [decode(ids) for ids in input_ids[2]] == ["a tree", "one tree here"]
    assert torch.equal(processor.encode_vocabulary(["cat", "sofa", "tree"]), input_ids)


def test_encode_vocabulary_always_has_a_prompt_axis(processor):
    input_ids = processor.encode_vocabulary(["cat", "sofa"])
    assert input_ids.shape[:2] == (2, 1)
    assert torch.equal(input_ids[:, 0], processor(text=["cat", "sofa"])["input_ids"])


def test_braces_and_special_tokens_in_a_label_are_text(processor):
    input_ids = processor(text=["{0} {}", "<endoftext>"])["input_ids"]
    assert decode(input_ids[0]).replace(" ", "") == "aphotoofa{0}{}inthescene"
    assert decode(input_ids[1]).endswith("in the scene")
    with pytest.raises(UserError, match="several words for one class, with bars"):
        processor(text=["<|endoftext|>"])


def test_pictures_labels_and_vocabulary_together(processor):
    image, label = np.zeros((8, 10, 3), np.uint8), np.arange(80).reshape(8, 10)
    inputs = processor(images=image, text=["cat", "sofa"], segmentation_maps=label)
    assert {name: tuple(x.shape[:1]) for name, x in inputs.items()} == {
        "pixel_values": (1,),
        "global_pixel_values": (1,),
        "labels": (1,),
        "input_ids": (2,),
    }
    assert set(processor(image)) == {"pixel_values", "global_pixel_values"}
    assert set(processor(images=image, text=["cat"])) == set(processor.model_input_names)


def test_arguments_reach_the_image_processor(processor):
    image = np.zeros((8, 10, 3), np.uint8)
    assert processor(image, sliding_window=False, image_size=32)["pixel_values"].shape == (1, 3, 32, 32)
    assert processor(image, images_kwargs={"do_resize": False})["pixel_values"].shape == (1, 3, 8, 10)


def test_arguments_are_typed(processor):
    images_kwargs = processor.valid_processor_kwargs.__annotations__["images_kwargs"]
    assert images_kwargs is processor.image_processor.valid_kwargs
    with pytest.raises(StrictDataclassError, match="sliding_window"):
        processor(np.zeros((8, 10, 3), np.uint8), sliding_window="yes")


def test_arguments_of_the_tokenizer(processor):
    expected = processor(text=["cat", "sofa"])["input_ids"]
    assert torch.equal(processor(text=["cat", "sofa"], padding=False, truncation=True)["input_ids"], expected)
    for arguments, length in (({}, 77), ({"max_length": 40}, 40), ({"text_kwargs": {"max_length": 40}}, 40)):
        padded = processor(text=["cat", "sofa"], padding="max_length", **arguments)["input_ids"]
        assert padded.shape == (2, length)
        assert torch.equal(padded[:, : expected.shape[1]], expected) and (padded[:, expected.shape[1] :] == EOS).all()
    with pytest.raises(ValueError, match="'cat' has 24 tokens, but at most 12"):
        processor(text=["cat", "sofa"], max_length=12)
    with pytest.raises(ValueError, match="`max_length` is 78, but CLIP takes at most 77"):
        processor(text=["cat", "sofa"], max_length=78)


def test_how_the_tokenizer_was_made_counts():
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER, padding="max_length", max_length=50)
    assert CATSegProcessor(CATSegImageProcessorPil(), tokenizer)(text="cat")["input_ids"].shape == (1, 50)


@pytest.mark.parametrize(
    "arguments",
    [{"slidng_window": True}, {"add_special_tokens": False}, {"text_kwargs": {"paddng": True}}, {"videos": []}],
)
def test_unknown_arguments_are_refused(processor, arguments):
    name = next(iter(arguments.get("text_kwargs", arguments)))
    with pytest.raises(TypeError, match=f"takes no argument '{name}'"):
        processor(np.zeros((8, 10, 3), np.uint8), text="cat", **arguments)
    with pytest.raises(TypeError, match="slidng_window"):
        processor(np.zeros((8, 10, 3), np.uint8), images_kwargs={"slidng_window": True})


def test_return_types(processor):
    image = np.zeros((8, 10, 3), np.uint8)
    lists = processor(image, text=["cat", "sofa"], return_tensors=None)
    assert isinstance(lists["pixel_values"], list) and isinstance(lists["input_ids"][0][0], int)
    assert isinstance(processor(image, text=["cat"], return_tensors="np")["input_ids"], np.ndarray)


def test_a_prompt_too_long_is_refused_never_cut(processor):
    fits = "x" * (77 - 2 - len("aphotoofainthescene"))
    assert processor(text=[fits])["input_ids"].shape == (1, 77)
    with pytest.raises(ValueError, match=f"'{fits}x' has 78 tokens, but at most 77"):
        processor(text=["cat", fits + "x"])


def test_the_limit_is_the_tokenizers_own_if_it_has_one(processor):
    processor.tokenizer.model_max_length = 22
    with pytest.raises(ValueError, match="at most 22"):
        processor(text=["sofa"])
    processor.tokenizer.model_max_length = int(1e30)
    with pytest.raises(ValueError, match="at most 77"):
        processor(text=["x" * 70])


def test_the_right_label_is_named_with_several_templates():
    with pytest.raises(ValueError, match="label 'yyyy"):
        with_templates(["a {}", "the {}"])(text=["cat", "y" * 80, "dog"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "vocabulary is empty"),
        (["cat", ""], "Label 1 is ''"),
        (["cat", " \t"], "Label 1 is ' "),
        (["cat", ", dog"], "Label 1 is ', dog'"),
        (" , ", "vocabulary is empty"),
        (["cat", 3], "Label 1 is 3"),
        (["cat", None], "Label 1 is None"),
        (["cat", "dog", "cat"], r"'cat' occurs twice \(places 0 and 2\)"),
    ],
)
def test_impossible_vocabularies_are_refused(processor, labels, message):
    with pytest.raises(ValueError, match=message):
        processor(text=labels)


@pytest.mark.parametrize("template", ["no place", "{} and {}", "{name}", "{} {name}", "{{}}", "{} }", 3])
def test_impossible_templates_are_refused(template):
    with pytest.raises(ValueError, match="exactly one"):
        with_templates(["a {}", template])


def test_no_templates_are_refused():
    with pytest.raises(ValueError, match="empty"):
        with_templates([])


def test_nothing_is_refused(processor):
    with pytest.raises(ValueError, match="Neither"):
        processor()
    with pytest.raises(ValueError, match="without `images`"):
        processor(text=["cat"], segmentation_maps=np.zeros((2, 2), int))


def test_saved_and_loaded(tmp_path, monkeypatch):
    class ProcessorTestConfig(CLIPConfig):
        model_type = "catseg-processor-test"

    AutoImageProcessor.register(
        ProcessorTestConfig, image_processor_classes={"pil": CATSegImageProcessorPil}, exist_ok=True
    )
    AutoProcessor.register(ProcessorTestConfig, CATSegProcessor, exist_ok=True)
    image_processor = CATSegImageProcessorPil(window_image_size=512)
    processor = CATSegProcessor(image_processor, tiny_tokenizer(), prompt_templates=["a {}", "the {}"])
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["prompt_templates"] == ["a {}", "the {}"]
    for loaded in (CATSegProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, CATSegProcessor)
        assert loaded.prompt_templates == ["a {}", "the {}"]
        assert loaded.image_processor.window_image_size == 512
        assert torch.equal(loaded(text=["cat", "sofa"])["input_ids"], processor(text=["cat", "sofa"])["input_ids"])


def test_post_process_delegates(processor):
    outputs = type("Outputs", (), {"logits": torch.randn(1, 3, 4, 4)})
    (segmentation,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(8, 9)])
    (expected,) = processor.image_processor.post_process_semantic_segmentation(outputs, target_sizes=[(8, 9)])
    assert torch.equal(segmentation, expected)

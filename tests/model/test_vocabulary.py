"""The model's own vocabulary, and text features that are kept at evaluation but never stale."""

import copy

import pytest
import torch
from torch import nn

from catseg_hf import CATSegForSemanticSegmentation
from conftest import converted_model


LABELS = ["cat", "sofa", "sky", "tree, oak"]


@pytest.fixture
def model(model_with_vocabulary):
    return model_with_vocabulary.eval()


@pytest.fixture
def pixel_values():
    return torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def segment(model, pixel_values, **inputs):
    with torch.no_grad():
        return model(pixel_values.to(model.dtype), sliding_window=False, **inputs).logits


def fresh(model: CATSegForSemanticSegmentation) -> CATSegForSemanticSegmentation:
    """A model of the same weights, type and vocabulary that has never run."""
    twin = CATSegForSemanticSegmentation(copy.deepcopy(model.config)).to(model.dtype)
    twin.load_state_dict(model.state_dict())
    return twin.train(model.training)


@pytest.fixture
def count_encoded_prompts(model, monkeypatch):
    """Prompts that the text tower has encoded, in every call so far."""
    counts = []
    encode = model.clip.get_text_features
    monkeypatch.setattr(
        model.clip, "get_text_features", lambda ids, *a, **k: counts.append(len(ids)) or encode(ids, *a, **k)
    )
    return counts


def test_clips_own_switch_of_outputs_changes_nothing(model, pixel_values):
    expected = segment(model, pixel_values)
    for config in (model.clip.config, model.clip.config.text_config, model.clip.config.vision_config):
        config.return_dict = False
    assert torch.equal(segment(fresh(model), pixel_values), expected)


def test_own_vocabulary_is_used_by_default(model, pixel_values, processor):
    logits = segment(model, pixel_values)
    assert logits.shape[1] == len(LABELS)
    assert torch.equal(logits, segment(model, pixel_values, input_ids=processor(text=LABELS).input_ids))
    text_embeds = model.get_text_embeds(processor(text=LABELS).input_ids)
    assert torch.equal(logits, segment(model, pixel_values, text_embeds=text_embeds))


def test_vocabulary_is_encoded_once(model, pixel_values, count_encoded_prompts):
    for _ in range(3):
        segment(model, pixel_values)
    assert count_encoded_prompts.count(len(LABELS)) == 1
    assert (
        sum(count_encoded_prompts) == len(LABELS) + 3
    )  # and one prompt a call that finds out whether anything changed


def test_nothing_is_kept_with_gradients(model, pixel_values, count_encoded_prompts):
    segment(model, pixel_values)
    del count_encoded_prompts[:]
    for _ in range(2):
        loss = model(pixel_values, sliding_window=False).logits.sum()
        loss.backward()
    assert count_encoded_prompts == [len(LABELS)] * 2
    assert model.clip.text_model.encoder.layers[0].self_attn.q_proj.weight.grad is not None


def optimizer_step(model):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    model(torch.ones(1, 3, 96, 96), labels=torch.zeros(1, 8, 8, dtype=torch.long)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()


def load_other_weights(model):
    other = {name: value * 1.1 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.load_state_dict(other)


def change_one_weight_in_place(model):
    with torch.no_grad():
        model.clip.text_model.encoder.layers[-1].mlp.fc2.weight.mul_(1.01)


def change_data_behind_autograd(model):
    model.clip.text_model.encoder.layers[0].self_attn.v_proj.weight.data.add_(0.01)


def change_token_embedding_of_one_label(model):
    token = int(model.catseg.vocabulary.input_ids[0, 0, 6])
    model.get_input_embeddings().weight.data[token] += 1.0


def swap_weights_that_no_probe_reads(model):
    """Two numbers of a token of one label: their sum, and the longest prompt, stay the same."""
    ids = model.catseg.vocabulary.input_ids
    longest = ids[(ids == ids.max()).int().argmax(dim=-1).argmax()]
    others = ids[~torch.isin(ids, longest)]
    with torch.no_grad():
        row = model.get_input_embeddings().weight[others[0]]
        row[:2] = row[:2].flip(0)


def replace_projection(model):
    model.clip.text_projection = nn.Linear(64, 64, bias=False)


def change_order_of_weights(model):
    model.clip.text_projection.weight.data = model.clip.text_projection.weight.data.flip(0)


CHANGES = [
    optimizer_step,
    load_other_weights,
    change_one_weight_in_place,
    change_data_behind_autograd,
    change_token_embedding_of_one_label,
    swap_weights_that_no_probe_reads,
    replace_projection,
    change_order_of_weights,
    lambda model: model.to(torch.float64),
    lambda model: model.to(torch.bfloat16).to(torch.float32),
    lambda model: model.train(),
    lambda model: model.train().eval(),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_never_stale(model, pixel_values, change):
    before = segment(model, pixel_values)
    assert torch.equal(before, segment(model, pixel_values))
    change(model)
    after = segment(model, pixel_values)
    assert torch.equal(after, segment(fresh(model), pixel_values))
    if change not in CHANGES[-1:]:
        assert after.dtype != before.dtype or not torch.equal(after, before)


def test_never_stale_when_vocabularies_change(model, pixel_values, processor):
    ids = {name: processor(text=[name, "sky"]).input_ids for name in ("cat", "dog")}
    segment(model, pixel_values)
    results = {name: segment(model, pixel_values, input_ids=ids[name]) for name in ids}
    assert not torch.equal(results["cat"], results["dog"])
    assert torch.equal(results["cat"], segment(model, pixel_values, input_ids=ids["cat"]))
    model.set_vocabulary(["dog", "sky"], ids["dog"])
    assert torch.equal(results["dog"], segment(model, pixel_values))
    ids["dog"][0, 6] += 1  # the caller's own tensor, changed in place
    assert not torch.equal(results["dog"], segment(model, pixel_values, input_ids=ids["dog"]))


@pytest.mark.parametrize("change", [lambda kept: kept.zero_(), lambda kept: kept.neg_()], ids=["zeroed", "negated"])
def test_what_is_handed_out_changes_nothing(model, pixel_values, processor, change):
    ids = processor(text=LABELS).input_ids
    expected = segment(model, pixel_values)
    with torch.no_grad():
        change(model.catseg(pixel_values).text_embeds)
        change(model.catseg.encode_vocabulary())
        change(model.get_text_embeds(ids))
        model.set_vocabulary(LABELS, ids)
        ids.zero_()
    assert torch.equal(segment(model, pixel_values), expected)


def test_a_mask_changed_in_place_is_noticed(model, pixel_values, processor):
    ids = processor(text=LABELS).input_ids
    mask = torch.ones_like(ids)
    before = segment(model, pixel_values, input_ids=ids, attention_mask=mask)
    mask[:, 1] = 0
    after = segment(model, pixel_values, input_ids=ids, attention_mask=mask)
    assert not torch.equal(after, before)
    assert torch.equal(after, segment(fresh(model), pixel_values, input_ids=ids, attention_mask=mask))


def test_threads_do_not_mix_vocabularies(model, pixel_values, processor):
    from concurrent.futures import ThreadPoolExecutor

    vocabularies = [processor(text=[name, "sky"]).input_ids for name in ("cat", "dog", "horse")]
    expected = [segment(model, pixel_values, input_ids=ids) for ids in vocabularies]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda i: segment(model, pixel_values, input_ids=vocabularies[i % 3]), range(12)))
    for index, result in enumerate(results):
        assert torch.allclose(result, expected[index % 3], atol=1e-5)


def test_set_vocabulary_changes_the_config(model):
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {label: index for index, label in enumerate(LABELS)}
    assert model.config.num_labels == len(LABELS)


@pytest.mark.parametrize(
    "labels, num_prompts, message",
    [
        ([], 0, "at least one class"),
        (["cat"], 2, "1 labels and the prompts of 2"),
        (["cat", "cat"], 2, "given once.*cat"),
        ([1, "cat"], 2, r"strings, got \[1\]"),
    ],
)
def test_set_vocabulary_refuses(model, processor, labels, num_prompts, message):
    ids = processor(text=["cat", "dog"]).input_ids[:num_prompts]
    before = model.state_dict()["catseg.vocabulary.input_ids"].clone()
    with pytest.raises(ValueError, match=message):
        model.set_vocabulary(labels, ids)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert torch.equal(before, model.catseg.vocabulary.input_ids)


def test_set_vocabulary_refuses_prompts_without_an_end(model, processor):
    ids = processor(text=["cat", "dog"]).input_ids
    before = model.catseg.vocabulary.input_ids.clone()
    with pytest.raises(ValueError, match="Prompt 1 .* no end-of-text token"):
        model.set_vocabulary(["cat", "dog"], torch.stack([ids[0], torch.full_like(ids[1], 5)]))
    assert torch.equal(before, model.catseg.vocabulary.input_ids)


def test_model_without_vocabulary_says_so(original_state_dict, pixel_values):
    with pytest.raises(ValueError, match="no prompts for its own vocabulary.*set_vocabulary"):
        segment(converted_model(original_state_dict), pixel_values)


@pytest.mark.parametrize("kept", [False, True], ids=["first call", "kept features"])
def test_labels_changed_behind_the_prompts_are_noticed(model, pixel_values, kept):
    if kept:
        segment(model, pixel_values)
    model.config.id2label = {0: "dog", 1: "sofa", 2: "sky", 3: "tree"}
    with pytest.raises(ValueError, match="prompts were not made from.*set_vocabulary"):
        segment(model, pixel_values)


def test_text_embeds_do_not_depend_on_padding(model, processor):
    ids = processor(text=LABELS).input_ids
    padded = nn.functional.pad(ids, (0, 77 - ids.shape[1]))
    expected = model.get_text_embeds(ids)
    assert torch.allclose(model.get_text_embeds(padded), expected, atol=1e-6)
    assert torch.allclose(model.get_text_embeds(padded, (padded != 0).long()), expected, atol=1e-6)
    assert torch.allclose(expected.norm(dim=-1), torch.ones(4, 1))
    one_by_one = torch.cat([model.get_text_embeds(row[None]) for row in ids])
    assert torch.allclose(one_by_one, expected, atol=1e-6)


def test_prompt_without_end_of_text_is_refused(model):
    with pytest.raises(ValueError, match=r"Prompt 1 .*\[510, 3, 4\].*no end-of-text token \(511\)"):
        model.get_text_embeds(torch.tensor([[510, 3, 511], [510, 3, 4]]))

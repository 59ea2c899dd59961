"""The pretraining of the emoji world's CLIP: its losses, its optimiser, and runs that were killed."""

import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from test_emoji_world import draw_disc
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTokenizer

import pretrain_clip
from catseg_hf.errors import UserError
from catseg_hf.modeling_catseg_cost_volume import dense_image_features
from catseg_training.world.captions import PROMPT
from catseg_training.world.contrastive import ContrastivePretraining, image_embeds
from catseg_training.world.glyphs import GlyphCache
from catseg_training.world.muon import orthogonalise, orthogonalise_together
from catseg_training.world.pretraining import (
    Phase,
    PretrainingConfig,
    build_clip,
    learning_rate_factor,
    pretrain,
)
from catseg_training.world.tokenizer import load_tokenizer
from catseg_training.world.words import classes


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return load_tokenizer()


def tiny_config(num_scenes: int = 8) -> PretrainingConfig:
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    return PretrainingConfig(
        [Phase(num_scenes, 4, 16, (1, 1), (1, 1)), Phase(8, 4, 32, (1, 2), (1, 1))],
        vision={**tower, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
        text={**tower, "num_hidden_layers": 1},
        projection_dim=16,
        warmup_steps=1,
        decay_steps=2,
    )


def steps_of(folder: Path) -> list[int]:
    """The steps after which a run was validated."""
    return [json.loads(line)["step"] for line in (folder / "pretraining_log.jsonl").read_text().splitlines()]


@pytest.fixture
def run():
    def run_pretraining(folder, config=None, **options):
        try:
            pretrain(
                config or tiny_config(),
                folder,
                GlyphCache(draw_disc),
                **{
                    "save_steps": 2,
                    "validation_steps": 3,
                    "num_validation_scenes": 2,
                    "log": lambda line: None,
                    **options,
                },
            )
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()

    return run_pretraining


def test_tokenizer(tokenizer):
    for word in (*classes(), "a word that it never saw, naïve 漢字"):
        ids = tokenizer(PROMPT.format(word)).input_ids
        assert len(ids) <= 77 and ids.count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") != ""
    lengths = [len(tokenizer(word).input_ids) - 2 for word in classes()]
    assert max(lengths) <= 2  # one token for each part of a name


def test_embeds_are_those_of_clip_and_catseg(tokenizer):
    clip = build_clip(tiny_config(), tokenizer).eval()
    pixel_values = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for corner in (None, (0, 0)):
        class_embeds, patch_embeds = image_embeds(clip, pixel_values, corner)
        torch.testing.assert_close(class_embeds, clip.get_image_features(pixel_values).pooler_output)
        torch.testing.assert_close(patch_embeds, dense_image_features(clip, pixel_values, ())[0].flatten(1, 2))


@pytest.fixture
def word_ids(tokenizer):
    return tokenizer(list(classes()), padding=True, return_tensors="pt").input_ids


@pytest.fixture
def batch(tokenizer):
    """Two images, the words of whose captions are {3, 4, 7} and {4}: the second caption describes both."""
    caption_words = torch.zeros(2, len(classes()), dtype=torch.bool)
    caption_words[0, [3, 4, 7]] = caption_words[1, 4] = True
    return {
        "pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        "caption_ids": tokenizer(["a cat on grass", "a dog on sand"], padding=True, return_tensors="pt").input_ids,
        "caption_words": caption_words,
    }


@pytest.fixture
def losses(tokenizer, word_ids, batch):
    """Losses of two images, by the options of `ContrastivePretraining`."""
    return lambda **options: ContrastivePretraining(build_clip(tiny_config(), tokenizer), word_ids, **options)(**batch)


@torch.no_grad()
def literal_losses(clip: CLIPModel, word_ids: torch.Tensor, batch: dict[str, torch.Tensor], scale: float) -> dict:
    """Each loss as a loop over what it averages."""

    def log_probabilities(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return (scale * normalize(queries, dim=-1) @ normalize(keys, dim=-1).T).log_softmax(dim=-1)

    images = clip.get_image_features(batch["pixel_values"]).pooler_output
    patches = dense_image_features(clip, batch["pixel_values"], ())[0].flatten(1, 2)
    captions = clip.get_text_features(batch["caption_ids"]).pooler_output
    words = clip.get_text_features(word_ids).pooler_output
    named = [row.nonzero().flatten().tolist() for row in batch["caption_words"]]

    of_captions, of_images = log_probabilities(images, captions), log_probabilities(captions, images)
    contrastive = [
        *(-of_captions[i, [j for j in (0, 1) if set(named[j]) <= set(named[i])]].mean() for i in (0, 1)),
        *(-of_images[j, [i for i in (0, 1) if set(named[j]) <= set(named[i])]].mean() for j in (0, 1)),
    ]
    of_words = log_probabilities(images, words)
    word = [-of_words[i, named[i]].mean() for i in (0, 1)]
    of_patches = log_probabilities(patches, words)
    purity = [-patch[named[i]].exp().sum().log() for i in (0, 1) for patch in of_patches[i]]
    presence = [-of_patches[i, :, k].sort().values[-4:].mean() for i in (0, 1) for k in named[i]]
    means = {"contrastive": contrastive, "word": word, "purity": purity, "presence": presence}
    return {name: torch.stack(values).mean() for name, values in means.items()}


@pytest.mark.parametrize("logit_scale, scale", [(20, 20), (150, 100)])
def test_losses(tokenizer, word_ids, batch, logit_scale, scale):
    clip = build_clip(tiny_config(), tokenizer).eval()
    clip.logit_scale.data = torch.tensor(float(logit_scale)).log()
    losses = ContrastivePretraining(clip, word_ids, patch_weight=0.5)(**batch)
    expected = literal_losses(clip, word_ids, batch, scale)
    expected["loss"] = expected["contrastive"] + expected["word"] + (expected["purity"] + expected["presence"]) / 2
    torch.testing.assert_close(losses, expected)


def test_plain_clip_leaves_the_patches_alone(losses):
    plain, weak = losses(patch_weight=0.0), losses()
    assert set(plain) == {"loss", "contrastive"} and plain["loss"] == plain["contrastive"]
    assert weak["loss"] > plain["loss"] and weak["purity"] > 0 and weak["presence"] > 0


def test_bfloat16_is_for_the_image_tower_only(losses, monkeypatch):
    attention, dtypes = torch.nn.functional.scaled_dot_product_attention, []

    def record(query, *args, **kwargs):
        dtypes.append(query.dtype)
        return attention(query, *args, **kwargs)

    exact = losses()
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    rounded = losses(bfloat16=True)
    # The image tower's first block, its last, in which only the class token attends, and the texts, twice.
    assert dtypes == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
    for name, loss in exact.items():
        assert loss != rounded[name]
        torch.testing.assert_close(rounded[name], loss, rtol=1e-2, atol=0)


def test_learning_rates_rise_stay_and_fall():
    config = PretrainingConfig([], warmup_steps=4, decay_steps=5)
    factors = [learning_rate_factor(step, 20, config) for step in range(20)]
    assert factors == pytest.approx([0.25, 0.5, 0.75] + [1] * 13 + [0.8, 0.6, 0.4, 0.2])


def test_learning_rates_are_those_of_the_step(run, tmp_path, monkeypatch):
    rates = []

    def record(optimizer, step=torch.optim.AdamW.step):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    run(tmp_path, replace(tiny_config(16), learning_rate=0.1))
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.1, 0.05])


def test_muon_orthogonalises():
    matrices = torch.randn(3, 24, 16, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices, num_steps=8))
    assert values.min() > 0.6 and values.max() < 1.3


def test_processes_share_the_matrices(monkeypatch):
    """More processes than matrices: each has one of them, or of their copies."""
    matrices = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    gathered = {}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    for rank in [*range(8), 0]:

        def all_gather(results, part, rank=rank):
            gathered[rank] = part
            for result, other in zip(results, gathered.values(), strict=False):
                result.copy_(other)

        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
        result = orthogonalise_together(matrices)
    assert len(gathered) == 8 and all(len(part) == 1 for part in gathered.values())
    torch.testing.assert_close(result, orthogonalise(matrices))


@pytest.mark.slow
def test_short_pretraining(run, tmp_path):
    """A CLIP with random weights learns words from captions; its arg max by chance is right for one pixel in 135."""
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "hidden_act": "relu"}
    config = PretrainingConfig(
        [Phase(12_800, 64, 32, (1, 3), (1, 1))],
        vision={**tower, "num_hidden_layers": 3, "image_size": 32, "patch_size": 4},
        text={**tower, "num_hidden_layers": 1},
        projection_dim=64,
        decay_steps=60,
    )
    lines = []
    run(tmp_path, config, save_steps=200, validation_steps=200, num_validation_scenes=64, log=lines.append)
    scores = json.loads(lines[-1])
    assert scores["seen_miou"] > 0.08 and scores["unseen_miou"] > 0.08 and scores["retrieval_accuracy"] > 0.3, scores


def test_a_killed_run_ends_with_the_same_weights(run, tmp_path):
    class Killed(Exception):
        pass

    def kill(line: str):
        raise Killed

    run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", log=kill)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    (tmp_path / "killed" / "pretraining_log.jsonl").write_text('{"step": 2}\n{"step": 3}\n')  # one was not saved
    run(tmp_path / "killed")
    assert steps_of(tmp_path / "killed") == [2, 3, 4]
    whole, resumed = (tmp_path / name / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == resumed.read_bytes()
    CLIPModel.from_pretrained(tmp_path / "whole")
    with pytest.raises(UserError, match="holds no unfinished run"):
        run(tmp_path / "whole")


def test_a_run_that_was_killed_before_it_saved_begins_anew(run, tmp_path):
    (tmp_path / "pretraining_log.jsonl").write_text('{"step": 1}\n')
    (tmp_path / ".pretraining_state.pt.incomplete").touch()
    run(tmp_path)
    assert steps_of(tmp_path) == [3, 4]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_processes_share_a_batch(tmp_path):
    """Two processes on CPU are one run: each draws half of a batch, and one of them writes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29515"]
    folder = tmp_path / "clip"
    result = subprocess.run([*launch, __file__, str(folder)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for rank in range(2):
        assert json.loads((tmp_path / f"sizes-{rank}.json").read_text()) == [2, 2, 2, 2]
    assert steps_of(folder) == [3, 4]


def test_other_settings_do_not_continue_a_run(run, tmp_path):
    def kill(line: str):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, log=kill)
    with pytest.raises(UserError, match="other settings"):
        run(tmp_path, tiny_config(12))
    (tmp_path / "pretraining_state.pt").write_bytes(b"half")
    with pytest.raises(UserError, match="pretraining_state.pt is damaged.*remove it"):
        run(tmp_path)


def test_fewer_scenes_than_a_batch(run, tmp_path):
    with pytest.raises(UserError, match="3 scenes, fewer than its batch of 4"):
        run(tmp_path / "out", tiny_config(3))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def run_command(monkeypatch):
    monkeypatch.setattr(pretrain_clip, "EmojiFont", lambda path: draw_disc)
    yield lambda *options: pretrain_clip.main(list(map(str, options)))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_mixed_precision_rounds_the_training(run_command, tmp_path):
    fields = asdict(tiny_config())
    recipe = {name: fields[name] for name in fields if name not in ("seed", "patch_weight", "mixed_precision")}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    weights = {}
    for precision in ("no", "bf16"):
        options = ["--recipe", tmp_path / "recipe.json", "--mixed_precision", precision]
        assert run_command(*options, "--output_dir", tmp_path / precision) == 0
        weights[precision] = CLIPModel.from_pretrained(tmp_path / precision).visual_projection.weight
    assert weights["bf16"].dtype == torch.float32 and not weights["bf16"].equal(weights["no"])
    torch.testing.assert_close(weights["bf16"], weights["no"], rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("{}", "KeyError: 'phases'"),
        ('{"phases": [], "vison": {}}', "'vison'"),
        ('{"phases": [{"sise": 3}]}', "'sise'"),
    ],
)
def test_bad_recipes(run_command, tmp_path, recipe, message, capsys):
    (tmp_path / "recipe.json").write_text(recipe)
    assert run_command("--recipe", tmp_path / "recipe.json", "--output_dir", tmp_path / "clip") == 1
    error = capsys.readouterr().err
    assert "--recipe is no recipe" in error and message in error and "Traceback" not in error
    assert not (tmp_path / "clip").exists()


def test_no_scenes_leave_random_weights(run_command, tmp_path):
    assert run_command("--output_dir", tmp_path / "clip", "--scenes", 0) == 0
    saved = CLIPModel.from_pretrained(tmp_path / "clip")
    recipe = json.loads(pretrain_clip.RECIPE.read_text())
    recipe.pop("phases")
    initial = build_clip(PretrainingConfig([], **recipe), load_tokenizer())
    assert all(tensor.equal(saved.state_dict()[name]) for name, tensor in initial.state_dict().items())


def test_any_number_of_workers(start_method, run, tmp_path):
    for count in (0, 2):
        run(tmp_path / str(count), num_workers=count)
    alone, shared = ((tmp_path / str(count) / "model.safetensors").read_bytes() for count in (0, 2))
    assert alone == shared


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="only workers that are forked are patched")
def test_scenes_that_cannot_be_handed_over(run, tmp_path, monkeypatch):
    def refuse(tensor):
        raise RuntimeError("unable to allocate shared memory(shm)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(UserError, match=r"(?s)unable to allocate shared memory.*--dataloader_num_workers 0"):
        run(tmp_path / "clip")


def pretrain_and_tell(folder: Path):
    """A run that writes, beside its folder, how many scenes each process had at every step."""
    forward, sizes = ContrastivePretraining.forward, []

    def counting_forward(self, pixel_values, *inputs, **options):
        sizes.append(len(pixel_values))
        return forward(self, pixel_values, *inputs, **options)

    ContrastivePretraining.forward = counting_forward
    options = {"validation_steps": 3, "num_validation_scenes": 2, "log": lambda line: None}
    pretrain(tiny_config(), folder, GlyphCache(draw_disc), **options)
    (folder.parent / f"sizes-{os.environ['RANK']}.json").write_text(json.dumps(sizes))


if __name__ == "__main__":
    pretrain_and_tell(Path(sys.argv[1]))

"""Stage 1: a small CLIP learns the words of the emoji world from scenes and their captions."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from catseg_hf.errors import UserError, first_line
from catseg_hf.modeling_catseg_cost_volume import cost_volume, dense_image_features
from catseg_hf.utils.files import aside_of, replaced_file, replaced_together

from ..processes import build_accelerator
from ..workers import LoadedBatches, open_loader
from .captions import PROMPT
from .contrastive import ContrastivePretraining, image_embeds, text_embeds
from .glyphs import GlyphCache
from .muon import Muon
from .scenes import Scene, draw_scene
from .scoring import word_iou
from .tokenizer import load_tokenizer
from .words import classes, seen_words, unseen_words


VALIDATION_SEED = 1_000_003
STATE_FILE = "pretraining_state.pt"
HISTORY_FILE = "pretraining_log.jsonl"


@dataclass
class Phase:
    """
    A part of the curriculum: so many scenes of this size and with this much in them, in batches of so many.

    Scenes smaller than CLIP's images get a part of its position embeddings, elsewhere in each batch, or (without
    `cropped_positions`) all of them resized.
    """

    num_scenes: int
    batch_size: int
    size: int
    num_things: Sequence[int]
    num_backgrounds: Sequence[int]
    cropped_positions: bool = True


@dataclass
class PretrainingConfig:
    """
    Args:
        phases: The curriculum.
        seed: Of the weights and the scenes.
        patch_weight: Weight of the patches' losses. 0 trains plain CLIP, without the loss of single words too.
        mixed_precision: `"no"` or `"bf16"`, of the image tower.
        learning_rate: AdamW's, for all but the blocks' matrices.
        muon_learning_rate: Muon's, for the blocks' matrices.
        warmup_steps, decay_steps: The first steps, in which the learning rates rise from 0, and the last, in which
            they fall to 0. Between them they stay, so that a longer curriculum begins like a shorter one.
    """

    phases: list[Phase]
    seed: int = 0
    patch_weight: float = 1.0
    mixed_precision: str = "no"
    learning_rate: float = 2e-3
    muon_learning_rate: float = 4e-3
    weight_decay: float = 0.01
    warmup_steps: int = 30
    decay_steps: int = 250
    vision: dict = field(default_factory=dict)
    text: dict = field(default_factory=dict)
    projection_dim: int = 128

    def batches(self) -> Iterator[tuple[Phase, range]]:
        """Each step's phase and its scenes' indices, in order."""
        start = 0
        for phase in self.phases:
            for _ in range(phase.num_scenes // phase.batch_size):
                yield phase, range(start, start + phase.batch_size)
                start += phase.batch_size


def build_clip(config: PretrainingConfig, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP with random weights."""
    torch.manual_seed(config.seed)
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **config.text,
    }
    clip = CLIPModel(CLIPConfig(vision_config=config.vision, text_config=text, projection_dim=config.projection_dim))
    positions = clip.vision_model.embeddings.position_embedding.weight
    side = config.vision["image_size"] // config.vision["patch_size"]
    with torch.no_grad():
        positions[1:] = 0.1 * wave_positions(side, positions.shape[1])
    return clip


def wave_positions(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of the rows and columns of a grid, `(side ** 2, width)`: patches know at once how far apart
    they are."""
    frequencies = 8.0 ** -torch.linspace(0, 1, width // 4)
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def pixel_values(images: np.ndarray) -> torch.Tensor:
    """Images `(B, H, W, 3)`, uint8, as CLIP wants them: normalised, `(B, 3, H, W)`."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels - mean) / std


class SceneBatches(Dataset):
    """One process's share of each step's scenes, drawn when asked for."""

    def __init__(
        self,
        glyphs: GlyphCache,
        tokenizer: CLIPTokenizer,
        config: PretrainingConfig,
        steps: Sequence[tuple[Phase, range]],
        share: slice,
    ):
        self._glyphs, self._tokenizer, self._seed = glyphs, tokenizer, config.seed
        self._steps, self._share, self._vision = steps, share, config.vision

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        phase, indices = self._steps[step]
        scenes = [
            draw_scene(self._glyphs, self._seed, index, phase.size, phase.num_things, phase.num_backgrounds)
            for index in indices[self._share]
        ]
        tensors = scene_tensors(scenes, self._tokenizer)
        if phase.cropped_positions:
            tensors["corner"] = self._corner(phase, indices.start)
        return tensors

    def _corner(self, phase: Phase, first_index: int) -> list[int]:
        free = (self._vision["image_size"] - phase.size) // self._vision["patch_size"]
        return np.random.default_rng([self._seed, first_index, 1]).integers(0, free + 1, 2).tolist()


def scene_tensors(scenes: Sequence[Scene], tokenizer: CLIPTokenizer) -> dict[str, torch.Tensor]:
    """What [`ContrastivePretraining`] takes."""
    class_ids = {word: index for index, word in enumerate(classes())}
    words = torch.zeros(len(scenes), len(class_ids), dtype=torch.bool)
    for row, scene in enumerate(scenes):
        words[row, [class_ids[word] for word in scene.words]] = True
    captions = tokenizer([scene.caption for scene in scenes], padding=True, return_tensors="pt")
    return {
        "pixel_values": pixel_values(np.stack([scene.image for scene in scenes])),
        "caption_ids": captions.input_ids,
        "caption_words": words,
    }


def learning_rate_factor(step: int, num_steps: int, config: PretrainingConfig) -> float:
    """What the learning rates of a step, counted from 0, are multiplied by."""
    return min(1.0, (step + 1) / config.warmup_steps, (num_steps - step) / config.decay_steps)


def build_optimizers(clip: CLIPModel, config: PretrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for all else."""
    matrices, others = [], []
    for name, parameter in clip.named_parameters():
        (matrices if ".layers." in name and parameter.ndim == 2 else others).append(parameter)
    return [
        Muon(matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay),
        torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay),
    ]


@torch.no_grad()
def validate(
    clip: CLIPModel, tokenizer: CLIPTokenizer, word_ids: torch.Tensor, scenes: Sequence[Scene]
) -> dict[str, float]:
    """
    What CLIP alone can do on scenes.

    Returns:
        `retrieval_accuracy`: how many scenes' own captions are the nearest of all. `seen_miou` and `unseen_miou`, in
        [0, 1]: of the arg max of the cost volume, resized to the label maps, over all words.
    """
    clip.eval()
    words = text_embeds(clip, word_ids)
    tensors = send_to_device(scene_tensors(scenes, tokenizer), clip.device)
    embeds, predictions = [], []
    for pixels, part in zip(tensors["pixel_values"].split(16), range(0, len(scenes), 16), strict=True):
        embeds.append(F.normalize(image_embeds(clip, pixels)[0], dim=-1))
        cost = cost_volume(dense_image_features(clip, pixels, ())[0], words[:, None])[:, 0]
        size = scenes[part].labels.shape
        predictions.append(F.interpolate(cost, size=size, mode="bilinear").argmax(dim=1).cpu().numpy())
    captions = text_embeds(clip, tensors["caption_ids"])
    nearest = (torch.cat(embeds) @ captions.T).argmax(dim=-1)
    ious = word_iou(np.concatenate(predictions), np.stack([scene.labels for scene in scenes]))
    clip.train()
    return {
        "retrieval_accuracy": (nearest.cpu() == torch.arange(len(scenes))).float().mean().item(),
        "seen_miou": float(np.nanmean([ious[word] for word in seen_words()])),
        "unseen_miou": float(np.nanmean([ious[word] for word in unseen_words()])),
    }


def pretrain(
    config: PretrainingConfig,
    output_dir: Path,
    glyphs: GlyphCache,
    save_steps: int = 100,
    validation_steps: int = 250,
    num_validation_scenes: int = 128,
    num_workers: int = 1,
    log: Callable[[str], None] = print,
):
    """
    Trains a CLIP and saves it with its tokenizer to `output_dir`. A run that was killed goes on where it last saved
    and ends with the weights that it would have had.

    Raises:
        UserError: If `output_dir` holds something other than an unfinished run of the same `config`, what it holds is
            damaged, or a phase has fewer scenes than a batch.
    """
    for phase in config.phases:
        if phase.num_scenes < phase.batch_size:
            raise UserError(
                f"A phase has {phase.num_scenes} scenes, fewer than its batch of {phase.batch_size}: give it more "
                "scenes (--scenes, or num_scenes in --recipe) or smaller batches (batch_size in --recipe)."
            )
    accelerator = build_accelerator()
    state_file = output_dir / STATE_FILE
    history = output_dir / HISTORY_FILE
    before_the_first_save = {HISTORY_FILE, aside_of(state_file).name}
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {output_dir} is a file: name a folder.")
    names = {path.name for path in output_dir.iterdir()} if output_dir.exists() else set()
    if not state_file.exists() and names - before_the_first_save:
        raise UserError(f"The folder {output_dir} exists and holds no unfinished run: name another, or remove it.")
    tokenizer = load_tokenizer()
    word_ids = tokenizer([PROMPT.format(word) for word in classes()], padding=True, return_tensors="pt").input_ids
    model = ContrastivePretraining(
        build_clip(config, tokenizer), word_ids, config.patch_weight, bfloat16=config.mixed_precision == "bf16"
    ).to(accelerator.device)
    optimizers = build_optimizers(model.clip, config)
    steps = list(config.batches())
    first_step = 0
    if state_file.exists():
        try:
            state = torch.load(state_file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{state_file} is damaged ({first_line(error)}): remove it to begin anew.") from error
        if state["config"] != json.dumps(asdict(config)):
            raise UserError(f"{output_dir} holds a run with other settings ({state['config']}): name another folder.")
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first_step = state["step"]

    share = slice(accelerator.process_index, None, accelerator.num_processes)
    dataset = SceneBatches(glyphs, tokenizer, config, steps[first_step:], share)
    loader = open_loader(dataset, num_workers, batch_size=None, prefetch_factor=4 if num_workers else None)
    prepared = accelerator.prepare_model(model)
    scenes = []
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        _write_history(history, [record for record in _read_history(history) if record["step"] <= first_step])
        size = config.vision["image_size"]
        scenes = [draw_scene(glyphs, VALIDATION_SEED, index, size) for index in range(num_validation_scenes)]
    progress = tqdm(
        LoadedBatches(loader),
        total=len(steps),
        initial=first_step,
        disable=not accelerator.is_main_process,
        mininterval=10,
    )
    for step, batch in enumerate(progress, start=first_step):
        factor = learning_rate_factor(step, len(steps), config)
        for optimizer, rate in zip(optimizers, (config.muon_learning_rate, config.learning_rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        losses = prepared(**send_to_device(batch, accelerator.device))
        accelerator.backward(losses["loss"])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        if not accelerator.is_main_process:
            continue
        if done % validation_steps == 0 or done == len(steps):
            record = {
                "step": done,
                "size": steps[step][0].size,
                **{name: loss.item() for name, loss in losses.items()},
            }
            record |= validate(model.clip, tokenizer, model.word_ids, scenes)
            log(json.dumps({name: round(value, 4) for name, value in record.items()}))
            _write_history(history, [*_read_history(history), record])
        if done % save_steps == 0 and done < len(steps):
            _save_state(state_file, done, config, model, optimizers)
    if accelerator.is_main_process:
        tokenizer.save_pretrained(output_dir)
        with replaced_together(output_dir) as folder:
            model.clip.save_pretrained(folder)
        state_file.unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def _save_state(
    path: Path,
    step: int,
    config: PretrainingConfig,
    model: ContrastivePretraining,
    optimizers: Sequence[torch.optim.Optimizer],
):
    state = {
        "step": step,
        "config": json.dumps(asdict(config)),
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    with replaced_file(path) as file:
        torch.save(state, file)


def _read_history(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _write_history(path: Path, records: Sequence[dict[str, float]]):
    with replaced_file(path) as file:
        file.write_text("".join(json.dumps(record) + "\n" for record in records))

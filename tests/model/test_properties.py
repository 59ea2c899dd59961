"""Properties of the model on random small architectures, mostly that it computes what `literal.py` spells out."""

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import CLIPConfig

from catseg_hf import CATSegConfig, CATSegForSemanticSegmentation, tensor_ops_catseg
from catseg_hf.conversion.literal import literal_logits, literal_loss, literal_sliding_window
from catseg_hf.modeling_catseg_aggregation import shifted_window_mask, window_partition, window_reverse


TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}
# The first gives every class, or row, a chunk of its own.
SMALL_CHUNK_BYTES = (1, 2**15)
TEXT_TOWER = ("catseg.clip.text_model.", "catseg.clip.text_projection.", "catseg.clip.logit_scale")

deterministic = settings(
    derandomize=True,
    deadline=None,
    max_examples=20,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass
class Case:
    """A random architecture and the sizes of its inputs."""

    config: dict[str, Any]
    vision_config: dict[str, Any]
    attn_implementation: str
    num_classes: int
    batch_size: int
    picture_size: tuple[int, int]
    dtype: torch.dtype
    seed: int

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.dtype]


@st.composite
def cases(
    draw: st.DrawFn,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64),
    max_grid: int = 12,
    max_batch: int = 3,
    cut: bool = True,
    **overrides: Any,
) -> Case:
    """Small architectures, with fewer, as many and (with `cut`) more classes than class tokens."""
    grid = draw(st.sampled_from([size for size in (4, 6, 8, 12) if size <= max_grid]))
    patch_size = draw(st.integers(2, 4))
    image_size = grid * patch_size
    num_blocks = draw(st.integers(3, 4))
    late = draw(st.integers(1, num_blocks - 2))
    num_heads = draw(st.sampled_from([1, 2, 4]))
    hidden_size = num_heads * draw(st.sampled_from([size for size in (4, 8, 12) if 8 <= size * num_heads <= 32]))
    decoder_sizes = [draw(st.sampled_from([16, 32])), draw(st.sampled_from([16, 32]))]
    poolings = st.lists(st.integers(1, 3), min_size=2, max_size=2)
    num_class_tokens = draw(st.sampled_from([4, 5, 8, 0]))
    if num_class_tokens == 0:
        num_classes = draw(st.integers(1, 10))
    else:
        fewer, more = (
            st.integers(1, num_class_tokens - 1),
            st.sampled_from([num_class_tokens + 1, num_class_tokens + 5]),
        )
        num_classes = draw(fewer | st.just(num_class_tokens) | more if cut else fewer | st.just(num_class_tokens))
    config = {
        "image_size": image_size,
        "guidance_layers": [draw(st.integers(0, late - 1)), late],
        "num_prompts": draw(st.integers(1, 3)),
        "hidden_size": hidden_size,
        "num_hidden_layers": draw(st.integers(1, 2)),
        "num_attention_heads": num_heads,
        "mlp_ratio": draw(st.sampled_from([1, 4])),
        "window_size": draw(st.sampled_from([size for size in range(2, grid + 1) if grid % size == 0])),
        "pooling_size": draw(st.just([2, 2]) | poolings),
        "eval_pooling_size": draw(st.just([1, 1]) | poolings),
        "num_class_tokens": num_class_tokens,
        "attention_type": draw(st.sampled_from(["linear", "full"])),
        "text_guidance_size": draw(st.integers(4, 12)),
        "appearance_guidance_size": draw(st.integers(4, 12)),
        "decoder_sizes": decoder_sizes,
        "decoder_guidance_channels": [draw(st.integers(2, 12)), draw(st.integers(2, 12))],
        "decoder_guidance_sizes": [draw(st.integers(1, hidden_size - 1)), draw(st.integers(1, decoder_sizes[0] - 1))],
        "class_chunk_size": draw(st.sampled_from([None, None, 1, 3])),
        **overrides,
    }
    vision_config = {
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": num_blocks,
        "num_attention_heads": draw(st.sampled_from([1, 2, 4])),
        "patch_size": patch_size,
        "image_size": patch_size * draw(st.sampled_from([grid, 3, 7])),
        "hidden_act": draw(st.sampled_from(["quick_gelu", "gelu"])),
    }
    dtype = draw(st.sampled_from(dtypes))
    # The eager attention of transformers takes its softmax in float32, whatever the model's type.
    attn_implementations = ["sdpa", "eager"] if dtype == torch.float32 else ["sdpa"]
    sides = st.just(image_size) | st.integers(image_size // 2, 2 * image_size)
    return Case(
        config=config,
        vision_config=vision_config,
        attn_implementation=draw(st.sampled_from(attn_implementations)),
        num_classes=num_classes,
        batch_size=draw(st.integers(1, max_batch)),
        picture_size=(draw(sides), draw(sides)),
        dtype=dtype,
        seed=draw(st.integers(0, 2**16)),
    )


def build_model(case: Case) -> CATSegForSemanticSegmentation:
    """The model of a case, every parameter of it random."""
    text_config = {
        "vocab_size": 32,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 8,
        "bos_token_id": 30,
        "eos_token_id": 31,
    }
    clip_config = CLIPConfig(vision_config=case.vision_config, text_config=text_config, projection_dim=12)
    config = CATSegConfig(clip_config=clip_config, id2label={0: "thing"}, **case.config)
    model = CATSegForSemanticSegmentation(config).to(case.dtype).eval()
    model.set_attn_implementation(case.attn_implementation)
    randomise(model, case.seed)
    return model


@torch.no_grad()
def randomise(model: nn.Module, seed: int):
    """Draws every parameter so that no activation grows or vanishes, and no two halves of the model are symmetric."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        is_norm = "norm" in name.split(".")[-2] if "." in name else False
        if is_norm and name.endswith("weight"):
            noise = 1 + 0.3 * noise
        elif is_norm or name.endswith("bias"):
            noise = 0.3 * noise
        elif parameter.ndim > 1 and "padding" not in name and "embedding.weight" not in name:
            noise = 1.5 * noise / parameter[0].numel() ** 0.5
        parameter.copy_(noise)


def random_inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised pixels `(B, 3, h, w)`, and text features `(T, P, D)` of norm 1."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    pixel_values = torch.randn(case.batch_size, 3, *case.picture_size, generator=generator, dtype=torch.float64)
    text_embeds = torch.randn(
        case.num_classes, case.config["num_prompts"], 12, generator=generator, dtype=torch.float64
    )
    return pixel_values.to(case.dtype), F.normalize(text_embeds, dim=-1).to(case.dtype)


def random_labels(case: Case) -> torch.Tensor:
    """Labels `(B, h, w)` of all classes and of pixels to be ignored, at a size of their own."""
    generator = torch.Generator().manual_seed(case.seed + 2)
    labels = torch.randint(-1, case.num_classes, (case.batch_size, 17, 22), generator=generator)
    return torch.where(labels < 0, 255, labels)


def segment(
    model: CATSegForSemanticSegmentation, pixel_values: torch.Tensor, text_embeds: torch.Tensor
) -> torch.Tensor:
    return model(pixel_values, text_embeds=text_embeds, sliding_window=False).logits


def assert_same(actual: torch.Tensor, expected: torch.Tensor, tolerance: float):
    """Equal within `tolerance`, for values that vary by far more than that from position to position."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert expected.flatten(2).std(dim=-1).max() > 1e-2
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@settings(deterministic, max_examples=40)
@given(case=cases(), training=st.booleans())
@torch.no_grad()
def test_logits_equal_the_literal_ones(case: Case, training: bool):
    model = build_model(case).train(training)
    pixel_values, text_embeds = random_inputs(case)
    expected = literal_logits(model, pixel_values, text_embeds)
    assert_same(segment(model, pixel_values, text_embeds), expected, case.tolerance)


@deterministic
@given(
    case=cases(max_grid=6, max_batch=2, sliding_window_size=16),
    overlap=st.sampled_from([0.333, 0.333, 0.5, 0.0]),
    views_at_once=st.sampled_from([None, 2, 5]),
    has_global_view=st.booleans(),
    chunk_bytes=st.sampled_from([2**22, *SMALL_CHUNK_BYTES]),
)
@torch.no_grad()
def test_sliding_window_equals_the_literal_one(
    case: Case, overlap: float, views_at_once: int | None, has_global_view: bool, chunk_bytes: int
):
    case.config |= {"sliding_window_overlap": overlap, "sliding_window_batch_size": views_at_once}
    model = build_model(case)
    pixel_values, text_embeds = random_inputs(case)
    global_pixel_values = None
    if has_global_view:
        global_pixel_values = F.interpolate(pixel_values.flip(-1), size=(16, 16), mode="bilinear")
    with patch.object(tensor_ops_catseg, "CPU_CHUNK_BYTES", chunk_bytes):
        logits = model(pixel_values, text_embeds=text_embeds, global_pixel_values=global_pixel_values).logits
    expected = literal_sliding_window(model, pixel_values, global_pixel_values, text_embeds)
    assert logits.isfinite().all()
    assert_same(logits.sigmoid(), expected, case.tolerance / 10)


@deterministic
@given(case=cases(cut=False), training=st.booleans(), data=st.data())
@torch.no_grad()
def test_permuted_classes_permute_the_logits(case: Case, training: bool, data: st.DataObject):
    model = build_model(case).train(training)
    pixel_values, text_embeds = random_inputs(case)
    permutation = data.draw(st.permutations(range(case.num_classes)))
    expected = segment(model, pixel_values, text_embeds)[:, permutation]
    assert_same(segment(model, pixel_values, text_embeds[permutation]), expected, case.tolerance)


@deterministic
@given(case=cases(), training=st.booleans())
@torch.no_grad()
def test_batch_equals_its_pictures_one_by_one(case: Case, training: bool):
    model = build_model(case).train(training)
    pixel_values, text_embeds = random_inputs(case)
    expected = torch.cat([segment(model, picture[None], text_embeds) for picture in pixel_values])
    assert_same(segment(model, pixel_values, text_embeds), expected, case.tolerance)


@deterministic
@given(case=cases(), training=st.booleans())
@torch.no_grad()
def test_class_chunks_change_nothing(case: Case, training: bool):
    model = build_model(case).train(training)
    pixel_values, text_embeds = random_inputs(case)
    logits = []
    for chunk_size in (None, 1, 3):
        model.config.class_chunk_size = chunk_size
        logits.append(segment(model, pixel_values, text_embeds))
    model.config.class_chunk_size = None
    for chunk_bytes in SMALL_CHUNK_BYTES:
        with patch.object(tensor_ops_catseg, "CPU_CHUNK_BYTES", chunk_bytes):
            logits.append(segment(model, pixel_values, text_embeds))
    for chunked in logits[1:]:
        assert_same(chunked, logits[0], case.tolerance)


@pytest.mark.parametrize("training", [False, True])
@deterministic
@given(case=cases(dtypes=(torch.float64,), max_grid=8, max_batch=2), recomputation=st.booleans())
def test_gradients_equal_the_literal_ones(case: Case, training: bool, recomputation: bool):
    model = build_model(case).train(training)
    if recomputation:
        model.activation_checkpointing_enable()
    pixel_values, text_embeds = random_inputs(case)
    labels = random_labels(case)
    parameters = {name: weight for name, weight in model.named_parameters() if not name.startswith(TEXT_TOWER)}

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
        values = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        return dict(zip(parameters, values, strict=True))

    expected_loss = literal_loss(literal_logits(model, pixel_values, text_embeds), labels, ignore_index=255)
    outputs = model(pixel_values, text_embeds=text_embeds, labels=labels, sliding_window=False)
    torch.testing.assert_close(outputs.loss, expected_loss, rtol=1e-9, atol=0)

    actual, expected = gradients(outputs.loss), gradients(expected_loss)
    scale = max(gradient.abs().max() for gradient in expected.values() if gradient is not None)
    assert scale > 1e-3
    for name, parameter in parameters.items():
        zeros = torch.zeros_like(parameter)
        ours, theirs = (zeros if gradients_[name] is None else gradients_[name] for gradients_ in (actual, expected))
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=float(1e-9 * scale), msg=lambda text, name=name: f"{name}: {text}"
        )

    unused = unused_parameters(case)
    assert {name for name, gradient in expected.items() if gradient is None or not gradient.any()} >= unused
    assert {name for name, gradient in actual.items() if gradient is None} <= unused


def unused_parameters(case: Case) -> set[str]:
    """Parameters that cannot matter: queries and keys of the vision tower's last block, padding if there is none."""
    last_block = f"catseg.clip.vision_model.encoder.layers.{case.vision_config['num_hidden_layers'] - 1}.self_attn"
    names = {f"{last_block}.{name}_proj.{kind}" for name in "qk" for kind in ("weight", "bias")}
    if 0 < case.config["num_class_tokens"] <= case.num_classes:
        for index in range(case.config["num_hidden_layers"]):
            block = f"catseg.aggregator.layers.{index}.class_aggregation.block"
            names |= {f"{block}.padding_token", f"{block}.padding_guidance"}
    return names


grids = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6))  # rows and columns of windows, window size


@deterministic
@given(grid=grids, batch=st.integers(1, 2), classes=st.integers(1, 3), channels=st.integers(1, 5), data=st.data())
def test_window_reverse_inverts_window_partition(
    grid: tuple[int, int, int], batch: int, classes: int, channels: int, data: st.DataObject
):
    rows, columns, window_size = grid
    height, width = rows * window_size, columns * window_size
    shift = data.draw(st.integers(0, window_size - 1))
    maps = torch.arange(batch * classes * height * width * channels).view(batch, classes, height, width, channels)
    windows = window_partition(maps, window_size, shift)
    assert windows.shape == (batch, classes, rows * columns, window_size**2, channels)
    assert window_reverse(windows, (height, width), window_size, shift).equal(maps)
    for window in range(rows * columns):
        top, left = window // columns * window_size, window % columns * window_size
        for cell in range(window_size**2):
            y, x = (top + cell // window_size + shift) % height, (left + cell % window_size + shift) % width
            assert windows[:, :, window, cell].equal(maps[:, :, y, x])


@deterministic
@given(grid=grids.filter(lambda grid: grid[2] > 1), data=st.data())
def test_shifted_window_mask_equals_its_definition(grid: tuple[int, int, int], data: st.DataObject):
    """Two positions of a shifted window see each other unless the cyclic shift has carried just one of them around an
    edge of the image. Those that do not have weights of 0, and no denormal numbers, whatever their scores."""
    rows, columns, window_size = grid
    height, width = rows * window_size, columns * window_size
    shift = data.draw(st.integers(1, window_size - 1))
    mask = shifted_window_mask((height, width), window_size, shift, like=torch.zeros(1, dtype=torch.float64))
    is_foreign = torch.zeros(rows * columns, window_size**2, window_size**2, dtype=torch.bool)
    for window in range(rows * columns):
        top, left = window // columns * window_size, window % columns * window_size
        wrapped = [
            (top + cell // window_size + shift >= height, left + cell % window_size + shift >= width)
            for cell in range(window_size**2)
        ]
        for query in range(window_size**2):
            for key in range(window_size**2):
                is_foreign[window, query, key] = wrapped[query] != wrapped[key]
    assert mask.dtype == torch.float64 and not mask[~is_foreign].any()
    assert not (mask[is_foreign] + 100).float().exp().any()

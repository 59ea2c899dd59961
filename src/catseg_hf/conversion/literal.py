"""CAT-Seg, literally: the whole model from pixels to logits as the paper and its authors' code have it, without any of
the identities that make the library fast.

This is what the library's model is compared with and timed against. It pads the class axis with real padding rows,
concatenates and repeats every guidance, keeps feature maps as `(B, C, T, H, W)`, copies them from one layout to the
next and treats all classes in whole tensors. It reads the parameters of a [`CATSegForSemanticSegmentation`]
themselves, so that gradients reach them, and joins what that model keeps split.

Letters in shapes: B images, T classes, P prompts, D CLIP's projection size, V its vision width, L its positions
(class position first), C channels of the aggregator, G channels of a guidance, N = H = W the side of the feature grid.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from ..configuration_catseg import CATSegConfig
from ..modeling_catseg import CATSegForSemanticSegmentation


Weights = dict[str, torch.Tensor]

CUT_CLASS_LOGIT = -100.0
FOREIGN_REGION = -100.0
LINEAR_ATTENTION_EPS = 1e-6


def literal_logits(
    model: CATSegForSemanticSegmentation,
    pixel_values: torch.Tensor,
    text_embeds: torch.Tensor,
    pooling: Sequence[int] | None = None,
    stages: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """
    Logits `(B, T, 4 * N, 4 * N)` of images `(B, 3, h, w)` and classes `(T, P, D)`.

    Positions are pooled by `pooling`, else by the config's size for the model's mode (training or not), before the
    class aggregation. The intermediate results are written to `stages`, if given, and freed otherwise.
    """
    config = model.config
    if pooling is None:
        pooling = config.pooling_size if model.training else config.eval_pooling_size
    weights = dict(model.named_parameters())
    clip, aggregator = submodule(weights, "catseg.clip"), submodule(weights, "catseg.aggregator")
    record = (lambda name, tensor: None) if stages is None else stages.__setitem__

    pixel_values = resize(pixel_values, (config.image_size, config.image_size))
    record("clip_input", pixel_values)
    dense_features, guidance_states = dense_image_features(clip, pixel_values, config)
    record("clip_dense_features", dense_features)
    image_features = to_map(dense_features, config.feature_size)

    text_features = text_embeds[None].repeat(len(pixel_values), 1, 1, 1)  # (B, T, P, D)
    cost = cost_volume(image_features, text_features)
    record("cost_volume", cost)
    kept = class_cut(cost, config.num_class_tokens)
    record("kept_classes", kept)
    if kept is not None:
        text_features = text_features.gather(1, kept[:, :, None, None].expand(-1, -1, *text_features.shape[2:]))
        cost = cost_volume(image_features, text_features)
    hidden_states = cost_embedding(aggregator, cost)
    record("cost_embedding", hidden_states)

    appearance = appearance_guidance(aggregator, image_features)
    record("appearance_guidance", appearance)
    text = text_guidance(aggregator, text_features)
    record("text_guidance", text)
    for index in range(config.num_hidden_layers):
        layer = submodule(aggregator, f"layers.{index}")
        hidden_states = spatial_aggregation(submodule(layer, "spatial_aggregation"), hidden_states, appearance, config)
        record(f"layer{index}_spatial", hidden_states)
        hidden_states = class_aggregation(
            submodule(layer, "class_aggregation.block"), hidden_states, text, pooling, config
        )
        record(f"layer{index}_out", hidden_states)

    decoder_weights = submodule(weights, "decoder")
    guidance = []
    for index, states in enumerate(guidance_states):
        upsampled = upsample(decoder_weights, f"guidance_upsamplers.{index}", to_map(states, config.feature_size))
        record(f"upsample{index + 1}", upsampled)
        guidance.append(decoder_guidance(decoder_weights, index, upsampled))
        record(f"decoder_guidance_{index}", guidance[-1])
    logits = decoder(decoder_weights, hidden_states, guidance)
    if kept is not None:
        logits = uncut(logits, kept, len(text_embeds))
    record("logits", logits)
    return logits


def literal_sliding_window(
    model: CATSegForSemanticSegmentation,
    pixel_values: torch.Tensor,
    global_pixel_values: torch.Tensor | None,
    text_embeds: torch.Tensor,
) -> torch.Tensor:
    """
    Probabilities `(B, T, 640, 640)` of images `(B, 3, h, w)`: of overlapping windows of the image at 640 x 640,
    averaged with those of a global view `(B, 3, h', w')`, or of the same images if not given.
    """
    config = model.config
    kernel = config.sliding_window_size
    stride = int(kernel * (1 - config.sliding_window_overlap))
    size = (kernel + stride, kernel + stride)
    batch_size, num_classes = len(pixel_values), len(text_embeds)
    global_view = resize(pixel_values if global_pixel_values is None else global_pixel_values, (kernel, kernel))

    windows = F.unfold(resize(pixel_values, size), kernel, stride=stride)  # (B, 3 * kernel * kernel, 4)
    num_windows = windows.shape[-1]
    windows = windows.transpose(1, 2).reshape(batch_size * num_windows, 3, kernel, kernel)
    logits = literal_logits(model, torch.cat([windows, global_view]), text_embeds)
    probabilities = resize(logits, (kernel, kernel)).sigmoid()
    window_probabilities, global_probabilities = probabilities.split([batch_size * num_windows, batch_size])

    columns = window_probabilities.reshape(batch_size, num_windows, num_classes * kernel**2).transpose(1, 2)
    ones = F.unfold(pixel_values.new_ones(1, 1, *size), kernel, stride=stride)
    merged = F.fold(columns, size, kernel, stride=stride) / F.fold(ones, size, kernel, stride=stride)
    return (merged + resize(global_probabilities, size)) / 2


def literal_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Binary cross-entropy of logits `(B, T, h, w)` against one-hot labels `(B, H, W)`, all 0 at `ignore_index`."""
    logits = resize(logits, labels.shape[-2:]).permute(0, 2, 3, 1)  # (B, H, W, T)
    targets = torch.zeros_like(logits)
    labelled = labels != ignore_index
    targets[labelled] = F.one_hot(labels[labelled].long(), logits.shape[-1]).to(targets.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets)


def submodule(weights: Weights, name: str) -> Weights:
    """The parameters below the module `name`, with their names in it."""
    prefix = name + "."
    return {key.removeprefix(prefix): weight for key, weight in weights.items() if key.startswith(prefix)}


def linear(weights: Weights, name: str, inputs: torch.Tensor) -> torch.Tensor:
    return F.linear(inputs, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def conv(weights: Weights, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """A convolution that keeps the size of its input."""
    weight = weights[f"{name}.weight"]
    return F.conv2d(inputs, weight, weights.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def upsample(weights: Weights, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """A transposed convolution whose stride is its kernel's size."""
    weight = weights[f"{name}.weight"]
    return F.conv_transpose2d(inputs, weight, weights[f"{name}.bias"], stride=weight.shape[-1])


def layer_norm(weights: Weights, name: str, inputs: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    return F.layer_norm(inputs, inputs.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def mlp(weights: Weights, inputs: torch.Tensor, activation: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return linear(weights, "mlp.fc2", activation(linear(weights, "mlp.fc1", inputs)))


def resize(images: torch.Tensor, size: Sequence[int], align_corners: bool = False) -> torch.Tensor:
    """Images `(B, C, h, w)` resized bilinearly, without antialiasing."""
    return F.interpolate(images, size=tuple(size), mode="bilinear", align_corners=align_corners)


def to_map(tokens: torch.Tensor, size: int) -> torch.Tensor:
    """CLIP's positions `(B, L, V)` as a feature map `(B, V, size, size)`, without the class position."""
    return tokens[:, 1:].permute(0, 2, 1).reshape(len(tokens), -1, size, size)


def split_heads(tokens: torch.Tensor, num_heads: int) -> torch.Tensor:
    """`(B, L, C)` as `(B, num_heads, L, C / num_heads)`."""
    return tokens.reshape(*tokens.shape[:2], num_heads, -1).permute(0, 2, 1, 3)


def merge_heads(tokens: torch.Tensor) -> torch.Tensor:
    """The inverse of [`split_heads`]."""
    return tokens.permute(0, 2, 1, 3).reshape(tokens.shape[0], tokens.shape[2], -1)


def quick_gelu(inputs: torch.Tensor) -> torch.Tensor:
    return inputs * torch.sigmoid(1.702 * inputs)


CLIP_ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


# Section 3.1 of the paper: dense CLIP features


def dense_image_features(
    clip: Weights, pixel_values: torch.Tensor, config: CATSegConfig
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Projected features `(B, L, D)` of every position, and the outputs `(B, L, V)` of the two guidance blocks."""
    vision_config = config.clip_config.vision_config
    vision = submodule(clip, "vision_model")
    hidden_states = clip_embeddings(submodule(vision, "embeddings"), pixel_values)
    hidden_states = layer_norm(vision, "pre_layrnorm", hidden_states, vision_config.layer_norm_eps)
    guidance_states = []
    last = vision_config.num_hidden_layers - 1
    for index in range(last):
        hidden_states = clip_block(submodule(vision, f"encoder.layers.{index}"), hidden_states, vision_config)
        if index in config.guidance_layers:
            guidance_states.append(hidden_states)
    hidden_states = dense_clip_block(submodule(vision, f"encoder.layers.{last}"), hidden_states, vision_config)
    hidden_states = layer_norm(vision, "post_layernorm", hidden_states, vision_config.layer_norm_eps)
    return linear(clip, "visual_projection", hidden_states), guidance_states


def clip_embeddings(weights: Weights, pixel_values: torch.Tensor) -> torch.Tensor:
    """Class position and patches `(B, L, V)`, with position embeddings resized to the grid of patches."""
    patch_weight = weights["patch_embedding.weight"]
    patches = F.conv2d(pixel_values, patch_weight, stride=patch_weight.shape[-1])  # (B, V, N, N)
    grid = patches.shape[-2:]
    patches = patches.flatten(2).permute(0, 2, 1)
    class_token = weights["class_embedding"].expand(len(patches), 1, -1)
    positions = resize_positions(weights["position_embedding.weight"], grid)
    return torch.cat([class_token, patches], dim=1) + positions


def resize_positions(positions: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Position embeddings `(1 + n * n, V)` for another grid: all but the class position's are resized bicubically."""
    class_position, patch_positions = positions[:1], positions[1:]
    size = round(len(patch_positions) ** 0.5)
    if (size, size) == tuple(grid):
        return positions
    maps = patch_positions.reshape(1, size, size, -1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=tuple(grid), mode="bicubic", align_corners=False)
    return torch.cat([class_position, maps[0].flatten(1).T], dim=0)


def clip_block(weights: Weights, hidden_states: torch.Tensor, vision_config) -> torch.Tensor:
    """An ordinary transformer block on `(B, L, V)`."""
    eps, num_heads = vision_config.layer_norm_eps, vision_config.num_attention_heads
    normed = layer_norm(weights, "layer_norm1", hidden_states, eps)
    query, key, value = (
        split_heads(linear(weights, f"self_attn.{name}", normed), num_heads) for name in ("q_proj", "k_proj", "v_proj")
    )
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    attended = merge_heads(scores.softmax(dim=-1) @ value)
    hidden_states = hidden_states + linear(weights, "self_attn.out_proj", attended)
    normed = layer_norm(weights, "layer_norm2", hidden_states, eps)
    return hidden_states + mlp(weights, normed, CLIP_ACTIVATIONS[vision_config.hidden_act])


def dense_clip_block(weights: Weights, hidden_states: torch.Tensor, vision_config) -> torch.Tensor:
    """The last block on `(B, L, V)`: no attention, and the class token as every position's residual."""
    eps = vision_config.layer_norm_eps
    normed = layer_norm(weights, "layer_norm1", hidden_states, eps)
    values = linear(weights, "self_attn.out_proj", linear(weights, "self_attn.v_proj", normed))
    hidden_states = values + hidden_states[:, :1]
    normed = layer_norm(weights, "layer_norm2", hidden_states, eps)
    return hidden_states + mlp(weights, normed, CLIP_ACTIVATIONS[vision_config.hidden_act])


# Section 3.2: cost volume and its embedding


def cost_volume(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """Cosine similarities `(B, P, T, N, N)` of `(B, D, N, N)` and `(B, T, P, D)`."""
    image_features = image_features / image_features.norm(dim=1, keepdim=True)
    text_features = text_features / text_features.norm(dim=-1, keepdim=True)
    return torch.einsum("bdhw,btpd->bpthw", image_features, text_features)


def class_cut(cost: torch.Tensor, num_class_tokens: int) -> torch.Tensor | None:
    """Indices `(B, num_class_tokens)` of the most similar classes of `(B, P, T, N, N)`, in no order; `None`: all."""
    if num_class_tokens == 0 or cost.shape[2] <= num_class_tokens:
        return None
    similarity = cost.permute(0, 2, 1, 3, 4).flatten(2).max(dim=-1).values
    return similarity.topk(num_class_tokens, dim=-1, sorted=False).indices


def uncut(logits: torch.Tensor, kept: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Logits of the classes `kept` `(B, S)` among those of all classes `(B, num_classes, h, w)`, the others -100."""
    batch_size, _, height, width = logits.shape
    all_logits = logits.new_full((batch_size, num_classes, height, width), CUT_CLASS_LOGIT)
    return all_logits.scatter(1, kept[:, :, None, None].expand(-1, -1, height, width), logits)


def cost_embedding(weights: Weights, cost: torch.Tensor) -> torch.Tensor:
    """`(B, C, T, N, N)` from the cost volume `(B, P, T, N, N)`: a convolution of each class's maps on their own."""
    batch_size, num_prompts, num_classes, height, width = cost.shape
    maps = cost.permute(0, 2, 1, 3, 4).reshape(batch_size * num_classes, num_prompts, height, width)
    maps = conv(weights, "cost_embedding", maps)
    return from_class_maps(maps, batch_size)


def class_maps(hidden_states: torch.Tensor) -> torch.Tensor:
    """`(B, C, T, H, W)` as `(B * T, C, H, W)`."""
    batch_size, channels, num_classes, height, width = hidden_states.shape
    return hidden_states.permute(0, 2, 1, 3, 4).reshape(batch_size * num_classes, channels, height, width)


def from_class_maps(maps: torch.Tensor, batch_size: int) -> torch.Tensor:
    """The inverse of [`class_maps`]."""
    return maps.reshape(batch_size, -1, *maps.shape[1:]).permute(0, 2, 1, 3, 4)


def appearance_guidance(weights: Weights, image_features: torch.Tensor) -> torch.Tensor:
    """`(B, G, N, N)` from dense CLIP features `(B, D, N, N)`."""
    return conv(weights, "appearance_projection", image_features).relu()


def text_guidance(weights: Weights, text_features: torch.Tensor) -> torch.Tensor:
    """`(B, T, G)` from text features `(B, T, P, D)`."""
    mean = text_features.mean(dim=2)
    return linear(weights, "text_projection", mean / mean.norm(dim=-1, keepdim=True)).relu()


# Section 3.3: spatial aggregation


def spatial_aggregation(
    weights: Weights, hidden_states: torch.Tensor, guidance: torch.Tensor, config: CATSegConfig
) -> torch.Tensor:
    """A plain and a shifted Swin block on every class's map of `(B, C, T, H, W)`, guided by `(B, G, H, W)`."""
    batch_size, _, num_classes, height, _ = hidden_states.shape
    shift = config.window_size // 2 if config.window_size < height else 0
    tokens = class_maps(hidden_states).permute(0, 2, 3, 1)  # (B * T, H, W, C)
    guidance = guidance.permute(0, 2, 3, 1)[:, None].repeat(1, num_classes, 1, 1, 1).flatten(0, 1)  # (B * T, H, W, G)
    guidance = layer_norm(weights, "guidance_norm", guidance)
    tokens = swin_block(submodule(weights, "blocks.0"), tokens, guidance, shift=0, config=config)
    tokens = swin_block(submodule(weights, "blocks.1"), tokens, guidance, shift=shift, config=config)
    return from_class_maps(tokens.permute(0, 3, 1, 2), batch_size)


def swin_block(
    weights: Weights, tokens: torch.Tensor, guidance: torch.Tensor, shift: int, config: CATSegConfig
) -> torch.Tensor:
    """Window attention and MLP on `(B, H, W, C)`, guided by `(B, H, W, G)`."""
    height, width, window_size = *tokens.shape[1:3], config.window_size
    guided = torch.cat([layer_norm(weights, "layer_norm1", tokens), guidance], dim=-1)
    mask = None
    if shift:
        guided = torch.roll(guided, shifts=(-shift, -shift), dims=(1, 2))
        mask = region_mask(height, width, window_size, shift, like=tokens)
    attended = window_attention(
        submodule(weights, "attention"), to_windows(guided, window_size), mask, tokens.shape[-1], config
    )
    attended = from_windows(attended, height, width, window_size)
    if shift:
        attended = torch.roll(attended, shifts=(shift, shift), dims=(1, 2))
    tokens = tokens + attended
    return tokens + mlp(weights, layer_norm(weights, "layer_norm2", tokens), F.gelu)


def to_windows(tokens: torch.Tensor, window_size: int) -> torch.Tensor:
    """`(B, H, W, C)` as `(B * windows, window_size ** 2, C)`."""
    batch_size, height, width, channels = tokens.shape
    tokens = tokens.view(batch_size, height // window_size, window_size, width // window_size, window_size, channels)
    return tokens.permute(0, 1, 3, 2, 4, 5).reshape(-1, window_size**2, channels)


def from_windows(windows: torch.Tensor, height: int, width: int, window_size: int) -> torch.Tensor:
    """The inverse of [`to_windows`]."""
    windows = windows.view(
        -1, height // window_size, width // window_size, window_size, window_size, windows.shape[-1]
    )
    return windows.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


def region_mask(height: int, width: int, window_size: int, shift: int, like: torch.Tensor) -> torch.Tensor:
    """`(windows, window_size ** 2, window_size ** 2)`: -100 between regions that only the shift brings together."""
    regions = like.new_zeros(1, height, width, 1)
    slices = (slice(0, -window_size), slice(-window_size, -shift), slice(-shift, None))
    count = 0
    for rows in slices:
        for columns in slices:
            regions[:, rows, columns] = count
            count += 1
    windows = to_windows(regions, window_size).squeeze(-1)
    difference = windows[:, None, :] - windows[:, :, None]
    return difference.masked_fill(difference != 0, FOREIGN_REGION)


def window_attention(
    weights: Weights, windows: torch.Tensor, mask: torch.Tensor | None, channels: int, config: CATSegConfig
) -> torch.Tensor:
    """Attention in windows `(B * windows, window_size ** 2, C + G)`: the values see the first `channels` alone."""
    num_heads = config.num_attention_heads
    query = split_heads(joined_linear(weights, "q_proj", windows), num_heads)
    key = split_heads(joined_linear(weights, "k_proj", windows), num_heads)
    value = split_heads(linear(weights, "v_proj", windows[..., :channels]), num_heads)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.view(-1, len(mask), *scores.shape[1:]) + mask[None, :, None]
        scores = scores.flatten(0, 1)
    return linear(weights, "out_proj", merge_heads(scores.softmax(dim=-1) @ value))


def joined_linear(weights: Weights, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """A linear layer of the concatenation [tokens, guidance], of which the model keeps the two halves apart."""
    weight = torch.cat([weights[f"{name}.weight"], weights[f"guidance_{name}.weight"]], dim=1)
    return F.linear(inputs, weight, weights[f"{name}.bias"])


# Section 3.3: class aggregation


def class_aggregation(
    weights: Weights, hidden_states: torch.Tensor, guidance: torch.Tensor, pooling: Sequence[int], config: CATSegConfig
) -> torch.Tensor:
    """A transformer block over the classes at every position of `(B, C, T, H, W)`, guided by `(B, T, G)`."""
    batch_size, channels, num_classes, *size = hidden_states.shape
    pooled = from_class_maps(F.avg_pool2d(class_maps(hidden_states), tuple(pooling)), batch_size)
    pooled, guidance = pad_classes(weights, pooled, guidance, config.num_class_tokens)
    *_, length, height, width = pooled.shape
    tokens = pooled.permute(0, 3, 4, 2, 1).reshape(batch_size * height * width, length, channels)
    guidance = guidance[:, None].repeat(1, height * width, 1, 1).flatten(0, 1)  # (B * H * W, T, G)
    tokens = class_block(weights, tokens, guidance, config)
    pooled = tokens.reshape(batch_size, height, width, length, channels).permute(0, 3, 4, 1, 2)
    pooled = resize(pooled.reshape(batch_size * length, channels, height, width), size, align_corners=True)
    return hidden_states + from_class_maps(pooled, batch_size)[:, :, :num_classes]


def pad_classes(
    weights: Weights, hidden_states: torch.Tensor, guidance: torch.Tensor, num_class_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(B, C, T, H, W)` and `(B, T, G)` with learned rows behind the classes, up to `num_class_tokens`."""
    batch_size, channels, num_classes, height, width = hidden_states.shape
    missing = num_class_tokens - num_classes
    if missing <= 0:
        return hidden_states, guidance
    tokens = weights["padding_token"].reshape(1, channels, 1, 1, 1).repeat(batch_size, 1, missing, height, width)
    guidance_tokens = weights["padding_guidance"].reshape(1, 1, -1).repeat(batch_size, missing, 1)
    return torch.cat([hidden_states, tokens], dim=2), torch.cat([guidance, guidance_tokens], dim=1)


def class_block(weights: Weights, tokens: torch.Tensor, guidance: torch.Tensor, config: CATSegConfig) -> torch.Tensor:
    """Attention and MLP over the classes: tokens `(B, T, C)` guided by `(B, T, G)`."""
    attention = submodule(weights, "attention")
    normed = layer_norm(weights, "layer_norm1", tokens)
    guided = torch.cat([normed, guidance], dim=-1)
    query = split_heads(joined_linear(attention, "q_proj", guided), config.num_attention_heads)
    key = split_heads(joined_linear(attention, "k_proj", guided), config.num_attention_heads)
    value = split_heads(linear(attention, "v_proj", normed), config.num_attention_heads)
    attend = linear_attention if config.attention_type == "linear" else full_attention
    tokens = tokens + merge_heads(attend(query, key, value))
    return tokens + mlp(weights, layer_norm(weights, "layer_norm2", tokens), F.relu)


def linear_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of the feature map ELU + 1, over `(B, num_heads, T, C / num_heads)`."""
    query, key = F.elu(query) + 1, F.elu(key) + 1
    length = value.shape[2]
    key_value = torch.einsum("bhsd,bhsv->bhdv", key, value / length)
    normaliser = 1 / (torch.einsum("bhld,bhd->bhl", query, key.sum(dim=2)) + LINEAR_ATTENTION_EPS)
    return torch.einsum("bhld,bhdv,bhl->bhlv", query, key_value, normaliser) * length


def full_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Softmax attention over `(B, num_heads, T, C / num_heads)`."""
    scores = torch.einsum("bhld,bhsd->bhls", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhls,bhsv->bhlv", scores.softmax(dim=-1), value)


# Section 3.4: upsampling decoder


def decoder_guidance(weights: Weights, index: int, upsampled: torch.Tensor) -> torch.Tensor:
    """`(B, G, h, w)` from CLIP features that the transposed convolution `index` brought to the stage's size."""
    return conv(weights, f"guidance_projections.{index}", upsampled).relu()


def decoder(weights: Weights, hidden_states: torch.Tensor, guidance: list[torch.Tensor]) -> torch.Tensor:
    """Logits `(B, T, 4 * H, 4 * W)` from `(B, C, T, H, W)`, guided by `(B, G, h, w)` at each stage's size."""
    batch_size = len(hidden_states)
    maps = class_maps(hidden_states)
    for index, stage_guidance in enumerate(guidance):
        maps = decoder_stage(submodule(weights, f"stages.{index}"), maps, stage_guidance)
    return from_class_maps(conv(weights, "head", maps), batch_size)[:, 0]


def decoder_stage(weights: Weights, maps: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
    """Maps `(B * T, C, h, w)` at twice their size, joined with the guidance `(B, G, 2 * h, 2 * w)`."""
    maps = upsample(weights, "upsample", maps)
    num_classes = len(maps) // len(guidance)
    guidance = guidance[:, None].repeat(1, num_classes, 1, 1, 1).flatten(0, 1)
    maps = torch.cat([maps, guidance], dim=1)
    weight = torch.cat([weights["conv1.weight"], weights["guidance_conv1.weight"]], dim=1)
    maps = group_norm(weights, "norm1", F.conv2d(maps, weight, padding=1)).relu()
    return group_norm(weights, "norm2", conv(weights, "conv2", maps)).relu()


def group_norm(weights: Weights, name: str, maps: torch.Tensor) -> torch.Tensor:
    """Normalisation in groups of 16 channels."""
    return F.group_norm(maps, maps.shape[1] // 16, weights[f"{name}.weight"], weights[f"{name}.bias"])

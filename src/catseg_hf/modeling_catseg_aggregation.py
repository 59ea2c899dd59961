"""CAT-Seg's cost aggregation, module by module in the paper's order: spatial aggregation, class aggregation.

Tokens are kept with their channels last, `(batch, classes, rows, columns, channels)`, throughout.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward

from .class_chunks_catseg import ClassChunks, split_classes
from .class_selection_catseg import ClassSelection
from .configuration_catseg import CATSegConfig
from .tracing_catseg import is_exporting


# Far enough below 0 for a softmax of exactly 0: CPUs compute slowly with the denormal numbers that -100 leaves.
FOREIGN_REGION_MASK = -1e4


def window_partition(hidden_states: torch.Tensor, window_size: int, shift: int) -> torch.Tensor:
    """`(B, T, H, W, C)`, cyclically shifted up and left, as windows `(B, T, num_windows, window_size ** 2, C)`."""
    if shift:
        hidden_states = hidden_states.roll((-shift, -shift), dims=(2, 3))
    windows = hidden_states.flatten(0, 1).unflatten(2, (-1, window_size)).unflatten(1, (-1, window_size))
    windows = windows.transpose(2, 3)  # (B * T, rows of windows, columns of windows, ...): six axes, as XNNPACK takes
    return windows.flatten(3, 4).flatten(1, 2).unflatten(0, hidden_states.shape[:2])


def window_reverse(windows: torch.Tensor, grid: tuple[int, int], window_size: int, shift: int) -> torch.Tensor:
    """The inverse of [`window_partition`] for a grid of `(H, W)`."""
    rows, columns = grid[0] // window_size, grid[1] // window_size
    hidden_states = windows.flatten(0, 1).unflatten(2, (window_size, window_size)).unflatten(1, (rows, columns))
    hidden_states = hidden_states.transpose(2, 3).flatten(3, 4).flatten(1, 2).unflatten(0, windows.shape[:2])
    return hidden_states.roll((shift, shift), dims=(2, 3)) if shift else hidden_states


def shifted_window_mask(grid: tuple[int, int], window_size: int, shift: int, like: torch.Tensor) -> torch.Tensor:
    """Additive mask `(num_windows, window_size ** 2, window_size ** 2)`: -1e4 between positions of a shifted window
    that are no neighbours in the image, 0 elsewhere."""
    height, width = grid
    rows, columns = torch.arange(height, device=like.device), torch.arange(width, device=like.device)
    row_regions = (rows >= height - window_size).int() + (rows >= height - shift).int()
    column_regions = (columns >= width - window_size).int() + (columns >= width - shift).int()
    regions = 3 * row_regions[:, None] + column_regions  # (H, W)
    regions = window_partition(regions[None, None, :, :, None], window_size, shift=0)[0, 0, :, :, 0]
    return (regions[:, None, :] != regions[:, :, None]).to(like.dtype) * FOREIGN_REGION_MASK


class CATSegMLP(nn.Module):
    def __init__(self, config: CATSegConfig, activation: nn.Module):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.hidden_size * config.mlp_ratio)
        self.activation = activation
        self.fc2 = nn.Linear(config.hidden_size * config.mlp_ratio, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class CATSegGuidedAttention(nn.Module):
    """
    Queries, keys and values of the cost volume's tokens, where queries and keys also see a guidance.

    The paper projects the concatenation of tokens and guidance. A linear layer of a concatenation is the sum of two,
    and the guidance's half is the same for every class (or every position), so that it is computed once and broadcast.
    """

    def __init__(self, config: CATSegConfig, guidance_size: int):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.guidance_q_proj = nn.Linear(guidance_size, config.hidden_size, bias=False)
        self.guidance_k_proj = nn.Linear(guidance_size, config.hidden_size, bias=False)

    def project_guidance(self, guidance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The guidance's part `(..., hidden_size)` of the queries and of the keys."""
        return self.guidance_q_proj(guidance), self.guidance_k_proj(guidance)

    def split_heads(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(..., tokens, hidden_size)` as `(..., num_heads, tokens, head_dim)`."""
        return hidden_states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-3, -2)

    def queries_keys_values(
        self, hidden_states: torch.Tensor, guidance: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Each of the shape `(..., tokens, hidden_size)` that tokens and projected guidance have."""
        guidance_queries, guidance_keys = guidance
        queries = self.q_proj(hidden_states) + guidance_queries
        keys = self.k_proj(hidden_states) + guidance_keys
        return queries, keys, self.v_proj(hidden_states)

    def softmax_attention(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scaled dot-product attention of `(batch, tokens, hidden_size)`, by the implementation that the model
        was loaded with. Returns `(batch, tokens, hidden_size)` and, if that implementation has them, the weights."""
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, weights = attention(
            self,
            self.split_heads(queries),
            self.split_heads(keys),
            self.split_heads(values),
            attention_mask,
            dropout=0.0,
            scaling=self.scaling,
            is_causal=False,
            output_attentions=output_attentions,
        )
        return attended.flatten(-2), weights


class CATSegWindowAttention(CATSegGuidedAttention):
    """Attention inside the windows of every class's map, guided by appearance (section 3.3)."""

    def __init__(self, config: CATSegConfig):
        super().__init__(config, config.appearance_guidance_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        windows: torch.Tensor,
        guidance: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Windows `(B, T, num_windows, tokens, C)`, projected guidance `(B, 1, num_windows, tokens, C)` and a mask
        `(num_windows, tokens, tokens)` between the tokens of a window."""
        batch = windows.shape[:3]
        if attention_mask is not None:
            attention_mask = attention_mask[:, None].repeat(batch[0] * batch[1], 1, 1, 1)
        queries, keys, values = (states.flatten(0, 2) for states in self.queries_keys_values(windows, guidance))
        attended, weights = self.softmax_attention(queries, keys, values, attention_mask, output_attentions)
        return self.out_proj(attended).unflatten(0, batch), None if weights is None else weights.unflatten(0, batch)


class CATSegBlock(GradientCheckpointingLayer):
    """What the transformer blocks over space and over classes share."""

    def add_feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class CATSegSpatialBlock(CATSegBlock):
    """A Swin transformer block on every class's map, its windows shifted by `shift` positions."""

    def __init__(self, config: CATSegConfig, shift: int):
        super().__init__()
        self.window_size = config.window_size
        self.shift = shift
        self.layer_norm1 = nn.LayerNorm(config.hidden_size)
        self.attention = CATSegWindowAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size)
        self.mlp = CATSegMLP(config, nn.GELU())

    def project_guidance(self, guidance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Appearance guidance `(B, H, W, appearance_guidance_size)`, projected and cut like the block's windows."""
        return self.attention.project_guidance(window_partition(guidance[:, None], self.window_size, self.shift))

    def forward(
        self,
        hidden_states: torch.Tensor,
        guidance_queries: torch.Tensor,
        guidance_keys: torch.Tensor,
        attention_mask: torch.Tensor | None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens `(B, T, H, W, C)`, what `project_guidance` gives, and a mask between the tokens of a window."""
        grid, guidance = hidden_states.shape[2:4], (guidance_queries, guidance_keys)
        windows = window_partition(self.layer_norm1(hidden_states), self.window_size, self.shift)
        attended, weights = self.attention(windows, guidance, attention_mask, output_attentions)
        hidden_states = hidden_states + window_reverse(attended, grid, self.window_size, self.shift)
        return self.add_feed_forward(hidden_states), weights


class CATSegSpatialAggregation(nn.Module):
    """Two Swin blocks, the second with shifted windows, on every class's map (section 3.3)."""

    def __init__(self, config: CATSegConfig):
        super().__init__()
        self.config = config
        # Like Swin, no shift where one window covers the whole map.
        self.shift = config.window_size // 2 if config.window_size < config.feature_size else 0
        self.guidance_norm = nn.LayerNorm(config.appearance_guidance_size)
        self.blocks = nn.ModuleList(
            [CATSegSpatialBlock(config, shift=0), CATSegSpatialBlock(config, shift=self.shift)]
        )

    def forward(
        self, hidden_states: ClassChunks, guidance: torch.Tensor, output_attentions: bool = False
    ) -> tuple[ClassChunks, torch.Tensor | None]:
        """Tokens `(B, T, H, W, C)`, which are replaced, and appearance guidance `(B, H, W, appearance_guidance_size)`.
        Returns the tokens and, if they are asked for, the attention weights of both blocks."""
        guidance = self.guidance_norm(guidance)
        plain_guidance, shifted_guidance = (block.project_guidance(guidance) for block in self.blocks)
        mask = None
        if self.shift:
            mask = shifted_window_mask(guidance.shape[1:3], self.config.window_size, self.shift, hidden_states[0])
        attentions = []

        def aggregate(tokens: torch.Tensor) -> torch.Tensor:
            tokens, plain_weights = self.blocks[0](tokens, *plain_guidance, None, output_attentions)
            tokens, shifted_weights = self.blocks[1](tokens, *shifted_guidance, mask, output_attentions)
            if output_attentions and plain_weights is not None:
                attentions.append(torch.stack([plain_weights, shifted_weights], dim=2))
            return tokens

        return hidden_states.apply_(aggregate), torch.cat(attentions, dim=1) if attentions else None


class CATSegClassAttention(CATSegGuidedAttention):
    """
    Attention over the classes at every position, guided by text (section 3.4): linear attention with the feature map
    ELU + 1, or softmax (`config.attention_type`).

    Padding tokens are all alike and their outputs are dropped, so that only one is ever projected: to linear attention
    they add a constant to its two sums, to softmax attention one key, its logit raised by the logarithm of their
    number.
    """

    def __init__(self, config: CATSegConfig):
        super().__init__(config, config.text_guidance_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        guidance: tuple[torch.Tensor, torch.Tensor],
        padding: tuple[torch.Tensor, torch.Tensor] | None,
        num_padding_tokens: int | torch.Tensor,
    ) -> torch.Tensor:
        """Tokens `(T, B, positions, C)`, projected guidance `(T, B or 1, 1, C)`, and the padding token `(1, C)` with
        its guidance `(1, text_guidance_size)`."""
        states = self.queries_keys_values(hidden_states, guidance)
        padding_key = padding_value = None
        if padding is not None:
            token, token_guidance = padding
            _, padding_key, padding_value = self.queries_keys_values(token, self.project_guidance(token_guidance))
        attend = self.linear_attention if self.config.attention_type == "linear" else self.full_attention
        queries, keys, values = (state.flatten(1, 2) for state in states)
        attended = attend(queries, keys, values, padding_key, padding_value, num_padding_tokens)
        return attended.view_as(hidden_states)

    def linear_attention(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        padding_key: torch.Tensor | None,
        padding_value: torch.Tensor | None,
        num_padding_tokens: int | torch.Tensor,
    ) -> torch.Tensor:
        """Queries, keys and values `(T, positions, C)`; those of a padding token `(1, C)`."""
        num_tokens = keys.shape[0] + num_padding_tokens
        queries = F.elu(queries).add_(1)
        keys = F.elu(keys).add_(1).div_(num_tokens)  # means instead of sums stay within half precision
        key_mean = keys.sum(dim=0)
        key_value_mean = self.heads_first(keys).transpose(-1, -2) @ self.heads_first(values)
        if padding_key is not None:
            padding_key = (F.elu(padding_key) + 1) * (num_padding_tokens / num_tokens)
            padding = self.heads_first(padding_key[None]).transpose(-1, -2) @ self.heads_first(padding_value[None])
            key_mean = key_mean + padding_key
            key_value_mean = (key_value_mean.unflatten(0, (-1, self.num_heads)) + padding).flatten(0, 1)
        normaliser = (queries * key_mean).unflatten(-1, (self.num_heads, -1)).sum(dim=-1, keepdim=True)
        queries = queries.unflatten(-1, (self.num_heads, -1)) / (normaliser + 1e-6 / num_tokens)
        attended = self.heads_first(queries.flatten(-2)) @ key_value_mean
        return attended.transpose(0, 1).reshape(values.shape)

    def full_attention(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        padding_key: torch.Tensor | None,
        padding_value: torch.Tensor | None,
        num_padding_tokens: int,
    ) -> torch.Tensor:
        """Queries, keys and values `(T, positions, C)`; those of a padding token `(1, C)`."""
        attention_mask = None
        if padding_key is not None:
            keys = torch.cat([keys, padding_key[None].expand(-1, keys.shape[1], -1)])
            values = torch.cat([values, padding_value[None].expand(-1, values.shape[1], -1)])
            attention_mask = keys.new_zeros(1, 1, 1, keys.shape[0])
            attention_mask[..., -1] = keys.new_full((), num_padding_tokens).log()
            attention_mask = attention_mask.expand(-1, -1, queries.shape[0], -1)
        queries, keys, values = (states.transpose(0, 1) for states in (queries, keys, values))
        return self.softmax_attention(queries, keys, values, attention_mask)[0].transpose(0, 1)

    def heads_first(self, states: torch.Tensor) -> torch.Tensor:
        """`(T, positions, C)` as `(positions * num_heads, T, head_dim)`, without a copy."""
        return states.unflatten(-1, (self.num_heads, self.head_dim)).flatten(1, 2).transpose(0, 1)


class CATSegClassBlock(CATSegBlock):
    """A transformer block over the classes at every position, padded with a learned token to `num_class_tokens`."""

    def __init__(self, config: CATSegConfig):
        super().__init__()
        self.num_class_tokens = config.num_class_tokens
        if self.num_class_tokens:
            self.padding_token = nn.Parameter(torch.zeros(1, config.hidden_size))
            self.padding_guidance = nn.Parameter(torch.zeros(1, config.text_guidance_size))
        self.layer_norm1 = nn.LayerNorm(config.hidden_size)
        self.attention = CATSegClassAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size)
        self.mlp = CATSegMLP(config, nn.ReLU(inplace=True))

    def forward(
        self, guidance: torch.Tensor, class_mask: torch.Tensor | None, *chunks: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Text guidance `(B or 1, T, text_guidance_size)`, which of the T are classes `(T,)` (all without), and tokens
        `(B, t, H, W, C)` of a few classes at a time."""
        queries, keys = self.attention.project_guidance(guidance.transpose(0, 1)[:, :, None])
        num_classes = sum(chunk.shape[1] for chunk in chunks)
        if class_mask is not None:
            # ELU + 1 of such a key is 0, so that linear attention sees nothing of what is no class.
            keys = keys.masked_fill(~class_mask[:, None, None, None], -torch.inf)
            num_classes = class_mask.sum()
        guidance = queries, keys
        padding, num_padding_tokens = None, 0
        if self.num_class_tokens:
            padding = self.layer_norm1(self.padding_token), self.padding_guidance
            num_padding_tokens = self.num_class_tokens - num_classes

        def attend(tokens: torch.Tensor) -> torch.Tensor:
            return self.attention(self.layer_norm1(tokens), guidance, padding, num_padding_tokens)

        numel_per_token = 3 * chunks[0].shape[-1]  # queries, keys and values
        attended = ClassChunks(chunks).across_classes(attend, numel_per_token)
        return tuple(self.add_feed_forward(chunk + update) for chunk, update in zip(chunks, attended, strict=True))


class CATSegClassAggregation(nn.Module):
    """Attention over the classes on the pooled cost volume, added back at its own resolution (section 3.4)."""

    def __init__(self, config: CATSegConfig):
        super().__init__()
        self.config = config
        self.block = CATSegClassBlock(config)

    def forward(
        self, hidden_states: ClassChunks, guidance: torch.Tensor, class_mask: torch.Tensor | None = None
    ) -> ClassChunks:
        """Tokens `(B, T, H, W, C)`, which are replaced, text guidance `(B or 1, T, text_guidance_size)`, and which of
        the T are classes `(T,)` (all without)."""
        pooling_size = tuple(self.config.pooling_size if self.training else self.config.eval_pooling_size)
        aggregated = self.block(guidance, class_mask, *[self.pool(tokens, pooling_size) for tokens in hidden_states])
        return hidden_states.apply_(lambda tokens, pooled: tokens + self.unpool(pooled, tokens.shape[2:4]), aggregated)

    @staticmethod
    def pool(hidden_states: torch.Tensor, pooling_size: tuple[int, int]) -> torch.Tensor:
        """Average pooling of every class's map; by 1 x 1 it is the identity."""
        if pooling_size == (1, 1):
            return hidden_states
        maps = hidden_states.flatten(0, 1).permute(0, 3, 1, 2)
        pooled = F.avg_pool2d(maps, pooling_size).permute(0, 2, 3, 1)
        return pooled.unflatten(0, hidden_states.shape[:2])

    @staticmethod
    def unpool(pooled: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Bilinear interpolation back to `grid`, corners aligned; the identity where nothing was pooled."""
        if pooled.shape[2:4] == grid:
            return pooled
        maps = F.interpolate(
            pooled.flatten(0, 1).permute(0, 3, 1, 2), size=tuple(grid), mode="bilinear", align_corners=True
        )
        return maps.permute(0, 2, 3, 1).unflatten(0, pooled.shape[:2])


class CATSegAggregatorLayer(nn.Module):
    """A spatial and a class aggregation. Tokens that come in one tensor, as hooks record them, leave in one."""

    def __init__(self, config: CATSegConfig):
        super().__init__()
        self.config = config
        self.spatial_aggregation = CATSegSpatialAggregation(config)
        self.class_aggregation = CATSegClassAggregation(config)

    def forward(
        self,
        hidden_states: ClassChunks | torch.Tensor,
        appearance_guidance: torch.Tensor,
        text_guidance: torch.Tensor,
        output_attentions: bool = False,
        class_mask: torch.Tensor | None = None,
    ) -> tuple[ClassChunks | torch.Tensor, torch.Tensor | None]:
        is_joined = isinstance(hidden_states, torch.Tensor)
        chunks = ClassChunks(split_classes(hidden_states, 1, self.config)) if is_joined else hidden_states
        chunks, attentions = self.spatial_aggregation(chunks, appearance_guidance, output_attentions)
        chunks = self.class_aggregation(chunks, text_guidance, class_mask)
        return chunks.join() if is_joined else chunks, attentions


class CATSegAggregator(nn.Module):
    """Embeds the cost volume and aggregates it over space and over classes (sections 3.2 to 3.4)."""

    def __init__(self, config: CATSegConfig):
        super().__init__()
        self.config = config
        embed_dim = config.clip_config.projection_dim
        self.cost_embedding = nn.Conv2d(config.num_prompts, config.hidden_size, kernel_size=7, padding=3)
        self.appearance_projection = nn.Conv2d(embed_dim, config.appearance_guidance_size, kernel_size=3, padding=1)
        self.text_projection = nn.Linear(embed_dim, config.text_guidance_size)
        self.layers = nn.ModuleList([CATSegAggregatorLayer(config) for _ in range(config.num_hidden_layers)])

    def embed_cost(self, cost: torch.Tensor) -> torch.Tensor:
        """Cost volume `(B, P, T, H, W)` to tokens `(B, T, H, W, C)`."""
        maps = cost.transpose(1, 2).flatten(0, 1)
        if not is_exporting():  # ExecuTorch does not run such copies of a single channel, and no runtime needs them
            maps = maps.contiguous(memory_format=torch.channels_last)
        return self.cost_embedding(maps).permute(0, 2, 3, 1).contiguous().unflatten(0, (cost.shape[0], -1))

    def project_appearance(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """Image features `(B, H, W, projection_dim)` to appearance guidance `(B, H, W, appearance_guidance_size)`."""
        return F.relu(self.appearance_projection(image_embeds.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    def project_text(self, text_embeds: torch.Tensor) -> torch.Tensor:
        """Text features `(..., T, P, projection_dim)` to text guidance `(..., T, text_guidance_size)`."""
        return F.relu(self.text_projection(F.normalize(text_embeds.mean(dim=-2), dim=-1)))

    def forward(
        self,
        cost: torch.Tensor,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        class_mask: torch.Tensor | None = None,
        class_selection: ClassSelection | None = None,
    ) -> torch.Tensor:
        """
        Args:
            cost (`torch.FloatTensor` of shape `(B, P, T, H, W)`): Cost volume.
            image_embeds (`torch.FloatTensor` of shape `(B, H, W, projection_dim)`): Dense image features.
            text_embeds (`torch.FloatTensor` of shape `(B or 1, T, P, projection_dim)`): Text features.
            output_hidden_states (`bool`): Whether the tokens are one tensor before and after every layer.
            output_attentions (`bool`): Whether every layer returns the spatial attention weights.
            class_mask (`torch.BoolTensor` of shape `(T,)`, *optional*): Which of the T are classes; all without.
            class_selection ([`ClassSelection`], *optional*): What leaves classes out after every layer.

        Returns:
            The tokens `(B, T, H, W, C)` of the classes that are left.
        """
        hidden_states = ClassChunks(self.embed_cost(part) for part in split_classes(cost, 2, self.config))
        if output_hidden_states:
            hidden_states = hidden_states.join()
        appearance_guidance = self.project_appearance(image_embeds)
        text_guidance = self.project_text(text_embeds)
        for index, layer in enumerate(self.layers, start=1):
            hidden_states, _ = layer(hidden_states, appearance_guidance, text_guidance, output_attentions, class_mask)
            if class_selection is not None:
                stage = "layers" if index < len(self.layers) else "decoder"
                hidden_states, text_guidance = class_selection.cut(hidden_states, text_guidance, stage)
        return hidden_states if output_hidden_states else hidden_states.join()

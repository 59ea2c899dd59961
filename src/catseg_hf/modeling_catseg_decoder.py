"""CAT-Seg's upsampling decoder. Its convolutions read the aggregation's tokens as channels-last maps."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from .class_chunks_catseg import ClassChunks, split_classes
from .configuration_catseg import CATSegConfig


class CATSegDecoderStage(nn.Module):
    """
    Doubles the resolution of every class's map, guided by CLIP features (section 3.5).

    The paper upsamples the map and convolves its concatenation with the guidance: the sum of two convolutions. The
    guidance's half is the same for every class. In the map's half, upsampling and convolution together are one
    transposed convolution, whose kernel is their response to impulses.
    """

    def __init__(self, in_channels: int, out_channels: int, guidance_size: int):
        super().__init__()
        up_channels, num_groups = in_channels - guidance_size, out_channels // 16
        self.upsample = nn.ConvTranspose2d(in_channels, up_channels, kernel_size=2, stride=2)
        self.conv1 = nn.Conv2d(up_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.guidance_conv1 = nn.Conv2d(guidance_size, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(num_groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(num_groups, out_channels)

    def upsampling_kernel(self, like: torch.Tensor) -> torch.Tensor:
        """Kernel `(in_channels, out_channels, 4, 4)` of `upsample` and `conv1` in one, at stride 2 and padding 1."""
        channels = self.upsample.in_channels
        impulses = torch.eye(channels, dtype=like.dtype, device=like.device)[:, :, None, None]
        responses = self.upsample(impulses) - self.upsample(torch.zeros_like(impulses[:1]))
        return self.conv1(F.pad(responses, (1, 1, 1, 1)))

    def project_guidance(self, guidance: torch.Tensor) -> torch.Tensor:
        """Guidance `(B, guidance_size, 2 * H, 2 * W)`, convolved, with what the upsampling's bias adds to it:
        `(B, out_channels, 2 * H, 2 * W)`."""
        height, width = guidance.shape[-2:]
        zeros = guidance.new_zeros(1, self.upsample.in_channels, height // 2, width // 2)
        return self.guidance_conv1(guidance) + self.conv1(self.upsample(zeros))

    def forward(self, hidden_states: torch.Tensor, kernel: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
        """Maps `(B * T, in_channels, H, W)`, the upsampling's kernel and projected guidance."""
        hidden_states = F.conv_transpose2d(hidden_states, kernel, stride=2, padding=1)
        hidden_states.unflatten(0, (guidance.shape[0], -1)).add_(guidance[:, None])
        hidden_states = F.relu(self.norm1(hidden_states), inplace=True)
        return F.relu(self.norm2(self.conv2(hidden_states)), inplace=True)

    def forward_coarse(self, hidden_states: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
        """
        What `forward` makes of maps that are nearly constant around every position, without upsampling them: every
        kernel is summed over its taps, the upsampling's is averaged.

        Maps `(B * T, in_channels, H, W)` and guidance `(B, guidance_size, H, W)`, not projected, to `(B * T,
        out_channels, H, W)`.
        """
        kernel, up_kernel = self.conv1.weight.sum(dim=(2, 3)), self.upsample.weight.mean(dim=(2, 3))
        weight, bias = kernel @ up_kernel.T, kernel @ self.upsample.bias
        hidden_states = F.conv2d(hidden_states, weight[:, :, None, None], bias)
        guidance = F.conv2d(guidance, self.guidance_conv1.weight.sum(dim=(2, 3), keepdim=True))
        hidden_states.unflatten(0, (guidance.shape[0], -1)).add_(guidance[:, None])
        hidden_states = F.relu(self.norm1(hidden_states), inplace=True)
        hidden_states = F.conv2d(hidden_states, self.conv2.weight.sum(dim=(2, 3), keepdim=True))
        return F.relu(self.norm2(hidden_states), inplace=True)


class CATSegDecoder(nn.Module):
    """
    Upsamples every class's map fourfold with guidance from two CLIP blocks and gives its logits (section 3.5).

    With gradient checkpointing the maps of a few classes are computed again from their tokens: those between the
    stages are larger than all that the aggregation keeps.
    """

    gradient_checkpointing = False

    def __init__(self, config: CATSegConfig):
        super().__init__()
        self.config = config
        vision_size = config.clip_config.vision_config.hidden_size
        self.guidance_upsamplers = nn.ModuleList(
            nn.ConvTranspose2d(vision_size, channels, kernel_size=scale, stride=scale)
            for channels, scale in zip(config.decoder_guidance_channels, (2, 4), strict=True)
        )
        self.guidance_projections = nn.ModuleList(
            nn.Conv2d(channels, size, kernel_size=3, padding=1)
            for channels, size in zip(config.decoder_guidance_channels, config.decoder_guidance_sizes, strict=True)
        )
        in_channels = (config.hidden_size, config.decoder_sizes[0])
        self.stages = nn.ModuleList(
            CATSegDecoderStage(*sizes)
            for sizes in zip(in_channels, config.decoder_sizes, config.decoder_guidance_sizes, strict=True)
        )
        self.head = nn.Conv2d(config.decoder_sizes[1], 1, kernel_size=3, padding=1)

    def project_guidance(self, guidance_states: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """CLIP features `(B, H, W, vision_hidden_size)` of the guidance layers to guidance `(B, size, 2 * H, 2 * W)`
        of the first stage and `(B, size, 4 * H, 4 * W)` of the second."""
        return [
            F.relu(project(upsample(states.permute(0, 3, 1, 2))))
            for states, upsample, project in zip(
                guidance_states, self.guidance_upsamplers, self.guidance_projections, strict=True
            )
        ]

    def decode(self, tokens: torch.Tensor, *kernels_and_guidance: torch.Tensor) -> torch.Tensor:
        """Tokens `(B, t, H, W, C)` of a few classes, the stages' upsampling kernels and projected guidance to logits
        `(B, t, 4 * H, 4 * W)`."""
        maps = tokens.flatten(0, 1).permute(0, 3, 1, 2)  # channels last in memory
        kernels, guidance = kernels_and_guidance[: len(self.stages)], kernels_and_guidance[len(self.stages) :]
        for stage, kernel, stage_guidance in zip(self.stages, kernels, guidance, strict=True):
            maps = stage(maps, kernel, stage_guidance)
        return self.head(maps).unflatten(0, tokens.shape[:2]).squeeze(2)

    def coarse_logits(self, chunks: ClassChunks, guidance_states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Logits `(B, T, H, W)` on the feature grid of tokens `(B, T, H, W, C)`: what `forward` would give where
        tokens and guidance hardly change from position to position, at a few per cent of the work."""
        guidance = []
        for states, upsample, project in zip(
            guidance_states, self.guidance_upsamplers, self.guidance_projections, strict=True
        ):
            kernel = upsample.weight.mean(dim=(2, 3)).T[:, :, None, None]
            maps = F.conv2d(states.permute(0, 3, 1, 2), kernel, upsample.bias)
            guidance.append(F.relu(F.conv2d(maps, project.weight.sum(dim=(2, 3), keepdim=True), project.bias)))
        head = self.head.weight.sum(dim=(2, 3), keepdim=True)
        logits = []
        for chunk in chunks:
            maps = chunk.flatten(0, 1).permute(0, 3, 1, 2)
            for stage, stage_guidance in zip(self.stages, guidance, strict=True):
                maps = stage.forward_coarse(maps, stage_guidance)
            logits.append(F.conv2d(maps, head, self.head.bias).unflatten(0, (chunk.shape[0], -1)).squeeze(2))
        return torch.cat(logits, dim=1)

    def forward(
        self,
        hidden_states: torch.Tensor | ClassChunks,
        guidance_states: tuple[torch.Tensor, ...],
        is_coarse: bool = False,
    ) -> torch.Tensor:
        """Tokens `(B, T, H, W, C)` and guidance layers' outputs to logits `(B, T, 4 * H, 4 * W)`, or tokens in chunks
        to `coarse_logits`."""
        if is_coarse:
            return self.coarse_logits(hidden_states, guidance_states)
        guidance = [
            stage.project_guidance(guidance)
            for stage, guidance in zip(self.stages, self.project_guidance(guidance_states), strict=True)
        ]
        kernels = [stage.upsampling_kernel(like=hidden_states) for stage in self.stages]
        decode = self.decode
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            decode = partial(self._gradient_checkpointing_func, self.decode)
        chunks = split_classes(hidden_states, 1, self.config)
        return torch.cat([decode(chunk, *kernels, *guidance) for chunk in chunks], dim=1)

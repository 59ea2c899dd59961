"""`max_classes_per_image="auto"`: of every view only the classes that can still win go on, which is asked at three
stages. Classes attend to one another, so that leaving some out changes the others: the result is approximate."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from .class_chunks_catseg import ClassChunks, split_classes
from .configuration_catseg import CHOOSE_MARGINS, SELECTION_STAGES, CATSegConfig
from .errors import UserError
from .tracing_catseg import traces_one_graph


SAMPLES_PER_PARAMETER = 4


def shortfalls(scores: torch.Tensor) -> torch.Tensor:
    """By how much each class misses the best one of a position, where it misses it least: `(B, T)`, at least 0, of
    scores `(B, T, H, W)`."""
    scores = scores.float()
    return (scores.amax(dim=1, keepdim=True) - scores).flatten(2).amin(dim=2)


class ClassSelection:
    """
    The classes of one view that can still win, fewer from stage to stage. The host waits for an accelerator at each.

    Args:
        config ([`CATSegConfig`]): The model's.
        margins (`Mapping[str, float]`):
            By how much a class may miss the best one at each stage, in the feature grid's position where it misses it
            least: "cost", cosine similarities before the first layer; "layers" and "decoder", logits that the decoder
            gives on the feature grid between layers and before the decoder.
        decoder (`Callable`): The [`CATSegDecoder`].

    Attributes:
        class_indices (`torch.LongTensor` of shape `(1, num_kept_classes)`): The classes that are left, ascending.
    """

    def __init__(self, config: CATSegConfig, margins: Mapping[str, float], decoder: Callable[..., torch.Tensor]):
        self.config = config
        self.margins = margins
        self.decoder = decoder
        self.class_indices: torch.LongTensor | None = None
        self._guidance_states: tuple[torch.Tensor, ...] = ()

    @torch.compiler.disable  # how many classes are left depends on values
    def start(
        self,
        cost: torch.Tensor,
        text_embeds: torch.Tensor,
        class_indices: torch.LongTensor | None,
        guidance_states: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What [`cut_classes`] gave, and the outputs of the guidance layers. Returns the cost volume and the text
        features `(1, num_kept_classes, num_prompts, projection_dim)` of the classes that are left."""
        self._guidance_states = guidance_states
        kept = self._can_win(cost.amax(dim=1), "cost")
        if class_indices is None:
            class_indices = torch.arange(len(kept), device=cost.device)[None]
        self.class_indices = class_indices[:, kept]
        return (cost, text_embeds) if kept.all() else (cost[:, :, kept], text_embeds[:, kept])

    @torch.compiler.disable
    @torch.no_grad()
    def _can_win(self, scores: torch.Tensor, stage: str) -> torch.BoolTensor:
        """Whether each class of scores `(1, T, H, W)` can: `(T,)`. All can where scores are not finite."""
        return ~(shortfalls(scores)[0] > self.margins[stage])

    @torch.compiler.disable
    def cut(self, tokens: ClassChunks, text_guidance: torch.Tensor, stage: str) -> tuple[ClassChunks, torch.Tensor]:
        """The tokens `(1, T, H, W, C)` and the text guidance `(1, T, text_guidance_size)` of the classes that are left
        at "layers" or "decoder"."""
        with torch.no_grad():
            kept = self._can_win(self.decoder(tokens, self._guidance_states, is_coarse=True), stage)
        if kept.all():
            return tokens, text_guidance
        self.class_indices = self.class_indices[:, kept]
        return ClassChunks(split_classes(tokens.select(kept), 1, self.config)), text_guidance[:, kept]


def sample_weights(model: nn.Module) -> list[float]:
    """
    A few of the weights of a [`CATSegForSemanticSegmentation`] that every training changes.

    Raises:
        UserError: If they are offloaded, where they cannot be read.
    """
    aggregator, decoder = model.catseg.aggregator, model.decoder
    parameters = [
        aggregator.cost_embedding.weight,
        aggregator.layers[-1].class_aggregation.block.layer_norm2.weight,
        decoder.stages[-1].conv2.weight,
        decoder.head.weight,
    ]
    if any(parameter.is_meta for parameter in parameters):
        raise UserError(
            "The model's weights are offloaded, so they cannot be compared with those that the margins of "
            "`max_classes_per_image='auto'` were chosen for: give a number of classes, or load the model whole."
        )
    samples = [
        parameter.detach().flatten()[:: max(1, parameter.numel() // SAMPLES_PER_PARAMETER)][:SAMPLES_PER_PARAMETER]
        for parameter in parameters
    ]
    return torch.cat([sample.to(samples[0].device).float() for sample in samples]).tolist()


def _rounding(weights: list[float]) -> float:
    """How far rounding may have moved weights, relatively: to the narrowest type that holds them, in which the model
    may have been saved and then loaded in another."""
    exact = torch.tensor(weights)
    holds = (dtype for dtype in (torch.bfloat16, torch.float16) if torch.equal(exact.to(dtype).float(), exact))
    return torch.finfo(next(holds, torch.float32)).eps


@torch.compiler.disable
def stored_margins(model: nn.Module) -> dict[str, float]:
    """
    The margins in the configuration of a [`CATSegForSemanticSegmentation`].

    Raises:
        UserError: If there are none, or they were chosen for other weights.
    """
    selection = model.config.class_selection
    if selection is None:
        raise UserError(
            "`max_classes_per_image='auto'` needs margins, and this model's configuration has none "
            f"(`class_selection`): {CHOOSE_MARGINS}, or give a number of classes."
        )
    weights, chosen_for = sample_weights(model), selection["weights"]
    eps = _rounding(weights)
    tiny = torch.finfo(torch.float16).smallest_normal * eps
    if len(weights) != len(chosen_for) or any(
        abs(weight - other) > eps * abs(other) + tiny for weight, other in zip(weights, chosen_for, strict=True)
    ):
        raise UserError(
            "The margins of `max_classes_per_image='auto'` in this model's configuration (`class_selection`) were "
            f"chosen for other weights, such as those before a training: {CHOOSE_MARGINS}, give a number of classes, "
            "or leave `max_classes_per_image` out for all of them."
        )
    return {stage: selection[stage] for stage in SELECTION_STAGES}


def check_no_graph(class_mask: torch.Tensor | None):
    """Refuses the selection in a graph, where the number of classes cannot depend on values."""
    if traces_one_graph() or class_mask is not None:
        raise UserError(
            "A single graph (an exported model, `fullgraph=True`, `class_mask`) cannot take "
            "`max_classes_per_image='auto'`, whose number of classes depends on the image: give a number, or leave it "
            "out for all of them, in the configuration too."
        )

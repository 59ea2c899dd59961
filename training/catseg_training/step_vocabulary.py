"""A vocabulary drawn anew for every training step: the classes of the batch, and others easily taken for them.

With many classes, or small models, most of a step's work goes to classes that are far from anything in its images.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from catseg_hf.errors import UserError
from catseg_hf.modeling_catseg_cost_volume import cost_volume, dense_image_features
from catseg_hf.tensor_ops_catseg import resize_bilinear


# Of the classes that are not in a batch; the others are random.
HARD_SHARE = 2 / 3


class StepVocabulary:
    """
    Chooses the classes of each batch and writes its labels in terms of them.

    Args:
        candidates (`Sequence[int]`): Ids, in the model's own vocabulary, of the classes to choose from.
        num_classes (`int`): How many are chosen; more where a batch has more.
        seed (`int`): Of the random ones, which are a pure function of it and of what `draw` is given.
        ignore_index (`int`): Label of pixels of no class.
    """

    def __init__(self, candidates: Sequence[int], num_classes: int, seed: int, ignore_index: int):
        self.candidates = np.array(sorted(candidates))
        self.num_classes = min(num_classes, len(self.candidates))
        self.seed = seed
        self.ignore_index = ignore_index

    def draw(
        self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor], key: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """
        A batch with its vocabulary.

        Args:
            model ([`CATSegForSemanticSegmentation`]): As it is at this step.
            batch (`Mapping[str, torch.Tensor]`): `pixel_values` `(B, 3, H, W)` and `labels` `(B, H, W)`, ids of the
                model's own vocabulary.
            key (`Sequence[int]`): Numbers that tell the batch from every other.

        Returns:
            The batch with `input_ids` `(num_classes, P, L)` of the chosen classes, in the order of their ids, and
            `labels` that count in it.

        Raises:
            UserError: If the labels name a class that is no candidate.
        """
        labels = batch["labels"]
        named = labels.unique().cpu().numpy()
        named = named[named != self.ignore_index]
        if stray := sorted(set(named.tolist()) - set(self.candidates.tolist())):
            names = [model.config.id2label[class_id] for class_id in stray[:5]]
            raise UserError(f"The labels name {names}, which are not in --training_vocabulary: add them to it.")
        others = np.setdiff1d(self.candidates, named)
        num_others = max(0, self.num_classes - len(named))
        by_similarity = others[np.argsort(-self._similarity(model, batch["pixel_values"], others), kind="stable")]
        hard, rest = np.split(by_similarity, [round(HARD_SHARE * num_others)])
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=tuple(key)))
        random = generator.choice(rest, num_others - len(hard), replace=False)
        chosen = np.sort(np.concatenate([named, hard, random])).astype(np.int64)

        position = torch.full((max(self.ignore_index, self.candidates.max()) + 1,), self.ignore_index)
        position[chosen] = torch.arange(len(chosen))
        input_ids = model.catseg.vocabulary.input_ids[chosen.tolist()]
        return {**batch, "input_ids": input_ids, "labels": position.to(labels.device)[labels]}

    @staticmethod
    @torch.no_grad()
    def _similarity(model: PreTrainedModel, pixel_values: torch.Tensor, class_ids: np.ndarray) -> np.ndarray:
        """The highest cosine similarity, anywhere in a batch, of each class."""
        if not len(class_ids):
            return np.empty(0)
        catseg = model.catseg
        size = (catseg.config.image_size,) * 2
        image_embeds, _ = dense_image_features(catseg.clip, resize_bilinear(pixel_values, size), ())
        text_embeds = catseg.get_text_embeds(catseg.vocabulary.input_ids[class_ids.tolist()])
        return cost_volume(image_embeds, text_embeds).amax(dim=(0, 1, 3, 4)).float().cpu().numpy()

"""Times a training step of the published recipe against one through the literal implementation.

    PYTHONPATH=training python benchmarks/training_step.py --architecture base --classes 171 --json result.json

A step is forward (the text features included), loss, backward, clipping and the optimiser's update.
"""

import argparse
import copy
from pathlib import Path

import torch

from catseg_hf import CATSegForSemanticSegmentation
from catseg_hf.conversion import literal
from catseg_training.model import recompute_activations
from measure import ARCHITECTURES, build_model, measure, random_inputs, write_result


PROMPT_LENGTH = 12
# Of the published recipe, whose groups of parameters make no difference to the time.
MAX_GRAD_NORM, LEARNING_RATE = 0.01, 2e-4


class TrainingSteps:
    """Steps on random crops and labels, through a model and through the literal implementation of it; their forward
    passes under autocast with `mixed_precision` "bf16", as accelerate has it."""

    def __init__(
        self,
        model: CATSegForSemanticSegmentation,
        num_classes: int,
        batch_size: int,
        device: str,
        mixed_precision: str = "no",
    ):
        side, text_config = model.config.image_size, model.config.clip_config.text_config
        pixel_values, _ = random_inputs(model, num_classes, side, batch_size, device)
        generator = torch.Generator().manual_seed(2)
        input_ids = torch.randint(0, text_config.vocab_size - 2, (num_classes, 77), generator=generator)
        input_ids[:, PROMPT_LENGTH - 1 :] = text_config.eos_token_id
        labels = torch.randint(0, num_classes, (batch_size, side, side), generator=generator)
        self.model = model
        self.pixel_values, self.input_ids, self.labels = pixel_values, input_ids.to(device), labels.to(device)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, LEARNING_RATE)
        device_type = torch.device(device).type
        self.autocast = torch.autocast(device_type, torch.bfloat16, enabled=mixed_precision == "bf16")

    def step(self) -> torch.Tensor:
        """A step through the model. Returns the logits."""
        with self.autocast:
            outputs = self.model(self.pixel_values, input_ids=self.input_ids, labels=self.labels)
        self._update(outputs.loss)
        return outputs.logits.detach()

    def reference_step(self) -> torch.Tensor:
        """A step through the literal implementation. Returns the logits."""
        with self.autocast:
            features = self.model.clip.get_text_features(self.input_ids).pooler_output
            text_embeds = torch.nn.functional.normalize(features, dim=-1)[:, None]
            logits = literal.literal_logits(self.model, self.pixel_values, text_embeds)
            loss = literal.literal_loss(logits, self.labels, self.model.config.semantic_loss_ignore_index)
        self._update(loss)
        return logits.detach()

    def _update(self, loss: torch.Tensor):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="base", help="released size (%(default)s)")
    parser.add_argument("--classes", type=int, default=171, help="size of the vocabulary (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=1, help="images at once (%(default)s)")
    parser.add_argument(
        "--gradient_checkpointing",
        action=argparse.BooleanOptionalAction,
        help="recompute activations in all of the model, or nowhere (default: everywhere but in CLIP)",
    )
    parser.add_argument(
        "--mixed_precision", choices=["no", "bf16"], default="no", help="of the model; the reference is float32"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="timed steps; the shortest counts (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()

    model = build_model(arguments.architecture, arguments.device).train()
    model.freeze_clip("attention")
    reference = copy.deepcopy(model)
    recompute_activations(model, arguments.gradient_checkpointing)

    steps, reference_steps = (
        TrainingSteps(trained, arguments.classes, arguments.batch_size, arguments.device, mixed_precision)
        for trained, mixed_precision in ((model, arguments.mixed_precision), (reference, "no"))
    )
    difference = (steps.step() - reference_steps.reference_step()).abs().max().item()
    seconds, peak, _ = measure(steps.step, arguments.device, arguments.repeats)
    reference_seconds, reference_peak, _ = measure(
        reference_steps.reference_step, arguments.device, max(1, arguments.repeats - 1)
    )
    case = {"case": "training step", **vars(arguments)}
    differences = {"max_abs_logit_difference": difference}
    write_result(case, (seconds, peak), (reference_seconds, reference_peak), differences)


if __name__ == "__main__":
    main()

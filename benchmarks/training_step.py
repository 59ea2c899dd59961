"""Times a training step of the published recipe against one through the literal implementation.

    python benchmarks/training_step.py --architecture base --classes 171 --json result.json

A step is forward (the text features included), loss, backward, clipping and the optimiser's update.
"""

import argparse
import copy
from pathlib import Path

import torch

import catseg_literal
from catseg_hf import CATSegForSemanticSegmentation
from measure import ARCHITECTURES, build_model, measure, random_inputs, write_result


PROMPT_LENGTH = 12
# Of the published recipe, whose groups of parameters make no difference to the time.
MAX_GRAD_NORM, LEARNING_RATE = 0.01, 2e-4


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
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="timed steps; the shortest counts (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()

    model = build_model(arguments.architecture, arguments.device).train()
    model.freeze_clip("attention")
    reference = copy.deepcopy(model)
    if arguments.gradient_checkpointing:
        model.activation_checkpointing_enable()
    elif arguments.gradient_checkpointing is False:
        model.activation_checkpointing_disable()

    side = model.config.image_size
    pixel_values, _ = random_inputs(model, arguments.classes, side, arguments.batch_size, arguments.device)
    generator = torch.Generator().manual_seed(2)
    vocab_size = model.config.clip_config.text_config.vocab_size
    input_ids = torch.randint(0, vocab_size - 2, (arguments.classes, 77), generator=generator)
    input_ids[:, PROMPT_LENGTH - 1 :] = model.config.clip_config.text_config.eos_token_id
    input_ids = input_ids.to(arguments.device)
    labels = torch.randint(0, arguments.classes, (arguments.batch_size, side, side), generator=generator)
    labels = labels.to(arguments.device)

    def update(trained: CATSegForSemanticSegmentation, optimizer: torch.optim.Optimizer, loss: torch.Tensor):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    def step(optimizer: torch.optim.Optimizer) -> torch.Tensor:
        outputs = model(pixel_values, input_ids=input_ids, labels=labels)
        update(model, optimizer, outputs.loss)
        return outputs.logits.detach()

    def reference_step(optimizer: torch.optim.Optimizer) -> torch.Tensor:
        features = reference.clip.get_text_features(input_ids).pooler_output
        text_embeds = torch.nn.functional.normalize(features, dim=-1)[:, None]
        logits = catseg_literal.literal_logits(reference, pixel_values, text_embeds)
        loss = catseg_literal.literal_loss(logits, labels, model.config.semantic_loss_ignore_index)
        update(reference, optimizer, loss)
        return logits.detach()

    optimizer, reference_optimizer = (
        torch.optim.AdamW([parameter for parameter in trained.parameters() if parameter.requires_grad], LEARNING_RATE)
        for trained in (model, reference)
    )
    difference = (step(optimizer) - reference_step(reference_optimizer)).abs().max().item()
    seconds, peak, _ = measure(lambda: step(optimizer), arguments.device, arguments.repeats)
    reference_seconds, reference_peak, _ = measure(
        lambda: reference_step(reference_optimizer), arguments.device, max(1, arguments.repeats - 1)
    )
    case = {"case": "training step", **vars(arguments)}
    differences = {"max_abs_logit_difference": difference}
    write_result(case, (seconds, peak), (reference_seconds, reference_peak), differences)


if __name__ == "__main__":
    main()

"""Times the model against a literal, unoptimised implementation of the paper (the one the tests compare with).

    python benchmarks/inference.py --architecture base --classes 171 --json result.json

The text features are given; `benchmarks/text_features.py` times them.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from catseg_hf import CATSegForSemanticSegmentation
from catseg_hf.conversion import literal
from measure import ARCHITECTURES, build_model, measure, random_inputs, write_result


def run_reference(
    model: CATSegForSemanticSegmentation, pixel_values: torch.Tensor, text_embeds: torch.Tensor, sliding_window: bool
) -> torch.Tensor:
    """The literal implementation's logits."""
    if sliding_window:
        return literal.literal_sliding_window(model, pixel_values, None, text_embeds).logit()
    return literal.literal_logits(model, pixel_values, text_embeds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="base", help="released size (%(default)s)")
    parser.add_argument("--classes", type=int, default=171, help="size of the vocabulary (%(default)s)")
    parser.add_argument("--sliding_window", action="store_true", help="a whole image instead of one crop")
    parser.add_argument("--batch_size", type=int, default=1, help="images at once (%(default)s)")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of the model; the reference is float32",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs; the shortest counts (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()

    model = build_model(arguments.architecture, arguments.device)
    config = model.config
    side = config.sliding_window_image_size if arguments.sliding_window else config.image_size
    pixel_values, text_embeds = random_inputs(model, arguments.classes, side, arguments.batch_size, arguments.device)

    with torch.inference_mode():
        reference_seconds, reference_peak, expected = measure(
            lambda: run_reference(model, pixel_values, text_embeds, arguments.sliding_window),
            arguments.device,
            max(1, arguments.repeats - 2),
        )

        model.to(getattr(torch, arguments.dtype))
        forward = torch.compile(model, fullgraph=True, dynamic=True) if arguments.compile else model
        inputs = {"text_embeds": text_embeds.to(model.dtype), "sliding_window": arguments.sliding_window}

        def run_model() -> torch.Tensor:
            return forward(pixel_values.to(model.dtype), **inputs).logits

        if arguments.compile:
            run_model()
        seconds, peak, logits = measure(run_model, arguments.device, arguments.repeats)

    size = (side, side)
    best, expected_best = (
        torch.cat([F.interpolate(one[None].sigmoid(), size=size, mode="bilinear").argmax(dim=1) for one in maps])
        for maps in (logits.float(), expected)
    )
    case = {"case": "inference", **vars(arguments)}
    differences = {
        "max_abs_logit_difference": (logits.float() - expected).abs().max().item(),
        "arg_max_agreement": (best == expected_best).float().mean().item(),
    }
    write_result(case, (seconds, peak), (reference_seconds, reference_peak), differences)


if __name__ == "__main__":
    main()

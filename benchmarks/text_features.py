"""Times the text features of a vocabulary against encoding all 77 token positions of every prompt.

python benchmarks/text_features.py --architecture base --json result.json
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from measure import ARCHITECTURES, build_model, measure, write_result


PROMPT_LENGTHS = (10, 11, 12, 13, 14)  # of COCO-Stuff's names in the published prompt


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="base", help="released size (%(default)s)")
    parser.add_argument("--classes", type=int, default=171, help="size of the vocabulary (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs; the shortest counts (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()

    model = build_model(arguments.architecture, arguments.device)
    text_config = model.config.clip_config.text_config
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(0, text_config.vocab_size - 2, (arguments.classes, 77), generator=generator)
    for index, row in enumerate(input_ids):
        row[PROMPT_LENGTHS[index % len(PROMPT_LENGTHS)] - 1 :] = text_config.eos_token_id
    input_ids = input_ids.to(arguments.device)

    def run_reference() -> torch.Tensor:
        return F.normalize(model.clip.get_text_features(input_ids).pooler_output, dim=-1)[:, None]

    with torch.inference_mode():
        reference_seconds, reference_peak, expected = measure(run_reference, arguments.device, arguments.repeats)
        seconds, peak, text_embeds = measure(
            lambda: model.get_text_embeds(input_ids), arguments.device, arguments.repeats
        )
    differences = {"max_abs_difference": (text_embeds - expected).abs().max().item()}
    case = {"case": "text features", **vars(arguments)}
    write_result(case, (seconds, peak), (reference_seconds, reference_peak), differences)


if __name__ == "__main__":
    main()

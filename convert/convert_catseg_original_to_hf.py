"""Converts an original CAT-Seg checkpoint (Cho et al., CVPR 2024) into a folder for transformers, ready for the Hub.

The two released models, downloaded from the authors' Space on the Hub:

  python convert/convert_catseg_original_to_hf.py --variant base  --output_dir catseg-base
  python convert/convert_catseg_original_to_hf.py --variant large --output_dir catseg-large

They need about 1.3 GB and 3.5 GB of disk (download and result), 1.5 GB and 4.3 GB of memory, and a minute or two of
work after the download. The architecture is read off the tensors, and the result is loaded again and compared with a
literal implementation before it appears under its name. If anything is wrong, nothing is written.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from checkpoint_files import RELEASE, VARIANTS, download_checkpoint, open_checkpoint
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from model_card import model_card
from openai_tokenizer import check_tokenizer, load_tokenizer
from original_architecture import infer_config
from original_layout import RULES, dropped_keys, original_tensors
from output_folder import built_aside, check_output_folder
from state_dict_conversion import build_model, convert_state_dict
from verification import TOLERANCE, largest_difference, literal_logits

from catseg_hf import CATSegConfig, CATSegForSemanticSegmentation, CATSegImageProcessorPil, CATSegProcessor


__all__ = ["RULES", "build_model", "convert", "convert_state_dict", "infer_config", "main"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_SHARD_SIZE = "5GB"
LICENSE = Path(__file__).resolve().parent.parent / "LICENSE"


def convert(
    checkpoint_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    config_path: str | os.PathLike | None = None,
    tokenizer: str = "openai/clip-vit-base-patch16",
    prompt_templates: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """
    Writes a checkpoint's model, processor, card and licence into a folder, and compares it with the literal
    implementation before it appears there.

    Args:
        checkpoint_path (`str`): The authors' `.pth` file, or the same as `.safetensors`.
        output_dir (`str`): The folder to write, which must not exist yet or be empty.
        config_path (`str`, *optional*): JSON of a [`CATSegConfig`]; inferred from the tensors otherwise.
        tokenizer (`str`): Hub id, folder or OpenAI's `bpe_simple_vocab_16e6.txt.gz`.
        prompt_templates (`Sequence[str]`, *optional*): The sentences the model was trained with, one for each prompt.
        dtype (`torch.dtype`): What the weights are stored in.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: If anything does not fit, in words for the user. Nothing is written then.
    """
    folder = check_output_folder(output_dir)
    say(f"Opening {checkpoint_path}")
    tensors = original_tensors(open_checkpoint(checkpoint_path))
    config = infer_config(tensors) if config_path is None else read_config(config_path)
    converted = convert_state_dict(tensors, config)
    dropped = dropped_keys(tensors)
    say(f"Used {len(tensors) - len(dropped)} of {len(tensors)} tensors for {len(converted)} parameters.")
    if dropped:
        say(f"Dropped {len(dropped)}, which follow from the architecture: {', '.join(dropped)}")
    del tensors
    converted = {name: tensor.to(dtype) for name, tensor in converted.items()}

    processor = build_processor(config, tokenizer, prompt_templates)
    labels = [config.id2label[index] for index in sorted(config.id2label)]
    input_ids = processor(text=labels).input_ids
    model = build_model(converted, config)
    del converted
    model.config.dtype = dtype
    model.set_vocabulary(labels, input_ids)
    say("Computing what the literal implementation gives for a fixed random input")
    expected = literal_logits(model) if dtype == torch.float32 else literal_logits_rounded(model)

    check_space(folder, model)
    with built_aside(folder) as aside:
        say(f"Writing {folder}")
        model.save_pretrained(aside, max_shard_size=MAX_SHARD_SIZE)
        del model
        processor.save_pretrained(aside)
        (aside / "README.md").write_text(model_card(config, folder.name), encoding="utf-8")
        if LICENSE.is_file():
            shutil.copyfile(LICENSE, aside / "LICENSE")
        else:
            say(f"The licence was not copied: {LICENSE} is not there (clone the whole repository).")
        verify(aside, expected)
    return folder

"""Converts an original CAT-Seg checkpoint (Cho et al., CVPR 2024) into a folder for transformers, ready for the Hub.

The two released models, downloaded from the authors' Space on the Hub:

  python convert/convert_catseg_original_to_hf.py --variant base  --output_dir catseg-base
  python convert/convert_catseg_original_to_hf.py --variant large --output_dir catseg-large

They need about 1.3 GB and 3.5 GB of disk (download and result), 1.3 GB and 2.5 GB of memory, and after the download
less than a minute on two cores. The architecture is read off the tensors, and the result is loaded again and compared
with a literal implementation before it appears under its name. If anything is wrong, nothing is written.
"""

import argparse
import ctypes
import gc
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError

from catseg_hf import CATSegConfig, CATSegForSemanticSegmentation, CATSegImageProcessorPil, CATSegProcessor
from catseg_hf.errors import UserError, first_line, reports_errors
from catseg_hf.files import built_aside, check_output_folder, read_json
from checkpoint_files import RELEASE, VARIANTS, download_checkpoint, open_checkpoint
from model_card import model_card
from openai_tokenizer import check_tokenizer, load_tokenizer
from original_architecture import infer_config
from original_layout import RULES, dropped_keys, original_tensors
from state_dict_conversion import build_model, convert_state_dict
from verification import TOLERANCE, largest_difference, literal_logits


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
    repo_id: str | None = None,
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
        repo_id (`str`, *optional*): What the model card calls the model; the folder's name otherwise.

    Returns:
        `Path`: The folder.

    Raises:
        UserError: If anything does not fit, in words for the user. Nothing is written then.
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

    say("Computing what the literal implementation gives for a fixed random input")
    # Weights rounded to half precision are compared in float32, so that the comparison finds errors and not rounding.
    model = build_model({name: converted.pop(name).float() for name in list(converted)}, config)
    expected = literal_logits(model)
    model.to(dtype)
    release_memory()

    labels = config.label_names
    model.set_vocabulary(labels, processor(text=labels).input_ids)
    card = model_card(config, repo_id or folder.name, model.num_parameters(), str(dtype).removeprefix("torch."))
    check_disk_space(folder, model)
    with built_aside(folder) as aside:
        say(f"Writing {folder}")
        model.save_pretrained(aside, max_shard_size=MAX_SHARD_SIZE)
        del model
        release_memory()
        processor.save_pretrained(aside)
        (aside / "README.md").write_text(card, encoding="utf-8")
        if LICENSE.is_file():
            shutil.copyfile(LICENSE, aside / "LICENSE")
        else:
            say(f"Did not copy the licence: there is no {LICENSE} (clone the whole repository).")
        verify(aside, expected)
    say(f"Wrote {folder}")
    return folder


def read_config(path: str | os.PathLike) -> CATSegConfig:
    """
    Raises:
        UserError: If the file is not the JSON of a [`CATSegConfig`].
    """
    try:
        fields = read_json(path)
        if not isinstance(fields, dict) or fields.get("model_type", "catseg") != "catseg":
            raise UserError('it must be an object, with "model_type": "catseg" if it names one')
        return CATSegConfig.from_dict(fields)
    except StrictDataclassError as error:
        reason = error.__cause__ or error
    except (OSError, TypeError, ValueError) as error:
        reason = error
    raise UserError(f"{path} is not the configuration of a CAT-Seg model: {reason}")


def build_processor(
    config: CATSegConfig, tokenizer: str, prompt_templates: Sequence[str] | None = None
) -> CATSegProcessor:
    """
    Images and prompts as a model of this configuration takes them.

    Raises:
        UserError: If the tokenizer or the templates do not fit the model.
    """
    clip_tokenizer = load_tokenizer(tokenizer)
    check_tokenizer(clip_tokenizer, config)
    image_processor = CATSegImageProcessorPil.from_model_config(config)
    processor = CATSegProcessor(image_processor, clip_tokenizer, prompt_templates)
    if len(processor.prompt_templates) != config.num_prompts:
        raise UserError(
            f"The model was trained with {config.num_prompts} prompts for each class, and there are "
            f"{len(processor.prompt_templates)}: give the sentences it was trained with (--prompt_templates)."
        )
    return processor


def check_disk_space(folder: Path, model: CATSegForSemanticSegmentation):
    """
    Raises:
        UserError: If the model is larger than what is free.
    """
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    needed, free = model.get_memory_footprint(), shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(f"{folder} needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB of the disk are free.")


def verify(folder: Path, expected: torch.Tensor | None = None):
    """
    Compares a converted folder with the literal implementation and prints the largest difference.

    Raises:
        UserError: If it exceeds the tolerance, or the folder cannot be loaded.
    """
    say("Loading the result with the Auto classes")
    try:
        difference = largest_difference(folder, expected)
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{folder} does not load as a CAT-Seg model: {first_line(error)}") from None
    say(f"Largest difference from the literal implementation: {difference:.2e} (at most {TOLERANCE:.0e} is accepted)")
    if not difference <= TOLERANCE:
        raise UserError(
            f"The converted model's logits are {difference:.2e} away from the literal implementation's, more than "
            f"{TOLERANCE:.0e}: the conversion is wrong."
        )


def push(folder: Path, repo_id: str, private: bool):
    """
    Creates a model repository on the Hub, if there is none, and uploads the folder.

    Raises:
        UserError: If that fails, with the command that tries again.
    """
    say(f"Uploading to {repo_id}")
    try:
        api = HfApi()
        api.create_repo(repo_id, private=True if private else None, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add the converted CAT-Seg model")
    except Exception as error:  # the transport's own errors, whichever HTTP library it uses
        status = f"status {error.response.status_code}: " if isinstance(error, HfHubHTTPError) else ""
        option = " --private" if private else ""
        raise UserError(
            f"Could not upload to {repo_id} ({status}{first_line(error)}). {folder} is complete: log in (`hf auth "
            f"login`, or HF_TOKEN) and try again with `hf upload {repo_id} {folder}{option}`."
        ) from None
    say(f"Uploaded to {repo_id}")


def release_memory():
    """Gives what is free back to the system: glibc keeps it, in pieces that do not fit the next model."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def say(message: str):
    print(message, flush=True)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--checkpoint_path", metavar="FILE", help="the authors' .pth file, or the same tensors as .safetensors"
    )
    source.add_argument(
        "--variant",
        choices=sorted(VARIANTS),
        help=f"download a released model from the Space {RELEASE} (or the cache)",
    )
    parser.add_argument("--output_dir", metavar="DIR", help="folder to write; it must not exist yet or be empty")
    parser.add_argument(
        "--config_path",
        metavar="JSON",
        help="a CATSegConfig's JSON, instead of reading the architecture off the tensors",
    )
    parser.add_argument(
        "--tokenizer",
        default="openai/clip-vit-base-patch16",
        metavar="NAME_OR_PATH",
        help="CLIP's tokenizer: a model on the Hub, a folder, or OpenAI's bpe_simple_vocab_16e6.txt.gz "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--prompt_templates",
        nargs="+",
        metavar="SENTENCE",
        help='the sentences with {} that the model was trained with (default: "A photo of a {} in the scene")',
    )
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), default="float32", help="of the weights (default: %(default)s)"
    )
    parser.add_argument("--push_to_hub", metavar="REPO", help="upload the folder there, once it is complete")
    parser.add_argument("--private", action="store_true", help="make that repository private when it is created")
    parser.add_argument(
        "--verify_only",
        metavar="DIR",
        help="write nothing: compare a converted folder with the literal implementation on its own weights",
    )
    options = parser.parse_args(arguments)
    if options.verify_only is None:
        if options.checkpoint_path is None and options.variant is None:
            parser.error("one of --checkpoint_path, --variant and --verify_only is required")
        if options.output_dir is None:
            parser.error("--output_dir is required")
    elif options.checkpoint_path or options.variant or options.output_dir or options.push_to_hub:
        parser.error("--verify_only stands alone: it converts nothing")
    if options.private and options.push_to_hub is None:
        parser.error("--private needs --push_to_hub")
    return options


def run(options: argparse.Namespace):
    if options.verify_only is not None:
        if not Path(options.verify_only).is_dir():
            raise UserError(f"There is no folder {options.verify_only}.")
        return verify(Path(options.verify_only))
    check_output_folder(options.output_dir)
    checkpoint_path = options.checkpoint_path
    if options.variant is not None:
        say(f"Fetching {VARIANTS[options.variant]} of the Space {RELEASE}")
        checkpoint_path = download_checkpoint(options.variant)
    folder = convert(
        checkpoint_path,
        options.output_dir,
        config_path=options.config_path,
        tokenizer=options.tokenizer,
        prompt_templates=options.prompt_templates,
        dtype=DTYPES[options.dtype],
        repo_id=options.push_to_hub,
    )
    if options.push_to_hub is not None:
        push(folder, options.push_to_hub, options.private)


@reports_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    options = parse_arguments(arguments)
    start = time.monotonic()
    run(options)
    say(f"Done in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Converts an original checkpoint into a folder for transformers, compared with a literal implementation."""

import ctypes
import gc
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError

from ..configuration_catseg import CATSegConfig
from ..errors import UserError, first_line
from ..hub.endpoint import write_endpoint_handler
from ..hub.model_cards import read_licence
from ..image_processing_catseg import CATSegImageProcessorPil
from ..modeling_catseg import CATSegForSemanticSegmentation
from ..processing_catseg import CATSegProcessor
from ..utils.files import built_aside, check_output_folder, nearest_folder, read_json
from . import TOKENIZER
from .checkpoint_files import open_checkpoint
from .model_card import model_card
from .openai_tokenizer import check_tokenizer, load_tokenizer
from .original_architecture import infer_config
from .original_layout import dropped_keys, original_tensors
from .state_dict_conversion import build_model, convert_state_dict
from .verification import TOLERANCE, largest_difference, literal_logits


MAX_SHARD_SIZE = "5GB"


def say(message: str):
    print(message, flush=True)


def convert(
    checkpoint_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    config_path: str | os.PathLike | None = None,
    tokenizer: str = TOKENIZER,
    prompt_templates: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    repo_id: str | None = None,
    endpoint_handler: bool = False,
    report: Callable[[str], None] = say,
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
        endpoint_handler (`bool`): Whether to write what an Inference Endpoint needs too.
        report (`Callable`, *optional*): Takes the lines that say what is being done; prints them by default.

    Returns:
        `Path`: The folder.

    Raises:
        UserError: If anything does not fit, in words for the user. Nothing is written then.
    """
    folder = check_output_folder(output_dir)
    report(f"Opening {checkpoint_path}")
    tensors = original_tensors(open_checkpoint(checkpoint_path))
    config = infer_config(tensors) if config_path is None else read_config(config_path)
    converted = convert_state_dict(tensors, config)
    dropped = dropped_keys(tensors)
    report(f"Used {len(tensors) - len(dropped)} of {len(tensors)} tensors for {len(converted)} parameters.")
    if dropped:
        report(f"Dropped {len(dropped)}, which follow from the architecture: {', '.join(dropped)}")
    del tensors
    converted = {name: tensor.to(dtype) for name, tensor in converted.items()}
    processor = build_processor(config, tokenizer, prompt_templates)

    report("Computing what the literal implementation gives for a fixed random input")
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
        report(f"Writing {folder}")
        model.save_pretrained(aside, max_shard_size=MAX_SHARD_SIZE)
        del model
        release_memory()
        processor.save_pretrained(aside)
        (aside / "README.md").write_text(card, encoding="utf-8")
        if (licence := read_licence()) is not None:
            (aside / "LICENSE").write_text(licence, encoding="utf-8")
        if endpoint_handler:
            write_endpoint_handler(aside)
        verify(aside, expected, report)
    report(f"Wrote {folder}")
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
    needed, free = model.get_memory_footprint(), shutil.disk_usage(nearest_folder(folder)).free
    if needed > free:
        raise UserError(f"{folder} needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB of the disk are free.")


def verify(folder: Path, expected: torch.Tensor | None = None, report: Callable[[str], None] = say):
    """
    Compares a converted folder with the literal implementation and reports the largest difference.

    Raises:
        UserError: If it exceeds the tolerance, or the folder cannot be loaded.
    """
    report("Loading the result with the Auto classes")
    try:
        difference = largest_difference(folder, expected)
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{folder} does not load as a CAT-Seg model: {first_line(error)}") from None
    report(
        f"Largest difference from the literal implementation: {difference:.2e} (at most {TOLERANCE:.0e} is accepted)"
    )
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

"""Uploads a trained model to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from catseg_hf.errors import UserError, first_line

from ..lora import ADAPTER


# What is uploaded: the model with its code and processor, its card and its results. Anything else that lies in the
# folder, such as checkpoints, logs and the state that a run continues from, is the user's own.
PUBLISHED = (
    "*.py",
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "README.md",
    "LICENSE",
    "all_results.json",
    "per_class_iou.*",
    "predictions.png",
    "training_curves.png",
)
PUBLISHED_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def create_repository(name: str, private: bool, token: str | None) -> str:
    """
    Makes sure, before anything is trained, that there is a repository to upload to.

    Args:
        name (`str`): `owner/name`, or a name in the account of the token.
        private (`bool`): Whether to make it private if it is new.
        token (`str`, *optional*): The one that is logged in if not given.

    Returns:
        `str`: Its full name.

    Raises:
        UserError: If that fails.
    """
    try:
        return HfApi(token=token).create_repo(name, private=True if private else None, exist_ok=True).repo_id
    except Exception as error:  # the transport's own errors, whichever HTTP library it uses
        raise UserError(
            f"There is no writing to {name} on the Hub ({_reason(error)}): log in (`hf auth login`, --hub_token or "
            "HF_TOKEN), choose another --hub_model_id, or leave --push_to_hub out."
        ) from None


def published_files(folder: Path) -> list[str]:
    """The files of a run's folder that are uploaded, by their names in it."""
    files = [path for pattern in PUBLISHED for path in folder.glob(pattern)]
    files += [folder / ADAPTER / name for name in PUBLISHED_ADAPTER]
    return sorted(str(path.relative_to(folder)) for path in files if path.is_file())


def upload(folder: Path, name: str, token: str | None) -> str:
    """
    Uploads the model in a run's folder.

    Args:
        folder (`Path`): The run's folder.
        name (`str`): The repository, see [`create_repository`].
        token (`str`, *optional*): The one that is logged in if not given.

    Returns:
        `str`: The address of the commit.

    Raises:
        UserError: If that fails, with the command that tries again.
    """
    try:
        commit = HfApi(token=token).upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=published_files(folder),
            commit_message="Add the trained model",
        )
    except Exception as error:
        raise UserError(
            f"Could not upload to {name} ({_reason(error)}). {folder} is complete: the same command with "
            "--resume_from_checkpoint latest tries again and trains nothing."
        ) from None
    return commit.commit_url


def _reason(error: Exception) -> str:
    line = first_line(error)
    return f"status {error.response.status_code}: {line}" if isinstance(error, HfHubHTTPError) else line

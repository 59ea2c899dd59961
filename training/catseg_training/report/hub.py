"""Uploads a trained model to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError


# What is not part of the model: checkpoints, what is half-written, the trackers' logs.
NOT_UPLOADED = ["checkpoint-*", "checkpoint-*/**", ".*", ".*/**", "logs/**"]


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
        ValueError: If that fails.
    """
    try:
        return HfApi(token=token).create_repo(name, private=True if private else None, exist_ok=True).repo_id
    except Exception as error:  # the transport's own errors, whichever HTTP library it uses
        raise ValueError(
            f"There is no writing to {name} on the Hub ({_reason(error)}): log in (`hf auth login`, --hub_token or "
            "HF_TOKEN), choose another --hub_model_id, or leave --push_to_hub out."
        ) from None


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
        ValueError: If that fails, with the command that tries again.
    """
    try:
        commit = HfApi(token=token).upload_folder(
            repo_id=name, folder_path=folder, ignore_patterns=NOT_UPLOADED, commit_message="Add the trained model"
        )
    except Exception as error:
        raise ValueError(
            f"Could not upload to {name} ({_reason(error)}). {folder} is complete: try again with `hf upload {name} "
            f'{folder} --exclude "checkpoint-*" ".*" "logs/*"`.'
        ) from None
    return commit.commit_url


def _reason(error: Exception) -> str:
    line = next(iter(str(error).strip().split("\n")), "") or type(error).__name__
    return f"status {error.response.status_code}: {line}" if isinstance(error, HfHubHTTPError) else line

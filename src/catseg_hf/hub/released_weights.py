"""The checkpoints that the authors released."""

from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from ..errors import UserError, first_line


RELEASE = "hamacojr/CAT-Seg-weights"
VARIANTS = {"base": "model_base.pth", "large": "model_large.pth"}


def download_checkpoint(variant: str) -> Path:
    """
    The released checkpoint, "base" or "large", from the authors' Space on the Hub: through the cache, resuming when
    the connection breaks. HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are respected.

    Raises:
        UserError: With one sentence, if it cannot be had.
    """
    filename = VARIANTS[variant]
    source = f"{filename} of the Space {RELEASE}"
    endpoint = constants.ENDPOINT
    try:
        return Path(hf_hub_download(repo_id=RELEASE, repo_type="space", filename=filename))
    except GatedRepoError:
        reason = "it asks for an access that your token does not have"
    except LocalEntryNotFoundError:
        if constants.is_offline_mode():
            reason = "the Hub is switched off (HF_HUB_OFFLINE) and it is not in the cache"
        else:
            reason = f"{endpoint} cannot be reached and it is not in the cache"
    except RepositoryNotFoundError:
        reason = f"{endpoint} has no such Space, or needs a token for it (HF_TOKEN)"
    except EntryNotFoundError:
        reason = "the Space has no such file"
    except HfHubHTTPError as error:
        reason = f"{endpoint} answered with status {error.response.status_code}"
    except Exception as error:  # the transport's own errors, whichever HTTP library it uses
        reason = f"{first_line(error)}. Run the same command again"
    raise UserError(f"Could not download {source}: {reason}.")

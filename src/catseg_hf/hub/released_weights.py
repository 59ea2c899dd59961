"""The checkpoints that the authors released."""

import hashlib
import os
import re
from pathlib import Path

from huggingface_hub import (
    HfFileMetadata,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
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
APPROXIMATE_BYTES = {"base": 620_000_000, "large": 1_740_000_000}

SHA256 = re.compile("[0-9a-f]{64}")


def download_checkpoint(variant: str) -> Path:
    """
    The released checkpoint, "base" or "large", from the authors' Space on the Hub: through the cache, resuming when
    the connection breaks. HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are respected.

    Raises:
        UserError: With one sentence, if it cannot be had.
    """
    filename = VARIANTS[variant]
    source = f"{filename} (about {gigabytes(APPROXIMATE_BYTES[variant])}) of the Space {RELEASE}"
    endpoint = constants.ENDPOINT
    missing = f"it is not in the cache {constants.HF_HUB_CACHE}"
    copy = "copy the cache of a machine that has it and name it in HF_HOME"
    try:
        return Path(hf_hub_download(repo_id=RELEASE, repo_type="space", filename=filename))
    except GatedRepoError:
        reason = "it asks for an access that your token does not have"
    except LocalEntryNotFoundError:
        if constants.is_offline_mode():
            reason = f"the Hub is switched off (HF_HUB_OFFLINE) and {missing}: unset HF_HUB_OFFLINE once, or {copy}"
        else:
            reason = f"{endpoint} cannot be reached and {missing}: connect once, set HF_ENDPOINT, or {copy}"
    except RepositoryNotFoundError:
        reason = f"{endpoint} has no such Space, or needs a token for it (HF_TOKEN)"
    except EntryNotFoundError:
        reason = "the Space has no such file"
    except HfHubHTTPError as error:
        reason = f"{endpoint} answered with status {error.response.status_code}"
    except Exception as error:  # the transport's own errors, whichever HTTP library it uses
        reason = f"{first_line(error)}. Run the same command again"
    raise UserError(f"Could not download {source}: {reason}.")


def published_checkpoint(variant: str) -> HfFileMetadata | None:
    """What the Hub says of a released checkpoint (etag and size), or `None` if it does not answer or refuses."""
    if constants.is_offline_mode():
        return None
    try:
        metadata = get_hf_file_metadata(hf_hub_url(RELEASE, VARIANTS[variant], repo_type="space"))
    except Exception:  # the download words it, if there has to be one
        return None
    return metadata if metadata.etag else None


def cached_checkpoint(variant: str) -> Path | None:
    """A released checkpoint in the Hub's cache, as it was downloaded last."""
    path = try_to_load_from_cache(RELEASE, VARIANTS[variant], repo_type="space")
    return Path(path) if isinstance(path, str) else None


def etag_of(checkpoint: Path) -> str:
    """The Hub's etag of a file in its cache: of a large file its SHA-256."""
    return _linked_etag(checkpoint) or _sha256(checkpoint)


def checked_etag(checkpoint: Path, published: str | None = None) -> str:
    """
    The Hub's etag of a file in its cache, whose contents are compared with it.

    Args:
        checkpoint (`Path`): The file.
        published (`str`, *optional*): The etag, where the cache does not keep it.

    Raises:
        UserError: If the contents have another SHA-256 than the Hub says.
    """
    digest = _sha256(checkpoint)
    etag = _linked_etag(checkpoint) or published or digest
    if SHA256.fullmatch(etag) and etag != digest:
        raise UserError(
            f"{checkpoint.name} is not what {RELEASE} holds: its SHA-256 is {digest}, and should be {etag}. Delete "
            f"{checkpoint.resolve()} and run the same again."
        )
    return etag


def gigabytes(number: int) -> str:
    """A number of bytes in words."""
    return f"{number / 1e9:.2g} GB"


def _linked_etag(checkpoint: Path) -> str | None:
    # A snapshot's files are links to blobs, which are called by their etags, and may themselves be links. Where the
    # file system has none, the snapshot holds the file itself.
    return Path(os.readlink(checkpoint)).name if checkpoint.is_symlink() else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()

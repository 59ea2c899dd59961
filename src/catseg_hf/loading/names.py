"""What the name of a model means: released weights, a folder, or a repository on the Hub."""

import os

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import UserError, did_you_mean
from ..hub.pretrained import pretrained
from ..hub.released_weights import VARIANTS


def resolve_model(name: str | os.PathLike) -> str:
    """
    The folder or Hub id of a model.

    Args:
        name (`str`): "base" or "large", the authors' weights as [`~catseg_hf.pretrained`] fetches and converts them
            (a folder of such a name is `./base`), a folder, or a Hub id.

    Raises:
        UserError: If it is none of these, or the weights cannot be had.
    """
    name = os.fspath(name)
    if name in VARIANTS:
        return pretrained(name)
    if os.path.isdir(name) or is_hub_id(name):
        return name
    if os.path.isfile(name):
        raise UserError(
            f"The model {name!r} could not be loaded: it is a file, and a folder is needed. Convert a checkpoint of "
            f"the authors with `catseg-hf convert --checkpoint_path {name} --output_dir DIR`."
        )
    raise UserError(
        f"The model {name!r} could not be loaded: it is neither {' nor '.join(VARIANTS)}, which are downloaded"
        f"{did_you_mean(name, VARIANTS)}, nor a folder here, nor a Hub id such as owner/name."
    )


def is_hub_id(name: str) -> bool:
    """Whether a name may be that of a repository on the Hub, with its owner."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name

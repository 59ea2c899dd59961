"""Makes this process, or another one, take the stand-in for the Hub with the authors' Space for the real one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.file_download
import pytest
import transformers.utils.hub
from huggingface_hub import constants

from catseg_testing.hub_server import HubServer
from conftest import FIXTURES


SPACE = "hamacojr/CAT-Seg-weights"
WEIGHTS = (FIXTURES / "original.pth").read_bytes()
URL = "/{repo_id}/resolve/{revision}/{filename}"


@contextmanager
def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[HubServer]:
    """The Hub for huggingface_hub in this process, whose caches are in `folder`."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(folder / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    with HubServer() as hub:
        hub.add("spaces", SPACE, {"model_base.pth": WEIGHTS})
        set_endpoint(monkeypatch, hub.url)
        yield hub


def set_endpoint(monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + URL)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)  # keeps the endpoint of its first use


def environment_of(hub: HubServer, home: Path) -> dict[str, str]:
    """Environment variables of another process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return inherited | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}

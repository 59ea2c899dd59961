"""A small stand-in for the Hugging Face Hub on the loopback interface, for what huggingface_hub and transformers ask.

It keeps repositories of models and Spaces in memory (one revision, `main`), serves files whole and in ranges, takes
uploads through the commit and Git LFS (basic) protocols, asks for a token where it should, and breaks transfers on
request. Uploads need HF_HUB_DISABLE_XET=1: it does not speak Xet.
"""

import base64
import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from .loopback import LoopbackServer


LFS_THRESHOLD = 100_000


@dataclass
class Repository:
    """Files of one repository by their paths, and who may see them."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False

    @property
    def commit(self) -> str:
        """A hash of the contents, 40 hexadecimal digits as Git's."""
        digest = hashlib.sha1()
        for path in sorted(self.files):
            digest.update(path.encode() + hashlib.sha256(self.files[path]).digest())
        return digest.hexdigest()


@dataclass
class Request:
    """What was asked of the server."""

    method: str
    path: str
    range: str | None
    authorization: str | None


class HubServer(LoopbackServer):
    """
    Runs while its `with` block does.

    Attributes:
        url: What HF_ENDPOINT has to be.
        repositories: By type ("models", "spaces") and name ("owner/name").
        token: The one that private repositories and uploads need.
        requests: Everything that was asked, in order.
        break_after: For each of the next downloads, after how many bytes the connection breaks.
        refuse_uploads: Whether every upload is answered with an error.
        etags: Those of files, by their paths, that are not their SHA-256.
    """

    def __init__(self, token: str = "hf_test"):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.token = token
        self.requests: list[Request] = []
        self.break_after: list[int] = []
        self.refuse_uploads = False
        self.etags: dict[str, str] = {}
        self.lfs_objects: dict[str, bytes] = {}
        super().__init__(_Handler, hub=self)

    def add(self, kind: str, name: str, files: dict[str, bytes], private: bool = False) -> Repository:
        """A repository of `kind` "models" or "spaces"."""
        return self.repositories.setdefault((kind, name), Repository(dict(files), private))

    def asked(self, method: str, part: str) -> list[Request]:
        """The requests of one method whose path has this part."""
        return [request for request in self.requests if request.method == method and part in request.path]


class HubError(Exception):
    """An answer with an error status, as the Hub words it."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def do_PUT(self):
        self._answer()

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(
            Request(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        body = self._read_body()
        try:
            for method, pattern, respond in ROUTES:
                if (self.command in method) and (match := re.fullmatch(pattern, path)):
                    return respond(self, body, **match.groupdict())
            raise HubError(404, "NotFound", f"no route for {self.command} {path}")
        except HubError as error:
            self._send(
                error.status,
                json.dumps({"error": str(error)}).encode(),
                {"X-Error-Code": error.code, "X-Error-Message": str(error)},
            )

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None, length: int | None = None):
        """Sends `content`, of which `length` bytes are announced (all of them if not given)."""
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_json(self, value: Any, status: int = 200):
        self._send(status, json.dumps(value).encode())

    def _authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _repository(self, kind: str | None, name: str) -> Repository:
        repository = self.hub.repositories.get(((kind or "models").strip("/"), name))
        if repository is None or (repository.private and not self._authorised()):
            raise HubError(404 if self._authorised() else 401, "RepoNotFound", "Repository not found")
        return repository

    def _require_token(self):
        if not self._authorised():
            raise HubError(401, "", "Invalid username or password.")
        if self.hub.refuse_uploads:
            raise HubError(507, "", "No space left")

    def resolve(self, body: bytes, kind: str | None, name: str, revision: str, file: str):
        repository = self._repository(kind, name)
        if revision not in ("main", repository.commit):
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if file not in repository.files:
            raise HubError(404, "EntryNotFound", "Entry not found")
        content = repository.files[file]
        headers = {
            "ETag": f'"{self.hub.etags.get(file) or hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": repository.commit,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        status, size = 200, len(content)
        if self.command == "GET" and (wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")):
            first, last = int(wanted[1]), int(wanted[2] or size - 1)
            if first >= size:
                return self._send(416, b"", {"Content-Range": f"bytes */{size}"})
            status, content = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{first + len(content) - 1}/{size}"
        if self.command == "GET" and self.hub.break_after:
            length, content = len(content), content[: self.hub.break_after.pop(0)]
            self._send(status, content, headers, length)
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(2)
            return None
        return self._send(status, content, headers)

    def info(self, body: bytes, kind: str, name: str, revision: str | None = None):
        repository = self._repository(kind, name)
        self._send_json(
            {
                "id": name,
                "modelId": name,
                "sha": repository.commit,
                "private": repository.private,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(repository.files)],
            }
        )

    def tree(self, body: bytes, kind: str, name: str, revision: str, folder: str | None = None):
        files = self._repository(kind, name).files
        prefix = f"{folder}/" if folder else ""
        paths = [path for path in sorted(files) if path.startswith(prefix)]
        if folder and not paths:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        self._send_json([_entry(path, files[path]) for path in paths])

    def paths_info(self, body: bytes, kind: str, name: str, revision: str):
        files = self._repository(kind, name).files
        self._send_json([_entry(path, files[path]) for path in json.loads(body)["paths"] if path in files])

    def create(self, body: bytes):
        self._require_token()
        request = json.loads(body)
        name = f"{request.get('organization') or 'tester'}/{request['name']}"
        private = request.get("visibility") == "private" or bool(request.get("private"))
        existed = ("models", name) in self.hub.repositories
        self.hub.add("models", name, {}, private)
        self._send_json({"url": f"{self.hub.url}/{name}", "name": name}, 409 if existed else 200)

    def whoami(self, body: bytes):
        self._require_token()
        self._send_json({"type": "user", "name": "tester", "orgs": [], "auth": {"type": "access_token"}})

    def validate_yaml(self, body: bytes):
        errors = metadata_errors(json.loads(body)["content"])
        self._send_json(
            {"errors": [{"message": message} for message in errors], "warnings": []}, 400 if errors else 200
        )

    def preupload(self, body: bytes, kind: str, name: str, revision: str):
        self._require_token()
        self._repository(kind, name)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] > LFS_THRESHOLD else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._send_json({"files": modes})

    def lfs_batch(self, body: bytes, kind: str | None, name: str):
        self._require_token()
        objects = []
        for wanted in json.loads(body)["objects"]:
            known = wanted["oid"] in self.hub.lfs_objects
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}", "header": {}}}
            objects.append(wanted if known else wanted | {"actions": upload})
        self._send_json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, oid: str):
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(400, "", "the contents do not have this hash")
        self.hub.lfs_objects[oid] = body
        self._send(200, b"")

    def commit(self, body: bytes, kind: str, name: str, revision: str):
        self._require_token()
        repository = self._repository(kind, name)
        files = dict(repository.files)
        for line in body.decode().splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.lfs_objects:
                    raise HubError(400, "", f"{value['path']} was never uploaded")
                files[value["path"]] = self.hub.lfs_objects[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"])
            elif key != "header":
                raise HubError(400, "", f"unknown operation {key}")
        repository.files = files
        url = f"{self.hub.url}/{name}/commit/{repository.commit}"
        self._send_json({"success": True, "commitOid": repository.commit, "commitUrl": url, "hookOutput": ""})


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def metadata_errors(card: str) -> list[str]:
    """What is wrong with a card's metadata, by the rules of the Hub that can be stated without its lists of names."""
    block = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    if block is None:
        return ["the card has no metadata"]
    try:
        metadata = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"the metadata is not YAML: {error}"]
    if not isinstance(metadata, dict):
        return ["the metadata is not a mapping"]
    strings = ("license", "library_name", "pipeline_tag")
    lists = ("tags", "datasets", "metrics", "language", "base_model")
    errors = [f'"{key}" must be a string' for key in strings if not isinstance(metadata.get(key, ""), str)]
    for key in lists:
        values = metadata.get(key, [])
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            errors.append(f'"{key}" must be strings')
    if not re.fullmatch(r"[a-z0-9.+-]+", str(metadata.get("license", "mit"))):
        errors.append('"license" must be an identifier')
    for repository in [metadata["base_model"]] if isinstance(metadata.get("base_model"), str) else []:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            errors.append('"base_model" must be a repository')
    return errors


REPOSITORY = r"(?P<name>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>models|spaces)/{REPOSITORY}"
ROUTES = [
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("GET", rf"{API}(/revision/(?P<revision>[^/]+))?", _Handler.info),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler.tree),
    ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"{API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", rf"/(?P<kind>spaces/)?{REPOSITORY}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", _Handler.lfs_upload),
    ("GET HEAD", rf"/(?P<kind>spaces/)?{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
]

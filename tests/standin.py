"""A stand-in for a model hub: a server on this machine that answers as the hub does, and fails on demand.

Large files are redirected to a second host name of the same server, as the hub redirects to its store: what
a client may tell the one it must not tell the other.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests import twin

TOKEN = "hf_secretsecretsecretsecretsecret12"
RESOLVE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")
TREE = re.compile(r"/api/models/([\w.-]+/[\w.-]+)/tree/[^/]+/?")
INFO = re.compile(r"/api/models/([\w.-]+/[\w.-]+?)(?:/revision/([^/]+))?")


@dataclass
class Repo:
    """A repository: every commit it ever had, the newest last."""

    licence: str = "apache-2.0"
    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add a commit; give its hash."""
        digest = hashlib.sha1(str(len(self.commits)).encode())
        for name, content in sorted(files.items()):
            digest.update(name.encode() + content)
        self.commits[digest.hexdigest()] = dict(files)
        return digest.hexdigest()

    @property
    def newest(self) -> str:
        """The hash of the newest commit."""
        return next(reversed(self.commits))


@dataclass
class Fault:
    """What goes wrong with requests whose method and path match, and how many times."""

    pattern: str
    times: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    spoiled: bool = False
    silent: bool = False


@dataclass(frozen=True)
class Seen:
    """A request that came in."""

    line: str
    host: str
    headers: dict[str, str]


class Hub:
    """The server; its address is `url`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.members: set[str] = set()
        self.trees: dict[str, list[dict[str, Any]]] = {}
        hub = self

        class Handler(_Handler):
            served = hub

        self.over = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def add(self, name: str, files: dict[str, bytes], **about: Any) -> str:
        """Add a repository with one commit; give the commit."""
        self.repos[name] = Repo(**about)
        return self.repos[name].commit(files)

    def fail(self, pattern: str, times: float = float("inf"), **how: Any) -> None:
        """Let requests such as `GET .*safetensors` fail."""
        self.faults.append(Fault(pattern, times, **how))

    def fault_of(self, line: str) -> Fault | None:
        """The fault that a request meets, counted."""
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.pattern, line):
                fault.times -= 1
                return fault
        return None

    def asked(self, pattern: str) -> list[Seen]:
        """The requests whose method and path match."""
        return [one for one in self.seen if re.search(pattern, one.line)]

    def stop(self) -> None:
        """Close the server; its port refuses connections from now on."""
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        line = f"{self.command} {path}"
        self.served.seen.append(Seen(line, self.headers.get("Host", ""), dict(self.headers.items())))
        fault = self.served.fault_of(line)
        if fault is not None and fault.silent:
            self.served.over.wait(20)
            self.close_connection = True
        elif fault is not None and fault.status:
            self._send(fault.status, b'{"error": "out of order"}', fault.headers)
        elif found := INFO.fullmatch(path):
            self._info(found[1], found[2])
        elif found := RESOLVE.fullmatch(path):
            self._resolve(found[1], found[2], found[3], fault)
        elif found := TREE.fullmatch(path):
            told = json.dumps(self.served.trees[found[1]]).encode()
            self._send(200, told, {"Content-Type": "application/json"})
        elif path.startswith("/store/"):
            self._store(path.removeprefix("/store/"), fault)
        else:
            self._send(404, b"")

    def _allowed(self, name: str) -> Repo | None:
        """The repository, if whoever asks may read it; else the refusal is sent."""
        repo = self.served.repos.get(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo is None or (repo.private and token not in self.served.members):
            status = 404 if token else 401
            self._refuse(status, "RepoNotFound", "Repository not found")
        elif token and token != TOKEN and token not in self.served.members:
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif repo.gated and token not in self.served.members:
            self._refuse(403 if token else 401, "GatedRepo", f"Access to {name} is restricted, token {token}")
        else:
            return repo
        return None

    def _info(self, name: str, revision: str | None) -> None:
        repo = self._allowed(name)
        if repo is None:
            return
        commit = repo.newest if revision in (None, "main") else str(revision)
        if commit not in repo.commits:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        siblings = [_sibling(name, content) for name, content in repo.commits[commit].items()]
        told = {
            "id": name, "modelId": name, "sha": commit, "private": repo.private, "gated": repo.gated,
            "tags": [f"license:{repo.licence}"], "downloads": 1, "likes": 0, "siblings": siblings,
            "cardData": {"license": repo.licence} if repo.licence else None,
        }  # fmt: skip
        self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, file: str, fault: Fault | None) -> None:
        repo = self._allowed(name)
        if repo is None:
            return
        commit = repo.newest if revision == "main" else revision
        if commit not in repo.commits:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        told = {"X-Repo-Commit": commit}
        content = repo.commits[commit].get(file)
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found", told)
        elif _is_large(file):
            sha256 = hashlib.sha256(content).hexdigest()
            told |= {
                "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content)),
                "Location": f"http://localhost:{self.served.port}/store/{sha256}?signature=signed-secret",
            }  # fmt: skip
            self._send(302, b"", told)
        else:
            self._content(content, told | {"ETag": f'"{_blob(content)}"'}, fault)

    def _store(self, sha256: str, fault: Fault | None) -> None:
        for repo in self.served.repos.values():
            for files in repo.commits.values():
                for content in files.values():
                    if hashlib.sha256(content).hexdigest() == sha256:
                        self._content(content, {"ETag": f'"{sha256}"'}, fault)
                        return
        self._send(404, b"")

    def _content(self, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        if fault is not None and fault.spoiled:
            content = bytes([content[0] ^ 1]) + content[1:]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        status = 206 if asked else 200
        if asked:
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        body = content[start:]
        cut = fault.cut if fault is not None else None
        self._send(status, body, headers | {"Accept-Ranges": "bytes"}, cut)

    def _refuse(
        self, status: int, code: str | None, message: str, more: dict[str, str] | None = None
    ) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(more or {})}
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


def _is_large(file: str) -> bool:
    return file.endswith((".safetensors", ".bin"))


def _blob(content: bytes) -> str:
    """git's own hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    told: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": _blob(content)}
    if _is_large(name):
        told["lfs"] = {
            "sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134,
        }  # fmt: skip
    return told


@contextmanager
def running(home: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the library of this process takes for its own, with an empty cache below `home`."""
    hub = Hub()
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
    }.items():
        patch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    patch.setenv("NO_PROXY", "*")
    huggingface_hub.close_session()
    try:
        yield hub
    finally:
        huggingface_hub.close_session()
        if hub.thread.is_alive():
            hub.stop()


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """What another process needs to take the hub for its own."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "*", "HF_TOKEN": TOKEN}


@cache
def bert_files(tops: bool = True) -> dict[str, bytes]:
    """A repository with a BERT of two layers as they were of old: prefix, `gamma`, `beta`, and its tops."""
    import tempfile

    import torch
    from safetensors.torch import load_file, save
    from transformers import BertConfig, BertForPreTraining

    with tempfile.TemporaryDirectory() as folder:
        twin.text_package(Path(folder))
        model = Path(folder) / "toy_text/model"
        config = json.loads((model / "config.json").read_text())
        words = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
        plain = load_file(model / "model.safetensors")
    tensors = plain
    if tops:
        torch.manual_seed(8)
        whole = BertForPreTraining(BertConfig(**config)).state_dict()
        whole |= {f"bert.{name}": tensor for name, tensor in plain.items()}
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        tensors = {}
        for name, tensor in whole.items():
            for new, former in old.items():
                name = name.replace(new, former)
            tensors[name] = tensor.clone()
    return {
        "config.json": json.dumps(config | {"architectures": ["BertForPreTraining"]}).encode(),
        "model.safetensors": save(tensors),
        # No class of a tokenizer, as in the early repositories: config.json tells it.
        "tokenizer_config.json": b'{"do_lower_case": true, "model_max_length": 32}',
        "vocab.txt": "\n".join(sorted(words, key=words.__getitem__)).encode() + b"\n",
        "README.md": b"# A toy",
    }


@cache
def timm_files(architecture: str = "test_resnet") -> dict[str, bytes]:
    """A repository of timm's with a classifier of ten classes."""
    import timm
    import torch
    from safetensors.torch import save

    torch.manual_seed(9)
    model = timm.create_model(architecture, pretrained=False, num_classes=10)
    config = {
        "architecture": architecture, "num_classes": 10, "num_features": model.num_features,
        "pretrained_cfg": {
            "tag": "toy", "input_size": [3, 64, 64], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3],
            "classifier": "fc",
        },
    }  # fmt: skip
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save(model.state_dict()),
        "README.md": b"# A toy",
    }

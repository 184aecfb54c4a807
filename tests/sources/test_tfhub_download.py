from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kagglesdk import kaggle_env

from steps import artifacts
from steps.errors import DiskFullError, WeightsError
from steps.fetch import fetch
from steps.references import TfhubWeights
from steps.sources import Found, tfhub
from steps.sources.weights import fingerprint

HANDLE = "google/toy/tensorFlow2/small"
SECRET = "kagglesecretkagglesecret"
FILES = {
    "saved_model.pb": b"graph" * 9000,
    "variables/variables.index": b"index",
    "variables/variables.data-00000-of-00001": bytes(range(256)) * 300,
}


class Kaggle:
    """A server on this machine that answers as Kaggle's model hub does."""

    def __init__(self) -> None:
        self.files, self.version = dict(FILES), 3
        self.status: list[int] = []
        self.cuts = self.spoiled = 0
        self.seen: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.packed: bytes | None = None
        kaggle = self

        class Handler(_Handler):
            served = kaggle

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Kaggle
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        call = self.path.rsplit("/", 1)[-1]
        served = self.served
        served.seen.append(call)
        served.headers.append(dict(self.headers.items()))
        if served.status:
            status = served.status.pop(0)
            self._send(status, json.dumps({"code": status, "message": f"no {SECRET}"}).encode(), "json")
        elif call == "GetModelInstance":
            told = {"versionNumber": served.version, "licenseName": "Apache 2.0", "framework": "tensorFlow2"}
            self._send(200, json.dumps(told).encode(), "json")
        elif call == "ListModelInstanceVersionFiles":
            names = [{"name": name, "size": len(content)} for name, content in served.files.items()]
            more = {"nextPageToken": "more"} if served.packed else {}
            self._send(200, json.dumps({"files": names, **more}).encode(), "json")
        else:
            self._download(served.packed or served.files[asked["path"]])

    def do_GET(self) -> None:
        self.served.seen.append(f"GET {self.headers.get('Range')}")
        self._send(404, b"", "json")

    def _download(self, content: bytes) -> None:
        told = base64.b64encode(hashlib.md5(content).digest()).decode()
        if self.served.spoiled:
            self.served.spoiled -= 1
            content = b"!" + content[1:]
        cut = None
        if self.served.cuts:
            self.served.cuts -= 1
            cut = len(content) // 2
        self._send(200, content, "octet-stream", {"x-goog-hash": f"md5={told}"}, cut)

    def _send(
        self,
        status: int,
        body: bytes,
        kind: str,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": f"application/{kind}", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> Iterator[Kaggle]:
    kaggle = Kaggle()
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, kaggle.url)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_API_ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)
    yield kaggle
    if kaggle.thread.is_alive():
        kaggle.stop()


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def refusal(version: int = 3) -> str:
    with pytest.raises(WeightsError) as caught:
        tfhub.download(HANDLE, version)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert str(caught.value).startswith(f"{HANDLE}/{version}")
    return str(caught.value)


def test_a_model_is_downloaded_once_and_then_had_without_the_server(
    server: Kaggle, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tfhub.download(HANDLE, 3)
    assert content(folder) == FILES
    requests = len(server.seen)
    server.stop()
    assert tfhub.download(HANDLE, 3) == folder
    assert len(server.seen) == requests
    said = capfd.readouterr()
    assert said.out + said.err == ""


def test_the_newest_version_is_told_with_hash_size_and_licence(server: Kaggle) -> None:
    told = tfhub.newest(TfhubWeights(source="tfhub", handle=HANDLE))
    folder = tfhub.download(HANDLE, 3)
    assert told.fields == {"version": 3, "sha256": fingerprint(folder), "licence": "Apache 2.0"}
    assert told.size == sum(map(len, FILES.values()))


def test_what_is_not_pinned_is_not_asked_for(server: Kaggle) -> None:
    with pytest.raises(WeightsError, match="no version is pinned; run `headstart pin"):
        tfhub.download(HANDLE, None)
    assert not server.seen


def test_a_server_that_fails_twice_is_asked_again(server: Kaggle, pauses: list[float]) -> None:
    server.status = [500, 503]
    assert content(tfhub.download(HANDLE, 3)) == FILES
    assert pauses == [1.0, 2.0]


def test_a_server_that_keeps_failing_is_left_alone(server: Kaggle) -> None:
    server.status = [500] * 99
    assert "has trouble of its own (500)" in refusal()
    assert len(server.seen) == 4


def test_credentials_that_are_missing_or_wrong(server: Kaggle, monkeypatch: pytest.MonkeyPatch) -> None:
    server.status = [403]
    assert "wants a login (403): accept the model's terms on its page, then set KAGGLE_API_TOKEN" in refusal()
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    server.status = [401]
    assert "refuses your credentials (401): correct them" in refusal()
    assert SECRET in str(server.headers)


def test_no_credential_is_left_anywhere(
    server: Kaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    server.status = [500]
    tfhub.download(HANDLE, 3)
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err
    assert "status 500; again in 1 s" in said.out
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()
    ]


def test_a_model_that_is_not_there(server: Kaggle) -> None:
    server.status = [404]
    assert "knows no such model or version (404): correct `handle:`" in refusal(9)


def test_no_network_and_no_cache_is_told(server: Kaggle) -> None:
    server.stop()
    assert "Kaggle's hub cannot be reached (ConnectionError)" in refusal()


def test_a_cut_connection_is_tried_again(server: Kaggle) -> None:
    server.cuts = 1
    assert content(tfhub.download(HANDLE, 3)) == FILES


def test_wrong_bytes_are_found_and_had_anew(server: Kaggle, tmp_path: Path) -> None:
    server.spoiled = 1
    assert content(tfhub.download(HANDLE, 3)) == FILES
    shutil.rmtree(tmp_path / "cache")
    server.spoiled = 99
    assert "came with other bytes than the hub announced" in refusal()


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "variables/../../../evil", "..\\evil"])
def test_a_file_outside_of_the_folder_is_refused(server: Kaggle, tmp_path: Path, name: str) -> None:
    server.files[name] = b"evil"
    assert "names a file outside of its folder" in refusal()
    assert not list(tmp_path.rglob("evil"))
    assert "DownloadModelInstanceVersion" not in server.seen


@pytest.mark.survives(
    "weights",
    "weights whose archive leaves the folder",
    how="`../../evil` in a tar",
    held="refused, nothing is written outside",
)
def test_an_archive_with_a_file_outside_is_refused(server: Kaggle, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("saved_model.pb", "../../evil"):
            told = tarfile.TarInfo(name)
            told.size = 4
            archive.addfile(told, io.BytesIO(b"evil"))
    server.packed = buffer.getvalue()
    assert "the archive cannot be unpacked safely" in refusal()
    assert not list(tmp_path.rglob("evil"))


def test_no_room_is_told_before_the_download(server: Kaggle, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DiskFullError, match="MiB are free where the cache lies"):
        tfhub.download(HANDLE, 3)
    assert "DownloadModelInstanceVersion" not in server.seen


def test_the_librarys_own_ways_are_given_back(server: Kaggle) -> None:
    import requests
    from kagglehub import clients, http_resolver

    before: list[Any] = [requests.Session.send, clients.tqdm, http_resolver.thread_map]
    tfhub.download(HANDLE, 3)
    assert [requests.Session.send, clients.tqdm, http_resolver.thread_map] == before


def saved(folder: Path) -> Found:
    """Stands in for what TensorFlow makes of the folder."""
    description = {"library": "savedmodel", "name": "toy", "folder": folder.name, "features": 4}
    return Found({}, description, [folder], {"tensorflow": "2"})


def test_a_savedmodel_is_fetched_as_a_whole_with_its_provenance(
    server: Kaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("steps.sources.savedmodel.read", lambda reference, folder: saved(folder))
    pinned = tfhub.newest(TfhubWeights(source="tfhub", handle=HANDLE)).fields
    reference = TfhubWeights(source="tfhub", handle=HANDLE, **pinned)
    artifacts.write_json(artifacts.pretrained_settings_file("toy"), reference.model_dump(mode="json"))
    fetch("toy")
    folder = artifacts.pretrained_dir("toy")
    assert content(folder / "3") == FILES
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance | pinned | {"version": "3"} == provenance
    assert (provenance["source"], provenance["handle"]) == ("tfhub", HANDLE)
    assert (provenance["tensors"], provenance["parameters"], provenance["tensorflow"]) == (0, 0, "2")
    assert f"toy: a SavedModel, Apache 2.0, from {HANDLE} 3" in capsys.readouterr().out


def test_an_altered_savedmodel_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> Found:
        raise AssertionError("the folder was opened")

    monkeypatch.setattr("steps.sources.savedmodel.read", opened)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/saved_model.pb").write_bytes(b"graph")
    reference = TfhubWeights(source="tfhub", path=str(tmp_path / "mine"), sha256="1" * 64)
    with pytest.raises(WeightsError, match=r"^mine has sha256 \w{64}, params\.yaml pins 1111"):
        tfhub.read(reference, tmp_path)

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from steps.errors import DiskFullError, WeightsError
from steps.sources import hub
from steps.sources.hub import Repository
from tests import standin
from tests.standin import TOKEN, Hub

WEIGHTS = bytes(range(256)) * 400
FILES = {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with standin.running(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No test waits; what would have been waited is written down."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture
def repository(server: Hub) -> Repository:
    return Repository("toy/model", server.add("toy/model", FILES))


def refusal(repository: Repository, name: str = "model.safetensors") -> str:
    with pytest.raises(WeightsError) as caught:
        hub.require_file(repository, name)
    message = str(caught.value)
    assert "\n" not in message
    assert "secret" not in message
    assert repository.name in message
    return message


def test_a_file_is_downloaded_once_and_then_had_without_the_server(
    server: Hub, repository: Repository
) -> None:
    path = hub.require_file(repository, "model.safetensors")
    assert path.read_bytes() == WEIGHTS
    assert hub.require_json(repository, "config.json") == {"a": 1}
    assert hub.fetch_file(repository, "vocab.txt") is None
    requests = len(server.seen)
    server.stop()
    assert hub.require_file(repository, "model.safetensors") == path
    assert hub.fetch_file(repository, "vocab.txt") is None
    assert len(server.seen) == requests


def test_only_what_is_asked_for_is_downloaded(server: Hub, repository: Repository) -> None:
    hub.require_file(repository, "config.json")
    assert not server.asked("safetensors|store")


def test_progress_is_told_where_there_is_no_terminal(
    server: Hub,
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("steps.entry.QUIET_SECONDS", 0.0)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", len(WEIGHTS) // 2)
    hub.require_file(repository, "model.safetensors")
    said = capsys.readouterr()
    assert (
        "toy/model model.safetensors: 50% after 0 s\ntoy/model model.safetensors: 100% after 0 s\n"
        in said.out
    )
    assert said.err == ""


def test_offline_mode_is_obeyed(server: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.require_file(repository, "config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    requests = len(server.seen)
    assert hub.require_file(repository, "config.json")
    assert "HF_HUB_OFFLINE" in refusal(repository)
    assert len(server.seen) == requests


def test_what_the_librarys_own_command_downloaded_is_enough(
    server: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
        for name, content in FILES.items()
    ]
    server.trees["toy/model"] = entries
    huggingface_hub.snapshot_download("toy/model", revision=repository.revision)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    requests = len(server.seen)
    assert hub.require_file(repository, "model.safetensors").read_bytes() == WEIGHTS
    assert hub.fetch_file(repository, "vocab.txt") is None
    assert len(server.seen) == requests


def test_no_network_and_no_cache_is_told(server: Hub, repository: Repository) -> None:
    server.stop()
    assert "the hub cannot be reached (ConnectError)" in refusal(repository)


def test_what_is_missing_is_told_apart(server: Hub, repository: Repository) -> None:
    assert "has no file vocab.txt (404)" in refusal(repository, "vocab.txt")
    gone = Repository("toy/model", "0" * 40)
    assert "has no commit 0000000000000000000000000000000000000000 (404)" in refusal(gone)
    assert "knows no such repository (401): correct `model:`; for a private one log in" in refusal(
        Repository("toy/nothing", "0" * 40)
    )


def test_a_missing_repository_with_a_token(
    server: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    message = refusal(Repository("toy/nothing", "0" * 40))
    assert "knows no such repository (404)" in message
    assert "log in" not in message


@pytest.mark.survives(
    "weights",
    "a token that is missing, wrong or not allowed",
    how="401 and 403 from the hub",
    held="each is told with what to do; the token is in no message",
)
def test_a_gated_repository_without_a_token_with_one_and_with_a_wrong_one(
    server: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repos["toy/model"].gated = True
    assert "is gated (401): accept the terms of toy/model on the hub, then log in" in refusal(repository)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "is gated (403): accept the terms of toy/model on the hub with the account" in refusal(repository)
    monkeypatch.setenv("HF_TOKEN", "hf_secretbutwrong")
    assert "the hub refuses your token (401): log in anew" in refusal(repository)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.members.add(TOKEN)
    assert hub.require_file(repository, "model.safetensors").read_bytes() == WEIGHTS


def test_the_token_is_told_to_the_hub_and_not_to_its_store(
    server: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.require_file(repository, "model.safetensors")
    assert all("Authorization" not in one.headers and "authorization" not in one.headers
               for one in server.asked("/store/"))  # fmt: skip
    assert any(TOKEN in str(one.headers) for one in server.asked("HEAD .*resolve"))


def test_a_server_that_fails_twice_is_asked_again(
    server: Hub, repository: Repository, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    server.fail("GET /store/", times=2, status=500)
    assert hub.require_file(repository, "model.safetensors").read_bytes() == WEIGHTS
    assert pauses == [1.0, 2.0]
    assert "status 500; again in 1 s" in capsys.readouterr().out


@pytest.mark.survives(
    "servers",
    "a hub that keeps failing",
    how="503 to every request",
    held="a few tries with growing pauses, then one line",
)
def test_a_server_that_keeps_failing_is_left_alone(server: Hub, repository: Repository) -> None:
    server.fail("GET /store/", status=503)
    assert "has trouble of its own (503): try again later" in refusal(repository)
    assert len(server.asked("GET /store/")) == 4


def test_metadata_that_cannot_be_had(server: Hub, repository: Repository, pauses: list[float]) -> None:
    server.fail("HEAD ", status=500)
    assert "has trouble of its own (500)" in refusal(repository)
    assert len(pauses) < 10


@pytest.mark.survives(
    "servers",
    "a hub that does not answer",
    how="a server that accepts and is silent",
    held="given up after the time-out, one line",
)
def test_a_server_that_does_not_answer_is_not_waited_for_long(
    server: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TIMEOUT", 0.1)
    server.fail("HEAD |/api/", silent=True)
    assert "the hub does not answer in time" in refusal(repository)
    with pytest.raises(WeightsError, match="does not answer in time"):
        hub.newest("toy/model")
    assert len(server.seen) == 8


def test_a_server_that_asks_for_patience_is_given_it(
    server: Hub, repository: Repository, pauses: list[float]
) -> None:
    server.fail("GET /store/", times=1, status=429, headers={"Retry-After": "7"})
    assert hub.require_file(repository, "model.safetensors").read_bytes() == WEIGHTS
    assert 7 <= pauses[0] <= 8
    server.fail("/api/models", times=1, status=429, headers={"Retry-After": "9"})
    assert hub.newest("toy/model").repository == repository
    assert pauses[-1] == 9


def test_patience_has_an_end(server: Hub, repository: Repository, pauses: list[float]) -> None:
    server.fail("/api/models", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(WeightsError, match=r"too many requests .* \(429\): try again in 3600 s; with a"):
        hub.newest("toy/model")
    assert not pauses


@pytest.mark.survives(
    "weights",
    "a download that is cut",
    how="the connection closes at 70,000 bytes",
    held="it goes on from there",
)
def test_a_cut_download_goes_on_where_it_was(
    server: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    server.fail("GET /store/", times=1, cut=70_000)
    assert hub.require_file(repository, "model.safetensors").read_bytes() == WEIGHTS
    first, second = server.asked("GET /store/")
    assert "range" not in {name.lower() for name in first.headers}
    assert {name.lower(): value for name, value in second.headers.items()}["range"] == "bytes=70000-"


@pytest.mark.survives(
    "weights",
    "a download with wrong bytes",
    how="a byte is changed on the way",
    held="found by its hash, thrown away, fetched again",
)
def test_wrong_bytes_are_found_and_thrown_away(server: Hub, repository: Repository) -> None:
    server.fail("GET /store/", times=1, spoiled=True)
    pin = hashlib.sha256(WEIGHTS).hexdigest()
    path = hub.require_file(repository, "model.safetensors")
    with pytest.raises(WeightsError, match="came with other bytes than the hub announced"):
        hub.check_download(path, pin, repository, "model.safetensors")
    path = hub.require_file(repository, "model.safetensors")
    assert hub.check_download(path, pin, repository, "model.safetensors") == pin


def test_another_pin_is_told_and_the_file_stays(server: Hub, repository: Repository) -> None:
    path = hub.require_file(repository, "model.safetensors")
    with pytest.raises(WeightsError, match=r"toy/model@.* has sha256 \w{64}, params\.yaml pins 1111"):
        hub.check_download(path, "1" * 64, repository, "model.safetensors")
    assert path.is_file()


def test_no_room_is_told_before_the_download(
    server: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DiskFullError, match="free some space, or set HF_HOME"):
        hub.require_file(repository, "model.safetensors")
    assert not server.asked("GET /store/")


@pytest.mark.survives(
    "disk",
    "disk full during a download",
    how="ENOSPC while the file is written",
    held="one line names what was being downloaded",
)
def test_a_disk_that_fills_up_is_told(
    server: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(DiskFullError, match="the disk is full while downloading toy/model"):
        hub.require_file(repository, "model.safetensors")


def test_a_file_that_the_cache_keeps_elsewhere_is_judged_by_its_own_name(
    server: Hub, repository: Repository, tmp_path: Path
) -> None:
    path = hub.require_file(repository, "model.safetensors")
    blob = path.parent / path.readlink()
    shared = tmp_path / ("f" * 64)  # as in its store for several repositories
    blob.rename(shared)
    blob.symlink_to(shared)
    pin = hashlib.sha256(WEIGHTS).hexdigest()
    assert hub.check_download(path, pin, repository, "model.safetensors") == pin


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "/some/where"), "cannot be written; set HF_HOME"),
        (RuntimeError(f"unforeseen, with {TOKEN}"), r"the hub's library fails \(RuntimeError\)"),
    ],
)
def test_what_else_goes_wrong_is_one_line_too(
    server: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.file_download.http_get", broken)
    assert re.search(message, refusal(repository))


def test_something_that_is_no_hub(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository("toy/model", server.add("toy/model", FILES))
    server.fail("HEAD ", status=200)
    assert "what answers is no hub; look at HF_ENDPOINT" in refusal(repository)


def test_the_newest_commit_is_told_with_sizes_hashes_and_licence(server: Hub, repository: Repository) -> None:
    newer = server.repos["toy/model"].commit(FILES | {"more.txt": b"more"})
    told = hub.newest("toy/model")
    assert told.repository == Repository("toy/model", newer)
    assert told.files["model.safetensors"] == hub.Listed(len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    assert told.files["more.txt"] == hub.Listed(4, None)
    assert told.licence == "apache-2.0"


def test_a_repository_without_a_licence(server: Hub) -> None:
    server.add("toy/bare", FILES, licence="")
    assert hub.newest("toy/bare").licence == ""


def test_what_is_no_json_is_told(server: Hub) -> None:
    broken = Repository("toy/broken", server.add("toy/broken", {"config.json": b"{", "list.json": b"[]"}))
    with pytest.raises(WeightsError, match=r"config\.json is not valid JSON"):
        hub.require_json(broken, "config.json")
    with pytest.raises(WeightsError, match=r"list\.json holds no JSON object"):
        hub.require_json(broken, "list.json")


def test_what_the_library_logs_has_no_address(
    server: Hub, repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fail("GET /store/", times=1, cut=70_000)
    hub.require_file(repository, "model.safetensors")
    said = capsys.readouterr()
    assert "Error while downloading from the hub" in said.out
    assert "http" not in said.out + said.err
    assert "secret" not in said.out + said.err

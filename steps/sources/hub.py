"""Repositories of the Hugging Face hub: files at a pinned commit, from its library's cache or the network.

The library's settings hold: where the hub and the cache are, the token, whether the network may be used. It
retries a metadata request and a cut download by itself, and goes on where the cut was; what it gives up at
once is tried again here. Every failure is one line that names the model, the status and what to do, made of
our own words alone: what a server or a proxy answers may repeat a token or a signed address.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import httpx2
import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)

from steps import entry
from steps.artifacts import sha256_file
from steps.errors import DiskFullError, HeadstartError, WeightsError
from steps.sources.patience import TIMEOUT, patiently, seconds

T = TypeVar("T")

# A disk is as good as full when less than this is left, in bytes.
HEADROOM = 64 * 2**20


@dataclass(frozen=True)
class Repository:
    """A repository at a commit.

    Attributes:
        name: `owner/name`.
        revision: the commit, 40 hexadecimal digits.
    """

    name: str
    revision: str

    def __str__(self) -> str:
        return f"{self.name}@{self.revision[:12]}"


@dataclass(frozen=True)
class Listed:
    """What the hub tells of a file: its size in bytes, and its SHA-256 where it keeps one."""

    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class Listing:
    """The newest commit of a repository, its files, and the licence its card states, "" for none."""

    repository: Repository
    files: dict[str, Listed]
    licence: str


def fetch_file(repository: Repository, name: str) -> Path | None:
    """A file of the repository in the library's cache; it is downloaded when it is not there yet.

    Returns:
        Its path, or None when the repository has no such file at this commit.

    Raises:
        WeightsError: it cannot be had; the message tells why and what to do.
        DiskFullError: there is no room for it.
    """
    cached = huggingface_hub.try_to_load_from_cache(repository.name, name, revision=repository.revision)
    if cached is not None:
        # Anything but a path tells that we asked before, and the commit has no such file.
        return Path(cached) if isinstance(cached, str) else None
    if _is_absent(repository, name):
        return None
    where = f"{repository} {name}"
    size = ask_size(repository, name)
    if size is None:
        return None
    check_room(size, Path(constants.HF_HUB_CACHE), where)
    bar = _bar_of(f"{repository.name} {name}")
    return ask(
        lambda: Path(
            huggingface_hub.hf_hub_download(
                repository.name,
                name,
                revision=repository.revision,
                etag_timeout=TIMEOUT,
                tqdm_class=bar,
            )
        ),
        where,
        repository,
    )


def _is_absent(repository: Repository, name: str) -> bool:
    """Whether the cache has a list of the commit's files, as `hf download` leaves it, without this one."""
    try:
        listed = huggingface_hub.get_cached_repo_tree(repository.name, revision=repository.revision)
    except CachedRepoTreeNotFoundError:
        return False
    return name not in {one.path for one in listed}


def require_file(repository: Repository, name: str) -> Path:
    """The same of a file that must be there.

    Raises:
        WeightsError: it is not, or cannot be had.
    """
    path = fetch_file(repository, name)
    if path is None:
        raise WeightsError(
            f"{repository} has no file {name} (404): correct `model:`, or take another revision"
        )
    return path


def require_json(repository: Repository, name: str) -> dict[str, Any]:
    """The content of a JSON file that must be there.

    Raises:
        WeightsError: it is not, cannot be had, or is no JSON object.
    """
    path = require_file(repository, name)
    try:
        content = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsError(
            f"{repository}: {name} is not valid JSON ({error}); take another revision"
        ) from None
    if not isinstance(content, dict):
        raise WeightsError(f"{repository}: {name} holds no JSON object; take another revision")
    return content


def check_download(path: Path, pinned: str | None, repository: Repository, name: str) -> str:
    """The SHA-256 of a file in the cache, when it is the one pinned, or when none is.

    A file that is not what the hub itself said it is goes away, so that it is downloaded anew.

    Raises:
        WeightsError: the bytes are others.
    """
    found = sha256_file(path)
    # The cache names a large file by the hash that the hub told, and links to it.
    blob = path.parent / path.readlink() if path.is_symlink() else path
    told = blob.name if re.fullmatch(r"[0-9a-f]{64}", blob.name) else None
    if told is not None and told != found:
        path.unlink()
        blob.unlink()
        raise WeightsError(
            f"{repository} {name} came with other bytes than the hub announced (sha256 {found[:12]}, "
            f"announced {told[:12]}); it was removed from the cache: run again"
        )
    if pinned is not None and found != pinned:
        raise WeightsError(
            f"{repository} {name} has sha256 {found}, params.yaml pins {pinned}; "
            "`headstart pin` tells what the hub has: look before you change the pin"
        )
    return found


def newest(name: str) -> Listing:
    """Ask for the newest commit of a repository.

    Raises:
        WeightsError: there is no such repository, or it cannot be reached.
    """
    repository = Repository(name, "")
    api = huggingface_hub.HfApi()
    info = ask(
        lambda: api.model_info(name, files_metadata=True, timeout=TIMEOUT), name, repository, busy=True
    )
    card: Any = info.card_data or {}
    licence = card.get("license")
    if licence == "other":  # then its name stands beside it
        licence = card.get("license_name") or licence
    files = {
        one.rfilename: Listed(one.size, one.lfs.sha256 if one.lfs is not None else None)
        for one in info.siblings or ()
    }
    stated = ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence or "")
    return Listing(Repository(name, str(info.sha)), files, stated)


def check_room(size: int, folder: Path, where: str, setting: str = "HF_HOME") -> None:
    """Hold that a download fits on the disk of the cache.

    Args:
        size: in bytes.
        folder: the cache's, which may not be there yet.
        where: what is downloaded, for messages.
        setting: the variable that moves the cache.

    Raises:
        DiskFullError: it does not.
    """
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(there).free
    if free < size + HEADROOM:
        raise DiskFullError(
            f"{where} needs {size / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free where the cache lies; "
            f"free some space, or set {setting} to a folder on a larger disk"
        )


# ------------------------------------------------------------------------------------------------- patience


def ask(call: Callable[[], T], what: str, repository: Repository, *, busy: bool = False) -> T:
    """Ask the hub, and ask again after what may pass: an error of the server, a lost connection.

    Args:
        call: the request.
        what: is asked for, in messages.
        repository: whose it is.
        busy: also wait for a server that wants to be left alone for a while; where the library does so itself
            there is no use in asking again.

    Raises:
        WeightsError: it failed for good.
        DiskFullError: for want of space.
    """

    def may_pass(error: Exception) -> float | None:
        status = _status(error)
        if isinstance(error, LocalEntryNotFoundError | httpx2.ProxyError):
            return None
        if status == 429:
            return _retry_after(error) if busy else None
        cut = isinstance(error, httpx2.TransportError | XetDownloadError) or "Consistency check" in str(error)
        return 0.0 if cut or (status is not None and status >= 500) else None

    def reason(error: Exception) -> str:
        return f"status {status}" if (status := _status(error)) else type(error).__name__

    with _spoken(what):
        return patiently(call, what, may_pass, reason, lambda error: _tell(error, what, repository))


def _status(error: BaseException | None) -> int | None:
    return int(error.response.status_code) if isinstance(error, HfHubHTTPError) else None


def _retry_after(error: BaseException) -> float:
    return seconds(error.response.headers.get("Retry-After")) if isinstance(error, HfHubHTTPError) else 0.0


def ask_size(repository: Repository, name: str) -> int | None:
    """The size of a file in bytes, as the hub tells it; None when the repository has no such file."""
    return ask(lambda: _size(repository, name), f"{repository} {name}", repository, busy=True)


def _size(repository: Repository, name: str) -> int | None:
    url = huggingface_hub.hf_hub_url(repository.name, name, revision=repository.revision)
    try:
        # Asked without the library's own retries, which may take minutes.
        return huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT).size or 0
    except RemoteEntryNotFoundError:
        # Asked in this way the library writes down that there is none, for when there is no network.
        with suppress(RemoteEntryNotFoundError):
            huggingface_hub.hf_hub_download(
                repository.name, name, revision=repository.revision, etag_timeout=TIMEOUT, dry_run=True
            )
        return None


# ------------------------------------------------------------------------------------------------- messages


def _tell(error: BaseException, what: str, repository: Repository) -> NoReturn:
    """Raise our own error for one of the library's."""
    if isinstance(error, HeadstartError):
        raise error
    # The library wraps what went wrong when the cache could not stand in for the network.
    inner = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    if isinstance(inner, OSError) and inner.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFullError(
            f"the disk is full while downloading {what}; free some space and run again: nothing half-written "
            "was kept"
        ) from None
    raise WeightsError(f"{what}: {_reason(inner, repository)}") from error


def _reason(error: BaseException, repository: Repository) -> str:
    """What went wrong and what to do."""
    if isinstance(error, HfHubHTTPError):
        return _reason_of_status(error, repository)
    if isinstance(error, OfflineModeIsEnabled):
        return "is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub; unset it and fetch once"
    if isinstance(error, FileMetadataError):
        return "what answers is no hub; look at HF_ENDPOINT, the proxy and the firewall"
    if isinstance(error, httpx2.ProxyError):
        return "the proxy refuses; look at HTTPS_PROXY and NO_PROXY"
    if isinstance(error, httpx2.TimeoutException):
        return "the hub does not answer in time and the cache does not have it; try again later"
    if isinstance(error, httpx2.TransportError | XetDownloadError):
        return (
            f"the hub cannot be reached ({type(error).__name__}) and the cache does not have it; look at the "
            "network, the proxy and HF_ENDPOINT, then run again"
        )
    if isinstance(error, LocalEntryNotFoundError):
        return "is not in the cache, and the hub cannot be asked; look at the network"
    if "Consistency check" in str(error):
        return "the download stays incomplete; try again later"
    if isinstance(error, PermissionError):
        return f"the cache {constants.HF_HUB_CACHE} cannot be written; set HF_HOME to a folder of yours"
    return f"the hub's library fails ({type(error).__name__}); run again, HF_DEBUG=1 tells more"


def _reason_of_status(error: HfHubHTTPError, repository: Repository) -> str:
    status, has_token = error.response.status_code, huggingface_hub.get_token() is not None
    if isinstance(error, GatedRepoError):
        terms = f"the repository is gated ({status}): accept the terms of {repository.name} on the hub"
        if has_token:
            return f"{terms} with the account of your token, or use another token (HF_TOKEN, `hf auth login`)"
        return f"{terms}, then log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, DisabledRepoError):
        return f"the hub has disabled the repository ({status}): take another model"
    if isinstance(error, RevisionNotFoundError):
        return (
            f"the repository has no commit {repository.revision} ({status}): correct `revision:`, or leave "
            "it out and run `headstart pin`"
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return f"the repository has no such file ({status})"
    if status == 401 and has_token:
        return "the hub refuses your token (401): log in anew with `hf auth login`, or correct HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        login = "" if has_token else "; for a private one log in with `hf auth login` or set HF_TOKEN"
        return f"the hub knows no such repository ({status}): correct `model:`{login}"
    if status == 403:
        return "access is forbidden (403): use a token that may read the repository (HF_TOKEN)"
    if status == 429:
        asked = _retry_after(error)
        after = f" in {asked:.0f} s" if asked else " later"
        login = "" if has_token else "; with a token (HF_TOKEN) more requests are allowed"
        return f"the hub gets too many requests from here (429): try again{after}{login}"
    if status >= 500:
        return f"the hub has trouble of its own ({status}): try again later"
    return f"the hub refuses the request ({status})"


@contextmanager
def _spoken(what: str) -> Iterator[None]:
    """Say what the library logs in one line each, without addresses: those of a download may be signed."""

    class Said(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = record.getMessage().split("\n")[0]
            entry.say(f"{what}: {re.sub(r'https?://[^ ]+', 'the hub', line)[:200]}")

    logger = logging.getLogger("huggingface_hub")
    before = (logger.handlers, logger.propagate)
    logger.handlers, logger.propagate = [Said(logging.WARNING)], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before


def _bar_of(label: str) -> type[Any]:
    """A class of bars for the library, with what it calls of one, that shows our own progress."""

    class Bar:
        def __init__(self, *_: object, total: float | None = None, initial: float = 0, **__: object) -> None:
            self.total, self.n = total, initial
            # Not every download enters the bar's block.
            self.shown = entry.Progress(label, int(total)).__enter__() if total else None

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self.shown is not None:
                self.shown.reached(min(int(self.n), self.shown.total))

        def update_transfer(self, n: float | None = 1) -> None:
            """What came over the network; shown is what was written."""

        def set_postfix_str(self, *_: object, **__: object) -> None:
            """The speed is not shown."""

        set_transfer_postfix_str = refresh = set_postfix_str

        def close(self) -> None:
            shown, self.shown = self.shown, None
            if shown is not None:
                shown.__exit__(None, None, None)

    return Bar

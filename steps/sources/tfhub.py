"""SavedModels of TensorFlow, from Kaggle's model hub by its own library and cache, or from a folder.

The library's settings hold: KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, or a file of theirs;
KAGGLEHUB_CACHE for the cache. Nothing of a SavedModel is run here.
"""

from __future__ import annotations

import errno
import logging
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, Self

import requests

from steps import entry
from steps.errors import DiskFullError, HeadstartError, WeightsError
from steps.references import TfhubWeights
from steps.sources import Found, Pin
from steps.sources.hub import check_room
from steps.sources.patience import TIMEOUT, patiently, seconds
from steps.sources.weights import check_pin, fingerprint, size


def read(reference: TfhubWeights, scratch: Path) -> Found:
    """Bring the SavedModel that a reference names, and what can be trained upon it.

    Raises:
        WeightsError: it cannot be had, is altered, or is of no use.
    """
    from steps.sources import savedmodel

    if reference.handle is None:
        folder, told = Path(reference.path or ""), {"folder": Path(reference.path or "").name}
    else:
        folder = download(reference.handle, reference.version)
        told = {"handle": reference.handle, "version": str(reference.version)}
    what = reference.handle or folder.name
    sha256 = check_pin(fingerprint(folder), reference.sha256, what)
    found = savedmodel.read(reference, folder)
    told |= {"source": "tfhub", "sha256": sha256, "licence": reference.licence or ""}
    return replace(found, provenance=found.provenance | told)


def newest(reference: TfhubWeights) -> Pin:
    """The newest version of the handle; it is downloaded, for the hub tells no hash of the whole.

    Raises:
        WeightsError: the hub knows no such model, or cannot be reached.
    """
    assert reference.handle is not None
    instance = _ask(partial(_instance, reference.handle), reference.handle)
    version = int(instance.version_number)
    folder = download(reference.handle, version)
    fields = {"version": version, "sha256": fingerprint(folder), "licence": str(instance.license_name or "")}
    return Pin(fields, size(folder))


def download(handle: str, version: int | None) -> Path:
    """The folder of a version in the library's cache; it is downloaded when it is not there yet.

    Raises:
        WeightsError: it cannot be had, or names files outside of its folder.
        DiskFullError: there is no room for it.
    """
    import kagglehub
    from kagglehub.cache import Cache
    from kagglehub.config import get_cache_folder
    from kagglehub.handle import parse_model_handle

    if version is None:
        raise WeightsError(f"{handle}: no version is pinned; run `headstart pin EXPERIMENT`")
    what = f"{handle}/{version}"
    parsed = parse_model_handle(what)
    cached = Cache().load_from_cache(parsed)
    if cached is not None:
        return Path(cached)
    files = _ask(partial(_files, parsed), what)
    for name, _ in files:
        _check_inside(name, what)
    total = sum(bytes_ for _, bytes_ in files)
    check_room(total, Path(get_cache_folder()), what, "KAGGLEHUB_CACHE")
    with _shown(what, total):
        return Path(_ask(partial(kagglehub.model_download, what), what))


def _check_inside(name: str, what: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name:
        raise WeightsError(f"{what} names a file outside of its folder ({name!r}); nothing was downloaded")


def _instance(handle: str) -> Any:  # noqa: ANN401 - of the hub's own library
    from kagglehub.clients import build_kaggle_client
    from kagglehub.handle import parse_model_handle
    from kagglesdk.models.types.model_api_service import ApiGetModelInstanceRequest

    parsed, request = parse_model_handle(handle), ApiGetModelInstanceRequest()
    request.owner_slug, request.model_slug = parsed.owner, parsed.model
    request.framework, request.instance_slug = parsed.framework_enum(), parsed.variation
    with build_kaggle_client() as client:
        return client.models.model_api_client.get_model_instance(request)


def _files(parsed: Any) -> list[tuple[str, int]]:  # noqa: ANN401 - of the hub's own library
    """Names and sizes, in bytes, of a version's files: of all, or of as many as are downloaded one by one."""
    from kagglehub.clients import build_kaggle_client
    from kagglehub.http_resolver import MAX_NUM_FILES_DIRECT_DOWNLOAD
    from kagglesdk.models.types.model_api_service import ApiListModelInstanceVersionFilesRequest

    request = ApiListModelInstanceVersionFilesRequest()
    request.owner_slug, request.model_slug = parsed.owner, parsed.model
    request.framework, request.instance_slug = parsed.framework_enum(), parsed.variation
    request.version_number, request.page_size = parsed.version, MAX_NUM_FILES_DIRECT_DOWNLOAD
    with build_kaggle_client() as client:
        answer = client.models.model_api_client.list_model_instance_version_files(request)
    return [(str(one.name), int(one.size or 0)) for one in answer.files or ()]


# ----------------------------------------------------------------------------------------------- failures


def _ask(call: Any, what: str) -> Any:  # noqa: ANN401 - what the hub's library gives
    with _bounded():
        return patiently(call, what, _may_pass, _in_a_word, partial(_tell, what))


def _may_pass(error: Exception) -> float | None:
    status = _status(error)
    if status == 429 and isinstance(error, requests.HTTPError) and error.response is not None:
        return seconds(error.response.headers.get("Retry-After"))
    if isinstance(error, requests.exceptions.ProxyError):
        return None
    lost = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    passing = isinstance(error, lost) or type(error).__name__ == "DataCorruptionError"
    return 0.0 if passing or (status is not None and status >= 500) else None


def _in_a_word(error: Exception) -> str:
    return f"status {status}" if (status := _status(error)) else type(error).__name__


def _status(error: BaseException) -> int | None:
    response = error.response if isinstance(error, requests.HTTPError) else None
    return int(response.status_code) if response is not None else None


def _tell(what: str, error: Exception) -> NoReturn:
    """Raise our own error, of our own words: what a server answers may repeat a token."""
    if isinstance(error, HeadstartError):
        raise error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFullError(f"the disk is full while downloading {what}; free some space and run again")
    raise WeightsError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    status, login = _status(error), "set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY"
    if status in (401, 403):
        if _has_credentials():
            return (
                f"Kaggle's hub refuses your credentials ({status}): correct them, and accept the model's "
                "terms on its page with the same account"
            )
        return f"Kaggle's hub wants a login ({status}): accept the model's terms on its page, then {login}"
    if status == 404:
        return "Kaggle's hub knows no such model or version (404): correct `handle:` or `version:`"
    if status == 429:
        return "Kaggle's hub gets too many requests from here (429): try again later"
    if status is not None:
        trouble = "has trouble of its own" if status >= 500 else "refuses the request"
        return f"Kaggle's hub {trouble} ({status}): try again later"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy refuses; look at HTTPS_PROXY and NO_PROXY"
    if isinstance(error, requests.RequestException):
        return (
            f"Kaggle's hub cannot be reached ({type(error).__name__}) and the cache does not have it; look "
            "at the network and the proxy, then run again"
        )
    if type(error).__name__ == "DataCorruptionError":
        return "came with other bytes than the hub announced, more than once; try again later"
    if isinstance(error, tarfile.TarError | zipfile.BadZipFile) or "archive" in str(error):
        return f"the archive cannot be unpacked safely ({type(error).__name__}); take another version"
    return f"the hub's library fails ({type(error).__name__}); run again"


def _has_credentials() -> bool:
    from kagglehub.config import get_kaggle_credentials

    return get_kaggle_credentials() is not None


@contextmanager
def _bounded() -> Iterator[None]:
    """Let no request wait for ever: the library sets no limit of its own for some."""
    send = requests.Session.send

    def limited(
        self: requests.Session,
        request: requests.PreparedRequest,
        **given: Any,  # noqa: ANN401 - what requests takes
    ) -> requests.Response:
        return send(self, request, **{**given, "timeout": given.get("timeout") or TIMEOUT})

    with _replaced(requests.Session, send=limited):
        yield


@contextmanager
def _shown(what: str, total: int) -> Iterator[None]:
    """Show our own progress in place of the library's bars and lines."""
    from kagglehub import clients, http_resolver

    logger, progress = logging.getLogger("kagglehub"), entry.Progress(what, max(total, 1))

    class Bar:
        def __init__(self, *_: object, **__: object) -> None:
            """Nothing of its own: all files share one bar."""

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            """All files share one bar."""

        def update(self, more: int) -> None:
            progress.reached(min(progress.done + more, progress.total))

    silent = partial(http_resolver.thread_map, disable=True)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with progress, _replaced(clients, tqdm=Bar), _replaced(http_resolver, thread_map=silent):
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _replaced(place: Any, **others: object) -> Iterator[None]:  # noqa: ANN401 - a module or class
    """With other attributes inside the block."""
    before = {name: getattr(place, name) for name in others}
    for name, value in others.items():
        setattr(place, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(place, name, value)

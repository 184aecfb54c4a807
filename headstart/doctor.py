"""Is everything here that a run needs? Each check gives one line that says what to change."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steps.artifacts import PARAMS_FILE, sha256_file
from steps.errors import HeadstartError

OLDEST_PYTHON = (3, 11)
LOCK_FILE = Path("requirements.lock")
LOW_BYTES, TOO_LOW_BYTES = 4 * 2**30, 2**29
ANSWER_SECONDS = 5.0
SHOWN = 3

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What a check found: its level, what was looked at, and what is there or what to change."""

    level: Level
    subject: str
    text: str


def examine() -> Iterator[Finding]:
    """Run every check in the clone of the working directory."""
    for check in CHECKS:
        yield from check()


def _python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        yield Finding(
            "fail", "Python", f"is {found}, must be 3.11 or later; run `make install PYTHON=python3.11`"
        )
    elif sys.prefix == sys.base_prefix:
        yield Finding("warn", "Python", f"{found}, outside of an environment; `make install` makes .venv")
    else:
        yield Finding("ok", "Python", f"{found} in {sys.prefix}")


def _packages() -> Iterator[Finding]:
    if not LOCK_FILE.exists():
        yield Finding(
            "fail", "packages", f"{LOCK_FILE} is missing; take it back with `git checkout {LOCK_FILE}`"
        )
        return
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", LOCK_FILE.read_text("utf-8"), re.MULTILINE)
    wrong = []
    for name, version in pinned:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found.split("+")[0] != version.split("+")[0]:  # 2.1.0+cpu is 2.1.0, built for CPUs
            wrong.append(f"{name} {found} (locked {version})")
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        text = f"{', '.join(wrong[:SHOWN])}{more}; run `make install`"
        yield Finding("fail", "packages", text)
    else:
        yield Finding("ok", "packages", f"{len(pinned)} at their locked versions")


def _own_code() -> Iterator[Finding]:
    import steps

    code = Path(str(steps.__file__)).resolve().parent.parent
    if code != Path.cwd().resolve():
        text = f"`headstart` runs the code of {code}, not of this clone; run `make install` here"
        yield Finding("warn", "clone", text)


def _params() -> Iterator[Finding]:
    from steps import params
    from steps.references import PackageWeights, unpinned

    try:
        checked = params.load(PARAMS_FILE)
    except HeadstartError as error:
        yield Finding("fail", "params.yaml", str(error))
        return
    yield Finding("ok", "params.yaml", f"experiments: {', '.join(checked.experiments)}")
    for slug, reference in checked.pretrained.items():
        if isinstance(reference, PackageWeights):
            yield _weights(slug, reference.package, reference.file, reference.sha256)
        elif missing := unpinned(reference):
            text = f"{' and '.join(missing)} not pinned: run `headstart pin` for its experiment"
            yield Finding("warn", f"weights {slug}", text)
        else:
            yield Finding("ok", f"weights {slug}", f"source {reference.source}, pinned")


def _weights(slug: str, package: str, file: str, sha256: str) -> Finding:
    subject = f"weights {slug}"
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        return Finding("fail", subject, f"package {package} is not installed; run `make install`")
    path = Path(next(iter(spec.submodule_search_locations))) / file
    if not path.is_file():
        return Finding(
            "fail", subject, f"{path} is missing; run `pip install --force-reinstall` on {package}"
        )
    if sha256_file(path) != sha256:
        text = f"{path} has not the sha256 that params.yaml pins; reinstall {package}, or look what changed"
        return Finding("fail", subject, text)
    return Finding("ok", subject, f"{path.stat().st_size / 2**20:.0f} MiB with the pinned sha256")


def _dvc() -> Iterator[Finding]:
    if shutil.which("git") is None:
        yield Finding("fail", "git", "is not installed; DVC needs it: `apt install git`")
        return
    from flows.stages import Stages

    try:
        resolved = Stages().up_to_date("resolve")
    except HeadstartError as error:
        hint = "" if Path(".git").exists() else "; this clone has no .git: run `git init`"
        yield Finding("fail", "DVC", f"{error}{hint}")
        return
    text = "the graph can be read" + ("" if resolved else "; params.yaml, or how it is read, has changed")
    yield Finding("ok", "DVC", text)


def _tracking() -> Iterator[Finding]:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith("http"):
        yield Finding("ok", "tracking", uri or "the local store in mlflow/")
        return
    from steps.tracking.addresses import shown

    named = shown(uri).rstrip("/")  # it may hold a password
    problem = _unanswered(f"{named}/health")
    if problem:
        text = f"{named} does not answer ({problem}); runs go on without, `headstart publish` catches up"
        yield Finding("warn", "tracking", text)
    else:
        yield Finding("ok", "tracking", f"{named} answers")


def _prefect() -> Iterator[Finding]:
    from flows.server import shown_by_ui
    from steps.tracking.addresses import shown

    url, pages = os.environ.get("PREFECT_API_URL"), shown_by_ui()
    if not url and not pages:
        yield Finding("ok", "Prefect", "no server set; a run starts its own, `headstart ui` one to look at")
        return
    named = shown(url or str(pages)).rstrip("/")  # it may hold a password
    problem = _unanswered(f"{named}/health")
    if problem:
        advice = (
            "run `prefect server start`, or unset PREFECT_API_URL" if url else "start `headstart ui` anew"
        )
        yield Finding("fail", "Prefect", f"{named} does not answer ({problem}); {advice}")
    else:
        yield Finding("ok", "Prefect", f"{named} answers" + ("" if url else ", from `headstart ui`"))


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free
    text = f"{free / 2**30:.1f} GiB free"
    if free < TOO_LOW_BYTES:
        yield Finding("fail", "disk", f"{text}; free some: `dvc gc --workspace` drops results of older runs")
    elif free < LOW_BYTES:
        yield Finding("warn", "disk", f"{text}; a run of real size may not fit")
    else:
        yield Finding("ok", "disk", text)
    for folder in (Path(), Path(tempfile.gettempdir())):
        try:
            with tempfile.NamedTemporaryFile(dir=folder):
                pass
        except OSError as error:
            name = folder.resolve()
            yield Finding(
                "fail", "write access", f"cannot write in {name}: {error.strerror}; mend its owner or mode"
            )
            return
    yield Finding("ok", "write access", "here and in the temporary folder")


def _unanswered(url: str) -> str | None:
    """Why nothing answers at an address; None where something does."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}" if error.code >= 500 else None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python, _packages, _own_code, _params, _dvc, _tracking, _prefect, _disk,
)  # fmt: skip

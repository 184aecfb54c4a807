"""why: one page that tells where a version comes from, from its alias down to the bytes, every link checked.

It reads: the registry, the ledger of aliases, the runs and what was published with them, git, and this clone.
Nothing is loaded, and mlflow is not imported: importing it takes longer than all of this.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from steps import artifacts, entry
from steps.errors import HeadstartError
from steps.tracking import addresses, aliases, naming, reader, registry, store
from steps.tracking.aliases import CHAMPION, Entry, Look
from steps.tracking.reader import Files
from steps.tracking.registry import FILES, FILES_SHA, Version
from steps.tracking.store import Store

Check = Literal["ok", "noted", "differs", "not here", "unknown"]
STYLES = {"ok": "green", "noted": "dim", "differs": "bold red", "not here": "yellow", "unknown": "yellow"}
# A pipe has no width: lines must not be folded at 80.
PIPE_WIDTH = 200
# Of a hash, as many digits as tell it apart.
SHORT = 12
# Of a version's files, below the folder that `steps/serving.py` reads.
INSIDE = "data/model"
CACHE = Path(".dvc/cache/files/md5")
# What people look for first among the parameters of a training.
SHOWN = (
    "start", "tune", "learning_rate", "backbone_learning_rate", "epochs", "batch_size", "seed", "resample",
    "train_labels", "validation_labels",
)  # fmt: skip


@dataclass(frozen=True)
class Link:
    """One link of the chain.

    Attributes:
        name: what it is.
        check: whether it was found to be what was recorded; "noted" where there is nothing to compare it
            with, "not here" where only this clone lacks it, "unknown" where nothing was recorded.
        lines: for people.
        facts: for programs.
    """

    name: str
    check: Check
    lines: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trail:
    """What is known of a version, read when it is asked for.

    Attributes:
        opened: the store.
        files: reads its artifacts.
        version: whose origin is told.
        alias: it was named by; empty where it was named by number.
    """

    opened: Store
    files: Files
    version: Version
    alias: str

    @cached_property
    def ledger(self) -> Look:
        """Of the model."""
        return aliases.look(self.opened, self.version.model)

    @cached_property
    def run(self) -> Any:  # noqa: ANN401 - a run of MLflow, or what stands for it
        """Of the training; None where it is gone."""
        return self._run(self.version.run_id)

    @cached_property
    def comparison(self) -> Any:  # noqa: ANN401 - a run of MLflow, or what stands for it
        """The run of the comparison that the training was part of; None where it is gone."""
        parent = self.run.data.tags.get("mlflow.parentRunId") if self.run is not None else None
        return None if parent is None else self._run(parent)

    def _run(self, run_id: str) -> Any:  # noqa: ANN401 - as above
        if not run_id:
            return None
        try:
            return self.opened.client.get_run(run_id)
        except Exception as error:
            store.is_absent(error)
            return None

    @cached_property
    def tags(self) -> dict[str, str]:
        """Where the result came from, as it was published; what only the version has stays."""
        return self.version.tags | ({} if self.comparison is None else dict(self.comparison.data.tags))

    @property
    def training(self) -> dict[str, str]:
        """Arm, seed and resample, among other tags."""
        return self.version.tags | ({} if self.run is None else dict(self.run.data.tags))

    def origin(self, name: str) -> bytes | None:
        """A file that was published with the comparison."""
        return (
            None
            if self.comparison is None
            else self.files.of_run(self.comparison.info.run_id, f"origin/{name}")
        )

    @cached_property
    def lock(self) -> bytes | None:
        """DVC's lock file as it was."""
        return self.origin("dvc.lock")

    @cached_property
    def listed(self) -> dict[str, str] | None:
        """SHA-256 of each of the version's files; None where there is no list, or it was altered."""
        content = self.files.of_version(self.version.model, self.version.number, FILES)
        if content is None or hashlib.sha256(content).hexdigest() != self.version.tags.get(FILES_SHA):
            return None
        found: dict[str, str] = json.loads(content)
        return found

    def inside(self, name: str) -> tuple[Any, Check]:
        """A JSON file of the version, and whether its bytes are those that were registered."""
        path = f"{INSIDE}/{name}"
        content = self.files.of_version(self.version.model, self.version.number, path)
        if content is None:
            return None, "not here"
        if self.listed is None:
            return json.loads(content), "unknown"
        same = hashlib.sha256(content).hexdigest() == self.listed.get(path)
        return (json.loads(content), "ok") if same else (None, "differs")

    @property
    def experiment(self) -> str:
        """Whose winner it was."""
        return self.version.model.removeprefix(registry.name_of(""))

    @property
    def arm(self) -> str:
        """That won."""
        return self.version.tags.get("headstart.arm", "")


def why(reference: str, as_json: bool = False, files: Path | None = None) -> None:
    """Print where a version comes from.

    Args:
        reference: `EXPERIMENT@ALIAS`, or a model's full name and a number.
        as_json: one JSON object and nothing else.
        files: a folder that gets what was published with the result, as far as there is such; else None.

    Raises:
        UserError: there is no such version.
        HeadstartError: something differs from what was recorded; the page says what.
    """
    with reader.reading("look at MLFLOW_TRACKING_URI") as (opened, reads):
        version = naming.version_of(opened, reference)
        which = reference.rpartition("@")[2]
        trail = Trail(opened, reads, version, "" if which.isdecimal() else which)
        links = tuple(make(trail) for make in LINKS)
        if files is not None:
            _bring(trail, files)
    title = f"{version.model}@{which}" if trail.alias else version.model
    if as_json:
        about = {
            "model": version.model,
            "version": version.number,
            "alias": trail.alias or None,
            "experiment": trail.experiment,
            **{name: trail.training.get(f"headstart.{name}") for name in ("arm", "seed", "resample")},
        }
        entry.say(json.dumps(about | {"links": [asdict(link) for link in links]}, sort_keys=True))
    else:
        _show(f"{title}, version {version.number}", links)
    wrong = [link.name for link in links if link.check == "differs"]
    if wrong:
        raise HeadstartError(f"not as it was recorded: {', '.join(wrong)}")


# ------------------------------------------------------------------------------------------------- the links


def of_alias(trail: Trail) -> Link:
    """The alias, and the entry of the ledger that put it there."""
    ledger, number = trail.ledger, trail.version.number
    if ledger.broken is not None:
        return Link("alias", "differs", (str(ledger.broken),))
    if not trail.alias:
        held = ", ".join(trail.version.aliases) or "none"
        return Link("alias", "ok", (f"named by its number; its aliases: {held}",))
    if trail.alias not in aliases.ALIASES:
        return Link(
            "alias", "unknown", (f"{trail.alias} is not one of ours: the ledger does not tell of it",)
        )
    since = _since(ledger.entries, trail.alias, number)
    if since is None:
        said = (
            "the ledger does not say so: it was moved by hand" if ledger.entries else "there is no ledger yet"
        )
        return Link("alias", "differs" if ledger.entries else "unknown", (said,))
    line = f"{trail.alias} since {_when(since.time)}, entry {since.number} of {len(ledger.entries)}: "
    return Link("alias", "ok", (f"{line}{since.what} by {since.who}", since.why), asdict(since))


def _since(entries: tuple[Entry, ...], alias: str, number: str) -> Entry | None:
    """The entry that put an alias on a version, if it is still there by the ledger."""
    found = None
    for one in reversed(entries):
        if one.after.get(alias) != number:
            break
        found = one
    return found


def of_version(trail: Trail) -> Link:
    """The version and its files."""
    version = trail.version
    made = trail.opened.client.get_model_version(version.model, version.number).creation_timestamp
    where = f"of {addresses.shown(trail.opened.uri)}, made {_moment(int(made))}"
    facts: dict[str, Any] = {"number": version.number, "files_sha256": version.tags.get(FILES_SHA)}
    if FILES_SHA not in version.tags:
        return Link(
            "version", "unknown", (f"{version.number} {where}", "older than the list of its files"), facts
        )
    if trail.listed is None:
        return Link(
            "version", "differs", (f"{version.number} {where}", "its list of files is gone or altered"), facts
        )
    folder = trail.files.folder(version.model, version.number)
    count = f"{len(trail.listed)} files, list {_short(version.tags[FILES_SHA])}"
    if folder is None:
        told = f"{count}; the list is as registered, each file is compared when it is loaded"
        return Link("version", "ok", (f"{version.number} {where}", told), facts)
    try:
        registry.check(version, "", folder)
    except HeadstartError as error:
        return Link("version", "differs", (f"{version.number} {where}", str(error)), facts)
    return Link("version", "ok", (f"{version.number} {where}", f"{count}, every byte as registered"), facts)


def of_run(trail: Trail) -> Link:
    """The training's run, and its weights."""
    if trail.run is None:
        return Link("run", "unknown", (f"run {trail.version.run_id or 'of no name'} is gone from MLflow",))
    run, version = trail.run, trail.version
    recorded = version.tags.get("headstart.weights_sha256")
    facts = {"run_id": run.info.run_id, "weights_sha256": recorded}
    lines = [f"{run.info.run_name}, run {run.info.run_id}"]
    if trail.comparison is not None:
        lines.append(
            f"of the comparison {trail.comparison.info.run_name}, run {trail.comparison.info.run_id}"
        )
        facts["comparison_run_id"] = trail.comparison.info.run_id
    stored = (trail.listed or {}).get(f"{INSIDE}/trained/model.safetensors")
    same = recorded == run.data.tags.get("headstart.weights_sha256") == (stored or recorded)
    lines.append(f"weights {_short(recorded)}" + ("" if same else ", and the run or the version has others"))
    return Link("run", "ok" if same and stored else "differs" if not same else "unknown", tuple(lines), facts)


def of_flow(trail: Trail) -> Link:
    """Prefect's flow run."""
    found = trail.tags.get("headstart.flow_run")
    if found is None:
        return Link("flow run", "unknown", ("published by a release that did not note it",))
    if found == "none":
        return Link("flow run", "unknown", ("published without Prefect, e.g. by `headstart publish`",))
    return Link("flow run", "noted", (f"{found}, as Prefect names it",), {"flow_run": found})


def of_commit(trail: Trail) -> Link:
    """The commit of the code."""
    commit, dirty = trail.tags.get("headstart.git_commit", "unknown"), trail.tags.get("headstart.git_dirty")
    facts = {"commit": commit, "dirty": dirty}
    if commit == "unknown":
        return Link("commit", "unknown", ("it was published outside of git",), facts)
    told = {"true": ", but the code differed from it", "false": ", and the code was exactly that"}
    line = f"{commit[:SHORT]}{told.get(str(dirty), '')}"
    found = _git("show", "--no-patch", "--format=%cs  %s", commit)
    if found is None:
        return Link(
            "commit", "not here", (line, "this clone has no such commit; `git fetch` may bring it"), facts
        )
    return Link("commit", "ok", (line, found.strip()), facts)


def of_lock(trail: Trail) -> Link:
    """DVC's lock file."""
    recorded = trail.tags.get("headstart.dvc_lock_sha256", "none")
    facts = {"sha256": recorded}
    if trail.lock is None:
        return Link("dvc.lock", "unknown", (f"{_short(recorded)}; not published with the result",), facts)
    if hashlib.sha256(trail.lock).hexdigest() != recorded:
        return Link("dvc.lock", "differs", (f"{_short(recorded)}; what was published is another",), facts)
    here = Path("dvc.lock")
    same = here.exists() and artifacts.sha256_file(here) == recorded
    told = "the same as this clone's" if same else "this clone has gone on since"
    return Link("dvc.lock", "ok", (f"{_short(recorded)}, published with the result; {told}",), facts)


def of_data(trail: Trail) -> Link:
    """What ingest made, as the training saw it."""
    journal, check = trail.inside("trained/run.json")
    recorded = trail.version.tags.get("headstart.data_sha256")
    facts: dict[str, Any] = {"data_sha256": recorded}
    lines = [f"training rows {_short(recorded)}"]
    if journal is not None and journal.get("data_sha256") != recorded:
        return Link("data", "differs", (*lines, "the training's journal names others"), facts)
    path = artifacts.data_dir(trail.experiment).as_posix()
    out = _out(trail, f"ingest@{trail.experiment}", path)
    if out is None:
        return Link(
            "data", "unknown" if check == "ok" else check, (*lines, "of a dvc.lock that is not known"), facts
        )
    facts |= {"path": path, **out}
    return _kept("data", lines, path, out, facts, check)


def of_split(trail: Trail) -> Link:
    """Which sample was in which split."""
    path = artifacts.split_file(trail.experiment).as_posix()
    out = _out(trail, f"split@{trail.experiment}", path)
    test = trail.comparison.data.params.get("test_size") if trail.comparison is not None else None
    found = trail.run.data.params if trail.run is not None else {}
    sizes = {"train": found.get("train_labels"), "validation": found.get("validation_labels"), "test": test}
    told = ", ".join(f"{count or '?'} {name}" for name, count in sizes.items())
    facts: dict[str, Any] = {**sizes, "test_sha256": trail.version.tags.get("headstart.test_sha256")}
    lines = [told]
    if facts["test_sha256"]:
        lines.append(f"frozen test set {_short(facts['test_sha256'])}")
    if out is None:
        return Link("split", "unknown", (*lines, "of a dvc.lock that is not known"), facts)
    return _kept("split", lines, path, out, facts | {"path": path, **out}, "ok")


def _kept(
    name: str, lines: list[str], path: str, out: Mapping[str, Any], facts: dict[str, Any], check: Check
) -> Link:
    """A link to what DVC keeps: whether this clone's cache has it."""
    digest = str(out["md5"])
    count = f"{out['nfiles']} files, " if "nfiles" in out else ""
    told = f"{path}: {count}{_size(int(out['size']))}, DVC {digest}"
    if not (CACHE / digest[:2] / digest[2:]).exists():
        return Link(name, "not here", (*lines, told, "not in .dvc/cache; `dvc pull` brings it"), facts)
    return Link(name, check, (*lines, told), facts)


def of_weights(trail: Trail) -> Link:
    """The pretrained weights it started from, or whose architecture it has."""
    found, check = trail.inside("pretrained/provenance.json")
    recorded = trail.version.tags.get("headstart.pretrained_sha256")
    facts = {"pretrained_sha256": recorded, "provenance": found}
    if found is None:
        return Link("backbone", "unknown" if check == "not here" else check, (f"{_short(recorded)}",), facts)
    name = next((str(found[key]) for key in ("model", "handle", "package", "path") if found.get(key)), "?")
    revision = f"revision {found.get('revision') or found.get('version') or 'unknown'}"
    told = f"{name} from {found.get('source', '?')}, {revision}, licence {found.get('licence') or 'unknown'}"
    lines = (told, f"sha256 {_short(found.get('sha256'))}, as fetched {_short(recorded)}")
    if recorded and found.get("converted_sha256") not in (None, recorded):
        return Link("backbone", "differs", (*lines, "the training's journal names others"), facts)
    return Link("backbone", check, lines, facts)


def of_parameters(trail: Trail) -> Link:
    """The parameters of the training."""
    found = {} if trail.run is None else dict(trail.run.data.params)
    tuned = [name for name in sorted(found) if name.startswith("tuned/")]
    told = ", ".join(f"{name} {found[name]}" for name in (*SHOWN, *tuned) if name in found)
    content = trail.origin(artifacts.PARAMS_FILE.name)
    end = "params.yaml is published with the result" if content else "params.yaml was not published"
    lines = (f"arm {trail.arm}: {told}" if told else "not in MLflow", end)
    facts = {
        "arm": trail.arm,
        "parameters": found,
        "params_sha256": trail.tags.get("headstart.params_sha256"),
    }
    return Link("parameters", "ok" if told and content else "unknown", lines, facts)


def of_environment(trail: Trail) -> Link:
    """The locked environment, and the machine."""
    recorded = trail.tags.get("headstart.environment_sha256")
    machine = trail.tags.get("headstart.machine")
    facts = {"sha256": recorded, "machine": machine}
    if recorded is None:
        return Link("environment", "unknown", ("published by a release that did not note it",), facts)
    content = trail.origin("requirements.lock")
    same = content is not None and hashlib.sha256(content).hexdigest() == recorded
    here = Path("requirements.lock")
    clone = here.exists() and artifacts.sha256_file(here) == recorded
    told = "the same as this clone's" if clone else "this clone has another"
    lines = (f"requirements.lock {_short(recorded)}; {told}", f"on {machine}")
    return Link("environment", "ok" if same else "unknown" if content is None else "differs", lines, facts)


def of_validation(trail: Trail) -> Link:
    """What Great Expectations found in the data."""
    content = trail.origin("validation.json")
    if content is None:
        return Link("validation", "unknown", ("not published with the result",))
    found = json.loads(content)
    expectations = found.get("expectations", [])
    failed = [one for one in expectations if not one.get("success")]
    held = f"{len(expectations) - len(failed)} of {len(expectations)} expectations hold"
    told = f"{held}, {found.get('accepted')} samples accepted"
    lines = [told, *(f"{one['level']}: not so that {one['text']} ({one['unexpected']})" for one in failed)]
    facts = {"accepted": found.get("accepted"), "expectations": expectations}
    return Link("validation", "ok", tuple(lines), facts)


def of_gate(trail: Trail) -> Link:
    """The gate's decision on this version, with its figures."""
    found = _decided(trail.ledger.entries, trail.version.number)
    if found is None:
        reason = trail.version.tags.get("headstart.reason")
        told = (reason, "before there was a ledger") if reason else ("there was none",)
        return Link("gate", "unknown", told, {"reason": reason})
    decided = f"{'promoted' if found.what == 'promote' else 'refused'} (entry {found.number}): {found.why}"
    lines = (decided, *_figures(found.evidence))
    return Link("gate", "ok", lines, {"entry": found.number, "what": found.what, "evidence": found.evidence})


def _decided(entries: tuple[Entry, ...], number: str) -> Entry | None:
    """The last decision on a version, or a promotion by hand."""
    for one in reversed(entries):
        if one.what == "promote" and one.after.get(CHAMPION) == number:
            return one
        if one.what == "keep" and one.after.get(aliases.CHALLENGER) == number:
            return one
    return None


def _figures(evidence: Mapping[str, Any]) -> list[str]:
    """A line for each of the gate's checks."""
    lines = []
    for one in evidence.get("checks", []):
        apart = ("check", "passed", "test")
        facts = [
            f"{key} {_told(value)}" for key, value in one.items() if key not in apart and _is_plain(value)
        ]
        lines.append(f"{'+' if one.get('passed') else '-'} {one.get('check')}: {', '.join(facts)}")
    return lines


LINKS: tuple[Callable[[Trail], Link], ...] = (
    of_alias, of_version, of_run, of_flow, of_commit, of_lock, of_data, of_split, of_weights, of_parameters,
    of_environment, of_validation, of_gate,
)  # fmt: skip


# ------------------------------------------------------------------------------------------ looking, telling


def _out(trail: Trail, stage: str, path: str) -> dict[str, Any] | None:
    """What DVC's lock file says of one output of a stage; the rest of it is not parsed, it may be long."""
    from ruamel.yaml import YAML

    block = _block(trail.lock or b"", stage)
    if block is None:
        return None
    outs = YAML(typ="safe").load(StringIO(block)).get("outs", [])
    found = next((dict(one) for one in outs if one["path"] == path), None)
    return None if found is None else {key: found[key] for key in ("md5", "size", "nfiles") if key in found}


def _block(lock: bytes, stage: str) -> str | None:
    lines = lock.decode("utf-8", "replace").splitlines()
    if f"  {stage}:" not in lines:
        return None
    start = lines.index(f"  {stage}:") + 1
    end = next((at for at in range(start, len(lines)) if not lines[at].startswith("    ")), len(lines))
    return "\n".join(lines[start:end])


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _bring(trail: Trail, folder: Path) -> None:
    """Write out what was published with the result."""
    origin = ("dvc.lock", "params.yaml", "requirements.lock", "validation.json")
    for path in (*(f"origin/{name}" for name in origin), "report/comparison.json"):
        content = None
        if trail.comparison is not None:
            content = trail.files.of_run(trail.comparison.info.run_id, path)
        if content is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / Path(path).name).write_bytes(content)


def _show(title: str, links: tuple[Link, ...]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH, force_terminal=False)
    console.print(Text(title, style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for link in links:
        lines = "\n".join(filter(None, map(_clean, link.lines)))
        table.add_row(link.name, Text(link.check, style=STYLES[link.check]), Text(lines))
    console.print(table)


def _clean(text: str) -> str:
    """Text on one line, without signs that would steer a terminal."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())


def _short(digest: object) -> str:
    return str(digest)[:SHORT] if digest else "unknown"


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 / 10 else f"{count / 2**10:,.1f} KiB"


def _when(text: str) -> str:
    return text[:16].replace("T", " ")


def _moment(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M}"


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _told(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------ the command line


def main() -> int:
    """Run `python -m steps.why MODEL@ALIAS [--json] [--files FOLDER]`."""
    parser = argparse.ArgumentParser(prog="python -m steps.why", allow_abbrev=False)
    parser.add_argument("reference")
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--files", type=Path)
    given = parser.parse_args()
    return entry.guarded(lambda: why(given.reference, given.as_json, given.files))


if __name__ == "__main__":
    sys.exit(main())

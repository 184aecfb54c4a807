"""Why an experiment has to be trained anew; found without torch, MLflow or Prefect.

DVC compares by content, so a file that was touched, or changed and changed back, is no cause. What changed
is told in the user's words: the data, a setting with its old and new value, a module, the environment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from flows import champions, records
from flows.champions import Glance
from flows.stages import Change, Stages, of_experiment, stage_name
from steps import artifacts, resolve
from steps.errors import HeadstartError
from steps.layouts import PackageData
from steps.params import LIMITS, Params
from steps.tracking import addresses, journal

Kind = Literal[
    "data", "code", "environment", "parameters", "new", "missing", "unfinished", "unpublished", "champion",
    "age", "asked", "drift",
]  # fmt: skip
LOCK_FILE = "requirements.lock"
# Settings that change no result, by the name of their file.
NO_RESULT = (LIMITS, "register", "drift", "serving")
# As many as a person reads.
SHOWN = 5


@dataclass(frozen=True)
class Cause:
    """One reason to do something.

    Attributes:
        kind: what it is about.
        text: what exactly, in a few words.
    """

    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True)
class Look:
    """What was found of an experiment.

    Attributes:
        experiment: its name.
        causes: why something has to be done; none: all is as it was.
        drift: what `headstart monitor` found, where no night has told of it yet.
        champion: as the registry has it.
    """

    experiment: str
    causes: tuple[Cause, ...]
    drift: dict[str, Any] | None = None
    champion: Glance = champions.NOTHING

    @property
    def to_run(self) -> bool:
        """Whether there is work: drift alone is told, and needs new labels instead."""
        return any(cause.kind != "drift" for cause in self.causes)

    @property
    def anew(self) -> bool:
        """Whether to build what DVC finds unchanged."""
        return any(cause.kind in ("age", "asked") for cause in self.causes)


def find(
    stages: Stages,
    experiment: str,
    checked: Params,
    nights: Sequence[records.Record],
    now: datetime,
    *,
    force: bool = False,
) -> Look:
    """Look for causes.

    Args:
        stages: the clone's.
        experiment: its name.
        checked: params.yaml.
        nights: what earlier nights did, the newest first.
        now: in UTC.
        force: build it anew even where there is no cause.

    Raises:
        UserError: DVC cannot work here.
    """
    noted = _noted(experiment)
    champion = champions.glance(noted["model"]) if noted else champions.NOTHING
    causes = [
        *_of_parameters(experiment, checked),
        *_of_stages(stages, experiment, checked),
        *_of_registry(experiment, noted, champion, nights),
    ]
    if force:
        causes.append(Cause("asked", "built anew on request"))
    elif not causes:
        causes += _of_age(experiment, checked, champion, nights, now)
    drift = _drift(experiment, nights) if checked.nightly.on_drift else None
    if drift is not None:
        causes.append(Cause("drift", str(drift.get("text") or "the inputs have drifted")))
    return Look(experiment, tuple(dict.fromkeys(causes)), drift, champion)


# ------------------------------------------------------------------------------------------------ parameters


def _of_parameters(experiment: str, checked: Params) -> Iterator[Cause]:
    """What params.yaml says now and did not say when its settings were written last."""
    slug = checked.experiments[experiment].model.pretrained
    own = artifacts.settings_file(experiment, "x").parent
    of_weights = artifacts.pretrained_settings_file(slug)
    if not own.exists():  # nothing to compare with; DVC will say that it is missing
        return
    lines: list[str] = []
    for path, settings in resolve.settings_files(checked).items():
        if path != of_weights and (own not in path.parents or path.stem in NO_RESULT):
            continue
        before, after = _json(path), settings.model_dump(mode="json")
        if before is None:
            lines.append(f"{path.stem} is new")
        elif before != after:
            lines += _differences(before, after)
    if lines:
        yield Cause("parameters", _some(lines))


def _differences(before: Any, after: Any, place: str = "") -> Iterator[str]:  # noqa: ANN401 - any JSON value
    """Each value that differs, as `training.epochs 2 -> 3`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from _differences(before.get(key), after.get(key), f"{place}.{key}" if place else key)
    elif before != after:
        yield f"{place} {json.dumps(before)} -> {json.dumps(after)}"


# -------------------------------------------------------------------------------------------------- the graph


def _of_stages(stages: Stages, experiment: str, checked: Params) -> list[Cause]:
    """What DVC finds changed, sorted by what it is."""
    raw = checked.experiments[experiment].data
    raw_path = None if isinstance(raw, PackageData) else Path(raw.path).as_posix()
    found: dict[Kind, list[str]] = {}
    never: list[str] = []
    names = [stage_name(*one) for one in of_experiment(experiment, checked)]
    for stage in names:
        for change in stages.changes(stage):
            if change.how == "never run":
                never.append(stage)
                continue
            kind, text = _sorted(change, stage, raw_path)
            found.setdefault(kind, []).append(text)
    for source in stages.raw_data_of(names[0]):
        for change in stages.changes(source):
            # That the data changed is told once; where they can be had from is worth more than that.
            if change.how == "deleted" or "data" not in found:
                found["data"] = [_of_source(change, source)]
    own = [stage for stage in never if not stage.startswith("fetch@")]
    if len(own) == len(names) - 1:  # the weights may be there, for another experiment
        return [Cause("new", "was never run")]
    # What follows from another cause is none of its own.
    late = found.pop("unfinished", [])
    causes = [Cause(kind, _some(texts)) for kind, texts in found.items()]
    waiting = [*never, *late]
    return causes or ([Cause("unfinished", f"{_some(waiting)} still to be run")] if waiting else [])


def _sorted(change: Change, stage: str, raw_path: str | None) -> tuple[Kind, str]:
    path = Path(change.path).as_posix()
    if change.role == "out":
        return "missing", f"{path} was {_done(change.how)}"
    if change.role == "stage":
        return "code", f"the command of {stage.partition('@')[0]}"
    if path == raw_path:
        return "data", f"{path} was {_done(change.how)}"
    if path == LOCK_FILE:
        return "environment", LOCK_FILE
    if path.startswith("steps/"):
        return "code", path
    if path.startswith(_settings_root()):
        return "parameters", Path(path).name
    return "unfinished", stage


def _settings_root() -> str:
    """Where settings files lie."""
    return f"{artifacts.settings_file('x', 'x').parent.parent.as_posix()}/"


def _of_source(change: Change, source: str) -> str:
    if change.how == "deleted":
        return f"{change.path} is not here; {source} says where from"
    if change.how == "not in cache":
        return f"{source} names data that DVC's cache does not have"
    return f"{change.path} is not what {source} says"


def _done(how: str) -> str:
    return {"not in cache": "damaged in DVC's cache, or removed from it", "new": "added"}.get(how, how)


# ----------------------------------------------------------------------------------------------- the registry


def _of_registry(
    experiment: str, noted: dict[str, Any] | None, champion: Glance, nights: Iterable[records.Record]
) -> Iterator[Cause]:
    identity = _identity(experiment)
    if identity is None:
        return  # there is nothing to register before it is made
    here = addresses.shown(addresses.address())
    if noted is None:
        yield Cause("unpublished", f"its results are not registered at {here}")
    elif noted.get("result") != identity:
        yield Cause("unpublished", f"its results are newer than version {noted['version']} at {here}")
    elif noted["tracking_uri"] != here:
        yield Cause("unpublished", f"registered at {noted['tracking_uri']}, and results now go to {here}")
    elif champion == champions.NOTHING and (
        champions.ALIAS in noted["aliases"] or records.had_cause(nights, experiment, "champion")
    ):
        yield Cause("champion", f"the alias of {noted['model']} is gone")


def _identity(experiment: str) -> str | None:
    """What the experiment's results are known by; None where they are not there, or damaged."""
    try:
        return journal.identity(experiment)
    except HeadstartError:  # DVC has found the same, and says what is to be made
        return None


def _of_age(
    experiment: str, checked: Params, found: Glance, nights: Iterable[records.Record], now: datetime
) -> Iterator[Cause]:
    """A champion that is old; not again before as much time has passed since it was last built anew."""
    days = checked.nightly.champion_days
    if days is None or found.champion is None:
        return
    champion, again = found.champion, records.built_anew(nights, experiment)
    since = champion.made if again is None else max(champion.made, again)
    if now - since > timedelta(days=days):
        age = (now - champion.made).days
        yield Cause("age", f"version {champion.version} is {age} days old, allowed are {days}")


def _drift(experiment: str, nights: Iterable[records.Record]) -> dict[str, Any] | None:
    """What the monitor found last, where it is drift and no night has told of it yet."""
    found = _json(Path(".headstart/drift") / f"{experiment}.json")
    if not isinstance(found, dict) or found.get("drifted") is not True:
        return None
    return None if records.told_of(nights, experiment, found) else found


# ---------------------------------------------------------------------------------------------------- reading


def _noted(experiment: str) -> dict[str, Any] | None:
    """What register wrote down last; None where it never did."""
    found = _json(artifacts.registration_file(experiment))
    return found if isinstance(found, dict) else None


def _json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    """A file's JSON value; None where there is no file or it is damaged, which is a cause as well."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _some(lines: Iterable[str]) -> str:
    """The first of them, each once."""
    each = list(dict.fromkeys(lines))
    more = f" and {len(each) - SHOWN} more" if len(each) > SHOWN else ""
    return ", ".join(each[:SHOWN]) + more

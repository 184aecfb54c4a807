"""Candidate and champion, asked about the same frozen test items: what the gate decides on.

Both are versions of the registered model and are asked in the same way. What a version said of its own test
set lies in its package and is used where that set is asked for; of any other it predicts anew. On one that is
not its own, the items it was trained on are left out for both.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps import artifacts, entry, frozen, gate
from steps.errors import DataError
from steps.frozen import Frozen
from steps.gate import Decision, Rule, Tested, Trial
from steps.kinds import KINDS, SHARE, Kind
from steps.tracking import download, registry, store
from steps.tracking.registry import Loaded, Version
from steps.tracking.store import Store

if TYPE_CHECKING:
    from steps.tasks import Task
    from steps.tracking.aliases import Entry

# In a version's package: what it said of its own test set, and digests of what it was trained on.
PREDICTIONS, TRAINED_ON = "test_predictions.parquet", "trained_on.parquet"
# What a test item is known by.
KEYS = ["id", "sha256", "label"]
# Of a version: its test set's digest, that of the seal, and the run that has the set among its artifacts.
TEST_SHA, FROZEN_SHA, FROZEN_RUN = "headstart.test_sha256", "headstart.frozen_sha256", "headstart.frozen_run"
# Predicted at a time, so that memory does not grow with the test set.
CHUNK = 256
# Single predictions that are timed, after so many that are not.
TIMED, WARM = 20, 2
# Reading more images than these for a slice takes longer than all the rest.
MEASURED = 1000
# A fact with more values than these tells single items apart, no parts of the test set.
MOST_VALUES = 20

Read = TypeVar("Read")


@dataclass(frozen=True)
class Contender:
    """A version that is asked about test items.

    Attributes:
        version: of the registered model.
        role: what people call it.
    """

    version: Version
    role: str

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Task and classes among others, as packaged; empty where the files are not there."""
        return self._file("settings.json", lambda path: dict(artifacts.read_json(path, "register"))) or {}

    @cached_property
    def classes(self) -> list[str]:
        """In the order of the network's outputs."""
        return list(self.settings.get("classes", ()))

    @cached_property
    def stored(self) -> pd.DataFrame | None:
        """What it said of its own test set."""
        return self._file(PREDICTIONS, pd.read_parquet)

    @cached_property
    def trained_on(self) -> frozenset[bytes] | None:
        """Digests of what it was trained and validated on; None where that was not kept."""
        return self._file(TRAINED_ON, frozen.read_digests)

    @cached_property
    def model(self) -> Loaded:
        """Ready to predict, its bytes checked.

        Raises:
            TrackingError: it cannot be loaded.
        """
        return registry.load(self.version)

    def knows(self, rows: pd.DataFrame, kind: Kind) -> bool:
        """Whether its stored answers are of these very items."""
        keys = KEYS if kind.classified else [*KEYS, "target"]
        if self.stored is None or not set(keys) <= set(self.stored.columns):
            return False
        return _keys(self.stored, keys) == _keys(rows, keys)

    def _file(self, name: str, read: Callable[[Path], Read]) -> Read | None:
        with tempfile.TemporaryDirectory(prefix="headstart-") as folder:
            path = registry.file_of(self.version, f"data/model/{name}", Path(folder))
            return None if path is None else read(path)


@dataclass(frozen=True)
class Ring:
    """Where the two meet.

    Attributes:
        opened: the store.
        experiment: its name.
        task: its kind of data.
        kind: the few facts about the task.
        rule: what the candidate must show.
        candidate: the new version.
        champion: the present one.
        entries: the ledger of aliases, from the first.
    """

    opened: Store
    experiment: str
    task: Task
    kind: Kind
    rule: Rule
    candidate: Contender
    champion: Contender
    entries: Sequence[Entry]

    @property
    def by_hand(self) -> str:
        """The command that takes the candidate whatever the gate says."""
        return f"headstart promote {self.candidate.version.model}@{self.candidate.version.number}"


def decide(
    opened: Store,
    experiment: str,
    versions: tuple[Version, Version],
    today: Frozen,
    rule: Rule,
    entries: Sequence[Entry],
) -> Decision:
    """Compare a candidate with the champion on today's test set, and on the champion's where that differs.

    Args:
        opened: the store.
        experiment: its name.
        versions: candidate and champion.
        today: the candidate's test set.
        rule: what the candidate must show.
        entries: the ledger of aliases, for the looks at each test set.

    Raises:
        TrackingError: a model or a test set cannot be brought; nothing is decided.
    """
    from steps import tasks

    candidate, champion = (
        Contender(one, role) for one, role in zip(versions, ("candidate", "champion"), strict=True)
    )
    task = candidate.version.tags["headstart.task"]
    ring = Ring(opened, experiment, tasks.get(task), KINDS[task], rule, candidate, champion, entries)
    obstacle = other_problem(ring)
    if obstacle is not None:
        return gate.refused(obstacle, ring.by_hand)
    old = _champions_own(ring, today)
    if isinstance(old, str):
        return gate.refused(old, ring.by_hand)
    looks = looks_at(ring, today, old)
    worn = gate.worn_out({name: sum(pair) for name, pair in looks.items()}, rule, ring.by_hand)
    decision = worn or fought(ring, today, old, looks)
    inherited = {name: pair[1] for name, pair in looks.items()}
    return replace(decision, evidence={**decision.evidence, "inherited": inherited})


def fought(ring: Ring, today: Frozen, old: Frozen | None, looks: Mapping[str, tuple[int, int]]) -> Decision:
    """The gate's decision on all test sets, latency last."""
    name = "today's test set" if old is None else "its own test set"
    sides = [(today, name, ring.champion)]
    if old is not None:
        sides.append((old, "the champion's test set", ring.candidate))
    trials: list[Trial] = []
    for test, name, stranger in sides:
        found = _trial(ring, test, name, stranger if old is not None else None, sum(looks[test.sha256]))
        if isinstance(found, str):
            return gate.refused(found if old is None else f"on {name}, {found}", ring.by_hand)
        trials.append(found)
    decision = gate.decide(trials, ring.rule)
    # A model whose task makes its labels itself is a start for others and answers nobody.
    if decision.promote and ring.rule.latency is not None and not ring.kind.own_labels:
        decision = gate.with_latency(decision, _seconds(ring, today), ring.rule)
    return decision


def other_problem(ring: Ring) -> str | None:
    """Why the two answer different questions, or None."""
    mine, theirs = (one.version.tags.get("headstart.task") for one in (ring.candidate, ring.champion))
    if mine != theirs:
        number = ring.champion.version.number
        return f"the task changed (version {number} was made for {theirs}, this one for {mine})"
    if ring.champion.settings:
        return gate.other_classes(ring.candidate.classes, ring.champion.classes)
    return None


# ---------------------------------------------------------------------------------------------- the test sets


def _champions_own(ring: Ring, today: Frozen) -> Frozen | str | None:
    """The champion's own test set; None where it is today's, and a reason where it cannot be had."""
    tags, number = ring.champion.version.tags, ring.champion.version.number
    if tags.get(TEST_SHA) == today.sha256 or ring.champion.knows(today.rows, ring.kind):
        return None
    if TEST_SHA not in tags:
        return (
            f"the test split changed since version {number} was registered, and that was before test sets "
            "were frozen: the one it was tested on cannot be had"
        )
    return bring(ring.opened, ring.experiment, ring.champion.version)


def bring(opened: Store, experiment: str, version: Version) -> Frozen | str:
    """The frozen test set of a version, from this clone or from MLflow; else why it cannot be had any more.

    Raises:
        TrackingError: MLflow or its artifacts cannot be reached.
    """
    sha256, digest = version.tags[TEST_SHA], version.tags[FROZEN_SHA]
    try:
        here = frozen.read(experiment, sha256, digest)
        if here is not None:
            return here
    except DataError as error:
        entry.say(f"{experiment}: {error}; it is brought anew")
    run_id = version.tags[FROZEN_RUN]
    gone = f"the frozen test set {sha256[:8]} of version {version.number} cannot be had any more"
    if not is_sent(opened, run_id, sha256):
        root = frozen.root_of(experiment)
        return f"{gone}: it is neither in {root} nor among the artifacts of the run {run_id}"
    with tempfile.TemporaryDirectory(prefix="frozen-", dir=store.LOCK.parent) as folder:
        there = download.bring_run(opened, run_id, f"frozen/{sha256}", Path(folder))
        try:
            return frozen.unpack(experiment, sha256, digest, there)
        except DataError as error:
            return f"{gone}: {error}"


def is_sent(opened: Store, run_id: str, sha256: str) -> bool:
    """Whether all of a frozen test set is among the artifacts of a run.

    Raises:
        TrackingError: the artifacts cannot be reached.
    """
    return frozen.SEAL in download.files_of_run(opened, run_id, f"frozen/{sha256}")


def send(opened: Store, run_id: str, test: Frozen) -> None:
    """Put a frozen test set among the artifacts of a run, once.

    Raises:
        TrackingError: the upload failed.
    """
    if is_sent(opened, run_id, test.sha256):
        return
    for stale in store.LOCK.parent.glob("frozen-*"):  # of a process that was killed; the caller is alone here
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="frozen-", dir=store.LOCK.parent) as folder:
        for path in frozen.pack(test, Path(folder)):
            with store.uploading(opened.uri):
                opened.client.log_artifact(run_id, str(path), f"frozen/{test.sha256}")


def looks_at(ring: Ring, today: Frozen, old: Frozen | None) -> dict[str, tuple[int, int]]:
    """Decisions that each test set has served, by its digest: its own, and those of the set it grew from.

    A set that shares items with the champion's is no fresh one: it inherits that share of its looks.
    """
    found = {test.sha256: looks_of(ring.entries, test.sha256) for test in (today, old) if test is not None}
    if old is not None and found[today.sha256] == (0, 0):
        share = frozen.overlap(today.rows, old.rows)
        found[today.sha256] = (0, math.floor(share * sum(found[old.sha256])))
    return found


def looks_of(entries: Sequence[Entry], sha256: str) -> tuple[int, int]:
    """Decisions in the ledger that a test set has served, and those it inherited from one it grew from."""
    mine = [one.evidence for one in entries if sha256 in (one.evidence.get("tests") or ())]
    inherited = int((mine[0].get("inherited") or {}).get(sha256, 0)) if mine else 0
    return len(mine), inherited


def _trial(ring: Ring, test: Frozen, name: str, stranger: Contender | None, looks: int) -> Trial | str:
    """Both on one test set, without the items that the stranger to it was trained on; else why that fails."""
    out = np.zeros(len(test.rows), dtype=np.bool_)
    if stranger is not None:
        if stranger.trained_on is None:
            return f"version {stranger.version.number} does not tell what it was trained on"
        out = frozen.known(test.rows, stranger.trained_on)
    excluded = int(out.sum())
    obstacle = gate.too_few(len(out) - excluded, excluded, ring.rule)
    if obstacle is not None:
        return obstacle
    if excluded:
        entry.say(
            f"{ring.experiment}: {excluded} of {len(out)} items of {name} are left out, a model was trained "
            "on them"
        )
    candidate, champion = (_asked(ring, one, test, ~out) for one in (ring.candidate, ring.champion))
    facts = facts_of(test.rows[~out], test.folder)
    return Trial(candidate, champion, test.sha256, name, facts, looks, excluded)


# ------------------------------------------------------------------------------------------------ the answers


def _asked(ring: Ring, contender: Contender, test: Frozen, kept: NDArray[np.bool_]) -> Tested:
    """What a contender says of the items that are kept: as it is stored, else predicted anew."""
    rows = test.rows[kept]
    if kept.all() and contender.knows(rows, ring.kind):
        assert contender.stored is not None
        said = contender.stored.set_index("id").loc[list(rows["id"])]
        if ring.kind.classified:
            columns = [f"probability_{name}" for name in contender.classes]
            return of_classes(rows, contender.classes, said[columns].to_numpy(np.float64))
        return of_shares(rows, {name: said[f"{SHARE}{name}"] for name in ring.kind.metrics})
    entry.say(
        f"{ring.experiment}: the {contender.role} (version {contender.version.number}) predicts {len(rows)} "
        "test items anew"
    )
    # Of a task that makes its labels itself, what is asked of an item may depend on those beside it.
    every = inputs(ring.task, ring.kind, test.rows if ring.kind.own_labels else rows, test.folder)
    size = max(1, len(every)) if ring.kind.own_labels else CHUNK
    parts = [contender.model.predict(every.iloc[at : at + size]) for at in range(0, len(every), size)]
    answers = pd.concat(parts, ignore_index=True)
    if ring.kind.own_labels:
        answers = answers[kept]
    if ring.kind.classified:
        names = list(answers["probabilities"].iloc[0])
        return of_classes(rows, names, np.array([list(row.values()) for row in answers["probabilities"]]))
    return of_shares(rows, ring.task.scores(ring.task.truths(rows), records(answers), contender.classes))


def of_classes(rows: pd.DataFrame, classes: Sequence[str], probabilities: NDArray[np.floating]) -> Tested:
    """What a classifier said of these rows, as the gate takes it."""
    said = np.asarray(probabilities, dtype=np.float64)
    return Tested(list(rows["id"]), list(rows["label"]), classes, said, groups=_groups(rows))


def of_shares(rows: pd.DataFrame, shares: Mapping[str, Any]) -> Tested:
    """The shares in the metrics that a model of another task has on these rows, as the gate takes them."""
    found = {name: np.asarray(one, dtype=np.float64) for name, one in shares.items()}
    truths = [one if isinstance(one, str) else "" for one in rows["target"]]
    return Tested.of_shares(list(rows["id"]), truths, found, groups=_groups(rows))


def inputs(task: Task, kind: Kind, rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Rows of a test set as a registered model's input.

    Args:
        task: their kind of data.
        kind: the few facts about it.
        rows: of the manifest.
        folder: with their files.
    """
    from steps import tasks

    table = [one if isinstance(one, tuple) else (one,) for one in tasks.contents(task, rows, folder)]
    return pd.DataFrame(
        {name: pd.Series([row[at] for row in table], dtype=object) for at, name in enumerate(kind.columns)}
    )


def records(said: pd.DataFrame) -> list[dict[str, Any]]:
    """What a loaded model answered, as its task has it."""
    return [{str(name): value for name, value in row.items()} for row in said.to_dict(orient="records")]


def facts_of(rows: pd.DataFrame, folder: Path) -> dict[str, NDArray[np.generic]]:
    """By what test items may be told apart beside their class: numbers or texts, one an item."""
    found: dict[str, NDArray[np.generic]] = {}
    if rows["text"].notna().all():
        found["length in characters"] = rows["text"].str.len().to_numpy(dtype=np.float64)
    else:
        found["file size in bytes"] = rows["size"].to_numpy(dtype=np.float64)
        if len(rows) <= MEASURED:
            found["brightness, 0 to 255"] = _brightness([folder / str(path) for path in rows["path"]])
    for name in ("group", "source"):
        if name in rows.columns and 1 < rows[name].nunique() <= MOST_VALUES:
            found[name] = rows[name].fillna("none").to_numpy(dtype=object)
    return found


def _brightness(paths: Sequence[Path]) -> NDArray[np.float64]:
    """Mean grey value of each image, 0 black to 255 white; not a number where it cannot be read."""
    from PIL import ImageStat

    from steps import scans

    found = np.full(len(paths), np.nan)
    for at, path in enumerate(paths):
        try:
            found[at] = ImageStat.Stat(scans.picture(path).convert("L")).mean[0]
        except (OSError, DataError):
            continue  # in no slice by brightness; the models are asked all the same
    return found


def _seconds(ring: Ring, test: Frozen) -> tuple[float, float]:
    """Median seconds of single predictions by candidate and champion, taken in turns."""
    at = np.unique(np.linspace(0, len(test.rows) - 1, TIMED).astype(int))
    every = inputs(ring.task, ring.kind, test.rows.iloc[at], test.folder)
    singles = [every.iloc[[place]] for place in range(len(every))]
    models = [ring.candidate.model, ring.champion.model]
    for model in models * WARM:
        model.predict(singles[0])
    taken: list[list[float]] = [[], []]
    for place, single in enumerate(singles):
        # Who is first changes, for the second may find the file in the machine's memory.
        for side in (0, 1) if place % 2 else (1, 0):
            began = time.perf_counter()
            models[side].predict(single)
            taken[side].append(time.perf_counter() - began)
    return median(taken[0]), median(taken[1])


def _keys(rows: pd.DataFrame, keys: list[str]) -> set[tuple[Any, ...]]:
    """What the rows are known by; whatever stands for nothing is None."""
    table = rows[keys].astype(object)
    return set(table.where(table.notna(), None).itertuples(index=False, name=None))


def _groups(rows: pd.DataFrame) -> list[str | None]:
    """The group of each row."""
    return list(rows["group"]) if "group" in rows else []

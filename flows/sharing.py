"""Stages shared out among workers, and taken in again: the order, the dead, the attempts. Knows no Prefect.

One clone owns the result. It runs what needs the raw data, the ledger of looks at the test split or the
registry itself, one after the other, and gives the rest to a pool. It alone writes its dvc.lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from flows.merging import Entry, Inputs
from flows.stages import Outcome, Stopped
from steps.errors import HeadstartError, StageError

# Steps that are worth a worker. All others need what only the owner has: `ingest` the raw data, `fetch` the
# keys of a hub, `baseline`, `evaluate` and `curve` the ledger of looks at the test split.
SHARED = ("embed", "train")
# The ledger of looks is written in the order of `headstart run`, so that looks.json is equal.
AFTER = {"evaluate": "baseline", "curve": "evaluate"}
REGISTER = "register"

ATTEMPTS = 3
POLL_SECONDS = 1.0
# A worker's clone may be busy, its machine slow to start a process.
STARTING_SECONDS = 300.0
WAITING_SECONDS = 60.0

Tell = Callable[[str, str], None]


@dataclass(frozen=True)
class Request:
    """One stage, as it is given to a worker.

    Attributes:
        stage: its name in dvc.yaml.
        commit: whose code and dvc.yaml it is run with.
        inputs: what it is made from, as the owner has it.
        lock: the outputs of the stages that come before it, by name.
    """

    stage: str
    commit: str
    inputs: Inputs
    lock: dict[str, Entry]

    @property
    def sha256(self) -> str:
        """The same for the same work, whoever asks for it and when."""
        from steps.artifacts import sha256_json

        return sha256_json([self.stage, self.commit, self.inputs.sha256])


@dataclass(frozen=True)
class Look:
    """What can be seen of a stage in the pool.

    Attributes:
        state: `waiting` for a worker; `starting` on one; `running`; `done`; `failed` with an error of the
            stage's own; `lost`, it ended and said nothing; `stopped` by somebody.
        beat: grows as long as the run lives.
        where: the machine it is on.
        entry: of a stage that is done.
        outcome: the same.
        error: of a stage that failed.
        why: a run is lost, as far as anybody knows.
    """

    state: Literal["waiting", "starting", "running", "done", "failed", "lost", "stopped"]
    beat: int = 0
    where: str = ""
    entry: Entry | None = None
    outcome: Outcome | None = None
    error: HeadstartError | None = None
    why: str = ""


class Pool(Protocol):
    """Where stages are run by others."""

    def submit(self, request: Request, number: int) -> str:
        """Give a stage away; the same request and number give back the same run."""

    def look(self, run: str) -> Look | None:
        """What can be seen of it; None where nobody can be asked at the moment."""

    def end(self, run: str, why: str, *, crashed: bool) -> None:
        """See that a run is over: crashed, or stopped by us."""

    def stopped(self) -> bool:
        """Whether the whole was stopped from outside."""


class Job(Protocol):
    """A stage that runs here."""

    def outcome(self) -> Outcome | None:
        """None while it runs; raises what it raised."""


class Owner(Protocol):
    """The clone that owns the result."""

    def settled(self, stage: str) -> Outcome | None:
        """The outcome of a stage with nothing to do, its outputs brought here; None where it has to run."""

    def request(self, stage: str) -> Request:
        """The stage as it is given away, after what it needs was pushed."""

    def take_in(self, request: Request, entry: Entry) -> None:
        """Check an entry, merge it, bring the outputs."""

    def start(self, stage: str) -> Job:
        """Run a stage here, beside this thread."""

    def stop(self) -> None:
        """End what runs here."""


@dataclass
class _Away:
    """A stage that a worker has, or will have.

    Attributes:
        number: how often the very same request was given away, by whomever.
        tries: how often by us, in vain.
        since: when it came into its state; `seen`: when the last sign of life came.
    """

    request: Request
    number: int
    tries: int
    run: str
    since: float
    seen: float
    beat: int = -1
    state: str = ""
    told: bool = False

    @property
    def is_old(self) -> bool:
        """It was over before we looked: an earlier owner's run, for the request is the same."""
        return not self.state


@dataclass
class Sharing:
    """The stages of some experiments, under way.

    Attributes:
        graph: each stage with those it needs, first things first.
        owner: who owns the result.
        pool: who else works.
        tell: gets a stage and what is to be said of it.
        dead_after: seconds without a sign of life after which a run counts as dead.
        outcomes: of the stages that ended well.
        failures: the error of each that did not.
        where: the machine that made it, for each that a worker made.
    """

    graph: Mapping[str, tuple[str, ...]]
    owner: Owner
    pool: Pool
    tell: Tell
    dead_after: float
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[float], None] = time.sleep
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, HeadstartError] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    _away: dict[str, _Away] = field(default_factory=dict)
    _here: tuple[str, Job] | None = None

    def run(self) -> None:
        """Bring every stage up to date that can be.

        Raises:
            Stopped: the whole was stopped; what was away was called back.
        """
        try:
            while True:
                moved = self._begin()
                moved = self._look_here() or moved
                moved = self._look_away() or moved
                if not self._away and self._here is None and not moved:
                    return
                if self.pool.stopped():
                    raise Stopped("the run was stopped")
                if not moved:
                    self.wait(POLL_SECONDS)
        except BaseException:
            self._call_back()
            raise

    def ready(self) -> list[str]:
        """Stages with all they need done, neither done, failed nor under way."""
        busy = {*self.outcomes, *self.failures, *self._away, *([self._here[0]] if self._here else [])}
        return [
            stage
            for stage, needs in self.graph.items()
            if stage not in busy and all(need in self.outcomes for need in needs)
        ]

    def _begin(self) -> bool:
        moved = False
        for stage in self.ready():
            shared = is_shared(stage)
            if not shared and self._here is not None:
                continue
            try:
                if not shared:
                    self._here = (stage, self.owner.start(stage))
                else:
                    self._give_away(stage)
            except Stopped:
                raise
            except HeadstartError as error:
                self.failures[stage] = error
            moved = True
        return moved

    def _give_away(self, stage: str) -> None:
        outcome = self.owner.settled(stage)
        if outcome is not None:
            self.outcomes[stage] = outcome
            self.tell(stage, outcome.how)
            return
        self._submit(self.owner.request(stage), number=1, tries=0)

    def _submit(self, request: Request, number: int, tries: int) -> None:
        now = self.clock()
        run = self.pool.submit(request, number)
        self._away[request.stage] = _Away(request, number, tries, run, now, now)
        self.tell(request.stage, "given to the pool" + " again" * (tries > 0))

    def _look_here(self) -> bool:
        if self._here is None:
            return False
        stage, job = self._here
        try:
            outcome = job.outcome()
        except Stopped:
            raise
        except HeadstartError as error:
            self.failures[stage] = error
        else:
            if outcome is None:
                return False
            self.outcomes[stage] = outcome
        self._here = None
        return True

    def _look_away(self) -> bool:
        moved = False
        for stage, away in list(self._away.items()):
            look = self.pool.look(away.run)
            if look is None:  # no sign of life can come while nobody can be asked
                away.seen = away.since = self.clock()
            elif look.state in ("waiting", "starting", "running"):
                self._still_away(stage, away, look)
            else:
                self._came_back(stage, away, look)
                moved = True
        return moved

    def _still_away(self, stage: str, away: _Away, look: Look) -> None:
        now = self.clock()
        if look.state != away.state:
            away.state, away.since, away.seen = look.state, now, now
            if look.state == "running":
                self.tell(stage, f"runs on {look.where}")
        if look.beat != away.beat:
            away.beat, away.seen = look.beat, now
        if look.state == "waiting":
            away.seen = now
            busy = any(one.state in ("starting", "running") for one in self._away.values())
            if not busy and not away.told and now - away.since > WAITING_SECONDS:
                away.told = True
                self.tell(stage, "no worker has taken it yet; `headstart worker --pool NAME` starts one")
            return
        patience = self.dead_after if look.state == "running" else max(STARTING_SECONDS, self.dead_after)
        if now - away.seen > patience:
            why = f"no sign of life for {now - away.seen:.0f} s"
            self.pool.end(away.run, why, crashed=True)
            self._again(stage, away, why)

    def _came_back(self, stage: str, away: _Away, look: Look) -> None:
        if look.state == "done":
            self._take_in(stage, away, look)
        elif look.state == "lost" or away.is_old:
            self._again(stage, away, look.why or "its worker ended without a word")
        else:
            del self._away[stage]
            stopped = StageError(f"{stage}: its run was cancelled in Prefect")
            self.failures[stage] = look.error or stopped
            self.tell(stage, "failed" if look.error else "cancelled")

    def _take_in(self, stage: str, away: _Away, look: Look) -> None:
        assert look.entry is not None
        assert look.outcome is not None
        try:
            self.owner.take_in(away.request, look.entry)
        except HeadstartError as error:
            self._again(stage, away, str(error), error)
            return
        del self._away[stage]
        self.outcomes[stage], self.where[stage] = look.outcome, look.where
        self.tell(stage, f"{look.outcome.how} on {look.where} in {look.outcome.seconds:.1f} s")

    def _again(self, stage: str, away: _Away, why: str, error: HeadstartError | None = None) -> None:
        """Give a stage away once more; what an earlier owner's run came to is not counted against it."""
        del self._away[stage]
        tries = away.tries + (not away.is_old)
        if tries >= ATTEMPTS:
            self.failures[stage] = error or StageError(f"{stage}: given up after {tries} attempts: {why}")
            self.tell(stage, "given up")
            return
        if not away.is_old:
            self.tell(stage, why)
        try:
            self._submit(away.request, away.number + 1, tries)
        except HeadstartError as refused:
            self.failures[stage] = refused

    def _call_back(self) -> None:
        self.owner.stop()
        for away in self._away.values():
            self.pool.end(away.run, "the run it belongs to ended", crashed=False)


def is_shared(stage: str) -> bool:
    """Whether a worker may have the stage."""
    return step_of(stage) in SHARED


def step_of(stage: str) -> str:
    """The step of a stage."""
    return stage.partition("@")[0]


def before(stage: str, graph: Mapping[str, tuple[str, ...]]) -> list[str]:
    """All that comes before a stage, first things first.

    Not only what dvc.yaml names: `train` reads the pretrained weights, for which the features stand there.
    """
    wanted = set(graph[stage])
    for one in reversed(list(graph)):
        if one in wanted:
            wanted.update(graph[one])
    return [one for one in graph if one in wanted]


def with_order(
    graph: Mapping[str, tuple[str, ...]], experiments: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """The graph with what must come after something else without needing it, and `register` at the ends."""
    ordered: dict[str, tuple[str, ...]] = {}
    for stage, needs in graph.items():
        step, _, of = stage.partition("@")
        before = f"{AFTER[step]}@{of}" if step in AFTER else ""
        ordered[stage] = (*needs, before) if before in graph and before not in needs else needs
    for experiment in experiments:
        ordered[f"{REGISTER}@{experiment}"] = (f"compare@{experiment}",)
    return ordered


def blocked_by(stage: str, graph: Mapping[str, tuple[str, ...]], failed: Iterable[str]) -> str | None:
    """The failed stage that a stage waits for, itself included; None where there is none."""
    wanted, seen = [stage], set()
    failures = set(failed)
    while wanted:
        one = wanted.pop()
        if one in failures:
            return one
        if one not in seen:
            seen.add(one)
            wanted.extend(graph.get(one, ()))
    return None

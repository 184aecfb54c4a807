"""Order, the dead and the merge, with a pool and an owner that are made up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from ruamel.yaml import YAML

from flows.merging import Clone, Entry, Inputs, check, inputs_of, merged, outputs_alone
from flows.sharing import ATTEMPTS, Look, Request, Sharing, before, blocked_by, is_shared, with_order
from flows.stages import Outcome, Stopped, UnreachableError
from steps.errors import DataError, HeadstartError, StageError, UserError
from tests.flows import miniature
from tests.twin import git

ROOT = Path(__file__).resolve().parents[2]
GRAPH: dict[str, tuple[str, ...]] = {
    "resolve": (),
    "ingest@a": ("resolve",),
    "embed@a": ("ingest@a",),
    "baseline@a": ("embed@a",),
    "train@a-x": ("embed@a",),
    "train@a-y": ("embed@a",),
    "evaluate@a": ("train@a-x", "train@a-y"),
    "curve@a": ("train@a-x",),
    "compare@a": ("evaluate@a", "baseline@a", "curve@a"),
}


def entry_of(stage: str, dep: str = "1") -> Entry:
    return {
        "cmd": f"python -m {stage}",
        "deps": [{"path": "steps/x.py", "hash": "md5", "md5": dep, "size": 1}],
        "outs": [{"path": f"work/{stage}", "hash": "md5", "md5": f"{stage}.dir", "size": 2, "nfiles": 1}],
    }


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Job:
    told: Outcome | HeadstartError

    def outcome(self) -> Outcome | None:
        if isinstance(self.told, HeadstartError):
            raise self.told
        return self.told


@dataclass
class Owner:
    """Takes everything in, unless told otherwise."""

    settled_stages: set[str] = field(default_factory=set)
    failing: dict[str, HeadstartError] = field(default_factory=dict)
    refuses: dict[str, int] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    stopped: bool = False

    def settled(self, stage: str) -> Outcome | None:
        return Outcome(stage, "unchanged", 0.0) if stage in self.settled_stages else None

    def request(self, stage: str) -> Request:
        return Request(stage, "c0ffee", inputs_of(entry_of(stage)), {})

    def take_in(self, request: Request, entry: Entry) -> None:
        if self.refuses.get(request.stage, 0):
            self.refuses[request.stage] -= 1
            raise StageError(f"{request.stage}: not taken")
        self.taken.append(request.stage)

    def start(self, stage: str) -> Job:
        self.ran.append(stage)
        return Job(self.failing.get(stage, Outcome(stage, "ran", 1.0)))

    def stop(self) -> None:
        self.stopped = True


def done(stage: str) -> Look:
    return Look("done", 3, "host:/one", entry_of(stage), Outcome(stage, "ran", 2.0))


@dataclass
class Pool:
    """Shows of each stage, run by run, what a script says, the last of it for ever."""

    scripts: dict[str, list[Callable[[str, int], Look | None]]] = field(default_factory=dict)
    submitted: list[tuple[str, int]] = field(default_factory=list)
    ended: list[tuple[str, bool]] = field(default_factory=list)
    looks: dict[str, int] = field(default_factory=dict)
    most: int = 0
    stop_after: int | None = None

    def submit(self, request: Request, number: int) -> str:
        self.submitted.append((request.stage, number))
        return f"{request.stage}#{number}"

    def look(self, run: str) -> Look | None:
        stage, _, number = run.partition("#")
        count = self.looks[run] = self.looks.get(run, 0) + 1
        scripts = self.scripts.get(stage, [])
        if int(number) <= len(scripts):
            return scripts[int(number) - 1](stage, count)
        return Look("running", count, "host:/one") if count == 1 else done(stage)

    def end(self, run: str, why: str, *, crashed: bool) -> None:
        self.ended.append((run, crashed))

    def stopped(self) -> bool:
        return self.stop_after is not None and len(self.submitted) >= self.stop_after


def sharing(owner: Owner, pool: Pool, graph: dict[str, tuple[str, ...]] | None = None) -> Sharing:
    clock = Clock()
    ordered = with_order(graph or GRAPH, ["a"])
    return Sharing(ordered, owner, pool, lambda stage, text: None, 30.0, clock, clock.wait)


def silent(stage: str, count: int) -> Look:
    return Look("running", 7, "host:/dead")


def test_features_and_trainings_are_given_away_and_nothing_else() -> None:
    owner, pool = Owner(), Pool()
    work = sharing(owner, pool)
    work.run()
    assert {stage for stage, _ in pool.submitted} == {"embed@a", "train@a-x", "train@a-y"}
    assert set(owner.ran) == {
        "resolve", "ingest@a", "baseline@a", "evaluate@a", "curve@a", "compare@a", "register@a",
    }  # fmt: skip
    assert set(work.outcomes) == {*GRAPH, "register@a"}
    assert work.where == dict.fromkeys(("embed@a", "train@a-x", "train@a-y"), "host:/one")


def test_arms_are_away_at_the_same_time_and_each_stage_comes_after_what_it_needs() -> None:
    owner, pool = Owner(), Pool()
    work = sharing(owner, pool)
    order: list[str] = []

    def noted(stage: str, count: int) -> Look:
        order.append(stage)
        return done(stage) if count > 2 else Look("running", count)

    pool.scripts = {f"train@a-{arm}": [noted] for arm in "xy"}
    work.run()
    assert order[:2] == ["train@a-x", "train@a-y"]
    finished = list(work.outcomes)
    for stage, needs in work.graph.items():
        assert all(finished.index(need) < finished.index(stage) for need in needs), stage


def test_the_ledger_of_looks_is_written_in_the_order_of_a_run() -> None:
    ordered = with_order(GRAPH, ["a"])
    assert "baseline@a" in ordered["evaluate@a"]
    assert "evaluate@a" in ordered["curve@a"]
    assert ordered["register@a"] == ("compare@a",)


def test_what_is_up_to_date_is_not_given_away() -> None:
    owner, pool = Owner(settled_stages={"embed@a", "train@a-x"}), Pool()
    work = sharing(owner, pool)
    work.run()
    assert pool.submitted == [("train@a-y", 1)]
    assert work.outcomes["train@a-x"].how == "unchanged"


@pytest.mark.survives(
    "processes",
    "a worker dies with a stage",
    how="a run that gives no more signs of life",
    held="the stage is given to another, the run is marked",
)
def test_a_dead_workers_stage_is_given_away_again_and_its_run_marked() -> None:
    owner, pool = Owner(), Pool(scripts={"train@a-x": [silent]})
    work = sharing(owner, pool)
    work.run()
    assert pool.ended == [("train@a-x#1", True)]
    assert ("train@a-x", 2) in pool.submitted
    assert not work.failures
    assert "train@a-x" in owner.taken


def test_a_run_that_gives_signs_of_life_is_never_dead() -> None:
    def slow(stage: str, count: int) -> Look:
        return done(stage) if count > 500 else Look("running", count // 20, "host:/slow")

    owner, pool = Owner(), Pool(scripts={"train@a-x": [slow]})
    work = sharing(owner, pool)
    work.run()
    assert not pool.ended
    assert not work.failures


def test_a_run_that_was_slow_to_start_is_not_dead_when_it_runs() -> None:
    def slow(stage: str, count: int) -> Look:
        if count < 100:
            return Look("starting")
        return Look("running", 0, "host:/slow") if count < 110 else done(stage)

    owner, pool = Owner(), Pool(scripts={"train@a-x": [slow]})
    work = sharing(owner, pool)
    work.run()
    assert not pool.ended


def test_a_run_that_never_starts_is_dead_in_the_end() -> None:
    owner, pool = Owner(), Pool(scripts={"train@a-x": [lambda stage, count: Look("starting")]})
    work = sharing(owner, pool)
    work.run()
    assert pool.ended == [("train@a-x#1", True)]
    assert not work.failures


def test_nobody_waits_for_a_worker_in_vain_without_being_told() -> None:
    told: list[str] = []

    def waiting(stage: str, count: int) -> Look:
        return Look("waiting") if count < 500 else done(stage)

    owner, pool = Owner(), Pool(scripts={"embed@a": [waiting]})
    work = sharing(owner, pool)
    work.tell = lambda stage, text: told.append(f"{stage}: {text}")
    work.run()
    hints = [line for line in told if "no worker has taken it yet" in line]
    assert hints == ["embed@a: no worker has taken it yet; `headstart worker --pool NAME` starts one"]
    assert not pool.ended


def test_a_stage_that_waits_for_a_busy_worker_is_not_worth_a_word() -> None:
    told: list[str] = []
    owner, pool = Owner(), Pool()

    def busy(stage: str, count: int) -> Look:
        return Look("running", count) if count < 200 else done(stage)

    def waiting(stage: str, count: int) -> Look:
        return Look("waiting") if count < 199 else done(stage)

    pool.scripts = {"train@a-x": [busy], "train@a-y": [waiting]}
    work = sharing(owner, pool)
    work.tell = lambda stage, text: told.append(text)
    work.run()
    assert not [text for text in told if "no worker" in text]


def test_a_server_that_is_away_kills_nobody() -> None:
    def away(stage: str, count: int) -> Look | None:
        if count < 3:
            return Look("running", 1, "host:/one")
        return None if count < 300 else Look("running", 1, "host:/one") if count < 310 else done(stage)

    owner, pool = Owner(), Pool(scripts={"embed@a": [away]})
    work = sharing(owner, pool)
    work.run()
    assert not pool.ended
    assert not work.failures


@pytest.mark.survives(
    "processes",
    "a stage that kills every worker",
    how="each run of it dies",
    held="given up after some tries, and named",
)
def test_a_stage_that_kills_every_worker_is_given_up_and_named() -> None:
    owner, pool = Owner(), Pool(scripts={"train@a-x": [silent] * 9})
    work = sharing(owner, pool)
    work.run()
    assert [number for stage, number in pool.submitted if stage == "train@a-x"] == list(
        range(1, ATTEMPTS + 1)
    )
    assert "given up after 3 attempts: no sign of life" in str(work.failures["train@a-x"])
    assert "train@a-y" in work.outcomes
    assert blocked_by("register@a", work.graph, work.failures) == "train@a-x"
    assert "evaluate@a" not in owner.ran


def test_a_mistake_of_the_users_is_told_once_and_not_tried_again() -> None:
    def failed(stage: str, count: int) -> Look:
        return Look("running", 1) if count == 1 else Look("failed", error=DataError("row 3 is empty"))

    owner, pool = Owner(), Pool(scripts={"embed@a": [failed]})
    work = sharing(owner, pool)
    work.run()
    assert pool.submitted == [("embed@a", 1)]
    assert str(work.failures["embed@a"]) == "row 3 is empty"


def test_failures_of_an_earlier_owner_are_not_counted() -> None:
    """The same request gives back the runs there are; the fourth here is the first of our own."""

    def old(stage: str, count: int) -> Look:
        return Look("failed", error=DataError("the disk was full last week"))

    owner, pool = Owner(), Pool(scripts={"embed@a": [old, old, old]})
    work = sharing(owner, pool)
    work.run()
    assert not work.failures
    assert pool.submitted[:4] == [("embed@a", number) for number in (1, 2, 3, 4)]


def test_a_finished_run_of_an_earlier_owner_is_taken_in_without_a_new_one() -> None:
    owner, pool = Owner(), Pool(scripts={"embed@a": [lambda stage, count: done(stage)]})
    work = sharing(owner, pool)
    work.run()
    assert [one for one in pool.submitted if one[0] == "embed@a"] == [("embed@a", 1)]
    assert "embed@a" in owner.taken


def test_what_cannot_be_taken_in_is_made_again() -> None:
    owner, pool = Owner(refuses={"embed@a": 1}), Pool()
    work = sharing(owner, pool)
    work.run()
    assert ("embed@a", 2) in pool.submitted
    assert not work.failures


def test_the_owners_failure_blocks_what_comes_after_and_nothing_else() -> None:
    owner, pool = Owner(failing={"baseline@a": DataError("too few rows")}), Pool()
    work = sharing(owner, pool)
    work.run()
    assert set(work.failures) == {"baseline@a"}
    assert {"train@a-x", "train@a-y"} <= set(work.outcomes)
    assert blocked_by("register@a", work.graph, work.failures) == "baseline@a"


def test_a_run_that_is_stopped_calls_everything_back() -> None:
    owner, pool = Owner(), Pool(stop_after=2, scripts={"train@a-x": [silent]})
    work = sharing(owner, pool)
    with pytest.raises(Stopped):
        work.run()
    assert owner.stopped
    assert ("train@a-x#1", False) in pool.ended


def test_a_cancelled_stage_is_not_given_away_again() -> None:
    def cancelled(stage: str, count: int) -> Look:
        return Look("running", 1) if count == 1 else Look("stopped")

    owner, pool = Owner(), Pool(scripts={"embed@a": [cancelled]})
    work = sharing(owner, pool)
    work.run()
    assert "cancelled in Prefect" in str(work.failures["embed@a"])
    assert pool.submitted == [("embed@a", 1)]


def test_a_worker_gets_all_that_comes_before_a_stage_first_things_first() -> None:
    """`train` reads the pretrained weights, and names only the features that were made from them."""
    assert before("train@a-x", GRAPH) == ["resolve", "ingest@a", "embed@a"]
    assert before("resolve", GRAPH) == []
    assert before("compare@a", with_order(GRAPH, ["a"])) == [stage for stage in GRAPH if stage != "compare@a"]


def test_only_stages_of_two_steps_are_shared() -> None:
    assert is_shared("embed@a")
    assert is_shared("train@a-scratch")
    assert not is_shared("trainer@a")
    assert not is_shared("evaluate@a")


# --------------------------------------------------------------------------------------------- dvc.lock


def test_an_entry_is_put_in_and_the_others_are_left_as_they_are() -> None:
    text = ""
    for stage in ("ingest@a", "embed@a", "train@a-x"):
        text = merged(text, stage, entry_of(stage))
    again = merged(text, "embed@a", entry_of("embed@a", dep="2"))
    found = YAML(typ="safe").load(again)
    assert list(found["stages"]) == ["ingest@a", "embed@a", "train@a-x"]
    assert found["schema"] == "2.0"
    assert found["stages"]["embed@a"] == entry_of("embed@a", dep="2")
    before, after = text.splitlines(), again.splitlines()
    assert [one for one, other in zip(before, after, strict=True) if one != other] == ["      md5: '1'"]


def test_merging_the_same_entry_again_changes_no_byte() -> None:
    text = merged("", "embed@a", entry_of("embed@a"))
    assert merged(text, "embed@a", json.loads(json.dumps(entry_of("embed@a")))) == text


@pytest.mark.survives(
    "registry",
    "a worker answers with a result of other inputs",
    how="an entry of dvc.lock whose inputs differ from those that were sent",
    held="refused; dvc.lock is as it was",
)
def test_an_entry_made_from_other_inputs_is_refused() -> None:
    asked = inputs_of(entry_of("embed@a", dep="1"))
    with pytest.raises(StageError, match=r"other inputs than this clone: steps/x\.py"):
        check("embed@a", entry_of("embed@a", dep="2"), asked, ["work/embed@a"])


def test_an_entry_of_another_command_is_refused() -> None:
    asked = Inputs("python -m other", inputs_of(entry_of("embed@a")).deps)
    with pytest.raises(StageError, match="the command"):
        check("embed@a", entry_of("embed@a"), asked, [])


@pytest.mark.parametrize(
    "entry", [{}, {"cmd": "x", "deps": 3}, {"cmd": "x", "deps": [{"path": "a"}]}, {"cmd": "x", "outs": [1]}]
)
def test_what_is_no_entry_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(StageError, match=r"no entry of dvc\.lock"):
        check("embed@a", entry, Inputs("x", {}), [])


def test_an_entry_that_lacks_an_output_is_refused() -> None:
    entry = entry_of("embed@a")
    with pytest.raises(StageError, match="lacks work/more"):
        check("embed@a", entry, inputs_of(entry), ["work/embed@a", "work/more"])


def test_what_is_sent_to_a_worker_has_no_dependencies() -> None:
    assert outputs_alone(entry_of("embed@a")).keys() == {"cmd", "outs"}


def test_the_same_work_is_known_by_the_same_digest_and_other_work_by_another() -> None:
    first = Request("embed@a", "c0ffee", Inputs("x", {"a": "1", "b": "2"}), {})
    same = Request("embed@a", "c0ffee", Inputs("x", {"b": "2", "a": "1"}), {"ingest@a": {}})
    assert first.sha256 == same.sha256
    for other in (
        Request("embed@b", "c0ffee", first.inputs, {}),
        Request("embed@a", "decaf", first.inputs, {}),
        Request("embed@a", "c0ffee", Inputs("x", {"a": "1", "b": "3"}), {}),
    ):
        assert other.sha256 != first.sha256


# ------------------------------------------------------------------------------- what is seen in Prefect


def test_the_answer_counts_however_the_run_ended() -> None:
    from flows.spread import seen

    about = {
        "state": "done", "stage": "embed@a", "where": "host:/one", "beat": -1, "how": "ran", "seconds": 3.0,
        "last_line": "fine", "entry": json.dumps(entry_of("embed@a")),
    }  # fmt: skip
    look = seen("CRASHED", "", about)
    assert look.state == "done"
    assert look.entry == entry_of("embed@a")
    assert look.outcome == Outcome("embed@a", "ran", 3.0, "fine")


@pytest.mark.parametrize(
    ("state", "answer", "expected"),
    [
        ("SCHEDULED", None, "waiting"),
        ("PENDING", None, "starting"),
        ("RUNNING", None, "starting"),
        ("RUNNING", {"state": "running", "beat": 2}, "running"),
        ("CRASHED", {"state": "running", "beat": 2}, "lost"),
        ("FAILED", None, "lost"),
        ("CANCELLED", {"state": "running"}, "stopped"),
    ],
)
def test_a_runs_state_without_an_answer(state: str, answer: dict[str, Any] | None, expected: str) -> None:
    from flows.spread import seen

    assert seen(state, "why", answer).state == expected


def test_an_error_comes_back_as_its_own_class() -> None:
    from flows.spread import seen

    error = {"type": "DataError", "exit_code": 2, "message": "row 3 is empty"}
    look = seen("FAILED", "", {"state": "failed", "error": error})
    assert isinstance(look.error, DataError)
    assert str(look.error) == "row 3 is empty"
    unknown = seen("FAILED", "", {"state": "failed", "error": error | {"type": "os.system", "exit_code": 1}})
    assert type(unknown.error) is StageError


def test_a_store_that_one_worker_does_not_reach_may_be_reached_by_another() -> None:
    from flows.spread import seen

    error = {"type": "UnreachableError", "exit_code": 1, "message": "dvc pull: refused"}
    look = seen("FAILED", "", {"state": "failed", "error": error})
    assert (look.state, look.why) == ("lost", "dvc pull: refused")


# ------------------------------------------------------------------------------------- with the real DVC


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with everything made, whose outputs are in a remote, and a bare repository to fetch from."""
    folder = tmp_path_factory.mktemp("spread")
    root = miniature.build(folder / "owner")
    miniature.dvc(root, "remote", "add", "--default", "disk", str(folder / "disk"))
    git(root, "add", ".dvc/config")
    git(root, "commit", "--quiet", "--message", "A remote")
    miniature.dvc(root, "push", "--quiet")
    git(folder, "clone", "--quiet", "--bare", str(root), "origin.git")
    git(root, "remote", "add", "origin", str(folder / "origin.git"))
    git(root, "fetch", "--quiet")
    return root


@pytest.fixture
def owner(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "owner"
    shutil.copytree(built, root)
    monkeypatch.chdir(root)
    monkeypatch.setattr("flows.spread.BACK_OFF", 0.0)
    return root


@pytest.mark.flow
def test_the_graph_and_every_entry_are_as_dvc_has_them(owner: Path) -> None:
    clone = Clone()
    graph = clone.graph(["compare@shapes"])
    assert next(iter(graph)) == "resolve"
    assert set(graph["train@shapes-full"]) == {
        "embed@shapes", "ingest@shapes", "resolve", "split@shapes", "validate@shapes",
    }  # fmt: skip
    written = (owner / "dvc.lock").read_bytes()
    for stage in ("resolve", "embed@shapes", "train@shapes-full", "compare@shapes"):
        entry = clone.entry(stage)
        assert entry is not None
        check(stage, entry, clone.inputs(stage), clone.outs(stage))
        clone.merge(stage, json.loads(json.dumps(entry)))
    assert (owner / "dvc.lock").read_bytes() == written, "a merge writes the bytes that DVC writes"


@pytest.mark.flow
def test_what_was_made_before_is_brought_and_what_was_not_is_not(owner: Path) -> None:
    from flows.spread import Home

    with Home("c0ffee") as home:
        assert home.settled("embed@shapes") == Outcome("embed@shapes", "unchanged", ANY)
        shutil.rmtree(owner / "work/shapes/features")
        shutil.rmtree(owner / ".dvc/cache")
        assert home.settled("embed@shapes") == Outcome("embed@shapes", "restored", ANY)
        assert (owner / "work/shapes/features/made.json").exists()
        (owner / "steps/embed.py").write_text("# changed\n")
        assert home.settled("embed@shapes") is None


@pytest.mark.long
def test_a_stage_goes_to_a_worker_and_comes_home(owner: Path, tmp_path: Path) -> None:
    """The owner's and the worker's side, without Prefect between them."""
    from flows.spread import Home, shareable_commit

    changed = owner / "steps/train.py"
    changed.write_text(changed.read_text() + "# changed\n")
    with pytest.raises(UserError, match=r"steps/train\.py is not committed"):
        shareable_commit()
    git(owner, "commit", "--quiet", "--all", "--message", "Changed")
    with pytest.raises(UserError, match="is in no branch of a remote"):
        shareable_commit()
    git(owner, "push", "--quiet", "origin", "HEAD:spread")
    with Home(shareable_commit()) as home:
        home.graph = home.clone.graph(["train@shapes-full"])
        assert home.settled("train@shapes-full") is None
        request = home.request("train@shapes-full")
        assert len(json.dumps(request.lock)) < 4000
        entry = _work(request, tmp_path)
        text = (owner / "dvc.lock").read_text()
        other = entry | {"deps": [one | {"md5": "0" * 32} for one in entry["deps"]]}
        with pytest.raises(StageError, match="other inputs"):
            home.take_in(request, other)
        assert (owner / "dvc.lock").read_text() == text
        home.take_in(request, entry)
        assert home.clone.up_to_date("train@shapes-full")
        assert home.clone.entry("train@shapes-full") == entry


def _work(request: Request, tmp_path: Path) -> Entry:
    """Do it as a worker does, in another clone and another process; give the entry."""
    worker = tmp_path / "worker"
    git(tmp_path, "clone", "--quiet", str(_origin(Path.cwd())), str(worker))
    call = (
        "import json, os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from flows.merging import Inputs\n"
        "from flows.spread import do_stage\n"
        "stage, commit, cmd, deps, lock = json.load(sys.stdin)\n"
        "entry, outcome = do_stage(stage, commit, Inputs(cmd, deps), lock, print)\n"
        "assert outcome.how == 'ran'\n"
        "print(json.dumps(entry))\n"
    )
    told = [request.stage, request.commit, request.inputs.cmd, request.inputs.deps, request.lock]
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=worker, env=miniature.environment(), input=json.dumps(told),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "train shapes full done" in lines
    entry: Entry = json.loads(lines[-1])
    return entry


def _origin(root: Path) -> str:
    return git(root, "remote", "get-url", "origin").strip()


@pytest.mark.flow
def test_a_workers_clone_with_changes_of_its_own_is_left_alone(owner: Path) -> None:
    from flows.spread import check_out

    (owner / "params.yaml").write_text("experiments: {}\n")
    with pytest.raises(UserError, match=r"params\.yaml was changed in it"):
        check_out("c0ffee")
    assert (owner / "params.yaml").read_text() == "experiments: {}\n"


@pytest.mark.flow
def test_a_commit_that_the_remote_does_not_have_is_named(owner: Path) -> None:
    from flows.spread import check_out

    with pytest.raises(UserError, match="does not have the commit c0ffeec0ffee; `git push` it"):
        check_out("c0ffee" * 6 + "c0ff")


@pytest.mark.flow
@pytest.mark.survives(
    "servers",
    "a worker cannot reach the store of data",
    how="an address where nothing listens",
    held="told after some tries with growing pauses",
)
def test_a_store_that_is_away_is_told_after_some_tries(owner: Path) -> None:
    from flows.spread import dvc

    shutil.rmtree(owner / ".dvc/cache")
    shutil.rmtree(owner / "work/shapes/features")
    (owner.parent / "nowhere").touch()
    miniature.dvc(owner, "remote", "modify", "disk", "url", str(owner.parent / "nowhere/at/all"))
    with pytest.raises(UnreachableError, match="dvc pull embed@shapes"):
        dvc("pull", "embed@shapes", tries=2)

"""The flow with a stand-in for the joint; Prefect is real where a test is marked `flow`."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from prefect import State
from prefect.states import Failed

from flows import pipeline, tasks
from flows.pipeline import PipelineFailedError, Report
from flows.stages import Outcome, Stopped, Tell, UnreachableError
from steps import params
from steps.compare import compare
from steps.errors import DataError, HeadstartError, ParamsError, StageError, TrackingError
from tests import evaluated

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "timm", "mlflow", "great_expectations", "pandas", "sklearn")

STEPS = (
    "ingest@{0} validate@{0} split@{0} fetch@{1} embed@{0} baseline@{0} train@{0}-scratch train@{0}-frozen "
    "train@{0}-full evaluate@{0} curve@{0} compare@{0} register@{0}"
)


class FakeStages:
    """Stands in for the joint: every stage runs at once, except those that `errors` names."""

    def __init__(self, errors: dict[str, HeadstartError] | None = None) -> None:
        self.errors = errors or {}
        self.called: list[str] = []
        self.stopped = False
        self.waiting = ""
        self.environment: dict[str, str] = {}

    def of_run(self, environment: dict[str, str]) -> FakeStages:
        """As the flow makes one."""
        self.environment = environment
        return self

    def run(self, stage: str, tell: Tell, *, force: bool = False) -> Outcome:
        self.called.append(stage)
        tell(f"{stage} says something")
        if stage in self.errors:
            raise self.errors[stage]
        deadline = time.monotonic() + 30
        while stage == self.waiting and time.monotonic() < deadline:
            time.sleep(0.05)
            if self.stopped:
                raise Stopped(f"{stage}: the run was stopped")
        return Outcome(stage, "unchanged", 0.0)

    def run_outside(self, step: str, *arguments: str, tell: Tell) -> Outcome:
        return self.run("@".join((step, *arguments)), tell)

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeStages:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    fake = FakeStages()
    monkeypatch.setattr(pipeline, "Stages", fake.of_run)
    monkeypatch.setattr("flows.tasks.RETRY_SECONDS", 0)
    return fake


def expected(experiment: str, slug: str) -> list[str]:
    return STEPS.format(experiment, slug).split()


def test_importing_the_flow_loads_nothing_heavy() -> None:
    code = f"import sys, flows.pipeline; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_experiments_are_chosen_by_name_and_a_mistyped_one_is_told() -> None:
    checked = params.load(ROOT / "params.yaml")
    assert pipeline.chosen([], checked) == ["digits", "bbc-news"]
    assert pipeline.chosen(["bbc-news", "bbc-news"], checked) == ["bbc-news"]
    with pytest.raises(ParamsError, match=r"has no experiment 'bbc-new'; did you mean 'bbc-news'\?"):
        pipeline.chosen(["bbc-new"], checked)


def test_failures_decide_the_exit_code() -> None:
    user, ours = DataError("a: wrong"), StageError("b: broken")
    assert PipelineFailedError(Report(["a"], failures={"a": user})).exit_code == 2
    both = PipelineFailedError(Report(["a", "b"], failures={"a": user, "b": ours}))
    assert both.exit_code == 1
    assert str(both) == "2 experiments failed:\n  a: wrong\n  b: broken"


def test_nights_are_patient_with_what_reaches_out_and_with_nothing_else() -> None:
    for step in (tasks.fetch, tasks.register, tasks.ingest):
        patient = tasks.patient(step, 3)
        assert (patient.retries, patient.retry_delay_seconds) == (3, [10, 20, 40])
        assert patient.retry_jitter_factor == 1.0
    assert tasks.patient(tasks.train, 3) is tasks.train
    away: State[Any] = Failed(data=UnreachableError("away"))
    assert tasks.unreachable(tasks.ingest, None, away)  # type: ignore[arg-type]
    for error in (DataError("wrong"), StageError("crashed")):
        assert not tasks.unreachable(tasks.ingest, None, Failed(data=error))  # type: ignore[arg-type]


@pytest.mark.flow
def test_steps_run_in_their_order(stages: FakeStages, prefect: None) -> None:
    report = pipeline.run([])
    assert stages.called == [
        "resolve", *expected("digits", "efficientnet-lite0"), *expected("bbc-news", "minilm-l6"),
    ]  # fmt: skip
    assert report.nothing_changed
    assert len(stages.environment["HEADSTART_FLOW_RUN"]) == 36


@pytest.mark.flow
def test_a_failed_experiment_does_not_stop_the_others(stages: FakeStages, prefect: None) -> None:
    stages.errors = {"validate@digits": DataError("validate@digits: 3 labels are null")}
    with pytest.raises(PipelineFailedError, match=r"^validate@digits: 3 labels are null$") as caught:
        pipeline.run([])
    assert stages.called[:3] == ["resolve", "ingest@digits", "validate@digits"]
    assert stages.called[3:] == expected("bbc-news", "minilm-l6")
    assert caught.value.exit_code == 2


@pytest.mark.flow
def test_only_what_reaches_out_is_tried_again_and_never_a_users_mistake(
    stages: FakeStages, prefect: None
) -> None:
    stages.errors = {"fetch@minilm-l6": StageError("gone"), "train@digits-full": StageError("crashed")}
    with pytest.raises(PipelineFailedError):
        pipeline.run([])
    assert stages.called.count("fetch@minilm-l6") == 3
    assert stages.called.count("train@digits-full") == 1
    stages.called.clear()
    stages.errors = {"fetch@minilm-l6": DataError("altered")}
    with pytest.raises(PipelineFailedError):
        pipeline.run(["bbc-news"])
    assert stages.called.count("fetch@minilm-l6") == 1


@pytest.mark.flow
@pytest.mark.survives(
    "servers",
    "MLflow is away during a whole run",
    how="a run with an address where nothing listens",
    held="training and evidence are complete; published later",
)
def test_a_tracking_server_that_is_away_fails_nothing(stages: FakeStages, prefect: None) -> None:
    stages.errors = {"register@digits": TrackingError("register@digits: no answer")}
    report = pipeline.run(["digits"])
    assert report.unpublished == {"digits": "register@digits: no answer"}
    assert stages.called.count("register@digits") == 2


@pytest.mark.flow
def test_prefect_shows_names_lines_and_the_table(stages: FakeStages, prefect: None) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import LogSort, TaskRunSort
    from prefect.logging.handlers import APILogHandler

    evaluated.make(evaluated.Made(experiment="bbc-news"))
    compare("bbc-news")
    Path("reports/index.html").unlink()
    pipeline.run(["bbc-news"])
    APILogHandler().flush()
    with get_client(sync_client=True) as client:
        names: set[str] = set()
        deadline = time.monotonic() + 20
        while "train bbc-news/full" not in names:  # task runs reach the server as events, a little later
            assert time.monotonic() < deadline, names
            runs = client.read_task_runs(sort=TaskRunSort.END_TIME_DESC, limit=100)
            names = {run.name for run in runs}
        assert {"resolve", "fetch minilm-l6", "register bbc-news"} <= names
        lines = [log.message for log in client.read_logs(sort=LogSort.TIMESTAMP_DESC, limit=100, offset=0)]
        assert "train@bbc-news-full says something" in lines
        artifacts = client._client.post("/artifacts/filter", json={"limit": 50}).json()
        tables = [str(one["data"]) for one in artifacts]
        assert any("### bbc\\-news" in table and "| **full** | " in table for table in tables)
        assert latest(client).name == "headstart bbc-news"
    assert "bbc-news/report.html" in Path("reports/index.html").read_text("utf-8")


@pytest.mark.flow
def test_a_run_that_is_cancelled_in_prefect_stops(
    stages: FakeStages, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    monkeypatch.setattr(pipeline, "POLL_SECONDS", 0.1)
    stages.waiting = "train@digits-full"

    def cancel() -> None:
        while stages.waiting not in stages.called:
            time.sleep(0.05)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(latest(client).id, Cancelling(), force=True)

    canceller = Thread(target=cancel, daemon=True)
    canceller.start()
    with pytest.raises(Stopped, match="cancelled in Prefect"):
        pipeline.run([])
    canceller.join()
    assert stages.called[-1] == "train@digits-full"
    with get_client(sync_client=True) as client:
        assert latest(client).state.is_cancelled()


def latest(client: Any) -> Any:
    """The flow run that started last."""
    from prefect.client.schemas.sorting import FlowRunSort

    return client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]

"""Nights in a clone whose graph is the real one: Prefect and DVC are real, the steps are stand-ins."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flows import lock, nightly, notify, records, tasks
from flows.night import Night
from flows.nightly import NightFailedError
from flows.stages import Stopped
from steps.errors import ParamsError
from tests.flows import miniature
from tests.tracking import servers

pytestmark = pytest.mark.flow

ALL = [
    "ingest shapes", "validate shapes", "split shapes", "embed shapes", "baseline shapes", "train shapes",
    "train shapes", "evaluate shapes", "curve shapes", "compare shapes", "register shapes",
]  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which everything was run and registered."""
    root = miniature.build(tmp_path_factory.mktemp("nightly") / "clone")
    command = [sys.executable, "-m", "steps.register", "shapes"]
    subprocess.run(command, cwd=root, env=miniature.environment(), check=True, capture_output=True)
    return root


@pytest.fixture
def clone(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "clone"
    shutil.copytree(built, root)
    miniature.forget_steps(root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.delenv(lock.RUN_VARIABLE, raising=False)
    monkeypatch.setattr(tasks, "NIGHT_SECONDS", 0.01)
    monkeypatch.setattr("flows.nightly.index.write", lambda folder: None)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    return root


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Every message: what about, of which experiment, the text."""
    found: list[tuple[str, str, str]] = []

    def emit(kind: str, experiment: str, text: str, **facts: Any) -> None:
        json.dumps(facts)
        found.append((kind, experiment, text))

    monkeypatch.setattr(notify, "emit", emit)
    return found


def night(*, force: bool = False) -> Night:
    return nightly.run([], force=force)


def new_curve(root: Path) -> None:
    """Change what only the last stages depend on."""
    miniature.edit(root, experiments__shapes__curve__labels=[9, 12])


def failed_night() -> NightFailedError:
    with pytest.raises(NightFailedError) as caught:
        night()
    return caught.value


def last() -> records.Record:
    return records.recent()[0]


def artifact() -> str:
    """The newest of the nights' artifacts."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client._client.post("/artifacts/latest/filter", json={"limit": 50}).json()
    return str(next(one["data"] for one in found if one["key"] == "headstart-nightly"))


def test_a_night_without_a_cause_runs_nothing(
    clone: Path, prefect: None, told: list[tuple[str, str, str]]
) -> None:
    found = night()
    assert miniature.steps_run(clone) == []
    assert [one.end for one in found.results] == ["nothing"]
    assert last()["experiments"]["shapes"]["outcome"] == "nothing"
    assert last()["seconds"] < 10
    assert [one[:2] for one in told] == [("nothing", "nightly")]
    assert "| shapes | nothing to do | 0.0 s | 1 |" in artifact()


def test_new_data_are_trained_on_and_told_once(
    clone: Path, prefect: None, told: list[tuple[str, str, str]]
) -> None:
    (clone / "raw/shapes/a.txt").write_text("b")
    found = night()
    assert miniature.steps_run(clone) == ALL
    (kind, experiment, text), *others = told
    assert (kind, experiment, others) == ("promoted", "shapes", [])
    assert text == "version 2 is champion: better (because of data: raw/shapes was modified)"
    page = artifact()
    assert "| shapes | promoted |" in page
    assert "* data: raw/shapes was modified" in page
    assert "train@shapes\\-full | ran |" in page
    assert "A made\\-up verdict." in page
    about = last()
    assert about["experiments"]["shapes"]["causes"] == [{"kind": "data", "text": "raw/shapes was modified"}]
    # The steps know whose run they belong to.
    run = about["flow_run"]
    assert (
        (clone / "steps.log")
        .read_text()
        .splitlines()[-1]
        .split(maxsplit=2)[2]
        .startswith(f"{run} nightly (flow run {run})")
    )
    assert found.seconds > 0
    night()
    assert last()["experiments"]["shapes"]["outcome"] == "nothing"


def test_only_what_is_affected_is_run_and_a_refusal_says_why(
    clone: Path, prefect: None, told: list[tuple[str, str, str]]
) -> None:
    (clone / "register.json").write_text(json.dumps({"promote": False, "reason": "worse by 3 <b>points</b>"}))
    new_curve(clone)
    night()
    assert miniature.steps_run(clone) == ["curve shapes", "compare shapes", "register shapes"]
    assert told == [
        ("refused", "shapes", "version 2 was refused, version 1 stays champion: worse by 3 <b>points</b> "
                              "(because of parameters: curve.labels [9] -> [9, 12])"),
    ]  # fmt: skip
    assert "<b>" not in artifact()


def test_settings_that_change_no_result_are_written_and_nothing_is_run(
    clone: Path, prefect: None, told: list[tuple[str, str, str]]
) -> None:
    miniature.edit(clone, experiments__shapes__gate={"min_items": 40})
    night()
    assert json.loads((clone / "work/params/shapes/register.json").read_text())["gate"]["min_items"] == 40
    assert miniature.steps_run(clone) == []


@pytest.mark.long
def test_building_anew_runs_everything_but_the_weights(
    clone: Path, prefect: None, told: list[tuple[str, str, str]]
) -> None:
    night(force=True)
    assert miniature.steps_run(clone) == ALL
    assert last()["experiments"]["shapes"] | {"ran": [], "seconds": 0} == {
        "anew": True, "causes": [{"kind": "asked", "text": "built anew on request"}], "champion": "1",
        "decision": "", "drift": None, "failures": 0, "outcome": "same", "ran": [], "seconds": 0,
        "text": "the results are what they were; version 1 stays",
    }  # fmt: skip
    assert told == []


@pytest.mark.faults
@pytest.mark.survives(
    "nights",
    "three nights that fail",
    how="a step that fails night after night, then succeeds",
    held="yesterday's champion serves; the third message says three nights in a row",
)
def test_three_nights_that_fail_leave_the_champion_and_say_so(
    clone: Path, prefect: None, told: list[tuple[str, str, str]]
) -> None:
    new_curve(clone)
    miniature.fail(clone, curve="DataError: 3 labels are null")
    first = failed_night()
    assert first.exit_code == 2
    assert str(first) == ("shapes: failed, champion version 1 still serves: curve@shapes: 3 labels are null")
    failed_night()
    failed_night()
    assert [one[0] for one in told] == ["failed"] * 3
    assert told[2][2].startswith(
        "failed three nights in a row, champion version 1 still serves: curve@shapes: 3 labels are null"
    )
    assert last()["experiments"]["shapes"]["failures"] == 3
    assert "3 labels are null" in artifact()
    miniature.fail(clone)
    night()
    assert (told[3][0], last()["experiments"]["shapes"]["failures"]) == ("promoted", 0)


@pytest.mark.faults
@pytest.mark.survives(
    "servers",
    "the tracking server is away for a night",
    how="register refused three times a night, then not",
    held="tried again with back-off, told, and registered by the next night without training",
)
def test_a_tracking_server_that_is_away_is_made_up_for(
    clone: Path, prefect: None, told: list[tuple[str, str, str]]
) -> None:
    new_curve(clone)
    miniature.fail(clone, register="TrackingError: no answer")
    night()
    assert miniature.steps_run(clone)[-3:] == ["register shapes"] * 3
    assert told[0][:2] == ("failed", "shapes")
    assert told[0][2].startswith("failed, champion version 1 still serves: register@shapes: no answer")
    assert last()["experiments"]["shapes"]["outcome"] == "unpublished"
    miniature.fail(clone)
    miniature.forget_steps(clone)
    night()
    assert miniature.steps_run(clone) == ["register shapes"]
    assert last()["experiments"]["shapes"]["outcome"] == "promoted"


@pytest.mark.faults
def test_a_server_that_answers_again_costs_nothing(
    clone: Path, prefect: None, told: list[tuple[str, str, str]]
) -> None:
    new_curve(clone)
    miniature.fail(clone, register="once TrackingError: no answer")
    night()
    assert [one[0] for one in told] == ["promoted"]
    assert miniature.steps_run(clone).count("register shapes") == 2


def test_drift_is_told_once_and_nothing_is_trained(
    clone: Path, prefect: None, told: list[tuple[str, str, str]]
) -> None:
    path = clone / ".headstart/drift/shapes.json"
    path.parent.mkdir(parents=True)
    drift = {"drifted": True, "text": "the images are darker", "inputs_sha256": "abc"}
    path.write_text(json.dumps(drift))
    night()
    night()
    assert miniature.steps_run(clone) == []
    assert [one[0] for one in told] == ["drift", "nothing"]
    assert told[0][2].startswith("the images are darker; training again on the same data would give")
    path.write_text(json.dumps(drift | {"inputs_sha256": "def"}))
    new_curve(clone)
    night()
    assert told[2][0] == "promoted"
    assert told[2][2].endswith(
        "(because of parameters: curve.labels [9] -> [9, 12]). Drift: the images are darker"
    )


@pytest.mark.survives(
    "registry",
    "the alias `champion` deleted by hand",
    how="the alias removed from the store",
    held="every night says so until somebody decides; no other version is made champion",
)
def test_a_champion_that_lost_its_alias_is_told_every_night(
    clone: Path, prefect: None, told: list[tuple[str, str, str]]
) -> None:
    with closing(sqlite3.connect("mlflow/mlflow.db")) as store, store:
        store.execute("DELETE FROM registered_model_aliases")
    failed_night()
    failed_night()
    assert told[0][2].startswith("headstart-shapes has no champion: the alias was removed")
    assert told[1][2].startswith("two nights in a row: headstart-shapes has no champion")
    with closing(sqlite3.connect("mlflow/mlflow.db")) as store, store:
        store.execute("INSERT INTO registered_model_aliases VALUES ('headstart-shapes', 'champion', '1')")
    night()
    assert last()["experiments"]["shapes"]["outcome"] == "nothing"


@pytest.mark.survives(
    "nights",
    "params.yaml is broken at night",
    how="a file that is no YAML, two nights long",
    held="told and counted; every champion serves",
)
def test_settings_that_are_wrong_fail_the_night_and_are_written_down(
    built: Path, clone: Path, prefect: None, told: list[tuple[str, str, str]]
) -> None:
    (clone / "params.yaml").write_text("experiments: {")
    for _ in range(2):
        with pytest.raises(ParamsError, match="not valid YAML"):
            night()
    assert told[1][:2] == ("failed", "nightly")
    assert told[1][2].startswith("the night failed two nights in a row, every champion still serves")
    assert "not valid YAML" in last()["failed"]
    assert records.failed_before(records.recent(), "shapes") == 2
    shutil.copyfile(built / "params.yaml", clone / "params.yaml")
    night()
    assert records.stopped_before(records.recent()) == 0


@pytest.mark.survives(
    "nights",
    "two nightlies at once in one clone",
    how="a second night while the first holds the clone",
    held="the second ends as cancelled and says who runs",
)
def test_a_second_night_at_the_same_time_leaves(
    clone: Path, prefect: None, told: list[tuple[str, str, str]]
) -> None:
    with lock.one_run(), pytest.raises(Stopped, match="another run is going on in this clone"):
        night()
    assert (records.recent(), told) == ([], [])


@pytest.mark.survives(
    "nights",
    "the clock jumps back an hour between two nights",
    how="the record of a night that began an hour later than now",
    held="nights are counted by number, none is overwritten",
)
def test_a_clock_that_goes_back_changes_no_order(
    clone: Path, prefect: None, told: list[tuple[str, str, str]]
) -> None:
    from datetime import UTC, datetime, timedelta

    now = datetime.now(UTC)
    later = records.new(now + timedelta(hours=1)) | {"experiments": {"shapes": {"outcome": "failed"}}}
    records.write(later)
    records.write(records.new(now + timedelta(hours=1)))
    assert len(list(records.FOLDER.glob("*.json"))) == 2
    night()
    assert [one["number"] for one in records.recent()] == [3, 2, 1]
    assert records.recent()[0]["experiments"]["shapes"]["outcome"] == "nothing"
    assert records.failed_before(records.recent(), "shapes") == 0


def test_a_night_that_was_killed_counts_as_failed(clone: Path) -> None:
    from datetime import UTC, datetime

    about = {"experiments": {"shapes": {"outcome": "broken off"}}}
    for _ in range(2):
        records.write(records.new(datetime.now(UTC)) | about)
    (records.FOLDER / "2020.json").write_text("{half")
    assert records.failed_before(records.recent(), "shapes") == 2
    assert [records.in_a_row(count) for count in (0, 1, 2, 3, 12)] == [
        "", "", "two nights in a row", "three nights in a row", "12 nights in a row",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------ the command line


def command(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`headstart nightly` of the repository in the clone; says what it imported."""
    code = (
        f"import sys; sys.path.insert(0, {str(miniature.ROOT)!r}); from headstart import cli; "
        "sys.argv = ['headstart', 'nightly', *sys.argv[1:]]; code = cli.main(); "
        "print([n for n in ('torch', 'mlflow', 'prefect') if n in sys.modules]); sys.exit(code)"
    )
    kept = {name: value for name, value in miniature.environment().items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=clone, env=kept | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def refused(clone: Path, **environment: str) -> str:
    """What `headstart nightly` says when there is a cause and it cannot even start."""
    new_curve(clone)
    done = command(clone, **environment)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert miniature.steps_run(clone) == []
    return done.stderr


def test_the_command_ends_at_once_where_there_is_no_cause(clone: Path) -> None:
    done = command(clone)
    assert done.returncode == 0, done.stderr
    assert "shapes  nothing to do: no cause to train anew" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
    assert last()["seconds"] < 10
    assert not (clone / ".headstart/prefect/prefect.db").exists()


@pytest.mark.survives(
    "servers",
    "Prefect's server is down when a night starts",
    how="an address where nothing listens",
    held="one line, exit code 2, nothing was started",
)
def test_a_server_that_is_down_is_told(clone: Path) -> None:
    assert "does not answer" in refused(clone, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert command(clone, "shape").returncode == 2
    assert os.environ.get("PREFECT_API_URL") != "http://127.0.0.1:9/api"


@pytest.mark.survives(
    "servers",
    "a token that has expired",
    how="a Prefect server that answers 401",
    held="one line that names the variable, exit code 2, nothing was started",
)
def test_a_server_that_does_not_let_us_in_is_told(clone: Path) -> None:
    with servers.answering({}, 401) as address:
        told = refused(clone, PREFECT_API_URL=f"{address}/api", PREFECT_CLIENT_MAX_RETRIES="0")
    assert "does not let us in (401); set PREFECT_API_AUTH_STRING" in told

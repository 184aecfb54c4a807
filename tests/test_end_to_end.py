"""The whole of Headstart on its small twin: real DVC, Prefect, Great Expectations, training and MLflow."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from tests import twin
from tests.twin import ARMS, Twin

pytestmark = pytest.mark.flow

TRAINS = {f"train@{name}-{arm}" for name in ("shapes", "topics") for arm in ARMS}
STARTED_SECONDS = 120.0
# A tracking server that nobody answers at; also spares a run the time that registering takes.
AWAY = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Twin, str]:
    """The twin with both experiments done from nothing, and what `headstart run` said.

    The pictures go through the flow without a Prefect server; beside it, in the same clone, the texts go
    through DVC alone.
    """
    made = twin.build(tmp_path_factory.mktemp("built") / "twin")
    made.run("dvc", "repro", "resolve")
    with ThreadPoolExecutor(max_workers=1) as beside:
        texts = beside.submit(texts_with_dvc_alone, made)
        said = made.headstart("run", "shapes")
        texts.result()
    twin.git(made.root, "add", "--all", "--", ":!.home")
    twin.git(made.root, "commit", "--quiet", "--message", "Run")
    return made, said


def texts_with_dvc_alone(made: Twin) -> None:
    made.run("dvc", "--wait-for-lock", "repro", "compare@topics")
    made.headstart("publish", "topics")


@pytest.fixture
def clone(first: tuple[Twin, str], tmp_path: Path) -> Twin:
    """A copy of the twin, in which everything is up to date."""
    return first[0].copy(tmp_path / "twin")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Prefect server, started as a user starts it; the environment that names it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    home = {"PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")), "PREFECT_API_URL": url}
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-ui"],
        env=os.environ | home | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + STARTED_SECONDS
    while not answers(f"{url}/health"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield home
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=30)


def stages_run(said: str) -> set[str]:
    """The stages that `dvc repro` says it ran, or would run."""
    return set(re.findall(r"Running stage '([^']+)'", said))


def titles(said: str, how: str) -> set[str]:
    """The stages that `headstart run` says have ended so."""
    return set(re.findall(rf"^\d\d:\d\d:\d\d  (.+?) +{how}", said, re.MULTILINE))


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def trainings(root: Path) -> list[int]:
    """Trainings that go on in a clone."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if process.info["cwd"] == str(root) and "steps.train" in (process.info["cmdline"] or []):
            found.append(process.pid)
    return found


def start_until_it_trains(clone: Twin, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a run, and give it when it is in the middle of a training."""
    # So that the middle is long enough.
    clone.edit_params(experiments__topics__training__epochs=20_000)
    run = clone.start("run", "topics", environment=environment)
    deadline = time.monotonic() + STARTED_SECONDS
    while not trainings(clone.root):
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return run


# ------------------------------------------------------------------------------- from nothing, and again


def test_from_nothing_to_a_registered_model(first: tuple[Twin, str]) -> None:
    clone, said = first
    # All but `resolve`, which had run already.
    assert len(titles(said, "done in")) == 13
    assert comparison_text(clone, "shapes") in said
    assert "reports/shapes/report.html" in said
    assert "headstart-shapes version 1 @champion" in said
    assert "Traceback" not in said
    assert not (clone.root / ".home/.prefect").exists(), "the user's own Prefect was touched"


def test_dvc_alone_does_the_same(first: tuple[Twin, str]) -> None:
    clone, _ = first
    assert "On topics" in comparison_text(clone, "topics")


def comparison_text(clone: Twin, name: str) -> str:
    """The verdict, once the comparison is seen to be whole."""
    comparison = json.loads((clone.root / f"reports/{name}/comparison.json").read_text())
    assert [arm["arm"] for arm in comparison["arms"]] == list(ARMS)
    assert all(len(arm["values"]) == 2 for arm in comparison["arms"])
    return str(comparison["verdict"]["text"]).replace("`", "")


def test_the_second_run_says_that_nothing_changed(first: tuple[Twin, str]) -> None:
    clone, _ = first
    started = time.monotonic()
    said = clone.headstart("run")
    assert "Nothing changed: all 27 steps were up to date." in said
    assert len(titles(said, "unchanged")) == 25
    assert comparison_text(clone, "topics") in said
    assert "headstart-topics version 1 @champion" in said
    assert time.monotonic() - started < 60  # some 10 s on two idle cores
    assert not [one for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(clone.root)]


def test_the_champion_predicts(first: tuple[Twin, str]) -> None:
    clone, _ = first
    said = clone.headstart("predict", "shapes", "raw/shapes/circle/circle-00.png", "--json")
    assert json.loads(said.splitlines()[-1])["label"] in twin.SHAPES
    assert clone.headstart("predict", "shapes", "no-such-file.png", expect=2).count("error: ") == 1


def test_results_and_doctor(first: tuple[Twin, str]) -> None:
    clone, _ = first
    assert "headstart-topics version 1 @champion" in clone.headstart("results", "topics")
    # The lock file may pin what the machine of this test has not; the rest must be sound.
    said = clone.headstart("doctor", expect=None)
    assert {line.split("  ")[1] for line in said.splitlines() if line.startswith("fail")} <= {"packages"}
    assert "the graph can be read" in said


# -------------------------------------------------------------------------------------------- DVC alone


def test_dvc_alone_finds_nothing_to_do_and_a_readme_changes_nothing(clone: Twin) -> None:
    assert stages_run(clone.run("dvc", "repro").stdout) == set()
    (clone.root / "README.md").write_text("Another one.\n")
    assert "up to date" in clone.run("dvc", "status").stdout


def test_an_edited_loop_reruns_every_training(clone: Twin) -> None:
    with (clone.root / "steps/loop.py").open("a") as file:
        file.write("# edited\n")
    would = stages_run(clone.run("dvc", "repro", "--dry").stdout)
    assert would >= TRAINS
    assert not {stage for stage in would if stage.startswith(("fetch", "ingest", "validate", "split"))}


def test_one_more_arm_trains_that_arm_and_no_other(clone: Twin) -> None:
    clone.edit_params(arms__low={"preset": "lora"})
    clone.run("dvc", "repro", "resolve")
    would = stages_run(clone.run("dvc", "repro", "--dry").stdout)
    assert {stage for stage in would if stage.startswith("train@")} == {
        "train@shapes-low",
        "train@topics-low",
    }
    assert "compare@shapes" in would
    assert not {stage for stage in would if stage.startswith(("embed", "baseline"))}


def test_one_more_label_budget_trains_no_arm(clone: Twin) -> None:
    clone.edit_params(experiments__shapes__curve={"labels": [9, 12], "arms": ["scratch", "full"]})
    clone.run("dvc", "repro", "resolve")
    would = stages_run(clone.run("dvc", "repro", "--dry").stdout)
    assert would <= {"curve@shapes", "compare@shapes"}
    assert "curve@shapes" in would


def test_dvc_shows_metrics_parameters_and_plots(clone: Twin) -> None:
    metrics = json.loads(clone.run("dvc", "metrics", "show", "--json").stdout)
    files = metrics[""]["data"]
    assert 0 <= files["work/topics/evaluation/metrics.json"]["data"]["full"]["accuracy"] <= 1
    clone.edit_params(arms__full__learning_rate=0.02)
    changed = clone.run("dvc", "params", "diff", "--md").stdout
    assert re.search(r"arms\.full\.learning_rate \| 0\.01 +\| 0\.02", changed)
    clone.run("dvc", "plots", "show", "--out", "plots")
    assert "validation" in (clone.root / "plots/index.html").read_text()


def test_results_go_to_a_remote_and_come_back_without_training(clone: Twin, tmp_path: Path) -> None:
    clone.run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    clone.run("dvc", "push")
    twin.git(clone.root, "commit", "--quiet", "--all", "--message", "Remote")
    twin.git(tmp_path, "clone", "--quiet", str(clone.root), "fresh")
    fresh = Twin(tmp_path / "fresh")
    fresh.run("dvc", "pull")
    assert stages_run(fresh.run("dvc", "repro").stdout) == set()
    assert "reports/topics/report.html" in fresh.headstart("results")


# ------------------------------------------------------------------------------- with a Prefect server


def test_one_arms_learning_rate_reruns_what_follows_from_it_also_without_tracking(
    clone: Twin, server: dict[str, str]
) -> None:
    clone.edit_params(experiments__topics__arms={"full": {"learning_rate": 0.02}})
    said = clone.headstart("run", "topics", environment=server | AWAY)
    again = {"train topics/full", "evaluate topics", "curve topics", "compare topics"}
    assert titles(said, "done in") == {"resolve", *again}
    assert titles(said, "failed") == {"register topics"}
    assert "Nothing changed" not in said
    assert "Traceback" not in said
    # The run ended well; what it could not publish is published later, from the journals.
    assert "not published topics" in said
    assert "headstart publish topics" in said
    assert "headstart-topics" in clone.headstart("publish", "topics")


def test_a_mistake_in_the_data_is_one_line_and_the_other_experiment_goes_on(
    clone: Twin, server: dict[str, str]
) -> None:
    with (clone.root / "raw/topics.csv").open("a") as file:
        file.write("a text without a topic,\n")
    said = clone.headstart("run", "topics", "shapes", expect=2, environment=server | AWAY)
    assert re.search(r"^error: validate@topics: .*label", said, re.MULTILINE)
    assert "Traceback" not in said
    assert "validate topics" in titles(said, "failed")
    assert "compare shapes" in titles(said, "unchanged")


def test_a_prefect_server_that_is_not_there_is_told(clone: Twin) -> None:
    said = clone.headstart("run", expect=2, environment={"PREFECT_API_URL": "http://127.0.0.1:9/api"})
    assert "prefect server start" in said


# -------------------------------------------------------------------------------- stopped in the middle


@pytest.mark.survives(
    "processes",
    "Ctrl-C, SIGKILL and a second run in one clone",
    how="signals to a real run while it trains; a run beside it",
    held="exit codes 130 and 2, no half-written training, the next run goes on",
)
def test_stopped_killed_and_run_twice_at_once(clone: Twin, server: dict[str, str]) -> None:
    before = YAML(typ="safe").load((clone.root / "dvc.lock").read_text())["stages"]

    # Ctrl-C
    run = start_until_it_trains(clone, server | AWAY)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert said.splitlines()[-1] == "stopped; run again to go on where it was"
    assert "Traceback" not in said
    assert trainings(clone.root) == []

    # a second run while the first goes on
    run = start_until_it_trains(clone, server | AWAY)
    busy = clone.headstart("run", expect=2, environment=server)
    assert f"error: another run is going on in this clone (pid {run.pid}, since" in busy

    # kill -9: what it had started goes on, until the next run ends it
    run.kill()
    run.communicate(timeout=60)
    clone.edit_params(experiments__topics__training__epochs=2)
    said = clone.headstart("run", "topics", environment=server | AWAY)
    assert trainings(clone.root) == []
    # Nothing has to be trained again: DVC knows these results.
    assert titles(said, "done in") <= {"resolve"}
    assert titles(said, "restored from the cache") >= {"train topics/scratch"}
    assert YAML(typ="safe").load((clone.root / "dvc.lock").read_text())["stages"] == before
    assert not list((clone.root / "work").rglob(".*.partial-*"))


def test_a_termination_ends_the_training_and_leaves_the_clone_free(
    clone: Twin, server: dict[str, str]
) -> None:
    run = start_until_it_trains(clone, server | AWAY)
    run.terminate()
    said, _ = run.communicate(timeout=60)
    assert run.returncode in (128 + signal.SIGTERM, -signal.SIGTERM), said
    assert trainings(clone.root) == []
    clone.edit_params(experiments__topics__training__epochs=2)
    assert stages_run(clone.run("dvc", "repro", "compare@topics").stdout) <= {"resolve"}


def test_a_training_killed_under_dvc_goes_on_under_the_flow_to_the_same_bytes(
    clone: Twin, tmp_path: Path
) -> None:
    """DVC empties a stage's outputs before it runs; what a training needs to go on survives that."""
    clone.edit_params(
        experiments__shapes__training__epochs=12, experiments__shapes__machine={"checkpoint_seconds": 0.0}
    )
    unbroken = clone.copy(tmp_path / "unbroken")
    unbroken.run("dvc", "repro", "train@shapes-full")
    kill_when_it_trains(clone, ["dvc", "repro", "train@shapes-full"])
    said = clone.headstart("run", "shapes", environment=AWAY)
    assert "goes on from step" in said
    for seed in (1, 2):
        weights = Path(f"work/shapes/arms/full/seed-{seed}/model.safetensors")
        assert (clone.root / weights).read_bytes() == (unbroken.root / weights).read_bytes()
    assert not (clone.root / ".headstart/checkpoints/shapes/full").exists()


def kill_when_it_trains(clone: Twin, command: list[str]) -> None:
    """Kill everything that runs in the clone, once the training is some checkpoints further."""
    states = clone.root / ".headstart/checkpoints/shapes/full"
    before = {path.name for path in states.glob("seed-*/*/step-*")}
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=clone.root, env=clone.environment | AWAY,
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + STARTED_SECONDS
    while {path.name for path in states.glob("seed-*/*/step-*")} <= before:
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    time.sleep(0.2)
    for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        child.kill()
    process.wait()

"""The joint, against a real DVC and a graph of small scripts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import pytest

from flows import stages
from flows.stages import Change, Outcome, Stages, Stopped, UnreachableError
from steps.errors import DataError, HeadstartError, StageError, TrackingError, UserError

GRAPH = """
stages:
  copy:
    cmd: python script.py copy
    deps: [source.txt, raw]
    outs: [copied.txt]
  slow:
    cmd: python script.py slow
    deps: [source.txt]
    outs: [slow.txt]
  stubborn:
    cmd: python script.py stubborn
    deps: [source.txt]
    outs: [stubborn.txt]
  mistaken:
    cmd: python script.py mistaken
    deps: [source.txt]
  crashed:
    cmd: python script.py crashed
    deps: [source.txt]
  killed:
    cmd: python script.py killed
    deps: [source.txt]
"""
SCRIPT = """
import json, os, pathlib, signal, subprocess, sys, time

what, text = sys.argv[1], pathlib.Path("source.txt").read_text()
if what == "copy":
    print("reading")
    print("python is", sys.executable)
    print("copied", text, file=sys.stderr)
    pathlib.Path("copied.txt").write_text(text)
elif what == "slow" and text != "quick":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("child", child.pid)
    time.sleep(60)
elif what == "slow":
    pathlib.Path("slow.txt").write_text("done")
elif what == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("child", os.getpid())
    time.sleep(60)
elif what == "mistaken":
    said = {"exit_code": 2, "type": "DataError", "message": "the data are wrong"}
    pathlib.Path(os.environ["HEADSTART_ERROR_FILE"]).write_text(json.dumps(said))
    print("error: the data are wrong", file=sys.stderr)
    sys.exit(2)
elif what == "crashed":
    raise RuntimeError("broken")
elif what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "source.txt").write_text("one")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.txt").write_text("a")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    # `python` must be ours although the caller's PATH has none, or another one.
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return tmp_path


def dvc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "--quiet", *arguments], check=True)


def run(name: str, lines: list[str] | None = None) -> Outcome:
    return Stages().run(name, (lines if lines is not None else []).append)


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended but was not waited for does not."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while alive(pid):
        assert time.monotonic() < deadline, f"{pid} is still there"
        time.sleep(0.02)


@pytest.mark.flow
def test_a_stage_runs_is_unchanged_and_is_restored(clone: Path) -> None:
    lines: list[str] = []
    first = run("copy", lines)
    assert first.how == "ran"
    assert [lines[0], lines[2]] == ["reading", "copied one"]
    # Ours, though `python`, `python3` and `python3.11` are one and the same.
    assert Path(lines[1].removeprefix("python is ")).parent == Path(sys.executable).parent
    assert first.last_line == "copied one"
    assert run("copy", lines).how == "unchanged"
    assert len(lines) == 3
    (clone / "source.txt").write_text("two")
    assert run("copy").how == "ran"
    (clone / "source.txt").write_text("one")
    back = run("copy", lines := [])
    assert (back.how, lines) == ("restored", [])
    assert (clone / "copied.txt").read_text() == "one"


@pytest.mark.flow
def test_one_object_sees_what_its_own_runs_changed(clone: Path) -> None:
    joint = Stages()
    assert not joint.up_to_date("copy")
    joint.run("copy", print)
    assert joint.up_to_date("copy")
    (clone / "copied.txt").write_text("tampered")
    assert not joint.up_to_date("copy")


@pytest.mark.flow
def test_the_steps_own_error_is_raised(clone: Path) -> None:
    lines: list[str] = []
    with pytest.raises(DataError, match=r"^mistaken: the data are wrong$"):
        run("mistaken", lines)
    assert lines == []


@pytest.mark.flow
def test_an_unforeseen_error_and_a_kill_are_ours(clone: Path) -> None:
    lines: list[str] = []
    with pytest.raises(StageError, match="crashed: ended with exit code 1"):
        run("crashed", lines)
    assert lines[-1] == "RuntimeError: broken"
    with pytest.raises(StageError, match="killed: was killed from outside, most often for want of memory"):
        run("killed")


@pytest.mark.flow
def test_stop_ends_all_the_stage_started_and_the_clone_goes_on(clone: Path) -> None:
    joint, children = Stages(), []

    def tell(line: str) -> None:
        children.append(int(line.split()[1]))
        Timer(0.1, joint.stop).start()

    started = time.monotonic()
    with pytest.raises(Stopped):
        joint.run("slow", tell)
    assert time.monotonic() - started < 20
    wait_until_gone(children[0])
    with pytest.raises(Stopped):
        joint.run("copy", print)
    (clone / "source.txt").write_text("quick")
    assert run("slow").how == "ran"


@pytest.mark.flow
@pytest.mark.survives(
    "processes",
    "a stage that ignores the request to end",
    how="a child that ignores SIGTERM and SIGINT",
    held="it is killed after a grace period with all it started",
)
def test_an_interrupt_ends_the_stage_and_one_that_will_not_end_is_killed(clone: Path) -> None:
    children = []

    def tell(line: str) -> None:
        children.append(int(line.split()[1]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(grace_seconds=0.5).run("stubborn", tell)
    wait_until_gone(children[0])


@pytest.mark.flow
def test_raw_data_under_dvc_are_brought_recorded_or_asked_for(clone: Path) -> None:
    dvc("add", "raw")
    assert run("copy").how == "ran"
    shutil.rmtree(clone / "raw")
    lines: list[str] = []
    assert run("copy", lines).how == "unchanged"
    assert lines == ["raw.dvc: brought from the cache"]
    assert (clone / "raw/a.txt").read_text() == "a"

    before = (clone / "raw.dvc").read_text()
    (clone / "raw/b.txt").write_text("b")
    lines.clear()
    assert run("copy", lines).how == "ran"
    assert lines[0] == "raw.dvc: the data changed; recorded"
    assert (clone / "raw.dvc").read_text() != before

    shutil.rmtree(clone / "raw")
    shutil.rmtree(clone / ".dvc/cache")
    with pytest.raises(
        DataError, match=r"raw\.dvc are neither here nor in DVC's cache, and there is no remote"
    ):
        run("copy")


def with_raw_data_under_dvc(clone: Path) -> str:
    """Data of the last run; gives a pointer to other data, which are in the cache."""
    dvc("add", "raw")
    before = (clone / "raw.dvc").read_text()
    (clone / "raw/b.txt").write_text("b")
    dvc("add", "raw")
    other = (clone / "raw.dvc").read_text()
    (clone / "raw.dvc").write_text(before)
    dvc("checkout", "raw.dvc")
    assert run("copy").how == "ran"
    return other


@pytest.mark.flow
def test_a_pointer_that_git_brought_brings_its_data(clone: Path) -> None:
    (clone / "raw.dvc").write_text(with_raw_data_under_dvc(clone))
    lines: list[str] = []
    assert run("copy", lines).how == "ran"
    assert lines[0] == "raw.dvc: brought from the cache"
    assert (clone / "raw/b.txt").read_text() == "b"


@pytest.mark.flow
@pytest.mark.survives(
    "disk",
    "data and their pointer both changed",
    how="files added to data under DVC, and another pointer, as `git pull` brings it",
    held="nothing is overwritten; the two ways out are told",
)
def test_data_and_pointer_that_differ_are_left_to_the_user(clone: Path) -> None:
    (clone / "raw.dvc").write_text(with_raw_data_under_dvc(clone))
    (clone / "raw/mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"were both changed .* `dvc checkout --force raw\.dvc` takes"):
        run("copy")
    assert (clone / "raw/mine.txt").read_text() == "mine"


@pytest.mark.flow
@pytest.mark.survives(
    "servers",
    "the remote of the raw data is away, or lacks them",
    how="a remote that cannot be reached; an empty one",
    held="worth trying again, or told at once; nothing was changed",
)
def test_raw_data_come_from_the_remote(clone: Path, tmp_path: Path) -> None:
    dvc("add", "raw")
    dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    dvc("push", "raw.dvc")
    shutil.rmtree(clone / "raw")
    shutil.rmtree(clone / ".dvc/cache")
    lines: list[str] = []
    assert run("copy", lines).how == "ran"
    assert lines[:2] == [
        "raw.dvc: brought from the cache", "raw.dvc: not in the cache; pulled from the remote",
    ]  # fmt: skip
    assert (clone / "raw/a.txt").read_text() == "a"

    shutil.rmtree(clone / "raw")
    shutil.rmtree(clone / ".dvc/cache")
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").mkdir()
    with pytest.raises(UnreachableError, match=r"raw\.dvc are not here, and the remote did not give them"):
        run("copy")
    dvc("remote", "modify", "store", "url", "http://127.0.0.1:9/store")
    with pytest.raises(UnreachableError, match=r"look whether it answers and lets you in"):
        run("copy")


@pytest.mark.flow
@pytest.mark.survives(
    "disk",
    "a damaged file in DVC's cache",
    how="bytes of a cached output changed, and the output removed",
    held="the damage is found by the hash, and the stage runs again",
)
def test_a_damaged_file_in_the_cache_is_made_again(clone: Path) -> None:
    assert run("copy").how == "ran"
    (cached,) = (one for one in (clone / ".dvc/cache/files").rglob("*") if one.is_file())
    cached.chmod(0o644)
    cached.write_text("damaged")
    (clone / "copied.txt").unlink()
    assert run("copy").how == "ran"
    assert (clone / "copied.txt").read_text() == "one"
    assert run("copy").how == "unchanged"


@pytest.mark.flow
def test_what_changed_is_told_by_role(clone: Path) -> None:
    assert Stages().changes("copy") == (Change("copy", "stage", "never run"),)
    run("copy")
    assert Stages().changes("copy") == ()
    (clone / "source.txt").write_text("two")
    (clone / "copied.txt").unlink()
    assert Stages().changes("copy") == (
        Change("source.txt", "dep", "modified"), Change("copied.txt", "out", "deleted"),
    )  # fmt: skip


@pytest.mark.flow
def test_a_stage_can_be_forced_and_gets_its_environment(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("copy").how == "ran"
    script = (clone / "script.py").read_text()
    told = 'if what == "copy":\n    print("run is", os.environ.get("HEADSTART_FLOW_RUN"))'
    (clone / "script.py").write_text(script.replace('if what == "copy":', told, 1))
    lines: list[str] = []
    assert Stages(environment={"HEADSTART_FLOW_RUN": "r1"}).run("copy", lines.append, force=True).how == "ran"
    assert "run is r1" in lines


def test_an_unknown_stage_and_a_folder_without_git_are_told(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no stage 'train@x'"):
        Stages().up_to_date("train@x")
    shutil.rmtree(clone / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(clone.parent))
    with pytest.raises(UserError, match="DVC cannot go on"):
        Stages().up_to_date("copy")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"exit_code": 1, "type": "TrackingError", "message": "m"}, TrackingError),
        ({"exit_code": 2, "type": "SomethingNew", "message": "m"}, UserError),
        ({"exit_code": 1, "type": "KeyError", "message": "m"}, StageError),
    ],
)
def test_errors_keep_their_class_where_it_is_ours(
    said: dict[str, object], kind: type[HeadstartError], tmp_path: Path
) -> None:
    file = tmp_path / "error.json"
    file.write_text(json.dumps(said))
    error = stages._error_of("train@x", file, "", 1)
    assert type(error) is kind
    assert str(error) == "train@x: m"


def test_no_group_is_left_to_end(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"], start_new_session=True, text=True)
    process.wait()
    stages.end_group(process, 5.0)
    assert not stages._signal_group(process.pid, signal.SIGTERM)
    assert os.getpid() != process.pid

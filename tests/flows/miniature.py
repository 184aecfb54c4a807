"""A clone whose graph is the real one and whose steps are stand-ins: DVC is real, nothing is trained.

Every stage of dvc.yaml runs as it would, in a process of its own; its step digests what it depends on into
what it makes. So DVC finds out of date what it would in a real clone, and a whole run takes seconds.
"""

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

from ruamel.yaml import YAML

from tests import twin

ROOT = Path(__file__).resolve().parents[2]

# Stands in for every step. `fail.json` says which steps fail, and how: `{"train": "DataError: wrong"}`;
# `register.json` says what the gate decides.
STEP = """
import hashlib, json, os, pathlib, sys, time
sys.path.insert(0, os.getcwd())

def main():
    step, arguments = pathlib.Path(sys.argv[0]).stem, sys.argv[1:]
    with open("steps.log", "a") as log:
        who = os.environ.get("HEADSTART_FLOW_RUN"), os.environ.get("HEADSTART_WHO")
        print(step, *arguments, *who, file=log)
    fail = pathlib.Path("fail.json")
    said = json.loads(fail.read_text()).get(step) if fail.exists() else None
    if said == "kill":
        os.killpg(os.getpgid(os.getppid()), 9)
    if said and not said.startswith("once "):
        quit(said)
    if said:
        fail.write_text("{}")
        quit(said.removeprefix("once "))
    register(*arguments) if step == "register" else make(step, arguments)
    print(step, *arguments, "done")

def quit(said):
    kind, _, text = said.partition(": ")
    code = 1 if kind in ("TrackingError", "StageError") else 2
    about = {"exit_code": code, "type": kind, "message": text}
    pathlib.Path(os.environ["HEADSTART_ERROR_FILE"]).write_text(json.dumps(about))
    sys.exit(code)

def make(step, arguments):
    from ruamel.yaml import YAML
    yaml = YAML(typ="safe")
    experiment = arguments[0]
    block = yaml.load(pathlib.Path("dvc.yaml"))["stages"][step]
    block = block.get("do", block)
    settings = yaml.load(pathlib.Path("params.yaml"))["experiments"].get(experiment, {})
    known = {"${key}": experiment, "${item.experiment}": experiment, "${item.arm}": arguments[-1]}
    if settings:
        known["${item.data.path}"] = settings["data"]["path"]
        known["${item.model.pretrained}"] = settings["model"]["pretrained"]
    def filled(path):
        path = next(iter(path)) if isinstance(path, dict) else path
        for name, value in known.items():
            path = path.replace(name, value)
        return pathlib.Path(path)
    digest = hashlib.sha256()
    for path in map(filled, block["deps"]):
        if path.parts[0] in ("steps", "requirements.lock"):
            continue
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(str(file).encode() + file.read_bytes())
    content = {"digest": digest.hexdigest()}
    for path in map(filled, block.get("outs", []) + block.get("metrics", []) + block.get("plots", [])):
        if path.name == "comparison.json":
            text = json.dumps(COMPARISON | content)
        else:
            text = json.dumps(content)
        if step == "train":
            path = path / "seed-1" / "run.json"
        elif not path.suffix:
            path = path / "made.json"
        # Two files of this folder are read one by one.
        more = [path.with_name(name) for name in ("accepted.parquet", "validation.json")]
        for file in [path, *(more if step == "validate" else [])]:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

def register(experiment):
    from hashlib import sha256
    file = pathlib.Path(".headstart/registered") / (experiment + ".json")
    before = json.loads(file.read_text()) if file.exists() else {}
    decided = pathlib.Path("register.json")
    decision = json.loads(decided.read_text()) if decided.exists() else {"promote": True, "reason": "better"}
    sys.path[0] = ROOT
    for name in [name for name in sys.modules if name.partition(".")[0] == "steps"]:
        del sys.modules[name]
    from steps.tracking import journal
    result = journal.identity(experiment)
    new = before.get("result") != result
    number = str(int(before.get("version", 0)) + new)
    aliases = before.get("aliases", [])
    if new:
        aliases = ["champion"] if decision["promote"] else ["challenger"]
    about = {
        "experiment": experiment, "result": result, "model": "headstart-" + experiment, "version": number,
        "aliases": aliases, "decision": decision, "arm": "full", "seed": 1, "new": new,
        "tracking_uri": "sqlite:///mlflow/mlflow.db", "run_id": "r",
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(about))
    if new:
        import sqlite3
        with sqlite3.connect("mlflow/mlflow.db") as store:
            row = (about["model"], number, int(time.time() * 1000))
            store.execute("INSERT INTO model_versions VALUES (?, ?, ?, 'None')", row)
            if decision["promote"]:
                store.execute("DELETE FROM registered_model_aliases WHERE name = ?", row[:1])
                store.execute("INSERT INTO registered_model_aliases VALUES (?, 'champion', ?)", row[:2])

main()
"""
RESOLVE = """
import sys
sys.path[0] = ROOT
for name in [name for name in sys.modules if name.partition(".")[0] == "steps"]:
    del sys.modules[name]
from steps import resolve
sys.exit(resolve.main())
"""
COMPARISON: dict[str, Any] = {
    "schema": 2,
    "metric": {"name": "accuracy", "higher_is_better": True},
    "task": "image-classification",
    "arms": [],
    "best_arm": "full",
    "verdict": {"text": "A made-up verdict."},
}


def build(root: Path, arms: tuple[str, ...] = ("scratch", "full")) -> Path:
    """Make the clone and run its graph once, as DVC does; nothing is registered yet."""
    root.mkdir(parents=True)
    (root / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    (root / "requirements.lock").write_text("a==1\n")
    settings = twin.params({"toy-vision": "0" * 64, "toy-text": "1" * 64})
    settings["experiments"] = {"shapes": settings["experiments"]["shapes"]}
    settings["arms"] = {arm: settings["arms"][arm] for arm in arms}
    settings["pretrained"].pop("toy-text")
    YAML().dump(settings, root / "params.yaml")
    (root / "raw/shapes").mkdir(parents=True)
    (root / "raw/shapes/a.txt").write_text("a")
    _write_steps(root)
    (root / ".dvc").mkdir()
    shutil.copyfile(ROOT / ".dvc/config", root / ".dvc/config")
    (root / ".gitignore").write_text("/data\n/work\n/reports\n/mlflow\n/.headstart\n")
    _make_store(root / "mlflow/mlflow.db")
    twin.git(root, "init", "--quiet")
    dvc(root, "repro")
    twin.git(root, "add", "--all")
    twin.git(root, "commit", "--quiet", "--message", "Made")
    return root


def dvc(root: Path, *arguments: str) -> str:
    """Run DVC in the clone."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    """Of a process in the clone: its own `steps` come first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "HEADSTART_"))}
    here = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    return kept | {"PATH": here, "PYTHONPATH": ""}


def steps_run(root: Path) -> list[str]:
    """The steps that were run, in their order, each with its first argument."""
    log = root / "steps.log"
    return [" ".join(line.split()[:2]) for line in log.read_text().splitlines()] if log.exists() else []


def forget_steps(root: Path) -> None:
    """Forget which steps were run."""
    (root / "steps.log").unlink(missing_ok=True)


def edit(root: Path, **changes: Any) -> None:
    """Change settings, as `twin.Twin.edit_params` does."""
    twin.Twin(root).edit_params(**changes)


def fail(root: Path, **steps: str) -> None:
    """Let steps fail from now on; none: let them all succeed again."""
    (root / "fail.json").write_text(json.dumps(steps))


def _write_steps(root: Path) -> None:
    """A stand-in for every module that a stage depends on."""
    text = STEP.replace("ROOT", repr(str(ROOT))).replace("COMPARISON", repr(COMPARISON))
    graph = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    paths = {dep for one in graph.values() for dep in one.get("do", one)["deps"] if dep.startswith("steps/")}
    for name in sorted(paths | {"steps/register.py"}):
        path = root / name
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        else:
            path.mkdir(parents=True)
            (path / "module.py").write_text("# a stand-in\n")
    (root / "steps/__init__.py").write_text("# a stand-in\n")
    (root / "steps/resolve.py").write_text(RESOLVE.replace("ROOT", repr(str(ROOT))))


def _make_store(path: Path) -> None:
    """The two tables of MLflow's store that a glance reads, as MLflow makes them."""
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as store, store:
        store.execute("CREATE TABLE model_versions (name, version, creation_time, current_stage)")
        store.execute("CREATE TABLE registered_model_aliases (name, alias, version)")

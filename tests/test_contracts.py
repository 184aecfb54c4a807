"""What the rooms promise each other: dvc.yaml against the code, against params.yaml, and against the flow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import grimp
import pytest

from flows import pipeline, tasks
from steps import params, resolve
from steps.params import Params

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def graph() -> Any:
    """The stages as DVC reads them."""
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        yield repo.index


@pytest.fixture(scope="module")
def checked() -> Params:
    return params.load(ROOT / "params.yaml")


def deps(stage: Any) -> set[str]:
    return {dep.def_path for dep in stage.deps}


def step(stage: Any) -> str:
    """The module its command runs."""
    python, option, module = stage.cmd.split()[:3]
    assert (python, option) == ("python", "-m"), f"{stage.addressing}: {stage.cmd}"
    return str(module)


def closure(module: str, imports: grimp.ImportGraph) -> set[str]:
    """The files a step's module imports, directly or not, its own and every package's among them."""
    modules = {module, *imports.find_upstream_modules(module)}
    modules |= {".".join(name.split(".")[:end]) for name in modules for end in range(1, name.count(".") + 1)}
    bases = [ROOT / name.replace(".", "/") for name in modules]
    files = [base / "__init__.py" if base.is_dir() else base.with_suffix(".py") for base in bases]
    return {str(file.relative_to(ROOT)) for file in files}


def test_stages_depend_on_the_files_their_step_imports(graph: Any) -> None:
    # What stands under TYPE_CHECKING is not imported when the step runs.
    imports = grimp.build_graph("steps", exclude_type_checking_imports=True, cache_dir=None)
    for stage in graph.stages:
        needed = closure(step(stage), imports)
        given = {dep for dep in deps(stage) if dep.startswith("steps")}
        missing = {file for file in needed if not any(Path(file).is_relative_to(dep) for dep in given)}
        idle = {dep for dep in given if not any(Path(file).is_relative_to(dep) for file in needed)}
        assert not missing, f"{stage.addressing}: an edit of {sorted(missing)} would be overlooked"
        assert not idle, f"{stage.addressing}: an edit of {sorted(idle)} would rerun it for nothing"


def test_every_settings_file_is_watched_and_every_watched_one_is_written(graph: Any, checked: Params) -> None:
    # What changes no result reruns nothing, so no stage depends on it.
    aside = (params.LIMITS, "register", "drift", "serving")
    written = {str(path) for path in resolve.settings_files(checked) if path.stem not in aside}
    watched = {dep for stage in graph.stages for dep in deps(stage) if dep.startswith("work/params/")}
    assert watched == written


def test_every_stage_is_of_an_experiment_an_arm_or_a_backbone_of_params(graph: Any, checked: Params) -> None:
    expected = {"resolve"} | {f"fetch@{slug}" for slug in checked.pretrained}
    for name in checked.experiments:
        expected |= {
            f"{one}@{name}"
            for one in (
                "ingest",
                "validate",
                "split",
                "embed",
                "baseline",
                "evaluate",
                "curve",
                "compare",
            )
        }
        expected |= {f"train@{name}-{arm}" for arm in checked.arms}
    assert {stage.addressing for stage in graph.stages if not stage.is_data_source} == expected


def test_the_flow_runs_every_stage_of_the_graph_and_none_before_its_inputs(
    graph: Any, checked: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ["resolve"]

    class Wrapped:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, stages: object, of: str, anew: bool) -> None:
            order.append(f"{self.name}@{of.replace('/', '-')}")

    for name in tasks.OF_STEP:
        monkeypatch.setitem(tasks.OF_STEP, name, Wrapped(name))
    for name in checked.experiments:
        list(pipeline.one_experiment(object(), name, checked))  # type: ignore[arg-type]
    run = [stage for stage in order if not stage.startswith("register@")]
    stages = {stage.addressing: stage for stage in graph.stages if not stage.is_data_source}
    # What is only weighed against a backbone is fetched by `headstart rank`.
    used = {entry.model.pretrained for entry in checked.experiments.values()}
    spare = {f"fetch@{slug}" for slug in checked.pretrained if slug not in used}
    stages = {name: stage for name, stage in stages.items() if name not in spare}
    assert set(run) == set(stages)
    for name, stage in stages.items():
        for before in graph.graph.successors(stage):
            if not before.is_data_source:
                assert run.index(before.addressing) < run.index(name), f"{name} before {before.addressing}"


def test_the_folder_mlflow_holds_no_python() -> None:
    # It would stand in for the library in every import.
    # The local store is there too, and the models in it bring our code with them.
    assert not [path for path in (ROOT / "mlflow").rglob("*.py") if "artifacts" not in path.parts]


@pytest.mark.slow
def test_importing_a_module_does_nothing(tmp_path: Path) -> None:
    names = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for room in ("steps", "flows", "headstart")
        for path in (ROOT / room).rglob("*.py")
    )
    code = (
        "import importlib, logging, os, signal, sys\n"
        "before = dict(os.environ)\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "changed = {name for name in os.environ if os.environ[name] != before.get(name)}\n"
        "ours = {name for name in changed if name.startswith(('HEADSTART', 'MLFLOW', 'PREFECT', 'DVC'))}\n"
        "assert not ours, ours\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home"),
                   "PREFECT_HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    (tmp_path / "clone").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "clone", env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not list((tmp_path / "clone").iterdir())

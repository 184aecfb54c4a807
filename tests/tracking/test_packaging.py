from __future__ import annotations

import importlib.metadata
import re
import sys

import grimp
import pytest

from steps.kinds import KINDS
from steps.tracking import packaging


@pytest.mark.parametrize("task", KINDS)
def test_requirements_are_pinned_to_what_is_installed(task: str) -> None:
    pinned = dict(line.split("==") for line in packaging.requirements(task))
    assert {"mlflow", "torch", "safetensors", "numpy"} <= set(pinned)
    for name, version in pinned.items():
        assert importlib.metadata.version(name).split("+")[0] == version


def test_all_that_the_loader_imports_is_required() -> None:
    graph = grimp.build_graph("steps", include_external_packages=True)
    ours = {"steps.serving"} | {
        module for module in graph.find_upstream_modules("steps.serving") if module.startswith("steps")
    }
    imported = {name for module in ours for name in graph.find_modules_directly_imported_by(module)}
    outside = {name for name in imported if not name.startswith("steps")} - set(sys.stdlib_module_names)
    distributions = importlib.metadata.packages_distributions()
    lists = (packaging.COMMON, *packaging.OF_CONTENT.values(), *packaging.OF_TASK.values())
    required = {name for one in lists for name in one}
    missing = {
        name
        for name in outside
        if not {_normal(one) for one in distributions[name]} & set(map(_normal, required))
    }
    # mlflow is there when it loads us; the others are imported where a training, a terminal, a cluster or
    # validate asks for them.
    assert missing <= {"mlflow", "accelerate", "peft", "py3langid", "ray", "rich"}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

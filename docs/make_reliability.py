"""Write docs/reliability.md from the tests that break something: `python docs/make_reliability.py`.

A test says with `@pytest.mark.survives(area, fault, how=..., held=...)` what it breaks, how, and what held.
A test compares the page with those marks, so no row stands there that nothing tests.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/reliability.md"
AREAS = {
    "processes": "Processes that die",
    "disk": "Disks, caches and half-written files",
    "servers": "Servers that are away, slow or wrong",
    "registry": "The registry and its aliases",
    "nights": "Nights",
    "serving": "Serving and batch prediction",
    "weights": "Weights from elsewhere",
    "data": "Data from elsewhere",
}
HEAD = """# What it survives

Made by `python docs/make_reliability.py` from the tests themselves: each row is a test that breaks something
on purpose and looks at what is left. Of all {count} the same is asked: no data lost, no second version, no
wrong champion, and a message that names the thing and what to change. `make faults` runs them all.
"""

COLUMNS = ("| fault | how it is injected | what held | test |", "| --- | --- | --- | --- |")


@dataclass(frozen=True)
class Fault:
    """A row of the page.

    Attributes:
        area: a key of `AREAS`.
        fault: what goes wrong.
        how: how the test makes it go wrong.
        held: what was looked at afterwards, and held.
        test: where, as pytest names it.
    """

    area: str
    fault: str
    how: str
    held: str
    test: str


def faults() -> Iterator[Fault]:
    """Every marked test, by file and line."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield from _of(node, f"{path.relative_to(ROOT).as_posix()}::{node.name}")


def _of(function: ast.FunctionDef, test: str) -> Iterator[Fault]:
    for mark in function.decorator_list:
        if not isinstance(mark, ast.Call) or not ast.unparse(mark.func).endswith("mark.survives"):
            continue
        area, fault = (ast.literal_eval(one) for one in mark.args)
        told = {str(one.arg): ast.literal_eval(one.value) for one in mark.keywords}
        yield Fault(area, fault, told["how"], told["held"], test)


def page() -> str:
    """The whole page.

    Raises:
        KeyError: a mark names an area that there is not.
    """
    found = list(faults())
    unknown = sorted({one.area for one in found} - set(AREAS))
    if unknown:
        raise KeyError(f"docs/make_reliability.py has no area {unknown[0]!r}")
    parts = [HEAD.format(count=len(found))]
    for area, title in AREAS.items():
        rows = [one for one in found if one.area == area]
        if rows:
            parts.append("\n".join([f"## {title}", "", *COLUMNS, *map(_row, rows), ""]))
    return "\n".join(parts)


def _row(fault: Fault) -> str:
    file, _, name = fault.test.partition("::")
    words = (fault.fault, fault.how, fault.held)
    return f"| {' | '.join(word.replace('|', '&#124;') for word in words)} | [{name}](../{file}) |"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")

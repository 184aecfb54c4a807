"""docs/extending.md, followed to the letter in a clone."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs/extending.md"
# Where the lines of a block go: before this line of the file.
PLACES = {
    "steps/kinds.py": "    # A task of your own: its line goes here.",
    "steps/metrics.py": "    # A metric of your own: its line goes here.",
    "steps/tasks/__init__.py": "    # A task of your own: its two lines go here.",
}


def blocks() -> dict[str, str]:
    """The document's blocks of code, by the file that is named before each."""
    found = re.findall(
        r"^`([\w/.]+)`[^`]*(?:`\w+`[^`]*)?```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.M | re.S
    )
    return dict(found)


def test_the_document_names_every_place_and_is_short() -> None:
    found = blocks()
    assert set(found) == {"steps/tasks/text_regression.py", *PLACES}
    assert found["steps/tasks/text_regression.py"].count("\n") <= 60
    for name, place in PLACES.items():
        assert (ROOT / name).read_text("utf-8").count(place) == 1, name


@pytest.mark.flow
def test_a_task_as_the_document_has_it_runs_to_a_registered_model(tmp_path: Path) -> None:
    for name in ("steps", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, block in blocks().items():
        path = tmp_path / name
        if name in PLACES:
            text = path.read_text("utf-8")
            block = text.replace(PLACES[name], f"{block}{PLACES[name]}")
        path.write_text(block, "utf-8")
    table = tmp_path / "raw/messages.csv"
    write_messages(table)
    (told,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text("utf-8"), re.S)
    experiment = YAML(typ="safe").load(told)["urgency"]
    experiment["model"] = {"pretrained": "toy-text", "max_tokens": 16}
    code = (
        "import json, pathlib, sys\n"
        "from tests.tasks import clone\n"
        "clone.lay_out(pathlib.Path.cwd(), json.loads(sys.argv[1]))\n"
        "found = clone.run()\n"
        "print(json.dumps([found['metric'], clone.predicted([{'text': 'rose tulip'}])]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(experiment)], cwd=tmp_path, capture_output=True, text=True,
        env={**environment, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    metric, said = json.loads(done.stdout.strip().splitlines()[-1])
    assert metric == {"name": "absolute_error", "higher_is_better": False}
    assert isinstance(said[0]["value"], float)


def write_messages(path: Path) -> None:
    """Sentences whose number is how many of their words are of the garden."""
    from tests.twin import FILLER, TOPICS

    drawn = random.Random(3)
    path.parent.mkdir()
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["message", "urgency"])
        for _ in range(48):
            count = drawn.randrange(6)
            words = drawn.sample(TOPICS["garden"], count) + drawn.sample(FILLER, 8 - count)
            writer.writerow([" ".join(words), count])

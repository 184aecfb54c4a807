from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from ruamel.yaml import YAML

from headstart.pin import show
from steps import params
from steps.artifacts import sha256_file
from steps.errors import ParamsError, UserError, WeightsError
from steps.pin import pin, write
from steps.references import unpinned
from tests import standin
from tests.standin import TOKEN, Hub

ROOT = Path(__file__).resolve().parents[2]
PARAMS = """\
# What the twin runs.
experiments:
  topics: # texts
    task: text-classification
    data: {source: table, path: raw/topics.csv, text: body, label: topic}
    model: {pretrained: tiny, max_tokens: 16}
    candidates: [own, short]

arms:
  scratch: {start: random, tune: all, learning_rate: 1.0e-2}
  full: {start: pretrained}

pretrained:
  # The one that counts.
  tiny: # two layers
    source: hf
    model: toy/bert-tiny # as on the hub

  short: hf:toy/other # one line
  own:   {source: folder, path: 'models/own'}   # a folder
  idle: hf:toy/idle
# The end.
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A clone with the params above, and a hub that has what they name."""
    (tmp_path / "clone/steps").mkdir(parents=True)
    (tmp_path / "clone/dvc.yaml").touch()
    (tmp_path / "clone/params.yaml").write_text(PARAMS)
    (tmp_path / "clone/models/own").mkdir(parents=True)
    (tmp_path / "clone/models/own/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "clone")
    with standin.running(tmp_path / "home", monkeypatch) as running:
        running.add("toy/bert-tiny", standin.bert_files())
        running.add("toy/other", standin.bert_files(tops=False), licence="")
        yield running


def text() -> str:
    return Path("params.yaml").read_text()


def headstart(hub: Hub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **standin.environment(hub, home), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "headstart.cli", "pin", *arguments],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_references_of_an_experiment_are_pinned_and_nothing_else_moves(server: Hub) -> None:
    weights = hashlib.sha256(standin.bert_files()["model.safetensors"]).hexdigest()
    rows = pin("topics")
    assert [(row.slug, row.state) for row in rows] == [("tiny", "not pinned")]
    commit = server.repos["toy/bert-tiny"].newest
    expected = PARAMS.replace(
        "    model: toy/bert-tiny # as on the hub\n",
        "    model: toy/bert-tiny # as on the hub\n"
        f"    revision: {commit}\n    sha256: {weights}\n    licence: apache-2.0\n",
    )
    # What looks like a number is put in quotes.
    assert text().replace("'", "") == expected.replace("'", "")
    reference = params.load(Path("params.yaml")).pretrained["tiny"]
    assert unpinned(reference) == []
    assert not server.asked("/store/")


def test_candidates_in_all_their_forms(server: Hub) -> None:
    rows = {row.slug: row for row in pin("topics", candidates=True)}
    assert set(rows) == {"tiny", "own", "short"}
    assert rows["short"].licence == ""
    pinned = params.load(Path("params.yaml")).pretrained
    assert not any(unpinned(pinned[slug]) for slug in rows)
    assert unpinned(pinned["idle"]) == ["revision", "sha256"]
    lines = text().splitlines()
    assert lines[0] == "# What the twin runs."
    assert "  short: # one line" in lines
    assert lines[lines.index("  short: # one line") - 1] == ""
    assert "    candidates: [own, short]" in lines
    assert "  scratch: {start: random, tune: all, learning_rate: 1.0e-2}" in lines
    (flow,) = [line for line in lines if line.startswith("  own:")]
    assert flow.startswith("  own: {source: folder, path: 'models/own', sha256:")
    assert flow.endswith("} # a folder")
    assert "    data: {source: table, path: raw/topics.csv, text: body, label: topic}" in lines
    assert lines[-2:] == ["  idle: hf:toy/idle", "# The end."]


def test_pinning_twice_changes_nothing_and_a_newer_commit_is_told(server: Hub) -> None:
    pin("topics", candidates=True)
    before = text()
    assert {row.state for row in pin("topics", candidates=True)} == {"pinned"}
    assert text() == before
    old = server.repos["toy/bert-tiny"].newest
    newer = server.repos["toy/bert-tiny"].commit(standin.bert_files() | {"more.md": b"more"})
    (row,) = pin("topics", check=True)
    assert row.state == "moved"
    assert row.changes == {"revision": (old, newer)}
    assert text() == before
    pin("topics")
    assert text() == before.replace(old, newer)


def test_a_licence_that_the_user_wrote_stays(server: Hub) -> None:
    Path("params.yaml").write_text(PARAMS.replace("# as on the hub", "# as on the hub\n    licence: mine"))
    pin("topics")
    assert "    licence: mine\n" in text()
    assert "apache" not in text()


def test_a_changed_folder_is_told(server: Hub) -> None:
    pin("topics", candidates=True)
    Path("models/own/config.json").write_text('{"other": 1}')
    states = {row.slug: row.state for row in pin("topics", candidates=True, check=True)}
    assert states == {"tiny": "pinned", "own": "moved", "short": "pinned"}


def test_one_that_cannot_be_had_leaves_all_as_it_was(server: Hub) -> None:
    del server.repos["toy/other"]
    with pytest.raises(WeightsError, match="toy/other: the hub knows no such repository"):
        pin("topics", candidates=True)
    assert text() == PARAMS


def test_an_experiment_that_is_not_there(server: Hub) -> None:
    with pytest.raises(UserError, match="no experiment 'topic'; did you mean 'topics'"):
        pin("topic")


def test_a_new_network_brings_the_reference_whose_tokenizer_it_uses(server: Hub) -> None:
    new = "{source: new, library: transformers, architecture: bert, tokenizer: tiny}"
    changed = PARAMS.replace("pretrained: tiny", "pretrained: fresh").replace("# The end.", f"  fresh: {new}")
    Path("params.yaml").write_text(changed)
    rows = pin("topics")
    assert [(row.slug, row.state) for row in rows] == [("fresh", "pinned"), ("tiny", "not pinned")]


def test_a_file_that_cannot_be_changed_so_is_left_alone(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.pin._change", lambda mapping, values: mapping.clear())
    with pytest.raises(ParamsError, match=r"write them by hand: pretrained\.tiny: revision: 1"):
        write(Path("params.yaml"), {"tiny": {"revision": "1"}})
    assert text() == PARAMS


def test_an_alias_keeps_its_name_beside_the_version_it_has_today(server: Hub) -> None:
    line = "registry:headstart-digits@champion # the best"
    Path("params.yaml").write_text(PARAMS.replace("hf:toy/idle", line))
    write(Path("params.yaml"), {"idle": {"version": 3, "sha256": "a" * 64}})
    assert text().endswith(
        "  idle: # the best\n    source: registry\n    model: headstart-digits\n    alias: champion\n"
        f"    version: 3\n    sha256: {'a' * 64}\n# The end.\n"
    )


def test_the_command_tells_pins_and_gives_2_for_what_is_loose(server: Hub, tmp_path: Path) -> None:
    home = tmp_path / "other-home"
    loose = headstart(server, home, "topics", "--check")
    assert loose.returncode == 2
    assert "What params.yaml would get:" in loose.stdout
    assert "error: tiny: not pinned, or moved since; `headstart pin topics` pins" in loose.stderr
    assert text() == PARAMS
    done = headstart(server, home, "topics")
    assert done.returncode == 0, done.stderr
    commit = server.repos["toy/bert-tiny"].newest
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("tiny  ")]
    assert f"hf toy/bert-tiny {commit[:12]} " in " ".join(row.split())
    assert " KiB apache-2.0 not pinned" in " ".join(row.split())
    assert f"pretrained.tiny.revision: {commit}" in done.stdout
    again = headstart(server, home, "topics", "--check")
    assert again.returncode == 0, again.stderr
    assert "Everything is pinned" in again.stdout
    said = "".join(one.stdout + one.stderr for one in (loose, done, again))
    assert TOKEN not in said + text()
    assert TOKEN in str([one.headers for one in server.seen])


def test_the_table_and_the_changes(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "slug": "a", "source": "hf", "model": "toy/a", "revision": "1" * 40, "sha256": "2" * 64,
            "size": 3 * 2**20, "licence": "mit", "state": "moved",
            "changes": {"revision": ["0" * 40, "1" * 40]},
        },
        {
            "slug": "b", "source": "new", "model": "bert\x1b[2J", "revision": "", "sha256": "", "size": None,
            "licence": "", "state": "pinned", "changes": {},
        },
    ]  # fmt: skip
    report = tmp_path / "rows.json"
    report.write_text(json.dumps(rows))
    stream = io.StringIO()
    show(Console(file=stream, width=200, force_terminal=False), report, check=False)
    lines = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
    assert lines == [
        "reference model revision sha256 size licence state",
        "a hf toy/a 111111111111 222222222222 3.0 MiB mit moved",
        "b new bert[2J - - - - pinned",
        "",
        "Changed in params.yaml:",
        f"pretrained.a.revision: {'0' * 40} -> {'1' * 40}",
    ]


def test_what_is_written_is_what_the_hub_serves(server: Hub, tmp_path: Path) -> None:
    pin("topics")
    told = YAML(typ="safe").load(text())["pretrained"]["tiny"]
    (tmp_path / "weights").write_bytes(standin.bert_files()["model.safetensors"])
    assert told["sha256"] == sha256_file(tmp_path / "weights")

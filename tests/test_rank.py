from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steps import artifacts, classical, data, embedding, params, rank
from steps.classical import Transferability
from steps.errors import UserError
from steps.intervals import Interval
from steps.params import Experiment
from steps.rank import Row
from tests.tracking import made

IMAGES, TEXTS = "image-classification", "text-classification"


def settings_of(name: str) -> Experiment:
    return params.load(artifacts.PARAMS_FILE).experiments[name]


def prepare(task: str) -> str:
    """An experiment whose data are split, with two fetched backbones that differ in their weights alone."""
    import torch
    from safetensors.torch import load_file, save_file

    name = made.EXPERIMENT[task]
    raw = made.settings(name, task).model_dump(mode="json", exclude_unset=True)
    raw["pretrained"]["other"] = raw["pretrained"]["toy"]
    raw["experiments"][name]["candidates"] = ["other"]
    Path("params.yaml").write_text(json.dumps(raw))
    made.write_data(name, task, 12)
    rows = data.read_split(name)
    split = np.resize(["train", "train", "validation", "test"], len(rows))
    rows[["id"]].assign(split=split).to_parquet(artifacts.split_file(name))
    made.write_pretrained(task)
    other = artifacts.pretrained_dir("other")
    shutil.copytree(artifacts.pretrained_dir("toy"), other)
    torch.manual_seed(1)
    tensors = load_file(other / "model.safetensors")
    moved = {key: one + 0.02 * torch.randn_like(one.float()).to(one) for key, one in tensors.items()}
    save_file(moved, other / "model.safetensors")
    return name


@pytest.fixture(scope="module", params=[IMAGES, TEXTS])
def made_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An experiment whose backbones were ranked once, and its clone."""
    root = tmp_path_factory.mktemp("clone")
    with chdir(root):
        name = prepare(request.param)
        rank.rank(name)
        return name, root


@pytest.fixture
def name(made_once: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The experiment, where the working directory is a clone of its own."""
    shutil.copytree(made_once[1], tmp_path / "clone")
    monkeypatch.chdir(tmp_path / "clone")
    return made_once[0]


def test_backbones_and_yardsticks_are_in_the_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rank.rank(name)
    said = capsys.readouterr().out
    lines = [line.strip() for line in said.splitlines()]
    assert lines[0].split("  ")[0] == "features"
    assert lines[0].endswith("fine-tuned accuracy")
    last = "pixels" if name == made.EXPERIMENT[IMAGES] else "TF-IDF"
    table = {line.split("  ")[0]: line for line in lines[1:5]}
    assert set(table) == {"toy", "other", "random weights", last}
    assert all(line.endswith("-") for line in table.values())
    items = int(data.read_split(name)["split"].isin(["train", "validation"]).sum())
    assert f"Scores are of {items} training and validation items" in said
    assert "leads" in said
    assert "correlation" not in said


def test_the_second_time_nothing_is_computed(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = sorted(rank.CACHE.iterdir())
    assert len(folders) == 2

    def never(*_: Any, **__: Any) -> int:
        raise AssertionError("computed again")

    monkeypatch.setattr(embedding, "write", never)
    rank.rank(name)
    assert "leads" in capsys.readouterr().out
    # Other weights are other features.
    with (artifacts.pretrained_dir("other") / "model.safetensors").open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(AssertionError, match="computed again"):
        rank.rank(name)
    assert sorted(rank.CACHE.iterdir()) == folders  # and nothing half-written is left


def test_the_key_knows_what_features_depend_on(name: str) -> None:
    settings = settings_of(name)
    rows = data.read_split(name)
    seen = rows[rows["split"] != "test"].reset_index(drop=True)
    own = params.EmbedSettings(task=settings.task, model=settings.model)
    other_model = settings.model.model_copy(update={"image_size": 48, "max_tokens": 8})
    keys = [
        rank.key(own, seen, True),
        rank.key(own, seen, False),
        rank.key(own.model_copy(update={"model": other_model}), seen, True),
        rank.key(own, seen.iloc[1:], True),
        rank.key(own, seen.assign(id=seen["id"] + "-new"), True),
    ]
    assert len(set(keys)) == len(keys)
    # How it is computed does not matter.
    on_cpu = params.EmbedSettings(
        task=settings.task, model=settings.model, machine=params.Machine(device="cpu")
    )
    assert rank.key(on_cpu, seen, True) == keys[0]


def test_features_are_those_of_train_and_validation_in_their_order(name: str) -> None:
    rows = data.read_split(name)
    seen = rows[rows["split"] != "test"].reset_index(drop=True)
    settings = settings_of(name)
    found = rank.sources(name, settings, seen)
    assert list(found)[:3] == ["toy", "other", "random weights"]
    assert {len(matrix) for matrix in found.values()} == {len(seen)}
    assert not np.allclose(found["toy"], found["other"])
    labels = data.label_indices(seen["label"], data.classes_of(seen))
    scores = classical.transferability_of(found["toy"], labels, labels.max() + 1, 0.95)
    row = next(one for one in rank.weigh(name, settings) if one.name == "toy")
    assert row.scores == scores
    assert row.score("probe") == scores.probe.value
    assert row.score("LogME") == scores.log_me


def report(name: str, data_sha256: str, slug: str, **changes: Any) -> None:
    """A report of an experiment in which the best arm on validation reached 0.9, and scratch 0.4."""
    arms = [
        {"arm": "scratch", "start": "random", "tune": "all", "mean": 0.4, "validation": {"mean": 0.9}},
        {"arm": "frozen", "start": "pretrained", "tune": "head", "mean": 0.99, "validation": {"mean": 0.99}},
        {"arm": "lora", "start": "pretrained", "tune": "lora", "mean": 0.95, "validation": {"mean": 0.5}},
        {"arm": "full", "start": "pretrained", "tune": "all", "mean": 0.9, "validation": {"mean": 0.8}},
    ]
    found: dict[str, Any] = {
        "schema": 2,
        "metric": {"name": "accuracy", "higher_is_better": True},
        "pretrained": {"name": slug},
        "provenance": {"data_sha256": data_sha256},
        "arms": arms,
    }
    artifacts.write_json(artifacts.report_dir(name) / "comparison.json", found | changes)


def test_results_of_the_same_data_stand_beside_the_scores(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = data.read_split(name)
    used = data.fingerprint(rows[rows["split"] != ""])
    settings = settings_of(name)
    assert rank.fine_tuned(name, settings, used) == {}
    report("a", used, "other")
    report("b", "0" * 64, "elsewhere")
    report("c", used, "old", schema=1)
    report("d", used, "lossy", metric={"name": "log_loss", "higher_is_better": False})
    # Scratch of another architecture is none of ours.
    assert rank.fine_tuned(name, settings, used) == {"other": 0.9}
    report(name, used, "toy")
    found = rank.fine_tuned(name, settings, used)
    assert found == {"toy": 0.9, "other": 0.9, "random weights": 0.4}
    rank.rank(name)
    said = capsys.readouterr().out
    assert any(line.startswith("toy") and line.endswith("90.0") for line in said.splitlines())
    assert "rank correlation with the fine-tuned results of 3" in said


def test_a_backbone_that_is_not_fetched_says_what_to_run(name: str) -> None:
    shutil.rmtree(artifacts.pretrained_dir("other"))
    shutil.rmtree(rank.CACHE)
    expected = rf"other is missing: .* `dvc repro fetch@other` or `headstart rank {name}`"
    with pytest.raises(UserError, match=expected):
        rank.rank(name)
    assert not rank.CACHE.exists()


def test_an_unknown_experiment_is_said(name: str) -> None:
    with pytest.raises(UserError, match=f"there is no experiment '{name}x'; did you mean {name!r}"):
        rank.rank(f"{name}x")


# ------------------------------------------------------------------------------------------------------ parts


def row(name: str, *scores: float, is_backbone: bool = True, reached: float | None = None) -> Row:
    log_me, h_score, n_leep, probe = scores
    found = Transferability(log_me, h_score, n_leep, Interval(probe, probe - 0.1, probe + 0.1, 1, 50))
    return Row(name, is_backbone, found, reached)


def test_the_best_by_all_scores_together_comes_first() -> None:
    rows = [row("c", 0, 0, 0, 0), row("b", 3, 3, 1, 3), row("a", 1, 1, 3, 1), row("d", 2, 2, 2, 2)]
    assert [one.name for one in rank.in_order(rows)] == ["b", "d", "a", "c"]
    assert [one.name for one in rank.in_order([row("z", 1, 1, 1, 1), row("y", 1, 1, 1, 1)])] == ["y", "z"]


def test_who_leads_is_told() -> None:
    assert rank.leaders([row("a", 1, 1, 1, 1), row("b", 0, 0, 0, 0)]) == "By all of them a leads."
    split = rank.leaders([row("a", 1, 1, 0, 0), row("b", 0, 0, 1, 1)])
    assert split == "a leads by LogME, H-score; b leads by N-LEEP, probe."
    assert "`candidates:`" in rank.leaders([row("a", 1, 1, 1, 1)])


@pytest.mark.parametrize(("probe", "warned"), [(0.8, False), (0.6, True), (0.5, True)])
def test_a_backbone_no_better_than_a_yardstick_is_told(probe: float, warned: bool, name: str) -> None:
    yardsticks = [
        row("pixels", 0, 0, 0, 0.6, is_backbone=False),
        row("dice", 0, 0, 0, 0.2, is_backbone=False),
    ]
    said = rank.notes([row("a", 1, 1, 1, probe), *yardsticks], settings_of(name))
    assert ("no backbone is better than pixels" in " ".join(said)) == warned


def test_correlations_are_spearmans_with_better_results_higher() -> None:
    rows = [
        row("a", 1, 4, 0, 1, reached=0.1), row("b", 2, 2, 0, 3, reached=0.5),
        row("c", 3, 1, 0, 2, reached=0.7), row("d", 9, 9, 9, 9),
    ]  # fmt: skip
    found = rank.correlate(rows, "accuracy")
    # N-LEEP does not vary.
    assert found == {"LogME": pytest.approx(1), "H-score": pytest.approx(-1), "probe": pytest.approx(0.5)}
    assert rank.correlate(rows, "log_loss")["LogME"] == pytest.approx(-1)
    assert rank.correlate(rows[1:], "accuracy") == {}


def test_it_starts_without_torch() -> None:
    code = "import sys; import steps.rank; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

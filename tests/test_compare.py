import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from steps import artifacts, compare, data, exhibits, intervals, results, tasks, weighing
from steps.errors import HeadstartError, TrainingError, UserError
from steps.report import pages
from steps.tasks import Case
from tests import evaluated
from tests.evaluated import Made

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One made-up experiment, compared."""
    folder = tmp_path_factory.mktemp("clone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        evaluated.make(Made(stopped_after={("full", 2): 12}))
        compare.compare("made-up")
    return folder, json.loads((folder / "reports/made-up/comparison.json").read_text("utf-8"))


def weigh(made: Made) -> dict[str, Any]:
    evaluated.make(made)
    return weighed(made.experiment)


def weighed(experiment: str) -> dict[str, Any]:
    found, samples = results.read(experiment), exhibits.Samples(experiment)
    facts = exhibits.facts(samples, found.crossed.ids)
    return weighing.weigh(found, facts, {"near_duplicates": 0, "suspects": 0})


def test_everything_is_written(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    report = folder / "reports/made-up"
    assert sorted(path.name for path in report.iterdir()) == [
        "comparison.json", "curves.csv", "model_card.md", "plots", "report.html", "tables",
    ]  # fmt: skip
    assert sorted(path.name for path in (report / "plots").iterdir()) == [
        "confusion.png", "differences.png", "learning_curves.png",
    ]  # fmt: skip
    assert {"arms.csv", "pairs.csv", "per_class.csv"} <= {path.name for path in (report / "tables").iterdir()}
    assert "made-up/report.html" in (folder / "reports/index.html").read_text("utf-8")


def test_the_public_result_has_what_it_promises(whole: tuple[Path, dict[str, Any]]) -> None:
    _, found = whole
    assert {
        "experiment", "task", "metric", "test_size", "arms", "target", "best_arm", "verdict",
    } <= set(found)  # fmt: skip
    assert found["metric"] == {"name": "accuracy", "higher_is_better": True}
    for arm in found["arms"]:
        assert {
            "arm", "seeds", "values", "mean", "ci_low", "ci_high", "train_labels", "epochs",
            "epochs_to_target", "seconds",
        } <= set(arm)  # fmt: skip
        assert arm["mean"] == pytest.approx(np.mean(arm["values"]))
        assert arm["ci_low"] < arm["mean"] < arm["ci_high"]
    assert [arm["arm"] for arm in found["arms"]] == ["scratch", "frozen", "full"]
    assert {
        "fine_tuning_helps", "difference", "ci_low", "ci_high", "convergence_speedup", "text",
    } <= set(found["verdict"])  # fmt: skip


def test_figures_agree_with_the_predictions(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, found = whole
    frame = pd.read_parquet(folder / evaluated.predictions_of("made-up"))
    means = {}
    for arm in found["arms"]:
        rows = frame[frame["arm"] == arm["arm"]]
        each = [accuracy_score(one["label"], one["predicted"]) for _, one in rows.groupby("seed")]
        assert arm["values"] == pytest.approx(each)
        means[arm["arm"]] = np.mean(each)
    verdict = found["verdict"]
    assert (verdict["arm"], verdict["reference"], verdict["fine_tuning_helps"]) == ("full", "scratch", True)
    assert verdict["difference"] == pytest.approx(means["full"] - means["scratch"])


def test_classes_agree_with_scikit_learn(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, found = whole
    frame = pd.read_parquet(folder / evaluated.predictions_of("made-up"))
    rows = frame[frame["arm"] == found["best_arm"]]
    each = [
        precision_recall_fscore_support(one["label"], one["predicted"], labels=found["classes"])
        for _, one in rows.groupby("seed")
    ]
    expected = np.mean(each, axis=0)
    table = [[one[name]["value"] for one in found["per_class"]] for name in ("precision", "recall", "f1")]
    table.append([one["support"] for one in found["per_class"]])
    np.testing.assert_allclose(table, expected)


@pytest.mark.parametrize(
    "made",
    [
        Made(items=40, budgets=(50, 200)),
        Made(items=5, seeds=(1,)),
        Made(items=60, resamples=2, seeds=(1, 2)),
        Made(items=60, metric="log_loss", skill={"scratch": 3.0, "full": 1.0}),
        Made(items=60, texts=True, skill={"scratch": 2.0}),
    ],
    ids=["curve", "five items", "resamples", "log-loss", "texts alone"],
)
def test_the_result_is_as_its_schema_says(clone: Path, made: Made) -> None:
    schema = json.loads((ROOT / "docs/comparison.schema.json").read_text("utf-8"))
    evaluated.make(made)
    compare.compare("made-up")
    found = json.loads((clone / "reports/made-up/comparison.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(found)


def test_the_target_is_what_scratch_reached(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, found = whole
    histories = [
        pd.read_csv(folder / artifacts.seed_dir("made-up", "scratch", seed) / "history.csv")
        for seed in (1, 2, 3)
    ]
    assert found["target"] == pytest.approx(np.mean([one["validation_accuracy"].max() for one in histories]))
    scratch, _, full = found["arms"]
    assert scratch["epochs_to_target"] is not None
    assert full["epochs_to_target"] < scratch["epochs_to_target"]
    assert full["epochs"] == [20, 12, 20]
    speedup = scratch["epochs_to_target"] / full["epochs_to_target"]
    assert found["verdict"]["convergence_speedup"] == pytest.approx(speedup)


def test_the_same_inputs_give_the_same_bytes(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    report = folder / "reports/made-up"
    before = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    code = "import sys; from steps import compare; compare.compare('made-up')"
    environment = {"PYTHONPATH": str(Path(compare.__file__).parents[1]), "PYTHONHASHSEED": "7", "PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment, cwd=folder)
    after = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    assert {name for name in before if before[name] != after.get(name)} == set()


def test_curves_are_one_long_table(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    table = pd.read_csv(folder / "reports/made-up/curves.csv")
    assert list(table.columns[:3]) == ["arm", "seed", "resample"]
    assert {"validation_accuracy", "validation_macro_f1", "validation_log_loss"} <= set(table)
    assert table["validation"].equals(table["validation_accuracy"])
    assert len(table) == 9 * 20 - 8


def test_the_choice_uses_validation_and_never_the_test(clone: Path) -> None:
    """The arm that is best on the test split loses on validation: it must not be chosen."""
    evaluated.make(Made(skill={"scratch": 1.0, "frozen": 4.0, "full": 2.0}, items=60))
    for seed in (1, 2, 3):
        path = artifacts.seed_dir("made-up", "frozen", seed) / "run.json"
        journal = json.loads(path.read_text("utf-8"))
        journal["best"]["validation_accuracy"] = 0.3
        artifacts.write_json(path, journal)
    found = weighed("made-up")
    assert max(found["arms"], key=lambda arm: arm["mean"])["arm"] == "frozen"
    assert (found["best_arm"], found["verdict"]["arm"]) == ("full", "full")


def test_scratch_can_be_the_best_arm_and_the_verdict_still_judges_a_pretrained_one(clone: Path) -> None:
    found = weigh(Made(skill={"scratch": 4.0, "frozen": 0.5}, items=300))
    assert found["best_arm"] == "scratch"
    assert found["verdict"]["arm"] == "frozen"
    assert (found["verdict"]["call"], found["verdict"]["fine_tuning_helps"]) == ("hurts", False)


def test_an_experiment_without_a_pretrained_arm(clone: Path) -> None:
    evaluated.make(Made(skill={"scratch": 2.0}, items=50))
    compare.compare("made-up")
    found = json.loads((clone / "reports/made-up/comparison.json").read_text("utf-8"))
    assert found["verdict"]["arm"] is None
    assert "nothing to compare" in (clone / "reports/made-up/report.html").read_text("utf-8")


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_other_metrics(clone: Path, metric: str) -> None:
    found = weigh(Made(metric=metric, items=150))
    assert found["metric"]["name"] == metric
    frame = pd.read_parquet(evaluated.predictions_of("made-up"))
    labels = found["classes"]
    for arm in found["arms"]:
        rows = frame[frame["arm"] == arm["arm"]]
        each = [evaluated.score(one, labels, metric) for _, one in rows.groupby("seed")]
        assert arm["values"] == pytest.approx(each)
    assert found["verdict"]["difference"] > 0


def test_notes_warn_of_what_weakens_the_figures(clone: Path) -> None:
    found = weigh(Made(seeds=(5,), items=20, labels=["a", "b", "c"], missing_class=True))
    notes = " ".join(found["notes"])
    assert "One seed only" in notes
    assert "only 20 items" in notes
    assert "1 of 3 classes have no test item: 'c'" in notes


def test_five_test_items_still_make_a_whole_report(clone: Path) -> None:
    evaluated.make(Made(items=5))
    compare.compare("made-up")
    assert (clone / "reports/made-up/report.html").exists()


def test_label_budgets_give_curves_and_the_labels_saved(clone: Path) -> None:
    found = weigh(Made(skill={"scratch": 1.0, "full": 2.6}, budgets=(25, 50, 200, 400), items=300))
    efficiency = found["efficiency"]
    assert efficiency["labels"] == [25, 50, 100, 200, 400]
    for of_arm in efficiency["arms"]:
        own = next(point for point in of_arm["points"] if point["labels"] == 100)
        arm = next(one for one in found["arms"] if one["arm"] == of_arm["arm"])
        assert own["values"] == arm["values"]
        assert (own["mean"], own["ci_low"], own["ci_high"]) == (arm["mean"], arm["ci_low"], arm["ci_high"])
        assert of_arm["points"][0]["mean"] < of_arm["points"][-1]["mean"]
    (saved,) = efficiency["saved"]
    assert saved["arm"] == "full"
    # The skill that full has more, 1.6, is two doublings of the labels: 400 in place of 100.
    assert saved["labels"] == pytest.approx(300, abs=120) or saved["more_than"]
    assert found["verdict"]["labels_saved"] == saved["labels"]
    assert "saves" in found["verdict"]["text"]


def test_looks_at_the_test_split_are_counted_over_runs_baselines_and_points(clone: Path) -> None:
    evaluated.make(Made(budgets=(50, 200), items=40))
    assert weighed("made-up")["test_ledger"] | {"test_sha256": ""} == {
        "test_sha256": "", "scored": 9 + 3 + 18, "this_result": 9 + 3 + 18,
    }  # fmt: skip
    looks = artifacts.curve_dir("made-up") / "looks.json"
    artifacts.write_json(looks, {"scored": 99, "models": 77})
    assert weighed("made-up")["test_ledger"]["scored"] == 77


def test_a_curve_of_fewer_seeds_takes_the_same_ones_at_the_experiments_own_budget(clone: Path) -> None:
    evaluated.make(Made(budgets=(50, 200), items=80))
    path = artifacts.curve_dir("made-up") / "predictions.parquet"
    frame = pd.read_parquet(path)
    frame[frame["seed"] != 2].to_parquet(path, index=False)
    # Seed 2 scores as seed 1 does: it must not be taken for it, or for seed 3.
    path = evaluated.predictions_of("made-up")
    frame = pd.read_parquet(path)
    for arm in ("scratch", "frozen", "full"):
        of_arm = frame["arm"] == arm
        one, two = (frame.index[of_arm & (frame["seed"] == seed)] for seed in (1, 2))
        frame.loc[two, "probabilities"] = frame.loc[one, "probabilities"].to_numpy()
    frame.to_parquet(path, index=False)
    found = weighed("made-up")
    for of_arm in found["efficiency"]["arms"]:
        own = next(point for point in of_arm["points"] if point["labels"] == 100)
        values = next(arm["values"] for arm in found["arms"] if arm["arm"] == of_arm["arm"])
        assert own["values"] == [values[0], values[2]]
        assert own["mean"] == pytest.approx(np.mean(own["values"]))
    assert found["efficiency"]["seeds"] == 2


def test_without_budgets_there_is_no_curve(clone: Path) -> None:
    found = weigh(Made(items=60))
    assert found["efficiency"] is None
    assert found["verdict"]["labels_saved"] is None


def test_resamples_are_the_independent_draws(clone: Path) -> None:
    found = weigh(Made(seeds=(1, 2), resamples=3, items=120))
    assert found["resamples"] == 3
    for arm in found["arms"]:
        assert len(arm["values"]) == len(arm["epochs"]) == len(arm["epochs_to_target_by_seed"]) == 6
    assert set(found["provenance"]["weights_sha256"]["full"]) == {"1", "2", "2-1", "2-2", "3-1", "3-2"}
    assert found["best_resample"] in (1, 2, 3)


def test_baselines_stand_beside_the_arms_on_the_same_items(clone: Path) -> None:
    evaluated.make(Made(items=200))
    found = weighed("made-up")
    frame = pd.read_parquet(artifacts.baseline_dir("made-up") / "predictions.parquet")
    for one in found["baselines"]:
        rows = frame[frame["baseline"] == one["name"]]
        assert one["mean"] == pytest.approx(accuracy_score(rows["label"], rows["predicted"]))
        scratch = found["arms"][0]["mean"]
        assert one["improvement"]["value"] == pytest.approx(one["mean"] - scratch)
    by_name = {one["name"]: one["mean"] for one in found["baselines"]}
    gap = by_name["features_logistic"] - by_name["random_logistic"]
    assert found["probe"]["value"] == pytest.approx(gap)


def test_a_baseline_that_is_ahead_of_an_arm_is_told(clone: Path) -> None:
    found = weigh(Made(skill={"scratch": 0.2, "full": 3.5}, items=200))
    assert any("is ahead of scratch." in note for note in found["notes"])


def test_equal_arms_are_called_equal_with_many_items(clone: Path) -> None:
    evaluated.make(Made(skill={"scratch": 2.0, "full": 2.0}, items=2000))
    path = evaluated.predictions_of("made-up")
    frame = pd.read_parquet(path)
    scratch = frame[frame["arm"] == "scratch"]
    pd.concat([scratch, scratch.assign(arm="full")]).to_parquet(path, index=False)
    found = weighed("made-up")["verdict"]
    assert (found["call"], found["difference"]) == ("equal", 0.0)
    assert found["fine_tuning_helps"] is False


def test_the_budget_of_the_search_is_told_for_every_arm(clone: Path) -> None:
    found = weigh(Made(items=40))
    assert {arm["tuning"]["trials"] for arm in found["arms"]} == {2}
    assert found["cost"]["trainings"] == 3 * 3 + 3 * 2
    assert found["cost"]["tuning_seconds"] == pytest.approx(3 * 12.5)


def test_a_baseline_of_other_items_stops(clone: Path) -> None:
    evaluated.make(Made(items=30))
    path = artifacts.baseline_dir("made-up") / "predictions.parquet"
    frame = pd.read_parquet(path)
    frame.iloc[:-1].to_parquet(path, index=False)
    with pytest.raises(HeadstartError, match="is of other test items than the arms' predictions"):
        results.read("made-up")


def spoil(experiment: str, **change: Any) -> None:
    path = evaluated.predictions_of(experiment)
    frame = pd.read_parquet(path)
    last = frame.index[-1]
    for column, value in change.items():
        frame.at[last, column] = value
    frame.to_parquet(path, index=False)


def test_a_prediction_that_is_not_finite_stops_before_anything_is_written(clone: Path) -> None:
    evaluated.make(Made(items=30))
    spoil("made-up", probabilities=np.full(10, np.nan, dtype=np.float32))
    with pytest.raises(TrainingError, match="arm 'full', seed 3: 1 of 30 predictions"):
        compare.compare("made-up")
    assert not (clone / "reports").exists()


def test_arms_tested_on_other_items_stop(clone: Path) -> None:
    evaluated.make(Made(items=30))
    spoil("made-up", id="another")
    with pytest.raises(HeadstartError, match="arm 'full', seed 3 was tested on other items"):
        compare.compare("made-up")


def test_an_arm_that_was_not_evaluated_stops(clone: Path) -> None:
    evaluated.make(Made(items=30))
    path = evaluated.predictions_of("made-up")
    frame = pd.read_parquet(path)
    frame[frame["arm"] != "frozen"].to_parquet(path, index=False)
    with pytest.raises(HeadstartError, match="has nothing of arm 'frozen', seed 1; run evaluate again"):
        compare.compare("made-up")


def test_a_history_that_is_not_finite_stops(clone: Path) -> None:
    evaluated.make(Made(items=30))
    path = artifacts.seed_dir("made-up", "frozen", 2) / "history.csv"
    history = pd.read_csv(path)
    history.loc[3, "validation_log_loss"] = np.nan
    history.to_csv(path, index=False)
    with pytest.raises(TrainingError, match=r"arm 'frozen', seed 2: .*history.csv holds a value that is not"):
        compare.compare("made-up")


def test_arms_trained_on_other_data_stop(clone: Path) -> None:
    evaluated.make(Made(items=30))
    path = artifacts.seed_dir("made-up", "full", 2) / "run.json"
    artifacts.write_json(path, json.loads(path.read_text("utf-8")) | {"data_sha256": "other"})
    with pytest.raises(HeadstartError, match=r"arm 'full', seed 2 and arm 'scratch', seed 1 differ in data"):
        compare.compare("made-up")


def test_a_missing_evaluation_names_its_step(clone: Path) -> None:
    evaluated.make(Made(items=30))
    (artifacts.evaluation_dir("made-up") / "scores.json").unlink()
    with pytest.raises(UserError, match="it is made by `evaluate`"):
        compare.compare("made-up")


def test_a_failure_keeps_the_old_report(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated.make(Made(items=30))
    compare.compare("made-up")
    before = (clone / "reports/made-up/comparison.json").read_bytes()

    def fail(_: object) -> str:
        raise RuntimeError("no card")

    monkeypatch.setattr(pages, "model_card", fail)
    with pytest.raises(RuntimeError, match="no card"):
        compare.compare("made-up")
    assert (clone / "reports/made-up/comparison.json").read_bytes() == before
    assert [path.name for path in (clone / "reports").iterdir() if "partial" in path.name] == []


# ------------------------------------------------------------------------------- tasks without classes


class Answering:
    """A task that shows its rows."""

    def case(self, row: Any, said: dict[str, Any], folder: Path) -> Case:
        """The row beside the answer."""
        stream = io.BytesIO()
        Image.new("RGB", (8, 6), "teal").save(stream, "WEBP")
        target = tasks.target_of(row)
        return Case(
            f"target {target['answers'][0]}",
            f"said {said['answer']}",
            ((f"picture of {row.id} below {folder.name}", stream.getvalue()),),
            (("Before ", ""), ("<i>it</i>", "wrong")),
        )


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "get", lambda _: Answering())


OTHERS = {
    "answers in groups": Made(
        task="question-answering", metric="squad_f1", items=120, groups=12, budgets=(50, 200)
    ),
    "pretraining": Made(task="masked-language-model", metric="loss", items=60, skill={"scratch": 1.0}),
    "perplexity": Made(
        task="causal-language-model", metric="perplexity", items=60, skill={"scratch": 1.0, "full": 3.0}
    ),
    "dB": Made(task="masked-image-model", metric="psnr", items=60, skill={"scratch": 1.0, "full": 3.0}),
    "shares alone": Made(task="object-detection", metric="coco_map", items=60, resamples=3, seeds=(1,)),
}


@pytest.fixture(scope="module", params=list(OTHERS.values()), ids=list(OTHERS))
def other(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Made, dict[str, Any]]:
    """A task without classes, compared."""
    folder = tmp_path_factory.mktemp("other")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(tasks, "get", lambda _: Answering())
        evaluated.make(request.param)
        compare.compare("made-up")
    return folder, request.param, json.loads((folder / "reports/made-up/comparison.json").read_text("utf-8"))


def test_a_task_without_classes_is_weighed_by_its_shares(other: tuple[Path, Made, dict[str, Any]]) -> None:
    folder, made, found = other
    schema = json.loads((ROOT / "docs/comparison.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(found)
    frame = pd.read_parquet(folder / evaluated.predictions_of("made-up"))
    for arm in found["arms"]:
        runs = frame[frame["arm"] == arm["arm"]].groupby(["resample", "seed"])
        assert arm["values"] == pytest.approx(runs[f"share_{made.metric}"].mean().tolist())
        assert set(arm["metrics"]) == set(made.kind.metrics)
        for name, one in arm["metrics"].items():
            assert one["value"] == pytest.approx(runs[f"share_{name}"].mean().mean())
            assert one["ci_low"] < one["value"] < one["ci_high"]
        assert arm["metrics"][made.metric]["value"] == arm["mean"]
        assert arm["calibration"] is None
        assert 0 < arm["area"]["value"] < 1
    assert (found["per_class"], found["confusion"], found["probe"], found["ranking"]) == ([], None, None, [])
    assert all(pair["mcnemar"] is None for pair in found["pairs"])
    assert sum(found["distribution"]["arms"][0]["counts"]) == made.items
    if "full" in made.skill:
        verdict = found["verdict"]
        assert (verdict["arm"], verdict["call"]) == ("full", "helps")
        assert verdict["difference"] > 0


def test_its_report_shows_cases_and_nothing_of_classes(other: tuple[Path, Made, dict[str, Any]]) -> None:
    folder, made, _ = other
    report = folder / "reports/made-up"
    page = (report / "report.html").read_text("utf-8")
    assert not {"confusion", "calibration", "classes", "mistakes", "suspects"} & set(
        re.findall(r'<section[^>]* id="(\w+)"', page)
    )
    assert {"metrics", "distribution", "cases"} <= set(re.findall(r'<section[^>]* id="(\w+)"', page))
    cases = page[page.index('id="cases"') :]
    assert cases.count("target a") == cases.count("said an &lt;b&gt;answer") == 12
    assert 'class="wrong"><span class="unseen">wrong: </span>&lt;i&gt;it&lt;/i&gt;' in cases
    assert "data:image/webp" in page
    named = {path.stem for path in (report / "plots").iterdir()}
    assert "confusion" not in named
    assert ("differences" in named) == (len(made.skill) > 1)
    card = (report / "model_card.md").read_text("utf-8")
    assert "Calibration" not in card
    assert "into 0 classes" not in card
    assert "None" not in card
    assert "log-loss" not in page + card


def test_one_arm_of_pretraining_is_told_and_compared_with_nothing(clone: Path) -> None:
    found = weigh(OTHERS["pretraining"])
    assert found["best_arm"] == "scratch"
    assert found["verdict"]["fine_tuning_helps"] == "undecided"
    (arm,) = found["arms"]
    ends = f"{arm['ci_low']:.3f} to {arm['ci_high']:.3f}"
    assert found["verdict"]["text"] == (
        "On made-up with 100 training samples `scratch`, pretrained from random weights, reaches a test loss "
        f"of {arm['mean']:.3f} (95 % interval {ends}; 3 seeds, 60 test items); no arm starts from other "
        "weights, so there is nothing to compare."
    )
    assert found["pairs"] == []


def test_labelled_samples_are_saved_where_there_are_no_classes(clone: Path) -> None:
    text = weigh(replace(OTHERS["answers in groups"], metric="exact_match"))["verdict"]["text"]
    assert text.startswith("On made-up with 100 training samples `full` beats `scratch` by ")
    assert "points of exact match" in text
    assert re.search(r"saves (about|more than) \d+ labelled samples", text)


def test_the_worst_and_typical_cases_are_shown(clone: Path, answering: None) -> None:
    evaluated.make(OTHERS["answers in groups"])
    found, samples = results.read("made-up"), exhibits.Samples("made-up")
    shown = exhibits.cases(found, samples, "full", 1)
    scores = found.crossed.scores("full", "squad_f1")[1]
    places = {name: at for at, name in enumerate(found.crossed.ids)}
    of_worst = [scores[places[one.id]] for one in shown if one.worst]
    assert of_worst == sorted(scores)[:6]
    typical = [abs(scores[places[one.id]] - np.median(scores)) for one in shown if not one.worst]
    assert typical == sorted(abs(scores - np.median(scores)))[:6]
    assert shown[0].score == f"SQuAD F1 {100 * min(scores):.1f} %"
    assert shown[0].pictures[0][0] == f"picture of {shown[0].id} below made-up"


def test_equals_are_shown_in_a_drawn_order_and_none_twice() -> None:
    worst, typical = exhibits.chosen(np.zeros(40), higher_is_better=True)
    assert len({*worst, *typical}) == 12
    assert worst != sorted(worst)
    assert exhibits.chosen(np.zeros(40), higher_is_better=False)[0] == worst
    assert exhibits.chosen(np.array([3.0, 1, 2]), higher_is_better=False) == ([0, 2, 1], [])


def test_shares_that_are_missing_or_not_finite_stop(clone: Path) -> None:
    evaluated.make(OTHERS["dB"])
    spoil("made-up", share_psnr=np.inf)
    with pytest.raises(TrainingError, match="arm 'full', seed 3: 1 of 60 predictions are not finite"):
        results.read("made-up")
    path = evaluated.predictions_of("made-up")
    pd.read_parquet(path).drop(columns="share_psnr").to_parquet(path, index=False)
    with pytest.raises(HeadstartError, match="seed 1 was tested without psnr; run evaluate again"):
        results.read("made-up")


def test_pairs_of_texts_are_shown_together(clone: Path) -> None:
    evaluated.make(Made(task="text-pair-classification", items=40, skill={"scratch": 0.5, "full": 2.0}))
    path = artifacts.validation_dir("made-up") / "accepted.parquet"
    rows = pd.read_parquet(path)
    data.write_table(rows.assign(pair=[f"<u>answer</u> {'x' * 400} {name}" for name in rows["id"]]), path)
    compare.compare("made-up")
    found = json.loads((clone / "reports/made-up/comparison.json").read_text("utf-8"))
    assert (found["task"], found["confusion"] is None) == ("text-pair-classification", False)
    shown = exhibits.mistakes(results.read("made-up"), exhibits.Samples("made-up"))
    assert all(re.fullmatch(r"text item-.* ¦ <u>answer</u> x+…", one.text) for one in shown)
    assert all(len(one.text) <= exhibits.EXCERPT + 3 for one in shown)
    page = (clone / "reports/made-up/report.html").read_text("utf-8")
    assert "¦ &lt;u&gt;answer&lt;/u&gt;" in page[page.index('id="mistakes"') :]


# ------------------------------------------------------------------------------------ groups of test items


def test_intervals_are_over_groups_of_test_items(clone: Path) -> None:
    found = weigh(Made(items=200, groups=20))
    # Every tenth item is in no group and stands for itself.
    assert found["test_groups"] == 18 + 20
    assert "200 test items in 38 groups)" in found["verdict"]["text"]
    assert any("come in 38 groups: intervals are over the groups" in note for note in found["notes"])
    frame = pd.read_parquet(evaluated.predictions_of("made-up"))
    rows = pd.read_parquet(artifacts.validation_dir("made-up") / "accepted.parquet").set_index("id")
    group = rows["group"].fillna(rows.index.to_series())
    first = frame[(frame["arm"] == "full")]
    right = first.assign(right=first["label"] == first["predicted"], group=first["id"].map(group))
    tables = [
        (len(group_of) * 38 / 200 * (group_of["right"].mean() - one["right"].mean()) + one["right"].mean())
        for _, one in right.groupby("seed")
        for _, group_of in one.groupby("group")
    ]
    expected = intervals.of_mean(np.array(tables).reshape(3, -1), 0.95, (0.0, 1.0))
    full = next(arm for arm in found["arms"] if arm["arm"] == "full")
    assert (full["mean"], full["ci_low"], full["ci_high"]) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )


def test_groups_of_one_item_change_no_interval(clone: Path) -> None:
    evaluated.make(Made(items=60, budgets=(50, 200)))
    before = weighed("made-up")
    path = artifacts.validation_dir("made-up") / "accepted.parquet"
    rows = pd.read_parquet(path)
    data.write_table(rows.assign(group=[f"g{at}" for at in range(len(rows))]), path)
    after = weighed("made-up")
    assert (before["test_groups"], after["test_groups"]) == (None, 60)
    for key in ("arms", "pairs", "baselines", "efficiency", "per_class", "slices"):
        assert after[key] == before[key]


def test_a_test_split_of_one_group_stops(clone: Path) -> None:
    evaluated.make(Made(items=30))
    path = artifacts.validation_dir("made-up") / "accepted.parquet"
    data.write_table(pd.read_parquet(path).assign(group="one patient"), path)
    with pytest.raises(HeadstartError, match="all items of the test split are of one group"):
        results.read("made-up")


def test_neither_torch_nor_mlflow_is_imported() -> None:
    code = (
        "import sys, steps.compare;"
        "print({'torch', 'transformers', 'timm', 'mlflow', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

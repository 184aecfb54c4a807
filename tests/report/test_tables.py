import json
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest
from huggingface_hub import ModelCard

from steps.report import pages, tables
from tests.report import example
from tests.report.example import HOSTILE, Example

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/comparison.schema.json").read_text("utf-8"))
# Tables of tasks without classes alone.
OF_OTHERS = {"distribution", "quartiles"}
OF_CLASSIFIERS = {"calibration", "reliability", "per_class", "confusion"}
DETECTION = Example(task="object-detection", metric="coco_map", classes=("cat", "dog"), points=0, groups=31)
PRETRAINING = Example(
    task="masked-language-model", metric="loss", text=True, arms=1, efficiency=False, points=0
)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@pytest.fixture(scope="module")
def comparison() -> dict[str, Any]:
    it: dict[str, Any] = json.loads(json.dumps(example.sheet(Example(points=0)).comparison))
    return it


@pytest.fixture(scope="module")
def written(comparison: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    tables.write(comparison, folder)
    return folder


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    """Rows as they were: empty is None, numbers with all their digits."""
    frame = pd.read_csv(
        folder / f"{name}.csv", float_precision="round_trip", keep_default_na=False, na_values=[""]
    )
    return [
        {str(key): None if pd.isna(value) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


# ---------------------------------------------------------------------------------------------- schema


def test_the_schema_is_one_and_the_example_keeps_it(comparison: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert [error.message for error in VALIDATOR.iter_errors(comparison)] == []


@pytest.mark.parametrize(
    "made",
    [
        Example(arms=1, seeds=1, efficiency=False, points=0),
        Example(classes=tuple(f"kind {at}" for at in range(61)), points=0, resamples=2, text=True),
        Example(classes=HOSTILE, experiment=HOSTILE[0], metric="log_loss", points=0),
        DETECTION,
        PRETRAINING,
    ],
    ids=["one arm", "many classes", "hostile", "detection", "pretraining"],
)
def test_other_experiments_keep_it_too(made: Example) -> None:
    VALIDATOR.validate(json.loads(json.dumps(example.sheet(made).comparison)))


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 1},
        {"unknown": 1},
        {"margin": None},
        {"metric": {"name": "accuracy"}},
        {"probe": {"value": 0.1, "ci_low": 0.0}},
        {"verdict": {"call": "helps"}},
        {"confusion": [[2.0]]},
        {"arms": []},
    ],
    ids=str,
)
def test_what_is_no_comparison_is_refused(comparison: dict[str, Any], change: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(comparison | change)


def test_no_key_may_be_missing(comparison: dict[str, Any]) -> None:
    for key in comparison:
        assert not VALIDATOR.is_valid({name: comparison[name] for name in comparison if name != key})
    for key in comparison["arms"][1]:
        arm = {name: value for name, value in comparison["arms"][1].items() if name != key}
        assert not VALIDATOR.is_valid(comparison | {"arms": [arm]})


def test_every_key_is_explained() -> None:
    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict):
            for name, one in node.get("properties", {}).items():
                assert one.get("description"), f"{path}.{name}"
                walk(one, f"{path}.{name}")
            for key in ("items", "anyOf", "$defs", "additionalProperties"):
                walk(node.get(key), path)
            if path.endswith("$defs") or "type" not in node:
                for name, one in node.items():
                    walk(one, f"{path}.{name}")
        elif isinstance(node, list):
            for one in node:
                walk(one, path)

    walk(SCHEMA, "")


# ---------------------------------------------------------------------------------------------- tables


def test_every_table_is_written_and_ends_its_lines_the_same_everywhere(written: Path) -> None:
    assert {path.stem for path in written.iterdir()} == set(tables.TABLES) - OF_OTHERS
    for path in written.iterdir():
        assert b"\r" not in path.read_bytes()
        assert path.read_bytes().endswith(b"\n")


def test_numbers_are_those_of_the_comparison_to_the_last_digit(
    written: Path, comparison: dict[str, Any]
) -> None:
    arms = {row["arm"]: row for row in read(written, "arms")}
    for arm in comparison["arms"]:
        row = arms[arm["arm"]]
        for key in ("mean", "ci_low", "ci_high", "seconds", "epochs_to_target", "trainable_parameters"):
            assert row[key] == arm[key]
        assert row["ece"] == arm["calibration"]["ece"]["value"]
        assert row["area_ci_high"] == arm["area"]["ci_high"]
        assert row["failed_share_ci_low"] == arm["stability"]["failed_share"]["ci_low"]
        gain = arm["improvement"] or {"value": None, "p_holm": None, "call": None}
        assert (row["improvement"], row["p_holm"], row["call"]) == (
            gain["value"],
            gain["p_holm"],
            gain["call"],
        )
        speedup = arm["speedup"]
        assert row["speedup_epochs_ci_low"] == (speedup and speedup["epochs"]["ci_low"])
    for row, one in zip(read(written, "pairs"), comparison["pairs"], strict=True):
        assert (row["first"], row["second"], row["value"]) == (one["first"], one["second"], one["value"])
        assert row["mcnemar_only_second"] == one["mcnemar"]["only_second"]
    for row, one in zip(read(written, "baselines"), comparison["baselines"], strict=True):
        assert (row["name"], row["mean"], row["improvement"]) == (
            one["name"],
            one["mean"],
            one["improvement"]["value"],
        )
    for row, one in zip(read(written, "slices"), comparison["slices"], strict=True):
        assert (row["mean"], row["difference"], row["few"]) == (
            one["mean"],
            one["difference"]["value"],
            one["few"],
        )
    for row, one in zip(read(written, "ranking"), comparison["ranking"], strict=True):
        assert (row["logme"], row["probe"], row["fine_tuned"]) == (
            one["logme"],
            one["probe"]["value"],
            one["fine_tuned"],
        )


def test_every_number_is_in_some_table(written: Path, comparison: dict[str, Any]) -> None:
    def numbers(node: Any) -> set[float]:
        if isinstance(node, dict):
            return set().union(*map(numbers, node.values()))
        if isinstance(node, list):
            return set().union(*map(numbers, node))
        return {node} if isinstance(node, float) else set()

    # Facts of the whole experiment, and what stands in the tables as text or as means.
    left_out = ("probe", "ranking_correlation", "target", "confidence", "cost", "data")
    wanted = numbers({key: value for key, value in comparison.items() if key not in left_out})
    told: set[float] = set()
    for name in set(tables.TABLES) - OF_OTHERS:
        for row in read(written, name):
            told |= {value for value in row.values() if isinstance(value, float | int)}
    space = numbers([arm["tuning"] for arm in comparison["arms"]])
    points = numbers([point["values"] for one in comparison["efficiency"]["arms"] for point in one["points"]])
    assert len(wanted) > 500
    assert wanted - told - space - points == set()


def test_whole_numbers_stay_whole_where_some_are_missing(comparison: dict[str, Any]) -> None:
    frame = tables.frames(comparison)["arms"]
    assert str(frame["epochs_to_target"].dtype) == "Int64"
    assert frame["epochs_to_target"].isna().any()


def test_runs_are_told_by_resample_and_seed() -> None:
    it = example.sheet(Example(seeds=2, resamples=2, arms=2, points=0)).comparison
    frame = tables.frames(it)["runs"]
    of_first = frame[frame["arm"] == "scratch"]
    assert of_first[["resample", "seed"]].to_numpy().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert of_first["value"].tolist() == it["arms"][0]["values"]
    assert of_first["validation"].tolist() == it["arms"][0]["validation"]["values"]
    assert of_first["epochs_to_target"].isna().tolist() == [
        one is None for one in it["arms"][0]["epochs_to_target_by_seed"]
    ]


def test_what_there_is_not_makes_no_table(tmp_path: Path) -> None:
    it = example.sheet(Example(arms=1, efficiency=False, points=0)).comparison | {"slices": []}
    names = {path.stem for path in tables.write(it, tmp_path)}
    assert not {"efficiency", "labels_saved", "pairs", "slices"} & names


def test_tables_of_a_task_without_classes(tmp_path: Path) -> None:
    it = json.loads(json.dumps(example.sheet(DETECTION).comparison))
    assert not OF_CLASSIFIERS & {path.stem for path in tables.write(it, tmp_path)}
    arms = {row["arm"]: row for row in read(tmp_path, "arms")}
    told = read(tmp_path, "metrics")
    for arm in it["arms"]:
        assert "ece" not in arms[arm["arm"]]
        rows = {row["metric"]: row for row in told if row["arm"] == arm["arm"]}
        assert set(rows) == {"coco_map", "coco_map_50"}
        for name, found in arm["metrics"].items():
            assert {key: rows[name][key] for key in found} == found
    counts: dict[str, list[float]] = {}
    for row in read(tmp_path, "distribution"):
        counts.setdefault(str(row["arm"]), []).append(row["items"])
    assert counts == {one["arm"]: one["counts"] for one in it["distribution"]["arms"]}
    for row, one in zip(read(tmp_path, "quartiles"), it["distribution"]["arms"], strict=True):
        assert [row[key] for key in ("lowest", "first_quartile", "median", "third_quartile", "highest")] == (
            one["quartiles"]
        )
    assert "mcnemar_p" not in read(tmp_path, "pairs")[0]


def test_hostile_names_come_back_as_they_were(tmp_path: Path) -> None:
    names = (*HOSTILE[:9], 'a,"b"\nc', "=1+1", "\ttab")
    tables.write(example.sheet(Example(classes=names, arms=2, points=0)).comparison, tmp_path)
    assert [row["label"] for row in read(tmp_path, "per_class")] == list(names)


def test_the_same_comparison_gives_the_same_bytes(
    comparison: dict[str, Any], written: Path, tmp_path: Path
) -> None:
    for path in tables.write(comparison, tmp_path):
        assert path.read_bytes() == (written / path.name).read_bytes()


# ---------------------------------------------------------------------------- schema, tables and card agree


def test_columns_are_named_as_the_keys_of_the_schema(written: Path) -> None:
    interval = set(SCHEMA["$defs"]["interval"]["properties"])
    assert interval == set(tables.ENDS)
    named = {
        "per_class": SCHEMA["properties"]["per_class"]["items"]["properties"],
        "slices": SCHEMA["properties"]["slices"]["items"]["properties"],
        "baselines": SCHEMA["properties"]["baselines"]["items"]["properties"],
        "ranking": SCHEMA["properties"]["ranking"]["items"]["properties"],
        "tuning": SCHEMA["$defs"]["arm"]["properties"]["tuning"]["properties"],
    }
    for name, keys in named.items():
        columns = set(read(written, name)[0]) - {"arm", "metric"}
        bare = {column.removesuffix("_ci_low").removesuffix("_ci_high") or column for column in columns}
        assert bare - {"ci_low", "ci_high", ""} <= set(keys), name


def test_the_card_tells_the_numbers_of_the_tables(written: Path, comparison: dict[str, Any]) -> None:
    text = pages.model_card(comparison)
    meta: Any = ModelCard(text).data
    best = next(row for row in read(written, "arms") if row["arm"] == comparison["best_arm"])
    for one in meta.eval_results:
        key = {"f1": "macro_f1"}.get(one.metric_type, one.metric_type)
        assert one.metric_value == pytest.approx(best[f"test_{key}"], abs=1e-6)
    assert f"calibration error is {100 * best['ece']:.1f} points" in text
    assert f"temperature {best['temperature']:.2f}" in text
    for row in read(written, "tuning"):
        assert f"| `{row['arm']}` | {row['trials']} | {row['steps']} | {row['seconds']:.1f} |" in text
    assert f"scored {comparison['test_ledger']['scored']} models" in text

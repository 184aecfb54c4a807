from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps import artifacts, data
from steps.errors import DataError, UserError
from steps.params import Split
from steps.split import assign, content_groups, in_order, split, within_budget
from tests.rawdata import settle_split

SIDE = {"train": 0, "validation": 1, "test": 2}


def samples(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Accepted samples as validate gives them; a row's `content` alone is enough."""
    full = []
    for at, row in enumerate(rows):
        content = row.get("content", f"c{at}")
        base = {"id": f"s{at}", "label": "x", "split": None, "group": None, "content": content}
        full.append({**base, "near_group": content, "split_key": content, **row})
    columns = ["id", "label", "split", "group", "content", "near_group", "split_key"]
    return pd.DataFrame(full, columns=columns).astype("str")


def many(count: int, **columns: Any) -> list[dict[str, Any]]:
    return [{"id": f"m{at}", "content": f"many {at}"} | columns for at in range(count)]


rows_of_data = st.lists(
    st.fixed_dictionaries(
        {
            "content": st.integers(0, 30).map("content {}".format),
            "label": st.sampled_from("abc"),
            "group": st.none() | st.integers(0, 5).map("group {}".format),
        }
    ),
    min_size=1,
    max_size=60,
)


def named(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": f"r{at}"} | row for at, row in enumerate(rows)]


# -------------------------------------------------------------------------------------------------- stable


@settings(max_examples=60, deadline=None)
@given(rows_of_data, rows_of_data, st.randoms())
def test_without_groups_no_sample_moves_when_data_are_added(
    first: list[dict[str, Any]], added: list[dict[str, Any]], random: Any
) -> None:
    old = named([row | {"group": None} for row in first])
    new = [{"id": f"new{at}"} | row | {"group": None} for at, row in enumerate(added)]
    both = [*old, *new]
    random.shuffle(both)
    before = assign(samples(old), Split())
    after = assign(samples(both), Split())
    sides = dict(zip([row["id"] for row in both], after, strict=True))
    assert [sides[row["id"]] for row in old] == before.tolist()


@settings(max_examples=60, deadline=None)
@given(rows_of_data, rows_of_data)
def test_where_added_data_tie_groups_together_samples_move_towards_test_only(
    first: list[dict[str, Any]], added: list[dict[str, Any]]
) -> None:
    before = assign(samples(named(first)), Split(test=0.3, validation=0.3))
    after = assign(samples(named([*first, *added])), Split(test=0.3, validation=0.3))
    for old, new in zip(before, after, strict=False):
        assert SIDE[new] >= SIDE[old], "what was tested once would be trained on"


@settings(max_examples=60, deadline=None)
@given(rows_of_data)
def test_duplicates_and_groups_stay_together(rows: list[dict[str, Any]]) -> None:
    frame = samples(named(rows))
    sides = assign(frame, Split(test=0.3, validation=0.3))
    for column in ("content", "group"):
        known = frame[column].notna()
        assert (sides[known].groupby(frame[column][known]).nunique() == 1).all()


def test_a_chain_of_groups_and_contents_is_one_group() -> None:
    frame = samples(
        [
            {"content": "a", "group": "g"},
            {"content": "b", "group": "g"},
            {"content": "b", "near_group": "n"},
            {"content": "c", "near_group": "n"},
            {"content": "d"},
        ]
    )
    groups = content_groups(frame)
    assert len(set(groups[:4])) == 1
    assert groups[4] != groups[0]


def test_ids_and_order_do_not_matter() -> None:
    rows = many(200)
    before = assign(samples(rows), Split())
    renamed = [row | {"id": f"other {at}"} for at, row in enumerate(rows)]
    after = assign(samples(renamed[::-1]), Split())
    assert after.tolist()[::-1] == before.tolist()
    assert assign(samples(rows), Split(salt="other")).tolist() != before.tolist()


def test_every_class_is_divided_in_the_proportions_asked_for() -> None:
    rows = [{"content": f"{label}{at}", "label": label} for label in "xy" for at in range(4000)]
    frame = samples(rows)
    shares = (
        assign(frame, Split(test=0.2, validation=0.1)).groupby(frame["label"]).value_counts(normalize=True)
    )
    for label in "xy":
        for name, share in (("test", 0.2), ("validation", 0.1), ("train", 0.7)):
            assert shares[label, name] == pytest.approx(share, abs=0.025)  # 4 standard deviations


# ---------------------------------------------------------------------------------------- the user's splits


def test_given_splits_are_kept() -> None:
    rows = [row | {"split": name} for row, name in zip(many(9), list(data.SPLITS) * 3, strict=True)]
    frame = samples(rows)
    assert assign(frame, Split()).tolist() == frame["split"].tolist()


def test_a_missing_validation_split_is_drawn_from_train() -> None:
    rows = [*many(2000, split="train"), *({"content": f"t{at}", "split": "test"} for at in range(50))]
    sides = assign(samples(rows), Split(test=0.2, validation=0.2))
    assert (sides[2000:] == "test").all()
    assert set(sides[:2000]) == {"train", "validation"}
    assert (sides[:2000] == "validation").mean() == pytest.approx(0.25, abs=0.04)


def test_a_missing_test_split_is_drawn_from_train() -> None:
    rows = [*many(2000, split="train"), *({"content": f"v{at}", "split": "validation"} for at in range(50))]
    sides = assign(samples(rows), Split(test=0.2, validation=0.2))
    assert (sides[2000:] == "validation").all()
    assert (sides[:2000] == "test").mean() == pytest.approx(0.25, abs=0.04)


def test_all_given_as_train_is_as_good_as_nothing_given() -> None:
    assert (
        assign(samples(many(100, split="train")), Split()).tolist()
        == assign(samples(many(100)), Split()).tolist()
    )


def test_a_sample_without_a_split_joins_its_like_in_a_given_one() -> None:
    given_test = [{"id": f"t{at}", "content": f"many {at}", "split": "test"} for at in range(50)]
    sides = assign(samples([*many(50), *given_test]), Split())
    assert (sides == "test").all()


def test_a_sample_given_as_train_stays_when_its_like_is_in_test() -> None:
    given_test = [{"id": f"t{at}", "content": f"many {at}", "split": "test"} for at in range(50)]
    sides = assign(samples([*many(50, split="train"), *given_test]), Split())
    assert (sides[:50] == "train").all()


def test_samples_in_no_split_are_an_error_when_all_are_given() -> None:
    rows = [{"split": name} for name in (*data.SPLITS, None)]
    with pytest.raises(DataError, match="1 samples are in none of train, validation and test"):
        assign(samples(rows), Split())


# -------------------------------------------------------------------------------------------------- budget


labels = st.lists(st.sampled_from("aaaabbc"), min_size=10, max_size=80)


@settings(max_examples=60, deadline=None)
@given(labels, st.data())
def test_a_smaller_budget_is_within_a_larger_one_and_in_proportion(names: list[str], draw: Any) -> None:
    members = samples([{"label": name} for name in names])
    order = members.loc[in_order(members, "salt"), "label"]
    assert sorted(order.index) == list(range(len(names)))
    budget = draw.draw(st.integers(1, len(names)))
    counts = order[:budget].value_counts()
    classes = members["label"].value_counts()
    assert len(counts) == min(budget, len(classes)), "one of each class before the second of any"
    for label, size in classes.items():
        exact = budget * size / len(names)
        # Giving every class its first can cost the others one each, hence the classes beside the one.
        assert exact - len(classes) < counts.get(label, 0) < exact + 2


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 90), st.integers(0, 90))
def test_budgets_are_nested(small: int, more: int) -> None:
    frame = samples([{"label": "abc"[at % 3], "content": f"c{at}"} for at in range(200)])
    sides = pd.Series("train", index=frame.index)
    few = within_budget(frame, sides, Split(train_labels=small)) == "train"
    many_more = within_budget(frame, sides, Split(train_labels=small + more)) == "train"
    assert (few.sum(), many_more.sum()) == (small, small + more)
    assert (few <= many_more).all()


def test_an_added_sample_pushes_out_at_most_one() -> None:
    rows = [{"id": f"s{at}", "label": "ab"[at % 2], "content": f"c{at}"} for at in range(100)]
    frame = samples(rows)
    before = set(frame.loc[in_order(frame, "s")[:30], "id"])
    for added in range(20):
        larger = samples([*rows, {"id": "new", "label": "ab"[added % 2], "content": f"new {added}"}])
        after = set(larger.loc[in_order(larger, "s")[:30], "id"])
        assert len(before - after) <= 1


def test_budgets_that_cannot_be_met() -> None:
    frame = samples([{"label": "abc"[at % 3]} for at in range(9)])
    sides = pd.Series("train", index=frame.index)
    with pytest.raises(DataError, match=r"split\.train_labels: 10 is more than the 9 samples of train"):
        within_budget(frame, sides, Split(train_labels=10))
    with pytest.raises(DataError, match=r"split\.train_labels: 2 is fewer than the 3 classes"):
        within_budget(frame, sides, Split(train_labels=2))


# ---------------------------------------------------------------------------------------------- the step


def accepted_as(frame: pd.DataFrame) -> None:
    folder = artifacts.validation_dir("pets")
    folder.mkdir(parents=True, exist_ok=True)
    data.write_table(frame, folder / "accepted.parquet")


def test_the_step_writes_the_same_bytes_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    accepted_as(samples(many(100)))
    settle_split("pets", train_labels=20)
    split("pets")
    first = artifacts.split_file("pets").read_bytes()
    written = data.read_split("pets")
    assert (written["split"] == "train").sum() == 20
    assert set(written["split"]) == {"train", "validation", "test", ""}
    assert "labels used: train 20 of " in capsys.readouterr().out
    split("pets")
    assert artifacts.split_file("pets").read_bytes() == first


def test_a_class_without_a_sample_to_train_on_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settle_split("pets")
    rows = [row | {"split": name} for row, name in zip(many(30), list(data.SPLITS) * 10, strict=True)]
    accepted_as(samples([*rows, {"id": "z", "label": "zebra", "split": "test"}]))
    with pytest.raises(DataError, match="class 'zebra' has no sample to train on"):
        split("pets")
    accepted_as(samples([{"id": f"d{at}", "content": "all the same"} for at in range(30)]))
    with pytest.raises(DataError, match="no sample fell to"):
        split("pets")
    assert not artifacts.split_file("pets").exists()


def test_a_class_that_cannot_be_tested_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settle_split("pets")
    rows = [row | {"split": name} for row, name in zip(many(30), list(data.SPLITS) * 10, strict=True)]
    accepted_as(samples([*rows, {"id": "z", "label": "zebra", "split": "train"}]))
    split("pets")
    out = capsys.readouterr().out
    assert "warning: no sample of zebra fell to validation" in out
    assert "warning: no sample of zebra fell to test" in out


def test_resamples_are_other_parts_of_the_same_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    accepted_as(samples(many(200)))
    settle_split("pets", train_labels=30)
    split("pets")
    alone = data.read_split("pets")
    settle_split("pets", resamples=3, train_labels=30)
    split("pets")
    parts = [data.read_split("pets", resample)["split"] for resample in (1, 2, 3)]
    assert parts[0].tolist() == alone["split"].tolist()  # resamples change nothing of the first
    for part in parts:
        assert (part == "train").sum() == 30
        for name in ("validation", "test"):
            assert (part == name).tolist() == (parts[0] == name).tolist()
    assert len({tuple(part) for part in parts}) == 3
    used = data.read_used("pets")
    assert set(used["id"]) == {
        name for part in parts for name in alone["id"][part.to_numpy() != ""]
    }  # what any resample needs gets features


def test_resamples_of_a_whole_pool_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    accepted_as(samples(many(100)))
    settle_split("pets", resamples=2)
    with pytest.raises(DataError, match="takes the whole pool"):
        split("pets")


def test_budgets_of_the_pool_are_nested_and_end_with_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    accepted_as(samples(many(200)))
    settle_split("pets", train_labels=30)
    split("pets")
    own = data.read_split("pets")
    trained = []
    for labels in (10, 30, 60, None):
        rows = data.read_pool("pets", labels)
        trained.append(set(rows["id"][rows["split"] == "train"]))
        for name in ("validation", "test"):
            assert rows["id"][rows["split"] == name].tolist() == own["id"][own["split"] == name].tolist()
    assert [len(one) for one in trained[:3]] == [10, 30, 60]
    assert trained[0] < trained[1] < trained[2] < trained[3]
    assert trained[1] == set(own["id"][own["split"] == "train"])
    with pytest.raises(UserError, match=r"curve.labels: 999 is more than the \d+ samples"):
        data.read_pool("pets", 999)

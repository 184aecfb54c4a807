from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from steps import contest, frozen, gate, tasks
from steps.contest import FROZEN_RUN, FROZEN_SHA, TEST_SHA, Contender, Ring
from steps.errors import TrackingError
from steps.frozen import Frozen
from steps.kinds import KINDS
from steps.tracking import store
from steps.tracking.aliases import Entry
from steps.tracking.registry import Loaded, Version
from tests.tracking import made

VERSION = Version("headstart-x", "7", "run", {"headstart.task": "image-classification"}, ())


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def set_of(first: int = 0, items: int = 40) -> Frozen:
    """Grey images whose class is whether they are bright, put aside."""
    folder, rows = Path("data/x/images"), []
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(first, first + items):
        Image.new("L", (8, 8), 5 * at % 256).save(folder / f"{at}.png")
        rows.append(
            {
                "id": f"i{at}", "path": f"images/{at}.png", "text": None, "pair": None, "target": None,
                "label": "dark" if 5 * at % 256 < 128 else "light", "sha256": f"s{at}", "size": 10 + at,
                "source": f"camera {at % 2}", "group": None, "content": f"c{at}",
            }
        )  # fmt: skip
    return frozen.freeze("x", pd.DataFrame(rows), Path("data/x"))


class Bright:
    """Stands for MLflow's model: says what is dark by the file itself, and counts what it is asked."""

    def __init__(self, sure: float = 0.9) -> None:
        self.sure, self.asked = sure, 0

    def predict(self, inputs: pd.DataFrame) -> pd.DataFrame:
        self.asked += len(inputs)
        dark = [np.asarray(Image.open(path)).mean() < 128 for path in inputs["image"]]
        share = [self.sure if one else 1 - self.sure for one in dark]
        return pd.DataFrame({"probabilities": [{"dark": one, "light": 1 - one} for one in share]})


def contender(role: str, test: Frozen, **known: Any) -> Contender:
    """A version that was tested on a set, and knows what is given of it."""
    found = Contender(
        replace(VERSION, tags=VERSION.tags | {TEST_SHA: test.sha256, FROZEN_SHA: test.digest}), role
    )
    about = {"settings": {"classes": ["dark", "light"]}, "stored": None, "model": Loaded(Bright())}
    vars(found).update({**about, "trained_on": frozenset(), **known})
    return found


def stored(test: Frozen, dark: float) -> pd.DataFrame:
    """What a version said of its own test set: of every item the same."""
    said = test.rows[contest.KEYS].assign(probability_dark=dark, probability_light=1 - dark)
    return said.iloc[::-1].reset_index(drop=True)


def ring(candidate: Contender, champion: Contender, **rule: Any) -> Ring:
    kind = KINDS["image-classification"]
    settings = gate.Rule(**{"slices": False, "calibration": None, "latency": None, "margin": 1.0, **rule})
    nobody: Any = None
    return Ring(nobody, "x", tasks.get("image-classification"), kind, settings, candidate, champion, [])


def fought(meeting: Ring, today: Frozen, old: Frozen | None) -> gate.Decision:
    sets = [test for test in (today, old) if test is not None]
    return contest.fought(meeting, today, old, {test.sha256: (0, 0) for test in sets})


def test_stored_answers_are_used_for_a_versions_own_set_whatever_their_order() -> None:
    test = set_of()
    sides = [contender(role, test, stored=stored(test, 0.6)) for role in ("candidate", "champion")]
    decision = fought(ring(*sides), test, None)
    assert "scores all 40 test items as the champion does" in decision.reason
    assert [side.model.pyfunc.asked for side in sides] == [0, 0]
    # Another label, and they are no answers to this.
    changed = replace(test, rows=test.rows.assign(label="dark"))
    assert not sides[0].knows(changed.rows, KINDS["image-classification"])


def test_on_two_sets_each_is_asked_what_it_has_not_said_and_nothing_it_was_trained_on() -> None:
    today, old = set_of(20), set_of(0)
    seen = frozenset(one.tobytes() for one in frozen.digests(today.rows.iloc[:3])[0])
    candidate = contender("candidate", today, stored=stored(today, 0.6))
    champion = contender("champion", old, stored=stored(old, 0.6), trained_on=seen)
    decision = fought(ring(candidate, champion, margin=2.0), today, old)
    # Of the 37 that are left the candidate was asked anew too: its stored answers are of all 40.
    assert champion.model.pyfunc.asked == 37
    assert candidate.model.pyfunc.asked == 37 + 40
    assert decision.evidence["excluded"] == {today.sha256: 3, old.sha256: 0}
    whole = [one for one in decision.evidence["checks"] if one["check"] == "whole"]
    assert whole[0]["items"] == 37
    assert (whole[1]["candidate"], whole[1]["champion"]) == (1.0, 26 / 40)


def test_a_version_trained_on_most_of_the_other_set_or_that_does_not_tell_is_refused() -> None:
    today, old = set_of(20), set_of(0)
    seen = frozenset(one.tobytes() for one in frozen.digests(old.rows.iloc[:21])[1])
    candidate, champion = contender("candidate", today, trained_on=seen), contender("champion", old)
    refused = fought(ring(candidate, champion), today, old)
    assert refused.reason.startswith("on the champion's test set, 21 of 40 test items were left out")
    assert refused.reason.endswith("the champion stays until `headstart promote headstart-x@7` moves it")
    silent = fought(ring(candidate, contender("champion", old, trained_on=None)), today, old)
    assert "version 7 does not tell what it was trained on" in silent.reason
    assert champion.model.pyfunc.asked == candidate.model.pyfunc.asked == 40


def test_latency_is_measured_in_turns_and_only_where_all_else_would_promote() -> None:
    test = set_of()
    sides = [contender(role, test, stored=stored(test, 0.6)) for role in ("candidate", "champion")]
    decision = fought(ring(*sides, latency=50.0), test, None)
    told = decision.evidence["checks"][-1]
    assert (told["check"], told["passed"]) == ("latency", True)
    assert [side.model.pyfunc.asked for side in sides] == [22, 22]
    worse = contender("candidate", test, stored=stored(test, 0.4).iloc[:40])
    champion = contender("champion", test, model=Loaded(Bright()))
    refused = fought(ring(worse, champion, latency=50.0, margin=0.01), test, None)
    assert "worse than the champion" in refused.reason
    assert worse.model.pyfunc.asked == 0


def test_items_are_told_apart_by_size_brightness_and_source() -> None:
    test = set_of()
    facts = contest.facts_of(test.rows, test.folder)
    assert list(facts) == ["file size in bytes", "brightness, 0 to 255", "source"]
    assert facts["brightness, 0 to 255"].tolist() == [float(5 * at) for at in range(40)]
    (test.folder / "images/3.png").unlink()
    assert (
        np.isnan(np.asarray(contest.facts_of(test.rows, test.folder)["brightness, 0 to 255"], float)).sum()
        == 1
    )


def test_looks_are_counted_and_inherited_by_the_share_of_common_items() -> None:
    def said(number: int, tests: list[str], **more: object) -> Entry:
        evidence = {"tests": tests, **more}
        return Entry("m", number, "", "", "keep", {}, {}, "", evidence, "", "")

    entries = [
        said(1, []),
        said(2, ["a", "b"], inherited={"a": 0, "b": 3}),
        said(3, ["b"], inherited={"b": 9}),
    ]
    assert contest.looks_of(entries, "a") == (1, 0)
    assert contest.looks_of(entries, "b") == (2, 3)
    assert contest.looks_of(entries, "c") == (0, 0)
    today, old = set_of(10), set_of(0)
    sides = contender("candidate", today), contender("champion", old)
    history = [said(at, [old.sha256]) for at in range(10)]
    looks = contest.looks_at(replace(ring(*sides), entries=history), today, old)
    assert looks == {today.sha256: (0, 7), old.sha256: (10, 0)}
    again = [*history, said(10, [today.sha256, old.sha256], inherited={today.sha256: 7})]
    assert contest.looks_at(replace(ring(*sides), entries=again), today, old) == {
        today.sha256: (1, 7),
        old.sha256: (11, 0),
    }


@pytest.mark.flow
def test_a_frozen_set_is_sent_once_and_brought_whole_or_told_to_be_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made.store(tmp_path)
    test = set_of()
    with store.alone(), store.opened() as opened:
        root = tmp_path / "artifacts"
        run_id = opened.client.create_run(opened.client.create_experiment("x", root.as_uri())).info.run_id
        contest.send(opened, run_id, test)
        inside = root / run_id / "artifacts/frozen" / test.sha256
        assert {one.name for one in inside.iterdir()} == {frozen.ITEMS, frozen.ARCHIVE, frozen.SEAL}
        sent = (inside / frozen.ARCHIVE).stat().st_mtime_ns
        contest.send(opened, run_id, test)
        assert (inside / frozen.ARCHIVE).stat().st_mtime_ns == sent

        tags = {TEST_SHA: test.sha256, FROZEN_SHA: test.digest, FROZEN_RUN: run_id}
        version = replace(VERSION, tags=tags)
        here = contest.bring(opened, "x", version)
        assert isinstance(here, Frozen)
        # Here it is damaged: it comes from MLflow again.
        (test.folder / "images/3.png").unlink()
        again = contest.bring(opened, "x", version)
        assert isinstance(again, Frozen)
        assert (test.folder / "images/3.png").exists()
        assert "is missing" in capsys.readouterr().out
        # There it is damaged as well.
        shutil.rmtree(test.folder)
        whole = (inside / frozen.ITEMS).read_bytes()
        (inside / frozen.ITEMS).write_bytes(whole[:-9])
        gone = contest.bring(opened, "x", version)
        assert str(gone).startswith(
            f"the frozen test set {test.sha256[:8]} of version 7 cannot be had any more: "
        )
        # It is not there, or its run is not.
        shutil.rmtree(inside)
        assert "neither in .headstart/frozen/x nor among the artifacts" in str(
            contest.bring(opened, "x", version)
        )
        unknown = replace(version, tags=tags | {FROZEN_RUN: "0" * 32})
        assert "neither in .headstart/frozen/x nor" in str(contest.bring(opened, "x", unknown))
        assert not test.folder.exists()

        # A store that does not answer has not lost it.
        def broken(*arguments: object) -> None:
            raise OSError("no route")

        monkeypatch.setattr(type(opened.client), "list_artifacts", broken)
        with pytest.raises(TrackingError, match="no route"):
            contest.bring(opened, "x", version)

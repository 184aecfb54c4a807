from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from steps import artifacts, frozen, ledger, tasks
from steps.errors import DataError

NAMES = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def images() -> pd.DataFrame:
    """A test split of three images, two of them of equal bytes; the data folder is `data/x`."""
    folder = Path("data/x/images")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, content in zip(NAMES, (b"one", b"two", b"two"), strict=True):
        (folder / f"{content.decode()}.png").write_bytes(content)
        rows.append(
            {
                "id": name, "path": f"images/{content.decode()}.png", "text": None, "pair": None,
                "label": "l", "target": json.dumps({"mask": "A" * 50}), "sha256": content.hex(), "size": 3,
                "source": "s", "split": "test", "group": None if name == "a" else "g", "content": name,
                "near_group": "n",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def texts() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": NAMES, "path": None, "text": ["x \ud7ff", "y", "z"], "pair": ["p", "q", "r"], "label": "l",
            "target": None, "sha256": NAMES, "size": [1, 2, 3], "source": "", "split": "test", "group": None,
        }
    )  # fmt: skip


def test_a_frozen_set_is_read_as_the_data_folder_is() -> None:
    rows = images()
    made = frozen.freeze("x", rows, Path("data/x"))
    assert made.sha256 == ledger.test_sha256(rows)
    assert made.folder == Path(f".headstart/frozen/x/{made.sha256}")
    task = tasks.get("semantic-segmentation")
    contents = tasks.contents(task, made.rows, made.folder)
    assert [Path(str(one)).read_bytes() for one in contents] == [b"one", b"two", b"two"]
    # What the task is to predict comes along, and nothing of the split.
    assert task.truths(made.rows) == [{"mask": "A" * 50}] * 3
    assert not {"split", "near_group"} & set(made.rows.columns)
    # No byte is stored twice.
    assert (made.folder / "images/one.png").stat().st_nlink == 2
    read = frozen.read("x", made.sha256, made.digest)
    assert read is not None
    assert (read.sha256, read.digest, read.folder) == (made.sha256, made.digest, made.folder)
    pd.testing.assert_frame_equal(
        read.rows.astype(object).where(read.rows.notna(), None),
        made.rows.astype(object).where(made.rows.notna(), None),
        check_dtype=False,
    )
    assert frozen.read("x", "0" * 64, made.digest) is None


def test_texts_and_their_pairs_are_frozen_without_files() -> None:
    made = frozen.freeze("x", texts(), Path("data/x"))
    assert sorted(one.name for one in made.folder.iterdir()) == [frozen.SEAL, frozen.ITEMS]
    contents = tasks.contents(tasks.get("text-pair-classification"), made.rows, made.folder)
    assert contents == [("x \ud7ff", "p"), ("y", "q"), ("z", "r")]
    assert frozen.read("x", made.sha256, made.digest) is not None


def test_it_is_written_once_and_outlives_the_data() -> None:
    rows = images()
    made = frozen.freeze("x", rows, Path("data/x"))
    before = (made.folder / frozen.ITEMS).stat().st_mtime_ns
    again = frozen.freeze("x", rows.sample(frac=1.0, random_state=1).sort_values("id"), Path("data/x"))
    assert (again.digest, (made.folder / frozen.ITEMS).stat().st_mtime_ns) == (made.digest, before)
    # ingest replaces its folder.
    for path in artifacts.files_below(Path("data/x")):
        path.unlink()
    assert frozen.read("x", made.sha256, made.digest) is not None


def test_the_digest_of_the_set_is_of_contents_and_labels_that_of_the_seal_of_all() -> None:
    rows = images()
    made = frozen.freeze("x", rows, Path("data/x"))
    renamed = frozen.freeze("y", rows.assign(id=["d", "e", "f"]), Path("data/x"))
    assert renamed.sha256 == made.sha256
    assert renamed.digest != made.digest
    relabelled = frozen.freeze("y", rows.assign(label=["l", "m", "l"]), Path("data/x"))
    assert relabelled.sha256 != made.sha256
    with pytest.raises(DataError, match="it is another one"):
        frozen.read("y", renamed.sha256, made.digest)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("images/one.png", r"images/one.png was changed \(1 files in all\)"),
        (frozen.ITEMS, "is not what was put aside"),
        (frozen.SEAL, "it is another one"),
    ],
)
@pytest.mark.survives(
    "registry",
    "a frozen test set is changed",
    how="rows, files and the seal altered",
    held="found when it is read, nothing is decided upon it",
)
def test_whatever_was_changed_is_found_when_it_is_read(name: str, told: str) -> None:
    made = frozen.freeze("x", images(), Path("data/x"))
    path = made.folder / name
    if name == frozen.ITEMS:
        pd.read_parquet(path).assign(group="h").to_parquet(path)
    elif name == frozen.SEAL:
        artifacts.write_json(path, artifacts.read_json(path, "x") | {"items": 4})
    else:
        path.unlink()  # it shares its bytes with the data
        path.write_bytes(b"onf")
    with pytest.raises(DataError, match=told):
        frozen.read("x", made.sha256, made.digest)
    path.unlink()
    with pytest.raises(DataError, match="is not what was put aside"):
        frozen.read("x", made.sha256, made.digest)


def test_a_missing_file_is_named() -> None:
    rows = images()
    Path("data/x/images/two.png").unlink()
    with pytest.raises(DataError, match=r"data/x/images/two.png is missing"):
        frozen.freeze("x", rows, Path("data/x"))
    assert not list(Path(".headstart").rglob("*.parquet"))


def test_what_is_sent_is_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = frozen.freeze("x", images(), Path("data/x"))
    sent = tmp_path / "sent"
    sent.mkdir()
    assert [path.name for path in frozen.pack(made, sent)] == [frozen.ITEMS, frozen.ARCHIVE, frozen.SEAL]
    (tmp_path / "clone").mkdir()
    monkeypatch.chdir(tmp_path / "clone")
    there = frozen.unpack("x", made.sha256, made.digest, sent)
    assert there.folder == made.folder
    assert frozen.read("x", made.sha256, made.digest) is not None
    assert (there.folder / "images/two.png").read_bytes() == b"two"


def test_what_came_damaged_is_not_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = frozen.freeze("x", images(), Path("data/x"))
    sent = tmp_path / "sent"
    sent.mkdir()
    frozen.pack(made, sent)
    (tmp_path / "clone").mkdir()
    monkeypatch.chdir(tmp_path / "clone")
    good = (sent / frozen.ARCHIVE).read_bytes()
    (sent / frozen.ARCHIVE).write_bytes(good.replace(b"two", b"twp"))
    with pytest.raises(DataError, match=r"twp|images/two.png"):
        frozen.unpack("x", made.sha256, made.digest, sent)
    (sent / frozen.ARCHIVE).write_bytes(good[:100])
    with pytest.raises(DataError, match="cannot be read"):
        frozen.unpack("x", made.sha256, made.digest, sent)
    # An archive cannot write outside of its folder.
    with tarfile.open(sent / frozen.ARCHIVE, "w") as archive:
        archive.add(sent / frozen.SEAL, "../../../../evil")
    with pytest.raises(DataError, match="cannot be read"):
        frozen.unpack("x", made.sha256, made.digest, sent)
    assert not list(tmp_path.rglob("evil"))
    assert not artifacts.files_below(Path(".headstart/frozen/x"))


def test_old_sets_are_removed_but_those_that_are_named() -> None:
    rows = images()
    kept, old = (frozen.freeze("x", rows.assign(label=label), Path("data/x")) for label in "kl")
    frozen.prune("x", [kept.sha256])
    assert kept.folder.exists()
    assert not old.folder.exists()
    frozen.prune("none", [])


def test_what_was_trained_on_is_known_by_bytes_and_by_content() -> None:
    trained = pd.DataFrame({"sha256": ["1", "2"], "content": ["x", "y"]})
    frozen.write_digests(trained, Path("trained.parquet"))
    digests = frozen.read_digests(Path("trained.parquet"))
    assert {len(one) for one in digests} == {16}
    assert len(digests) == 4
    test = pd.DataFrame({"sha256": ["1", "3", "4", "5"], "content": ["a", "y", "z", "1"]})
    # By its bytes, by its content, in neither way, and by either one's name: both are hashes.
    assert frozen.known(test, digests).tolist() == [True, True, False, True]
    assert frozen.known(test.drop(columns="content"), digests).tolist() == [True, False, False, False]
    assert frozen.known(test.iloc[:0], digests).tolist() == []
    assert frozen.overlap(test, trained) == 0.75
    again = Path("again.parquet")
    frozen.write_digests(trained.iloc[::-1], again)
    assert again.read_bytes() == Path("trained.parquet").read_bytes()
    assert frozen.read_digests(again) == digests
    assert isinstance(frozen.known(test, digests), np.ndarray)

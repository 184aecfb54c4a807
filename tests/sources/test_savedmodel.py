from __future__ import annotations

import gc
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from steps import artifacts
from steps.errors import WeightsError
from steps.fetch import fetch
from steps.references import TfhubWeights
from steps.savedmodel import GRAPH, INTERPRETER, Batch, Extractor, features
from steps.sources import Found, savedmodel
from steps.sources.weights import fingerprint

SIDE = 16
RANDOM = np.random.default_rng(0)
IMAGES: NDArray[np.float32] = RANDOM.random((5, SIDE, SIDE, 3), dtype=np.float32)

# Speaks the protocol without TensorFlow: an image's features are the means of its colours, twice.
STAND_IN = f"""#!{sys.executable}
import json, sys
import numpy as np

for line in sys.stdin:
    request = json.loads(line)
    print("chatter", file=sys.stderr, flush=True)
    if request["do"] == "open":
        answer = {{"kind": KIND, "signature": "s", "input": "i", "output": "o", "features": 6}}
        answer["tensorflow"] = "0"
        asked = request
    elif "texts" in request:
        rows = np.array([[len(text)] * 6 for text in request["texts"]], np.float32)
    else:
        images = np.load(request["inputs"])
        assert images.dtype == np.float32 and images.shape[1] == asked["image_size"]
        rows = np.tile(images.mean(axis=(1, 2)), 2)
    if request["do"] == "run":
        assert asked["signature"] == "s"
        EXTRA
        np.save(request["outputs"], rows.astype(np.float32))
        answer = {{"rows": len(rows)}}
    print(json.dumps(answer), flush=True)
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str = "image", extra: str = "pass") -> None:
    path = folder / "stand-in"
    path.write_text(STAND_IN.replace("KIND", repr(kind)).replace("EXTRA", extra))
    path.chmod(0o755)
    monkeypatch.setenv(INTERPRETER, str(path))


def folder_of(parent: Path) -> Path:
    folder = parent / "3"
    folder.mkdir(exist_ok=True)
    (folder / GRAPH).touch()
    return folder


def read(folder: Path, **changes: Any) -> Found:
    given = {"source": "tfhub", "path": str(folder), "image_size": SIDE, **changes}
    return savedmodel.read(TfhubWeights(**given), folder)


def write(pretrained: Path, found: Found) -> Path:
    """What fetch leaves, with the folder itself in the place of its copy."""
    pretrained.mkdir()
    artifacts.write_json(pretrained / "architecture.json", found.description)
    for path in found.files:
        (pretrained / path.name).symlink_to(path.resolve())
    return pretrained


def computed(pretrained: Path, batches: Iterable[Batch]) -> NDArray[np.float32]:
    extractor = Extractor(pretrained)
    return np.concatenate([np.empty((0, extractor.width), np.float32), *features(extractor, batches)])


def test_what_it_takes_and_gives_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    found = read(folder_of(tmp_path))
    assert found.tensors == {}
    assert found.files == [tmp_path / "3"]
    assert found.description == {
        "library": "savedmodel", "name": "3", "folder": "3", "image_size": SIDE, "mean": [0, 0, 0],
        "std": [1, 1, 1], "kind": "image", "signature": "s", "input": "i", "output": "o", "features": 6,
    }  # fmt: skip
    assert found.provenance == {"tensorflow": "0"}


def test_features_of_images_come_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    pretrained = write(tmp_path / "pretrained", read(folder_of(tmp_path)))
    found = computed(pretrained, iter([IMAGES[:2], IMAGES[2:]]))
    np.testing.assert_allclose(found, np.tile(IMAGES.mean(axis=(1, 2)), 2), rtol=1e-5)
    assert found.dtype == np.float32
    assert computed(pretrained, []).shape == (0, 6)


def test_fetched_it_lies_whole_beside_its_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    folder = folder_of(tmp_path)
    (folder / "variables").mkdir()
    (folder / "variables/variables.index").write_text("v")
    given: dict[str, Any] = {"sha256": fingerprint(folder), "image_size": SIDE, "licence": "ours"}
    reference = TfhubWeights(source="tfhub", path="3", **given)
    artifacts.write_json(artifacts.pretrained_settings_file("tf"), reference.model_dump(mode="json"))
    fetch("tf")
    pretrained = artifacts.pretrained_dir("tf")
    assert fingerprint(pretrained / "3") == fingerprint(folder)
    told = json.loads((pretrained / "provenance.json").read_text())
    assert (told["source"], told["sha256"], told["tensorflow"]) == ("tfhub", fingerprint(folder), "0")
    assert computed(pretrained, [IMAGES]).shape == (5, 6)


def test_the_process_is_kept_until_it_fails_and_then_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tells = "import os; rows[:] = os.getpid(); assert len(rows) < 5, 'five'"
    stand_in(tmp_path, monkeypatch, extra=tells)
    extractor = Extractor(write(tmp_path / "pretrained", read(folder_of(tmp_path))))
    first, second = (int(extractor(IMAGES[:2])[0, 0]) for _ in range(2))
    assert first == second
    with pytest.raises(WeightsError, match=r"the process of TensorFlow ended .*five"):
        extractor(IMAGES)
    third = int(extractor(IMAGES[:2])[0, 0])
    assert third != first
    os.kill(third, 0)
    del extractor
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(third, 0)


def test_threads_get_each_its_own_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    extractor = Extractor(write(tmp_path / "pretrained", read(folder_of(tmp_path))))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda at: extractor(IMAGES[at : at + 1]), [0, 1, 2, 3, 4] * 4))
    expected = np.tile(IMAGES.mean(axis=(1, 2)), 2)[[0, 1, 2, 3, 4] * 4]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5)
    extractor.close()


def test_features_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, kind="text")
    pretrained = write(tmp_path / "pretrained", read(folder_of(tmp_path)))
    found = computed(pretrained, [["a\nb", "naïve\0"], [""]])
    assert found[:, 0].tolist() == [3, 6, 0]
    with pytest.raises(WeightsError, match="3: takes texts, not images"):
        computed(pretrained, [IMAGES])


def test_inputs_that_do_not_fit_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    pretrained = write(tmp_path / "pretrained", read(folder_of(tmp_path)))
    with pytest.raises(
        WeightsError, match="takes images of 16 x 16 pixels, these are 8 x 16: set the experiment's"
    ):
        computed(pretrained, [IMAGES[:, :8]])
    with pytest.raises(WeightsError, match="3: takes images, not texts"):
        computed(pretrained, [["a"]])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("sys.exit('out of memory')", r"3: the process of TensorFlow ended \(exit code 1: out of memory\)"),
        ("rows = rows[:1]", r"3: gives \(1, 6\) for 5 samples"),
        ("rows[2, 1] = np.nan", "3: the features of sample 2 are not finite numbers"),
    ],
)
def test_a_process_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str, message: str
) -> None:
    stand_in(tmp_path, monkeypatch, extra=extra)
    pretrained = write(tmp_path / "pretrained", read(folder_of(tmp_path)))
    with pytest.raises(WeightsError, match=message):
        computed(pretrained, [IMAGES])


def test_an_interpreter_that_cannot_run_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path)
    monkeypatch.setenv(INTERPRETER, str(tmp_path / "none"))
    with pytest.raises(
        WeightsError, match=r"HEADSTART_TENSORFLOW_PYTHON is '.*none', which cannot be run: No such"
    ):
        read(folder)
    if importlib.util.find_spec("tensorflow") is None:
        monkeypatch.delenv(INTERPRETER)
        with pytest.raises(
            WeightsError, match="TensorFlow is not installed; run `pip install tensorflow-cpu`, or"
        ):
            read(folder)
    (folder / GRAPH).unlink()
    with pytest.raises(WeightsError, match=r"3: has no saved_model\.pb: it is no SavedModel"):
        read(folder)


# -------------------------------------------------------------------------------------------- with TensorFlow

# Small models of the kinds that the hub has, and some that are of no use; saved below the working directory.
MAKE = """
import tensorflow as tf

class Images(tf.Module):
    def __init__(self):
        self.weight = tf.Variable(tf.reshape(tf.range(12.0), (3, 4)))

    @tf.function(input_signature=[tf.TensorSpec((None, SIDE, SIDE, 3), tf.float32, name="images")])
    def run(self, images):
        return {"default": tf.reduce_mean(images, (1, 2)) @ self.weight, "maps": images}

class Texts(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="texts")])
    def run(self, texts):
        length = tf.cast(tf.strings.length(texts, unit="UTF8_CHAR"), tf.float32)
        print("this must not stand among the answers")
        return {"embeddings": tf.stack([length, -length], axis=1)}

class Two(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None,), tf.int32)])
    def run(self, ids, mask):
        return {"default": tf.cast(tf.stack([ids, mask], 1), tf.float32)}

class Reads(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, SIDE, SIDE, 3), tf.float32)])
    def run(self, images):
        length = tf.strings.length(tf.io.read_file("/etc/hosts"))
        return {"default": tf.zeros((1, 2)) + tf.cast(length, tf.float32)}

class Maps(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])
    def run(self, images):
        return {"maps": images}

for made in (Images(), Texts(), Two(), Reads(), Maps()):
    tf.saved_model.save(made, type(made).__name__.lower(), signatures={"serving_default": made.run})
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of SavedModels, made by TensorFlow in a process of its own."""
    interpreter = os.environ.get(INTERPRETER)
    if interpreter is None and importlib.util.find_spec("tensorflow") is None:
        pytest.skip(f"TensorFlow is not installed, and {INTERPRETER} names no interpreter that has it")
    folder = tmp_path_factory.mktemp("saved")
    subprocess.run(
        [interpreter or sys.executable, "-c", MAKE.replace("SIDE", str(SIDE))],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.mark.slow
def test_tensorflow_gives_the_features_of_real_models(saved: Path, tmp_path: Path) -> None:
    found = read(saved / "images")
    told = {
        "kind": "image",
        "signature": "serving_default",
        "input": "images",
        "output": "default",
        "features": 4,
    }
    assert told.items() <= found.description.items()
    assert (found.provenance["tensors"], found.provenance["parameters"]) == (1, 12)
    pretrained = write(tmp_path / "images", found)
    found_features = computed(pretrained, [IMAGES[:3], IMAGES[3:]])
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(found_features, IMAGES.mean(axis=(1, 2)) @ weight, rtol=1e-4)
    assert (found_features == computed(pretrained, [IMAGES])).all()

    found = read(saved / "texts")
    assert {"kind": "text", "output": "embeddings", "features": 2}.items() <= found.description.items()
    found_features = computed(write(tmp_path / "texts", found), [["naïve", "a b"], [""]])
    assert found_features.tolist() == [[5, -5], [3, -3], [0, 0]]
    assert json.dumps(found.description)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("images", 32, "images: takes images of 16 x 16 pixels, params.yaml says 32: set `image_size: 16`"),
        ("two", SIDE, r"two: takes ids int32 \(None,\), mask int32 \(None,\), not one input"),
        ("reads", SIDE, "reads: its graph has the operation ReadFile, which reaches beyond the graph"),
        ("maps", SIDE, r"maps: gives no features, one row for each sample, but maps \(1, 16, 16, 3\)"),
    ],
)
def test_models_that_are_of_no_use_are_told(saved: Path, name: str, size: int, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        read(saved / name, image_size=size)


@pytest.mark.slow
def test_a_folder_that_is_none_is_told(saved: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / GRAPH).write_bytes(b"no graph")
    with pytest.raises(WeightsError, match=r"^3: "):
        read(folder)

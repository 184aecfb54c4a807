"""A SavedModel of TensorFlow as a frozen extractor of features; only a head upon them is trained.

TensorFlow runs in a process of its own, so that it never shares one with torch; it may even be installed
elsewhere: HEADSTART_TENSORFLOW_PYTHON names an interpreter that has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from steps.artifacts import read_json
from steps.errors import WeightsError
from steps.references import TfhubWeights
from steps.sources import Found

INTERPRETER = "HEADSTART_TENSORFLOW_PYTHON"
GRAPH = "saved_model.pb"
PROCESS = Path(__file__).with_name("savedmodel_process.py")
# Less chatter, and sums in an order that does not depend on the library's version of oneDNN.
_SETTINGS = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": "-1"}

# A batch: images, shape (batch, side, side, 3), float32 in [0, 1]; or texts.
Batch = NDArray[np.float32] | Sequence[str]


def read(reference: TfhubWeights, folder: Path) -> Found:
    """Load a SavedModel once, to learn what it takes and gives.

    Args:
        reference: says the size of its images.
        folder: with `saved_model.pb`; it is copied as a whole beside architecture.json.

    Returns:
        No tensors; a description with `folder` (its name), `kind` ("image" or "text"), `features` (how many),
        `signature`, `input`, `output`, `image_size`; and `mean` and `std` that leave pixels in [0, 1].

    Raises:
        WeightsError: it is no SavedModel, TensorFlow is not there, or it gives no features.
    """
    if not (folder / GRAPH).is_file():
        raise WeightsError(f"{folder.name}: has no {GRAPH}: it is no SavedModel of TensorFlow")
    with _process(folder.name) as ask:
        found = ask(_opening(folder, reference.image_size, None))
    version = found.pop("tensorflow")
    description = {
        "library": "savedmodel",
        "name": reference.handle or folder.name,
        "folder": folder.name,
        "image_size": reference.image_size,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        **found,
    }
    return Found({}, description, [folder], {"tensorflow": version})


def features(pretrained: Path, batches: Iterable[Batch]) -> NDArray[np.float32]:
    """Features of samples, batch by batch, in their order.

    Args:
        pretrained: the folder that fetch wrote: architecture.json, and the SavedModel.
        batches: of images, or of texts, as the SavedModel takes them.

    Returns:
        Shape (samples, features), all numbers finite.

    Raises:
        WeightsError: the inputs do not fit, TensorFlow is not there, or it fails.
    """
    description = read_json(pretrained / "architecture.json", "python -m steps.fetch")
    size, name = int(description["image_size"]), str(description["name"])
    parts = [np.empty((0, int(description["features"])), np.float32)]
    with _process(name) as ask, tempfile.TemporaryDirectory(prefix="headstart-") as between:
        ask(_opening(pretrained / description["folder"], size, description["signature"]))
        for batch in batches:
            outputs = Path(between) / "outputs.npy"
            ask(_running(batch, description, Path(between) / "inputs.npy") | {"outputs": str(outputs)})
            parts.append(np.load(outputs, allow_pickle=False))
            if parts[-1].shape != (len(batch), int(description["features"])):
                raise WeightsError(
                    f"{name}: gives {parts[-1].shape} for {len(batch)} samples, at first it gave "
                    f"{description['features']} features each"
                )
    found = np.concatenate(parts)
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
        raise WeightsError(f"{name}: the features of sample {row} are not finite numbers")
    return found


def _opening(folder: Path, image_size: int, signature: str | None) -> dict[str, Any]:
    return {
        "do": "open",
        "folder": str(folder.resolve()),
        "image_size": image_size,
        "signature": signature,
    }


def _running(batch: Batch, description: dict[str, Any], path: Path) -> dict[str, Any]:
    """The request for a batch; images go through a file."""
    name, side = description["name"], description["image_size"]
    if description["kind"] == "text":
        if isinstance(batch, np.ndarray):
            raise WeightsError(f"{name}: takes texts, not images; choose a task on texts")
        return {"do": "run", "texts": list(batch)}
    if not isinstance(batch, np.ndarray):
        raise WeightsError(f"{name}: takes images, not texts; choose a task on images")
    if batch.shape[1:] != (side, side, 3):
        raise WeightsError(
            f"{name}: takes images of {side} x {side} pixels, these are {batch.shape[1]} x {batch.shape[2]}: "
            f"set the experiment's `model.image_size: {side}`"
        )
    np.save(path, batch.astype(np.float32, copy=False), allow_pickle=False)
    return {"do": "run", "inputs": str(path)}


# -------------------------------------------------------------------------------------------------- process


class _Ask:
    """Sends requests, and gives the answers.

    Args:
        child: the process.
        log: what it writes to its standard error.
        what: whose SavedModel it is, for messages.
    """

    def __init__(self, child: subprocess.Popen[str], log: IO[str], what: str) -> None:
        self.child, self.log, self.what = child, log, what

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask.

        Raises:
            WeightsError: TensorFlow is not there, the process died, or it answers with an error.
        """
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        try:
            self.child.stdin.write(json.dumps(request) + "\n")
            self.child.stdin.flush()
            line = self.child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WeightsError(f"{self.what}: the process of TensorFlow ended ({self._end()})")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("missing"):
            raise WeightsError(
                f"{self.what}: TensorFlow is not installed; run `pip install tensorflow-cpu`, or name an "
                f"interpreter that has it in {INTERPRETER}"
            )
        if "error" in answer:
            raise WeightsError(f"{self.what}: {answer['error']}")
        return answer

    def _end(self) -> str:
        code = self.child.wait()
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        return f"exit code {code}" + (f": {lines[-1][:300]}" if lines else "")


@contextmanager
def _process(what: str) -> Iterator[_Ask]:
    """A process that has TensorFlow; it ends with the block."""
    interpreter = os.environ.get(INTERPRETER) or sys.executable
    # Isolated: not with our folder on its path, whose modules have names that libraries have too.
    command = [interpreter, "-I", str(PROCESS)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=os.environ | _SETTINGS,
            )
        except OSError as error:
            raise WeightsError(
                f"{INTERPRETER} is {interpreter!r}, which cannot be run: {error.strerror}"
            ) from None
        try:
            yield _Ask(child, log, what)
        finally:
            child.kill()
            child.communicate()

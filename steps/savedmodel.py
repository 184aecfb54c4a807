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
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from steps import savedmodel_process
from steps.artifacts import read_json
from steps.errors import WeightsError

INTERPRETER = "HEADSTART_TENSORFLOW_PYTHON"
GRAPH = "saved_model.pb"
PROCESS = Path(savedmodel_process.__file__)
# Less chatter, and sums in an order that does not depend on the library's version of oneDNN.
_SETTINGS = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": "-1"}

# A batch: images, shape (batch, side, side, 3), float32 in [0, 1]; or texts.
Batch = NDArray[np.float32] | Sequence[str]


class Extractor:
    """A SavedModel, and the process that runs it.

    The process is started for the first batch and kept: loading TensorFlow takes seconds. After a failure it
    is started anew for the next batch. It ends with `close`, with the object, and with the interpreter,
    however that ends: it reads its requests from a pipe, which ends then.

    Args:
        pretrained: the folder that fetch wrote: architecture.json, and the SavedModel.
    """

    def __init__(self, pretrained: Path) -> None:
        self.pretrained = pretrained
        self.description: dict[str, Any] = read_json(
            pretrained / "architecture.json", "python -m steps.fetch"
        )
        self.width = int(self.description["features"])
        self._lock, self._held = Lock(), ExitStack()
        self._open: tuple[Ask, Path] | None = None
        weakref.finalize(self, self._held.close)

    def __call__(self, batch: Batch) -> NDArray[np.float32]:
        """The features of a batch; of several threads that ask, one at a time gets them.

        Returns:
            Shape (batch, features).

        Raises:
            WeightsError: the inputs do not fit, TensorFlow is not there, or it fails.
        """
        name = str(self.description["name"])
        with self._lock:
            try:
                ask, between = self._open or self._started(name)
                outputs = between / "outputs.npy"
                request = _running(batch, self.description, between / "inputs.npy")
                ask(request | {"outputs": str(outputs)})
                found: NDArray[np.float32] = np.load(outputs, allow_pickle=False)
            except BaseException:  # what is left in the pipe would be taken for the next answer
                self.close()
                raise
        if found.shape != (len(batch), self.width):
            raise WeightsError(
                f"{name}: gives {found.shape} for {len(batch)} samples, at first it gave "
                f"{self.width} features each"
            )
        return found

    def close(self) -> None:
        """End the process."""
        self._open = None
        self._held.close()

    def _started(self, name: str) -> tuple[Ask, Path]:
        ask = self._held.enter_context(process(name))
        between = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix="headstart-")))
        folder, size = self.pretrained / self.description["folder"], int(self.description["image_size"])
        ask(opening(folder, size, self.description["signature"]))
        self._open = ask, between
        return self._open


def features(extractor: Extractor, batches: Iterable[Batch]) -> Iterator[NDArray[np.float32]]:
    """Features of samples, batch by batch, in their order.

    Args:
        extractor: of the SavedModel.
        batches: of images, or of texts, as the SavedModel takes them.

    Yields:
        Of each batch shape (batch, features), all numbers finite.

    Raises:
        WeightsError: as the extractor does, or features are not finite.
    """
    done = 0
    for batch in batches:
        found = extractor(batch)
        finite = np.isfinite(found).all(axis=1)
        if not finite.all():
            row = done + int(np.argmin(finite))
            name = extractor.description["name"]
            raise WeightsError(f"{name}: the features of sample {row} are not finite numbers")
        done += len(batch)
        yield found


def opening(folder: Path, image_size: int, signature: str | None) -> dict[str, Any]:
    """The request to load a SavedModel.

    Args:
        folder: with `saved_model.pb`.
        image_size: side of the images, in pixels.
        signature: its name; None to choose.
    """
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


class Ask:
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
def process(what: str) -> Iterator[Ask]:
    """A process that has TensorFlow, to be asked as `savedmodel_process` tells; it ends with the block.

    Args:
        what: whose SavedModel it is, for messages.

    Raises:
        WeightsError: it cannot be started.
    """
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
            yield Ask(child, log, what)
        finally:
            child.kill()
            child.communicate()

"""The other end of `savedmodel`: a program that runs a SavedModel with TensorFlow, and nothing else.

It is started by its path, and by any interpreter that has TensorFlow and numpy, so it imports nothing of
ours. Requests come as one line of JSON each on standard input, answers go as one line each to standard
output; images and features are handed over as .npy files.

    {"do": "open", "folder": ..., "image_size": ..., "signature": null or a name}
        {"kind": "image" or "text", "signature": ..., "input": ..., "output": ..., "features": ...,
         "tensorflow": its version, "tensors": how many variables, "parameters": how many numbers in them}
        and of texts "tensorflow_text", its version, where that library is installed
    {"do": "run", "inputs": a file, or "texts": a list, "outputs": a file}
        {"rows": ...}

What goes wrong is answered with {"error": ..., "missing": TensorFlow is not there}.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

# TensorFlow has no types that we could check against.
_Any = Any

# Of several signatures and outputs the first is taken.
SIGNATURES = ("serving_default", "default", "image_feature_vector")
OUTPUTS = ("default", "feature_vector", "pooled_output", "outputs", "output_0")
# Operations with which a graph reaches beyond its inputs and outputs.
FORBIDDEN = ("ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc")


class RefusedError(Exception):
    """The SavedModel is of no use here; the message says why."""


class Opened:
    """A SavedModel that was loaded and tried.

    Args:
        folder: with `saved_model.pb`.
        image_size: side of an image that it is tried with, in pixels.
        signature: its name; None to choose.
    """

    def __init__(self, folder: Path, image_size: int, signature: str | None) -> None:
        tf = _tensorflow()
        with contextlib.suppress(Exception):  # operations of text models, where they are installed
            importlib.import_module("tensorflow_text")
        tf.config.experimental.enable_op_determinism()
        tf.random.set_seed(0)
        _refuse_operations(folder)
        # Modules of the first TensorFlow Hub carry a mark, and tags that are empty.
        old = (folder / "tfhub_module.pb").exists()
        self.loaded = tf.saved_model.load(str(folder), tags=[] if old else None)
        self.signature = _choose(list(self.loaded.signatures), SIGNATURES, signature, "signatures")
        self.function = self.loaded.signatures[self.signature]
        self.kind, self.input = _input(self.function, image_size)
        tried: _Any = tf.zeros((1, image_size, image_size, 3)) if self.kind == "image" else tf.constant(["a"])
        found = self.function(**{self.input: tried})
        flat = [name for name, one in found.items() if one.dtype.is_floating and one.shape.rank == 2]
        if not flat:
            shapes = ", ".join(f"{name} {tuple(one.shape)}" for name, one in found.items())
            raise RefusedError(f"gives no features, one row for each sample, but {shapes}")
        self.output = _choose(flat, OUTPUTS, None, "outputs")
        self.features = int(found[self.output].shape[1])
        self.versions = {"tensorflow": str(tf.__version__)}
        if self.kind == "text" and "tensorflow_text" in sys.modules:
            self.versions["tensorflow_text"] = str(sys.modules["tensorflow_text"].__version__)

    def described(self) -> dict[str, Any]:
        """What it takes and gives."""
        return {
            "kind": self.kind,
            "signature": self.signature,
            "input": self.input,
            "output": self.output,
            "features": self.features,
            "tensors": len(self.function.variables),
            "parameters": sum(int(one.shape.num_elements()) for one in self.function.variables),
            **self.versions,
        }

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Features of a batch, written to a file."""
        import numpy as np

        tf, texts = _tensorflow(), request.get("texts")
        batch = np.load(request["inputs"], allow_pickle=False) if texts is None else texts
        found = self.function(**{self.input: tf.constant(batch)})[self.output]
        np.save(request["outputs"], found.numpy().astype(np.float32), allow_pickle=False)
        return {"rows": int(found.shape[0])}


def _tensorflow() -> _Any:
    return importlib.import_module("tensorflow")


def _refuse_operations(folder: Path) -> None:
    """A graph is a program; one that reads or writes files, or runs Python, is not loaded."""
    message = importlib.import_module("tensorflow.core.protobuf.saved_model_pb2").SavedModel()
    message.ParseFromString((folder / "saved_model.pb").read_bytes())
    for graph in message.meta_graphs:
        functions = graph.graph_def.library.function
        nodes = [*graph.graph_def.node, *(node for one in functions for node in one.node_def)]
        for node in nodes:
            if node.op in FORBIDDEN:
                raise RefusedError(f"its graph has the operation {node.op}, which reaches beyond the graph")


def _choose(names: list[str], liked: tuple[str, ...], asked: str | None, what: str) -> str:
    if asked is not None and asked in names:
        return asked
    for name in liked:
        if name in names and asked is None:
            return name
    if len(names) == 1 and asked is None:
        return names[0]
    raise RefusedError(
        f"has the {what} {', '.join(sorted(names)) or '(none)'}: which one is meant is not clear"
    )


def _input(function: _Any, image_size: int) -> tuple[str, str]:
    """Of the signature's one input, what it is and its name."""
    inputs = function.structured_input_signature[1]
    shapes = {name: f"{name} {one.dtype.name} {one.shape}" for name, one in inputs.items()}
    if len(inputs) != 1:
        raise RefusedError(f"takes {', '.join(sorted(shapes.values())) or 'nothing'}, not one input")
    name, spec = next(iter(inputs.items()))
    shape = spec.shape.as_list() if spec.shape.rank is not None else None
    if spec.dtype.name == "string" and (shape is None or len(shape) == 1):
        return "text", name
    if spec.dtype.name != "float32" or (shape is not None and (len(shape) != 4 or shape[3] not in (3, None))):
        raise RefusedError(
            f"takes {shapes[name]}; an image is float32 (batch, height, width, 3), a text is string (batch,)"
        )
    sides = [image_size, image_size] if shape is None else [side or image_size for side in shape[1:3]]
    if sides != [image_size, image_size]:
        raise RefusedError(
            f"takes images of {sides[0]} x {sides[1]} pixels, params.yaml says {image_size}: "
            f"set `image_size: {sides[0]}`"
        )
    return "image", name


def main() -> None:
    """Answer until there is nothing more to read."""
    # What a library prints must not stand among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    opened: Opened | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                opened = Opened(Path(request["folder"]), int(request["image_size"]), request["signature"])
                answer = opened.described()
            else:
                assert opened is not None, "run before open"
                answer = opened.run(request)
        except ModuleNotFoundError as error:
            answer = {"error": str(error), "missing": error.name in ("tensorflow", "numpy")}
        except Exception as error:  # whatever TensorFlow makes of a model that it cannot read
            kind = "" if isinstance(error, RefusedError) else f"{type(error).__name__}: "
            answer = {"error": kind + " ".join(str(error).split())[:300], "missing": False}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

"""Checkpoints of a training under way: what it needs to go on, to the bit, after it was killed.

A run has a folder of its own with one folder for each checkpoint, `step-<8 digits>/`:

* `state.safetensors`: the caller's tensors, and the states of torch's random generators;
* `state.json`: format, step, the run's key, the caller's values, the states of Python's and NumPy's
  generators and the sha256 of the tensors, all under a sha256 of its own.

Nothing is pickled: a checkpoint can hold wrong numbers, but no code.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from steps import artifacts
from steps.errors import TrainingError
from steps.network import save_tensors

TENSORS, STATE = "state.safetensors", "state.json"
FORMAT = 1
KEPT = 2
# Saving may take a twentieth of the time: after a save of a second, the next is 20 seconds off at least.
SAVE_COSTS_AT_MOST = 1 / 20
# What torch's generators are called among the tensors; a caller's names may not begin so.
RNG = "rng/"


class _DamagedError(Exception):
    """A checkpoint cannot be used; the message is the reason. Never leaves this module."""


class Checkpoints:
    """The checkpoints of one run; the newest two are kept.

    Args:
        folder: the run's own; made when first needed.
        key: JSON values, all that the run's result depends on. A checkpoint of another key is refused.
        every_seconds: how often `due` says so; 0: always.
        say: takes a line for the user.

    Attributes:
        last: the checkpoint that was saved or loaded last, None before.
    """

    def __init__(
        self, folder: Path, key: dict[str, Any], every_seconds: float, say: Callable[[str], None]
    ) -> None:
        self.folder, self.key, self.every_seconds, self.say = folder, key, every_seconds, say
        self.last: Path | None = None
        self._saved_at, self._took = monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time to save: often enough, but never at a cost of more than a twentieth."""
        wait = max(self.every_seconds, self._took / SAVE_COSTS_AT_MOST)
        return self.every_seconds == 0 or monotonic() - self._saved_at >= wait

    def save(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Write a checkpoint, whole or not at all, and remove all but the newest two.

        Neither the tensors nor a random generator are changed.

        Args:
            step: optimizer steps taken so far.
            tensors: of any shape, device and memory layout; they come back contiguous, on the CPU.
            values: JSON values; they come back with tuples as lists and with all keys as texts.

        Raises:
            DiskFullError: the disk is full; the checkpoints before are untouched.
        """
        assert not [name for name in tensors if name.startswith(RNG)], f"{RNG} is for the generators"
        started = monotonic()
        target = self.folder / f"step-{step:08d}"
        with artifacts.new_folder(target) as folder:
            _write(folder, tensors, {"format": FORMAT, "step": step, "key": self.key, "values": values})
        _sync(self.folder)
        self.last = target
        for folder in self._older_than_kept(step):
            remove(folder)
        self._saved_at = monotonic()
        self._took = self._saved_at - started

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Give tensors and values of the newest sound checkpoint, and set all random generators as then.

        To be called once, before the first step and after all else that draws random numbers. A checkpoint
        that is damaged is told of and removed.

        Raises:
            TrainingError: the folder holds a checkpoint of another run.
        """
        self._remove_leftovers()
        damaged: dict[Path, str] = {}
        found = self._newest_sound(damaged)
        going_on = (
            f"going on from step {found[1]['step']}" if found else "no sound one is left: starting anew"
        )
        for folder, reason in damaged.items():
            self.say(f"{folder} is damaged ({reason}); {going_on}")
            remove(folder)
        self._saved_at = monotonic()
        if found is None:
            return None
        tensors, state = found
        _set_generators({name: tensors.pop(name) for name in list(tensors) if name.startswith(RNG)}, state)
        return tensors, state["values"]

    def clear(self) -> None:
        """Remove the folder with all checkpoints."""
        remove(self.folder)
        self.last = None

    def _newest_sound(self, damaged: dict[Path, str]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state of the newest sound checkpoint; notes why newer ones are not sound."""
        for _, folder in sorted(self._found(), reverse=True):
            try:
                tensors, state = _read(folder)
            except _DamagedError as error:
                damaged[folder] = str(error)
                continue
            self._check_key(state["key"])
            self.last = folder
            return tensors, state
        return None

    def _check_key(self, theirs: dict[str, Any]) -> None:
        difference = first_difference(theirs, json.loads(json.dumps(self.key)))
        if difference is None:
            return
        run = [f"{name} {value}" for name, value in theirs.items() if _is_short(value)][:3]
        raise TrainingError(
            f"{self.folder} holds a checkpoint of another run ({', '.join([*run, difference])}): remove it"
        )

    def _found(self) -> Iterator[tuple[int, Path]]:
        for folder in self.folder.glob("step-*"):
            if re.fullmatch(r"step-\d{8,}", folder.name):
                yield int(folder.name.removeprefix("step-")), folder

    def _older_than_kept(self, step: int) -> list[Path]:
        """All checkpoints but this step's and those before it which are kept; later ones were given up."""
        steps = dict(self._found())
        kept = sorted(found for found in steps if found <= step)[-KEPT:]
        return [folder for found, folder in steps.items() if found not in kept]

    def _remove_leftovers(self) -> None:
        """Remove what killed processes left half-written or half-removed."""
        patterns = (".step-*.partial-*", ".step-*.old-*")
        stale = [path for pattern in patterns for path in self.folder.glob(pattern)]
        for path in [*stale, *self.folder.parent.glob(f".{self.folder.name}.old-*")]:
            shutil.rmtree(path, ignore_errors=True)


@cache
def code_sha256() -> str:
    """SHA-256 over the names and contents of `steps.trainable` and all files of `steps` that it imports.

    A part of a run's key: an edited engine must not go on from the state of an older one, and an edited
    report has nothing to do with it. To be asked for at the start: it is taken once in a process, whose code
    stays what it was whatever is edited meanwhile.
    """
    root = Path(__file__).parent
    files = imported(root, root / "trainable.py")
    return artifacts.sha256_json(
        {path.relative_to(root).as_posix(): artifacts.sha256_file(path) for path in files}
    )


def imported(root: Path, start: Path) -> set[Path]:
    """The file and all files below `root`, the folder of the package `steps`, that it leads to.

    Imports inside of functions count, so nothing depends on what a process happened to load.
    """
    found: set[Path] = set()
    open_ = [start]
    while open_:
        path = open_.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [node.module, *(f"{node.module}.{name}" for name in names)]
            for name in names:
                open_ += _files(root, name)
    return found


def _files(root: Path, name: str) -> list[Path]:
    """The file of a module of `steps`, and those of the packages it is in; none for other names."""
    package, *parts = name.split(".")
    if package != root.name:
        return []
    places = [root.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    files = [place / "__init__.py" for place in places] + [places[-1].with_suffix(".py")]
    return [path for path in files if path.is_file()]


def first_difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """Name the first entry in which two JSON values differ, and both its values; None: they are equal.

    1, 1.0 and true are three different values.
    """
    there, here = _entries(theirs), _entries(ours)
    for name in [*there, *here]:
        if there.get(name) != here.get(name):
            texts = [entries.get(name, "nothing") for entries in (there, here)]
            before, now = (text if len(text) <= 60 else f"{text[:57]}..." for text in texts)
            return f"its {name} is {before}, not {now}"
    return None


def _entries(value: Any, name: str = "") -> dict[str, str]:  # noqa: ANN401 - any JSON value
    """Every entry that is no dict itself, as JSON text by its dotted name."""
    if not isinstance(value, dict) or not value:
        return {name: json.dumps(value)}
    entries: dict[str, str] = {}
    for part, below in value.items():
        entries |= _entries(below, f"{name}.{part}" if name else part)
    return entries


def flatten_optimizer(optimizer: torch.optim.AdamW) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What AdamW keeps for each parameter, as `<index>.<name>`, and its groups' settings.

    A parameter that has had no gradient yet has no state, and gets none when it is restored.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors = {
        f"{index}.{name}": tensor
        for index, parameter in enumerate(parameters)
        for name, tensor in optimizer.state.get(parameter, {}).items()
    }
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        | {"shapes": [list(parameter.shape) for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    return tensors, {"groups": groups}


def restore_optimizer(
    optimizer: torch.optim.AdamW, tensors: dict[str, Tensor], values: dict[str, Any]
) -> None:
    """Put back what `flatten_optimizer` gave, into an optimizer of the same groups and shapes.

    `Optimizer.load_state_dict` would do nearly the same, but it keeps the layout of the saved tensors, and
    the fused kernels walk through parameter and state as they lie in memory: beside a parameter in
    channels_last, a contiguous state is read in the wrong order, without an error. Here the state gets the
    parameter's own layout, as AdamW's first step would give it.
    """
    assert len(values["groups"]) == len(optimizer.param_groups), "another number of groups"
    for group, saved in zip(optimizer.param_groups, values["groups"], strict=True):
        assert saved["shapes"] == [list(parameter.shape) for parameter in group["params"]], "other parameters"
        assert set(group) - {"params"} == set(saved) - {"shapes"}, "other settings"
        for name in set(group) - {"params"}:
            group[name] = tuple(saved[name]) if isinstance(group[name], tuple) else saved[name]
    optimizer.state.clear()
    places = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        index, part = name.split(".", 1)
        parameter, group = places[int(index)]
        optimizer.state[parameter][part] = _as_adamw_has_it(part, tensor, parameter, group)


def _as_adamw_has_it(part: str, saved: Tensor, parameter: Tensor, group: dict[str, Any]) -> Tensor:
    """The saved tensor on the device and in the layout that AdamW would have given it."""
    if part == "step":
        return saved.clone().to(parameter.device if group["fused"] or group["capturable"] else "cpu")
    assert saved.shape == parameter.shape, (part, saved.shape, parameter.shape)
    return torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False).copy_(saved)


def _write(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    save_tensors(_storable({**tensors, **_torch_generators()}), folder / TENSORS)
    state = {
        **state,
        "python": random.getstate(),
        "numpy": _numpy_generator(),
        "tensors_sha256": artifacts.sha256_file(folder / TENSORS),
    }
    text = json.dumps(state)
    # Not sorted: the order of the caller's values, as of the columns of a table, is theirs.
    (folder / STATE).write_text(json.dumps({"sha256": _sha256(text), "state": json.loads(text)}), "utf-8")
    for path in (folder / TENSORS, folder / STATE, folder):
        _sync(path)


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of one checkpoint.

    Raises:
        _DamagedError: a part is missing or not what was written.
    """
    try:
        state = _checked_state(json.loads((folder / STATE).read_bytes()))
        if artifacts.sha256_file(folder / TENSORS) != state["tensors_sha256"]:
            raise _DamagedError(f"sha256 of {TENSORS} differs")
        # Copied: load_file maps the file, and tensors at odd addresses may be summed in another order.
        return {name: tensor.clone() for name, tensor in load_file(folder / TENSORS).items()}, state
    except FileNotFoundError as error:
        raise _DamagedError(f"{Path(error.filename).name} is missing") from None
    except (OSError, SafetensorError) as error:
        raise _DamagedError(f"it cannot be read: {error}") from None
    except ValueError:
        raise _DamagedError(f"{STATE} is not valid JSON") from None


def _checked_state(found: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    if not isinstance(found, dict) or set(found) != {"sha256", "state"}:
        raise _DamagedError(f"{STATE} is not a checkpoint's")
    if _sha256(json.dumps(found["state"])) != found["sha256"]:
        raise _DamagedError(f"sha256 of {STATE} differs")
    state: dict[str, Any] = found["state"]
    if state["format"] != FORMAT:
        raise _DamagedError(f"its format is {state['format']}, this is format {FORMAT}")
    return state


def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, none in memory of another: safetensors refuses shared memory."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().to("cpu").contiguous()
        if flat.untyped_storage().data_ptr() in seen:
            flat = flat.clone()
        seen.add(flat.untyped_storage().data_ptr())
        stored[name] = flat
    return stored


def _torch_generators() -> dict[str, Tensor]:
    """States of torch's own generators; a GPU that was never used has drawn no numbers."""
    states = {f"{RNG}cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states |= {f"{RNG}cuda:{device}": one for device, one in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        states[f"{RNG}mps"] = torch.mps.get_rng_state()
    return states


def _numpy_generator() -> dict[str, Any]:
    state: dict[str, Any] = np.random.get_state(legacy=False)
    return state | {"state": state["state"] | {"key": state["state"]["key"].tolist()}}


def _set_generators(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    inner = state["numpy"]["state"]
    key = np.array(inner["key"], dtype=np.uint32)
    np.random.set_state(state["numpy"] | {"state": inner | {"key": key}})
    for name, one in tensors.items():
        device = torch.device(name.removeprefix(RNG))
        if device.type == "cpu":
            torch.set_rng_state(one)
        elif device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
            torch.cuda.set_rng_state(one, device)
        elif device.type == "mps" and torch.backends.mps.is_available():
            torch.mps.set_rng_state(one)


def _sync(path: Path) -> None:
    """Have the system put a file or folder on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(folder: Path) -> None:
    """Remove a folder of states; a process killed meanwhile leaves no half of it under its own name."""
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    for stale in folder.parent.glob(f".{folder.name}.old-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_short(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    return isinstance(value, int | float | str) and len(str(value)) <= 40

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from steps import network, resume
from steps.errors import DiskFullError, TrainingError
from steps.resume import Checkpoints

KEY: dict[str, Any] = {
    "experiment": "digits",
    "arm": "full",
    "seed": 2,
    "settings": {"epochs": 3, "rates": (0.1, 0.01)},
    "data_sha256": "ab" * 32,
}


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(resume, "monotonic", clock)
    return clock


class Run:
    """Checkpoints of one run, and what was said."""

    def __init__(self, folder: Path, key: dict[str, Any] = KEY) -> None:
        self.folder, self.key = folder, key
        self.said: list[str] = []

    def open(self) -> Checkpoints:
        return Checkpoints(self.folder, self.key, 0, self.said.append)

    def save(self, *steps: int) -> None:
        for step in steps:
            self.open().save(step, state_at(step), {"step": step})

    def step(self) -> int | None:
        """The step from which a new process would go on, with all it loads checked."""
        found = self.open().load()
        if found is None:
            return None
        tensors, values = found
        step: int = values["step"]
        assert_same(tensors, state_at(step))
        return step

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "seed-2" / "0123456789ab")


def state_at(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"weight": torch.randn(4, 3, generator=generator), "steps": torch.tensor(step)}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor.cpu()), name


# What is stored


def test_tensors_of_every_kind_come_back(run: Run) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": whole,
        "row": whole[1],
        "again": whole,
        "left": whole[:, :3],
        "turned": whole.t(),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.ones(1, 3).expand(5, 3),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "none": torch.empty(0),
        "half": torch.randn(3).to(torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "state": torch.get_rng_state(),
        "parameter": nn.Parameter(torch.randn(3)),
        "odd": torch.tensor([math.nan, math.inf, -0.0, 1e-45])[1:],
    }
    before = {name: (tensor.clone(), tensor.stride(), tensor.data_ptr()) for name, tensor in tensors.items()}
    run.open().save(1, tensors, {})
    for name, (value, stride, pointer) in before.items():
        assert torch.equal(tensors[name], value)
        assert (tensors[name].stride(), tensors[name].data_ptr()) == (stride, pointer)
    found = run.open().load()
    assert found is not None
    assert_same(found[0], tensors)
    assert len({tensor.data_ptr() for tensor in found[0].values() if tensor.numel()}) == len(tensors) - 2
    assert not [name for name, tensor in found[0].items() if tensor.data_ptr() % 64]
    assert math.copysign(1, found[0]["odd"][1].item()) == -1


def test_loaded_tensors_do_not_hang_on_the_file(run: Run) -> None:
    run.save(5)
    found = run.open().load()
    assert found is not None
    path = run.folder / "step-00000005" / resume.TENSORS
    path.write_bytes(bytes(path.stat().st_size))
    assert_same(found[0], state_at(5))


def test_values_come_back_exactly_and_in_their_order(run: Run) -> None:
    values: dict[str, Any] = {
        "zeta": 0.1 + 0.2,
        "alpha": [1e-320, -0.0, math.inf, 2**70],
        "history": [{"epoch": 1, "validation_loss": 1 / 3, "accuracy": None}],
        "words": "é\n\ud800",
    }
    odd: dict[Any, Any] = {7: (1, 2)}
    run.open().save(1, {}, values | odd)
    found = run.open().load()
    assert found is not None
    assert repr(found[1]) == repr(values | {"7": [1, 2]})
    assert json.loads((run.folder / "step-00000001" / resume.STATE).read_text())["state"]["step"] == 1


def test_a_name_of_the_generators_is_refused(run: Run) -> None:
    with pytest.raises(AssertionError, match="rng/"):
        run.open().save(1, {"rng/cpu": torch.zeros(1)}, {})


def draws() -> list[float]:
    # An odd number of normal values: the spare one that all of these generators keep must come back too.
    return [
        random.random(),
        random.gauss(),
        float(np.random.rand()),
        float(np.random.randn()),
        *torch.rand(3).tolist(),
        *torch.randn(3).tolist(),
        *nn.functional.dropout(torch.ones(8)).tolist(),
    ]


def test_generators_go_on_where_they_were_and_saving_does_not_move_them(run: Run) -> None:
    def seed() -> None:
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)

    seed()
    unbroken = draws() + draws()
    seed()
    first = draws()
    run.save(1)
    assert first + draws() == unbroken, "saving drew from a generator"
    for _ in range(3):
        draws()
    assert run.step() == 1
    assert draws() == unbroken[len(first) :]


def test_generators_of_gpus_are_stored_and_set(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.full((16,), device, dtype=torch.uint8) for device in (1, 2)]
    restored: dict[str, Tensor] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: restored.update({str(device): state})
    )
    run.save(1)
    assert run.step() == 1
    assert_same(restored, {"cuda:0": states[0], "cuda:1": states[1]})


# Which are kept


def test_the_newest_two_are_kept(run: Run) -> None:
    run.save(9, 10, 11)
    assert run.names() == ["step-00000010", "step-00000011"]
    run.save(100_000_000)
    assert run.names() == ["step-00000011", "step-100000000"]
    assert run.step() == 100_000_000
    assert run.said == []


def test_the_same_step_twice_is_the_later_one(run: Run) -> None:
    checkpoints = run.open()
    checkpoints.save(4, {}, {"word": "first"})
    checkpoints.save(4, {}, {"word": "second"})
    found = run.open().load()
    assert found is not None
    assert found[1] == {"word": "second"}
    assert run.names() == ["step-00000004"]


def test_going_back_gives_up_what_was_ahead(run: Run) -> None:
    run.save(40, 41)
    run.save(30)
    assert run.names() == ["step-00000030"]


def test_the_last_checkpoint_is_named(run: Run) -> None:
    checkpoints = run.open()
    assert (checkpoints.load(), checkpoints.last) == (None, None)
    checkpoints.save(3, {}, {})
    assert checkpoints.last == run.folder / "step-00000003"
    again = run.open()
    again.load()
    assert again.last == run.folder / "step-00000003"
    again.clear()
    assert again.last is None


def test_clear_removes_the_folder_and_nothing_else(run: Run) -> None:
    run.save(1, 2)
    other = run.folder.parent / "ba9876543210"
    shutil.copytree(run.folder, other)
    run.open().clear()
    assert sorted(path.name for path in run.folder.parent.iterdir()) == [other.name]
    assert run.step() is None
    run.open().clear()
    assert run.said == []


def test_what_killed_processes_left_is_removed(run: Run) -> None:
    run.save(1)
    for name in (".step-00000002.partial-9", ".step-00000000.old-9", f"../.{run.folder.name}.old-9"):
        (run.folder / name).mkdir()
        (run.folder / name / "half").write_text("x")
    (run.folder.parent / ".other.old-9").mkdir()
    assert run.step() == 1
    assert run.names() == ["step-00000001"]
    assert sorted(path.name for path in run.folder.parent.iterdir()) == [".other.old-9", run.folder.name]


# What is damaged

# The file, what becomes of its content (None: it goes), and the reason that is said.
DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes | None], str]] = {
    "a byte of the tensors": (
        resume.TENSORS,
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        "sha256 of state.safetensors differs",
    ),
    "the tensors' header": (
        resume.TENSORS,
        lambda content: b"\xff" + content[1:],
        "sha256 of state.safetensors differs",
    ),
    "tensors cut short": (
        resume.TENSORS,
        lambda content: content[:100],
        "sha256 of state.safetensors differs",
    ),
    "no tensors": (resume.TENSORS, lambda _: None, "state.safetensors is missing"),
    "a number of the state": (
        resume.STATE,
        lambda content: content.replace(b'"values": {"step": 41}', b'"values": {"step": 42}'),
        "sha256 of state.json differs",
    ),
    "state cut short": (resume.STATE, lambda content: content[:-9], "state.json is not valid JSON"),
    "state emptied": (resume.STATE, lambda _: b"", "state.json is not valid JSON"),
    "no text": (resume.STATE, lambda _: b"\xff\xfe", "state.json is not valid JSON"),
    "another JSON": (resume.STATE, lambda _: b"[]", "state.json is not a checkpoint's"),
    "no state": (resume.STATE, lambda _: None, "state.json is missing"),
}


def damage(checkpoint: Path, name: str) -> str:
    """Do this damage to a checkpoint; gives the reason that is to be said."""
    file, change, reason = DAMAGES[name]
    before = (checkpoint / file).read_bytes()
    after = change(before)
    assert after != before
    (checkpoint / file).unlink()
    if after is not None:
        (checkpoint / file).write_bytes(after)
    return reason


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_newest_is_passed_over_and_said(run: Run, name: str) -> None:
    run.save(40, 41)
    newest = run.folder / "step-00000041"
    reason = damage(newest, name)
    assert run.step() == 40
    assert run.said == [f"{newest} is damaged ({reason}); going on from step 40"]
    assert run.names() == ["step-00000040"], "the damaged one is in the way of the two to keep"
    assert run.step() == 40
    assert len(run.said) == 1


def test_what_cannot_be_read_is_damaged(run: Run) -> None:
    run.save(40, 41)
    state = run.folder / "step-00000041" / resume.STATE
    state.unlink()
    state.mkdir()
    assert run.step() == 40
    assert "is damaged (it cannot be read: " in run.said[0]
    assert "Is a directory" in run.said[0]


def test_both_damaged_starts_anew_and_says_so(run: Run) -> None:
    run.save(40, 41)
    for folder in run.folder.iterdir():
        damage(folder, "a byte of the tensors")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert run.step() is None
    assert torch.equal(torch.get_rng_state(), before)
    ending = "is damaged (sha256 of state.safetensors differs); no sound one is left: starting anew"
    assert run.said == [f"{run.folder / name} {ending}" for name in ("step-00000041", "step-00000040")]
    assert run.names() == []


def test_another_format_is_not_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "FORMAT", 0)
    run.save(3)
    monkeypatch.undo()
    assert run.step() is None
    assert "its format is 0, this is format 1" in run.said[0]


def test_a_first_start_says_nothing(run: Run) -> None:
    assert run.step() is None
    assert run.said == []
    assert not run.folder.exists()


# Whose it is


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 3}, "its seed is 2, not 3"),
        ({"seed": 2.0}, "its seed is 2, not 2.0"),
        ({"settings": {"epochs": 4, "rates": [0.1, 0.01]}}, "its settings.epochs is 3, not 4"),
        ({"settings": {"epochs": 3, "rates": [0.1]}}, "its settings.rates is [0.1, 0.01], not [0.1]"),
        ({"settings": {"rates": [0.1, 0.01]}}, "its settings.epochs is 3, not nothing"),
        ({"settings": None}, "its settings.epochs is 3, not nothing"),
        ({"more": True}, "its more is nothing, not true"),
        ({"data_sha256": "cd" * 32}, f'its data_sha256 is "{"ab" * 28}..., not "{"cd" * 28}...'),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_kept(run: Run, change: dict[str, Any], told: str) -> None:
    run.save(1, 2)
    other = Run(run.folder, {**KEY, **change})
    with pytest.raises(TrainingError) as caught:
        other.step()
    run_of = "experiment digits, arm full, seed 2"
    assert str(caught.value) == (
        f"{run.folder} holds a checkpoint of another run ({run_of}, {told}): remove it"
    )
    assert run.step() == 2, "it was not touched"


def test_an_equal_key_in_another_order_is_the_same_run(run: Run) -> None:
    run.save(1)
    turned = {name: KEY[name] for name in reversed(KEY)}
    assert Run(run.folder, turned | {"settings": {"rates": [0.1, 0.01], "epochs": 3}}).step() == 1


def test_a_refused_checkpoint_leaves_the_generators_alone(run: Run) -> None:
    run.save(1)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    with pytest.raises(TrainingError):
        Run(run.folder, KEY | {"arm": "frozen"}).step()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_code_is_known_by_names_and_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "steps"
    shutil.copytree(Path(resume.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(resume, "__file__", str(package / "resume.py"))
    monkeypatch.setattr(resume, "code_sha256", resume.code_sha256.__wrapped__)
    here = resume.code_sha256()
    assert len(here) == 64
    (package / "tasks" / "notes.txt").write_text("no code")
    assert resume.code_sha256() == here
    with (package / "tasks" / "__init__.py").open("a") as stream:
        stream.write("\n")
    edited = resume.code_sha256()
    (package / "loop.py").rename(package / "loops.py")
    assert len({here, edited, resume.code_sha256()}) == 3


def test_the_code_is_what_it_was_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resume.code_sha256()
    (tmp_path / "loop.py").write_text("edited")
    monkeypatch.setattr(resume, "__file__", str(tmp_path / "resume.py"))
    assert resume.code_sha256() == before


# When


def test_due_counts_from_the_start_and_from_each_save(tmp_path: Path, clock: Clock) -> None:
    checkpoints = Checkpoints(tmp_path / "run", {}, 30, print)
    assert not checkpoints.due()
    clock.now += 29.9
    assert not checkpoints.due()
    clock.now += 0.1
    assert checkpoints.due()
    checkpoints.save(1, {}, {})
    assert not checkpoints.due()
    clock.now += 30
    assert checkpoints.due()
    checkpoints.load()
    assert not checkpoints.due(), "what was loaded is on the disk already"


def test_a_slow_save_puts_the_next_one_off(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object) -> None:
        clock.now += 4

    checkpoints = Checkpoints(tmp_path / "run", {}, 30, print)
    monkeypatch.setattr(resume, "_write", slow)
    checkpoints.save(1, {}, {})
    clock.now += 79
    assert not checkpoints.due()
    clock.now += 1
    assert checkpoints.due()


def test_zero_seconds_is_always_due(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object) -> None:
        clock.now += 4

    checkpoints = Checkpoints(tmp_path / "run", {}, 0, print)
    assert checkpoints.due()
    monkeypatch.setattr(resume, "_write", slow)
    checkpoints.save(1, {}, {})
    assert checkpoints.due()


# Whole or not at all


class Killed(BaseException):
    """The process is gone: no handler of the code under test may do anything any more."""


class Disk:
    """Counts the calls that change files; from the n-th on nothing works, as after a kill."""

    # `replace` and `rename` of os are what pathlib's methods call.
    CALLS = ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir", "open")

    def __init__(self, dies_at: int | None) -> None:
        self.dies_at = dies_at
        self.calls: list[str] = []

    def dead(self) -> bool:
        return self.dies_at is not None and len(self.calls) >= self.dies_at

    def call(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            if name in ("open", "io.open") and not self._writes(arguments):
                return real(*arguments, **named)
            if self.dead():
                raise Killed
            self.calls.append(name)
            if self.dead() and name == "save_file":
                # A kill amid a long write: half of the bytes are there.
                real(*arguments, **named)
                os.truncate(arguments[1], arguments[1].stat().st_size // 2)
            if self.dead():
                raise Killed
            return real(*arguments, **named)

        return counted

    @staticmethod
    def _writes(arguments: tuple[Any, ...]) -> bool:
        mode = arguments[1] if len(arguments) > 1 else "r"
        return bool(mode & os.O_WRONLY or mode & os.O_RDWR) if isinstance(mode, int) else "w" in mode


@pytest.fixture
def disk() -> Iterator[Callable[[int | None], Disk]]:
    with pytest.MonkeyPatch.context() as patch:

        def made(dies_at: int | None) -> Disk:
            disk = Disk(dies_at)
            for name in Disk.CALLS:
                patch.setattr(os, name, disk.call(name, getattr(os, name)))
            patch.setattr("io.open", disk.call("io.open", open))
            patch.setattr(network, "save_file", disk.call("save_file", save_file))
            return disk

        made.undo = patch.undo  # type: ignore[attr-defined]
        yield made


def killed_at(
    disk: Callable[[int | None], Disk], number: int | None, work: Callable[[], object]
) -> tuple[bool, list[str]]:
    """Do the work, killed at its n-th call to the file system; whether it was, and its calls."""
    counted = disk(number)
    try:
        work()
    except Killed:
        return True, counted.calls
    finally:
        disk.undo()  # type: ignore[attr-defined]
    return False, counted.calls


def in_all_places(
    run: Run, disk: Callable[[int | None], Disk], before: Callable[[], object], work: Callable[[], object]
) -> Iterator[int]:
    """Kill the work at each of its calls to the file system, and give the number of each."""
    number = 1
    while True:
        shutil.rmtree(run.folder.parent, ignore_errors=True)
        before()
        killed, _ = killed_at(disk, number, work)
        if not killed:
            return
        yield number
        number += 1


@pytest.mark.survives(
    "processes",
    "`kill -9` anywhere in the saving of a checkpoint",
    how="the process ends before each call to the file system in turn",
    held="the old or the new state is whole, never a mixture",
)
def test_killed_anywhere_in_a_save_leaves_a_sound_state(run: Run, disk: Callable[[int | None], Disk]) -> None:
    found = []
    for _ in in_all_places(run, disk, lambda: run.save(39, 40), lambda: run.save(41)):
        found.append(run.step())
        assert not [name for name in run.names() if name.startswith(".")], "leftovers"
        run.save(42)
        assert run.step() == 42
        assert len(run.names()) == 2
    assert run.said == [], "a kill must not look like damage"
    assert found == sorted(found, key=str), "once the new one is there, it stays"
    assert set(found) == {40, 41}
    assert len(found) >= 12


def test_killed_anywhere_in_the_first_save(run: Run, disk: Callable[[int | None], Disk]) -> None:
    found = [run.step() for _ in in_all_places(run, disk, lambda: None, lambda: run.save(1))]
    assert run.said == []
    assert set(found) == {None, 1}


def test_killed_anywhere_in_saving_the_same_step_again(run: Run, disk: Callable[[int | None], Disk]) -> None:
    found = [run.step() for _ in in_all_places(run, disk, lambda: run.save(40, 41), lambda: run.save(41))]
    assert run.said == []
    assert set(found) == {40, 41}


def test_killed_anywhere_in_passing_over_a_damaged_one(run: Run, disk: Callable[[int | None], Disk]) -> None:
    def damaged() -> None:
        run.save(40, 41)
        damage(run.folder / "step-00000041", "a byte of the tensors")

    found = [run.step() for _ in in_all_places(run, disk, damaged, run.step)]
    assert set(found) == {40}


def test_killed_anywhere_in_clear(run: Run, disk: Callable[[int | None], Disk]) -> None:
    found = [
        run.step() for _ in in_all_places(run, disk, lambda: run.save(40, 41), lambda: run.open().clear())
    ]
    assert run.said == []
    assert set(found) == {41, None}
    assert [path.name for path in run.folder.parent.iterdir()] == []


def test_all_is_on_the_disk_before_the_name_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may undo what was not synced, in any order: file contents first, then the names."""
    run.save(1)
    events: list[str] = []
    sync, rename = resume._sync, Path.rename

    def synced(path: Path) -> None:
        events.append(f"sync {path.name.split('.partial')[0]}")
        sync(path)

    def renamed(path: Path, target: Path) -> Path:
        events.append(f"rename {Path(target).name.split('.old')[0]}")
        return rename(path, target)

    monkeypatch.setattr(resume, "_sync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    run.save(2)
    events.clear()
    run.save(3)
    assert events == [
        "sync state.safetensors",
        "sync state.json",
        "sync .step-00000003",
        "rename step-00000003",
        f"sync {run.folder.name}",
        "rename .step-00000001",
    ]


def test_a_failed_save_leaves_those_before(run: Run) -> None:
    run.save(1)
    with pytest.raises(TypeError):
        run.open().save(2, {}, {"not JSON": object()})
    assert run.names() == ["step-00000001"]
    assert run.step() == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.survives(
    "disk",
    "disk full while a checkpoint is written",
    how="ENOSPC and EDQUOT from safetensors and from fsync",
    held="the checkpoint before it is kept; one line names the file",
)
def test_a_full_disk_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As safetensors tells it, and as the system does."""

    def full(*_: object) -> None:
        reason = f"I/O error: {os.strerror(number)} (os error {number})"
        raise SafetensorError(f"Error while serializing: {reason}")

    def full_later(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    run.save(1)
    for module, name, fault in ((network, "save_file", full), (resume, "_sync", full_later)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fault)
            with pytest.raises(DiskFullError, match=r"the disk is full .* while writing .*step-00000002"):
                run.save(2)
        assert run.names() == ["step-00000001"]
        assert run.step() == 1


def test_other_faults_of_safetensors_are_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise SafetensorError("Error while serializing: something else")

    monkeypatch.setattr(network, "save_file", broken)
    with pytest.raises(SafetensorError, match="something else"):
        run.save(1)


# The optimizer


class Toy(nn.Module):
    """A convolution in channels_last, norms, and a layer that has no gradient for the first three steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.convolution = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.late = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)
        self.to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor, step: int) -> Tensor:
        hidden = self.norm(self.convolution(inputs)).mean((2, 3))
        return self.head(nn.functional.dropout(self.late(hidden) if step >= 3 else hidden))  # type: ignore[no-any-return]


def adamw(model: Toy, fused: bool, **more: Any) -> torch.optim.AdamW:
    convolution, rest = list(model.convolution.parameters()), [*model.norm.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": convolution, "lr": 0.01, "weight_decay": 0.1},
        {"params": rest, "lr": 0.02, "weight_decay": 0.0},
        {"params": [*model.late.parameters(), *model.head.parameters()], "betas": (0.8, 0.95)},
    ]
    return torch.optim.AdamW(groups, lr=0.003, fused=fused, **more)


def steps_of(model: Toy, optimizer: torch.optim.AdamW, first: int, last: int) -> None:
    for step in range(first, last):
        inputs = torch.randn(4, 3, 6, 6).to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        model(inputs, step).square().sum().backward()
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        optimizer.step()


@pytest.mark.parametrize("at", [0, 2, 5])
@pytest.mark.parametrize(
    "more", [{"fused": True}, {"fused": False}, {"fused": True, "amsgrad": True}], ids=str
)
def test_a_resumed_optimizer_ends_as_an_unbroken_one(run: Run, at: int, more: dict[str, Any]) -> None:
    model = Toy()
    optimizer = adamw(model, **more)
    torch.manual_seed(2)
    steps_of(model, optimizer, 0, at)
    tensors, values = resume.flatten_optimizer(optimizer)
    both = {f"model/{name}": tensor for name, tensor in model.state_dict().items()} | tensors
    run.open().save(at, both, {"optimizer": values})
    steps_of(model, optimizer, at, 8)

    again = Toy()
    resumed = adamw(again, **more)
    steps_of(again, resumed, 0, 4)  # what must be overwritten, state of the late layer included
    found = run.open().load()
    assert found is not None
    names = [name for name in found[0] if name.startswith("model/")]
    again.load_state_dict({name.removeprefix("model/"): found[0].pop(name) for name in names})
    resume.restore_optimizer(resumed, found[0], found[1]["optimizer"])
    steps_of(again, resumed, at, 8)

    assert_same(again.state_dict(), model.state_dict())
    assert_same(resume.flatten_optimizer(resumed)[0], resume.flatten_optimizer(optimizer)[0])
    assert repr(resumed.param_groups) == repr(optimizer.param_groups)
    for parameter in again.parameters():
        assert resumed.state[parameter]["exp_avg"].stride() == parameter.stride()


def test_parameters_without_gradient_have_no_state(run: Run) -> None:
    model = Toy()
    optimizer = adamw(model, fused=True)
    steps_of(model, optimizer, 0, 2)
    tensors, _ = resume.flatten_optimizer(optimizer)
    indices = {int(name.split(".")[0]) for name in tensors}
    assert indices == {0, 1, 2, 3, 6, 7}, "4 and 5 are the late layer's"
    assert {name.split(".")[1] for name in tensors} == {"step", "exp_avg", "exp_avg_sq"}


def test_an_optimizer_of_another_layout_is_refused() -> None:
    model = Toy()
    optimizer = adamw(model, fused=True)
    steps_of(model, optimizer, 0, 4)
    tensors, values = resume.flatten_optimizer(optimizer)
    values = json.loads(json.dumps(values))
    every = list(Toy().parameters())
    fewer_groups = torch.optim.AdamW(every, fused=True)
    fewer_parameters = adamw(model, fused=True)
    fewer_parameters.param_groups[1]["params"].pop()
    other_shape = adamw(model, fused=True)
    other_shape.param_groups[1]["params"][0] = nn.Parameter(torch.zeros(9))
    other_settings = adamw(model, fused=True)
    other_settings.param_groups[0]["initial_lr"] = 1.0
    for other in (fewer_groups, fewer_parameters, other_shape, other_settings):
        with pytest.raises(AssertionError, match=r"another number of groups|other parameters|other settings"):
            resume.restore_optimizer(other, tensors, values)


def test_a_removal_that_was_killed_leaves_nothing_under_the_folders_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process is killed in the middle of is no longer taken for states; the next removal ends it."""
    states = tmp_path / "full"
    (states / "seed-1/step-00000024").mkdir(parents=True)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            resume.remove(states)
    assert not states.exists()
    assert len(list(tmp_path.iterdir())) == 1
    (states / "seed-1").mkdir(parents=True)
    resume.remove(states)
    assert list(tmp_path.iterdir()) == []
    resume.remove(states)  # of what is not there

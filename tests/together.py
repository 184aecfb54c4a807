"""Trains in one process and in several: the driver of test_parallel.py, a process of its own.

A process that has run pytest or threads is a bad parent to fork, and importing torch takes seconds. So this
one imports all that a training needs, once, and every piece of work is done in forks of it.

    python -m tests.together FOLDER PART...
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any

import timm  # noqa: F401 - imported here, not in every fork
import torch
import transformers.models.bert.modeling_bert  # noqa: F401
from safetensors.torch import load_file
from torch import Tensor, nn

from steps import artifacts, checkpoint, embed, freezing, loop, network, processes, resume, train
from steps.data import Batches, FeatureSamples
from steps.errors import TrainingError
from steps.loop import Fed, Recipe, Stage
from steps.network import Network
from steps.objective import Objective
from steps.parallel import Ranks
from steps.params import Arm, Machine, Training
from tests import killed
from tests.tracking import made

ARM = killed.ARM
IMAGES, TEXTS = "image-classification", "text-classification"
# Arms that train alike in one process and in two: what they change of the plain one. Their batch
# normalisations keep their statistics: where these learn, float32 does not tell rounding from a mistake.
ALIKE: dict[str, tuple[str, dict[str, Any]]] = {
    "texts, everything, averaged": (TEXTS, {"ema": 0.9}),
    "texts, layer by layer": (TEXTS, {"tune": "gradual", "class_weights": True}),
    "images, mixed, soup": (IMAGES, {"tune": "lora", "mixup": 0.4, "cutmix": 1.0, "soup": "uniform"}),
    "images, augmented": (IMAGES, {"tune": "biases", "augment": ["flip", "crop"], "label_smoothing": 0.1}),
}
# Of a network whose batch normalisations learn, in float64: samples, batch size, parts, processes.
EXACT = {
    "uneven last batch": (21, 8, 1, 2),
    "in parts": (24, 12, 2, 2),
    "last batch smaller than the processes": (18, 8, 1, 3),
}
CONVOLUTIONS = {"library": "timm", "name": "test_efficientnet", "mean": [0.5] * 3, "std": [0.5] * 3}


# Processes


def fork(work: Callable[[], object], environment: dict[str, str], log: Path) -> int:
    """Do the work in a fork; gives its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(environment)
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def start(work: Callable[[], object], count: int) -> list[int]:
    """Do the work in so many forks that may meet, as torchrun would have them; gives their process ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [
        fork(work, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, Path(f"log-{rank}.txt"))
        for rank in range(count)
    ]


def end(pids: Sequence[int]) -> list[int]:
    """Wait for them; gives their exit codes."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def together(work: Callable[[], object], count: int) -> str:
    """Do the work in so many forks; gives what the first one printed."""
    codes = end(start(work, count))
    logs = [Path(f"log-{rank}.txt").read_text() for rank in range(count)]
    if any(codes):
        raise RuntimeError(f"exit codes {codes}:\n" + "\n".join(logs))
    assert not any(logs[1:]), logs
    return logs[0]


# An experiment's trainings


def make(task: str) -> str:
    """Files of an experiment in the working directory, of one run, that draws nothing for dropout."""
    name = made.EXPERIMENT[task]
    killed.make(task, epochs=2)
    if task == TEXTS:
        path = artifacts.pretrained_dir("toy") / "architecture.json"
        about = json.loads(path.read_text())
        about["config"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        artifacts.write_json(path, about)
    embed.embed(name)
    killed.change(name, lambda settings: settings["model"].update(dropout=0.0))
    killed.change(name, lambda settings: settings["training"].update(seeds=[1]))
    return name


def changed(name: str, change: dict[str, dict[str, Any]]) -> bytes:
    """Change sections of the arm's settings; gives the file as it was."""
    path = artifacts.settings_file(name, "train", ARM)
    before = path.read_bytes()
    settings = json.loads(before)
    artifacts.write_json(path, settings | {at: settings[at] | new for at, new in change.items()})
    return before


def trained(name: str, count: int, change: dict[str, dict[str, Any]]) -> tuple[dict[str, Tensor], str]:
    """Weights of a changed arm that so many processes trained, and what was printed."""
    killed.afresh(name)
    before = changed(name, change)
    printed = together(lambda: train.train(name, ARM), count)
    artifacts.settings_file(name, "train", ARM).write_bytes(before)
    return weights(name), printed


def weights(name: str) -> dict[str, Tensor]:
    found = load_file(artifacts.seed_dir(name, ARM, 1) / checkpoint.WEIGHTS)
    return {key: tensor.clone() for key, tensor in found.items()}


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference between two networks' weights."""
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def alike(names: dict[str, str]) -> dict[str, Any]:
    """How far the weights of one process and of two are from each other, and from their start."""
    found = {}
    for case, (task, change) in ALIKE.items():
        with chdir(task):
            name = names[task]
            alone, _ = trained(name, 1, {"arm": change})
            two, _ = trained(name, 2, {"arm": change})
            journal = json.loads((artifacts.seed_dir(name, ARM, 1) / checkpoint.JOURNAL).read_text())
            found[case] = {
                "apart": apart(alone, two),
                "processes": journal["settings"]["machine"]["processes"],
                "moved": apart(alone, start_of(alone)),
            }
    return found


def start_of(alone: dict[str, Tensor]) -> dict[str, Tensor]:
    """The pretrained weights, and zeros for the new head."""
    pretrained = load_file(artifacts.pretrained_dir("toy") / "model.safetensors")
    found = {name: torch.zeros_like(tensor) for name, tensor in alone.items()}
    return found | {
        f"backbone.model.{name}": tensor
        for name, tensor in pretrained.items()
        if f"backbone.model.{name}" in alone
    }


# Networks without files


def convolutions(
    samples: int, size: int, parts: int, ranks: Ranks, work: Callable[[nn.Module], object] = id
) -> Network:
    """A network whose batch normalisations learn, fitted in float64."""
    # The loop takes everything to float32.
    setattr(loop, "in_full", lambda outputs: outputs)  # noqa: B010 - mypy allows no other way
    torch.manual_seed(0)
    labels = torch.arange(samples) % 3
    images = torch.randn(samples, 3, 32, 32, dtype=torch.float64) + labels[:, None, None, None]
    arm = Arm(learning_rate=0.01, backbone_learning_rate=0.001, l2_sp=0.01, ema=0.9)
    backbone = network.architecture(CONVOLUTIONS)
    model = Network(backbone, network.build_head(backbone.features, 3, 0.0)).double()
    freezing.freeze(model, arm)
    work(model)
    fed = Fed(Batches(FeatureSamples(images), labels, size), Batches(FeatureSamples(images), labels, size))
    training, machine = Training(epochs=2, batch_size=size), Machine(device="cpu", accumulate=parts)
    recipe = Recipe(
        arm, training, Objective(arm, labels, 3), machine, lambda *given: {"validation_log_loss": 1.0}
    )
    stage = Stage(1, lambda: freezing.parameter_groups(model, arm), lambda: fed)
    loop.fit(model, [stage], recipe, seed=1, log=lambda values, step: None, ranks=ranks)
    return model


def exact(names: dict[str, str]) -> dict[str, Any]:
    """The same in float64, where rounding is no excuse."""
    found = {}
    for case, (samples, size, parts, count) in EXACT.items():

        def work(path: str, given: tuple[int, int, int] = (samples, size, parts)) -> None:
            with processes.joined(torch.device("cpu")) as ranks:
                model = convolutions(*given, ranks)
                if ranks.first:
                    torch.save(model.state_dict(), path)

        together(lambda: work("alone.pt"), 1)
        together(lambda: work("many.pt"), count)
        found[case] = apart(torch.load("alone.pt"), torch.load("many.pt"))
    return found


def not_finite(names: dict[str, str]) -> dict[str, Any]:
    """The second of two processes computes something that is not finite; what each of them says."""

    def break_down(model: nn.Module) -> None:
        if os.environ["RANK"] == "1":
            seen = list[int]()

            def after(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
                seen.append(1)
                return output * (float("nan") if len(seen) == 3 else 1.0)

            model.register_forward_hook(after)

    def work() -> None:
        with processes.joined(torch.device("cpu")) as ranks:
            try:
                convolutions(29, 8, 1, ranks, break_down)
            except TrainingError as error:
                Path(f"said-{ranks.rank}.txt").write_text(str(error))

    codes = end(start(work, 2))
    return {"codes": codes, "said": [Path(f"said-{rank}.txt").read_text() for rank in range(2)]}


# What decides, and what is broken off


def search(names: dict[str, str]) -> dict[str, Any]:
    """A search with a trial that breaks down, in one process and in two."""
    found: dict[str, Any] = {}
    with chdir(TEXTS):
        space = {"search": {"learning_rate": {"choices": [0.01, 1e30]}, "ema": {"choices": [None, 0.5]}}}
        change: dict[str, dict[str, Any]] = {"arm": space, "tuning": {"trials": 4}}
        for count in (1, 2):
            _, printed = trained(names[TEXTS], count, change)
            tuning = json.loads((artifacts.arms_dir(names[TEXTS]) / ARM / "tuning.json").read_text())
            found[str(count)] = {"tuning": tuning, "printed": printed}
    return found


def resumed(names: dict[str, str], count: int = 2) -> dict[str, Any]:
    """Processes killed at any moment that go on, and others that are not: all there is to draw is drawn."""
    with chdir(IMAGES):
        name, folder = names[IMAGES], artifacts.seed_dir(names[IMAGES], ARM, 1)
        change = {"arm": {"mixup": 0.4, "ema": 0.9}, "model": {"dropout": 0.2}}
        before = changed(name, change)
        killed.afresh(name)
        together(lambda: train.train(name, ARM), count)
        whole = (artifacts.sha256_file(folder / checkpoint.WEIGHTS), history(folder))
        killed.save_after_every_step(name)
        killed.afresh(name)
        kills, states = [], artifacts.checkpoints_dir(name, ARM)
        for step in (3, 11):
            pids = start(lambda: train.train(name, ARM), count)
            while not list(states.glob(f"*/*/step-{step:08d}")):
                time.sleep(0.01)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            kills.append(end(pids))
        printed = together(lambda: train.train(name, ARM), count)
        broken = (artifacts.sha256_file(folder / checkpoint.WEIGHTS), history(folder))
        artifacts.settings_file(name, "train", ARM).write_bytes(before)
        return {"whole": whole, "broken": broken, "kills": kills, "printed": printed}


def history(folder: Path) -> str:
    """The history but for the time it took."""
    rows = [line.split(",") for line in (folder / checkpoint.HISTORY).read_text().splitlines()]
    seconds = rows[0].index("seconds")
    return "\n".join(",".join(one for at, one in enumerate(row) if at != seconds) for row in rows)


def resumed_of_three(names: dict[str, str]) -> dict[str, Any]:
    """With more than two processes it matters in which order sums are taken."""
    return resumed(names, 3)


PARTS: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    one.__name__: one for one in (alike, exact, not_finite, search, resumed, resumed_of_three)
}


def main() -> None:
    folder, parts = Path(sys.argv[1]).resolve(), sys.argv[2:]
    torch.set_num_threads(1)
    # The forks inherit it: the code they run is this process's, whatever is edited meanwhile.
    resume.code_sha256()
    report: dict[str, Any] = {}
    with chdir(folder):
        for task in (IMAGES, TEXTS):
            Path(task).mkdir()
            with chdir(task):
                assert end([fork(partial(make, task), {}, Path("make.txt"))]) == [0]
        for part in parts:
            began = time.monotonic()
            report[part] = PARTS[part](made.EXPERIMENT)
            print(f"{part}: {time.monotonic() - began:.1f} s")  # noqa: T201 - for who runs it by hand
        Path("report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

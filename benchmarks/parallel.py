"""One process beside two on the same cores: a training over gloo, and features over a local Ray cluster.

    python -m benchmarks.parallel
    python -m benchmarks.parallel --only images

The cores are the same on both sides, so nothing is to be gained: what is measured is what the second process
costs, and how far apart the results are. Draws of dropout are switched off, because two processes have
others than one. Needs an idle machine.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.rivals.work import Work

ROOT = Path(__file__).resolve().parents[1]
CORES = 2
SEED = 1
IMAGES = 2000


# ------------------------------------------------------------------------------------------- the trainings


def work_of(name: str) -> Work:
    """What is trained: all of a network, for two epochs."""
    from benchmarks.rivals.work import Work

    if name == "images":
        return Work("images", "all", (320, 100, 500), 2, 20, (0.005, 0.001))
    return Work("texts", "all", (128, 32, 300), 2, 16, (0.003, 0.0003))


def train(name: str, folder: str, nudge: float = 0.0) -> None:
    """What each of the processes does; the first one leaves seconds, weights and predictions.

    Args:
        name: of the work.
        folder: where to leave them.
        nudge: by how much the weights are larger at the start, of themselves.
    """
    import torch
    from torch import nn

    from benchmarks.rivals import ours
    from steps import freezing, inference, loop, processes
    from steps.loop import Stage

    with processes.joined(torch.device("cpu")) as ranks:
        run = ours.Run(work_of(name), SEED)
        for module in run.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.mul_(1 + nudge)
        freezing.freeze(run.model, run.arm)
        stage = Stage(1, lambda: freezing.parameter_groups(run.model, run.arm), run.feed)
        started = perf_counter()
        fitted = loop.fit(
            run.model, [stage], run.recipe, seed=SEED, log=lambda values, step: None, device=run.device,
            ranks=ranks,
        )  # fmt: skip
        seconds = perf_counter() - started
        if ranks.first:
            said = inference.probabilities(run.model, run.given.test.samples)
            state = {key: tensor.double() for key, tensor in run.model.state_dict().items()}
            torch.save({"state": state, "said": said}, Path(folder) / "result.pt")
            told = {"seconds": seconds, "steps": fitted.steps, "log_loss": fitted.best["validation_log_loss"]}
            (Path(folder) / "result.json").write_text(json.dumps(told))


def of_trainings(name: str, folder: Path) -> str:
    """One process with all threads, two with half of them each, and one that starts a rounding error away."""
    sides = {"one": (1, 0.0), "two": (2, 0.0), "nudged": (1, 1e-7)}
    for side, (count, nudge) in sides.items():
        (folder / f"{name}-{side}").mkdir()
        given = f"{name!r}, {str(folder / f'{name}-{side}')!r}, {count}, {nudge}"
        _python(f"from benchmarks import parallel; parallel.start({given})", folder, threads=CORES // count)
    one, two = (json.loads((folder / f"{name}-{side}/result.json").read_text()) for side in ("one", "two"))
    return (
        f"{name}: {one['steps']} steps; one process {one['seconds']:.1f} s, two {two['seconds']:.1f} s "
        f"({two['seconds'] / one['seconds']:.2f} times as long); two against one: "
        f"{_apart(folder / f'{name}-one', folder / f'{name}-two')}; one with a start 1e-7 larger: "
        f"{_apart(folder / f'{name}-one', folder / f'{name}-nudged')}"
    )


def _apart(one: Path, other: Path) -> str:
    import torch

    found = [torch.load(folder / "result.pt", weights_only=False) for folder in (one, other)]
    first, second = (result["state"] for result in found)
    apart = sorted(float((first[key] - second[key]).abs().max()) for key in first)
    said = float(abs(found[0]["said"] - found[1]["said"]).max())
    return (
        f"half of the tensors {apart[len(apart) // 2]:.1e} apart, all {apart[-1]:.1e}, predictions {said:.1e}"
    )


def start(name: str, folder: str, count: int, nudge: float) -> None:
    """Train in so many processes."""
    import torch

    from steps import processes

    if count == 1:
        train(name, folder, nudge)
    else:
        processes.launch("benchmarks.parallel", ["--train", name, folder], count, torch.device("cpu"))


# -------------------------------------------------------------------------------------------- the features


def features(address: str) -> None:
    """Print the seconds of the features of all images, here or over Ray, without the first batch's."""
    import numpy as np
    import torch
    from PIL import Image

    from benchmarks.rivals import work
    from steps import cluster, data, embedding
    from steps.params import EmbedSettings, Model

    random = np.random.default_rng(0)
    contents: list[Any] = []
    for _ in range(IMAGES):
        with io.BytesIO() as stream:
            Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(stream, "PNG")
            contents.append(stream.getvalue())
    pretrained = work_of("images").pretrained
    settings = EmbedSettings(
        task="image-classification", model=Model(pretrained=work.SLUGS["images"], image_size=64)
    )
    made = embedding.absolute(embedding.Work(settings, pretrained, contents, (data.FEATURES,)))
    batches = data.in_turn(IMAGES)
    began = perf_counter()
    results: Any
    if address == "none":
        compute = embedding.embedder(made)
        results = ((places, compute(places)) for places in batches)
    else:
        threads = torch.get_num_threads()
        results = cluster.over_ray(embedding.embedder, made, batches, address=address, threads=threads)
    total, first = 0.0, 0.0
    for _, rows in results:
        total += float(np.abs(rows[data.FEATURES]).sum())
        first = first or perf_counter() - began
    seconds = perf_counter() - began
    print(json.dumps({"first": first, "seconds": seconds, "total": total}))


def of_features(folder: Path) -> str:
    """This process with all threads, and two workers of Ray with one each."""
    found = {}
    for address, threads in (("none", CORES), ("local", 1)):
        code = f"from benchmarks import parallel; parallel.features({address!r})"
        found[address] = json.loads(_python(code, folder, threads).splitlines()[-1])
    here, there = found["none"], found["local"]
    rates = [(IMAGES - 64) / (one["seconds"] - one["first"]) for one in (here, there)]
    return (
        f"features of {IMAGES} images: here {rates[0]:.0f} a second, over Ray {rates[1]:.0f} once it runs; "
        f"until the first batch {here['first']:.1f} s and {there['first']:.1f} s; in all "
        f"{here['seconds']:.1f} s and {there['seconds']:.1f} s"
    )


# ------------------------------------------------------------------------------------------------- running


def _python(code: str, folder: Path, threads: int) -> str:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false", "TORCH_CPP_LOG_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


ROWS: dict[str, Callable[[Path], str]] = {
    "images": lambda folder: of_trainings("images", folder),
    "texts": lambda folder: of_trainings("texts", folder),
    "features": of_features,
}


def main() -> None:
    """Run `python -m benchmarks.parallel`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--train", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.train:
        train(*wanted.train)
        return
    with tempfile.TemporaryDirectory() as temporary, chdir(temporary):
        folder = Path(temporary)
        _python("from benchmarks.rivals import work; work.fetch_weights()", folder, 1)
        print(f"{platform.machine()}, {CORES} of {os.cpu_count()} cores")
        for name in wanted.only.split(","):
            print(ROWS[name](folder), flush=True)


if __name__ == "__main__":
    main()

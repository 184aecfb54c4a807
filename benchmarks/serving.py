"""How fast registered models answer: a server against the bare model, a batch against the bare network.

    python -m benchmarks.serving
    python -m benchmarks.serving --only digits --seconds 20

Two models with real pretrained backbones: EfficientNet-Lite0 on pictures of 64 pixels, or of `--side`, and
MiniLM on texts of 32 tokens. Their heads saw a handful of made-up samples, which changes no time. On an
idle machine.

Served: eight clients that each send one input after another over HTTP, against eight threads that call the
same loaded model's `predict` in a process of its own. Bare is tried with one thread of torch and with as many
as there are cores, and its better 95th percentile counts. Batch: `steps.batch`, from files to the written
table, against the network alone on the same inputs, decoded before; again the better of one batch at a time
with all cores and one batch for each core. The sides take turns. A ratio is the median of the repeats, with
the smallest and the largest.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CLIENTS, DISTINCT = 8, 16
TASKS = {"digits": "image-classification", "texts": "text-classification"}
BACKBONES = {"digits": "efficientnet-lite0", "texts": "minilm-l6"}
BATCH_ROWS = {"digits": 8192, "texts": 2048}
TEXT = "the bank of england raised its rate to five per cent as prices rose and shares fell again today"
SIDE, TOKENS = 64, 32


def main() -> None:
    """Print the ratios of both models."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=TASKS)
    parser.add_argument("--seconds", type=float, default=60, help="of served requests in all; 0 for none")
    parser.add_argument("--side", type=int, default=SIDE, help="of the pictures, in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", choices=CHILDREN)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(CHILDREN[given.child](given)))
        return
    for name in [given.only] if given.only else list(TASKS):
        with tempfile.TemporaryDirectory(prefix="headstart-bench-") as folder, chdir(folder):
            make(name, given.side)
            of = f"{given.side} pixels" if name == "digits" else f"{TOKENS} tokens"
            print(f"{name}: {BACKBONES[name]}, {of}, {os.cpu_count()} cores, {CLIENTS} clients")
            if given.seconds:
                compare_served(name, given.seconds / given.repeats, given.repeats)
            compare_batch(name, given.repeats)


# ------------------------------------------------------------------------------------------------- the models


def make(name: str, side: int = SIDE) -> None:
    """A registered model in the working directory, made as the tests make theirs, but of a real backbone."""
    from steps import artifacts, params, resolve
    from steps.fetch import fetch
    from steps.register import register
    from tests.tracking import made

    task, known = TASKS[name], params.load(ROOT / "params.yaml")
    plain, reference = made.settings, known.pretrained[BACKBONES[name]]

    def settings(name: str, task: str) -> params.Params:
        found = plain(name, task)
        one = found.experiments[name]
        model = one.model.model_copy(update={"image_size": side, "max_tokens": TOKENS})
        return found.model_copy(update={"experiments": {name: one.model_copy(update={"model": model})}})

    def write_pretrained(task: str) -> None:
        described = resolve.with_tokenizer(reference, known).model_dump(mode="json")
        artifacts.write_json(artifacts.pretrained_settings_file("toy"), described)
        fetch("toy")

    made.settings, made.write_pretrained = settings, write_pretrained
    made.store(Path())
    with quiet():
        made.build(task)
        register(made.EXPERIMENT[task])
    artifacts.write_json(Path("name.json"), name)
    write_inputs(name)


def write_inputs(name: str) -> None:
    """The inputs of a batch: pictures of 8 x 8 pixels as the digits are, or a table of texts."""
    import pandas as pd
    from PIL import Image

    random, rows = np.random.default_rng(0), BATCH_ROWS[name]
    if name == "texts":
        texts = [" ".join(random.choice(TEXT.split(), 28)) for _ in range(rows)]
        pd.DataFrame({"text": texts}).to_csv("inputs.csv", index=False)
        return
    Path("inputs").mkdir()
    for row in range(rows):
        grey = (random.integers(0, 17, (8, 8)) * 15).astype(np.uint8)
        Image.fromarray(grey).save(f"inputs/{row:06}.png")


def inputs_of(name: str) -> list[str]:
    """Single inputs as they are sent."""
    if name == "texts":
        return Path("inputs.csv").read_text().splitlines()[1 : DISTINCT + 1]
    files = sorted(Path("inputs").glob("*.png"))[:DISTINCT]
    return [base64.b64encode(file.read_bytes()).decode() for file in files]


@contextmanager
def quiet() -> Iterator[None]:
    """What the steps say is no result."""
    kept = os.dup(1)
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout.flush()
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)


# ----------------------------------------------------------------------------------------------------- served


def compare_served(name: str, seconds: float, repeats: int) -> None:
    """Print the 95th percentiles of both sides and their ratio."""
    cores, ratios, errors, asked = len(os.sched_getaffinity(0)), [], 0, 0
    with server(name) as port:
        load(port, name, 2)
        for repeat in range(repeats):
            bare = [child("bare", threads, seconds=seconds / 2) for threads in sorted({1, cores})]
            best = min(bare, key=lambda one: float(one["p95"]))
            served = load(port, name, seconds)
            errors, asked = errors + served["errors"], asked + served["n"]
            ratios.append(served["p95"] / best["p95"])
            told = ", ".join(
                f"{what} p50 {one['p50']:.0f}, p95 {one['p95']:.0f}, p99 {one['p99']:.0f} ms"
                for what, one in (("bare", best), ("served", served))
            )
            print(f"  {repeat + 1}: {told}")
    print(f"  p95 served / bare: {shown(ratios)}; {asked} requests, {errors} errors")


@contextmanager
def server(name: str) -> Iterator[int]:
    """A server process; gives its port."""
    from tests.tracking import made

    command = [sys.executable, "-m", "steps.serve", made.EXPERIMENT[TASKS[name]], "--port", "0"]
    environment = environment_of()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().rpartition(":")[2].split("/")[0])
        finally:
            process.terminate()


def load(port: int, name: str, seconds: float) -> dict[str, Any]:
    """Eight clients that ask one input after another."""
    column = "text" if name == "texts" else "image"
    bodies = [json.dumps({"dataframe_records": [{column: one}]}).encode() for one in inputs_of(name)]
    errors: list[int] = []

    def client() -> Callable[[int], None]:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

        def ask(turn: int) -> None:
            link.request(
                "POST", "/invocations", bodies[turn % DISTINCT], {"Content-Type": "application/json"}
            )
            answer = link.getresponse()
            answer.read()
            if answer.status != 200:
                errors.append(answer.status)

        return ask

    return timed(client, seconds) | {"errors": len(errors)}


def timed(make_client: Callable[[], Callable[[int], None]], seconds: float) -> dict[str, Any]:
    """What eight threads measure that each do one thing after another."""
    took: list[float] = []
    end = perf_counter() + seconds

    def work(at: int) -> None:
        ask, turn = make_client(), at
        while perf_counter() < end:
            started = perf_counter()
            ask(turn)
            took.append(perf_counter() - started)
            turn += 1

    threads = [threading.Thread(target=work, args=(at,)) for at in range(CLIENTS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    p50, p95, p99 = (float(value) * 1000 for value in np.percentile(took, [50, 95, 99]))
    return {"p50": p50, "p95": p95, "p99": p99, "n": len(took), "rps": len(took) / seconds}


def bare(given: argparse.Namespace) -> dict[str, Any]:
    """The loaded model, asked by eight threads."""
    import pandas as pd
    import torch

    from steps import entry

    entry.keep_freed_memory()  # as the server does
    torch.set_num_threads(given.threads)
    name = json.loads(Path("name.json").read_text())
    loaded = champion(name)
    column = "text" if name == "texts" else "image"
    frames = [pd.DataFrame({column: [one]}) for one in inputs_of(name)]

    def ask(turn: int) -> None:
        loaded.predict(frames[turn % DISTINCT])

    timed(lambda: ask, 1)
    return timed(lambda: ask, given.seconds)


def champion(name: str) -> Any:  # noqa: ANN401 - a loaded model
    """The registered model of the working directory."""
    from steps.tracking import naming, registry, store
    from tests.tracking import made

    with store.opened() as opened:
        return registry.load(naming.version_of(opened, f"{made.EXPERIMENT[TASKS[name]]}@champion"))


# ------------------------------------------------------------------------------------------------------ batch


def compare_batch(name: str, repeats: int) -> None:
    """Print the throughput of both sides and their ratio."""
    cores, ratios, spent = len(os.sched_getaffinity(0)), [], []
    for repeat in range(repeats):
        forward = [child("forward", threads) for threads in sorted({1, cores})]
        best = max(forward, key=lambda one: float(one["rows"]))
        batch = child("batch", 1)
        ratios.append(batch["rows"] / best["rows"])
        spent.append(min(one["cpu"] for one in forward) / batch["cpu"])
        print(f"  {repeat + 1}: network {best['rows']:.0f} rows/s, batch {batch['rows']:.0f} rows/s")
    print(f"  rows/s of batch / network: {shown(ratios)}; of processor time: {shown(spent)}")


def forward(given: argparse.Namespace) -> dict[str, Any]:
    """The network alone: batches that are decoded and in memory; as many at a time as leave no core idle."""
    import pandas as pd
    import torch

    from steps import entry
    from steps.data import by_length

    entry.keep_freed_memory()  # as the batch does
    torch.set_num_threads(given.threads)
    name = json.loads(Path("name.json").read_text())
    loaded = champion(name)  # its files go with it
    served = loaded.pyfunc._model_impl
    if name == "texts":
        contents: list[Any] = list(pd.read_csv("inputs.csv")["text"])
    else:
        contents = sorted(Path("inputs").glob("*.png"))[:1024]
    samples = served.task.samples(contents, served.settings, served.pretrained)
    batches = [samples.batch(places) for places in by_length(samples)]
    served.network.eval()
    workers = len(os.sched_getaffinity(0)) // given.threads
    turns = -(-BATCH_ROWS[name] // len(contents))

    def work(at: int) -> None:
        with torch.inference_mode():
            for _ in range(turns):
                for one in batches[at::workers]:
                    served.network(one)

    with torch.inference_mode():
        served.network(batches[0])
    threads = [threading.Thread(target=work, args=(at,)) for at in range(workers)]
    return _measured(threads, turns * len(contents))


def batch(given: argparse.Namespace) -> dict[str, Any]:
    """`steps.batch` with a model that is loaded and warm."""
    from steps import batch as step
    from steps.tracking import registry
    from tests.tracking import made

    name = json.loads(Path("name.json").read_text())
    loaded = champion(name)
    loaded.predict(loaded.pyfunc.input_example)
    registry.load = lambda version: loaded
    source = "inputs.csv" if name == "texts" else "inputs"

    def work() -> None:
        with quiet():
            step.batch(made.EXPERIMENT[TASKS[name]], [source], Path("out.parquet"))

    return _measured([threading.Thread(target=work)], BATCH_ROWS[name])


def _measured(threads: list[threading.Thread], rows: int) -> dict[str, Any]:
    """Rows a second, and seconds of processor time a row."""
    started, cpu = perf_counter(), process_time()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return {"rows": rows / (perf_counter() - started), "cpu": (process_time() - cpu) / rows}


# ------------------------------------------------------------------------------------------------------------

CHILDREN: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "bare": bare,
    "forward": forward,
    "batch": batch,
}


def child(what: str, threads: int, seconds: float = 0.0) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serving", "--child", what, "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--seconds", str(seconds)], env=environment_of(), check=True, stdout=subprocess.PIPE
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def environment_of() -> dict[str, str]:
    """Nothing of the caller's MLflow, and no limit on torch's threads but ours."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MLFLOW_") and name != "OMP_NUM_THREADS"
    }
    return kept | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}


def shown(ratios: list[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, n = {len(ratios)})"


if __name__ == "__main__":
    main()

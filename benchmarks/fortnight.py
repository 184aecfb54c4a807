"""Fourteen nights in the life of a small clone, with what can go wrong: `python -m benchmarks.fortnight`.

A twin of Headstart with one experiment on texts, a real MLflow server and a real `headstart nightly` every
night. Between the nights somebody adds data, breaks them, spoils the settings, stops the server, kills a
night, moves an alias. For each night the scenario says beforehand what it must come to and which version must
be champion after it; in the end the alias ledger is held against what happened. Exit code 1 where one of
them differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests import twin
from tests.tracking import servers
from tests.twin import Twin

EXPERIMENT, MODEL = "topics", "headstart-topics"
RAW = Path("raw/topics.csv")
DEADLINE_SECONDS = 600.0


@dataclass
class World:
    """The clone with its tracking server, which can be stopped and started again.

    Attributes:
        clone: the twin.
        port: of MLflow's server.
        seen: the champion after each night.
    """

    clone: Twin
    port: int
    server: ExitStack = field(default_factory=ExitStack)
    seen: list[str | None] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What a night is started with."""
        return {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.port}"}

    def start(self) -> None:
        """Start MLflow's server, on the same files and the same port as before."""
        folder = self.clone.root / "mlflow"
        folder.mkdir(exist_ok=True)
        arguments = [
            "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination", str(folder / "artifacts"), "--workers", "1",
        ]  # fmt: skip
        self.server.enter_context(servers.mlflow_process(arguments, folder, "/health", {}, port=self.port))

    def stop(self) -> None:
        """Stop MLflow's server."""
        self.server.close()

    def headstart(self, *arguments: str, expect: int | None = 0) -> str:
        """Run the command line in the clone."""
        return self.clone.headstart(*arguments, expect=expect, environment=self.environment)

    # ------------------------------------------------------------------------------------------ the raw data

    def add(self, each: int, seed: int, words: dict[str, list[str]] | None = None) -> None:
        """Append as many labelled texts of each topic."""
        chance = random.Random(seed)
        with (self.clone.root / RAW).open("a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            for topic, known in (words or twin.TOPICS).items():
                for _ in range(each):
                    said = chance.sample(known, 4) + chance.sample(twin.FILLER, 5)
                    chance.shuffle(said)
                    writer.writerow([" ".join(said), topic])

    def spoil(self) -> None:
        """Append rows without a label."""
        with (self.clone.root / RAW).open("a", encoding="utf-8") as stream:
            stream.write("a text that nobody gave a topic,\n" * 3)

    def mend(self) -> None:
        """Take the rows without a label out again."""
        path = self.clone.root / RAW
        lines = path.read_text("utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not line.endswith(",\n")), "utf-8")

    def strangers(self) -> None:
        """Monitor texts of other words than those that the champion was trained on."""
        chance = random.Random(5)
        words = [word for known in twin.TOPICS.values() for word in known][:6]
        path = self.clone.root / "asked.csv"
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["body"])
            for _ in range(60):
                writer.writerow([" ".join(chance.choices(words, k=3) * 2)])
        self.headstart("monitor", EXPERIMENT, "asked.csv")

    # ------------------------------------------------------------------------------------------ the settings

    def learn(self, epochs: int, **rates: float) -> None:
        """Change how arms are trained."""
        self.clone.edit_params(
            experiments__topics__training__epochs=epochs,
            experiments__topics__arms={arm: {"learning_rate": rate} for arm, rate in rates.items()},
        )

    # --------------------------------------------------------------------------------------------- the nights

    def night(self) -> tuple[float, str]:
        """One night; gives its seconds and what it said."""
        began = time.monotonic()
        said = self.headstart("nightly", expect=None)
        return time.monotonic() - began, said

    def killed_night(self) -> None:
        """A night that is killed with everything it started, in the middle of a training."""
        night = self.clone.start("nightly", environment=self.environment)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self._trains():
            assert night.poll() is None, night.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.0)
        for one in [*psutil.Process(night.pid).children(recursive=True), psutil.Process(night.pid)]:
            one.send_signal(signal.SIGKILL)
        night.communicate()

    def _trains(self) -> bool:
        """Whether a training goes on in the clone."""
        return any(
            one.info["cwd"] == str(self.clone.root) and "steps.train" in (one.info["cmdline"] or [])
            for one in psutil.process_iter(["cwd", "cmdline"])
        )

    def record(self) -> dict[str, Any]:
        """What the last night wrote down."""
        newest = max((self.clone.root / ".headstart/nightly").glob("*.json"), key=_number)
        found: dict[str, Any] = json.loads(newest.read_text("utf-8"))
        return found

    def champion(self) -> str | None:
        """The version behind the alias, as MLflow itself says it."""
        code = (
            "import mlflow, sys; c = mlflow.MlflowClient(); "
            f"print(c.get_registered_model('{MODEL}').aliases.get('champion', ''))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | self.environment, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        return done.stdout.strip() or None

    def remove_alias(self) -> None:
        """Delete the champion's alias, as somebody might in MLflow's pages."""
        code = f"import mlflow; mlflow.MlflowClient().delete_registered_model_alias('{MODEL}', 'champion')"
        subprocess.run([sys.executable, "-c", code], env=os.environ | self.environment, check=True)


@dataclass(frozen=True)
class Night:
    """A night as the scenario has it.

    Attributes:
        before: what happens before it, in words.
        happens: the same as a deed.
        outcome: what the night must come to.
        champion: which version must be champion after it: `new`, the one that the night made; `stays`, the
            one before the night; `former`, the one that was champion before that; `none`.
    """

    before: str
    happens: Callable[[World], object]
    outcome: str
    champion: str


def nothing(_: World) -> None:
    """Nothing happens."""


def scenario() -> list[Night]:
    """The fourteen nights."""
    return [
        Night("the first night, 30 texts a topic", nothing, "promoted", "new"),
        Night("nothing", nothing, "nothing", "stays"),
        Night("70 texts a topic more", more(70, 1), "promoted", "new"),
        Night("corrupt data: three rows without a label", World.spoil, "failed", "stays"),
        Night("the rows are taken out again", World.mend, "same", "stays"),
        Night("inputs of another kind are monitored", World.strangers, "drift", "stays"),
        Night("rates at which nothing is learnt", worse, "refused", "stays"),
        Night("the rates are put back", good, "same", "stays"),
        Night("40 texts a topic more, and MLflow is down", outage, "unpublished", "stays"),
        Night("MLflow is back", World.start, "promoted", "new"),
        Night("40 texts a topic more; the night is killed while it trains", crash, "promoted", "new"),
        Night("somebody rolls back", rollback, "nothing", "former"),
        Night("somebody deletes the alias", World.remove_alias, "failed", "none"),
        Night("the champion is put back by hand", restore, "nothing", "former"),
    ]


def more(each: int, seed: int) -> Callable[[World], None]:
    """New labelled texts."""
    return lambda world: world.add(each, seed)


def worse(world: World) -> None:
    """Rates at which nothing is learnt."""
    world.learn(1, scratch=1e-7, frozen=1e-7, full=1e-7)


def good(world: World) -> None:
    """The rates of before."""
    world.learn(8, scratch=0.01, frozen=0.05, full=0.01)


def outage(world: World) -> None:
    """More data, and no tracking server."""
    world.add(20, 2)
    world.stop()


def crash(world: World) -> None:
    """More data, and a night that dies."""
    world.add(20, 3)
    world.killed_night()


def rollback(world: World) -> None:
    """Back to the champion before."""
    world.headstart("rollback", EXPERIMENT, "--why", "it felt wrong")


def restore(world: World) -> None:
    """The champion that was rolled back to, by its number."""
    world.headstart("promote", f"{MODEL}@{world.seen[-2]}", "--why", "put back")


# ---------------------------------------------------------------------------------------------- the fortnight


@dataclass(frozen=True)
class Row:
    """What a night came to.

    Attributes:
        night: as the scenario has it.
        causes: that it found.
        outcome: what it came to.
        champion: after it.
        seconds: wall time.
        wrong: what differs from the scenario; empty where nothing does.
        said: all that it printed.
    """

    night: Night
    causes: str
    outcome: str
    champion: str | None
    seconds: float
    wrong: str
    said: str


def live(world: World, nights: list[Night]) -> list[Row]:
    """Go through the nights."""
    rows = []
    for number, night in enumerate(nights, start=1):
        night.happens(world)
        seconds, said = world.night()
        record = world.record()["experiments"].get(EXPERIMENT, {})
        outcome = str(record.get("outcome", "no record"))
        champion = world.seen[-1] if outcome == "unpublished" else world.champion()
        row = Row(
            night,
            ", ".join(dict.fromkeys(one["kind"] for one in record.get("causes", ()))) or "none",
            outcome,
            champion,
            seconds,
            _wrong(night, outcome, champion, world.seen),
            said,
        )
        world.seen.append(champion)
        rows.append(row)
        print(_line(number, row), flush=True)
        if row.wrong:
            print(said, file=sys.stderr)
    return rows


def _wrong(night: Night, outcome: str, champion: str | None, seen: list[str | None]) -> str:
    """What differs from the scenario."""
    known = [version for version in seen if version]
    last = seen[-1] if seen else None
    distinct = list(dict.fromkeys(reversed(known)))
    right = {
        "new": champion is not None and champion not in known,
        "stays": champion == last,
        "former": len(distinct) > 1 and champion == _former(known),
        "none": champion is None,
    }[night.champion]
    parts = [] if right else [f"champion {champion}, should be: {night.champion}"]
    if outcome != night.outcome:
        parts.append(f"came to {outcome!r}, should come to {night.outcome!r}")
    return "; ".join(parts)


def _former(known: list[str]) -> str | None:
    """The version before the newest: what is rolled back to, and stays from then on."""
    versions = sorted(set(known), key=int)
    return versions[-2] if len(versions) > 1 else None


def ledger_agrees(world: World, rows: list[Row]) -> str:
    """Hold the alias ledger against the nights; gives what differs."""
    told = json.loads(world.headstart("history", MODEL, "--json"))
    entries = told["entries"]
    champions: list[str | None] = []
    for one in entries:
        after = one["after"].get("champion")
        if not champions or champions[-1] != after:
            champions.append(after)
    lived: list[str | None] = []
    for row in rows:
        if not lived or lived[-1] != row.champion:
            lived.append(row.champion)
    refused = sum(one["what"] == "keep" for one in entries)
    expected = sum(row.outcome == "refused" for row in rows)
    parts = [] if told["holds"] else ["its chain does not hold"]
    parts += [] if champions == lived else [f"the ledger has champions {champions}, the nights {lived}"]
    if refused != expected:
        parts.append(f"the ledger has {refused} refusals, the nights {expected}")
    return "; ".join(parts)


def _line(number: int, row: Row) -> str:
    cells = (
        f"{number:2}", f"{row.night.before:<60}", f"{row.causes:<22}", f"{row.outcome:<12}",
        f"{row.champion or '-':>3}", f"{row.seconds:6.1f}", row.wrong and f"WRONG: {row.wrong}",
    )  # fmt: skip
    return "  ".join(cells).rstrip()


def main() -> int:
    """Live the fortnight and tell of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=14, help="Only as many of the first nights.")
    chosen = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fortnight-") as folder:
        clone = twin.build(Path(folder) / "twin")
        world = World(clone, servers.free_port())
        prepare(world)
        world.start()
        try:
            rows = live(world, scenario()[: chosen.nights])
            differs = ledger_agrees(world, rows)
            print("\n" + world.headstart("history", MODEL))
        finally:
            world.stop()
    wrong = [row for row in rows if row.wrong]
    print(f"{len(rows)} nights, {len(rows) - len(wrong)} as they should be, {time.monotonic() - began:.0f} s")
    print(f"the ledger {'differs: ' + differs if differs else 'agrees with what happened'}")
    return 1 if wrong or differs else 0


def prepare(world: World) -> None:
    """A clone with the one experiment, few data, and arms that learn it."""
    (world.clone.root / RAW).write_text("body,topic\n", "utf-8")
    world.add(30, 0)
    world.clone.edit_params(nightly={"experiments": [EXPERIMENT]}, experiments__topics__split__test=0.5)
    good(world)
    twin.git(world.clone.root, "commit", "--quiet", "--all", "--message", "Few texts")


def _number(path: Path) -> int:
    return int(json.loads(path.read_text("utf-8"))["number"])


if __name__ == "__main__":
    sys.exit(main())

"""batch: predict a folder or a table of any size, in pieces that survive a stop.

Pieces of so many inputs are predicted side by side, one core each, or over a Ray cluster, and each is a file
of its own beside the result. The same command goes on where a killed one was, with the version that one began
with; the result is made of all pieces at the end, so it is the same to the byte however often the work was
stopped.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from steps import artifacts, cluster, entry, inputs, outputs, pieces
from steps.errors import BusyError, UserError
from steps.kinds import KINDS, Kind
from steps.many import Asked, Many
from steps.pieces import Piece
from steps.tracking import addresses, registry, store
from steps.tracking.registry import Version

if TYPE_CHECKING:
    import pyarrow as pa

# Inputs of a piece: predicted together, so another number is another result in the last digit.
PIECE = 256
# Pieces that are handed to a cluster together: their inputs are in memory.
HANDED = 2048
# Pieces that are read for a group of rows of a Parquet file.
GROUP = 16
SUFFIXES = (".csv", ".jsonl", ".parquet")
ADVICE = "predictions need its model registry: start it, or correct MLFLOW_TRACKING_URI"
# What a shell says of a process that ended by Ctrl-C.
STOPPED = 130
_TYPES = {"double": "float64", "integer": "int64"}


def batch(experiment: str, names: Sequence[str], out: Path, ray: str | None = None) -> None:
    """Predict all inputs and write a table; what cannot be read goes to `<out>.rejected.csv`.

    Args:
        experiment: whose champion predicts.
        names: folders, files, tables, or (for a text model) texts.
        out: CSV, JSONL or Parquet by its suffix.
        ray: `local`, or the address of a Ray cluster, to predict there; see `steps/cluster.py`.

    Raises:
        UserError: there is no champion, or nothing of that name, or the suffix is another, or no cluster.
        BusyError: the same file is being made by another process.
        TrackingError: MLflow does not answer, or the version's files are gone or altered.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out} ends with none of {', '.join(SUFFIXES)}: its end says what is written")
    with store.opened(ADVICE) as opened, _alone(_folder(out)) as folder:
        found = registry.champion(opened, registry.name_of(experiment))
        if found is None:
            raise UserError(
                f"experiment {experiment!r} has no champion in {addresses.shown(addresses.address())}: "
                f"run `headstart run {experiment}` first"
            )
        kind = KINDS[found.tags["headstart.task"]]
        many = Many(names, inputs.columns_of(experiment, found.tags["headstart.task"]))
        version = _planned(opened, folder, found, many)
        total = len(many)
        if _done(folder, total) < total:
            if ray is None:
                _predict(version, many, total, folder)
            else:
                _predict_there(ray, version, many, total, folder)
        rejected = _join(folder, kind, out)
    done = total - rejected
    count = "1 prediction" if done == 1 else f"{done} predictions"
    entry.say(f"{count} by version {version.number} of {version.model} in {out}")
    if rejected:
        entry.say(f"{rejected} of {total} inputs cannot be read: {rejected_file(out)} says why")


def rejected_file(out: Path) -> Path:
    """Where the inputs are told that cannot be read."""
    return out.with_name(f"{out.name}.rejected.csv")


# ------------------------------------------------------------------------------------------------- the pieces


def _folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.pieces")


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """The folder of the pieces; it goes when the block ends well, else it stays for the next try."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"another process works in {folder}: wait until it is done") from None
        try:
            yield folder
        except BaseException:
            if not any(folder.glob("piece-*.json")):
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _planned(opened: store.Store, folder: Path, champion: Version, many: Many) -> Version:
    """The version to predict with: the one that a stopped command began with, if the inputs are the same."""
    path = folder / "plan.json"
    plan = {"model": champion.model, "inputs": many.identity(), "piece": PIECE}
    if path.exists():
        before = artifacts.read_json(path, "headstart predict --batch")
        number = before.pop("version")
        version = registry.version(opened, champion.model, number)
        if before == plan and version is not None:
            entry.say(f"going on with version {number} where it was")
            return version
        entry.say("the inputs or the model have changed since it was stopped: it begins anew")
    for stale in folder.glob("*.json"):
        stale.unlink()
    artifacts.write_json(path, {**plan, "version": champion.number})
    return champion


def _piece_file(folder: Path, place: int) -> Path:
    return folder / f"piece-{place:08}.json"


def _done(folder: Path, total: int) -> int:
    """How many inputs are in the pieces that are there."""
    places = range(-(-total // PIECE))
    return sum(min(PIECE, total - PIECE * at) for at in places if _piece_file(folder, at).exists())


def _left(many: Many, folder: Path) -> Iterator[tuple[int, list[Asked]]]:
    """Places and inputs of the pieces that are not there yet."""
    for place, asked in enumerate(many.chunks(PIECE)):
        if not _piece_file(folder, place).exists():
            yield place, asked


def _write(piece: Piece, folder: Path, place: int) -> None:
    with artifacts.new_file(_piece_file(folder, place)) as partial:
        partial.write_text(json.dumps(vars(piece)), "utf-8")


def _predict(version: Version, many: Many, total: int, folder: Path) -> None:
    """Make the pieces that are not there yet, side by side."""
    import torch

    loaded, kind = registry.load(version), KINDS[version.tags["headstart.task"]]
    entry.keep_freed_memory()
    # A core for each piece: two threads of torch on one batch gain less than two batches.
    torch.set_num_threads(1)
    workers = len(os.sched_getaffinity(0))

    def work(place: int, asked: list[Asked]) -> int:
        _write(pieces.answered(loaded, asked, kind, version.number), folder, place)
        return len(asked)

    with entry.Progress("predict", total) as progress, ThreadPoolExecutor(workers) as pool:
        done, flying = _done(folder, total), set[Future[int]]()
        try:
            for place, asked in _left(many, folder):
                flying.add(pool.submit(work, place, asked))
                # One piece waits for each that is worked on; no more are in memory.
                while len(flying) >= 2 * workers:
                    ready, flying = wait(flying, return_when=FIRST_COMPLETED)
                    done += sum(one.result() for one in ready)
                    progress.reached(done)
            for one in flying:
                done += one.result()
                progress.reached(done)
        finally:
            for one in flying:
                one.cancel()


def _predict_there(address: str, version: Version, many: Many, total: int, folder: Path) -> None:
    """Have the pieces that are not there yet made by a cluster, which reads the model beside them."""
    model = registry.whole(version, Path(tempfile.mkdtemp(prefix="model-", dir=folder)))
    done, left = _done(folder, total), _left(many, folder)
    with entry.Progress("predict", total) as progress:
        while some := list(islice(left, HANDED)):
            places, asked = zip(*some, strict=True)
            work = pieces.Work(
                Path.cwd(), model.resolve(), version.tags["headstart.task"], version.number, asked
            )
            found = cluster.over_ray(
                pieces.answerer, work, [[at] for at in range(len(asked))],
                address=address, threads=1, gpu=None, asked="--ray",
            )  # fmt: skip
            for (at,), (piece,) in found:
                _write(piece, folder, places[at])
                done += len(asked[at])
                progress.reached(done)


# ------------------------------------------------------------------------------------------------- the result


def _join(folder: Path, kind: Kind, out: Path) -> int:
    """Write the result and the rejected inputs from all pieces; gives how many were rejected."""
    write = {".csv": _write_csv, ".jsonl": _write_lines, ".parquet": _write_parquet}[out.suffix]
    with artifacts.new_file(out) as partial:
        write(partial, _pieces(folder), kind)
    rejected = sum(len(piece.rejected) for piece in _pieces(folder))
    path = rejected_file(out)
    if not rejected:
        path.unlink(missing_ok=True)
        return 0
    with artifacts.new_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, ["row", "input", "reason"], lineterminator="\n")
        table.writeheader()
        for piece in _pieces(folder):
            table.writerows(piece.rejected)
    return rejected


def _pieces(folder: Path) -> Iterator[Piece]:
    for path in sorted(folder.glob("piece-*.json")):
        yield Piece(**json.loads(path.read_text("utf-8")))


def _cells(pieces: Iterable[Piece]) -> Iterator[dict[str, Any]]:
    for piece in pieces:
        for row in piece.rows:
            yield dict(outputs.flat(row))


def _write_csv(path: Path, pieces: Iterable[Piece], kind: Kind) -> None:
    rows = _cells(pieces)
    first = next(rows, None)
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, _names(first, kind), lineterminator="\n")
        table.writeheader()
        table.writerows(chain([first] if first else [], rows))


def _names(first: dict[str, Any] | None, kind: Kind) -> list[str]:
    """The columns; where nothing could be read those that are known all the same."""
    return list(first) if first else ["row", "input", *kind.columns, "version", "said"]


def _write_lines(path: Path, pieces: Iterable[Piece], kind: Kind) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for piece in pieces:
            stream.write(outputs.as_lines(piece.rows))


def _write_parquet(path: Path, pieces: Iterable[Piece], kind: Kind) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = _cells(pieces)
    first = next(rows, None)
    schema = _schema(_names(first, kind), kind)
    rows = chain([first] if first else [], rows)
    with pq.ParquetWriter(path, schema, compression="zstd") as table:
        group: list[dict[str, Any]] = []
        for row in rows:
            group.append(row)
            if len(group) == GROUP * PIECE:
                table.write_table(pa.Table.from_pylist(group, schema))
                group = []
        table.write_table(pa.Table.from_pylist(group, schema))


def _schema(names: list[str], kind: Kind) -> pa.Schema:
    """The types are told, not guessed: a column of nothing but nulls is of its type all the same."""
    import pyarrow as pa

    types = {name: _TYPES.get(told, "string") for name, told in kind.outputs.items()} | {"row": "int64"}
    found = {
        name: "float64" if name.startswith("probability") else types.get(name, "string") for name in names
    }
    return pa.schema([(name, getattr(pa, one)()) for name, one in found.items()])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"{message}; usage: python -m steps.batch <experiment> --out FILE [--ray ADDRESS] INPUT..."
        )


def _main() -> None:
    parser = _Parser(prog="python -m steps.batch")
    parser.add_argument("experiment")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ray")
    parser.add_argument("inputs", nargs="+")
    given = parser.parse_args()
    try:
        batch(given.experiment, given.inputs, given.out, given.ray)
    except KeyboardInterrupt:
        entry.say("stopped; the same command goes on where it was")
        sys.exit(STOPPED)


def main() -> int:
    """Run `python -m steps.batch <experiment> --out FILE [--ray ADDRESS] INPUT...`."""
    return entry.guarded(_main)


if __name__ == "__main__":
    sys.exit(main())

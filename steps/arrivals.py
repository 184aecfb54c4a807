"""What came in for a model to answer: counted, told apart, and a random part of it kept."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from steps import artifacts, entry, inputs
from steps.kinds import KINDS, Kind

if TYPE_CHECKING:
    from steps.tasks import Content

RECORDED, LOOKS = Path(".headstart/recorded"), Path(".headstart/drift")
# Of a recorded request, beside the model's own columns.
VERSION, SAID = "version", "said"
# Rows of a recorded file in memory at a time.
CHUNK = 256


@dataclass(frozen=True)
class Item:
    """One new input; `label` is what `version` said of it, None where nothing was recorded."""

    name: str
    content: Content
    label: str | None = None
    version: str = ""

    def sha256(self) -> str:
        """Of the content, as ingest takes it."""
        if isinstance(self.content, Path):
            return artifacts.sha256_file(self.content)
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        text = self.content if isinstance(self.content, str) else "\0".join(self.content)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass
class Arrived:
    """Counts inputs as they come, and keeps so many distinct ones, drawn at random.

    Kept are those whose salted hashes are smallest: every distinct content has the same chance, in whatever
    order and however often they come, and memory does not grow with the contents.

    Attributes:
        most: how many are kept.
        known: hashes of the reference's contents.
        version: whose answers are counted.
        inputs: how many came.
        copies: distinct ones that the reference has too.
        answers: distinct ones that some version named a class of.
        labels: how often `version` said each class, of distinct ones.
        hashes: of the distinct ones.
        unreadable: why, of those that cannot be read.
    """

    most: int
    known: frozenset[str]
    version: str
    inputs: int = 0
    copies: int = 0
    answers: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    hashes: set[str] = field(default_factory=set)
    unreadable: dict[str, str] = field(default_factory=dict)
    _kept: list[tuple[int, int, Item]] = field(default_factory=list)

    def take(self, items: Iterable[Item]) -> None:
        """Count them all and keep some."""
        for item in items:
            self._take(item)

    def _take(self, item: Item) -> None:
        self.inputs += 1
        try:
            sha256 = item.sha256()
        except OSError as error:
            self.unreadable[item.name] = error.strerror or str(error)
            return
        if sha256 in self.hashes:
            return
        self.hashes.add(sha256)
        self.copies += sha256 in self.known
        if item.label is not None:
            self.answers += 1
            if item.version == self.version:
                self.labels[item.label] = self.labels.get(item.label, 0) + 1
        # Negative, since the heap gives up its smallest; the number only tells equal places apart.
        place = -int.from_bytes(order("new", sha256), "big")
        change = heapq.heappush if len(self._kept) < self.most else heapq.heappushpop
        change(self._kept, (place, self.inputs, item))

    def kept(self) -> list[Item]:
        """The inputs that were drawn, in the order of their draw."""
        return [item for *_, item in sorted(self._kept, key=lambda one: one[:2], reverse=True)]

    @property
    def distinct(self) -> int:
        """How many differ."""
        return len(self.hashes)

    @property
    def sha256(self) -> str:
        """Over the distinct contents, whatever their order."""
        return hashlib.sha256("\n".join(sorted(self.hashes)).encode()).hexdigest()


def named(experiment: str, task: str, names: Sequence[str]) -> Iterator[Item]:
    """The inputs that the user named; a table with answers is read as what was recorded."""
    columns = inputs.columns_of(experiment, task)
    for name in names:
        table = inputs.read_table(Path(name), columns.encoding) if inputs.is_table(name) else None
        if table is not None and {SAID, *columns.inputs} <= set(table.columns):
            yield from _answered(table, Path(name), KINDS[task])
            continue
        for one in inputs.gather([name], columns):
            yield Item(one.name, _joined(one.contents))


def recorded(paths: Sequence[Path], kind: Kind) -> Iterator[Item]:
    """What a server recorded, a few rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = {*kind.columns, VERSION, SAID}
    for path in paths:
        try:
            with closing(pq.ParquetFile(path)) as file:
                names = [name for name in file.schema_arrow.names if name in wanted]
                for batch in file.iter_batches(CHUNK, columns=names):
                    yield from _answered(batch.to_pandas(), path, kind)
        except (pa.ArrowException, OSError, KeyError) as error:
            entry.say(f"{path} is damaged and left out: {' '.join(str(error).split())[:200]}")


def _answered(table: pd.DataFrame, path: Path, kind: Kind) -> Iterator[Item]:
    """Rows with what was said of them."""
    values = zip(*(table[name] for name in kind.columns), strict=True)
    said = table[SAID] if SAID in table else [None] * len(table)
    versions = table[VERSION] if VERSION in table else [""] * len(table)
    for row, answer, version in zip(values, said, versions, strict=True):
        parts = tuple(_content(value, path, kind) for value in row)
        name = str(row[0]) if isinstance(row[0], str) else path.name
        yield Item(name, _joined(parts), _label(answer, kind), str(version))


def _content(value: object, path: Path, kind: Kind) -> Path | bytes | str:
    """A cell; images are bytes, or named by their path from the table or from where the command runs."""
    if kind.content == "text":
        return value if isinstance(value, str) else ""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    beside = path.parent / str(value)
    return beside if beside.exists() else Path(str(value))


def _joined(parts: tuple[Path | bytes | str, ...]) -> Content:
    return parts[0] if len(parts) == 1 else (str(parts[0]), str(parts[1]))


def _label(answer: object, kind: Kind) -> str | None:
    """The class that a recorded answer names; None where there is none."""
    if not kind.classified or not isinstance(answer, str):
        return None
    try:
        label = json.loads(answer)["label"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(label)


def unseen(experiment: str) -> list[Path]:
    """Recorded files that no look has taken in, in the order of their names."""
    seen: set[str] = set()
    if _seen_file(experiment).exists():
        seen = set(_seen_file(experiment).read_text("utf-8").splitlines())
    return [path for path in _recordings(experiment) if _short(experiment, path) not in seen]


def _recordings(experiment: str) -> list[Path]:
    found = sorted((RECORDED / experiment).glob("*/*.parquet"))
    return [path for path in found if not path.name.startswith(".")]


def remember(experiment: str, paths: Sequence[Path]) -> None:
    """Note which recorded files were taken in; what was deleted since is forgotten."""
    if not paths:
        return
    taken = {_short(experiment, path) for path in paths}
    left = {_short(experiment, path) for path in unseen(experiment)} - taken
    kept = [name for path in _recordings(experiment) if (name := _short(experiment, path)) not in left]
    with artifacts.new_file(_seen_file(experiment)) as partial:
        partial.write_text("\n".join(kept) + "\n", "utf-8")


def _short(experiment: str, path: Path) -> str:
    return path.relative_to(RECORDED / experiment).as_posix()


def _seen_file(experiment: str) -> Path:
    return LOOKS / f"{experiment}.seen"


def order(side: str, name: str) -> bytes:
    """A place among all items that is as good as random, and the same every time."""
    return hashlib.sha256(f"{side}\0{name}".encode("utf-8", "surrogatepass")).digest()

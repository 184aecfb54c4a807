"""What a stage was made from and what came out, as one entry of dvc.lock: asked for, checked, merged.

A stage that ran in another clone comes home as its entry of dvc.lock. Its outputs are content-addressed, so
the entry says all there is to say of them; who holds the entry and reaches the DVC remote holds the result.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps import artifacts
from steps.errors import HeadstartError, StageError, UserError

LOCK = Path("dvc.lock")
# The version of dvc.lock's own format.
SCHEMA = "2.0"

Entry = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """All that decides what a stage makes.

    Attributes:
        cmd: the command.
        deps: the hash of every file and folder it depends on, by path.
    """

    cmd: str
    deps: dict[str, str]

    @property
    def sha256(self) -> str:
        """One digest of all of it."""
        return artifacts.sha256_json([self.cmd, self.deps])

    def differing(self, other: Inputs) -> list[str]:
        """What is not the same in both: paths, and the command."""
        paths = sorted(self.deps.keys() | other.deps.keys())
        found = [path for path in paths if self.deps.get(path) != other.deps.get(path)]
        return found if self.cmd == other.cmd else ["the command", *found]


def inputs_of(entry: Entry) -> Inputs:
    """What an entry of dvc.lock was made from."""
    return Inputs(str(entry["cmd"]), {one["path"]: one["md5"] for one in entry.get("deps", ())})


def check(stage: str, entry: Entry, asked: Inputs, outs: Iterable[str]) -> None:
    """See that an entry is of what was asked for, and complete.

    Raises:
        StageError: it was made from other inputs, or lacks an output.
    """
    try:
        differing = asked.differing(inputs_of(entry))
        missing = sorted(set(outs) - {one["path"] for one in entry.get("outs", ()) if one["md5"]})
    except (KeyError, TypeError, AttributeError):
        raise StageError(
            f"{stage}: what the worker sent is no entry of dvc.lock; the stage is not taken"
        ) from None
    if differing:
        raise StageError(
            f"{stage}: the worker had other inputs than this clone: {', '.join(differing[:5])}; not taken"
        )
    if missing:
        raise StageError(
            f"{stage}: the worker's entry lacks {', '.join(missing[:5])}; the stage is not taken"
        )


def merged(text: str, stage: str, entry: Entry) -> str:
    """dvc.lock's text with one entry put in or replaced; the others are left as they are, in their order."""
    from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

    content = parse_yaml_for_update(text, str(LOCK)) or {}
    if not content:
        content["schema"] = SCHEMA
    stages = content.get("stages") or {}
    stages[stage] = entry
    content["stages"] = stages
    return str(dumps_yaml(content))


def outputs_alone(entry: Entry) -> Entry:
    """An entry without its dependencies: enough to bring the outputs, and small enough to be sent around."""
    return {"cmd": entry["cmd"], "outs": entry.get("outs", [])}


class Clone:
    """What dvc.yaml and dvc.lock of the clone in the working directory say; read anew for every question."""

    def graph(self, targets: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The targets and all that comes before them, each with the stages it needs, first things first.

        Raises:
            UserError: there is no such stage.
        """
        with _repo() as repo:
            nodes = {node.addressing: node for node in repo.index.stages}
            order: dict[str, tuple[str, ...]] = {}

            def visit(name: str) -> None:
                if name in order:
                    return
                needs = sorted(
                    str(one.addressing)
                    for one in repo.index.graph.successors(_known(nodes, name))
                    if not one.is_data_source
                )
                for one in needs:
                    visit(one)
                order[name] = tuple(needs)

            for target in targets:
                visit(target)
        return order

    def has_remote(self) -> bool:
        """Whether DVC has a default remote."""
        with _repo() as repo:
            return bool(repo.config["core"].get("remote"))

    def up_to_date(self, stage: str) -> bool:
        """Whether nothing that DVC watches of the stage has changed, and its outputs are here."""
        with _repo() as repo:
            return not _node(repo, stage).status()

    def inputs(self, stage: str) -> Inputs:
        """What the stage would be made from, from the bytes that lie here.

        Raises:
            UserError: something it depends on is not here.
        """
        with _repo() as repo:
            node = _node(repo, stage)
            missing = sorted(str(dep.def_path) for dep in node.deps if not dep.exists)
            if missing:
                raise UserError(f"{stage} needs {', '.join(missing[:5])}, which is not here; run `dvc pull`")
            return Inputs(str(node.cmd), {str(dep.def_path): str(dep.get_hash().value) for dep in node.deps})

    def outs(self, stage: str) -> list[str]:
        """The paths a stage makes."""
        with _repo() as repo:
            return [str(out.def_path) for out in _node(repo, stage).outs]

    def entry(self, stage: str) -> Entry | None:
        """What dvc.lock holds of a stage."""
        from dvc.utils.serialize import parse_yaml

        with _repo():  # while nobody writes it
            content = parse_yaml(_text(), str(LOCK)) or {}
        found: Entry | None = (content.get("stages") or {}).get(stage)
        return found

    def merge(self, stage: str, entry: Entry) -> None:
        """Put one entry into dvc.lock, whole or not at all, while no other process of DVC writes it."""
        with _repo():
            _write(merged(_text(), stage, entry))

    def replace_lock(self, entries: Mapping[str, Entry]) -> None:
        """Make these entries all that dvc.lock says."""
        text = ""
        for stage, entry in entries.items():
            text = merged(text, stage, entry)
        with _repo():
            _write(text)


def _text() -> str:
    return LOCK.read_text("utf-8") if LOCK.exists() else ""


def _write(text: str) -> None:
    with artifacts.new_file(LOCK) as partial:
        partial.write_text(text, "utf-8")


def _node(repo: Any, stage: str) -> Any:  # noqa: ANN401 - DVC is not typed
    return _known({node.addressing: node for node in repo.index.stages}, stage)


def _known(nodes: Mapping[str, Any], stage: str) -> Any:  # noqa: ANN401 - DVC is not typed
    if stage not in nodes:
        raise UserError(f"dvc.yaml has no stage {stage!r}")
    return nodes[stage]


@contextmanager
def _repo() -> Iterator[Any]:
    """DVC's view of the clone, while no other process changes it.

    Raises:
        UserError: DVC cannot work here.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    for name in ("dvc", "dvc_data"):  # a bar for every file that is hashed, otherwise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with Repo(".", _wait_for_lock=True) as repo, repo.lock:
            yield repo
    except HeadstartError:
        raise
    except DvcException as error:
        raise UserError(f"DVC cannot go on: {' '.join(str(error).split())}") from None

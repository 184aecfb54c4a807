"""pin: fill in, for the pretrained weights of an experiment, what makes their bytes certain.

The newest revision, the hash and the licence are asked for and written into params.yaml, whose comments and
layout stay. Nothing that a repository holds is run.
"""

from __future__ import annotations

import argparse
import io
import sys
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import CommentMark, YAMLError
from ruamel.yaml.tokens import CommentToken

from steps import artifacts, entry, params, sources
from steps.errors import ParamsError, UserError
from steps.params import Params
from steps.references import NewWeights, Pretrained, expand
from steps.settings import suggest


@dataclass(frozen=True)
class Row:
    """A pretrained reference, and what pinning makes of it.

    Attributes:
        slug: its name under `pretrained:`.
        source: as in params.yaml.
        model: what the source calls it.
        revision: the newest commit or version; "" where a source has none.
        sha256: of the weights; "" where there are none.
        size: of the weights, in bytes; None where nobody tells.
        licence: as stated, "" where it is not.
        changes: keys of params.yaml that get another value: what it was, None for nothing, and what it is.
    """

    slug: str
    source: str
    model: str
    revision: str
    sha256: str
    size: int | None
    licence: str
    changes: dict[str, tuple[Any, Any]]

    @property
    def state(self) -> str:
        """In a word: `pinned`, `not pinned` or `moved`."""
        if not self.changes:
            return "pinned"
        return "not pinned" if any(before is None for before, _ in self.changes.values()) else "moved"


def pin(experiment: str, *, candidates: bool = False, check: bool = False) -> list[Row]:
    """Pin the pretrained references of an experiment to what they mean today.

    Args:
        experiment: its name in params.yaml.
        candidates: those of `candidates:` too.
        check: change nothing.

    Raises:
        UserError: there is no such experiment.
        WeightsError: a reference cannot be resolved; nothing is written then.
    """
    checked = params.load(artifacts.PARAMS_FILE)
    rows = [_row(slug, checked.pretrained[slug]) for slug in slugs_of(checked, experiment, candidates)]
    changes = {row.slug: {key: new for key, (_, new) in row.changes.items()} for row in rows if row.changes}
    if changes and not check:
        write(artifacts.PARAMS_FILE, changes)
    return rows


def slugs_of(checked: Params, experiment: str, candidates: bool) -> list[str]:
    """The references an experiment uses, and those whose tokenizer one of them borrows.

    Raises:
        UserError: there is no such experiment.
    """
    if experiment not in checked.experiments:
        raise UserError(f"there is no experiment {experiment!r}{suggest(experiment, checked.experiments)}")
    settings = checked.experiments[experiment]
    slugs = [settings.model.pretrained, *(settings.candidates if candidates else ())]
    for slug in list(slugs):
        reference = checked.pretrained[slug]
        if isinstance(reference, NewWeights) and reference.tokenizer is not None:
            slugs.append(reference.tokenizer)
    return list(dict.fromkeys(slugs))


def _row(slug: str, reference: Pretrained) -> Row:
    entry.say(f"{slug}: looking at {reference.source}")
    told = sources.newest(reference)
    fields = {key: value for key, value in told.fields.items() if value not in (None, "")}
    # A licence that the user wrote stays as it is.
    if getattr(reference, "licence", None):
        fields.pop("licence", None)
    before = {key: getattr(reference, key) or None for key in fields}
    return Row(
        slug,
        reference.source,
        name_of(reference),
        str(told.fields.get("revision") or told.fields.get("version") or ""),
        str(told.fields.get("sha256") or ""),
        told.size,
        str(fields.get("licence") or getattr(reference, "licence", None) or ""),
        {key: (before[key], value) for key, value in fields.items() if before[key] != value},
    )


def name_of(reference: Pretrained) -> str:
    """What a reference's own source calls it."""
    for key in ("model", "handle", "package", "path", "architecture"):
        if value := getattr(reference, key, None):
            return str(value)
    raise AssertionError(f"a reference of {reference.source} without a name")


# ------------------------------------------------------------------------------------------- params.yaml


def write(path: Path, changes: dict[str, dict[str, Any]]) -> None:
    """Change keys of entries under `pretrained:`; comments and layout stay.

    Args:
        path: of params.yaml.
        changes: new values by key, by the entry's name.

    Raises:
        ParamsError: the file would not be read as before; it is left as it was.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096  # no line of the user's is folded
    before = path.read_text("utf-8")
    content = yaml.load(before)
    section = content["pretrained"]
    for slug, values in changes.items():
        if isinstance(section[slug], str):
            _lengthen(section, slug)
        _change(section[slug], values)
    after = _with_changes(before, _dumped(yaml, yaml.load(before)), _dumped(yaml, content))
    _check(after, before, changes)
    with artifacts.new_file(path) as partial:
        partial.write_text(after, "utf-8")


def _dumped(yaml: YAML, content: CommentedMap) -> str:
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()


def _with_changes(text: str, unchanged: str, changed: str) -> str:
    """The user's text with what differs between two dumps of it, which may set blanks another way."""
    own, one, other = (each.splitlines(keepends=True) for each in (text, unchanged, changed))
    if len(own) != len(one):
        return changed
    lines: list[str] = []
    for tag, start, stop, first, last in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        lines += own[start:stop] if tag == "equal" else other[first:last]
    return "".join(lines)


def _lengthen(section: CommentedMap, slug: str) -> None:
    """Put the mapping in the place of a line of text that stands for it."""
    long = expand(str(section[slug]))
    assert isinstance(long, dict)
    mapping = CommentedMap(long)
    comment = section.ca.items.pop(slug, None)
    section[slug] = mapping
    if comment is not None and comment[2] is not None:
        _, _, below = comment[2].value.partition("\n")
        head = comment[2].value[: len(comment[2].value) - len(below)]
        if head.strip():
            mapping.ca.comment = [_token(head), None]
        if below:
            mapping.ca.items[next(reversed(mapping))] = [None, None, _token("\n" + below), None]


def _change(mapping: CommentedMap, values: dict[str, Any]) -> None:
    """Set values; new keys come behind the model's own name, the comments of what follows stay behind all."""
    for key in [key for key in mapping if key in values]:
        mapping[key] = values[key]
    new = [
        key for key in ("version", "revision", "sha256", "licence") if key in values.keys() - mapping.keys()
    ]
    if not new:
        return
    named = [at for at, key in enumerate(mapping) if key in ("model", "handle", "package", "path", "alias")]
    place = (max(named) if named else 0) + 1
    last = next(reversed(mapping))
    moves = place == len(mapping)
    for at, key in enumerate(new, place):
        mapping.insert(at, key, values[key])
    if moves and (comment := mapping.ca.items.get(last)) is not None and comment[2] is not None:
        own, line, below = comment[2].value.partition("\n")
        if below:
            mapping.ca.items[new[-1]] = [None, None, _token("\n" + below), None]
            if own.strip():
                comment[2].value = own + line
            else:
                del mapping.ca.items[last]


def _token(text: str) -> CommentToken:
    return CommentToken(text, CommentMark(0), None)


def _check(after: str, before: str, changes: dict[str, dict[str, Any]]) -> None:
    """Hold that nothing but the pins changed, and that the file is read as before.

    Raises:
        ParamsError: it is not.
    """
    wanted, found = _loaded(before), _loaded(after)
    for slug, values in changes.items():
        wanted["pretrained"][slug] = {**dict(expand(wanted["pretrained"][slug])), **values}  # type: ignore[call-overload]
    if wanted != found:
        raise ParamsError(
            "params.yaml cannot be changed without touching more than the pins; write them by hand: "
            + "; ".join(
                f"pretrained.{slug}: {', '.join(f'{key}: {value}' for key, value in values.items())}"
                for slug, values in changes.items()
            )
        )
    params.parse(Params, found, "params.yaml")


def _loaded(text: str) -> Any:  # noqa: ANN401 - whatever YAML held
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return None


def main() -> int:
    """Run `python -m steps.pin <experiment> [--candidates] [--check] [--report FILE]`."""
    return entry.guarded(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m steps.pin", allow_abbrev=False)
    parser.add_argument("experiment")
    parser.add_argument("--candidates", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--report", type=Path, help="where to write the rows, as JSON")
    given = parser.parse_args()
    rows = pin(given.experiment, candidates=given.candidates, check=given.check)
    if given.report is not None:
        told = [asdict(row) | {"state": row.state} for row in rows]
        artifacts.write_json(given.report, told)
    loose = [row.slug for row in rows if row.changes]
    if given.check and loose:
        raise UserError(
            f"{', '.join(loose)}: not pinned, or moved since; `headstart pin {given.experiment}` pins what "
            "there is today"
        )


if __name__ == "__main__":
    sys.exit(main())

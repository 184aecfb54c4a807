"""monitor: do new inputs still come from where an experiment's data came from? Needs no labels."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pandas as pd

from steps import arrivals, artifacts, drift, entry, params
from steps.arrivals import Arrived
from steps.drift import Outcome, Verdict
from steps.errors import DataError, UserError
from steps.kinds import KINDS, Kind
from steps.operation import Drift
from steps.params import EmbedSettings, ValidateSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from steps.tasks import Content

VERDICTS = arrivals.LOOKS
# What is read of each item besides its features, in words.
FACTS = {
    "brightness": "mean brightness of an image, 0 to 255",
    "contrast": "standard deviation of an image's brightness",
    "size": "pixels of an image",
    "length": "characters of a text",
    "pair_length": "characters of the second text",
}


def monitor(experiment: str, named: Sequence[str] = ()) -> None:
    """Compare new inputs with the experiment's data, and write `.headstart/drift/<experiment>.json`.

    Args:
        experiment: its name.
        named: files, texts, a folder or tables; none for the requests recorded since the last look.

    Raises:
        UserError: inputs are missing, or there is no reference to compare with; told is what to run.
    """
    settings = _Settings.read(experiment)
    reference = _reference(experiment, settings)
    paths = [] if named else arrivals.unseen(experiment)
    arrived = Arrived(settings.drift.max_items, reference.hashes, reference.version)
    if named:
        arrived.take(arrivals.named(experiment, settings.task, named))
    else:
        arrived.take(arrivals.recorded(paths, settings.kind))
    if not named and not paths:
        _no_verdict(experiment, reference, arrived, "nothing was recorded since the last look")
        return
    facts, contents = _readable(arrived, settings)
    obstacle = _too_few(arrived, facts, reference, settings.drift)
    if obstacle:
        _no_verdict(experiment, reference, arrived, obstacle)
        return
    verdict = _compare(experiment, settings, reference, arrived, facts, contents)
    _write(experiment, reference, arrived, verdict, _sentence(arrived, reference, verdict))
    arrivals.remember(experiment, paths)


@dataclass(frozen=True)
class _Settings:
    """What resolve wrote, of three steps."""

    embed: EmbedSettings
    drift: Drift
    max_pixels: int

    @classmethod
    def read(cls, experiment: str) -> _Settings:
        of = artifacts.settings_file
        checks = params.read_settings(ValidateSettings, of(experiment, "validate")).validation
        embed = params.read_settings(EmbedSettings, of(experiment, "embed"))
        return cls(embed, params.read_settings(Drift, of(experiment, "drift")), checks.max_pixels)

    @property
    def task(self) -> str:
        return self.embed.task

    @property
    def kind(self) -> Kind:
        return KINDS[self.task]


# -------------------------------------------------------------------------------------------- the reference


@dataclass(frozen=True)
class _Reference:
    """What new inputs are compared with.

    Attributes:
        rows: the samples drawn, at most `drift.max_items`; one of each group.
        count: how many there are in all.
        hashes: of all contents.
        sha256: of the data that the features were made from.
        version: of the registered model that was trained on them; empty where there is none.
        said: how often that version said each class of the test split; empty where that is not known.
    """

    rows: pd.DataFrame
    count: int
    hashes: frozenset[str]
    sha256: str
    version: str
    said: dict[str, int]


def _reference(experiment: str, settings: _Settings) -> _Reference:
    """The samples whose features embed stored.

    All splits: none of them has met the frozen backbone.

    Raises:
        UserError: there are no features here, or they are of other data or another backbone than today's.
    """
    _check_there(experiment, settings)
    from steps import data

    rows = data.read_used(experiment)
    folder = artifacts.features_dir(experiment)
    key = artifacts.read_json(folder / "features.json", "python -m steps.embed")
    _check_current(experiment, settings, key, data.fingerprint(rows))
    version, said = _of_version(experiment, settings.kind)
    drawn = _one_each(rows).head(settings.drift.max_items)
    return _Reference(drawn, len(rows), frozenset(rows["sha256"]), key["data_sha256"], version, said)


def _check_there(experiment: str, settings: _Settings) -> None:
    slug = settings.embed.model.pretrained
    needed = {
        artifacts.features_dir(experiment): f"embed@{experiment}",
        artifacts.validation_dir(experiment): f"validate@{experiment}",
        artifacts.split_file(experiment): f"split@{experiment}",
        artifacts.data_dir(experiment): f"ingest@{experiment}",
        artifacts.pretrained_dir(slug): f"fetch@{slug}",
    }
    missing = {path: stage for path, stage in needed.items() if not path.exists()}
    if missing:
        raise UserError(
            f"there is nothing to compare with, {', '.join(map(str, missing))} is missing: "
            f"`dvc pull {' '.join(missing.values())}` brings what another clone pushed, "
            f"`headstart run {experiment}` makes it"
        )


def _check_current(experiment: str, settings: _Settings, key: dict[str, Any], data_sha256: str) -> None:
    """Features of another backbone, or of other settings, would differ for no fault of the inputs."""
    pretrained = artifacts.pretrained_dir(settings.embed.model.pretrained)
    now = {
        "data_sha256": data_sha256,
        "pretrained_sha256": artifacts.weights_sha256(pretrained),
        "transform_sha256": artifacts.sha256_json(settings.embed.model.model_dump(mode="json")),
    }
    names = {"data_sha256": "data", "pretrained_sha256": "weights", "transform_sha256": "model settings"}
    changed = [names[name] for name, value in now.items() if key[name] != value]
    if changed:
        raise UserError(
            f"the stored features of {experiment} are of other {' and '.join(changed)} than today's: "
            f"`headstart run {experiment}` makes them anew"
        )


def _one_each(rows: pd.DataFrame) -> pd.DataFrame:
    """In random order, one sample of each group: those that belong together are not independent."""
    order = pd.Series([arrivals.order("reference", one) for one in rows["id"]], rows.index)
    mixed = rows.loc[order.sort_values().index]
    again = mixed["group"].notna() & mixed["group"].duplicated()
    return mixed[~again]


def _of_version(experiment: str, kind: Kind) -> tuple[str, dict[str, int]]:
    """The version that register made of today's result, and the classes it said of the test split."""
    path = artifacts.registration_file(experiment)
    if not path.exists():
        return "", {}
    noted = artifacts.read_json(path, "python -m steps.register")
    version, arm, seed = str(noted["version"]), noted["arm"], noted["seed"]
    from steps.tracking import journal

    comparison = artifacts.report_dir(experiment) / "comparison.json"
    if not kind.classified or not comparison.exists() or noted["result"] != journal.identity(experiment):
        return version, {}
    resample = artifacts.read_json(comparison, "python -m steps.compare")["best_resample"]
    said = pd.read_parquet(
        artifacts.evaluation_dir(experiment) / "predictions.parquet",
        columns=["predicted"],
        filters=[("arm", "==", arm), ("seed", "==", seed), ("resample", "==", resample)],
    )
    return version, drift.counts([str(one) for one in said["predicted"]])


# ------------------------------------------------------------------------------------------- the comparison


def _readable(arrived: Arrived, settings: _Settings) -> tuple[dict[str, list[float]], list[Content]]:
    """The plain facts of every input that can be read, and these inputs; the others are noted."""
    facts: dict[str, list[float]] = {}
    contents: list[Content] = []
    if arrived.distinct < settings.drift.min_items:
        return facts, contents
    for item in arrived.kept():
        try:
            found = facts_of(item.content, settings.max_pixels)
        except (DataError, OSError) as error:
            arrived.unreadable[item.name] = str(error)
            continue
        contents.append(item.content)
        for name, value in found.items():
            facts.setdefault(name, []).append(value)
    return facts, contents


def facts_of(content: Content, max_pixels: int | None = None) -> dict[str, float]:
    """Numbers that say little by themselves, but what changed when the embedding did.

    Raises:
        DataError: the content cannot be read.
    """
    if isinstance(content, Path | bytes):
        return _facts_of_image(content, max_pixels)
    texts = (content,) if isinstance(content, str) else content
    if not all(text.strip() for text in texts):
        raise DataError("the text is empty")
    return dict(zip(("length", "pair_length"), map(float, map(len, texts)), strict=False))


def _facts_of_image(content: Path | bytes, max_pixels: int | None) -> dict[str, float]:
    import numpy as np

    from steps import scans

    width, height = scans.size_of(content)
    if max_pixels is not None and width * height > max_pixels:
        raise DataError(f"{width} x {height} pixels are more than the {max_pixels} allowed")
    grey = np.asarray(scans.picture(content).convert("L"), dtype=np.float64)
    return {"brightness": float(grey.mean()), "contrast": float(grey.std()), "size": float(width * height)}


def _too_few(
    arrived: Arrived, facts: dict[str, list[float]], reference: _Reference, settings: Drift
) -> str | None:
    """Why nothing can be said, or None."""
    least = settings.min_items
    usable = max(map(len, facts.values()), default=0) if arrived.distinct >= least else arrived.distinct
    if usable < least:
        return f"{_items(usable)}, at least {least} are needed (drift.min_items)"
    if len(reference.rows) < least:
        return (
            f"the reference has {len(reference.rows)} samples, at least {least} are needed (drift.min_items)"
        )
    return None


def _compare(
    experiment: str,
    settings: _Settings,
    reference: _Reference,
    arrived: Arrived,
    facts: dict[str, list[float]],
    contents: list[Content],
) -> Verdict:
    """All tests of the family.

    Raises:
        UserError: too few permutations for the level.
    """
    from steps import data, tasks

    rule = settings.drift
    with_classes = _has_classes(reference, arrived, rule)
    least = drift.least_permutations(1 + len(facts) + with_classes, rule.level)
    if rule.permutations < least:
        raise UserError(
            f"drift.permutations: {rule.permutations} can never tell of drift at drift.level {rule.level:g}; "
            f"write {least} or more"
        )
    task = tasks.get(settings.task)
    known = tasks.contents(task, reference.rows, artifacts.data_dir(experiment))
    before = _columns([facts_of(one) for one in known])
    embedded = data.read_features(artifacts.features_dir(experiment), reference.rows["id"])
    found = embed_new(contents, settings.embed)
    tests: list[Outcome] = [drift.METHODS[rule.method](embedded, found, rule.permutations)]
    tests += [drift.numbers(name, FACTS[name], before[name], facts[name]) for name in facts]
    if with_classes:
        what = f"classes that version {reference.version} says"
        tests.append(drift.classes("classes", what, reference.said, arrived.labels, rule.permutations))
    return drift.judge(tests, rule.level)


def _has_classes(reference: _Reference, arrived: Arrived, rule: Drift) -> bool:
    """Whether there are answers to compare; says why not where there are some."""
    known = sum(arrived.labels.values())
    if not arrived.answers or (reference.said and known >= rule.min_items):
        return bool(arrived.answers)
    if not reference.said:
        why = "no registered version is of today's result"
    else:
        why = f"{known} of {arrived.answers} answers are of today's version {reference.version}"
    entry.say(f"the classes that were said are not compared: {why}")
    return False


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def embed_new(contents: list[Content], settings: EmbedSettings) -> NDArray[np.float32]:
    """The features of new contents, computed as embed did; shape (items, features)."""
    import numpy as np

    from steps import embedding, features, network, savedmodel, tasks
    from steps.savedmodel import Extractor
    from steps.scans import Rule

    pretrained = artifacts.pretrained_dir(settings.model.pretrained)
    task, device = tasks.get(settings.task), network.prepare_device(settings.machine.device)
    if artifacts.saved_model(pretrained) is None:
        samples = task.samples(contents, settings.model, pretrained)
        backbone = network.build_backbone(
            pretrained, pretrained=True, channels=Rule.of(settings.model).channels
        )
        return features.compute(backbone, samples, device).numpy()
    images = KINDS[task.name].content == "image"
    decoded = task.samples(contents, settings.model, pretrained) if images else None
    with closing(Extractor(pretrained)) as extractor:
        batches = embedding.savedmodel_batches(contents, decoded)
        return np.concatenate(list(savedmodel.features(extractor, batches)))


# ------------------------------------------------------------------------------------------- what is told


def _no_verdict(experiment: str, reference: _Reference, arrived: Arrived, why: str) -> None:
    """Say why; the last verdict stays, since nothing has spoken against it."""
    _tell_of_left_out(arrived)
    text = f"{experiment}: no verdict: {why}"
    if (VERDICTS / f"{experiment}.json").exists():
        entry.say(f"{text}; the last verdict stays")
        return
    _write(experiment, reference, arrived, None, text)


def _write(
    experiment: str, reference: _Reference, arrived: Arrived, verdict: Verdict | None, text: str
) -> None:
    """Write the verdict whole, and print it."""
    tests = [] if verdict is None else [_told(test, verdict) for test in verdict.tests]
    about = {
        "experiment": experiment,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "drifted": verdict is not None and verdict.drifted,
        "p": None if verdict is None else verdict.p,
        "level": None if verdict is None else verdict.level,
        "items": arrived.distinct,
        "inputs": arrived.inputs,
        "copies": arrived.copies,
        "unreadable": len(arrived.unreadable),
        "inputs_sha256": arrived.sha256,
        "reference_version": reference.version,
        "reference_sha256": reference.sha256,
        "reference_items": reference.count,
        "tests": tests,
        "text": text,
    }
    artifacts.write_json(VERDICTS / f"{experiment}.json", about)
    if verdict is not None:
        _tell_of_left_out(arrived)
    entry.say(text)
    for line in _table(tests):
        entry.say(line)


def _told(test: Outcome, verdict: Verdict) -> dict[str, Any]:
    return {
        "name": test.name,
        "statistic": test.statistic,
        "p": test.p,
        "p_adjusted": verdict.adjusted[test.name],
        "what": test.what,
    }


def _sentence(arrived: Arrived, reference: _Reference, verdict: Verdict) -> str:
    against = f"{_items(arrived.distinct)} against {reference.count:,} reference samples"
    copies = f", {arrived.copies:,} of them exact copies of reference samples" if arrived.copies else ""
    if not verdict.drifted:
        smallest = f"smallest corrected p {_figure(verdict.p)}, above the level {verdict.level:g}"
        return f"no drift: {against}{copies}; {smallest}"
    named = ", ".join(
        f"{test.name} (p {_figure(verdict.adjusted[test.name])})" for test in verdict.significant
    )
    return f"drift: {against}{copies}; they differ in {named}, at the level {verdict.level:g}"


def _figure(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def _items(count: int) -> str:
    return f"{count:,} distinct new input{'s' * (count != 1)}"


def _table(tests: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line for each test, for people."""
    if not tests:
        return
    width = max(len(test["name"]) for test in tests)
    yield f"  {'test':<{width}}  {'statistic':>9}  {'p':>7}  {'p (Holm)':>8}  of"
    for test in tests:
        figures = f"{test['statistic']:>9.4f}  {_figure(test['p']):>7}  {_figure(test['p_adjusted']):>8}"
        yield f"  {test['name']:<{width}}  {figures}  {test['what']}"


def _tell_of_left_out(arrived: Arrived) -> None:
    if arrived.unreadable:
        name, reason = next(iter(arrived.unreadable.items()))
        first = " ".join(f"{name[:80]}: {reason}".split())
        entry.say(f"left out, since it cannot be read: {first}")
        if len(arrived.unreadable) > 1:
            entry.say(f"left out likewise: {len(arrived.unreadable) - 1:,} more")


# ---------------------------------------------------------------------------------------- the command line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; usage: python -m steps.monitor <experiment> [INPUT...]")


def _main() -> None:
    parser = _Parser(prog="python -m steps.monitor")
    parser.add_argument("experiment")
    parser.add_argument("inputs", nargs="*")
    given = parser.parse_args()
    monitor(given.experiment, given.inputs)


def main() -> int:
    """Run `python -m steps.monitor <experiment> [INPUT...]`."""
    return entry.guarded(_main)


if __name__ == "__main__":
    sys.exit(main())

"""register: publish a result to MLflow, and make its winner a version of the registered model.

No DVC stage: it touches the outside world. Doing it again does nothing that was done already.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps import artifacts, entry, params
from steps.errors import HeadstartError
from steps.kinds import KINDS, SHARE, Kind
from steps.params import CompareSettings, ValidateSettings
from steps.tracking import journal, packaging, publish, registry, store
from steps.tracking.journal import Result, Training
from steps.tracking.publish import Published
from steps.tracking.registry import Version
from steps.tracking.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import Model

    from steps.gate import Decision, Tested
    from steps.tasks import Task

# Rows the packaged model predicts once more before it becomes a version, and how far it may be off: less
# than any decision turns on, more than the rounding between two processors.
PROOF_ROWS, PROOF_TOLERANCE = 8, 1e-3
# What a test item is known by.
KEYS = ["id", "sha256", "label"]
DECIDED_FOR, REASON = "headstart.decided_for", "headstart.reason"
PREDICTIONS = "test_predictions.parquet"


@dataclass(frozen=True)
class Winner:
    """What a version is made of.

    Attributes:
        training: the arm and seed that won, by validation.
        settings: of the comparison.
        test: the test split with what the winner said of it: `probabilities`, or for a task without classes
            `predicted` as JSON and the shares of the metrics.
        pretrained: of the backbone, as fetch wrote it.
    """

    training: Training
    settings: CompareSettings
    test: pd.DataFrame
    pretrained: Path

    @property
    def kind(self) -> Kind:
        """The few facts about the task."""
        return KINDS[self.settings.task]

    @cached_property
    def task(self) -> Task:
        """What kind of data it is."""
        from steps import tasks

        return tasks.get(self.settings.task)


def register(experiment: str) -> None:
    """Publish the experiment's result, register its winner, and let the gate decide on the champion.

    Raises:
        TrackingError: MLflow does not answer; nothing is lost.
        HeadstartError: the packaged model does not predict what evaluate wrote.
    """
    if _nothing_new(experiment):
        return
    settings = params.read_settings(CompareSettings, artifacts.settings_file(experiment, "compare"))
    with store.alone(), store.opened() as opened:
        result = journal.read(experiment)
        published = publish.publish(opened, result)
        found = f"{len(result.trainings)} trainings" if published.new else "was there already"
        entry.say(f"{experiment}: published to {store.shown(opened.uri)} ({found})")
        winner = read_winner(experiment, result.winner, settings)
        version, new = _version(opened, result, winner, published)
        version, decision = _crown(opened, result, winner, version)
        about = _note(opened, result, winner, version, decision) | {"new": new}
    artifacts.write_json(artifacts.registration_file(experiment), about)
    made = "is now" if new else "was already"
    entry.say(f"{experiment}: {winner.training.name} {made} version {version.number} of {version.model}")
    role = "champion" if registry.CHAMPION in version.aliases else "not champion"
    entry.say(f"{experiment}: version {version.number} is {role}: {decision.reason}")


def _nothing_new(experiment: str) -> bool:
    """Whether this very result was registered before, and its version is still there; says so."""
    path = artifacts.registration_file(experiment)
    if not path.exists():
        return False
    noted = artifacts.read_json(path, "python -m steps.register")
    same = noted.get("result") == journal.identity(experiment)
    if not same or noted["tracking_uri"] != store.shown(store.address()):
        return False
    aliases = store.glance(noted["model"], noted["version"])
    if aliases is None:
        return False
    artifacts.write_json(path, noted | {"aliases": aliases, "new": False})
    known_as = f" ({', '.join(aliases)})" if aliases else ""
    entry.say(
        f"{experiment}: nothing new to register, version {noted['version']} of {noted['model']}{known_as}"
    )
    return True


def read_winner(experiment: str, training: Training, settings: CompareSettings) -> Winner:
    """The winner with what it said of the test split.

    Raises:
        HeadstartError: evaluate is older than the split.
    """
    import pandas as pd

    from steps import data

    rows = data.read_split(experiment)
    test = rows[rows["split"] == "test"]
    said = pd.read_parquet(
        artifacts.evaluation_dir(experiment) / "predictions.parquet",
        filters=[
            ("arm", "==", training.arm),
            ("resample", "==", training.resample),
            ("seed", "==", training.seed),
        ],
    )
    test = test.merge(said.drop(columns=["label"], errors="ignore"), on="id", validate="one_to_one")
    if not len(test) == len(said) == (rows["split"] == "test").sum():
        raise HeadstartError(
            f"the predictions of {training.name} are not of today's test split; run `dvc repro`"
        )
    return Winner(training, settings, test, artifacts.pretrained_dir(settings.model.pretrained))


# ------------------------------------------------------------------------------------------------ the version


def _version(opened: Store, result: Result, winner: Winner, published: Published) -> tuple[Version, bool]:
    """The version of the winner's bytes, and whether it was made now."""
    model, training = registry.name_of(result.experiment), winner.training
    sha256 = fingerprint(winner)
    found = registry.find(opened, model, sha256)
    if found is not None:
        return found, False
    tags = journal.origin(result.experiment) | {
        "headstart.arm": training.arm,
        "headstart.seed": str(training.seed),
        "headstart.task": winner.settings.task,
        "headstart.result": result.identity,
        "headstart.evidence": result.comparison["verdict"]["text"],
        "headstart.data_sha256": training.journal["data_sha256"],
        "headstart.weights_sha256": training.journal["weights_sha256"],
        "headstart.pretrained_sha256": training.journal["pretrained_sha256"],
    }
    scores = {f"test_{name}": value for name, value in training.scores.items() if name != "per_class"}
    candidate = registry.Candidate(
        model=model,
        sha256=sha256,
        experiment_id=published.experiment_id,
        run_id=published.runs[training.name],
        tags=tags,
        description=f"{training.name}. {result.comparison['verdict']['text']}",
        scores=scores,
        save=partial(save, result.experiment, winner),
    )
    return registry.add(opened, candidate), True


def fingerprint(winner: Winner) -> str:
    """SHA-256 over all that decides what the model predicts."""
    found = winner.training.journal
    return artifacts.sha256_json(
        {
            "format": packaging.FORMAT,
            "task": winner.settings.task,
            "model": winner.settings.model.model_dump(mode="json"),
            "classes": found["classes"],
            "weights": found["weights_sha256"],
            "backbone": found["pretrained_sha256"] if found["weights"] == "head" else None,
            "files": {
                name: artifacts.sha256_file(path)
                for name, path in pretrained_files(winner).items()
                if name not in ("model.safetensors", "provenance.json")
            },
        }
    )


def pretrained_files(winner: Winner) -> dict[str, Path]:
    """Architecture, tokenizer and provenance; the backbone's weights only where the winner has none.

    By their paths from the folder that fetch made: a SavedModel has sub-folders.
    """
    whole = winner.training.journal["weights"] == "head"
    folder = winner.pretrained
    files = {path.relative_to(folder).as_posix(): path for path in artifacts.files_below(folder)}
    return {name: path for name, path in files.items() if whole or name != "model.safetensors"}


def save(experiment: str, winner: Winner, path: Path, described: Model) -> None:
    """Write the model in MLflow's format, and prove that it predicts what evaluate wrote.

    Raises:
        HeadstartError: it does not.
    """
    import pandas as pd

    with tempfile.TemporaryDirectory(prefix="model-", dir=path.parent) as parent:
        folder = Path(parent) / "model"
        _lay_out(experiment, winner, folder)
        smallest = next(winner.test.nsmallest(1, "size").itertuples())
        packaging.save(
            path,
            described,
            data=folder,
            task=winner.settings.task,
            others=packaging.of_tensorflow(winner.pretrained),
            example=pd.DataFrame([_as_texts(experiment, winner, smallest)]),
            about={
                "experiment": experiment,
                "arm": winner.training.arm,
                "seed": winner.training.seed,
                "classes": winner.training.journal["classes"],
            },
        )
    _prove(experiment, winner, path)


def _lay_out(experiment: str, winner: Winner, folder: Path) -> None:
    """The folder `steps/serving.py` reads, as links to files that are there already."""
    checks = params.read_settings(ValidateSettings, artifacts.settings_file(experiment, "validate"))
    classes: list[str] = winner.training.journal["classes"]
    settings: dict[str, Any] = {
        "format": packaging.FORMAT,
        "experiment": experiment,
        "task": winner.settings.task,
        "model": winner.settings.model.model_dump(mode="json"),
        "classes": classes,
        "max_pixels": checks.validation.max_pixels,
    }
    artifacts.write_json(folder / "settings.json", settings)
    names = ("model.safetensors", "run.json", "history.csv")
    trained = {name: winner.training.folder / name for name in names}
    for below, files in {"trained": trained, "pretrained": pretrained_files(winner)}.items():
        for name, file in files.items():
            link = folder / below / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    (folder / "model_card.md").symlink_to((artifacts.report_dir(experiment) / "model_card.md").resolve())
    _for_the_gate(winner).to_parquet(folder / PREDICTIONS, index=False)


def _for_the_gate(winner: Winner) -> pd.DataFrame:
    """What the winner said of the test split: a probability for each class, or its shares in the metrics."""
    test = winner.test
    said = test[[*KEYS, "group"]].assign(target=test["target"]).reset_index(drop=True)
    if not winner.kind.classified:
        return said.assign(**{name: test[name].to_numpy() for name in _shares(winner)})
    said = said.drop(columns="target")
    for place, label in enumerate(winner.training.journal["classes"]):
        said[f"probability_{label}"] = [float(row[place]) for row in test["probabilities"]]
    return said


def _shares(winner: Winner) -> list[str]:
    return [f"{SHARE}{name}" for name in winner.kind.metrics]


def _contents(experiment: str, winner: Winner, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the test split as the model's input."""
    import pandas as pd

    from steps import tasks

    found = tasks.contents(winner.task, rows, artifacts.data_dir(experiment))
    table = [one if isinstance(one, tuple) else (one,) for one in found]
    columns = winner.kind.columns
    return pd.DataFrame(
        {name: pd.Series([row[at] for row in table], dtype=object) for at, name in enumerate(columns)}
    )


def _as_texts(experiment: str, winner: Winner, row: Any) -> dict[str, str]:  # noqa: ANN401 - a row of a data frame
    """A sample as it is sent over JSON."""
    content = winner.task.content(row, artifacts.data_dir(experiment))
    parts = content if isinstance(content, tuple) else (content,)
    sent = [
        base64.b64encode(one.read_bytes()).decode() if isinstance(one, Path) else str(one) for one in parts
    ]
    return dict(zip(winner.kind.columns, sent, strict=True))


def _prove(experiment: str, winner: Winner, path: Path) -> None:
    """Load what was packaged, and compare what it says with what evaluate wrote.

    Raises:
        HeadstartError: they differ.
    """
    import numpy as np

    rows = winner.test.head(PROOF_ROWS)
    said = registry.load_folder(path).predict(_contents(experiment, winner, rows))
    if winner.kind.classified:
        found = np.array([list(row.values()) for row in said["probabilities"]])
        worst, what = float(np.abs(found - np.stack(list(rows["probabilities"]))).max()), "in a probability"
    else:
        worst, what = _off(experiment, winner, rows, _records(said))
    if not worst <= PROOF_TOLERANCE:
        raise HeadstartError(
            f"the packaged {winner.training.name} is off its evaluation by {worst:.2g} {what}; "
            f"run `dvc repro --force evaluate@{experiment}`, and report it if it stays"
        )


def _records(said: pd.DataFrame) -> list[dict[str, Any]]:
    """What a loaded model answered, as its task has it."""
    return [{str(name): value for name, value in row.items()} for row in said.to_dict(orient="records")]


def _off(
    experiment: str, winner: Winner, rows: pd.DataFrame, said: list[dict[str, Any]]
) -> tuple[float, str]:
    """By how much the metrics of some rows differ between what is said now and what was said, at most."""
    classes, truths = winner.training.journal["classes"], winner.task.truths(rows)
    before = [json.loads(one) for one in rows["predicted"]]
    if winner.kind.own_labels:
        # What is asked of a sample may depend on those beside it, as the strangers of a sentence do: the
        # network as it was trained is asked of these rows alone.
        before = _asked_anew(experiment, winner, rows)
    now, then = (winner.task.scores(truths, one, classes) for one in (said, before))
    off = {name: abs(float(now[name].mean()) - float(then[name].mean())) for name in winner.kind.metrics}
    worst = max(off, key=lambda name: off[name])
    return off[worst], f"of {worst}"


# ----------------------------------------------------------------------------------------------- the champion


def _asked_anew(experiment: str, winner: Winner, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """What the network says of some rows as train left it, not as it was packaged."""
    import torch

    from steps import checkpoint, tasks

    contents = tasks.contents(winner.task, rows, artifacts.data_dir(experiment))
    samples = winner.task.samples(contents, winner.settings.model, winner.pretrained)
    ask = tasks.Ask(
        winner.training.journal["classes"],
        winner.settings.model,
        torch.device("cpu"),
        pretrained=winner.pretrained,
    )
    found = winner.task.predict(
        checkpoint.load_network(winner.training.folder, winner.pretrained), samples, ask
    )
    assert isinstance(found, list)
    return found


def _crown(opened: Store, result: Result, winner: Winner, version: Version) -> tuple[Version, Decision]:
    """Let the gate decide, once for a version and a result; write its reason, then move the alias."""
    from steps import gate

    champion = registry.champion(opened, version.model)
    if champion is not None and champion.number == version.number:
        return champion, gate.Decision(True, version.tags.get(REASON, "it is the champion already"))
    if champion is not None and version.tags.get(DECIDED_FOR) == result.identity:
        return version, gate.Decision(False, version.tags.get(REASON, "decided before"))
    decision = decide(result.experiment, winner, champion)
    registry.tag(opened, version, {REASON: decision.reason})
    if decision.promote:
        version = registry.promote(opened, version)
    registry.tag(opened, version, {DECIDED_FOR: result.identity})
    return version, decision


def decide(experiment: str, winner: Winner, champion: Version | None) -> Decision:
    """Compare the winner with the champion on today's test split."""
    from steps import gate

    if champion is not None and champion.tags.get("headstart.task") != winner.settings.task:
        return gate.Decision(True, f"the champion, version {champion.number}, was made for another task")
    evaluation = winner.settings.evaluation
    rule = gate.Rule(evaluation.metric, evaluation.confidence)
    candidate = _tested(winner, winner.test)
    if champion is None:
        return gate.decide(candidate, None, rule)
    return gate.decide(candidate, _champion_tested(experiment, winner, champion), rule)


def _champion_tested(experiment: str, winner: Winner, champion: Version) -> Tested:
    """What the champion says of today's test split: as it was stored, or predicted anew if that changed."""
    stored = _stored(champion)
    keys = [*KEYS, "target"] if not winner.kind.classified else KEYS
    today = set(winner.test[keys].itertuples(index=False, name=None))
    if (
        stored is not None
        and set(keys) <= set(stored.columns)
        and set(stored[keys].itertuples(index=False, name=None)) == today
    ):
        if not winner.kind.classified:
            return _tested(winner, stored)
        classes = [
            name.removeprefix("probability_") for name in stored.columns if name.startswith("probability_")
        ]
        said = stored[[f"probability_{name}" for name in classes]]
        return _of_classes(stored, classes, list(said.to_numpy()))
    entry.say(
        f"{experiment}: the test split changed, the champion (version {champion.number}) predicts it anew"
    )
    said = registry.load(champion).predict(_contents(experiment, winner, winner.test))
    if winner.kind.classified:
        probabilities = said["probabilities"]
        return _of_classes(
            winner.test, list(probabilities.iloc[0]), [list(row.values()) for row in probabilities]
        )
    truths, classes = winner.task.truths(winner.test), winner.training.journal["classes"]
    shares = winner.task.scores(truths, _records(said), classes)
    return _tested(winner, winner.test.assign(**{f"{SHARE}{name}": one for name, one in shares.items()}))


def _stored(version: Version) -> pd.DataFrame | None:
    import pandas as pd

    with tempfile.TemporaryDirectory(prefix="headstart-") as folder:
        path = registry.file_of(version, f"data/model/{PREDICTIONS}", Path(folder))
        return None if path is None else pd.read_parquet(path)


def _tested(winner: Winner, test: pd.DataFrame) -> Tested:
    """What was said of these rows, as the gate takes it."""
    import numpy as np

    from steps.gate import Tested

    if winner.kind.classified:
        return _of_classes(test, winner.training.journal["classes"], list(test["probabilities"]))
    shares = {name: test[f"{SHARE}{name}"].to_numpy(dtype=np.float64) for name in winner.kind.metrics}
    return Tested.of_shares(list(test["id"]), list(test["target"].fillna("")), shares, groups=_groups(test))


def _of_classes(test: pd.DataFrame, classes: list[str], probabilities: list[Any]) -> Tested:
    import numpy as np

    from steps.gate import Tested

    said = np.stack(probabilities).astype(np.float64)
    return Tested(list(test["id"]), list(test["label"]), classes, said, groups=_groups(test))


def _groups(test: pd.DataFrame) -> list[str | None]:
    """The group of each row; what was stored by itself has none."""
    return list(test["group"]) if "group" in test else []


def _note(
    opened: Store, result: Result, winner: Winner, version: Version, decision: Decision
) -> dict[str, Any]:
    """What `.headstart/registered/<experiment>.json` tells the flow and the command line."""
    return {
        "experiment": result.experiment,
        "result": result.identity,
        "model": version.model,
        "version": version.number,
        "aliases": list(version.aliases),
        "decision": {"promote": decision.promote, "reason": decision.reason},
        "arm": winner.training.arm,
        "seed": winner.training.seed,
        "tracking_uri": store.shown(opened.uri),
        "run_id": version.run_id,
    }


def main() -> int:
    """Run `python -m steps.register <experiment>`."""
    return entry.run(register, "experiment")


if __name__ == "__main__":
    sys.exit(main())

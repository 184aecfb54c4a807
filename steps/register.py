"""register: publish a result to MLflow, and make its winner a version of the registered model.

No DVC stage: it touches the outside world. Doing it again does nothing that was done already.
"""

from __future__ import annotations

import base64
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps import artifacts, entry, params
from steps.errors import HeadstartError
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

# Rows the packaged model predicts once more before it becomes a version, and how far it may be off: less
# than any decision turns on, more than the rounding between two processors.
PROOF_ROWS, PROOF_TOLERANCE = 8, 1e-3
DECIDED_FOR, REASON = "headstart.decided_for", "headstart.reason"
PREDICTIONS = "test_predictions.parquet"


@dataclass(frozen=True)
class Winner:
    """What a version is made of.

    Attributes:
        training: the arm and seed that won, by validation.
        settings: of the comparison.
        test: the test split, with the winner's `probabilities`.
        pretrained: of the backbone, as fetch wrote it.
    """

    training: Training
    settings: CompareSettings
    test: pd.DataFrame
    pretrained: Path

    @property
    def column(self) -> str:
        """The one column of the model's input."""
        return "image" if self.settings.task == "image-classification" else "text"


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
        columns=["id", "probabilities"],
        filters=[
            ("arm", "==", training.arm),
            ("resample", "==", training.resample),
            ("seed", "==", training.seed),
        ],
    )
    test = test.merge(said, on="id", validate="one_to_one")
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
                path.name: artifacts.sha256_file(path)
                for path in pretrained_files(winner)
                if path.name not in ("model.safetensors", "provenance.json")
            },
        }
    )


def pretrained_files(winner: Winner) -> list[Path]:
    """Architecture, tokenizer and provenance; the backbone's weights only where the winner has none."""
    whole = winner.training.journal["weights"] == "head"
    files = sorted(path for path in winner.pretrained.iterdir() if path.is_file())
    return [path for path in files if whole or path.name != "model.safetensors"]


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
            column=winner.column,
            example=pd.DataFrame({winner.column: [_as_text(experiment, winner, smallest)]}),
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
    trained = [winner.training.folder / name for name in ("model.safetensors", "run.json", "history.csv")]
    for name, files in {"trained": trained, "pretrained": pretrained_files(winner)}.items():
        (folder / name).mkdir()
        for file in files:
            (folder / name / file.name).symlink_to(file.resolve())
    (folder / "model_card.md").symlink_to((artifacts.report_dir(experiment) / "model_card.md").resolve())
    said = winner.test[["id", "sha256", "label"]].reset_index(drop=True)
    for place, label in enumerate(classes):
        said[f"probability_{label}"] = [float(row[place]) for row in winner.test["probabilities"]]
    said.to_parquet(folder / PREDICTIONS, index=False)


def _contents(experiment: str, winner: Winner, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the test split as the model's input."""
    import pandas as pd

    from steps import tasks

    found = tasks.contents(tasks.get(winner.settings.task), rows, artifacts.data_dir(experiment))
    return pd.DataFrame({winner.column: pd.Series(found, dtype=object)})


def _as_text(experiment: str, winner: Winner, row: Any) -> str:  # noqa: ANN401 - a row of a data frame
    """A sample as it is sent over JSON."""
    from steps import tasks

    content = tasks.get(winner.settings.task).content(row, artifacts.data_dir(experiment))
    return base64.b64encode(content.read_bytes()).decode() if isinstance(content, Path) else str(content)


def _prove(experiment: str, winner: Winner, path: Path) -> None:
    """Load what was packaged, and compare its probabilities with those evaluate wrote.

    Raises:
        HeadstartError: they differ.
    """
    import numpy as np

    rows = winner.test.head(PROOF_ROWS)
    said = registry.load_folder(path).predict(_contents(experiment, winner, rows))
    found = np.array([list(row.values()) for row in said["probabilities"]])
    worst = float(np.abs(found - np.stack(list(rows["probabilities"]))).max())
    if not worst <= PROOF_TOLERANCE:
        raise HeadstartError(
            f"the packaged {winner.training.name} is off its evaluation by {worst:.2g} in a probability; "
            f"run `dvc repro --force evaluate@{experiment}`, and report it if it stays"
        )


# ----------------------------------------------------------------------------------------------- the champion


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
    rule = gate.Rule(winner.settings.evaluation.metric, winner.settings.evaluation.confidence)
    test, classes = winner.test, winner.training.journal["classes"]
    candidate = _tested(test, classes, list(test["probabilities"]))
    if champion is None:
        return gate.decide(candidate, None, rule)
    return gate.decide(candidate, _champion_tested(experiment, winner, champion), rule)


def _champion_tested(experiment: str, winner: Winner, champion: Version) -> Tested:
    """What the champion says of today's test split: as it was stored, or predicted anew if that changed."""
    stored = _stored(champion)
    keys = ["id", "sha256", "label"]
    today = set(winner.test[keys].itertuples(index=False, name=None))
    if stored is not None and set(stored[keys].itertuples(index=False, name=None)) == today:
        classes = [name.removeprefix("probability_") for name in stored.columns if name not in keys]
        return _tested(stored, classes, list(stored.drop(columns=keys).to_numpy()))
    entry.say(
        f"{experiment}: the test split changed, the champion (version {champion.number}) predicts it anew"
    )
    said = registry.load(champion).predict(_contents(experiment, winner, winner.test))["probabilities"]
    return _tested(winner.test, list(said.iloc[0]), [list(row.values()) for row in said])


def _stored(version: Version) -> pd.DataFrame | None:
    import pandas as pd

    with tempfile.TemporaryDirectory(prefix="headstart-") as folder:
        path = registry.file_of(version, f"data/model/{PREDICTIONS}", Path(folder))
        return None if path is None else pd.read_parquet(path)


def _tested(test: pd.DataFrame, classes: list[str], probabilities: list[Any]) -> Tested:
    import numpy as np

    from steps.gate import Tested

    return Tested(list(test["id"]), list(test["label"]), classes, np.stack(probabilities).astype(np.float64))


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

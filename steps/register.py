"""register: publish a result to MLflow, make its winner a version, and let the gate decide on the champion.

No DVC stage: it touches the outside world. Doing it again does nothing that was done already, wherever the
time before was broken off: the version is known by its bytes, the decision by the ledger of aliases.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps import artifacts, entry, params
from steps.errors import HeadstartError
from steps.kinds import KINDS, SHARE, Kind
from steps.params import CompareSettings, RegisterSettings, ValidateSettings
from steps.tracking import addresses, aliases, download, journal, packaging, publish, registry, store
from steps.tracking.journal import Result, Training
from steps.tracking.publish import Published
from steps.tracking.registry import Version
from steps.tracking.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import Model

    from steps.frozen import Frozen
    from steps.gate import Decision, Rule
    from steps.tasks import Task
    from steps.tracking.aliases import Entry

# Rows the packaged model predicts once more before it becomes a version, and how far it may be off: less
# than any decision turns on, more than the rounding between two processors.
PROOF_ROWS, PROOF_TOLERANCE = 8, 1e-3
DECIDED_FOR, REASON = "headstart.decided_for", "headstart.reason"
# How often a decision is taken again because the champion changed while it was taken.
ATTEMPTS = 3


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
    from steps import frozen

    settings = params.read_settings(CompareSettings, artifacts.settings_file(experiment, "compare"))
    with store.alone(), store.opened() as opened:
        result = journal.read(experiment)
        published = publish.publish(opened, result)
        found = f"{len(result.trainings)} trainings" if published.new else "was there already"
        entry.say(f"{experiment}: published to {addresses.shown(opened.uri)} ({found})")
        winner = read_winner(experiment, result.winner, settings)
        test = frozen.freeze(experiment, winner.test, artifacts.data_dir(experiment))
        version, new = _version(opened, result, winner, published, test)
        version, decision = _crown(opened, result, winner, version, test)
        _prune(opened, experiment, version, test)
        about = _note(opened, result, winner, version, decision) | {"new": new}
    artifacts.write_json(artifacts.registration_file(experiment), about)
    made = "is now" if new else "was already"
    entry.say(f"{experiment}: {winner.training.name} {made} version {version.number} of {version.model}")
    role = " and ".join(version.aliases) or "not champion"
    entry.say(f"{experiment}: version {version.number} is {role}: {decision.reason}")


def _nothing_new(experiment: str) -> bool:
    """Whether this very result was registered before, and its version is still there; says so."""
    path = artifacts.registration_file(experiment)
    if not path.exists():
        return False
    noted = artifacts.read_json(path, "python -m steps.register")
    same = noted.get("result") == journal.identity(experiment)
    if not same or noted["tracking_uri"] != addresses.shown(addresses.address()):
        return False
    names = store.glance(noted["model"], noted["version"])
    if names is None:
        return False
    artifacts.write_json(path, noted | {"aliases": names, "new": False})
    known_as = f" ({', '.join(names)})" if names else ""
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


def _version(
    opened: Store, result: Result, winner: Winner, published: Published, test: Frozen
) -> tuple[Version, bool]:
    """The version of the winner's bytes, and whether it was made now.

    Its test set is in MLflow before it is, so that every version can be compared with later ones.
    """
    from steps import contest

    model, training = registry.name_of(result.experiment), winner.training
    sha256 = fingerprint(winner)
    found = registry.find(opened, model, sha256)
    if found is not None:
        return found, False
    frozen_run = _frozen_run(opened, model, test)
    if frozen_run is None:
        frozen_run = published.run_id
        contest.send(opened, frozen_run, test)
    tags = journal.origin(result.experiment) | {
        "headstart.arm": training.arm,
        "headstart.seed": str(training.seed),
        "headstart.task": winner.settings.task,
        "headstart.result": result.identity,
        "headstart.evidence": result.comparison["verdict"]["text"],
        "headstart.data_sha256": training.journal["data_sha256"],
        "headstart.weights_sha256": training.journal["weights_sha256"],
        "headstart.pretrained_sha256": training.journal["pretrained_sha256"],
        contest.TEST_SHA: test.sha256,
        contest.FROZEN_SHA: test.digest,
        contest.FROZEN_RUN: frozen_run,
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


def _frozen_run(opened: Store, model: str, test: Frozen) -> str | None:
    """The run of an earlier version that has this very test set already; None where there is none."""
    from steps import contest

    wanted = f"name = '{model}' AND tags.`{contest.FROZEN_SHA}` = '{test.digest}'"
    found = opened.client.search_model_versions(wanted)
    runs = dict.fromkeys(str(one.tags[contest.FROZEN_RUN]) for one in found)
    return next((run_id for run_id in runs if contest.is_sent(opened, run_id, test.sha256)), None)


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
    from steps import contest, data, frozen

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
    _for_the_gate(winner).to_parquet(folder / contest.PREDICTIONS, index=False)
    rows = data.read_split(experiment, winner.training.resample)
    frozen.write_digests(rows[rows["split"].isin(["train", "validation"])], folder / contest.TRAINED_ON)


def _for_the_gate(winner: Winner) -> pd.DataFrame:
    """What the winner said of the test split: a probability for each class, or its shares in the metrics."""
    from steps import contest

    test = winner.test
    said = test[[*contest.KEYS, "group"]].assign(target=test["target"]).reset_index(drop=True)
    if not winner.kind.classified:
        return said.assign(**{name: test[name].to_numpy() for name in _shares(winner)})
    said = said.drop(columns="target")
    for place, label in enumerate(winner.training.journal["classes"]):
        said[f"probability_{label}"] = [float(row[place]) for row in test["probabilities"]]
    return said


def _shares(winner: Winner) -> list[str]:
    return [f"{SHARE}{name}" for name in winner.kind.metrics]


def _inputs(experiment: str, winner: Winner, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the test split as the model's input."""
    from steps import contest

    return contest.inputs(winner.task, winner.kind, rows, artifacts.data_dir(experiment))


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

    from steps import contest

    rows = winner.test.head(PROOF_ROWS)
    said = registry.load_folder(path).predict(_inputs(experiment, winner, rows))
    if winner.kind.classified:
        found = np.array([list(row.values()) for row in said["probabilities"]])
        worst, what = float(np.abs(found - np.stack(list(rows["probabilities"]))).max()), "in a probability"
    else:
        worst, what = _off(experiment, winner, rows, contest.records(said))
    if not worst <= PROOF_TOLERANCE:
        raise HeadstartError(
            f"the packaged {winner.training.name} is off its evaluation by {worst:.2g} {what}; "
            f"run `dvc repro --force evaluate@{experiment}`, and report it if it stays"
        )


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


# ----------------------------------------------------------------------------------------------- the decision


def _crown(
    opened: Store, result: Result, winner: Winner, version: Version, test: Frozen
) -> tuple[Version, Decision]:
    """Let the gate decide, once for a version and a result, and move the aliases.

    The ledger of aliases holds the decision. Tags repeat it for who looks at the version; a process that was
    killed before it set them sets them the next time.
    """
    from steps import gate

    model, number = version.model, version.number
    aliases.settle(opened, model)
    decision = _decided(opened, result, version)
    if decision is None and aliases.current(opened, model).get(aliases.CHAMPION) == number:
        decision = gate.Decision(True, version.tags.get(REASON, "it is the champion already"))
    elif decision is None:
        decision = _decide_now(opened, result, winner, version, test)
    if version.tags.get(DECIDED_FOR) != result.identity:
        registry.tag(opened, version, {REASON: decision.reason, DECIDED_FOR: result.identity})
    return download.version_of(opened, model, number=int(number)), decision


def _decided(opened: Store, result: Result, version: Version) -> Decision | None:
    """What was decided before on this version for this result, whatever became of the aliases since."""
    from steps import gate

    found = next(
        (
            one
            for one in reversed(aliases.history(opened, version.model))
            if one.what in ("promote", "keep")
            and (one.evidence.get("result"), one.evidence.get("candidate"))
            == (result.identity, version.number)
        ),
        None,
    )
    champion = aliases.current(opened, version.model).get(aliases.CHAMPION) == version.number
    if found is None and version.tags.get(DECIDED_FOR) == result.identity:
        # By a release that kept no ledger.
        return gate.Decision(champion, version.tags.get(REASON, "decided before"))
    if found is None:
        return None
    reason = found.why
    if found.what == "promote" and not champion:
        reason = f"it was champion ({reason}), and the alias was moved since"
    if found.what == "keep" and champion:
        reason = f"it was made champion by hand, after the gate had refused it ({reason})"
    return gate.Decision(champion, reason, found.evidence)


def _decide_now(opened: Store, result: Result, winner: Winner, version: Version, test: Frozen) -> Decision:
    """Decide, and write it down; anew where the champion changed in the meantime."""
    for _ in range(ATTEMPTS):
        champion = registry.champion(opened, version.model)
        decision = _decide(opened, result, winner, version, test, champion)
        before = None if champion is None else champion.number
        if aliases.current(opened, version.model).get(aliases.CHAMPION) != before:
            continue
        if not decision.promote:
            aliases.keep(
                opened, version.model, version.number, why=decision.reason, evidence=decision.evidence
            )
            return decision
        try:
            aliases.promote(
                opened,
                version.model,
                version.number,
                why=decision.reason,
                evidence=decision.evidence,
                over=before,
            )
        except aliases.MovedError:
            continue  # another machine was faster: its champion has not been compared with this version
        return decision
    raise HeadstartError(
        f"the champion of {version.model} changed {ATTEMPTS} times while version {version.number} was "
        "compared with it; run it again when nobody else does"
    )


def _decide(
    opened: Store, result: Result, winner: Winner, version: Version, test: Frozen, champion: Version | None
) -> Decision:
    """The gate's decision, with the evidence that the ledger keeps of it."""
    from steps import contest

    entries = aliases.history(opened, version.model)
    if champion is None:
        decision = without_champion(winner, version, aliases.lost_champion(opened, version.model))
    else:
        decision = contest.decide(
            opened, result.experiment, (version, champion), test, _rule(result, winner), entries
        )
    about = {
        "result": result.identity,
        "candidate": version.number,
        "champion": None if champion is None else champion.number,
        "test": test.sha256,
    }
    return replace(decision, evidence={**decision.evidence, **about})


def without_champion(winner: Winner, version: Version, lost: Entry | None) -> Decision:
    """The first version is crowned; after a champion whose alias was removed by hand nobody is."""
    import numpy as np

    from steps import gate

    column = "probabilities" if winner.kind.classified else _shares(winner)
    if not all(
        np.isfinite(np.asarray(one, dtype=np.float64)).all() for one in winner.test[column].to_numpy()
    ):
        return gate.Decision(False, "the candidate's predictions are not finite", {"tests": []})
    if lost is None:
        return gate.first()
    model, before = version.model, lost.after[aliases.CHAMPION]
    ways = [f"`headstart promote {model}@{before}` puts it back"]
    if aliases.PREVIOUS in lost.after:
        ways.append(f"`headstart rollback {model}` takes the one before")
    if version.number != before:
        ways.append(f"`headstart promote {model}@{version.number}` takes this one")
    return gate.Decision(
        False,
        f"the alias `champion` is gone from {model}, and no gate took it: version {before} had it last; "
        f"{', '.join(ways)}",
        {"tests": [], "lost_champion": before},
    )


def _rule(result: Result, winner: Winner) -> Rule:
    from steps import gate

    settings = params.read_settings(RegisterSettings, artifacts.settings_file(result.experiment, "register"))
    evaluation = winner.settings.evaluation
    return gate.Rule.of(settings.gate, evaluation.metric, evaluation.confidence, winner.kind.metrics)


def _prune(opened: Store, experiment: str, version: Version, test: Frozen) -> None:
    """Keep here the frozen test sets of the versions that have an alias, and today's."""
    from steps import contest, frozen

    numbers = set(aliases.current(opened, version.model).values())
    others = [download.version_of(opened, version.model, number=int(one)) for one in sorted(numbers)]
    frozen.prune(experiment, [test.sha256, *(one.tags.get(contest.TEST_SHA, "") for one in others)])


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
        "decision": {
            "promote": decision.promote,
            "reason": decision.reason,
            "evidence": dict(decision.evidence),
        },
        "arm": winner.training.arm,
        "seed": winner.training.seed,
        "tracking_uri": addresses.shown(opened.uri),
        "run_id": version.run_id,
    }


def main() -> int:
    """Run `python -m steps.register <experiment>`."""
    return entry.run(register, "experiment")


if __name__ == "__main__":
    sys.exit(main())

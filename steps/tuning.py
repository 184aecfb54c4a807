"""The search for an arm's hyperparameters: as many trials for every arm, judged on validation alone.

What is tried is fixed before anything is trained: first the values that are declared, then points of a
scrambled Sobol sequence over the arm's space. With the few trials that small data are worth, a sampler that
learns from results (TPE, which draws its first ten trials at random) would have nothing to learn from, and
a sequence of low discrepancy leaves smaller holes than random draws (Bousquet et al., Critical
Hyper-Parameters: No Random, No Cry, 2017). It also is the equal treatment that a comparison asks for: all
arms with as many keys try the same multiples of what they declare, and no arm's later trials depend on luck
with its first ones.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from steps import artifacts, entry, metrics
from steps.arms import SEARCHABLE, Arm, Choices, OneOf, Range, changed, misfits
from steps.errors import TrainingError, UserError
from steps.params import Tuning
from steps.settings import as_yaml
from steps.trainable import Job

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FILE = "tuning.json"
SAMPLER = "declared values, then a scrambled Sobol sequence"
# The default space: from the declared value divided by so much to the value times so much.
REACH = 10.0
# Ends that are further apart than this are searched on a logarithmic scale.
DECADE = 10.0
# Keys that count something; all other numbers are real.
WHOLE = ("reinit_top", "freeze_bottom", "thaw_every")
# Digits of a sampled value: beyond are the machine's own roundings, and it shall be easy to write down.
DIGITS = 3

Values = dict[str, Any]


@dataclass(frozen=True)
class Attempt:
    """What came of one training with some values.

    Attributes:
        best: validation metrics of the weights that would be kept, as `validation_<name>`; empty where it
            failed.
        epochs: how many were run.
        steps: optimizer steps taken.
        seconds: of training.
        failed: why it broke down, or None.
        watched: the metric that trials are compared by: lower is better.
    """

    best: dict[str, float]
    epochs: int
    steps: int
    seconds: float
    failed: str | None = None
    watched: str = "log_loss"

    @property
    def loss(self) -> float | None:
        """What the trial is compared by; None where it failed."""
        return self.best.get(f"validation_{self.watched}")


@dataclass(frozen=True)
class Trial:
    """Some values of the searched keys, and what came of them."""

    values: Values
    attempt: Attempt

    def as_json(self) -> dict[str, Any]:
        """An entry of the history in `tuning.json`."""
        found = {name.removeprefix("validation_"): value for name, value in self.attempt.best.items()}
        return {
            "values": self.values,
            self.attempt.watched: None,
            **found,
            "epochs": self.attempt.epochs,
            "steps": self.attempt.steps,
            "seconds": round(self.attempt.seconds, 3),
            "failed": self.attempt.failed,
        }


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        arm: with the chosen values; as declared where there was no search.
        tuning: how many trials were asked for, and the seed.
        space: what was searched, by key; empty where there was no search.
        declared: the values before.
        chosen: the values after.
        watched: the metric on validation that trials are compared by.
        history: the trials in their order, the declared values first; none where there was no search.
    """

    arm: Arm
    tuning: Tuning
    space: dict[str, Range]
    declared: Values
    chosen: Values
    watched: str
    history: tuple[Trial, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The content of `tuning.json`; without a search its cost is nothing."""
        attempts = [trial.attempt for trial in self.history]
        return {
            "trials": self.tuning.trials,
            "failed": sum(attempt.failed is not None for attempt in attempts),
            "steps": sum(attempt.steps for attempt in attempts),
            "seconds": round(sum(attempt.seconds for attempt in attempts), 3),
            "objective": objective_of(self.tuning, self.watched),
            "sampler": SAMPLER if self.history else "none: the declared values are taken",
            "seed": self.tuning.seed,
            "seeds": self.tuning.seeds,
            "space": {
                key: list(wanted.choices if isinstance(wanted, OneOf) else wanted)
                for key, wanted in self.space.items()
            },
            "scale": {key: scale_of(wanted) for key, wanted in self.space.items()},
            "declared": self.declared,
            "chosen": self.chosen,
            "history": [trial.as_json() for trial in self.history],
        }


def search(
    job: Job, attempt: Callable[[Job, str], Attempt], key_of: Callable[[Job], dict[str, Any]]
) -> Searched:
    """Try as many values as `tuning.trials` says, and choose those of the lowest validation loss.

    A trial that ended well is kept below `.headstart/trials/` and never trained again; so a search that was
    killed goes on where it was, and one with more trials goes on from those before.

    Args:
        job: of the arm as it is declared.
        attempt: trains a job that has other values, with the one seed it has; gets a label for people.
        key_of: everything that determines the outcome of such a training, as JSON.

    Raises:
        UserError: values that the space allows do not fit together; nothing was trained.
        TrainingError: no trial came to its end.
    """
    tuning, place = job.settings.tuning, f"{job.experiment}/{job.arm_name}"
    space = space_of(job)
    declared = {key: getattr(job.arm, key) for key in space}
    if tuning.trials == 1:
        entry.say(f"{place}: no search (tuning.trials: 1), the declared values are taken")
        return Searched(job.arm, tuning, {}, declared, declared, job.kind.loss)
    tried = candidates(space, declared, tuning)
    for values in ends(space, declared):
        with_values(job, values)
    # All of them before the first is trained: what does not fit is told at once.
    jobs = [[with_values(job, values, seed) for seed in tuning.each] for values in tried]
    history = []
    for number, (values, each) in enumerate(zip(tried, jobs, strict=True), 1):
        label = f"{place} trial {number} of {len(tried)}"
        found = together(
            [
                tried_before_or_now(one, f"{label} seed {seed}" if len(each) > 1 else label, attempt, key_of)
                for seed, one in zip(tuning.each, each, strict=True)
            ]
        )
        entry.say(f"{label}: {told(values)}: {outcome(found)}")
        history.append(Trial(values, found))
    chosen = best(place, history)
    which = "the declared values stay" if chosen == declared else f"chosen {told(chosen)}"
    entry.say(f"{place}: {which}, by validation {metrics.SHOWN[job.kind.loss]} over {len(tried)} trials")
    arm = with_arm_values(job.arm, chosen)
    return Searched(arm, tuning, space, declared, chosen, job.kind.loss, tuple(history))


def objective_of(tuning: Tuning, watched: str) -> str:
    """What trials are judged by, in words."""
    one = f"validation {watched}"
    return one if tuning.seeds == 1 else f"{one}, mean of {tuning.seeds} seeds"


def together(attempts: list[Attempt]) -> Attempt:
    """What came of one trial's trainings: means of the metrics, sums of the cost; failed where one failed."""
    failed = next((one.failed for one in attempts if one.failed is not None), None)
    best: dict[str, float] = {}
    if failed is None:
        best = {name: sum(one.best[name] for one in attempts) / len(attempts) for name in attempts[0].best}
    return Attempt(
        best,
        max(one.epochs for one in attempts),
        sum(one.steps for one in attempts),
        sum(one.seconds for one in attempts),
        failed,
        attempts[0].watched,
    )


def best(place: str, history: list[Trial]) -> Values:
    """The values of the lowest loss; of equal ones the first.

    Raises:
        TrainingError: all trials broke down.
    """
    losses = {
        number: trial.attempt.loss for number, trial in enumerate(history) if trial.attempt.loss is not None
    }
    if not losses:
        raise TrainingError(
            f"{place}: all {len(history)} trials of the search broke down, the declared values with: "
            f"{history[0].attempt.failed}; change the arm's values in params.yaml or its `search`"
        )
    return history[min(losses, key=lambda number: losses[number])].values


def told(values: Values) -> str:
    """Values in words."""
    return ", ".join(f"{key} {as_yaml(value)}" for key, value in values.items())


def outcome(found: Attempt) -> str:
    """What came of a trial, in words."""
    if found.loss is None:
        reason = (found.failed or "").partition(" (")[0]
        return f"broke down: {reason}"
    return f"validation {metrics.SHOWN[found.watched]} {found.loss:.3f}"


# ---------------------------------------------------------------------------------------------- the space


def space_of(job: Job) -> dict[str, Range]:
    """What is searched for the job's arm, in one order of the keys.

    Raises:
        UserError: there is nothing to search.
    """
    wanted = job.arm.search if job.arm.search is not None else default_space(job.arm)
    space = {key: wanted[key] for key in SEARCHABLE if key in wanted}
    if not space and job.settings.tuning.trials > 1:
        raise UserError(
            f"{job.experiment}/{job.arm_name}: there is nothing to search; say what in the arm's `search`, "
            "e.g. {weight_decay: [0.001, 1.0]}, or set `tuning.trials: 1` for no search at all"
        )
    return space


def default_space(arm: Arm) -> dict[str, Range]:
    """The rates of what trains, from a tenth to ten times the declared ones.

    An optimum found by L-BFGS depends on no rate: there it is the weight decay, unless that is 0.
    """
    keys = ["learning_rate"]
    if arm.solver == "lbfgs":
        keys = ["weight_decay"] if arm.weight_decay > 0 else []
    elif arm.start == "pretrained" and arm.tune != "head":
        keys.append("backbone_learning_rate")
    return {key: around(getattr(arm, key)) for key in keys}


def around(declared: float) -> tuple[float, float]:
    """The default range of a value."""
    # Decimal digits as people write them: 0.006 / 10 would be 0.0006000000000000001.
    low, high = (float(f"{value:.12g}") for value in (declared / REACH, declared * REACH))
    return low, high


def scale_of(wanted: Range) -> str:
    """How a range is searched: `log`, `linear` or `choices`."""
    if isinstance(wanted, OneOf):
        return "choices"
    low, high = wanted
    return "log" if low > 0 and high / low >= DECADE else "linear"


def candidates(space: dict[str, Range], declared: Values, tuning: Tuning) -> list[Values]:
    """The values of every trial: those declared, then others that are spread over the space.

    The same space and seed give the same values, and more trials begin with those of fewer.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=tuning.seed)
    study = optuna.create_study(sampler=sampler)
    distributions = {key: distribution(key, wanted) for key, wanted in space.items()}
    # The first one tells the sampler what the space is and is no point of the sequence; the declared values,
    # which need not lie in the space, take its place.
    study.ask(distributions)
    asked = [study.ask(distributions).params for _ in range(tuning.trials - 1)]
    return [declared, *({key: rounded(values[key], space[key]) for key in space} for values in asked)]


def distribution(key: str, wanted: Range) -> BaseDistribution:
    """A range as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(wanted, OneOf):
        return CategoricalDistribution(wanted.choices)
    low, high = wanted
    log = scale_of(wanted) == "log"
    if key in WHOLE and isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def rounded(value: Any, wanted: Range) -> Any:  # noqa: ANN401 - any value of a setting
    """A sampled value with few digits, still in its range."""
    if isinstance(wanted, OneOf) or not isinstance(value, float):
        return value
    low, high = wanted
    return min(max(float(f"{value:.{DIGITS}g}"), float(low)), float(high))


def ends(space: dict[str, Range], declared: Values) -> list[Values]:
    """The ends of each range and all choices, the other keys as declared: what must fit at the least."""
    found = []
    for key, wanted in space.items():
        whole = key in WHOLE or isinstance(wanted, OneOf)
        for value in wanted.choices if isinstance(wanted, OneOf) else wanted:
            found.append(declared | {key: value if whole or value is None else float(value)})
    return found


# ---------------------------------------------------------------------------------------------- the trials


def with_values(job: Job, values: Values, seed: int | None = None) -> Job:
    """The job of one training of a trial: its settings are what the outcome depends on, and nothing else.

    Raises:
        UserError: the values do not fit together.
    """
    place = f"{job.experiment}/{job.arm_name}"
    try:
        arm = with_arm_values(job.arm, values)
        mistakes = misfits(arm, job.settings.task, job.settings.training.epochs)
    except ValidationError as error:
        mistakes = [_line(one) for one in error.errors(include_url=False)]
    if mistakes:
        raise UserError(
            f"{place}: its `search` allows {told(values)}, which does not fit: {mistakes[0]}; narrow it"
        )
    chosen = job.settings.tuning.seed if seed is None else seed
    training = job.settings.training.model_copy(update={"seeds": (chosen,), "resamples": 1})
    # How far the search reaches is nothing that a trial's outcome depends on.
    plain = {"arm": arm.model_copy(update={"search": None}), "training": training, "tuning": Tuning()}
    return job.with_settings(job.settings.model_copy(update=plain))


def with_arm_values(arm: Arm, values: Values) -> Arm:
    """The arm with other values.

    Raises:
        ValidationError: they do not fit together.
    """
    if "learning_rate" in values and (arm.start == "random" or arm.tune == "head"):
        # There it is the rate of everything that trains.
        values = {"backbone_learning_rate": values["learning_rate"], **values}
    return changed(arm, Choices.model_validate(values))


def tried_before_or_now(
    job: Job, label: str, attempt: Callable[[Job, str], Attempt], key_of: Callable[[Job], dict[str, Any]]
) -> Attempt:
    """What came of a trial; one that ended well is kept, one that broke down is not."""
    key = json.loads(json.dumps(key_of(job)))
    digest = artifacts.sha256_json(key)
    path = artifacts.trials_dir(job.experiment, job.arm_name) / f"{digest[:16]}.json"
    kept = read_kept(path, key)
    if kept is not None:
        return kept
    found = attempt(job, label)
    if found.failed is None:
        artifacts.write_json(path, {"key": key, "attempt": asdict(found)})
    return found


def read_kept(path: Path, key: dict[str, Any]) -> Attempt | None:
    """A trial of an earlier search; None where there is none, or a file that is not what was written."""
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["key"] == key:
            return Attempt(**found["attempt"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    entry.say(f"{path} is damaged: the trial is trained again")
    return None


def _line(mistake: Any) -> str:  # noqa: ANN401 - pydantic's own
    """One of pydantic's mistakes, in a line."""
    if mistake["type"] == "value_error":
        return str(mistake["ctx"]["error"]).partition("\n")[0]
    place = ".".join(str(part) for part in mistake["loc"])
    return f"{place}: {mistake['msg'].replace('Input should', 'must')}"

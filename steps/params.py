"""Strict models of params.yaml, and of the settings each step gets out of it.

params.yaml is read once, by `resolve`. It writes one small JSON file of complete settings for every
step, and a step reads its own and nothing else; so what DVC watches is exactly what the step read.
"""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from steps.arms import Arm, Choices, Limits, Lora, Machine, changed, misfits, with_rates
from steps.artifacts import read_json
from steps.errors import ParamsError, UserError
from steps.kinds import KINDS, named
from steps.layouts import (
    MODELS,
    PACKAGED,
    TAGS,
    ArchiveData,
    Data,
    FolderData,
    PackageData,
    PathInside,
    TableData,
)
from steps.operation import Drift, Gate, Nightly, Serving
from steps.references import MODELS as REFERENCES
from steps.references import NewWeights, Pretrained, TfhubWeights
from steps.settings import Settings, suggest

# The settings file of an experiment's limits.
LIMITS = "limits"
# Whose backbones take what.
LIBRARIES = {"image": ("timm", "savedmodel"), "text": ("transformers", "vectors", "savedmodel")}

__all__ = [  # the models of arms and the base are known by this room's name too
    "ArchiveData", "Arm", "Data", "FolderData", "Limits", "Lora", "Machine", "PackageData", "PathInside",
    "Settings", "TableData",
]  # fmt: skip

TaskName = Annotated[str, AfterValidator(named)]
Level = Literal["error", "warning"]

# Lower case, digits and dashes: safe as a folder, a DVC stage name and a model name alike.
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
ArmName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(_[a-z0-9]+)*$", max_length=40)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(gt=0, lt=1)]


# -------------------------------------------------------------------------------- sections of an experiment

# What validate can expect, the expectations of single tasks among them.
EXPECTATIONS = (
    "columns_present",
    "ids_unique",
    "labels_not_null",
    "labels_consistent",
    "labels_known",
    "samples_per_class",
    "files_decode",
    "pixels_within_limits",
    "text_not_empty",
    "text_within_limits",
    "no_exact_duplicates",
    "no_near_duplicates",
    "no_duplicates_across_splits",
    "classes_balanced",
    "targets_present",
    "sizes_agree",
    "boxes_inside",
    "boxes_not_empty",
    "masks_fit",
    "masks_known",
    "spans_inside",
    "tags_consistent",
    "answers_found",
    "pairs_complete",
    "no_person_named",
    "language_consistent",
    "targets_within_limits",
)
# Real data repeat themselves and are not balanced: worth a word, no reason to stop.
WARNINGS = (
    "no_exact_duplicates", "no_near_duplicates", "classes_balanced", "no_person_named", "language_consistent",
)  # fmt: skip
DEFAULT_LEVELS: dict[str, Level] = {name: "warning" if name in WARNINGS else "error" for name in EXPECTATIONS}
# Rows that break one of these cannot be fed to a network, or not be told apart.
ALWAYS_ERRORS = (
    "columns_present", "ids_unique", "labels_not_null", "files_decode", "text_not_empty", "targets_present",
    "sizes_agree", "boxes_not_empty", "masks_fit", "masks_known", "spans_inside", "answers_found",
    "pairs_complete",
)  # fmt: skip


def _expectation(name: str) -> str:
    if name not in EXPECTATIONS:
        raise ValueError(f"{name!r} is no expectation{suggest(name, EXPECTATIONS)}")
    return name


ExpectationName = Annotated[str, AfterValidator(_expectation)]
# Folders that the pipeline writes; git ignores them, and a pointer of `dvc add` beside the data with them.
OWN_FOLDERS = ("data", "work", "reports", "mlflow")


class Validation(Settings):
    """What must hold of the data before anything is trained on them."""

    on_reject: Literal["stop", "drop"] = "stop"
    min_per_class: int = Field(10, ge=2)
    min_pixels: int = Field(1, ge=1, description="Shortest side allowed, in pixels.")
    max_pixels: int = Field(50_000_000, ge=1, description="Width times height allowed.")
    min_characters: int = Field(1, ge=1)
    max_characters: int = Field(100_000, ge=1)
    max_imbalance: float = Field(10.0, ge=1, description="Largest class over smallest class.")
    near_duplicate_bits: int = Field(
        2, ge=0, le=16, description="Images whose 64-bit perceptual hashes differ in at most so many bits."
    )
    labels: Annotated[tuple[str, ...], Field(strict=False)] | None = Field(
        None, description="The labels allowed; else every label found."
    )
    levels: dict[ExpectationName, Level] = Field(default_factory=dict)

    @field_validator("levels")
    @classmethod
    def _grave_stays_grave(cls, levels: dict[ExpectationName, Level]) -> dict[ExpectationName, Level]:
        lowered = [name for name in ALWAYS_ERRORS if levels.get(name) == "warning"]
        if lowered:
            raise ValueError(
                f"{', '.join(lowered)} must stay an error: nothing can be trained on such rows; "
                "`on_reject: drop` goes on without them"
            )
        return levels


class Split(Settings):
    """How samples are divided, and how many labels the experiment may use."""

    test: Fraction = 0.2
    validation: Fraction = 0.15
    train_labels: int | None = Field(None, ge=2, description="Label budget: a nested subset of train.")
    validation_labels: int | None = Field(None, ge=2)
    test_labels: int | None = Field(None, ge=2, description="Cap on the test split.")
    salt: str = "headstart"

    @model_validator(mode="after")
    def _leaves_train(self) -> Self:
        if self.test + self.validation >= 0.95:
            raise ValueError(
                f"test + validation must leave something to train on, is {self.test + self.validation:g}"
            )
        return self


class Model(Settings):
    """Which backbone, and how samples are fed to it; what a task has no use for is left at its default."""

    pretrained: Slug
    image_size: int = Field(224, ge=16, le=1024, description="Side of the square input, in pixels.")
    max_tokens: int = Field(128, ge=4, le=4096)
    dropout: float = Field(0.1, ge=0, lt=1, description="Before the head.")
    bands: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] | None = Field(
        None, description="Images: which bands, from 0; else red, green and blue (or grey three times)."
    )
    window: Annotated[tuple[float, float], Field(strict=False)] | None = Field(
        None, description="Images of more than 8 bits: centre and width of the values shown, e.g. [40, 400]."
    )
    band_mean: Annotated[tuple[float, ...], Field(strict=False)] | None = Field(
        None, description="Images with `bands`: mean of each, in the images' own unit; with `band_std`."
    )
    band_std: Annotated[tuple[float, ...], Field(strict=False)] | None = None
    fill: float | None = Field(
        None,
        description="Images: what stands for values that are missing (NaN, no data); else they are refused.",
    )
    score_threshold: float = Field(0.2, ge=0, lt=1, description="Detection: boxes below it are left out.")
    max_boxes: int = Field(100, ge=1, description="Detection: at most so many boxes an image.")
    stride: int = Field(32, ge=1, description="Question answering: tokens that two windows share.")
    max_answer_tokens: int = Field(30, ge=1, description="Question answering: longest answer.")
    max_target_tokens: int = Field(64, ge=4, le=1024, description="Summarisation: longest text written.")
    num_beams: int = Field(1, ge=1, le=16, description="Summarisation: 1 is greedy.")
    mask_fraction: float = Field(
        0.15, gt=0, lt=1, description="Pretraining: share of tokens or patches that are masked or replaced."
    )

    @model_validator(mode="after")
    def _bands_agree(self) -> Self:
        mean, std = self.band_mean, self.band_std
        if (mean is None) != (std is None):
            raise ValueError("`band_mean` and `band_std` go together")
        if mean is not None and std is not None:
            if self.bands is None or not len(mean) == len(std) == len(self.bands):
                raise ValueError("`band_mean` and `band_std` need a value for each of `bands`")
            if min(std) <= 0:
                raise ValueError(f"`band_std` must be above 0, holds {min(std):g}")
            if self.window is not None:
                raise ValueError("give `window`, or `band_mean` with `band_std`, not both")
        if self.bands is not None and min(self.bands) < 0:
            raise ValueError(f"`bands` count from 0, holds {min(self.bands)}")
        if self.window is not None and self.window[1] <= 0:
            raise ValueError(f"`window` is a centre and a width above 0, the width is {self.window[1]:g}")
        return self


class Training(Settings):
    """The tuning budget every arm gets alike."""

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(16, ge=2)
    patience: int | None = Field(None, ge=1, description="Epochs without a better validation loss.")
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="Share of steps the rate climbs.")
    clip_norm: float = Field(1.0, gt=0)
    seeds: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = (1, 2, 3)
    resamples: int = Field(
        1, ge=1, description="On so many different parts of the training pool every seed is trained."
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise ValueError(f"must be distinct and >= 0, is {list(seeds)}")
        return tuple(sorted(seeds))  # every list and table of runs is in this order


class Tuning(Settings):
    """How many hyperparameters every arm may try, each arm as many."""

    trials: int = Field(
        4, ge=1, description="Trainings of the search, the declared values first; 1: these, and no search."
    )
    seed: int = Field(101, ge=0, description="Of the search and its trainings; none of `training.seeds`.")
    seeds: int = Field(
        1, ge=1, description="Trainings of each trial, with the seeds from `seed` on; their mean decides."
    )

    @property
    def each(self) -> tuple[int, ...]:
        """The seeds that every trial is trained with."""
        return tuple(range(self.seed, self.seed + self.seeds))


def _budget(raw: object) -> object:
    if raw == "all" or (isinstance(raw, int) and not isinstance(raw, bool) and raw >= 2):
        return raw
    raise ValueError(f"must be a whole number from 2 on, or `all`, is {raw!r}")


Budget = Annotated[int | Literal["all"], BeforeValidator(_budget)]


class Curve(Settings):
    """Accuracy over the number of labels: every arm is trained on nested parts of the training pool."""

    labels: Annotated[tuple[Budget, ...], Field(strict=False)] = Field(
        (), description="Label budgets, e.g. [25, 50, 100, all]; none: no curve."
    )
    arms: Annotated[tuple[ArmName, ...], Field(strict=False)] | None = Field(
        None, description="Which arms; else all of the experiment's."
    )
    seeds: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] | None = Field(
        None, description="Which of `training.seeds`; else all."
    )

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[int | Literal["all"], ...]) -> tuple[int | Literal["all"], ...]:
        if len(set(labels)) != len(labels):
            raise ValueError(f"must be distinct, is {list(labels)}")
        return labels


class Evaluation(Settings):
    """How arms are judged."""

    metric: str = Field("accuracy", description="One of the task's; left out: its first.")
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    margin: float = Field(
        0.01, ge=0, description="Differences up to this are practically none, in the metric's own unit."
    )
    reference: ArmName = Field("scratch", description="The arm that the verdict compares with.")


def _columns(data: TableData, task: str) -> list[str]:
    """What a table must name for a task and does not."""
    kind = KINDS[task]
    content = "image" if kind.content == "image" else "text"
    wanted = {content: getattr(data, content)}
    if "pair" in kind.columns:
        wanted["pair"] = data.pair
    wanted[kind.told] = getattr(data, kind.told)
    missing = [
        f"task {task} needs the column `{name}` in `data`"
        for name, is_there in wanted.items()
        if not is_there
    ]
    if data.pair is not None and "pair" not in kind.columns:
        missing.append(f"task {task} has one text: `pair` has no use in `data`")
    return missing


class Experiment(Settings):
    """One entry under `experiments:`."""

    task: TaskName
    data: Data
    model: Model
    validation: Validation = Validation()
    split: Split = Split()
    training: Training = Training()
    tuning: Tuning = Tuning()
    curve: Curve = Curve()
    evaluation: Evaluation = Evaluation()
    machine: Machine = Machine()
    gate: Gate = Gate()
    drift: Drift = Drift()
    serving: Serving = Serving()
    candidates: Annotated[tuple[Slug, ...], Field(strict=False)] = Field(
        (), description="Other pretrained references that `headstart rank` weighs against the model's."
    )
    arms: dict[ArmName, Choices | None] = Field(
        default_factory=dict, description="What this experiment changes of an arm; `null` leaves it out."
    )

    @model_validator(mode="before")
    @classmethod
    def _default_metric(cls, raw: Any) -> Any:  # noqa: ANN401 - whatever YAML held
        """Fill in the task's own metric, so that settings which reach a step are complete."""
        if not isinstance(raw, dict) or raw.get("task") not in KINDS:
            return raw
        evaluation = raw.get("evaluation", {})
        if isinstance(evaluation, Evaluation):
            evaluation = evaluation.model_dump(exclude_unset=True)
        if isinstance(evaluation, dict) and not evaluation.get("metric"):
            return {**raw, "evaluation": {**evaluation, "metric": KINDS[raw["task"]].metrics[0]}}
        return raw

    @model_validator(mode="after")
    def _content_fits_task(self) -> Self:
        data, kind = self.data, KINDS[self.task]
        if data.source not in kind.data:
            raise ValueError(
                f"task {self.task} cannot be read from `source: {data.source}`; it takes "
                f"{', '.join(kind.data)}"
            )
        if isinstance(data, TableData):
            mistakes = _columns(data, self.task)
            if mistakes:
                raise ValueError("\n".join(mistakes))
        if isinstance(data, PackageData) and self.task not in PACKAGED[data.dataset]:
            raise ValueError(f"data set {data.dataset} does not fit task {self.task}")
        if self.evaluation.metric not in kind.metrics:
            raise ValueError(
                f"`evaluation.metric` must be one of {', '.join(kind.metrics)} with task {self.task}, "
                f"is {self.evaluation.metric!r}"
            )
        return self

    @model_validator(mode="after")
    def _evidence_fits(self) -> Self:
        training, curve = self.training, self.curve
        mistakes = []
        shared = sorted(set(self.tuning.each) & set(training.seeds))
        if shared:
            mistakes.append(
                f"seed {shared[0]} of `tuning` is among `training.seeds`: the choice would be judged by "
                "what it was made on; change one"
            )
        odd = [seed for seed in curve.seeds or () if seed not in training.seeds]
        if odd:
            mistakes.append(f"`curve.seeds` has {odd[0]}, which is not among `training.seeds`")
        if training.resamples > 1 and self.split.train_labels is None:
            mistakes.append(
                "`training.resamples` needs `split.train_labels`: without it the whole pool is trained on, "
                "and there is no other part of it"
            )
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    @model_validator(mode="after")
    def _parts_of_a_batch_are_whole(self) -> Self:
        size, parts = self.training.batch_size, self.machine.accumulate
        if size % parts:
            raise ValueError(
                f"`machine.accumulate: {parts}` does not divide `training.batch_size: {size}`; change one"
            )
        return self


class Params(Settings):
    """The whole of params.yaml."""

    experiments: dict[Slug, Experiment] = Field(min_length=1)
    arms: dict[ArmName, Arm] = Field(min_length=1)
    pretrained: dict[Slug, Pretrained] = Field(min_length=1)
    nightly: Nightly = Nightly()

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        mistakes = self._mistakes_of_tokenizers()
        for name in self.nightly.experiments or ():
            if name not in self.experiments:
                close = suggest(name, self.experiments)
                mistakes.append(f"nightly.experiments: {name!r} is not under `experiments:`{close}")
        for name, experiment in self.experiments.items():
            if name in ("params", "pretrained"):
                mistakes.append(
                    f"experiments.{name}: is a folder of our own below work/, choose another name"
                )
            first = Path(os.path.normpath(experiment.data.path)).parts[:1]
            if first and first[0] in OWN_FOLDERS:
                mistakes.append(
                    f"experiments.{name}.data.path: {first[0]}/ is the pipeline's own and gets replaced; "
                    "keep raw data elsewhere, e.g. in raw/"
                )
            slug = experiment.model.pretrained
            if slug not in self.pretrained:
                mistakes.append(
                    f"experiments.{name}.model.pretrained: {slug!r} is not under `pretrained:`"
                    f"{suggest(slug, self.pretrained)}"
                )
            else:
                wanted = LIBRARIES[KINDS[experiment.task].content]
                if self.pretrained[slug].library not in wanted:
                    mistakes.append(
                        f"experiments.{name}.model.pretrained: {slug!r} is of "
                        f"{self.pretrained[slug].library}, task {experiment.task} needs one of "
                        f"{' or '.join(wanted)}"
                    )
                elif self.pretrained[slug].library == "savedmodel":
                    mistakes += self._mistakes_of_savedmodel(name)
            for candidate in experiment.candidates:
                if candidate not in self.pretrained:
                    mistakes.append(
                        f"experiments.{name}.candidates: {candidate!r} is not under `pretrained:`"
                        f"{suggest(candidate, self.pretrained)}"
                    )
                elif slug in self.pretrained and (
                    self.pretrained[candidate].library != self.pretrained[slug].library
                ):
                    mistakes.append(
                        f"experiments.{name}.candidates: {candidate!r} is of "
                        f"{self.pretrained[candidate].library}, {slug!r} of {self.pretrained[slug].library}"
                    )
            for arm in experiment.arms:
                if arm not in self.arms:
                    mistakes.append(
                        f"experiments.{name}.arms.{arm}: is not under the top-level `arms:`"
                        f"{suggest(arm, self.arms)}"
                    )
            kept = [arm for arm in self.arms if experiment.arms.get(arm, ...) is not None]
            if experiment.evaluation.reference not in kept:
                mistakes.append(
                    f"experiments.{name}.evaluation.reference: arm {experiment.evaluation.reference!r} "
                    "is not among the experiment's arms"
                )
            for arm in experiment.curve.arms or ():
                if arm not in kept:
                    mistakes.append(
                        f"experiments.{name}.curve.arms: {arm!r} is not among the experiment's arms"
                        f"{suggest(arm, kept)}"
                    )
            for arm in kept:
                mistakes += self._mistakes_of(name, arm)
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    def _mistakes_of_tokenizers(self) -> list[str]:
        """What is wrong with the entries whose tokenizers new networks use."""
        mistakes = []
        for slug, reference in self.pretrained.items():
            if not isinstance(reference, NewWeights) or reference.tokenizer is None:
                continue
            place, other = f"pretrained.{slug}.tokenizer", self.pretrained.get(reference.tokenizer)
            if other is None:
                known = suggest(reference.tokenizer, self.pretrained)
                mistakes.append(f"{place}: {reference.tokenizer!r} is not under `pretrained:`{known}")
            elif isinstance(other, NewWeights):
                mistakes.append(
                    f"{place}: {reference.tokenizer!r} has another entry's itself: name that one, "
                    f"{other.tokenizer!r}"
                )
            elif other.library == "savedmodel" or other.library not in LIBRARIES["text"]:
                mistakes.append(
                    f"{place}: {reference.tokenizer!r} is of {other.library} and has no tokenizer"
                )
        return mistakes

    def _mistakes_of_savedmodel(self, name: str) -> list[str]:
        """What does not go with a SavedModel, whose features are all that torch gets to see."""
        experiment, place = self.experiments[name], f"experiments.{name}"
        slug, kind = experiment.model.pretrained, KINDS[experiment.task]
        why = f"{slug!r} is a SavedModel, which torch cannot train"
        mistakes = []
        if kind.gives != "pooled":
            mistakes.append(
                f"{place}.model.pretrained: {slug!r} is a SavedModel, which gives one row of features for "
                f"each sample: task {experiment.task} needs more than that"
            )
        elif len(kind.columns) > 1:
            mistakes.append(
                f"{place}.model.pretrained: {slug!r} is a SavedModel, which takes one text: task "
                f"{experiment.task} has two"
            )
        unfit, augmented = [], []
        for arm in self.arm_names(name):
            with suppress(ValidationError):  # told of elsewhere
                chosen = changed(self.arms[arm], experiment.arms.get(arm) or Choices())
                if chosen.start != "pretrained" or chosen.tune != "head":
                    unfit.append(arm)
                elif chosen.augment:
                    augmented.append(arm)
        if unfit:
            mistakes.append(
                f"{place}.arms: {why}: only arms with `tune: head` go with it, so leave out with `null` "
                f"{', '.join(unfit)}"
            )
        if augmented:
            mistakes.append(
                f"{place}.arms: {why}, and its features are computed once, of images as they are: leave out "
                f"with `null`, or without `augment`, {', '.join(augmented)}"
            )
        if experiment.evaluation.reference in unfit:
            mistakes.append(
                f"{place}.evaluation.reference: {why}: name an arm with `tune: head`, not "
                f"{experiment.evaluation.reference!r}"
            )
        return mistakes + (self._mistakes_of_images(name) if kind.content == "image" else [])

    def _mistakes_of_images(self, name: str) -> list[str]:
        """What images a SavedModel cannot be given."""
        experiment, place, mistakes = self.experiments[name], f"experiments.{name}", []
        model = experiment.model
        if (model.bands is not None and len(model.bands) != 3) or model.band_mean is not None:
            mistakes.append(
                f"{place}.model: {model.pretrained!r} is a SavedModel, which takes images of three channels "
                "with values from 0 to 1: name three `bands` at most, without `band_mean` and `band_std`"
            )
        for slug in (model.pretrained, *experiment.candidates):
            reference = self.pretrained.get(slug)
            if not isinstance(reference, TfhubWeights) or reference.image_size == model.image_size:
                continue
            said = f"{slug!r} takes images of {reference.image_size} x {reference.image_size} pixels"
            mistakes.append(
                f"{place}.model.image_size: {said}, is {model.image_size}: set it to {reference.image_size}"
                if slug == model.pretrained
                else f"{place}.candidates: {said}, the experiment's have {model.image_size}"
            )
        return mistakes

    def _mistakes_of(self, name: str, arm: str) -> list[str]:
        """What is wrong with an arm in an experiment."""
        experiment = self.experiments[name]
        place = ("experiments", name, "arms", arm)
        try:
            merged = changed(self.arms[arm], experiment.arms.get(arm) or Choices())
        except ValidationError as error:
            return _lines(error, place)
        found = misfits(merged, experiment.task, experiment.training.epochs)
        return [f"{'.'.join(place)}: {text}" for text in found]

    def arm(self, experiment: str, arm: str) -> Arm | None:
        """The arm as this experiment uses it, complete with its rates; None when it is left out."""
        entry = self.experiments[experiment]
        changes = entry.arms.get(arm, Choices())
        if changes is None:
            return None
        library = self.pretrained[entry.model.pretrained].library
        return with_rates(changed(self.arms[arm], changes), library)

    def chosen(self, experiment: str, arm: str) -> Arm:
        """The arm of an experiment that a user named.

        Raises:
            UserError: there is no such experiment or arm, or the experiment leaves the arm out.
        """
        if experiment not in self.experiments:
            raise UserError(f"there is no experiment {experiment!r}{suggest(experiment, self.experiments)}")
        if arm not in self.arms:
            raise UserError(f"there is no arm {arm!r}{suggest(arm, self.arms)}")
        found = self.arm(experiment, arm)
        if found is None:
            raise UserError(f"{experiment} leaves {arm} out: its `arms:` in params.yaml say `{arm}: null`")
        return found

    def arm_names(self, experiment: str) -> list[str]:
        """The arms this experiment compares, in the order of the top-level `arms:`."""
        return [arm for arm in self.arms if self.experiments[experiment].arms.get(arm, ...) is not None]


# ------------------------------------------------------------------- what each step gets: resolved settings


class RegisterSettings(Settings):
    """What `register` reads beside compare's settings; no stage depends on it."""

    gate: Gate


class IngestSettings(Settings):
    """Read by ingest."""

    task: TaskName
    data: Data


class ValidateSettings(Settings):
    """Read by validate."""

    task: TaskName
    validation: Validation


class EmbedSettings(Settings):
    """Read by embed."""

    task: TaskName
    model: Model
    machine: Machine = Machine()


class BaselineSettings(Settings):
    """Read by baseline."""

    task: TaskName
    model: Model
    evaluation: Evaluation


class TrainSettings(Settings):
    """Read by train; `arm` is None when the experiment leaves the arm out."""

    task: TaskName
    model: Model
    training: Training
    tuning: Tuning = Tuning()
    arm: Arm | None
    machine: Machine = Machine()


class EvaluateSettings(Settings):
    """Read by evaluate."""

    task: TaskName
    model: Model
    evaluation: Evaluation
    arms: Annotated[tuple[str, ...], Field(strict=False)]
    seeds: Annotated[tuple[int, ...], Field(strict=False)]
    resamples: int = 1
    machine: Machine = Machine()


class CurveSettings(Settings):
    """Read by curve; the settings of its trainings are those that train wrote down."""

    curve: Curve
    seeds: Annotated[tuple[int, ...], Field(strict=False)]
    arms: Annotated[tuple[str, ...], Field(strict=False)]


class SplitSettings(Settings):
    """Read by split."""

    split: Split
    resamples: int = 1


class CompareSettings(Settings):
    """Read by compare and register."""

    task: TaskName
    model: Model
    training: Training
    tuning: Tuning = Tuning()
    curve: Curve = Curve()
    evaluation: Evaluation
    arms: dict[str, Arm]


# ------------------------------------------------------------------------------------------------ reading

S = TypeVar("S", bound=Settings)


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        ParamsError: every mistake, one a line, each with its path in the file.
    """
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing; run inside a clone of Headstart") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not UTF-8 text: {error}") from None
    except YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    return parse(Params, raw, str(path))


def parse(model: type[S], raw: Any, where: str) -> S:  # noqa: ANN401 - whatever YAML or JSON held
    """Check a value against a model, turning pydantic's errors into our own lines.

    Raises:
        ParamsError: every mistake, one a line.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = _lines(error)
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        head = f"{where}: " if len(lines) == 1 else f"{where} has {count}:\n  "
        raise ParamsError(head + "\n  ".join(lines)) from None


def read_settings(model: type[S], path: Path) -> S:
    """Read the settings `resolve` wrote for a step."""
    return parse(model, read_json(path, "python -m steps.resolve"), str(path))


_LIMITS = {
    "greater_than": ("gt", ">"),
    "greater_than_equal": ("ge", ">="),
    "less_than": ("lt", "<"),
    "less_than_equal": ("le", "<="),
}


def _lines(error: ValidationError, below: tuple[str, ...] = ()) -> list[str]:
    lines: list[str] = []
    for mistake in error.errors(include_url=False):
        location = [*below, *(str(part) for part in mistake["loc"])]
        _without_tag(location)
        # `[key]` marks a dict's key, not a value.
        is_key = bool(location) and location[-1] == "[key]"
        path = ".".join(part for part in location if part != "[key]")
        kind, context, value = mistake["type"], mistake.get("ctx", {}), mistake.get("input")
        if kind in _LIMITS:
            name, sign = _LIMITS[kind]
            text = f"must be {sign} {context[name]:g}, is {value}"
        elif kind == "extra_forbidden":
            text = f"unknown key{_suggest_key(path)}"
        elif kind == "missing":
            text = "is missing"
        elif kind == "literal_error":
            text = f"must be {context['expected']}, is {value!r}"
        elif kind == "union_tag_invalid":
            text = f"source must be one of {context['expected_tags']}, is {context['tag']!r}"
        elif kind == "union_tag_not_found":
            text = "source is missing"
        elif kind == "value_error":
            inner = str(context["error"])
            if not path:
                lines += inner.split("\n")
                continue
            lines += [f"{path}: {line}" for line in inner.split("\n")]
            continue
        elif is_key:
            text = (
                "is no name we can use: lower case letters and digits, joined by one dash (arms: underscore)"
            )
        elif kind == "string_pattern_mismatch":
            text = f"must match {context['pattern']}, is {value!r}"
        elif kind.endswith(("_type", "_parsing")):
            text = f"{mistake['msg'].replace('Input should', 'must')}, is {value!r}"
            if isinstance(value, str) and "e" in value and kind.startswith("float"):
                text += " (write it as 1.0e-3)"
        else:
            text = f"{mistake['msg']}, is {value!r}"
        lines.append(f"{path}: {text}" if path else text)
    return lines


def _without_tag(location: list[str]) -> None:
    """Take out the tag of a union, which pydantic puts into the path; the user's file has no such key."""
    for index in range(1, len(location)):
        of_data = location[index - 1] == "data" and location[index] in TAGS
        of_weights = index == 2 and location[0] == "pretrained" and location[index] in REFERENCES
        if of_data or of_weights:
            del location[index]
            return


def _suggest_key(path: str) -> str:
    *parents, name = path.split(".")
    known = sorted({field for model in _models_at(parents) for field in model.model_fields})
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _models_at(parents: list[str]) -> tuple[type[Settings], ...]:
    """The models whose keys may stand at a place in params.yaml."""
    sections: dict[str, tuple[type[Settings], ...]] = {
        "data": MODELS,
        "model": (Model,),
        "validation": (Validation,),
        "split": (Split,),
        "training": (Training,),
        "tuning": (Tuning,),
        "curve": (Curve,),
        "evaluation": (Evaluation,),
        "gate": (Gate,),
        "drift": (Drift,),
        "serving": (Serving,),
        "machine": (Machine,),
    }
    entries: dict[str, tuple[type[Settings], ...]] = {
        "experiments": (Experiment,),
        "arms": (Arm,),
        "pretrained": tuple(REFERENCES.values()),
    }
    if len(parents) in (3, 5) and parents[-1] == "lora":
        return (Lora,)
    if parents == ["nightly"]:
        return (Nightly,)
    if len(parents) == 3 and parents[-1] in sections:
        return sections[parents[-1]]
    return entries.get(parents[-2], (Params,)) if len(parents) >= 2 else (Params,)

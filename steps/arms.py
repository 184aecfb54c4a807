"""An arm: a way to start and to tune, as a combination of a few choices; and what the machine may do.

A preset is a name for some of the choices. It is expanded before anything is checked, so that settings which
reach a step are complete and the step need not know presets.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from steps.kinds import KINDS
from steps.settings import Settings, suggest

Library = Literal["timm", "transformers", "vectors", "savedmodel"]
Start = Literal["pretrained", "random"]
Tune = Literal["all", "head", "biases", "norms", "lora", "gradual", "pattern"]
Augmentation = Literal["flip", "crop", "randaugment"]

# What a search may try for one key of an arm: [low, high], or the values to choose from.
Number = Annotated[int | float, Field(allow_inf_nan=False)]


class OneOf(Settings):
    """The values a search may choose from."""

    choices: Annotated[tuple[bool | int | float | str | None, ...], Field(strict=False, min_length=1)]


def _range(raw: object) -> object:
    """Tell a mistake in one line, where a union would tell one for each of its kinds."""
    fits = isinstance(raw, OneOf)
    if isinstance(raw, list | tuple):
        fits = len(raw) == 2 and all(map(_is_number, raw))
    elif isinstance(raw, dict):
        choices = raw.get("choices")
        fits = len(raw) == 1 and isinstance(choices, list | tuple) and len(choices) > 0
    if not fits:
        raise ValueError(f"must be two numbers [low, high] or {{choices: [...]}}, is {raw!r}")
    return raw


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


Ends = Annotated[tuple[Number, Number], Field(strict=False)]
Range = Annotated[Ends | OneOf, BeforeValidator(_range)]

# --------------------------------------------------------------------------------------------------- presets

# What a preset's name stands for; everything else is at its default.
PRESETS: dict[str, dict[str, Any]] = {
    "scratch": {"start": "random"},
    "frozen": {"tune": "head"},
    "frozen_lbfgs": {"tune": "head", "solver": "lbfgs"},
    "bottom_half": {"freeze_bottom": 0.5},
    "full": {"tune": "all"},
    "lp_ft": {"head_first": True},
    "llrd": {"layer_decay": 0.8},
    "gradual": {"tune": "gradual"},
    "reinit_top_1": {"reinit_top": 1},
    "reinit_top_2": {"reinit_top": 2},
    "lora": {"tune": "lora"},
    "bitfit": {"tune": "biases"},
    "norms": {"tune": "norms"},
    "l2_sp": {"l2_sp": 0.01},
    "ema": {"ema": 0.95},
    "soup": {"soup": "greedy"},
    "mlp_head": {"head": "mlp"},
    "augmented": {"augment": ("flip", "crop", "randaugment")},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "smoothed": {"label_smoothing": 0.1},
    "drop_path": {"drop_path": 0.1},
    "balanced": {"balanced_sampling": True},
}
# What each does, and its paper.
ABOUT_PRESETS: dict[str, tuple[str, str]] = {
    "scratch": (
        "All weights drawn at random: what the pretrained ones have to beat",
        "He et al., Rethinking ImageNet Pre-training, 2019",
    ),
    "frozen": (
        "The linear probe: a new head on features that stay as they are",
        "Alain and Bengio, Linear Classifier Probes, 2017",
    ),
    "frozen_lbfgs": (
        "The same with the optimum of the whole training split in place of mini-batches",
        "Liu and Nocedal, L-BFGS, 1989",
    ),
    "bottom_half": (
        "The lower half of the layers stays as it is",
        "Yosinski et al., How Transferable Are Features, 2014",
    ),
    "full": (
        "Everything is tuned, the backbone more slowly than the head",
        "Kornblith et al., Do Better ImageNet Models Transfer Better, 2019",
    ),
    "lp_ft": (
        "The head is fitted first, so that its random start does not spoil the features",
        "Kumar et al., Fine-Tuning Can Distort Pretrained Features, 2022",
    ),
    "llrd": (
        "The rate falls from layer to layer, top to bottom",
        "Howard and Ruder, ULMFiT, 2018; Clark et al., ELECTRA, 2020",
    ),
    "gradual": (
        "The layers are thawed one after the other, top to bottom",
        "Howard and Ruder, ULMFiT, 2018",
    ),
    "reinit_top_1": (
        "The top layer, closest to the old task, is drawn anew",
        "Zhang et al., Revisiting Few-sample BERT Fine-tuning, 2021",
    ),
    "reinit_top_2": (
        "The same with two layers",
        "Zhang et al., Revisiting Few-sample BERT Fine-tuning, 2021",
    ),
    "lora": (
        "Small matrices beside the frozen ones are trained",
        "Hu et al., LoRA, 2022",
    ),
    "bitfit": (
        "Of the backbone only the biases are trained",
        "Ben Zaken et al., BitFit, 2022",
    ),
    "norms": (
        "Of the backbone only the scales and shifts of the normalisation layers are trained",
        "Frankle et al., Training BatchNorm and Only BatchNorm, 2021",
    ),
    "l2_sp": (
        "The weights are pulled towards the pretrained ones",
        "Li et al., Explicit Inductive Bias for Transfer Learning, 2018",
    ),
    "ema": (
        "A moving average of the weights over about 20 steps; small data make few steps",
        "Polyak and Juditsky, Acceleration of Stochastic Approximation, 1992",
    ),
    "soup": (
        "The average of those epochs' weights that help on validation",
        "Wortsman et al., Model Soups, 2022",
    ),
    "mlp_head": (
        "A head with one hidden layer",
        "Chen et al., Big Self-Supervised Models (SimCLRv2), 2020",
    ),
    "augmented": (
        "Images are mirrored, cropped and distorted anew in every epoch",
        "Cubuk et al., RandAugment, 2020",
    ),
    "mixup": (
        "Two images are blended, and so are their labels",
        "Zhang et al., mixup, 2018",
    ),
    "cutmix": (
        "A part of an image is replaced by another's, and the label in proportion",
        "Yun et al., CutMix, 2019",
    ),
    "smoothed": (
        "A tenth of each label is spread over all classes",
        "Szegedy et al., Rethinking the Inception Architecture, 2016",
    ),
    "drop_path": (
        "Blocks are left out at random while training",
        "Huang et al., Deep Networks with Stochastic Depth, 2016",
    ),
    "balanced": (
        "Every class is drawn equally often",
        "Buda et al., The Class Imbalance Problem in CNNs, 2018",
    ),
}

# --------------------------------------------------------------------------------------------- learning rates

Kind = Literal["random", "head", "all", "biases", "norms", "lora"]
# Rates of the head and of the backbone where params.yaml gives none: by library and kind of tuning. Language
# models want small ones (Mosbach et al., On the Stability of Fine-tuning BERT, 2021).
RATES: dict[Library, dict[Kind, tuple[float, float]]] = {
    "timm": {
        "random": (0.002, 0.002),
        "head": (0.003, 0.003),
        "all": (0.005, 0.001),
        "biases": (0.005, 0.005),
        "norms": (0.005, 0.005),
        "lora": (0.005, 0.005),
    },
    "transformers": {
        "random": (0.0005, 0.0005),
        "head": (0.03, 0.03),
        "all": (0.001, 0.0001),
        "biases": (0.001, 0.001),
        "norms": (0.001, 0.001),
        "lora": (0.001, 0.001),
    },
    # A table of words and a shallow encoder: nothing deep that a large step could upset.
    "vectors": {
        "random": (0.005, 0.005),
        "head": (0.03, 0.03),
        "all": (0.01, 0.001),
        "biases": (0.01, 0.01),
        "norms": (0.01, 0.01),
        "lora": (0.01, 0.01),
    },
    # The network runs in another framework and stays as it is: the rate is a head's, whatever is asked.
    "savedmodel": {
        "random": (0.003, 0.003),
        "head": (0.003, 0.003),
        "all": (0.003, 0.003),
        "biases": (0.003, 0.003),
        "norms": (0.003, 0.003),
        "lora": (0.003, 0.003),
    },
}


# ------------------------------------------------------------------------------------------------- the models


class Lora(Settings):
    """Low-rank matrices that are trained beside frozen ones."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0, description="The update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Before the low-rank matrices.")
    targets: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = Field(
        None, description="Names of the modules to adapt, whole, last parts or globs; else all linear layers."
    )


def _layers_or_share(value: object) -> object:
    # Checked before the type: of a union pydantic would tell one mistake for each of its types.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number of layers or a share between 0 and 1, is {value!r}")
    if value < 0 or (isinstance(value, float) and not 0 < value < 1):
        raise ValueError(
            f"must be a whole number of layers >= 0, or a share strictly between 0 and 1, is {value}"
        )
    return value


# The keys of an arm that a search may change; the others say what the arm is.
SEARCHABLE = (
    "learning_rate", "backbone_learning_rate", "layer_decay", "weight_decay", "l2_sp", "label_smoothing",
    "mixup", "cutmix", "drop_path", "ema", "reinit_top", "freeze_bottom", "thaw_every", "head_first",
    "class_weights", "balanced_sampling", "head", "soup",
)  # fmt: skip


class Choices(Settings):
    """What can be said of an arm; whether it fits together is seen when it is an `Arm`."""

    preset: str | None = Field(
        None, description="A name for some of the choices, see the table of presets; other keys override it."
    )
    start: Start = Field("pretrained", description="The backbone's weights before the training.")
    reinit_top: int = Field(
        0, ge=0, description="So many of the backbone's top layers are drawn anew, by its own initialiser."
    )
    tune: Tune = Field(
        "all",
        description="What trains beside the head: everything, nothing, the biases, the norms, LoRA matrices, "
        "layer after layer from the top, or what `patterns` name.",
    )
    freeze_bottom: Annotated[int | float, BeforeValidator(_layers_or_share)] = Field(
        0, description="So many bottom layers stay frozen: a whole number, or a share such as 0.5."
    )
    patterns: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="With `tune: pattern`: globs such as `*attention*` on names of parameters."
    )
    lora: Lora | None = Field(None, description="With `tune: lora`.")
    thaw_every: int = Field(1, ge=1, description="With `tune: gradual`: epochs between two thawings.")
    head: Literal["linear", "mlp"] = "linear"
    head_first: bool = Field(
        False, description="The head is fitted alone, on frozen features, before the rest trains (LP-FT)."
    )
    solver: Literal["adamw", "lbfgs"] = Field(
        "adamw", description="`lbfgs`: the optimum over the whole training split, with `tune: head` only."
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Of the head; of everything with `start: random`. Else a default."
    )
    backbone_learning_rate: float | None = Field(
        None, gt=0, description="Of the backbone's top layer. Else a default."
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Each layer's rate is so many times that of the layer above."
    )
    weight_decay: float = Field(0.01, ge=0, description="Of matrices and convolutions alone.")
    l2_sp: float = Field(
        0.0, ge=0, description="Weight of the squared distance to the pretrained weights (L2-SP)."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    mixup: float = Field(0.0, ge=0, description="Alpha of the Beta distribution; images only.")
    cutmix: float = Field(0.0, ge=0, description="Alpha of the Beta distribution; images only.")
    augment: Annotated[tuple[Augmentation, ...], Field(strict=False)] = Field(
        (), description="What is done to training images at random; images only."
    )
    views: int = Field(
        0, ge=0, description="With `augment`: so many fixed versions of each image; 0: a new one every epoch."
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="Stochastic depth: share of blocks left out.")
    ema: float | None = Field(None, gt=0, lt=1, description="Decay of a moving average of the weights.")
    soup: Literal["uniform", "greedy"] | None = Field(
        None, description="Average the weights of the four best epochs: all, or what helps on validation."
    )
    class_weights: bool = Field(False, description="Rare classes weigh more in the loss.")
    balanced_sampling: bool = Field(False, description="Every class is drawn equally often.")
    search: dict[str, Range] | None = Field(
        None,
        description="What `tuning` searches for this arm: keys of the arm with `[low, high]` or "
        "`{choices: [...]}`. Else the rates, from a tenth to ten times those declared.",
    )

    @field_validator("search")
    @classmethod
    def _searchable(cls, search: dict[str, Range] | None) -> dict[str, Range] | None:
        for key, wanted in (search or {}).items():
            if key not in SEARCHABLE:
                raise ValueError(f"{key!r} cannot be searched{suggest(key, SEARCHABLE)}")
            if not isinstance(wanted, OneOf) and wanted[0] >= wanted[1]:
                raise ValueError(f"{key}: the lower end must come first, is {list(wanted)}")
        return search

    @field_validator("preset")
    @classmethod
    def _known(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"{preset!r} is no preset{suggest(preset, PRESETS)}")
        return preset


class Arm(Choices):
    """A way to start and to tune."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, raw: object) -> object:
        if not isinstance(raw, dict):
            return raw
        return merged(PRESETS.get(str(raw.get("preset")), {}), raw)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        mistakes = [
            *_of_the_start(self),
            *_of_a_frozen_backbone(self),
            *_of_the_solver(self),
            *_of_what_trains(self),
            *_of_the_rest(self),
        ]
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self


class Limits(Settings):
    """How much disk, memory and time the work may take: changes no result, so it reruns nothing."""

    cache: bool = Field(True, description="Store what a frozen bottom makes of the samples.")
    cache_gib: float = Field(
        10.0, gt=0, description="Limit of the activations that are stored, and of the pixels, in GiB each."
    )
    image_memory_gib: float = Field(
        1.0,
        ge=0,
        description="Decoded images of a split kept in memory, in GiB; more of them go to a mapped file.",
    )
    checkpoint_seconds: float = Field(
        30.0, ge=0, description="Time between two checkpoints to resume from; 0: after every step."
    )
    ray: str | None = Field(
        None,
        min_length=1,
        description="Compute features over Ray: `local` for this machine alone, or a cluster's address.",
    )


class Machine(Limits):
    """What the machine does with the work; none of it changes what is to be trained."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="`auto`: CUDA, else Apple's GPU, else the CPU."
    )
    precision: Literal["float32", "bf16", "fp16"] = Field(
        "float32", description="Of the forward pass; weights stay in float32."
    )
    compile: bool = Field(False, description="Use torch.compile.")
    accumulate: int = Field(
        1,
        ge=1,
        description="A batch is computed in so many parts; must divide `training.batch_size`. Batch "
        "normalisation sees the parts one by one.",
    )
    processes: int = Field(
        1,
        ge=1,
        description="So many processes train one network together, each on a part of every batch.",
    )
    gradient_checkpointing: bool = Field(False, description="Less memory, a second forward pass.")
    auto_batch_size: bool = Field(
        False, description="When memory runs out, compute a batch in more parts; the batch stays the same."
    )

    @property
    def limits(self) -> Limits:
        """The limits alone."""
        return Limits(**{name: getattr(self, name) for name in Limits.model_fields})

    def within(self, limits: Limits) -> Machine:
        """The same with other limits."""
        return self.model_copy(update=dict(limits))

    @model_validator(mode="after")
    def _can_compute(self) -> Self:
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("`precision: fp16` needs a GPU; with `device: cpu` take float32 or bf16")
        if self.processes > 1 and self.auto_batch_size:
            raise ValueError(
                "`auto_batch_size` does not go with `processes`: one that runs out of memory cannot change "
                "the others' parts; raise `accumulate`"
            )
        return self


# ------------------------------------------------------------------------- what does not go together, and why


def _of_the_start(arm: Choices) -> list[str]:
    """Mistakes of an arm that starts at random."""
    if arm.start == "pretrained":
        return []
    mistakes = []
    if arm.tune != "all":
        mistakes.append(
            f"`tune: {arm.tune}` needs `start: pretrained`: what it leaves frozen would stay random"
        )
    for name, reason in {
        "reinit_top": "all layers are drawn anew as it is",
        "freeze_bottom": "the frozen layers would stay random",
        "head_first": "there are no features yet to fit a head on",
        "l2_sp": "there are no pretrained weights to stay near",
    }.items():
        if getattr(arm, name):
            mistakes.append(f"`{name}` needs `start: pretrained`: with a random start {reason}")
    if arm.backbone_learning_rate not in (None, arm.learning_rate):
        mistakes.append(
            "`backbone_learning_rate` has no use with `start: random`: `learning_rate` is that of everything"
        )
    return mistakes


def _of_a_frozen_backbone(arm: Choices) -> list[str]:
    """Mistakes of an arm that trains the head alone."""
    if arm.tune != "head":
        return []
    mistakes = []
    for name, reason in {
        "freeze_bottom": "the whole backbone is frozen",
        "reinit_top": "the new layers would stay random",
        "l2_sp": "the backbone does not move",
        "drop_path": "the backbone is computed as it is",
        "head_first": "the head is all that trains",
        "mixup": "the head learns from stored features, and features are no images to mix",
        "cutmix": "the head learns from stored features, and features are no images to mix",
    }.items():
        # A head after a random start is told of once.
        if getattr(arm, name) and arm.start == "pretrained":
            mistakes.append(f"`{name}` has no use with `tune: head`: {reason}; drop it or take `tune: all`")
    if arm.layer_decay != 1:
        mistakes.append("`layer_decay` has no use with `tune: head`: no other layer trains; drop it")
    # The default that is filled in is the head's own rate.
    if arm.start == "pretrained" and arm.backbone_learning_rate not in (None, arm.learning_rate):
        mistakes.append("`backbone_learning_rate` has no use with `tune: head`: drop it")
    return mistakes


def _of_the_solver(arm: Choices) -> list[str]:
    """Mistakes of an arm that solves for its head's optimum."""
    if arm.solver == "adamw":
        return []
    if arm.tune != "head":
        return [f"`solver: lbfgs` fits a head on frozen features: take `tune: head`, not `{arm.tune}`"]
    mistakes = []
    for name, reason in {
        "ema": "it has no steps to average over",
        "soup": "it has no epochs to average over",
        "balanced_sampling": "it draws no batches; `class_weights` does the same",
    }.items():
        if getattr(arm, name):
            mistakes.append(f"`{name}` does not go with `solver: lbfgs`: {reason}")
    if arm.augment and not arm.views:
        mistakes.append(
            "`augment` with `solver: lbfgs` needs `views`: it solves for one fixed set of images, so say how "
            "many versions of each"
        )
    return mistakes


def _of_what_trains(arm: Choices) -> list[str]:
    """Mistakes in the choice of what trains and what goes with it."""
    mistakes = []
    for name, tune in {"patterns": "pattern", "lora": "lora"}.items():
        if getattr(arm, name) and arm.tune != tune:
            mistakes.append(f"`{name}` goes with `tune: {tune}` only: drop it or change `tune: {arm.tune}`")
    if arm.thaw_every != 1 and arm.tune != "gradual":
        mistakes.append("`thaw_every` goes with `tune: gradual` only: drop it or change `tune`")
    if arm.tune == "pattern" and not arm.patterns:
        mistakes.append("`tune: pattern` needs `patterns`: globs on the names of parameters that shall train")
    if arm.tune == "pattern" and arm.freeze_bottom:
        mistakes.append("`freeze_bottom` does not go with `tune: pattern`: the patterns say what trains")
    if arm.tune == "gradual" and arm.head_first:
        mistakes.append("`head_first` has no use with `tune: gradual`, which trains the head first: drop it")
    if arm.tune == "lora" and arm.l2_sp:
        mistakes.append("`l2_sp` has no use with `tune: lora`: the pretrained weights do not move; drop it")
    if arm.reinit_top and arm.tune in ("biases", "norms", "lora"):
        mistakes.append(
            f"`reinit_top` does not go with `tune: {arm.tune}`: the new matrices would stay random; take "
            "`tune: all`"
        )
    return mistakes


def _of_the_rest(arm: Choices) -> list[str]:
    """Mistakes of choices that stand for themselves."""
    mistakes = []
    if arm.views and not arm.augment:
        mistakes.append("`views` needs `augment`: without it all versions of an image are the same")
    if arm.soup is not None and arm.ema is not None:
        mistakes.append("`soup` and `ema` both average weights: choose one")
    if arm.class_weights and arm.balanced_sampling:
        mistakes.append("`class_weights` and `balanced_sampling` would count rare classes twice: choose one")
    if len(set(arm.augment)) < len(arm.augment):
        mistakes.append(f"`augment` names the same twice: {', '.join(arm.augment)}")
    return mistakes


IMAGES_ONLY = ("mixup", "cutmix", "augment")
# Augmentations that move a task's targets with the images.
MOVED: dict[str, tuple[Augmentation, ...]] = {
    "object-detection": ("flip",), "semantic-segmentation": ("flip", "crop"),
}  # fmt: skip
# What weighs, smooths, mixes or draws by classes, and what solves for a classifier's head.
CLASSES_ONLY = (
    "mixup", "cutmix", "label_smoothing", "class_weights", "balanced_sampling", "head_first",
)  # fmt: skip


def misfits(arm: Arm, task: str, epochs: int) -> list[str]:
    """Mistakes of an arm in an experiment: what does not go with its task or its epochs."""
    kind, mistakes = KINDS[task], []
    leave = "leave the arm out of this experiment with `null`, or change the key here"
    if kind.content == "text":
        mistakes += [
            f"`{name}` is for images, not for task {task}: {leave}"
            for name in IMAGES_ONLY
            if getattr(arm, name)
        ]
    elif set(arm.augment) - set(MOVED.get(task, ())) and kind.gives != "pooled":
        mistakes.append(f"`augment` would move the images and not the targets of task {task}: {leave}")
    if not kind.classified:
        mistakes += [
            f"`{name}` needs one class for each sample, which task {task} has not: {leave}"
            for name in CLASSES_ONLY
            if getattr(arm, name) and not (name in IMAGES_ONLY and kind.content == "text")
        ]
        if arm.solver == "lbfgs":
            mistakes.append(f"`solver: lbfgs` solves for a classifier's head, not for task {task}: {leave}")
    if arm.head == "mlp" and kind.gives != "pooled":
        mistakes.append(f"`head: mlp` is a classifier's; task {task} has a head of its own: {leave}")
    if arm.tune == "gradual" and arm.thaw_every >= epochs:
        mistakes.append(
            f"`thaw_every: {arm.thaw_every}` thaws nothing in {epochs} epoch{'s' * (epochs != 1)}: lower it "
            "or raise `training.epochs`"
        )
    return mistakes


# --------------------------------------------------------------------------------------- from choices to arms


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two levels of settings as one; the upper one wins, key by key also inside a section."""
    both = {**below, **above}
    for key, value in above.items():
        under = below.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            both[key] = merged(under, value)
    return both


def changed(arm: Arm, changes: Choices) -> Arm:
    """The arm with an experiment's changes; changes that name a preset start from it instead.

    Raises:
        ValidationError: the changed arm does not fit together.
    """
    own = changes.model_dump(exclude_unset=True)
    if changes.preset is not None:
        return Arm.model_validate(own)
    return Arm.model_validate(merged(arm.model_dump(exclude_unset=True), own))


def with_rates(arm: Arm, library: Library) -> Arm:
    """The arm with both learning rates, and with the section of LoRA where that is what trains."""
    head, backbone = RATES[library][kind_of(arm)]
    rate = arm.learning_rate if arm.learning_rate is not None else head
    if arm.start == "random" or arm.tune == "head":
        backbone = rate
    elif arm.backbone_learning_rate is not None:
        backbone = arm.backbone_learning_rate
    filled: dict[str, Any] = {"learning_rate": rate, "backbone_learning_rate": backbone}
    if arm.tune == "lora" and arm.lora is None:
        filled["lora"] = Lora()
    return arm.model_copy(update=filled)


def kind_of(arm: Arm) -> Kind:
    """The row of the table of rates."""
    if arm.start == "random":
        return "random"
    return "all" if arm.tune == "gradual" or arm.tune == "pattern" else arm.tune

"""What an arm trains: a network, its batches and its stages, made from the files of an experiment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from steps import artifacts, data, entry, features, freezing, loop, network, params, probing, tasks
from steps.data import Batches, FeatureSamples, Samples, Targets
from steps.errors import HeadstartError, UserError
from steps.features import PrefixCache
from steps.kinds import KINDS, Kind
from steps.loop import Fed, Fitted, Judge, Keeper, Log, Recipe, Stage
from steps.network import Backbone, Network, Probe
from steps.parallel import ALONE, Ranks
from steps.params import Arm, Limits, Machine, TrainSettings
from steps.resume import code_sha256
from steps.scans import Rule
from steps.tasks import Ask, Task

GIB = 2**30
# The libraries that make a frozen layer's activations out of a sample.
COMPUTES = ("pillow", "timm", "tokenizers", "torchvision", "transformers")


@dataclass(frozen=True)
class Job:
    """One arm of one experiment: what all its seeds share.

    Samples are decoded, and activations of a frozen prefix computed, once for all seeds.
    """

    experiment: str
    arm_name: str
    arm: Arm
    settings: TrainSettings
    pretrained: Path
    classes: list[str]
    rows: pd.DataFrame
    device: torch.device
    features_folder: Path
    resample: int = 1
    # What was decoded, by split; one for a job and all that come of it by `with_settings`.
    _samples: dict[str, Samples] = field(default_factory=dict, repr=False)
    _targets: dict[str, Tensor | Targets] = field(default_factory=dict, repr=False)

    @cached_property
    def task(self) -> Task:
        """What kind of data it is, and what is learnt of them."""
        return tasks.get(self.settings.task)

    @property
    def kind(self) -> Kind:
        """The few facts about the task."""
        return KINDS[self.settings.task]

    @property
    def machine(self) -> Machine:
        """The experiment's machine settings."""
        return self.settings.machine

    @property
    def only_head(self) -> bool:
        """Nothing but the head trains; what is written is the head."""
        return self.arm.tune == "head"

    @property
    def on_features(self) -> bool:
        """What embed computed before is all the input there is; no backbone is built."""
        return on_features(self.arm, self.kind)

    @cached_property
    def train_labels(self) -> Tensor:
        """Class indices of the train split, shape (samples,), of a classifier."""
        found = self.targets("train")
        assert isinstance(found, Tensor), self.settings.task
        return found

    @cached_property
    def recipe(self) -> Recipe:
        """How to train."""
        objective = self.task.objective(self.arm, self.targets("train"), self.classes)
        training, machine = self.settings.training, self.machine
        if self.kind.classified:
            return Recipe(self.arm, training, objective, machine)
        return Recipe(self.arm, training, objective, machine, self._judge(objective), self.kind.loss)

    def _judge(self, objective: tasks.Criterion) -> Judge:
        """The task's metrics and the loss, of the validation split."""
        truths = self.task.truths(self.part("validation"))

        def judge(
            model: torch.nn.Module, batches: Batches, device: torch.device, cut: int, precision: str
        ) -> dict[str, float]:
            said = self.task.predict(model, batches.samples, self.ask(device, cut, precision))
            shares = self.task.scores(truths, said, self.classes)
            found = {f"validation_{name}": float(shares[name].mean()) for name in self.kind.metrics}
            found[f"validation_{self.kind.loss}"] = loop.mean_loss(
                model, batches, objective, device, cut, precision
            )
            return found

        return judge

    def ask(self, device: torch.device, cut: int = 0, precision: str = "float32") -> Ask:
        """How samples of this job are predicted."""
        return Ask(self.classes, self.settings.model, device, cut, precision, self.pretrained)

    @cached_property
    def pretrained_sha256(self) -> str:
        """Of the pretrained weights."""
        return artifacts.weights_sha256(self.pretrained)

    @cached_property
    def pretrained_files_sha256(self) -> str:
        """Of all that fetch wrote: weights, architecture with its input's mean and spread, tokenizer."""
        return artifacts.sha256_json(artifacts.sha256_files(self.pretrained))

    @cached_property
    def cache(self) -> PrefixCache:
        """Activations of frozen layers, shared by all seeds and arms of all experiments."""
        return PrefixCache(artifacts.prefix_cache_dir(), round(self.machine.cache_gib * GIB))

    def with_settings(self, settings: TrainSettings) -> Job:
        """The job with another arm on the same samples, which are not decoded again."""
        assert settings.arm is not None
        assert settings.arm.augment == self.arm.augment, "other views are other samples"
        return replace(self, settings=settings, arm=settings.arm)

    def part(self, split: str) -> pd.DataFrame:
        """The rows of a split."""
        return self.rows[self.rows["split"] == split]

    def samples(self, split: str) -> Samples:
        """Images or texts of a split, decoded or tokenised once."""
        if split not in self._samples:
            contents = tasks.contents(self.task, self.part(split), artifacts.data_dir(self.experiment))
            views = self.arm.augment if split == "train" else ()
            self._samples[split] = self.task.samples(
                contents, self.settings.model, self.pretrained, augment=views, machine=self.machine
            )
        return self._samples[split]

    def features(self, split: str) -> FeatureSamples:
        """What embed computed of a split."""
        return features.read(self.features_folder, self.part(split)["id"])

    def targets(self, split: str) -> Tensor | Targets:
        """What is to be learnt of a split."""
        if split not in self._targets:
            # Labels of whole samples do not depend on how these are read, and features may be all there is.
            whole = self.kind.gives == "pooled"
            samples = FeatureSamples(torch.empty(0)) if whole else self.samples(split)
            folder = artifacts.data_dir(self.experiment)
            self._targets[split] = self.task.targets(
                self.part(split), self.classes, samples, folder, self.settings.model
            )
        return self._targets[split]

    def batches(self, split: str, samples: Samples) -> Batches:
        """Samples of a split with their targets."""
        balanced = self.arm.balanced_sampling and split == "train"
        return Batches(samples, self.targets(split), self.settings.training.batch_size, balanced)


def on_features(arm: Arm, kind: Kind) -> bool:
    """An arm learns from what embed computed."""
    return arm.tune == "head" and not arm.augment and kind.gives == "pooled"


def load(
    experiment: str,
    arm_name: str,
    settings: TrainSettings,
    *,
    resample: int = 1,
    rows: pd.DataFrame | None = None,
    features_folder: Path | None = None,
) -> Job:
    """The job of an arm that the experiment does not leave out.

    Args:
        experiment: its name.
        arm_name: name of the arm.
        settings: complete ones; their `arm` is trained.
        resample: which part of the training pool to train on.
        rows: the samples with their splits, in place of those of the resample.
        features_folder: where their features are, in place of what embed wrote.

    Raises:
        UserError: the machine has not the device or precision asked for.
    """
    assert settings.arm is not None
    if rows is None:
        rows = data.read_split(experiment, resample)
    device = network.prepare_device(settings.machine.device)
    check_precision(device, settings.machine.precision)
    pretrained = artifacts.pretrained_dir(settings.model.pretrained)
    folder = features_folder or artifacts.features_dir(experiment)
    classes = tasks.get(settings.task).classes(rows)
    arm = settings.arm
    return Job(experiment, arm_name, arm, settings, pretrained, classes, rows, device, folder, resample)


def check_precision(device: torch.device, precision: str) -> None:
    """See whether the device computes in that precision.

    Raises:
        UserError: it does not, or only by emulation.
    """
    kind = device.type
    able = {
        "float32": True,
        "fp16": kind == "cuda",
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False)
        if kind == "cuda"
        else kind == "cpu" and has_bf16(),
    }
    if not able[precision]:
        raise UserError(f"machine.precision: {precision} is not supported on this {kind}; use float32")


def has_bf16() -> bool:
    """The CPU multiplies bfloat16 matrices itself."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def run_key(job: Job, seed: int) -> dict[str, Any]:
    """Everything that determines the weights: what was kept is used only where all of it is equal."""
    decisive = job.settings.model_copy(update={"machine": job.machine.within(Limits())})
    return {
        "experiment": job.experiment,
        "arm": job.arm_name,
        "seed": seed,
        "settings": decisive.model_dump(mode="json"),
        "data_sha256": data.fingerprint(job.rows[job.rows["split"] != ""]),
        "samples_sha256": artifacts.sha256_json(list(job.rows["id"])),  # and their order
        "pretrained_sha256": job.pretrained_files_sha256,
        "code_sha256": code_sha256(),
        "torch": torch.__version__,
        "device": job.device.type,
        "threads": torch.get_num_threads(),
    }


# ---------------------------------------------------------------------------------------------- the network


def build(job: Job, seed: int) -> Network | Probe:
    """The network as it is before the first step: the arm's layers frozen, the head fitted if it comes first.

    The generator is set anew before the head is drawn, so a seed's first head is the same in every arm.

    Raises:
        UserError: the arm does not fit the backbone.
    """
    arm = job.arm
    if job.on_features:
        torch.manual_seed(seed)
        return Probe(head_of(job, network.Width(job.features("train").features.shape[1])))
    torch.manual_seed(seed)
    backbone = network.build_backbone(
        job.pretrained,
        pretrained=arm.start == "pretrained",
        drop_path=arm.drop_path,
        gives=job.kind.gives,
        channels=Rule.of(job.settings.model).channels,
    )
    backbone.checkpointing = job.machine.gradient_checkpointing
    if arm.reinit_top:
        network.reinitialise(backbone, job.pretrained, arm.reinit_top, seed)
    torch.manual_seed(seed)
    model = Network(backbone, head_of(job, backbone))
    freezing.freeze(model, arm)
    if arm.head_first:
        fit_head_first(job, model)
    return model


def head_of(job: Job, backbone: Any) -> torch.nn.Module:  # noqa: ANN401 - a backbone, or only its width
    """The task's new head."""
    return job.task.head(backbone, job.classes, job.settings.model, job.arm)


def fit_head_first(job: Job, model: Network) -> None:
    """Give the head the optimum on the frozen features: the first half of LP-FT.

    Source: Kumar et al., Fine-Tuning can Distort Pretrained Features, 2022. What is drawn anew at the top
    has other features than those stored, so they are computed.
    """
    samples = _pooled(job, model) if job.arm.reinit_top else job.features("train")
    inputs = samples.batch(list(range(len(samples))))
    assert isinstance(inputs, Tensor)
    job.recipe.objective.to(job.device)
    model.to(job.device)
    probing.solve(model.head, inputs.to(job.device), job.train_labels.to(job.device), job.arm,
                  job.recipe.objective)  # fmt: skip


@torch.inference_mode()
def _pooled(job: Job, model: Network) -> Samples:
    backbone, samples = model.backbone.to(job.device).eval(), job.samples("train")
    rows = [backbone(data.to_device(samples.batch(one), job.device)) for one in data.in_turn(len(samples))]
    return FeatureSamples(torch.cat([row for row in rows if isinstance(row, Tensor)]).cpu())


# ---------------------------------------------------------------------------------------------- the stages


def stages(job: Job, model: Network | Probe, seed: int) -> list[Stage]:
    """The stages of a training: one, or with gradual unfreezing one for each thawing."""

    def everything() -> list[dict[str, Any]]:
        return freezing.parameter_groups(model, job.arm)

    found = [Stage(1, everything, lambda: fed(job, model, seed))]
    if isinstance(model, Network) and job.arm.tune == "gradual":
        for name, epoch in freezing.thaw_epochs(model, job.arm, job.settings.training.epochs).items():
            found.append(Stage(epoch, _thawing(job, model, name), lambda: fed(job, model, seed)))
    return found


def _thawing(job: Job, model: Network, name: str) -> Callable[[], list[dict[str, Any]]]:
    def thaw() -> list[dict[str, Any]]:
        return freezing.parameter_groups(model, job.arm, [freezing.thaw(model, name)])

    return thaw


def fed(job: Job, model: Network | Probe, seed: int) -> Fed:
    """The batches, cut as deep as what is frozen now allows."""
    cut = 0
    if isinstance(model, Network) and cacheable(job):
        cut = freezing.boundary(model, job.arm.reinit_top)
    train, validation = (inputs(job, model, cut, split) for split in ("train", "validation"))
    return Fed(job.batches("train", train), job.batches("validation", validation), cut, view_of(job, seed))


def cacheable(job: Job) -> bool:
    """The inputs are the same in every epoch, or one of a few views: what is frozen need not run again."""
    arm, kind = job.arm, job.kind
    # Maps are of all layers, and a decoder is told of the targets, which no cache knows.
    if kind.changes or kind.generates or kind.gives == "maps":
        return False
    return job.machine.cache and not (arm.mixup or arm.cutmix) and (not arm.augment or arm.views > 0)


def inputs(job: Job, model: Network | Probe, cut: int, split: str) -> Samples:
    """What a split's samples are at a cut: images or texts, activations, or the features that embed computed.

    Raises:
        UserError: the cache's limit does not suffice.
    """
    views = job.arm.views if split == "train" else 0
    pooled = job.kind.gives == "pooled"
    if isinstance(model, Probe) or (pooled and cut == len(model.backbone.layers) and not views):
        return job.features(split)
    return activations(job, model.backbone, cut, split, views) if cut else job.samples(split)


def activations(job: Job, backbone: Backbone, cut: int, split: str, views: int) -> Samples:
    """A split's activations after `cut` frozen layers, out of the cache.

    Raises:
        UserError: the cache's limit does not suffice.
    """
    samples = job.samples(split)
    transform = job.settings.model.model_dump(mode="json", exclude={"dropout"})
    transform["augment"] = list(job.arm.augment) if views else []
    transform["gives"] = job.kind.gives
    # What decodes, cuts and computes.
    transform |= {"code": code_sha256(), "versions": {name: version(name) for name in COMPUTES}}
    label = f"{job.experiment}/{job.arm_name}: activations of {cut} frozen layers, {split}"
    with entry.Progress(label, len(samples) * max(1, views)) as progress:
        return job.cache.samples(
            backbone,
            cut,
            samples,
            list(job.part(split)["sha256"]),
            weights_sha256=job.pretrained_files_sha256,
            transform=transform,
            views=views,
            device=job.device,
            progress=progress.reached,
        )


def view_of(job: Job, seed: int) -> Callable[[int], int | None]:
    """Which view of the samples an epoch, from 1, trains on."""
    arm = job.arm
    if arm.views:
        return lambda epoch: (epoch - 1) % arm.views
    if arm.augment or job.kind.changes:
        return lambda epoch: seed * 1_000_000 + epoch
    return lambda epoch: None


def fit(
    job: Job,
    model: Network | Probe,
    seed: int,
    *,
    log: Log,
    keeper: Keeper | None = None,
    micro_batch: int | None = None,
    ranks: Ranks = ALONE,
) -> Fitted:
    """Train what `build` gave, with the arm's solver; arguments as in `loop.fit`.

    Raises:
        TrainingError: a loss or gradient is not finite, or memory does not suffice.
        UserError: the cache's limit does not suffice.
    """
    found = stages(job, model, seed)
    if job.arm.solver == "lbfgs":
        found[0].thaw()
        return loop.fit_at_once(model, found[0].feed(), job.recipe, log=log, device=job.device)
    return loop.fit(
        model,
        found,
        job.recipe,
        seed=seed,
        log=log,
        device=job.device,
        keeper=keeper,
        micro_batch=micro_batch,
        ranks=ranks,
    )


# ---------------------------------------------------------------------------------------------- the proof


def proof_of_stored_features(job: Job) -> dict[str, Any]:
    """That the features a head was trained on come from the backbone as fetch wrote it.

    Raises:
        HeadstartError: the weights changed since.
    """
    fetched, saved = provenance(job), artifacts.saved_model(job.pretrained)
    used = features.key(job.features_folder)["pretrained_sha256"]
    written = fetched["converted_sha256" if saved is None else "sha256"]
    if not job.pretrained_sha256 == written == used:
        weights = saved or job.pretrained / "model.safetensors"
        raise HeadstartError(f"{weights} is not what fetch wrote or embed read; run `dvc repro` again")
    return {"tensors": fetched["tensors"], "parameters": fetched["parameters"], "unchanged": True}


def provenance(job: Job) -> dict[str, Any]:
    """What fetch wrote of the pretrained weights."""
    found: dict[str, Any] = artifacts.read_json(job.pretrained / "provenance.json", "python -m steps.fetch")
    return found


def settings_of(experiment: str, arm: str) -> TrainSettings:
    """What resolve wrote for an arm, within the experiment's limits of disk, memory and time."""
    settings = params.read_settings(TrainSettings, artifacts.settings_file(experiment, "train", arm))
    limits = params.read_settings(Limits, artifacts.settings_file(experiment, params.LIMITS))
    return settings.model_copy(update={"machine": settings.machine.within(limits)})

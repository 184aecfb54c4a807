"""resolve: check params.yaml and write each step's complete settings, one small file a step.

DVC compares the files a stage depends on. With one file of settings for each step and arm, an edit
reruns exactly the steps whose settings it changes, and a section left to its defaults is no special case.
"""

from __future__ import annotations

import sys
from pathlib import Path

from steps import artifacts, entry, params
from steps.params import (
    LIMITS,
    BaselineSettings,
    CompareSettings,
    CurveSettings,
    EmbedSettings,
    EvaluateSettings,
    IngestSettings,
    Limits,
    Params,
    RegisterSettings,
    Settings,
    SplitSettings,
    TrainSettings,
    ValidateSettings,
)
from steps.references import NewWeights, Pretrained


def resolve() -> None:
    """Write `work/params/` from params.yaml.

    Raises:
        ParamsError: params.yaml is wrong; every mistake is told.
    """
    checked = params.load(artifacts.PARAMS_FILE)
    root = Path("work/params")
    with artifacts.new_folder(root) as folder:
        for path, settings in settings_files(checked).items():
            artifacts.write_json(folder / path.relative_to(root), settings.model_dump(mode="json"))
    count = len(checked.experiments)
    entry.say(f"params.yaml is sound: {count} experiment{'s' * (count != 1)}, {len(checked.arms)} arms")


def settings_files(checked: Params) -> dict[Path, Settings]:
    """Every settings file with what it holds."""
    files: dict[Path, Settings] = {
        artifacts.pretrained_settings_file(slug): with_tokenizer(reference, checked)
        for slug, reference in checked.pretrained.items()
    }
    for name, experiment in checked.experiments.items():
        arms = {arm: checked.arm(name, arm) for arm in checked.arms}
        kept = {arm: settings for arm, settings in arms.items() if settings is not None}
        task, model, training = experiment.task, experiment.model, experiment.training
        evaluation, machine = experiment.evaluation, experiment.machine.within(Limits())
        # How many processes train is no affair of those that only predict.
        alone = machine.model_copy(update={"processes": 1})
        steps: dict[str, Settings] = {
            "ingest": IngestSettings(task=task, data=experiment.data),
            "validate": ValidateSettings(task=task, validation=experiment.validation),
            "split": SplitSettings(split=experiment.split, resamples=training.resamples),
            "embed": EmbedSettings(task=task, model=model, machine=alone),
            "baseline": BaselineSettings(task=task, model=model, evaluation=evaluation),
            "evaluate": EvaluateSettings(
                task=task,
                model=model,
                evaluation=evaluation,
                arms=tuple(kept),
                seeds=training.seeds,
                resamples=training.resamples,
                machine=alone,
            ),
            "curve": CurveSettings(
                curve=experiment.curve,
                seeds=experiment.curve.seeds or training.seeds,
                arms=experiment.curve.arms or tuple(kept),
            ),
            "compare": CompareSettings(
                task=task,
                model=model,
                training=training,
                tuning=experiment.tuning,
                curve=experiment.curve,
                evaluation=evaluation,
                arms=kept,
            ),
        }
        files |= {artifacts.settings_file(name, step): settings for step, settings in steps.items()}
        # No stage depends on these: what changes no result must not rerun anything.
        files[artifacts.settings_file(name, LIMITS)] = experiment.machine.limits
        files[artifacts.settings_file(name, "register")] = RegisterSettings(gate=experiment.gate)
        files[artifacts.settings_file(name, "drift")] = experiment.drift
        files[artifacts.settings_file(name, "serving")] = experiment.serving
        files |= {
            artifacts.settings_file(name, "train", arm): TrainSettings(
                task=task,
                model=model,
                training=training,
                tuning=experiment.tuning,
                arm=settings,
                machine=machine,
            )
            for arm, settings in arms.items()
        }
    return files


def with_tokenizer(reference: Pretrained, checked: Params) -> Pretrained:
    """The reference; of a new network with the entry whose tokenizer it uses: fetch reads one file."""
    if not isinstance(reference, NewWeights) or reference.tokenizer is None:
        return reference
    other = checked.pretrained[reference.tokenizer].model_dump(mode="json")
    return reference.model_copy(update={"borrowed": other})


def main() -> int:
    """Run `python -m steps.resolve`."""
    return entry.run(resolve)


if __name__ == "__main__":
    sys.exit(main())

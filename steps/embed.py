"""embed: run the frozen backbone over the samples once, and one with random weights; store the features."""

from __future__ import annotations

import sys
from time import perf_counter

from steps import artifacts, data, embedding, entry, params
from steps.params import EmbedSettings, Limits


def embed(experiment: str) -> None:
    """Write `work/<experiment>/features/`: one row for each sample that is in a split.

    Raises:
        DataError: a sample cannot be read, or gives features that are not finite.
        WeightsError: TensorFlow, which a SavedModel needs, is not there or fails.
        UserError: Ray is asked for and not there.
    """
    settings = params.read_settings(EmbedSettings, artifacts.settings_file(experiment, "embed"))
    limits = params.read_settings(Limits, artifacts.settings_file(experiment, params.LIMITS))
    rows = data.read_used(experiment)
    started = perf_counter()
    target, turns = artifacts.features_dir(experiment), embedding.turns(settings)
    total = turns * len(rows)
    with artifacts.new_folder(target) as folder, entry.Progress(f"embed {experiment}", total) as bar:
        width = embedding.write(experiment, settings, rows, folder, bar.reached, ray=limits.ray)
    rate = total / (perf_counter() - started)
    each = f"{'twice ' if turns == 2 else ''}{width} features each"
    where = "" if limits.ray is None else f" over Ray ({limits.ray})"
    entry.say(f"{len(rows)} samples, {each}, {rate:.0f} samples a second{where}")


def main() -> int:
    """Run `python -m steps.embed <experiment>`."""
    return entry.run(embed, "experiment")


if __name__ == "__main__":
    sys.exit(main())

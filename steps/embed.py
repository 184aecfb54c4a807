"""embed: run the frozen backbone over the samples once, and one with random weights; store the features."""

from __future__ import annotations

import sys
from time import perf_counter

from steps import artifacts, data, embedding, entry, params
from steps.params import EmbedSettings


def embed(experiment: str) -> None:
    """Write `work/<experiment>/features/`: one row for each sample that is in a split.

    Raises:
        DataError: a sample cannot be read, or gives features that are not finite.
    """
    settings = params.read_settings(EmbedSettings, artifacts.settings_file(experiment, "embed"))
    rows = data.read_used(experiment)
    started = perf_counter()
    target = artifacts.features_dir(experiment)
    with artifacts.new_folder(target) as folder, entry.Progress(f"embed {experiment}", 2 * len(rows)) as bar:
        width = embedding.write(experiment, settings, rows, folder, bar.reached)
    rate = 2 * len(rows) / (perf_counter() - started)
    entry.say(f"{len(rows)} samples, twice {width} features each, {rate:.0f} samples a second")


def main() -> int:
    """Run `python -m steps.embed <experiment>`."""
    return entry.run(embed, "experiment")


if __name__ == "__main__":
    sys.exit(main())

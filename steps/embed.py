"""embed: run the frozen backbone over the samples once, and store the features."""

from __future__ import annotations

import sys
from time import perf_counter

from steps import artifacts, data, entry, features, network, params, tasks
from steps.params import EmbedSettings


def embed(experiment: str) -> None:
    """Write `work/<experiment>/features/`: one row for each sample that is in a split.

    Raises:
        DataError: a sample cannot be read, or gives features that are not finite.
    """
    settings = params.read_settings(EmbedSettings, artifacts.settings_file(experiment, "embed"))
    pretrained = artifacts.pretrained_dir(settings.model.pretrained)
    rows = data.read_split(experiment)
    used = rows[rows["split"] != ""]
    task = tasks.get(settings.task)
    samples = task.samples(
        tasks.contents(task, used, artifacts.data_dir(experiment)), settings.model, pretrained
    )
    device = network.prepare_device(settings.machine.device)
    backbone = network.build_backbone(pretrained, pretrained=True)
    started = perf_counter()
    with artifacts.new_folder(artifacts.features_dir(experiment)) as folder:
        with entry.Progress(f"embed {experiment}", len(used)) as progress:
            features.write(backbone, samples, folder / features.MATRIX, device, progress.reached)
        index = used[["id"]] if samples.lengths is None else used[["id"]].assign(tokens=samples.lengths)
        index.to_parquet(folder / features.INDEX, index=False)
        artifacts.write_json(
            folder / features.KEY,
            {
                "data_sha256": data.fingerprint(used),
                "pretrained_sha256": artifacts.sha256_file(pretrained / "model.safetensors"),
                # Of all its files: who depends on the features depends on these too.
                "pretrained_files": {
                    path.name: artifacts.sha256_file(path) for path in sorted(pretrained.iterdir())
                },
                "transform_sha256": artifacts.sha256_json(settings.model.model_dump(mode="json")),
                "dtype": "float32",
            },
        )
    rate = len(used) / (perf_counter() - started)
    entry.say(f"{len(used)} samples, {backbone.features} features each, {rate:.0f} samples a second")


def main() -> int:
    """Run `python -m steps.embed <experiment>`."""
    return entry.run(embed, "experiment")


if __name__ == "__main__":
    sys.exit(main())

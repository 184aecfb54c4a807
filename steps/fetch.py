"""fetch: bring a pretrained backbone into the clone, verified tensor by tensor, as safetensors."""

from __future__ import annotations

import shutil
import sys
from typing import Any

from torch import Tensor

from steps import artifacts, entry, network, params
from steps.errors import WeightsError
from steps.params import Pretrained
from steps.sources import package


def fetch(slug: str) -> None:
    """Write `work/pretrained/<slug>/`: weights, architecture, tokenizer and provenance.

    Raises:
        WeightsError: the weights are missing, altered, or do not fit the architecture.
    """
    reference = params.read_settings(Pretrained, artifacts.pretrained_settings_file(slug))
    tensors, tokenizer_files, provenance = package.read(reference)
    description = describe(reference, provenance.pop("config", None))
    backbone = network.architecture(description)
    matched = match(tensors, backbone.model.state_dict(), reference.names, slug)
    network.load_exactly(backbone.model, matched, slug)
    with artifacts.new_folder(artifacts.pretrained_dir(slug)) as folder:
        network.save_tensors(matched, folder / "model.safetensors")
        for path in tokenizer_files:
            shutil.copyfile(path, folder / path.name)
        artifacts.write_json(folder / "architecture.json", description)
        provenance |= {
            "tensors": len(matched),
            "parameters": sum(parameter.numel() for parameter in backbone.model.parameters()),
            "converted_sha256": artifacts.sha256_file(folder / "model.safetensors"),
        }
        artifacts.write_json(folder / "provenance.json", provenance)
    entry.say(
        f"{slug}: {len(matched)} tensors checked, {provenance['parameters']:,} parameters, "
        f"{reference.licence}, from {reference.package} {provenance['version']}"
    )


def describe(reference: Pretrained, config: dict[str, Any] | None) -> dict[str, Any]:
    """What is needed to build the backbone again without its source: `architecture.json`."""
    if reference.library == "timm":
        return {
            "library": "timm",
            "name": reference.architecture,
            "mean": list(reference.mean),
            "std": list(reference.std),
        }
    assert config is not None
    if config.get("model_type") != reference.architecture:
        raise WeightsError(
            f"{reference.package}: config.json describes a {config.get('model_type')!r}, "
            f"params.yaml says `architecture: {reference.architecture}`"
        )
    return {"library": "transformers", "name": reference.architecture, "config": config}


def match(tensors: dict[str, Tensor], wanted: dict[str, Tensor], names: str, where: str) -> dict[str, Tensor]:
    """The source's tensors under the architecture's names, without those only a classifier or pooler has.

    Raises:
        WeightsError: a tensor is missing, or has another shape; the message names it.
    """
    if names == "by_order":
        return _by_order(tensors, wanted, where)
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise WeightsError(
            f"{where}: tensor {missing[0]!r} is missing from the weights ({len(missing)} in all)"
        )
    # An original head or pooler has no use under a new head; whatever else is left over is a misfit.
    left = [name for name in tensors if name not in wanted and not _is_top(name)]
    if left:
        raise WeightsError(f"{where}: the architecture has no tensor {left[0]!r} ({len(left)} left over)")
    return {name: tensors[name] for name in wanted}


def _by_order(tensors: dict[str, Tensor], wanted: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    source = list(tensors.items())
    # The classifier comes last: its weight and bias are beyond the backbone's.
    if len(source) - len(wanted) not in (0, 2):
        raise WeightsError(
            f"{where}: the weights hold {len(source)} tensors, the architecture needs {len(wanted)} "
            "and a classifier of 2; one is missing or left over"
        )
    matched: dict[str, Tensor] = {}
    for (name, target), (given, tensor) in zip(wanted.items(), source, strict=False):
        if tensor.shape != target.shape:
            raise WeightsError(
                f"{where}: tensor {given!r} has shape {tuple(tensor.shape)}, {name!r} in its place needs "
                f"{tuple(target.shape)}"
            )
        matched[name] = tensor.contiguous()
    return matched


def _is_top(name: str) -> bool:
    return name.split(".")[0] in {"pooler", "classifier", "head", "fc"} or name.endswith("position_ids")


def main() -> int:
    """Run `python -m steps.fetch <slug>`."""
    return entry.run(fetch, "slug")


if __name__ == "__main__":
    sys.exit(main())

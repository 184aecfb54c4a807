"""fetch: bring a pretrained backbone into the clone, verified tensor by tensor, as safetensors."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steps import artifacts, entry, network, params, sources
from steps.errors import WeightsError
from steps.references import Pretrained, PretrainedSettings, unpinned
from steps.sources import Found
from steps.sources.naming import Named, translate

# Where a download is unpacked; on the disk of the clone, which has the room that the weights need anyway.
SCRATCH = Path(".headstart/scratch")


def fetch(slug: str) -> None:
    """Write `work/pretrained/<slug>/`: weights, architecture, tokenizer and provenance.

    Raises:
        WeightsError: the weights are not pinned, missing, altered, or do not fit the architecture.
    """
    path = artifacts.pretrained_settings_file(slug)
    reference = params.read_settings(PretrainedSettings, path).reference
    check_pinned(reference, slug)
    with scratch(slug) as folder:
        found = sources.materialise(reference, folder)
        module = build(found)
        matched, told = match(found, module, slug)
        network.load_exactly(module, matched, slug)
        told |= counted(found, matched, module)
        provenance = write(slug, found, matched, told)
    held = f"{len(matched)} tensors checked, {provenance['parameters']:,} parameters"
    entry.say(
        f"{slug}: {'a SavedModel' if found.description['library'] == 'savedmodel' else held}, "
        f"{provenance['licence'] or 'no licence stated'}, from {_origin(reference, provenance)}"
    )


def build(found: Found) -> nn.Module:
    """The network that shall carry the tensors, at random; without any where another framework runs it."""
    return nn.Module() if found.description["library"] == "savedmodel" else network.stored(found.description)


def counted(found: Found, matched: dict[str, Tensor], module: nn.Module) -> dict[str, int]:
    """How many tensors there are and how many numbers in them; of a SavedModel as its own framework tells."""
    if found.description["library"] == "savedmodel":
        return {name: int(found.provenance.get(name, 0)) for name in ("tensors", "parameters")}
    numbers = sum(parameter.numel() for parameter in module.parameters())
    return {"tensors": len(matched), "parameters": numbers}


def check_pinned(reference: Pretrained, slug: str) -> None:
    """Hold that a reference names certain bytes.

    Raises:
        WeightsError: it could mean other bytes tomorrow.
    """
    if open_ := unpinned(reference):
        raise WeightsError(
            f"pretrained.{slug}: {' and '.join(open_)} {'is' if len(open_) == 1 else 'are'} not pinned; run "
            "`headstart pin EXPERIMENT`, which fills in what is missing"
        )


@contextmanager
def scratch(slug: str) -> Iterator[Path]:
    """A folder for what is needed in between; it goes away with all it holds, and so does what was killed."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    for stale in SCRATCH.glob(f"{slug}.*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{slug}.", dir=SCRATCH) as folder:
        yield Path(folder)


def write(slug: str, found: Found, matched: dict[str, Tensor], told: dict[str, Any]) -> dict[str, Any]:
    """Write the folder whole or not at all; give its provenance."""
    with artifacts.new_folder(artifacts.pretrained_dir(slug)) as folder:
        network.save_tensors(_apart(matched), folder / "model.safetensors")
        for path in found.files:
            if path.is_dir():
                shutil.copytree(path, folder / path.name)
            else:
                shutil.copyfile(path, folder / path.name)
        artifacts.write_json(folder / "architecture.json", found.description)
        provenance = {
            **found.provenance,
            **told,
            "converted_sha256": artifacts.sha256_file(folder / "model.safetensors"),
        }
        artifacts.write_json(folder / "provenance.json", provenance)
    return provenance


def match(found: Found, module: nn.Module, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The source's tensors under the architecture's names, without those only a classifier or pooler has.

    Returns:
        The tensors, and what the provenance tells beside them: what was left out, and for weights that were
        matched with a report also what was drawn at random.

    Raises:
        WeightsError: a tensor is missing, left over, or has another shape; the message names it.
    """
    wanted = module.state_dict()
    if found.names == "by_order":
        return _by_order(found.tensors, wanted, where), {}
    named = translate(found.tensors, module, where)
    drawn = [name for name in named.missing if any(fnmatchcase(name, glob) for glob in found.may_miss)]
    missing = [name for name in named.missing if name not in drawn]
    if missing:
        raise WeightsError(
            f"{where}: tensor {missing[0]!r} is missing from the weights ({len(missing)} in all)"
        )
    told: dict[str, Any] = {"left_out": sorted({name.split(".")[0] for name in named.tops})}
    if found.names == "reported":
        told |= {"drawn_at_random": drawn, "left_over": named.strange}
    elif named.strange:
        raise WeightsError(
            f"{where}: the architecture has no tensor {named.strange[0]!r} ({len(named.strange)} left over)"
        )
    return _completed(named, drawn, found, list(wanted)), told


def _completed(named: Named, drawn: list[str], found: Found, order: list[str]) -> dict[str, Tensor]:
    """All tensors in the network's own order; those drawn at random are the same every time."""
    tensors = dict(named.tensors)
    if drawn:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = build(found).state_dict()
        tensors |= {name: fresh[name] for name in drawn}
    return {name: tensors[name] for name in order}


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with memory of its own for each: tied tensors would be written as one, under one name."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tied = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        apart[name] = tensor.clone(memory_format=torch.contiguous_format) if tied else tensor.contiguous()
    return apart


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


def _origin(reference: Pretrained, provenance: dict[str, Any]) -> str:
    """Where the weights are from, in a few words."""
    named = (provenance.get(key) for key in ("package", "model", "handle", "folder", "file"))
    name = next(filter(None, named), "")
    pin = provenance.get("version") or str(provenance.get("revision", ""))[:12]
    return f"{name or reference.source} {pin}".strip()


def main() -> int:
    """Run `python -m steps.fetch <slug>`."""
    return entry.run(fetch, "slug")


if __name__ == "__main__":
    sys.exit(main())

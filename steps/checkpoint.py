"""What a training leaves behind: weights as safetensors, and a journal of how they came about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from steps import network, params, tasks
from steps.artifacts import read_json, sha256_file
from steps.errors import HeadstartError
from steps.kinds import KINDS
from steps.network import Network
from steps.params import Arm, Model
from steps.scans import Rule

WEIGHTS, JOURNAL, HISTORY = "model.safetensors", "run.json", "history.csv"


def save_weights(model: nn.Module, folder: Path) -> str:
    """Write a model's tensors; give the file's sha256.

    The file is the same for the same tensors: safetensors orders them itself and knows no time.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    network.save_tensors(tensors, folder / WEIGHTS)
    return sha256_file(folder / WEIGHTS)


def read_journal(folder: Path) -> dict[str, Any]:
    """`run.json` of one training."""
    journal: dict[str, Any] = read_json(folder / JOURNAL, "python -m steps.train")
    return journal


def load_network(folder: Path, pretrained: Path) -> Network:
    """The trained network in eval mode, whole, whether its backbone was trained or not.

    Args:
        folder: of one seed, as train wrote it.
        pretrained: of the backbone it started from, as fetch wrote it.

    Raises:
        HeadstartError: the weights are not those the journal tells of.
        WeightsError: the weights do not fit the architecture.
    """
    journal = read_journal(folder)
    _check_bytes(folder, journal)
    only_head = journal["weights"] == "head"
    gives = KINDS[journal["task"]].gives
    channels = Rule.of(params.parse(Model, journal["settings"]["model"], JOURNAL)).channels
    backbone = network.build_backbone(pretrained, pretrained=only_head, gives=gives, channels=channels)
    model = Network(backbone, _head(journal, backbone))
    network.load_exactly(model.head if only_head else model, load_file(folder / WEIGHTS), str(folder))
    return model.eval()


def load_head(folder: Path, features: int) -> nn.Module:
    """The head alone of a training that left the backbone as it was, in eval mode.

    Raises:
        HeadstartError: the weights are not those the journal tells of.
        WeightsError: the weights do not fit the head.
    """
    journal = read_journal(folder)
    _check_bytes(folder, journal)
    assert journal["weights"] == "head", folder
    head = _head(journal, network.Width(features))
    network.load_exactly(head, load_file(folder / WEIGHTS), str(folder))
    return head.eval()


def _head(journal: dict[str, Any], backbone: Any) -> nn.Module:  # noqa: ANN401 - a backbone, or only its width
    """The head of a training, with random weights."""
    model = params.parse(Model, journal["settings"]["model"], JOURNAL)
    arm = params.parse(Arm, journal["settings"]["arm"], JOURNAL)
    return tasks.get(journal["task"]).head(backbone, journal["classes"], model, arm)


def _check_bytes(folder: Path, journal: dict[str, Any]) -> None:
    found = sha256_file(folder / WEIGHTS)
    if found != journal["weights_sha256"]:
        raise HeadstartError(
            f"{folder / WEIGHTS} was altered: sha256 {found[:12]}, its journal says "
            f"{journal['weights_sha256'][:12]}; `dvc checkout {folder.parent}` restores it"
        )

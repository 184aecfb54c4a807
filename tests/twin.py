"""A small twin of Headstart: a whole clone in a temporary folder that runs in seconds.

Its own params.yaml has two experiments: pictures in a folder per class, and texts in a table. Two toy
backbones with seeded random weights stand in for the pretrained ones, in packages beside the clone.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("steps", "flows", "headstart", "dvc.yaml", ".dvcignore", ".gitignore", "requirements.lock")
ARMS = ("scratch", "frozen", "full")

SHAPES = ("circle", "square", "triangle")
TOPICS = {
    "garden": ["rose", "tulip", "soil", "seed", "bloom", "water", "spade", "leaf", "hedge", "worm"],
    "harbour": ["ship", "crane", "tide", "rope", "gull", "anchor", "cargo", "pier", "mast", "wave"],
    "kitchen": ["oven", "flour", "knife", "salt", "butter", "stove", "spoon", "dough", "pan", "spice"],
}
FILLER = ["the", "a", "of", "and", "near", "under", "old", "new", "small", "bright", "with", "many"]


@dataclass(frozen=True)
class Twin:
    """A clone, and how things are run in it."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """The process environment: nothing of the caller's Prefect, MLflow or DVC gets in."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "MLFLOW_", "DVC_", "HEADSTART_", "PYTEST_", "COV_"))
        }
        return kept | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join([str(self.root), str(self.root / "packages")]),
            "HOME": str(self.root / ".home"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }

    def run(
        self, *arguments: str, expect: int | None = 0, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m <arguments>` in the clone, and look at its exit code."""
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.root, env={**self.environment, **(environment or {})},
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert expect is None or done.returncode == expect, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def headstart(
        self, *arguments: str, expect: int | None = 0, environment: dict[str, str] | None = None
    ) -> str:
        """Run the command line; give what it printed."""
        done = self.run("headstart.cli", *arguments, expect=expect, environment=environment)
        return done.stdout + done.stderr

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start the command line and go on."""
        return subprocess.Popen(
            [sys.executable, "-m", "headstart.cli", *arguments],
            cwd=self.root, env={**self.environment, **(environment or {})},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            # Tests that were started in the background would hand on that Ctrl-C is to be ignored.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def edit_params(self, **changes: Any) -> None:
        """Change settings; `experiments__shapes__training__epochs=3` names one."""
        path = self.root / "params.yaml"
        yaml = YAML()
        content = yaml.load(path)
        for name, value in changes.items():
            *parents, last = name.split("__")
            section = content
            for parent in parents:
                section = section.setdefault(parent, {})
            section[last] = value
        yaml.dump(content, path)

    def copy(self, target: Path) -> Twin:
        """The clone once more, with everything it has made but the MLflow store, which knows full paths."""
        shutil.copytree(
            self.root, target, symlinks=True, ignore=shutil.ignore_patterns("mlflow", "registered", "prefect")
        )
        return Twin(target)


def build(root: Path) -> Twin:
    """Make the clone, commit it, and give it; nothing has run yet."""
    root.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, root / name)
    shutil.copytree(ROOT / ".dvc/plots", root / ".dvc/plots")
    shutil.copyfile(ROOT / ".dvc/config", root / ".dvc/config")
    (root / "README.md").write_text("A twin.\n")
    (root / ".home").mkdir()
    draw_shapes(root / "raw/shapes")
    write_topics(root / "raw/topics.csv")
    pins = {"toy-vision": vision_package(root / "packages"), "toy-text": text_package(root / "packages")}
    YAML().dump(params(pins), root / "params.yaml")
    git(root, "init", "--quiet")
    git(root, "add", "--all", "--", ":!.home")
    git(root, "commit", "--quiet", "--message", "Twin")
    return Twin(root)


def git(root: Path, *arguments: str) -> str:
    """Run git as somebody."""
    who = ["-c", "user.name=Twin", "-c", "user.email=twin@example.org"]
    return subprocess.run(
        ["git", *who, *arguments], cwd=root, check=True, capture_output=True, text=True
    ).stdout


def params(pins: dict[str, str]) -> dict[str, Any]:
    """The twin's params.yaml."""
    split = {"test": 0.35, "validation": 0.2}
    training = {"epochs": 2, "batch_size": 8, "seeds": [1, 2]}
    return {
        "experiments": {
            "shapes": {
                "task": "image-classification",
                "data": {"source": "folder", "path": "raw/shapes"},
                "model": {"pretrained": "toy-vision", "image_size": 32},
                "split": split,
                "training": training,
                "tuning": {"trials": 2},
                "curve": {"labels": [9], "arms": ["scratch", "full"]},
            },
            "topics": {
                "task": "text-classification",
                "data": {"source": "table", "path": "raw/topics.csv", "text": "body", "label": "topic"},
                "model": {"pretrained": "toy-text", "max_tokens": 16},
                "split": split,
                "training": training,
                "tuning": {"trials": 1},
            },
        },
        "arms": {
            "scratch": {"start": "random", "tune": "all", "learning_rate": 0.01},
            "frozen": {"start": "pretrained", "tune": "head", "learning_rate": 0.05},
            "full": {
                "start": "pretrained", "tune": "all", "learning_rate": 0.01, "backbone_learning_rate": 0.002,
            },
        },
        "pretrained": {
            "toy-vision": {
                "source": "package", "package": "toy_vision", "file": "model.safetensors",
                "sha256": pins["toy-vision"], "library": "timm", "architecture": "test_efficientnet",
                "licence": "Apache-2.0",
            },
            "toy-text": {
                "source": "package", "package": "toy_text", "file": "model/model.safetensors",
                "sha256": pins["toy-text"], "library": "transformers", "architecture": "bert",
                "licence": "Apache-2.0",
            },
        },
    }  # fmt: skip


def draw_shapes(folder: Path, each: int = 16, side: int = 40) -> None:
    """Filled shapes of random place, size and colour on a noisy ground; one sub-folder a class."""
    import numpy as np
    from PIL import Image, ImageDraw

    random_ = np.random.default_rng(7)
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for index in range(each):
            ground = random_.integers(60, 200, 3) + random_.integers(-30, 30, (side, side, 3))
            image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
            pen = ImageDraw.Draw(image)
            radius = int(random_.integers(7, 13))
            x, y = (int(at) for at in random_.integers(radius, side - radius, 2))
            colour = tuple(int(part) for part in random_.integers(0, 255, 3))
            box = (x - radius, y - radius, x + radius, y + radius)
            if shape == "circle":
                pen.ellipse(box, fill=colour)
            elif shape == "square":
                pen.rectangle(box, fill=colour)
            else:
                pen.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], fill=colour)
            image.save(folder / shape / f"{shape}-{index:02}.png")


def write_topics(path: Path, each: int = 16) -> None:
    """Sentences of a topic's own words among common ones; columns `body` and `topic`."""
    random_ = random.Random(7)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["body", "topic"])
        for topic, words in TOPICS.items():
            for _ in range(each):
                said = random_.sample(words, 4) + random_.sample(FILLER, 5)
                random_.shuffle(said)
                writer.writerow([" ".join(said), topic])


def vision_package(folder: Path) -> str:
    """A package with weights of timm's `test_efficientnet`; gives the sha256 of the file."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(7)
    package = folder / "toy_vision"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    model = timm.create_model("test_efficientnet", pretrained=False, num_classes=0)
    save_file(model.state_dict(), package / "model.safetensors")
    return hashlib.sha256((package / "model.safetensors").read_bytes()).hexdigest()


def text_package(folder: Path) -> str:
    """A package with a BERT of two layers that knows the topics' words; gives the sha256 of the file."""
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(7)
    package = folder / "toy_text"
    model_folder = package / "model"
    model_folder.mkdir(parents=True)
    (package / "__init__.py").touch()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *FILLER,
        *(word for topic in TOPICS.values() for word in topic),
    ]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    tokenizer.save_pretrained(model_folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    save_file(model.state_dict(), model_folder / "model.safetensors")
    (model_folder / "config.json").write_text(json.dumps(config.to_dict()))
    return hashlib.sha256((model_folder / "model.safetensors").read_bytes()).hexdigest()

"""Small documents, a tokenizer of whole words, and tiny networks for the tests of pretraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steps.arms import Arm
from steps.data import Batches, Samples
from steps.loop import in_full
from steps.network import Backbone, Network, architecture
from steps.params import Model
from steps.tasks import Ask, Task

WORDS = [
    "the", "a", "cat", "dog", "bird", "fish", "sat", "ran", "flew", "swam", "on", "under", "over", "near",
    "mat", "tree", "house", "lake", "red", "blue", "old", "new", "and", "then", "slept", "ate", "sang", ".",
]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ANIMALS = {
    "cat": ("sat", "mat"), "dog": ("ran", "house"), "bird": ("flew", "tree"), "fish": ("swam", "lake"),
}  # fmt: skip
BERT: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS), "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS), "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
    "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
}  # fmt: skip
MODEL = Model(pretrained="x", max_tokens=24)
ARM = Arm(start="random", tune="all", learning_rate=0.01)


def document(number: int, sentences: int = 6) -> str:
    """Of one animal, that always does its own thing at its own place."""
    animals = list(ANIMALS)
    animal = animals[number % len(animals)]
    verb, place = ANIMALS[animal]
    adjective = ("red", "blue", "old", "new")[number // 4 % 4]
    one = f"The {adjective} {animal} {verb} near the {place}."
    other = f"A {animal} {verb} and then slept on the {place}."
    return " ".join((one, other)[(number + at) % 2] for at in range(sentences))


def tokenizer_in(folder: Path, *, causal: bool = False) -> Path:
    """A folder with a tokenizer: a token for each word, framed as BERT does; causal ones frame nothing."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: place for place, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    if causal:
        told["bos_token"] = "[CLS]"
    else:
        told |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def text_backbone(config: dict[str, Any], name: str = "bert", seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return architecture({"library": "transformers", "name": name, "config": config}, gives="tokens")


def image_backbone(seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return architecture({"library": "timm", "name": "test_vit", "img_size": 64}, gives="tokens")


def fitted(
    task: Task, network: nn.Module, samples: Samples, model: Model, steps: int, rate: float
) -> list[float]:
    """Losses of so many steps of AdamW, every step an epoch of its own."""
    import pandas as pd

    rows = pd.DataFrame({"label": ["x"] * len(samples)})
    batches = Batches(samples, task.targets(rows, ["x"], samples, Path(), model), len(samples))
    criterion = task.objective(ARM, batches.targets, ["x"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    losses = []
    network.train()
    for step in range(steps):
        inputs, targets = batches.batch(list(range(len(samples))), step)
        loss = criterion.share(in_full(network(inputs)), targets, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


def shares(task: Task, network: nn.Module, samples: Samples, model: Model, size: int) -> tuple[float, float]:
    """The loss of a batch, and the sum of its parts' shares."""
    import pandas as pd

    from steps.loop import parts

    rows = pd.DataFrame({"label": ["x"] * len(samples)})
    batches = Batches(samples, task.targets(rows, ["x"], samples, Path(), model), len(samples))
    inputs, targets = batches.batch(list(range(len(samples))), 3)
    criterion = task.objective(ARM, batches.targets, ["x"])
    network.eval()
    with torch.no_grad():
        whole = criterion.share(network(inputs), targets, targets)
        split = [criterion.share(network(some), of, targets) for some, of in parts(inputs, targets, size)]
    return float(whole), float(sum(split))


def network_of(task: Task, backbone: Backbone, model: Model) -> Network:
    torch.manual_seed(1)
    return Network(backbone, task.head(backbone, ["x"], model, ARM))


def ask(model: Model) -> Ask:
    return Ask(["x"], model, torch.device("cpu"))

"""The Trainer of transformers, as its own users run it.

The plain network in the default memory format and with the default attention, frozen by `requires_grad`;
`TrainingArguments` at their defaults but for what makes the work the same (epochs, batch size, one evaluation
an epoch; fused AdamW, the default, with our rates and schedule) and what costs time and is not compared
(saving, reports, progress bars). The data are in memory as tensors. The Trainer puts the whole model into
train mode, so that batch normalisation in frozen layers keeps on learning its statistics.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from benchmarks.rivals import ours
from benchmarks.rivals.work import Clock, Outcome, Part, Work, accuracy, give, plain, warm_up
from steps.params import Training
from steps.schedule import warmup_cosine

Padding = Literal["none", "to the limit", "dynamic", "by length"]


class Classifier(nn.Module):
    """Gives the loss and the logits, as the Trainer wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class Images(Classifier):
    """Of images."""

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The mean loss, and logits of shape (batch, classes)."""
        logits = self.model(pixel_values)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Texts(Classifier):
    """Of texts."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The mean loss, and logits of shape (batch, classes)."""
        logits = self.model(input_ids, attention_mask)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Rows(Dataset[dict[str, Any]]):
    """A split as the Trainer wants it: a dictionary a sample."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def rows(work: Work, part: Part, padding: Padding) -> Rows:
    """A split with normalised images, or with token ids, padded to the limit if so wanted."""
    found: list[dict[str, Any]] = []
    for place, label in enumerate(part.labels.tolist()):
        inputs = part.samples.batch([place])
        if isinstance(inputs, Tensor):
            found.append({"pixel_values": inputs[0].contiguous(), "labels": label})
            continue
        named = {name: tensor[0] for name, tensor in inputs.items()}
        if padding == "to the limit":
            named = {
                name: functional.pad(tensor, (0, work.max_tokens - len(tensor)))
                for name, tensor in named.items()
            }
            found.append({**named, "labels": label})
        else:
            found.append({**{name: tensor.tolist() for name, tensor in named.items()}, "labels": label})
    return Rows(found)


def optimizer(
    model: nn.Module, work: Work
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with the work's two rates, decay of matrices alone, and our schedule to the point."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((".head." in name, parameter.ndim > 1), []).append(parameter)
    made = torch.optim.AdamW(
        [
            {"params": found, "lr": work.rates[0 if head else 1], "weight_decay": 0.01 if matrix else 0.0}
            for (head, matrix), found in groups.items()
        ],
        fused=True,
    )
    total = work.epochs * math.ceil(work.sizes[0] / work.batch_size)
    warmup = round(total * Training().warmup_fraction)
    return made, torch.optim.lr_scheduler.LambdaLR(made, lambda step: warmup_cosine(step, total, warmup))


def train(work: Work, seed: int, padding: Padding = "none", workers: int = 0) -> Outcome:
    """Seconds of `Trainer.train()`."""
    from transformers import Trainer, TrainingArguments

    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    given = give(work)
    model = plain(work, given.classes, seed)
    warm_up(lambda indices: _logits(model, given.train, indices), given.train.labels, model)
    frozen = ours.frozen_names(work, given)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    wrapped = Images(model) if work.kind == "images" else Texts(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            seed=seed,
            num_train_epochs=work.epochs,
            per_device_train_batch_size=work.batch_size,
            per_device_eval_batch_size=64,
            train_sampling_strategy="group_by_length" if padding == "by length" else "random",
            dataloader_num_workers=workers,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            wrapped,
            arguments,
            data_collator=collator(work, padding),
            train_dataset=rows(work, given.train, padding),
            eval_dataset=rows(work, given.validation, padding),
            compute_metrics=lambda told: {
                "accuracy": float(np.mean(np.argmax(told.predictions, axis=1) == told.label_ids))
            },
            optimizers=optimizer(wrapped, work),
        )
        clock = Clock()
        trainer.train()
        seconds = clock.read()
    good = accuracy(lambda indices: _logits(model, given.test, indices), given.test, model)
    return Outcome(seconds, good)


def collator(work: Work, padding: Padding) -> Any:  # noqa: ANN401 - one of transformers' own
    """The Trainer's default, or the one that pads to the longest of a batch."""
    from transformers import AutoTokenizer, DataCollatorWithPadding, default_data_collator

    if padding in ("none", "to the limit"):
        return default_data_collator
    tokenizer = AutoTokenizer.from_pretrained(work.pretrained, local_files_only=True)
    return DataCollatorWithPadding(tokenizer)


def _logits(model: nn.Module, part: Part, indices: list[int]) -> Tensor:
    inputs = part.samples.batch(indices)
    found: Tensor = model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
    return found

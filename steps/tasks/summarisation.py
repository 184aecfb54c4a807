"""Texts to shorter texts, or any text to another: an encoder reads, a decoder writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps import artifacts
from steps.arms import Arm
from steps.errors import UserError
from steps.params import Model, Validation
from steps.tasks import Ask, Case, Criterion, Expectation, Said, Simple, target_of
from steps.tasks.of_targets import OfTargets, Unmixed
from steps.tasks.of_texts import OfTexts, padding_of, tokenizer_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from steps.data import Samples
    from steps.network import Backbone, Inputs

# What the loss leaves out; PyTorch's own number for it.
IGNORED = -100
# Texts written at a time, and what the report shows of one.
BATCH, EXCERPT = 16, 600
# Our metrics by rouge_score's names.
ROUGE = {"rouge_l": "rougeL", "rouge_1": "rouge1", "rouge_2": "rouge2"}


class Summarisation(OfTargets, OfTexts):
    """Task `summarisation`."""

    name = "summarisation"

    def facts(self, manifest: pd.DataFrame, folder: Path, settings: Validation) -> pd.DataFrame:
        """Those of texts, and how long the text to be written is."""
        written = [target_of(row) if isinstance(row.target, str) else None for row in manifest.itertuples()]
        lengths = pd.Series([len((one or "").strip()) for one in written], manifest.index)
        return OfTexts.facts(self, manifest, folder, settings).assign(target_characters=lengths)

    def expectations(self, settings: Validation) -> list[Expectation]:
        """Both texts are not empty and not too long."""
        within = Expectation(
            "targets_within_limits",
            "ExpectColumnValuesToBeBetween",
            {
                "column": "target_characters",
                "min_value": settings.min_characters,
                "max_value": settings.max_characters,
            },
            "the text to be written has {target_characters} characters, which min_characters and "
            "max_characters do not allow",
            text="no text to be written is empty or too long",
        )
        return [*OfTexts.expectations(self, settings), *self.of_targets(settings), within]

    def classes(self, rows: pd.DataFrame) -> list[str]:
        """None: what is written is of no class."""
        return []

    def targets(
        self, rows: pd.DataFrame, classes: list[str], samples: Samples, folder: Path, model: Model
    ) -> Written:
        """The texts to be written, as token ids."""
        return Written(self.truths(rows), artifacts.pretrained_dir(model.pretrained), model.max_target_tokens)

    def head(self, backbone: Backbone, classes: list[str], model: Model, arm: Arm) -> nn.Module:
        """The output layer over the vocabulary: the pretrained one, where it has weights of its own.

        Raises:
            UserError: the backbone has no decoder, or nothing of the head is left to be trained alone.
        """
        from steps import network

        if getattr(getattr(backbone.model, "config", None), "is_encoder_decoder", False) is not True:
            raise UserError(
                f"{backbone.name!r} has no decoder: task summarisation needs an encoder with a decoder, as T5"
            )
        folder = artifacts.pretrained_dir(model.pretrained)
        # Where a trained model is loaded, its own weights come after this, and the folder is elsewhere.
        given = arm.start == "pretrained" and (folder / "model.safetensors").exists()
        head = network.language_head(backbone, folder if given else None)
        if arm.tune == "head" and not list(head.parameters()):
            raise UserError(
                "the output layer is the embeddings' own matrix: `tune: head` leaves nothing to train; leave "
                "the arm out of this experiment with `null`"
            )
        return head

    def objective(self, arm: Arm, targets: Any, classes: list[str]) -> Criterion:  # noqa: ANN401 - see Task
        """Cross-entropy of every next token, the true ones before it given."""
        return TeacherForcing(targets.start, targets.padding)

    def predict(self, network: nn.Module, samples: Samples, ask: Ask) -> Said:
        """The texts that the network writes: greedily, or the best of some beams."""
        import torch

        from steps import network as networks
        from steps.data import by_length, to_device

        assert ask.pretrained is not None
        tokenizer = tokenizer_of(ask.pretrained)
        network.to(ask.device).eval()
        model: Any = networks.generation_model(network.backbone, network.head)  # type: ignore[arg-type]
        found = [""] * len(samples)
        for indices in by_length(samples, BATCH):
            inputs = to_device(samples.batch(indices), ask.device)
            with torch.inference_mode():
                tokens = model.generate(
                    **inputs,  # type: ignore[arg-type]
                    max_new_tokens=ask.model.max_target_tokens,
                    num_beams=ask.model.num_beams,
                    do_sample=False,
                    eos_token_id=_end(tokenizer),
                )
            for index, text in zip(
                indices, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True
            ):
                found[index] = " ".join(text.split())
        return [{"summary": text} for text in found]

    def scores(self, truths: list[Any], said: Said, classes: list[str]) -> dict[str, NDArray[np.float64]]:
        """F-measures of ROUGE-L, -1 and -2 of each text (Lin, ROUGE, 2004), by rouge_score, unstemmed."""
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(ROUGE.values()))
        found = [scorer.score(truth, one["summary"]) for truth, one in zip(truths, said, strict=True)]
        return {name: np.array([one[key].fmeasure for one in found]) for name, key in ROUGE.items()}

    def baselines(
        self,
        rows: pd.DataFrame,
        classes: list[str],
        folder: Path,
        model: Model | None = None,
        pretrained: Path | None = None,
    ) -> Mapping[str, Simple]:
        """The beginning of the text: its first sentence, and as many words as texts to be written have."""
        train, test = rows[rows["split"] == "train"], rows[rows["split"] == "test"]
        words = round(float(np.mean([len(str(one).split()) for one in self.truths(train)])))
        return {
            "first_sentence": Simple(
                "the first sentence of the text",
                [{"summary": _first_sentence(text)} for text in test["text"]],
            ),
            "first_words": Simple(
                f"the first {words} words of the text, as many as the texts to be written have in the mean",
                [{"summary": " ".join(text.split()[:words])} for text in test["text"]],
            ),
        }

    def case(self, row: Any, said: dict[str, Any], folder: Path) -> Case:  # noqa: ANN401 - a row of a data frame
        """Both texts, and the beginning of what was read."""
        read = " ".join(str(row.text)[: 4 * EXCERPT].split())[:EXCERPT]
        return Case(str(target_of(row)), said["summary"] or "(nothing)", marks=((read, ""),))


class Written:
    """Texts to be written, as batches of token ids.

    Attributes:
        start: the token that a decoder begins with.
        padding: the token that fills up.

    Args:
        texts: what is to be written.
        pretrained: the folder fetch made: its tokenizer.
        max_tokens: of a text; what is longer is cut, its end sign kept.
    """

    def __init__(self, texts: list[str], pretrained: Path, max_tokens: int) -> None:
        tokenizer = tokenizer_of(pretrained)
        self.padding = padding_of(tokenizer)
        self.start, end = self.padding, _end(tokenizer)
        ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=max_tokens - 1)[
            "input_ids"
        ]
        self.ids = [[*one, end] for one in ids]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: list[int], view: int | None = None) -> dict[str, Tensor]:
        """`labels`, shape (batch, tokens), int64; -100 beyond a text's end."""
        import torch

        rows = [self.ids[index] for index in indices]
        longest = max(map(len, rows))
        return {"labels": torch.tensor([row + [IGNORED] * (longest - len(row)) for row in rows])}


class TeacherForcing(Unmixed):
    """The mean over tokens of the cross-entropy of the next one, given the true ones before it.

    Args:
        start: the token that a decoder begins with.
        padding: the token that fills up.
    """

    def __init__(self, start: int, padding: int) -> None:
        self.start, self.padding = start, padding

    def forced(self, inputs: Inputs, targets: Any) -> Inputs:  # noqa: ANN401 - the task's affair
        """The inputs with the true tokens, shifted by one."""
        labels: Tensor = targets["labels"]
        shifted = labels.roll(1, dims=1).masked_fill(labels.roll(1, dims=1) == IGNORED, self.padding)
        shifted[:, 0] = self.start
        assert isinstance(inputs, dict)
        return {**inputs, "decoder_input_ids": shifted}

    def share(self, outputs: Tensor, targets: dict[str, Tensor], whole: dict[str, Tensor]) -> Tensor:
        """Of this part: logits (samples, tokens, vocabulary) and `labels` (samples, tokens)."""
        from torch.nn import functional

        total = functional.cross_entropy(
            outputs.flatten(0, 1), targets["labels"].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return total / (whole["labels"] != IGNORED).sum()


def _end(tokenizer: Any) -> int:  # noqa: ANN401 - a tokenizer of transformers
    """The token that ends a text; BERT's separates sentences and does as well."""
    found = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if found is None:
        raise UserError(
            "the tokenizer has no token for the end of a text: take one with `eos_token` or `sep_token`"
        )
    return int(found)


def _first_sentence(text: str) -> str:
    words = text.split()
    ends = (at for at, word in enumerate(words, 1) if word.rstrip("\"')").endswith((".", "!", "?")))
    return " ".join(words[: next(ends, len(words))])

"""Heads and losses of tasks that predict words, or something of every word."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from steps.errors import UserError
from steps.network import Backbone
from steps.tasks.of_documents import IGNORED, Measured
from steps.tasks.of_targets import Unmixed

# What a backbone gives and what a head makes of it, by name.
Flow = dict[str, Tensor]
# Of weights drawn at random, where the config does not say; Devlin et al., BERT, 2019.
SPREAD = 0.02


class WordHead(nn.Module):
    """Hidden states to what logits over the vocabulary are made of, see `logits_at`.

    The last matrix is that of the backbone's embeddings (Press and Wolf, Using the Output Embedding, 2017):
    no tensor of the head's own, so that it is stored once, and trained or frozen with the bottom layer.

    Args:
        backbone: gives tokens.
        transform: whether a dense layer, GELU and a norm stand between, as in BERT. Where the embeddings are
            narrower than the hidden states there is a dense layer at least.

    Raises:
        UserError: the backbone has no embeddings of words.
    """

    def __init__(self, backbone: Backbone, *, transform: bool) -> None:
        super().__init__()
        embeddings = word_embeddings(backbone)
        width = embeddings.embedding_dim
        self.transform: nn.Module = nn.Identity()
        if transform:
            epsilon = _setting(backbone, "layer_norm_eps", 1e-12)
            self.transform = nn.Sequential(
                dense(backbone, width), nn.GELU(), nn.LayerNorm(width, eps=epsilon)
            )
        elif width != backbone.features:
            self.transform = dense(backbone, width)
        self.bias = nn.Parameter(torch.zeros(embeddings.num_embeddings))
        # In a tuple: a module that is named here would be a part of the head.
        self._embeddings = (embeddings,)

    def forward(self, flow: Flow) -> Flow:
        """`hidden` (batch, tokens, width), and the `weight` (vocabulary, width) and `bias` of the last layer.

        Logits of all tokens would be large: 16 texts of 128 tokens and 30,522 words take 250 MB, and only one
        of seven is asked for.
        """
        weight = self._embeddings[0].weight
        return {"hidden": self.transform(flow["hidden"]), "weight": weight, "bias": self.bias}


class TokenHead(nn.Module):
    """A number for every token: ELECTRA's discriminator (Clark et al., ELECTRA, 2020).

    A dense layer, GELU, and a linear layer to one.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.dense = dense(backbone, backbone.features)
        self.last = nn.Linear(backbone.features, 1)

    def forward(self, flow: Flow) -> Flow:
        """`logits`, shape (batch, tokens), that a token was replaced."""
        return {"logits": self.last(functional.gelu(self.dense(flow["hidden"]))).squeeze(-1)}


class SentenceHead(nn.Module):
    """BERT's two heads: hidden words, and whether the second text follows the first (Devlin et al., 2019).

    The second stands on the first token's hidden state: a dense layer, tanh, and a linear layer to two.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.words = WordHead(backbone, transform=True)
        self.pooler = dense(backbone, backbone.features)
        self.last = nn.Linear(backbone.features, 2)

    def forward(self, flow: Flow) -> Flow:
        """As `WordHead`, and `follows` (batch, 2): logits that it does and that it does not."""
        pooled = torch.tanh(self.pooler(flow["hidden"][:, 0]))
        return {**self.words(flow), "follows": self.last(pooled)}


def dense(backbone: Backbone, width: int) -> nn.Linear:
    """A linear layer upon a backbone, drawn at random as its own were."""
    layer = nn.Linear(backbone.features, width)
    nn.init.normal_(layer.weight, std=_setting(backbone, "initializer_range", SPREAD))
    nn.init.zeros_(layer.bias)
    return layer


def word_embeddings(backbone: Backbone) -> nn.Embedding:
    """The matrix of the backbone that a vector for each word stands in.

    Raises:
        UserError: there is none.
    """
    found = None
    if hasattr(backbone.model, "get_input_embeddings"):
        found = backbone.model.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(found, nn.Embedding):
        raise UserError(
            f"{backbone.name!r} has no embeddings of words to be predicted: take a model of transformers"
        )
    return found


def check_causal(backbone: Backbone) -> None:
    """No token sees what stands behind it: two texts that differ in their last token alone are tried.

    Raises:
        UserError: one does.
    """
    device = next(backbone.parameters()).device
    ids = torch.tensor([[0, 1, 2], [0, 1, 3]], device=device)
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        flow: Any = backbone({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    backbone.train(training)
    first, second = flow["hidden"][:, :2]
    if not torch.equal(first, second):
        raise UserError(
            f"{backbone.name!r} sees the words that it is to predict: causal-language-model needs a backbone "
            "of the family GPT-2; for this one take the task masked-language-model"
        )


def check_pairs(backbone: Backbone) -> None:
    """The backbone has embeddings for a first and a second text.

    Raises:
        UserError: it has none.
    """
    kinds = _setting(backbone, "type_vocab_size", 0)
    if kinds < 2:
        raise UserError(
            f"{backbone.name!r} cannot tell a first text from a second (`type_vocab_size` is {kinds:g}): "
            "next-sentence-prediction needs a BERT; for this one take the task masked-language-model"
        )


def _setting(backbone: Backbone, name: str, otherwise: float) -> float:
    return float(getattr(getattr(backbone.model, "config", None), name, otherwise))


# ----------------------------------------------------------------------------------------------------- losses


def logits_at(outputs: Flow, places: Tensor) -> Tensor:
    """Logits over the vocabulary at some places, shape (places, vocabulary).

    Args:
        outputs: of a `WordHead`.
        places: bool, shape (batch, tokens).
    """
    return functional.linear(
        outputs["hidden"][places].float(), outputs["weight"].float(), outputs["bias"].float()
    )


class WordLoss(Unmixed):
    """Cross-entropy of the words that are asked for: the mean over all of a batch."""

    def share(self, outputs: Flow, targets: Flow, whole: Flow) -> Tensor:
        """This part's share of the mean."""
        places = targets["labels"] != IGNORED
        total = functional.cross_entropy(
            logits_at(outputs, places), targets["labels"][places], reduction="sum"
        )
        return total / (whole["labels"] != IGNORED).sum()


class TokenLoss(Unmixed):
    """Binary cross-entropy of all tokens that are no padding: the mean over all of a batch."""

    def share(self, outputs: Flow, targets: Flow, whole: Flow) -> Tensor:
        """This part's share of the mean."""
        places = targets["labels"] != IGNORED
        total = functional.binary_cross_entropy_with_logits(
            outputs["logits"].float()[places], targets["labels"][places].float(), reduction="sum"
        )
        return total / (whole["labels"] != IGNORED).sum()


class SentenceLoss(WordLoss):
    """The words' loss and that of sentences, summed as BERT sums them."""

    def share(self, outputs: Flow, targets: Flow, whole: Flow) -> Tensor:
        """This part's share of the two means."""
        pairs = functional.cross_entropy(outputs["follows"].float(), targets["follows"], reduction="sum")
        return super().share(outputs, targets, whole) + pairs / len(whole["follows"])


# ---------------------------------------------------------------------------------------------------- judging


def measured_words(outputs: Flow, targets: Flow) -> Measured:
    """Each part's sum of losses, words that were asked for, and how many were guessed."""
    labels = targets["labels"]
    places = labels != IGNORED
    with torch.inference_mode():
        logits = logits_at(outputs, places)
        losses = functional.cross_entropy(logits, labels[places], reduction="none")
        guesses = torch.full_like(labels, IGNORED)
        guesses[places] = logits.argmax(dim=1)
    rows = torch.nonzero(places)[:, 0].cpu().numpy()
    correct = (guesses == labels)[places].cpu().numpy()
    sums = {
        "loss": _by_row(rows, losses.double().cpu().numpy(), len(labels)),
        "tokens": _by_row(rows, np.ones(len(rows)), len(labels)),
        "correct": _by_row(rows, correct.astype(np.float64), len(labels)),
    }
    return Measured(sums, guesses.cpu().numpy())


def _by_row(rows: NDArray[np.int64], values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.bincount(rows, weights=values, minlength=count).astype(np.float64)


def measured_tokens(outputs: Flow, targets: Flow) -> Measured:
    """Each part's sum of losses, tokens, and of how many the truth was said."""
    labels, logits = targets["labels"], outputs["logits"].float()
    places = labels != IGNORED
    losses = functional.binary_cross_entropy_with_logits(
        logits, labels.clamp(min=0).float(), reduction="none"
    )
    guesses = (logits > 0).long()
    sums = {
        "loss": (losses.double() * places).sum(dim=1),
        "tokens": places.sum(dim=1).double(),
        "correct": ((guesses == labels) & places).sum(dim=1).double(),
    }
    return Measured({name: one.cpu().numpy() for name, one in sums.items()}, guesses.cpu().numpy())


def measured_sentences(outputs: Flow, targets: Flow) -> Measured:
    """As `measured_words`, and each pair's loss and whether the truth was said of it."""
    words = measured_words(outputs, targets)
    logits, follows = outputs["follows"].float(), targets["follows"]
    losses = functional.cross_entropy(logits, follows, reduction="none")
    pairs = {
        "pair_loss": losses.double().cpu().numpy(),
        "pairs": np.ones(len(follows)),
        "pairs_correct": (logits.argmax(dim=1) == follows).double().cpu().numpy(),
    }
    return Measured(words.sums | pairs, words.guesses)

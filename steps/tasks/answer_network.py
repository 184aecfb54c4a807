"""Where an answer begins and ends: the loss, and the best span of a row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from steps.tasks.of_targets import Unmixed


class SpanLoss(Unmixed):
    """Mean of the cross-entropies of start and end over the tokens there are to choose from.

    Devlin et al., BERT, 2019, sections 4.2 and 4.3.
    """

    def share(self, outputs: Tensor, targets: dict[str, Tensor], whole: dict[str, Tensor]) -> Tensor:
        """This part's share of the batch's mean loss.

        Args:
            outputs: shape (rows, tokens, 2).
            targets: `span`, shape (rows, 2), and `valid`, shape (rows, tokens).
            whole: those of the whole batch.
        """
        scores = masked(outputs, targets["valid"])
        total = functional.cross_entropy(scores.flatten(0, 1), targets["span"].flatten(), reduction="sum")
        return total / (2 * len(whole["span"]))


def masked(outputs: Tensor, valid: Tensor) -> Tensor:
    """Scores of start and end, shape (rows, 2, tokens), out of reach where a token is not valid."""
    # Not minus infinity: half of a gradient would be no number.
    lowest = torch.finfo(outputs.dtype).min
    return outputs.transpose(1, 2).masked_fill(~valid.bool().unsqueeze(1), lowest)


def best_span(logs: Tensor, choice: Tensor, longest: int) -> tuple[int, int]:
    """The most probable span of one row that an answer may be.

    Args:
        logs: logarithms of the probabilities of start and end, shape (2, tokens).
        choice: the tokens an answer may begin and end with, shape (tokens,), at least one.
        longest: most tokens of an answer.

    Returns:
        Its first and its last token; of equals the first.
    """
    tokens = len(choice)
    pairs = logs[0].unsqueeze(1) + logs[1].unsqueeze(0)
    places = torch.arange(tokens, device=logs.device)
    ahead = places.unsqueeze(0) - places.unsqueeze(1)
    may = (ahead >= 0) & (ahead < longest) & choice.unsqueeze(1) & choice.unsqueeze(0)
    at = int(pairs.masked_fill(~may, -torch.inf).argmax())
    return at // tokens, at % tokens

"""What stands on every token of a text: a head, and its loss."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from steps import network
from steps.tasks.of_targets import Unmixed
from steps.tasks.token_samples import IGNORED


class OnTokens(nn.Module):
    """A head on the hidden state of every token; dropout, then a linear layer (Devlin et al., BERT, 2019).

    Args:
        features: of a hidden state.
        outputs: how many there are for each token.
        dropout: before each linear layer.
        kind: "linear", or "mlp" with a hidden layer.
    """

    def __init__(self, features: int, outputs: int, dropout: float, kind: network.Kind) -> None:
        super().__init__()
        self.top = network.build_head(features, outputs, dropout, kind)

    def forward(self, flow: dict[str, Tensor]) -> Tensor:
        """Of `hidden`, shape (rows, tokens, features), scores of shape (rows, tokens, outputs)."""
        return self.top(flow["hidden"])  # type: ignore[no-any-return]


class TagLoss(Unmixed):
    """Cross-entropy, its mean over all scored tokens of a batch."""

    def share(self, outputs: Tensor, targets: Tensor, whole: Tensor) -> Tensor:
        """This part's share of the batch's mean loss.

        Args:
            outputs: shape (rows, tokens, tags).
            targets: shape (rows, tokens), IGNORED where a token is not scored.
            whole: those of the whole batch.
        """
        total = functional.cross_entropy(
            outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return total / (whole != IGNORED).sum().clamp(min=1)

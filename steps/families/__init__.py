"""What every backbone is made of: its layers from bottom to top, and how to run them one by one.

A layer here is one residual block (of a transformer: one encoder or decoder layer). What comes before the
blocks is the bottom layer; what comes after them up to the pooled features (a last convolution, norms,
pooling) belongs to the last block's layer. This is timm's own grouping for layer-wise rates, with the parts
that timm leaves ungrouped counted as parts of the top.
"""

from __future__ import annotations

from torch import nn

from steps.families import language, vision
from steps.families.language import add_stochastic_depth, cut_text
from steps.families.layers import Family, Layer, Part, Step, through

__all__ = [
    "Family",
    "Layer",
    "Part",
    "Step",
    "add_stochastic_depth",
    "cut_text",
    "is_linear",
    "is_norm",
    "is_transposed",
    "of",
    "through",
]

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def of(model: nn.Module) -> Family:
    """The family of a model without classifier.

    Only the very classes known here are cut: a class derived from one may run its layers another way.
    """
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    return {**vision.KNOWN, **language.KNOWN}.get(kind, vision.OTHER)


def is_norm(module: nn.Module) -> bool:
    """A normalisation layer; T5 has a class of its own, which derives from none of torch's."""
    return isinstance(module, NORMS) or type(module).__name__ == "T5LayerNorm"


def is_linear(module: nn.Module) -> bool:
    """A linear layer; GPT-2's, with the weight the other way round, is called a convolution there."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """A linear layer whose weight has shape (in, out): GPT-2's."""
    return f"{type(module).__module__}.{type(module).__qualname__}" == "transformers.pytorch_utils.Conv1D"

"""The learning rate over the steps of a training."""

from __future__ import annotations

import math


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine down to zero.

    Args:
        step: steps taken so far, from 0.
        total: steps in all.
        warmup: steps of warm-up; the first of them already moves.

    Returns:
        A factor in (0, 1].

    Source: Loshchilov and Hutter, SGDR (2017), without restarts; warm-up as in Goyal et al. (2017).
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.schedule import warmup_cosine


def test_worked_example() -> None:
    factors = [warmup_cosine(step, total=8, warmup=2) for step in range(8)]
    half_cosine = [0.5 * (1 + math.cos(math.pi * at / 6)) for at in range(6)]
    assert factors == pytest.approx([1 / 3, 2 / 3, *half_cosine])


def test_the_rate_is_whole_when_the_warm_up_ends_and_half_midway() -> None:
    assert warmup_cosine(10, total=110, warmup=10) == 1
    assert warmup_cosine(60, total=110, warmup=10) == pytest.approx(0.5)


@given(total=st.integers(1, 500), share=st.floats(0, 0.99))
def test_every_step_moves_and_the_rate_climbs_once_then_falls(total: int, share: float) -> None:
    warmup = round(total * share)
    factors = [warmup_cosine(step, total, warmup) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    climb, fall = factors[: warmup + 1], factors[warmup:]
    assert climb == sorted(climb)
    assert fall == sorted(fall, reverse=True)

from __future__ import annotations

import pytest
import torch

from steps import averaging
from steps.averaging import Ema, Soup


def state(*values: float, count: int = 0) -> averaging.State:
    return {"weight": torch.tensor(values), "count": torch.tensor(count)}


def test_ema_by_hand() -> None:
    # Decays (1 + t) / (10 + t): 2/11 after step 1, 3/12 after step 2; 0.2 caps the second.
    moving = state(1.0)
    ema = Ema(0.2)
    ema.cover(moving)
    moving["weight"].fill_(2.0)
    ema.update(moving, 1)
    first = 2 / 11 * 1.0 + 9 / 11 * 2.0
    assert ema.average["weight"].item() == pytest.approx(first)
    moving["weight"].fill_(4.0)
    ema.update(moving, 2)
    assert ema.average["weight"].item() == pytest.approx(0.2 * first + 0.8 * 4.0)


def test_ema_takes_counts_over_and_leaves_the_weights_alone() -> None:
    moving = state(1.0, count=3)
    ema = Ema(0.9)
    ema.cover(moving)
    moving["count"].fill_(4)
    ema.update(moving, 1)
    assert ema.average["count"].item() == 4
    assert moving["weight"].item() == 1.0


def test_ema_stands_in_for_the_weights_within_the_block_only() -> None:
    moving = state(1.0)
    ema = Ema(0.9)
    ema.cover(moving)
    moving["weight"].fill_(9.0)
    weight = moving["weight"]
    with ema.in_place_of(moving):
        assert weight.item() == 1.0
    assert weight.item() == 9.0


def test_the_weights_come_back_when_the_block_fails() -> None:
    moving = state(1.0)
    ema = Ema(0.9)
    ema.cover(moving)
    moving["weight"].fill_(9.0)
    with pytest.raises(KeyError), ema.in_place_of(moving):
        raise KeyError
    assert moving["weight"].item() == 9.0


def test_ema_covers_what_is_freed_later() -> None:
    moving = state(1.0)
    ema = Ema(0.9)
    ema.cover(moving)
    ema.average["weight"].fill_(5.0)
    ema.cover(moving | {"deeper": torch.tensor([7.0])})
    assert ema.average["weight"].item() == 5.0
    assert ema.average["deeper"].item() == 7.0


def test_a_uniform_soup_is_the_mean_of_the_best_epochs() -> None:
    soup = Soup("uniform")
    for epoch, (loss, value) in enumerate([(5.0, 50.0), (1.0, 1.0), (3.0, 3.0), (2.0, 4.0), (4.0, 8.0)], 1):
        soup.add(loss, epoch, state(value, count=epoch))
    made, epochs = soup.make(lambda state: 0.0)
    assert epochs == [2, 4, 3, 5], "best first; epoch 1 is not among the best four"
    assert made["weight"].item() == pytest.approx((1.0 + 4.0 + 3.0 + 8.0) / 4)
    assert made["count"].item() == 2, "a count is no mean"


def test_a_greedy_soup_keeps_what_does_not_make_it_worse() -> None:
    # The loss is the distance of the average from 2: 1 alone is 1 off, with 4 it is 0.5 off, then 3 makes
    # (1 + 4 + 3) / 3 = 2.67, worse; then 0 makes (1 + 4 + 0) / 3 = 1.67, better.
    soup = Soup("greedy")
    for epoch, (loss, value) in enumerate([(1.0, 1.0), (2.0, 4.0), (3.0, 3.0), (4.0, 0.0)], 1):
        soup.add(loss, epoch, state(value))
    made, epochs = soup.make(lambda state: abs(state["weight"].item() - 2))
    assert epochs == [1, 2, 4]
    assert made["weight"].item() == pytest.approx(5 / 3)


def test_a_soup_keeps_copies() -> None:
    soup, moving = Soup("uniform"), state(1.0)
    soup.add(1.0, 1, moving)
    moving["weight"].fill_(9.0)
    assert soup.make(lambda state: 0.0)[0]["weight"].item() == 1.0


def test_a_soup_covers_what_is_freed_later_by_its_start() -> None:
    soup = Soup("uniform")
    soup.add(1.0, 1, state(1.0))
    soup.cover(state(1.0) | {"deeper": torch.tensor([7.0])})
    soup.add(2.0, 2, state(3.0) | {"deeper": torch.tensor([9.0])})
    made, _ = soup.make(lambda state: 0.0)
    assert (made["weight"].item(), made["deeper"].item()) == (2.0, 8.0)

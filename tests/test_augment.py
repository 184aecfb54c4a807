from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from steps.augment import Views, mixer

SIDE = 16
ALL = ("crop", "flip", "randaugment")


def images(count: int, side: int = SIDE) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize("names", [*[(name,) for name in ALL], ALL])
def test_a_view_depends_on_the_image_and_its_number_alone(names: tuple[str, ...]) -> None:
    batch, views = images(8), Views(names, SIDE)
    together = views.of(batch, 2)
    assert together.shape == batch.shape
    assert together.dtype == torch.uint8
    assert torch.equal(Views(names, SIDE).of(batch, 2), together), "asked for again"
    assert torch.equal(views.of(batch.flip(0), 2).flip(0), together), "in another order"
    alone = torch.cat([views.of(batch[at : at + 1], 2) for at in range(8)])
    assert torch.equal(alone, together), "one by one"
    doubled = views.of(torch.cat([batch, batch]), 2)
    assert torch.equal(doubled[8:], together), "equal images at other places"


@pytest.mark.parametrize("names", [(name,) for name in ALL])
def test_views_of_other_numbers_and_of_other_images_differ(names: tuple[str, ...]) -> None:
    batch, views = images(8), Views(names, SIDE)
    made = [views.of(batch, number) for number in range(6)]
    assert not torch.equal(made[0], made[1])
    for at in range(8):
        assert len({view[at].numpy().tobytes() for view in made}) >= 2


def test_images_of_a_batch_are_not_flipped_together() -> None:
    batch = images(8)
    flipped = (Views(("flip",), SIDE).of(batch, 0) != batch).flatten(1).any(dim=1)
    assert flipped.any()
    assert not flipped.all()


def test_the_callers_random_numbers_stay_as_they_are() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = Views(ALL, SIDE).of(images(2), 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(Views(ALL, SIDE).of(images(2), 0), first)


def test_names_in_another_order_are_the_same_views_and_no_names_the_plain_image() -> None:
    batch = images(4)
    assert torch.equal(Views(ALL[::-1], SIDE).of(batch, 1), Views(ALL, SIDE).of(batch, 1))
    assert torch.equal(Views((), SIDE).of(batch, 1), batch)
    with pytest.raises(AssertionError, match="blur"):
        Views(("blur",), SIDE)


def test_half_of_the_views_are_flipped_left_to_right() -> None:
    batch = images(20)
    flips = 0
    for number in range(20):
        for image, view in zip(batch, Views(("flip",), SIDE).of(batch, number), strict=True):
            flipped = torch.equal(view, image.flip(1))
            assert flipped or torch.equal(view, image)
            flips += flipped
    # Binomial, 400 at one half: five standard deviations.
    assert abs(flips - 200) < 5 * math.sqrt(400 / 4)


def test_a_crop_is_a_part_of_the_image_as_large_as_said() -> None:
    side = 64
    ramp = torch.arange(side, dtype=torch.uint8) * 4
    image = ramp.view(1, 1, side, 1).expand(1, side, side, 3).contiguous()
    views = Views(("crop",), side)
    widths = []
    for number in range(60):
        row = views.of(image, number)[0, 0, :, 0].int()
        assert (row.diff() >= 0).all(), "squeezed or stretched, never turned"
        widths.append(int(row[-1] - row[0]) / 252)
    # Of at least 70 % of the area, and not narrower than 3 to 4: width >= sqrt(0.7 * 3 / 4) of the side.
    assert min(widths) > math.sqrt(0.7 * 3 / 4) - 0.05
    assert min(widths) < 0.85
    assert max(widths) > 0.95


FROM_ELSEWHERE = """
import hashlib, numpy as np, torch
from steps.augment import Views
pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
torch.rand(3)
view = Views(("flip", "crop", "randaugment"), 16).of(torch.from_numpy(pixels), 4)
print(hashlib.sha256(view.numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_another_process_sees_the_same_views() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FROM_ELSEWHERE], capture_output=True, text=True, check=True
    )  # its hash() of a text is another
    view = Views(ALL, SIDE).of(images(3), 4)
    assert done.stdout.strip() == hashlib.sha256(view.numpy().tobytes()).hexdigest()


# ------------------------------------------------------------------------------------------- mixed batches


def constant(values: list[float], side: int = 8) -> Tensor:
    """Images of one value each, channels last."""
    images = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, side, side)
    return images.contiguous(memory_format=torch.channels_last)


def test_mixup_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self, shape: torch.tensor([0.25]))
    mix = mixer(0.4, 0.0, classes=4)
    assert mix is not None
    images, targets = mix(constant([0.0, 8.0, 16.0]), torch.tensor([0, 3, 1]))
    # A quarter of each and three quarters of the one before; before the first is the last.
    expected = [[0.25, 0.75, 0, 0], [0.75, 0, 0, 0.25], [0, 0.25, 0, 0.75]]
    torch.testing.assert_close(targets, torch.tensor(expected))
    torch.testing.assert_close(images, constant([12.0, 2.0, 10.0]))


def test_a_share_of_a_cutmix_target_is_the_area_pasted() -> None:
    mix = mixer(0.0, 1.0, classes=3)
    assert mix is not None
    torch.manual_seed(0)
    shares = []
    for _ in range(40):
        images, targets = mix(constant([0.0, 1.0, 2.0]), torch.tensor([0, 1, 2]))
        for at in range(3):
            own, other = images[at] == at, images[at] == (at - 1) % 3
            assert (own | other).all()
            assert targets[at, at].item() == pytest.approx(own.float().mean().item())
            assert targets[at, (at - 1) % 3].item() == pytest.approx(other.float().mean().item())
        pasted = (images[0] == 2)[0]
        height, width = int(pasted.any(dim=1).sum()), int(pasted.any(dim=0).sum())
        assert pasted.sum() == height * width, "a rectangle"
        shares.append(pasted.float().mean().item())
    assert len(set(shares)) > 10


def test_with_both_each_batch_is_mixed_in_one_way_at_even_odds() -> None:
    mix = mixer(1.0, 1.0, classes=2)
    assert mix is not None
    torch.manual_seed(0)
    blended = 0
    for _ in range(200):
        images, targets = mix(constant([0.0, 1.0]), torch.tensor([0, 1]))
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(2))
        blended += bool(((images > 0) & (images < 1)).any())
    # Binomial, 200 at one half: five standard deviations.
    assert abs(blended - 100) < 5 * math.sqrt(200 / 4)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_mixing_is_replayed_from_torchs_own_state_and_keeps_the_layout(mixup: float, cutmix: float) -> None:
    mix = mixer(mixup, cutmix, classes=5)
    assert mix is not None
    given, labels = torch.rand(4, 3, 8, 8).contiguous(memory_format=torch.channels_last), torch.arange(4)
    before = given.clone()
    torch.manual_seed(3)
    for _ in range(5):
        state = torch.get_rng_state()
        images, targets = mix(given, labels)
        torch.set_rng_state(state)
        again = mix(given, labels)
        assert torch.equal(images, again[0])
        assert torch.equal(targets, again[1])
        assert targets.shape == (4, 5)
        assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(given, before)


def test_nothing_to_mix() -> None:
    assert mixer(0.0, 0.0, 3) is None

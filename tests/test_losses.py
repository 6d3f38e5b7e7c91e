"""Each loss against an oracle or a property of its equation."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from raygen.families.dtgan import losses
from raygen.families.dtgan.config import LossConfig, OptimizerConfig
from raygen.families.losses import adversarial, r1


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_adversarial_is_binary_cross_entropy() -> None:
    logits = rand(50) * 5
    for real in (True, False):
        wanted = torch.nn.functional.binary_cross_entropy_with_logits(
            logits.float(), torch.full((50,), float(real))
        )
        assert adversarial(logits, real).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_adversarial_stays_finite_where_the_discriminator_is_sure() -> None:
    assert adversarial(torch.tensor([-1e4]), real=True).item() == pytest.approx(1e4)
    assert adversarial(torch.tensor([1e4]), real=True).item() == 0


def test_r1_of_a_linear_discriminator_is_half_its_squared_weights() -> None:
    weights = rand(3, 8, 8)
    for n in (1, 4):
        x = rand(n, 3, 8, 8, seed=1).requires_grad_()
        penalty = r1((x * weights).sum(dim=(1, 2, 3)), x)
        assert penalty.item() == pytest.approx(0.5 * weights.square().sum().item())


def test_r1_trains_the_discriminator() -> None:
    weights = rand(3, 8, 8).requires_grad_()
    x = rand(2, 3, 8, 8, seed=1).requires_grad_()
    r1((x * weights).sum(dim=(1, 2, 3)), x).backward()
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad, weights.detach())  # of w²/2


def test_style_content_is_the_sum_of_two_mean_distances() -> None:
    style, content = rand(4, 64), rand(4, 8, 16, 16)
    assert losses.style_content(style, content, style, content).item() == 0
    off = losses.style_content(style, content, style + 0.25, content - 2)
    assert off.item() == pytest.approx(2.25)


def test_diversity_without_style_loses_the_pairs_that_differ_in_style_alone() -> None:
    """Of G_ij = G(s_i, c_j), a generator that ignores style gives G_11 = G_21 and G_12 = G_22: of the six pairs
    two are zero, and the other four are one distance."""
    one, other = rand(2, 1, 8, 8, seed=1), rand(2, 1, 8, 8, seed=2)
    distance = (one - other).abs().mean().item()
    blind = [one, other, one, other]  # G_11, G_12, G_21, G_22
    assert losses.diversity(blind).item() == pytest.approx(4 * distance)
    assert losses.diversity(blind, "mean").item() == pytest.approx(4 / 6 * distance)
    assert losses.diversity([one] * 4).item() == 0


def test_diversity_does_not_see_what_all_translations_share() -> None:
    layers = [rand(2, 1, 8, 8, seed=seed) for seed in range(4)]
    background = rand(2, 1, 8, 8, seed=9).requires_grad_()
    spread = losses.diversity([background + layer for layer in layers])
    assert spread.item() == pytest.approx(losses.diversity(layers).item())
    spread.backward()
    assert background.grad is not None
    assert background.grad.abs().max() < 1e-15  # all four images carry gradient, and it cancels


def test_cycle_is_the_mean_absolute_error() -> None:
    x = rand(2, 3, 8, 8)
    assert losses.cycle(x, x).item() == 0
    assert losses.cycle(x, x + 0.5).item() == pytest.approx(0.5)


def test_content_consistency_pulls_a_normal_s_content_to_zero() -> None:
    """The anchor: with ĉ = 0 the first part is |FG_G(x)| itself."""
    popped, zero = rand(2, 8, 16, 16), torch.zeros(2, 8, 16, 16, dtype=torch.float64)
    assert losses.content_consistency(popped, zero, zero, zero).item() == pytest.approx(
        popped.abs().mean().item()
    )
    assert losses.content_consistency(popped, popped, zero, zero + 3).item() == pytest.approx(3)


def test_classification_follows_its_domains() -> None:
    logits, wanted = rand(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    order = torch.tensor([2, 0, 1])  # domain k is called order[k] now
    renamed = torch.empty_like(logits)
    renamed[:, order] = logits
    loss = losses.classification(logits, wanted)
    assert losses.classification(renamed, order[wanted]).item() == pytest.approx(loss.item())
    assert losses.classification(logits, order[wanted]).item() != pytest.approx(loss.item(), rel=0.01)
    even = torch.zeros(8, 3)
    assert losses.classification(even, wanted).item() == pytest.approx(math.log(3))


def test_contents_may_be_empty() -> None:
    style, nothing = rand(2, 64), torch.empty(2, 0, 16, 16)
    assert losses.style_content(style, nothing, style, nothing).item() == 0
    assert losses.content_consistency(nothing, nothing, nothing, nothing).item() == 0


def test_losses_of_equal_parts_average_to_the_whole_batch_s() -> None:
    """What data-parallel training rests on."""
    a, b = rand(8, 3, 4, 4, seed=1), rand(8, 3, 4, 4, seed=2)
    logits, wanted = rand(8, 3, seed=3), torch.arange(8) % 3
    for loss in (
        lambda rows: losses.cycle(a[rows], b[rows]),
        lambda rows: adversarial(logits[rows, 0], True),
        lambda rows: losses.classification(logits[rows], wanted[rows]),
        lambda rows: losses.diversity([a[rows], b[rows], 2 * a[rows]]),
    ):
        halves = (loss(slice(0, 4)) + loss(slice(4, 8))) / 2
        assert loss(slice(0, 8)).item() == pytest.approx(halves.item())


# ------------------------------------------------------------------------------------------- schedules


def test_the_weight_of_diversity_goes_linearly_to_zero() -> None:
    config = LossConfig(diversity=2)
    assert [config.diversity_at(share) for share in (0, 0.25, 0.5, 1)] == [2, 1.5, 1, 0]
    early = LossConfig(diversity=2, diversity_decay=0.5)
    assert [early.diversity_at(share) for share in (0, 0.25, 0.5, 0.9)] == [2, 1, 0, 0]


def test_the_weight_of_diversity_can_rise_first() -> None:
    config = LossConfig(diversity=1, diversity_ramp=0.1)
    assert config.diversity_at(0) == 0
    assert config.diversity_at(0.05) == pytest.approx(0.5 * 0.95)
    assert config.diversity_at(0.2) == pytest.approx(0.8)


def test_the_average_follows_quickly_at_first_and_then_as_the_paper_s() -> None:
    assert OptimizerConfig().average_at(0) == 0.999
    ramped = OptimizerConfig(average_ramp=True)
    kept = [ramped.average_at(i) for i in (0, 10, 100, 1000, 10**6)]
    assert kept[0] == 0
    assert kept[-1] == 0.999
    assert all(a < b for a, b in pairwise(kept))

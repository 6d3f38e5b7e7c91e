"""Adaptive discriminator augmentation against scipy's resampling, formulas per pixel, and statistics."""

import itertools
import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from raygen.families.stylegan2.ada import NUM_DRAWS, SYM6, AugmentConfig, Controller, augment, lowpass

# What each of an image's numbers is for; those with "?" say whether the transform applies.
UNIFORMS = (
    *("flip", "flip?", "rotate90", "rotate90?", "translate_x", "translate_y", "translate?", "scale?"),
    *("before", "before?", "stretch?", "after", "after?", "shift?", "brightness?", "contrast?"),
    *("luma_flip", "luma_flip?", "hue", "hue?", "saturation?"),
)
NORMALS = ("scale", "stretch", "shift_x", "shift_y", "brightness", "contrast", "saturation")

ALL = AugmentConfig()
SWITCHES = [field.name for field in fields(AugmentConfig) if field.default is True]
GEOMETRY, COLOUR = SWITCHES[:7], SWITCHES[7:]


def only(*switches: str, **strengths: float) -> AugmentConfig:
    settings: dict[str, Any] = {name: name in switches for name in SWITCHES}
    return replace(AugmentConfig(**settings), **strengths)


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 1


def random_draws(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, NUM_DRAWS, generator=generator), torch.randn(n, NUM_DRAWS, generator=generator)


def draws(**numbers: float) -> tuple[Tensor, Tensor]:
    """One image's numbers: the given ones, and otherwise 0.5 and 0, from which no angle or size changes."""
    uniforms, normals = torch.full((1, NUM_DRAWS), 0.5), torch.zeros(1, NUM_DRAWS)
    for name, number in numbers.items():
        target, names = (uniforms, UNIFORMS) if name in UNIFORMS else (normals, NORMALS)
        target[0, names.index(name)] = number
    return uniforms, normals


# ------------------------------------------------------------------------------------- pixel blitting


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("channels", [1, 3])
def test_blits_copy_pixels(size: int, channels: int) -> None:
    x = images(1, channels, size, size)

    def blitted(name: str, **numbers: float) -> Tensor:
        return augment(x, *draws(**numbers), 1.0, only(name))

    assert torch.equal(blitted("flip", flip=0.3), x)
    assert torch.equal(blitted("flip", flip=0.7), x.flip(3))
    for turns in range(4):
        clockwise = torch.rot90(x, -turns, (2, 3))
        assert torch.equal(blitted("rotate90", rotate90=turns / 4 + 0.1), clockwise)
    right, down = size // 16, -size // 8  # of the ±size / 8 there are
    moved = blitted("translate", translate_x=0.75, translate_y=0.0)
    assert torch.equal(moved[..., :down, right:], x[..., -down:, :-right])
    assert torch.equal(moved[..., :down, :right], x[..., -down:, :right].flip(3))  # mirrored, the edge twice
    assert torch.equal(moved[..., down:, right:], x[..., down:, :-right].flip(2))


def test_blits_apply_in_the_paper_s_order() -> None:
    x = images(1, 3, 32, 32)
    numbers = draws(flip=0.7, rotate90=0.3, translate_x=0.75)
    y = augment(x, *numbers, 1.0, only("flip", "rotate90", "translate"))
    assert torch.equal(y[..., 2:], torch.rot90(x.flip(3), -1, (2, 3))[..., :-2])


# ------------------------------------------------------------------------------------------- geometry


def scaling(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1])


def rotation(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def translation(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])


def smooth(size: int) -> np.ndarray:
    """An image without symmetries and without detail finer than some pixels, of variance one."""
    image = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((size, size)), 3)
    return image / image.std()


def resampled(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """By quintic splines; the matrix moves points (x, y, 1), in pixels from the image's centre."""
    size = len(image)
    centre = translation((size - 1) / 2, (size - 1) / 2)
    y, x = np.mgrid[:size, :size]
    points = np.stack([x.ravel(), y.ravel(), np.ones(size * size)])
    x, y, _ = centre @ np.linalg.inv(matrix) @ np.linalg.inv(centre) @ points
    return ndimage.map_coordinates(image, [y, x], order=5, mode="reflect").reshape(size, size)


ALL_WARPS = {"scale": 0.5, "before": 0.6, "stretch": -1.0, "after": 0.2, "shift_x": 0.3, "shift_y": -0.2}
ALL_BLITS = {"flip": 0.7, "rotate90": 0.3, "translate_x": 0.78, "translate_y": 0.27}
ALL_GEOMETRY = (  # of a 64 × 64 image, the first at the right
    translation(0.3 * 8, -0.2 * 8)
    @ rotation(-0.6 * math.pi)
    @ scaling(2**-0.2, 2**0.2)
    @ rotation(0.2 * math.pi)
    @ scaling(2**0.1, 2**0.1)
    @ translation(4, -4)  # rounded
    @ rotation(math.pi / 2)
    @ scaling(-1, 1)
)
WARPS: list[tuple[AugmentConfig, dict[str, float], np.ndarray]] = [
    (only("scale"), {"scale": 1.0}, scaling(2**0.2, 2**0.2)),
    (only("scale", scale_std=0.4), {"scale": -1.5}, scaling(2**-0.6, 2**-0.6)),
    (only("rotate"), {"before": 0.95}, rotation(0.9 * math.pi)),
    (only("rotate", rotate_max=0.1), {"after": 0.0}, rotation(-0.1 * math.pi)),
    (only("stretch"), {"stretch": 1.5}, scaling(2**0.3, 2**-0.3)),
    (only("stretch", stretch_std=0.1), {"stretch": -2.0}, scaling(2**-0.2, 2**0.2)),
    (only("shift"), {"shift_x": 0.7, "shift_y": -1.3}, translation(0.7 * 8, -1.3 * 8)),
    (only("shift", shift_std=0.01), {"shift_x": 1.0, "shift_y": 2.0}, translation(0.64, 1.28)),
    (only(*GEOMETRY), ALL_WARPS | ALL_BLITS, ALL_GEOMETRY),
]


@pytest.mark.parametrize(("config", "numbers", "matrix"), WARPS)
def test_geometry_resamples_by_its_matrix(
    config: AugmentConfig, numbers: dict[str, float], matrix: np.ndarray
) -> None:
    """The image's deviation is one; bilinear sampling costs 0.036 at the worst pixel of the worst case."""
    image = smooth(64)
    x = torch.tensor(image)[None, None]
    y = augment(x, *draws(**numbers), 1.0, config)[0, 0].numpy()
    wanted = resampled(image, matrix)
    assert np.abs(y - wanted).max() < 0.05
    assert np.abs(wanted - image).max() > 0.5  # nothing here is close to the identity


def test_filtering_alone_leaves_detail_as_it_is() -> None:
    """White noise, shifted by next to nothing: but for a rim, where the mirror of the filtered is another's."""
    x = images(1, 1, 64, 64, dtype=torch.float64)
    y = augment(x, *draws(shift_x=1.0), 1.0, only("shift", shift_std=1e-9))
    assert not torch.equal(y, x)
    torch.testing.assert_close(y[..., 8:-8, 8:-8], x[..., 8:-8, 8:-8], rtol=0, atol=1e-6)


def test_constant_images_stay_so() -> None:
    x = torch.full((8, 3, 32, 32), 0.7, dtype=torch.float64)
    torch.testing.assert_close(augment(x, *random_draws(8), 1.0, only(*GEOMETRY)), x, rtol=0, atol=1e-9)


def test_the_filter_is_sym6() -> None:
    """Orthonormal with six vanishing moments are four filters and their mirror images; of these the symlet is
    the most symmetric, whose mean is nearest to its middle (1.7, 4.1 and 2.0 from it are the others')."""
    h, k = np.array(SYM6), np.arange(12)
    assert h.sum() == pytest.approx(math.sqrt(2), abs=1e-10)
    for shift in range(6):
        assert h[2 * shift :] @ h[: 12 - 2 * shift] == pytest.approx(float(shift == 0), abs=1e-10)
    for moment in range(6):
        assert ((-1.0) ** k * (k / 11) ** moment) @ h == pytest.approx(0, abs=1e-10)
    assert k @ h / h.sum() - 5.5 == pytest.approx(-0.40, abs=0.01)


def test_the_filters_cancel() -> None:
    up, down = lowpass(32)
    assert up.shape == (64, 32)
    assert down.shape == (32, 74)
    kept = (down[:, 5:-5] @ up)[8:-8]
    torch.testing.assert_close(kept, torch.eye(32, dtype=torch.float64)[8:-8], rtol=0, atol=1e-10)


def test_filtering_up_mirrors_at_the_borders() -> None:
    column = images(32, dtype=torch.float64).numpy()
    spread = np.zeros(2 * 38)
    spread[::2] = np.pad(column, 3, mode="symmetric")
    wanted = np.convolve(spread, SYM6)[11 : 11 + 64]
    np.testing.assert_allclose(lowpass(32)[0].numpy() @ column, wanted, rtol=0, atol=1e-12)


# --------------------------------------------------------------------------------------------- colour


def luma(x: Tensor) -> Tensor:
    return x.mean(dim=1, keepdim=True)


def turned(x: Tensor, angle: float) -> Tensor:
    """About the gray axis, by Rodrigues' formula."""
    axis = torch.full((3,), 1 / math.sqrt(3), dtype=x.dtype).view(1, 3, 1, 1).expand_as(x)
    tint = x - luma(x)
    return luma(x) + math.cos(angle) * tint + math.sin(angle) * torch.linalg.cross(axis, tint, dim=1)


COLOURS: list[tuple[AugmentConfig, dict[str, float], Callable[[Tensor], Tensor]]] = [
    (only("brightness"), {"brightness": 1.5}, lambda x: x + 0.3),
    (only("brightness", brightness_std=0.1), {"brightness": -1.0}, lambda x: x - 0.1),
    (only("contrast"), {"contrast": 1.5}, lambda x: x * 2**0.75),
    (only("contrast", contrast_std=0.1), {"contrast": -2.0}, lambda x: x * 2**-0.2),
    (only("luma_flip"), {"luma_flip": 0.7}, lambda x: x - 2 * luma(x)),
    (only("luma_flip"), {"luma_flip": 0.3}, lambda x: x),
    (only("hue"), {"hue": 5 / 6}, lambda x: x.roll(1, dims=1)),  # 120 degrees: red becomes green
    (only("hue", hue_max=0.1), {"hue": 0.0}, lambda x: turned(x, -0.1 * math.pi)),
    (only("saturation"), {"saturation": 1.5}, lambda x: luma(x) + 2**1.5 * (x - luma(x))),
    (only("saturation", saturation_std=0.1), {"saturation": -1.0}, lambda x: x.lerp(luma(x), 1 - 2**-0.1)),
    (
        only(*COLOUR),
        {"brightness": 1, "contrast": -1, "luma_flip": 0.7, "hue": 0.6, "saturation": 1},
        lambda x: luma(-(x + 0.2) * 2**-0.5) + 2 * turned((x - luma(x)) * 2**-0.5, 0.2 * math.pi),
    ),
]


@pytest.mark.parametrize(("config", "numbers", "formula"), COLOURS)
def test_colours_follow_their_formulas(
    config: AugmentConfig, numbers: dict[str, float], formula: Callable[[Tensor], Tensor]
) -> None:
    x = images(1, 3, 32, 32, dtype=torch.float64)
    y = augment(x, *draws(**numbers), 1.0, config)
    torch.testing.assert_close(y, formula(x), rtol=0, atol=1e-6)  # the numbers are float32


def test_gray_images_are_colour_images_of_three_equal_channels() -> None:
    x, numbers = images(16, 1, 32, 32), random_draws(16)
    y = augment(x, *numbers, 0.8, ALL)
    torch.testing.assert_close(augment(x.expand(-1, 3, -1, -1), *numbers, 0.8, ALL), y.expand(-1, 3, -1, -1))
    assert (y - x).abs().amax(dim=(1, 2, 3)).min() > 0.01
    assert augment(x, *numbers, 1.0, only("hue", "saturation")) is x


# ------------------------------------------------------------------------------- which images, how often


def test_nothing_applies_at_p_0_or_without_a_switch() -> None:
    x, numbers = images(4, 3, 32, 32), random_draws(4)
    assert augment(x, *numbers, 0.0, ALL) is x
    assert torch.equal(augment(x, *numbers, torch.tensor(0.0), ALL), x)
    assert torch.equal(augment(x, *numbers, 1.0, only()), x)


# How often a transform changes a 32 × 32 image that it applies to: translations are 0 in 1 of 8 cases, twice.
CHANGES = {"flip": 1 / 2, "rotate90": 3 / 4, "translate": 1 - 1 / 64, "luma_flip": 1 / 2}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_transform_applies_with_probability_p(name: str) -> None:
    n, p = 1500, 0.3
    x = images(1, 3, 32, 32).expand(n, -1, -1, -1)
    changed = (augment(x, *random_draws(n), p, only(name)) != x).any(dim=(1, 2, 3))
    wanted = p * CHANGES.get(name, 1.0)
    assert changed.double().mean().item() == pytest.approx(
        wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / n)
    )


def test_transforms_apply_independently() -> None:
    n, p = 1500, 0.3
    x = images(1, 1, 32, 32).expand(n, -1, -1, -1)
    for pair in itertools.combinations(["flip", "rotate", "brightness", "contrast"], 2):
        changed = (augment(x, *random_draws(n), p, only(*pair)) != x).any(dim=(1, 2, 3))
        kept = math.prod(1 - p * CHANGES.get(name, 1.0) for name in pair)
        deviation = math.sqrt(kept * (1 - kept) / n)
        assert 1 - changed.double().mean().item() == pytest.approx(kept, abs=4 * deviation)


def test_p_may_differ_from_image_to_image() -> None:
    x, numbers = images(4, 3, 32, 32), random_draws(4)
    y = augment(x, *numbers, torch.tensor([0.0, 1.0, 0.0, 1.0]), ALL)
    assert torch.equal(y[::2], x[::2])
    assert torch.equal(y[1::2], augment(x, *numbers, 1.0, ALL)[1::2])


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_turns_one_transform_off_and_leaves_the_others(name: str) -> None:
    """Off is as if the number that applies it were too high."""
    x, (uniforms, normals) = images(8, 3, 32, 32), random_draws(8, seed=1)
    uniforms[:, [i for i, use in enumerate(UNIFORMS) if use.endswith("?")]] = 0.1
    on = augment(x, uniforms, normals, 0.8, ALL)
    off = augment(x, uniforms, normals, 0.8, replace(ALL, **{name: False}))
    for use in ("before?", "after?") if name == "rotate" else (f"{name}?",):
        uniforms[:, UNIFORMS.index(use)] = 0.9
    assert torch.equal(off, augment(x, uniforms, normals, 0.8, ALL))
    assert not torch.equal(off, on)


@pytest.mark.parametrize(("channels", "size"), [(1, 64), (3, 32)])
def test_an_image_s_result_does_not_depend_on_its_neighbours(channels: int, size: int) -> None:
    x, (uniforms, normals) = images(7, channels, size, size), random_draws(7)
    y = augment(x, uniforms, normals, 0.5, ALL)
    for rows in ([0], [6, 2], [5, 4, 3, 1]):
        alone = augment(x[rows], uniforms[rows], normals[rows], 0.5, ALL)
        torch.testing.assert_close(alone, y[rows], rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("config", [only(*GEOMETRY[:3]), ALL], ids=["blits", "all"])
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_of_both_orders(config: AugmentConfig, channels: int) -> None:
    numbers = random_draws(2)
    x = images(2, channels, 8, 8, dtype=torch.float64).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return augment(x, *numbers, 0.9, config)

    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: function(x.square()), x, fast_mode=True)


def test_r1_goes_through_it() -> None:
    """Of D(x) = <w, A x>, whose gradient is Aᵀw: half the square of that has the gradient A Aᵀ w by w."""
    (uniforms, normals), config = random_draws(1), only(*GEOMETRY)
    x = images(1, 1, 8, 8, dtype=torch.float64).requires_grad_()
    w = images(1, 1, 8, 8, seed=1, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(
        (w * augment(x, uniforms, normals, 1.0, config)).sum(), x, create_graph=True
    )
    (gradient.square().sum() / 2).backward()
    basis = torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
    rows = augment(basis, uniforms.expand(64, -1), normals.expand(64, -1), 1.0, config).flatten(1)  # Aᵀ
    assert w.grad is not None
    torch.testing.assert_close(w.grad.flatten(), rows.T @ rows @ w.detach().flatten())


def test_autocast_does_not_coarsen_it() -> None:
    x, numbers = images(4, 3, 32, 32), random_draws(4)
    with torch.autocast("cpu", torch.bfloat16):
        y = augment(x, *numbers, 1.0, ALL)
        coarse = augment(x.bfloat16(), *numbers, 1.0, ALL)
    assert torch.equal(y, augment(x, *numbers, 1.0, ALL))
    assert torch.equal(coarse, augment(x.bfloat16().float(), *numbers, 1.0, ALL))


def test_wrong_arguments_are_refused() -> None:
    uniforms, normals = random_draws(2)
    with pytest.raises(ValueError, match="square"):
        augment(images(2, 1, 32, 64), uniforms, normals, 0.5, ALL)
    with pytest.raises(ValueError, match="draws"):
        augment(images(2, 1, 32, 32), uniforms[:, 1:], normals, 0.5, ALL)
    with pytest.raises(ValueError, match="scale_std"):
        AugmentConfig(scale_std=-0.1)
    with pytest.raises(ValueError, match="rotate must be true or false, not 0"):
        AugmentConfig(rotate=0)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------- controller


def test_p_moves_towards_the_target_at_its_speed() -> None:
    controller = Controller()
    for sign, wanted in ((0.9, 0.02), (0.7, 0.04), (0.5, 0.02)):
        for _ in range(4):
            controller.observe(sign, 16)
        controller.update(0.6, 3200)
        assert controller.p == pytest.approx(wanted)


def test_the_mean_is_over_images_not_over_batches() -> None:
    controller = Controller(p=0.5)
    controller.observe(1.0, 10)
    controller.observe(0.5, 90)  # a mean of 0.55
    controller.update(0.6, 1000)
    assert controller.p == pytest.approx(0.4)


def test_p_stays_a_probability() -> None:
    controller = Controller()
    for sign, wanted in ((-1, 0), (1, 0.6), (1, 1), (1, 1), (0, 0.4)):
        controller.observe(sign, 60)
        controller.update(0.6, 100)
        assert controller.p == pytest.approx(wanted)


def test_an_update_without_images_changes_nothing() -> None:
    controller = Controller(p=0.3)
    controller.update(0.6, 100)
    assert controller.p == 0.3


def test_a_controller_goes_on_from_its_state() -> None:
    controller, resumed = Controller(p=0.2), Controller()
    controller.observe(0.9, 16)
    state = controller.state_dict()
    assert all(type(value) is float for value in state.values())
    resumed.load_state_dict(state)
    for each in (controller, resumed):
        each.observe(0.5, 8)
        each.update(0.6, 1000)
    assert resumed == controller
    assert controller.p == pytest.approx(0.224)

"""StyleGAN2's networks against their equations, written out another way, and against their known sizes."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import convolve2d
from torch import Tensor, nn

from raygen.families.losses import r1
from raygen.families.stylegan2.networks import (
    Backbone,
    Discriminator,
    EqualLinear,
    MappingNetwork,
    StyledConv,
    StyleGAN2Config,
    SynthesisBlock,
    build_discriminator,
    downsample,
    minibatch_std,
    mix_styles,
    modulated_conv,
    noise_maps,
    repeat_w,
    split_noise,
    upfirdn,
    upsample,
)

TINY = StyleGAN2Config(
    image_size=32, channels=1, num_products=2, latent_dim=8, w_dim=8, channel_base=256, channel_max=16
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def shake(network: nn.Module) -> None:
    """Moves every bias and every strength of noise off its initial value, which would hide mistakes."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.randn_like(parameter))


def styled_convs(network: nn.Module) -> list[StyledConv]:
    """The convolutions in the order that noise goes in."""
    return [module for module in network.modules() if isinstance(module, StyledConv)]


def block(backbone: Backbone, index: int) -> SynthesisBlock:
    found = backbone.synthesis.blocks[index]
    assert isinstance(found, SynthesisBlock)
    return found


def latents(config: StyleGAN2Config, n: int = 2) -> tuple[Tensor, Tensor]:
    """Styles of their own for every layer, and noise."""
    return torch.randn(n, config.num_ws, config.w_dim), torch.randn(n, config.noise_size)


def millions(*modules: nn.Module) -> float:
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


# ------------------------------------------------------------------------------------------ resampling


@pytest.mark.parametrize(
    ("up", "down", "pad"), [(2, 1, (2, 1)), (1, 2, (1, 1)), (1, 1, (2, 2)), (1, 1, (1, 1))]
)
def test_resampling_is_zeros_between_pixels_a_convolution_and_slicing(
    up: int, down: int, pad: tuple[int, int]
) -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    taps = np.array([1, 3, 3, 1]) / 8 * up
    out = upfirdn(x, pad, up=up, down=down).numpy()
    for n, c in np.ndindex(2, 3):
        stuffed = np.zeros((8 * up, 8 * up))
        stuffed[::up, ::up] = x[n, c]
        filtered = convolve2d(np.pad(stuffed, pad), np.outer(taps, taps), mode="valid")
        np.testing.assert_allclose(out[n, c], filtered[::down, ::down], rtol=0, atol=1e-12)


def test_resampling_keeps_a_constant_away_from_the_border() -> None:
    x = torch.full((1, 2, 8, 8), 0.7)
    larger, smaller = upsample(x), downsample(x)
    assert larger.shape == (1, 2, 16, 16)
    assert smaller.shape == (1, 2, 4, 4)
    for image in (larger, smaller):
        inside = image[..., 1:-1, 1:-1]
        torch.testing.assert_close(inside, torch.full_like(inside, 0.7))


def test_up_and_down_again_moves_nothing() -> None:
    """The filters' delays cancel: a hump stays where it is, and only gets wider."""
    grid = torch.arange(16.0) - 6
    x = torch.exp(-(grid[:, None].square() + (grid + 1).square()) / 2)[None, None]
    again = downsample(upsample(x))[0, 0]
    for axis, centre in ((0, 6.0), (1, 5.0)):
        profile = again.sum(dim=1 - axis)
        assert (profile * torch.arange(16)).sum() / profile.sum() == pytest.approx(centre, abs=1e-3)


# ------------------------------------------------------------------------------ modulated convolutions


def written_out(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up: bool) -> np.ndarray:
    """Equations 1 and 3 of StyleGAN2, image by image and channel by channel."""
    images = []
    for image, scales in zip(x.numpy(), style.numpy(), strict=True):
        own = weight.numpy() * scales[None, :, None, None]
        if demodulate:
            own = own / np.sqrt(np.square(own).sum(axis=(1, 2, 3), keepdims=True) + 1e-8)
        outputs = []
        for kernels in own:
            if up:
                size = image.shape[1]
                stuffed = np.zeros((len(image), 2 * size, 2 * size))
                stuffed[:, ::2, ::2] = image
                taps = np.array([1, 3, 3, 1]) / 4  # a gain of 2 along each axis, for the zeros
                sharp = sum(convolve2d(c, kernel) for c, kernel in zip(stuffed, kernels, strict=True))
                # Both convolutions are full: they move pixels by 1 and by 1.5, all but the usual half pixel.
                whole = convolve2d(sharp, np.outer(taps, taps))
                outputs.append(whole[2 : 2 + 2 * size, 2 : 2 + 2 * size])
            else:
                flipped = kernels[:, ::-1, ::-1]  # what networks call a convolution is a correlation
                channels = zip(image, flipped, strict=True)
                outputs.append(sum(convolve2d(c, kernel, mode="same") for c, kernel in channels))
        images.append(np.stack(outputs))
    return np.stack(images)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize(("kernel", "up"), [(1, False), (3, False), (3, True)])
def test_modulated_convolutions_are_the_paper_s_equations(
    kernel: int, up: bool, per_sample: bool, demodulate: bool
) -> None:
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    weight, style = torch.randn(5, 4, kernel, kernel).double(), torch.randn(3, 4).double()
    out = modulated_conv(x, weight, style, demodulate=demodulate, up=up, per_sample=per_sample)
    assert out.shape == (3, 5, 12, 12) if up else (3, 5, 6, 6)
    np.testing.assert_allclose(out, written_out(x, weight, style, demodulate, up), rtol=0, atol=1e-10)


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("kernel", "up"), [(1, False), (3, False), (3, True)])
def test_scaling_images_does_what_scaling_weights_does(
    kernel: int, up: bool, demodulate: bool, by_row: bool
) -> None:
    x, weight, style = torch.randn(3, 16, 8, 8), torch.randn(8, 16, kernel, kernel), 1 + torch.randn(3, 16)
    fast = modulated_conv(x, weight, style, demodulate=demodulate, up=up, by_row=by_row)
    slow = modulated_conv(x, weight, style, demodulate=demodulate, up=up, per_sample=True)
    scale = slow.abs().max().item()
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5 * scale)


def test_demodulation_brings_outputs_to_a_variance_of_one() -> None:
    """Whatever the styles: of inputs of unit variance, away from the padding."""
    x, weight = torch.randn(4, 8, 64, 64), torch.randn(6, 8, 3, 3)
    style = torch.tensor([0.01, 1.0, 100.0, -3.0])[:, None] * (0.5 + torch.rand(4, 8))
    out = modulated_conv(x, weight, style)[..., 1:-1, 1:-1]
    assert ((out.var(dim=(2, 3)) - 1).abs() < 0.15).all()
    free = modulated_conv(x, weight, style, demodulate=False)[..., 1:-1, 1:-1]
    assert (free.var(dim=(2, 3))[2] > 1000).all()


@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize(("demodulate", "up"), [(True, False), (True, True), (False, False)])
def test_modulated_convolutions_have_their_gradients(per_sample: bool, demodulate: bool, up: bool) -> None:
    """Twice: path lengths go through them."""
    inputs = (torch.randn(2, 2, 3, 3), torch.randn(2, 2, 3, 3), 1 + torch.rand(2, 2))

    def convolved(x: Tensor, weight: Tensor, style: Tensor) -> Tensor:
        return modulated_conv(x, weight, style, demodulate=demodulate, up=up, per_sample=per_sample)

    doubles = tuple(tensor.double().requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(convolved, doubles)
    assert torch.autograd.gradgradcheck(convolved, doubles)


@pytest.mark.parametrize(("up", "down", "pad"), [(2, 1, (2, 1)), (1, 2, (1, 1)), (1, 1, (2, 2))])
def test_resampling_has_its_gradients(up: int, down: int, pad: tuple[int, int]) -> None:
    x = torch.randn(1, 2, 4, 4).double().requires_grad_()

    def squared(x: Tensor) -> Tensor:
        return upfirdn(x, pad, up=up, down=down).square()  # linear alone, it would have no second derivative

    assert torch.autograd.gradcheck(squared, (x,))
    assert torch.autograd.gradgradcheck(squared, (x,))


# ----------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize(("n", "size"), [(8, 4), (6, 3), (5, 1), (2, 2), (4, 4)])
def test_the_minibatch_s_deviation_is_that_of_each_group_of_neighbours(n: int, size: int) -> None:
    """The group is the largest divisor of N up to 4."""
    x = torch.randn(n, 3, 4, 4)
    out = minibatch_std(x, 4)
    assert out.shape == (n, 4, 4, 4)
    assert torch.equal(out[:, :3], x)
    for start in range(0, n, size):
        wanted = np.sqrt(x[start : start + size].double().numpy().var(axis=0) + 1e-8).mean()
        group = out[start : start + size, 3]
        torch.testing.assert_close(group, torch.full_like(group, wanted))


def test_the_discriminator_judges_a_group_without_the_others() -> None:
    """So two processes of batch B see what one of 2 B sees; and inside a group images do see each other."""
    discriminator = build_discriminator(TINY)
    shake(discriminator)
    x, label = torch.randn(8, 1, 32, 32) * torch.linspace(0.2, 2, 8)[:, None, None, None], torch.arange(8) % 2
    whole = discriminator(x, label)
    halves = torch.cat([discriminator(x[:4], label[:4]), discriminator(x[4:], label[4:])])
    torch.testing.assert_close(whole, halves, rtol=1e-5, atol=1e-5)
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    regrouped = torch.empty_like(whole).index_copy(0, order, discriminator(x[order], label[order]))
    assert (regrouped - whole).abs().min() > 1e-4


def test_a_layer_s_rate_decides_how_it_learns_and_not_what_it_is() -> None:
    """Equalized learning rates: of one step of Adam, a layer of rate 0.01 sees a hundredth."""
    moved = []
    for rate in (1.0, 0.01):
        layer = EqualLinear(256, 64, bias=1.0, rate=rate)
        x = torch.randn(512, 256)
        before = layer(x)
        assert before.var().item() == pytest.approx(1, rel=0.1)
        assert before.mean().item() == pytest.approx(1, rel=0.1)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(1e-3)  # what Adam's first step is
        moved.append((layer(x) - before).norm().item())
    assert moved[1] == pytest.approx(moved[0] / 100, rel=0.2)


# ---------------------------------------------------------------------------------------------- mapping


def test_the_scale_of_z_does_not_matter() -> None:
    mapping = MappingNetwork(8, 2, 16, 2)
    z, label = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
    torch.testing.assert_close(mapping(3 * z, label), mapping(z, label), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mapping(-z, label), mapping(z, label), atol=1e-2)


def test_the_label_matters_where_there_are_several() -> None:
    mapping, single = MappingNetwork(8, 3, 16, 2), MappingNetwork(8, 1, 16, 2)
    z = torch.randn(1, 8).expand(3, -1)
    w = mapping(z, torch.arange(3))
    assert w.shape == (3, 16)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (w[a] - w[b]).abs().max() > 0.01
    assert single(z[:1], torch.zeros(1, dtype=torch.long)).shape == (1, 16)
    # A single label costs nothing: two layers, with their biases.
    assert sum(p.numel() for p in single.parameters()) == (8 + 1) * 16 + (16 + 1) * 16


def test_the_average_of_w_follows_its_mean() -> None:
    mapping = MappingNetwork(8, 1, 16, 2)
    first, second = torch.randn(16), torch.randn(16)
    mapping.track(first, keep=0.75)
    torch.testing.assert_close(mapping.average, 0.25 * first)
    mapping.track(second)
    torch.testing.assert_close(mapping.average, 0.998 * 0.25 * first + 0.002 * second)
    assert "average" in mapping.state_dict()


# ------------------------------------------------------------------------------------------------ sizes


def test_the_sizes_at_256_pixels_are_the_known_ones() -> None:
    """DFM-GAN's backbone is its generator without what stage 2 learns: 26.86 - 3.67 million weights."""
    with torch.device("meta"):
        backbone, discriminator = Backbone(StyleGAN2Config()), build_discriminator(StyleGAN2Config())
    assert millions(backbone) == pytest.approx(26.86 - 3.67, abs=0.01)
    assert millions(discriminator) == pytest.approx(24.0, abs=0.05)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 64, 128, 256, 512])
def test_any_size_runs(size: int, channels: int) -> None:
    config = StyleGAN2Config(
        size, channels, num_products=3, latent_dim=5, w_dim=7, channel_base=8 * size, channel_max=16
    )
    backbone, discriminator = Backbone(config), build_discriminator(config)
    shake(backbone)
    rows = 1 if size == 512 else 2
    product = torch.tensor([2, 0])[:rows]
    with torch.no_grad():
        image = backbone(torch.randn(rows, 5), product, torch.randn(rows, config.noise_size))
        logits = discriminator(image, product)
    assert image.shape == (rows, channels, size, size)
    assert logits.shape == (rows,)
    assert image.isfinite().all()
    assert logits.isfinite().all()
    assert config.noise_size == 16 + 2 * sum(r * r for r in config.resolutions[1:])
    assert config.num_ws == len(styled_convs(backbone)) + 1


def test_a_resolution_has_the_channels_that_the_base_gives_it() -> None:
    assert [StyleGAN2Config().width(r) for r in StyleGAN2Config().resolutions] == [512] * 4 + [256, 128, 64]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 16),
        ("image_size", 96),
        ("image_size", 1024),
        ("channels", 2),
        ("channels", 4),
        ("num_products", 0),
        ("latent_dim", 0),
        ("w_dim", 0),
        ("mapping_layers", 0),
        ("channel_max", 0),
        ("group", 0),
        ("channel_base", 255),
    ],
)
def test_wrong_sizes_name_their_field(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be .*, not {value}$"):
        replace(StyleGAN2Config(), **{field: value})


# ---------------------------------------------------------------------------------------- same bits


@pytest.mark.usefixtures("two_threads")
def test_an_image_s_bits_do_not_depend_on_the_rows_beside_it() -> None:
    """In eval mode; five rows on two threads break a matrix product."""
    rows = 5
    config = replace(TINY, channels=3, latent_dim=40, w_dim=40, channel_base=2048, channel_max=64)
    backbone = Backbone(config).eval()
    shake(backbone)
    z, noise = torch.randn(rows, 40), torch.randn(rows, config.noise_size)
    product = torch.arange(rows) % 2
    with torch.inference_mode():
        images = backbone(z, product, noise)
        for shift in (1, rows - 1):
            moved = backbone(z.roll(shift, 0), product.roll(shift, 0), noise.roll(shift, 0))
            assert torch.equal(moved, images.roll(shift, 0))
        others = torch.cat([z[:1], torch.randn(rows - 1, 40)])
        beside = backbone(others, torch.zeros_like(product), torch.cat([noise[:1], 9 * noise[1:]]))
        assert torch.equal(beside[0], images[0])
        assert not torch.equal(beside[1], images[1])


# ------------------------------------------------------------------------------------------------ noise


def test_noise_is_without_effect_at_first() -> None:
    synthesis = Backbone(TINY).synthesis
    ws, noise = latents(TINY)
    assert torch.equal(synthesis(ws, noise), synthesis(ws, torch.randn_like(noise)))


@pytest.mark.parametrize("layer", range(7))
def test_each_layer_takes_its_own_part_of_the_noise(layer: int) -> None:
    """With strength in one layer only, only its numbers change the image; and never below its resolution."""
    backbone = Backbone(TINY)
    nn.init.constant_(styled_convs(backbone)[layer].strength, 0.5)
    ws, noise = latents(TINY)
    sides = noise_maps(TINY.resolutions)
    assert sides == [4, 8, 8, 16, 16, 32, 32]
    ends = list(accumulate(side * side for side in sides))
    own = slice(ends[layer] - sides[layer] ** 2, ends[layer])
    elsewhere, here = torch.randn_like(noise), noise.clone()
    elsewhere[:, own] = noise[:, own]
    here[:, own] = torch.randn_like(noise[:, own])
    image = backbone.synthesis(ws, noise)
    assert torch.equal(backbone.synthesis(ws, elsewhere), image)
    assert not torch.equal(backbone.synthesis(ws, here), image)
    for end in TINY.resolutions:
        before, after = backbone.synthesis.run(ws, noise, end), backbone.synthesis.run(ws, here, end)
        assert torch.equal(after.x, before.x) == (end < sides[layer])
        assert after.image is not None
        assert before.image is not None
        assert torch.equal(after.image, before.image) == (end < sides[layer])


def test_a_row_of_noise_is_cut_into_maps_in_order() -> None:
    noise = torch.arange(2.0 * (16 + 2 * 64)).reshape(2, -1)
    maps = list(split_noise(noise, [4, 8]))
    assert [tuple(found.shape) for found in maps] == [(2, 1, 4, 4), (2, 1, 8, 8), (2, 1, 8, 8)]
    assert torch.equal(torch.cat([found.flatten(1) for found in maps], dim=1), noise)


# ----------------------------------------------------------------------------------------------- styles


def test_the_share_says_how_many_images_are_mixed() -> None:
    w, other = torch.randn(4, 8), torch.randn(4, 8)
    uniforms = torch.tensor([[0.0, 0.5], [0.3, 0.5], [0.6, 0.5], [0.99, 0.5]])
    assert torch.equal(mix_styles(w, other, uniforms, 8, share=0.0), repeat_w(w, 8))
    for share, mixed in ((1.0, 4), (0.5, 2), (0.9, 3)):
        ws = mix_styles(w, other, uniforms, 8, share)
        assert ws.shape == (4, 8, 8)
        assert [not torch.equal(row, pure) for row, pure in zip(ws, repeat_w(w, 8), strict=True)] == [
            True
        ] * mixed + [False] * (4 - mixed)


@pytest.mark.parametrize("num_ws", [8, 10, 12, 14, 16])
def test_a_mixed_image_has_layers_of_both_latents(num_ws: int) -> None:
    """The cut is at 1, 2, …, num_ws - 1 alike, as the second number says; the first layers are w's."""
    cuts = num_ws - 1
    largest = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).item()
    seconds = [0.0, *((k + 0.5) / cuts for k in range(cuts)), largest]
    wanted = [1, *range(1, num_ws), cuts]
    rows = len(seconds)
    uniforms = torch.tensor([[0.0, second] for second in seconds])
    ws = mix_styles(torch.zeros(rows, 3), torch.ones(rows, 3), uniforms, num_ws, share=1.0)
    for row, first in zip(ws, wanted, strict=True):
        assert torch.equal(row, (torch.arange(num_ws) >= first).float()[:, None].expand(-1, 3))


def test_every_style_reaches_its_own_layer() -> None:
    """The style of a resolution's ToRGB is that of the next resolution's first convolution: a style changes the
    features from its convolution on, and the image from the resolution below, if it is a first one."""
    backbone = Backbone(TINY)
    ws, noise = latents(TINY)
    sides = [*noise_maps(TINY.resolutions), 2 * TINY.image_size]  # the last style has no convolution
    for layer in range(TINY.num_ws):
        changed = ws.clone()
        changed[:, layer] += 1
        first_of_two = layer % 2 == 1
        for end in TINY.resolutions:
            before, after = (
                backbone.synthesis.run(ws, noise, end),
                backbone.synthesis.run(changed, noise, end),
            )
            assert torch.equal(after.x, before.x) == (end < sides[layer])
            assert after.image is not None
            assert before.image is not None
            from_where = sides[layer] // 2 if first_of_two else sides[layer]
            assert torch.equal(after.image, before.image) == (end < from_where)


# ------------------------------------------------------------------------------------------------ image


def test_the_image_is_the_sum_of_what_the_resolutions_paint() -> None:
    backbone = Backbone(TINY)
    shake(backbone)
    painted: list[Tensor] = []

    def keep(_: nn.Module, __: object, out: Tensor) -> None:
        painted.append(out)

    for index in range(len(TINY.resolutions)):
        block(backbone, index).to_image.register_forward_hook(keep)
    ws, noise = latents(TINY)
    image = backbone.synthesis(ws, noise)
    total = painted[0]
    for part in painted[1:]:
        total = upsample(total) + part
    torch.testing.assert_close(total, image)
    assert all(part.std() > 1e-3 for part in painted)


def test_a_run_to_the_end_gives_the_image() -> None:
    backbone = Backbone(TINY)
    shake(backbone)
    ws, noise = latents(TINY)
    state = backbone.synthesis.run(ws, noise, 32)
    assert state.image is not None
    assert torch.equal(state.image, backbone.synthesis(ws, noise))
    assert [backbone.synthesis.run(ws, noise, end).x.shape[2] for end in (4, 8, 16)] == [4, 8, 16]


def test_an_image_is_drawn_by_one_style_everywhere() -> None:
    backbone = Backbone(TINY)
    z, product, noise = torch.randn(2, 8), torch.tensor([0, 1]), torch.randn(2, TINY.noise_size)
    w = backbone.mapping(z, product)
    ws = torch.stack([w] * TINY.num_ws, dim=1)
    assert torch.equal(backbone(z, product, noise), backbone.synthesis(ws, noise))


# ---------------------------------------------------------------------------------------- discriminator


def test_widening_keeps_what_each_label_says() -> None:
    narrow = build_discriminator(TINY)
    shake(narrow)
    x, parents = torch.randn(5, 1, 32, 32), [0, 0, 1, 1, 1]
    wanted = narrow(x, torch.tensor(parents))
    assert not torch.allclose(wanted, narrow(x, 1 - torch.tensor(parents)), atol=1e-2)
    narrow.widen(parents)
    assert narrow.out.weight.shape[0] == narrow.out.bias.shape[0] == 5
    torch.testing.assert_close(narrow(x, torch.arange(5)), wanted)
    assert all(parameter.requires_grad for parameter in narrow.out.parameters())


def test_labels_learn_apart_after_widening() -> None:
    discriminator = build_discriminator(TINY)
    discriminator.widen([0, 0])
    discriminator(torch.randn(2, 1, 32, 32), torch.tensor([1, 1])).sum().backward()
    gradient = discriminator.out.weight.grad
    assert gradient is not None
    assert (gradient[0] == 0).all()
    assert (gradient[1] != 0).any()


def test_a_label_s_logits_do_not_depend_on_how_many_labels_there_are() -> None:
    discriminator = build_discriminator(TINY, num_labels=4)
    assert discriminator.out.weight.shape[0] == 4
    x = torch.randn(4, 1, 32, 32)
    apart = torch.stack([discriminator(x, torch.full((4,), label)) for label in range(4)])
    torch.testing.assert_close(discriminator(x, torch.arange(4)), apart.diagonal())


def test_r1_trains_all_weights_of_the_discriminator() -> None:
    """Not its last bias, which no gradient by the image knows of."""
    discriminator = build_discriminator(TINY)
    x = torch.randn(4, 1, 32, 32).requires_grad_()
    r1(discriminator(x, torch.arange(4) % 2), x).backward()
    for name, parameter in discriminator.named_parameters():
        if name == "out.bias":
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            if name.endswith("weight"):
                assert parameter.grad.abs().max() > 0, name


def test_r1_has_the_gradient_that_differences_show() -> None:
    """Along one direction of weights: the penalty's derivative is a second derivative of the logits."""
    discriminator = Discriminator(8, 1, 1, 32, 4, group=2).double()
    shake(discriminator)
    x, label = torch.randn(2, 1, 8, 8).double().requires_grad_(), torch.zeros(2, dtype=torch.long)
    weights = [p for name, p in discriminator.named_parameters() if name.endswith("weight")]
    directions = [torch.randn_like(weight) for weight in weights]
    gradients = torch.autograd.grad(r1(discriminator(x, label), x), weights)
    slope = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True))

    def penalty(at: float) -> float:
        moved = {
            name: p + at * directions[next(i for i, w in enumerate(weights) if w is p)]
            for name, p in discriminator.named_parameters()
            if name.endswith("weight")
        }
        return r1(torch.func.functional_call(discriminator, moved, (x, label)), x).item()

    assert slope == pytest.approx((penalty(1e-6) - penalty(-1e-6)) / 2e-6, rel=1e-4)


def test_skips_and_convolutions_of_a_block_share_its_variance() -> None:
    """Both halves are added over √2, so a block of unit inputs gives about unit outputs."""
    discriminator = Discriminator(64, 1, 1, 4096, 64, group=4)
    x = torch.randn(2, 64, 64, 64)
    smooth = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="circular"), 5, stride=1) * 5
    out = discriminator.blocks[0](smooth)
    assert out.shape == (2, 64, 32, 32)
    assert 0.5 < out.square().mean().item() < 1.5

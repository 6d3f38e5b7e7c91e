"""DFM-GAN's generator: a defect stands inside its mask, and the normal is what it was everywhere else."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from raygen.families.dfmgan.networks import (
    DFMGANConfig,
    DFMGANGenerator,
    Normals,
    ResidualBlock,
    build_matcher,
    full_mask,
    gate,
)
from raygen.families.stylegan2.networks import State, StyledConv, StyleGAN2Config, SynthesisBlock

BACKBONE = StyleGAN2Config(
    image_size=32, channels=1, num_products=2, latent_dim=8, w_dim=8, channel_base=256, channel_max=16
)
TINY = DFMGANConfig(backbone=BACKBONE, num_types=2, match_channel_base=128, match_channel_max=8)


class Inputs(NamedTuple):
    """What a defect is drawn from."""

    ws: Tensor
    noise: Tensor
    defect_ws: Tensor
    defect_noise: Tensor


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def build(config: DFMGANConfig = TINY) -> DFMGANGenerator:
    """A generator with biases and strengths of noise off their initial values, which would hide mistakes."""
    generator = DFMGANGenerator(config)
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return generator


def draw(config: DFMGANConfig = TINY, n: int = 3) -> Inputs:
    """Styles of their own for every layer."""
    sizes = config.backbone
    return Inputs(
        torch.randn(n, sizes.num_ws, sizes.w_dim),
        torch.randn(n, sizes.noise_size),
        torch.randn(n, config.num_ws, sizes.w_dim),
        torch.randn(n, config.noise_size),
    )


def with_mask(generator: DFMGANGenerator, bias: float) -> DFMGANGenerator:
    """Moves the mask up or down."""
    nn.init.constant_(generator.manipulation.to_mask.bias, bias)
    return generator


class Seen(NamedTuple):
    """What passes through the upper blocks, by resolution from `first` up."""

    own: list[Tensor]  # the backbone's block gives, before anything is added
    painted: list[Tensor]  # what the image is painted from
    residuals: list[Tensor]


def watch(generator: DFMGANGenerator) -> Seen:
    """Notes what passes, from now on."""
    seen = Seen([], [], [])

    def keep_own(_: nn.Module, __: object, out: Tensor) -> None:
        seen.own.append(out)

    def keep_painted(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.painted.append(args[0])

    def keep_residual(_: nn.Module, __: object, out: Tensor) -> None:
        seen.residuals.append(out)

    for size, block in zip(BACKBONE.resolutions, generator.backbone.synthesis.blocks, strict=True):
        if size >= generator.config.first:
            assert isinstance(block, SynthesisBlock)
            block.conv1.register_forward_hook(keep_own)
            block.to_image.register_forward_pre_hook(keep_painted)
    for residual in generator.manipulation.blocks:
        residual.register_forward_hook(keep_residual)
    return seen


# ------------------------------------------------------------------------------------------ the mask gates


@pytest.mark.parametrize("start", [0, 16, 32])
def test_without_a_mask_the_image_is_the_normal_bit_for_bit(start: int) -> None:
    config = replace(TINY, start=start)
    generator, inputs = build(config), draw(config)
    normal = generator.normal(inputs.ws, inputs.noise)
    nowhere = with_mask(generator, -1e4)(*inputs)
    assert (nowhere.mask < 0).all()
    assert torch.equal(nowhere.image, normal)
    everywhere = with_mask(generator, 1e4)(*inputs)
    assert (everywhere.mask >= 0).all()
    assert ((everywhere.image - normal).abs() > 1e-3).float().mean() > 0.9


def test_features_outside_the_mask_are_the_normal_s() -> None:
    """At the first resolution, exactly; inside they differ at every pixel."""
    generator, inputs = build(), draw()
    seen = watch(generator)
    generator.normal(inputs.ws, inputs.noise)
    normal = seen.painted[0]
    seen.painted.clear()
    made = generator(*inputs)
    defective, inside = seen.painted[0], gate(full_mask(made.mask, 32), 8)[:, 0]
    assert 0.1 < inside.float().mean() < 0.9
    differs = (defective != normal).any(dim=1)
    assert torch.equal(differs, inside)


@pytest.mark.parametrize("start", [0, 16])
def test_every_resolution_adds_its_residual_inside_the_mask(start: int) -> None:
    """h = B_R(x) + residual_R(x) · (mask ≥ 0 in the cell), x being the manipulated features below."""
    config = replace(TINY, start=start)
    generator, inputs = build(config), draw(config)
    seen = watch(generator)
    inside = full_mask(generator(*inputs).mask, 32) >= 0
    parts = [part for part in generator.backbone.synthesis.parts(*inputs[:2]) if part[0] >= config.first]
    painted, residuals = list(seen.painted), list(seen.residuals)
    assert len(painted) == len(residuals) == len(parts) == len(config.resolutions)
    x = generator.backbone.synthesis.run(*inputs[:2], config.first // 2).x
    maps = inputs.defect_noise.split([side**2 for side in config.resolutions for _ in range(2)], dim=1)
    for index, (size, block, block_ws, block_maps, _) in enumerate(parts):
        squares = [flat.reshape(-1, 1, size, size) for flat in maps[2 * index : 2 * index + 2]]
        beside = generator.manipulation.blocks[index]
        assert isinstance(beside, ResidualBlock)
        residual = beside(x, inputs.defect_ws[:, 2 * index : 2 * index + 2], squares)
        torch.testing.assert_close(residuals[index], residual)
        cells = inside.unflatten(3, (size, -1)).unflatten(2, (size, -1)).any(dim=3).any(dim=4)
        assert cells.shape == (3, 1, size, size)
        x = block.features(x, block_ws, block_maps) + residual * cells
        torch.testing.assert_close(painted[index], x)


def test_a_cell_that_no_pixel_of_the_mask_shows_draws_nothing() -> None:
    """One that stands alone, and is smoothed away where the mask is upsampled."""
    generator, inputs = build(), draw()
    raw = torch.full((3, 1, 8, 8), -1.0)
    raw[:, :, 3, 4] = 0.1
    assert not (full_mask(raw, 32) >= 0).any()
    generator._mask = lambda residual, defect_ws: raw  # type: ignore[method-assign]
    assert torch.equal(generator(*inputs).image, generator.normal(inputs.ws, inputs.noise))
    raw[:, :, 3, 4] = 9.0
    assert not torch.equal(generator(*inputs).image, generator.normal(inputs.ws, inputs.noise))


def test_the_mask_at_the_image_s_size_is_where_the_last_block_adds() -> None:
    generator, inputs = build(), draw()
    seen = watch(generator)
    made = generator(*inputs)
    inside = full_mask(made.mask, 32) >= 0
    assert inside.shape == (3, 1, 32, 32)
    assert torch.equal((seen.painted[-1] != seen.own[-1]).any(dim=1, keepdim=True), inside)


def test_a_mask_at_the_image_s_size_stays_as_it_is() -> None:
    raw = torch.randn(2, 1, 32, 32)
    assert torch.equal(full_mask(raw, 32), raw)


# ----------------------------------------------------------------------------------------- work is shared


@pytest.mark.parametrize("start", [0, 16])
def test_defects_of_one_normal_share_its_beginning(start: int) -> None:
    """Begun once and finished on rows four times as many: what four whole calls give."""
    config = replace(TINY, start=start)
    generator, normals = build(config), draw(config, n=2)
    defects = draw(config, n=8)
    begun = generator.begin(normals.ws, normals.noise)
    assert begun.below.image is not None
    assert begun.below.x.shape[2] == begun.below.image.shape[2] == config.first // 2
    rows = Normals(
        State(begun.below.x.repeat_interleave(4, 0), begun.below.image.repeat_interleave(4, 0)),
        begun.features.repeat_interleave(4, 0),
    )
    ws, noise = (tensor.repeat_interleave(4, 0) for tensor in normals[:2])
    together = generator.finish(rows, ws, noise, *defects[2:])
    for k in range(4):
        alone = generator(*normals[:2], defects.defect_ws[k::4], defects.defect_noise[k::4])
        torch.testing.assert_close(together.image[k::4], alone.image, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.mask[k::4], alone.mask, rtol=1e-5, atol=1e-5)
        assert torch.equal(together.mask[k::4] >= 0, alone.mask >= 0)


def test_the_mask_can_be_had_alone() -> None:
    generator, inputs = build(), draw()
    begun = generator.begin(inputs.ws, inputs.noise)
    alone = generator.raw_mask(begun.below.x, inputs.defect_ws, inputs.defect_noise)
    assert torch.equal(alone, generator.finish(begun, *inputs).mask)


@pytest.mark.usefixtures("two_threads")
def test_the_mask_is_in_float32_under_mixed_precision() -> None:
    """It is thresholded: eight bits of a mantissa would move the edge of a defect."""
    generator, inputs = build(), draw()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made = generator(*inputs)
        whole = full_mask(made.mask, BACKBONE.image_size)
    for mask in (made.mask, whole):
        assert mask.dtype == torch.float32
        assert not torch.equal(mask, mask.bfloat16().float()), "as if it had been rounded"


def test_a_defect_s_bits_do_not_depend_on_the_rows_beside_it() -> None:
    """In eval mode, its mask's too, from z to image; five rows on two threads break a matrix product."""
    rows = 5
    sizes = replace(BACKBONE, channels=3, latent_dim=40, w_dim=40, channel_base=1024, channel_max=64)
    config = replace(TINY, backbone=sizes)
    generator = build(config).eval()
    z, kinds = torch.randn(rows, 40), torch.arange(rows) % 2
    ws, noise, _, defect_noise = draw(config, rows)

    def drawn(z: Tensor, kinds: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        ws, noise, defect_noise = rest
        return generator(ws, noise, generator.defect_ws(z, kinds), defect_noise)

    with torch.inference_mode():
        wanted = drawn(z, kinds, ws, noise, defect_noise)
        assert 0.05 < (wanted[1] >= 0).float().mean() < 0.95
        for shift in (1, rows - 1):
            moved = drawn(*(tensor.roll(shift, 0) for tensor in (z, kinds, ws, noise, defect_noise)))
            for one, other in zip(moved, wanted, strict=True):
                assert torch.equal(one, other.roll(shift, 0))
        others = [torch.cat([tensor[:1], tensor[1:].flip(1)]) for tensor in (z, ws, noise, defect_noise)]
        beside = drawn(others[0], torch.zeros_like(kinds), *others[1:])
        for one, other in zip(beside, wanted, strict=True):
            assert torch.equal(one[0], other[0])
            assert not torch.equal(one[1], other[1])


# ---------------------------------------------------------------------------------------- what decides what


def test_every_style_and_every_map_of_noise_is_used() -> None:
    """The last style is the mask's alone; those of the first block reach the mask too, the others do not."""
    generator, inputs = with_mask(build(), 1e4), draw(n=1)
    nn.init.constant_(generator.manipulation.to_mask.bias, 0.1)
    made = generator(*inputs)
    for layer in range(TINY.num_ws):
        changed = inputs.defect_ws.clone()
        changed[:, layer] += 0.5
        other = generator(*inputs[:2], changed, inputs.defect_noise)
        assert torch.equal(other.mask, made.mask) == (2 <= layer < TINY.num_ws - 1)
        assert not torch.equal(other.image, made.image)
    start = 0
    for index, side in enumerate(side for side in TINY.resolutions for _ in range(2)):
        changed = inputs.defect_noise.clone()
        changed[:, start : start + side * side] += 0.5
        other = generator(*inputs[:3], changed)
        assert torch.equal(other.mask, made.mask) == (index >= 2)
        assert not torch.equal(other.image, made.image)
        start += side * side
    assert start == TINY.noise_size


def test_without_noise_a_defect_is_its_latents_alone() -> None:
    quiet = replace(TINY, noise=False)
    generator, inputs = with_mask(build(quiet), 1e4), draw(quiet)
    assert quiet.noise_size == 0
    assert inputs.defect_noise.shape == (3, 0)
    made = generator(*inputs)
    noisy = with_mask(build(TINY), 1e4)
    noisy.load_state_dict(generator.state_dict())  # the same weights, and no noise
    same = noisy(*inputs[:3], torch.zeros(3, TINY.noise_size))
    assert torch.equal(made.image, same.image)
    assert torch.equal(made.mask, same.mask)
    begun = generator.begin(inputs.ws, inputs.noise)
    assert torch.equal(generator.raw_mask(begun.below.x, inputs.defect_ws, inputs.defect_noise), made.mask)


@pytest.mark.parametrize("place_map", [False, True])
def test_styles_tell_places_apart_by_the_place_map_alone(place_map: bool) -> None:
    """On features that are the same everywhere, away from the padding of the borders."""
    sizes = replace(TINY, noise=False, place_map=place_map, start=16)
    generator = build(sizes)
    x = torch.ones(2, BACKBONE.width(8), 8, 8)
    masks = generator.raw_mask(x, draw(sizes, n=2).defect_ws, torch.empty(2, 0))[:, 0, 5:-5, 5:-5]
    varies = masks.flatten(1).std(dim=1) > 1e-4
    assert varies.tolist() == [place_map] * 2
    one, other = masks - masks.mean(dim=(1, 2), keepdim=True)
    assert torch.allclose(one, other, atol=1e-4) != place_map


@pytest.mark.parametrize("name", ["noise", "place_map"])
def test_a_switch_is_no_text(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be true or false, not 'False'"):
        replace(TINY, **{name: "False"})


def test_the_type_changes_the_defect_and_not_the_normal() -> None:
    generator, inputs = build(), draw()
    z = torch.randn(3, 8)
    ws = [generator.defect_ws(z, torch.full((3,), kind)) for kind in range(2)]
    assert ws[0].shape == (3, TINY.num_ws, 8)
    assert all(torch.equal(found, found[:, :1].expand_as(found)) for found in ws)  # one style everywhere
    one, other = (generator(*inputs[:2], found, inputs.defect_noise) for found in ws)
    assert ((one.mask - other.mask).abs() > 1e-3).float().mean() > 0.9
    assert not torch.equal(one.image, other.image)
    single = build(replace(TINY, num_types=1))
    assert single.defect_ws(z, torch.zeros(3, dtype=torch.long)).shape == (3, TINY.num_ws, 8)


# --------------------------------------------------------------------------------------------- who learns


def learns(parameters: Iterator[tuple[str, nn.Parameter]]) -> set[str]:
    return {name for name, p in parameters if p.grad is not None and (p.grad != 0).any()}


def test_the_backbone_learns_nothing_and_the_manipulation_everything() -> None:
    generator, inputs = build(), draw()
    z = torch.randn(3, 8)
    made = generator(*inputs[:2], generator.defect_ws(z, torch.tensor([0, 1, 0])), inputs.defect_noise)
    (made.image.square().sum() + made.mask.square().sum()).backward()
    assert not any(p.requires_grad or p.grad is not None for p in generator.backbone.parameters())
    wanted = {name for name, _ in generator.manipulation.named_parameters()}
    assert learns(generator.manipulation.named_parameters()) == wanted


def test_the_mask_does_not_learn_from_the_image() -> None:
    """The gate is hard. And from the mask, no block but the first one learns."""
    generator, inputs = build(), draw()
    generator(*inputs).image.square().sum().backward()
    by_image = {name for name in learns(generator.manipulation.named_parameters()) if "mask" in name}
    assert by_image == set()
    generator.zero_grad()
    generator(*inputs).mask.square().sum().backward()
    by_mask = {name.split(".")[0] for name in learns(generator.manipulation.named_parameters())}
    assert by_mask == {"to_mask", "blocks"}
    assert not learns(generator.manipulation.blocks[1].named_parameters())


def test_residuals_learn_where_the_mask_is() -> None:
    generator, inputs = build(), draw()
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: object, out: Tensor) -> None:
        out.retain_grad()
        seen.append(out)

    last = generator.manipulation.blocks[-1]
    last.register_forward_hook(keep)
    made = generator(*inputs)
    made.image.square().sum().backward()
    gradient = seen[0].grad
    assert gradient is not None
    assert torch.equal((gradient != 0).any(dim=1, keepdim=True), full_mask(made.mask, 32) >= 0)


# ------------------------------------------------------------------------------------------------- sizes


def millions(*modules: nn.Module) -> float:
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


def test_the_sizes_at_256_pixels_are_the_known_ones() -> None:
    """Those of the residual block at 64 are known with its mask head."""
    with torch.device("meta"):
        generator, matcher = DFMGANGenerator(DFMGANConfig()), build_matcher(DFMGANConfig())
    learned = generator.manipulation
    assert DFMGANConfig().resolutions == [64, 128, 256]
    assert millions(generator) == pytest.approx(26.86, abs=0.005)
    assert millions(learned) == pytest.approx(3.67, abs=0.005)
    assert millions(learned.blocks[0], learned.to_mask) == pytest.approx(2.30, abs=0.005)
    assert millions(learned.blocks[1]) == pytest.approx(0.64, abs=0.005)
    assert millions(learned.blocks[2]) == pytest.approx(0.21, abs=0.005)
    assert millions(learned.mapping) == pytest.approx(0.53, abs=0.005)
    assert millions(matcher) == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize(
    ("size", "start", "resolutions"),
    [
        (32, 0, [8, 16, 32]),
        (64, 0, [16, 32, 64]),
        (256, 0, [64, 128, 256]),
        (512, 0, [128, 256, 512]),
        (32, 8, [8, 16, 32]),
        (32, 32, [32]),
        (256, 8, [8, 16, 32, 64, 128, 256]),
    ],
)
def test_blocks_stand_from_the_start_up(size: int, start: int, resolutions: list[int]) -> None:
    """0 stands for a quarter of the size."""
    config = DFMGANConfig(StyleGAN2Config(size), start=start)
    assert config.first == resolutions[0]
    assert config.resolutions == resolutions
    assert config.num_ws == 2 * len(resolutions) + 1
    assert config.noise_size == 2 * sum(r * r for r in resolutions)
    with torch.device("meta"):
        convolutions = [
            m for m in DFMGANGenerator(config).manipulation.modules() if isinstance(m, StyledConv)
        ]
    assert len(convolutions) + 1 == config.num_ws


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "start"), [(32, 32), (64, 8), (128, 0), (256, 0)])
def test_any_size_runs(size: int, start: int, channels: int) -> None:
    sizes = StyleGAN2Config(size, channels, latent_dim=5, w_dim=7, channel_base=8 * size, channel_max=16)
    config = DFMGANConfig(sizes, num_types=3, start=start, match_channel_base=4 * size, match_channel_max=8)
    with torch.no_grad():
        made = build(config)(*draw(config, 1))
        mask = full_mask(made.mask, size)
        logits = build_matcher(config)(torch.cat([made.image, mask], dim=1), torch.tensor([2]))
    assert made.image.shape == (1, channels, size, size)
    assert made.mask.shape == (1, 1, config.first, config.first)
    assert mask.shape == (1, 1, size, size)
    assert made.image.isfinite().all()
    assert logits.shape == (1,)


@pytest.mark.parametrize("start", [4, 12, 64, 512, -8])
def test_a_start_that_is_no_resolution_is_refused(start: int) -> None:
    with pytest.raises(ValueError, match=rf"^start must be one of 8, 16, 32, or 0 .*, not {start}$"):
        replace(TINY, start=start)


def test_there_is_a_type_at_least() -> None:
    with pytest.raises(ValueError, match=r"^num_types must be at least 1, not 0$"):
        replace(TINY, num_types=0)


def test_sizes_go_into_a_checkpoint_and_come_back() -> None:
    config = replace(TINY, start=16)
    values = config.as_dict()
    assert values["backbone"]["channel_base"] == 256
    assert DFMGANConfig.of(values) == config
    assert values == config.as_dict()  # and are not touched on the way

"""DT-GAN's networks against Tables 9 to 11 of the paper, row by row, and against their formulas."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.families.blocks import (
    AdaIN,
    Noise,
    NoisyResBlock,
    PixelNorm,
    ResBlock,
    ResidualUnit,
    StyledResBlock,
    compose_resampling,
    linear_by_row,
    linear_of_each,
)
from raygen.families.dtgan.networks import (
    Discriminator,
    Generator,
    MappingNetwork,
    NoisyConv,
    StyleContentEncoder,
)
from raygen.families.dtgan.sizes import NORMAL, PRESETS, DTGANConfig

PAPER = PRESETS["paper-128"]
TINY = DTGANConfig(image_size=32, width=1 / 32, num_products=2)

# The paper's tables: layer, resample, norm, output (height, width, channels).
Row = tuple[str, str | None, str | None, tuple[int, ...]]

TABLE_9A: list[Row] = [
    ("conv 1×1", None, None, (128, 128, 128)),
    ("resblk", "down", "IN", (64, 64, 256)),
    ("resblk", "down", "IN", (32, 32, 512)),
    ("resblk", "down", "IN", (16, 16, 512)),
    ("resblk", None, "IN", (16, 16, 512)),
    ("resblk", None, "IN", (16, 16, 512)),
]
TABLE_9B: list[Row] = [
    ("resblk", None, "IN", (16, 16, 448)),
    ("resblk", None, "IN", (16, 16, 512)),
    ("resblk", None, "IN", (16, 16, 512)),
    ("resblk", "up", "IN", (32, 32, 512)),
    ("resblk", "up", "IN", (64, 64, 256)),
    ("resblk", "up", "IN", (128, 128, 448)),
]
TABLE_9C: list[Row] = [
    ("resblk", None, "AdaIN", (16, 16, 64)),
    ("resblk", None, "AdaIN", (16, 16, 256)),
    ("resblk", None, "AdaIN", (16, 16, 256)),
    ("resblk", "up", "AdaIN", (32, 32, 256)),
    ("resblk", "up", "AdaIN", (64, 64, 128)),
    ("resblk", "up", "AdaIN", (128, 128, 64)),
]
TABLE_9D: list[Row] = [("conv 1×1", None, None, (128, 128, 3))]
LINEAR: list[Row] = [("linear", None, None, (512,)), ("relu", None, None, (512,))]
TABLE_10A = LINEAR * 4
TABLE_10B = [*LINEAR * 3, ("linear", None, None, (64,))]
TABLE_10C: list[Row] = [
    ("noisy resblk", "up", "IN", (2, 2, 512)),
    ("noisy resblk", "up", "IN", (4, 4, 512)),
    ("noisy resblk", "up", "IN", (8, 8, 256)),
    ("noisy resblk", "up", "IN", (16, 16, 128)),
    ("noisy conv 1×1", None, "IN", (16, 16, 64)),
]
TABLE_11A: list[Row] = [
    ("conv 1×1", None, None, (128, 128, 64)),
    ("resblk", "down", None, (64, 64, 256)),
    ("resblk", "down", None, (32, 32, 512)),
    ("resblk", "down", None, (16, 16, 512)),
]
TABLE_11B: list[Row] = [  # up to the last linear layer; the LReLUs are functions, not modules
    ("resblk", "down", None, (8, 8, 512)),
    ("resblk", "down", None, (4, 4, 512)),
    ("conv 4×4", None, None, (1, 1, 512)),
]
TABLE_11C: list[Row] = [("conv 1×1", None, None, (16, 16, 64 * 3))]
FOREGROUND_CLASSIFIER: list[Row] = [  # "four more pre-activation residual layers"
    ("resblk", "down", None, (8, 8, 128)),
    ("resblk", "down", None, (4, 4, 256)),
    ("resblk", "down", None, (2, 2, 512)),
    ("resblk", "down", None, (1, 1, 512)),
    ("linear", None, None, (3,)),
]

NORMS = {nn.InstanceNorm2d: "IN", AdaIN: "AdaIN", PixelNorm: "pixel", nn.Identity: None}


def describe(module: nn.Module) -> tuple[str, str | None, str | None]:
    """Layer, resample and norm of a module, in the tables' words."""
    match module:
        case ResidualUnit():
            noisy = "noisy " if isinstance(module, NoisyResBlock) else ""
            return f"{noisy}resblk", module.resample, NORMS[type(module.norm2)]
        case NoisyConv():
            return f"noisy conv {'×'.join(map(str, module.conv.kernel_size))}", None, NORMS[type(module.norm)]
        case nn.Conv2d():
            return f"conv {'×'.join(map(str, module.kernel_size))}", None, None
        case nn.Linear():
            return "linear", None, None
        case nn.ReLU():
            return "relu", None, None
    raise AssertionError(f"no such row in the tables: {module}")


def walk(modules: list[nn.Module], run: Callable[[], object]) -> list[Row]:
    """Runs a network and lists what the modules are and give, channels last as in the tables."""
    rows: dict[nn.Module, Row] = {}

    def record(module: nn.Module, _: object, output: Tensor) -> None:
        channels, *space = output.shape[1:]
        rows[module] = (*describe(module), (*space, channels))

    handles = [module.register_forward_hook(record) for module in modules]
    run()
    for handle in handles:
        handle.remove()
    assert list(rows) == modules, "a module did not run, or not in the order of the table"
    return list(rows.values())


def leaves(sequential: nn.Module) -> list[nn.Module]:
    """The modules of nested Sequentials, in order."""
    if not isinstance(sequential, nn.Sequential):
        return [sequential]
    return [leaf for child in sequential for leaf in leaves(child)]


def millions(*modules: nn.Module) -> float:
    return round(sum(p.numel() for module in modules for p in module.parameters()) / 1e6, 2)


def images(config: DTGANConfig, count: int = 2) -> Tensor:
    return torch.rand(count, config.channels, config.image_size, config.image_size) * 2 - 1


def codes(config: DTGANConfig, count: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(count, config.style_dim), torch.randn(count, config.content_channels, 16, 16)


def shake(network: nn.Module) -> None:
    """Moves every bias, norm and fusion weight off its initial value."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 or name in ("fusion.weight", "opacity.weight"):
                parameter.add_(0.3 * torch.randn_like(parameter))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class TestTables:
    """The paper's sizes, on the meta device: shapes without arithmetic."""

    @pytest.fixture(autouse=True)
    def _meta(self) -> Iterator[None]:
        with torch.device("meta"):
            yield

    def test_generator(self) -> None:
        generator = Generator(PAPER)
        modules = [generator.stem, *generator.encoder, *generator.background_decoder]
        modules += [*generator.foreground_decoder, generator.fusion]
        rows = walk(modules, lambda: generator(images(PAPER), *codes(PAPER)))
        assert rows == TABLE_9A + TABLE_9B + TABLE_9C + TABLE_9D
        background, foreground = generator.encode(images(PAPER))
        assert background.shape == (2, 448, 16, 16)
        assert foreground.shape == (2, 64, 16, 16)

    @pytest.mark.parametrize(("content_norm", "norm"), [("literal", "IN"), ("pixel", "pixel")])
    def test_mapping_network(self, content_norm, norm) -> None:
        mapping = MappingNetwork(dataclasses.replace(PAPER, content_norm=content_norm))
        assert len(mapping.style_branches) == len(mapping.content_trunks) == len(mapping.content_heads) == 3
        shared, style = leaves(mapping.shared), leaves(mapping.style_branches[2])
        content = [*mapping.content_trunks[2].children(), mapping.content_heads[2]]
        rows = walk(shared + style + content, lambda: mapping.for_domain(torch.randn(2, 16), 2))
        expected = [(layer, resample, norm, shape) for layer, resample, _, shape in TABLE_10C]
        assert rows == TABLE_10A + TABLE_10B + expected
        assert mapping.noise_size == 2 * (2**2 + 4**2 + 8**2 + 16**2) + 16**2

    def test_style_content_encoder(self) -> None:
        encoder = StyleContentEncoder(PAPER)
        modules = [encoder.trunk.stem, *encoder.trunk.blocks, *encoder.pooled.blocks, encoder.pooled.conv]
        modules += [encoder.style, encoder.content]
        rows = walk(modules, lambda: encoder(images(PAPER), torch.zeros(2, dtype=torch.long)))
        assert rows == TABLE_11A + TABLE_11B + [("linear", None, None, (64 * 3,))] + TABLE_11C

    def test_discriminator(self) -> None:
        discriminator = Discriminator(dataclasses.replace(PAPER, num_products=5))
        trunk, pooled = discriminator.trunk, discriminator.pooled
        modules = [trunk.stem, *trunk.blocks, *pooled.blocks, pooled.conv, discriminator.content]
        modules += [*discriminator.foreground_blocks, discriminator.foreground]
        rows = walk(modules, lambda: discriminator(images(PAPER)))
        assert rows == TABLE_11A + TABLE_11B + TABLE_11C + FOREGROUND_CLASSIFIER
        output = discriminator(images(PAPER))
        assert [logits.shape for logits in output] == [(2, 3), (2, 3), (2, 5)]
        assert output.background.shape == (2, 5)

    def test_parameter_counts(self) -> None:
        generator = Generator(PAPER)
        assert millions(generator) == 43.17
        assert millions(generator.stem, generator.encoder) == 16.54
        assert millions(generator.background_decoder) == 22.57
        assert millions(generator.foreground_decoder) == 4.05
        assert millions(MappingNetwork(PAPER)) == 38.74
        assert millions(MappingNetwork(dataclasses.replace(PAPER, shared_content_trunk=True))) == 15.1
        assert millions(StyleContentEncoder(PAPER)) == 20.65
        assert millions(Discriminator(PAPER)) == 28.23

    def test_width_scales_every_channel(self) -> None:
        half = Generator(dataclasses.replace(PAPER, width=0.5))
        rows = walk(
            [*half.encoder, *half.background_decoder, *half.foreground_decoder],
            lambda: half(images(half.config), *codes(half.config)),
        )
        whole = TABLE_9A[1:] + TABLE_9B + TABLE_9C
        assert [row[3][2] * 2 for row in rows] == [row[3][2] for row in whole]

    @pytest.mark.parametrize("size", [64, 256])
    def test_channels_belong_to_a_resolution(self, size) -> None:
        generator = Generator(dataclasses.replace(PAPER, image_size=size))
        blocks = [*generator.encoder, *generator.background_decoder, *generator.foreground_decoder]
        rows = walk(blocks, lambda: generator(images(generator.config), *codes(generator.config)))
        shared = [row for row in TABLE_9A[1:] + TABLE_9B[:-1] + TABLE_9C if row[3][0] < size]
        assert set(shared) <= set(rows)


class TestShapes:
    @pytest.mark.parametrize(
        ("size", "channels", "num_domains", "num_products"),
        [(32, 1, 2, 1), (64, 3, 3, 2), (128, 1, 5, 4), (256, 3, 2, 3), (512, 1, 2, 1)],
    )
    def test_any_size(self, size, channels, num_domains, num_products) -> None:
        config = DTGANConfig(
            size, channels, num_products, num_domains, width=1 / 32, latent_dim=5, style_dim=7, stem_kernel=3
        )
        rows = 1 if size == 512 else 2
        x, domain = images(config, rows), torch.tensor([num_domains - 1, 0])[:rows]
        with torch.no_grad():
            style, content = MappingNetwork(config)(torch.randn(rows, 5), domain)
            assert style.shape == (rows, 7)
            assert content.shape == (rows, 8, 16, 16)
            fake = Generator(config)(x, style, content)
            assert fake.shape == x.shape
            style, content = StyleContentEncoder(config)(fake, domain)
            assert style.shape == (rows, 7)
            assert content.shape == (rows, 8, 16, 16)
            output = Discriminator(config)(fake)
        assert output.adversarial.shape == output.foreground.shape == (rows, num_domains)
        assert output.background.shape == (rows, num_products)
        assert all(logits.isfinite().all() for logits in output)

    @pytest.mark.parametrize("preset", [name for name in PRESETS if name != "paper-128"])
    def test_small_presets(self, preset) -> None:
        config = PRESETS[preset]
        assert config.channels == 1
        assert config.background_skip
        assert config.shared_content_trunk
        assert config.stem_kernel == 3
        with torch.no_grad():
            assert Generator(config)(images(config, 1), *codes(config, 1)).shape == images(config, 1).shape

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("image_size", 96),
            ("image_size", 16),
            ("image_size", 1024),
            ("channels", 4),
            ("num_products", 0),
            ("num_domains", 1),
            ("width", 0.0),
            ("width", 5.0),
            ("latent_dim", 0),
            ("style_dim", 0),
            ("stem_kernel", 2),
            ("background_out", 0),
            ("content_norm", "instance"),
            ("decoders", "shared"),
            ("fusion", "over"),
        ],
    )
    def test_bad_config_names_its_field(self, field, value) -> None:
        with pytest.raises(ValueError, match=f"^{field} must be .*, not {value!r}$"):
            DTGANConfig(**{field: value})


class TestResidualUnit:
    """Blocks against the formula, with resampling written out another way."""

    @staticmethod
    def norm(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centred = h - h.mean(dim=(2, 3), keepdim=True)
        variance = centred.square().mean(dim=(2, 3), keepdim=True)
        return weight[:, None, None] * centred / (variance + 1e-5).sqrt() + bias[:, None, None]

    @staticmethod
    def leaky(h: Tensor) -> Tensor:
        return torch.where(h > 0, h, 0.2 * h)

    @staticmethod
    def double(h: Tensor) -> Tensor:
        return h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    @staticmethod
    def halve(h: Tensor) -> Tensor:
        return (h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4

    def block(self, **options) -> ResBlock:
        block = ResBlock(4, 6, lambda c: nn.InstanceNorm2d(c, affine=True), **options).double()
        shake(block)
        return block

    def test_encoder_block(self) -> None:
        block, x = self.block(resample="down"), torch.randn(2, 4, 8, 8).double()
        p = dict(block.named_parameters())
        assert block.conv1.out_channels == 4, "in encoders the second convolution changes the width"
        h = self.leaky(self.norm(x, p["norm1.weight"], p["norm1.bias"]))
        h = self.halve(F.conv2d(h, p["conv1.weight"], p["conv1.bias"], padding=1))
        h = self.leaky(self.norm(h, p["norm2.weight"], p["norm2.bias"]))
        h = F.conv2d(h, p["conv2.weight"], p["conv2.bias"], padding=1)
        expected = (self.halve(F.conv2d(x, p["skip.weight"])) + h) / 2**0.5
        torch.testing.assert_close(block(x), expected)

    def test_decoder_block(self) -> None:
        block, x = self.block(resample="up", widen_first=True), torch.randn(2, 4, 8, 8).double()
        p = dict(block.named_parameters())
        assert block.conv1.out_channels == 6, "in decoders the first convolution changes the width"
        h = self.double(self.leaky(self.norm(x, p["norm1.weight"], p["norm1.bias"])))
        h = F.conv2d(h, p["conv1.weight"], p["conv1.bias"], padding=1)
        h = self.leaky(self.norm(h, p["norm2.weight"], p["norm2.bias"]))
        h = F.conv2d(h, p["conv2.weight"], p["conv2.bias"], padding=1)
        expected = (F.conv2d(self.double(x), p["skip.weight"]) + h) / 2**0.5
        torch.testing.assert_close(block(x), expected)

    def test_skip_is_the_identity_where_the_width_stays(self) -> None:
        block = ResBlock(4, 4, lambda _: nn.Identity())
        for parameter in block.conv2.parameters():
            nn.init.zeros_(parameter)
        x = torch.randn(2, 4, 8, 8)
        torch.testing.assert_close(block(x), x / 2**0.5)

    def test_adain(self) -> None:
        adain, h, style = AdaIN(4, 7).double(), torch.randn(3, 4, 8, 8).double(), torch.randn(3, 7).double()
        shake(adain)
        gamma, beta = (style @ adain.affine.weight.T + adain.affine.bias).split(4, dim=1)
        for i in range(3):
            expected = self.norm(h[i : i + 1], 1 + gamma[i], beta[i])
            torch.testing.assert_close(adain(h, style)[i : i + 1], expected)

    def test_styled_block_uses_the_style_in_both_norms(self) -> None:
        block = StyledResBlock(4, 6, lambda c: AdaIN(c, 7))
        x, style = torch.randn(1, 4, 8, 8), torch.randn(1, 7)
        for norm in ("norm1", "norm2"):
            before = block(x, style)
            with torch.no_grad():
                block.get_parameter(f"{norm}.affine.weight").mul_(2)
            assert not torch.allclose(block(x, style), before)

    def test_noise_follows_each_convolution(self) -> None:
        block = NoisyResBlock(4, 4, lambda _: PixelNorm())
        x, silence, noise = torch.randn(1, 4, 2, 2), torch.zeros(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
        assert not torch.allclose(block(x, noise, silence), block(x, silence, silence))
        shift = block(x, silence, noise) - block(x, silence, silence)
        torch.testing.assert_close(shift, (0.1 * noise / 2**0.5).expand(1, 4, 4, 4))


class TestGenerator:
    @pytest.mark.parametrize("fusion", ["linear", "alpha"])
    @pytest.mark.parametrize("background_skip", [False, True])
    def test_is_background_and_defect_layer(self, background_skip, fusion) -> None:
        config = dataclasses.replace(TINY, background_skip=background_skip, fusion=fusion)
        generator = Generator(config).double()
        shake(generator)
        x, (style, content) = images(config).double(), codes(config)
        style, content = style.double(), content.double()
        background, layer = generator.background(x), generator.defect_layer(style, content)
        if fusion == "linear":
            expected = background + layer
        else:
            paint, opacity = layer[:, :-1], layer[:, -1:]
            assert ((opacity > 0) & (opacity < 1)).all()
            assert opacity.std() > 0.01
            expected = (1 - opacity) * background + paint
        torch.testing.assert_close(generator(x, style, content), expected)
        assert background.std() > 0.1
        assert layer.std() > 0.1
        torch.testing.assert_close(generator.decode_background(generator.encode(x)[0], x), background)

    def test_background_skip_starts_from_the_input(self) -> None:
        generator = Generator(dataclasses.replace(TINY, background_skip=True))
        x, (style, content) = images(TINY), codes(TINY)
        assert torch.equal(generator.background(x), x)
        fake = generator(x, style, content)
        assert (fake - x).square().mean() < 0.2 * x.square().mean()  # F's columns begin small, not at zero
        fake.square().sum().backward()
        assert generator.fusion.weight.grad is not None
        assert (generator.fusion.weight.grad.abs().amax(dim=(0, 2, 3)) > 0).all(), "the fusion cannot learn"

    def test_an_opacity_starts_small_and_can_learn(self) -> None:
        generator = Generator(dataclasses.replace(TINY, background_skip=True, fusion="alpha"))
        x, (style, content) = images(TINY), codes(TINY)
        opacity = generator.defect_layer(style, content)[:, -1]
        torch.testing.assert_close(opacity, torch.full_like(opacity, 0.018), atol=1e-3, rtol=0)
        generator(x, style, content).square().sum().backward()
        assert generator.opacity.weight.grad is not None
        assert (generator.opacity.weight.grad.abs().amax(dim=(0, 2, 3)) > 0).all(), "the opacity cannot learn"

    def test_without_background_skip_the_input_is_not_copied(self) -> None:
        generator = Generator(TINY)
        assert not torch.allclose(generator(images(TINY), *codes(TINY)), images(TINY), atol=0.1)

    def test_foreground_of_the_input_is_dropped(self) -> None:
        """Only what `encode` calls background reaches the output: the last 64 channels do not."""
        generator, x, (style, content) = Generator(TINY), images(TINY), codes(TINY)
        before = generator(x, style, content)
        last = generator.encoder[-1].get_submodule("conv2")
        with torch.no_grad():
            last.get_parameter("bias")[TINY.background_channels :] += 1
        torch.testing.assert_close(generator(x, style, content), before)
        with torch.no_grad():
            last.get_parameter("weight")[: TINY.background_channels] *= 2
        assert not torch.allclose(generator(x, style, content), before)

    def test_style_and_content_matter(self) -> None:
        generator, (style, content) = Generator(TINY), codes(TINY)
        layer = generator.defect_layer(style, content)
        assert not torch.allclose(generator.defect_layer(style.flip(0), content), layer, atol=0.01)
        assert not torch.allclose(generator.defect_layer(style, content.flip(0)), layer, atol=0.01)

    def test_normal_still_has_a_layer(self) -> None:
        """With zero content the foreground decoder is not skipped: AdaIN's shifts draw something."""
        style, content = codes(TINY)
        assert Generator(TINY).defect_layer(style, torch.zeros_like(content)).std() > 0.01


@pytest.mark.parametrize("shared_content_trunk", [False, True])
class TestMappingNetwork:
    @pytest.fixture
    def mapping(self, shared_content_trunk) -> MappingNetwork:
        return MappingNetwork(dataclasses.replace(TINY, shared_content_trunk=shared_content_trunk))

    def test_normal_has_zero_content(self, mapping) -> None:
        style, content = mapping(torch.randn(3, 16), torch.tensor([1, NORMAL, 2]))
        assert [c.count_nonzero().item() > 0 for c in content] == [True, False, True]
        assert style.abs().amax(dim=1).min() > 0
        assert mapping.for_domain(torch.randn(3, 16), NORMAL)[1].count_nonzero() == 0

    def test_one_domain_is_as_mixed_domains(self, mapping) -> None:
        z, noise, domain = torch.randn(4, 16), torch.randn(4, mapping.noise_size), torch.tensor([0, 1, 2, 1])
        style, content = mapping(z, domain, noise)
        for i, k in enumerate(domain.tolist()):
            row = slice(i, i + 1)
            one_style, one_content = mapping.for_domain(z[row], k, noise[row])
            torch.testing.assert_close(one_style, style[row])
            torch.testing.assert_close(one_content, content[row])

    def test_domains_differ(self, mapping) -> None:
        z, noise = torch.randn(1, 16), torch.randn(1, mapping.noise_size)
        one, two = mapping.for_domain(z, 1, noise), mapping.for_domain(z, 2, noise)
        assert not torch.allclose(one[0], two[0], atol=0.01)
        assert not torch.allclose(one[1], two[1], atol=0.01)

    def test_noise_decides(self, mapping) -> None:
        z, domain, noise = torch.randn(2, 16), torch.tensor([1, 2]), torch.randn(2, mapping.noise_size)
        first = mapping(z, domain, noise)
        torch.manual_seed(1)
        drawn = mapping(z, domain)
        again = mapping(z, domain, noise)
        assert torch.equal(first[1], again[1])
        assert not torch.allclose(first[1], drawn[1], atol=0.01)
        assert torch.equal(first[0], drawn[0]), "a style has no noise"
        torch.manual_seed(1)
        assert torch.equal(mapping(z, domain)[1], drawn[1])

    def test_every_noise_number_reaches_the_content(self, mapping) -> None:
        noise = torch.randn(1, mapping.noise_size, requires_grad=True)
        _, content = mapping.for_domain(torch.randn(1, 16), 1, noise)
        content.square().sum().backward()
        assert noise.grad is not None
        assert (noise.grad != 0).all()

    def test_every_parameter_has_a_gradient(self, mapping) -> None:
        """As distributed training wants it, whatever domains a batch holds."""
        style, content = mapping(torch.randn(2, 16), torch.tensor([1, 1]))
        (style.sum() + content.sum()).backward()
        assert [name for name, p in mapping.named_parameters() if p.grad is None] == []


class TestContentDependsOnLatent:
    @staticmethod
    def change(mapping: MappingNetwork) -> float:
        """How much two latents differ in content under the same noise, relative to the content."""
        mapping.double()
        z, noise = torch.randn(2, 16).double(), torch.randn(1, mapping.noise_size).double().expand(2, -1)
        with torch.no_grad():
            first, second = mapping.for_domain(z, 1, noise)[1]
        return ((first - second).std() / first.std()).item()

    @pytest.mark.parametrize("content_norm", ["pixel", "literal"])
    def test_it_does(self, content_norm) -> None:
        config = dataclasses.replace(TINY, width=1 / 8, content_norm=content_norm)
        assert self.change(MappingNetwork(config)) > 0.1

    def test_an_instance_norm_at_1x1_would_cut_it(self) -> None:
        """The trap in Table 10: at 1 × 1 an instance norm is its bias, and the next norm removes the rest."""

        class BiasOnly(nn.Module):
            def forward(self, h: Tensor) -> Tensor:
                return torch.full_like(h, 0.5)

        mapping = MappingNetwork(dataclasses.replace(TINY, width=1 / 8, content_norm="literal"))
        mapping.content_trunks[1].get_submodule("0").norm1 = BiasOnly()
        # What z leaves in the first skip, a constant in space, goes on through the skips to the last norm.
        assert self.change(mapping) < 1e-6


class TestStyleContentEncoder:
    def test_normal_has_zero_content(self) -> None:
        _, content = StyleContentEncoder(TINY)(images(TINY, 3), torch.tensor([1, NORMAL, 2]))
        assert [c.count_nonzero().item() > 0 for c in content] == [True, False, True]

    def test_picks_each_row_s_domain(self) -> None:
        encoder, x = StyleContentEncoder(TINY), images(TINY, 1)
        mixed = encoder(x.expand(3, -1, -1, -1), torch.tensor([2, 1, 2]))
        for row, domain in ((0, 2), (1, 1), (2, 2)):
            style, content = encoder(x, torch.tensor([domain]))
            torch.testing.assert_close(mixed[0][row], style[0])
            torch.testing.assert_close(mixed[1][row], content[0])
        assert not torch.allclose(mixed[0][0], mixed[0][1], atol=0.01)
        assert not torch.allclose(mixed[1][0], mixed[1][1], atol=0.01)


class TestTraining:
    @pytest.mark.parametrize("network", [Generator, MappingNetwork, StyleContentEncoder, Discriminator])
    def test_initialization(self, network) -> None:
        """He initialization, zero biases, noise strengths of 0.1."""
        for name, module in network(PRESETS["small-64"]).named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and name != "fusion":
                expected = math.sqrt(2 / module.weight[0].numel())
                if module.weight.numel() > 1000:
                    assert module.weight.std().item() == pytest.approx(expected, rel=0.15)
                assert module.bias is None or module.bias.count_nonzero() == 0
            if isinstance(module, Noise):
                assert (module.strength == 0.1).all()

    def test_gradients_reach_every_parameter(self) -> None:
        generator, encoder, discriminator = Generator(TINY), StyleContentEncoder(TINY), Discriminator(TINY)
        style, content = encoder(images(TINY), torch.tensor([1, 2]))
        output = discriminator(generator(images(TINY), style, content))
        torch.stack([logits.square().sum() for logits in output]).sum().backward()
        for network in (generator, encoder, discriminator):
            for name, parameter in network.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name

    def test_gradient_penalty_can_be_differentiated(self) -> None:
        discriminator, x = Discriminator(TINY), images(TINY).requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(x).adversarial.sum(), x, create_graph=True)
        gradient.square().sum().backward()
        assert discriminator.trunk.stem.weight.grad is not None


@pytest.mark.usefixtures("two_threads")
class TestSameBits:
    """In eval mode a row's bits depend on that row alone; five rows on two threads break a matrix product."""

    @pytest.mark.parametrize(("width", "outputs"), [(40, 3), (17, 5), (64, 64)])
    def test_linear_by_row(self, width, outputs) -> None:
        """Also where rows are not aligned alike in memory."""
        x, weight, bias = torch.randn(5, width), torch.randn(outputs, width), torch.randn(outputs)
        expected = linear_by_row(x, weight, bias)
        torch.testing.assert_close(expected, F.linear(x, weight, bias))
        for shift in range(1, 5):
            assert torch.equal(linear_by_row(x.roll(shift, 0), weight, bias), expected.roll(shift, 0))
        for offset in (1, 2, 3):
            moved = torch.empty(5, width + 4)[:, offset : offset + width].copy_(x)
            assert torch.equal(linear_by_row(moved, weight, bias), expected)

    def test_linear_of_each_is_what_a_gpu_does_for_all_rows_at_once(self) -> None:
        x, weight, bias = torch.randn(5, 17), torch.randn(3, 17), torch.randn(3)
        torch.testing.assert_close(linear_of_each(x, weight, bias), F.linear(x, weight, bias))
        torch.testing.assert_close(linear_of_each(x, weight, None), F.linear(x, weight))
        elsewhere = [tensor.to("meta") for tensor in (x, weight, bias)]
        with torch.profiler.profile() as seen:
            assert linear_by_row(*elsewhere).shape == (5, 3)
        called = [event.name for event in seen.events() or ()]
        assert called.count("aten::baddbmm") == 1
        assert "aten::linear" not in called

    @pytest.mark.parametrize("rows", [1, 4, 5, 8, 16])
    def test_mapping_network(self, rows) -> None:
        mapping = MappingNetwork(PRESETS["small-64"]).eval()
        z, noise = torch.randn(rows, 16), torch.randn(rows, mapping.noise_size)
        with torch.inference_mode():
            style, content = mapping.for_domain(z, 1, noise)
            for shift in {1, rows - 1}:
                moved = mapping.for_domain(z.roll(shift, 0), 1, noise.roll(shift, 0))
                assert torch.equal(moved[0], style.roll(shift, 0))
                assert torch.equal(moved[1], content.roll(shift, 0))
            others = torch.cat([z[:1], torch.zeros_like(z[1:])])
            alone = mapping.for_domain(others, 1, noise)
        assert torch.equal(alone[0][0], style[0])
        assert torch.equal(alone[1][0], content[0])

    def test_encoder_and_discriminator(self) -> None:
        config, rows = dataclasses.replace(TINY, width=1 / 16), 5
        encoder, discriminator = StyleContentEncoder(config).eval(), Discriminator(config).eval()
        x, domain = images(config, rows), torch.ones(rows, dtype=torch.long)
        with torch.inference_mode():
            outputs = [*encoder(x, domain), *discriminator(x)]
            for shift in (1, 3):
                moved = [*encoder(x.roll(shift, 0), domain), *discriminator(x.roll(shift, 0))]
                for before, after in zip(outputs, moved, strict=True):
                    assert torch.equal(after, before.roll(shift, 0))


# ------------------------------------------------------------------------------ what small trainings want


@pytest.mark.parametrize("resample", ["up", "down"])
@pytest.mark.parametrize("widths", [(4, 4), (4, 6)])
def test_composed_resampling_is_the_same_function_and_has_the_same_gradients(
    resample: Literal["up", "down"], widths: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    plain = ResBlock(*widths, lambda _: nn.Identity(), resample).double()
    composed = copy.deepcopy(plain)
    compose_resampling(composed)
    x = torch.randn(2, widths[0], 8, 8, dtype=torch.float64)
    outputs = [block(x) for block in (plain, composed)]
    torch.testing.assert_close(*outputs)
    weight = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weight).sum().backward()
    for one, other in zip(plain.parameters(), composed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_trunks_may_have_instance_norm() -> None:
    config = dataclasses.replace(TINY, trunk_norm="instance")
    x = torch.randn(2, 3, 32, 32)
    for network in (Discriminator, StyleContentEncoder):
        norms = [m for m in network(config).trunk.modules() if isinstance(m, nn.InstanceNorm2d)]
        assert len(norms) == 2  # one block at 32 px, two norms
        assert not [m for m in network(TINY).modules() if isinstance(m, nn.InstanceNorm2d)]
    assert Discriminator(config)(x).adversarial.shape == (2, 3)

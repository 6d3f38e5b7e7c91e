"""The converted generator gives the plain generator's images, and a row's bits depend on that row alone."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raygen.families.dtgan.folded import (
    FoldedDiscriminator,
    FoldedGenerator,
    fused_kernel,
    pooled_kernel,
    upsampled_kernel,
)
from raygen.families.dtgan.networks import Discriminator, Generator, compose
from raygen.families.dtgan.sizes import PRESETS, DTGANConfig

TINY = DTGANConfig(image_size=32, width=1 / 32)
"""Its last background block keeps the width: no convolution on that skip."""

CONFIGS = {
    "tiny": TINY,
    "paper, narrow": dataclasses.replace(PRESETS["paper-128"], width=1 / 16),
    "small-64": PRESETS["small-64"],
    "alpha": dataclasses.replace(PRESETS["small-64"], fusion="alpha"),
    "gray, 256": DTGANConfig(image_size=256, channels=1, width=1 / 32, background_out=100, style_dim=7),
}


def random_generator(config: DTGANConfig) -> Generator:
    """A generator in which no bias, scale or fusion weight has a value that could hide a wrong fold."""
    generator = Generator(config).eval()
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if parameter.ndim == 1 or name in ("fusion.weight", "opacity.weight"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return generator


def inputs(config: DTGANConfig, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, styles and contents."""
    x = torch.rand(rows, config.channels, config.image_size, config.image_size) * 2 - 1
    return x, torch.randn(rows, config.style_dim), torch.randn(rows, config.content_channels, 16, 16)


def folded_image(folded: FoldedGenerator, x: Tensor, style: Tensor, content: Tensor) -> Tensor:
    return compose(folded.background(x), folded.defect_layer(style, content))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[1, 2])
def threads(request) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


class TestKernels:
    """Each composed kernel against what it stands for, borders included."""

    def test_convolution_then_average(self) -> None:
        h, weight = torch.randn(2, 3, 8, 10).double(), torch.randn(5, 3, 3, 3).double()
        expected = F.avg_pool2d(F.conv2d(h, weight, padding=1), 2)
        torch.testing.assert_close(F.conv2d(h, pooled_kernel(weight), stride=2, padding=1), expected)

    def test_nearest_then_convolution(self) -> None:
        h, weight = torch.randn(2, 3, 4, 5).double(), torch.randn(6, 3, 3, 3).double()
        doubled = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        expected = F.conv2d(doubled, weight, padding=1)
        composed = F.conv_transpose2d(h, upsampled_kernel(weight), stride=2, padding=1)
        torch.testing.assert_close(composed, expected)

    def test_convolution_then_fusion(self) -> None:
        h, weight = torch.randn(2, 3, 4, 5).double(), torch.randn(6, 3, 3, 3).double()
        fusion = torch.randn(2, 6, 1, 1).double()
        expected = F.conv2d(F.conv2d(h, weight, padding=1), fusion)
        torch.testing.assert_close(F.conv2d(h, fused_kernel(fusion, weight), padding=1), expected)

    def test_composed_kernels_can_be_trained(self) -> None:
        h, weight = torch.randn(2, 3, 8, 8).double(), torch.randn(5, 3, 3, 3).double().requires_grad_()
        F.avg_pool2d(F.conv2d(h, weight, padding=1), 2).square().sum().backward()
        expected, weight.grad = weight.grad, None
        F.conv2d(h, pooled_kernel(weight), stride=2, padding=1).square().sum().backward()
        torch.testing.assert_close(weight.grad, expected)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
class TestSameImages:
    def test_float32(self, config) -> None:
        generator, batch = random_generator(config), inputs(config, 2)
        with torch.inference_mode():
            plain = generator(*batch)
        image_range = plain.max() - plain.min()
        difference = folded_image(FoldedGenerator(generator), *batch) - plain
        assert difference.abs().max() < 1e-4 * image_range

    @pytest.mark.parametrize("fold_fusion", [False, True])
    @pytest.mark.parametrize("fold_resampling", [False, True])
    def test_each_fold_alone_in_float64(self, config, fold_fusion, fold_resampling) -> None:
        generator = random_generator(config).double()
        x, style, content = (tensor.double() for tensor in inputs(config, 1))
        folded = FoldedGenerator(generator, fold_fusion=fold_fusion, fold_resampling=fold_resampling)
        with torch.inference_mode():
            background, layer = generator.background(x), generator.defect_layer(style, content)
        torch.testing.assert_close(folded.background(x), background, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(folded.defect_layer(style, content), layer, rtol=1e-9, atol=1e-9)


class TestConversion:
    @pytest.mark.parametrize("fusion", ["linear", "alpha"])
    @pytest.mark.parametrize("fold_fusion", [False, True])
    def test_every_buffer_counts(self, fold_fusion, fusion) -> None:
        """Else one might be wrong and no comparison would show it."""
        config = dataclasses.replace(TINY, image_size=64, fusion=fusion)
        folded = FoldedGenerator(random_generator(config), fold_fusion=fold_fusion)
        x, style, content = inputs(config, 1)

        def parts() -> list[Tensor]:
            return [folded.background(x), folded.defect_layer(style, content)]

        before, idle = parts(), []
        for name, buffer in folded.named_buffers():
            saved = buffer.clone()
            buffer.add_(0.5 * torch.randn_like(buffer))
            changes = [
                (a - b).abs().max() / (b.max() - b.min()) for a, b in zip(parts(), before, strict=True)
            ]
            buffer.copy_(saved)
            if max(changes) < 1e-4:  # rounding is a hundredth of that
                idle.append(name)
        wrong = [name for name in idle if not name.endswith("bias1")]
        assert not wrong, "only what the next instance norm removes may be idle"

    def test_is_a_copy(self) -> None:
        generator, batch = random_generator(TINY), inputs(TINY, 1)
        folded = FoldedGenerator(generator)
        before = folded_image(folded, *batch)
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.zero_()
        assert torch.equal(folded_image(folded, *batch), before)
        assert list(folded.parameters()) == []
        assert not before.requires_grad

    def test_state_can_be_saved_and_loaded(self) -> None:
        batch = inputs(TINY, 1)
        folded, other = FoldedGenerator(random_generator(TINY)), FoldedGenerator(random_generator(TINY))
        assert not torch.equal(folded_image(folded, *batch), folded_image(other, *batch))
        other.load_state_dict(folded.state_dict())
        assert torch.equal(folded_image(folded, *batch), folded_image(other, *batch))

    def test_bfloat16(self) -> None:
        config = PRESETS["small-64"]
        generator, batch = random_generator(config), inputs(config, 2)
        with torch.inference_mode():
            plain = generator(*batch)
        folded = FoldedGenerator(generator).bfloat16()
        half = folded_image(folded, *(tensor.bfloat16() for tensor in batch))
        assert half.dtype == torch.bfloat16
        assert (half.float() - plain).square().mean().sqrt() < 0.05 * plain.std()

    def test_output_is_a_plain_image_batch(self) -> None:
        config = CONFIGS["paper, narrow"]
        folded, (x, style, content) = FoldedGenerator(random_generator(config)), inputs(config, 2)
        for image in (folded.background(x), folded.defect_layer(style, content)):
            assert image.shape == x.shape
            assert image.is_contiguous()


class TestSameBits:
    """A fixed number of rows: neither the other rows nor a row's place change its bits.

    Three and five rows on two threads are the hard cases: an image is cut between threads.
    """

    @pytest.mark.parametrize("rows", [1, 3, 4, 5, 8])
    def test_place_and_others(self, rows, threads) -> None:
        config = dataclasses.replace(PRESETS["small-64"], background_skip=False)
        folded = FoldedGenerator(random_generator(config))
        x, style, content = inputs(config, rows)
        background, layer = folded.background(x), folded.defect_layer(style, content)
        for shift in {1, rows - 1}:
            assert torch.equal(folded.background(x.roll(shift, 0)), background.roll(shift, 0))
            moved = folded.defect_layer(style.roll(shift, 0), content.roll(shift, 0))
            assert torch.equal(moved, layer.roll(shift, 0))
        for others in (x, style, content):
            others[1:] *= 9
        assert torch.equal(folded.background(x)[0], background[0])
        assert torch.equal(folded.defect_layer(style, content)[0], layer[0])

    def test_again(self, threads) -> None:
        folded, batch = FoldedGenerator(random_generator(TINY)), inputs(TINY, 4)
        assert torch.equal(folded_image(folded, *batch), folded_image(folded, *batch))


class TestDiscriminator:
    @staticmethod
    def random_discriminator(config: DTGANConfig) -> Discriminator:
        discriminator = Discriminator(config).eval()
        with torch.no_grad():
            for parameter in discriminator.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return discriminator

    @pytest.mark.parametrize("trunk_norm", ["none", "instance"])
    @pytest.mark.parametrize("classifiers", [True, False])
    @pytest.mark.parametrize("name", ["tiny", "small-64"])
    def test_same_logits(self, name, classifiers, trunk_norm) -> None:
        config = dataclasses.replace(
            CONFIGS[name],
            trunk_norm=trunk_norm,
            foreground_classifier=classifiers,
            background_classifier=classifiers,
        )
        discriminator, (x, _, _) = self.random_discriminator(config).double(), inputs(config, 3)
        folded = FoldedDiscriminator(discriminator)
        for logits, expected in zip(folded(x.double()), discriminator(x.double()), strict=True):
            if expected is None:
                assert logits is None
            else:
                torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)

    def test_rows_do_not_depend_on_each_other(self) -> None:
        config = PRESETS["small-64"]
        folded, (x, _, _) = FoldedDiscriminator(self.random_discriminator(config)), inputs(config, 6)
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # as an actor computes on a CPU
        try:
            alone = folded(x)
            moved = folded(torch.cat([x[3:], torch.rand_like(x[:2]), x[:1]]))
        finally:
            torch.set_num_threads(before)
        for a, b in zip(alone, moved, strict=True):
            assert torch.equal(a[3:], b[:3])
            assert torch.equal(a[0], b[5])

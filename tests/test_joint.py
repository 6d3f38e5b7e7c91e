"""The ablation ladder of the paper's Table 15: DT-GAN's options, and the generator of its rungs (a) to (d)."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raygen.families.blocks import Noise
from raygen.families.dtgan.joint import JointGenerator, build_generator
from raygen.families.dtgan.networks import Discriminator, Generator, MappingNetwork, StyleContentEncoder
from raygen.families.dtgan.sizes import LADDER, NORMAL, PRESETS, DTGANConfig

TINY = DTGANConfig(image_size=32, width=1 / 16, num_products=2)
RUNGS = {rung: replace(TINY, **options) for rung, options in LADDER.items()}


def images(config: DTGANConfig, count: int = 2) -> Tensor:
    return torch.rand(count, config.channels, config.image_size, config.image_size) * 2 - 1


def codes(config: DTGANConfig, count: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(count, config.style_dim), torch.randn(count, config.content_channels, 16, 16)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class TestLadder:
    def test_each_rung_adds_one_option(self) -> None:
        changed = [
            {name for name, value in asdict(low).items() if asdict(high)[name] != value}
            for low, high in pairwise(RUNGS.values())
        ]
        assert changed == [
            {"content"},
            {"foreground_classifier"},
            {"background_classifier"},
            {"decoders"},
            {"anchor"},
            {"content_noise"},
        ]
        assert list(RUNGS) == list("abcdefg")
        assert RUNGS["g"] == TINY, "the top of the ladder is the default"

    @pytest.mark.parametrize("rung", RUNGS)
    def test_shapes(self, rung) -> None:
        config, x, domain = RUNGS[rung], images(TINY), torch.tensor([NORMAL, 2])
        generator, mapping = build_generator(config), MappingNetwork(config)
        assert isinstance(generator, JointGenerator if rung in "abcd" else Generator)
        content_channels = 0 if rung == "a" else 8
        for style, content in (
            mapping(torch.randn(2, 16), domain),
            mapping(torch.randn(2, 16), domain, torch.randn(2, mapping.noise_size)),
            mapping.for_domain(torch.randn(2, 16), NORMAL),
            mapping.for_domain(torch.randn(2, 16), 2),
            StyleContentEncoder(config)(x, domain),
        ):
            assert style.shape == (2, 64)
            assert content.shape == (2, content_channels, 16, 16)
            assert generator(x, style, content).shape == x.shape
        features, popped = generator.encode(x)
        assert features.shape == (2, 32 - content_channels, 16, 16)
        assert popped.shape == (2, content_channels, 16, 16)
        output = Discriminator(config)(x)
        assert output.adversarial.shape == (2, 3)
        assert (None if output.foreground is None else output.foreground.shape) == (
            (2, 3) if rung in "cdefg" else None
        )
        assert (None if output.background is None else output.background.shape) == (
            (2, 2) if rung in "defg" else None
        )

    @pytest.mark.parametrize("domain", [NORMAL, 1])
    @pytest.mark.parametrize("rung", RUNGS)
    def test_every_parameter_has_a_gradient(self, rung, domain) -> None:
        """As distributed training wants it, also where the anchor leaves only zero gradients."""
        config, x = RUNGS[rung], images(TINY)
        generator, mapping = build_generator(config), MappingNetwork(config)
        encoder, discriminator = StyleContentEncoder(config), Discriminator(config)
        domains = torch.full((2,), domain)
        style, content = mapping(torch.randn(2, 16), domains)
        fake = generator(x, style, content)
        parts = [*encoder(fake, domains), generator.encode(x)[1], *discriminator(fake)]
        torch.stack([part.square().sum() for part in parts if part is not None]).sum().backward()
        for network in (generator, mapping, encoder, discriminator):
            for name, parameter in network.named_parameters():
                assert parameter.grad is not None, f"{type(network).__name__}'s {name}"
                assert parameter.grad.isfinite().all()

    def test_a_has_no_content_anywhere(self) -> None:
        config = RUNGS["a"]
        assert config.content_channels == 0
        assert config.background_channels == config.full_width(16)
        for network in (build_generator, MappingNetwork, StyleContentEncoder, Discriminator):
            names = [name for name, _ in network(config).named_parameters()]
            assert not [name for name in names if "content" in name or "foreground" in name]
        assert MappingNetwork(config).noise_size == 0

    def test_classifiers_leave_nothing_behind(self) -> None:
        """D's content is the foreground classifier's, and goes with it."""
        heads = {
            rung: {name.split(".")[0] for name in Discriminator(config).state_dict()}
            for rung, config in RUNGS.items()
        }
        assert heads["b"] == {"trunk", "pooled", "adversarial"}
        assert heads["c"] - heads["b"] == {"content", "foreground_blocks", "foreground"}
        assert heads["d"] - heads["c"] == {"background"}
        assert heads["g"] == heads["d"]

    def test_foreground_classifier_needs_no_content(self) -> None:
        output = Discriminator(replace(RUNGS["a"], foreground_classifier=True))(images(TINY))
        assert output.foreground.shape == (2, 3)

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"content": False}, "decoders"),
            ({"content": False, "decoders": "joint"}, "anchor"),
            ({"content": False, "decoders": "joint", "anchor": False}, "content_noise"),
            ({"background_skip": True, "decoders": "joint"}, "background_skip"),
        ],
    )
    def test_options_that_do_not_go_together(self, changes, field) -> None:
        with pytest.raises(ValueError, match=f"^{field} must be "):
            replace(TINY, **changes)

    def test_a_generator_refuses_the_other_s_config(self) -> None:
        with pytest.raises(ValueError, match="decoders must be 'separate'"):
            Generator(RUNGS["d"])
        with pytest.raises(ValueError, match="decoders must be 'joint'"):
            JointGenerator(RUNGS["e"])


class TestAnchorOff:
    """Rungs (b) to (e)."""

    @pytest.mark.parametrize("rung", ["b", "e"])
    def test_normal_has_a_content_of_its_own(self, rung) -> None:
        config, domain = RUNGS[rung], torch.tensor([NORMAL, 1])
        mapping, z = MappingNetwork(config), torch.randn(1, 16).expand(2, -1)
        _, content = mapping(z, domain)
        torch.testing.assert_close(mapping.for_domain(z[:1], NORMAL)[1], content[:1])
        _, seen = StyleContentEncoder(config)(images(config, 1).expand(2, -1, -1, -1), domain)
        for normal, other in (content, seen):
            assert normal.std() > 0.01
            assert not torch.allclose(normal, other, atol=0.01)


class TestContentNoiseOff:
    """Rungs (b) to (f)."""

    @pytest.mark.parametrize("content_norm", ["pixel", "literal"])
    def test_mapping_network_is_deterministic(self, content_norm) -> None:
        mapping = MappingNetwork(replace(RUNGS["f"], content_norm=content_norm))
        assert not [module for module in mapping.modules() if isinstance(module, Noise)]
        assert mapping.noise_size == 0
        z, domain = torch.randn(2, 16), torch.tensor([1, 2])
        _, content = mapping(z, domain)
        assert torch.equal(mapping(z, domain)[1], content)
        torch.testing.assert_close(mapping.for_domain(z[1:], 2)[1], content[1:])
        other = mapping(torch.randn(2, 16), domain)[1]
        assert (other - content).std() > 0.1 * content.std(), "the content depends on z"


class TestJointGenerator:
    @pytest.fixture
    def paper(self) -> Iterator[JointGenerator]:
        """StarGAN v2's generator of the paper's size, on the meta device: shapes without arithmetic."""
        with torch.device("meta"):
            yield JointGenerator(replace(PRESETS["paper-128"], **LADDER["a"]))

    def test_decoder_mirrors_the_encoder(self, paper) -> None:
        shapes: dict[nn.Module, list[int]] = {}

        def record(module: nn.Module, _: object, output: Tensor) -> None:
            shapes[module] = list(output.shape[1:])

        for module in (paper.stem, *paper.encoder, *paper.decoder):
            module.register_forward_hook(record)
        paper(images(paper.config), *codes(paper.config))
        down = [shapes[module] for module in (paper.stem, *paper.encoder)]
        up = [shapes[module] for module in paper.decoder]
        assert up == [[512, 16, 16], [512, 16, 16], [512, 32, 32], [256, 64, 64], [128, 128, 128]]
        assert up == down[-2::-1]

    def test_arithmetic_is_stargan_v2_s(self, paper) -> None:
        """73.3 GFLOP an image at 128 × 128, a multiplication and its addition counted as two."""
        with FlopCounterMode(display=False) as counter:
            paper(images(paper.config, 1), *codes(paper.config, 1))
        assert counter.get_total_flops() / 1e9 == pytest.approx(73.3, rel=0.02)

    @pytest.mark.parametrize("size", [64, 128])
    def test_any_size(self, size) -> None:
        config = replace(RUNGS["d"], image_size=size, channels=1, stem_kernel=3)
        with torch.no_grad():
            assert JointGenerator(config)(images(config), *codes(config)).shape == (2, 1, size, size)

    def test_content_takes_the_place_of_the_popped_out(self) -> None:
        """The image's own content does not reach the output, the target's does, and so does its style."""
        config = RUNGS["d"]
        generator, x, (style, content) = JointGenerator(config), images(config), codes(config)
        before = generator(x, style, content)
        torch.testing.assert_close(generator.decode(generator.encode(x)[0], style, content), before)
        assert not torch.allclose(generator(x, style.flip(0), content), before, atol=0.01)
        assert not torch.allclose(generator(x, style, content.flip(0)), before, atol=0.01)
        with torch.no_grad():
            last = generator.encoder[-1].get_submodule("conv2")
            last.get_parameter("bias")[config.background_channels :] += torch.randn(config.content_channels)
        torch.testing.assert_close(generator(x, style, content), before)

    def test_style_alone_decides_without_content(self) -> None:
        generator, x, (style, empty) = JointGenerator(RUNGS["a"]), images(TINY), codes(RUNGS["a"])
        before = generator(x, style, empty)
        assert not torch.allclose(generator(x, style.flip(0), empty), before, atol=0.01)
        assert not torch.allclose(generator(x.flip(0), style, empty), before, atol=0.01)

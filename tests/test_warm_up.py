"""The supervised warm-up: it learns, repeats itself, and (slow) its pictures show what they should."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from raygen import images
from raygen.checkpoint import GENERATOR, REFERENCE_CODES, Checkpoint, load_checkpoint
from raygen.models.dtgan import DTGANConfig, Generator, MappingNetwork, StyleContentEncoder
from raygen.surfaces import DEFECT_TYPES, PRODUCTS, render_defect, render_normal
from raygen.train.warm_up import warm_up

CELLS = [(product, defect_type) for product in PRODUCTS for defect_type in DEFECT_TYPES]


class Networks(NamedTuple):
    generator: Generator
    mapping: MappingNetwork
    encoder: StyleContentEncoder


def networks(checkpoint: Checkpoint) -> Networks:
    """The three networks with the checkpoint's weights, in eval mode."""
    sizes = DTGANConfig(**checkpoint.config.model)
    made = Networks(Generator(sizes), MappingNetwork(sizes), StyleContentEncoder(sizes))
    weights = checkpoint.tensors(GENERATOR)
    for name, network in zip(Networks._fields, made, strict=True):
        prefix = f"{name}."
        network.load_state_dict(
            {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        )
        network.eval()
    return made


def short_warm_up(folder: Path, seed: int = 0) -> tuple[Checkpoint, list[str]]:
    said: list[str] = []
    made = warm_up(str(folder), seed=seed, steps=25, pairs_per_cell=8, references_per_cell=2, say=said.append)
    return made, said


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, list[str]]:
    return short_warm_up(tmp_path_factory.mktemp("short"))


def test_the_losses_fall(short: tuple[Checkpoint, list[str]]) -> None:
    for what in ("layers", "latents"):
        losses = [float(loss) for line in short[1] for loss in re.findall(rf"{what}, .* loss (\S+)", line)]
        assert len(losses) == 5
        assert losses[-1] < 0.8 * losses[0]


def test_the_checkpoint_loads_and_says_what_it_is(short: tuple[Checkpoint, list[str]]) -> None:
    checkpoint = load_checkpoint(short[0].uri)
    assert checkpoint.digest == short[0].digest
    assert checkpoint.config.products == PRODUCTS
    assert checkpoint.config.defect_types == DEFECT_TYPES
    assert checkpoint.config.images_seen == 100
    assert "not the paper's adversarial objective" in checkpoint.config.trained_on
    networks(checkpoint)


def test_the_reference_bank_holds_the_codes_of_the_images_it_names(
    short: tuple[Checkpoint, list[str]],
) -> None:
    checkpoint, _ = short
    assert [(item.product, item.defect_type) for item in checkpoint.references[::2]] == CELLS
    codes = checkpoint.tensors(REFERENCE_CODES)
    encoder = networks(checkpoint).encoder
    for row in (0, 7):
        item = checkpoint.references[row]
        seed = int(item.uri.removeprefix(f"surfaces:{item.product}/{item.defect_type}/"))
        image, _ = render_defect(item.product, item.defect_type, seed, 64)
        domain = torch.tensor([1 + DEFECT_TYPES.index(item.defect_type)])
        with torch.no_grad():
            style, content = encoder(images.to_model(torch.from_numpy(image[None])), domain)
        assert torch.allclose(style[0], codes["style"][row], atol=1e-3)
        assert torch.allclose(content[0], codes["content"][row], atol=1e-3)


def test_the_background_is_the_normal_itself(short: tuple[Checkpoint, list[str]]) -> None:
    x = torch.rand(2, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.equal(networks(short[0]).generator.background(x), x)


def test_the_same_seed_gives_the_same_checkpoint(short: tuple[Checkpoint, list[str]], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.rand(1)  # the caller's generator does not matter
    torch.set_num_threads(3 - min(threads, 2))  # nor do its threads
    try:
        again, _ = short_warm_up(tmp_path / "again")
        assert torch.get_num_threads() == 3 - min(threads, 2)
    finally:
        torch.set_num_threads(threads)
    assert again.digest == short[0].digest
    assert short_warm_up(tmp_path / "other", seed=1)[0].digest != short[0].digest


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return networks(warm_up(str(tmp_path_factory.mktemp("full"))))


@pytest.mark.slow
@pytest.mark.parametrize(("product", "defect_type"), CELLS)
@torch.no_grad()
def test_a_reference_draws_its_own_defect_and_leaves_the_rest(
    full: Networks, product: str, defect_type: str
) -> None:
    made, true, masks = [], [], []
    for seed in range(1000, 1024):  # small numbers: none of them is a training seed
        image, mask = render_defect(product, defect_type, seed, 64)
        normal = render_normal(product, seed, 64)
        x, x_normal = images.to_model(torch.from_numpy(np.stack([image, normal]))).split(1)
        layer = full.generator.defect_layer(
            *full.encoder(x, torch.tensor([1 + DEFECT_TYPES.index(defect_type)]))
        )
        made.append(layer[0, 0])
        true.append((x - x_normal)[0, 0])
        masks.append(torch.from_numpy(mask.reshape(64, 64)).float())
    layers, layers_true, inside = torch.stack(made), torch.stack(true), torch.stack(masks) > 0
    both = torch.stack([layers[inside], layers_true[inside]])
    correlation = torch.corrcoef(both)[0, 1].item()
    outside = torch.nn.functional.max_pool2d(inside.float()[:, None], 9, 1, 4)[:, 0] == 0
    print(f"{product} {defect_type}: r {correlation:.2f}, outside {layers[outside].abs().mean() * 127.5:.2f}")
    assert correlation > (0.25 if defect_type == "scratches" else 0.75)
    assert layers[outside].abs().mean() <= 2 * 3 / 255  # 3 grey levels; the model's range is 2


@pytest.mark.slow
@pytest.mark.parametrize("domain", [1, 2])
@torch.no_grad()
def test_latents_show_defects_that_differ(full: Networks, domain: int) -> None:
    z = torch.randn(32, full.mapping.config.latent_dim, generator=torch.Generator().manual_seed(0))
    noise = torch.zeros(32, full.mapping.noise_size)
    layers = full.generator.defect_layer(*full.mapping.for_domain(z, domain, noise))[:, 0]
    peaks = layers.abs().amax((1, 2))
    flat = layers.flatten(1)
    similar = torch.corrcoef(flat)[~torch.eye(32, dtype=torch.bool)]
    print(
        f"domain {domain}: peak {peaks.quantile(0.1):.2f} to {peaks.quantile(0.9):.2f}, r {similar.mean():.2f}"
    )
    assert (peaks > 0.15).float().mean() > 0.8  # of a range of 2: visible
    assert similar.mean() < 0.5
    assert layers.abs().mean() <= 2 * 3 / 255

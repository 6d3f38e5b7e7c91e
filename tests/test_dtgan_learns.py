"""What kept small DT-GANs from learning stays mended; the causes: raygen/families/dtgan/README.md."""

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training import SIZES, batch, recipe

from raygen import images, storage, surfaces
from raygen.config import load_config
from raygen.errors import UserError
from raygen.families.dtgan import losses
from raygen.families.dtgan.batches import BatchMaker, Sampler, healed, to_batch, turned_over
from raygen.families.dtgan.config import DTGANTrainConfig
from raygen.families.dtgan.networks import CodeDiscriminator, MappingNetwork
from raygen.families.dtgan.sizes import DTGANConfig
from raygen.families.dtgan.step import (
    Networks,
    Training,
    build_networks,
    generator_terms,
    iterate,
    taught_terms,
)
from raygen.families.dtgan.training import DTGANTrainer, network_sizes
from raygen.families.vital_signs import correlation, share_of_variance

CPU = torch.device("cpu")
SHIPPED = Path(__file__).parent.parent / "jobs" / "dtgan-64-cpu.toml"
KINDS = ("normal", *surfaces.DEFECT_TYPES)


def shipped(**changes: Any) -> DTGANTrainConfig:
    """The small recipe as it is shipped, on networks and images half as large."""
    config = load_config(DTGANTrainConfig, str(SHIPPED), ["defects=/defects", "output=/output"])
    model = {"image_size": 32, "width": 1 / 16, "background_out": 64}
    return config.model_copy(update={"model": model, "precision": "float32", **changes})


def surface_maker(config: DTGANTrainConfig, sizes: DTGANConfig, count: int, seed: int) -> BatchMaker:
    """Draws from procedural surfaces with their masks."""
    photos, domains, products = [], [], []
    for name, pixels in surfaces.defect_set(count, count, seed, size=32):
        product, kind, file = name.split("/")
        pixels = pixels.reshape(32, 32, 1)
        if file.endswith("_mask.png"):
            photos[-1] = np.concatenate([photos[-1][..., :1], pixels], axis=2)
            continue
        photos.append(np.concatenate([pixels, np.zeros_like(pixels)], axis=2))
        domains.append(KINDS.index(kind))
        products.append(surfaces.PRODUCTS.index(product))
    sampler = Sampler(domains, products, config.seed, config.balance)
    load, latents = np.stack(photos).__getitem__, 2 * config.loss.codes_steps
    return BatchMaker(sampler, load, sizes, config.augment, with_masks=True, num_latents=latents)


def trained(config: DTGANTrainConfig, iterations: int) -> tuple[Training, DTGANConfig]:
    """So many iterations of a recipe on surfaces."""
    sizes = network_sizes(config, num_products=3, num_domains=3)
    training, make = Training.start(config, sizes, CPU), surface_maker(config, sizes, 20, seed=0)
    for _ in range(iterations):
        numbers = range(training.images_seen, training.images_seen + config.batch_per_worker)
        iterate(training, training.networks, to_batch(make(numbers)), config, config.batch_per_worker)
    return training, sizes


# --------------------------------------------------------------------------------------- at the first iteration


def test_gradients_reach_f_and_m_at_the_first_iteration() -> None:
    """The fusion's columns of F once began at zero, those of the background with them."""
    networks, config = build_networks(SIZES, 0), recipe()
    terms = generator_terms(networks, batch(), "latent", config.loss)
    terms["adversarial"].backward()
    generator = networks.translator.get_submodule("generator")
    for part in (
        generator.get_submodule("foreground_decoder"),
        networks.mapping.get_submodule("content_heads.1"),
    ):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters()), part


def test_a_background_skip_begins_with_the_image_itself() -> None:
    generator = build_networks(SIZES, 0).translator.get_submodule("generator")
    x = batch().x
    assert torch.equal(generator.background(x), x)  # pyright: ignore[reportCallIssue]


def test_given_codes_are_not_made_small() -> None:
    """Equations 2 and 5 are distances between codes: unless the wanted ones are given, shrinking both is free."""

    def pull_on_m(detach: bool) -> float:
        networks, config = build_networks(SIZES, 0), recipe(loss={"detach_codes": detach})
        terms = generator_terms(networks, batch(), "latent", config.loss)
        wanted = terms["style_content"] + terms["content_consistency"]
        gradients = torch.autograd.grad(wanted, [*networks.mapping.parameters()], allow_unused=True)
        return sum(gradient.abs().sum().item() for gradient in gradients if gradient is not None)

    assert pull_on_m(detach=True) < 0.7 * pull_on_m(detach=False)  # what is left comes by way of the images


def test_what_takes_no_part_in_a_step_does_not_move() -> None:
    """Adam makes a full step of the smallest weight decay where there is no other gradient."""
    config = shipped(batch_per_worker=4)
    assert config.optimizer.weight_decay == 0
    sizes = network_sizes(config, num_products=3, num_domains=3)
    training = Training.start(config, sizes, CPU)
    training.images_seen = config.optimizer.head_start
    some = to_batch(surface_maker(config, sizes, 2, seed=0)(range(4)))
    without = torch.ones_like(some.domain)
    some = some._replace(domain=without, target=without)
    head = training.networks.discriminator.get_submodule("adversarial").get_parameter("weight")
    before = head.detach().clone()
    iterate(training, training.networks, some, config, 4)
    assert torch.equal(head[2], before[2])
    assert not torch.equal(head[1], before[1])


def test_masks_teach_at_the_defect_however_small() -> None:
    wanted = torch.zeros(2, 1, 8, 8)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2, 3] = 1
    made = wanted + 0.5 * mask
    assert losses.at_defect(made, wanted, mask, torch.ones(2)).item() == pytest.approx(0.5)
    assert losses.at_defect(made, wanted, mask, torch.zeros(2)).item() == 0  # unknown: teaches nothing
    assert losses.at_defect(wanted + 0.5, wanted, 0 * mask, torch.ones(2)).item() == pytest.approx(0.5)


def test_a_healed_photo_has_no_defect_and_is_the_same_elsewhere() -> None:
    photo = np.full((32, 32, 2), 100, np.uint8)
    photo[..., 1] = 0
    photo[10:14, 8:20] = (250, 255)
    photo[9, 8:20, 0] = 250  # its rim, that the mask does not cover
    clean = healed(photo)
    assert clean.shape == (32, 32, 1)
    assert np.abs(clean.astype(int) - 100).max() <= 2  # so exact is the fill
    assert np.array_equal(healed(np.zeros_like(photo)), np.zeros((32, 32, 1), np.uint8))


def test_masks_go_with_their_photos_through_augmentation() -> None:
    config = shipped()
    sizes = network_sizes(config, num_products=3, num_domains=3)
    some = to_batch(surface_maker(config, sizes, 4, seed=1)(range(16)))
    is_defect = some.domain > 0
    assert torch.equal(some.mask.sum((1, 2, 3)) > 0, is_defect)
    assert some.taught.bool().all()
    change = (some.x - some.healed).abs()
    beside = change * (1 - torch.nn.functional.max_pool2d(some.mask, 5, 1, 2))
    assert (beside.sum() / change.sum()) < 0.05
    assert torch.equal(some.x[~is_defect], some.healed[~is_defect])


def test_a_defect_turned_over_is_bright_for_dark_and_nothing_beside_it_changes() -> None:
    config = shipped()
    sizes = network_sizes(config, num_products=3, num_domains=3)
    some = to_batch(surface_maker(config, sizes, 4, seed=1)(range(16)))
    other = turned_over(some)
    torch.testing.assert_close(other[some.domain == 0], some.x[some.domain == 0])
    inside = other.abs() < 1  # what is not cut off at black or white
    torch.testing.assert_close((other - some.healed)[inside], (some.healed - some.x)[inside])


def test_masks_ask_style_whether_a_defect_is_bright_and_content_for_all_else() -> None:
    """F(E^s(w), E^c(v)) is to be w's defect, w and v being a photo or the same turned over: v is w in half of the
    rows, and the other one in the rest. Were it never w, content could say it, the wrong way round."""
    sizes = network_sizes(shipped(), num_products=3, num_domains=3)
    networks = build_networks(sizes, 0)
    some = to_batch(surface_maker(shipped(), sizes, 4, seed=1)(range(8)))
    photos = {"x": some.x, "w": turned_over(some)}
    read = {name: networks.encoder(w, some.domain) for name, w in photos.items()}
    wanted = {name: w - some.healed for name, w in photos.items()}
    assert (wanted["x"] - wanted["w"]).abs().max() > 0.1
    swapped = some.z[0, :, 0] < 0
    assert 0 < swapped.sum() < 8
    where = some.mask, some.taught
    background = networks.translator(some.x, *(code[None] for code in read["x"])).background
    by_hand = losses.at_defect(background, some.healed, *where)
    for name, other in (("x", "w"), ("w", "x")):
        content = read[name][1].clone()
        content[swapped] = read[other][1][swapped]
        layer = networks.translator(some.x, read[name][0][None], content[None]).layers[0]
        by_hand = by_hand + losses.at_defect(layer, wanted[name], *where) / 2
    torch.testing.assert_close(taught_terms(networks, some)["layer"], by_hand)


def test_the_code_discriminator_judges_each_row_by_its_own_domain() -> None:
    network = CodeDiscriminator(SIZES)
    codes = torch.randn(6, SIZES.style_dim + SIZES.content_size)
    logits = [network(codes, torch.full((6,), domain)) for domain in range(3)]
    mixed = network(codes, torch.tensor([0, 1, 2, 0, 1, 2]))
    for row in range(6):
        assert mixed[row] == logits[row % 3][row]


def test_one_domain_of_the_content_map_is_that_of_all() -> None:
    sizes = network_sizes(shipped(), num_products=3, num_domains=3)
    network = MappingNetwork(sizes).eval()
    z, noise = torch.randn(3, sizes.latent_dim), torch.randn(3, sizes.noise_size)
    for domain in range(3):
        every = network(z, torch.full((3,), domain), noise)
        for a, b in zip(network.for_domain(z, domain, noise), every, strict=True):
            torch.testing.assert_close(a, b)


def test_masks_are_asked_for_where_they_are_to_teach(tmp_path: Path) -> None:
    for product, kind in itertools.product(("a", "b"), ("normal", "spots")):
        storage.put(f"{tmp_path}/{product}/{kind}/1.png", images.encode_png(np.zeros((32, 32, 1), np.uint8)))
    config = shipped(defects=str(tmp_path))
    with pytest.raises(UserError, match=r"loss\.layer = 5: no defect in .* has a mask"):
        DTGANTrainer.draft(config)
    with pytest.raises(UserError, match=r"loss\.layer: ladder"):
        network_sizes(shipped(ladder="b"), num_products=2, num_domains=2)


def test_a_resumed_training_goes_on_with_the_same_bank_of_codes() -> None:
    config = shipped(batch_per_worker=4, optimizer=shipped().optimizer.model_copy(update={"head_start": 4}))
    sizes = network_sizes(config, num_products=3, num_domains=3)
    make = surface_maker(config, sizes, 4, seed=0)

    def go_on(training: Training) -> None:
        numbers = range(training.images_seen, training.images_seen + 4)
        iterate(training, training.networks, to_batch(make(numbers)), config, 4)

    whole = Training.start(config, sizes, CPU)
    for _ in range(3):
        go_on(whole)
    resumed = Training.start(config, sizes, CPU)
    go_on(resumed)
    state = copy.deepcopy(resumed.state_dict())
    resumed = Training.start(config, sizes, CPU)
    resumed.load_state_dict(state)
    for _ in range(2):
        go_on(resumed)
    assert torch.equal(whole.bank.codes, resumed.bank.codes)
    for a, b in zip(whole.networks.mapping.parameters(), resumed.networks.mapping.parameters(), strict=True):
        assert torch.equal(a, b)


# ----------------------------------------------------------------------------------------- over a short training


def z_share(networks: Networks, sizes: DTGANConfig) -> float:
    z = torch.randn(8, sizes.latent_dim, generator=torch.Generator().manual_seed(1)).repeat_interleave(
        4, dim=0
    )
    noise = torch.randn(32, sizes.noise_size, generator=torch.Generator().manual_seed(2))
    shares = []
    for domain in (1, 2):
        with torch.no_grad():
            content = networks.mapping(z, torch.full((32,), domain), noise)[1]
        shares.append(share_of_variance(content.unflatten(0, (8, 4))))
    return min(shares)


@pytest.mark.slow
def test_content_obeys_z_over_a_short_training() -> None:
    config = shipped(images=800)
    training, sizes = trained(config, iterations=80)
    assert z_share(training.networks, sizes) > 0.3


@pytest.mark.slow
def test_references_come_back_with_their_sign_and_style_alone_turns_it() -> None:
    """Bright spots and dark ones, on surfaces that were not learned from, after a head start. Where they
    are is learned early; whether they are bright comes late, at some 700 iterations, and all at once."""
    training, sizes = trained(shipped(), iterations=900)
    some = to_batch(surface_maker(shipped(), sizes, 20, seed=9)(range(160)))
    spots = some.domain == KINDS.index("spots")
    images = {name: getattr(some, name)[spots] for name in ("x", "healed", "mask", "domain")}
    some, networks = some._replace(**images), training.networks
    true = ((some.x - some.healed) * some.mask).sum((1, 2, 3))
    assert 0.1 < (true > 0).float().mean() < 0.5  # there are both

    def drawn(style: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        layers = networks.translator.get_submodule("generator").defect_layer(style, content)  # pyright: ignore
        return (layers * some.mask).sum((1, 2, 3))

    with torch.no_grad():
        style, content = networks.encoder(some.x, some.domain)
        other, _ = networks.encoder(turned_over(some), some.domain)
        straight, turned = drawn(style, content), drawn(other, content)
    for which in (true > 0, true < 0):
        assert ((straight > 0) == (true > 0))[which].float().mean() > 0.8
        assert ((turned > 0) == (true < 0))[which].float().mean() > 0.8
    assert correlation(true[:, None], straight[:, None]) > 0.8

"""`product_codes`: M is told the product, and a normal gets the defects of its own."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import TINY, make_samples, write_checkpoint
from training import SIZES, batch_maker, recipe, write_defect_set

from raygen import surfaces
from raygen.checkpoint import Checkpoint, Reference
from raygen.families import load_generator
from raygen.families.dtgan.batches import to_batch
from raygen.families.dtgan.networks import CodeDiscriminator, MappingNetwork
from raygen.families.dtgan.step import CodeBank, Training, iterate
from raygen.families.dtgan.vital_signs import vital_signs
from raygen.families.family import stream
from raygen.families.photos import DefectSet
from raygen.families.references import choose_products
from raygen.generate.config import GateConfig, GenerateConfig
from raygen.records import SampleRequest

CPU = torch.device("cpu")
KNOWING = dataclasses.replace(SIZES, product_codes=True)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


def test_m_draws_each_product_something_else_of_the_same_z() -> None:
    mapping = MappingNetwork(KNOWING).eval()
    z, noise = (
        torch.randn(1, KNOWING.latent_dim).repeat(3, 1),
        torch.randn(1, KNOWING.noise_size).repeat(3, 1),
    )
    products = torch.arange(3)
    style, content = mapping.for_domain(z, 1, noise, products)
    for codes in (style, content):
        assert (codes[0] - codes[1]).abs().mean() > 1e-3
        assert (codes[1] - codes[2]).abs().mean() > 1e-3
    every = mapping(z, torch.ones(3, dtype=torch.long), noise, products)
    for one, other in zip((style, content), every, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(AssertionError, match="told the product"):
        mapping(z, products, noise)


def test_the_code_discriminator_judges_each_row_by_its_own_domain_and_product() -> None:
    network = CodeDiscriminator(KNOWING)
    codes = torch.randn(9, KNOWING.style_dim + KNOWING.content_size)
    domain, product = torch.arange(9) % 3, torch.arange(9) // 3
    mixed = network(codes, domain, product)
    for row in range(9):
        own = torch.full((9,), int(domain[row])), torch.full((9,), int(product[row]))
        assert mixed[row] == network(codes, *own)[row]
    other = network(codes, domain, (product + 1) % 3)
    assert (mixed - other).abs().min() > 1e-6


def test_references_bring_their_own_products_and_the_bank_keeps_them() -> None:
    make = batch_maker()
    some = to_batch(make(range(6)))
    for n in range(6):
        wanted = [make.sampler.products[row] for row in make.sampler.draw(n).references]
        assert some.reference_products[:, n].tolist() == wanted
    bank = CodeBank()
    for start in (0, 10, 20):
        rows = torch.arange(start, start + 4)
        bank.add(rows[:, None].float(), rows % 3, rows % 5, room=10)
    codes, domain, product = bank.part(1, 4)
    assert codes[:, 0].tolist() == [10, 11, 12, 13]
    assert domain.tolist() == [int(code) % 3 for code in codes[:, 0]]
    assert product.tolist() == [int(code) % 5 for code in codes[:, 0]]
    old = {"codes": torch.ones(3, 1), "domain": torch.ones(3, dtype=torch.long)}  # of an older build
    bank.load_state_dict(old)
    assert len(bank.codes) == 10


def test_what_m_is_told_reaches_its_weights() -> None:
    """Of the columns that read the product, in M's first layer, all learn."""
    config = recipe(optimizer={}, loss={"codes": 1.0, "codes_steps": 2}, batch_per_worker=6)
    training = Training.start(config, KNOWING, CPU)
    layer = next(training.networks.mapping.get_submodule("shared").children())
    before = next(layer.parameters()).detach().clone()
    iterate(training, training.networks, to_batch(batch_maker(KNOWING, num_latents=4)(range(6))), config, 6)
    moved = (next(layer.parameters()) - before).abs().amax(dim=0)
    assert moved.shape == (KNOWING.latent_dim + 3,)
    assert (moved > 0).all()


# -------------------------------------------------------------------------------------------- samples


BANK = (
    Reference(uri="1", product="A", defect_type="scratches"),
    Reference(uri="2", product="b", defect_type="scratches"),
    Reference(uri="3", product="C", defect_type="spots"),
)


def test_a_product_without_such_a_defect_passes_as_one_that_had_it() -> None:
    names, seeds = ("A", "B", "C"), list(range(40))
    own = choose_products(names, BANK, "scratches", seeds[:3], ["a", "B", "A"])
    assert own.tolist() == [0, 1, 0]
    others = choose_products(names, BANK, "scratches", seeds, ["C"] * 20 + ["unknown"] * 20)
    assert set(others[:20].tolist()) == set(others[20:].tolist()) == {0, 1}
    assert choose_products(names, BANK, "spots", [5, 6], ["A", "C"]).tolist() == [2, 2]
    again = choose_products(names, BANK, "scratches", seeds[7:9], ["C", "C"])
    assert again.tolist() == others[7:9].tolist()  # by the seed alone
    assert choose_products(names, (), "scratches", seeds, ["A"] * 40).max() == 2  # nobody knows: any
    many = np.arange(2000)
    chosen = choose_products(names, BANK, "scratches", many.tolist(), ["C"] * len(many))
    z = np.array([stream(int(seed)).standard_normal() for seed in many])
    spreads = [z[chosen == product].std() for product in (0, 1)]
    assert spreads == pytest.approx([1, 1], abs=0.1)  # what is chosen says nothing of z


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    sizes = dataclasses.replace(TINY, product_codes=True)
    return write_checkpoint(str(tmp_path_factory.mktemp("checkpoint")), sizes)


def test_a_sample_is_of_its_normals_product(checkpoint: Checkpoint) -> None:
    normal = np.full((1, 32, 32, 1), 128, np.uint8)
    request = [SampleRequest("scratches", "latent", 0)]
    config = GenerateConfig(pool="pool", output="out", checkpoint=checkpoint.uri, micro_batch=2)
    generator = load_generator(checkpoint, config)

    def of(product: str) -> np.ndarray:
        gate = GateConfig(min_mask_area=None)
        return make_samples(generator, normal, np.array([[7]]), request, gate, [product]).made.pixels

    first, second, third = map(of, surfaces.PRODUCTS)
    shouted, unknown = of(surfaces.PRODUCTS[0].upper()), of("unknown")
    assert np.abs(first.astype(int) - second).mean() > 0.5
    assert np.abs(second.astype(int) - third).mean() > 0.5
    np.testing.assert_array_equal(first, shouted)
    assert any(np.array_equal(unknown, known) for known in (first, second, third))


def test_it_wants_contents() -> None:
    with pytest.raises(ValueError, match="product_codes must be False without content"):
        dataclasses.replace(
            SIZES, decoders="joint", content=False, anchor=False, content_noise=False, product_codes=True
        )


def test_z_is_asked_within_a_product(tmp_path: Path) -> None:
    """What M knows of products must not pass for z's share: an M that hears the product alone has none."""

    write_defect_set(str(tmp_path / "set"))
    config = recipe(str(tmp_path / "set"), str(tmp_path / "out"))
    photos = DefectSet.read(config)
    sizes = dataclasses.replace(KNOWING, num_products=len(photos.products))
    training = Training.start(config, sizes, CPU)
    layer = next(training.average.mapping.get_submodule("shared").children())
    with torch.no_grad():
        next(layer.parameters())[:, : sizes.latent_dim] = 0
    signs = vital_signs(training, photos, photos, sizes, seed=0)
    assert signs["content/z_share"] < 0.05

"""The n-th image of a training is a pure function of the seed and n; cells are drawn alike."""

from collections import Counter

import numpy as np
import pytest
import torch
from training import SIZES, batch_maker

from raygen.families.dtgan.batches import Balance, Sampler, augmented, to_batch

# Two products: 50 normals, 5 scratches and 1 spot of the first; 10 normals and 20 scratches of the second.
CELLS = {(0, 0): 50, (0, 1): 5, (0, 2): 1, (1, 0): 10, (1, 1): 20}
PRODUCTS = [product for (product, _), count in CELLS.items() for _ in range(count)]
DOMAINS = [domain for (_, domain), count in CELLS.items() for _ in range(count)]


def test_an_image_does_not_depend_on_its_batch() -> None:
    make = batch_maker()
    whole = make(range(8))
    for part in (make(range(3)), make([2]), make([5, 0])):
        rows = {3: [0, 1, 2], 1: [2], 2: [5, 0]}[len(part["target"])]
        for name, values in part.items():
            axis = 1 if name in ("z", "noise", "references", "reference_products") else 0
            np.testing.assert_array_equal(values, np.take(whole[name], rows, axis))


def test_seed_and_number_decide() -> None:
    one, again, other = batch_maker(seed=1)([7]), batch_maker(seed=1)([7]), batch_maker(seed=2)([7])
    assert all((one[name] == again[name]).all() for name in one)
    assert (one["z"] != other["z"]).all()
    assert (one["z"] != batch_maker(seed=1)([8])["z"]).all()


@pytest.mark.parametrize("balance", ["cells", "defect_types", "none"])
def test_sources_are_balanced_as_asked(balance: Balance) -> None:
    sampler, num = Sampler(DOMAINS, PRODUCTS, seed=0, balance=balance), 6000
    draws = [sampler.draw(n) for n in range(num)]
    found = Counter((PRODUCTS[draw.source], DOMAINS[draw.source]) for draw in draws)
    for cell, count in CELLS.items():
        in_domain = sum(c for (_, domain), c in CELLS.items() if domain == cell[1])
        share = {"cells": 1 / 5, "defect_types": count / in_domain / 3, "none": count / len(DOMAINS)}[balance]
        assert found[cell] == pytest.approx(share * num, abs=5 * (num * share) ** 0.5)  # 5 sigma


def test_references_are_of_the_target_and_targets_alike() -> None:
    sampler = Sampler(DOMAINS, PRODUCTS, seed=0)
    draws = [sampler.draw(n) for n in range(3000)]
    for draw in draws:
        assert {DOMAINS[i] for i in draw.references} == {draw.target}
    assert all(abs(count - 1000) < 150 for count in Counter(draw.target for draw in draws).values())


def test_tensors_are_as_the_networks_want_them() -> None:
    fields = batch_maker()(range(4))
    batch = to_batch(fields)
    assert batch.x.shape == (4, 1, 32, 32)
    assert batch.references.shape == (2, 4, 1, 32, 32)
    assert batch.z.shape == (2, 4, SIZES.latent_dim)
    assert batch.noise.shape == (2, 4, SIZES.noise_size)
    assert batch.domain.dtype == batch.product.dtype == batch.target.dtype == torch.long
    assert -1 <= batch.x.min() < -0.9
    assert 0.9 < batch.x.max() <= 1
    np.testing.assert_allclose(
        batch.references[1, 2, 0].numpy(), fields["references"][1, 2, :, :, 0] / 127.5 - 1, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_flips_and_crops_half_of_the_images(channels: int) -> None:
    # A slope across and one down: a flip turns the first, a crop flattens both.
    ramp = np.add.outer(np.arange(64), 2 * np.arange(64)).astype(np.uint8)
    pixels = np.repeat(ramp[:, :, None], channels, axis=2)
    kinds: Counter[str] = Counter()
    for n in range(400):
        out = augmented(pixels, np.random.default_rng(n))
        assert out.shape == pixels.shape
        assert out.dtype == np.uint8
        flipped = out[32, 8, 0] > out[32, 56, 0]
        plain = out[:, ::-1] if flipped else out
        kinds["flipped"] += flipped
        kinds["cropped"] += not (plain == pixels).all()
        assert (
            int(plain[60, 60, 0]) - int(plain[4, 4, 0]) >= 0.75 * 3 * 56
        )  # area 0.8: side 0.85 at the least
    assert 150 < kinds["flipped"] < 250
    assert 150 < kinds["cropped"] < 250

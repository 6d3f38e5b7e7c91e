"""What StyleGAN2 and DFM-GAN see: image number n, wherever and by whomever it is drawn."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from gan_training import DEFECTS, SIZES, AnyConfig, batch, maker, recipe1, recipe2

from raygen.data.photo import Photo
from raygen.families.photos import DefectSet
from raygen.families.stylegan2.ada import NUM_DRAWS
from raygen.families.stylegan2.batches import DISCRIMINATOR, GENERATOR, GANBatchMaker, LatentSizes, cells_of


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# -------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("config", [recipe1(mirror=True), recipe2(mirror=True)], ids=lambda c: c.family)
def test_an_image_does_not_depend_on_its_batch(config: AnyConfig) -> None:
    make = maker(config)
    whole = make(range(8))
    for numbers in ([0, 1, 2], [2], [5, 0]):
        for name, values in make(numbers).items():
            by_image = name in ("numbers", "x", "product", "defect_type")
            axis = 0 if by_image else whole[name].ndim - 2
            np.testing.assert_array_equal(values, np.take(whole[name], numbers, axis), err_msg=name)


def test_seed_and_number_decide() -> None:
    one, again, other = (maker(recipe2(seed=seed))([7]) for seed in (1, 1, 2))
    assert all((one[name] == again[name]).all() for name in one)
    next_one = maker(recipe2(seed=1))([8])
    for name in ("normal_z", "normal_mixing", "normal_noise", "defect_z", "uniforms", "gaussians"):
        assert (one[name] != other[name]).all()
        assert (one[name] != next_one[name]).all()


def test_all_of_an_iteration_s_randomness_is_drawn_apart() -> None:
    """Roles, latents of a mixture, normals and defects, views of augmentation: none repeats another."""
    some = batch(recipe2())
    drawn = [*some.normals, *some.defects]
    flat = [tensor.flatten() for latents in drawn for tensor in (latents.z, latents.other, latents.noise)]
    flat += [tensor.flatten() for pair in some.draws for tensor in pair]
    flat += [latents.mixing.flatten() for latents in drawn]
    assert len({tuple(tensor[:8].tolist()) for tensor in flat}) == len(flat) == 4 * 3 + 3 * 2 + 4


def test_a_mirrored_photo_has_a_mirrored_mask() -> None:
    config = recipe2()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 1), dtype=np.uint8)
    pixels = np.concatenate([pixels, (pixels > 127) * np.uint8(255)], axis=3)
    plain = replace(maker(config), load=pixels.__getitem__)
    kept, turned = Counter[bool](), Counter[bool]()
    for make, found in ((plain, kept), (replace(plain, mirror=True), turned)):
        for image in make(range(300))["x"]:
            np.testing.assert_array_equal(image[..., 1], (image[..., 0] > 127) * 255)
            as_is, flipped = ((pixels == view).all(axis=(1, 2, 3)).any() for view in (image, image[:, ::-1]))
            assert as_is != flipped
            found[bool(flipped)] += 1
    assert kept == {False: 300}
    assert turned[True] == pytest.approx(150, abs=5 * 75**0.5)  # 5 sigma


def test_cells_are_drawn_equally_often_and_their_photos_too() -> None:
    sizes, num = (50, 5, 1, 10), 4000
    ends = np.cumsum(sizes)
    cells = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    products = np.arange(66)
    nothing = LatentSizes(0, 0)
    make = GANBatchMaker(
        0, cells, products, 0 * products, np.zeros((66, 1, 1, 1), np.uint8).__getitem__, False, nothing
    )
    photos = Counter(make(range(num))["product"].tolist())
    for cell in cells:
        assert sum(photos[row] for row in cell) == pytest.approx(num / 4, abs=5 * (num / 4) ** 0.5)
    assert all(photos[row] == pytest.approx(200, abs=5 * 200**0.5) for row in cells[1])


def test_cells_are_products_and_types_that_there_are() -> None:
    kinds = [("a", "normal"), ("a", "spots"), ("b", "spots"), ("a", "spots"), ("b", "scratches")]
    photos = [Photo(f"/{i}.png", product, kind, None, "", None) for i, (product, kind) in enumerate(kinds)]
    found = cells_of(DefectSet(photos, ("a", "b"), ("scratches", "spots")))
    assert [cell.tolist() for cell in found] == [[0], [1, 3], [4], [2]]


def test_tensors_are_as_the_networks_want_them() -> None:
    some = batch(recipe2())
    assert some.x.shape == some.masks.shape == (4, 1, 32, 32)
    assert -1 <= some.x.min() < -0.9
    assert 0.9 < some.x.max() <= 1
    assert set(some.masks.unique().tolist()) == {-1, 1}
    assert some.product.dtype == some.defect_type.dtype == some.numbers.dtype == torch.long
    for latents, noise_size in ((some.normals, SIZES.noise_size), (some.defects, DEFECTS.noise_size)):
        for role in (DISCRIMINATOR, GENERATOR):
            assert latents[role].z.shape == latents[role].other.shape == (4, 8)
            assert latents[role].mixing.shape == (4, 2)
            assert latents[role].noise.shape == (4, noise_size)
    assert [[tuple(tensor.shape) for tensor in view] for view in some.draws] == [[(4, NUM_DRAWS)] * 2] * 3
    normals = batch(recipe1())
    assert normals.masks.shape == (4, 0, 32, 32)
    assert (normals.defect_type == 0).all()


def test_every_second_image_is_the_same_one_however_a_batch_is_spread() -> None:
    whole = batch(recipe1(), range(8)).normals[GENERATOR].every_second()
    halves = [batch(recipe1(), range(i, i + 4)).normals[GENERATOR].every_second() for i in (0, 4)]
    for tensor, one, other in zip(whole, *halves, strict=True):
        assert torch.equal(tensor, torch.cat([one, other]))


def test_a_maker_can_be_pickled() -> None:
    make = maker(recipe2())
    for name, values in pickle.loads(pickle.dumps(make))(range(4)).items():
        np.testing.assert_array_equal(values, make(range(4))[name])

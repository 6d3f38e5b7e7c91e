"""The procedural surfaces: deterministic, different, with defects where their masks say and nowhere else."""

import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from raygen.surfaces import (
    DEFECT_TYPES,
    PRODUCTS,
    change_margin,
    defect_set,
    pool,
    render_defect,
    render_normal,
)

CELLS = [(product, defect_type) for product in PRODUCTS for defect_type in DEFECT_TYPES]
DIGEST_OF_ALL = """
import hashlib
from raygen.surfaces import DEFECT_TYPES, PRODUCTS, render_defect, render_normal
digest = hashlib.sha256()
for product in reversed(PRODUCTS):
    for defect_type in DEFECT_TYPES:
        for array in render_defect(product, defect_type, -7, 48, 3):
            digest.update(array.tobytes())
    digest.update(render_normal(product, 10**30, 64).tobytes())
print(digest.hexdigest())
"""


def grown(mask: np.ndarray, margin: int) -> np.ndarray:
    """The mask, bool (H, W), with each pixel grown to a square of so many pixels to each side."""
    for axis in (0, 1):
        mask = np.logical_or.reduce([_shifted(mask, step, axis) for step in range(-margin, margin + 1)])
    return mask


def _shifted(mask: np.ndarray, step: int, axis: int) -> np.ndarray:
    shifted = np.zeros_like(mask)
    source, target = [slice(None)] * 2, [slice(None)] * 2
    source[axis] = slice(max(-step, 0), min(len(mask) - step, len(mask)))
    target[axis] = slice(max(step, 0), min(len(mask) + step, len(mask)))
    shifted[tuple(target)] = mask[tuple(source)]
    return shifted


def pieces(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected pieces of a mask, each as (pixels, 2) coordinates."""
    left, found = {(int(row), int(column)) for row, column in np.argwhere(mask)}, []
    while left:
        front = [left.pop()]
        piece = list(front)
        while front:
            row, column = front.pop()
            near = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= near
            front += near
            piece += near
        found.append(np.array(piece))
    return found


def thickness(mask: np.ndarray) -> float:
    """Mean over the mask of how often it can be eaten from its border; small for lines, large for blobs."""
    total, rest = 0, mask
    while rest.any():
        total += int(rest.sum())
        rest = ~grown(~rest, 1) & rest
    return total / int(mask.sum())


def texture(image: np.ndarray) -> np.ndarray:
    """Two numbers: how far structure runs along the rows, and the log share of the strongest wave."""
    grey = image[..., 0].astype(float)
    steps, shift = np.diff(grey, axis=0), len(grey) // 20
    run = np.corrcoef(steps[:, shift:].ravel(), steps[:, :-shift].ravel())[0, 1]
    power = np.abs(np.fft.rfft2(grey)) ** 2
    power[:6, :6] = power[-5:, :6] = 0  # light, not texture
    return np.array([run, np.log(power.max() / power.sum())])


def test_same_arguments_give_the_same_bytes_in_any_order_and_process():
    digest = hashlib.sha256()
    render_normal(PRODUCTS[0], 1)
    for product in reversed(PRODUCTS):
        for defect_type in DEFECT_TYPES:
            first, second = (render_defect(product, defect_type, -7, 48, 3) for _ in range(2))
            for array, again in zip(first, second, strict=True):
                np.testing.assert_array_equal(array, again)
                digest.update(array.tobytes())
        digest.update(render_normal(product, 10**30, 64).tobytes())
    fresh = subprocess.run([sys.executable, "-c", DIGEST_OF_ALL], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == digest.hexdigest()


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (45, 1), (64, 3), (101, 3), (128, 1), (1024, 1)])
def test_shapes_types_and_ranges(product: str, size: int, channels: int):
    normal = render_normal(product, 5, size, channels)
    assert normal.shape == (size, size, channels)
    assert normal.dtype == np.uint8
    assert normal.std() > 8
    assert 50 < normal.mean() < 200
    for defect_type in DEFECT_TYPES:
        image, mask = render_defect(product, defect_type, 5, size, channels)
        assert (image.shape, image.dtype) == (normal.shape, np.uint8)
        assert (mask.shape, mask.dtype) == ((size, size), np.uint8)
        assert set(np.unique(mask)) == {0, 255}


@pytest.mark.parametrize("product", PRODUCTS)
def test_few_pixels_are_clipped(product: str):
    images = np.stack([render_normal(product, seed) for seed in range(20)])
    assert ((images == 0) | (images == 255)).mean() < 0.01


@pytest.mark.parametrize("product", PRODUCTS)
def test_seeds_differ_in_surface_and_in_light(product: str):
    images = np.stack([render_normal(product, seed, 64)[..., 0] for seed in range(-10, 10)]).astype(float)
    steps = np.diff(images, axis=1).reshape(len(images), -1)
    alike = np.corrcoef(steps) - np.eye(len(steps))
    assert np.abs(np.diff(images, axis=0)).mean(axis=(1, 2)).min() > 5
    assert alike.max() < 0.75
    assert images.mean(axis=(1, 2)).std() > 3


@pytest.mark.parametrize("product", PRODUCTS)
def test_one_channel_is_the_luma_of_three(product: str):
    grey = render_normal(product, 3)[..., 0].astype(float)
    colour = render_normal(product, 3, channels=3).astype(float)
    error = np.abs(colour @ [0.299, 0.587, 0.114] - grey)
    assert error[(colour < 255).all(axis=-1)].max() <= 1
    assert (colour < 255).all(axis=-1).mean() > 0.95


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("size", [64, 256])
def test_another_size_is_the_same_surface_at_another_resolution(product: str, size: int):
    """The same light and contrast, and the same defects, compared at 32 px."""

    def small(image: np.ndarray) -> np.ndarray:
        factor = len(image) // 32
        return image.reshape(32, factor, 32, factor).mean(axis=(1, 3))

    for seed in range(4):
        here, there = small(render_normal(product, seed, size)), small(render_normal(product, seed, 128))
        assert abs(here.mean() - there.mean()) < 12
        assert 0.6 < here.std() / there.std() < 1.6
        for defect_type in DEFECT_TYPES:
            masks = [render_defect(product, defect_type, seed, side)[1] > 0 for side in (size, 128)]
            coarse = [small(mask.astype(float)) > 0 for mask in masks]
            assert (coarse[0] & grown(coarse[1], 1)).sum() >= 0.95 * coarse[0].sum()
            assert (coarse[1] & grown(coarse[0], 1)).sum() >= 0.95 * coarse[1].sum()


@pytest.mark.parametrize(("product", "defect_type"), CELLS)
def test_a_defect_changes_its_mask_and_nothing_beyond_the_margin(product: str, defect_type: str):
    settings = [(seed, 128, 1) for seed in range(50)]
    settings += [(seed, size, 3) for seed in range(3) for size in (32, 47, 64, 96, 256)]
    for seed, size, channels in settings:
        normal = render_normal(product, seed, size, channels)
        image, mask = render_defect(product, defect_type, seed, size, channels)
        changed = (image != normal).any(axis=-1)
        assert not (changed & ~grown(mask > 0, change_margin(size))).any()
        assert changed[mask > 0].mean() > 0.75


@pytest.mark.parametrize(("product", "defect_type"), CELLS)
def test_defects_are_visible_and_of_sensible_area(product: str, defect_type: str):
    areas, contrasts = [], []
    for seed in range(50):
        image, mask = render_defect(product, defect_type, seed)
        inside = mask > 0
        areas.append(inside.mean())
        contrasts.append(np.abs(image.astype(int) - render_normal(product, seed))[inside].mean())
    assert min(areas) > 0.002
    assert max(areas) < 0.06
    assert min(contrasts) > 8  # sensor noise is about 2 to 4 grey levels
    assert np.median(contrasts) > 22


@pytest.mark.parametrize("product", PRODUCTS)
def test_scratches_are_thin_and_spots_compact(product: str):
    scratches = [render_defect(product, "scratches", seed)[1] > 0 for seed in range(20)]
    spots = [render_defect(product, "spots", seed)[1] > 0 for seed in range(20)]
    assert max(map(thickness, scratches)) < min(map(thickness, spots))
    for mask in scratches:
        largest = max(pieces(mask), key=len)
        assert np.ptp(largest, axis=0).max() > 4 * thickness(mask)  # long for its width
    for mask in spots:
        largest = max(pieces(mask), key=len)
        minor, major = np.sqrt(np.linalg.eigvalsh(np.cov(largest.T)))
        assert major < 4 * minor


@pytest.mark.parametrize("product", PRODUCTS)
def test_defect_types_of_one_seed_share_the_background_and_differ(product: str):
    (scratched, scratches), (spotted, spots) = (render_defect(product, kind, 11) for kind in DEFECT_TYPES)
    background = ~grown((scratches > 0) | (spots > 0), change_margin(128))
    np.testing.assert_array_equal(scratched[background], spotted[background])
    assert (scratches != spots).any()


@pytest.mark.parametrize("size", [64, 128])
def test_two_texture_numbers_tell_the_products_apart(size: int):
    """Nearest mean of the standardized numbers: learned on some seeds, right on every one of the others."""
    features = np.array(
        [[texture(render_normal(product, seed, size)) for seed in range(40)] for product in PRODUCTS]
    )
    means = features[:, :20].mean(axis=1)
    spread = features[:, :20].std(axis=1).mean(axis=0)
    distance = np.linalg.norm((features[:, 20:, None] - means) / spread, axis=-1)
    expected = np.arange(len(PRODUCTS))[:, None]
    assert (distance.argmin(axis=-1) == expected).all()


def test_pool_names_and_counts():
    images = dict(pool(3, seed=1, size=32, channels=3))
    assert list(images) == [f"{product}/{number:06d}.png" for product in PRODUCTS for number in range(3)]
    assert {image.shape for image in images.values()} == {(32, 32, 3)}
    assert len({image.tobytes() for image in images.values()}) == len(images)


def test_defect_set_names_and_counts():
    images = dict(defect_set(2, 3, seed=1, size=32))
    folders = Counter(name.rsplit("/", 1)[0] for name in images)
    expected = {f"{product}/{kind}": 6 for product in PRODUCTS for kind in DEFECT_TYPES}
    assert folders == expected | {f"{product}/normal": 2 for product in PRODUCTS}
    masks = {name for name in images if name.endswith("_mask.png")}
    assert all(name.replace("_mask.png", ".png") in images for name in masks)
    assert len(masks) == 3 * len(CELLS)
    assert all(images[name].shape == ((32, 32) if name in masks else (32, 32, 1)) for name in images)


def test_collections_share_no_surface():
    """Not even under the same seed, nor two products; a longer pool begins with the shorter one."""
    several = [dict(pool(4, seed, 32)) for seed in (0, 1)] + [
        dict(defect_set(4, 4, seed, 32)) for seed in (0, 1)
    ]
    images = [image for one in several for name, image in one.items() if not name.endswith("_mask.png")]
    assert len({image.tobytes() for image in images}) == len(images)
    corners = {image[:2].tobytes() for image in images}  # a shared background would show at the border
    assert len(corners) == len(images)
    for name, image in pool(2, 0, 32):
        np.testing.assert_array_equal(image, several[0][name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wood", "spots", 0, 128, 1), "product 'wood'.*brushed_metal, woven_fabric, grained_leather"),
        (("brushed_metal", "normal", 0, 128, 1), "defect_type 'normal'.*scratches, spots"),
        (("brushed_metal", "spots", 0, 31, 1), "size 31.*32 to 1024"),
        (("brushed_metal", "spots", 0, 1025, 1), "size 1025.*32 to 1024"),
        (("brushed_metal", "spots", 0, 128, 2), "channels 2.*1, 3"),
    ],
)
def test_errors_name_the_choices(arguments: tuple[str, str, int, int, int], message: str):
    with pytest.raises(ValueError, match=message):
        render_defect(*arguments)
    if "defect_type" not in message:
        with pytest.raises(ValueError, match=message):
            render_normal(arguments[0], *arguments[2:])


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="num_per_product is -1"):
        next(pool(-1, 0))
    with pytest.raises(ValueError, match="num_per_type is -1"):
        next(defect_set(1, -1, 0))

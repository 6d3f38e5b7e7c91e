"""Windows lie where they may, by seed; a defect changes nothing outside its mask, at the photograph's own size."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from raygen import images
from raygen.errors import UserError
from raygen.generate.windows import Region, Window, cut_region, place_window, put_defect, read_region


def test_windows_lie_anywhere_in_the_photograph_and_only_there() -> None:
    found = [place_window(seed, 40, 70, 32) for seed in range(500)]
    assert {window.y for window in found} == set(range(9))
    assert {window.x for window in found} == set(range(39))
    assert place_window(7, 40, 70, 32) == found[7]
    assert place_window(3, 32, 32, 32) == Window(0, 0, 32)


@pytest.mark.parametrize("size", [(600, 900), (4096, 4096), (100, 300)])
@pytest.mark.parametrize("region_size", [(64, 64), (100, 333), (600, 900)])
def test_windows_lie_wholly_in_the_region(size: tuple[int, int], region_size: tuple[int, int]) -> None:
    (height, width), (rows, columns) = size, region_size
    mask = np.zeros(region_size, bool)
    mask[rows // 5 : -rows // 5, columns // 10 : columns // 2] = True
    mask[rows // 2, :] = True  # too narrow for any window
    region = Region(mask)
    corners = set()
    for seed in range(200):
        y, x, side = window = place_window(seed, height, width, 32, region)
        assert y >= 0 <= x
        assert max(y + side - height, x + side - width) <= 0
        assert cut_region(region, window, height, width, 32).all()
        corners.add((y, x))
    assert len(corners) > 50


def test_where_no_window_fits_its_centre_lies_in_the_region() -> None:
    mask = np.zeros((64, 64), bool)
    mask[:, 30:32] = True
    region = Region(mask)
    for seed in range(50):
        _, x, side = window = place_window(seed, 128, 128, 32, region)
        assert 60 <= x + side / 2 <= 64
        allowed = cut_region(region, window, 128, 128, 32)
        assert 0 < allowed.sum() <= 32 * 4


def test_a_region_of_use_is_read_and_one_of_none_is_named(tmp_path: Path) -> None:
    def put(pixels: np.ndarray) -> tuple[str, str]:
        data = images.encode_png(pixels)
        file = tmp_path / f"{pixels.mean()}.png"
        file.write_bytes(data)
        return str(file), hashlib.sha256(data).hexdigest()

    white = np.zeros((8, 9, 1), np.uint8)
    white[2:4] = 255
    uri, sha256 = put(white)
    assert read_region(uri, sha256).mask.sum() == 18
    with pytest.raises(UserError, match="changed since the run began"):
        read_region(uri, "0" * 64)
    with pytest.raises(UserError, match="all black"):
        read_region(*put(np.zeros((8, 8, 1), np.uint8)))
    with pytest.raises(UserError, match="gone"):
        read_region(str(tmp_path / "none.png"), sha256)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="not_an_image"):
        read_region(str(tmp_path / "text.png"), sha256)


@pytest.mark.parametrize("size", [16, 24, 40])
@pytest.mark.parametrize(
    ("photo_channels", "layer_channels"), [(1, 1), (3, 1), (3, 3), (1, 3), (1, 2), (3, 4)]
)
def test_nothing_changes_outside_the_mask(size: int, photo_channels: int, layer_channels: int) -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (90, 70, photo_channels), dtype=np.uint8)
    layer = rng.uniform(0.2, 0.4, (layer_channels, 16, 16)).astype(np.float32)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 3:12] = 255
    layer *= mask > 0
    before = photo.copy()
    image, full = put_defect(photo, Window(11, 5, size), layer, mask)
    np.testing.assert_array_equal(photo, before)
    assert image.shape == (90, 70, 3 if layer_channels >= 3 else photo_channels)
    np.testing.assert_array_equal(image[full == 0], np.broadcast_to(photo, image.shape)[full == 0])
    assert set(np.unique(full)) == {0, 255}
    rows, columns = np.nonzero(full)
    scale = size / 16
    assert abs(rows.min() - (11 + 4 * scale)) <= 1
    assert abs(columns.max() + 1 - (5 + 12 * scale)) <= 1
    change = (image.astype(int) - photo)[full > 0]
    assert np.median(np.abs(change)) > 10


def test_at_the_model_s_scale_the_layer_is_added_pixel_by_pixel() -> None:
    photo = np.full((20, 20, 1), 100, np.uint8)
    layer, mask = np.zeros((1, 8, 8), np.float32), np.zeros((8, 8), np.uint8)
    layer[0, 2, 3], mask[2, 3] = 0.4, 255
    image, _ = put_defect(photo, Window(5, 6, 8), layer, mask)
    assert image[7, 9, 0] == 151
    assert (image != 100).sum() == 1
    opaque = np.concatenate([layer, (layer > 0) * np.float32(0.5)])  # (1 - 0.5) · (100 - 127.5) + 127.5 + 51
    image, _ = put_defect(photo, Window(5, 6, 8), opaque, mask)
    assert image[7, 9, 0] == round((100 - 127.5) * 0.5 + 127.5 + 51)


def test_sixteen_bits_stay_so() -> None:
    """A 16-bit photograph keeps every level outside the mask, and gets the defect on its own scale inside."""
    random = np.random.default_rng(3)
    photo = random.integers(20_000, 30_000, (60, 80, 1)).astype(np.uint16)
    data = images.encode_png(photo)
    assert np.array_equal(images.decode_photo(data, 10**4, deep=True), photo)
    assert images.decode_photo(data, 10**4).dtype == np.uint8
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 255
    layer = np.full((1, 16, 16), 10 / 127.5, np.float32)  # ten of 255 grey levels
    image, full_mask = put_defect(photo, Window(8, 20, 16), layer, mask)
    assert image.dtype == np.uint16
    change = image.astype(int) - photo
    assert (change[full_mask == 0] == 0).all()
    assert np.abs(change[full_mask == 255] - 10 * 257).max() <= 1
    rgb, _ = put_defect(photo, Window(8, 20, 16), np.repeat(layer, 3, axis=0), mask)
    assert (rgb.dtype, rgb.shape) == (np.uint8, (60, 80, 3))

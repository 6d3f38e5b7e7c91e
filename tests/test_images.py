"""Every kind of file becomes the model's form, or a reason why not."""

import io
import sys
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from raygen import surfaces
from raygen.images import REASONS, BadImageError, decode, encode_mask, encode_png, from_model, to_model

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (32, 32), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes, size: int = 32, channels: int = 1, resize: bool = False, max_pixels: int = 10_000):
    return decode(data, size, channels, resize=resize, max_pixels=max_pixels)


def reason(data: bytes, **options) -> str:
    with pytest.raises(BadImageError) as caught:
        decoded(data, **options)
    assert caught.value.reason in REASONS
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_files_come_back_as_they_were(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    colour = decoded(file_of(Image.fromarray(COLOUR), kind, **options), channels=3)
    assert colour.dtype == np.uint8
    np.testing.assert_array_equal(colour, COLOUR)


def test_grey_and_colour_become_each_other() -> None:
    grey = file_of(Image.fromarray(GREY))
    np.testing.assert_array_equal(decoded(grey)[:, :, 0], GREY)
    np.testing.assert_array_equal(decoded(grey, channels=3), np.repeat(GREY[:, :, None], 3, axis=2))
    luminance = COLOUR @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decoded(file_of(Image.fromarray(COLOUR)))[:, :, 0] - luminance).max() <= 1


def test_palette_alpha_and_cmyk_are_converted() -> None:
    palette = Image.fromarray(COLOUR).quantize(256)
    np.testing.assert_array_equal(decoded(file_of(palette), channels=3), np.asarray(palette.convert("RGB")))
    alpha = np.dstack([COLOUR, np.full((32, 32), 128, np.uint8)])
    np.testing.assert_array_equal(decoded(file_of(Image.fromarray(alpha)), channels=3), COLOUR)
    ink = Image.fromarray(COLOUR).convert("CMYK")
    np.testing.assert_array_equal(decoded(file_of(ink, "TIFF"), channels=3), np.asarray(ink.convert("RGB")))
    bits = Image.fromarray(GREY > 127)
    np.testing.assert_array_equal(decoded(file_of(bits))[:, :, 0], np.where(GREY > 127, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_their_whole_range(kind: str) -> None:
    deep = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    pixels = decoded(file_of(Image.fromarray(deep), kind))[:, :, 0]
    np.testing.assert_array_equal(pixels, np.rint(deep / 65535 * 255).astype(np.uint8))
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert len(np.unique(pixels)) == 256


def test_another_size_is_scaled_with_its_proportions() -> None:
    wide = np.zeros((64, 128), np.uint8)
    wide[:, 32:96] = 200  # the middle square of a 2:1 photograph
    pixels = decoded(file_of(Image.fromarray(wide)), resize=True)
    assert pixels.shape == (32, 32, 1)
    assert (pixels[:, 2:-2] >= 199).all()
    assert reason(file_of(Image.fromarray(wide))) == "wrong_size"


def test_a_camera_held_upright_gives_an_upright_image() -> None:
    image = Image.fromarray(GREY)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90° clockwise to show
    np.testing.assert_array_equal(decoded(file_of(image, exif=exif))[:, :, 0], np.rot90(GREY, -1))


def test_bad_files_have_reasons() -> None:
    whole = file_of(Image.fromarray(GREY))
    assert reason(b"") == "empty"
    assert reason(b"no image at all") == "not_an_image"
    assert reason(whole[: len(whole) // 2]) == "truncated"
    assert reason(file_of(Image.fromarray(GREY), "JPEG")[:-200]) == "truncated"
    assert reason(whole, max_pixels=1023) == "too_many_pixels"
    assert reason(file_of(Image.fromarray(GREY.astype(np.float32)), "TIFF")) == "unsupported"


def test_a_damaged_body_is_no_image_whatever_byte_is_hit() -> None:
    whole = file_of(Image.fromarray(GREY))
    found: set[str] = set()
    for position in range(8, len(whole) - 12, 7):
        broken = bytearray(whole)
        broken[position] ^= 0xFF
        try:
            decoded(bytes(broken))
        except BadImageError as error:
            found.add(error.reason)  # and never another exception
    assert "truncated" in found
    assert found <= REASONS.keys()


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    bomb = file_of(Image.new("L", (20_000, 20_000)))
    assert len(bomb) < 1_000_000
    assert reason(bomb, max_pixels=64_000_000, resize=True) == "too_many_pixels"


DEEP = RNG.integers(0, 65536, (32, 48, 1)).astype(np.uint16)


@pytest.mark.parametrize("pixels", [GREY[:, :, None], COLOUR, DEEP, GREY[::2, ::-1, None], COLOUR[::2, ::-1]])
def test_png_keeps_every_pixel_and_is_the_same_each_time(pixels: np.ndarray) -> None:
    data = encode_png(pixels)
    assert data == encode_png(pixels.copy())
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def test_a_mask_is_written_in_8_bits() -> None:
    mask = (GREY > 200) * np.uint8(255)
    for part in (mask, mask[3:9, ::2], np.zeros_like(mask)):
        with Image.open(io.BytesIO(encode_mask(part))) as image:
            assert image.mode == "L"
            np.testing.assert_array_equal(np.asarray(image), part)


@pytest.mark.parametrize(("levels", "compression"), [(256, "tiff_lzw"), (4096, "tiff_deflate")])
def test_damaged_tiffs_are_silent(levels: int, compression: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Their decoders would write a line each; what is wrong is in the reject."""
    buffer, random = io.BytesIO(), np.random.default_rng(0)
    kind = np.uint8 if levels == 256 else np.uint16
    Image.fromarray(random.integers(0, levels, (64, 64)).astype(kind)).save(
        buffer, "TIFF", compression=compression
    )
    for _ in range(20):
        data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        data[random.integers(8, len(data) // 2, 20)] = random.integers(0, 256, 20)  # its pixels come first
        with suppress(BadImageError):
            decode(data.tobytes(), 32, 1, resize=True, max_pixels=10**6)
    print("heard", file=sys.stderr)
    assert capfd.readouterr().err == "heard\n"


@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_take_hardly_more_room_than_by_pillow(channels: int) -> None:
    photos = [pixels for _, pixels in surfaces.pool(4, 0, 128, channels)]
    by_pillow = [file_of(Image.fromarray(pixels.squeeze()), compress_level=1) for pixels in photos]
    assert sum(len(encode_png(pixels)) for pixels in photos) < 1.05 * sum(map(len, by_pillow))


def test_model_form_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    x = to_model(every)
    assert x.shape == (1, 1, 16, 16)
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(from_model(x), every)
    beyond = torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)
    assert from_model(beyond).flatten().tolist() == [0, 255]

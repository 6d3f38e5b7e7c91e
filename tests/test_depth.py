"""Photographs of more than 8 bits are the pictures they are, or are refused; never nearly black without a word."""

import io
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from factories import write_run
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from raygen import depth, images, storage
from raygen.checkpoint import load_checkpoint
from raygen.data.defects import list_defect_set, load_photos, read_photo
from raygen.data.photo import Photo
from raygen.data.runs import read_manifest, read_run, read_shard
from raygen.data.survey import survey
from raygen.demo import CHECKPOINT
from raygen.errors import BadImageError, UserError
from raygen.generate.config import GenerateConfig
from raygen.generate.plan import draft_run
from raygen.generate.verify import verify_run
from raygen.publish.config import RefreshConfig
from raygen.publish.refresh import dry_run

SIZE = 32
PICTURE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
PICTURE.flat[:2] = COLOURS.flat[:2] = (0, 255)


def deep(picture: np.ndarray, bits: int) -> np.ndarray:
    """The picture as a camera of so many bits has it, in the lower part of 16."""
    return np.rint(picture / 255 * (2**bits - 1)).astype(np.uint16)


def png(pixels: np.ndarray) -> bytes:
    if pixels.ndim == 3:
        return cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()
    return images.encode_png(pixels[:, :, None])


def tiff(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def dicom(pixels: np.ndarray, bits: int, **tags) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns, file.SamplesPerPixel = *pixels.shape[-2:], 1
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, bits, bits - 1
    file.PixelRepresentation, file.PhotometricInterpretation = int(pixels.dtype == np.int16), "MONOCHROME2"
    file.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def with_chunk(data: bytes, name: bytes, content: bytes) -> bytes:
    """A PNG with another chunk after its header."""
    import zlib

    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return data[:33] + chunk + data[33:]


def decoded(data: bytes, pixel_range: depth.PixelRange | None = None) -> np.ndarray:
    return images.decode_photo(data, 10_000, pixel_range=pixel_range).squeeze()


def is_picture(pixels: np.ndarray, picture: np.ndarray = PICTURE) -> bool:
    return pixels.shape == picture.shape and bool(np.abs(pixels.astype(int) - picture).max() <= 1)


# ------------------------------------------------------------------------------------------------ one file


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("encode", [png, tiff], ids=["png", "tiff"])
@pytest.mark.parametrize("picture", [PICTURE, COLOURS], ids=["grey", "colours"])
def test_a_range_makes_the_picture_of_any_depth(bits: int, encode, picture: np.ndarray) -> None:
    data = encode(deep(picture, bits))
    assert is_picture(decoded(data, (0, 2**bits - 1)), picture)
    if bits < 16:
        if bits < 14:
            with pytest.raises(BadImageError) as caught:
                decoded(data)
            assert caught.value.reason == "no_range"
            assert "set pixel_range" in caught.value.detail
    else:
        assert is_picture(decoded(data), picture)


STATING = {
    "12 bits, packed": tiff(deep(PICTURE, 12), bitspersample=12),
    "10 bits, packed": tiff(deep(PICTURE, 10), bitspersample=10),
    "14 bits, packed": tiff(deep(PICTURE, 14), bitspersample=14),
    "SMaxSampleValue": tiff(deep(PICTURE, 12), extratags=[(341, 3, 1, 4095, True)]),
    "MaxSampleValue": tiff(deep(PICTURE, 12), extratags=[(281, 3, 1, 4095, True)]),
    "floats and their ends": tiff(
        PICTURE.clip(1, 254) / np.float32(100), extratags=[(340, 11, 1, 0.0, True), (341, 11, 1, 2.55, True)]
    ),
    "white is 0": tiff(65535 - deep(PICTURE, 16), photometric="miniswhite"),
    "sBIT, scaled up as the format wants": with_chunk(png(deep(PICTURE, 12) << 4), b"sBIT", b"\x0c"),
    "sBIT, left where they were": with_chunk(png(deep(PICTURE, 12)), b"sBIT", b"\x0c"),
    "DICOM's stored bits": dicom(deep(PICTURE, 12), 12),
    "DICOM's window": dicom(
        deep(PICTURE, 10) + np.uint16(500), 16, WindowCenter=500 + 512, WindowWidth=1024
    ),
    "DICOM in units": dicom(
        (PICTURE.astype(np.int16) - 128), 16, RescaleSlope=2, RescaleIntercept=10, WindowCenter=10, WindowWidth=511
    ),
    "DICOM, white is 0": dicom(4095 - deep(PICTURE, 12), 12, PhotometricInterpretation="MONOCHROME1"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATING)
def test_what_a_file_says_is_taken(name: str) -> None:
    assert is_picture(decoded(STATING[name]))


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.uint32])
def test_types_without_a_range_want_one(kind) -> None:
    data = tiff(PICTURE.astype(kind) * kind(2))
    with pytest.raises(BadImageError) as caught:
        decoded(data)
    assert caught.value.reason == "unsupported"
    assert is_picture(decoded(data, (0, 510)))


@pytest.mark.parametrize("pattern", ["RGGB", "BGGR", "GRBG", "GBRG"])
def test_a_raw_mosaic_is_developed(pattern: str) -> None:
    colour = np.array([60_000, 30_000, 10_000], np.uint16)
    tile = colour[["RGB".index(name) for name in pattern]].reshape(2, 2)
    data = tiff(
        np.tile(tile, (16, 16)),
        photometric="cfa",
        extratags=[
            (33421, 3, 2, (2, 2), True),
            (33422, 1, 4, bytes("RGB".index(name) for name in pattern), True),
        ],
    )
    assert np.abs(decoded(data)[4:-4, 4:-4].astype(int) - colour // 257).max() <= 1


def test_values_beyond_the_range_are_clipped() -> None:
    pixels = np.array([[0, 100, 200, 300]], np.uint16)
    assert decoded(png(pixels), (100, 200)).tolist() == [0, 0, 255, 255]


def test_a_turned_one_is_upright() -> None:
    levels = deep(PICTURE, 16)[:, :20]
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG", exif=exif)
    assert is_picture(decoded(file.getvalue()), np.rot90(PICTURE[:, :20], -1))
    kept = images.decode_photo(file.getvalue(), 10_000, deep=True)
    np.testing.assert_array_equal(kept[:, :, 0], np.rot90(levels, -1))


def test_several_pages_are_no_photograph() -> None:
    film = [Image.fromarray(frame) for frame in (COLOURS, COLOURS[::-1])]
    file = io.BytesIO()
    film[0].save(file, "WEBP", save_all=True, append_images=film[1:])
    volumes = [tiff(np.stack([PICTURE, PICTURE])), file.getvalue()]
    volumes.append(tiff(np.stack([deep(PICTURE, 16)] * 2)))
    volumes.append(dicom(np.stack([deep(PICTURE, 12)] * 2), 12, NumberOfFrames=2))
    for data in volumes:
        with pytest.raises(BadImageError) as caught:
            decoded(data)
        assert caught.value.reason == "several_pages"


def test_a_smaller_copy_beside_is_no_second_page() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(PICTURE)
        writer.write(PICTURE[::2, ::2], subfiletype=1)
    np.testing.assert_array_equal(decoded(file.getvalue()), PICTURE)


def test_damage_is_a_reason_whatever_is_hit() -> None:
    reasons = set()
    for whole in (STATING["14 bits, packed"], STATING["DICOM's stored bits"], tiff(deep(COLOURS, 16))):
        for place in range(0, min(len(whole), 900), 7):
            broken = bytearray(whole)
            broken[place] ^= 0xFF
            try:
                decoded(bytes(broken))
            except BadImageError as error:
                reasons.add(error.reason)
    assert reasons <= images.REASONS.keys()


def test_a_bomb_is_refused_from_its_header() -> None:
    wide = np.zeros((2000, 2000), np.uint16)
    for data in (tiff(wide, bitspersample=10, compression=None), dicom(wide, 12)):
        with pytest.raises(BadImageError) as caught:
            decoded(data)
        assert caught.value.reason == "too_many_pixels"


# ------------------------------------------------------------------------------------------------ ranges of many


@pytest.mark.parametrize(
    ("highest", "bits"), [(300, 10), (1023, 10), (1024, 12), (4012, 12), (9000, 14), (16384, 16), (65535, 16)]
)
def test_levels_are_rounded_up_to_a_camera_s_bits(highest: int, bits: int) -> None:
    found, how = depth.choose_range(
        [depth.Depth(None, (0, highest), True), depth.Depth(None, (5, 200), True)]
    )
    assert found == (0, 2**bits - 1)
    assert how == f"values up to {highest:,}: read as {bits} bits"


def test_what_all_files_say_goes_before_what_they_hold() -> None:
    said = depth.Depth((0, 4095), (0, 50), True)
    assert depth.choose_range([said, said]) == ((0, 4095), "as the files say")
    assert depth.choose_range([said, depth.Depth((0, 1023), (0, 9000), True)])[0] == (0, 16383)
    assert depth.choose_range([depth.Depth(None, (0.1, 0.9), False)])[0] == (0, 1)
    assert depth.choose_range([depth.Depth(None, (-3.0, 7.5), False)])[0] == (-3.0, 7.5)


# ------------------------------------------------------------------------------------------------ pools


def config_of(folder: Path | str, **changes) -> GenerateConfig:
    return GenerateConfig(
        **{
            "pool": f"{folder}/pool",
            "checkpoint": CHECKPOINT,  # of surfaces, not of steel
            "strict_products": False,
            "output": f"{folder}/run",
            **changes,
        }
    )


def write_deep_pool(uri: str, bits: int = 12, count: int = 3, size: int = 64, products=("steel",)) -> None:
    random = np.random.default_rng(3)
    for product in products:
        for number in range(count):
            pixels = random.integers(2**bits // 4, 2**bits - 50, (size, size)).astype(np.uint16)
            storage.put(storage.join(uri, product, f"{number}.png"), png(pixels))


def test_a_pool_s_range_is_found_said_and_frozen(folder_uri: str, tmp_path: Path) -> None:
    write_deep_pool(storage.join(folder_uri, "pool"), 12)
    write_deep_pool(storage.join(folder_uri, "pool"), 10, products=("copper",))
    storage.put(storage.join(folder_uri, "pool/glass/0.png"), png(PICTURE))
    said: list[str] = []
    config = config_of(folder_uri)
    run = draft_run(config, load_checkpoint(CHECKPOINT), tmp_path / "plan.parquet", said.append)
    assert run.pixel_ranges == {"copper": (0, 1023), "steel": (0, 4095), "": (0, 4095)}
    assert (run.range_of("steel"), run.range_of("elsewhere")) == ((0, 4095), (0, 4095))
    assert any(line.endswith(": read as 12 bits (pixel_range = [0, 4095])") for line in said)
    other = config_of(folder_uri, pixel_range=(0, 9000))
    fixed = draft_run(other, load_checkpoint(CHECKPOINT), tmp_path / "plan.parquet")
    assert fixed.pixel_ranges == {"": (0, 9000)}
    assert fixed.run_id != run.run_id


def test_a_pool_of_8_bits_is_the_run_it_was(tmp_path: Path) -> None:
    storage.put(str(tmp_path / "pool/glass/0.png"), png(PICTURE))
    config = config_of(tmp_path)
    assert not {"pixel_range", "bit_depth", "compile"} & config.identity().keys()
    assert draft_run(config, load_checkpoint(CHECKPOINT), tmp_path / "plan.parquet").pixel_ranges == {}


def test_a_deep_pool_gives_the_samples_of_the_same_picture_in_8_bits(tmp_path: Path) -> None:
    """But for a grey level of rounding."""
    write_deep_pool(str(tmp_path / "pool"), 12, count=2)
    for file in (tmp_path / "pool/steel").glob("*.png"):
        grey = images.decode_photo(file.read_bytes(), 10_000, pixel_range=(0, 4095))
        assert 60 < grey.mean() < 200
    manifest = write_run(config_of(tmp_path, composition="residual"))
    verify_run(str(tmp_path / "run"))
    [stats] = manifest.shards
    for row in read_shard(str(tmp_path / "run"), stats).to_pylist():
        normal = images.decode_photo(storage.read(row["normal_uri"]), 10_000, pixel_range=(0, 4095))
        made, mask = (images.decode_photo(row[name]["bytes"], 10_000) for name in ("image", "mask"))
        assert np.array_equal(made[mask == 0], normal[mask == 0])


@pytest.mark.parametrize(("bit_depth", "kept"), [("auto", True), (16, True), (8, False)])
def test_a_native_sample_keeps_the_photograph_s_levels(tmp_path: Path, bit_depth, kept: bool) -> None:
    write_deep_pool(str(tmp_path / "pool"), 12, count=2, size=100)
    write_run(
        config_of(tmp_path, native=True, composition="residual", bit_depth=bit_depth, normals_per_shard=1)
    )
    verify_run(str(tmp_path / "run"))
    manifest = read_manifest(str(tmp_path / "run"))
    assert manifest is not None
    changed = 0.0
    shards = (read_shard(str(tmp_path / "run"), stats).to_pylist() for stats in manifest.shards)
    for row in (row for shard in shards for row in shard):
        normal = images.decode_photo(
            storage.read(row["normal_uri"]), 10_000, deep=kept, pixel_range=(0, 4095)
        )
        made = images.decode_photo(row["image"]["bytes"], 10_000, deep=True)
        mask = images.decode_photo(row["mask"]["bytes"], 10_000)
        assert made.dtype == (np.uint16 if kept else np.uint8)
        assert np.array_equal(made[mask == 0], normal[mask == 0])
        assert made.max() <= (4095 if kept else 255)
        change = np.abs(made.astype(int) - normal)[mask > 0] / (4095 / 255 if kept else 1)
        changed = max(changed, change.max() if change.size else 0)
    assert changed > 15  # grey levels of the model: the defect is as strong at either depth


def test_16_bits_want_a_photograph_s_own_pixels(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="bit_depth = 16 keeps a photograph's own levels: it wants native = true"
    ):
        config_of(tmp_path, bit_depth=16)
    with pytest.raises(ValueError, match="write the lower level first"):
        config_of(tmp_path, pixel_range=(5, 5))


def test_every_night_reads_alike_or_asks(tmp_path: Path) -> None:
    write_deep_pool(str(tmp_path / "pool"))
    nightly: dict[str, Any] = {
        "pool": str(tmp_path / "pool"),
        "table": str(tmp_path / "table"),
        "checkpoint": CHECKPOINT,
    }
    of_another = {"strict_products": False}
    message = r"steel: more than 8 bits, .*set generate.pixel_range, here probably \[0, 4095\]"
    with pytest.raises(UserError, match=message):
        dry_run(RefreshConfig(**nightly, generate=of_another), lambda _: None)
    told = RefreshConfig(**nightly, generate={**of_another, "pixel_range": [0, 4095]})
    dry_run(told, lambda _: None)
    assert told.generate_config("a", "b").pixel_range == (0, 4095)
    assert RefreshConfig(**nightly).generate_config("a", "b").pixel_range == "stated"


# ------------------------------------------------------------------------------------------------ defect sets


def test_a_defect_set_s_range_is_found_for_all_its_photos(folder_uri: str) -> None:
    for number in range(3):
        storage.put(storage.join(folder_uri, f"steel/normal/{number}.png"), png(deep(PICTURE, 12)))
        storage.put(storage.join(folder_uri, f"glass/normal/{number}.png"), png(PICTURE))
    for product in ("steel", "glass"):
        storage.put(storage.join(folder_uri, product, "cut/0.tif"), tiff(deep(PICTURE, 12)))
    found = survey(folder_uri)
    assert {photo.pixel_range for photo in found.photos} == {(0, 4095)}
    assert "steel: values up to 4,095: read as 12 bits (pixel_range = [0, 4095])" in found.notes
    assert all(is_picture(image.squeeze()) for image in load_photos(found.photos, SIZE, 1))
    assert all(is_picture(read_photo(Photo.of_row(photo.row())).squeeze()) for photo in found.photos)
    wide = list_defect_set(folder_uri, pixel_range=(0, 8190))
    assert {photo.pixel_range for photo in wide} == {(0, 8190)}
    assert not {photo.content for photo in wide} & {photo.content for photo in found.photos}


def test_a_run_says_its_ranges(tmp_path: Path) -> None:
    write_deep_pool(str(tmp_path / "pool"))
    write_run(config_of(tmp_path))
    run = read_run(str(tmp_path / "run"))
    assert run is not None
    assert run.range_of("steel") == (0, 4095)


# --------------------------------------------------------------------- what files say without meaning it


def big_endian(pixels: np.ndarray, **options) -> bytes:
    return tiff(pixels, byteorder=">", **options)


@pytest.mark.parametrize(
    "data",
    [
        dicom(deep(PICTURE, 12), 16),
        tiff(deep(PICTURE, 12), extratags=[(281, 3, 1, 65535, True)]),
        with_chunk(png(deep(PICTURE, 12)), b"sBIT", b"\x10"),
        tiff(deep(PICTURE, 12) // 2 + 7, extratags=[(340, 3, 1, 7, True), (341, 3, 1, 4095 // 2 + 7, True)]),
    ],
    ids=["BitsStored 16", "MaxSampleValue 65535", "sBIT 16", "its own ends"],
)
def test_what_is_written_where_nobody_knows_is_no_range(data: bytes) -> None:
    with pytest.raises(BadImageError) as caught:
        decoded(data)
    assert caught.value.reason == "no_range"


def test_8_bits_of_a_deep_kind_of_file_are_8_bits() -> None:
    file = dicom(PICTURE.astype(np.uint16), 8, BitsAllocated=8, PixelData=PICTURE.tobytes())
    np.testing.assert_array_equal(decoded(file, (0, 4095)), PICTURE)


@pytest.mark.parametrize("kind", [np.float32, np.uint32])
def test_byte_order_and_sign_are_the_file_s(kind) -> None:
    scale = kind(2**24) if kind is np.uint32 else kind(3)
    data = big_endian(PICTURE.astype(kind) * scale, compression="zlib")
    assert is_picture(decoded(data, (0, 255 * float(scale))))


def test_rare_kinds_are_read_whole_or_refused() -> None:
    turned = tiff(PICTURE[:, :20].astype(np.float64), extratags=[(274, 3, 1, 6, True)])
    assert is_picture(decoded(turned, (0, 255)), np.rot90(PICTURE[:, :20], -1))
    for data, reason in (
        (tiff(np.stack([PICTURE.astype(np.float64)] * 2)), "several_pages"),
        (
            tiff(np.dstack([deep(PICTURE, 16)] * 5), photometric="minisblack", planarconfig="contig"),
            "unsupported",
        ),
        (tiff(np.dstack([deep(PICTURE, 16)] * 4), photometric="separated"), "unsupported"),
        (tiff(PICTURE, extratags=[(50706, 1, 4, bytes([1, 4, 0, 0]), True)]), "unsupported"),
    ):
        with pytest.raises(BadImageError) as caught:
            decoded(data)
        assert caught.value.reason == reason

"""DFM-GAN in the main job: four defects with masks on normals that it draws, or on photographs."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from factories import TINY_DFMGAN, write_checkpoint, write_dfmgan_checkpoint, write_pool, write_run
from PIL import Image

from raygen import storage, surfaces
from raygen.checkpoint import Checkpoint, export_checkpoint, load_checkpoint
from raygen.data.pool import drawn_sha256, index_pool
from raygen.data.runs import done_shards, read_shard, read_stats
from raygen.errors import UserError
from raygen.families.dfmgan.generator import DFMGANSampler
from raygen.families.dfmgan.inversion import invert
from raygen.families.dfmgan.networks import DFMGANGenerator, full_mask
from raygen.families.dtgan.config import DTGANTrainConfig
from raygen.families.photos import DefectSet
from raygen.families.recipes import InvertConfig
from raygen.families.stylegan2.generator import draw
from raygen.families.stylegan2.networks import repeat_w
from raygen.generate.config import GateConfig, GenerateConfig
from raygen.generate.defect_set import write_defect_set
from raygen.generate.plan import choose_requests
from raygen.generate.reproduce import reproduce
from raygen.generate.sampling import Windows, sample
from raygen.generate.sheet import contact_sheet
from raygen.generate.verify import verify_run
from raygen.images import decode, encode_png, from_model
from raygen.records import NORMAL, plan_requests, sample_seed

ANY = GateConfig(min_mask_area=None, max_attempts=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write_dfmgan_checkpoint(str(tmp_path_factory.mktemp("checkpoint")))


def config_of(checkpoint: Checkpoint, output: Any, **changes: Any) -> GenerateConfig:
    values = {
        "pool": "seeds:0-7",
        "output": str(output),
        "checkpoint": checkpoint.uri,
        "modes": ["latent"],
        "samples_per_cell": 2,
        "normals_per_shard": 4,
        "micro_batch": 3,
        "gate": ANY,
        **changes,
    }
    return GenerateConfig(**values)


def rows_of(output_uri: str) -> list[dict[str, Any]]:
    return [
        row
        for stats in read_stats(output_uri, done_shards(output_uri))
        for row in read_shard(output_uri, stats).to_pylist()
    ]


def pixels_of(row: dict[str, Any], name: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row[name]["bytes"])))


# ------------------------------------------------------------------------------------------------ seeds


def test_a_pool_of_seeds_is_a_range_of_normals_of_the_products_in_turn() -> None:
    normals = list(index_pool("seeds:5-9", products=["a", "b", "c"]))
    assert [normal.uri for normal in normals] == ["seed:5", "seed:6", "seed:7", "seed:8"]
    assert [normal.product for normal in normals] == ["c", "a", "b", "c"]
    assert [normal.product for normal in index_pool("seeds:0-2", "b", ["a", "b"])] == ["b", "b"]


@pytest.mark.parametrize("pool", ["seeds:", "seeds:9", "seeds:9-9", "seeds:9-3", "seeds:a-b", "seeds:-1-3"])
def test_a_range_that_is_none_is_refused(pool: str) -> None:
    with pytest.raises(UserError, match="write seeds:FIRST-END"):
        list(index_pool(pool, products=["a"]))


def test_a_run_of_seeds_holds_four_defects_for_every_normal_and_the_normal(
    checkpoint: Checkpoint, tmp_path: Any
) -> None:
    config = config_of(checkpoint, tmp_path / "run", write_normals=True)
    manifest = write_run(config)
    assert (manifest.num_normals, manifest.num_samples) == (7, 7 * 5)
    verify_run(config.output, num_processes=1)
    rows = rows_of(config.output)
    masks = np.stack([pixels_of(row, "mask") > 0 for row in rows])
    kinds = np.array([row["defect_type"] for row in rows])
    assert not masks[kinds == NORMAL].any()
    assert 0.02 < masks[kinds != NORMAL].mean() < 0.98, (
        "the test's weights draw defects everywhere or nowhere"
    )
    assert {row["product"] for row in rows} == set(surfaces.PRODUCTS)
    images_of = {(row["normal_uri"], row["defect_type"], row["k"]): row["image_sha256"] for row in rows}
    assert len(set(images_of.values())) == len(rows), "no two samples are alike"


def test_samples_are_those_of_the_plain_network(checkpoint: Checkpoint, tmp_path: Any) -> None:
    """One by one, by `forward`, with the latents of the same seeds."""
    config = config_of(checkpoint, tmp_path / "run", write_normals=True)
    write_run(config)
    network = DFMGANGenerator(TINY_DFMGAN).eval()
    prefix = "generator."
    weights = checkpoint.tensors("generator.safetensors")
    network.load_state_dict({name.removeprefix(prefix): value for name, value in weights.items()})
    backbone, seen = TINY_DFMGAN.backbone, 0
    for row in rows_of(config.output):
        number = int(row["normal_uri"].removeprefix("seed:"))
        z, noise = draw([number], backbone.latent_dim, backbone.noise_size)
        product = torch.tensor([surfaces.PRODUCTS.index(row["product"])])
        request = plan_requests((row["defect_type"],), ("latent",), 2)[row["k"]]
        with torch.no_grad():
            ws = repeat_w(network.backbone.mapping(z, product), backbone.num_ws)
            if row["defect_type"] == NORMAL:
                image, mask = network.normal(ws, noise), np.zeros((32, 32), bool)
            else:
                sha256 = drawn_sha256(row["normal_uri"], row["product"])
                seed = sample_seed(sha256, checkpoint.digest, request, 0)
                assert seed == row["seed"]
                z, defect_noise = draw([seed], backbone.latent_dim, TINY_DFMGAN.noise_size)
                kind = torch.tensor([surfaces.DEFECT_TYPES.index(row["defect_type"])])
                made = network(ws, noise, network.defect_ws(z, kind), defect_noise)
                image, mask = made.image, full_mask(made.mask, 32)[0, 0].numpy() >= 0
        wanted = from_model(image)[0, :, :, 0].numpy().astype(int)
        assert np.abs(pixels_of(row, "image") - wanted).max() <= 1
        assert (pixels_of(row, "mask") > 0).tolist() == mask.tolist()
        seen += 1
    assert seen == 35


def test_a_sample_has_the_same_bits_wherever_it_stands(checkpoint: Checkpoint, tmp_path: Any) -> None:
    """Other shards, other blocks of normals, another range with the same seed; and made again from its row."""
    whole = config_of(checkpoint, tmp_path / "whole")
    write_run(whole)
    other = config_of(checkpoint, tmp_path / "other", pool="seeds:2-30", normals_per_shard=28)
    write_run(other)
    sha256s = {
        (row["normal_uri"], row["defect_type"], row["k"]): (row["image_sha256"], row["mask_sha256"])
        for row in rows_of(other.output)
    }
    rows = [row for row in rows_of(whole.output) if int(row["normal_uri"].removeprefix("seed:")) >= 2]
    assert len(rows) == 5 * 4
    for row in rows:
        key = (row["normal_uri"], row["defect_type"], row["k"])
        assert sha256s[key] == (row["image_sha256"], row["mask_sha256"])
    said: list[str] = []
    reproduce(whole.output, rows[-1]["sample_id"], say=said.append)
    assert said[0].endswith("identical")


def test_the_number_of_samples_asked_for_changes_none(checkpoint: Checkpoint, tmp_path: Any) -> None:
    """The original's defects depended on how many images were asked for."""
    few, many = (
        config_of(checkpoint, tmp_path / str(count), pool=f"seeds:0-{3 * count}", samples_per_cell=count)
        for count in (1, 2)
    )
    write_run(few)
    write_run(many)
    of_many = {row["sample_id"]: row["image_sha256"] for row in rows_of(many.output)}
    assert all(of_many[row["sample_id"]] == row["image_sha256"] for row in rows_of(few.output))


def test_a_residual_sample_of_a_seed_is_its_normal_outside_the_mask(
    checkpoint: Checkpoint, tmp_path: Any
) -> None:
    config = config_of(checkpoint, tmp_path / "run", write_normals=True, composition="residual")
    write_run(config)
    rows = rows_of(config.output)
    normals = {row["normal_uri"]: pixels_of(row, "image") for row in rows if row["defect_type"] == NORMAL}
    changed = 0
    for row in rows:
        outside = pixels_of(row, "mask") == 0
        image = pixels_of(row, "image")
        assert (image[outside] == normals[row["normal_uri"]][outside]).all()
        changed += int((image != normals[row["normal_uri"]]).sum())
    assert changed > 0


def test_the_contact_sheet_shows_normals_that_stand_in_no_file(checkpoint: Checkpoint, tmp_path: Any) -> None:
    config = config_of(checkpoint, tmp_path / "run")
    manifest = write_run(config)
    from raygen.data.runs import read_run

    run = read_run(config.output)
    assert run is not None
    sheet = Image.open(io.BytesIO(contact_sheet(config, run, list(manifest.shards))))
    assert sheet.width > 5 * 160


# ------------------------------------------------------------------------------------------ photographs


def test_on_photographs_nothing_changes_outside_the_mask(checkpoint: Checkpoint, tmp_path: Any) -> None:
    """And the same sample comes out again, search included."""
    write_pool(str(tmp_path / "pool"), 2)
    config = config_of(
        checkpoint,
        tmp_path / "run",
        pool=str(tmp_path / "pool"),
        composition="residual",
        invert=InvertConfig(steps=5),
    )
    manifest = write_run(config)
    assert manifest.num_samples == 6 * 4
    changed = 0
    for row in rows_of(config.output):
        normal = decode(storage.read(row["normal_uri"]), 32, 1, resize=True, max_pixels=10**6)[:, :, 0]
        image, mask = pixels_of(row, "image"), pixels_of(row, "mask") > 0
        assert (image[~mask] == normal[~mask]).all()
        assert row["preservation"] is None or row["preservation"] == 0
        changed += int((image[mask] != normal[mask]).sum())
    assert changed > 0
    said: list[str] = []
    reproduce(config.output, rows_of(config.output)[5]["sample_id"], say=said.append)
    assert said[0].endswith("identical")


def test_the_search_finds_an_image_that_the_backbone_draws(checkpoint: Checkpoint, tmp_path: Any) -> None:
    """Of its own images it comes close to each, whatever stands beside it."""
    sampler = DFMGANSampler(checkpoint, config_of(checkpoint, tmp_path))
    network, sizes = sampler.network, TINY_DFMGAN.backbone
    z, _ = draw([1, 2, 3], sizes.latent_dim, sizes.noise_size)
    with torch.no_grad():
        # Styles far apart: the mapping network of the test has learned nothing, and hardly tells latents apart.
        ws = repeat_w(10 * network.backbone.mapping(z, torch.tensor([0, 1, 2])), sizes.num_ws)
        x = network.backbone.synthesis(ws, torch.zeros(3, sizes.noise_size))
    average = network.backbone.mapping.average
    found = invert(network.backbone.synthesis, average, x, InvertConfig(steps=100))
    with torch.no_grad():
        start = network.backbone.synthesis(
            repeat_w(average[None], sizes.num_ws), torch.zeros(1, sizes.noise_size)
        )
        made = network.backbone.synthesis(found, torch.zeros(3, sizes.noise_size))
    before, after = (start - x).abs().mean(dim=(1, 2, 3)), (made - x).abs().mean(dim=(1, 2, 3))
    assert (after < 0.3 * before).all(), (before, after)
    others = invert(network.backbone.synthesis, average, x.flip(0), InvertConfig(steps=100))
    torch.testing.assert_close(others.flip(0), found, rtol=1e-3, atol=1e-3)


def test_windows_of_many_normals_are_sampled_block_by_block(checkpoint: Checkpoint, tmp_path: Any) -> None:
    """Backbone features of a whole shard may not fit into memory."""
    sampler = DFMGANSampler(checkpoint, config_of(checkpoint, tmp_path))
    requests = plan_requests(surfaces.DEFECT_TYPES, ("latent",), 1)
    seeds = np.arange(60).reshape(30, 2)
    windows = Windows(None, [surfaces.PRODUCTS[i % 3] for i in range(30)], seeds=list(range(30)))
    asked: list[int] = []
    plain = sampler.draw_normals

    def spy(some: Any, products: Any) -> Any:
        asked.append(len(some))
        return plain(some, products)

    sampler.draw_normals = spy  # type: ignore[method-assign]
    in_blocks = sample(sampler, windows, requests, lambda _: seeds, ANY)
    assert asked == [24, 6]
    sampler.block = 1000
    at_once = sample(sampler, windows, requests, lambda _: seeds, ANY)
    np.testing.assert_array_equal(in_blocks.made.pixels, at_once.made.pixels)
    np.testing.assert_array_equal(in_blocks.seeds, at_once.seeds)


# --------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": ["latent", "reference"]}, 'holds no references .* set modes = \\["latent"\\]'),
        ({"pool": "/photos"}, 'set composition = "residual"'),
        ({"product": "wood"}, "draws brushed_metal"),
    ],
)
def test_what_the_family_cannot_do_is_refused(
    checkpoint: Checkpoint, tmp_path: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        choose_requests(config_of(checkpoint, tmp_path, **changes), checkpoint)


def test_a_checkpoint_of_normals_alone_is_one_line(checkpoint: Checkpoint, tmp_path: Any) -> None:
    config = checkpoint.config.model_copy(update={"family": "stylegan2", "defect_types": ()})
    stage1 = Checkpoint(checkpoint.uri, config, checkpoint.files)
    with pytest.raises(UserError, match="knows no defect types"):
        choose_requests(config_of(checkpoint, tmp_path, masks=False), stage1)
    with pytest.raises(UserError, match="set write_normals = false"):
        choose_requests(config_of(checkpoint, tmp_path, masks=False, write_normals=True), stage1)


def test_seeds_are_refused_where_no_normals_are_drawn(tmp_path: Any) -> None:
    other = write_checkpoint(str(tmp_path / "dtgan"))
    with pytest.raises(UserError, match="draws no normals; name photographs"):
        choose_requests(config_of(other, tmp_path / "out"), other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"native": True, "composition": "residual"}, "native is for photographs"),
        ({"pool": "/photos", "write_normals": True}, "write_normals is for normals that are drawn"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    checkpoint: Checkpoint, tmp_path: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(checkpoint, tmp_path, **changes)


def test_a_checkpoint_of_other_sizes_is_named(checkpoint: Checkpoint, tmp_path: Any) -> None:
    config = checkpoint.config.model_copy(update={"model": {**checkpoint.config.model, "start": 32}})
    broken = Checkpoint(checkpoint.uri, config, checkpoint.files)
    with pytest.raises(UserError, match="its weights do not fit its sizes"):
        DFMGANSampler(broken, config_of(checkpoint, tmp_path))


# ------------------------------------------------------------------------------------------ as a defect set


def test_a_run_becomes_a_defect_set_for_dtgan_to_learn_from(checkpoint: Checkpoint, tmp_path: Any) -> None:
    config = config_of(checkpoint, tmp_path / "run", write_normals=True)
    write_run(config)
    count = write_defect_set(config.output, str(tmp_path / "synthetic"), lambda _: None)
    assert count == 7 * 4
    real = tmp_path / "real"
    for name, pixels in surfaces.defect_set(2, 1, 0, size=32):
        storage.put(f"{real}/{name}", encode_png(pixels.reshape(32, 32, 1)))
    alone = DefectSet.read(DTGANTrainConfig(defects=str(real), output="out"))
    both = DefectSet.read(
        DTGANTrainConfig(defects=str(real), output="out", more_defects=str(tmp_path / "synthetic"))
    )
    assert len(both.photos) == len(alone.photos) + count
    synthetic = [photo for photo in both.photos if "/synthetic/" in photo.uri]
    assert {photo.defect_type for photo in synthetic} == set(surfaces.DEFECT_TYPES)
    assert all(photo.mask_uri and photo.split == "train" for photo in synthetic)
    table = (tmp_path / "synthetic/metadata.csv").read_text().splitlines()
    assert len(table) == 1 + count
    assert all(",synthetic," in line for line in table[1:])
    row = next(row for row in rows_of(config.output) if row["sample_id"] in synthetic[0].uri)
    assert storage.read(synthetic[0].uri) == row["image"]["bytes"]


def test_an_unfinished_run_is_no_defect_set(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="no complete run there"):
        write_defect_set(str(tmp_path), str(tmp_path / "out"))


def test_the_checkpoint_can_be_exported(checkpoint: Checkpoint, tmp_path: Any) -> None:
    export_checkpoint(checkpoint.uri, str(tmp_path / "out"))
    exported = load_checkpoint(str(tmp_path / "out"))
    half, whole = (it.tensors("generator.safetensors") for it in (exported, checkpoint))
    assert half.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(half[name], value, rtol=1e-3, atol=1e-4)

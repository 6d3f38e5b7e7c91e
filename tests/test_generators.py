"""What an actor makes: decided by seeds alone, and equal to the networks as the paper has them."""

import itertools

import numpy as np
import pytest
import torch
from factories import TINY, make_samples, write_checkpoint

from raygen import storage, surfaces
from raygen.checkpoint import GENERATOR, REFERENCE_CODES, Checkpoint, load_checkpoint
from raygen.errors import UserError
from raygen.families import load_generator
from raygen.families.dtgan.generator import DTGANGenerator
from raygen.families.dtgan.networks import Generator, MappingNetwork
from raygen.families.dtgan.sizes import DTGANConfig
from raygen.generate.config import GenerateConfig
from raygen.images import to_model
from raygen.records import MODES, SCORES, SampleRequest, plan_requests

REQUESTS = plan_requests(surfaces.DEFECT_TYPES, (*MODES, "restyled"), 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write_checkpoint(str(tmp_path_factory.mktemp("checkpoint")))


def generator_of(checkpoint: Checkpoint, micro_batch: int = 4) -> DTGANGenerator:
    config = GenerateConfig(pool="pool", output="out", checkpoint=checkpoint.uri, micro_batch=micro_batch)
    generator = load_generator(checkpoint, config)
    assert isinstance(generator, DTGANGenerator)
    return generator


def inputs(num_normals: int) -> tuple[np.ndarray, np.ndarray]:
    normals = np.stack([pixels for _, pixels in surfaces.pool(num_normals, 0, TINY.image_size)][:num_normals])
    seeds = np.random.default_rng(0).integers(0, 2**63, (num_normals, len(REQUESTS)))
    return normals, seeds


def test_a_sample_has_the_same_bits_wherever_it_stands(checkpoint: Checkpoint) -> None:
    """Other neighbours, another place in the batch, a batch that is not full, another process's generator."""
    normals, seeds = inputs(11)
    whole = make_samples(generator_of(checkpoint), normals, seeds, REQUESTS)
    order = np.random.default_rng(1).permutation(11)
    shuffled = make_samples(generator_of(checkpoint), normals[order], seeds[order], REQUESTS)
    np.testing.assert_array_equal(shuffled.made.pixels, whole.made.pixels[order])
    np.testing.assert_array_equal(shuffled.made.references, whole.made.references[order])
    torch.set_num_threads(2)  # a generator sets its own number
    np.testing.assert_array_equal(
        make_samples(generator_of(checkpoint), normals, seeds, REQUESTS).made.pixels, whole.made.pixels
    )
    for row in (0, 5, 10):
        alone = make_samples(generator_of(checkpoint), normals[row : row + 1], seeds[row : row + 1], REQUESTS)
        np.testing.assert_array_equal(alone.made.pixels[0], whole.made.pixels[row])
    columns = [6, 1]
    some = make_samples(generator_of(checkpoint), normals, seeds[:, columns], [REQUESTS[i] for i in columns])
    np.testing.assert_array_equal(some.made.pixels, whole.made.pixels[:, columns])


def test_samples_are_those_of_the_plain_networks(checkpoint: Checkpoint) -> None:
    """Plain forward passes, one sample at a time, with the z, noise and reference of the same seed."""
    sizes = DTGANConfig(**checkpoint.config.model)
    plain, mapping = Generator(sizes), MappingNetwork(sizes)
    weights = checkpoint.tensors(GENERATOR)
    for prefix, network in (("generator.", plain), ("mapping.", mapping)):
        network.load_state_dict(
            {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        )
        network.eval()
    codes = checkpoint.tensors(REFERENCE_CODES)
    normals, seeds = inputs(3)
    made = make_samples(generator_of(checkpoint), normals, seeds, REQUESTS).made
    for row in range(len(normals)):
        x = to_model(torch.from_numpy(normals[row : row + 1]))
        for column, request in enumerate(REQUESTS):
            seed = int(seeds[row, column])
            stream = np.random.Generator(np.random.Philox(key=seed))
            key = seed + 2**63 if request.mode == "restyled" else seed
            of_mapping = np.random.Generator(np.random.Philox(key=key))
            drawn = torch.from_numpy(of_mapping.standard_normal((1, 16 + mapping.noise_size), np.float32))
            domain = torch.tensor([1 + surfaces.DEFECT_TYPES.index(request.defect_type)])
            with torch.no_grad():
                style, content = mapping(drawn[:, :16], domain, drawn[:, 16:])
            if request.mode == "latent":
                assert made.references[row, column] == -1
            else:
                of_type = [
                    i for i, r in enumerate(checkpoint.references) if r.defect_type == request.defect_type
                ]
                chosen = of_type[stream.integers(len(of_type))]
                content = codes["content"][[chosen]]
                style = codes["style"][[chosen]] if request.mode == "reference" else style
                assert made.references[row, column] == chosen
            with torch.no_grad():
                expected = plain(x, style, content).clamp(-1, 1).add(1).mul(127.5)[0].permute(1, 2, 0).numpy()
            # 1e-4 of the range is 0.026 grey levels, and rounding adds at most a half.
            assert np.abs(made.pixels[row, column] - expected).max() <= 0.5 + 0.026


def test_every_seed_makes_its_own_sample(checkpoint: Checkpoint) -> None:
    normals, seeds = inputs(2)
    latents = [request for request in REQUESTS if request.mode == "latent"]
    made = make_samples(generator_of(checkpoint), normals, seeds[:, : len(latents)], latents).made.pixels
    samples = made.reshape(-1, TINY.image_size**2).astype(int)
    for i, j in itertools.combinations(range(len(samples)), 2):
        assert np.abs(samples[i] - samples[j]).mean() > 1  # grey levels


def test_a_restyled_sample_is_one_reference_s_content_in_many_styles(checkpoint: Checkpoint) -> None:
    normals, _ = inputs(1)
    request, seeds = SampleRequest("spots", "restyled", 0), np.arange(40)[:, None]
    made = make_samples(generator_of(checkpoint), np.repeat(normals, 40, axis=0), seeds, [request]).made
    assert np.isnan(made.scores[:, 0, list(SCORES).index("novelty")]).all()  # its content is not new
    assert made.masks.any()
    pixels = made.pixels[:, 0].astype(int)
    again = [np.flatnonzero(made.references == row)[:2] for row in np.unique(made.references)]
    pairs = [pair for pair in again if len(pair) == 2]
    assert pairs
    assert all(np.abs(pixels[i] - pixels[j]).mean() > 1 for i, j in pairs)  # grey levels


def test_every_reference_of_the_type_is_drawn(checkpoint: Checkpoint) -> None:
    request = SampleRequest("spots", "reference", 0)
    normals, _ = inputs(1)
    seeds = np.arange(200)[:, None]
    drawn = make_samples(
        generator_of(checkpoint), np.repeat(normals, 200, axis=0), seeds, [request]
    ).made.references
    assert {checkpoint.references[i].defect_type for i in np.unique(drawn)} == {"spots"}
    assert len(np.unique(drawn)) == 12  # 3 products × 4


def test_no_normals_make_no_samples(checkpoint: Checkpoint) -> None:
    normals, seeds = inputs(1)
    for uri in (checkpoint.uri, "null:32x1"):
        config = GenerateConfig(pool="pool", output="out", checkpoint=uri)
        generator = load_generator(load_checkpoint(uri), config)
        assert len(make_samples(generator, normals[:0], seeds[:0], REQUESTS).made.pixels) == 0


def test_the_null_generator_copies() -> None:
    config = GenerateConfig(pool="pool", output="out", checkpoint="null:32x1")
    normals, seeds = inputs(3)
    generator = load_generator(load_checkpoint("null:32x1"), config)
    made = make_samples(generator, normals, seeds, REQUESTS).made
    for column in range(len(REQUESTS)):
        np.testing.assert_array_equal(made.pixels[:, column], normals)


def test_bfloat16_is_near(checkpoint: Checkpoint) -> None:
    normals, seeds = inputs(3)
    config = GenerateConfig(pool="pool", output="out", checkpoint=checkpoint.uri, precision="bfloat16")
    generator = load_generator(checkpoint, config)
    half = make_samples(generator, normals, seeds, REQUESTS).made.pixels.astype(float)
    full = make_samples(generator_of(checkpoint), normals, seeds, REQUESTS).made.pixels.astype(float)
    assert 0 < np.sqrt(np.mean((half - full) ** 2)) < 0.03 * 255


def test_weights_that_do_not_fit_their_sizes_are_the_users_error(tmp_path) -> None:
    checkpoint = write_checkpoint(str(tmp_path), model={"image_size": 64, "channels": 1})
    with pytest.raises(UserError, match="its weights do not fit its sizes"):
        generator_of(load_checkpoint(str(tmp_path)))
    assert storage.exists(f"{checkpoint.uri}/{GENERATOR}")

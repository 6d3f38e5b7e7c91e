"""What an actor makes of checkpoints with one decoder, rungs (a) to (d): whole images, no masks, no scores."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import TINY, make_samples, write_checkpoint, write_pool

from raygen import storage, surfaces
from raygen.checkpoint import GENERATOR, REFERENCE_CODES, Checkpoint
from raygen.errors import UserError
from raygen.families import load_generator
from raygen.families.dtgan.joint import JointGenerator
from raygen.families.dtgan.joint_generator import JointDTGANGenerator
from raygen.families.dtgan.networks import MappingNetwork
from raygen.families.dtgan.sizes import LADDER, DTGANConfig
from raygen.generate.config import GenerateConfig
from raygen.generate.plan import open_run, read_plan
from raygen.generate.stages import GenerateActor, read_planned
from raygen.images import to_model
from raygen.records import MODES, SCORES, SampleRequest, plan_requests

REQUESTS = plan_requests(surfaces.DEFECT_TYPES, (*MODES, "restyled"), 1)
SIZES = {rung: replace(TINY, background_skip=False, **LADDER[rung]) for rung in "ad"}


@pytest.fixture(scope="module", params=SIZES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write_checkpoint(str(tmp_path_factory.mktemp(f"rung-{request.param}")), SIZES[request.param])


def config_of(checkpoint: Checkpoint, **changes) -> GenerateConfig:
    values = {"pool": "pool", "output": "out", "checkpoint": checkpoint.uri, "masks": False, **changes}
    return GenerateConfig(**values)


def generator_of(checkpoint: Checkpoint, **changes) -> JointDTGANGenerator:
    generator = load_generator(checkpoint, config_of(checkpoint, micro_batch=4, **changes))
    assert isinstance(generator, JointDTGANGenerator)
    return generator


def inputs(num_normals: int) -> tuple[np.ndarray, np.ndarray]:
    normals = np.stack([pixels for _, pixels in surfaces.pool(num_normals, 0, TINY.image_size)][:num_normals])
    seeds = np.random.default_rng(0).integers(0, 2**63, (num_normals, len(REQUESTS)))
    return normals, seeds


def plain_networks(checkpoint: Checkpoint) -> tuple[JointGenerator, MappingNetwork]:
    sizes = DTGANConfig(**checkpoint.config.model)
    networks = JointGenerator(sizes).eval(), MappingNetwork(sizes).eval()
    weights = checkpoint.tensors(GENERATOR)
    for prefix, network in zip(("generator.", "mapping."), networks, strict=True):
        network.load_state_dict(
            {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        )
    return networks


@torch.no_grad()
def test_samples_are_those_of_the_plain_networks(checkpoint: Checkpoint) -> None:
    """Plain forward passes, one sample at a time, with the z, noise and reference of the same seed."""
    plain, mapping = plain_networks(checkpoint)
    codes = checkpoint.tensors(REFERENCE_CODES)
    normals, seeds = inputs(3)
    made = make_samples(generator_of(checkpoint), normals, seeds, REQUESTS).made
    for row, column in np.ndindex(seeds.shape):
        request = REQUESTS[column]
        seed = int(seeds[row, column])
        stream = np.random.Generator(np.random.Philox(key=seed))
        key = seed + 2**63 if request.mode == "restyled" else seed
        of_mapping = np.random.Generator(np.random.Philox(key=key))
        drawn = torch.from_numpy(of_mapping.standard_normal(16 + mapping.noise_size, np.float32))[None]
        domain = torch.tensor([1 + surfaces.DEFECT_TYPES.index(request.defect_type)])
        style, content = mapping(drawn[:, :16], domain, drawn[:, 16:])
        if request.mode == "latent":
            assert made.references[row, column] == -1
        else:
            of_type = [i for i, r in enumerate(checkpoint.references) if r.defect_type == request.defect_type]
            chosen = of_type[stream.integers(len(of_type))]
            content = codes["content"][[chosen]]
            style = codes["style"][[chosen]] if request.mode == "reference" else style
            assert made.references[row, column] == chosen
        x = to_model(torch.from_numpy(normals[row : row + 1]))
        expected = plain(x, style, content).clamp(-1, 1).add(1).mul(127.5)[0].permute(1, 2, 0).numpy()
        # 1e-4 of the range is 0.026 grey levels, and rounding adds at most a half.
        assert np.abs(made.pixels[row, column] - expected).max() <= 0.5 + 0.026


def test_a_sample_has_the_same_bits_wherever_it_stands(checkpoint: Checkpoint) -> None:
    """Other neighbours, another place in the batch, a batch that is not full, another process's generator."""
    normals, seeds = inputs(7)
    generator = generator_of(checkpoint)
    whole = make_samples(generator, normals, seeds, REQUESTS).made
    order = np.random.default_rng(1).permutation(7)
    shuffled = make_samples(generator, normals[order], seeds[order], REQUESTS).made
    np.testing.assert_array_equal(shuffled.pixels, whole.pixels[order])
    np.testing.assert_array_equal(shuffled.references, whole.references[order])
    torch.set_num_threads(2)  # a generator sets its own number
    again = make_samples(generator_of(checkpoint), normals, seeds, REQUESTS).made
    np.testing.assert_array_equal(again.pixels, whole.pixels)
    for row in (0, 5, 6):
        alone = make_samples(generator, normals[row : row + 1], seeds[row : row + 1], REQUESTS).made
        np.testing.assert_array_equal(alone.pixels[0], whole.pixels[row])
    assert make_samples(generator, normals[:0], seeds[:0], REQUESTS).made.pixels.size == 0


def test_every_seed_makes_its_own_sample(checkpoint: Checkpoint) -> None:
    normals, seeds = inputs(4)
    same = np.repeat(normals[:1], 4, axis=0)
    made = make_samples(generator_of(checkpoint), same, seeds[:, :1], [SampleRequest("spots", "latent", 0)])
    samples = made.made.pixels[:, 0].astype(int)
    for i, j in ((0, 1), (1, 2), (2, 3), (3, 0)):
        assert np.abs(samples[i] - samples[j]).mean() > 0.5  # grey levels


@pytest.mark.parametrize(
    ("wanted", "allowed"),
    [
        ("any", set(surfaces.PRODUCTS)),
        ("same", {"woven_fabric"}),
        (("Brushed_Metal", "woven_fabric"), {"brushed_metal", "woven_fabric"}),
    ],
)
def test_references_are_of_the_type_and_the_allowed_products(checkpoint, wanted, allowed: set[str]) -> None:
    normals, _ = inputs(1)
    request = SampleRequest("spots", "reference", 0)
    made = make_samples(
        generator_of(checkpoint, reference_products=wanted),
        np.repeat(normals, 100, axis=0),
        np.arange(100)[:, None],
        [request],
        products=["woven_fabric"] * 100,
    ).made
    drawn = [checkpoint.references[row] for row in np.unique(made.references)]
    assert {item.defect_type for item in drawn} == {"spots"}
    assert {item.product for item in drawn} == allowed
    assert len(drawn) == 4 * len(allowed)


def test_bfloat16_is_near(checkpoint: Checkpoint) -> None:
    normals, seeds = inputs(3)
    half = make_samples(generator_of(checkpoint, precision="bfloat16"), normals, seeds, REQUESTS).made.pixels
    full = make_samples(generator_of(checkpoint), normals, seeds, REQUESTS).made.pixels
    assert 0 < np.sqrt(np.mean((half.astype(float) - full) ** 2)) < 0.03 * 255


def test_a_bank_without_references_makes_latent_samples(tmp_path) -> None:
    checkpoint = write_checkpoint(str(tmp_path), SIZES["a"], num_references=0)
    normals, seeds = inputs(2)
    latent = [SampleRequest("spots", "latent", 0)]
    made = make_samples(generator_of(checkpoint), normals, seeds[:, :1], latent).made
    assert made.pixels.shape == (2, 1, 32, 32, 1)


@pytest.mark.parametrize(
    ("changes", "mend"),
    [
        ({}, "set masks = false"),
        ({"composition": "residual"}, 'set masks = false, composition = "reconstruct"'),
        (
            {"composition": "residual", "native": True, "normals_per_shard": 1},
            'set masks = false, composition = "reconstruct" and native = false',
        ),
    ],
)
def test_masks_are_refused_before_anything_begins(
    tmp_path, checkpoint: Checkpoint, changes: dict[str, object], mend: str
) -> None:
    write_pool(str(tmp_path / "pool"), 1)
    places = {"pool": str(tmp_path / "pool"), "output": str(tmp_path / "out")}
    config = config_of(checkpoint, **places, **{"masks": True, **changes})
    refusals: list[Callable[[], object]] = [
        lambda: open_run(config, checkpoint),
        lambda: load_generator(checkpoint, config),  # of a run that an older version began
    ]
    for refusal in refusals:
        with pytest.raises(UserError) as told:
            refusal()
        assert str(told.value).endswith(f"has no defect layers to read masks off; {mend}")
    assert list(storage.list_files(config.output)) == []


def test_a_pool_goes_through_the_actor(tmp_path, checkpoint: Checkpoint) -> None:
    write_pool(str(tmp_path / "pool"), 1)
    config = config_of(checkpoint, pool=str(tmp_path / "pool"), output=str(tmp_path / "out"))
    run = open_run(config, checkpoint)
    assert not run.is_judged
    normals, _ = read_planned(read_plan(config.output, run, 0), config, run)
    generated = GenerateActor(config, run, checkpoint.uri).sample(normals)
    assert generated.num_rows == 3
    for row in generated.to_pylist():
        assert row["reasons"] == [None] * 4
        assert row["scores"] == [[None] * len(SCORES)] * 4
        assert not any(row["masks"])
        assert [reference is None for reference in row["references"]] == [True, False] * 2
        pixels = np.frombuffer(row["pixels"], np.uint8).reshape(4, -1)
        assert len(np.unique(pixels, axis=0)) == 4

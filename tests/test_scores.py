"""Scores mean what `records.SCORES` says; each is computed again here, another way."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import TINY, make_samples, write_checkpoint

from raygen import surfaces
from raygen.checkpoint import JUDGE, REFERENCE_CODES, Checkpoint, load_checkpoint
from raygen.errors import UserError
from raygen.families import load_generator
from raygen.families.dtgan.generator import DTGANGenerator
from raygen.families.dtgan.networks import Discriminator
from raygen.families.dtgan.scores import Novelty
from raygen.families.scores import contrast, preservation
from raygen.generate.config import GateConfig, GenerateConfig
from raygen.images import to_model
from raygen.records import MODES, SCORES, plan_requests

REQUESTS = plan_requests(surfaces.DEFECT_TYPES, MODES, 1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write_checkpoint(str(tmp_path_factory.mktemp("checkpoint")))


def generator_of(checkpoint: Checkpoint, **changes) -> DTGANGenerator:
    config = GenerateConfig(pool="pool", output="out", checkpoint=checkpoint.uri, **changes)
    generator = load_generator(checkpoint, config)
    assert isinstance(generator, DTGANGenerator)
    return generator


def inputs(num_normals: int) -> tuple[np.ndarray, np.ndarray]:
    normals = np.stack([pixels for _, pixels in surfaces.pool(num_normals, 0, TINY.image_size)][:num_normals])
    return normals, np.random.default_rng(0).integers(0, 2**62, (num_normals, len(REQUESTS)))


def test_the_judge_is_the_trained_discriminator_on_the_pixels_that_are_written(
    checkpoint: Checkpoint,
) -> None:
    normals, seeds = inputs(5)
    products = ["woven_fabric", "Brushed_Metal", "unseen", "brushed_metal", "grained_leather"]
    made = make_samples(generator_of(checkpoint), normals, seeds, REQUESTS, products=products).made
    plain = Discriminator(TINY).eval()
    plain.load_state_dict(checkpoint.tensors(JUDGE))
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    scores = {name: made.scores[:, :, i] for i, name in enumerate(SCORES)}
    for column, request in enumerate(REQUESTS):
        with torch.no_grad():
            out = plain(to_model(torch.from_numpy(made.pixels[:, column])))
        domain = 1 + surfaces.DEFECT_TYPES.index(request.defect_type)
        assert out.foreground is not None
        assert out.background is not None
        close(scores["realism"][:, column], out.adversarial[:, domain])
        close(scores["type_prob"][:, column], out.foreground.softmax(1)[:, domain])
        own = [checkpoint.config.products.index(name.lower()) for name in products if name != "unseen"]
        expected = out.background.softmax(1)[[0, 1, 3, 4], own]
        close(scores["product_prob"][[0, 1, 3, 4], column], expected)
    assert np.isnan(scores["product_prob"][2]).all()
    area = (made.masks > 0).mean((2, 3))
    np.testing.assert_allclose(scores["mask_area"], area, atol=1e-6)
    assert (area > 0).any()


def test_scores_have_the_same_bits_wherever_the_sample_stands(checkpoint: Checkpoint) -> None:
    normals, seeds = inputs(11)
    generator = generator_of(checkpoint, micro_batch=4)
    whole = make_samples(generator, normals, seeds, REQUESTS).made
    order = np.random.default_rng(1).permutation(11)
    moved = make_samples(generator, normals[order], seeds[order], REQUESTS).made
    np.testing.assert_array_equal(moved.scores, whole.scores[order])
    np.testing.assert_array_equal(moved.masks, whole.masks[order])


def test_preservation_and_contrast_are_means_in_grey_levels() -> None:
    normal = np.full((2, 40, 40, 1), 100, np.uint8)
    sample, mask = normal.copy(), np.zeros((2, 40, 40), bool)
    mask[0, 10:20, 10:20] = True
    sample[0, 10:20, 10:20] = 70  # inside
    sample[0, 0, :, 0] = 110  # far outside: 40 of 1,500 pixels by 10
    np.testing.assert_allclose(preservation(sample, normal, mask), [400 / 1500, 0], rtol=1e-6)
    found = contrast(sample, mask)
    np.testing.assert_allclose(found[0], -30)
    assert np.isnan(found[1])
    assert np.isnan(preservation(sample, normal, np.ones_like(mask))).all()


def test_a_planted_reference_is_found_to_be_a_copy(checkpoint: Checkpoint) -> None:
    novelty = Novelty(checkpoint, CPU)
    contents = checkpoint.tensors(REFERENCE_CODES)["content"]
    rows = [i for i, item in enumerate(checkpoint.references) if item.defect_type == "spots"]
    planted = novelty(contents[rows[:3]], "spots")
    np.testing.assert_allclose(planted, 0, atol=1e-5)
    np.testing.assert_allclose(novelty(contents[rows[:3]] + 1e-3, "spots"), 0, atol=2e-3)
    new = novelty(torch.randn(8, *contents.shape[1:]), "spots")
    np.testing.assert_allclose(new, 1, atol=0.1)  # drawn as the references are
    nearest = torch.cdist(contents[rows[:1]].flatten(1) * 0.5, contents[rows].flatten(1)).min()
    typical = torch.pdist(contents[rows].flatten(1)).median()
    np.testing.assert_allclose(novelty(contents[rows[:1]] * 0.5, "spots"), nearest / typical, rtol=1e-3)


def test_a_sample_with_a_reference_s_content_is_refused_as_a_copy(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mapping network is made to give a reference's codes for one seed of three."""
    generator = generator_of(checkpoint)
    codes = checkpoint.tensors(REFERENCE_CODES)
    row = next(i for i, item in enumerate(checkpoint.references) if item.defect_type == "spots")
    drawn = generator.codes.mapping.for_domain

    def for_domain(z: torch.Tensor, domain: int, *others: torch.Tensor):
        style, content = drawn(z, domain, *others)
        content[1] = codes["content"][row]
        return style, content

    monkeypatch.setattr(generator.codes.mapping, "for_domain", for_domain)
    normals, seeds = inputs(3)
    gate = GateConfig(min_mask_area=None, min_novelty=0.05, max_attempts=1)
    latent_spots = [request for request in REQUESTS if request == ("spots", "latent", 0)]
    found = make_samples(generator, normals, seeds[:, :1], latent_spots, gate)
    assert found.reasons[:, 0].tolist() == [None, "min_novelty", None]


def test_a_checkpoint_without_classifiers_leaves_their_scores_empty(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(str(tmp_path))
    files = {name: data for name, data in checkpoint.files.items() if name != JUDGE}
    blind = Checkpoint(checkpoint.uri, checkpoint.config, files)
    normals, seeds = inputs(2)
    gate = GateConfig(min_mask_area=None, min_type_prob=0.99, min_realism=100.0)
    found = make_samples(generator_of(blind), normals, seeds, REQUESTS, gate)
    names = list(SCORES)
    for name in ("realism", "type_prob", "product_prob"):
        assert np.isnan(found.made.scores[:, :, names.index(name)]).all()
    assert (found.reasons == None).all()  # noqa: E711 element by element


def test_a_judge_that_does_not_fit_is_the_users_error(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(str(tmp_path / "a"))
    other = write_checkpoint(str(tmp_path / "b"), TINY.__class__(**{**TINY.__dict__, "width": 1 / 8}))
    mixed = Checkpoint(checkpoint.uri, checkpoint.config, {**checkpoint.files, JUDGE: other.files[JUDGE]})
    with pytest.raises(UserError, match="does not fit its sizes"):
        generator_of(mixed)


def test_the_judge_decides_the_digest(tmp_path: Path) -> None:
    before = write_checkpoint(str(tmp_path)).digest
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.digest == before
    config = checkpoint.config.model_copy(update={"files": {**checkpoint.config.files, JUDGE: "0"}})
    assert Checkpoint(checkpoint.uri, config, checkpoint.files).digest != before

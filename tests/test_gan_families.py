"""StyleGAN2 and DFM-GAN as families: their recipes, checkpoints and sheets; what cannot be trained is one line."""

import shutil
from collections.abc import Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from factories import write_checkpoint
from gan_training import ALONE, CPU, SIZES, AnyConfig, batch, changed, recipe1, shake, state_of
from training import write_defect_set

from raygen import images, surfaces
from raygen.checkpoint import GENERATOR as WEIGHTS
from raygen.checkpoint import CheckpointConfig, save_checkpoint
from raygen.errors import UserError
from raygen.families.dfmgan.config import DFMGANTrainConfig
from raygen.families.dfmgan.networks import DFMGANConfig, DFMGANGenerator
from raygen.families.dfmgan.training import DFMGANTrainer
from raygen.families.dtgan.config import DTGANTrainConfig
from raygen.families.photos import TRAINING_SPLITS, DefectSet
from raygen.families.recipes import TrainingConfig
from raygen.families.stylegan2 import step as stylegan2
from raygen.families.stylegan2.ada import AugmentConfig
from raygen.families.stylegan2.config import AdaptiveConfig, StyleGAN2TrainConfig
from raygen.families.stylegan2.networks import StyleGAN2Config
from raygen.families.stylegan2.step import StyleGAN2Training
from raygen.families.stylegan2.training import StyleGAN2Trainer
from raygen.train.config import load_train_config, name_of, parse_train_config, trainer_of
from raygen.train.folder import TrainingRun


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# -------------------------------------------------------------------------------------------------- recipes

PLACES = ("defects=/d", "output=/o", "backbone=/b")


@pytest.mark.parametrize(
    ("overrides", "kind", "family"),
    [
        (PLACES[:2], DTGANTrainConfig, "dtgan"),
        (("family=dtgan", *PLACES[:2]), DTGANTrainConfig, "dtgan"),
        (("family=stylegan2", *PLACES[:2]), StyleGAN2TrainConfig, "stylegan2"),
        (("family=dfmgan", *PLACES), DFMGANTrainConfig, "dfmgan"),
    ],
)
def test_a_recipe_s_family_says_what_it_is(
    overrides: Sequence[str], kind: type[TrainingConfig], family: str
) -> None:
    config = load_train_config(None, overrides)
    assert type(config) is kind
    assert name_of(config) == family
    assert parse_train_config(config.model_dump(mode="json")) == config
    assert config.identity()["family"] == family


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("family=cyclegan",),
            "family = 'cyclegan': choose from copy-paste, dtgan, stylegan2, dfmgan, perlin",
        ),
        (("family=3",), "family = 3: choose from"),
        (('family=["dtgan"]',), r"family = \['dtgan'\]: choose from"),
        (("family=stylegan2", "match=1"), "unknown key 'match'; the keys are .*path_length"),
        (("family=stylegan2", "ladder=g"), "unknown key 'ladder'"),
        (("family=dfmgan",), "'backbone' is missing"),
        (("family=dfmgan", "backbone=/b", "path_length=1"), "unknown key 'path_length'"),
        (
            ("family=dfmgan", "backbone=/b", "adaptive.rotate=false"),
            "unknown key 'adaptive.rotate'; .*transforms",
        ),
        (("family=stylegan2", "r1_every=0"), "r1_every = 0: "),
        (("family=stylegan2", "learns=photos"), "learns = 'photos': "),
    ],
)
def test_a_wrong_recipe_is_one_line(overrides: Sequence[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_train_config(None, [*PLACES[:2], *overrides])
    assert "\n" not in str(caught.value)


def test_transforms_are_switched_in_the_recipe() -> None:
    """And decide whether x is moved, or only its colours are."""
    config = load_train_config(
        None, [*PLACES[:2], "family=stylegan2", "adaptive.transforms.luma_flip=false", "adaptive.target=0.5"]
    )
    assert isinstance(config, StyleGAN2TrainConfig)
    assert config.adaptive.transforms == {"luma_flip": False}
    blits = {"flip", "rotate90", "translate"}
    names = [field.name for field in dataclass_fields(AugmentConfig) if field.default is True]
    switches = {name: name in blits for name in names}
    some = batch(recipe1())
    seen = stylegan2.seen_by(some.x, some, stylegan2.REAL, 1.0, AdaptiveConfig(transforms=switches))
    assert not torch.equal(seen, some.x)
    assert set(seen.unique().tolist()) <= set(some.x.unique().tolist())


# ----------------------------------------------------------------------------------------- families at work


class Stage1(NamedTuple):
    """A defect set, and what stage 1 made of its normals."""

    defects: str
    checkpoint: str
    training: StyleGAN2Training
    root: Path


MODEL = ["latent_dim=8", "w_dim=8", "channel_base=256", "channel_max=16", "image_size=32", "channels=1"]


def load(family: str, *overrides: str) -> Any:
    """A recipe that lacks nothing but what is given."""
    return load_train_config(None, [f"family={family}", "output=/output", "batch_per_worker=4", *overrides])


def open_family(config: AnyConfig) -> tuple[Any, DefectSet]:
    """The family as a new training has it, and all of its photos."""
    model, photos = trainer_of(config).draft(config)
    run = TrainingRun(
        config=config.model_dump(mode="json"),
        photos="",
        products=photos.products,
        defect_types=photos.defect_types,
        model=model,
        command="",
    )
    return trainer_of(config)(config, run), photos


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> Stage1:
    """After two iterations, so that the average is not the weights."""
    root = tmp_path_factory.mktemp("stage1")
    write_defect_set(str(root / "defects"), num_normals=3, num_defects=2)
    sizes = [f"model.{size}" for size in MODEL]
    config = load("stylegan2", f"defects={root / 'defects'}", "average_ramp=1000", *sizes)
    family, photos = open_family(config)
    training = family.start(CPU)
    learning = photos.part(TRAINING_SPLITS)
    step, make = family.stepper(training, ALONE), family.maker(learning, in_memory=True)
    for first in (0, 4):
        step(make(range(first, first + 4)))
    contents = family.contents(training, learning)
    about = CheckpointConfig(
        family="stylegan2",
        model=contents.model,
        image_size=contents.image_size,
        channels=contents.channels,
        products=photos.products,
        defect_types=photos.defect_types,
        images_seen=8,
        trained_on="",
    )
    save_checkpoint(str(root / "checkpoint"), about, contents.tensors)
    return Stage1(str(root / "defects"), str(root / "checkpoint"), training, root)


def test_stage_1_learns_normals_and_counts_products(stage1: Stage1) -> None:
    config = load("stylegan2", f"defects={stage1.defects}", *(f"model.{size}" for size in MODEL))
    model, photos = StyleGAN2Trainer.draft(config)
    assert StyleGAN2Config(**model) == replace(SIZES, num_products=3)
    assert {photo.defect_type for photo in photos.photos} == {"normal"}
    assert photos.products == tuple(sorted(surfaces.PRODUCTS))
    assert len(photos.part(TRAINING_SPLITS).photos) == 6


def test_stage_1_may_learn_one_type_of_defects_from_where_normals_are_known(stage1: Stage1) -> None:
    """The baseline of DFM-GAN's paper: the networks go on from the averaged weights."""
    config = load(
        "stylegan2",
        f"defects={stage1.defects}",
        f"begin_with={stage1.checkpoint}",
        "learns=defects",
        "types.spots=-",
    )
    family, photos = open_family(config)
    assert {photo.defect_type for photo in photos.photos} == {"scratches"}
    training = family.start(CPU)
    assert not changed(training.backbone, state_of(stage1.training.average))
    assert not changed(training.discriminator, state_of(stage1.training.discriminator))
    terms = family.stepper(training, ALONE)(family.maker(photos, in_memory=False)(range(4)))
    assert all(term.isfinite() for term in terms.values())


def test_stage_2_stands_on_what_stage_1_left(stage1: Stage1) -> None:
    """Its sizes, its averaged weights, its discriminator; and learns defects with their masks."""
    config = load("dfmgan", f"defects={stage1.defects}", f"backbone={stage1.checkpoint}", "model.start=16")
    family, photos = open_family(config)
    assert isinstance(family, DFMGANTrainer)
    assert family.sizes == DFMGANConfig(replace(SIZES, num_products=3), num_types=2, start=16)
    assert {photo.defect_type for photo in photos.photos} == set(surfaces.DEFECT_TYPES)
    training = family.start(CPU)
    assert changed(stage1.training.backbone, state_of(stage1.training.average))
    assert not changed(training.generator.backbone, state_of(stage1.training.average))
    trunk = {name: value for name, value in training.discriminator.state_dict().items() if "out." not in name}
    theirs = stage1.training.discriminator.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in trunk.items())
    made = family.maker(photos.part(TRAINING_SPLITS), in_memory=True)(range(30))
    assert set(zip(made["product"].tolist(), made["defect_type"].tolist(), strict=True)) == {
        (product, kind) for product in range(3) for kind in range(2)
    }
    assert set(np.unique(made["x"][..., 1])) == {0, 255}
    terms = family.stepper(training, ALONE)(family.maker(photos, in_memory=False)(range(4)))
    assert all(term.isfinite() for term in terms.values())
    contents = family.contents(training, photos)
    again = DFMGANGenerator(DFMGANConfig.of(contents.model))
    saved = {name.removeprefix("generator."): value for name, value in contents.tensors[WEIGHTS].items()}
    again.load_state_dict(saved)
    assert not changed(again, state_of(training.average))


@pytest.mark.parametrize("family", ["stylegan2", "dfmgan"])
def test_a_sheet_is_a_picture_of_the_averaged_weights_alone(family: str, stage1: Stage1) -> None:
    """Drawn from the same latents each time."""
    more = [f"backbone={stage1.checkpoint}"] if family == "dfmgan" else [f"model.{size}" for size in MODEL]
    at_work, photos = open_family(load(family, f"defects={stage1.defects}", *more))
    training = at_work.start(CPU)
    sheet = at_work.sheet(training, photos)
    pixels = images.decode(sheet, 64, 3, resize=True, max_pixels=10**8)
    assert pixels.std() > 10
    shake(training.discriminator)
    assert at_work.sheet(training, photos) == sheet
    shake(training.average)
    assert at_work.sheet(training, photos) != sheet


@pytest.mark.parametrize(
    ("family", "overrides", "message"),
    [
        (
            "stylegan2",
            ["adaptive.transforms.rotat=false"],
            "adaptive.transforms: .*'rotat'; see .*AugmentConfig$",
        ),
        (
            "dfmgan",
            ["adaptive.transforms.rotat=false"],
            "adaptive.transforms: .*'rotat'; see .*AugmentConfig$",
        ),
        (
            "stylegan2",
            ["adaptive.transforms.scale_std=-1"],
            "adaptive.transforms: scale_std must be at least 0",
        ),
        (
            "stylegan2",
            ["adaptive.transforms.scale_std=much"],
            "adaptive.transforms: .*; see .*AugmentConfig$",
        ),
        ("stylegan2", ["model.depth=3"], "model: .*'depth'; see .*StyleGAN2Config$"),
        (
            "stylegan2",
            ["model.image_size=100"],
            "model: image_size must be a power of two in 32..512, not 100",
        ),
        ("stylegan2", ["model.num_products=2"], "model.num_products: follows from the defect set"),
        ("dfmgan", ["model.num_types=3"], "model.num_types: follows from the defect set"),
        ("dfmgan", ["model.depth=3"], "model: .*'depth'; see .*DFMGANConfig$"),
        ("dfmgan", ["model.start=12"], "model: start must be one of 8, 16, 32, or 0"),
        ("dfmgan", ["backbone={dtgan}"], 'backbone = .*: a checkpoint of dtgan; .* family = "stylegan2"'),
        ("stylegan2", ["begin_with={dtgan}"], "begin_with = .*: a checkpoint of dtgan"),
        ("dfmgan", ["backbone={root}/nothing"], "nothing: no checkpoint there"),
        (
            "dfmgan",
            ['products=["grained_leather"]'],
            "backbone = .*: knows .*, and the defect set holds grained_leather; ",
        ),
        (
            "stylegan2",
            ["begin_with={stage1}", 'products=["grained_leather"]'],
            "begin_with = .*: knows .* holds grained_leather;",
        ),
        ("stylegan2", ["begin_with={stage1}", "model.w_dim=8"], "model: is that of begin_with; leave it out"),
        ("stylegan2", ["learns=defects"], "one type at a time, not scratches, spots; "),
        ("dfmgan", ["defects={unmasked}"], "defect set: .*000001.png: has no mask; put one beside it"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    family: str, overrides: Sequence[str], message: str, stage1: Stage1, tmp_path: Path
) -> None:
    places = {"dtgan": tmp_path / "dtgan", "unmasked": tmp_path / "unmasked"}
    if any("{dtgan}" in override for override in overrides):
        write_checkpoint(str(places["dtgan"]))
    if any("{unmasked}" in override for override in overrides):
        shutil.copytree(stage1.defects, places["unmasked"])
        next(iter(places["unmasked"].glob("*/spots/000001_mask.png"))).unlink()
    given = [override.format(**places, root=tmp_path, stage1=stage1.checkpoint) for override in overrides]
    backbone = [f"backbone={stage1.checkpoint}"] if family == "dfmgan" else []
    config = load(family, f"defects={stage1.defects}", *backbone, *given)
    with pytest.raises(UserError, match=message) as caught:
        trainer_of(config).draft(config)
    assert "\n" not in str(caught.value)

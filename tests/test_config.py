"""Recipes: what is right loads, what is wrong is one line that names the key and the mend."""

from pathlib import Path

import pytest

from raygen.config import load_config, refuse_lost_places
from raygen.errors import UserError
from raygen.families.dfmgan.config import DFMGANTrainConfig
from raygen.families.dtgan.config import DTGANTrainConfig
from raygen.families.dtgan.sizes import PRESETS
from raygen.families.dtgan.training import network_sizes
from raygen.families.stylegan2.ada import AugmentConfig
from raygen.families.stylegan2.config import StyleGAN2TrainConfig
from raygen.families.stylegan2.networks import StyleGAN2Config
from raygen.generate.config import GenerateConfig
from raygen.train.config import RECIPES, load_train_config

JOBS = Path(__file__).parent.parent / "jobs"
PLACES = ["pool=s3://b/pool", "output=s3://b/out", "checkpoint=s3://b/ckpt"]


def load(*overrides: str, recipe: Path | None = None) -> GenerateConfig:
    return load_config(GenerateConfig, recipe, [*PLACES, *overrides])


@pytest.mark.parametrize("recipe", sorted(JOBS.glob("generate*.toml")), ids=lambda path: path.name)
def test_every_recipe_loads(recipe: Path) -> None:
    assert load(recipe=recipe).pool == "s3://b/pool"


def test_the_recipe_spells_out_the_defaults() -> None:
    config = load(recipe=JOBS / "generate.toml")
    assert config.model_dump() == load().model_dump()


@pytest.mark.parametrize("recipe", sorted(JOBS.glob("dtgan*.toml")), ids=lambda path: path.name)
def test_every_training_recipe_loads_and_names_networks_that_can_be_built(recipe: Path) -> None:
    config = load_config(DTGANTrainConfig, recipe, ["defects=s3://b/defects", "output=s3://b/out"])
    assert network_sizes(config, num_products=2, num_domains=3).num_products == 2


def test_the_paper_s_recipe_spells_out_the_defaults() -> None:
    places = ["defects=s3://b/defects", "output=s3://b/out"]
    spelled_out = load_config(DTGANTrainConfig, JOBS / "dtgan-128.toml", places)
    assert spelled_out.model_dump() == load_config(DTGANTrainConfig, None, places).model_dump()


def test_the_small_recipe_says_where_it_leaves_the_paper() -> None:
    places = ["defects=s3://b/defects", "output=s3://b/out"]
    recipes = [
        load_config(DTGANTrainConfig, JOBS / f"dtgan-{name}.toml", places) for name in ("128", "64-cpu")
    ]
    assert [recipe.balance for recipe in recipes] == ["defect_types", "cells"]
    assert [recipe.loss.classify_fakes for recipe in recipes] == [True, False]


@pytest.mark.parametrize("recipe", sorted(JOBS.glob("*gan*.toml")), ids=lambda path: path.name)
def test_every_training_recipe_is_of_the_family_in_its_name(recipe: Path) -> None:
    places = ["defects=s3://b/defects", "output=s3://b/out"]
    places += ["backbone=s3://b/stage-1"] * recipe.name.startswith("dfmgan")
    config = load_train_config(str(recipe), places)
    assert RECIPES[recipe.name.split("-")[0]] is type(config)
    if isinstance(config, StyleGAN2TrainConfig):
        StyleGAN2Config(**config.model)
    if not isinstance(config, DTGANTrainConfig):
        assert isinstance(config, StyleGAN2TrainConfig | DFMGANTrainConfig)
        AugmentConfig(**config.adaptive.transforms)


@pytest.mark.parametrize("family", ["stylegan2", "dfmgan"])
def test_the_originals_recipes_spell_out_the_defaults(family: str) -> None:
    places = ["defects=d", "output=o"] + ["backbone=b"] * (family == "dfmgan")
    spelled_out = load_train_config(str(JOBS / f"{family}-256.toml"), places)
    defaults = load_train_config(None, [f"family={family}", *places])
    assert spelled_out.model_dump() == defaults.model_dump()


def test_a_key_of_augmentation_leaves_the_others_at_the_family_s_defaults() -> None:
    places = ["family=dfmgan", "defects=d", "output=o", "backbone=b"]
    config = load_train_config(None, [*places, "adaptive.transforms={rotate=false}"])
    assert isinstance(config, DFMGANTrainConfig)
    assert config.adaptive.full_range == 100_000


def test_a_family_that_there_is_none_of_is_one_line() -> None:
    with pytest.raises(UserError, match="family = 'vae': choose from copy-paste, dtgan, stylegan2, dfmgan"):
        load_train_config(None, ["family=vae", "defects=d", "output=o"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("preset=paper-256", "preset = 'paper-256': choose from paper-128, small-128, small-64"),
        ("model.depth=3", "model: .*'depth'"),
        ("model.image_size=100", "model: image_size must be a power of two"),
        ("model.num_products=3", "model.num_products: is counted from the defect set"),
    ],
)
def test_networks_that_cannot_be_built_are_one_line(override: str, message: str) -> None:
    config = load_config(DTGANTrainConfig, None, ["defects=d", "output=o", override])
    with pytest.raises(UserError, match=message):
        network_sizes(config, num_products=2, num_domains=3)


def test_every_rung_of_the_ladder_is_a_recipe() -> None:
    places = ["defects=d", "output=o"]
    rungs = [
        network_sizes(load_config(DTGANTrainConfig, None, [*places, f"ladder={rung}"]), 3, 3)
        for rung in "abcdefg"
    ]
    assert len(set(rungs)) == 7
    assert rungs[-1] == PRESETS["paper-128"]
    assert not rungs[0].content
    config = load_config(DTGANTrainConfig, None, [*places, "ladder=a", "preset=small-64"])
    with pytest.raises(UserError, match="model: content_map must be False without content"):
        network_sizes(config, 3, 3)


def test_overrides_are_toml_or_else_strings() -> None:
    config = load(
        "seed=7",
        "resize=false",
        'modes=["latent"]',
        "layout=png",
        "compute.num_actors=3",
        "max_reject_rate=0.5",
    )
    assert (config.seed, config.resize, config.modes, config.layout) == (7, False, ("latent",), "png")
    assert config.compute.num_actors == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sead=7", r"unknown key 'sead' \(did you mean 'seed'\?\); the keys are pool, .*output, .*seed"),
        (
            "compute.actors=7",
            r"unknown key 'compute.actors' \(did you mean 'num_actors'\?\); the keys are num_actors",
        ),
        ("seed=-1", r"seed = -1: wants at least 0"),
        ("seed=true", r"seed = true: wants another value than true or false"),
        ("seed=many", r"seed = 'many': wants a whole number"),
        ("samples_per_cell={spots=0}", r"samples_per_cell.spots = 0: wants at least 1"),
        ("samples_per_cell=x", r"samples_per_cell = 'x': wants a whole number or a section"),
        ("gate.min_realism=nan", r"gate.min_realism = nan: wants a finite number"),
        ("pool=", r"pool = '': names no place"),
        ("layout=zip", r"layout = 'zip'.*'parquet', 'webdataset' or 'png'"),
        ("modes=[]", r"modes = \[\]"),
        ('modes=["latent","latent"]', "names something twice"),
        ('defect_types=["spots","spots"]', "names something twice"),
        ("output=s3://b/pool/run", "pool and output lie in one another"),
        ("output=s3://b", "pool and output lie in one another"),
        ("pool=gs://b/pool", "not gs://"),
        ("compute.num_actors=0", r"compute.num_actors = 0"),
        ("seed", r"--set seed: write --set key=value"),
        ("seed.x=1", r"unknown key|seed = "),
    ],
)
def test_what_is_wrong_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(override)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="'pool' is missing; add it, or --set pool=…"):
        load_config(GenerateConfig, None, ["output=x", "checkpoint=y"])
    with pytest.raises(UserError, match=r"none.toml: no such recipe"):
        load_config(GenerateConfig, "none.toml")


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.toml"
    recipe.write_text("pool = \nseed")
    with pytest.raises(UserError, match="not a TOML file"):
        load_config(GenerateConfig, recipe)


def test_one_place_has_one_spelling() -> None:
    assert load("pool=s3://b/pool/").identity() == load().identity()
    assert load("pool=./a//b/").pool == load("pool=file://a/b").pool == "a/b"


def test_identity_is_what_decides_samples() -> None:
    config = load()
    for same in ("output=elsewhere", "compute.num_actors=5", "max_reject_rate=0.5", "checkpoint=copy"):
        assert load(same).identity() == config.identity()
    for other in (
        "seed=1",
        "pool=other",
        "layout=png",
        "normals_per_shard=5",
        "micro_batch=4",
        "resize=false",
        "compile=true",
    ):
        assert load(other).identity() != config.identity()


def test_in_a_ray_job_places_are_absolute_and_what_is_no_place_goes_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    relative = {"pool": "normals"}
    refuse_lost_places(relative)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    refuse_lost_places(
        {"pool": "seeds:0-9", "checkpoint": "null:32x1", "output": "/out", "defects": "s3://b/d"}
    )
    with pytest.raises(UserError, match=r"pool = normals: a Ray job works in a copy"):
        refuse_lost_places(relative)

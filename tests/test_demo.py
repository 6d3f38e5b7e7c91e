"""The checkpoint that comes with the package: small, on record, and as good as the README says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raygen import surfaces
from raygen.checkpoint import load_checkpoint
from raygen.demo import CHECKPOINT

BENCHMARK = Path(__file__).parent / "benchmarks" / "defect_quality.py"


def test_the_checkpoint_is_small_and_says_how_it_was_made() -> None:
    assert sum(file.stat().st_size for file in Path(CHECKPOINT).rglob("*") if file.is_file()) < 10_000_000
    record = load_checkpoint(CHECKPOINT).config
    assert record.products == tuple(sorted(surfaces.PRODUCTS))
    assert record.defect_types == surfaces.DEFECT_TYPES
    assert record.images_seen >= 10_000
    assert record.training["seconds"] > 0
    assert record.training["recipe"]["seed"] == 0
    assert "jobs/dtgan-64-cpu.toml" in record.training["command"]
    for path in Path(CHECKPOINT).rglob("*.json"):
        assert "/tmp/" not in path.read_text()


@pytest.mark.slow
def test_its_defects_are_of_the_wanted_type_on_an_intact_background_and_differ(tmp_path: Path) -> None:
    """By a classifier trained on real (procedural) defects alone, on surfaces that no training has seen."""
    command = [
        sys.executable,
        str(BENCHMARK),
        CHECKPOINT,
        "--classifier-cache",
        str(tmp_path),
        "--steps",
        "300",
    ]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(out.splitlines()[-1])
    assert found["real_accuracy"] > 0.95  # or the classifier is no judge
    assert found["type"] >= 0.85, out
    assert found["background"] <= 3, out
    assert min(found["diversity"].values()) >= 5, out

"""What a user meets at the command line: one clear line, and an exit code that scripts can trust."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from factories import write_checkpoint, write_pool

from raygen import storage
from raygen.checkpoint import GENERATOR
from raygen.cli import main


def settings(tmp_path: Path, **changes: str) -> list[str]:
    values = {
        "pool": str(tmp_path / "pool"),
        "output": str(tmp_path / "out"),
        "checkpoint": str(tmp_path / "checkpoint"),
        **changes,
    }
    return [flag for key, value in values.items() for flag in ("--set", f"{key}={value}")]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    write_pool(str(tmp_path / "pool"), 2)
    write_checkpoint(str(tmp_path / "checkpoint"))
    return tmp_path


def errors_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Runs a command that must fail with exit code 2, one line and no traceback."""
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert message.startswith("raygen: ")
    assert message.count("\n") == 1
    return message


def test_users_errors_before_any_work(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def generate(**changes: str) -> str:
        return errors_of(capsys, "generate", *settings(prepared, **changes))

    assert "unknown key 'sead'" in generate(sead="1")
    assert "no images there" in generate(pool=str(prepared / "nothing"))
    assert "no checkpoint there" in generate(checkpoint=str(prepared / "nothing"))
    (prepared / "file").touch()
    assert f"output: {prepared}/file: " in generate(output=str(prepared / "file"))
    assert "'dents' is unknown" in generate(defect_types='["dents"]')
    assert "not gs://" in generate(pool="gs://bucket/pool")
    weights = f"{prepared}/checkpoint/{GENERATOR}"
    storage.put(weights, storage.read(weights)[:-1])
    assert f"{GENERATOR}: damaged" in generate()
    assert not (prepared / "out" / "run.json").exists()


def test_a_bucket_that_is_not_there(
    prepared: Path, s3_server: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in ("pool", "output", "checkpoint"):
        changes = {key: "s3://no-such-bucket/x"}
        assert "s3://no-such-bucket/x" in errors_of(capsys, "generate", *settings(prepared, **changes))


def test_a_dry_run_says_all_and_writes_nothing(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "jobs/generate.toml", *settings(prepared), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert '"normals_per_shard": 256' in said
    assert "6 normals (brushed_metal 2, grained_leather 2, woven_fabric 2) in 1 shards" in said
    assert (
        "4 samples each: scratches/latent/0, scratches/reference/0, spots/latent/0, spots/reference/0" in said
    )
    assert "the bound: " in said.splitlines()[-2]
    assert "proposed" in said.splitlines()[-1]
    assert not (prepared / "out").exists()


def test_verify_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no run there" in errors_of(capsys, "verify", str(tmp_path))


def test_ctrl_c_and_bugs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    def bug(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("raygen.cli._verify", interrupt)
    assert main(["verify", "x"]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err

    def terminate(_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr("raygen.cli._verify", terminate)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["verify", "x"]) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    monkeypatch.setattr("raygen.cli._verify", bug)
    with pytest.raises(ZeroDivisionError):  # ours to mend: it crashes loudly
        main(["verify", "x"])


def test_warnings_are_loud(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pool(str(prepared / "pool" / "glass"), 1)  # glass/brushed_metal/…: the product is glass
    write_checkpoint(str(prepared / "checkpoint"), images_seen=0)
    assert main(["generate", *settings(prepared), "--set", "strict_products=false", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "WARNING: glass: not among the products" in said
    assert "untrained" in said


@pytest.mark.slow
@pytest.mark.ray
def test_the_command_alone_starts_and_ends_its_own_ray(prepared: Path) -> None:
    """As a user runs it: no cluster anywhere, exit codes 0, 3 and 0."""
    storage.put(str(prepared / "pool" / "brushed_metal" / "bad.png"), b"")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [str(Path(sys.executable).with_name("raygen")), "generate", *settings(prepared)]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=300)

    failed = run()
    assert failed.returncode == 3, failed.stderr
    assert "raygen: 1 of 7 normals are unusable (1 empty)" in failed.stderr
    assert "Traceback" not in failed.stderr
    mended = run("--set", "max_reject_rate=0.5")
    assert mended.returncode == 0, mended.stderr
    assert "1 normals rejected: empty (the file has no bytes)" in mended.stdout
    assert main(["verify", str(prepared / "out")]) == 0

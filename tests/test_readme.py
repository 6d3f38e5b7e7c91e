"""The README is a face, and what it says to type works."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from raygen.config import load_config
from raygen.demo import demo
from raygen.evaluate.config import EvaluateConfig
from raygen.generate.config import GenerateConfig
from raygen.publish.config import RefreshConfig
from raygen.train.config import load_train_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "raygen/README.md", "jobs/README.md", "cluster/README.md", "tests/benchmarks/README.md")
KINDS = {"generate": GenerateConfig, "evaluate": EvaluateConfig, "refresh": RefreshConfig}


def commands(language: str) -> list[list[str]]:
    """The words of every command in the README's blocks of a language."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 250
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_points_to_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = target.partition("#")
        if not place.startswith(("http:", "https:")):
            file = (ROOT / page).parent / place if place else ROOT / page
            assert file.exists(), f"{page}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
                there = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in there, f"{page}: {target}"


def test_commands_for_a_cluster_have_recipes_and_keys_that_there_are() -> None:
    submitted = [words[words.index("python") + 1 :] for words in commands("bash") if words[0] == "ray"]
    assert [Path(words[0]).stem for words in submitted] == ["train", "generate", "evaluate", "refresh"]
    for job, recipe, *flags in submitted:
        assert (ROOT / job).exists()
        overrides = flags[1::2]
        if kind := KINDS.get(Path(job).stem):
            load_config(kind, ROOT / recipe, overrides)
        else:
            load_train_config(str(ROOT / recipe), overrides)


def test_the_makefile_has_its_targets() -> None:
    targets = re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert {words[1] for words in commands("sh") if words[0] == "make"} <= set(targets)


@pytest.mark.slow
@pytest.mark.ray
def test_commands_for_one_machine_run(tmp_path: Path) -> None:
    """In their order, in a folder of its own; `make demo` stands for what it calls, which does nothing twice."""
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    raygen = Path(sys.executable).with_name("raygen")
    typed = [words for words in commands("sh") if words != ["make", "test"]]
    assert len(typed) == 4
    for words in typed:
        command = ["demo"] if words == ["make", "demo"] else words[1:]
        done = subprocess.run([raygen, *command], cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
    for name in ("run", "pasted", "run-2", "."):
        assert (tmp_path / "demo" / name / "contact-sheet.png").stat().st_size > 10_000
    said: list[str] = []
    demo(str(tmp_path / "demo"), said.append)
    assert sum("is complete: nothing to do" in line for line in said) == 3
    assert not any("rendering" in line for line in said)

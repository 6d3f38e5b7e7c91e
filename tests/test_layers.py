"""The house's rules of who may import whom hold."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(ROOT.glob("raygen/**/*.py")) + sorted(ROOT.glob("jobs/*.py"))

# Imports point to the left (a lower number), or stay in the layer.
LAYERS = [
    {"errors", "records", "images", "storage", "checkpoint", "surfaces", "show", "relay"},
    {"models", "data"},
    {"config", "resources", "on_ray"},
    {"train", "generate", "evaluate"},
    {"publish"},
    {"demo"},
    {"cli", "jobs"},
]
NEVER_EACH_OTHER = {"train", "generate", "evaluate"}

ONLY_IN = {
    "ray": {"on_ray", "train/on_ray", "generate/on_ray", "evaluate/on_ray", "publish/on_ray", "cli"},
    "s3fs": {"storage"},
    "boto3": {"storage"},
    "botocore": {"storage"},
    "fsspec": {"storage"},
    "pyarrow.fs": {"storage"},
    "deltalake": {"publish/table"},
}
NO_TORCH = ("data/pool", "data/defects", "generate/plan", "generate/shards", "publish/")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it; `if TYPE_CHECKING:` does not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name_of(path: Path) -> str:
    """`generate/on_ray` for raygen/generate/on_ray.py; `jobs` for all jobs."""
    relative = path.relative_to(ROOT).with_suffix("")
    return "jobs" if relative.parts[0] == "jobs" else "/".join(relative.parts[1:])


def layer_of(room: str) -> int:
    return next(number for number, rooms in enumerate(LAYERS) if room in rooms)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    name = name_of(path)
    room = name.split("/")[0]
    if room == "__init__":
        return
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "raygen" and parts[1] != "__version__":
            other = parts[1]
            assert layer_of(other) <= layer_of(room), f"{name} imports {module}"
            if room in NEVER_EACH_OTHER and other in NEVER_EACH_OTHER:
                assert room == other, f"{name} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_guarded_packages_stay_in_their_rooms(path: Path) -> None:
    name = name_of(path)
    for module in imports(path):
        for package, rooms in ONLY_IN.items():
            if module == package or module.startswith(package + "."):
                assert name in rooms or name == "jobs", f"{name} imports {module}"
        if module.split(".")[0] == "torch":
            assert not name.startswith(NO_TORCH), f"{name} imports {module}"
        if name.startswith("models/"):
            assert module.split(".")[0] in {"torch", "raygen"} | STANDARD, f"{name} imports {module}"


STANDARD = {"abc", "collections", "dataclasses", "functools", "itertools", "math", "typing"}


def test_the_top_level_holds_what_was_agreed() -> None:
    allowed = {"raygen", "jobs", "cluster", "tests", "pyproject.toml", "README.md", "Makefile", "LICENSE"}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {name.split("/")[0] for name in listed.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= allowed

"""The house's rules of who may import whom hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(ROOT.glob("raygen/**/*.py")) + sorted(ROOT.glob("jobs/*.py"))

# Imports point to the left (a lower number), or stay in the layer.
LAYERS = [
    {
        "accelerator",
        "errors",
        "explain",
        "records",
        "images",
        "s3",
        "s3_reads",
        "storage",
        "checkpoint",
        "surfaces",
        "show",
        "relay",
        "quiet",
        "extras",
        "learned",
        "depth",
        "pretrained",
        "metrics",
        "pixel_features",
    },
    {"config", "resources", "on_ray"},
    {"data"},
    {"families"},
    {"train", "generate", "evaluate", "inspection"},
    {"publish"},
    {"demo"},
    {"cli", "jobs"},
]
NEVER_EACH_OTHER = {"train", "generate", "evaluate", "inspection"}

ONLY_IN = {
    "ray": {
        "on_ray",
        "train/on_ray",
        "generate/on_ray",
        "evaluate/on_ray",
        "inspection/on_ray",
        "publish/on_ray",
        "cli",
    },
    "s3fs": {"s3"},
    "boto3": {"s3", "s3_reads"},
    "obstore": {"s3_reads"},
    "botocore": {"s3"},
    "fsspec": {"s3"},
    "pyarrow.fs": {"s3"},
    "deltalake": {"publish/table"},
}
NO_TORCH = ("data/", "generate/plan", "generate/shards", "publish/")
NETWORKS = ("blocks", "networks", "folded", "joint", "ada", "losses")
ROOMS = sorted(path.parent.name for path in ROOT.glob("raygen/families/*/__init__.py"))


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


def test_no_module_needs_itself() -> None:
    """No circles among what modules import at their head, for the type checker alone included."""
    of = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in MODULES
    }
    needs: dict[str, set[str]] = {}
    for module, path in of.items():
        head = ast.parse(path.read_text(encoding="utf-8")).body
        guarded = [node for test in head if isinstance(test, ast.If) for node in test.body]
        named = [node for node in (*head, *guarded) if isinstance(node, ast.ImportFrom)]
        full = {f"{node.module}.{alias.name}" for node in named for alias in node.names}
        needs[module] = {name if name in of else name.rpartition(".")[0] for name in full} & set(of)
    while free := {module for module, others in needs.items() if not others & set(needs)}:
        needs = {module: others for module, others in needs.items() if module not in free}
    assert not needs, f"a circle among {', '.join(sorted(needs))}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_guarded_packages_stay_in_their_rooms(path: Path) -> None:
    name = name_of(path)
    for module in imports(path):
        for package, rooms in ONLY_IN.items():
            if module == package or module.startswith(package + "."):
                assert name in rooms or name == "jobs", f"{name} imports {module}"
        if module.split(".")[0] == "torch":
            assert not name.startswith(NO_TORCH), f"{name} imports {module}"
        if name.startswith("families/") and path.stem in NETWORKS:
            assert module.split(".")[0] in {"torch", "raygen"} | STANDARD, f"{name} imports {module}"


STANDARD = {"abc", "collections", "contextlib", "dataclasses", "functools", "itertools", "math", "typing"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_family_knows_no_other_but_a_backbone(path: Path) -> None:
    room = path.parent.name
    if room in ROOMS:
        for module in imports(path):
            other = next((name for name in ROOMS if module.startswith(f"raygen.families.{name}.")), room)
            assert other == room or (room, other) == ("dfmgan", "stylegan2"), (
                f"{name_of(path)} imports {module}"
            )


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_outside_the_families_asks_which_one_it_is(path: Path) -> None:
    if not name_of(path).startswith("families/"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            named = re.search(
                rf"""["']({"|".join(ROOMS)}|null)["']|families\.({"|".join(ROOMS)}|null)\b""", line
            )
            assert not named, f"{name_of(path)}:{number} names a family: {line.strip()}"


@pytest.mark.parametrize(
    ("modules", "slow"),
    [
        ("raygen.cli, raygen.families, raygen.generate.job", {"torch", "scipy", "ray"}),
        ("raygen.publish.refresh", {"torch", "ray"}),
    ],
)
def test_what_plans_and_publishes_imports_nothing_slow(modules: str, slow: set[str]) -> None:
    code = f"import sys, {modules}; sys.exit(', '.join({slow!r} & set(sys.modules)) or None)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_tree_in_the_readme_is_the_tree() -> None:
    """Every module stands in raygen/README.md, and nothing else does."""
    readme = (ROOT / "raygen" / "README.md").read_text(encoding="utf-8")
    tree = readme.split("<!-- tree -->")[1].split("```")[1]
    told, folders = set(), [""]
    for line in tree.splitlines():
        if found := re.match(r"( *)([\w.]+/?)(?:  |$)", line):
            depth, name = len(found[1]) // 2, found[2]
            folders[depth:] = [folders[depth - 1] + name] if depth else [name]
            if not name.endswith("/"):
                told.add(folders[depth])
    there = {str(path.relative_to(ROOT)) for path in ROOT.glob("raygen/**/*.py")}
    assert told == {name for name in there if not name.endswith("__init__.py")} | {
        "raygen/families/__init__.py",
        *(f"raygen/families/{room}/__init__.py" for room in ROOMS),
    }


def test_the_top_level_holds_what_was_agreed() -> None:
    allowed = {
        "raygen",
        "jobs",
        "cluster",
        "tests",
        "pyproject.toml",
        "README.md",
        "Makefile",
        "LICENSE",
        "findings",
    }
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {name.split("/")[0] for name in listed.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= allowed

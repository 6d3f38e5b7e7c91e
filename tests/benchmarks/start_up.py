"""How long `raygen --help` takes, and planning a run, as whole processes: this checkout against another one.

    python tests/benchmarks/start_up.py OTHER_CHECKOUT [--rounds 15]

Both run with this interpreter's packages, in turn, so that a machine whose speed drifts does so for both.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from raygen import images, storage, surfaces

HERE = Path(__file__).parents[2]
HELP = "import contextlib, raygen.cli\nwith contextlib.suppress(SystemExit):\n    raygen.cli.main(['--help'])"
PLAN = """
from pathlib import Path
from raygen.checkpoint import load_checkpoint
from raygen.generate.config import GenerateConfig
from raygen.generate.job import generate
from raygen.generate.plan import draft_run
config = GenerateConfig(pool={pool!r}, output="/nowhere", checkpoint="null:64x1")
draft_run(config, load_checkpoint(config.checkpoint), Path({plan!r}))
"""


def seconds(checkout: Path, code: str) -> float:
    """Wall time of one process that runs the code with a checkout's raygen."""
    own = f"import sys\nsys.path.insert(0, {str(checkout)!r})\n"
    check = f"\nimport raygen\nassert raygen.__file__.startswith({str(checkout)!r})"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", own + code + check], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    checkouts = (HERE, args.other.resolve())
    with tempfile.TemporaryDirectory() as folder:
        for name, pixels in surfaces.pool(100, seed=0, size=64):
            storage.put(f"{folder}/pool/{name}", images.encode_png(pixels))
        plan = PLAN.format(pool=f"{folder}/pool", plan=f"{folder}/plan.parquet")
        for what, code in (("raygen --help", HELP), ("planning 300 normals", plan)):
            for checkout in checkouts:
                seconds(checkout, code)  # compiles
            pairs = [[seconds(checkout, code) for checkout in checkouts] for _ in range(args.rounds)]
            here, other = (statistics.median(times) for times in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            print(
                f"{what}: {here:.3f} s here, {other:.3f} s there: {ratio:.2f} (median of {args.rounds} pairs)"
            )


if __name__ == "__main__":
    main()

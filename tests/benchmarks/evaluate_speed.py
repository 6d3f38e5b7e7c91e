"""The same table of errors by the probe and by the paper's classifiers, small: how long does either take?

    python tests/benchmarks/evaluate_speed.py DEFECT_SET RUN [--seeds 2]

DEFECT_SET has splits; RUN is a run of the main job on its training normals, with both modes. No-Aug, Trad-Aug,
Latent, Reference and Mix, of all products, each with as many seeds: by a logistic regression on frozen features,
those extracted anew and those of before; and by the classifiers of `jobs/evaluate-quick.toml`. All on one Ray.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from raygen.config import load_config
from raygen.evaluate.config import EvaluateConfig
from raygen.evaluate.job import evaluate
from raygen.on_ray import connected

NOTHING: dict[str, Any] = {"conditions": []}


def seconds(config: EvaluateConfig) -> float:
    started = time.monotonic()
    evaluate(config, lambda line: None)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("defects")
    parser.add_argument("run")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    quick = load_config(EvaluateConfig, "jobs/evaluate-quick.toml", ["defects=d", "output=o", "runs.ours=r"])
    with tempfile.TemporaryDirectory() as folder, connected():
        common: dict[str, Any] = {
            "defects": args.defects,
            "runs": {"ours": args.run},
            "distances": {"runs": []},
        }
        probing = {
            "alternatives": [],
            "real_defects": [],
            "amounts": [3],
            "segmentation": False,
            "seeds": args.seeds,
        }
        probe = EvaluateConfig.model_validate(
            {**common, "output": f"{folder}/probe", "downstream": NOTHING, "probe": probing}
        )
        first = seconds(probe)
        for result in Path(folder, "probe", "probes").glob("*"):
            result.unlink()
        again = seconds(probe)
        downstream = {**quick.downstream.model_dump(), "seeds": args.seeds}
        classifiers = EvaluateConfig.model_validate(
            {**common, "output": f"{folder}/classifiers", "downstream": downstream, "probe": NOTHING}
        )
        slow = seconds(classifiers)
    print(f"probe: {first:.0f} s with its features, {again:.0f} s from those kept")
    print(
        f"the paper's classifiers, small: {slow:.0f} s, {slow / first:.1f} and {slow / again:.1f} times as long"
    )


if __name__ == "__main__":
    main()

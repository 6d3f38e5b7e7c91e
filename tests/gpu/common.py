"""What the scripts for a GPU share: the clock that ends them in time, timing, and what is said of the card."""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))


class Clock:
    """A budget of minutes: scripts ask before each part, and leave what they have when there is no room for it."""

    def __init__(self, minutes: float) -> None:
        self.started, self.budget = time.monotonic(), 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self.started + self.budget - time.monotonic()

    def allows(self, seconds: float, what: str) -> bool:
        """Whether so many are left; says what is skipped."""
        if self.left < seconds:
            print(f"skipped, {self.left:.0f} s left: {what}", flush=True)
        return self.left >= seconds


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    made.add_argument("--minutes", type=float, default=7.0, help="what it may take in all")
    return made


def begin(device: str) -> torch.device:
    """The device, with what must be known of it printed; exact arithmetic where nothing else is asked for."""
    if device == "cpu":  # before CUDA is asked for: the library takes a GPU where it sees one
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {commit()}: {' '.join(sys.argv)}", flush=True)
    if device == "cpu":
        torch.set_num_threads(1)
    return torch.device(device)


def commit() -> str:
    """Of the checkout; a copy has none."""
    asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no commit"


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """The median of a work's seconds, after two runs to warm up; by the device's own events where it has some."""
    times = []
    for number in range(-2, repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            taken = start.elapsed_time(end) / 1000
        else:
            started = time.perf_counter()
            work()
            taken = time.perf_counter() - started
        if number >= 0:
            times.append(taken)
    return statistics.median(times)


def told(what: str, figure: str) -> None:
    """A row of the table, as soon as it is known."""
    print(f"{what:68} {figure}", flush=True)

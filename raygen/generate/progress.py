"""What a person sees while a run works: one line, redrawn on a terminal, every ten seconds in a log."""

import sys
import time
from typing import TextIO

from raygen.show import duration


class Progress:
    """Counts samples and rejects, and says how fast and how much longer.

    Args:
        num_samples: of the whole run.
        done: samples that earlier attempts of this run made.
        rejects: samples that will not be made, of rejected normals.
        stream: where the line goes; redrawn in place if it is a terminal.
    """

    def __init__(
        self, num_samples: int, done: int = 0, rejects: int = 0, stream: TextIO | None = None
    ) -> None:
        self.num_samples = num_samples
        self.done = done
        self.rejects = rejects
        self.stream = stream or sys.stderr
        self.interval = 0.5 if self.stream.isatty() else 10.0  # seconds between two lines
        self._done_before = done
        self._started = self._shown = time.monotonic()

    def add(self, num_samples: int, rejects: int) -> None:
        """Counts one shard, and shows the line when it is time."""
        self.done += num_samples
        self.rejects += rejects
        now = time.monotonic()
        if now - self._shown >= self.interval:
            self._shown = now
            self._show(progress_line(self.done, self.num_samples, self.rejects, self.rate(now)))

    def rate(self, now: float | None = None) -> float:
        """Samples per second of this attempt."""
        return (self.done - self._done_before) / max((now or time.monotonic()) - self._started, 1e-9)

    def close(self) -> None:
        """Shows the last state."""
        self._show(progress_line(self.done, self.num_samples, self.rejects, self.rate()))
        if self.stream.isatty():
            self.stream.write("\n")

    def _show(self, line: str) -> None:
        self.stream.write(f"\r\x1b[2K{line}" if self.stream.isatty() else f"{line}\n")
        self.stream.flush()


def progress_line(done: int, num_samples: int, rejects: int, rate: float) -> str:
    """`4,096 of 9,536 samples (43 %) · 208 images/s · 12 rejected · 26 s left`"""
    left = duration((num_samples - done - rejects) / rate) + " left" if rate > 0 else "starting"
    share = 100 * (done + rejects) // num_samples if num_samples else 100
    made = f"{done:,} of {num_samples:,} samples ({share} %)"
    return f"{made} · {rate:,.0f} images/s · {rejects:,} rejected · {left}"

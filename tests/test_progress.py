"""The line that a person sees."""

import io

from raygen.generate.progress import Progress, progress_line
from raygen.show import duration, size


def test_the_line() -> None:
    line = progress_line(done=4096, num_samples=9536, rejects=32, rate=208)
    assert line == "4,096 of 9,536 samples (43 %) · 208 images/s · 32 rejected · 26 s left"
    assert progress_line(90, 100, rejects=10, rate=5).endswith(
        "(100 %) · 5 images/s · 10 rejected · 0 s left"
    )
    assert progress_line(0, 100, 0, 0).endswith("starting")


def test_a_log_gets_lines_and_a_terminal_one_that_moves() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, mark in ((io.StringIO(), "\n"), (Terminal(), "\r")):
        progress = Progress(100, done=40, rejects=1, stream=stream)
        progress.interval = 0
        progress.add(20, 2)
        progress.close()
        assert "60 of 100 samples (63 %)" in stream.getvalue()
        assert "3 rejected" in stream.getvalue()
        assert stream.getvalue().count(mark) == 2
        assert progress.rate() > 0


def test_only_this_attempts_samples_count_as_speed() -> None:
    progress = Progress(100, done=40, stream=io.StringIO())
    assert progress.rate() == 0


def test_units() -> None:
    assert [duration(s) for s in (0, 42, 89, 600, 12_000)] == ["0 s", "42 s", "89 s", "10 min", "3 h 20 min"]
    assert [size(b) for b in (0, 999, 312_000, 4.2e9)] == ["0 B", "999 B", "312 kB", "4.2 GB"]

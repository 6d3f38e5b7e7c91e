"""Decoders that write to standard error themselves, kept silent."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Nothing that is written to the process's standard error meanwhile, by whatever library, comes out.

    The descriptor is the whole process's: one thread at a time, and for a moment only.
    """
    with _lock, open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)

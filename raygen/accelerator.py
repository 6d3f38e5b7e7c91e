"""How long an accelerator works: a GPU, or a simulated one, so that sizing can be tried where there is none."""

import threading
import time
from collections.abc import Callable


class _Simulated(threading.local):
    seconds = 0.0


_simulated = _Simulated()


def simulate(seconds: float) -> None:
    """Keeps this thread waiting, its core free, as an accelerator's work of so many seconds would."""
    started = time.perf_counter()
    time.sleep(seconds)
    _simulated.seconds += time.perf_counter() - started


def seconds_of(work: Callable[[], object]) -> float:
    """For how many seconds accelerators work in a call of `work`, in this thread; 0 where it uses none."""
    from torch import cuda

    before = _simulated.seconds
    if not cuda.is_available():
        work()
        return _simulated.seconds - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        cuda.synchronize()
    events = [event for event in profiled.key_averages() if event.device_type.name != "CPU"]
    on_gpu = sum(event.self_device_time_total for event in events)  # microseconds
    return on_gpu / 1e6 + _simulated.seconds - before

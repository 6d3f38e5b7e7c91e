"""A Ray to work on."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def connected(dashboard: bool = False) -> Iterator[None]:
    """A Ray to work on: the one this process already has, the cluster that RAY_ADDRESS names (as it does in a
    job), or one of this machine alone, for the time being.

    Args:
        dashboard: whether that last one has the dashboard's server. It takes some seconds to start; without it,
            Ray Train complains every second.
    """
    if ray.is_initialized():
        yield
        return
    if "RAY_ADDRESS" in os.environ:
        ray.init(address="auto", log_to_driver=True)
    else:
        # A cluster of one machine and one process needs no token; asking for one would leave a file in the
        # home folder that turns authentication on for every cluster started here later.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(
            address="local",
            include_dashboard=dashboard,
            logging_level=logging.WARNING,
        )
    try:
        yield
    finally:
        ray.shutdown()

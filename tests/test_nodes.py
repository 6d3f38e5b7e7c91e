"""Nodes that join and leave while a run works: a real Ray of several nodes on this machine."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from factories import write_pool

from raygen.data.runs import done_shards
from raygen.generate.verify import verify_run
from raygen.on_ray import KEEP_WORKERS

pytestmark = pytest.mark.slow

NODES = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
print(cluster.address, flush=True)
nodes = []
for line in sys.stdin:
    if line.strip() == "join":
        nodes.append(cluster.add_node(num_cpus=1, num_gpus=1, wait=False))
    elif line.strip() == "leave":
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
    print("done", flush=True)
cluster.shutdown()
"""


class Nodes:
    """A head without GPUs, and what joins and leaves it; in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", NODES],
            env={**os.environ, "RAY_AUTH_MODE": "disabled", **dict([KEEP_WORKERS])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._line()

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self._line() == "done"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    found = Nodes()
    with found.process:  # at whose end its input is, and it ends
        yield found


def seconds_until(condition: Callable[[], Any], most: float) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < most
        time.sleep(0.2)
    return time.monotonic() - started


def test_nodes_join_and_leave_during_a_run(nodes: Nodes, tmp_path: Path) -> None:
    """Planned for two GPU nodes when there is none: each actor begins when its node joins; one that is killed
    costs the shards that it had in hand, which are made when another has taken its place."""
    write_pool(f"{tmp_path}/pool", 20)  # 60 normals, 240 samples
    words = [f"pool={tmp_path}/pool", f"output={tmp_path}/out", "checkpoint=null:32x1@150"]
    words += ["normals_per_shard=2", "compute.gpus_per_actor=1", "compute.cpus_per_actor=0.5"]
    words += ["compute.cpus_per_task=0.25", "compute.autoscaling={nodes = 2, cpus = 1, gpus = 1}"]
    command = [sys.executable, "-m", "raygen.cli", "generate", "jobs/generate.toml"]
    command += [word for override in words for word in ("--set", override)]
    environment = {**os.environ, "RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "disabled"}
    log = tmp_path / "log"
    with log.open("w") as stream:
        job = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        seconds_until(lambda: "may come" in log.read_text(), 90)
        assert "2 actors of 1 GPU and 0.5 CPU, on 1 node and up to 2 that may come" in log.read_text()
        time.sleep(3)
        assert not done_shards(f"{tmp_path}/out")
        nodes.tell("join")
        print(
            f"first shard {seconds_until(lambda: done_shards(f'{tmp_path}/out'), 120):.0f} s after a node joined"
        )
        nodes.tell("join")
        seconds_until(lambda: len(done_shards(f"{tmp_path}/out")) > 6, 120)
        nodes.tell("leave")
        nodes.tell("join")
        assert job.wait(300) == 0, log.read_text()
    finally:
        job.kill()
        job.wait()
    assert not re.search("Traceback", log.read_text())
    assert verify_run(f"{tmp_path}/out").num_samples == 240

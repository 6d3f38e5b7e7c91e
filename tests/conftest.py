"""Shared by all tests: a real S3 server, one local Ray, a small pool and checkpoints of many kinds."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
import ray
from botocore.exceptions import BotoCoreError, ClientError

from raygen.on_ray import KEEP_WORKERS

BUCKET = "raygen"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what starts a Ray, so that the others can run side by side and these cannot."""
    for item in items:
        if {"ray_cluster", "ray_head"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("ray")


def free_ports(count: int, companion: int = 0) -> list[int]:
    """Loopback ports that nobody listens on, nor on `port + companion`; outside Ray's own 10002-19999."""
    found: list[int] = []
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # two look at the same time
    for port in range(20000 + os.getpid() % 700 * 7 + worker, 45000, 7):
        try:
            for offset in {0, companion}:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


class S3Server:
    """SeaweedFS on loopback with one bucket, and the environment that points every S3 client at it."""

    def __init__(self, folder: Path) -> None:
        s3, master, filer, volume = free_ports(4, companion=10000)  # its gRPC ports are 10000 higher
        self.log, self.filer = folder / "weed.log", filer
        self.environment = {
            "AWS_ACCESS_KEY_ID": "raygen-test",
            "AWS_SECRET_ACCESS_KEY": "raygen-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
        }
        self.command = [
            str(Path(sys.executable).with_name("weed")), "mini", f"-dir={folder}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={s3}", f"-master.port={master}",
            f"-filer.port={filer}", f"-volume.port={volume}", "-admin.ui=false", "-webdav=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
            "-s3.allowDeleteBucketNotEmpty=false", "-s3.autoCreateBucket=false",
            f"-metricsPort={filer + 3}",  # free_ports leaves some between two
        ]  # fmt: skip

    def requests(self, settled: bool = True) -> Counter[str]:
        """How many S3 requests of each kind were answered since the start; each is counted after its answer, so
        that by default this waits until the count stands still."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.filer + 3}/metrics") as answer:
            found = re.findall(r's3_request_total\{.*type="(\w+)"\} (\S+)', answer.read().decode())
        counts: Counter[str] = Counter()
        for kind, count in found:
            counts[kind] += int(float(count))
        if settled:
            time.sleep(0.1)
            if self.requests(settled=False) != counts:
                return self.requests()
        return counts

    def start(self) -> None:
        environment = {**os.environ, **self.environment, "S3_BUCKET": BUCKET, "TMPDIR": str(self.log.parent)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, env=environment, stdout=log, stderr=log)

    def wait(self) -> None:
        """Waits until the bucket is served."""
        client = boto3.client("s3")
        for _ in range(240):
            if self.process.poll() is not None:
                break
            try:
                client.head_bucket(Bucket=BUCKET)
                return
            except (BotoCoreError, ClientError):
                time.sleep(0.25)
        raise RuntimeError(f"SeaweedFS does not serve: {self.log.read_text(errors='replace')[-2000:]}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(30)


@contextmanager
def served(folder: Path) -> Iterator[S3Server]:
    """SeaweedFS on what the folder holds, and this process's environment pointing at it."""
    server = S3Server(folder)
    previous = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.stop()
        for name, value in previous.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with served(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def s3_uri(s3_server: S3Server) -> str:
    """An empty prefix of its own."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["local", "s3"])
def folder_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder of its own, once on this machine and once on S3."""
    return request.getfixturevalue("s3_uri") if request.param == "s3" else str(tmp_path)


@pytest.fixture(scope="session")
def ray_cluster(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local Ray for all tests, with two logical CPUs and two logical GPUs."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ.setdefault(*KEEP_WORKERS)
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"  # or tiny trainings wait for Ray Train
    os.environ["RAYGEN_TEST_CLUSTER"] = str(os.getpid())  # in the environment of all its processes
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=2,
        include_dashboard=False,
        object_store_memory=500_000_000,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


class Head:
    """A Ray head of its own, as a platform team runs one, that takes jobs."""

    def __init__(self, environment: dict[str, str], folder: Path, session: Path) -> None:
        self.environment = environment
        self.mark = f"RAYGEN_TEST_HEAD={folder}".encode()  # in the environment of all its processes
        self.session = session  # Ray's own logs and service files

    def submit(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts `ray job submit --working-dir . -- python …`; its output goes to a pipe."""
        command = [
            str(Path(sys.executable).with_name("ray")), "job", "submit", "--working-dir", ".", "--", "python",
            *arguments,
        ]  # fmt: skip
        return subprocess.Popen(
            command,
            cwd=Path(__file__).parent.parent,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, name: str, recipe: str, **settings: str) -> str:
        """Submits a job of a recipe, its keys set, to its end, which is good; returns what it printed."""
        flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
        submitted = self.submit(f"jobs/{name}.py", f"jobs/{recipe}.toml", *flags)
        output, _ = submitted.communicate(timeout=600)
        assert submitted.returncode == 0, output
        return output

    def pids(self, matches: Callable[[list[str]], bool]) -> list[int]:
        """This head's processes whose command line, split into words as it was given, is the wanted one."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().rstrip(b"\0").decode().split("\0")
                if matches(words) and self.mark in (process / "environ").read_bytes():
                    found.append(int(process.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # gone while we looked
        return found


@pytest.fixture(scope="session")
def ray_head(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head` on free loopback ports, two logical CPUs, the dashboard, and S3 in its environment."""
    folder = tmp_path_factory.mktemp("head")
    port, dashboard, client, agent = free_ports(4)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        **dict([KEEP_WORKERS]),
        "RAYGEN_TEST_HEAD": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("RAY_ADDRESS", None)
    session = Path(tempfile.mkdtemp(prefix="ray"))  # short: Ray's sockets lie in it
    command = [
        "ray", "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",  # or two Rays share its default
        f"--ray-client-server-port={client}", "--num-cpus=2",
        "--object-store-memory=500000000", "--disable-usage-stats", f"--temp-dir={session}",
    ]  # fmt: skip
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(120):
            assert head.poll() is None, (folder / "head.log").read_text()
            try:
                # Taking a job is the last thing that a head learns: its web pages are up long before.
                job = urllib.request.Request(f"{address}/api/jobs/", b'{"entrypoint": "true"}')
                urllib.request.urlopen(job, timeout=10).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise RuntimeError(f"the head does not serve: {(folder / 'head.log').read_text()[-2000:]}")
        yield Head({**environment, "RAY_ADDRESS": address}, folder, session)
    finally:
        head.terminate()  # --block: it takes its processes with it
        try:
            head.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)

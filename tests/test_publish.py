"""What a table promises whoever refreshes and reads it at the same time: kills, races, readers, old versions."""

import importlib
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from deltalake import DeltaTable, write_deltalake
from factories import InProcess, write_checkpoint, write_pool
from test_refresh import config_of, from_scratch, published, rows_of, say_nothing

from raygen import storage
from raygen.errors import LeaseError, UserError
from raygen.images import decode_photo
from raygen.publish.refresh import refresh
from raygen.publish.state import PENDING
from raygen.publish.table import DataFile, Publication, PublishedTable, create_table, open_table
from raygen.publish.versions import rollback, vacuum

STEPS = (
    "leased",
    "frozen",
    "generated",
    "rewritten",
    "audited",
    "recorded",
    "committed",
    "reported",
    "cleaned",
)
NULL = "null:32x1"
NUM_ROUNDS = 20


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Children that are there at once: they fork from a server that has imported everything, and holds nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    path, here = os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = f"{here}{os.pathsep}{path}" if path else here
    forkserver.ensure_running()
    os.environ["PYTHONPATH"] = path
    return context


def refresh_and_die(config: Any, step: str, environment: dict[str, str]) -> None:
    """A refresh that is killed as soon as it has reached a step."""

    def reached(now: str) -> None:
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)

    os.environ.update(environment)
    refresh(config, say_nothing, InProcess(), reached)


class Reader(threading.Thread):
    """Reads the table over and over; remembers every state it saw."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.states: dict[int, set[tuple[str, ...]]] = {}
        self.reads = 0
        self.over = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.over.is_set():
                options = storage.delta_options(self.config.table)
                delta = DeltaTable(self.config.table, storage_options=options)
                rows = delta.to_pyarrow_table(columns=["sample_id", "image_sha256"])
                state = tuple(sorted(map(str, rows.to_pylist())))
                self.states.setdefault(delta.version(), set()).add(state)
                self.reads += 1
                time.sleep(0.05)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> "Reader":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self.join()


@pytest.mark.slow
def test_a_kill_at_any_step_and_the_next_run_mends_it(s3_uri: str, processes: ForkServerContext) -> None:
    base = s3_uri
    uris = write_pool(f"{base}/pool", 4)
    config = config_of(base, checkpoint=NULL, lease_seconds=2)
    refresh(config, say_nothing, InProcess())
    with Reader(config) as reader:
        for number, step in enumerate(STEPS):
            storage.put(f"{base}/pool/extra/{number}.png", storage.read(uris[-1]))  # one comes,
            if number % 2:
                storage.delete(f"{base}/pool/extra/{number - 1}.png")  # and now and then one goes
            before = published(config)
            child = processes.Process(target=refresh_and_die, args=(config, step, dict(os.environ)))
            child.start()
            child.join(120)
            assert child.exitcode == -signal.SIGKILL, step
            wanted = from_scratch(config, f"{base}/scratch-{number}")
            was_published = STEPS.index(step) >= STEPS.index("committed")
            assert published(config) == (wanted if was_published else before), step
            executor = InProcess()
            report = refresh(config, say_nothing, executor)
            assert report.status == ("nothing to do" if was_published else "published"), step
            assert published(config) == wanted, step
            assert not storage.exists(storage.join(config.table, PENDING))
    assert reader.error is None
    assert reader.reads > len(STEPS)
    assert all(len(states) == 1 for states in reader.states.values()), (
        "a version is seen whole, and one way only"
    )
    table = open_table(config.table)
    assert table is not None
    in_use = {path.split("/")[1] for version in table.versions() for path in table.files_of(version)}
    runs = storage.list_files(f"{config.table}/runs")
    assert {entry.uri.removeprefix(f"{config.table}/runs/").split("/")[0] for entry in runs} == in_use, (
        "no orphans"
    )


def take_up(config: Any) -> object:
    return refresh(config, say_nothing, InProcess())


def go_back(config: Any) -> object:
    return rollback(config.table, 1, say_nothing, config.lease_seconds)


def tidy(config: Any) -> object:
    return vacuum(config.table, 1, 0, say=say_nothing, lease_seconds=config.lease_seconds)


def act_and_die(act: Callable[[Any], object], config: Any, number: int) -> None:
    """A command that is killed before its write of this number: of an object, or of the log."""
    numbers = itertools.count()

    def deadly(write: Callable[..., Any]) -> Callable[..., Any]:
        def write_or_die(*arguments: Any, **options: Any) -> Any:
            # The lease's own thread writes when it likes.
            if threading.current_thread().name != "lease" and next(numbers) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*arguments, **options)

        return write_or_die

    for name in ("put", "put_if_absent", "replace", "delete"):
        setattr(storage, name, deadly(getattr(storage, name)))
    for name in ("commit", "restore"):
        setattr(PublishedTable, name, deadly(getattr(PublishedTable, name)))
    act(config)


@pytest.mark.slow
@pytest.mark.parametrize(("act", "least_writes"), [(take_up, 30), (go_back, 3), (tidy, 10)])
def test_a_kill_before_any_write_and_the_same_command_mends_it(
    act: Callable[[Any], object], least_writes: int, tmp_path: Path, processes: ForkServerContext
) -> None:
    uris = write_pool(f"{tmp_path}/pool", 3)
    config = config_of(str(tmp_path), checkpoint=NULL).model_copy(update={"lease_seconds": 0.2})
    refresh(config, say_nothing, InProcess())
    storage.delete(uris[0])
    refresh(config, say_nothing, InProcess())
    storage.put(uris[0], storage.read(uris[1]))
    with pytest.raises(KeyboardInterrupt):  # and a night that was begun, and is not wanted any more
        refresh(config, say_nothing, InProcess(), stop_at("audited"))
    storage.put(uris[0], storage.read(uris[2]))
    storage.delete(uris[-1])
    other = config.model_copy(update={"generate": {"normals_per_shard": 4}})
    saved = shutil.copytree(config.table, tmp_path / "saved")

    def state() -> tuple[list[dict[str, Any]], set[str]]:
        files = [*storage.list_files(f"{config.table}/runs"), *storage.list_files(f"{config.table}/_refresh")]
        return published(config), {file.uri for file in files}

    def dies(number: int) -> bool:
        shutil.rmtree(config.table)
        shutil.copytree(saved, config.table)
        child = processes.Process(target=act_and_die, args=(act, other, number))
        child.start()
        child.join(60)
        assert child.exitcode in (0, -signal.SIGKILL), number
        return child.exitcode != 0

    before = published(config)
    act(other)
    wanted = state()
    number = 0
    while dies(number):
        assert published(config) in (before, wanted[0]), number
        act(other)
        assert state() == wanted, number
        number += 1
    assert number >= least_writes


def stop_at(at: str) -> Callable[[str], None]:
    def reached(step: str) -> None:
        if step == at:
            raise KeyboardInterrupt

    return reached


def test_a_night_that_was_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    uris = write_pool(f"{tmp_path}/pool", 2)
    config = config_of(str(tmp_path), checkpoint=NULL)

    executor = InProcess()
    with pytest.raises(KeyboardInterrupt):
        refresh(config, say_nothing, executor, stop_at("generated"))
    assert executor.normals == 6
    storage.put(f"{tmp_path}/pool/extra/1.png", storage.read(uris[0]))
    lines: list[str] = []
    refresh(config, lines.append, executor)
    assert any("going on with night" in line for line in lines)
    assert published(config) == from_scratch(config, f"{tmp_path}/scratch"), (
        "and what came since is there, too"
    )
    table = open_table(config.table)
    assert table is not None
    assert table.version == 2

    # Another recipe, and what was begun is not wanted any more.
    storage.put(f"{tmp_path}/pool/extra/2.png", storage.read(uris[1]))
    with pytest.raises(KeyboardInterrupt):
        refresh(config, say_nothing, executor, stop_at("audited"))
    other = config_of(str(tmp_path), checkpoint=NULL, generate={"seed": 1, "normals_per_shard": 5})
    lines.clear()
    report = refresh(other, lines.append, executor)
    assert any("not what is wanted any more" in line for line in lines)
    assert (report.counts.outdated, report.counts.new) == (7, 1)


def compete(config: Any, environment: dict[str, str], num_rounds: int, barrier: Any, outcomes: Any) -> None:
    os.environ.update(environment)
    for _ in range(num_rounds):
        barrier.wait()
        try:
            outcomes.put(refresh(config, say_nothing, InProcess()).status)
        except LeaseError:
            outcomes.put("stopped")


@pytest.mark.slow
@pytest.mark.parametrize("num_refreshes", [2, 8])
def test_of_refreshes_at_the_same_moment_one_publishes(
    num_refreshes: int, s3_uri: str, processes: ForkServerContext
) -> None:
    uris = write_pool(f"{s3_uri}/pool", 1)
    config = config_of(s3_uri, checkpoint=NULL, lease_seconds=4)
    refresh(config, say_nothing, InProcess())
    barrier, outcomes = processes.Barrier(num_refreshes + 1), processes.Queue()
    arguments = (config, dict(os.environ), NUM_ROUNDS, barrier, outcomes)
    children = [processes.Process(target=compete, args=arguments) for _ in range(num_refreshes)]
    for child in children:
        child.start()
    for number in range(NUM_ROUNDS):
        storage.put(f"{s3_uri}/pool/extra/{number}.png", storage.read(uris[number % 3]))
        barrier.wait(120)
        found = [outcomes.get(timeout=120) for _ in children]
        assert found.count("published") == 1, found
        assert set(found) <= {"published", "stopped", "nothing to do"}  # the last: who came when it was over
        table = open_table(config.table)
        assert table is not None
        assert table.version == 2 + number
        assert sum(table.files().values()) == 4 * (3 + number + 1), "nothing lost, nothing doubled"
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    assert published(config) == from_scratch(config, f"{s3_uri}/scratch")


def test_a_version_is_written_once_whoever_holds_the_lease(s3_uri: str) -> None:
    """A holder that slept through its lease comes back with a night planned on what was."""
    table = create_table(f"{s3_uri}/table")
    twin = open_table(f"{s3_uri}/table")
    assert twin is not None
    first = table.commit(Publication(night="a", ledger="a", content=1), [], [])
    with pytest.raises(LeaseError, match="version 1 was written by another hand meanwhile") as caught:
        twin.commit(Publication(night="b", ledger="b", content=1), [DataFile("b", 1, 1, {}, {})], [])
    assert caught.value.exit_code == 4
    twin = open_table(f"{s3_uri}/table")
    assert twin is not None
    second = first.commit(Publication(night="c", ledger="c", content=2), [], [])
    with pytest.raises(LeaseError, match="version 2 was written by another hand"):
        twin.restore(0, Publication(night="b", ledger="b", content=0))
    latest = open_table(f"{s3_uri}/table")
    assert latest is not None
    assert latest.version == second.version == 2
    assert latest.files() == {}


def test_a_table_that_another_hand_has_changed_is_left_alone(tmp_path: Path) -> None:
    write_pool(f"{tmp_path}/pool", 1)
    config = config_of(str(tmp_path), checkpoint=NULL)
    refresh(config, say_nothing, InProcess())
    DeltaTable(config.table).delete("defect_type = 'spots'")
    with pytest.raises(UserError, match=r"version 2 was written by another hand \(DELETE\).*raygen rollback"):
        refresh(config, say_nothing, InProcess())
    rollback(config.table, to=1, say=say_nothing)
    assert refresh(config, say_nothing, InProcess()).status == "nothing to do"
    write_deltalake(f"{tmp_path}/other", pa.table({"x": [1]}))
    with pytest.raises(UserError, match="not one of raygen's: its columns are x"):
        refresh(
            config_of(str(tmp_path), checkpoint=NULL, table=f"{tmp_path}/other"), say_nothing, InProcess()
        )


def test_vacuum_keeps_what_a_kept_version_uses(tmp_path: Path) -> None:
    uris = write_pool(f"{tmp_path}/pool", 3)
    config = config_of(str(tmp_path), checkpoint=NULL)
    states = {}
    for number in range(4):
        if number:
            storage.delete(uris[number])
        version = refresh(config, say_nothing, InProcess()).version
        states[version] = published(config)
    opened = DeltaTable(config.table, version=3)
    assert vacuum(config.table, keep=2, hours=24, say=say_nothing) == 0, "all were the latest today"
    would = vacuum(config.table, keep=2, hours=0, is_dry_run=True, say=say_nothing)
    assert published(config, version=1) == states[1]
    assert vacuum(config.table, keep=2, hours=0, say=say_nothing) == would > 0
    assert rows_of(opened.to_pyarrow_table()) == states[3], "a reader of a kept version goes on"
    assert published(config) == states[4]
    with pytest.raises(UserError, match="version 1 was vacuumed"):
        rollback(config.table, to=1, say=say_nothing)
    rollback(config.table, say=say_nothing)
    assert published(config) == states[3]
    assert vacuum(config.table, keep=2, hours=0, say=say_nothing) == 0, "what is gone is not deleted again"
    assert published(config) == states[3]
    with pytest.raises(UserError, match="at least the newest version is kept"):
        vacuum(config.table, keep=0, hours=0)
    refresh(config, say_nothing, InProcess())
    assert published(config) == states[4]


@pytest.fixture(scope="module")
def table_uri(s3_server: None) -> str:
    """A table on S3 of two nights, with a file that was written anew."""
    base = f"s3://raygen/readers-{os.getpid()}"
    uris = write_pool(f"{base}/pool", 3)
    write_checkpoint(f"{base}/checkpoint")
    config = config_of(base)
    refresh(config, say_nothing, InProcess())
    storage.delete(uris[0])
    refresh(config, say_nothing, InProcess())
    return config.table


def counts_of(rows: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    return dict(Counter((row["product"], row["defect_type"]) for row in rows))


class TestReaders:
    """The packages of a data platform read the table as it stands, pictures and masks included."""

    @pytest.fixture
    def expected(self, table_uri: str) -> dict[tuple[str, str], int]:
        from raygen.surfaces import DEFECT_TYPES, PRODUCTS

        products = sorted(PRODUCTS)
        return {
            (product, defect): 6 if product != products[0] else 4
            for product in products
            for defect in DEFECT_TYPES
        }

    @pytest.fixture
    def options(self, table_uri: str) -> dict[str, str]:
        return storage.delta_options(table_uri)

    def test_pandas(self, table_uri: str, options: dict[str, str], expected: dict) -> None:
        frame = DeltaTable(table_uri, storage_options=options).to_pandas()
        assert counts_of(frame.to_dict("records")) == expected
        assert decode_photo(frame.image[0]["bytes"], 10**6).shape == (32, 32, 1)

    def test_pyarrow_filters(self, table_uri: str, options: dict[str, str]) -> None:
        dataset = DeltaTable(table_uri, storage_options=options).to_pyarrow_dataset()
        rows = dataset.to_table(columns=["mode"], filter=pc.field("defect_type") == "spots")
        assert Counter(rows["mode"].to_pylist()) == {"latent": 8, "reference": 8}

    def test_polars(self, table_uri: str, options: dict[str, str], expected: dict) -> None:
        rows = pl.scan_delta(table_uri, storage_options=options).select("product", "defect_type", "image")
        found = rows.group_by("product", "defect_type").len().collect()
        assert {(product, defect): count for product, defect, count in found.iter_rows()} == expected
        first = rows.head(1).collect()["image"].struct.field("bytes")[0]
        assert decode_photo(first, 10**6).shape == (32, 32, 1)

    def test_duckdb(self, table_uri: str, options: dict[str, str], expected: dict) -> None:
        # Through Arrow: DuckDB's own extension for Delta Lake is a download.
        samples = DeltaTable(table_uri, storage_options=options).to_pyarrow_dataset()
        assert samples.schema.names
        query = (
            "select product, defect_type, count(*), min(octet_length(image.bytes)) from samples group by all"
        )
        found = duckdb.connect().execute(query).fetchall()
        assert {(product, defect): count for product, defect, count, _ in found} == expected
        assert all(smallest > 60 for *_, smallest in found)

    def test_ray_data(
        self, table_uri: str, options: dict[str, str], expected: dict, ray_cluster: None
    ) -> None:
        import ray

        files = DeltaTable(table_uri, storage_options=options).file_uris()
        rows = ray.data.read_parquet(files).select_columns(["product", "defect_type", "mask"]).take_all()
        assert counts_of(rows) == expected
        assert rows[0]["mask"]["bytes"][:4] == bytes([137]) + b"PNG"

    def test_a_pytorch_data_loader(
        self, table_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """cluster/README.md's example, as it stands there, with two workers."""
        text = (Path(__file__).parent.parent / "cluster" / "README.md").read_text(encoding="utf-8")
        example = re.search(r"```python\n(# The published table in PyTorch\n.*?)```", text, re.DOTALL)
        assert example is not None
        (tmp_path / "readme_example.py").write_text(example[1])
        monkeypatch.syspath_prepend(str(tmp_path))
        batches = list(importlib.import_module("readme_example").loader(table_uri, num_workers=2))
        images = torch.cat([batch[0] for batch in batches])
        masks = torch.cat([batch[1] for batch in batches])
        rows = DeltaTable(table_uri, storage_options=storage.delta_options(table_uri)).to_pyarrow_table()
        accepted = rows.filter(pc.field("accepted"))
        assert 0 < len(accepted) < len(rows) == 32
        assert images.shape == masks.shape == (len(accepted), 1, 32, 32)
        assert images.dtype == torch.float32
        assert 0 <= float(images.min()) < float(images.max()) <= 1
        assert set(masks.unique().tolist()) == {0.0, 1.0}
        assert Counter(name for batch in batches for name in batch[2]) == Counter(
            accepted["defect_type"].to_pylist()
        )

"""The plan is cut once, frozen, and a run folder belongs to one run."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pyarrow.parquet as pq
import pytest
from factories import TINY, write_checkpoint, write_pool

from raygen import __version__, storage
from raygen.checkpoint import load_checkpoint
from raygen.data.runs import read_run
from raygen.errors import UserError
from raygen.families.dtgan.sizes import LADDER
from raygen.generate.config import GenerateConfig
from raygen.generate.plan import choose_requests, draft_run, open_run, read_plan, unseen_products
from raygen.records import PLAN_SCHEMA


def config_of(folder_uri: str, **changes) -> GenerateConfig:
    values = {
        "pool": storage.join(folder_uri, "pool"),
        "output": storage.join(folder_uri, "out"),
        "checkpoint": "null:32x1",
        "normals_per_shard": 4,
        **changes,
    }
    return GenerateConfig(**values)


def test_every_normal_stands_in_one_shard(folder_uri: str) -> None:
    uris = write_pool(storage.join(folder_uri, "pool"), 5)
    config = config_of(folder_uri)
    run = open_run(config, load_checkpoint(config.checkpoint))
    shards = [read_plan(config.output, run, shard) for shard in range(run.num_shards)]
    assert all(shard.schema.equals(PLAN_SCHEMA) for shard in shards)
    assert [shard.num_rows for shard in shards] == [4, 4, 4, 3]
    assert sorted(uri for shard in shards for uri in shard["uri"].to_pylist()) == sorted(uris)
    assert [row for shard in shards for row in shard["row"].to_pylist()] == list(range(15))
    assert (run.num_normals, run.num_samples) == (15, 60)
    assert run.products == {"brushed_metal": 5, "grained_leather": 5, "woven_fabric": 5}


def test_the_plan_is_frozen_and_resumed(folder_uri: str) -> None:
    write_pool(storage.join(folder_uri, "pool"), 2)
    config = config_of(folder_uri)
    checkpoint = load_checkpoint(config.checkpoint)
    run = open_run(config, checkpoint)
    write_pool(storage.join(folder_uri, "pool"), 3)  # the pool grows; the run does not
    assert open_run(config, checkpoint) == run == read_run(config.output)


def test_of_two_jobs_that_begin_at_once_both_work_to_one_plan(folder_uri: str) -> None:
    write_pool(storage.join(folder_uri, "pool"), 2)
    config = config_of(folder_uri)
    checkpoint = load_checkpoint(config.checkpoint)
    with ThreadPoolExecutor(4) as threads:
        runs = list(threads.map(lambda _: open_run(config, checkpoint), range(4)))
    assert len({run.plan for run in runs}) == 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"normals_per_shard": 5}, "normals_per_shard"),
        ({"layout": "png"}, "layout"),
        ({"modes": ("latent",)}, "modes"),
        ({"checkpoint": "null:32x3"}, "checkpoint"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(tmp_path, changes, key: str) -> None:
    write_pool(str(tmp_path / "pool"), 1)
    config = config_of(str(tmp_path))
    open_run(config, load_checkpoint(config.checkpoint))
    other = config_of(str(tmp_path), **changes)
    with pytest.raises(UserError, match=rf"holds another run: its {key} is"):
        open_run(other, load_checkpoint(other.checkpoint))


def test_the_run_id_is_of_content_not_of_place(tmp_path) -> None:
    write_pool(str(tmp_path / "pool"), 1)
    here, there = config_of(str(tmp_path)), config_of(str(tmp_path), output=str(tmp_path / "there"))
    checkpoint = load_checkpoint(here.checkpoint)
    assert open_run(here, checkpoint).run_id == open_run(there, checkpoint).run_id
    other = config_of(str(tmp_path), output=str(tmp_path / "other"), seed=1)
    assert open_run(other, checkpoint).run_id != open_run(here, checkpoint).run_id


def test_products_that_the_checkpoint_has_not_seen(tmp_path) -> None:
    write_pool(str(tmp_path / "pool"), 1)
    storage.put(str(tmp_path / "pool" / "Brushed_Metal" / "x.png"), b"x")  # compared without case
    storage.put(str(tmp_path / "pool" / "glass" / "x.png"), b"x")
    storage.put(str(tmp_path / "pool" / "woven_fabrik" / "x.png"), b"x")
    checkpoint = write_checkpoint(str(tmp_path / "checkpoint"))
    strict = config_of(str(tmp_path), checkpoint=str(tmp_path / "checkpoint"))
    named = r"glass, woven_fabrik \(did you mean 'woven_fabric'\?\): not among the checkpoint's products"
    with pytest.raises(UserError, match=named):
        open_run(strict, checkpoint)
    assert read_run(strict.output) is None  # nothing was begun
    tolerant = config_of(str(tmp_path), checkpoint=strict.checkpoint, strict_products=False)
    assert unseen_products(open_run(tolerant, checkpoint).products, checkpoint) == ["glass", "woven_fabrik"]


def test_requests_that_the_checkpoint_cannot_meet(tmp_path) -> None:
    checkpoint = write_checkpoint(str(tmp_path / "a"), num_references=0)
    write_pool(str(tmp_path / "pool"), 1)
    config = config_of(str(tmp_path), checkpoint=checkpoint.uri)
    with pytest.raises(UserError, match=r"no references of 'scratches'; set modes"):
        open_run(config, checkpoint)
    with pytest.raises(UserError, match=r"'dents' is unknown to .*; it knows scratches, spots"):
        open_run(config_of(str(tmp_path), defect_types=("dents",)), checkpoint)
    run = open_run(config_of(str(tmp_path), defect_types=("spots",), modes=("latent",)), checkpoint)
    assert len(run.requests) == 1


def test_only_what_has_style_and_content_apart_is_restyled(tmp_path) -> None:
    config = config_of(str(tmp_path), modes=("latent", "restyled"), masks=False)
    sizes = {rung: replace(TINY, background_skip=False, **LADDER[rung]) for rung in "abg"}
    there = {rung: write_checkpoint(str(tmp_path / rung), sizes[rung]) for rung in sizes}
    for rung in "bg":
        requests = choose_requests(config, there[rung])
        assert [request.mode for request in requests] == 2 * ["latent", "restyled"]
    for checkpoint in (there["a"], load_checkpoint("null:32x1")):
        with pytest.raises(
            UserError, match=r'makes no restyled samples; set modes = \["latent", "reference"\]'
        ):
            choose_requests(config, checkpoint)
    bare = write_checkpoint(str(tmp_path / "bare"), num_references=0)
    with pytest.raises(UserError, match=r"holds no references of 'scratches'; set modes"):
        choose_requests(config, bare)


def test_a_job_needs_no_installed_raygen(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster's image has the dependencies; the job brings the code, and no package of that name."""

    def installed(name: str) -> str:
        if name == "raygen":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("raygen.generate.plan.version", installed)
    write_pool(str(tmp_path / "pool"), 1)
    config = config_of(str(tmp_path))
    assert open_run(config, load_checkpoint(config.checkpoint)).versions["raygen"] == __version__


def test_a_shard_that_no_worker_could_hold_is_refused(tmp_path) -> None:
    write_pool(str(tmp_path / "pool"), 1)
    config = config_of(str(tmp_path), checkpoint="null:512x3", normals_per_shard=1000)
    with pytest.raises(UserError, match=r"normals_per_shard = 1000: .*set at most 341"):
        open_run(config, load_checkpoint(config.checkpoint))


def test_full_size_photographs_want_small_shards(tmp_path) -> None:
    native = {"checkpoint": "null:64x1", "native": True, "composition": "residual"}
    with pytest.raises(UserError, match=r"up to max_pixels = 16,777,216 pixels .*set at most 5"):
        open_run(
            config_of(str(tmp_path), **native, max_pixels=4096**2, normals_per_shard=6),
            load_checkpoint("null:64x1"),
        )
    with pytest.raises(UserError, match="lower max_pixels"):
        open_run(
            config_of(str(tmp_path), **native, max_pixels=10**9, normals_per_shard=1),
            load_checkpoint("null:64x1"),
        )


def test_an_empty_pool_begins_nothing(folder_uri: str) -> None:
    config = config_of(folder_uri)
    with pytest.raises(UserError, match="no images there"):
        open_run(config, load_checkpoint(config.checkpoint))
    assert list(storage.list_files(folder_uri)) == []


def test_a_draft_writes_to_its_own_file_only(tmp_path) -> None:
    write_pool(str(tmp_path / "pool"), 2)
    config = config_of(str(tmp_path))
    run = draft_run(config, load_checkpoint(config.checkpoint), tmp_path / "draft.parquet")
    assert pq.ParquetFile(tmp_path / "draft.parquet").num_row_groups == run.num_shards == 2
    assert read_run(config.output) is None

"""The three stages, one after the other, without Ray."""

import pyarrow as pa
import pytest
from factories import write_checkpoint, write_pool

from raygen import storage
from raygen.checkpoint import load_checkpoint
from raygen.data.runs import ShardStats, read_shard
from raygen.errors import UserError
from raygen.generate.config import GenerateConfig
from raygen.generate.plan import open_run
from raygen.generate.stages import GenerateActor, pack, unpack
from raygen.generate.stages import read_shard as read
from raygen.generate.stages import write_shard as write
from raygen.relay import tells


def test_packing_a_shard_into_a_row_keeps_it() -> None:
    normals = pa.table({"uri": ["a", "b"], "pixels": pa.array([b"\0\1", b""], pa.large_binary())})
    rejects = pa.table({"uri": pa.array([], pa.string())})
    row = pack(5, {"read": 0.5}, normals=normals, rejects=rejects)
    assert row.num_rows == 1
    shard = unpack(row)
    assert (shard.number, shard.seconds) == (5, {"read": 0.5})
    assert shard.tables["normals"].equals(normals)
    assert shard.tables["rejects"].equals(rejects)


@pytest.mark.parametrize("num_bad", [0, 1, 3])
def test_a_shard_goes_through(folder_uri: str, num_bad: int) -> None:
    """Also one of which every normal is bad."""
    uris = write_pool(storage.join(folder_uri, "pool"), 1)
    for uri in uris[:num_bad]:
        storage.put(uri, b"")
    checkpoint = write_checkpoint(storage.join(folder_uri, "checkpoint"))
    config = GenerateConfig(
        pool=storage.join(folder_uri, "pool"),
        output=storage.join(folder_uri, "out"),
        checkpoint=checkpoint.uri,
    )
    run = open_run(config, checkpoint)
    generated = GenerateActor(config, run, config.checkpoint)(read(pa.table({"shard": [0]}), config, run))
    [text] = write(generated, config, run)["stats"].to_pylist()
    stats = ShardStats.model_validate_json(text)
    assert (stats.num_normals, stats.num_samples, stats.num_rejects) == (3, 4 * (3 - num_bad), num_bad)
    assert set(stats.seconds) == {"read", "generate", "encode", "write"}
    assert read_shard(config.output, stats).num_rows == stats.num_samples


def test_a_users_error_travels_down_the_chain_and_nothing_else_does() -> None:
    batch = pa.table({"shard": [0]})

    def fails_with(error: Exception):
        def stage(_: pa.Table) -> pa.Table:
            raise error

        return tells(stage)

    told = fails_with(UserError("no room"))(batch)
    assert told.to_pylist() == [{"error": "no room"}]
    assert fails_with(ZeroDivisionError())(told) is told  # later stages do not even look
    with pytest.raises(ZeroDivisionError):  # a bug crashes loudly
        fails_with(ZeroDivisionError())(batch)
    with pytest.raises(storage.StorageUnavailableError):  # Ray Data tries again
        fails_with(storage.StorageUnavailableError("away"))(batch)


def test_a_checkpoint_that_changes_meanwhile_stops_the_run(tmp_path) -> None:
    write_pool(str(tmp_path / "pool"), 1)
    write_checkpoint(str(tmp_path / "checkpoint"))
    config = GenerateConfig(
        pool=str(tmp_path / "pool"), output=str(tmp_path / "out"), checkpoint=str(tmp_path / "checkpoint")
    )
    run = open_run(config, load_checkpoint(config.checkpoint))
    write_checkpoint(config.checkpoint, seed=1)
    told = GenerateActor(config, run, config.checkpoint)(read(pa.table({"shard": [0]}), config, run))
    assert "is not the checkpoint of this run any more" in told["error"][0].as_py()

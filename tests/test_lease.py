"""One refresh at a time: of many that try one holds the lease, a dead holder's expires, a late one is told."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from raygen import storage
from raygen.errors import LeaseError, UserError
from raygen.publish.lease import Lease


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    base = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_uri")
    return f"{base}/lease.json"


def token_of(uri: str) -> int:
    return json.loads(storage.read(uri))["token"]


def test_tokens_grow_from_holder_to_holder(uri: str) -> None:
    for token in (1, 2, 3):
        with Lease(uri, seconds=5) as lease:
            assert lease.token == token
            lease.check()
        assert token_of(uri) == token


def test_who_comes_second_stops_as_soon_as_the_first_shows_life(uri: str) -> None:
    with Lease(uri, seconds=4) as lease:
        started = time.monotonic()
        with (
            pytest.raises(LeaseError, match=r"lease\.json: .* refreshes this table now") as caught,
            Lease(uri, 4),
        ):
            pass
        assert time.monotonic() - started < 4
        assert "\n" not in str(caught.value)
        lease.check()


def test_a_lease_is_held_for_longer_than_it_lasts(uri: str) -> None:
    with Lease(uri, seconds=2) as lease:
        time.sleep(3.5)
        lease.check()
        with pytest.raises(LeaseError), Lease(uri, 2):
            pass
        lease.check()


def test_a_dead_holder_s_lease_goes_to_the_next_and_its_ghost_is_told(uri: str) -> None:
    dead = Lease(uri, seconds=2)
    dead._take()  # and no thread that writes on
    assert dead.token == 1
    with Lease(uri, seconds=2) as heir:
        assert heir.token == 2
        with pytest.raises(LeaseError, match="another refresh took it over"):
            dead.check()
        heir.check()
    assert token_of(uri) == 2


def test_a_ghost_that_wakes_up_leaves_the_lease_to_its_heir(uri: str) -> None:
    with Lease(uri, seconds=2) as lease:
        stolen = storage.read_snapshot(uri)
        held = {**json.loads(stolen.data), "token": 9, "nonce": "other"}
        while storage.replace(uri, json.dumps(held).encode(), stolen.etag) is None:
            stolen = storage.read_snapshot(uri)
        time.sleep(1.5)
        with pytest.raises(LeaseError, match="another refresh took it over"):
            lease.check()
    assert token_of(uri) == 9
    assert not json.loads(storage.read(uri))["released"], "what is another's was released"


def test_an_answer_that_got_lost_is_not_a_lost_lease(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = storage.replace
    with Lease(uri, seconds=60) as lease:

        def twice(*arguments: str | bytes) -> str | None:  # what a client does when the first answer is lost
            assert replace(*arguments) is not None  # type: ignore[arg-type]
            return replace(*arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(storage, "replace", twice)
            assert lease._write()
        lease.check()


@pytest.mark.parametrize("num_threads", [2, 8])
def test_of_many_one_takes_it(uri: str, num_threads: int) -> None:
    storage.put(
        uri,
        json.dumps(
            {"token": 6, "holder": "x", "nonce": "", "beat": 0, "released": True, "seconds": 5}
        ).encode(),
    )
    barrier, held = threading.Barrier(num_threads), threading.Barrier(num_threads)
    tokens: list[int] = []

    def take() -> None:
        lease = Lease(uri, seconds=5)
        barrier.wait()
        found = storage.read_snapshot(uri)
        held.wait()  # all have seen it free
        lease._held = lease._mine(7)
        if lease._write(etag=found.etag):
            tokens.append(lease.token)

    threads = [threading.Thread(target=take) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tokens == [7]


def test_a_holder_is_as_dead_as_it_said_itself(uri: str) -> None:
    """A command with a shorter lease leaves one that beats seldom alone."""
    with Lease(uri, seconds=8) as lease:
        time.sleep(1)
        with pytest.raises(LeaseError, match="refreshes this table now"), Lease(uri, seconds=2):
            pass
        lease.check()


def test_a_holder_whose_clock_runs_ahead_is_found_dead_all_the_same(tmp_path: Path) -> None:
    uri = str(tmp_path / "lease.json")
    dead = Lease(uri, seconds=2)
    dead._take()
    ahead = time.time() + 3600
    os.utime(uri, (ahead, ahead))
    with Lease(uri, seconds=2) as heir:
        assert heir.token == 2


def test_a_damaged_lease_is_one_line(uri: str) -> None:
    storage.put(uri, b"{}")
    with (
        pytest.raises(UserError, match="damaged; if no refresh is running, delete it"),
        Lease(uri, seconds=2),
    ):
        pass

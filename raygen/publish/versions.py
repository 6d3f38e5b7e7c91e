"""Older versions of a table: back to one of them, and the end of those that nobody keeps."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from raygen import storage
from raygen.errors import UserError
from raygen.publish.lease import Lease
from raygen.publish.state import (
    LEASE,
    MARK,
    all_nights,
    delete_all,
    existing_table,
    night_of,
    pending_night,
)
from raygen.publish.table import PublishedTable

_BATCH = 1_000  # files that are deleted on one word of the lease

Say = Callable[[str], None]


@contextmanager
def _held(table_uri: str, lease_seconds: float) -> Iterator[tuple[Lease, PublishedTable]]:
    """A table that is there, with its lease."""
    existing_table(table_uri)
    with Lease(storage.join(table_uri, LEASE), lease_seconds) as lease:
        yield lease, existing_table(table_uri)


def rollback(table_uri: str, to: int | None = None, say: Say = print, lease_seconds: float = 60.0) -> int:
    """Publishes the content of an older version as the newest; returns the new version.

    Args:
        table_uri: the table's folder.
        to: the version; by default the one before what the table shows now.
        say: takes each line for the user.
        lease_seconds: as in the recipe.

    Raises:
        UserError: no such table or version, or its files are gone.
        LeaseError: a refresh works on the table.
    """
    table_uri = storage.normalize(table_uri)
    with _held(table_uri, lease_seconds) as (lease, table):
        versions = table.versions()
        if to is None and (now := table.publication()) is not None:
            to = max((version for version in versions if version < now.content), default=None)
        if to not in versions:
            known = f"there are: {_last(versions)}" if versions else "none is published yet"
            wanted = "no earlier version" if to is None else f"no version {to}"
            raise UserError(f"{table_uri}: {wanted} to go back to; {known}")
        target = versions[to]
        if not storage.exists(storage.join(table_uri, target.ledger)):
            raise UserError(f"{table_uri}: version {to} was vacuumed; name a later one")
        lease.check()
        table = table.restore(to, target)
        say(
            f"{table_uri}: version {table.version} is version {to} again; the next refresh goes on from there, so "
            "mend the pool, the checkpoint or the recipe before"
        )
        return table.version


def vacuum(
    table_uri: str,
    keep: int = 7,
    hours: float = 168.0,
    is_dry_run: bool = False,
    say: Say = print,
    lease_seconds: float = 60.0,
) -> int:
    """Deletes what no kept version uses; returns how many files.

    Kept are the last `keep` versions, and every one that was the latest at any time in the last `hours`: nobody
    who opened the table since then loses a file. (By a listing of ours: the library's own vacuum goes by the log,
    which forgets after a week what it removed.)

    Raises:
        UserError: no such table, or nothing would be kept.
        LeaseError: a refresh works on the table.
    """
    if keep < 1 or hours < 0:
        raise UserError(f"keep = {keep}, hours = {hours:g}: at least the newest version is kept")
    table_uri = storage.normalize(table_uri)
    with _held(table_uri, lease_seconds) as (lease, table):
        kept = table.recent(keep, hours)
        files = {path for version in (*kept, table.version) for path in table.files_of(version)}
        pending = pending_night(table_uri)
        # Whole folders stay of the nights of kept versions, of the one under way, and of one refused lately.
        whole = {publication.night for publication in kept.values()} | ({pending.id} if pending else set())
        whole |= {night for night in all_nights(table_uri) if int(night.split("-")[0]) > table.version}
        in_use = {night_of(path) for path in files} | whole

        def is_stale(path: str) -> bool:
            night = night_of(path)
            is_shard = path.endswith(".parquet") and "/plan/" not in path and "/rejects/" not in path
            return path not in files and night not in whole and (is_shard or night not in in_use)

        runs = storage.list_files(storage.join(table_uri, "runs"))
        uris = [entry.uri for entry in runs if is_stale(entry.uri.removeprefix(f"{table_uri}/"))]
        for night in sorted(set(all_nights(table_uri)) - whole):  # last: nights are found by these
            for entry in storage.list_files(storage.join(table_uri, f"_refresh/{night}")):
                if night not in in_use or not entry.uri.endswith(f"/{MARK}"):
                    uris.append(entry.uri)
        for start in range(0, 0 if is_dry_run else len(uris), _BATCH):
            lease.check()
            delete_all(uris[start : start + _BATCH])
        left = f"versions {_last(kept)} can be read and restored"
        say(
            f"{table_uri}: {len(uris):,} files {'would be' if is_dry_run else 'were'} deleted; "
            f"{left if kept else 'no version is published yet'}"
        )
        return len(uris)


def _last(versions: Iterable[int]) -> str:
    """The newest few, for a message."""
    return ", ".join(map(str, list(versions)[-8:]))

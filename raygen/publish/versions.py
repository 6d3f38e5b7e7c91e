"""Older versions of a table: back to one of them, and the end of those that nobody keeps."""

from collections.abc import Callable

from raygen import storage
from raygen.errors import UserError
from raygen.publish.lease import Lease
from raygen.publish.state import LEASE, MARK, all_nights, delete_all, existing_table, pending_nights

Say = Callable[[str], None]


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
    existing_table(table_uri)
    with Lease(storage.join(table_uri, LEASE), lease_seconds) as lease:
        table = existing_table(table_uri)
        versions = table.versions()
        if to is None and (now := table.publication()) is not None:
            to = max((version for version in versions if version < now.content), default=None)
        if to not in versions:
            known = ", ".join(str(version) for version in list(versions)[-8:]) or "none"
            raise UserError(
                f"{table_uri}: no version {'' if to is None else to} to go back to; there are: {known}"
            )
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
    who opened the table since then loses a file.

    Raises:
        UserError: no such table.
        LeaseError: a refresh works on the table.
    """
    table_uri = storage.normalize(table_uri)
    existing_table(table_uri)
    with Lease(storage.join(table_uri, LEASE), lease_seconds) as lease:
        table = existing_table(table_uri)
        kept = table.recent(keep, hours)
        lease.check()
        gone = table.vacuum(kept, is_dry_run)
        versions = table.versions()
        nights = {publication.night for version, publication in versions.items() if version in kept}
        in_use = {path.split("/")[1] for version in kept for path in table.files_of(version)}
        stale = all_nights(table_uri) - nights - pending_nights(table_uri)
        uris = [
            entry.uri
            for night in sorted(stale)
            for folder in (
                [f"_refresh/{night}"] if night in in_use else [f"_refresh/{night}", f"runs/{night}"]
            )
            for entry in storage.list_files(storage.join(table_uri, folder))
            if not (night in in_use and entry.uri.endswith(MARK))
        ]
        if not is_dry_run:
            delete_all(uris)
        count = len({*gone, *(uri.removeprefix(f"{table_uri}/") for uri in uris)})
        say(
            f"{table_uri}: {count:,} files {'would be' if is_dry_run else 'were'} deleted; versions "
            f"{', '.join(map(str, kept[-8:]))} can be read and restored"
        )
        return count

"""What stands beside a published table: its nights, the one under way, the last report.

{table}/_delta_log/              the table (see `raygen.publish.table`)
{table}/runs/{night}/            a night's run folder, whose shards are the table's files; kept/ holds what was
                                 written anew without the normals that left
{table}/_refresh/lease.json      who refreshes (see `raygen.publish.lease`)
{table}/_refresh/pending         the night under way: after a crash, the next refresh finishes it first
{table}/_refresh/{night}/        night.json, work.parquet, kept.parquet, leaving.parquet: what it is to do, frozen
                                 before it begins; then scores.parquet, ledger.parquet, refresh.json, published;
                                 or refused, whose audit failed: it stays, to be looked at, until a vacuum
{table}/_refresh/refresh.json    the last report

Everything before the commit is written under names that follow from what the night is: an attempt that was cut off
is gone on with, and whoever writes twice writes the same.
"""

import io
import re
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from raygen import storage
from raygen.errors import UserError
from raygen.publish.changes import Counts
from raygen.publish.table import PublishedTable, open_table

LEASE = "_refresh/lease.json"
PENDING = "_refresh/pending"
REPORT = "_refresh/refresh.json"
MARK = "published"  # a file in the folder of a night that was
REFUSED = "refused"  # likewise, of one whose audit failed: it stays to be looked at


class Night(BaseModel):
    """night.json: what a night is to do, frozen before it begins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str  # of all that follows
    base_version: int  # of the table that it was planned on
    checkpoint: str  # its digest
    recipe: str  # a digest of what decides samples and shards
    keys: dict[str, str]  # product -> what decides its samples
    policy: str
    counts: Counts
    removed: tuple[str, ...]  # files that leave the table
    rewritten: dict[str, str]  # of them, those with samples that stay -> their new file, of several perhaps

    @property
    def folder(self) -> str:
        """Its own, below the table's."""
        return f"_refresh/{self.id}"

    @property
    def run(self) -> str:
        """Its run folder, below the table's."""
        return f"runs/{self.id}"


def existing_table(table_uri: str) -> PublishedTable:
    table = open_table(table_uri)
    if table is None:
        raise UserError(f"{table_uri}: no table there (no _delta_log/); `raygen refresh` makes one")
    return table


def pending_night(table_uri: str) -> Night | None:
    """The night under way, if there is one."""
    try:
        night = storage.read(storage.join(table_uri, PENDING)).decode()
        return Night.model_validate_json(
            storage.read(storage.join(table_uri, f"_refresh/{night}/night.json"))
        )
    except (storage.ObjectMissingError, ValidationError):
        return None


def finish_night(table_uri: str, night: Night) -> None:
    """What follows a night's commit; may be done twice."""
    folder = storage.join(table_uri, night.folder)
    storage.put(storage.join(folder, MARK), b"")
    storage.put(storage.join(table_uri, REPORT), storage.read(storage.join(folder, "refresh.json")))
    storage.delete(storage.join(table_uri, PENDING))


def all_nights(table_uri: str) -> dict[str, bool]:
    """The nights that left something -> whether they were published, by one listing."""
    prefix = f"{table_uri}/_refresh/"
    found: dict[str, bool] = {}
    for entry in storage.list_files(prefix):
        night, _, name = entry.uri.removeprefix(prefix).partition("/")
        if name and re.fullmatch(r"\d{6,}-\w+", night):
            found[night] = found.get(night, False) or name == MARK
    return found


def night_of(path: str) -> str | None:
    """The night that a file of the table's folder belongs to, if it does to one."""
    match = re.match(r"runs/([^/]+)/", path)
    return match[1] if match else None


def delete_night(table_uri: str, night: str) -> None:
    """Deletes all that a night left. What `all_nights` finds it by goes last."""
    for folder in (f"runs/{night}", f"_refresh/{night}"):
        delete_all([entry.uri for entry in storage.list_files(storage.join(table_uri, folder))])


def delete_stale_nights(table_uri: str) -> None:
    """Deletes what nights left behind that were never published and never will be. Those that an audit refused are
    for `vacuum` to delete."""
    table = existing_table(table_uri)
    nights = all_nights(table_uri)
    stale = {name for name in nights if not nights[name] and int(name.split("-")[0]) <= table.version}
    if stale:  # the mark may be missing: look at the log, and at the files
        stale -= set(filter(table.has_published, stale))
        stale -= {night for night in map(night_of, table.files()) if night}
        stale = {night for night in stale if not storage.exists(f"{table_uri}/_refresh/{night}/{REFUSED}")}
    for night in sorted(stale):
        delete_night(table_uri, night)


def put_table(uri: str, rows: pa.Table) -> None:
    """Writes a ledger, or another table without images, as Parquet."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, row_group_size=65_536, compression="zstd")
    storage.put(uri, buffer.getvalue())


def delete_all(uris: list[str]) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(storage.delete, uris))

"""What stands beside a published table: its nights, the one under way, the last report.

{table}/_delta_log/              the table (see `raygen.publish.table`)
{table}/runs/{night}/            a night's run folder, whose shards are the table's files; kept/ holds what was
                                 written anew without the normals that left
{table}/_refresh/lease.json      who refreshes (see `raygen.publish.lease`)
{table}/_refresh/pending.json    the night under way: after a crash, the next refresh finishes it first
{table}/_refresh/{night}/        night.json, work.parquet, kept.parquet, leaving.parquet: what it is to do, frozen
                                 before it begins; then scores.parquet, ledger.parquet, refresh.json, published
{table}/_refresh/refresh.json    the last report

Everything before the commit is written under names that follow from what the night is: an attempt that was cut off
is gone on with, and whoever writes twice writes the same.
"""

import re
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict, ValidationError

from raygen import storage
from raygen.errors import UserError
from raygen.publish.night import Counts
from raygen.publish.table import PublishedTable, open_table

LEASE = "_refresh/lease.json"
PENDING = "_refresh/pending.json"
REPORT = "_refresh/refresh.json"
MARK = "published"  # a file in the folder of a night that was


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
    rewritten: dict[str, str]  # of them, those with samples that stay -> their new file

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


def pending_nights(table_uri: str) -> set[str]:
    night = pending_night(table_uri)
    return {night.id} if night else set()


def all_nights(table_uri: str) -> set[str]:
    """The nights that left something."""
    prefix = f"{table_uri}/_refresh/"
    names = (entry.uri.removeprefix(prefix) for entry in storage.list_files(prefix))
    return {name.split("/")[0] for name in names if re.match(r"\d{6,}-\w+/", name)}


def delete_all(uris: list[str]) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(storage.delete, uris))

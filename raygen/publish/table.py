"""The published table: Delta Lake, by the `deltalake` package. The only module that knows it.

A version's files are Parquet shards that stand in the table's folder already (`runs/…`): publishing writes no
sample, only the log entry that adds some files and removes others, all at once. A reader sees a version, whole.

Each entry carries, beside its actions, a `Publication` (which night it is, which ledger tells its normals), and
the night's id as an application transaction, by which a night that was published is known for ever. It is written
for one version, or not at all: a refresh that planned on a version which is no longer the latest cannot commit,
whoever holds which lease.
"""

import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction
from pydantic import BaseModel, ConfigDict

from raygen import storage
from raygen.errors import LeaseError, UserError
from raygen.records import SAMPLE_SCHEMA

_KEY = "raygen"  # of the Publication among an entry's own words
_CONFIGURATION = {"delta.enableExpiredLogCleanup": "false"}
# An entry says whose version it is, and must not be lost; it is small, and `vacuum` bounds the data.
_MAX_HISTORY = 1_000  # entries that are looked at, a request each: three years of nights
TABLE_SCHEMA = pa.schema(list(SAMPLE_SCHEMA))
"""The columns of the table: those of a sample. The columns of images hold PNG bytes."""


class Publication(BaseModel):
    """What the log says of a version that raygen published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    night: str  # the night's id
    ledger: str  # file of the table's folder: which normals the version holds
    content: int  # the version that first held this content; another than its own after a rollback


class DataFile(NamedTuple):
    """A Parquet file of samples in the table's folder."""

    path: str  # from the table's folder on
    num_bytes: int
    num_samples: int
    least: Mapping[str, Any]  # column -> smallest value: readers leave out files by them
    greatest: Mapping[str, Any]


P = ParamSpec("P")
R = TypeVar("R")


def _answered(ask: Callable[P, R]) -> Callable[P, R]:
    """Turns what the library says of a storage that does not answer, or of a log that it cannot read, into one
    line: a UserError, and a `StorageUnavailableError` if time may mend it."""

    @functools.wraps(ask)
    def ask_or_say(*args: P.args, **options: P.kwargs) -> R:
        uri = args[0].uri if isinstance(args[0], PublishedTable) else args[0]
        try:
            return ask(*args, **options)
        except OSError as error:
            raise storage.StorageUnavailableError(
                f"table {uri}: {_line(error)}; check AWS_ENDPOINT_URL, or run the same command again later"
            ) from error
        except DeltaError as error:
            raise UserError(f"table {uri}: {_line(error)}; check the URI and the permissions") from error

    return ask_or_say


class PublishedTable:
    """A table at its latest version when it was opened."""

    def __init__(self, uri: str, delta: DeltaTable) -> None:
        self.uri = uri
        self._delta = delta

    @property
    def version(self) -> int:
        return self._delta.version()

    @_answered
    def publication(self) -> Publication | None:
        """What this version is; None for a table that was just created.

        Raises:
            UserError: another hand has changed the table.
        """
        entry = self._last_change()
        if _KEY in entry:
            return Publication.model_validate(entry[_KEY])
        if entry["version"] == 0:
            return None
        raise UserError(
            f"{self.uri}: its version {entry['version']} was written by another hand ({entry['operation']}), so "
            f"that nobody knows which normals it holds; go back to a version of raygen's own: "
            f"`raygen rollback {self.uri} --to VERSION` ({_few(self.versions())})"
        )

    def _last_change(self) -> dict[str, Any]:
        """The log's last entry that says what the table holds; a clean-up does not."""
        for limit in (4, _MAX_HISTORY):  # the last few, as a rule: an entry is a request
            for entry in self._delta.history(limit):
                if not entry["operation"].startswith("VACUUM"):
                    return entry
        raise UserError(f"{self.uri}: its log says nothing but that it was cleaned up; name another folder")

    @_answered
    def versions(self) -> dict[int, Publication]:
        """The versions that raygen published; the oldest may be left out."""
        return {
            entry["version"]: Publication.model_validate(entry[_KEY])
            for entry in reversed(self._delta.history(_MAX_HISTORY))
            if _KEY in entry
        }

    @_answered
    def has_published(self, night: str) -> bool:
        """Whether a version of this table is, or was, this night's."""
        return self._delta.transaction_version(night) is not None

    @_answered
    def files(self) -> dict[str, int]:
        """This version's files: path -> samples."""
        actions = pa.table(self._delta.get_add_actions(flatten=True))
        return dict(zip(actions["path"].to_pylist(), actions["num_records"].to_pylist(), strict=True))

    @_answered
    def commit(
        self, publication: Publication, added: Sequence[DataFile], removed: Iterable[str]
    ) -> "PublishedTable":
        """Publishes the version after this one.

        Raises:
            LeaseError: another hand has written that version.
        """
        version, now = self.version + 1, int(time.time() * 1000)
        sizes = {}
        if removed:
            actions = pa.table(self._delta.get_add_actions(flatten=True))
            sizes = dict(zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True))
        entries = [
            AddAction(file.path, file.num_bytes, {}, now, data_change=True, stats=_stats(file))
            for file in added
        ]
        entries += [
            RemoveAction(
                path=path, data_change=True, deletion_timestamp=now, size=sizes[path], partition_values={}
            )
            for path in removed
        ]
        try:
            self._delta.create_write_transaction(
                entries, "append", self._delta.schema(), commit_properties=self._properties(publication)
            )
        except CommitFailedError as error:
            return self._outrun(version, publication, error)
        return PublishedTable(self.uri, _load(self.uri, version))

    @_answered
    def restore(self, target: int, publication: Publication) -> "PublishedTable":
        """Publishes the content of an older version as the next one.

        Raises:
            UserError: files of that version are gone.
            LeaseError: another hand has written the next version.
        """
        version = self.version + 1
        try:
            self._delta.restore(target, commit_properties=self._properties(publication))
        except CommitFailedError as error:
            return self._outrun(version, publication, error)
        except DeltaError as error:
            raise UserError(f"{self.uri}: version {target} cannot be restored: {error}") from None
        return PublishedTable(self.uri, _load(self.uri, version))

    @_answered
    def recent(self, count: int, hours: float) -> dict[int, Publication]:
        """The last `count` versions that raygen published, and those that were the latest at any time in the last
        `hours`; always with what the table shows now."""
        history = sorted(self._delta.history(_MAX_HISTORY), key=lambda entry: entry["version"])
        since = 1000 * (time.time() - 3600 * hours)
        ends = [entry["timestamp"] for entry in history[1:]] + [float("inf")]
        young = {entry["version"] for entry, end in zip(history, ends, strict=True) if end > since}
        ours = self.versions()
        return {
            version: ours[version] for version in ours if version in young or version in list(ours)[-count:]
        }

    @_answered
    def files_of(self, version: int) -> set[str]:
        """The files of another version."""
        return set(PublishedTable(self.uri, _load(self.uri, version)).files())

    def _properties(self, publication: Publication) -> CommitProperties:
        return CommitProperties(
            custom_metadata={_KEY: publication.model_dump()},
            # None: the library would move on to the next free version, above work that this one has not seen.
            max_commit_retries=0,
            app_transactions=[Transaction(publication.night, self.version + 1)],
        )

    def _outrun(self, version: int, publication: Publication, error: Exception) -> "PublishedTable":
        """That version stands already: by this very commit, whose answer got lost, or by another hand."""
        table = PublishedTable(self.uri, _load(self.uri, version))
        entry = table._delta.history(1)[0]
        if entry.get(_KEY) == publication.model_dump():
            return table
        raise LeaseError(
            f"{self.uri}: its version {version} was written by another hand meanwhile; nothing was published by "
            "this refresh; run the same command again"
        ) from error


@_answered
def open_table(uri: str) -> PublishedTable | None:
    """The table of this folder at its latest version, if there is one.

    Raises:
        UserError: a table of other columns, or storage says no.
    """
    try:
        delta = _load(uri)
    except TableNotFoundError:
        return None
    names = [field.name for field in delta.schema().fields]
    if names != TABLE_SCHEMA.names:
        raise UserError(
            f"table {uri}: not one of raygen's: its columns are {_few(names)}; name another folder"
        )
    return PublishedTable(uri, delta)


@_answered
def create_table(uri: str) -> PublishedTable:
    """Creates an empty table, version 0; of two that try at once, one does, and both have it."""
    try:
        DeltaTable.create(
            uri,
            TABLE_SCHEMA,
            name="raygen",
            description="Synthetic defects: four of each normal; one row is a sample",
            configuration=_CONFIGURATION,
            storage_options=storage.delta_options(uri),
        )
    except DeltaError:
        table = open_table(uri)
        if table is None:
            raise
        return table
    table = open_table(uri)
    assert table is not None
    return table


def _load(uri: str, version: int | None = None) -> DeltaTable:
    return DeltaTable(uri, version=version, storage_options=storage.delta_options(uri))


def _stats(file: DataFile) -> str:
    return json.dumps(
        {
            "numRecords": file.num_samples,
            "minValues": dict(file.least),
            "maxValues": dict(file.greatest),
            "nullCount": dict.fromkeys(file.least, 0),
        }
    )


def _few(things: Iterable[Any]) -> str:
    names = [str(thing) for thing in things]
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")


def _line(error: BaseException) -> str:
    """The cause, which stands last."""
    return str(error).strip().splitlines()[-1].strip()[:300]

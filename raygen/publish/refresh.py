"""The nightly refresh: find what changed, generate only that, audit it, publish it at once."""

import contextlib
import functools
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import NamedTuple, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from raygen import storage
from raygen.checkpoint import Checkpoint, load_checkpoint
from raygen.config import check_writable, refuse_lost_places
from raygen.data.runs import Manifest, ShardStats, read_run
from raygen.errors import PromiseError
from raygen.generate.config import GenerateConfig
from raygen.generate.plan import choose_requests
from raygen.generate.shards import parquet_bytes
from raygen.publish.arrow import pc
from raygen.publish.audit import audit, read_blocklist
from raygen.publish.config import RefreshConfig
from raygen.publish.files import CELL, Inspected, Rewrite, cell_of, inspect_file, lowest_ids, rewrite_file
from raygen.publish.lease import Lease
from raygen.publish.ledger import next_ledger
from raygen.publish.night import LEDGER_SCHEMA, Change, Counts, compare, keys_of, list_pool, read_ledger
from raygen.publish.report import RefreshReport, compare_reports, describe, night_report
from raygen.publish.state import (
    LEASE,
    MARK,
    PENDING,
    REPORT,
    Night,
    all_nights,
    delete_all,
    existing_table,
    pending_night,
)
from raygen.publish.table import Publication, PublishedTable, create_table, open_table
from raygen.records import digest

_MAX_ROUNDS = 2  # a night that was left over, and the one of now

Say = Callable[[str], None]
A = TypeVar("A")
R = TypeVar("R")


class Work(Protocol):
    """Who does the work that grows with a night: a Ray cluster, or, in tests, this process."""

    def connected(self) -> contextlib.AbstractContextManager[None]: ...

    def generate(self, config: GenerateConfig, say: Say) -> Manifest: ...

    def map(self, function: Callable[[A], R], items: Iterable[A]) -> list[R]: ...


def refresh(
    config: RefreshConfig,
    say: Say = print,
    work: Work | None = None,
    reached: Callable[[str], None] = lambda step: None,
) -> RefreshReport:
    """Brings the table to what the pool is now; does nothing twice.

    Args:
        config: the recipe.
        say: takes each line for the user.
        work: who generates; by default Ray.
        reached: is told each step that is done.

    Raises:
        UserError: a wrong config, pool, table or checkpoint; before any work starts.
        PromiseError: the audit fails, or more normals are bad than allowed: nothing is published.
        LeaseError: another refresh works on the table.
    """
    places = {"pool": config.pool, "table": config.table, "checkpoint": config.checkpoint}
    refuse_lost_places(places)
    checkpoint = load_checkpoint(config.checkpoint)
    choose_requests(config.generate_config(config.pool, config.table), checkpoint)
    blocklist = read_blocklist(config.audit.blocklist)
    check_writable(config.table)
    if work is None:
        from raygen.publish.on_ray import OnRay  # here, so that a refusal or a no-op costs no start of Ray

        work = OnRay()
    with Lease(storage.join(config.table, LEASE), config.lease_seconds) as lease:
        reached("leased")
        return _Refresh(config, checkpoint, blocklist, lease, work, say, reached).run()


def dry_run(config: RefreshConfig, say: Say = print) -> None:
    """Says what `refresh` would do; writes nothing."""
    checkpoint = load_checkpoint(config.checkpoint)
    say(config.model_dump_json(indent=2))
    table = open_table(config.table)
    read_blocklist(config.audit.blocklist)
    _, change = _look(config, checkpoint, table)
    counts, requests = change.counts, choose_requests(_recipe(config), checkpoint)
    report = RefreshReport(
        status="nothing to do",
        table=config.table,
        night=None,
        version=table.version if table else 0,
        samples=sum(table.files().values()) if table else 0,
        checkpoint=checkpoint.digest,
        counts=counts,
    )
    if not counts.work and not counts.removed:
        for line in describe(report):
            say(line)
        return
    say(next(describe(report)))
    files = set(pc.unique(change.leaving["file"]).drop_null().to_pylist())
    say(
        f"would make {counts.work * len(requests):,} samples; {len(files):,} files would leave or be written anew"
    )


class _Refresh(NamedTuple):
    """One call of `refresh`, with the lease held."""

    config: RefreshConfig
    checkpoint: Checkpoint
    blocklist: frozenset[str]
    lease: Lease
    work: Work
    say: Say
    reached: Callable[[str], None]

    def run(self) -> RefreshReport:
        report = None
        for _ in range(_MAX_ROUNDS):
            table = open_table(self.config.table) or create_table(self.config.table)
            night = self._left_over(table)
            was_left_over = night is not None
            started = time.monotonic()
            if night is None:
                self.say(f"listing {self.config.pool} …")
                night, counts = self._plan(table)
                if night is None:
                    report = report or self._nothing(table, counts)
                    break
            report = self._carry_out(table, night, {"plan": time.monotonic() - started})
            if not was_left_over:
                break
        self._clean()
        self.reached("cleaned")
        assert report is not None
        for line in describe(report):
            self.say(line)
        return report

    def _left_over(self, table: PublishedTable) -> Night | None:
        """The night that an earlier refresh could not finish, if it is still what is wanted."""
        night = pending_night(self.config.table)
        if night is None:
            return None
        if night.id in {publication.night for publication in table.versions().values()}:
            self._finish(night)  # the commit was its last deed
            return None
        recipe, keys = (
            _recipe(self.config),
            keys_of(_recipe(self.config), self.checkpoint, sorted(night.keys)),
        )
        wanted = (table.version, self.checkpoint.digest, _digest_of(recipe), keys, self.config.policy)
        if wanted == (night.base_version, night.checkpoint, night.recipe, night.keys, night.policy):
            self.say(f"going on with night {night.id}, which an earlier refresh began")
            return night
        self.say(f"night {night.id}, which an earlier refresh began, is not what is wanted any more: dropped")
        self._give_up()
        return None

    def _plan(self, table: PublishedTable) -> tuple[Night | None, Counts]:
        """Finds what changed and freezes what is to be done about it."""
        keys, change = _look(self.config, self.checkpoint, table)
        if not change.counts.work and not change.counts.removed:
            return None, change.counts
        recipe = _recipe(self.config)
        work, kept, leaving = (parquet_bytes(rows) for rows in (change.work, change.kept, change.leaving))
        parts = (
            str(table.version),
            self.checkpoint.digest,
            _digest_of(recipe),
            *keys.values(),
            self.config.policy,
        )
        name = digest(*parts, *(hashlib.sha256(data).hexdigest() for data in (work, leaving)), num_bytes=8)
        night_id = f"{table.version + 1:06d}-{name}"
        leaving_files = pc.unique(change.leaving["file"]).drop_null().to_pylist()
        staying_files = set(pc.unique(change.kept["file"]).drop_null().to_pylist())
        night = Night(
            id=night_id,
            base_version=table.version,
            checkpoint=self.checkpoint.digest,
            recipe=_digest_of(recipe),
            keys=keys,
            policy=self.config.policy,
            counts=change.counts,
            removed=tuple(sorted(leaving_files)),
            rewritten={
                path: f"runs/{night_id}/kept/{digest(path, num_bytes=8)}.parquet"
                for path in sorted(leaving_files)
                if path in staying_files
            },
        )
        for name, data in (("work", work), ("kept", kept), ("leaving", leaving)):
            storage.put(self._uri(night, f"{name}.parquet"), data)
        storage.put(self._uri(night, "night.json"), night.model_dump_json(indent=1).encode())
        storage.put(storage.join(self.config.table, PENDING), night.id.encode())
        self.reached("frozen")
        return night, change.counts

    def _carry_out(self, table: PublishedTable, night: Night, seconds: dict[str, float]) -> RefreshReport:
        """Generates, rewrites, audits, commits."""
        started = datetime.now(UTC)
        manifest = None
        clock = _Clock(seconds)
        with self.work.connected():
            if night.counts.work:
                manifest = self._generate(night)
            clock.stop("generate")
            self.reached("generated")
            rewritten = self.work.map(
                functools.partial(rewrite_file, self.config.table), self._rewrites(night)
            )
            clock.stop("rewrite")
            self.reached("rewritten")
            inspected = self.work.map(
                functools.partial(_inspect, self.config.table, night.run, self.blocklist),
                manifest.shards if manifest else (),
            )
        before = self._scores_before(table)
        scores = _with_cells(lowest_ids([item.scores for item in inspected]) if inspected else None, before)
        if scores is not None:
            storage.put(self._uri(night, "scores.parquet"), parquet_bytes(scores))
        findings = audit(
            self.config.audit,
            night.counts,
            manifest,
            self._num_requests(night),
            inspected,
            before,
            self.checkpoint,
            self.blocklist,
        )
        clock.stop("audit")
        added = [file for file in [*(item.file for item in inspected), *rewritten] if file.num_samples]
        report = night_report(self.config.table, night, manifest, added, table.files(), seconds)
        report = report.model_copy(
            update={
                "audit": tuple(findings),
                "started": started.isoformat(timespec="seconds"),
                "since": compare_reports(report, self._last_report(table)),
            }
        )
        if not all(finding.passed for finding in findings):
            self._refuse(
                night, report.model_copy(update={"status": "audit failed", "version": table.version})
            )
        self.reached("audited")
        ledger = next_ledger(self.config.table, night, manifest, {file.path for file in added})
        storage.put(self._uri(night, "ledger.parquet"), parquet_bytes(ledger))
        storage.put(self._uri(night, "refresh.json"), report.model_dump_json(indent=1).encode())
        publication = Publication(
            night=night.id, ledger=f"{night.folder}/ledger.parquet", content=table.version + 1
        )
        self.reached("recorded")
        self.lease.check()
        table.commit(publication, added, night.removed)
        self.reached("committed")
        self._finish(night)
        self.reached("reported")
        return report

    def _generate(self, night: Night) -> Manifest:
        config = self.config.generate_config(
            self._uri(night, "work.parquet"), storage.join(self.config.table, night.run)
        )
        # Of the pool, not of the night: one bad photograph among three new ones is no reason to publish nothing.
        rate = min(1.0, config.max_reject_rate * night.counts.listed / night.counts.work)
        config = config.model_copy(update={"max_reject_rate": rate})
        try:
            return self.work.generate(config, self.say)
        except PromiseError:
            self._give_up()
            raise

    def _rewrites(self, night: Night) -> list[Rewrite]:
        """Which normals leave which of the files that stay in part."""
        if not night.rewritten:
            return []
        leaving = read_ledger(self._uri(night, "leaving.parquet"))
        rows = leaving.filter(
            pc.is_in(leaving["file"], value_set=pa.array(list(night.rewritten), pa.string()))
        )
        of_file: dict[str, list[str]] = {path: [] for path in night.rewritten}
        for path, uri in zip(rows["file"].to_pylist(), rows["uri"].to_pylist(), strict=True):
            of_file[path].append(uri)
        return [Rewrite(path, night.rewritten[path], uris) for path, uris in of_file.items()]

    def _num_requests(self, night: Night) -> int:
        run = read_run(storage.join(self.config.table, night.run))
        return len(run.requests) if run else 0

    def _scores_before(self, table: PublishedTable) -> pa.Table | None:
        """The choice of scores of the version that this night is planned on."""
        publication = table.publication()
        if publication is None:
            return None
        try:
            uri = storage.join(self.config.table, f"_refresh/{publication.night}/scores.parquet")
            return pq.read_table(io.BytesIO(storage.read(uri)))
        except storage.ObjectMissingError:
            return None

    def _nothing(self, table: PublishedTable, counts: Counts) -> RefreshReport:
        report = RefreshReport(
            status="nothing to do",
            table=self.config.table,
            night=None,
            version=table.version,
            samples=sum(table.files().values()),
            checkpoint=self.checkpoint.digest,
            counts=counts,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        storage.put(storage.join(self.config.table, REPORT), report.model_dump_json(indent=1).encode())
        return report

    def _last_report(self, table: PublishedTable) -> RefreshReport | None:
        """The report of the night published before."""
        publication = table.publication()
        if publication is None:
            return None
        try:
            data = storage.read(storage.join(self.config.table, f"_refresh/{publication.night}/refresh.json"))
            return RefreshReport.model_validate_json(data)
        except (storage.ObjectMissingError, ValidationError):
            return None

    def _refuse(self, night: Night, report: RefreshReport) -> None:
        """Raises PromiseError for an audit that failed; the night is over."""
        data = report.model_dump_json(indent=1).encode()
        storage.put(self._uri(night, "refresh.json"), data)
        storage.put(storage.join(self.config.table, REPORT), data)
        self._give_up()
        for line in describe(report):
            self.say(line)
        failed = next(finding for finding in report.audit if not finding.passed)
        raise PromiseError(
            f"audit: {failed.rule}: {failed.figures}; nothing was published, {self.config.table} stays at version "
            f"{report.version}; look at {storage.join(self.config.table, night.run)}, mend the pool, the "
            "checkpoint or the rule, and run the same command again"
        )

    def _finish(self, night: Night) -> None:
        """What follows a commit; may be done twice."""
        storage.put(self._uri(night, MARK), b"")
        storage.put(storage.join(self.config.table, REPORT), storage.read(self._uri(night, "refresh.json")))
        storage.delete(storage.join(self.config.table, PENDING))

    def _give_up(self) -> None:
        storage.delete(storage.join(self.config.table, PENDING))

    def _clean(self) -> None:
        """Deletes what nights left behind that were never published and never will be."""
        table = existing_table(self.config.table)
        published = {publication.night for publication in table.versions().values()}
        in_use = {path.split("/")[1] for path in table.files()}
        stale = {
            night for night in all_nights(self.config.table) if int(night.split("-")[0]) <= table.version
        }
        for night in sorted(stale - published - in_use):
            if not storage.exists(storage.join(self.config.table, f"_refresh/{night}/{MARK}")):
                for folder in (f"runs/{night}", f"_refresh/{night}"):
                    delete_all(
                        [entry.uri for entry in storage.list_files(storage.join(self.config.table, folder))]
                    )

    def _uri(self, night: Night, name: str) -> str:
        return storage.join(self.config.table, night.folder, name)


class _Clock:
    """Seconds by step."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.last = time.monotonic()

    def stop(self, step: str) -> None:
        now = time.monotonic()
        self.seconds[step], self.last = now - self.last, now


def _inspect(table_uri: str, run: str, blocklist: frozenset[str], stats: ShardStats) -> Inspected:
    return inspect_file(table_uri, f"{run}/{stats.file}", stats, blocklist)


def _with_cells(tonight: pa.Table | None, before: pa.Table | None) -> pa.Table | None:
    """Tonight's scores, and for cells of which nothing was made tonight those of the night before."""
    if tonight is None or before is None:
        return before if tonight is None else tonight
    cells = {cell_of(row) for row in tonight.select(CELL).to_pylist()}
    others = pa.array([cell_of(row) not in cells for row in before.select(CELL).to_pylist()], pa.bool_())
    return pa.concat_tables([tonight, before.filter(others)])


def _look(
    config: RefreshConfig, checkpoint: Checkpoint, table: PublishedTable | None
) -> tuple[dict[str, str], Change]:
    """The pool against the table: each product's key, and what changed."""
    publication = table.publication() if table else None
    ledger = (
        read_ledger(storage.join(config.table, publication.ledger))
        if publication
        else LEDGER_SCHEMA.empty_table()
    )
    recipe = _recipe(config)
    pool = list_pool(recipe, checkpoint.config.products)
    keys = keys_of(recipe, checkpoint, sorted(pc.unique(pool["product"]).to_pylist()))
    return keys, compare(pool, ledger, keys, config.policy)


def _recipe(config: RefreshConfig) -> GenerateConfig:
    """The main job's recipe as it is for the whole pool."""
    return config.generate_config(config.pool, config.table)


def _digest_of(recipe: GenerateConfig) -> str:
    return digest(json.dumps(recipe.identity(), sort_keys=True))

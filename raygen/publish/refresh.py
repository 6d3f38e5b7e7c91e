"""The nightly refresh: find what changed, generate only that, audit it, publish it at once.

`raygen.publish.state` says what stands where.
"""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from raygen import storage
from raygen.checkpoint import Checkpoint, load_checkpoint
from raygen.config import check_writable
from raygen.data.runs import read_run
from raygen.errors import PromiseError
from raygen.generate.plan import choose_requests
from raygen.publish.arrow import pc
from raygen.publish.audit import Finding, audit_normals, audit_plan, audit_samples, read_blocklist
from raygen.publish.changes import Counts, by_product, read_ledger
from raygen.publish.config import RefreshConfig
from raygen.publish.execution import Clock, Executor, Made, forget_bad_shards, make_night
from raygen.publish.files import lowest_ids, merge_scores
from raygen.publish.lease import Lease
from raygen.publish.ledger import next_ledger
from raygen.publish.plan import freeze_night, is_wanted, look, recipe_of
from raygen.publish.report import RefreshReport, Status, compare_reports, describe, last_report, night_report
from raygen.publish.state import (
    LEASE,
    PENDING,
    REFUSED,
    REPORT,
    Night,
    delete_stale_nights,
    finish_night,
    pending_night,
    put_table,
)
from raygen.publish.table import Publication, PublishedTable, create_table, open_table

_MAX_ROUNDS = 2  # a night that was left over, and the one of now

Say = Callable[[str], None]


def refresh(
    config: RefreshConfig,
    say: Say = print,
    executor: Executor | None = None,
    reached: Callable[[str], None] = lambda step: None,
) -> RefreshReport:
    """Brings the table to what the pool is now; does nothing twice.

    Args:
        config: the recipe.
        say: takes each line for the user.
        executor: does the work; by default Ray.
        reached: is told each step that is done.

    Raises:
        UserError: a wrong config, pool, table or checkpoint; before any work starts.
        PromiseError: the audit fails, or more normals are bad than allowed: nothing is published.
        LeaseError: another refresh works on the table.
    """
    checkpoint = load_checkpoint(config.checkpoint)
    # From here on the very one: what is the best of a training may change while the night is under way.
    config = config.model_copy(update={"checkpoint": checkpoint.uri})
    choose_requests(recipe_of(config), checkpoint)
    blocklist = read_blocklist(config.audit.blocklist)
    check_writable(config.table)
    if executor is None:
        from raygen.publish.on_ray import OnRay  # here, so that a refusal or a no-op costs no start of Ray

        executor = OnRay()
    with Lease(storage.join(config.table, LEASE), config.lease_seconds) as lease:
        reached("leased")
        return _Refresh(config, checkpoint, blocklist, lease, executor, say, reached).run()


def dry_run(config: RefreshConfig, say: Say = print) -> None:
    """Says what `refresh` would do; writes nothing."""
    checkpoint = load_checkpoint(config.checkpoint)
    say(config.model_dump_json(indent=2))
    table = open_table(config.table)
    read_blocklist(config.audit.blocklist)
    _, change = look(config, checkpoint, table, say)
    counts, requests = change.counts, choose_requests(recipe_of(config), checkpoint)
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


@dataclass(frozen=True)
class _Refresh:
    """One call of `refresh`, with the lease held."""

    config: RefreshConfig
    checkpoint: Checkpoint
    blocklist: frozenset[str]
    lease: Lease
    executor: Executor
    say: Say
    reached: Callable[[str], None]

    def proceed(self, step: str) -> None:
        """A step before the commit is done: goes on if the lease is still ours."""
        self.lease.check()
        self.reached(step)

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
            published = self._carry_out(table, night, {"plan": time.monotonic() - started})
            report = published or report
            if not was_left_over:
                report = report or self._nothing(table, night.counts)
                break
        delete_stale_nights(self.config.table)
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
        if table.has_published(night.id):
            finish_night(self.config.table, night)  # the commit was its last deed
            return None
        if is_wanted(night, self.config, self.checkpoint, table):
            self.say(f"going on with night {night.id}, which an earlier refresh began")
            return night
        self.say(f"night {night.id}, which an earlier refresh began, is not what is wanted any more: dropped")
        storage.delete(storage.join(self.config.table, PENDING))
        return None

    def _plan(self, table: PublishedTable) -> tuple[Night | None, Counts]:
        """Finds what changed and freezes what is to be done about it.

        Raises:
            PromiseError: nothing has changed, but normals of the table stand on the blocklist by now.
        """
        keys, change = look(self.config, self.checkpoint, table, self.say)
        if not change.counts.work and not change.counts.removed:
            finding = audit_normals(self.blocklist, [change.kept])
            if not finding.passed:
                report = self._report(table, "audit failed", change.counts)
                self._refuse(report.model_copy(update={"audit": (finding,)}))
            return None, change.counts
        night = freeze_night(self.config, self.checkpoint, table, keys, change)
        self.lease.check()
        storage.put(storage.join(self.config.table, PENDING), night.id.encode())
        self.proceed("frozen")
        return night, change.counts

    def _carry_out(
        self, table: PublishedTable, night: Night, seconds: dict[str, float]
    ) -> RefreshReport | None:
        """Audits the plan, generates, rewrites, audits the samples, commits.

        Returns:
            The report; None if it came out that there was nothing to publish.
        """
        started = datetime.now(UTC).isoformat(timespec="seconds")
        held = table.files()
        made, findings = self._make(table, night, held, Clock(seconds))
        files = [*(item.file for item in made.inspected), *made.rewritten]
        added = [file for file in files if file.num_samples]
        report = night_report(self.config.table, night, made.manifest, added, held, seconds)
        report = report.model_copy(
            update={
                "audit": tuple(findings),
                "started": started,
                "images_per_second": made.images_per_second(seconds),
            }
        )
        report = report.model_copy(update={"since": compare_reports(report, last_report(table))})
        if not _all_pass(findings):
            table_stays = {"version": table.version, "samples": sum(held.values())}
            refused = report.model_copy(update={"status": "audit failed", **table_stays})
            self._refuse(refused, night, made)
        self.proceed("audited")
        paths = {file.path for file in added}
        ledger = next_ledger(self.config.table, night, made.manifest, paths, made.normals())
        if not added and not night.removed and len(ledger) == night.counts.held:
            self._give_up(night, made)  # all that was new could not be read: the next night looks again
            return None
        put_table(self._uri(night, "ledger.parquet"), ledger)
        storage.put(self._uri(night, "refresh.json"), report.model_dump_json(indent=1).encode())
        publication = Publication(
            night=night.id, ledger=f"{night.folder}/ledger.parquet", content=table.version + 1
        )
        self.proceed("recorded")
        table.commit(publication, added, night.removed)
        self.reached("committed")
        finish_night(self.config.table, night)
        self.reached("reported")
        return report

    def _make(
        self, table: PublishedTable, night: Night, held: Mapping[str, int], clock: Clock
    ) -> tuple[Made, list[Finding]]:
        """Asks the audit's rules, and has the work done between those that need it and those that do not."""
        rules = self.config.audit
        findings = audit_plan(rules, night.counts, self.checkpoint, self.blocklist)
        made = Made()
        if _all_pass(findings):
            try:
                made = make_night(self.config, night, held, self.executor, self.say, self.proceed, clock)
            except PromiseError as error:
                return made, [*findings, Finding(rule="work", passed=False, figures=str(error))]
            before, scores = self._scores_before(table), self._scores(night, made)
            put_table(self._uri(night, "scores.parquet"), merge_scores(scores, before, rules.min_samples))
            requests, inspected = self._num_requests(night), made.inspected
            findings += audit_samples(rules, night.counts, made.manifest, requests, inspected, scores, before)
            if rules.blocklist is not None:
                kept = read_ledger(self._uri(night, "kept.parquet"))
                findings.append(audit_normals(self.blocklist, [made.normals(), kept]))
        clock.stop("audit")
        return made, findings

    def _scores(self, night: Night, made: Made) -> pa.Table:
        """A choice of tonight's scores, with the key of what made each sample."""
        scores = lowest_ids([item.scores for item in made.inspected])
        return scores.append_column("key", by_product(scores["product"], night.keys))

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
        report = self._report(table, "nothing to do", counts)
        storage.put(storage.join(self.config.table, REPORT), report.model_dump_json(indent=1).encode())
        return report

    def _report(self, table: PublishedTable, status: Status, counts: Counts) -> RefreshReport:
        """The report of a night that made nothing."""
        return RefreshReport(
            status=status,
            table=self.config.table,
            night=None,
            version=table.version,
            samples=sum(table.files().values()),
            checkpoint=self.checkpoint.digest,
            counts=counts,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _refuse(
        self, report: RefreshReport, night: Night | None = None, made: Made | None = None
    ) -> NoReturn:
        """Leaves the report of an audit that failed, and raises its PromiseError; the night is over."""
        self.lease.check()
        data = report.model_dump_json(indent=1).encode()
        storage.put(storage.join(self.config.table, REPORT), data)
        folder = ""
        if night is not None and made is not None:
            storage.put(self._uri(night, "refresh.json"), data)
            storage.put(self._uri(night, REFUSED), b"")
            self._give_up(night, made)
            folder = f"look at {storage.join(self.config.table, night.run)}, " if made.manifest else ""
        for line in describe(report):
            self.say(line)
        failed = next(finding for finding in report.audit if not finding.passed)
        raise PromiseError(
            f"audit: {failed.rule}: {failed.figures}; nothing was published, {self.config.table} stays at version "
            f"{report.version}; {folder}mend the pool, the checkpoint or the rule, and run the same command again"
        )

    def _give_up(self, night: Night, made: Made) -> None:
        """Ends a night that is not published."""
        forget_bad_shards(self.config.table, night, made)
        pending = pending_night(self.config.table)
        if pending is not None and pending.id == night.id:  # else it is another refresh's
            storage.delete(storage.join(self.config.table, PENDING))

    def _uri(self, night: Night, name: str) -> str:
        return storage.join(self.config.table, night.folder, name)


def _all_pass(findings: Sequence[Finding]) -> bool:
    return all(finding.passed for finding in findings)

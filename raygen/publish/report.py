"""What a night did, for a machine (refresh.json) and for a person."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from raygen import storage
from raygen.data.runs import Manifest
from raygen.publish.audit import Finding
from raygen.publish.changes import Counts
from raygen.publish.state import Night
from raygen.publish.table import DataFile, PublishedTable
from raygen.show import duration

Status = Literal["published", "nothing to do", "audit failed"]


class Since(BaseModel):
    """Tonight less the night published before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int  # the other's
    work: int  # normals to generate for
    accepted: float | None  # shares of the samples asked for; null where one of both made none
    images_per_second: float | None


class RefreshReport(BaseModel):
    """refresh.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status
    table: str
    night: str | None  # its id; null if there was nothing to do
    version: int  # of the table, after all
    samples: int  # in the table
    checkpoint: str  # its digest
    counts: Counts
    asked: int = 0  # samples of tonight's usable normals
    made: int = 0  # of them, those that are samples now
    accepted: int = 0  # of those made, those that passed the gate
    refused: dict[str, int] = {}  # by the gate, whether dropped or kept all the same: by rule
    rejected: dict[str, int] = {}  # normals of no use, by reason
    files_added: int = 0
    files_removed: int = 0
    files_rewritten: int = 0  # of those removed, those whose other samples were written anew, or joined
    audit: tuple[Finding, ...] = ()
    started: str = ""  # ISO 8601, UTC
    seconds: dict[str, float] = {}  # by step; of a night that was resumed, those of the last attempt
    images_per_second: float | None = None  # of this attempt, by the seconds of the step that generated
    since: Since | None = None

    @property
    def accepted_share(self) -> float | None:
        return self.accepted / self.asked if self.asked else None


def night_report(
    table_uri: str,
    night: Night,
    manifest: Manifest | None,
    added: Sequence[DataFile],
    held: Mapping[str, int],
    seconds: Mapping[str, float],
) -> RefreshReport:
    """The report of a night that is to be published.

    Args:
        table_uri: the table's folder.
        night: what was to be done.
        manifest: of its run; None if nothing was to be generated.
        added: files that come.
        held: the files of the version before, and their samples.
        seconds: by step.
    """
    cells = manifest.cells if manifest else ()
    refused = sum((Counter(cell.reasons) for cell in cells), Counter[str]())
    made = manifest.num_samples if manifest else 0
    removed = set(night.removed)
    staying = sum(count for path, count in held.items() if path not in removed)
    return RefreshReport(
        status="published",
        table=table_uri,
        night=night.id,
        version=night.base_version + 1,
        samples=staying + sum(file.num_samples for file in added),
        checkpoint=night.checkpoint,
        counts=night.counts,
        asked=sum(cell.asked for cell in cells),
        made=made,
        accepted=sum(cell.accepted for cell in cells),
        refused=dict(refused.most_common()),
        rejected=manifest.rejects if manifest else {},
        files_added=len(added),
        files_removed=len(night.removed),
        files_rewritten=len(night.rewritten),
        seconds={step: round(value, 1) for step, value in seconds.items()},
    )


def last_report(table: PublishedTable) -> RefreshReport | None:
    """The report of the night that published a table's version."""
    publication = table.publication()
    if publication is None:
        return None
    try:
        data = storage.read(storage.join(table.uri, f"_refresh/{publication.night}/refresh.json"))
        return RefreshReport.model_validate_json(data)
    except (storage.ObjectMissingError, ValidationError):
        return None


def compare_reports(tonight: RefreshReport, before: RefreshReport | None) -> Since | None:
    """What changed since the night published before, if there was one."""
    if before is None or before.status != "published":
        return None

    def less(now: float | None, then: float | None) -> float | None:
        return None if now is None or then is None else round(now - then, 4)

    return Since(
        version=before.version,
        work=tonight.counts.work - before.counts.work,
        accepted=less(tonight.accepted_share, before.accepted_share),
        images_per_second=less(tonight.images_per_second, before.images_per_second),
    )


def describe(report: RefreshReport) -> Iterator[str]:
    """The lines for a person."""
    counts = report.counts
    yield (
        f"{counts.listed:,} normals listed: {counts.new:,} new, {counts.changed:,} changed, {counts.outdated:,} "
        f"of another checkpoint or recipe, {counts.kept:,} as they were; {counts.removed:,} gone"
        + (f", and of {counts.lingering:,} more samples stay (max_gone)" if counts.lingering else "")
    )
    if report.asked:
        yield (
            f"{report.made:,} samples of {report.asked:,} asked for, {report.accepted:,} accepted"
            f"{_by_reason(report.refused)}"
        )
    if report.rejected:
        yield f"{sum(report.rejected.values()):,} normals of no use{_by_reason(report.rejected)}"
    for finding in report.audit:
        yield f"audit: {finding.rule} {'holds' if finding.passed else 'FAILS'}: {finding.figures}"
    if report.seconds:
        steps = ", ".join(f"{step} {duration(seconds)}" for step, seconds in report.seconds.items())
        speed = f"; {report.images_per_second:.1f} images/s" if report.images_per_second else ""
        yield f"{steps}{speed}"
    if report.since is not None:
        since = report.since
        line = f"against version {since.version}: {since.work:+,} normals of work"
        line += f", accepted {100 * since.accepted:+.1f} points" if since.accepted is not None else ""
        line += f", {since.images_per_second:+.1f} images/s" if since.images_per_second is not None else ""
        yield line
    if report.status == "nothing to do":
        yield f"nothing to do: {report.table} stays at version {report.version} ({report.samples:,} samples)"
    elif report.status == "published":
        yield (
            f"{report.table}: version {report.version}, {report.samples:,} samples; {report.files_added:,} files "
            f"came, {report.files_removed:,} left ({report.files_rewritten:,} of them written anew or joined)"
        )


def _by_reason(reasons: dict[str, int]) -> str:
    return f" ({', '.join(f'{count:,} {reason}' for reason, count in reasons.items())})" if reasons else ""

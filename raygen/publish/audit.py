"""The audit: what must hold before a night's samples become part of the table."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict
from scipy.stats import ks_2samp

from raygen import storage
from raygen.checkpoint import Checkpoint
from raygen.data.runs import Manifest
from raygen.errors import UserError
from raygen.publish.arrow import pc
from raygen.publish.changes import Counts
from raygen.publish.config import AuditConfig
from raygen.publish.files import CELL, Inspected
from raygen.records import SCORES

_FEW = 5  # names that a finding spells out


class Finding(BaseModel):
    """What became of one rule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str  # its key in the recipe; or "whole"
    passed: bool
    figures: str  # for a person


def audit_plan(
    config: AuditConfig, counts: Counts, checkpoint: Checkpoint, blocklist: frozenset[str]
) -> list[Finding]:
    """Asks the rules that need no samples, before any are made."""
    findings = [_removed(config, counts)]
    if config.blocklist is not None:
        findings.append(_references(checkpoint, blocklist))
    return findings


def audit_samples(
    config: AuditConfig,
    counts: Counts,
    manifest: Manifest | None,
    num_requests: int,
    inspected: Sequence[Inspected],
    scores: pa.Table,
    before: pa.Table | None,
) -> list[Finding]:
    """Asks the rules of what was made.

    Args:
        config: the rules.
        counts: what changed.
        manifest: of tonight's run; None if nothing was to be generated.
        num_requests: samples asked for each normal.
        inspected: its files.
        scores: a choice of tonight's (`files.lowest_ids`), with the `key` of what made each sample.
        before: that of the nights published before, if there is one.
    """
    findings = []
    if manifest is not None:
        findings += [
            _whole(counts, manifest, num_requests, inspected),
            _rejected(config, manifest),
            _accepted(config, manifest),
        ]
        if before is not None:
            findings.append(_scores(config, scores, before))
    return findings


def audit_normals(blocklist: frozenset[str], normals: Sequence[pa.Table]) -> Finding:
    """No normal is an image that is kept for judging.

    Args:
        blocklist: the hashes of those.
        normals: tables with `uri` and `sha256` (bytes) of the normals of tonight, and of those that stay.
    """
    hashes = pa.array([bytes.fromhex(sha256) for sha256 in blocklist], pa.binary(32))
    found = [
        table.filter(pc.is_in(table["sha256"], value_set=hashes))["uri"].to_pylist() for table in normals
    ]
    blocked = sorted({uri for uris in found for uri in uris})
    figures = _some(f"normal {uri}" for uri in blocked)
    figures += f" ({len(blocked):,} in all)" if blocked else "none of the normals is on it"
    return Finding(rule="blocklist", passed=not blocked, figures=figures)


def read_blocklist(uri: str | None) -> frozenset[str]:
    """The hashes of a blocklist.

    Raises:
        UserError: it is gone, or a line of it does not begin with a SHA-256.
    """
    if uri is None:
        return frozenset()
    try:
        lines = storage.read(uri).decode(errors="replace").splitlines()
    except storage.ObjectMissingError:
        raise UserError(f"audit.blocklist {uri}: no such file") from None
    hashes = set()
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            match = re.match(r"([0-9a-fA-F]{64})(\s|$)", line)
            if not match:
                raise UserError(
                    f"audit.blocklist {uri}: line {number} does not begin with a SHA-256; see sha256sum"
                )
            hashes.add(match[1].lower())
    return frozenset(hashes)


def _removed(config: AuditConfig, counts: Counts) -> Finding:
    held = counts.removed + counts.held + counts.changed + counts.outdated
    share = counts.removed / held if held else 0.0
    figures = f"{counts.removed:,} of the table's {held:,} normals leave ({share:.1%}"
    figures += f"; at most {config.max_removed:.1%})"
    return Finding(rule="max_removed", passed=share <= config.max_removed, figures=figures)


def _whole(counts: Counts, manifest: Manifest, num_requests: int, inspected: Sequence[Inspected]) -> Finding:
    """Every normal of the plan has its samples in a file, or its place among the rejects."""
    rejected = sum(manifest.rejects.values())
    made = sum(cell.accepted + cell.kept for cell in manifest.cells)
    asked = made + sum(cell.dropped for cell in manifest.cells)
    in_files = sum(item.file.num_samples for item in inspected)
    problems = [item.problem for item in inspected if item.problem]
    for what, is_so in (
        (
            f"{manifest.num_normals:,} normals planned for {counts.work:,}",
            manifest.num_normals == counts.work,
        ),
        (f"{in_files:,} samples in files for {manifest.num_samples:,}", in_files == manifest.num_samples),
        ("the cells do not add up to the samples", made == manifest.num_samples),
        ("normals and samples asked for do not add up", asked == (counts.work - rejected) * num_requests),
    ):
        if not is_so:
            problems.append(what)
    figures = (
        _some(problems) or f"{in_files:,} samples in {len(inspected):,} files, {rejected:,} normals rejected"
    )
    return Finding(rule="whole", passed=not problems, figures=figures)


def _accepted(config: AuditConfig, manifest: Manifest) -> Finding:
    judged = [cell for cell in manifest.cells if cell.asked >= config.min_samples]
    shares = {"/".join(cell.cell): cell.accepted / cell.asked for cell in judged}
    low = {name: share for name, share in shares.items() if share < config.min_accepted}
    if low:
        figures = _some(f"{name}: {share:.1%} accepted" for name, share in low.items())
        figures += f" (at least {config.min_accepted:.1%})"
    else:
        worst = min(shares.values(), default=1.0)
        figures = f"{len(judged)} cells judged, the worst {worst:.1%} accepted"
    return Finding(rule="min_accepted", passed=not low, figures=figures)


def _scores(config: AuditConfig, scores: pa.Table, before: pa.Table) -> Finding:
    """Each score of each cell against the night before's; where another checkpoint or recipe made them, by a limit
    of its own."""
    worst, where, apart, num_compared, num_anew = 0.0, "", [], 0, 0
    old = _by_cell(before)
    for cell, now in _by_cell(scores).items():
        is_anew = cell in old and now["key"][0] != old[cell]["key"][0]
        limit = config.max_score_shift_anew if is_anew else config.max_score_shift
        for score in SCORES if cell in old else ():
            values = [pc.drop_null(rows[score]).to_numpy() for rows in (now, old[cell])]
            if min(map(len, values)) < config.min_samples:
                continue
            compared: Any = ks_2samp(*values, method="asymp")
            distance = float(compared.statistic)
            num_compared += 1
            num_anew += is_anew
            if distance > worst:
                worst, where = distance, f"{'/'.join(cell)} {score}"
            if distance > limit:
                medians = " -> ".join(f"{np.median(part):.3g}" for part in reversed(values))
                apart.append(
                    f"{'/'.join(cell)} {score}: {distance:.2f} (median {medians}; at most {limit:g})"
                )
    if apart:
        figures = f"{_some(apart)} from the night before"
    else:
        figures = f"{num_compared} distributions compared"
        figures += f", {num_anew} of them of another checkpoint or recipe" if num_anew else ""
        figures += f", the farthest {worst:.2f}: {where}" if where else ""
    return Finding(rule="max_score_shift", passed=not apart, figures=figures)


def _by_cell(rows: pa.Table) -> dict[tuple[str, ...], pa.Table]:
    places: dict[tuple[str, ...], list[int]] = {}
    for place, cell in enumerate(zip(*(rows[name].to_pylist() for name in CELL), strict=True)):
        places.setdefault(cell, []).append(place)
    return {cell: rows.take(indices) for cell, indices in places.items()}


def _rejected(config: AuditConfig, manifest: Manifest) -> Finding:
    count, total = sum(manifest.rejects.values()), manifest.num_normals
    passed = total < config.min_samples or count / total <= config.max_rejected
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in manifest.rejects.items())
    figures = f"{count:,} of {total:,} normals are of no use" + (f" ({reasons})" if reasons else "")
    return Finding(
        rule="max_rejected", passed=passed, figures=f"{figures}; at most {config.max_rejected:.1%}"
    )


def _references(checkpoint: Checkpoint, blocklist: frozenset[str]) -> Finding:
    """No reference is one."""
    references, unread = _blocked([item.uri for item in checkpoint.references], blocklist)
    problems = [f"reference {uri}" for uri in references]
    problems += [f"reference {uri} cannot be read, so nobody knows" for uri in unread]
    asked = f"none of {len(checkpoint.references):,} references is on it ({len(blocklist):,} hashes)"
    return Finding(rule="blocklist", passed=not problems, figures=_some(problems) or asked)


def _blocked(uris: Sequence[str], blocklist: frozenset[str]) -> tuple[list[str], list[str]]:
    """The images that are on the blocklist, and those that cannot be read."""

    def look(uri: str) -> bool | None:
        try:
            return hashlib.sha256(storage.read(uri)).hexdigest() in blocklist
        except (storage.ObjectMissingError, UserError):
            return None

    with ThreadPoolExecutor(16) as threads:
        answers = dict(zip(uris, threads.map(look, uris), strict=True))
    return [uri for uri, found in answers.items() if found], [
        uri for uri, found in answers.items() if found is None
    ]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return "; ".join(listed[:_FEW]) + (f"; and {len(listed) - _FEW} more" if len(listed) > _FEW else "")

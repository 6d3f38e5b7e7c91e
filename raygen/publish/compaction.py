"""Which files of the table are written anew tonight: those that some normals leave, and small ones, joined."""

from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa

from raygen.publish.changes import Change


def files_anew(
    held: Mapping[str, int], change: Change, full: int, compact_files: int
) -> list[tuple[str, ...]]:
    """The files that are written anew, those of a group as one.

    A small file holds less than half of a full one. Where there are `compact_files` of them, they are joined to
    files of up to a full one's samples: each sample is written anew a few times in its life, and the table keeps
    fewer small files than that.

    Args:
        held: the table's files, and their samples.
        change: what leaves and what stays.
        full: samples of a shard.
        compact_files: so many small files are joined; 0: never.
    """
    left, kept = _normals(change.leaving), _normals(change.kept)
    sizes = {
        path: round(count * kept[path] / (kept[path] + left.get(path, 0)))
        for path, count in held.items()
        if path in kept
    }
    small = sorted(path for path, size in sizes.items() if size < full / 2)  # by the nights that made them
    groups = list(_groups(small, sizes, full)) if 0 < compact_files <= len(small) else []
    joined = {path for group in groups for path in group}
    return groups + [(path,) for path in sorted(sizes) if path in left and path not in joined]


def _normals(rows: pa.Table) -> dict[str, int]:
    """File -> how many normals of some rows of a ledger it holds."""
    counts = rows.group_by("file").aggregate([([], "count_all")])
    return dict(zip(counts["file"].to_pylist(), counts["count_all"].to_pylist(), strict=True))


def _groups(paths: Iterable[str], sizes: Mapping[str, int], full: int) -> Iterator[tuple[str, ...]]:
    """Neighbours of up to `full` samples in all; none that is alone."""
    group: list[str] = []
    for path in paths:
        if sum(sizes[one] for one in group) + sizes[path] > full:
            if len(group) > 1:
                yield tuple(group)
            group = []
        group.append(path)
    if len(group) > 1:
        yield tuple(group)

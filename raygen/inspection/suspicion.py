"""What is suspicious about photos: each by itself, held against its like, and held against all others."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from raygen.data.likeness import alike
from raygen.inspection.look import Seen
from raygen.records import NORMAL

REASONS: dict[str, str] = {
    "unreadable": "cannot be read",
    "same file, other split": "is the same file as",
    "same file, other type": "is the same file as",
    "bad mask": "has a mask that cannot be its own",
    "nearly the same, other split": "is nearly the same picture as",
    "looks like a mask": "has two grey values alone",
    "nearly black": "is nearly black",
    "nearly white": "is nearly white",
    "no mask": "has no mask, as most of its type have",
    "cannot be seen": "hardly differs within its mask from what is around it",
    "large mask": "has a mask of more than half of it",
    "tiny mask": "has a mask of hardly any pixel",
    "other size": "has another size than most of its product",
    "other kind": "is another kind of file than most of its product",
    "same file": "is the same file as",
}
"""Kinds of suspicion, the worst first -> how they are said."""

_MOST_COMPARED = 20_000


class Suspicion(NamedTuple):
    """One of a photo."""

    photo: int  # its number
    kind: str  # of REASONS
    detail: str

    def __str__(self) -> str:
        return f"{REASONS[self.kind]} {self.detail}".rstrip()


def suspect(photos: Sequence[Seen]) -> list[Suspicion]:
    """All suspicions, the worst first."""
    found = [*_by_themselves(photos), *_among_their_like(photos), *_same_files(photos), *_alike(photos)]
    order = list(REASONS)
    return sorted(found, key=lambda one: (order.index(one.kind), one.photo))


def _by_themselves(photos: Sequence[Seen]) -> list[Suspicion]:
    found = []
    for number, seen in enumerate(photos):
        if seen.error:
            found.append(Suspicion(number, "unreadable", f"({seen.error})"))
            continue
        if seen.mask_error:
            found.append(Suspicion(number, "bad mask", f"({seen.mask_error})"))
        if seen.num_values == 2:
            found.append(Suspicion(number, "looks like a mask", ""))
        elif seen.mean is not None and seen.mean < 8:
            found.append(Suspicion(number, "nearly black", f"(mean {seen.mean:.1f} of 255)"))
        elif seen.mean is not None and seen.mean > 247:
            found.append(Suspicion(number, "nearly white", f"(mean {seen.mean:.1f} of 255)"))
        if seen.mask_share is not None and seen.width and seen.height:
            if seen.mask_share > 0.5:
                found.append(Suspicion(number, "large mask", f"({seen.mask_share:.0%})"))
            if seen.mask_share * seen.width * seen.height < 4:
                found.append(Suspicion(number, "tiny mask", f"({seen.mask_share:.2%})"))
        if seen.contrast is not None and abs(seen.contrast) < 1.5 and abs(seen.roughness or 0) < 1.5:
            found.append(Suspicion(number, "cannot be seen", f"({seen.contrast:+.1f} grey levels)"))
    return found


def _among_their_like(photos: Sequence[Seen]) -> list[Suspicion]:
    sizes: dict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    masked: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for seen in photos:
        if seen.width and seen.height and seen.kind:
            sizes[seen.product][seen.width, seen.height] += 1
            kinds[seen.product][seen.kind] += 1
            masked[seen.product, seen.defect_type].append(seen.has_mask)
    found = []
    for number, seen in enumerate(photos):
        if not (seen.width and seen.height and seen.kind):
            continue
        [(size, count)] = sizes[seen.product].most_common(1)
        if (seen.width, seen.height) != size and count > 0.8 * sizes[seen.product].total():
            found.append(
                Suspicion(number, "other size", f"({seen.width}×{seen.height}, not {size[0]}×{size[1]})")
            )
        [(kind, count)] = kinds[seen.product].most_common(1)
        if seen.kind != kind and count > 0.8 * kinds[seen.product].total():
            found.append(Suspicion(number, "other kind", f"({seen.kind}, not {kind})"))
        its_like = masked[seen.product, seen.defect_type]
        if seen.defect_type != NORMAL and not seen.has_mask and np.mean(its_like) > 0.5:
            found.append(Suspicion(number, "no mask", ""))
    return found


def _same_files(photos: Sequence[Seen]) -> list[Suspicion]:
    """Photos of the same bytes; one that shows two types stands there twice, and is no copy of itself."""
    first: dict[str, int] = {}
    found = []
    for number, seen in enumerate(photos):
        if seen.sha256 is None:
            continue
        other = photos[first.setdefault(seen.sha256, number)]
        if other.uri == seen.uri:
            continue
        if other.split != seen.split:
            kind = "same file, other split"
        elif (other.product, other.defect_type) != (seen.product, seen.defect_type):
            kind = "same file, other type"
        else:
            kind = "same file"
        found.append(Suspicion(number, kind, _named(other)))
    return found


def _alike(photos: Sequence[Seen]) -> list[Suspicion]:
    """Pictures of one thing in two splits, see `raygen.data.likeness`."""
    rows = [number for number, seen in enumerate(photos) if seen.thumbnail][:_MOST_COMPARED]
    if len({photos[number].split for number in rows}) < 2:
        return []
    found = []
    for later, earlier, likeness in alike(
        np.stack([np.frombuffer(photos[number].thumbnail or b"", np.float16) for number in rows])
    ):
        one, other = photos[rows[later]], photos[rows[earlier]]
        if one.split != other.split and one.sha256 != other.sha256:
            detail = f"{_named(other)} ({likeness:.0%} alike)"
            found.append(Suspicion(rows[later], "nearly the same, other split", detail))
    return found


def _named(seen: Seen) -> str:
    return f"{seen.uri} ({'/'.join(filter(None, (seen.split, seen.product, seen.defect_type)))})"

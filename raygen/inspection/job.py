"""What raygen sees of a defect set or a pool: told, drawn and written down."""

import io
import itertools
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raygen import images, storage
from raygen.config import check_writable
from raygen.data.annotations import read_annotations
from raygen.data.defects import read_mask, read_photo
from raygen.data.mask_files import suffix_of
from raygen.data.metadata import METADATA
from raygen.data.photo import Photo
from raygen.data.pixel_ranges import PixelRanges
from raygen.data.pool import index_pool, is_drawn, read_normals
from raygen.data.set_as_pool import recognise_set
from raygen.errors import BadImageError, UserError
from raygen.inspection.config import InspectConfig
from raygen.inspection.look import Seen, look
from raygen.inspection.suspicion import Suspicion, suspect
from raygen.records import NORMAL
from raygen.show import Outlined, draw_sheet, size

SHEET, PHOTOS = "sheet.png", "photos.parquet"
_LINES, _ACROSS, _PICTURE, _MAX_GROUPS = 20, 8, 160, 24
_FIRST_FILES = 2000  # of a folder, by whose names a defect set is known

Say = Callable[[str], None]


def inspect(config: InspectConfig, say: Say = print) -> list[Suspicion]:
    """Says what is there, the suspicious first; writes a sheet and a table.

    Returns:
        What is suspicious.

    Raises:
        UserError: nothing there can be read, or the output cannot be written.
    """
    check_writable(config.output)
    in_pool = not _is_defect_set(config.defects)
    photos = _sample(config, say) if in_pool else _survey(config, say)
    seen = _look_at_all(config, photos, in_pool)
    _tell_cells(seen, say)
    _tell_files(seen, say)
    found = suspect(seen)
    names = _tell_suspicions(seen, found, say)
    storage.put(storage.join(config.output, PHOTOS), _table(seen, found))
    storage.put(storage.join(config.output, SHEET), _sheet(photos, found, in_pool))
    say(f"look at {storage.join(config.output, SHEET)}; all that was seen is in {PHOTOS} beside it")
    say(f"{names:,} of {len(seen):,} photos are suspicious")
    return found


def _is_defect_set(uri: str) -> bool:
    """Whether a place is one, or a pool: by its folders, its first files, annotations or a metadata.csv."""
    uri = storage.normalize(uri)
    if is_drawn(uri):
        raise UserError(f"{uri}: seeds are no photographs; name a folder or a manifest")
    if uri.lower().endswith((".csv", ".parquet")):
        return False
    if recognise_set(uri) or storage.exists(f"{uri}/{METADATA}"):
        return True
    first = list(itertools.islice(storage.list_files(uri), _FIRST_FILES))
    stems = (entry.uri.rpartition("/")[2].rpartition(".")[0] for entry in first)
    return any(suffix_of(stem) for stem in stems) or read_annotations(uri, first) is not None


def _survey(config: InspectConfig, say: Say) -> list[Photo]:
    found = config.survey(needed=())  # a set of defects alone can be looked at, too
    for note in found.notes:
        say(note)
    return list(found.photos)


def _sample(config: InspectConfig, say: Say) -> list[Photo]:
    """Some of a pool's normals, each as likely as any."""
    draw = random.Random(0)
    ranges, products = PixelRanges(config.max_pixels), Counter[str]()
    kept: list[tuple[int, Photo]] = []
    for number, normal in enumerate(index_pool(config.defects, say=say)):
        ranges.add(normal)
        products[normal.product] += 1
        photo = Photo(normal.uri, normal.product, NORMAL, None, "", normal.etag)
        if number < config.sample:
            kept.append((number, photo))
        elif (place := draw.randrange(number + 1)) < config.sample:
            kept[place] = (number, photo)
    counts = ", ".join(f"{product} {count:,}" for product, count in sorted(products.items())[:_LINES])
    say(f"a pool of {products.total():,} normals: {counts}{' …' if len(products) > _LINES else ''}")
    chosen = ranges.choose(config.defects, say)
    if len(kept) < products.total():
        say(f"looked into: {len(kept):,} of them, at random")
    photos = [photo for _, photo in sorted(kept)]
    if not chosen:
        return photos
    return [photo._replace(pixel_range=chosen.get(photo.product, chosen[""])) for photo in photos]


def _look_at_all(config: InspectConfig, photos: Sequence[Photo], in_pool: bool) -> list[Seen]:
    if len(photos) > config.ray_above:
        from raygen.inspection.on_ray import look_at_all  # here: it starts a Ray

        return look_at_all(photos, config.max_pixels, in_pool)
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda photo: look(photo, config.max_pixels, in_pool), photos))


# ----------------------------------------------------------------------------------------------- told


def _tell_cells(seen: Sequence[Seen], say: Say) -> None:
    cells: dict[tuple[str, str, str], list[Seen]] = defaultdict(list)
    for one in seen:
        cells[one.product, one.defect_type, one.split].append(one)
    rows = [("product", "type", "split", "photos", "masks", "mask, median", "contrast, median")]
    order = sorted(cells.items(), key=lambda cell: (cell[0][0], cell[0][1] != NORMAL, cell[0][1:]))
    for (product, kind, split), own in order:
        masked = [one for one in own if one.has_mask]
        share = _median(one.mask_share for one in masked)
        contrast = _median(one.contrast for one in masked)
        rows.append(
            (
                product,
                kind,
                split or "-",
                f"{len(own):,}",
                f"{len(masked):,}",
                "" if share is None else f"{share:.2%}",
                "" if contrast is None else f"{contrast:+.0f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells_of = (
            text.ljust(width) if column < 3 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        say("  ".join(cells_of).rstrip())


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _tell_files(seen: Sequence[Seen], say: Say) -> None:
    for what, counts in (
        ("files", Counter(one.kind for one in seen if one.kind)),
        ("sizes", Counter(f"{one.width}×{one.height}" for one in seen if one.width)),
    ):
        told = [f"{count:,} × {name}" for name, count in counts.most_common(6)]
        say(f"{what}: {'; '.join(told)}{' …' if len(counts) > 6 else ''}")
    say(f"in all {size(sum(one.num_bytes or 0 for one in seen))}")


def _tell_suspicions(seen: Sequence[Seen], found: Sequence[Suspicion], say: Say) -> int:
    """Says the worst; returns how many photos there are any of."""
    for kind, group in itertools.groupby(found, key=lambda one: one.kind):
        some = list(group)
        say(f"{kind}: {len(some):,}")
        for one in some[:3]:
            say(f"    {seen[one.photo].uri} {one}")
    return len({one.photo for one in found})


# ----------------------------------------------------------------------------------------------- written


def _table(seen: Sequence[Seen], found: Sequence[Suspicion]) -> bytes:
    reasons: dict[int, list[str]] = defaultdict(list)
    for one in found:
        reasons[one.photo].append(f"{one.kind}: {one}")
    rows = [one._asdict() | {"suspicions": reasons[number]} for number, one in enumerate(seen)]
    table = pa.Table.from_pylist(rows).drop_columns(["thumbnail"])
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def _sheet(photos: Sequence[Photo], found: Sequence[Suspicion], in_pool: bool) -> bytes:
    """Suspicious photos by their reasons, the worst first; then some of each product and type; masks outlined."""
    groups: dict[str, list[int]] = {}
    for one in found:
        groups.setdefault(f"SUSPICIOUS: {one.kind}", []).append(one.photo)
    cells: dict[str, list[int]] = {}
    for number, photo in enumerate(photos):
        cells.setdefault(f"{photo.product} {photo.defect_type}", []).append(number)
    drawn: dict[str, list[list[np.ndarray | Outlined | None]]] = {}
    for name, numbers in itertools.islice((groups | dict(sorted(cells.items()))).items(), _MAX_GROUPS):
        step = max(1, len(numbers) // _ACROSS)
        some = numbers[:_ACROSS] if name in groups else numbers[::step][:_ACROSS]
        drawn[f"{name} ({len(numbers):,})"] = [[_picture(photos[number], in_pool) for number in some]]
    return draw_sheet([""] * _ACROSS, drawn, _PICTURE)


def _picture(photo: Photo, in_pool: bool) -> "np.ndarray | Outlined | None":
    try:
        if in_pool:
            (raw,) = read_normals([photo.uri], [photo.etag], 1)
            pixels = images.decode_photo(raw.data or b"", 2**28, pixel_range=photo.pixel_range)
        else:
            pixels = read_photo(photo)
    except (BadImageError, UserError):
        return None
    small = images.fit(pixels, _PICTURE)
    if photo.mask_uri is None:
        return small
    try:
        return Outlined(small, images.fit_mask(read_mask(photo), (_PICTURE, _PICTURE)))
    except UserError:
        return small

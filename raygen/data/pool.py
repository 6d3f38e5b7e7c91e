"""The pool: a large set of normals in storage, listed as a stream and read one by one."""

import functools
import hashlib
import re
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raygen import storage
from raygen.data.manifests import as_text, open_parquet, read_csv, read_parquet
from raygen.data.set_as_pool import list_normals, recognise_set
from raygen.errors import UserError
from raygen.images import EXTENSIONS, BadImageError
from raygen.records import check_name


class Normal(NamedTuple):
    """One normal as the pool lists it. `uri` names a file, or `file.parquet#row`."""

    uri: str
    product: str
    size: int  # bytes; -1 where the listing does not tell
    etag: str | None


SEEDS = "seeds:"


def is_drawn(pool_uri: str) -> bool:
    """Whether the pool is a range of seeds, whose normals a generator draws itself."""
    return pool_uri.startswith(SEEDS)


def seed_of(normal_uri: str) -> int:
    """The seed of a normal that is drawn."""
    return int(normal_uri.removeprefix("seed:"))


def drawn_sha256(normal_uri: str, product: str) -> str:
    """What stands for the content of a normal that is drawn: its seed and product decide it."""
    return hashlib.sha256(f"{product}/{normal_uri}".encode()).hexdigest()


Say = Callable[[str], None]


def index_pool(
    pool_uri: str, product: str | None = None, products: Sequence[str] = (), say: Say = lambda _: None
) -> Iterator[Normal]:
    """Streams the normals of a pool in a fixed order. Of a pool that is a defect set it takes the normals that are
    not held out, and says so.

    Args:
        pool_uri: a folder of images (`{product}/**/*.png` …) or of Parquet files with an `image` column and a
            `product` column; one such Parquet file; a Parquet or CSV manifest with `uri, product`; or
            `seeds:FIRST-END`, normals that a generator draws.
        product: the product of every normal, where neither folders nor a column tell it.
        products: those that take turns, where a generator draws the normals.
        say: takes a line for the user.

    Raises:
        UserError: a missing or empty pool, an image without a product, or one that looks like a mask; a manifest
            without its columns, or with a URI that is none, or stands in it twice; a product that is no name.
    """
    pool_uri = storage.normalize(pool_uri)
    if is_drawn(pool_uri):
        normals = _index_seeds(pool_uri, [product] if product else products)
    elif pool_uri.lower().endswith(".csv"):
        normals = _index_manifest(pool_uri, functools.partial(read_csv, pool_uri), product)
    elif pool_uri.lower().endswith(".parquet"):
        try:
            entry = storage.stat(pool_uri)
        except storage.ObjectMissingError:
            raise UserError(f"pool {pool_uri}: no such file") from None
        with open_parquet(pool_uri) as file:
            is_manifest = "uri" in file.schema_arrow.names
        normals = (
            _index_manifest(pool_uri, functools.partial(read_parquet, pool_uri), product)
            if is_manifest
            else _index_images(entry, product)
        )
    else:
        normals = _index_folder(pool_uri, product, say)
    seen: set[str] = set()
    for normal in normals:
        if normal.product not in seen:
            seen.add(check_name("product", normal.product, f"pool {pool_uri}"))
        yield normal
    if not seen:
        kinds = " ".join(extension.removeprefix(".") for extension in EXTENSIONS)
        raise UserError(f"pool {pool_uri}: no images there; expected {{product}}/**/*.({kinds} parquet)")


def _index_seeds(pool_uri: str, products: Sequence[str]) -> Iterator[Normal]:
    match = re.fullmatch(rf"{SEEDS}(\d+)-(\d+)", pool_uri)
    if not match or int(match[1]) >= int(match[2]) or int(match[2]) > 2**63:
        raise UserError(f"pool {pool_uri}: write {SEEDS}FIRST-END, say {SEEDS}0-1000000 for a million")
    for seed in range(int(match[1]), int(match[2])):
        yield Normal(f"seed:{seed}", products[seed % len(products)], 0, None)


def _index_folder(pool_uri: str, product: str | None, say: Say) -> Iterator[Normal]:
    known = recognise_set(pool_uri)
    if known:
        for entry, name in list_normals(pool_uri, *known, say):
            yield Normal(entry.uri, product or name, entry.size, entry.etag)
        return
    for entry in storage.list_files(pool_uri):
        name = entry.uri.lower()
        if name.endswith(".parquet"):
            yield from _index_images(entry, product)
        elif name.endswith(EXTENSIONS):
            folder, slash, file = entry.uri.removeprefix(f"{pool_uri}/").partition("/")
            if not slash and product is None:
                raise UserError(
                    f"pool {pool_uri}: {entry.uri} stands in no product folder; move it to {{product}}/, "
                    "or set product=… for the whole pool"
                )
            if ("mask" in name or "_gt" in name) and _MASK.search(file or folder):
                raise UserError(
                    f"pool {pool_uri}: {entry.uri} looks like a mask, so others may be defects; move them "
                    "elsewhere, or name the normals in a manifest"
                )
            yield Normal(entry.uri, product or folder, entry.size, entry.etag)


_MASK = re.compile(r"_(mask|gt)\.\w+$", re.IGNORECASE)


def _index_images(entry: storage.Entry, product: str | None) -> Iterator[Normal]:
    """The rows of a Parquet file with an `image` column, by their numbers."""
    with open_parquet(entry.uri) as file:
        names = file.schema_arrow.names
        if "image" not in names:
            raise UserError(
                f"pool {entry.uri}: no `image` column among {names}; name a manifest itself as the pool"
            )
        if "product" not in names and product is None:
            raise UserError(f"pool {entry.uri}: no `product` column; add one, or set product=…")
        row = 0
        for batch in file.iter_batches(columns=[] if product else ["product"]):
            for name in _products(batch, product, entry.uri):
                yield Normal(f"{entry.uri}#{row}", name, -1, entry.etag)
                row += 1


def _index_manifest(
    manifest_uri: str, read: Callable[[], Iterator[pa.Table]], product: str | None
) -> Iterator[Normal]:
    """The rows of a table with `uri`, `product` and, where reads shall be conditional, `etag`, which `read` gives
    part by part. Eight bytes of a row are kept, to see at the end that no URI stands twice."""
    base_uri = manifest_uri.rpartition("/")[0] or "."
    seen = array("q")
    for table in read():
        names = table.column_names
        if "uri" not in names or ("product" not in names and product is None):
            raise UserError(f"pool {manifest_uri}: needs the columns uri and product, has {names}")
        for batch in as_text(table, manifest_uri).to_batches():
            etags = batch.column("etag").to_pylist() if "etag" in names else [None] * batch.num_rows
            uris = batch.column("uri").to_pylist()
            for name, of, etag in zip(uris, _products(batch, product, manifest_uri), etags, strict=True):
                uri = _uri_of(name, base_uri, manifest_uri)
                seen.append(hash(storage.spelt_out(uri)))
                yield Normal(uri, of, -1, etag or None)
    hashes = np.frombuffer(seen, np.int64)
    hashes.sort()
    if suspects := set(hashes[1:][hashes[1:] == hashes[:-1]].tolist()):
        _refuse_repeated(manifest_uri, base_uri, read(), suspects)


def _refuse_repeated(
    manifest_uri: str, base_uri: str, tables: Iterable[pa.Table], suspects: Collection[int]
) -> None:
    """Raises UserError if of the URIs with these hashes one stands twice; two others may have the same hash."""
    seen: set[str] = set()
    for table in tables:
        for name in as_text(table, manifest_uri)["uri"].to_pylist():
            uri = _uri_of(name, base_uri, manifest_uri)
            place = storage.spelt_out(uri)
            if place in seen:
                raise UserError(f"pool {manifest_uri}: {uri} stands in it twice; keep one row per normal")
            if hash(place) in suspects:
                seen.add(place)


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _uri_of(name: str | None, base_uri: str, manifest_uri: str) -> str:
    """The URI that a row of a manifest names."""
    if not name:
        raise UserError(f"pool {manifest_uri}: a row without a uri; drop it")
    if _CONTROL.search(name):
        raise UserError(
            f"pool {manifest_uri}: {name!r} holds signs that no file's name has; write the URI as it is"
        )
    if ".parquet#" in name.lower() and not _is_row(name) and not name.lower().endswith(EXTENSIONS):
        raise UserError(f"pool {manifest_uri}: {name!r} names no row; write file.parquet#17")
    return storage.normalize(name if "://" in name or name.startswith("/") else storage.join(base_uri, name))


def _products(batch: pa.RecordBatch, product: str | None, where: str) -> list[str]:
    if product is not None:
        return [product] * batch.num_rows
    names = batch.column("product").to_pylist()
    if not all(name is not None and str(name) for name in names):
        raise UserError(
            f"pool {where}: a row without a product; fill it in, or set product=… for the whole pool"
        )
    return [str(name) for name in names]


class RawNormal(NamedTuple):
    """A normal's file as read, or why it could not be."""

    data: bytes | None
    sha256: str  # of `data`; "" without
    error: BadImageError | None


def read_normals(uris: Sequence[str], etags: Sequence[str | None], num_threads: int) -> Iterator[RawNormal]:
    """Reads the bytes of planned normals, in their order, with up to `num_threads` requests under way.

    A file that is gone, or is not the one that was planned, is that normal's error; storage that says no, or
    does not answer, raises.
    """
    files: dict[str, list[int]] = {}  # Parquet file -> the rows wanted of it
    for uri in uris:
        if _is_row(uri):
            file_uri, _, row = uri.rpartition("#")
            files.setdefault(file_uri, []).append(int(row))
    if files:
        etag_of = {uri.rpartition("#")[0]: etag for uri, etag in zip(uris, etags, strict=True)}
        images = {
            f"{file_uri}#{row}": raw
            for file_uri, rows in files.items()
            for row, raw in _read_rows(file_uri, etag_of[file_uri], rows)
        }
        for uri, etag in zip(uris, etags, strict=True):
            yield images[uri] if uri in images else _read_file(uri, etag)
        return
    with ThreadPoolExecutor(num_threads) as threads:
        window = 4 * num_threads  # not all at once: photographs are large, and are decoded one by one
        for start in range(0, len(uris), window):
            part = slice(start, start + window)
            yield from threads.map(_read_file, uris[part], etags[part])


_ROW = re.compile(r"\.parquet#\d+$", re.IGNORECASE)


def _is_row(uri: str) -> bool:
    return _ROW.search(uri) is not None


def _read_file(uri: str, etag: str | None) -> RawNormal:
    try:
        data = storage.read(uri, etag)
    except storage.ObjectMissingError:
        return _failed("missing", "no such object any more")
    except storage.ObjectChangedError:
        return _failed("changed", f"its etag is not {etag} any more")
    except storage.StorageUnavailableError:
        raise
    except UserError as error:
        return _failed("unreadable", str(error))
    return RawNormal(data, hashlib.sha256(data).hexdigest(), None)


def _read_rows(file_uri: str, etag: str | None, rows: list[int]) -> Iterator[tuple[int, RawNormal]]:
    """Images in the `image` column (bytes, or a struct with `bytes`) of a Parquet file; each row group that
    holds one is read once, in batches."""
    found: dict[int, RawNormal] = {}
    failure = _failed("missing", "no such row")
    try:
        if etag and storage.stat(file_uri).etag != etag:
            failure = _failed("changed", f"its file's etag is not {etag} any more")
        else:
            found.update(_scan(file_uri, set(rows)))
    except storage.ObjectMissingError:
        failure = _failed("missing", "no such file any more")
    except storage.StorageUnavailableError:
        raise
    except (UserError, pa.ArrowException) as error:
        failure = _failed("unreadable", str(error))
    for row in rows:
        yield row, found.get(row, failure)


def _scan(file_uri: str, rows: set[int]) -> Iterator[tuple[int, RawNormal]]:
    with open_parquet(file_uri) as file:
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if any(first <= row < end for row in rows):
                row = first
                for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=["image"]):
                    for scalar in batch.column("image"):
                        if row in rows:
                            yield row, _raw(scalar.as_py())
                        row += 1
            first = end


def _raw(image: Any) -> RawNormal:
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes | None):
        return _failed("unreadable", f"its `image` column holds {type(data).__name__}, not bytes")
    return RawNormal(data or b"", hashlib.sha256(data or b"").hexdigest(), None)


def _failed(reason: str, detail: str) -> RawNormal:
    return RawNormal(None, "", BadImageError(reason, detail))

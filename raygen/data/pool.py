"""The pool: a large set of normals in storage, listed as a stream and read one by one."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from raygen import storage
from raygen.errors import UserError
from raygen.images import EXTENSIONS, BadImageError


class Normal(NamedTuple):
    """One normal as the pool lists it. `uri` names a file, or `file.parquet#row`."""

    uri: str
    product: str
    size: int  # bytes; -1 where the listing does not tell
    etag: str | None


def index_pool(pool_uri: str, product: str | None = None) -> Iterator[Normal]:
    """Streams the normals of a pool in a fixed order.

    Args:
        pool_uri: a folder of images (`{product}/**/*.png` …) or of Parquet files with an `image` column and a
            `product` column; one such Parquet file; or a Parquet or CSV manifest with `uri, product`.
        product: the product of every normal, where neither folders nor a column tell it.

    Raises:
        UserError: a missing or empty pool, an image without a product, a manifest without its columns or with
            a URI that stands in it twice.
    """
    if pool_uri.endswith(".csv"):
        normals = _index_manifest(pool_uri, _read_csv(pool_uri), product)
    elif pool_uri.endswith(".parquet"):
        try:
            entry = storage.stat(pool_uri)
        except storage.ObjectMissingError:
            raise UserError(f"pool {pool_uri}: no such file") from None
        normals = _index_parquet(entry, product)
    else:
        normals = _index_folder(pool_uri, product)
    empty = True
    for normal in normals:
        empty = False
        yield normal
    if empty:
        kinds = " ".join(extension.removeprefix(".") for extension in EXTENSIONS)
        raise UserError(f"pool {pool_uri}: no images there; expected {{product}}/**/*.({kinds} parquet)")


def _index_folder(pool_uri: str, product: str | None) -> Iterator[Normal]:
    prefix = len(pool_uri.rstrip("/")) + 1
    for entry in storage.list_files(pool_uri):
        name = entry.uri.lower()
        if name.endswith(".parquet"):
            yield from _index_parquet(entry, product)
        elif name.endswith(EXTENSIONS):
            folder, slash, _ = entry.uri[prefix:].partition("/")
            if not slash and product is None:
                raise UserError(
                    f"pool {pool_uri}: {entry.uri} stands in no product folder; move it to {{product}}/, "
                    "or set product=… for the whole pool"
                )
            yield Normal(entry.uri, product or folder, entry.size, entry.etag)


def _index_parquet(entry: storage.Entry, product: str | None) -> Iterator[Normal]:
    """Rows of a Parquet file: a manifest if it has a `uri` column, else images by their row number."""
    with storage.open_input(entry.uri) as stream:
        try:
            file = pq.ParquetFile(stream)
        except pa.ArrowException as error:
            raise UserError(f"pool {entry.uri}: not a Parquet file ({error})") from None
        names = file.schema_arrow.names
        if "uri" in names:
            columns = [name for name in ("uri", "product") if name in names]
            yield from _index_manifest(entry.uri, file.read(columns=columns), product)
            return
        if "image" not in names:
            raise UserError(f"pool {entry.uri}: neither a `uri` nor an `image` column among {names}")
        if "product" not in names and product is None:
            raise UserError(f"pool {entry.uri}: no `product` column; add one, or set product=…")
        row = 0
        for batch in file.iter_batches(columns=[] if product else ["product"]):
            products = [product] * batch.num_rows if product else batch.column("product").to_pylist()
            for name in products:
                yield Normal(f"{entry.uri}#{row}", str(name), -1, entry.etag)
                row += 1


def _read_csv(uri: str) -> pa.Table:
    try:
        with storage.open_input(uri) as file:
            return pyarrow.csv.read_csv(
                file, convert_options=pyarrow.csv.ConvertOptions(column_types={"product": pa.string()})
            )
    except storage.ObjectMissingError:
        raise UserError(f"pool {uri}: no such file") from None
    except pa.ArrowException as error:
        raise UserError(f"pool {uri}: not a CSV file ({error})") from None


def _index_manifest(manifest_uri: str, table: pa.Table, product: str | None) -> Iterator[Normal]:
    if "uri" not in table.column_names or ("product" not in table.column_names and product is None):
        raise UserError(f"pool {manifest_uri}: needs the columns uri and product, has {table.column_names}")
    counts = table.column("uri").value_counts()
    if len(counts) < table.num_rows:
        uri = next(count["values"] for count in counts.to_pylist() if count["counts"] > 1)
        raise UserError(f"pool {manifest_uri}: {uri} stands in it twice; keep one row per normal")
    base_uri = manifest_uri.rpartition("/")[0]
    for batch in table.to_batches():
        uris = batch.column("uri").to_pylist()
        products = [product] * len(uris) if product else batch.column("product").to_pylist()
        for uri, name in zip(uris, products, strict=True):
            absolute = uri if "://" in uri or uri.startswith("/") else storage.join(base_uri or ".", uri)
            yield Normal(absolute, str(name), -1, None)


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
        if _PARQUET_ROW in uri:
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
        yield from threads.map(_read_file, uris, etags)


_PARQUET_ROW = ".parquet#"


def _read_file(uri: str, etag: str | None) -> RawNormal:
    try:
        data = storage.read(uri, etag)
    except storage.ObjectMissingError:
        return _unreadable("missing", "no such object any more")
    except storage.ObjectChangedError:
        return _unreadable("changed", f"its etag is not {etag} any more")
    return RawNormal(data, hashlib.sha256(data).hexdigest(), None)


def _read_rows(file_uri: str, etag: str | None, rows: list[int]) -> Iterator[tuple[int, RawNormal]]:
    """Images in the `image` column (bytes, or a struct with `bytes`) of a Parquet file; each row group that
    holds one is read once."""
    try:
        if etag and storage.stat(file_uri).etag != etag:
            yield from (
                (row, _unreadable("changed", f"its file's etag is not {etag} any more")) for row in rows
            )
            return
        with storage.open_input(file_uri) as stream, pq.ParquetFile(stream) as file:
            first = 0
            for group in range(file.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                wanted = [row for row in rows if first <= row < first + num_rows]
                if wanted:
                    column = file.read_row_group(group, columns=["image"])["image"]
                    for row in wanted:
                        image: Any = column[row - first].as_py()
                        data: bytes = (image["bytes"] if isinstance(image, dict) else image) or b""
                        yield row, RawNormal(data, hashlib.sha256(data).hexdigest(), None)
                first += num_rows
    except storage.ObjectMissingError:
        yield from ((row, _unreadable("missing", "no such file any more")) for row in rows)


def _unreadable(reason: str, detail: str) -> RawNormal:
    return RawNormal(None, "", BadImageError(reason, detail))

"""Manifests: tables in Parquet or CSV that list a pool, read part by part, however many rows they have."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from raygen import storage
from raygen.errors import UserError

COLUMNS = ("uri", "product", "etag")


def read_parquet(uri: str) -> Iterator[pa.Table]:
    """What a manifest in a Parquet file says, part by part; the first has no rows."""
    with open_parquet(uri) as file:
        yield file.schema_arrow.empty_table()
        for batch in file.iter_batches(columns=[name for name in COLUMNS if name in file.schema_arrow.names]):
            yield pa.Table.from_batches([batch])


def read_csv(uri: str) -> Iterator[pa.Table]:
    """What a manifest in a CSV file says, part by part; the first has no rows."""
    as_written = {name: pa.string() for name in COLUMNS}  # 007 is a name, not a number
    try:
        with storage.open_input(uri) as stream:
            names = pyarrow.csv.open_csv(stream).schema.names
        yield pa.schema([(name, pa.string()) for name in names]).empty_table()
        options = pyarrow.csv.ConvertOptions(
            column_types=as_written, include_columns=[name for name in COLUMNS if name in names]
        )
        with storage.open_input(uri) as stream:
            for batch in pyarrow.csv.open_csv(stream, convert_options=options):
                yield pa.Table.from_batches([batch])
    except storage.ObjectMissingError:
        raise UserError(f"pool {uri}: no such file") from None
    except pa.ArrowException as error:
        raise UserError(f"pool {uri}: not a CSV file ({error})") from None


def as_text(table: pa.Table, manifest_uri: str) -> pa.Table:
    """A manifest's `uri`, `product` and `etag`, all of them strings: a column may be dictionary-encoded, as a data
    frame's categories are, and products and etags may be numbers."""
    columns = {}
    for name in COLUMNS:
        if (count := table.column_names.count(name)) > 1:
            raise UserError(f"pool {manifest_uri}: has {count} columns {name}; keep one")
        if count:
            column = table.column(name)
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            may_be_number = name != "uri" and pa.types.is_integer(kind)
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or may_be_number):
                raise UserError(f"pool {manifest_uri}: its {name} column holds {column.type}, not text")
            columns[name] = column.cast(kind).cast(pa.large_string())
    return pa.table(columns)


@contextmanager
def open_parquet(uri: str) -> Iterator[pq.ParquetFile]:
    with storage.open_input(uri) as stream:
        try:
            file = pq.ParquetFile(stream)
        except pa.ArrowException as error:
            raise UserError(f"pool {uri}: not a Parquet file ({error})") from None
        yield file

"""What a checkpoint learned from, photo by photo, so that its judges can tell whether it has seen the test."""

import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

LEARNED = "learned.parquet"
"""Its name in a checkpoint folder, and in the folder of a run made by it."""

_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("uri", "sha256", "product", "defect_type", "split", "use")]
)


class Learned(NamedTuple):
    """A photo that had a part in a checkpoint."""

    uri: str
    sha256: str  # of the file's bytes
    product: str
    defect_type: str
    split: str  # as the defect set tells it; "" where it does not
    use: str  # "learned", or "validated" for one that only chose among weights


def write_learned(photos: Iterable[Learned]) -> bytes:
    """A Parquet file of them."""
    file = io.BytesIO()
    columns = list(zip(*photos, strict=True)) or [[]] * len(_SCHEMA)
    pq.write_table(pa.table([list(column) for column in columns], _SCHEMA), file)
    return file.getvalue()


def read_learned(data: bytes) -> list[Learned]:
    """The inverse."""
    table = pq.read_table(io.BytesIO(data), schema=_SCHEMA)
    return [Learned(*row.values()) for row in table.to_pylist()]


def moved(data: bytes, old_uri: str, new_uri: str) -> bytes:
    """The same of a defect set that has moved."""
    return write_learned(
        photo._replace(uri=photo.uri.replace(old_uri, new_uri)) for photo in read_learned(data)
    )


def united(parts: Sequence[bytes]) -> bytes:
    """Of several checkpoints of which one was made, each photo once for each use."""
    return write_learned(dict.fromkeys(photo for part in parts for photo in read_learned(part)))

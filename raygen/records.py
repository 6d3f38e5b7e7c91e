"""The vocabulary as types: what a sample is, how it is named, and where its randomness comes from."""

import hashlib
import json
from typing import Any, Literal, NamedTuple

import pyarrow as pa

Mode = Literal["latent", "reference"]
MODES: tuple[Mode, ...] = ("latent", "reference")

NORMAL = "normal"
"""The defect type of a defect-free image: the anchor, index 0 of a model's domains."""


class SampleRequest(NamedTuple):
    """One of the samples that are made for every normal of a run."""

    defect_type: str
    mode: Mode
    k: int  # the k-th sample of this defect type and mode on the same normal, from 0


def plan_requests(
    defect_types: tuple[str, ...], modes: tuple[Mode, ...], samples_per_cell: int
) -> tuple[SampleRequest, ...]:
    """Lists what is made for one normal: every defect type × mode × k, in that order."""
    return tuple(
        SampleRequest(defect_type, mode, k)
        for defect_type in defect_types
        for mode in modes
        for k in range(samples_per_cell)
    )


def digest(*parts: str | int, num_bytes: int = 16) -> str:
    """Hashes `parts` in order to `2 · num_bytes` hexadecimal digits (BLAKE2b of their JSON list, so that
    ("ab", "c") and ("a", "bc") differ)."""
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=num_bytes).hexdigest()


def sample_seed(normal_sha256: str, checkpoint: str, request: SampleRequest, run_seed: int) -> int:
    """The only randomness of a sample: 63 bits from the content of its normal, the checkpoint's digest, the
    request and the run's seed; never from its place in a batch, a shard or a pool, nor from its name."""
    parts = (normal_sha256, checkpoint, request.defect_type, request.mode, request.k, run_seed)
    return int(digest(*parts, num_bytes=8), 16) >> 1


def sample_id(normal_uri: str, seed: int) -> str:
    """Names a sample: 32 hexadecimal digits, unique in a run.

    The seed tells the samples of one normal apart, the URI tells apart two normals of the same content.
    """
    return digest(normal_uri, seed)


IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

_SAMPLE_FIELDS: list[tuple[str, Any]] = [
    ("sample_id", pa.string()),
    ("normal_uri", pa.string()),
    ("normal_sha256", pa.string()),  # of the file's bytes as they stand in the pool
    ("product", pa.string()),
    ("defect_type", pa.string()),
    ("mode", pa.string()),
    ("k", pa.int32()),
    ("seed", pa.int64()),
    ("reference_uri", pa.string()),  # null when latent-guided
    ("checkpoint", pa.string()),  # its digest
    ("run_id", pa.string()),
    ("shard", pa.int32()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("image_sha256", pa.string()),  # of the PNG
    ("image", IMAGE_TYPE),  # PNG; in the png layout `bytes` is null and `path` names the file beside
]


def _hugging_face_features() -> str:
    """The schema metadata by which the `datasets` library shows `image` as an image."""
    features: dict[str, Any] = {
        name: {"_type": "Image"} if name == "image" else {"dtype": str(kind), "_type": "Value"}
        for name, kind in _SAMPLE_FIELDS
    }
    return json.dumps({"info": {"features": features}})


SAMPLE_SCHEMA: pa.Schema = pa.schema(_SAMPLE_FIELDS, metadata={"huggingface": _hugging_face_features()})
"""A sample at rest: one row of a shard. Nothing in it depends on the clock or the host."""

PLAN_SCHEMA: pa.Schema = pa.schema(
    [
        ("uri", pa.string()),
        ("product", pa.string()),
        ("size", pa.int64()),  # bytes; -1 where the listing does not tell
        ("etag", pa.string()),  # the content as it was when planned; null where the listing does not tell
        ("shard", pa.int32()),
        ("row", pa.int64()),
    ]
)
"""A normal in the plan: one row per normal, one Parquet row group per shard."""

REJECT_SCHEMA: pa.Schema = pa.schema([("uri", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
"""A normal that could not be used: one row of `rejects/`."""

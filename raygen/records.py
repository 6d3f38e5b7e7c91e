"""The vocabulary as types: what a sample is, how it is named, and where its randomness comes from."""

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from raygen.errors import UserError

Mode = Literal["latent", "reference", "restyled"]
"""Where a defect is from: drawn by the seed; a reference's; or a reference's content in a style that is drawn."""

MODES: tuple[Mode, ...] = ("latent", "reference")
"""What every family is asked for by default, and what is trained and evaluated."""

Layout = Literal["parquet", "webdataset", "png"]
"""The form of a shard at rest."""

NORMAL = "normal"
"""The defect type of a defect-free image: the anchor, index 0 of a model's domains."""


def check_name(what: str, name: str, where: str) -> str:
    """Returns the name of a product, defect type or file, which folders are called by.

    Raises:
        UserError: it is empty or long, begins with a dot, has a path in it, or signs that cannot be seen: what is
            written by it would land elsewhere, or nowhere.
    """
    hidden = any(unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") for sign in name)
    if not name.strip() or name.startswith(".") or "/" in name or "\\" in name or hidden or len(name) > 200:
        raise UserError(
            f"{where}: {name!r} is no name of a {what}; use letters, digits, - and _, and no path"
        )
    return name


class SampleRequest(NamedTuple):
    """One of the samples that are made for every normal of a run."""

    defect_type: str
    mode: Mode
    k: int  # the k-th sample of this defect type and mode on the same normal, from 0


def plan_requests(
    defect_types: tuple[str, ...], modes: tuple[Mode, ...], samples_per_cell: int | Mapping[str, int]
) -> tuple[SampleRequest, ...]:
    """Lists what is made for one normal: every defect type × mode × k, in that order.

    `samples_per_cell` is one number for all defect types, or each one's own.
    """

    def count(defect_type: str) -> int:
        return samples_per_cell if isinstance(samples_per_cell, int) else samples_per_cell[defect_type]

    return tuple(
        SampleRequest(defect_type, mode, k)
        for defect_type in defect_types
        for mode in modes
        for k in range(count(defect_type))
    )


def digest(*parts: str | int, num_bytes: int = 16) -> str:
    """Hashes `parts` in order to `2 · num_bytes` hexadecimal digits (BLAKE2b of their JSON list, so that
    ("ab", "c") and ("a", "bc") differ)."""
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=num_bytes).hexdigest()


def sample_seed(
    normal_sha256: str, checkpoint: str, request: SampleRequest, run_seed: int, attempt: int = 0
) -> int:
    """The only randomness of a sample: 63 bits from the content of its normal, the checkpoint's digest, the
    request, the run's seed and the number of the attempt; never from its place in a batch, a shard or a pool, nor
    from its name."""
    parts = [normal_sha256, checkpoint, request.defect_type, request.mode, request.k, run_seed]
    parts += [attempt] if attempt else []
    return int(digest(*parts, num_bytes=8), 16) >> 1


def sample_id(normal_uri: str, first_seed: int) -> str:
    """Names a sample: 32 hexadecimal digits, unique in a run.

    The seed of its first attempt tells the samples of one normal apart, the URI tells apart two normals of the
    same content. The name stays the same whichever attempt is kept.
    """
    return digest(normal_uri, first_seed)


IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

BOX_TYPE = pa.struct([(name, pa.int32()) for name in ("x", "y", "width", "height", "area")])
"""A connected part of a mask: its bounding box, and how many pixels of it belong to the defect."""

SCORES: dict[str, str] = {
    "realism": "logit of D's wanted branch: > 0 looks real to the discriminator; or, by a judge (gate.judge), the "
    "calibrated log-odds of the wanted defect type against normal",
    "type_prob": "0..1: D's foreground classifier on the wanted defect type; or, by a judge, its calibrated "
    "probability among normal and the judge's types, all equally likely beforehand",
    "product_prob": "0..1: D's background classifier on the normal's product; null for one it has not seen",
    "preservation": "grey levels 0..255: mean absolute change outside the mask; 0 = untouched",
    "mask_area": "0..1: share of the window that the mask covers",
    "contrast": "grey levels -255..255: mean inside the mask minus mean around it; < 0 = darker",
    "novelty": "distance of its content to the nearest reference's, over the median one between two references: "
    "0 = a copy, 1 = as new as a reference; null of a reference's own content",
}
"""How good a sample is, as columns: their ranges and meanings. Null where the checkpoint cannot tell."""

_SAMPLE_FIELDS: list[tuple[str, Any]] = [
    ("sample_id", pa.string()),
    ("normal_uri", pa.string()),
    ("normal_sha256", pa.string()),  # of the file's bytes as they stand in the pool
    ("product", pa.string()),
    ("defect_type", pa.string()),
    ("mode", pa.string()),
    ("k", pa.int32()),
    ("attempt", pa.int32()),  # which one is kept, from 0
    ("seed", pa.int64()),  # of that attempt
    ("reference_uri", pa.string()),  # null when latent-guided
    ("checkpoint", pa.string()),  # its digest
    ("run_id", pa.string()),
    ("shard", pa.int32()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("window_x", pa.int32()),  # the part of the image that the model has seen: its left edge,
    ("window_y", pa.int32()),  # its upper edge,
    ("window_size", pa.int32()),  # and its side, in pixels of the image
    *((name, pa.float32()) for name in SCORES),
    ("accepted", pa.bool_()),
    ("reject_reason", pa.string()),  # the first rule of the gate that failed; null if accepted
    ("boxes", pa.list_(BOX_TYPE)),  # of the mask's connected parts, from the top
    ("image_sha256", pa.string()),  # of the PNG
    ("mask_sha256", pa.string()),
    ("image", IMAGE_TYPE),  # PNG; in the png layout `bytes` is null and `path` names the file beside
    ("mask", IMAGE_TYPE),  # likewise; one channel, 255 on the defect, else 0
]


def _hugging_face_features() -> str:
    """The schema metadata by which the `datasets` library shows `image` and `mask` as images."""

    def feature(kind: pa.DataType) -> Any:
        if kind == IMAGE_TYPE:
            return {"_type": "Image"}
        if pa.types.is_list(kind):
            return [{field.name: feature(field.type) for field in BOX_TYPE}]
        name = "float32" if pa.types.is_float32(kind) else str(kind)
        return {"dtype": name, "_type": "Value"}

    features = {name: feature(kind) for name, kind in _SAMPLE_FIELDS}
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

REJECT_SCHEMA: pa.Schema = pa.schema(
    [
        ("uri", pa.string()),  # of the normal
        ("reason", pa.string()),
        ("detail", pa.string()),
        # of a sample; null where the normal itself is of no use, and with it all its samples
        ("sample_id", pa.string()),
        ("product", pa.string()),
        ("defect_type", pa.string()),
        ("mode", pa.string()),
        ("k", pa.int32()),
    ]
)
"""What was asked for and is not in the shard, one row of `rejects/`: a normal that could not be used, or a sample
that the gate dropped."""

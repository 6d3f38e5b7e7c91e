"""The recipe of the nightly refresh."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from raygen import storage
from raygen.config import Config, Place, refuse_lost_places
from raygen.data.pool import is_drawn
from raygen.errors import UserError
from raygen.explain import explain
from raygen.generate.config import GenerateConfig
from raygen.publish.changes import Policy

_OURS = ("pool", "output", "checkpoint", "layout")


def _absolute(uri: str) -> str:
    if not storage.is_local(uri) or uri.startswith(("null:", "seeds:")):
        return uri
    try:
        refuse_lost_places({"it": uri})
    except UserError:
        raise ValueError("a Ray job works in a copy of this folder; give an absolute path or s3://") from None
    return str(Path(uri).absolute())


FixedPlace = Annotated[Place, AfterValidator(_absolute)]
"""A URI that names the same place wherever the command is started: the table remembers it."""

Share = Annotated[float, Field(ge=0, le=1)]


class AuditConfig(Config):
    """What must hold before a night is published. That the run is whole, and every file as it was written, is
    always asked."""

    min_accepted: Share = 0.5
    """Of each product × defect type × mode: the share of samples that the gate accepted."""
    max_score_shift: Share = 0.5
    """Of each score, product × defect type × mode: the Kolmogorov-Smirnov distance between tonight's samples and
    those of the night published before (0 = alike, 1 = apart)."""
    max_score_shift_anew: Share = 1.0
    """The same where another checkpoint or recipe made them: another judge's scores differ by nature, so that the
    default, 1, asks nothing; the report has the figures."""
    min_samples: Annotated[int, Field(ge=1)] = 50
    """The rules above are asked of cells with at least so many samples, the next of nights of so many normals."""
    max_rejected: Share = 0.5
    """The share of a night's normals that may be of no use. (generate.max_reject_rate is of the pool.)"""
    max_removed: Share = 0.5
    """The share of the table's normals that may leave in one night: a pool that is half gone is a mistake."""
    blocklist: FixedPlace | None = None
    """A text file with one SHA-256 a line (what sha256sum writes will do): images to validate and test on, which
    may be neither normals nor references."""


class RefreshConfig(Config):
    """The refresh: what changed in a pool, generated, audited, published."""

    pool: FixedPlace
    """As in the main job, but for seeds."""
    table: FixedPlace
    """The folder of the Delta Lake table; it is created."""
    checkpoint: FixedPlace
    policy: Policy = "regenerate"
    """With another checkpoint or recipe: make all samples anew, or ("new-only") keep those of normals that have
    not changed."""
    generate: dict[str, Any] = Field(default_factory=dict)
    """The recipe of the main job, but for pool, output, checkpoint and layout."""
    audit: AuditConfig = AuditConfig()
    max_gone: Share = 0.0
    """The share of a file's normals that may be gone from the pool before it is written anew without their
    samples. By default they leave at once; with 0.2, say, up to a fifth of the table's samples are of normals that
    are gone, and removals strewn over the pool cost a fraction of the bytes."""
    compact_files: Annotated[int, Field(ge=0)] = 16
    """A night that finds so many small files in the table, of less than half of `normals_per_shard`, joins them to
    large ones; 0: never."""
    lease_seconds: Annotated[float, Field(ge=2)] = 60.0
    """After so long without a sign of life another refresh takes over."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if is_drawn(self.pool):
            raise ValueError("a refresh follows photographs; draw normals by `raygen generate`")
        for name in _OURS:
            if name in self.generate:
                raise ValueError(f"generate.{name}: a refresh sets it itself; drop the key")
        try:
            self.generate_config(self.pool, "unused")
        except ValidationError as error:
            raise ValueError(explain(GenerateConfig, self.generate, error, "generate.")) from None
        if f"{self.pool}/".startswith(f"{self.table}/") or f"{self.table}/".startswith(f"{self.pool}/"):
            raise ValueError("pool and table lie in one another: the samples would be read as normals")
        return self

    def generate_config(self, pool: str, output: str) -> GenerateConfig:
        """The main job's recipe for these normals. What a night's normals look like decides nothing: the next ones
        may look different, and are read alike."""
        recipe = {**self.generate, "pool": pool, "output": output, "checkpoint": self.checkpoint}
        if recipe.get("pixel_range", "auto") == "auto":
            recipe["pixel_range"] = "stated"
        return GenerateConfig.model_validate(recipe)

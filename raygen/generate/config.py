"""The recipe of the main job."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from raygen.config import ActorPoolConfig, Config, Place, distinct
from raygen.families.recipes import SamplingConfig
from raygen.records import Layout, Mode

Count = Annotated[int, Field(ge=1)]


class ComputeConfig(ActorPoolConfig):
    """How a run is spread over the cluster: it may differ when a run resumes."""

    auto: bool = False
    """Whether what is left open here is measured and chosen as the run starts: `compute = "auto"`, for short."""
    read_threads: Annotated[int, Field(ge=1)] = 8
    """Simultaneous requests of one read task."""

    @model_validator(mode="before")
    @classmethod
    def _take_the_short_form(cls, data: Any) -> Any:
        return {"auto": True} if data == "auto" else data


class GateRules(Config):
    """Rules that a sample must pass to be accepted, on the scores of `raygen.records.SCORES`; tried in this order,
    and the first that fails is the sample's `reject_reason`. A rule on a score that is null passes."""

    min_mask_area: Annotated[float, Field(ge=0, le=1)] | None = 0.0005
    max_mask_area: Annotated[float, Field(ge=0, le=1)] | None = None
    min_type_prob: Annotated[float, Field(ge=0, le=1)] | None = None
    min_product_prob: Annotated[float, Field(ge=0, le=1)] | None = None
    min_realism: float | None = None
    max_background_change: Annotated[float, Field(ge=0)] | None = None
    """Of `preservation`."""
    min_contrast: Annotated[float, Field(ge=0)] | None = None
    """Of the contrast's absolute value."""
    min_novelty: Annotated[float, Field(ge=0)] | None = None
    max_attempts: Annotated[int, Field(ge=1)] = 4
    """How often a sample is made anew, each time from the next seed, until it is accepted."""
    on_shortfall: Literal["keep-best", "drop", "fail"] = "keep-best"
    """When no attempt is accepted: keep the best one, marked; leave the sample out, and say so in `rejects/`; or
    end the run with exit code 3 (what is written stays, as with keep-best)."""


class GateConfig(GateRules):
    """The rules, and who gives the scores that they are about."""

    judge: Place | None = None
    """A folder that `train` wrote of `jobs/judge.toml`: its judge gives `realism` and `type_prob`, whatever the
    checkpoint says of them. Default: those that the checkpoint itself gives."""


class GenerateConfig(SamplingConfig):
    """The main job: four defects for every normal of a pool."""

    output: Place
    """The run folder: `s3://bucket/prefix/` or a folder. One run, one folder."""
    checkpoint: Place
    """A folder that `train` wrote; or `null:SIZExCHANNELS` (say `null:128x1`), which copies the normal, to
    measure all but the model."""
    product: str | None = None
    """The product of every normal, for a pool without a folder per product."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Another seed, other defects."""
    defect_types: Annotated[tuple[str, ...], AfterValidator(distinct)] = ()
    """Which of the checkpoint's defect types to make. Default: all."""
    modes: Annotated[tuple[Mode, ...], Field(min_length=1), AfterValidator(distinct)] = (
        "latent",
        "reference",
    )
    samples_per_cell: Count | dict[str, Count] = 1
    """Samples per normal, defect type and mode; or each defect type's own, say {scratches = 2, spots = 1}."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """With `native`: pixels of the normal for one of the model's; the window's side is the model's times this."""
    bit_depth: Literal["auto", 8, 16] = "auto"
    """With `native`, of samples. "auto" and 16 keep the levels of a grey normal that has 16; 8: all have 8."""
    roi: Place | None = None
    """With `native`: a folder of `{product}.png`, white where defects may lie, stretched over the normal."""
    normals_per_shard: Annotated[int, Field(ge=1)] = 256
    """Normals of one shard: the unit of work, of retry and of commit."""
    layout: Layout = "parquet"
    resize: bool = True
    """Bring normals of another size to the model's (scaled, cropped about the centre); else reject them."""
    max_pixels: Annotated[int, Field(ge=1)] = 64_000_000
    """A normal with more pixels is rejected before it is decoded."""
    strict_products: bool = True
    """Whether a product that the checkpoint has not seen is an error, as a mistyped one is, or a warning."""
    max_reject_rate: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The run fails (exit code 3) when more than this share of the pool cannot be used."""
    gate: GateConfig = GateConfig()
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _keep_options_together(self) -> Self:
        if self.composition == "residual" and not self.masks:
            raise ValueError('composition = "residual" is made of masks: set masks = true')
        if self.gate.judge and not self.masks:
            raise ValueError("without masks nothing is gated: set masks = true, or leave gate.judge out")
        if self.native and self.composition != "residual":
            raise ValueError(
                'native = true wants composition = "residual": a reconstructed window shows its frame'
            )
        if self.draws_normals and self.native:
            raise ValueError("native is for photographs, and this pool is seeds")
        if self.write_normals and not self.draws_normals:
            raise ValueError("write_normals is for normals that are drawn (pool = seeds:…)")
        if self.bit_depth == 16 and not self.native:
            raise ValueError("bit_depth = 16 keeps a photograph's own levels: it wants native = true")
        if self.roi and not self.native:
            raise ValueError("roi says where windows may lie: it wants native = true")
        return self

    @model_validator(mode="after")
    def _keep_pool_and_output_apart(self) -> Self:
        inner, outer = sorted((f"{self.pool}/", f"{self.output}/"), key=len, reverse=True)
        if inner.startswith(outer):
            raise ValueError("pool and output lie in one another: the samples would be read as normals")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the samples and the shards, beside the digests of the checkpoint and of the gate's judge: a
        run folder is resumed only by a config with the same."""
        policy = {"output", "checkpoint", "compute", "max_reject_rate", "strict_products"}
        deciding = self.model_dump(mode="json", exclude=policy)
        deciding["gate"] = self.gate.model_dump(mode="json", include=set(GateRules.model_fields))
        for key in ("pixel_range", "bit_depth"):  # newer than runs that go on, and tables that are refreshed
            if deciding[key] in ("auto", "stated"):
                del deciding[key]
        if not deciding["compile"]:  # newer, too
            del deciding["compile"]
        if deciding["gate"]["on_shortfall"] == "fail":  # it writes what keep-best writes
            deciding["gate"]["on_shortfall"] = "keep-best"
        return deciding

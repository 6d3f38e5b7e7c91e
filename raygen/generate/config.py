"""The recipe of the main job."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from raygen.config import Config, Place, distinct
from raygen.records import Mode

Layout = Literal["parquet", "webdataset", "png"]


class ComputeConfig(Config):
    """How a run is spread over the cluster. Nothing here decides a sample: it may differ when a run resumes."""

    num_actors: Annotated[int, Field(ge=1)] | None = None
    """Model replicas. Default: one per GPU where `gpus_per_actor` > 0, else one per CPU."""
    gpus_per_actor: Annotated[float, Field(ge=0)] | None = None
    """Default: 1 on a cluster that has GPUs, else 0."""
    cpus_per_actor: Annotated[float, Field(gt=0)] | None = None
    """Logical CPUs an actor reserves; without a GPU it computes on one thread. Default: 1 beside a GPU, else 0.75,
    so that reading and writing find a share of each CPU."""
    cpus_per_task: Annotated[float, Field(gt=0)] | None = None
    """Logical CPUs a read or a write task reserves. Default: 1 beside GPUs, else 0.25."""
    read_threads: Annotated[int, Field(ge=1)] = 8
    """Simultaneous requests of one read task."""


class GenerateConfig(Config):
    """The main job: four defects for every normal of a pool."""

    pool: Place
    """Where the normals are: `s3://bucket/prefix/` or a folder, `{product}/**/*.png` (jpg, bmp, tif, webp); a
    Parquet or CSV manifest with `uri, product`; or Parquet with an `image` column and `product`."""
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
    samples_per_cell: Annotated[int, Field(ge=1)] = 1
    """Samples per normal, defect type and mode."""
    normals_per_shard: Annotated[int, Field(ge=1)] = 256
    """Normals of one shard: the unit of work, of retry and of commit."""
    layout: Layout = "parquet"
    resize: bool = True
    """Bring normals of another size to the model's (scaled, cropped about the centre); else reject them."""
    max_pixels: Annotated[int, Field(ge=1)] = 64_000_000
    """A normal with more pixels is rejected before it is decoded."""
    micro_batch: Annotated[int, Field(ge=1)] = 8
    """Normals in one forward pass, padded to this number: part of what decides a sample's last bit."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is faster on GPUs, and about 2 % (rms) off."""
    strict_products: bool = False
    """Whether a product that the checkpoint has not seen is an error, or a warning."""
    max_reject_rate: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The run fails (exit code 3) when more than this share of the pool cannot be used."""
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _keep_pool_and_output_apart(self) -> Self:
        inner, outer = sorted((f"{self.pool}/", f"{self.output}/"), key=len, reverse=True)
        if inner.startswith(outer):
            raise ValueError("pool and output lie in one another: the samples would be read as normals")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the samples and the shards, beside the checkpoint's digest: a run folder is resumed only
        by a config with the same."""
        policy = {"output", "checkpoint", "compute", "max_reject_rate", "strict_products"}
        return self.model_dump(mode="json", exclude=policy)

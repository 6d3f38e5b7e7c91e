"""What the recipes of all families have in common, and what a family sees of the main job's."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from raygen.config import Config, Place
from raygen.data.folds import Folds
from raygen.data.pool import is_drawn
from raygen.data.survey import KINDS, Kind, Survey, kind_of, survey
from raygen.depth import PixelRange

Balance = Literal["cells", "defect_types", "none"]


class TrainComputeConfig(Config):
    """How a training is spread over the cluster."""

    num_workers: Annotated[int, Field(ge=1)] | None = None
    """Processes of the data-parallel training. Default: one per GPU of the cluster; one without GPUs."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """Default: 1 on a cluster that has GPUs, else 0."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """Logical CPUs a worker reserves; without a GPU also its threads."""
    loading: Literal["memory", "stream"] = "memory"
    """Photos are decoded once and kept by every worker, or read again for every batch, ahead, by Ray Data."""
    batch_threads: Annotated[int, Field(ge=1)] = 1
    """Threads of a worker that make batches ahead with `loading = "memory"`: more where one cannot keep up."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often lost workers are replaced, and the training goes on from its last checkpoint."""


def _rising(pixel_range: PixelRange) -> PixelRange:
    if pixel_range[0] >= pixel_range[1]:
        raise ValueError("write the lower level first: [0, 4095]")
    return pixel_range


class DefectSetConfig(Config):
    """How a defect set is read."""

    defects: Place
    """The defect set: `{product}/{defect_type}/{id}.png` and `{product}/normal/{id}.png` with an optional
    metadata.csv, or another layout of jobs/README.md. Photos of the split "val" validate, those of "test" are not
    touched."""
    types: dict[str, str] | Literal["dt-gan-table-17"] = Field(default_factory=dict)
    """Folder or label of defects -> defect type, say {crack = "scratches"}; "-" leaves it out. Or the DT-GAN
    paper's choice among the photos of MVTec AD."""
    products: tuple[str, ...] = ()
    """Which products. Default: all."""
    mask_values: dict[str, str] = Field(default_factory=dict)
    """Where masks tell types: value -> type, say {1 = "scratches", "#00ff00" = "spots"}; "-" leaves it out."""

    box_masks: bool = False
    """Whether an annotated box alone is a mask: a rough one, of which copy-paste cuts out rectangles."""
    pixel_range: Literal["auto"] | Annotated[tuple[float, float], AfterValidator(_rising)] = "auto"
    """Which levels of photos of more than 8 bits become black and white, as in the main job."""

    def survey(self, kinds: Sequence[Kind] = KINDS, needed: Sequence[Kind] | None = None) -> Survey:
        """Lists the set; see `raygen.data.survey.survey`."""
        return survey(
            self.defects,
            types=self.types,
            products=self.products,
            kinds=kinds,
            needed=needed,
            mask_values=self.mask_values,
            box_masks=self.box_masks,
            pixel_range=self.pixel_range,
        )


class FamilyConfig(DefectSetConfig):
    """What the recipes of all families have in common."""

    more_defects: Place | None = None
    """Another defect set, whose defects are learned from, too: say synthetic ones, as `raygen defects` writes them
    of a run."""
    output: Place
    """The training's folder: checkpoints, metrics, sheets. Run the same command again to resume."""
    keep_defects: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Product -> how many defects of each type to learn from, say {A = 20} for the paper's 20A; "*" is every
    product. Default: all."""
    folds: Annotated[int, Field(ge=3, le=100)] = 5
    """Into how many folds the set is dealt, where `fold` names one; as in the recipe of the evaluation."""
    fold: Annotated[int, Field(ge=0)] | None = None
    """The fold that is left out, to be tested on, from 0. Default: the set's own splits."""

    @model_validator(mode="after")
    def _check_fold(self) -> Self:
        if self.fold is not None and self.fold >= self.folds:
            raise ValueError(
                f"fold = {self.fold}: there are folds 0 to {self.folds - 1} (folds = {self.folds})"
            )
        return self

    def survey(self, kinds: Sequence[Kind] = KINDS, needed: Sequence[Kind] | None = None) -> Survey:
        if self.fold is None:
            return super().survey(kinds, needed)
        whole = super().survey(needed=kinds if needed is None else needed)
        photos = Folds.deal(whole.photos, self.folds).split(self.fold)
        wanted = [photo for photo in photos if kind_of(photo.defect_type) in kinds]
        note = f"fold {self.fold} of {self.folds} is left out; the set's own splits count for nothing"
        return Survey(tuple(wanted), (*whole.notes, note))

    def places(self) -> dict[str, str]:
        """The keys that name places, and what they name."""
        return named(defects=self.defects, more_defects=self.more_defects, output=self.output)

    def checkpoints(self) -> tuple[str, ...]:
        """The checkpoints that it goes on from."""
        return ()

    def identity(self) -> dict[str, Any]:
        """What decides a checkpoint: a folder that holds one is gone on with by a config with the same alone."""
        return self.model_dump(mode="json", exclude={"output"})


class TrainingConfig(FamilyConfig):
    """What the recipes of those have in common that learn in iterations."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    model: dict[str, Any] = Field(default_factory=dict)
    """Fields of the networks' sizes that differ from their defaults, or the preset's."""
    images: Annotated[int, Field(ge=1)]
    """The training's length, in images seen."""
    batch_per_worker: Annotated[int, Field(ge=1)]
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: mixed precision, for GPUs."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 20_000
    """Images between two checkpoints, each with metrics and a sample sheet: what a killed worker costs at most."""
    num_to_keep: Annotated[int, Field(ge=1)] = 2
    """The latest checkpoints that stay; the best one stays besides."""
    stop_when_dead: bool = False
    """Whether a training ends, with exit code 3, as soon as its vital signs have said at two checkpoints in a row
    that it will come to nothing."""
    compute: TrainComputeConfig = TrainComputeConfig()

    def identity(self) -> dict[str, Any]:
        """What decides the weights: a training is resumed only by a config with the same. (Of two numbers of
        workers with equal batches in all, one can go on for the other.)"""
        policy = {"output", "compute", "num_to_keep", "checkpoint_every", "references_per_cell"}
        return self.model_dump(mode="json", exclude={*policy, "stop_when_dead"})


class MaskConfig(Config):
    """How the mask of a defect is read off its layer; lengths are pixels of the model's image. Threshold and share
    were chosen by true masks of surfaces and of real photographs (tests/benchmarks/dtgan_learning.py --masks)."""

    threshold: Annotated[float, Field(gt=0)] = 8.0
    """Grey levels of change that make a defect. What is fainter has no mask, and the gate refuses it."""
    noise_factor: Annotated[float, Field(ge=0)] = 4.0
    """Or so many times the noise of the layer, if that is more."""
    peak_share: Annotated[float, Field(ge=0, lt=1)] = 0.35
    """Or this share of the layer's strongest change, if that is more."""
    spread: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A defect reaches as far as the change exceeds this share of the threshold."""
    close: Annotated[int, Field(ge=0)] = 0
    """Gaps up to twice this width are closed."""
    min_area: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """Parts smaller than this share of the window are noise."""
    fade: Annotated[float, Field(gt=0)] = 1.0
    """In a residual composition: the change by which a defect comes to its full strength, from 0 where it begins,
    as a share of where it begins. So it has no hard edge."""


class InvertConfig(Config):
    """How DFM-GAN finds the styles that draw a given normal."""

    steps: Annotated[int, Field(ge=1)] = 150
    """Of Adam, on the styles."""
    lr: Annotated[float, Field(gt=0)] = 0.05


class BankConfig(FamilyConfig):
    """What the recipes of those have in common whose checkpoint is a bank: what was taken of each photo."""

    image_size: Annotated[int, Field(ge=8, le=4096)] = 256
    """Height and width that photos are brought to."""
    channels: Literal[1, 3] = 3
    references_per_cell: Annotated[int, Field(ge=1)] = 64
    """Photos of each product and type in the bank, at most."""


def named(**places: str | None) -> dict[str, str]:
    """Those of some keys that name a place."""
    return {key: uri for key, uri in places.items() if uri}


class SamplingConfig(Config):
    """What a family sees of the main job's recipe: the keys that decide how samples are made, not how they are
    ordered, judged, written or computed."""

    pool: Place
    """Where the normals are: `s3://bucket/prefix/` or a folder, `{product}/**/*.png` (jpg, bmp, tif, webp); a
    Parquet or CSV manifest with `uri, product`; Parquet with an `image` column and `product`; or, for DFM-GAN,
    `seeds:0-1000000`: as many normals that it draws itself, of its products in turn."""
    reference_products: Literal["any", "same"] | Annotated[tuple[str, ...], Field(min_length=1)] = "any"
    """Whose references guide a normal: those of any product, of its own, or of the products in a list (the paper's
    Tables 4 and 13: vA, vB, vC, and vABC = "any")."""
    composition: Literal["reconstruct", "residual"] = "reconstruct"
    """"reconstruct": the whole image comes out of the generator, as in the paper. "residual": the defect alone is
    put on the normal's own pixels, and nothing changes outside the mask."""
    pixel_range: Literal["auto", "stated"] | Annotated[tuple[float, float], AfterValidator(_rising)] = "auto"
    """Which levels of photographs of more than 8 bits become black and white, say [0, 4095] for 12 bits in files
    of 16. "auto": what the files say, else what some of each product use; said, and kept for the whole run.
    "stated": what each file says alone, or all of 16 bits; every night's refresh takes "auto" for this."""
    native: bool = False
    """Whether a normal keeps its size: the defect is made in a window of it. Wants `composition = "residual"`."""
    masks: bool = True
    """Whether samples get masks and scores; without them nothing is gated."""
    write_normals: bool = False
    """Whether a normal that is drawn is a sample, too, of the defect type "normal"."""
    micro_batch: Annotated[int, Field(ge=1)] = 8
    """Normals in one forward pass, padded to this number: part of what decides a sample's last bit."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is faster on GPUs, and about 2 % (rms) off."""
    compile: bool = False
    """Whether the networks are compiled (torch.compile) as an actor starts: what stands between their convolutions
    becomes few kernels. Part of what decides a sample's last bit. Wants a C++ compiler on every node."""
    mask: MaskConfig = MaskConfig()
    invert: InvertConfig = InvertConfig()

    @property
    def draws_normals(self) -> bool:
        """Whether the family draws the normals itself."""
        return is_drawn(self.pool)

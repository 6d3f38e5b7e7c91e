"""The recipe of an evaluation."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from raygen.config import ActorPoolConfig, Config, Place, distinct
from raygen.families.recipes import DefectSetConfig
from raygen.records import MODES

Count = Annotated[int, Field(ge=1)]

Condition = Literal["no-aug", "trad-aug", "latent", "reference", "mix"]


class FeatureConfig(Config):
    """What is compared. "lite0" comes with `pip install 'raygen[evaluate]'`; "inception" and "lpips" need the
    package that owns them, and their weights by path or that package's own download."""

    extractor: Literal["auto", "lite0", "inception", "pixels", "own"] = "auto"
    """"inception" is FID's own InceptionV3, of torch-fidelity: `pip install 'raygen[fid]'`. "own" is a small
    network that learns the training photos first, a minute; "pixels", grey levels, edges and local contrast: these
    two have seen no ImageNet. "auto" is "lite0", or "own" where a judge chose samples by ImageNet's features: they
    are then no longer impartial. Distances are named for their features, say KID-Lite0, and comparable only among
    themselves."""
    weights: Place | None = None
    """A file of the weights of "lite0" or "inception". Default: what its package ships or downloads."""
    perceptual: Literal["lite0", "lpips", "none"] = "lite0"
    """The distance of clustered LPIPS. "lpips" is LPIPS (AlexNet) itself: `pip install 'raygen[lpips]'`;
    "lite0" is its form on Lite0's layers, without learned weights, and named for it."""
    perceptual_weights: Place | None = None
    """A file of AlexNet's trunk, for "lpips"."""
    batch: Count = 32

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.weights is not None and self.extractor not in ("lite0", "inception"):
            raise ValueError('weights are of extractor = "lite0" or "inception": name it')
        return self


class DistanceConfig(Config):
    """How close the samples are to the real training defects, and how diverse (Appendix C)."""

    runs: tuple[str, ...] | None = None
    """Which of `runs`; default: all. [] measures none."""
    samples_per_cell: Count = 4000
    """Of a product, defect type and mode, at most; the mix takes half of them from each mode."""
    kid_subsets: Count = 100
    kid_subset_size: Annotated[int, Field(ge=2)] = 1000
    """At most: no subset is larger than a set."""
    neighbours: Count = 3
    """k of precision, recall, density and coverage."""
    copy_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """A sample is as close as a copy if it is nearer to a training defect than all but this share of the real
    test defects are."""
    cluster_samples: Annotated[int, Field(ge=2)] = 1000
    """Samples of a cell for clustered LPIPS, at most."""
    cluster_size: Annotated[int, Field(ge=2)] = 200
    """Samples of one cluster, at most."""


class DownstreamConfig(Config):
    """Whether the samples lower a classifier's error (Section 4.2, Appendix B). The defaults are the paper's."""

    runs: tuple[str, ...] | None = None
    """Which of `runs`; default: all. [] leaves the synthetic conditions out."""
    conditions: Annotated[tuple[Condition, ...], AfterValidator(distinct)] = (
        "no-aug",
        "trad-aug",
        "latent",
        "reference",
        "mix",
    )
    """[] trains no classifier."""
    sizes: Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(distinct)] = (
        1500,
        2200,
        4000,
        6200,
    )
    """Images of each product and class: so many normals, or all there are; real defects are oversampled, or
    filled up with synthetic ones, to as many. Of sizes beyond the normals one is trained."""
    general: bool = True
    """A classifier for all products."""
    single_products: bool = True
    """A classifier for each product."""
    cross_domain: bool = False
    """Single products also with reference-guided samples from references of one product alone (vA, vB, … of Tables
    4 and 13); vABC is the condition "reference" itself, of a run whose references are of any product."""
    seeds: Count = 5
    backbone: Literal["lite0", "resnet50", "efficientnet_b4"] = "lite0"
    """"resnet50" and "efficientnet_b4" are timm's: `pip install 'raygen[timm]'`, and want `weights`."""
    weights: Place | None = None
    """A file of the backbone's ImageNet weights. Default: Lite0's own."""
    input_size: Annotated[int, Field(ge=32)] = 128
    """Photos are brought to this size for the backbone."""
    frozen_blocks: Annotated[int, Field(ge=0, le=16)] = 0
    """Lite0's stem and so many of its 16 blocks stay as they are: cheaper."""
    epochs: Count = 100
    batch: Annotated[int, Field(ge=2)] = 256
    lr: Annotated[float, Field(gt=0)] = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    plateau_patience: Annotated[int, Field(ge=0)] = 5
    """Epochs without a better validation loss before the learning rate falls."""
    domain_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the reversed gradient from the real-or-synthetic head; 0: no such head. The paper gives none."""
    domain_hidden: Count = 1024
    """Width of that head's hidden layers. The paper gives none."""

    @model_validator(mode="after")
    def _check_backbone(self) -> Self:
        if self.backbone != "lite0" and self.weights is None:
            raise ValueError(
                f"backbone = {self.backbone!r} needs its ImageNet weights: set weights to a file"
            )
        if self.backbone != "lite0" and self.frozen_blocks:
            raise ValueError('frozen_blocks are of backbone = "lite0" only')
        return self


class EvaluateConfig(DefectSetConfig):
    """How good runs of the main job are, held against a real defect set, which must have splits."""

    output: Place
    """The folder of the report. Run the same command again to go on where it stopped."""
    runs: Annotated[dict[str, Place], Field(min_length=1)]
    """Name -> run folder of the main job; the first is "ours" in the verdict."""
    keep_defects: dict[str, Count] = Field(default_factory=dict)
    """Product -> how many training defects of each type stay, say {A = 20} for the paper's 20A. A checkpoint to go
    with it was trained with the same."""
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"
    only_accepted: bool = True
    """Leaves out the samples that a run kept below its gate."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides which samples and subsets are drawn."""
    features: FeatureConfig = FeatureConfig()
    distances: DistanceConfig = DistanceConfig()
    downstream: DownstreamConfig = DownstreamConfig()
    compute: ActorPoolConfig = ActorPoolConfig()
    """Actors extract features; a classifier's training reserves what an actor does."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for section, names in (("distances", self.distances.runs), ("downstream", self.downstream.runs)):
            for name in names or ():
                if name not in self.runs:
                    known = ", ".join(self.runs) or "none"
                    raise ValueError(f"{section}.runs: {name!r} is not among the runs ({known})")
        if len({self.train_split, self.val_split, self.test_split}) < 3:
            raise ValueError("train_split, val_split and test_split must be three")
        return self

    @property
    def distance_runs(self) -> tuple[str, ...]:
        return tuple(self.runs) if self.distances.runs is None else self.distances.runs

    @property
    def downstream_runs(self) -> tuple[str, ...]:
        conditions = self.downstream.conditions
        if not conditions or not (self.downstream.cross_domain or {*MODES, "mix"} & set(conditions)):
            return ()
        return tuple(self.runs) if self.downstream.runs is None else self.downstream.runs

    def settings(self) -> dict[str, Any]:
        """All that decides a figure, for the report."""
        return self.model_dump(mode="json", exclude={"output", "compute"})

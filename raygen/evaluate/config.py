"""The recipe of an evaluation."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from raygen.config import ActorPoolConfig, Config, Place, distinct
from raygen.families.recipes import DefectSetConfig
from raygen.records import MODES

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]

FOLD = "{fold}"
"""Stands for a fold's number in the name of runs."""

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


class ProbeConfig(Config):
    """Which samples lower a classifier's error, in minutes on CPUs: a logistic regression on frozen features of
    EfficientNet-Lite0, every cell (product × class) of equal weight. Half of a cell of defects is what is real,
    the other half samples. One on pixels tells where defects are, if they have masks."""

    runs: tuple[str, ...] | None = None
    """Which of `runs`; default: all. [] leaves them out."""
    conditions: Annotated[tuple[Condition, ...], AfterValidator(distinct)] = (
        "no-aug",
        "trad-aug",
        "latent",
        "reference",
        "mix",
    )
    """[] probes nothing. "trad-aug" is what all others are held against, with their samples and without."""
    alternatives: Annotated[tuple[str, ...], AfterValidator(distinct)] = ("copy-paste",)
    """Families that need no training, whose samples are made here, of each fold's training photos."""
    mixes: dict[str, dict[str, Share]] = Field(default_factory=dict)
    """Name -> shares of runs and alternatives, say {half = {ours = 0.5, copy-paste = 0.5}}."""
    amounts: Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(distinct)] = (1, 3, 10)
    """Samples for each real defect: the curve of amounts, of the mix of either mode."""
    amount: Count = 3
    """The amount of all other comparisons, the verdict's among them."""
    real_defects: Annotated[tuple[Count, ...], AfterValidator(distinct)] = (5, 10, 20, 50)
    """Real defects of each cell: the curve of how few there may be. Runs are part of it whose checkpoints were
    trained with as few: `keep_defects = {"*" = 10}`. [] draws none."""
    seeds: Count = 3
    """Draws of which samples are taken and, in the curve, of which defects stay; augmentations are drawn once."""
    augmentations: Count = 3
    """Of a training defect, for "trad-aug"; of a normal there is one."""
    max_samples: Count = 200
    """Of a cell, at most."""
    max_normals: Count = 1200
    """Training normals of a product, at most."""
    input_size: Annotated[int, Field(ge=32)] = 224
    """Photos are brought to this size for the network; 128 takes a third of the time, and tells less."""
    weights: Place | None = None
    """A file of Lite0's weights. Default: its package's own."""
    strengths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1e-1, 1e-2, 1e-3)
    """Of the regularisation, strength × |W|² beside the mean loss: that of the lowest validation loss is taken."""
    segmentation: bool = True
    """Whether pixels are classified, too, where the test photos have masks: 1 − Dice is a loss like the error."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.conditions and "trad-aug" not in self.conditions:
            raise ValueError(
                'conditions: keep "trad-aug", which all others are held against; or probe nothing, []'
            )
        if self.amount not in self.amounts:
            raise ValueError(f"amount = {self.amount} is not among amounts")
        for name, shares in self.mixes.items():
            if len(shares) < 2 or abs(sum(shares.values()) - 1) > 1e-6:
                raise ValueError(f"mixes.{name}: shares of two or more, 1 in all")
        return self


class EvaluateConfig(DefectSetConfig):
    """How good runs of the main job are, held against a real defect set, which must have splits."""

    output: Place
    """The folder of the report. Run the same command again to go on where it stopped."""
    runs: dict[str, Place | Annotated[tuple[Place, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Name -> run folder of the main job; the first is "ours" in the verdict. With `folds`: one for each fold,
    as a list, or as one name with {fold} in it."""
    folds: Annotated[int, Field(ge=3, le=100)] | None = None
    """Into how many folds the set is dealt for the probe, whole groups together, so that each defect is tested
    once. A run's checkpoint has left one out, `fold = 2` in its training. Default: the set's own splits."""
    keep_defects: dict[str, Count] = Field(default_factory=dict)
    """Product -> how many training defects of each type stay, say {A = 20} for the paper's 20A. A checkpoint to go
    with it was trained with the same."""
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"
    image_size: Annotated[int, Field(ge=8, le=4096)] = 64
    channels: Literal[1, 3] = 3
    """What photos are brought to where there is no run, whose samples' size it would be."""
    only_accepted: bool = True
    """Leaves out the samples that a run kept below its gate."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides which samples and subsets are drawn."""
    features: FeatureConfig = FeatureConfig()
    distances: DistanceConfig = DistanceConfig()
    downstream: DownstreamConfig = DownstreamConfig()
    probe: ProbeConfig = ProbeConfig()
    compute: ActorPoolConfig = ActorPoolConfig()
    """Actors extract features; a classifier's training reserves what an actor does."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        chosen = {
            "distances": self.distances.runs,
            "downstream": self.downstream.runs,
            "probe": self.probe.runs,
        }
        for section, names in chosen.items():
            for name in names or ():
                if name not in self.runs:
                    known = ", ".join(self.runs) or "none"
                    raise ValueError(f"{section}.runs: {name!r} is not among the runs ({known})")
        if len({self.train_split, self.val_split, self.test_split}) < 3:
            raise ValueError("train_split, val_split and test_split must be three")
        alternatives = self.probe.alternatives
        for mix, shares in self.probe.mixes.items():
            if unknown := [name for name in shares if name not in {*self.runs, *alternatives}]:
                known = ", ".join([*self.runs, *alternatives])
                raise ValueError(
                    f"probe.mixes.{mix}: {unknown[0]!r} is neither a run nor an alternative ({known})"
                )
        names = [*self.runs, *alternatives, *self.probe.mixes]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} names two of runs, alternatives and mixes")
        if not self.runs and not (self.probe.conditions and alternatives):
            raise ValueError("runs: name one, or probe.alternatives")
        return self

    def uris_of(self, name: str) -> tuple[str, ...]:
        """The run folders of a name."""
        place = self.runs[name]
        if not isinstance(place, str):
            return place
        if self.folds is not None and FOLD in place:
            return tuple(place.replace(FOLD, str(fold)) for fold in range(self.folds))
        return (place,)

    @property
    def probe_runs(self) -> tuple[str, ...]:
        if not {*MODES, "mix"} & set(self.probe.conditions):
            return ()
        return tuple(self.runs) if self.probe.runs is None else self.probe.runs

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

"""What a family is to the engines: a `Family`, which needs no torch; at work on a training, a `Trainer`; and in
an actor of the main job, a `DefectGenerator`. Loop, folder, recorder, plan, stages, gate are the same for all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from raygen.checkpoint import REFERENCE_CODES, Checkpoint, Reference
from raygen.data.photo import Photo
from raygen.data.survey import Kind
from raygen.errors import UserError
from raygen.families.photos import DefectSet
from raygen.families.recipes import BankConfig, FamilyConfig, SamplingConfig, TrainingConfig
from raygen.records import MODES, Mode, SampleRequest

if TYPE_CHECKING:
    from torch import Tensor, device

    from raygen.families.vital_signs import Signs, Threshold
    from raygen.families.world import Terms, Training, World


class Family:
    """One family, as the engines see it before they need its networks; what differs is overridden."""

    recipe: type[FamilyConfig] | None = None
    """The recipe of its checkpoints: a `TrainingConfig` if they are trained, a `BankConfig` if they are collected;
    None if there are none."""
    draws_normals = False
    """Whether it makes normals of its own, from a pool of seeds."""
    takes_photographs = True
    """Whether it puts defects on photographs."""
    has_masks = True
    """Whether it knows where its defects are, so that samples have masks and scores, and go through the gate."""
    uses_gpus = True
    """Whether its actors compute on a GPU where there is one."""
    takes: Kind = "defects"
    """What a bank is taken of."""
    needs_references = True
    """Whether all but latent-guided samples take a row of the checkpoint's reference bank."""

    @property
    def learns(self) -> bool:
        """Whether a checkpoint that has seen no image is worthless."""
        return self.recipe is not None and issubclass(self.recipe, TrainingConfig)

    def trainer(self) -> "type[Trainer[Any]]":
        """What carries its trainings out; only asked of families that learn."""
        raise AssertionError("nothing is learned here in iterations")

    def collector(self) -> "type[Collector]":
        """What collects its banks; only asked of families whose recipe is a `BankConfig`."""
        raise AssertionError("nothing is collected here")

    def generator(self, checkpoint: Checkpoint, config: SamplingConfig) -> "DefectGenerator":
        """Builds the generator of a checkpoint on the GPU this process may use, else on the CPU.

        Raises:
            UserError: the checkpoint's sizes and weights do not go together.
        """
        raise NotImplementedError

    def judge(self, checkpoint: Checkpoint, config: SamplingConfig) -> "Judge":
        """Builds the judge that a checkpoint is, for samples of other families; needs no torch before it judges.

        Raises:
            UserError: it is none.
        """
        raise UserError(
            f"{checkpoint.uri} is no judge; name a folder that `raygen train jobs/judge.toml` wrote"
        )

    def modes(self, checkpoint: Checkpoint) -> tuple[Mode, ...]:
        """The modes that a checkpoint has."""
        return MODES

    def refuse(self, checkpoint: Checkpoint, config: SamplingConfig) -> None:
        """Raises UserError if a config asks for what this checkpoint cannot make."""

    def warnings(self, checkpoint: Checkpoint, config: SamplingConfig) -> list[str]:
        """What to tell the user about a checkpoint before the main job starts."""
        return []


# ------------------------------------------------------------------------------------------------------ to train

Fields = dict[str, np.ndarray]
"""A process's share of a batch, before it becomes tensors."""

MakeBatch = Callable[[Sequence[int]], Fields]
"""Numbers of images -> what the networks see of them; can be pickled."""

T = TypeVar("T", bound="Training")


@dataclass(frozen=True)
class Contents:
    """What a family puts into a checkpoint."""

    model: dict[str, Any]  # its sizes
    image_size: int
    channels: int
    tensors: "Mapping[str, Mapping[str, Tensor | NDArray[Any]]]"  # file name -> tensors, or arrays
    references: tuple[Reference, ...] = ()
    report: Sequence[str] = ()  # lines for the user
    record: Mapping[str, Any] = field(
        default_factory=dict
    )  # JSON, for the checkpoint's record of its training


class Settled(Protocol):
    """What a training's folder has settled for good, see `raygen.train.folder.TrainingRun`."""

    @property
    def model(self) -> dict[str, Any]: ...

    @property
    def products(self) -> tuple[str, ...]: ...

    @property
    def defect_types(self) -> tuple[str, ...]: ...


class Trainer(Protocol[T]):
    """One family at work on one training; made of its recipe and what the folder says it is."""

    @property
    def shown(self) -> tuple[str, ...]:
        """The losses that a progress line shows."""
        ...

    @property
    def thresholds(self) -> "tuple[Threshold, ...]":
        """Where its vital signs say that a training is sick."""
        ...

    def __init__(self, config: Any, run: Settled) -> None: ...

    @staticmethod
    def draft(config: Any) -> tuple[dict[str, Any], DefectSet]:
        """The sizes of the networks that a recipe asks for, and the photos to learn from and to validate on.

        Raises:
            UserError: no such photos, or wrong sizes.
        """
        ...

    def describe(self) -> str:
        """The sizes for a person: `64 px, 1 channel, width 0.125`."""
        ...

    def start(self, on: "device") -> T:
        """A training at its first image."""
        ...

    def warm(self, training: T) -> None:
        """Brings a training to where its steps cost what most of them do."""
        ...

    def stepper(self, training: T, world: "World") -> "Callable[[Fields], Terms]":
        """One iteration on this process's share of a batch: moves `training` on by the whole batch, and returns
        this process's terms by name, without gradients. They may be non-finite."""
        ...

    def maker(self, learning: DefectSet, in_memory: bool) -> MakeBatch:
        """Draws, loads and augments images by number; photos are decoded now, or when they are wanted."""
        ...

    def validate(self, training: T, judged: DefectSet) -> dict[str, float]:
        """How good the averaged weights are, by name; `objective` is what the best checkpoint has least of."""
        ...

    def vital_signs(self, training: T, learning: DefectSet, judged: DefectSet) -> "Signs":
        """Whether it learns at all, by name; of the same photos and latents at every checkpoint, without what
        cannot be told.

        Args:
            training: as it stands; nothing in it is changed.
            learning: what it learns from.
            judged: photos held back; `learning` itself where there are none.
        """
        ...

    def sheet(self, training: T, judged: DefectSet, title: str = "") -> bytes:
        """A PNG that shows what the averaged weights do; `title`, lines of text, stands above it."""
        ...

    def contents(self, training: T, learning: DefectSet) -> Contents:
        """The checkpoint."""
        ...


# ---------------------------------------------------------------------------------------------------- to collect


class Taken(NamedTuple):
    """What a collector takes of one photo."""

    arrays: dict[str, NDArray[Any]]
    facts: Mapping[str, Any] = MappingProxyType({})  # JSON
    pictures: Sequence[
        NDArray[np.uint8]
    ] = ()  # to look at: (H, W, C) each, H = W = the checkpoint's image_size
    refused: str = ""  # why nothing is taken


class Collector(Protocol):
    """A family that learns nothing in iterations: it takes something of every photo, each on its own, on whichever
    machine, and a checkpoint is what it makes of all that."""

    @property
    def captions(self) -> tuple[str, ...]:
        """What a photo's pictures show; nothing if there are none, and no sheet is drawn."""
        ...

    def __init__(self, config: Any) -> None: ...

    def draft(self) -> tuple[dict[str, Any], DefectSet]:
        """What a checkpoint's `model` will say, and the photos to take from.

        Raises:
            UserError: no such photos.
        """
        ...

    def take(self, photo: Photo) -> Taken:
        """What there is to take of a photo.

        Raises:
            UserError: the photo is gone or damaged.
        """
        ...

    def contents(self, photos: Sequence[Photo], taken: Sequence[Taken]) -> Contents:
        """The checkpoint, of what was taken of each photo that was not refused; at least one."""
        ...


B = TypeVar("B", bound=BankConfig)


class CollectsBank(Generic[B]):
    """What collectors have in common."""

    captions: tuple[str, ...] = ("photo",)

    def __init__(self, config: B) -> None:
        self.config = config

    def bank(
        self,
        model: dict[str, Any],
        photos: Sequence[Photo],
        arrays: "Mapping[str, NDArray[Any]]",
        defect_type: str | None = None,
    ) -> Contents:
        """A checkpoint of arrays; its references are the photos, of their own defect types or of the one named."""
        found = [
            Reference(uri=photo.uri, product=photo.product, defect_type=defect_type or photo.defect_type)
            for photo in photos
        ]
        sizes = self.config.image_size, self.config.channels
        return Contents(model, *sizes, {REFERENCE_CODES: arrays}, tuple(found))


# --------------------------------------------------------------------------------------------------- to generate


class Views(NamedTuple):
    """Some rows of windows, one view of each."""

    pixels: NDArray[np.uint8]  # (n, H, W, C)
    products: list[str]  # (n,)
    allowed: NDArray[np.bool_] | None  # (n, H, W): where defects may lie; None for anywhere
    backgrounds: Any  # (n, C, H, W), as the generator's `backgrounds` gave them; or None


class Made(NamedTuple):
    """One sample on each of n views."""

    pixels: NDArray[np.uint8]  # (n, H, W, C)
    # (n, C or C + 1, H, W): the weighted defects, in residual compositions
    layers: NDArray[np.float32] | None
    masks: NDArray[np.uint8]  # (n, H, W): 255 on the defect, else 0
    scores: NDArray[np.float32]  # (n, scores), in the order of SCORES; NaN where nobody can tell
    references: NDArray[np.int64]  # (n,): row of the checkpoint's reference index; -1 for none


class Rows(Protocol):
    """Something of n views, that can be chosen from as an array can."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> Any: ...


class DefectGenerator(Protocol):
    """What an actor holds."""

    is_judged: bool
    """Whether its samples have masks and scores, and go through the gate."""
    micro_batch: int
    """The most views it takes at once."""

    @property
    def block(self) -> int | None:
        """The most views whose backgrounds shall be held at once; None for a shard's."""
        ...

    def draw_normals(self, seeds: Sequence[int], products: Sequence[str]) -> tuple[NDArray[np.uint8], Rows]:
        """Draws n normals, one from each seed, (n, H, W, C), and their backgrounds; only asked of families that
        can."""
        ...

    def backgrounds(self, pixels: NDArray[np.uint8]) -> Rows | None:
        """What samples of the same views have in common: (n, H, W, C) to something with n rows, or to None."""
        ...

    def make(self, views: Views, request: SampleRequest, seeds: NDArray[np.int64]) -> Made:
        """Makes a request on up to `micro_batch` views; `seeds`, (n,), are the only randomness."""
        ...


class Judge(Protocol):
    """What scores samples of families that have no discriminator of their own."""

    @property
    def classes(self) -> tuple[str, ...]:
        """What it tells apart: "normal", and its defect types."""
        ...

    def __call__(self, pixels: NDArray[np.uint8], defect_type: str) -> Mapping[str, NDArray[np.float32]]:
        """Judges n samples, (n, H, W, 1 or 3), of a wanted defect type, one of its classes.

        Returns:
            Names of SCORES -> the samples' own, (n,); NaN where it cannot tell.
        """
        ...


class TakesPhotographs:
    """What generators that draw no normals have in common."""

    block = None

    def __init__(self, checkpoint: Checkpoint, config: SamplingConfig) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.references = checkpoint.references
        self.micro_batch = config.micro_batch
        self.is_judged = config.masks

    @cached_property
    def bank(self) -> dict[str, NDArray[Any]]:
        """The arrays of the checkpoint's reference bank, read when they are first needed."""
        return self.checkpoint.arrays(REFERENCE_CODES)

    def backgrounds(self, pixels: NDArray[np.uint8]) -> Rows | None:
        """There is nothing to compute."""
        return None

    def draw_normals(self, seeds: Sequence[int], products: Sequence[str]) -> NoReturn:
        raise AssertionError("the plan refuses this")


def stream(seed: int) -> np.random.Generator:
    """A seed's own stream of numbers: Philox, the same on every machine."""
    return np.random.Generator(np.random.Philox(key=int(seed)))

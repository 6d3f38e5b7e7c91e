"""A checkpoint folder: what `train` leaves and `generate` takes.

    config.json                        CheckpointConfig: sizes, names, and the SHA-256 of every file beside it
    generator.safetensors              EMA weights of all that generation needs
    references/codes.safetensors       the reference bank's style and content codes, row for row with
    references/index.json              where each reference came from
    judge.safetensors                  the discriminator with its classifiers, for scores
    learned.parquet                    every photo that it learned from; decides nothing

Nothing is ever unpickled. config.json is written last: a folder with one is complete.
"""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from raygen import storage
from raygen.errors import UserError
from raygen.learned import LEARNED, moved
from raygen.records import check_name

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

CONFIG = "config.json"
GENERATOR = "generator.safetensors"
REFERENCE_CODES = "references/codes.safetensors"
REFERENCE_INDEX = "references/index.json"
JUDGE = "judge.safetensors"
BEST = "best.json"


class Reference(BaseModel):
    """A photo in the reference bank: a real defect, by its codes, or what else guides a family's samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    product: str
    defect_type: str


class CheckpointConfig(BaseModel):
    """config.json: what the weights are, and what they were trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str  # a name in raygen.families.FAMILIES
    model: dict[str, Any]  # the family's own sizes
    image_size: int
    channels: int
    products: tuple[str, ...]
    defect_types: tuple[str, ...]  # without "normal"
    images_seen: int  # training progress; 0 = untrained
    trained_on: str  # for a person: which images, which command
    training: dict[str, Any] = {}  # for the record: recipe, seconds, validation; decides nothing
    files: dict[str, str] = {}  # name -> SHA-256

    @field_validator("products", "defect_types")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(check_name("product or defect type", name, CONFIG) for name in names)
        except UserError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read whole, every file checked against its SHA-256."""

    uri: str
    config: CheckpointConfig
    files: Mapping[str, bytes]

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (64 hexadecimal digits) over what decides a sample and its scores: sizes, names, weights and
        references; not over how long or on what the weights were trained."""
        deciding = self.config.model_dump(
            mode="json", include={"family", "model", "image_size", "channels", "products", "defect_types"}
        )
        deciding["files"] = {
            name: sha
            for name, sha in self.config.files.items()
            if name in (GENERATOR, JUDGE) or name.startswith("references/")
        }
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def references(self) -> tuple[Reference, ...]:
        """The reference bank's index; row i tells of row i of the codes."""
        rows = json.loads(self.files[REFERENCE_INDEX]) if REFERENCE_INDEX in self.files else []
        return tuple(Reference.model_validate(row) for row in rows)

    def tensors(self, name: str) -> "dict[str, torch.Tensor]":
        """The tensors of one safetensors file of this checkpoint, on the CPU; float32, however they are stored."""
        import safetensors.torch

        return {key: value.float() for key, value in safetensors.torch.load(self.files[name]).items()}

    def arrays(self, name: str) -> "dict[str, NDArray[Any]]":
        """Likewise as arrays of the types in which they are stored, without torch."""
        import safetensors.numpy

        return safetensors.numpy.load(self.files[name])


def save_checkpoint(
    uri: str,
    config: CheckpointConfig,
    tensors: "Mapping[str, Mapping[str, torch.Tensor | NDArray[Any]]]",
    references: tuple[Reference, ...] = (),
    learned: bytes | None = None,
) -> Checkpoint:
    """Writes a checkpoint folder.

    Args:
        uri: the folder.
        config: everything but `files`, which is filled in here.
        tensors: file name (GENERATOR, REFERENCE_CODES, …) -> its tensors, or its arrays.
        references: the bank's index, as many as the codes have rows.
        learned: what it learned from, as `raygen.learned.write_learned` writes it.
    """
    files = {name: _safetensors(group) for name, group in tensors.items()}
    if references:
        files[REFERENCE_INDEX] = json.dumps([item.model_dump() for item in references], indent=1).encode()
    if learned is not None:
        files[LEARNED] = learned
    for name, data in files.items():
        storage.put(storage.join(uri, name), data)
    config = config.model_copy(update={"files": {name: _sha256(data) for name, data in files.items()}})
    storage.put(storage.join(uri, CONFIG), config.model_dump_json(indent=2).encode())
    return Checkpoint(uri, config, files)


def load_checkpoint(uri: str) -> Checkpoint:
    """Reads what generation needs of a checkpoint folder, every file checked.

    A training's folder stands for its best checkpoint. `null:SIZExCHANNELS` names the generator that copies the
    normal: a checkpoint without files; `null:128x1@0.5` takes half a millisecond over a sample, as an
    accelerator would.

    Raises:
        UserError: no checkpoint there, or a damaged one; names the file.
    """
    if uri.startswith("null:"):
        return _null_checkpoint(uri)
    try:
        config = CheckpointConfig.model_validate_json(storage.read(storage.join(uri, CONFIG)))
    except storage.ObjectMissingError:
        if best := _best(uri):
            return load_checkpoint(best)
        raise UserError(
            f"{uri}: no checkpoint there (no {CONFIG}); name a folder that `train` wrote"
        ) from None
    except ValidationError as error:
        raise UserError(f"{uri}/{CONFIG}: not a checkpoint's config ({_first(error)})") from None
    files: dict[str, bytes] = {}
    for name, sha in config.files.items():
        try:
            files[name] = storage.read(storage.join(uri, name))
        except storage.ObjectMissingError:
            raise UserError(f"{uri}/{name}: missing; copy the whole checkpoint folder again") from None
        if _sha256(files[name]) != sha:
            raise UserError(f"{uri}/{name}: damaged (SHA-256 differs); copy the checkpoint again")
    return Checkpoint(uri, config, files)


def export_checkpoint(uri: str, target_uri: str, defects_uri: str | None = None) -> Checkpoint:
    """Copies a checkpoint without the state of its training, its weights in half precision: for handing on.

    Args:
        uri: a checkpoint, or a training's folder for its best one.
        target_uri: the folder to write.
        defects_uri: where the defect set is now, if it has moved: takes the place of its URI at training.

    Raises:
        UserError: no checkpoint there, or a damaged one.
    """
    checkpoint = load_checkpoint(uri)
    names = [name for name in (GENERATOR, REFERENCE_CODES, JUDGE) if name in checkpoint.config.files]
    config, references = checkpoint.config, checkpoint.references
    old, learned = config.training.get("recipe", {}).get("defects"), checkpoint.files.get(LEARNED)
    if defects_uri and old:
        learned = moved(learned, old, defects_uri) if learned is not None else None
        config = CheckpointConfig.model_validate_json(config.model_dump_json().replace(old, defects_uri))
        references = tuple(
            item.model_copy(update={"uri": item.uri.replace(old, defects_uri)}) for item in references
        )
    tensors = {name: {key: _half(value) for key, value in checkpoint.arrays(name).items()} for name in names}
    return save_checkpoint(target_uri, config, tensors, references, learned)


def _half(values: "NDArray[Any]") -> "NDArray[Any]":
    return values.astype(np.float16) if np.issubdtype(values.dtype, np.floating) else values


def _safetensors(tensors: "Mapping[str, torch.Tensor | NDArray[Any]]") -> bytes:
    if all(isinstance(value, np.ndarray) for value in tensors.values()):
        import safetensors.numpy

        return safetensors.numpy.save({key: np.asarray(value, order="C") for key, value in tensors.items()})
    import safetensors.torch

    return safetensors.torch.save({key: value.contiguous() for key, value in tensors.items()})  # pyright: ignore


def _best(uri: str) -> str | None:
    """The best checkpoint of a training's folder."""
    try:
        return storage.join(uri, json.loads(storage.read(storage.join(uri, BEST)))["checkpoint"])
    except storage.ObjectMissingError:
        return None


def _null_checkpoint(uri: str) -> Checkpoint:
    match = re.fullmatch(r"(null):(\d+)x([13])(?:@(\d+(?:\.\d+)?))?", uri)
    if not match:
        raise UserError(
            f"{uri}: write null:SIZExCHANNELS, say null:128x1, null:256x3 or, with milliseconds, null:128x1@0.5"
        )
    family, size, channels = match[1], int(match[2]), int(match[3])
    config = CheckpointConfig(
        family=family,
        model={"milliseconds": float(match[4])} if match[4] else {},
        image_size=size,
        channels=channels,
        products=(),
        defect_types=("scratches", "spots"),
        images_seen=0,
        trained_on="nothing: it copies the normal",
    )
    return Checkpoint(uri, config, {})


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}"

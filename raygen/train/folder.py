"""A training's folder: what stands there lets the same command go on, a person look, and the main job begin.

    run.json                          what this training is: resolved config, photos, networks; its put begins it
    photos/<sha256>.json              the frozen list of photos, so that image number n stays image number n
    photos/<sha256>.parquet           the same with each SHA-256, for checkpoints to tell what they know
    checkpoints/000020000/            by images seen; a whole checkpoint (see raygen.checkpoint), and beside it
        state.pt                      what it takes to go on from there (the last checkpoint's only)
        sheet.png                     what its weights do
    metrics/000020000.jsonl           the losses on the way to that checkpoint, a line for every stretch
    tensorboard/                      the same for TensorBoard
    best.json                         the checkpoint with the lowest validation objective
    stopped.txt                       only where a training stopped itself: why, and what to do

`load_checkpoint` of the folder itself takes its best checkpoint. Everything is an object put whole, so a folder on
S3 works as a local one does, and nothing half written is ever taken for whole.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from raygen import storage
from raygen.checkpoint import BEST, CONFIG, CheckpointConfig, save_checkpoint
from raygen.data.photo import Photo
from raygen.errors import UserError
from raygen.families import DEFAULT
from raygen.families.family import Contents
from raygen.families.photos import DefectSet
from raygen.families.recipes import FamilyConfig
from raygen.train.config import name_of

RUN, STATE, SHEET, STOPPED = "run.json", "state.pt", "sheet.png", "stopped.txt"


class TrainingRun(BaseModel):
    """run.json: decided once, by whoever puts it first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: dict[str, Any]  # FamilyConfig.identity() and all else of the command that began it
    photos: str  # name of the frozen list
    products: tuple[str, ...]
    defect_types: tuple[str, ...]
    model: dict[str, Any]  # the networks' sizes, as the family has them
    command: str
    notes: tuple[str, ...] = ()  # how the defect set was read


class Best(BaseModel):
    """best.json: a pointer, so that changing it is one put."""

    checkpoint: str  # its name below the folder
    objective: float


class TrainingFolder:
    """Reads and writes a training's folder.

    Args:
        uri: a local folder or an s3:// prefix.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def join(self, *names: str) -> str:
        """The URI of something in the folder."""
        return storage.join(self.uri, *names)

    # -------------------------------------------------------------------------------------- what it is

    def read_run(self) -> TrainingRun | None:
        """The training that the folder holds, if it holds one.

        Raises:
            UserError: run.json is none.
        """
        try:
            return TrainingRun.model_validate_json(storage.read(self.join(RUN)))
        except storage.ObjectMissingError:
            return None
        except ValidationError as error:
            raise UserError(
                f"{self.join(RUN)}: not a training's ({error.errors()[0]['msg']}); choose another output"
            ) from None

    def begin(self, run: TrainingRun, photos: Sequence[Photo], learned: bytes | None = None) -> TrainingRun:
        """Begins a training, or joins the one that began before; returns the one that stands.

        Args:
            run: what it is.
            photos: of which it learns, and on which it validates.
            learned: the same, see `raygen.learned`, with those of the checkpoints that it goes on from.
        """
        storage.put(self.join(run.photos), _photos_json(photos))
        if learned is not None:
            storage.put(self.join(_record_name(run.photos)), learned)
        storage.put_if_absent(self.join(RUN), run.model_dump_json(indent=2).encode())
        found = self.read_run()
        assert found is not None
        return found

    def refuse_another(self, run: TrainingRun, config: FamilyConfig) -> None:
        """Raises UserError unless the training in the folder is the one that the config asks for."""
        # Older ones lack newer keys, and had what is their default now.
        begun = {**type(config).model_construct().identity(), "family": DEFAULT, **run.config}
        for key, wanted in config.identity().items():
            if begun.get(key) != wanted:
                raise UserError(
                    f"{self.uri} holds another training: its {key} is {begun.get(key)!r}, not {wanted!r}; "
                    "choose another output, or go back to that config"
                )

    def read_photos(self, run: TrainingRun) -> list[Photo]:
        """The frozen list of photos."""
        return [Photo.of_row(row) for row in json.loads(storage.read(self.join(run.photos)))]

    # ------------------------------------------------------------------------------------ checkpoints

    def checkpoints(self) -> list[int]:
        """Images seen at each complete checkpoint, rising."""
        base = self.join("checkpoints")
        names = (entry.uri.removeprefix(f"{base}/").split("/") for entry in storage.list_files(base))
        return sorted(int(name[0]) for name in names if name[1:] == [CONFIG])

    def checkpoint_uri(self, images_seen: int) -> str:
        """The folder of a checkpoint."""
        return self.join(checkpoint_name(images_seen))

    def latest_state(self, device: torch.device) -> dict[str, Any] | None:
        """The state at the last complete checkpoint, if there is one."""
        for images_seen in reversed(self.checkpoints()):
            try:
                data = storage.read(storage.join(self.checkpoint_uri(images_seen), STATE))
            except storage.ObjectMissingError:
                continue
            return torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        return None

    def save(
        self,
        contents: Contents,
        config: FamilyConfig,
        run: TrainingRun,
        learning: DefectSet,
        images_seen: int,
        **record: Any,
    ) -> None:
        """Writes a checkpoint, but for what stands beside it.

        Args:
            contents: of the family.
            config: the recipe.
            run: the training.
            learning: the photos that it learned from.
            images_seen: its progress.
            record: what else the checkpoint shall tell of the training.
        """
        places = [uri for uri in (config.defects, config.more_defects) if uri]
        checkpoint = CheckpointConfig(
            family=name_of(config),
            model=contents.model,
            image_size=contents.image_size,
            channels=contents.channels,
            products=run.products,
            defect_types=run.defect_types,
            images_seen=images_seen,
            trained_on=f"{' and '.join(places)}: {learning.describe()}",
            training={"command": run.command, "recipe": config.identity(), **record},
        )
        save_checkpoint(
            self.checkpoint_uri(images_seen),
            checkpoint,
            contents.tensors,
            contents.references,
            self._read_record(run),
        )

    def _read_record(self, run: TrainingRun) -> bytes | None:
        try:
            return storage.read(self.join(_record_name(run.photos)))
        except storage.ObjectMissingError:
            return None  # of a training that began with an older version

    def note_best(self, images_seen: int, objective: float) -> bool:
        """Points best.json to a checkpoint if it is the best so far; returns whether it is."""
        best = self.best()
        if best is not None and best.objective <= objective:
            return False
        best = Best(checkpoint=checkpoint_name(images_seen), objective=objective)
        storage.put(self.join(BEST), best.model_dump_json().encode())
        return True

    def best(self) -> Best | None:
        """The best checkpoint so far."""
        try:
            return Best.model_validate_json(storage.read(self.join(BEST)))
        except storage.ObjectMissingError:
            return None

    def prune(self, num_to_keep: int) -> None:
        """Deletes all but the latest checkpoints and the best one, and the state of all but the latest one."""
        seen = self.checkpoints()
        best = self.best()
        kept = {checkpoint_name(images_seen) for images_seen in seen[-num_to_keep:]}
        kept |= {best.checkpoint} if best else set()
        for images_seen in seen[:-1]:
            uri = self.checkpoint_uri(images_seen)
            storage.delete(storage.join(uri, STATE))
            if checkpoint_name(images_seen) not in kept:
                storage.delete(storage.join(uri, CONFIG))  # first: without it the rest is no checkpoint
                for entry in list(storage.list_files(uri)):
                    storage.delete(entry.uri)


def checkpoint_name(images_seen: int) -> str:
    """`checkpoints/000020000`"""
    return f"checkpoints/{images_seen:09d}"


def photos_name(photos: Sequence[Photo]) -> str:
    """Name of the frozen list of photos: its content's."""
    return f"photos/{hashlib.sha256(_photos_json(photos)).hexdigest()}.json"


def _record_name(photos_name: str) -> str:
    return photos_name.removesuffix(".json") + ".parquet"


def _photos_json(photos: Sequence[Photo]) -> bytes:
    return json.dumps([photo.row() for photo in photos]).encode()

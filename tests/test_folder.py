"""A training's folder: begun once, resumed from what is whole, pruned without losing the best."""

import io

import pytest
import torch
from factories import write_checkpoint
from training import recipe

from raygen import storage
from raygen.checkpoint import load_checkpoint
from raygen.data.photo import Photo
from raygen.errors import UserError
from raygen.train.folder import RUN, STATE, TrainingFolder, TrainingRun, photos_name

PHOTOS = [Photo(f"set/p/normal/{i}.png", "p", "normal", None, "train", f"etag{i}") for i in range(3)]


def a_run(photos: list[Photo] = PHOTOS, **changes: object) -> TrainingRun:
    config = recipe(**changes).model_dump(mode="json")
    return TrainingRun(
        config=config,
        photos=photos_name(photos),
        products=("p",),
        defect_types=("s",),
        model={},
        command="train",
    )


def write(folder: TrainingFolder, images_seen: int, objective: float) -> None:
    uri = folder.checkpoint_uri(images_seen)
    torch.save({"images_seen": images_seen}, buffer := io.BytesIO())
    storage.put(storage.join(uri, STATE), buffer.getvalue())
    write_checkpoint(uri, num_references=1)
    folder.note_best(images_seen, objective)


def test_whoever_begins_first_decides(folder_uri: str) -> None:
    folder = TrainingFolder(folder_uri)
    assert folder.read_run() is None
    first = folder.begin(a_run(seed=1), PHOTOS)
    later = PHOTOS[:2]
    assert folder.begin(a_run(later, seed=2), later) == first
    assert folder.read_photos(first) == PHOTOS


def test_another_recipe_is_refused_and_another_spread_is_not(tmp_path) -> None:
    folder = TrainingFolder(str(tmp_path))
    run = folder.begin(a_run(), PHOTOS)
    for changes in ({"compute": {"num_workers": 2}}, {"num_to_keep": 5}, {"checkpoint_every": 3}):
        folder.refuse_another(run, recipe(**changes))
    for changes in ({"seed": 1}, {"images": 25}, {"loss": {"cycle": 2}}, {"defects": "/elsewhere"}):
        with pytest.raises(UserError, match=f"holds another training: its {next(iter(changes))} is"):
            folder.refuse_another(run, recipe(**changes))


def test_a_training_that_is_older_than_a_key_goes_on_with_its_default(tmp_path) -> None:
    folder = TrainingFolder(str(tmp_path))
    run = a_run()
    older = {key: value for key, value in run.config.items() if key != "keep_defects"}
    run = folder.begin(run.model_copy(update={"config": older}), PHOTOS)
    folder.refuse_another(run, recipe())
    with pytest.raises(UserError, match=r"its keep_defects is \{\}, not \{'A': 20\}"):
        folder.refuse_another(run, recipe(keep_defects={"A": 20}))


def test_a_file_that_is_no_training_is_not_overwritten(tmp_path) -> None:
    folder = TrainingFolder(str(tmp_path))
    storage.put(folder.join(RUN), b"{}")
    with pytest.raises(UserError, match=r"run\.json: not a training's"):
        folder.read_run()


def test_a_checkpoint_counts_when_it_is_whole(folder_uri: str) -> None:
    folder = TrainingFolder(folder_uri)
    assert folder.checkpoints() == []
    assert folder.latest_state(torch.device("cpu")) is None
    write(folder, 10, 1.0)
    storage.put(
        storage.join(folder.checkpoint_uri(20), STATE), b"half of it"
    )  # killed before its config.json
    assert folder.checkpoints() == [10]
    assert folder.latest_state(torch.device("cpu")) == {"images_seen": 10}


def test_pruning_keeps_the_latest_and_the_best(folder_uri: str) -> None:
    folder = TrainingFolder(folder_uri)
    objectives = {10: 3.0, 20: 1.0, 30: 2.0, 40: 2.5, 1000: 1.5}
    for images_seen, objective in objectives.items():
        write(folder, images_seen, objective)
        folder.prune(num_to_keep=2)
    assert folder.checkpoints() == [20, 40, 1000]
    assert load_checkpoint(folder_uri).uri == folder.checkpoint_uri(20)
    left = {entry.uri.removeprefix(folder_uri) for entry in storage.list_files(folder_uri)}
    assert {name for name in left if name.endswith(STATE)} == {f"/checkpoints/000001000/{STATE}"}
    assert not any(name.startswith(("/checkpoints/000000010/", "/checkpoints/000000030/")) for name in left)

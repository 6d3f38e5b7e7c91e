"""A checkpoint comes back as it was saved, or says which file is damaged."""

import pytest
import torch
from factories import write_checkpoint

from raygen import storage
from raygen.checkpoint import (
    BEST,
    CONFIG,
    GENERATOR,
    REFERENCE_CODES,
    REFERENCE_INDEX,
    export_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from raygen.errors import UserError


def test_what_is_saved_is_loaded(folder_uri: str) -> None:
    saved = write_checkpoint(folder_uri)
    loaded = load_checkpoint(folder_uri)
    assert loaded.config == saved.config
    assert loaded.digest == saved.digest
    assert loaded.references == saved.references
    assert len(loaded.references) == len(loaded.tensors(REFERENCE_CODES)["style"])
    for name, tensor in saved.tensors(GENERATOR).items():
        assert torch.equal(loaded.tensors(GENERATOR)[name], tensor)


def test_the_digest_is_of_what_decides_a_sample(tmp_path) -> None:
    first = write_checkpoint(str(tmp_path / "a"))
    assert write_checkpoint(str(tmp_path / "b")).digest == first.digest
    assert (
        write_checkpoint(str(tmp_path / "c"), images_seen=99, trained_on="other words").digest == first.digest
    )
    assert write_checkpoint(str(tmp_path / "d"), seed=1).digest != first.digest
    assert write_checkpoint(str(tmp_path / "e"), num_references=3).digest != first.digest
    assert write_checkpoint(str(tmp_path / "f"), defect_types=("spots", "scratches")).digest != first.digest


@pytest.mark.parametrize("name", [GENERATOR, REFERENCE_CODES, REFERENCE_INDEX])
def test_damage_is_named(tmp_path, name: str) -> None:
    uri = str(tmp_path)
    write_checkpoint(uri)
    data = bytearray(storage.read(storage.join(uri, name)))
    data[len(data) // 2] ^= 1
    storage.put(storage.join(uri, name), bytes(data))
    with pytest.raises(UserError, match=rf"{name}: damaged"):
        load_checkpoint(uri)
    storage.delete(storage.join(uri, name))
    with pytest.raises(UserError, match=rf"{name}: missing"):
        load_checkpoint(uri)


def test_no_checkpoint_and_a_config_of_another_kind(tmp_path) -> None:
    uri = str(tmp_path)
    with pytest.raises(UserError, match="no checkpoint there"):
        load_checkpoint(uri)
    for text in ("{", "{}", '{"family": "vae"}'):
        storage.put(storage.join(uri, CONFIG), text.encode())
        with pytest.raises(UserError, match="not a checkpoint's config"):
            load_checkpoint(uri)


def test_the_null_checkpoint_copies_at_any_size() -> None:
    checkpoint = load_checkpoint("null:64x3")
    assert (checkpoint.config.image_size, checkpoint.config.channels) == (64, 3)
    assert checkpoint.digest != load_checkpoint("null:128x3").digest
    with pytest.raises(UserError, match="null:SIZExCHANNELS"):
        load_checkpoint("null:64")


def test_a_training_s_folder_stands_for_its_best_checkpoint(folder_uri: str) -> None:
    write_checkpoint(f"{folder_uri}/checkpoints/000000010")
    best = write_checkpoint(f"{folder_uri}/checkpoints/000000020", seed=1)
    storage.put(f"{folder_uri}/{BEST}", b'{"checkpoint": "checkpoints/000000020", "objective": 1.5}')
    assert load_checkpoint(folder_uri).digest == best.digest


def test_an_exported_checkpoint_is_half_as_large_and_the_same_to_half_precision(tmp_path) -> None:
    old = "s3://old/defects"
    uris = [f"{old}/brushed_metal/scratches/000001.png", "elsewhere.png"]
    made = write_checkpoint(
        str(tmp_path / "a"), training={"recipe": {"defects": old}}, trained_on=f"{old}: all"
    )
    references = tuple(item.model_copy(update={"uri": uris[i % 2]}) for i, item in enumerate(made.references))
    tensors = {name: made.tensors(name) for name in (GENERATOR, REFERENCE_CODES)}
    save_checkpoint(str(tmp_path / "b"), made.config, tensors, references)
    export_checkpoint(str(tmp_path / "b"), str(tmp_path / "c"), "set")
    exported = load_checkpoint(str(tmp_path / "c"))
    assert len(exported.files[GENERATOR]) < 0.6 * len(made.files[GENERATOR])
    for name, tensor in made.tensors(GENERATOR).items():
        torch.testing.assert_close(exported.tensors(GENERATOR)[name], tensor, rtol=1e-3, atol=1e-6)
    moved = {"set/brushed_metal/scratches/000001.png", "elsewhere.png"}
    assert {item.uri for item in exported.references} == moved
    assert exported.config.trained_on == "set: all"
    assert old not in exported.config.model_dump_json()

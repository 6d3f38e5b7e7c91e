"""A checkpoint comes back as it was saved, or says which file is damaged."""

import pytest
import torch
from factories import write_checkpoint

from raygen import storage
from raygen.checkpoint import CONFIG, GENERATOR, REFERENCE_CODES, REFERENCE_INDEX, load_checkpoint
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

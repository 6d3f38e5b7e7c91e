"""A checkpoint tells photo by photo what it learned from, and its judges refuse what it must not have seen."""

from hashlib import sha256
from pathlib import Path

import pytest
from factories import write_bank, write_checkpoint, write_run, write_split_set
from training import recipe

from raygen import storage
from raygen.checkpoint import export_checkpoint, load_checkpoint, save_checkpoint
from raygen.data.defects import list_defect_set
from raygen.data.runs import RUN, read_run
from raygen.errors import UserError
from raygen.evaluate.config import EvaluateConfig
from raygen.evaluate.plan import EvaluationPlan
from raygen.families.copy_paste.config import CopyPasteConfig
from raygen.families.dfmgan.config import DFMGANTrainConfig
from raygen.families.photos import DefectSet
from raygen.generate.config import GenerateConfig
from raygen.learned import LEARNED, Learned, read_learned, write_learned
from raygen.train.job import learned_from


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A defect set with splits, the same without, and banks of both with a latent-guided run each."""
    base = tmp_path_factory.mktemp("learned")
    write_split_set(str(base / "set"), {"train": (4, 3), "val": (2, 2), "test": (2, 2)}, size=32)
    for entry in storage.list_files(str(base / "set")):
        if not entry.uri.endswith(".csv"):  # the splits get lost, and the names with them
            name = entry.uri.removeprefix(f"{base}/set/").replace("test-", "a-").replace("val-", "b-")
            storage.put(str(base / "lost" / name), storage.read(entry.uri))
    pool = [f"{file},{file.parts[-3]}" for file in sorted((base / "set").glob("*/normal/train-*.png"))]
    (base / "pool.csv").write_text("\n".join(["uri,product", *pool]))
    for name in ("set", "lost"):
        config = CopyPasteConfig(
            defects=str(base / name), output=str(base / f"bank-{name}"), image_size=32, channels=1
        )
        bank = write_bank(config)
        pool_of = {"pool": str(base / "pool.csv"), "checkpoint": bank.uri, "modes": ("latent",)}
        write_run(GenerateConfig(output=str(base / f"run-{name}"), **pool_of))
    return base


def evaluate(folder: Path, run: str) -> EvaluationPlan:
    config = EvaluateConfig(
        defects=str(folder / "set"), output=str(folder / "report"), runs={"ours": str(folder / run)}
    )
    return EvaluationPlan.prepare(config)


def test_every_photo_stands_in_the_checkpoint(folder: Path) -> None:
    learned = read_learned(load_checkpoint(str(folder / "bank-set")).files[LEARNED])
    photos = [
        photo for photo in list_defect_set(str(folder / "set"), kinds=["defects"]) if photo.split == "train"
    ]
    assert sorted(learned) == sorted(
        Learned(
            photo.uri,
            sha256(storage.read(photo.uri)).hexdigest(),
            photo.product,
            photo.defect_type,
            "train",
            "learned",
        )
        for photo in photos
    )


def test_it_decides_no_sample(folder: Path) -> None:
    bank = load_checkpoint(str(folder / "bank-set"))
    other = save_checkpoint(
        str(folder / "other"),
        bank.config,
        {name: bank.arrays(name) for name in bank.config.files if name.endswith(".safetensors")},
        bank.references,
        write_learned([]),
    )
    assert other.digest == bank.digest
    assert other.config.files[LEARNED] != bank.config.files[LEARNED]


def test_a_latent_guided_run_of_a_checkpoint_that_has_seen_the_test_is_refused(folder: Path) -> None:
    """By content: here under other names, and without a reference that could tell."""
    with pytest.raises(
        UserError, match=r"runs.ours: 24 of its checkpoint's training photos are held-out photos, such as"
    ):
        evaluate(folder, "run-lost")
    assert not [line for line in evaluate(folder, "run-set").caveats() if "record" in line]


def test_what_chose_a_checkpoint_may_choose_a_classifier(folder: Path) -> None:
    real = evaluate(folder, "run-set").real
    by_split = {split: photos[0] for split, photos in real.splits.items()}

    def leaks(split: str, use: str) -> bool:
        photo = by_split[split]
        content = sha256(storage.read(photo.uri)).hexdigest()
        return bool(
            real.leaked_photos([Learned("moved", content, photo.product, photo.defect_type, "", use)])
        )

    assert [(split, use) for split in by_split for use in ("learned", "validated") if leaks(split, use)] == [
        ("val", "learned"),
        ("test", "learned"),
        ("test", "validated"),
    ]


def test_a_run_without_a_record_is_judged_and_said(folder: Path, tmp_path: Path) -> None:
    """Those that an older version made."""
    for entry in storage.list_files(str(folder / "run-lost")):
        storage.put(str(tmp_path / entry.uri.removeprefix(f"{folder}/run-lost/")), storage.read(entry.uri))
    run = read_run(str(tmp_path))
    assert run is not None
    assert run.learned is not None
    storage.put(str(tmp_path / RUN), run.model_copy(update={"learned": None}).model_dump_json().encode())
    [caveat] = [line for line in evaluate(folder, str(tmp_path)).caveats() if "record" in line]
    assert caveat.startswith("ours: made by a checkpoint without a record of what it learned from")
    storage.put(str(tmp_path / RUN), run.model_dump_json().encode())
    storage.delete(str(tmp_path / run.learned))
    with pytest.raises(UserError, match=r"learned/\w+\.parquet: gone"):
        evaluate(folder, str(tmp_path))


def test_a_training_knows_what_its_backbone_knows(folder: Path) -> None:
    backbone = write_checkpoint(str(folder / "backbone"))
    normal = Learned("n.png", "0" * 64, "p", "normal", "train", "learned")
    tensors = {name: backbone.arrays(name) for name in backbone.config.files if name.endswith("safetensors")}
    save_checkpoint(backbone.uri, backbone.config, tensors, backbone.references, write_learned([normal]))
    config = DFMGANTrainConfig(defects=str(folder / "set"), output="out", backbone=backbone.uri)
    defects = DefectSet(list_defect_set(str(folder / "set"), kinds=["defects"])[:2], ("p",), ("s",))
    assert read_learned(learned_from(config, defects))[0] == normal
    assert len(read_learned(learned_from(config, defects))) == 3
    assert len(read_learned(learned_from(recipe(), defects))) == 2


def test_it_is_handed_on_with_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    export_checkpoint(str(folder / "bank-set"), str(tmp_path / "copy"), "s3://elsewhere/set")
    learned = read_learned(load_checkpoint(str(tmp_path / "copy")).files[LEARNED])
    assert learned
    assert all(photo.uri.startswith("s3://elsewhere/set/") for photo in learned)

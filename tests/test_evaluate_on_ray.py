"""A whole evaluation on a real Ray, S3 to S3: figures, report, and going on where it stopped."""

import json
import re
from typing import Any

import jsonschema
import pytest
from factories import write_run, write_split_set

from raygen import storage
from raygen.data.runs import read_columns
from raygen.demo import CHECKPOINT
from raygen.errors import UserError
from raygen.evaluate import on_ray
from raygen.evaluate.config import EvaluateConfig
from raygen.evaluate.job import METRICS, REPORT, SCHEMA, evaluate
from raygen.evaluate.memorisation import NUM_COPIES
from raygen.evaluate.report import Metrics
from raygen.generate.config import GenerateConfig
from raygen.surfaces import PRODUCTS

pytestmark = pytest.mark.usefixtures("ray_cluster")


def config_of(s3_uri: str, **changes: Any) -> EvaluateConfig:
    values: dict[str, Any] = {
        "defects": f"{s3_uri}/set",
        "output": f"{s3_uri}/report",
        "runs": {"ours": f"{s3_uri}/run", "tar": f"{s3_uri}/tar"},
        "distances": {"samples_per_cell": 6, "kid_subsets": 5, "cluster_samples": 4},
        "downstream": {
            "runs": ["ours"],
            "conditions": ["trad-aug", "mix"],
            "sizes": [6],
            "single_products": False,
            "seeds": 2,
            "input_size": 32,
            "frozen_blocks": 15,
            "epochs": 1,
            "batch": 16,
        },
        "probe": {"conditions": []},
        "compute": {"gpus_per_actor": 0},
        **changes,
    }
    return EvaluateConfig(**values)


def write_pool_of(s3_uri: str) -> str:
    """A manifest of the set's training normals."""
    rows = ["uri,product"]
    for entry in storage.list_files(f"{s3_uri}/set"):
        *_, product, kind, name = entry.uri.split("/")
        if kind == "normal" and name.startswith("train"):
            rows.append(f"{entry.uri},{product}")
    storage.put(f"{s3_uri}/pool.csv", "\n".join(rows).encode())
    return f"{s3_uri}/pool.csv"


@pytest.mark.slow
def test_an_evaluation_from_runs_to_report_and_again(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split_set(f"{s3_uri}/set", {"train": (6, 5), "val": (2, 2), "test": (4, 3)})
    pool = write_pool_of(s3_uri)
    for name, layout in (("run", "parquet"), ("tar", "webdataset")):
        write_run(
            GenerateConfig(
                pool=pool,
                output=f"{s3_uri}/{name}",
                checkpoint=CHECKPOINT,
                normals_per_shard=5,
                layout=layout,  # type: ignore[arg-type]
            )
        )
    lines: list[str] = []
    probe = {
        "runs": ["ours"],
        "mixes": {"half": {"ours": 0.5, "copy-paste": 0.5}},
        "real_defects": [2],
        "amounts": [1, 2],
        "amount": 1,
        "seeds": 1,
        "max_samples": 6,
        "input_size": 32,
    }
    metrics = evaluate(config_of(s3_uri, probe=probe), lines.append)

    # Every row of the tables is there, and the same samples have the same distances whatever their layout.
    assert len(metrics.distances) == 4 * 3 * (2 + 2 * 3)
    rows = {(d.run, d.product, d.defect_type, d.what): d for d in metrics.distances}
    for (run, *rest), row in rows.items():
        if run == "ours":
            twin = rows["tar", *rest]  # type: ignore[index]
            assert row.model_dump(exclude={"run"}) == twin.model_dump(exclude={"run"})
    everything = rows["ours", "all", "all", "mix"]
    assert everything.num_images == 6 * 6
    assert everything.num_real == 3 * 2 * 5
    assert rows[None, "woven_fabric", "spots", "test"].num_images == 3
    assert everything.kid > rows[None, "all", "all", "test"].kid
    assert everything.kid_low is not None
    assert everything.kid_high is not None
    assert everything.kid_low <= everything.kid <= everything.kid_high
    assert {(copied.run, copied.product in PRODUCTS) for copied in metrics.memorisation} == {
        ("ours", True),
        ("tar", True),
    }
    single = rows["ours", "woven_fabric", "spots", "latent"]
    assert single.clustered is not None
    assert [(d.condition, len(d.errors)) for d in metrics.downstream] == [("trad-aug", 2), ("mix", 2)]
    assert metrics.downstream[1].num_synthetic == 3 * 2 * 1

    # The probe has tested every photo by every setting, and its verdict stands before all else.
    assert metrics.probe is not None
    assert (metrics.probe.num_defects, metrics.probe.num_normals) == (3 * 2 * 3, 3 * 4)
    errors = {(row.name, row.amount, row.few): row for row in metrics.probe.of("error")}
    of_source = [
        (f"{s}: {g}", 1, None) for s in ("copy-paste", "ours") for g in ("latent", "reference", "mix")
    ]
    curve = [(f"{s}: mix", 2, None) for s in ("copy-paste", "ours", "half")] + [("half: mix", 1, None)]
    few = [("No-Aug", 0, 2), ("Trad-Aug", 0, 2), ("copy-paste: mix", 1, 2)]
    assert set(errors) == {("No-Aug", 0, None), ("Trad-Aug", 0, None), *of_source, *curve, *few}
    assert errors["ours: mix", 2, None].num_samples == 3 * 2 * 6
    assert {row.name for row in metrics.probe.of("error", verdict=True)} == {
        "copy-paste: mix",
        "ours: mix",
        "half: mix",
    }
    assert {row.name for row in metrics.probe.of("dice", verdict=True)} == {
        "copy-paste: mix",
        "ours: mix",
        "half: mix",
    }
    assert metrics.verdict[0].startswith("Tested on 18 defects and 12 normals of one split")
    assert "The smallest gain" in metrics.verdict[0]

    # What is written is what is returned, keeps its schema, and needs nothing from elsewhere.
    written = json.loads(storage.read(f"{s3_uri}/report/{METRICS}"))
    jsonschema.validate(written, json.loads(storage.read(f"{s3_uri}/report/{SCHEMA}")))
    assert Metrics.model_validate(written) == metrics
    page = storage.read(f"{s3_uri}/report/{REPORT}").decode()
    assert "ours: Mix" in page
    words = re.sub(
        r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page
    )  # a picture's letters may spell anything
    assert len(words) < len(page)
    assert "http" not in words.replace("http://127.0.0.1", "")

    # Again: nothing is extracted or trained; with one training lost, that one alone, to the same end.
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("extracted or trained again")

    fits = [entry.uri for entry in storage.list_files(f"{s3_uri}/report/fits")]
    assert len(fits) == 4
    with monkeypatch.context() as patch:
        for work in ("fit_classifiers", "chain_stages", "seconds_to_make"):
            patch.setattr(on_ray, work, refuse)
        for work in ("fit_probes", "segment"):
            patch.setattr(on_ray, work, lambda inputs, *rest: iter([refuse()] if list(inputs) else []))
        assert evaluate(config_of(s3_uri, probe=probe), lines.append) == metrics
    storage.delete(fits[0])
    again = evaluate(config_of(s3_uri, probe=probe), lines.append)
    assert again == metrics
    assert any("4 of 4 classifiers" in line for line in lines)


def test_a_sample_that_is_gone_is_one_line(s3_uri: str) -> None:
    write_split_set(f"{s3_uri}/set", {"train": (3, 3)})
    pool = write_pool_of(s3_uri)
    manifest = write_run(
        GenerateConfig(pool=pool, output=f"{s3_uri}/run", checkpoint=CHECKPOINT, layout="png")
    )
    folder = manifest.shards[0].file.removesuffix("/metadata.parquet")
    image = next(
        e.uri for e in storage.list_files(f"{s3_uri}/run/{folder}") if not e.uri.endswith("_mask.png")
    )
    storage.delete(image)
    config = config_of(s3_uri, runs={"ours": f"{s3_uri}/run"}, downstream={"runs": [], "conditions": []})
    with pytest.raises(UserError, match=r"run/shards/00000/.*png: gone; .*`raygen verify") as caught:
        evaluate(config, lambda line: None)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_planted_copy_tops_the_panel(s3_uri: str) -> None:
    """Distances by a network of the set's own, trained once."""
    write_split_set(f"{s3_uri}/set", {"train": (4, 6), "test": (2, 4)})
    pool = write_pool_of(s3_uri)
    config = GenerateConfig(pool=pool, output=f"{s3_uri}/run", checkpoint=CHECKPOINT, layout="png")
    (shard,) = write_run(config).shards
    row = read_columns(config.output, shard, ("sample_id", "product", "defect_type")).to_pylist()[10]
    cell = f"{s3_uri}/set/{row['product']}/{row['defect_type']}"
    photo = next(
        entry.uri
        for entry in storage.list_files(cell)
        if "/train-" in entry.uri and not entry.uri.endswith("_mask.png")
    )
    storage.put(
        f"{config.output}/{shard.file.removesuffix('metadata.parquet')}{row['sample_id']}.png",
        storage.read(photo),
    )
    changes = {
        "runs": {"ours": config.output},
        "features": {"extractor": "own", "perceptual": "none"},
        "downstream": {"conditions": []},
    }
    lines: list[str] = []
    metrics = evaluate(config_of(s3_uri, **changes), lines.append)
    assert metrics.names["kid"] == "KID-Own"
    assert len(metrics.memorisation) == NUM_COPIES
    first, second, *_ = metrics.memorisation
    assert (first.sample_id, first.photo) == (row["sample_id"], photo)
    assert first.ratio == pytest.approx(0, abs=0.01)
    assert second.ratio > first.ratio
    assert 'alt="ours: likely copies above' in storage.read(f"{s3_uri}/report/{REPORT}").decode()
    assert evaluate(config_of(s3_uri, **changes), lines.append) == metrics
    assert len([line for line in lines if line.startswith("training a network")]) == 1

"""A run's samples as a defect set: what one model has made, for another to learn from."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raygen import storage
from raygen.data.layouts import parse_folder
from raygen.data.runs import read_manifest, read_run, read_shard
from raygen.errors import UserError
from raygen.records import NORMAL, check_name

METADATA = "metadata.csv"
_COLUMNS: tuple[str, ...] = ("id", "product", "domain", "split", "source", "run", "normal")


def _folders(sample: Mapping[str, Any], run_uri: str) -> tuple[str, str, str]:
    """Where a sample is written below the set: its names, which must not lead elsewhere, nor be read as other than
    they are."""
    names = sample["product"], sample["defect_type"], sample["sample_id"]
    for what, name in zip(("product", "defect type", "sample"), names, strict=True):
        check_name(what, name, run_uri)
    if parse_folder("/".join(names[:2])).names != names[:2]:
        raise UserError(
            f"{run_uri}: folders called {names[0]}/{names[1]} would be read as splits or masks; rename the type "
            "by `types` where it is learned"
        )
    return names


def write_defect_set(run_uri: str, output_uri: str, say: Callable[[str], None] = print) -> int:
    """Writes the accepted defects of a run as `{product}/{defect_type}/{id}.png` with `{id}_mask.png` beside, and
    a metadata.csv whose column `source` says "synthetic" of each.

    Args:
        run_uri: a complete run of the main job.
        output_uri: the folder to write; writing it again changes nothing.
        say: takes each line for the user.

    Returns:
        How many.

    Raises:
        UserError: no complete run there.
    """
    run_uri = storage.normalize(run_uri)
    run, manifest = read_run(run_uri), read_manifest(run_uri)
    if run is None or manifest is None:
        raise UserError(f"{run_uri}: no complete run there; run `raygen generate` to its end first")
    rows: list[dict[str, str]] = []
    with ThreadPoolExecutor(8) as threads:
        for stats in manifest.shards:
            files: list[tuple[str, bytes]] = []
            for sample in read_shard(run_uri, stats).to_pylist():
                if not sample["accepted"] or sample["defect_type"] == NORMAL:
                    continue
                place = storage.join(output_uri, *_folders(sample, run_uri))
                files.append((f"{place}.png", sample["image"]["bytes"]))
                if run.is_judged:  # else nobody has looked for masks, and they are black
                    files.append((f"{place}_mask.png", sample["mask"]["bytes"]))
                told = (sample["sample_id"], sample["product"], sample["defect_type"], "train", "synthetic")
                rows.append(dict(zip(_COLUMNS, (*told, run.run_id, sample["normal_uri"]), strict=True)))
            list(threads.map(lambda file: storage.put(*file), files))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    storage.put(storage.join(output_uri, METADATA), text.getvalue().encode())
    cells = Counter((row["product"], row["domain"]) for row in rows)
    counts = ", ".join(f"{product}/{kind} {count:,}" for (product, kind), count in sorted(cells.items()))
    say(f"{output_uri}: {len(rows):,} synthetic defects ({counts or 'none'})")
    return len(rows)

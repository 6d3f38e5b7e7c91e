"""The page of an evaluation: what stands on it, that everybody can read it, and that a browser shows it whole."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from raygen import images
from raygen.evaluate import plots
from raygen.evaluate.costs import Cost
from raygen.evaluate.distances import Distance
from raygen.evaluate.memorisation import Copied
from raygen.evaluate.page import render
from raygen.evaluate.probe_verdict import Compared, ProbeOutcome, Task, Worth, in_words
from raygen.evaluate.report import Downstream, Metrics, RunSummary
from raygen.evaluate.statistics import Interval

PRODUCTS = ('<b>A & "x"</b>', "woven_fabric", r"$\frac$")
CELLS = [f"{product}/{kind}" for product in PRODUCTS for kind in ("normal", "scratches", "_spots")]
SOURCES = (
    "copy-paste",
    r"<i>ours$\frac$</i>",
    "_a run whose name is as long as names of runs can be when nobody minds",
)
GAINS: dict[str, float] = dict(zip(SOURCES, (-0.01, -0.06, 0.05), strict=True))


def compared(task: Task, kind: str, source: str = "", **changes: Any) -> Compared:
    """A row whose figures follow from its source and amount."""
    amount, few = changes.get("amount", 3 if source else 0), changes.get("few")
    gain = GAINS[source] * (0.7 + 0.1 * amount) if source else 0.03 if kind == "no-aug" else 0.0
    loss = 0.2 + gain + (0.6 / few if few else 0.0)
    is_base = kind == "trad-aug"

    def around(value: float, by: float) -> Interval:
        return Interval(value, value - by, value + by)

    values = {
        "task": task,
        "name": f"{source}: mix" if source else {"no-aug": "No-Aug"}.get(kind, "Trad-Aug"),
        "kind": kind,
        "source": source,
        "guidance": "mix" if source else "",
        "amount": amount,
        "few": few,
        "loss": around(loss, 0.03),
        "points": around(gain, 0.0 if is_base else 0.035),
        "relative": around(gain / 0.2, 0.0 if is_base else 0.17),
        "p": 1.0 if is_base else 0.2 if abs(gain) < 0.04 else 0.001,
        "p_corrected": None,
        "detectable": None if kind == "no-aug" else 0.04,
        "worse_in": (CELLS[0],) if gain > 0.04 else (),
        "cells": {
            cell: around(gain * (1 + number % 3) / 2, 0.02)
            for number, cell in enumerate(CELLS)
            if number != 4
        },
        "log_loss": 0.5 if task == "error" else None,
        "calibration": 0.08 if task == "error" else None,
        "num_photos": 1234,
        "num_folds": 5,
        "num_samples": 300 * amount,
    }
    return Compared(**{**values, **changes})


def outcome() -> ProbeOutcome:
    """Three products of two defect types, three sources: one better, one worse, one that cannot be told."""
    rows = []
    for task in ("error", "dice"):
        for few in (None, 5, 20):
            rows += [compared(task, kind, few=few) for kind in ("no-aug", "trad-aug")]
            rows += [
                compared(
                    task,
                    "samples",
                    source,
                    few=few,
                    p_corrected=None if few else 0.5 if number == 0 else 0.003,
                )
                for number, source in enumerate(SOURCES)
                if few is None or source == SOURCES[1]
            ]
        rows += [compared(task, "samples", source, amount=amount) for source in SOURCES for amount in (1, 10)]
    worth = (
        Worth(source=SOURCES[1], few=5, more=12.0, beyond=40),
        Worth(source=SOURCES[1], few=20, more=None, beyond=25),
    )
    costs = (
        Cost(source=SOURCES[0], training=0.0, thousand_samples=0.02),
        Cost(source=SOURCES[1], training=31.5, thousand_samples=0.4),
        Cost(source=SOURCES[2], training=None, thousand_samples=1.4),
    )
    return ProbeOutcome(
        num_defects=600,
        num_normals=634,
        num_folds=5,
        num_groups=400,
        rows=tuple(rows),
        best=(),
        worth=worth,
        costs=costs,
    )


def metrics() -> Metrics:
    def distance(product: str, kind: str, run: str | None, what: Any) -> Distance:
        return Distance(
            run=run, product=product, defect_type=kind, what=what, num_images=100, num_real=30, frechet=12.3,
            kid=0.01, kid_std=0.002, precision=0.9, recall=None, copy_rate=0.03, clustered=0.2,
        )  # fmt: skip

    def downstream(condition: str, size: int, run: str | None = None) -> Downstream:
        return Downstream(
            scope="all", condition=condition, run=run, source=None, size=size, errors=(0.1, 0.12), mean=0.11,
            std=0.014, plain_mean=0.09, confusion=((3, 1), (1, 3)), num_real=10, num_synthetic=0,
        )  # fmt: skip

    found = outcome()
    run = RunSummary(
        uri="s3://bucket/run", run_id="0123456789abcdef", checkpoint="f" * 64, image_size=128, channels=1,
        num_samples=10_000, chosen={"A/spots/latent": 100}, refused=12,
    )  # fmt: skip
    return Metrics(
        names={"frechet": "FD-Lite0", "kid": "KID-Lite0", "clustered": "clustered LPIPS-Lite0"},
        products=PRODUCTS,
        defect_types=("scratches", "_spots"),
        photos={split: dict.fromkeys(CELLS, 12) for split in ("train", "val", "test")},
        runs={SOURCES[1]: run, SOURCES[2]: run},
        distances=tuple(
            distance(product, kind, source, what)
            for product in PRODUCTS
            for kind in ("scratches", "_spots")
            for source, what in ((None, "test"), (SOURCES[1], "mix"), (SOURCES[2], "mix"))
        ),
        downstream=tuple(
            downstream(condition, size, run)
            for condition, run in (
                ("no-aug", None),
                ("trad-aug", None),
                ("mix", SOURCES[1]),
                ("mix", SOURCES[2]),
            )
            for size in (10, 100)
        ),
        probe=found,
        verdict=tuple(in_words(found)),
        memorisation=(
            Copied(
                run=SOURCES[1],
                sample_id="0" * 32,
                product=PRODUCTS[0],
                defect_type="_spots",
                mode="latent",
                made_of="n.png",
                photo="d.png",
                ratio=0.31,
            ),
        ),
        caveats=("These photos are <few>.",),
        settings={"seed": 0, "output": "s3://bucket/" + "a-long-name/" * 20},
    )


@pytest.fixture(scope="module")
def page() -> str:
    sheet = images.encode_png(np.full((300, 1350, 1), 128, np.uint8))
    return render(metrics(), {"_spots": sheet}, {SOURCES[1]: sheet})


class Outline(HTMLParser):
    """What a screen reader goes by."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, *tags: str) -> Iterator[dict[str, str | None]]:
        return (attributes for tag, attributes in self.elements if tag in tags)


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)))


# -------------------------------------------------------------------------------------- what it says


def test_the_verdict_comes_first_and_word_by_word(page: str) -> None:
    verdict = page[page.index('id="verdict"') : page.index("Classification by probes")]
    for line in metrics().verdict:
        assert line in text_of(verdict)


def test_every_setting_with_all_real_defects_has_its_row(page: str) -> None:
    whole = [row for row in outcome().of("error") if row.few is None]
    table = page[page.index("<caption>Classification:") :]
    rows = [text_of(row) for row in table[: table.index("</table>")].split("<tr")[2:]]
    assert len(rows) == len(whole)
    ours = next(row for row in rows if SOURCES[1] in row and " 3 " in row)
    for figure in (
        "14.0 % [11.0, 17.0]",
        "lower",
        "−6.0 [−9.5, −2.5]",
        "−30 % [−47, −13]",
        "0.001",
        "0.003",
        "4.0",
        "0.500",
        "8.0 %",
        "900",
        "5",
    ):
        assert f" {figure} " in ours


def test_every_field_of_the_heat_map_has_its_value_and_mark(page: str) -> None:
    heat = page[page.index('<table class="heat">') :]
    heat = heat[: heat.index("</table>")]
    fields = re.findall(r'<td( class="told")? style="background: (#\w{6})">(.*?)</td>', heat)
    others = [row for row in outcome().of("error") if row.few is None and row.kind != "trad-aug"]
    assert len(fields) == len(others) * (len(CELLS) - 1)
    for is_told, _, value in fields:
        _, low, high = map(float, re.findall(r"[+-]\d+\.\d", text_of(value).replace("−", "-")))
        assert bool(is_told) == ("excludes 0" in value) == (low > 0 or high < 0)


def test_what_was_not_done_is_not_on_the_page() -> None:
    base, run = metrics().model_copy(update={"distances": (), "verdict": ()}), outcome()
    rows = tuple(row for row in run.rows if row.task == "error" and row.few is None and row.amount in (0, 3))
    small = run.model_copy(update={"rows": rows, "worth": (), "costs": ()})
    page = render(base.model_copy(update={"probe": small}), {})
    for heading in ("Segmentation", "Costs", "worth in real defects", "over the amount", "over the number"):
        assert heading not in page
    assert "by probes" not in render(base.model_copy(update={"probe": None}), {})


def test_what_the_page_shows_is_read_back_from_its_metrics() -> None:
    found = metrics()
    written = found.model_dump_json()
    jsonschema.validate(json.loads(written), Metrics.model_json_schema())
    assert Metrics.model_validate_json(written) == found


# ------------------------------------------------------------------------------------------ for everybody


def test_names_are_shown_as_they_are(page: str) -> None:
    assert "<b>" not in page
    assert "<i>" not in page
    assert text_of(page).count(PRODUCTS[0]) >= 10


def test_the_page_asks_for_nothing(page: str) -> None:
    asked = [
        value for _, attrs in Outline(page).elements for key, value in attrs.items() if key in ("src", "href")
    ]
    assert asked
    assert all(value and value.startswith(("data:", "#")) for value in asked)
    assert not re.search(r"<script|@import|url\(", page)


def test_headings_are_in_order(page: str) -> None:
    levels = [int(tag[1]) for tag, _ in Outline(page).elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_pictures_say_what_they_show(page: str) -> None:
    alts = [attributes["alt"] or "" for attributes in Outline(page).all("img")]
    assert all(alts)
    forest = next(alt for alt in alts if alt.startswith("Forest plot: error"))
    assert f"{SOURCES[1]}: mix, 3× −6.0 [−9.5, −2.5], lower" in forest
    amounts, *_ = (alt for alt in alts if "samples for each real defect" in alt)
    assert f"{SOURCES[1]} 15.2 % at 1, 14.0 % at 3, 9.8 % at 10" in amounts
    copies = next(alt for alt in alts if "likely copies" in alt)
    assert copies.endswith(f"; {PRODUCTS[0]}/_spots 0.31")
    few = next(alt for alt in alts if "real defects of each product and type" in alt)
    assert f"{plots.TRADITIONAL} 32.0 % at 5, 23.0 % at 20, 20.0 % at all" in few


def test_tables_have_captions_and_scopes(page: str) -> None:
    outline = Outline(page)
    assert len(list(outline.all("table"))) == len(list(outline.all("caption"))) > 5
    assert all(attributes.get("scope") in ("row", "col") for attributes in outline.all("th"))


def test_what_scrolls_is_reached_by_keys(page: str) -> None:
    boxes = [
        a for a in Outline(page).all("div", "pre") if a.get("class") == "scroll" or a.get("role") == "region"
    ]
    assert len(boxes) > 5
    assert all(box["tabindex"] == "0" and box["role"] == "region" and box["aria-label"] for box in boxes)
    assert len({box["aria-label"] for box in boxes}) == len(boxes)


def test_colours_are_read() -> None:
    """Black is told from every tint, and each kind of finding has a sign of its own."""
    from raygen.evaluate.page import _tint

    def luminance(colour: str) -> float:
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return float(
            np.where(channels <= 0.04, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
            @ (0.2126, 0.7152, 0.0722)
        )

    for value in np.linspace(-1, 1, 21):
        assert (luminance(_tint(value, 1.0)) + 0.05) / (luminance("#222222") + 0.05) > 4.5
    assert _tint(0.0, 1.0) == _tint(0.0, 0.0) == _tint(float("nan"), 1.0) == "#ffffff"
    assert len({marker for _, marker in plots._TOLD.values()}) == 3


# ---------------------------------------------------------------------------------------- in a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# A window is at least 500 pixels wide: a phone's width is that of a frame in it.
FRAME = """<!doctype html><title>frame</title><body style="margin: 0">
<iframe id="page" src="page.html" style="border: 0; width: {width}px; height: 900px"></iframe>
<pre id="found"></pre>
<script>
addEventListener("load", () => {{
  const page = document.getElementById("page").contentDocument, root = page.documentElement
  const overlong = [...page.querySelectorAll("main > :not(.scroll, pre), figure, img")].filter(
    one => !one.closest(".scroll") && one.getBoundingClientRect().right > root.clientWidth + 1)
  page.querySelector("a.skip").focus()
  document.getElementById("found").textContent = JSON.stringify({{
    width: root.clientWidth,
    scrollWidth: Math.max(root.scrollWidth, page.body.scrollWidth),
    overlong: overlong.map(one => one.outerHTML.slice(0, 80)),
    broken: [...page.images].filter(one => !one.complete || !one.naturalWidth).length,
    images: page.images.length,
    scrolling: [...page.querySelectorAll(".scroll")].filter(one => one.scrollWidth > one.clientWidth).length,
    skip: page.activeElement.getBoundingClientRect().left >= 0 && !!page.querySelector(page.activeElement.hash),
  }})
}})
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_whole(page: str, tmp_path: Path, width: int) -> None:
    """No errors, and nothing but tables in their boxes is wider than the window."""
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--allow-file-access-from-files",  # the frame looks into the page
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(500, width)},900",
        "--enable-logging=stderr", "--v=0", "--dump-dom", (tmp_path / "frame.html").as_uri(),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in ran.stderr.splitlines() if "CONSOLE" in line] == []
    found = json.loads(html.unescape(re.findall(r'<pre id="found">(.*?)</pre>', ran.stdout, re.DOTALL)[0]))
    assert found["width"] in range(width - 20, width + 1)  # a scroll bar may take some of it
    assert found["scrollWidth"] <= found["width"]
    assert (found["overlong"], found["broken"]) == ([], 0)
    assert found["images"] > 10
    assert found["scrolling"] > (3 if width == 390 else 0)
    assert found["skip"]

"""The verdict in figures and words: planted gains and losses are told, nothing else is."""

from typing import Any

import numpy as np
import pytest
from factories import write_split_set

from raygen.evaluate.config import EvaluateConfig
from raygen.evaluate.costs import Cost
from raygen.evaluate.plan import EvaluationPlan
from raygen.evaluate.probe_plan import ProbePlan, Setting
from raygen.evaluate.probe_table import Found
from raygen.evaluate.probe_verdict import ProbeOutcome, in_words, sum_up

ALONE, COPIES, HALF = (
    Setting("trad-aug"),
    Setting("samples", "copy-paste", "mix", 3),
    Setting("samples", "half", "mix", 3),
)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ProbePlan:
    base = tmp_path_factory.mktemp("verdict")
    write_split_set(str(base / "set"), {"train": (6, 8), "test": (30, 30)}, size=32)
    config = EvaluateConfig.model_validate(
        {
            "defects": str(base / "set"),
            "output": str(base / "report"),
            "downstream": {"conditions": []},
            "probe": {
                "alternatives": ["copy-paste", "perlin"],
                "mixes": {"half": {"copy-paste": 0.5, "perlin": 0.5}},
                "real_defects": [2, 4],
            },
        }
    )
    return EvaluationPlan.prepare(config).probe


def found_of(plan: ProbePlan, rates: dict[Setting, Any]) -> Found:
    """Errors by chance: at a rate of all cells, or of each by its number; two conditions err on the same photos
    where they can, as two classifiers do."""
    photos = plan.folds[0].test
    cells = np.array([plan.cell(photo) for photo in photos])
    luck = np.random.default_rng(0).random((len(photos), 2))
    losses = {
        setting: (
            luck < np.array([rate[cell] if isinstance(rate, dict) else rate for cell in cells])[:, None]
        ).astype(float)
        for setting, rate in rates.items()
    }
    chances = {setting: np.full(loss.shape, 0.5) for setting, loss in losses.items()}
    return Found(
        photos, np.zeros(len(photos), int), cells, losses, chances, chances, dict.fromkeys(losses, 7)
    )


def rows_of(outcome: ProbeOutcome) -> dict[str, Any]:
    return {row.name: row for row in outcome.of("error", verdict=True)}


def test_a_gain_is_told_and_corrected_for_being_one_of_several(plan: ProbePlan) -> None:
    outcome = sum_up(plan, found_of(plan, {ALONE: 0.4, COPIES: 0.2, HALF: 0.4}), None, [])
    rows = rows_of(outcome)
    assert set(rows) == {"copy-paste: mix", "half: mix"}
    assert rows["copy-paste: mix"].gains
    assert rows["copy-paste: mix"].points.value == pytest.approx(-0.2, abs=0.06)
    assert rows["copy-paste: mix"].p_corrected == pytest.approx(2 * rows["copy-paste: mix"].p)
    assert not rows["half: mix"].gains
    assert not rows["half: mix"].loses
    words = in_words(outcome)
    assert words[0].startswith("Tested on 180 defects and 90 normals of one split (")
    assert "The smallest gain that these photos could have shown is" in words[0]
    assert words[1].endswith("(p = 0.0002, corrected for 2 comparisons): lower.")
    assert words[2].endswith("no difference can be told.")
    assert words[3].startswith(
        "The best by error of those is copy-paste: mix; from half: mix, the next, it is −"
    )
    assert words[3].endswith("points away (p = 0.0001).")


def test_what_does_harm_is_told_with_the_cells_where_it_does(plan: ProbePlan) -> None:
    harmed = plan.number("grained_leather", "normal")
    rates = dict.fromkeys(range(9), 0.2)
    outcome = sum_up(plan, found_of(plan, {ALONE: rates, COPIES: {**rates, harmed: 0.9}}), None, [])
    row = rows_of(outcome)["copy-paste: mix"]
    assert row.loses
    (line,) = (line for line in in_words(outcome) if line.startswith("copy-paste"))
    assert "higher. It loses in grained_leather/normal +" in line
    assert line.count("points") == 1


def test_equal_conditions_are_no_difference_and_have_no_winner(plan: ProbePlan) -> None:
    outcome = sum_up(plan, found_of(plan, {ALONE: 0.3, COPIES: 0.3, HALF: 0.3}), None, [])
    words = in_words(outcome)
    assert sum("no difference can be told" in line for line in words) == 2
    assert any(line.startswith("No winner by error") for line in words)
    assert rows_of(outcome)["half: mix"].p == 1


def test_samples_are_worth_real_defects(plan: ProbePlan) -> None:
    few = {ALONE._replace(few=2): 0.5, ALONE._replace(few=4): 0.35, ALONE: 0.2}
    rates = {**few, COPIES._replace(few=2): 0.35, COPIES._replace(few=4): 0.05, COPIES: 0.2}
    rates[HALF._replace(few=4)] = 0.345
    outcome = sum_up(plan, found_of(plan, rates), None, [])
    by_few = {one.few: one for one in outcome.worth}
    assert {one.source for one in outcome.worth} == {"copy-paste"}  # the other is not told to be better
    assert by_few[2].more == pytest.approx(2, abs=0.5)
    assert by_few[4].more is None
    assert by_few[4].beyond == pytest.approx(4)  # of a cell there are 8 in all
    words = in_words(outcome)
    assert "With 2 real defects of each product and type, copy-paste's samples are worth 2 more." in words
    assert (
        "With 4 real defects of each product and type, copy-paste's samples are worth more than 4 more."
        in words
    )


def test_masks_have_a_verdict_of_their_own(plan: ProbePlan) -> None:
    errors = found_of(plan, {ALONE: 0.3, COPIES: 0.3})
    outcome = sum_up(
        plan,
        errors,
        found_of(plan, {ALONE: 0.6, COPIES: 0.3}),
        [Cost(source="copy-paste", training=0.0, thousand_samples=0.01)],
    )
    words = in_words(outcome)
    assert any(line.startswith("Segmentation, on 270 masks: ") for line in words)
    assert any("1 − Dice" in line and line.endswith("lower.") for line in words)
    assert words[-1].startswith("copy-paste took no training and 0.01 h for 1,000 samples")


def test_photos_of_two_groups_can_tell_nothing(plan: ProbePlan) -> None:
    found = found_of(plan, {ALONE: 0.4, COPIES: 0.2})
    photos = [photo._replace(group="ab"[number % 2]) for number, photo in enumerate(found.photos)]
    outcome = sum_up(plan, Found(photos, *list(vars(found).values())[1:]), None, [])
    assert in_words(outcome)[0].endswith("These photos are too few, or of too few groups, to show any gain.")
    assert ProbeOutcome.model_validate_json(outcome.model_dump_json()) == outcome

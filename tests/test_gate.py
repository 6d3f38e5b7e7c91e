"""The gate: the first rule that fails is the reason, and of several refused attempts the best is kept."""

import numpy as np
import pytest

from raygen.families.family import Made, TakesPhotographs, Views
from raygen.generate.config import GateConfig, GateRules
from raygen.generate.gate import RULES, failed_rule, merit
from raygen.generate.sampling import Windows, sample
from raygen.records import SCORES, SampleRequest

GOOD = {
    "realism": 1.0,
    "type_prob": 0.9,
    "product_prob": 0.9,
    "preservation": 1.0,
    "mask_area": 0.02,
    "contrast": -20.0,
    "novelty": 1.0,
}
STRICT = GateConfig(
    min_mask_area=0.01,
    max_mask_area=0.2,
    min_type_prob=0.5,
    min_product_prob=0.5,
    min_realism=0.0,
    max_background_change=4.0,
    min_contrast=5.0,
    min_novelty=0.3,
)
BAD = {
    "min_mask_area": ("mask_area", 0.001),
    "max_mask_area": ("mask_area", 0.9),
    "min_type_prob": ("type_prob", 0.1),
    "min_product_prob": ("product_prob", 0.1),
    "min_realism": ("realism", -0.1),
    "max_background_change": ("preservation", 4.5),
    "min_contrast": ("contrast", 3.0),
    "min_novelty": ("novelty", 0.1),
}


def test_the_rules_are_those_of_the_recipe() -> None:
    options = {"max_attempts", "on_shortfall"}
    assert set(RULES) == set(GateRules.model_fields) - options == set(BAD)
    assert set(RULES.values()) == set(SCORES)
    assert list(RULES) == [name for name in GateRules.model_fields if name not in options]


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_refuses_what_it_is_for(rule: str) -> None:
    score, value = BAD[rule]
    assert failed_rule(GOOD, STRICT) is None
    assert failed_rule({**GOOD, score: value}, STRICT) == rule
    assert failed_rule({**GOOD, score: value}, STRICT.model_copy(update={rule: None})) is None


def test_the_first_rule_that_fails_is_the_reason_and_what_nobody_knows_passes() -> None:
    all_bad = dict(BAD.values())
    assert failed_rule(all_bad, STRICT) == "max_mask_area"  # the dict keeps the later of the two areas
    assert failed_rule({**GOOD, "type_prob": 0.0, "contrast": 0.0}, STRICT) == "min_type_prob"
    assert failed_rule(dict.fromkeys(SCORES, None), STRICT) is None
    assert failed_rule(dict.fromkeys(SCORES, float("nan")), STRICT) is None


def test_the_best_passes_most_rules_and_is_surest_of_its_type() -> None:
    late = merit("min_contrast", {**GOOD, "type_prob": 0.6})
    early = merit("min_type_prob", {**GOOD, "type_prob": 0.4})
    assert merit(None, GOOD) > late > early > merit("min_type_prob", {**GOOD, "type_prob": 0.3})
    assert early > merit("min_type_prob", {**GOOD, "type_prob": None})


class Scripted(TakesPhotographs):
    """A generator whose type_prob is the seed's last two digits, over 100, and whose pixels are the seed's."""

    is_judged = True
    micro_batch = 3

    def __init__(self) -> None:
        self.calls: list[int] = []

    def backgrounds(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.astype(np.float32)

    def make(self, views: Views, request: SampleRequest, seeds: np.ndarray) -> Made:
        assert len(seeds) <= self.micro_batch
        np.testing.assert_array_equal(views.backgrounds, views.pixels)
        self.calls.append(len(seeds))
        scores = np.full((len(seeds), len(SCORES)), np.nan, np.float32)
        scores[:, list(SCORES).index("type_prob")] = seeds % 100 / 100
        pixels = np.broadcast_to((seeds % 100).astype(np.uint8)[:, None, None, None], views.pixels.shape)
        return Made(pixels, None, np.zeros(views.pixels.shape[:3], np.uint8), scores, np.full(len(seeds), -1))


REQUESTS = [SampleRequest("spots", "latent", 0), SampleRequest("spots", "latent", 1)]


def test_refused_samples_are_made_again_until_accepted() -> None:
    first = np.array([[20, 80], [90, 40], [10, 95], [70, 70]])
    generator = Scripted()
    windows = Windows(np.arange(4, dtype=np.uint8)[:, None, None, None, None], ["a"] * 4)
    gate = GateConfig(min_mask_area=None, min_type_prob=0.5, max_attempts=3)
    made = sample(generator, windows, REQUESTS, lambda attempt: first + 25 * attempt, gate)
    np.testing.assert_array_equal(made.attempts, [[2, 0], [0, 1], [2, 0], [0, 0]])
    np.testing.assert_array_equal(made.num_attempts, [[3, 1], [1, 2], [3, 1], [1, 1]])
    np.testing.assert_array_equal(made.seeds, first + 25 * made.attempts)
    np.testing.assert_array_equal(made.made.pixels[..., 0, 0, 0], made.seeds)
    assert [reason is None for reason in made.reasons.ravel()] == [True] * 8
    assert sum(generator.calls) == 13


def test_of_the_refused_the_best_is_kept_and_told() -> None:
    seeds = [np.array([[10]]), np.array([[45]]), np.array([[30]])]
    windows = Windows(np.zeros((1, 1, 2, 2, 1), np.uint8), ["a"])
    gate = GateConfig(min_mask_area=None, min_type_prob=0.5, max_attempts=3)
    made = sample(Scripted(), windows, REQUESTS[:1], lambda attempt: seeds[attempt], gate)
    assert (made.reasons[0, 0], made.attempts[0, 0], made.num_attempts[0, 0]) == ("min_type_prob", 1, 3)
    assert made.made.pixels.max() == 45


def test_every_request_has_its_own_view_where_there_are_several() -> None:
    windows = Windows(np.array([3, 7], np.uint8).reshape(1, 2, 1, 1, 1), ["a"])
    seen: list[int] = []

    class Seeing(Scripted):
        def make(self, views: Views, request: SampleRequest, seeds: np.ndarray) -> Made:
            seen.append(int(views.pixels[0, 0, 0, 0]))
            return super().make(views, request, seeds)

    gate = GateConfig(min_mask_area=None)
    sample(Seeing(), windows, REQUESTS, lambda attempt: np.array([[1, 2]]), gate)
    assert seen == [3, 7]

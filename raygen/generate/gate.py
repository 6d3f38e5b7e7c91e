"""The gate: rules on a sample's scores, and what becomes of those that fail."""

import math
from collections.abc import Mapping

from raygen.generate.config import GateConfig

RULES: dict[str, str] = {
    "min_mask_area": "mask_area",
    "max_mask_area": "mask_area",
    "min_type_prob": "type_prob",
    "min_product_prob": "product_prob",
    "min_realism": "realism",
    "max_background_change": "preservation",
    "min_contrast": "contrast",
    "min_novelty": "novelty",
}
"""Rule -> the score it is about, in the order of trial; the rule's name is a sample's `reject_reason`."""

_ORDER = {rule: place for place, rule in enumerate(RULES)}


def failed_rule(scores: Mapping[str, float | None], gate: GateConfig) -> str | None:
    """The first rule that a sample fails; None if it is accepted. A score that is None (or NaN) fails none."""
    for rule, score in RULES.items():
        limit, value = getattr(gate, rule), scores[score]
        if limit is None or value is None or math.isnan(value):
            continue
        value = abs(value) if score == "contrast" else value
        if value < limit if rule.startswith("min") else value > limit:
            return rule
    return None


def merit(reason: str | None, scores: Mapping[str, float | None]) -> tuple[int, float, float]:
    """By what the best of several attempts is chosen: how many rules it passes, then how sure the classifier is of
    its type, then its realism."""

    def or_worst(value: float | None) -> float:
        return -math.inf if value is None or math.isnan(value) else value

    passed = len(RULES) if reason is None else _ORDER[reason]
    return passed, or_worst(scores["type_prob"]), or_worst(scores["realism"])

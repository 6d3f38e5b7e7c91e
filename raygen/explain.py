"""What a recipe's validator refuses, in our words."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from raygen.errors import did_you_mean

_LONGEST = 100  # characters of a value that a message repeats

_WISHES = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "literal_error": "{expected}",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a section",
    "model_type": "a section",
    "missing": "more values",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
}
"""The validator's kind of problem -> what the key wants."""


def explain(kind: type[BaseModel], values: Mapping[str, Any], error: ValidationError, under: str = "") -> str:
    """What is wrong with a recipe, in one line: its first problem, with the key, its value and the mend.

    Args:
        kind: which refused it.
        values: the recipe.
        error: the refusal.
        under: what stands before its keys in the recipe that the user wrote, say "generate.".
    """
    # Where several kinds of values may stand, each has refused this one: what came furthest knows most of it.
    problems = error.errors()
    first = max(problems, key=lambda problem: len(_path(problem, values)))
    path = _path(first, values)
    key = under + ".".join(part if part.isprintable() else repr(part)[1:-1] for part in map(str, path))
    if first["type"] == "extra_forbidden":
        known = _keys(kind, path)
        return f"unknown key {key!r}{did_you_mean(str(path[-1]), known)}; the keys are {', '.join(known)}"
    if _is_missing(first):
        return f"{key!r} is missing; add it, or --set {key}=…"
    alike = [problem for problem in problems if _path(problem, values) == path]
    wishes = [
        _WISHES[problem["type"]].format(**problem.get("ctx", {}))
        for problem in alike
        if problem["type"] in _WISHES
    ]
    ours = [
        problem["msg"].removeprefix("Value error, ") for problem in alike if problem["type"] not in _WISHES
    ]
    value = first["input"]
    given = str(value).lower() if isinstance(value, bool) else repr(value)
    given = given if len(given) <= _LONGEST else f"{given[:_LONGEST]}…"
    mend = ours[0] if ours else f"wants {' or '.join(dict.fromkeys(wishes))}"
    return f"{key} = {given}: {mend}" if path else mend


def _path(problem: Any, values: Any) -> tuple[int | str, ...]:
    """The keys of the recipe that a problem's location names; besides them it names kinds of values."""
    path: list[int | str] = []
    for part in problem["loc"]:
        if isinstance(values, Mapping) and part in values:
            path.append(part)
            values = values[part]
    return (*path, problem["loc"][-1]) if _is_missing(problem) else tuple(path)


def _is_missing(problem: Any) -> bool:
    """Whether a key is; of a list that is too short, a value."""
    return problem["type"] == "missing" and isinstance(problem["loc"][-1], str)


def _keys(kind: type[BaseModel], path: tuple[int | str, ...]) -> tuple[str, ...]:
    """The keys that may stand where an unknown one stood."""
    for part in path[:-1]:
        annotation = kind.model_fields[str(part)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            kind = annotation
    return tuple(kind.model_fields)

"""The ways in which raygen says no. Anything else that is raised is a bug and shows its traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A wrong config, a missing folder, a damaged checkpoint: what is wrong, where, and the mend. Exit code 2."""

    exit_code = 2


class StorageUnavailableError(UserError):
    """Storage does not answer, or says try again later: the one error of a user that time mends. Exit code 5."""

    exit_code = 5


class ObjectMissingError(Exception):
    """There is no object of this URI (any more). For the caller to answer: it never reaches the user."""


class ObjectChangedError(Exception):
    """The object is not the one that was listed: its etag differs. Likewise."""


class PromiseError(Exception):
    """A run that cannot keep what it promises (too many rejects, a verification that fails). Exit code 3.

    What was written before stays: the same command continues from there.
    """

    exit_code = 3


class RejectsError(PromiseError):
    """More normals are unusable than `max_reject_rate` allows."""


class LeaseError(Exception):
    """Another refresh works on the table, or has taken it over. Exit code 4: nothing to mend, nothing lost."""

    exit_code = 4


class BadImageError(Exception):
    """A file that is no usable image. `reason` is one of raygen.images.REASONS, `detail` says it for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """For a message: the known name that is nearest to a mistyped one, in brackets; nothing if none is near."""
    names = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(name.casefold(), names, n=1)
    return f" (did you mean {names[near[0]]!r}?)" if near else ""

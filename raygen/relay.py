"""Rows that are settled travel down a Ray Data chain as they are: users' errors, and what was found done."""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import pyarrow as pa

from raygen import storage
from raygen.errors import UserError

P = ParamSpec("P")

_SETTLED = {"error", "done"}

Stage = Callable[Concatenate[pa.Table, P], pa.Table]


def tells(stage: Stage[P]) -> Stage[P]:
    """Lets a stage's UserError travel down the chain as a row of its own, `error`, to be raised by the driver:
    raised in a task, it would reach the user as pages of Ray's tracebacks. A row that is settled already, by such
    an error or by what is `done`, passes the stage by."""

    @functools.wraps(stage)
    def wrapped(batch: pa.Table, *args: P.args, **kwargs: P.kwargs) -> pa.Table:
        if _SETTLED.intersection(batch.column_names):
            return batch
        try:
            return stage(batch, *args, **kwargs)
        except storage.StorageUnavailableError:
            raise  # for Ray Data to try again
        except UserError as error:
            return pa.table({"error": [str(error)]})

    return wrapped

"""Users' errors as data: what a stage of a Ray Data chain cannot do travels down the chain as a row."""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import pyarrow as pa

from raygen import storage
from raygen.errors import UserError

P = ParamSpec("P")

Stage = Callable[Concatenate[pa.Table, P], pa.Table]


def tells(stage: Stage[P]) -> Stage[P]:
    """Lets a stage's UserError travel down the chain as a row of its own, to be raised by the driver: raised in a
    task, it would reach the user as pages of Ray's tracebacks."""

    @functools.wraps(stage)
    def wrapped(batch: pa.Table, *args: P.args, **kwargs: P.kwargs) -> pa.Table:
        if "error" in batch.column_names:
            return batch
        try:
            return stage(batch, *args, **kwargs)
        except storage.StorageUnavailableError:
            raise  # for Ray Data to try again
        except UserError as error:
            return pa.table({"error": [str(error)]})

    return wrapped

"""What samples cost."""

from pydantic import BaseModel, ConfigDict


class Cost(BaseModel):
    """What a source's samples took, in hours of a core, or of a worker with its GPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    training: float | None  # of all its checkpoints; None where nobody says; 0 without a training
    thousand_samples: float

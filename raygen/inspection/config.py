"""The recipe of an inspection."""

from typing import Annotated

from pydantic import Field

from raygen.config import Place
from raygen.families.recipes import DefectSetConfig


class InspectConfig(DefectSetConfig):
    """What raygen sees of a defect set or a pool, before anything is trained."""

    output: Place = "inspection"
    """The folder of what is written: sheet.png, photos.parquet."""
    sample: Annotated[int, Field(ge=1)] = 2000
    """Normals of a pool that are looked into; of a defect set all photos are."""
    max_pixels: Annotated[int, Field(ge=1)] = 64_000_000
    """A photo with more pixels is not decoded."""
    ray_above: Annotated[int, Field(ge=0)] = 20_000
    """Of more photos than these, tasks of Ray do the work; else threads of this process."""

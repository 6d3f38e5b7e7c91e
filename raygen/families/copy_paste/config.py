"""The recipe of a bank of cut-outs: how they are cut out, and how samples vary them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from raygen.config import Config
from raygen.families.recipes import BankConfig

Turns = Literal["none", "flips", "quarters", "any"]
"""How a product's defects may be turned: not at all; mirrored; mirrored and by right angles; by any angle."""

Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=1)]


class CutConfig(Config):
    """How a defect is cut out of its photo; lengths are pixels of the photo as it is brought to the bank."""

    inpainting: Literal["telea", "navier-stokes", "membrane", "match"] = "telea"
    """What the background under a defect is taken to be: OpenCV's two fills, of Telea and of Navier and Stokes; a
    membrane over the hole's rim; or the place of the photo whose surroundings match the hole's best, which keeps
    texture."""
    grow: Annotated[int, Field(ge=0)] = 2
    """How far the hole reaches beyond the mask: over these pixels a cut-out fades to nothing."""
    max_area: Share = 0.5
    """A mask that covers more of the photo is refused: it may be inverted."""
    min_change: Annotated[float, Field(ge=0)] = 2.0
    """A defect that differs less from its background, in mean grey levels, is refused: it cannot be seen."""
    max_leak: Annotated[float, Field(gt=0)] = 1.0
    """A defect whose surroundings within the hole differ from the background by more, as a share of the defect's
    own difference, is refused: the mask misses part of it, or the background was not guessed."""


class VaryConfig(Config):
    """What a sample changes of a cut-out, all drawn from its seed."""

    place: Literal["as-real", "anywhere"] = "as-real"
    """`as-real`: where the cut-out was in its photo, moved a little; `anywhere`: wherever it fits. In windows of
    full-size photographs (`native`), always anywhere. In a region of interest where there is one."""
    jitter: Share = 0.08
    """How far `as-real` moves a cut-out, at most, as a share of the image's side."""
    alike: Annotated[int, Field(ge=1)] = 4
    """A cut-out is that of so many drawn whose photo looks most like the normal, in brightness and texture: rough
    leather on smooth would show."""
    turns: Turns | dict[str, Turns] = "flips"
    """Of all products, or of each: fabric and brushed metal have a direction."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """And so many degrees to either side, at most."""
    scale: Factor = 1.0
    """Larger or smaller by this factor, at most."""
    bend: Share = 0.0
    """Smooth deformation: a row or column moves by this share of the cut-out's longer side, at most."""
    gain: Factor = 1.0
    """Stronger or weaker by this factor, at most, within what the cell's real defects show."""
    lighting: bool = True
    """Whether a defect on a darker place is weaker, in proportion."""
    blend: Literal["residual", "poisson", "paste", "mixed"] = "residual"
    """`residual`: the cut-out's difference to its background is added; `poisson`: its gradients are taken over
    (Pérez et al. 2003); `paste`: its pixels are; `mixed`: each sample one of the three."""
    other_products: bool = False
    """Whether a normal may get a defect of another product, where `reference_products` says nothing."""
    min_change: Annotated[float, Field(ge=0)] = 2.0
    """A sample whose mean change in the mask is less, in grey levels, is drawn again, up to `tries` times; then it
    has no mask, and the gate refuses it."""
    tries: Annotated[int, Field(ge=1)] = 4


class LatentConfig(Config):
    """What the latent mode changes besides: shapes that no photo has."""

    bend: Share = 0.08
    scale: Factor = 1.3
    rotation: Annotated[float, Field(ge=0, le=180)] = 10.0
    mix: Share = 0.5
    """Share of samples that are mixed of two cut-outs: the shape of one, the strength and polarity of another."""


class CopyPasteConfig(BankConfig):
    """Cutting out the defects of a defect set by their masks; nothing is learned, so it takes minutes."""

    family: Literal["copy-paste"] = "copy-paste"
    references_per_cell: Annotated[int, Field(ge=1)] = 1000
    native: bool = False
    """Whether photos keep their pixels: cut-outs for windows, of `image_size`, of full-size photographs
    (`generate` with `native`). A defect that is larger than a window is refused."""
    cut: CutConfig = CutConfig()
    vary: VaryConfig = VaryConfig()
    latent: LatentConfig = LatentConfig()

    def model(self) -> dict[str, Any]:
        """What decides samples beside the bank."""
        return {"native": self.native, **self.model_dump(mode="json", include={"vary", "latent"})}

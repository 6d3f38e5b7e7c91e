"""How a cut-out becomes part of a normal."""

import numpy as np

from raygen.families.copy_paste.warping import Warped
from raygen.families.inpainting import membrane
from raygen.families.masks import Floats

BLENDS = ("residual", "poisson", "paste")


def blend(here: Floats, piece: Warped, gain: float, how: str, random: np.random.Generator) -> Floats:
    """Puts a cut-out on the part of a normal that it lies on.

    Args:
        here: (h, w, C), of the normal, in grey levels.
        piece: the cut-out.
        gain: of its difference to its background; `paste` knows none.
        how: one of BLENDS; or "mixed", which draws one.
        random: of the sample.

    Returns:
        (h, w, C), not rounded and not limited.
    """
    how = BLENDS[int(random.integers(len(BLENDS)))] if how == "mixed" else how
    matte, difference = piece.matte[..., None], np.float32(gain) * piece.residual
    hole = piece.matte > 0
    if how == "paste":
        changed = here + matte * (piece.pixels - here)
    elif how == "residual" or hole.all():  # of which nothing is left to span a membrane from
        changed = here + matte * difference
    else:
        own = piece.pixels + difference - piece.residual
        changed = own + membrane(np.asarray(here - own, np.float32), hole)
    return np.asarray(changed, np.float32)

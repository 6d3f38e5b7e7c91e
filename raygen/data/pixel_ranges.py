"""Which levels of a pool's deep photographs are black and white: found while it is listed, for the whole run."""

from collections.abc import Callable, Mapping

from raygen.data.pool import Normal, read_normals
from raygen.depth import Depth, PixelRange, choose_range
from raygen.errors import BadImageError
from raygen.images import OF_8_BITS, read_depth

MAX_PRODUCTS, MAX_FILES = 64, 16  # that are looked into, of one product


class PixelRanges:
    """Looks into some of a pool's normals: the first of each product and, where it has more than 8 bits, others
    ever farther apart.

    Args:
        max_pixels: of a normal that is decoded.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._counts: dict[str, int] = {}
        self._found: dict[str, list[Depth]] = {}

    def add(self, normal: Normal) -> None:
        """Takes note of a listed normal."""
        count = self._counts.get(normal.product, 0)
        if count == 0 and len(self._counts) == MAX_PRODUCTS:
            return
        self._counts[normal.product] = count + 1
        found = self._found.get(normal.product, [])
        # The 1st, 2nd, 3rd, 5th, 9th …: soon enough, and not of one lot alone.
        is_due = count == 0 or (found and len(found) < MAX_FILES and (count & (count - 1)) == 0)
        if is_due and not normal.uri.lower().endswith(OF_8_BITS):
            (raw,) = read_normals([normal.uri], [normal.etag], 1)
            try:
                depth = read_depth(raw.data, self._max_pixels) if raw.data else None
            except BadImageError:
                return  # whoever works on it will say so
            if depth is not None:
                self._found.setdefault(normal.product, []).append(depth)

    def choose(self, pool_uri: str, say: Callable[[str], None]) -> dict[str, PixelRange]:
        """Product -> its range, of those that have deep photographs; "" is that of all others. Says each."""
        chosen: dict[str, PixelRange] = {}
        for product, depths in sorted(self._found.items()):
            chosen[product], how = choose_range(depths)
            say(f"pool {pool_uri}: {product}: {how} (pixel_range = {list(chosen[product])})")
        return chosen | {"": widest(chosen)} if chosen else {}

    def unclear(self) -> tuple[str, PixelRange] | None:
        """A product whose files do not all tell their range themselves, and what it seems to be."""
        for product, depths in sorted(self._found.items()):
            if any(not depth.is_clear for depth in depths):
                return product, choose_range(depths)[0]
        return None


def widest(ranges: Mapping[str, PixelRange]) -> PixelRange:
    """The range that holds all others."""
    lows, highs = zip(*ranges.values(), strict=True)
    return min(lows), max(highs)

"""Procedural inspection surfaces: photographs of normal, scratched and spotted parts, from a seed.

Three products with clearly different surfaces: a sheet of metal with a directional grain and a highlight,
a plain weave of irregular yarns, leather with pebbles and creases. A surface is a height and a reflectance
map. A defect is put into these two, and only then is the surface lit and photographed: a groove gets its
shadow and its bright edge from the lamp that lights the grain around it.

For every product, seed, size and number of channels:

- An image depends on its arguments alone, not on the order of calls or on the process; bit for bit on one
  kind of machine with one numpy.
- `render_defect` is `render_normal` plus the defect: each pixel farther than `change_margin(size)` pixels
  from the mask, in rows or in columns, equals the normal's, bit for bit.
- One channel is the luma (BT.601) of the three, up to rounding and where no colour is clipped.
- Lengths are fractions of the side. The same seed at another size gives the same yarns, pebbles, lamp and
  defects with another draw of the fine grain: 64 px look like 128 px photographed at half the resolution.

No files and no storage here: these functions return and yield arrays.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, cos, pi, radians, sin, sqrt

import numpy as np
from numpy.typing import NDArray

PRODUCTS: tuple[str, ...] = ("brushed_metal", "woven_fabric", "grained_leather")
DEFECT_TYPES: tuple[str, ...] = ("scratches", "spots")
MIN_SIZE, MAX_SIZE = 32, 1024

_PX = 128.0  # "px" below is a 128th of the image's side
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

Field = NDArray[np.floating]  # float32
Mask = NDArray[np.bool_]
Image = NDArray[np.uint8]
Range = tuple[float, float]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class _Material:
    tint: Colour  # RGB, only the ratios count
    stain: Colour  # RGB of dirt on it
    relief: float  # how strongly a slope darkens or brightens
    gloss: float  # height of the highlight
    lobe: Range  # width of the highlight, in slopes along x and along y
    groove: Range  # depth of scratches in px
    wear: Range  # how much of the bare, bright material scratches lay open


_MATERIALS = {
    "brushed_metal": _Material(
        tint=(0.93, 1.0, 1.08),
        stain=(1.35, 0.96, 0.7),
        relief=0.8,
        gloss=0.38,
        lobe=(0.22, 0.75),
        groove=(0.35, 0.65),
        wear=(0.35, 0.85),
    ),
    "woven_fabric": _Material(
        tint=(0.62, 0.97, 1.6),
        stain=(1.2, 1.0, 0.7),
        relief=0.55,
        gloss=0.04,
        lobe=(0.8, 0.8),
        groove=(1.2, 2.0),
        wear=(0.6, 0.95),
    ),
    "grained_leather": _Material(
        tint=(1.55, 0.96, 0.6),
        stain=(1.2, 0.9, 0.9),
        relief=0.75,
        gloss=0.16,
        lobe=(0.35, 0.35),
        groove=(0.9, 1.6),
        wear=(0.6, 0.95),
    ),
}


@dataclass(frozen=True)
class _Surface:
    """A surface before it is lit; the defects write into its three (size, size) maps."""

    material: _Material
    height: Field  # px
    reflectance: Field  # about 0.1 to 0.9
    foreign: Field  # 0 where the colour is the material's own, 1 where it is a defect's


def render_normal(product: str, seed: int, size: int = 128, channels: int = 1) -> Image:
    """Photographs a normal surface.

    Args:
        product: one of `PRODUCTS`.
        seed: any integer; names the surface, its lamp and its sensor noise.
        size: side of the image in pixels, 32 to 1024.
        channels: 1 (luma) or 3 (RGB).

    Returns:
        uint8 (size, size, channels), 0 to 255.

    Raises:
        ValueError: an unknown product, size or number of channels.
    """
    _check(product, size, channels)
    surface = _surface(product, seed, size)
    return _photograph(surface, (1.0, 1.0, 1.0), product, seed, size, channels)


def render_defect(
    product: str, defect_type: str, seed: int, size: int = 128, channels: int = 1
) -> tuple[Image, Image]:
    """Photographs the surface of `render_normal` with one to three scratches, or one to four spots, on it.

    Args:
        product: one of `PRODUCTS`.
        defect_type: one of `DEFECT_TYPES`.
        seed: any integer; one seed is one surface, lamp and noise, whatever the defect type.
        size: side of the image in pixels, 32 to 1024.
        channels: 1 (luma) or 3 (RGB).

    Returns:
        The image, uint8 (size, size, channels), and its mask, uint8 (size, size), 255 on the defect, else 0.

    Raises:
        ValueError: an unknown product, defect type, size or number of channels.
    """
    _check(product, size, channels, defect_type)
    surface = _surface(product, seed, size)
    rng = _stream("defect", defect_type, product, seed)
    if defect_type == "scratches":
        mask, colour = _add_scratches(surface, rng), (1.0, 1.0, 1.0)
    else:
        mask, colour = _add_spots(surface, rng), surface.material.stain
    image = _photograph(surface, colour, product, seed, size, channels)
    return image, _tiles(mask, size).max(axis=(1, 3)).astype(np.uint8) * np.uint8(255)


def change_margin(size: int) -> int:
    """How many pixels beyond its mask a defect may change: its rim, its shadow and the lens's blur."""
    return 2 + ceil(3 * size / _PX)


def pool(num_per_product: int, seed: int, size: int = 128, channels: int = 1) -> Iterator[tuple[str, Image]]:
    """Yields a pool of normals, product by product.

    A pool and a defect set never share a surface, whatever their seeds; nor do pools of different seeds.

    Yields:
        `{product}/{six digits}.png` and its image, uint8 (size, size, channels).

    Raises:
        ValueError: a negative count, an unknown size or number of channels; when iteration starts.
    """
    _check(PRODUCTS[0], size, channels, num_per_product=num_per_product)
    for product in PRODUCTS:
        for number in range(num_per_product):
            image = render_normal(product, _key("pool", seed, product, number), size, channels)
            yield f"{product}/{number:06d}.png", image


def defect_set(
    num_normals: int, num_per_type: int, seed: int, size: int = 128, channels: int = 1
) -> Iterator[tuple[str, Image]]:
    """Yields a defect set: normals of each product, and defects of each type, every one on its own surface.

    Args:
        num_normals: normals of each product.
        num_per_type: defects of each product and defect type.
        seed: any integer.
        size: side of the images in pixels, 32 to 1024.
        channels: 1 (luma) or 3 (RGB).

    Yields:
        `{product}/normal/{six digits}.png` and `{product}/{defect_type}/{six digits}.png` with their images,
        uint8 (size, size, channels); `{product}/{defect_type}/{six digits}_mask.png` with its mask, uint8
        (size, size), right after its image.

    Raises:
        ValueError: a negative count, an unknown size or number of channels; when iteration starts.
    """
    _check(PRODUCTS[0], size, channels, num_normals=num_normals, num_per_type=num_per_type)
    for product in PRODUCTS:
        for number in range(num_normals):
            key = _key("defect_set", seed, product, "normal", number)
            yield f"{product}/normal/{number:06d}.png", render_normal(product, key, size, channels)
        for defect_type in DEFECT_TYPES:
            for number in range(num_per_type):
                key = _key("defect_set", seed, product, defect_type, number)
                image, mask = render_defect(product, defect_type, key, size, channels)
                yield f"{product}/{defect_type}/{number:06d}.png", image
                yield f"{product}/{defect_type}/{number:06d}_mask.png", mask


# --- arguments, randomness, grids ---------------------------------------------------------------------------


def _check(product: str, size: int, channels: int, defect_type: str | None = None, **counts: int) -> None:
    if product not in PRODUCTS:
        raise ValueError(f"product {product!r} is unknown: choose from {', '.join(PRODUCTS)}")
    if defect_type is not None and defect_type not in DEFECT_TYPES:
        raise ValueError(f"defect_type {defect_type!r} is unknown: choose from {', '.join(DEFECT_TYPES)}")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"size {size!r} is out of range: choose {MIN_SIZE} to {MAX_SIZE}")
    if channels not in (1, 3):
        raise ValueError(f"channels {channels!r} is unknown: choose from 1, 3")
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name} is {count}: choose 0 or more")


def _key(*names: str | int) -> int:
    """A 128-bit hash of the names, the same in every process."""
    text = "/".join(str(name) for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def _stream(*names: str | int) -> np.random.Generator:
    """A random stream of its own for each list of names."""
    return np.random.Generator(np.random.Philox(key=_key(*names)))


def _grid(size: int) -> tuple[Field, Field]:
    """Pixel centres in px: x as a row, y as a column."""
    x = (np.arange(size, dtype=np.float32) + 0.5) * (_PX / size)
    return x[None, :], x[:, None]


def _turned(x: Field, y: Field, angle: float, scale_x: float, scale_y: float) -> tuple[Field, Field]:
    """Coordinates along and across a direction, each divided by its scale."""
    along = (cos(angle) / scale_x) * x + (sin(angle) / scale_x) * y
    return along, (cos(angle) / scale_y) * y - (sin(angle) / scale_y) * x


def _tiles(field: np.ndarray, size: int) -> np.ndarray:
    """Views the square field as (size, factor, size, factor)."""
    factor = field.shape[0] // size
    return field.reshape(size, factor, size, factor)


@lru_cache(maxsize=8)
def _frequencies(size: int) -> tuple[Field, Field]:
    """Cycles per side along x, (1, size // 2 + 1), and along y, (size, 1)."""
    fx = np.fft.rfftfreq(size, 1 / size).astype(np.float32)
    return fx[None, :], np.fft.fftfreq(size, 1 / size).astype(np.float32)[:, None]


def _noise(
    rng: np.random.Generator, size: int, cycles_x: float, cycles_y: float, angle: float = 0.0
) -> Field:
    """Periodic noise of unit variance; its Gaussian spectrum is that many cycles per side wide, turned."""
    along, across = _turned(*_frequencies(size), angle, cycles_x, cycles_y)
    waves = rng.standard_normal((size, 2 * along.shape[1]), dtype=np.float32).view(np.complex64)
    waves *= np.exp(-0.5 * (along * along + across * across)) * (1 / sqrt(2 * pi * cycles_x * cycles_y))
    return np.fft.irfft2(waves, s=(size, size), norm="forward")


# --- the products -------------------------------------------------------------------------------------------


def _surface(product: str, seed: int, size: int) -> _Surface:
    """The bare surface, on a finer grid where the image is so small that yarns and scratches would alias."""
    size *= ceil(64 / size)
    layout, grain = _stream("layout", product, seed), _stream("grain", product, seed)
    makers = {"brushed_metal": _metal, "woven_fabric": _fabric, "grained_leather": _leather}
    height, reflectance = makers[product](layout, grain, size)
    return _Surface(_MATERIALS[product], height, reflectance, np.zeros((size, size), np.float32))


def _metal(layout: np.random.Generator, grain: np.random.Generator, size: int) -> tuple[Field, Field]:
    """Long streaks, fine and coarse, within a few degrees of the horizontal."""
    angle = radians(layout.uniform(-5, 5))
    strength = layout.uniform(0.8, 1.2)
    fine = _noise(grain, size, 1.6, 34, angle)
    coarse = _noise(grain, size, 0.9, 7, angle)
    return 0.11 * strength * fine + 0.15 * coarse, 0.4 + 0.028 * strength * fine + 0.018 * coarse


def _fabric(layout: np.random.Generator, grain: np.random.Generator, size: int) -> tuple[Field, Field]:
    """A plain weave: warp and weft pass over and under one another; yarns wander and differ in shade."""
    angle = radians(layout.uniform(-4, 4))
    pitch_x, pitch_y = layout.uniform(7.8, 8.8), layout.uniform(7.4, 8.4)
    shift_x, shift_y = layout.uniform(0, 2, size=2).tolist()
    shades = layout.normal(0, 0.05, size=(2, 64)).astype(np.float32)
    fibres = _noise(grain, size, 30, 6)
    wander = _noise(grain, size, 3.5, 3.5)
    u, v = _turned(*_grid(size), angle, pitch_x, pitch_y)
    u, v = u + 0.07 * wander + shift_x, v - 0.06 * wander + shift_y
    a, b = np.sin(pi * u), np.sin(pi * v)
    over = a * b
    warp, weft = np.abs(a) + over, np.abs(b) - over
    top = np.maximum(warp, weft)
    yarns = shades[0][np.floor(u).astype(np.intp) % 64], shades[1][np.floor(v).astype(np.intp) % 64]
    shade = np.where(warp > weft, *yarns)
    return 1.1 * top + 0.12 * fibres, (0.25 + 0.19 * top) * (1 + shade + 0.07 * fibres)


def _leather(layout: np.random.Generator, grain: np.random.Generator, size: int) -> tuple[Field, Field]:
    """Rounded pebbles of many sizes between creases, and pores."""
    pitch = _PX / int(layout.integers(15, 19))
    x, y = _grid(size)
    wander = _noise(grain, size, 6, 6)
    pores = _noise(grain, size, 28, 28)
    u, v = _turned(x - 64, y - 64, layout.uniform(0, pi / 2), pitch, pitch)
    nearest, second = _cells(layout, u + 0.13 * wander, v - 0.13 * wander)
    crease = np.exp(-5 * (second - nearest))
    height = -1.3 * crease - 1.6 * nearest * nearest + 0.13 * pores
    return height, 0.46 - 0.2 * crease + 0.018 * pores + 0.012 * wander


def _cells(layout: np.random.Generator, u: Field, v: Field) -> tuple[Field, Field]:
    """Distances to the nearest and second nearest point, of one random point in each unit square."""
    points = layout.uniform(0.05, 0.95, size=(2, 32 * 32)).astype(np.float32)
    column, row = np.floor(u), np.floor(v)
    from_x, from_y = u - column, v - row
    corner = (row.astype(np.intp) + 15) * 32 + column.astype(np.intp) + 15  # of the 3 x 3 squares around
    nearest, second = np.full_like(u, 9), np.full_like(u, 9)
    for down in range(3):
        for right in range(3):
            start = 32 * down + right
            off_x = points[0, start:].take(corner, mode="clip") - (from_x - (right - 1))
            off_y = points[1, start:].take(corner, mode="clip") - (from_y - (down - 1))
            distance = off_x * off_x + off_y * off_y
            np.minimum(second, np.maximum(nearest, distance), out=second)
            np.minimum(nearest, distance, out=nearest)
    return np.sqrt(nearest), np.sqrt(second)


# --- the defects --------------------------------------------------------------------------------------------


def _add_scratches(surface: _Surface, rng: np.random.Generator) -> Mask:
    """Cuts one to three scratches into the surface and returns their mask."""
    mask = np.zeros(surface.height.shape, np.bool_)
    for _ in range(rng.integers(1, 4)):
        _cut_scratch(surface, rng, mask)
    return mask


def _cut_scratch(surface: _Surface, rng: np.random.Generator, mask: Mask) -> None:
    """Cuts a groove with a rim, worn bright, along a bent line: off = 0, a cubic of t, in turned axes."""
    size, material = mask.shape[0], surface.material
    angle = radians(rng.uniform(15, 165))
    centre_x, centre_y = (rng.uniform(0.25, 0.75, size=2) * _PX).tolist()
    half_length = rng.uniform(0.12, 0.38) * _PX
    half_width = max(rng.uniform(0.95, 1.6), 0.8 * _PX / size)
    depth, wear = rng.uniform(*material.groove), rng.uniform(*material.wear)
    bow, twist = (rng.uniform(-0.14, 0.14, size=2) * half_length).tolist()
    wobble = rng.normal(0, 0.4, size=8)
    pressure = _pressure(rng)

    x, y = _grid(size)
    t, off = _turned(x - centre_x, y - centre_y, angle, half_length, 1.0)
    off = off - t * t * (bow + twist * t)
    near = np.flatnonzero((np.abs(off) < 2 * half_width + 2) & (np.abs(t) < 1))
    t, off = t.ravel()[near], off.ravel()[near]
    off = off - np.interp(t, np.linspace(-1, 1, wobble.size), wobble)
    force = np.interp(t, np.linspace(-1, 1, pressure.size), pressure)
    force[force < 0.25] = 0
    ratio = np.abs(off) / (half_width * (0.6 + 0.4 * force))
    groove = force * np.clip(1 - (ratio / 1.4) ** 2, 0, None) ** 2
    rim = force * np.clip(1 - ((ratio - 1.3) / 0.7) ** 2, 0, None) ** 2
    bare = wear * np.minimum(1.5 * groove, 1)

    height, reflectance, foreign = (
        surface.height.ravel(),
        surface.reflectance.ravel(),
        surface.foreign.ravel(),
    )
    old = height[near]
    height[near] += depth * (0.35 * rim - groove) + bare * (old.mean() - old)
    reflectance[near] += bare * (0.8 - reflectance[near])
    foreign[near] = np.maximum(foreign[near], 0.7 * bare)
    mask.ravel()[near] |= (ratio <= 1) & (force > 0)


def _pressure(rng: np.random.Generator) -> NDArray[np.float64]:
    """How hard a scratch was pressed along its way, (33,) in [0, 1]: thin ends, now and then a gap."""
    ends = np.minimum(1, 2.5 * (1 - np.abs(np.linspace(-1, 1, 33)))) ** 0.5
    pressure = ends * rng.uniform(0.75, 1, size=33)
    for _ in range(rng.integers(0, 3)):
        start = rng.integers(8, 23)
        pressure[start : start + rng.integers(1, 4)] = 0
    return pressure


def _add_spots(surface: _Surface, rng: np.random.Generator) -> Mask:
    """Puts one to four pits, stains or inclusions, all of one kind, on the surface and returns their mask."""
    mask = np.zeros(surface.height.shape, np.bool_)
    kind = ("pit", "stain", "inclusion")[rng.integers(3)]
    bright = kind != "pit" and rng.random() < 0.35
    _put_spot(surface, rng, mask, kind, bright, radius=rng.uniform(4, 9))
    for _ in range(rng.integers(0, 4)):
        _put_spot(surface, rng, mask, kind, bright, radius=rng.uniform(2.5, 6))
    return mask


def _put_spot(
    surface: _Surface, rng: np.random.Generator, mask: Mask, kind: str, bright: bool, radius: float
) -> None:
    """Puts one blob of about `radius` px and irregular outline: the ellipse ratio = 1 in rippled axes."""
    size = mask.shape[0]
    centre_x, centre_y = (rng.uniform(0.12, 0.88, size=2) * _PX).tolist()
    stretch, turn = rng.uniform(0.75, 1.3), rng.uniform(0, pi)
    phase = rng.uniform(0, 2 * pi, size=4).tolist()
    opacity = rng.uniform(0.55, 0.8)

    left, right, top, bottom = (
        int(min(max((centre + reach) * size / _PX, 0), size))
        for centre in (centre_x, centre_y)
        for reach in (-2 * radius, 2 * radius)
    )
    window = slice(top, bottom), slice(left, right)
    x, y = _grid(size)
    x, y = (x[:, left:right] - centre_x) / radius, (y[top:bottom] - centre_y) / radius
    ripple_x = 0.2 * np.sin(2.1 * y + phase[0]) + 0.05 * np.sin(5.5 * y + phase[1])
    ripple_y = 0.2 * np.sin(2.1 * x + phase[2]) + 0.05 * np.sin(5.5 * x + phase[3])
    along, across = _turned(x + ripple_x, y + ripple_y, turn, 1 / stretch, stretch)
    ratio = np.sqrt(along * along + across * across)
    ramp = np.clip((1.08 - ratio) / 0.23, 0, 1)
    cover = opacity * ramp * ramp * (3 - 2 * ramp)

    height, reflectance, foreign = (
        surface.height[window],
        surface.reflectance[window],
        surface.foreign[window],
    )
    if kind == "stain":
        cover *= 0.8 + 0.4 * np.clip(1 - np.abs(ratio - 0.85) / 0.3, 0, 1)  # dirt gathers at the edge
    else:
        bump = np.clip(1 - (ratio / 1.08) ** 2, 0, None) ** 2
        height += (0.17 if kind == "inclusion" else -0.2) * radius * bump + 0.5 * cover * (
            height.mean() - height
        )
    reflectance += cover * ((0.9 if bright else 0.06) - reflectance)
    np.maximum(foreign, (0.3 if bright else 0.9) * cover, out=foreign)
    mask[window] |= ratio <= 1


# --- the camera ---------------------------------------------------------------------------------------------


def _photograph(
    surface: _Surface, defect_colour: Colour, product: str, seed: int, size: int, channels: int
) -> Image:
    """Lights and photographs a surface; a pixel depends on its neighbours only: a defect stays local."""
    lamp, sensor = _stream("lamp", product, seed), _stream("sensor", product, seed)
    luma = _tiles(_blurred(_lit(surface, lamp)), size).mean(axis=(1, 3), dtype=np.float32)
    luma += sensor.standard_normal((size, size), dtype=np.float32) * (0.006 + 0.012 * luma)
    luma = np.clip(luma, 0, 1)[:, :, None]
    if channels == 1:
        return (luma * 255 + 0.5).astype(np.uint8)
    foreign = _tiles(surface.foreign, size).mean(axis=(1, 3), dtype=np.float32)[:, :, None]
    own = _chroma(surface.material.tint)
    chroma = own + foreign * (_chroma(defect_colour) - own)
    image = luma * (1 + chroma * (1.1 - 0.6 * luma))  # what is bright is a highlight, and loses its colour
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _chroma(colour: Colour) -> Field:
    """The colour's deviation from the grey of its luma, (3,); its own luma is 0."""
    rgb = np.array(colour, np.float32)
    return rgb / (rgb @ _LUMA) - 1


def _lit(surface: _Surface, lamp: np.random.Generator) -> Field:
    """Luma of the lit surface, about 0 to 1: an uneven lamp, diffuse light by the slope, a highlight."""
    material = surface.material
    azimuth = radians(lamp.uniform(200, 250))
    exposure, gradient, vignette = lamp.uniform(0.88, 1.12), lamp.uniform(0.08, 0.32), lamp.uniform(0.2, 0.6)
    tilt = lamp.uniform(0, 2 * pi)
    shine_x, shine_y = lamp.uniform(0.15, 0.85, size=2).tolist()
    middle_x, middle_y = lamp.uniform(0.4, 0.6, size=2).tolist()

    x, y = (axis / _PX for axis in _grid(surface.height.shape[0]))
    slope_x, slope_y = _slopes(surface.height)
    towards = (-material.relief * cos(azimuth)) * slope_x - (material.relief * sin(azimuth)) * slope_y
    steepness = slope_x * slope_x + slope_y * slope_y
    diffuse = np.maximum((1 + towards) / np.sqrt(1 + 0.5 * steepness), 0.15)
    # The highlight: where the slope mirrors the lamp into the camera. That slope changes with the place.
    miss_x = (slope_x - 0.5 * (x - shine_x)) * (1 / material.lobe[0])
    miss_y = (slope_y - 0.5 * (y - shine_y)) * (1 / material.lobe[1])
    shine = np.exp(-(miss_x * miss_x + miss_y * miss_y))
    light_x = exposure * (1 + gradient * cos(tilt) * (x - 0.5) - vignette * (x - middle_x) ** 2)
    light_y = exposure * (gradient * sin(tilt) * (y - 0.5) - vignette * (y - middle_y) ** 2)
    return (light_x + light_y) * (surface.reflectance * diffuse + material.gloss * shine)


def _slopes(height: Field) -> tuple[Field, Field]:
    """Central differences along x and y, in px per px; the border repeats its neighbour."""
    step = 0.5 * height.shape[0] / _PX
    slope_x, slope_y = np.empty_like(height), np.empty_like(height)
    slope_x[:, 1:-1] = (height[:, 2:] - height[:, :-2]) * step
    slope_y[1:-1] = (height[2:] - height[:-2]) * step
    slope_x[:, 0], slope_x[:, -1] = slope_x[:, 1], slope_x[:, -2]
    slope_y[0], slope_y[-1] = slope_y[1], slope_y[-2]
    return slope_x, slope_y


def _blurred(luma: Field) -> Field:
    """The lens: each pixel takes a little light from its neighbours, along y and then along x."""
    for _ in range(2):
        blurred = luma.T.copy()
        blurred[:, 1:-1] = 0.7 * blurred[:, 1:-1] + 0.15 * (blurred[:, 2:] + blurred[:, :-2])
        luma = blurred
    return luma

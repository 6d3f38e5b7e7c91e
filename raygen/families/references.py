"""Which rows of a checkpoint's reference bank guide which samples."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raygen.checkpoint import Reference
from raygen.families.family import stream
from raygen.families.recipes import SamplingConfig


def choose_references(
    references: Sequence[Reference],
    config: SamplingConfig,
    defect_type: str,
    seeds: NDArray[np.int64],
    products: Sequence[str],
) -> NDArray[np.int64]:
    """Rows of the bank, (n,), one for each seed and the product of its normal.

    Args:
        references: the bank's index.
        config: says of which products references may be.
        defect_type: of the samples.
        seeds: (n,), the only randomness.
        products: (n,), of the normals.
    """
    wanted = config.reference_products
    banks = {product: _bank(references, wanted, defect_type, product) for product in set(products)}
    return np.array(
        [
            banks[product][int(stream(seed).integers(len(banks[product])))]
            for seed, product in zip(seeds, products, strict=True)
        ]
    )


def choose_products(
    names: Sequence[str],
    references: Sequence[Reference],
    defect_type: str,
    seeds: Sequence[int],
    products: Sequence[str],
) -> NDArray[np.int64]:
    """As which of a checkpoint's products each of n normals passes, (n,): its own or, where that is unknown or had
    no such defect to learn from, one that had, chosen by its seed.

    The stream is that of bit 64, which no seed has: by the seed's own, which draws z, each product would have
    latents of its own.

    Args:
        names: the checkpoint's products.
        references: its bank's index.
        defect_type: wanted.
        seeds: (n,).
        products: (n,), of the normals.
    """
    learned = {item.product.casefold() for item in references if item.defect_type == defect_type}
    numbers = {name.casefold(): number for number, name in enumerate(names) if name.casefold() in learned}
    others = list(numbers.values()) or list(range(len(names)))
    return np.array(
        [
            numbers[product.casefold()]
            if product.casefold() in numbers
            else others[int(stream(int(seed) | 1 << 64).integers(len(others)))]
            for seed, product in zip(seeds, products, strict=True)
        ],
        np.int64,
    )


def _bank(
    references: Sequence[Reference], wanted: str | tuple[str, ...], defect_type: str, product: str
) -> list[int]:
    """The references that may guide a sample on a normal of a product."""
    allowed = None if wanted == "any" else {product} if wanted == "same" else set(wanted)
    names = None if allowed is None else {name.casefold() for name in allowed}
    return [
        row
        for row, item in enumerate(references)
        if item.defect_type == defect_type and (names is None or item.product.casefold() in names)
    ]

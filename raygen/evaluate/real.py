"""The real side: the defect set by split, and the guard that nothing held out has been learned from."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath

from raygen import storage
from raygen.data.defects import Photo, keep_defects, list_defect_set
from raygen.errors import UserError
from raygen.evaluate.config import EvaluateConfig
from raygen.records import NORMAL


@dataclass(frozen=True)
class RealSet:
    """The photos of a defect set, by split. `train` is what generators and classifiers learn from, `val`
    chooses a classifier's best epoch, `test` judges it once."""

    products: tuple[str, ...]
    defect_types: tuple[str, ...]
    train: tuple[Photo, ...]
    val: tuple[Photo, ...]
    test: tuple[Photo, ...]

    @classmethod
    def read(cls, config: EvaluateConfig) -> "RealSet":
        """Lists the defect set.

        Raises:
            UserError: no photos there, or none of the training split.
        """
        photos = list_defect_set(config.defects, types=config.types, products=config.products)

        def part(*splits: str) -> tuple[Photo, ...]:
            return tuple(photo for photo in photos if photo.split in splits)

        train = keep_defects(part(config.train_split, ""), config.keep_defects)
        kinds = {photo.defect_type for photo in train}
        if NORMAL not in kinds or len(kinds) < 2:
            raise UserError(
                f"defects = {config.defects}: normals and defects are both needed in its split "
                f"{config.train_split!r}; there are {', '.join(sorted(kinds)) or 'none'}"
            )
        products = tuple(sorted({photo.product for photo in train}))
        defect_types = tuple(sorted(kinds - {NORMAL}))

        def known(some: Iterable[Photo]) -> tuple[Photo, ...]:
            return tuple(p for p in some if p.product in products and p.defect_type in kinds)

        return cls(
            products, defect_types, train, known(part(config.val_split)), known(part(config.test_split))
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The classes of a classifier: normal first."""
        return (NORMAL, *self.defect_types)

    @property
    def splits(self) -> Mapping[str, tuple[Photo, ...]]:
        return {"train": self.train, "val": self.val, "test": self.test}

    def check_held_out(self) -> None:
        """Raises UserError unless a classifier can be chosen and judged: every cell has photos in all splits."""
        for name in ("val", "test"):
            cells = {(photo.product, photo.defect_type) for photo in self.splits[name]}
            for photo in self.train:
                if (photo.product, photo.defect_type) not in cells:
                    raise UserError(
                        f"defect set: split {name!r} has no {photo.product}/{photo.defect_type}; name splits in a "
                        "metadata.csv (id, product, domain, split), or set downstream.conditions = []"
                    )

    def product_of_reference(self, uri: str) -> str | None:
        """The product of the photo that guided a sample; None if it is not in this set. A set that has moved
        since is known by its last folders."""
        return self._products_by_name().get(_name(uri))

    def _products_by_name(self) -> dict[tuple[str, ...], str]:
        return {_name(photo.uri): photo.product for split in self.splits.values() for photo in split}

    def leaked_references(self, uris: Iterable[str]) -> list[str]:
        """Those references that are held-out photos."""
        held_out = {_name(photo.uri) for photo in self.val + self.test}
        return sorted(uri for uri in uris if _name(uri) in held_out)

    def leaked_normals(self, sha256s: Mapping[str, str], num_threads: int = 16) -> list[str]:
        """Those normals that are held-out photos, by content.

        Args:
            sha256s: SHA-256 of a normal's file -> its URI.
        """

        def hashed(photo: Photo) -> str:
            return sha256(storage.read(photo.uri)).hexdigest()

        with ThreadPoolExecutor(num_threads) as threads:
            found = set(threads.map(hashed, self.val + self.test))
        return sorted(uri for sha, uri in sha256s.items() if sha in found)


def count_cells(photos: Sequence[Photo]) -> dict[tuple[str, str], int]:
    """(product, defect type or normal) -> photos."""
    counts: dict[tuple[str, str], int] = {}
    for photo in photos:
        cell = (photo.product, photo.defect_type)
        counts[cell] = counts.get(cell, 0) + 1
    return dict(sorted(counts.items()))


def _name(uri: str) -> tuple[str, ...]:
    """product/defect type/file, or what stands there in MVTec AD: what stays when a set moves."""
    return PurePosixPath(uri).parts[-3:]

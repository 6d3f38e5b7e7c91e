"""The real side: the defect set by split, and the guard that nothing held out has been learned from."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from hashlib import sha256

from raygen import storage
from raygen.data.defects import EVERY, keep_defects
from raygen.data.folds import TEST, TRAIN, VAL
from raygen.data.layouts import split_of
from raygen.data.photo import Photo
from raygen.errors import UserError
from raygen.evaluate.config import EvaluateConfig
from raygen.learned import Learned
from raygen.records import NORMAL, digest


@dataclass(frozen=True)
class RealSet:
    """The photos of a defect set, by split. `train` is what generators and classifiers learn from, `val`
    chooses a classifier's best epoch, `test` judges it once."""

    uri: str
    products: tuple[str, ...]
    defect_types: tuple[str, ...]
    train: tuple[Photo, ...]
    val: tuple[Photo, ...]
    test: tuple[Photo, ...]
    not_kept: tuple[Photo, ...]  # training defects that `keep_defects` leaves out
    notes: tuple[str, ...] = ()  # how it was read, for the user

    @classmethod
    def read(cls, config: EvaluateConfig) -> "RealSet":
        """Lists the defect set, with its own splits.

        Raises:
            UserError: no photos there, or none of the training split.
        """
        survey = config.survey()
        splits = {
            split_of(config.train_split): TRAIN,
            "": TRAIN,
            split_of(config.val_split): VAL,
            split_of(config.test_split): TEST,
        }
        photos = [p._replace(split=splits[p.split]) for p in survey.photos if p.split in splits]
        return cls.of(config, photos, survey.notes)

    @classmethod
    def of(cls, config: EvaluateConfig, photos: Sequence[Photo], notes: tuple[str, ...] = ()) -> "RealSet":
        """Of photos whose splits are TRAIN, VAL and TEST; `keep_defects` is obeyed."""
        learned = [photo for photo in photos if photo.split == TRAIN]
        train = keep_defects(learned, config.keep_defects)
        kinds = {photo.defect_type for photo in train}
        if NORMAL not in kinds or len(kinds) < 2:
            raise UserError(
                f"defects = {config.defects}: normals and defects are both needed in its split "
                f"{config.train_split!r}; there are {', '.join(sorted(kinds)) or 'none'}"
            )
        products = tuple(sorted({photo.product for photo in train}))

        def known(split: str) -> tuple[Photo, ...]:
            some = (photo for photo in photos if photo.split == split)
            return tuple(p for p in some if p.product in products and p.defect_type in kinds)

        kept = set(train)
        return cls(
            uri=config.defects,
            products=products,
            defect_types=tuple(sorted(kinds - {NORMAL})),
            train=train,
            val=known(VAL),
            test=known(TEST),
            not_kept=tuple(photo for photo in learned if photo not in kept),
            notes=notes,
        )

    def with_few(self, count: int, draw: int = 0) -> "RealSet":
        """The same with at most so many training defects of each cell, and no more to choose by."""
        train = keep_defects(self.train, {EVERY: count}, draw)
        kept = set(train)
        gone = tuple(photo for photo in self.train if photo not in kept)
        return replace(
            self,
            train=train,
            val=keep_defects(self.val, {EVERY: count}, draw),
            not_kept=self.not_kept + gone,
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The classes of a classifier: normal first."""
        return (NORMAL, *self.defect_types)

    @property
    def splits(self) -> Mapping[str, tuple[Photo, ...]]:
        return {"train": self.train, "val": self.val, "test": self.test}

    @cached_property
    def cells(self) -> tuple[tuple[str, str], ...]:
        """The products and defect types that there are training photos of: all that samples are compared with."""
        return tuple(cell for cell in count_cells(self.train) if cell[1] != NORMAL)

    def of_cell(self, product: str, defect_type: str) -> list[Photo]:
        """Its training photos, in an order that is as good as random, and always the same."""
        own = (photo for photo in self.train if (photo.product, photo.defect_type) == (product, defect_type))
        return sorted(own, key=lambda photo: digest(self._name(photo.uri)))

    @property
    def num_defects(self) -> dict[tuple[str, str], int]:
        """Training photos of each cell of defects."""
        counts = count_cells(self.train)
        return {cell: count for cell, count in counts.items() if cell[1] != NORMAL}

    def num_normals(self, product: str) -> int:
        return count_cells(self.train).get((product, NORMAL), 0)

    def check_held_out(self) -> None:
        """Raises UserError unless a classifier can be chosen and judged: every cell has photos in all splits."""
        for name in ("val", "test"):
            missing = count_cells(self.train).keys() - count_cells(self.splits[name]).keys()
            if missing:
                raise UserError(
                    f"defect set {self.uri}: no photos of {'/'.join(min(missing))} to {_ROLE[name]} a classifier "
                    "with; lay the set out as {product}/{defect_type}/ with splits in a metadata.csv, name them "
                    f"in {name}_split, or set downstream.conditions = []"
                )

    # ----------------------------------------------------------------------------------------- leaks

    def product_of_reference(self, uri: str) -> str | None:
        """The product of the photo that guided a sample; None if it is not in this set."""
        found = self._photo_of(uri)
        return found.product if found else None

    def leaked_references(self, uris: Iterable[str]) -> list[str]:
        """Those references that are held-out photos, or training defects that should have been left out."""
        held_out = {photo.uri for photo in self.val + self.test + self.not_kept}
        return sorted(uri for uri in uris if (found := self._photo_of(uri)) and found.uri in held_out)

    def leaked_normals(self, sha256s: Mapping[str, str]) -> list[str]:
        """Those normals that are held-out photos, by content.

        Args:
            sha256s: SHA-256 of a normal's file -> its URI.
        """
        return sorted(uri for sha, uri in sha256s.items() if sha in self._held_out)

    def leaked_photos(self, learned: Iterable[Learned]) -> list[str]:
        """Those photos of a checkpoint's record that it must not have seen, by content: held-out ones, or training
        defects that should have been left out. Those of the split val may have chosen among its weights."""
        not_kept = {_sha256(photo) for photo in self.not_kept}
        return sorted(
            photo.uri
            for photo in learned
            if (split := self._held_out.get(photo.sha256, "train" if photo.sha256 in not_kept else ""))
            and (split, photo.use) != ("val", "validated")
        )

    @cached_property
    def defects_learned(self) -> set[str]:
        """SHA-256 of the training defects."""
        with ThreadPoolExecutor(16) as threads:
            return set(threads.map(_sha256, (p for p in self.train if p.defect_type != NORMAL)))

    @cached_property
    def _held_out(self) -> dict[str, str]:
        """SHA-256 of each held-out photo -> its split."""
        with ThreadPoolExecutor(16) as threads:
            val, test = (list(threads.map(_sha256, photos)) for photos in (self.val, self.test))
        return dict.fromkeys(val, "val") | dict.fromkeys(test, "test")

    def _photo_of(self, uri: str) -> Photo | None:
        """The photo of a URI. A set that has moved since is known by what stands below its root."""
        parts = uri.split("/")
        names = ("/".join(parts[-count:]) for count in range(min(5, len(parts)), 1, -1))
        return next((self._by_name[name] for name in names if name in self._by_name), None)

    @cached_property
    def _by_name(self) -> dict[str, Photo]:
        return {self._name(photo.uri): photo for photo in self.train + self.val + self.test + self.not_kept}

    def _name(self, uri: str) -> str:
        """`product/defect type/file`, say: what stays when the set moves."""
        return uri.removeprefix(f"{self.uri}/")


def _sha256(photo: Photo) -> str:
    return _sha256_of(photo.uri, photo.etag)


@cache  # every fold asks for it
def _sha256_of(uri: str, etag: str | None) -> str:
    return sha256(storage.read(uri)).hexdigest()


_ROLE = {"val": "choose", "test": "test"}


def count_cells(photos: Sequence[Photo]) -> dict[tuple[str, str], int]:
    """(product, defect type or normal) -> photos."""
    counts: dict[tuple[str, str], int] = {}
    for photo in photos:
        cell = (photo.product, photo.defect_type)
        counts[cell] = counts.get(cell, 0) + 1
    return dict(sorted(counts.items()))

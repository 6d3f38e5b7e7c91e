"""What `raygen inspect` takes for nearly the same picture.

    python tests/benchmarks/near_duplicates.py DEFECT_SET

Of a set whose metadata.csv tells groups (photos of one thing): how many pairs of photos are beyond a likeness, how
many of them are of one group, and of 200 photos' copies (JPEG of quality 50, brightened, of half the size) which
share is found; at the likeness that is used, and around it.
"""

import argparse
import io

import numpy as np
from PIL import Image

from raygen import images
from raygen.data.defects import list_defect_set, read_photo
from raygen.data.likeness import ALIKE, thumbnail


def jpeg(grey: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file))


def brighter(grey: np.ndarray) -> np.ndarray:
    return np.clip(grey * 1.2 + 10, 0, 255).astype(np.uint8)


def half(grey: np.ndarray) -> np.ndarray:
    height, width = grey.shape
    return np.asarray(Image.fromarray(grey).resize((width // 2, height // 2), Image.Resampling.LANCZOS))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("defects")
    args = parser.parse_args()
    photos = list_defect_set(args.defects)
    grey = [images.to_channels(read_photo(photo), 1)[:, :, 0] for photo in photos]
    thumbnails = np.stack([thumbnail(one) for one in grey]).astype(np.float32)
    first, second = np.triu_indices(len(photos), 1)
    likeness = (thumbnails @ thumbnails.T)[first, second]
    some = np.random.default_rng(0).choice(len(photos), min(200, len(photos)), replace=False)
    copies = {
        change.__name__: np.array([thumbnail(change(grey[n])) @ thumbnails[n] for n in some])
        for change in (jpeg, brighter, half)
    }
    print(f"{len(photos):,} photos; used: likeness above {ALIKE}")
    for limit in (0.7, ALIKE, 0.9):
        pairs = np.flatnonzero(likeness > limit)
        same = sum(photos[first[n]].group == photos[second[n]].group != "" for n in pairs)
        found = ", ".join(f"{name} {(values > limit).mean():.0%}" for name, values in copies.items())
        print(f"above {limit}: {len(pairs):,} pairs, {same:,} of one group; copies found: {found}")


if __name__ == "__main__":
    main()

"""Names and paths of images, as exports write them and as a folder has them."""

import posixpath
import re
from collections.abc import Iterator

from raygen import images

SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
# `train`, `train2017`, `train_images`, `instances_train2017`; not `test_rig`.
_SPLIT_NAME = re.compile(
    r"(?:instances_|annotations?_)?(train(?:ing)?|val(?:id|idation)?|test(?:ing)?)(?:\d{4}|[_-](?:images?|annotations?))?"
)


def relative(uri: str, base_uri: str) -> str:
    return uri.removeprefix(f"{base_uri.rstrip('/')}/")


def stem(path: str) -> str:
    """A path without the extension of an image or an annotation file."""
    root, extension = posixpath.splitext(path)
    return root if extension.lower() in (*images.EXTENSIONS, ".txt", ".xml", ".json") else path


def plain(name: str) -> str:
    """A name without the folders that it climbs to."""
    return re.sub(r"^(\.{0,2}/)+", "", name)


def tails(name: str) -> Iterator[str]:
    """A path, and what is left of it without its first folder, its second, and so on."""
    parts = plain(name).split("/")
    return ("/".join(parts[number:]) for number in range(len(parts)))


def split_of(path: str) -> str:
    """The split that a file's or folder's name in a path says, the deepest; "" if none does."""
    for part in reversed(path.lower().split("/")):
        if match := _SPLIT_NAME.fullmatch(stem(part)):
            return SPLITS[match[1]]
    return ""


def ends(path: str, tail: str) -> bool:
    return f"/{path}".endswith(f"/{tail}") or f"/{stem(path)}".endswith(f"/{tail}")


def nearness(path: str, folder: str) -> int:
    """How many folders a path has in common with one, from the first on."""
    pairs = list(zip(path.split("/")[:-1], folder.split("/"), strict=False))
    return next((number for number, (one, other) in enumerate(pairs) if one != other), len(pairs))

"""URI -> bytes: a local folder or S3 (any endpoint, by AWS_ENDPOINT_URL; see `raygen.s3`).

Every put is atomic: a reader sees the whole object or none of it.
"""

import errno
import fcntl
import io
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from raygen import s3
from raygen.errors import ObjectChangedError, ObjectMissingError, StorageUnavailableError, UserError

__all__ = ["ObjectChangedError", "ObjectMissingError", "StorageUnavailableError"]


class Entry(NamedTuple):
    """A stored object as the listing tells it, without a request of its own."""

    uri: str
    size: int  # bytes
    etag: str  # changes when the content does


def normalize(uri: str) -> str:
    """One spelling for one place: no trailing slash, no `file://`, no `./` or `a//b` in local paths.

    Raises:
        UserError: neither a local path nor s3://.
    """
    return uri.rstrip("/") if _is_s3(uri) else str(_local(uri))


def spelt_out(uri: str) -> str:
    """A local path in full, without `..` (links stay links); any other URI as it is."""
    return os.path.abspath(_local(uri)) if is_local(uri) else uri  # noqa: PTH100


def folder_name(uri: str) -> str:
    """A folder's own name, also of one that is called `.` or `..`."""
    return spelt_out(uri).rstrip("/").rpartition("/")[2]


def join(base_uri: str, *names: str) -> str:
    """Appends names to a URI with single slashes."""
    return "/".join([base_uri.rstrip("/"), *names])


def list_files(base_uri: str, deep: bool = True) -> Iterator[Entry]:
    """Streams the files of a folder, with `deep` also those of the folders below, in a fixed order: by the whole
    name locally, as the server lists on S3 (AWS: by name as well).

    Hidden files and folders (a name that begins with a dot) are left out. On S3 this is one request per 1,000
    objects. A folder that does not exist is empty.

    Raises:
        UserError: the bucket is missing, or may not be listed.
    """
    if _is_s3(base_uri):
        for found in s3.list_files(base_uri, deep):
            yield Entry(found.key, found.size, found.etag)
    else:
        yield from _list_local(_local(base_uri), deep)


def list_folders(base_uri: str) -> list[str]:
    """The names of the folders in a folder, but hidden ones; without the files, whose number may be anything.

    Raises:
        UserError: the bucket is missing, or may not be listed.
    """
    if _is_s3(base_uri):
        names = s3.list_folders(base_uri)
    else:
        try:
            with os.scandir(_local(base_uri)) as found:
                names = [entry.name for entry in found if entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"{base_uri}: {error.strerror}; name a folder that can be listed") from error
    return sorted(name for name in names if not name.startswith("."))


def read(uri: str, etag: str | None = None) -> bytes:
    """Reads a whole object; with `etag`, only if it is still the one that was listed so.

    Raises:
        ObjectMissingError: nothing there.
        ObjectChangedError: the etag differs.
        UserError: storage says no (permission, bucket, endpoint).
    """
    if _is_s3(uri):
        return s3.read(uri, etag)
    with _reading_local(uri), _local(uri).open("rb") as file:
        if etag and etag != _local_etag(os.fstat(file.fileno())):
            raise ObjectChangedError(uri)
        return file.read()


def exists(uri: str) -> bool:
    """Whether an object (not a folder) stands there."""
    if not _is_s3(uri):
        return _local(uri).is_file()
    try:
        s3.head(uri)
    except ObjectMissingError:
        return False
    return True


def put(uri: str, data: bytes | IO[bytes]) -> None:
    """Writes an object atomically, replacing what stood there."""
    if _is_s3(uri):
        s3.put(uri, data)
        return
    with _writing_local(uri), _temporary_neighbour(_local(uri), data) as temporary:
        temporary.replace(_local(uri))


def put_if_absent(uri: str, data: bytes | IO[bytes]) -> bool:
    """Writes an object unless one stands there; of any number of racing writers exactly one gets True."""
    if _is_s3(uri):
        try:
            s3.put_if(uri, data, IfNoneMatch="*")
        except ObjectChangedError:
            return False
        return True
    with _writing_local(uri), _temporary_neighbour(_local(uri), data) as temporary:
        try:
            os.link(temporary, _local(uri))
        except FileExistsError:
            return False
        return True


def replace(uri: str, data: bytes, etag: str) -> str | None:
    """Writes an object in the place of the one that has this etag; of any number of racing writers one succeeds.

    Returns:
        The new etag; None if the object has another by now, or is gone.
    """
    if _is_s3(uri):
        try:
            return s3.put_if(uri, data, IfMatch=f'"{etag}"')
        except (ObjectChangedError, ObjectMissingError):
            return None
    target = _local(uri)
    with _writing_local(uri):
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / f".{target.name}.lock").open("wb") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)  # the system frees it when its holder dies
            if not target.is_file() or _local_etag(target.stat()) != etag:
                return None
            with _temporary_neighbour(target, data) as temporary:
                temporary.replace(target)
            return _local_etag(target.stat())


class Snapshot(NamedTuple):
    """An object as read, and how old it is."""

    data: bytes
    etag: str
    age: float  # seconds since it was written, by the storage's clock; S3 counts in whole ones


def read_snapshot(uri: str) -> Snapshot:
    """Reads a small object together with its etag and age, in one request.

    Raises:
        ObjectMissingError: nothing there.
        UserError: storage says no.
    """
    if _is_s3(uri):
        data, found = s3.read_with_head(uri)
        return Snapshot(data, found.etag, found.age)
    with _reading_local(uri), _local(uri).open("rb") as file:
        status = os.fstat(file.fileno())
        return Snapshot(file.read(), _local_etag(status), max(0.0, time.time() - status.st_mtime))


def delete(uri: str) -> None:
    """Removes an object; one that is not there is fine."""
    if _is_s3(uri):
        s3.delete(uri)
    else:
        _local(uri).unlink(missing_ok=True)


def open_input(uri: str) -> IO[bytes] | io.RawIOBase:
    """Opens an object for random access (Parquet reads its footer and the row groups it needs, no more); the
    caller closes it.

    Raises:
        ObjectMissingError: nothing there.
        UserError: storage says no.
    """
    if not _is_s3(uri):
        with _reading_local(uri):
            return _local(uri).open("rb")
    return s3.open_input(uri)


def stat(uri: str) -> Entry:
    """Size and etag of one object; a request each, so never for the files of a listing."""
    if _is_s3(uri):
        found = s3.head(uri)
        return Entry(uri, found.size, found.etag)
    with _reading_local(uri):
        status = _local(uri).stat()
        return Entry(uri, status.st_size, _local_etag(status))


def delta_options(uri: str) -> dict[str, str]:
    """What the Delta Lake library must be told beside the environment to reach the same storage."""
    if _is_s3(uri) and os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        return {"allow_http": "true"}
    return {}


# -------------------------------------------------------------------------------- local folders


def is_local(uri: str) -> bool:
    """Whether the URI names this machine's file system."""
    return not _is_s3(uri)


def _is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def _local(uri: str) -> Path:
    if uri.startswith("file://"):
        return Path(os.path.normpath(uri.removeprefix("file://")))
    if "://" in uri:
        raise UserError(
            f"{uri}: raygen reads and writes local folders and s3://, not {uri.split('://')[0]}://"
        )
    return Path(uri)


def _local_etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _list_local(folder: Path, deep: bool) -> Iterator[Entry]:
    base = (
        "" if str(folder) == "." else str(folder).rstrip("/") + "/"
    )  # joined as text: paths are slow to make
    try:
        with os.scandir(folder) as found:
            # A folder sorts as "name/", so that the whole walk is in the order of the full names.
            entries = sorted((entry.name + "/" if entry.is_dir() else entry.name, entry) for entry in found)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; name a folder that can be listed") from error
    for name, entry in entries:
        if name.startswith("."):
            continue
        if not name.endswith("/"):
            status = entry.stat() if entry.is_file() else entry.stat(follow_symlinks=False)  # a broken link
            yield Entry(base + name, status.st_size, _local_etag(status))
        elif deep:
            yield from _list_local(folder / entry.name, deep)


@contextmanager
def _temporary_neighbour(target: Path, data: bytes | IO[bytes]) -> Iterator[Path]:
    """Writes `data` to a hidden file beside the target, for an atomic rename or link; removes what is left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("wb") as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                shutil.copyfileobj(data, file)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could keep the name and lose the content
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _reading_local(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ObjectMissingError(uri) from error
    except OSError as error:
        raise _refused(uri, error) from error


@contextmanager
def _writing_local(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refused(uri, error) from error


def _refused(uri: str, error: OSError) -> UserError:
    mend = "free some space" if error.errno == errno.ENOSPC else "check the path and its permissions"
    return UserError(f"{uri}: {error.strerror}; {mend}")

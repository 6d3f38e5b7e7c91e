"""URI -> bytes: a local folder or S3 (any endpoint, by AWS_ENDPOINT_URL). The only module that knows S3.

Whole objects go through boto3 (one request each, conditional puts), random access into Parquet through s3fs;
both take their credentials from botocore's chain, so whatever works for one works for the other.
Every put is atomic: a reader sees the whole object or none of it.
"""

import errno
import functools
import io
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from raygen.errors import UserError


class Entry(NamedTuple):
    """A stored object as the listing tells it, without a request of its own."""

    uri: str
    size: int  # bytes
    etag: str  # changes when the content does


class ObjectMissingError(Exception):
    """There is no object of this URI (any more)."""


class ObjectChangedError(Exception):
    """The object is not the one that was listed: its etag differs."""


def join(base_uri: str, *names: str) -> str:
    """Appends names to a URI with single slashes."""
    return "/".join([base_uri.rstrip("/"), *names])


def list_files(base_uri: str) -> Iterator[Entry]:
    """Streams all files below a folder in a fixed order: by the whole name locally, as the server lists on S3
    (AWS: by name as well).

    Hidden files and folders (a name that begins with a dot) are left out. On S3 this is one request per 1,000
    objects. A folder that does not exist is empty.

    Raises:
        UserError: the bucket is missing, or may not be listed.
    """
    if _is_s3(base_uri):
        yield from _list_s3(base_uri)
    else:
        yield from _list_local(_local(base_uri))


def read(uri: str, etag: str | None = None) -> bytes:
    """Reads a whole object; with `etag`, only if it is still the one that was listed so.

    Raises:
        ObjectMissingError: nothing there.
        ObjectChangedError: the etag differs.
        UserError: storage says no (permission, bucket, endpoint).
    """
    if _is_s3(uri):
        bucket, key = _bucket_key(uri)
        condition = {"IfMatch": f'"{etag}"'} if etag else {}
        with _s3_errors(uri):
            return _client().get_object(Bucket=bucket, Key=key, **condition)["Body"].read()
    with _reading_local(uri), _local(uri).open("rb") as file:
        if etag and etag != _local_etag(os.fstat(file.fileno())):
            raise ObjectChangedError(uri)
        return file.read()


def exists(uri: str) -> bool:
    """Whether an object (not a folder) stands there."""
    if not _is_s3(uri):
        return _local(uri).is_file()
    bucket, key = _bucket_key(uri)
    try:
        with _s3_errors(uri):
            _client().head_object(Bucket=bucket, Key=key)
    except ObjectMissingError:
        return False
    return True


def put(uri: str, data: bytes | IO[bytes]) -> None:
    """Writes an object atomically, replacing what stood there."""
    if _is_s3(uri):
        bucket, key = _bucket_key(uri)
        with _s3_errors(uri):
            _client().put_object(Bucket=bucket, Key=key, Body=data)
        return
    with _writing_local(uri), _temporary_neighbour(_local(uri), data) as temporary:
        temporary.replace(_local(uri))


def put_if_absent(uri: str, data: bytes | IO[bytes]) -> bool:
    """Writes an object unless one stands there; of any number of racing writers exactly one gets True."""
    if _is_s3(uri):
        bucket, key = _bucket_key(uri)
        try:
            with _s3_errors(uri):
                _client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except ObjectChangedError:
            return False
        return True
    with _writing_local(uri), _temporary_neighbour(_local(uri), data) as temporary:
        try:
            os.link(temporary, _local(uri))
        except FileExistsError:
            return False
        return True


def delete(uri: str) -> None:
    """Removes an object; one that is not there is fine."""
    if _is_s3(uri):
        bucket, key = _bucket_key(uri)
        with _s3_errors(uri):
            _client().delete_object(Bucket=bucket, Key=key)
    else:
        _local(uri).unlink(missing_ok=True)


def open_input(uri: str) -> IO[bytes]:
    """Opens an object for random access (Parquet reads its footer and the row groups it needs, no more); the
    caller closes it.

    Raises:
        ObjectMissingError: nothing there.
        UserError: storage says no.
    """
    if not _is_s3(uri):
        with _reading_local(uri):
            return _local(uri).open("rb")
    with _s3_errors(uri):
        # Buffered: pyarrow reads a footer in small steps, and each unbuffered one would be a request.
        return io.BufferedReader(_s3fs().open(uri, "rb", cache_type="readahead"), 1 << 20)


def stat(uri: str) -> Entry:
    """Size and etag of one object; a request each, so never for the files of a listing."""
    if _is_s3(uri):
        bucket, key = _bucket_key(uri)
        with _s3_errors(uri):
            head = _client().head_object(Bucket=bucket, Key=key)
        return Entry(uri, head["ContentLength"], head["ETag"].strip('"'))
    with _reading_local(uri):
        status = _local(uri).stat()
        return Entry(uri, status.st_size, _local_etag(status))


# -------------------------------------------------------------------------------- local folders


def is_local(uri: str) -> bool:
    """Whether the URI names this machine's file system."""
    return not _is_s3(uri)


def _local(uri: str) -> Path:
    if uri.startswith("file://"):
        return Path(uri.removeprefix("file://"))
    if "://" in uri:
        raise UserError(
            f"{uri}: raygen reads and writes local folders and s3://, not {uri.split('://')[0]}://"
        )
    return Path(uri)


def _local_etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _list_local(folder: Path) -> Iterator[Entry]:
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
        if name.endswith("/"):
            yield from _list_local(folder / entry.name)
        else:
            status = entry.stat()
            yield Entry(str(folder / name), status.st_size, _local_etag(status))


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


# -------------------------------------------------------------------------------- S3

_MISSING = {"NoSuchKey", "404", "NotFound"}
_CHANGED = {"PreconditionFailed", "412", "ConditionalRequestConflict"}


def _is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def _bucket_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{uri!r} names no bucket; write s3://bucket/prefix")
    return bucket, key


_client_lock = threading.Lock()


def _client() -> Any:
    with _client_lock:  # creating a client is not thread-safe in boto3, using one is
        return _create_client()


@functools.cache
def _create_client() -> Any:
    from boto3.session import Session
    from botocore.config import Config

    # Eight attempts with growing pauses outlast half a minute of a storage that restarts or says SlowDown.
    config = Config(retries={"mode": "standard", "max_attempts": 8}, max_pool_connections=64)
    return Session().client("s3", config=config)


@functools.cache
def _s3fs() -> Any:
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False)


def _list_s3(base_uri: str) -> Iterator[Entry]:
    bucket, prefix = _bucket_key(base_uri)
    prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
    with _s3_errors(base_uri):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                key: str = item["Key"]
                hidden = any(part.startswith(".") for part in key.removeprefix(prefix).split("/"))
                if not hidden and not key.endswith("/"):
                    yield Entry(f"s3://{bucket}/{key}", item["Size"], item["ETag"].strip('"'))


@contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """Turns botocore's errors into ours: missing, changed, or one clear line for the user."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _MISSING:
            raise ObjectMissingError(uri) from error
        if code in _CHANGED:
            raise ObjectChangedError(uri) from error
        raise UserError(
            f"{uri}: S3 answers {code} ({error}); check the bucket, key and permissions"
        ) from error
    except FileNotFoundError as error:
        raise ObjectMissingError(uri) from error
    except (BotoCoreError, PermissionError) as error:
        raise UserError(f"{uri}: {error}; check AWS_ENDPOINT_URL, region and credentials") from error

"""URI -> bytes: a local folder or S3 (any endpoint, by AWS_ENDPOINT_URL). The only module that knows S3.

Whole objects go through boto3 (one request each, conditional puts), reads and deep listings by obstore where that
can (`raygen.s3_reads`), random access into Parquet through s3fs; all take their credentials from botocore's chain,
so whatever works for one works for the others.
Every put is atomic: a reader sees the whole object or none of it.
"""

import errno
import fcntl
import functools
import io
import itertools
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from raygen import s3_reads
from raygen.errors import UserError


class Entry(NamedTuple):
    """A stored object as the listing tells it, without a request of its own."""

    uri: str
    size: int  # bytes
    etag: str  # changes when the content does


class StorageUnavailableError(UserError):
    """Storage does not answer, or says try again later: the one error here that time mends. Exit code 5."""

    exit_code = 5


class _ConflictError(StorageUnavailableError):
    """Another conditional put of the same object is under way."""


class ObjectMissingError(Exception):
    """There is no object of this URI (any more)."""


class ObjectChangedError(Exception):
    """The object is not the one that was listed: its etag differs."""


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
        yield from _list_s3(base_uri, deep)
    else:
        yield from _list_local(_local(base_uri), deep)


def list_folders(base_uri: str) -> list[str]:
    """The names of the folders in a folder, but hidden ones; without the files, whose number may be anything.

    Raises:
        UserError: the bucket is missing, or may not be listed.
    """
    if _is_s3(base_uri):
        names = _list_s3_folders(base_uri)
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
        bucket, key = _bucket_key(uri)
        condition = {"IfMatch": f'"{etag}"'} if etag else {}
        with _s3_errors(uri):
            with suppress(s3_reads.AskBoto3Error):
                return s3_reads.read(_client(), bucket, key, etag)
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
        try:
            _put_if(uri, data, IfNoneMatch="*")
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
            return _put_if(uri, data, IfMatch=f'"{etag}"')
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
        bucket, key = _bucket_key(uri)
        with _s3_errors(uri):
            answer = _client().get_object(Bucket=bucket, Key=key)
            data = answer["Body"].read()
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        age = (now - answer["LastModified"]).total_seconds()
        return Snapshot(data, answer["ETag"].strip('"'), max(0.0, age))
    with _reading_local(uri), _local(uri).open("rb") as file:
        status = os.fstat(file.fileno())
        return Snapshot(file.read(), _local_etag(status), max(0.0, time.time() - status.st_mtime))


def delete(uri: str) -> None:
    """Removes an object; one that is not there is fine."""
    if _is_s3(uri):
        bucket, key = _bucket_key(uri)
        with _s3_errors(uri):
            _client().delete_object(Bucket=bucket, Key=key)
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
    with _s3_errors(uri):
        return _S3File(uri, _s3fs().open(uri, "rb", cache_type="readahead"))


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


def delta_options(uri: str) -> dict[str, str]:
    """What the Delta Lake library must be told beside the environment to reach the same storage."""
    if _is_s3(uri) and os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        return {"allow_http": "true"}
    return {}


# -------------------------------------------------------------------------------- local folders


def is_local(uri: str) -> bool:
    """Whether the URI names this machine's file system."""
    return not _is_s3(uri)


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


# -------------------------------------------------------------------------------- S3

_MISSING = {"NoSuchKey", "404", "NotFound"}
_CHANGED = {"PreconditionFailed", "412"}
_CONFLICT = {
    "ConditionalRequestConflict",
    "OperationAborted",
}  # two conditional puts at once: neither, or one
_TRY_AGAIN = {"SlowDown", "RequestTimeout"}


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


def _list_s3(base_uri: str, deep: bool) -> Iterator[Entry]:
    bucket, prefix = _bucket_key(base_uri)
    prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
    with _s3_errors(base_uri):
        for found in _objects(bucket, prefix, deep):
            hidden = any(part.startswith(".") for part in found.key.removeprefix(prefix).split("/"))
            if not hidden and not found.key.endswith("/"):
                yield Entry(f"s3://{bucket}/{found.key}", found.size, found.etag)


def _objects(bucket: str, prefix: str, deep: bool) -> Iterator[s3_reads.Listed]:
    """The objects of a prefix; if deep by obstore, as far as it comes, and from there on by boto3."""
    client, last = _client(), ""
    if deep:
        try:
            for found in s3_reads.list_objects(client, bucket, prefix):
                last = found.key
                if found.size or _is_object(client, bucket, found.key):
                    yield found
            return
        except s3_reads.AskBoto3Error:
            pass
    pages = client.get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter="" if deep else "/", StartAfter=last):
        for item in page.get("Contents", ()):
            yield s3_reads.Listed(item["Key"], item["Size"], item["ETag"].strip('"'))


def _is_object(client: Any, bucket: str, key: str) -> bool:
    """Whether an empty object is one, not a folder's marker, which obstore lists without its slash."""
    return client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)["Contents"][0]["Key"] == key


def _list_s3_folders(base_uri: str) -> list[str]:
    bucket, prefix = _bucket_key(base_uri)
    prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
    with _s3_errors(base_uri):
        # One page: a thousand names are enough to know a folder by.
        page = _client().list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter="/")
    return [found["Prefix"].removeprefix(prefix).rstrip("/") for found in page.get("CommonPrefixes", ())]


def _put_if(uri: str, data: bytes | IO[bytes], **condition: str) -> str:
    """A conditional put; returns the etag."""
    bucket, key = _bucket_key(uri)
    for attempt in itertools.count():
        try:
            with _s3_errors(uri):
                answer = _client().put_object(Bucket=bucket, Key=key, Body=data, **condition)
            return answer["ETag"].strip('"')
        except _ConflictError:
            if attempt == 7:
                raise
            time.sleep(0.1 * 2**attempt)
            if not isinstance(data, bytes):
                data.seek(0)
    raise AssertionError


class _S3File(io.RawIOBase):
    """A file of s3fs whose later reads, too, fail with our errors."""

    def __init__(self, uri: str, file: Any) -> None:
        self.uri = uri
        self.file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        with _s3_errors(self.uri):
            return self.file.read(size)

    def close(self) -> None:
        self.file.close()
        super().close()


@contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """Turns botocore's errors into ours: missing, changed, or one clear line for the user."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except s3_reads.MissingError as error:
        raise ObjectMissingError(uri) from error
    except s3_reads.ChangedError as error:
        raise ObjectChangedError(uri) from error
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _MISSING:
            raise ObjectMissingError(uri) from error
        if code in _CHANGED:
            raise ObjectChangedError(uri) from error
        if code in _CONFLICT:
            raise _ConflictError(f"{uri}: S3 answers {code}; run the same command again") from error
        if code in _TRY_AGAIN or status >= 500:
            raise StorageUnavailableError(f"{uri}: S3 answers {code}; run the same command again") from error
        raise UserError(
            f"{uri}: S3 answers {code} ({error}); check the bucket, key and permissions"
        ) from error
    except FileNotFoundError as error:
        raise ObjectMissingError(uri) from error
    except (NoCredentialsError, PermissionError) as error:
        raise UserError(f"{uri}: {error}; check the credentials") from error
    except (BotoCoreError, OSError) as error:  # a connection refused, cut or timed out
        line = f"{uri}: {error}; check AWS_ENDPOINT_URL, or run the same command again later"
        raise StorageUnavailableError(line) from error

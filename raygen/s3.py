"""S3: whole objects by boto3 (one request each, conditional puts), reads and deep listings by obstore where it can
(`raygen.s3_reads`), random access into Parquet by s3fs.

All take their credentials from botocore's chain, so whatever works for one works for the others. Used by
`raygen.storage` alone, which says what each function here does.
"""

import functools
import io
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import IO, Any, NamedTuple

from raygen import s3_reads
from raygen.errors import ObjectChangedError, ObjectMissingError, StorageUnavailableError, UserError

_MISSING = {"NoSuchKey", "404", "NotFound"}
_CHANGED = {"PreconditionFailed", "412"}
_CONFLICT = {  # two conditional puts at once: neither, or one
    "ConditionalRequestConflict",
    "OperationAborted",
}
_TRY_AGAIN = {"SlowDown", "RequestTimeout"}
_CREDENTIALS = "check the credentials"
_REGION = "set AWS_DEFAULT_REGION to the bucket's region"
_MENDS = {
    "NoSuchBucket": "there is no such bucket: mend its name, or create it",
    "AccessDenied": "these credentials may not: give them the right to list, get, put and delete",
    "403": "these credentials may not: give them the right to list, get, put and delete",
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "ExpiredToken": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "301": _REGION,
}
_ATTEMPTS = 8  # with growing pauses they outlast half a minute of a storage that restarts or says SlowDown
_SILENT_ATTEMPTS = 3  # some three seconds
_FOLDERS = 1_000  # names are enough to know a folder by


class _ConflictError(StorageUnavailableError):
    """Another conditional put of the same object is under way."""


class Head(NamedTuple):
    """What S3 says of an object."""

    size: int  # bytes
    etag: str  # without quotes
    age: float  # seconds since it was written, by the server's clock; S3 counts in whole ones


def list_files(base_uri: str, deep: bool) -> Iterator[s3_reads.Listed]:
    bucket, prefix = _bucket_prefix(base_uri)
    with _errors(base_uri):
        for found in _objects(bucket, prefix, deep):
            hidden = any(part.startswith(".") for part in found.key.removeprefix(prefix).split("/"))
            if not hidden and not found.key.endswith("/"):
                yield found._replace(key=f"s3://{bucket}/{found.key}")


def list_folders(base_uri: str) -> list[str]:
    bucket, prefix = _bucket_prefix(base_uri)
    with _errors(base_uri):
        page = client().list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter="/", MaxKeys=_FOLDERS)
    return [found["Prefix"].removeprefix(prefix).rstrip("/") for found in page.get("CommonPrefixes", ())]


def read(uri: str, etag: str | None) -> bytes:
    bucket, key = _bucket_key(uri)
    with _errors(uri):
        with suppress(s3_reads.AskBoto3Error):
            return s3_reads.read(client(), bucket, key, etag)
        condition = {"IfMatch": f'"{etag}"'} if etag else {}
        return client().get_object(Bucket=bucket, Key=key, **condition)["Body"].read()


def read_with_head(uri: str) -> tuple[bytes, Head]:
    """A whole object and what S3 says of it, in one request."""
    bucket, key = _bucket_key(uri)
    with _errors(uri):
        answer = client().get_object(Bucket=bucket, Key=key)
        return answer["Body"].read(), _head(answer)


def head(uri: str) -> Head:
    bucket, key = _bucket_key(uri)
    with _errors(uri):
        return _head(client().head_object(Bucket=bucket, Key=key))


def put(uri: str, data: bytes | IO[bytes]) -> None:
    bucket, key = _bucket_key(uri)
    with _errors(uri):
        client().put_object(Bucket=bucket, Key=key, Body=data)


def put_if(uri: str, data: bytes | IO[bytes], **condition: str) -> str:
    """A conditional put; returns the etag."""
    bucket, key = _bucket_key(uri)
    for attempt in itertools.count():
        try:
            with _errors(uri):
                answer = client().put_object(Bucket=bucket, Key=key, Body=data, **condition)
            return answer["ETag"].strip('"')
        except _ConflictError:
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.1 * 2**attempt)
            if not isinstance(data, bytes):
                data.seek(0)
    raise AssertionError


def delete(uri: str) -> None:
    bucket, key = _bucket_key(uri)
    with _errors(uri):
        client().delete_object(Bucket=bucket, Key=key)


def open_input(uri: str) -> io.RawIOBase:
    with _errors(uri):
        return _File(uri, _s3fs().open(uri, "rb", cache_type="readahead"))


def _bucket_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{uri!r} names no bucket; write s3://bucket/prefix")
    return bucket, key


def _bucket_prefix(base_uri: str) -> tuple[str, str]:
    bucket, prefix = _bucket_key(base_uri)
    return bucket, prefix.rstrip("/") + "/" if prefix.strip("/") else ""


def _head(answer: dict[str, Any]) -> Head:
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    age = (now - answer["LastModified"]).total_seconds()
    return Head(answer["ContentLength"], answer["ETag"].strip('"'), max(0.0, age))


def _objects(bucket: str, prefix: str, deep: bool) -> Iterator[s3_reads.Listed]:
    """The objects of a prefix; if deep by obstore, as far as it comes, and from there on by boto3."""
    last = ""
    if deep:
        try:
            for found in s3_reads.list_objects(client(), bucket, prefix):
                last = found.key
                if found.size or _is_object(bucket, found.key):
                    yield found
            return
        except s3_reads.AskBoto3Error:
            pass
    pages = client().get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter="" if deep else "/", StartAfter=last):
        for item in page.get("Contents", ()):
            yield s3_reads.Listed(item["Key"], item["Size"], item["ETag"].strip('"'))


def _is_object(bucket: str, key: str) -> bool:
    """Whether an empty object is one, not a folder's marker, which obstore lists without its slash."""
    found = client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)["Contents"]
    return found[0]["Key"] == key


_client_lock = threading.Lock()


def client() -> Any:
    """boto3's, one for all threads of a process."""
    with _client_lock:  # creating a client is not thread-safe in boto3, using one is
        return create_client()


@functools.cache
def create_client() -> Any:
    from boto3.session import Session
    from botocore.config import Config

    config = Config(retries={"mode": "standard", "max_attempts": _ATTEMPTS}, max_pool_connections=64)
    created = Session().client("s3", config=config)
    created.meta.events.register_first("needs-retry.s3", _Patience(created.meta.endpoint_url))
    return created


class _Patience:
    """Says, once in a while, that storage is waited for; decides nothing."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.said = 0.0

    def __call__(self, attempts: int, caught_exception: Exception | None, response: Any, **_: Any) -> None:
        status = response[0].status_code if response else 0
        is_trying = caught_exception is not None or status >= 500 or status == 429
        if is_trying and attempts == _SILENT_ATTEMPTS and time.monotonic() - self.said > 60:
            self.said = time.monotonic()
            reason = f"answers {status}" if status else "does not answer"
            print(f"{self.endpoint} {reason}: trying for up to a minute", file=sys.stderr, flush=True)


@functools.cache
def _s3fs() -> Any:
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False)


class _File(io.RawIOBase):
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
        with _errors(self.uri):
            return self.file.read(size)

    def close(self) -> None:
        self.file.close()
        super().close()


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Turns the clients' errors into ours: missing, changed, or one clear line for the user."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
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
        mend = _MENDS.get(code, f"({error}) check the bucket, the key and the permissions")
        raise UserError(f"{uri}: S3 answers {code}; {mend}") from error
    except FileNotFoundError as error:
        raise ObjectMissingError(uri) from error
    except (NoCredentialsError, PermissionError) as error:
        raise UserError(f"{uri}: {error}; {_CREDENTIALS}") from error
    except (BotoCoreError, OSError) as error:  # a connection refused, cut or timed out
        line = f"{uri}: {error}; check AWS_ENDPOINT_URL, or run the same command again later"
        raise StorageUnavailableError(line) from error

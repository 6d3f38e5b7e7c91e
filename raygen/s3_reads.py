"""Listing S3 and reading whole objects by obstore: a tenth of boto3's CPU time, which bounds small images.

Only what went well, and what is certain, is answered here; whatever else happens is for boto3 to find out, whose
errors say what is wrong, and which knows every way to configure an endpoint. Credentials, endpoint and addressing
are boto3's own.
"""

import functools
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

from raygen.errors import ObjectChangedError, ObjectMissingError

_RETRIES: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=5)}  # then boto3 tries, more patiently
_CHUNK = 1_000  # objects of a listing: what S3 answers at once


class AskBoto3Error(Exception):
    """Something that obstore cannot tell for certain."""


class Listed(NamedTuple):
    """An object of a listing."""

    key: str
    size: int  # bytes
    etag: str  # without quotes


def read(client: Any, bucket: str, key: str, etag: str | None) -> bytes:
    """A whole object; with `etag` only if it has that one.

    Args:
        client: boto3's.
        bucket: its name.
        key: of the object.
        etag: without quotes.

    Raises:
        ObjectMissingError, ObjectChangedError: as they say.
        AskBoto3Error: anything else.
    """
    import obstore
    from obstore.exceptions import PreconditionError

    store = _store(client, bucket)
    try:
        answer = obstore.get(store, key, options={"if_match": f'"{etag}"'} if etag else None)
        return answer.bytes().to_bytes()
    except PreconditionError as error:
        raise ObjectChangedError(key) from error
    except Exception as error:
        if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
            raise ObjectMissingError(key) from error
        raise AskBoto3Error(str(error)) from error


def list_objects(client: Any, bucket: str, prefix: str) -> Iterator[Listed]:
    """The objects below a prefix (which ends in a slash, or is empty), in the server's order.

    A marker of a folder, a key that ends in a slash, comes without it, of size 0.

    Raises:
        AskBoto3Error: the listing ended before it was whole; some may have been yielded.
    """
    import obstore

    store = _store(client, bucket)
    try:
        for chunk in obstore.list(store, prefix.rstrip("/") or None, chunk_size=_CHUNK):
            for item in chunk:
                yield Listed(item["path"], item["size"], (item["e_tag"] or "").strip('"'))
    except Exception as error:
        raise AskBoto3Error(str(error)) from error


@functools.lru_cache(maxsize=32)
def _store(client: Any, bucket: str) -> Any:
    """obstore's client of a bucket, told what boto3's knows.

    Raises:
        AskBoto3Error: there are no credentials, or settings that obstore does not know.
    """
    from boto3.session import Session
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    endpoint = client.meta.endpoint_url
    if endpoint.startswith("https:") and "AWS_CA_BUNDLE" in os.environ:
        raise AskBoto3Error("certificates of one's own")
    try:
        # boto3 alone knows whether it puts the bucket before the host's name or after it.
        url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "key"})
        is_virtual = url.split("//")[1].startswith(f"{bucket}.")
        scheme, host = endpoint.split("://")
        return S3Store(
            bucket,
            endpoint=f"{scheme}://{bucket}.{host}" if is_virtual else endpoint,
            region=client.meta.region_name,
            virtual_hosted_style_request=is_virtual,
            credential_provider=Boto3CredentialProvider(Session()),
            client_options={"allow_http": True},
            retry_config=_RETRIES,
        )
    except Exception as error:
        raise AskBoto3Error(str(error)) from error

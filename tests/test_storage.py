"""Storage keeps the same promises on a local folder and on S3."""

import functools
import io
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygen import s3, s3_reads, storage
from raygen.config import check_writable
from raygen.errors import UserError


def test_what_is_put_is_read(folder_uri: str) -> None:
    uri = storage.join(folder_uri, "deep", "down", "file.bin")
    assert not storage.exists(uri)
    storage.put(uri, b"one")
    storage.put(uri, io.BytesIO(b"second"))
    assert storage.exists(uri)
    assert storage.read(uri) == b"second"
    assert storage.stat(uri).size == 6
    storage.delete(uri)
    storage.delete(uri)
    with pytest.raises(storage.ObjectMissingError):
        storage.read(uri)
    with pytest.raises(storage.ObjectMissingError):
        storage.stat(uri)


def test_of_racing_writers_exactly_one_wins(folder_uri: str) -> None:
    for round_ in range(5):
        uri = storage.join(folder_uri, f"claim-{round_}")
        contents = [f"writer {i}".encode() for i in range(12)]
        with ThreadPoolExecutor(12) as threads:
            won = list(threads.map(lambda data, uri=uri: storage.put_if_absent(uri, data), contents))
        assert won.count(True) == 1
        assert storage.read(uri) == contents[won.index(True)]


def test_listing_is_deep_in_a_fixed_order_and_leaves_out_what_is_hidden(folder_uri: str) -> None:
    names = ["a.png", "a/b.png", "a/b/c.png", "a0.png", "b/x.png", "ä/y.png", "B/z.png"]
    for name in [*names, ".hidden", "a/.hidden.png", ".folder/x.png"]:
        storage.put(storage.join(folder_uri, name), name.encode())
    listed = list(storage.list_files(folder_uri))
    expected = {storage.join(folder_uri, name): len(name.encode()) for name in names}
    assert {entry.uri: entry.size for entry in listed} == expected
    assert listed == list(storage.list_files(folder_uri))
    if storage.is_local(folder_uri):
        assert [entry.uri for entry in listed] == sorted(expected)


def test_a_folder_is_not_its_namesake(folder_uri: str) -> None:
    storage.put(storage.join(folder_uri, "normals", "a.png"), b"x")
    storage.put(storage.join(folder_uri, "normals2", "b.png"), b"x")
    [entry] = storage.list_files(storage.join(folder_uri, "normals"))
    assert entry.uri.endswith("/normals/a.png")
    assert list(storage.list_files(storage.join(folder_uri, "nothing"))) == []


def test_more_files_than_one_page(s3_uri: str) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda i: storage.put(f"{s3_uri}/{i:05d}", b"x"), range(1203)))
    names = [entry.uri for entry in storage.list_files(s3_uri)]
    assert names == [f"{s3_uri}/{i:05d}" for i in range(1203)]


def test_a_read_with_an_etag_takes_only_what_was_listed(folder_uri: str) -> None:
    uri = storage.join(folder_uri, "file.bin")
    storage.put(uri, b"as listed")
    [entry] = storage.list_files(folder_uri)
    assert entry.etag == storage.stat(uri).etag
    assert storage.read(uri, entry.etag) == b"as listed"
    storage.put(uri, b"as changed")
    with pytest.raises(storage.ObjectChangedError):
        storage.read(uri, entry.etag)


def test_parquet_by_random_access(folder_uri: str) -> None:
    uri = storage.join(folder_uri, "table.parquet")
    buffer = io.BytesIO()
    pq.write_table(pa.table({"n": range(1000)}), buffer, row_group_size=100)
    storage.put(uri, buffer.getvalue())
    with storage.open_input(uri) as stream, pq.ParquetFile(stream) as file:
        assert file.read_row_group(7)["n"].to_pylist() == list(range(700, 800))
    with pytest.raises(storage.ObjectMissingError):
        storage.open_input(storage.join(folder_uri, "none.parquet"))


def test_users_errors_are_one_clear_line(s3_server: None, tmp_path) -> None:
    with pytest.raises(
        UserError, match=r"s3://no-such-bucket.*NoSuchBucket; there is no such bucket: mend its"
    ):
        list(storage.list_files("s3://no-such-bucket/pool"))
    with pytest.raises(
        UserError, match=r"s3://no-such-bucket.*NoSuchBucket; there is no such bucket: mend its"
    ):
        storage.read("s3://no-such-bucket/pool/a.png")
    with pytest.raises(UserError, match="names no bucket"):
        storage.read("s3:///key")
    with pytest.raises(UserError, match="not gs://"):
        storage.read("gs://bucket/key")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="check the path"):
        storage.put(str(tmp_path / "file" / "below"), b"")


ODD = ["a b.png", "ü#1.png", "%41.png", "e+f=g&h.png", "deep/q?.png", "~x*.png", "empty", "deep/empty.png"]


def test_odd_names_on_s3(s3_uri: str) -> None:
    """Listed and read by one library or by the other, they are the same; a folder's marker is no file."""
    for name in ODD:
        storage.put(storage.join(s3_uri, name), b"" if "empty" in name else name.encode())
    bucket, _, prefix = s3_uri.removeprefix("s3://").partition("/")
    s3.client().put_object(Bucket=bucket, Key=f"{prefix}/folder/", Body=b"")
    found = {entry.uri.removeprefix(f"{s3_uri}/"): entry for entry in storage.list_files(s3_uri)}
    assert found.keys() == set(ODD)
    for name, entry in found.items():
        data = storage.read(entry.uri, entry.etag)
        assert data == (b"" if "empty" in name else name.encode())
        assert (len(data), storage.stat(entry.uri).etag) == (entry.size, entry.etag)
        with pytest.raises(storage.ObjectChangedError):
            storage.read(entry.uri, "0" * 32)
    with pytest.raises(storage.ObjectMissingError):
        storage.read(f"{s3_uri}/folder")


def test_what_obstore_cannot_tell_boto3_is_asked(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing goes on where it ended; a read is done again."""
    for name in ODD:
        storage.put(storage.join(s3_uri, name), name.encode())
    listed = list(storage.list_files(s3_uri))
    whole = s3_reads.list_objects

    def some(*args: Any) -> Iterator[s3_reads.Listed]:
        yield from itertools.islice(whole(*args), 3)
        raise s3_reads.AskBoto3Error("cut")

    def none(*args: Any) -> bytes:
        raise s3_reads.AskBoto3Error("cut")

    monkeypatch.setattr(s3_reads, "list_objects", some)
    monkeypatch.setattr(s3_reads, "read", none)
    assert list(storage.list_files(s3_uri)) == listed
    assert [storage.read(entry.uri, entry.etag) for entry in listed] == [
        entry.uri.removeprefix(f"{s3_uri}/").encode() for entry in listed
    ]


def test_who_waits_for_storage_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(s3, "client", functools.cache(s3.create_client.__wrapped__))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for _ in range(2):
        with pytest.raises(storage.StorageUnavailableError, match="check AWS_ENDPOINT_URL"):
            storage.exists("s3://bucket/key")
    assert capsys.readouterr().err == "http://127.0.0.1:1 does not answer: trying for up to a minute\n"


def test_storage_that_does_not_answer_is_told_from_one_that_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body cut short, and nobody there at all: errors that time may mend, for Ray Data to try again."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        monkeypatch.setattr(s3, "client", s3.create_client.__wrapped__)

        def cut() -> None:
            with suppress(OSError):  # the server's end
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(1 << 16)
                        connection.sendall(
                            b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: "e"\r\n\r\nonly this'
                        )

        thread = threading.Thread(target=cut, daemon=True)
        thread.start()
        with pytest.raises(storage.StorageUnavailableError, match="s3://bucket/key") as caught:
            storage.read("s3://bucket/key")
        assert caught.value.exit_code == 5  # a scheduler may try again
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        assert not thread.is_alive()


def test_an_output_that_cannot_be_written_is_named_as_the_user_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"^output: ") as caught:
        check_writable(str(tmp_path / "file"))
    assert caught.value.exit_code == 2
    assert ".raygen" not in str(caught.value)

    def away(uri: str, data: bytes) -> None:
        raise storage.StorageUnavailableError(f"{uri}: nobody answers")

    monkeypatch.setattr(storage, "put", away)
    with pytest.raises(storage.StorageUnavailableError, match=r"^output: s3://bucket/run: nobody answers$"):
        check_writable("s3://bucket/run")


def test_a_put_that_fails_leaves_nothing(tmp_path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise RuntimeError("cable pulled")

    with pytest.raises(RuntimeError, match="cable pulled"):
        storage.put(str(tmp_path / "file"), Broken())
    assert list(tmp_path.iterdir()) == []

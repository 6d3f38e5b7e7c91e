"""One refresh at a time: a lease on a table, held by conditional writes of one small object.

The object names its holder and a *token* that grows with every new holder. The holder writes it anew all the time;
one that has not been written for as long as its holder said (`seconds`), by the storage's clock, is a dead
holder's, and the next takes it over with a greater token. Every write asks for the etag of the one before, so that
of two that try, one succeeds.

A holder that was only asleep finds out: its next write fails. What it might publish in between is refused by the
table itself, where each version can be written once (`raygen.publish.table`).
"""

import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from raygen import storage
from raygen.errors import LeaseError, UserError
from raygen.storage import ObjectMissingError, StorageUnavailableError

_BEATS = 4  # writes of a living holder in the time after which it counts as dead


class _Held(BaseModel):
    """The object: who holds the lease."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: int
    seconds: float  # after which it is a dead holder's
    holder: str  # for a person: machine and process
    nonce: str  # of this holding; a process may hold a lease more than once
    beat: int  # how often it was written: no two writes are alike
    released: bool = False


class Lease:
    """Holds the lease of `uri` in a `with` block.

    Entering it waits for a holder that may be dead, for as long as that one said it would take to be sure.

    Raises:
        LeaseError: another holder is alive.
        UserError: storage says no.
    """

    token: int

    def __init__(self, uri: str, seconds: float) -> None:
        self.uri = uri
        self.seconds = seconds
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._lost: str | None = None

    def __enter__(self) -> Self:
        self._take()
        self._thread = threading.Thread(target=self._beat_on, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._lost is None:  # else it is another's
            with suppress(UserError):  # it expires
                self._write(released=True)

    def check(self) -> None:
        """Asks the storage: raises LeaseError if the lease is lost, or may be by now."""
        if self._lost is None:
            try:
                if not self._write():
                    self._lost = "another refresh took it over"
            except StorageUnavailableError:
                if time.monotonic() - self._written > self.seconds:
                    self._lost = f"storage took no word of this refresh for {self.seconds:g} s"
        if self._lost is not None:
            raise LeaseError(
                f"{self.uri}: lost the lease: {self._lost}; nothing was published by this refresh"
            )

    def _take(self) -> None:
        started = time.monotonic()
        first = None  # the etag that the holder's last write had when we came
        while True:
            try:
                found = storage.read_snapshot(self.uri)
            except ObjectMissingError:
                if self._begin():
                    return
                continue
            held = self._read(found.data)
            stood_still = found.etag == first and time.monotonic() - started > held.seconds
            if held.released or found.age > held.seconds or stood_still:
                self._held = self._mine(held.token + 1)
                if self._write(etag=found.etag):
                    return
                continue  # another was faster, and is alive
            first = first or found.etag
            if first != found.etag:  # it moves: its holder is alive
                raise LeaseError(
                    f"{self.uri}: {held.holder} refreshes this table now; one refresh at a time, so this one stops"
                )
            time.sleep(held.seconds / _BEATS / 4)

    def _read(self, data: bytes) -> _Held:
        try:
            return _Held.model_validate_json(data)
        except ValidationError:
            raise UserError(f"{self.uri}: damaged; if no refresh is running, delete it") from None

    def _begin(self) -> bool:
        """Takes a lease that nobody ever held."""
        self._held = self._mine(1)
        self._written = time.monotonic()
        if not storage.put_if_absent(self.uri, self._held.model_dump_json().encode()):
            return False
        self.token = 1
        self._etag = storage.stat(self.uri).etag  # still ours: nobody takes over what is so young
        return True

    def _mine(self, token: int) -> _Held:
        holder = f"{socket.gethostname()} (process {os.getpid()})"
        return _Held(token=token, seconds=self.seconds, holder=holder, nonce=uuid.uuid4().hex, beat=0)

    def _write(self, etag: str | None = None, released: bool = False) -> bool:
        """Writes the object anew; False if it is not the one we wrote last (or `etag`)."""
        with self._writing:
            return self._write_alone(etag, released)

    def _write_alone(self, etag: str | None, released: bool) -> bool:
        held = self._held.model_copy(update={"beat": self._held.beat + 1, "released": released})
        before = time.monotonic()
        written = storage.replace(self.uri, held.model_dump_json().encode(), etag or self._etag)
        if written is None:
            written = self._etag_of(held)  # an answer that got lost on its way: the second try met the first
        if written is None:
            return False
        self._held, self._etag, self._written, self.token = held, written, before, held.token
        return True

    def _etag_of(self, held: _Held) -> str | None:
        """The etag of the object if it is this very one."""
        try:
            found = storage.read_snapshot(self.uri)
        except ObjectMissingError:
            return None
        return found.etag if self._read(found.data) == held else None

    def _beat_on(self) -> None:
        while not self._stop.wait(self.seconds / _BEATS):
            try:
                if not self._write():
                    self._lost = "another refresh took it over"
                    return
            except UserError:
                continue  # `check` says how long that may go on

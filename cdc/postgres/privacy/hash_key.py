"""The key of hashed columns: where it is kept, and how it is told from another.

::

    env:NAME            an environment variable
    a path              a file
    (nothing)           <log>.hash-key beside the log directory, made at the first use

The key is the text there, without white space around it: 16 to 64 bytes, used as they are. It is
never inside the log, so that copies and backups of the log do not bring it along. The log keeps a
check value, from which the key cannot be computed: another key would give other hashes for the
same values, so it is refused.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cdc.errors import HashKeyFault
from cdc.postgres.privacy.gate import DIGEST_BYTES

KEY_BYTES_MIN = 16
KEY_BYTES_MAX = hashlib.blake2b.MAX_KEY_SIZE
_MADE_BYTES = 32
_ENV = "env:"
_KEEP = "keep a copy of it apart from the log: without it the source cannot be captured on"


@dataclass(frozen=True, slots=True, kw_only=True)
class HashKey:
    """A key and where it came from; `made`: just now. `exposed`: others may read its file."""

    value: bytes = field(repr=False)
    place: str
    made: bool = False
    exposed: bool = False

    @property
    def check(self) -> str:
        """What the log keeps to know the key again."""
        digest = hashlib.blake2b(
            b"eventlog", key=self.value, digest_size=DIGEST_BYTES, person=b"key check"
        )
        return digest.hexdigest()

    @property
    def notice(self) -> str | None:
        """What the user should hear about it, if anything."""
        if self.made:
            return f"made the key of hashed columns, {self.place}; {_KEEP}"
        if self.exposed:
            return f"other users may read the key of hashed columns, {self.place}: chmod 600 it"
        return None


def default_place(log: Path) -> Path:
    """The key's file of a log where the user names none."""
    log = log.absolute()
    return log.with_name(log.name + ".hash-key")


def take(where: str | None, log: Path, *, check: str | None, used_before: bool) -> HashKey:
    """The key of a source's hashed columns.

    `check`: what the log keeps of the key that the source was captured with, None for a new source.
    `used_before`: the log holds hashes of some source already, so none is made in the default
    place. Raises HashKeyFault.
    """
    if where is None:
        place = default_place(log)
        may_make = check is None and not used_before
        key = _from_file(place) if not may_make or place.exists() else _made(place)
    elif where.startswith(_ENV):
        key = _from_environment(where)
    else:
        place = Path(where).expanduser()
        if place.resolve().is_relative_to(log.resolve()):
            raise HashKeyFault(
                f"the key of hashed columns, {place}, lies inside the log",
                hint="keep it elsewhere: copies of the log would bring it along",
            )
        key = _from_file(place)
    if check is not None and key.check != check:
        raise HashKeyFault(
            f"the key of hashed columns in {key.place} is not the one that this source was "
            "captured with",
            hint="give the key that was used before with --hash-key; or capture under another "
            "source name",
        )
    return key


def _from_environment(where: str) -> HashKey:
    text = os.environ.get(where.removeprefix(_ENV))
    if text is None:
        raise HashKeyFault(
            f"the environment variable {where.removeprefix(_ENV)!r} with the key of hashed columns "
            "is not set",
            hint="set it, or name a file with --hash-key",
        )
    return HashKey(value=_usable(os.fsencode(text), where), place=where)


def _from_file(place: Path) -> HashKey:
    try:
        with place.open("rb") as file:
            text = file.read(16 * KEY_BYTES_MAX)
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise HashKeyFault(
            f"the key of hashed columns cannot be read from {place}: {error.strerror}",
            hint="restore that file, or say where the key is with --hash-key FILE or "
            "--hash-key env:VAR",
        ) from error
    exposed = bool(mode & (stat.S_IRWXG | stat.S_IRWXO))
    return HashKey(value=_usable(text, str(place)), place=str(place), exposed=exposed)


def _made(place: Path) -> HashKey:
    """Make a key where there is none; of two processes at once one makes it."""
    text = secrets.token_hex(_MADE_BYTES).encode()
    try:
        file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _from_file(place)
    except OSError as error:
        raise HashKeyFault(
            f"the key of hashed columns cannot be made in {place}: {error.strerror}",
            hint="name another place with --hash-key, or make it possible to write there",
        ) from error
    try:
        os.write(file, text + b"\n")
        os.fsync(file)
    finally:
        os.close(file)
    folder = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return HashKey(value=text, place=str(place), made=True)


def _usable(text: bytes, place: str) -> bytes:
    key = text.strip()
    if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
        size = f"{len(key)} bytes" if len(key) <= KEY_BYTES_MAX else "too many bytes"
        raise HashKeyFault(
            f"the key of hashed columns in {place} has {size}",
            hint=f"a key is a text of {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes, such as "
            "`openssl rand -hex 32` prints",
        )
    return key

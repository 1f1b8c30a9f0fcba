"""The file of keys: one a line, as digests, with a tenant and scopes; and the keys in force, which can be read again.

    # comments are to the end of the line
    sha256:0ff3…9c acme user
    sha256:41d0…e7 acme user requests_per_minute=60 tokens_per_minute=90000
    sha256:77ab…01 ops  metrics              # the dashboard

The digest is a plain SHA-256: nobody guesses the 256 bits of a key of `python -m server.keys new`. A short key could be
guessed by whoever has seen the file, so one of fewer than MIN_KEY_LENGTH characters is never accepted.
"""

import logging
import re
import stat
from dataclasses import asdict, replace
from pathlib import Path

from server.access.auth import TENANT, ApiKeys, Key, RateLimits, Scope

MIN_KEY_LENGTH = 32
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_LIMIT = re.compile(r"(requests_per_minute|tokens_per_minute)=([1-9][0-9]{0,14})")
_logger = logging.getLogger(__name__)


class KeysFileError(Exception):
    """A file of keys that cannot be used; the message names the file and the line."""


class KeyRing:
    """The keys in force: fixed ones, and those of a file, if there is one."""

    def __init__(self, fixed: ApiKeys, path: Path | None) -> None:
        """Raises KeysFileError."""
        self._fixed = fixed
        self._path = path
        self._current = fixed if path is None else self._read(path)

    @property
    def current(self) -> ApiKeys:
        return self._current

    def reload(self) -> None:
        """Reads the file again. One that cannot be used changes nothing, and the log says why."""
        assert self._path is not None
        try:
            self._current = self._read(self._path)
        except KeysFileError as error:
            _logger.error("the keys stay as they were: %s", error)
        else:
            _logger.info("%d API keys are in force", len(self._current.keys))

    def _read(self, path: Path) -> ApiKeys:
        return ApiKeys((*self._fixed.keys, *read_keys_file(path)))


def read_keys_file(path: Path) -> tuple[Key, ...]:
    """Raises KeysFileError, also for a file without a key: nobody means that, and it looks like one being written."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise KeysFileError(f"the keys file {path} cannot be read: {reason}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        _logger.warning("the keys file %s is open to others than its owner: chmod 600", path)
    keys: dict[bytes, Key] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            key = _parse_line(words)
        except ValueError as error:
            raise KeysFileError(f"the keys file {path}, line {number}: {error}") from error
        if key.digest in keys:
            raise KeysFileError(f"the keys file {path}, line {number}: this key has a line already")
        keys[key.digest] = key
    if not keys:
        raise KeysFileError(f"the keys file {path} holds no key")
    return tuple(keys.values())


def keys_file_line(key: Key) -> str:
    """What `read_keys_file` reads as this key."""
    limits = [f" {name}={value}" for name, value in asdict(key.limits).items() if value is not None]
    return f"sha256:{key.digest.hex()} {key.tenant} {','.join(sorted(key.scopes))}{''.join(limits)}"


def _parse_line(words: list[str]) -> Key:
    """Raises ValueError; a word that is no digest may be a key, so none is shown."""
    if len(words) < 3:
        raise ValueError("a line is a digest, a tenant, scopes, and limits if the key has its own")
    digest, tenant, scopes, *limits = words
    found = _DIGEST.fullmatch(digest)
    if found is None:
        raise ValueError("the first word must be sha256: and 64 of 0-9 a-f")
    return replace(parse_holder(tenant, scopes), digest=bytes.fromhex(found[1]), limits=_parse_limits(limits))


def _parse_limits(words: list[str]) -> RateLimits:
    """Raises ValueError."""
    limits: dict[str, int] = {}
    for word in words:
        found = _LIMIT.fullmatch(word)
        if found is None or found[1] in limits:
            raise ValueError("what follows the scopes are limits: requests_per_minute=N, tokens_per_minute=N")
        limits[found[1]] = int(found[2])
    return RateLimits(**limits)


def parse_holder(tenant: str, scopes: str) -> Key:
    """A key without its digest. scopes: separated by commas. Raises ValueError."""
    if not TENANT.fullmatch(tenant):
        raise ValueError("a tenant is 1 to 64 of A-Z a-z 0-9 . _ -")
    known = {scope.value: scope for scope in Scope}
    wanted = scopes.split(",")
    if not set(wanted) <= set(known):
        raise ValueError(f"scopes are {', '.join(known)}, separated by commas")
    return Key(b"", tenant, frozenset(known[name] for name in wanted), MIN_KEY_LENGTH)

"""`python -m server.keys new --tenant TENANT --scope SCOPE`: a new key, printed once, and its line for the keys file.

The first line of the output is the key, the second the line. With `--file` the line is appended there instead.
"""

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path

from engine.sequence import DEFAULT_TENANT
from server.access.auth import RateLimits, Scope, key_digest
from server.access.keys_file import keys_file_line, parse_holder

KEY_PREFIX = "atlas-"
KEY_NUM_BYTES = 32
FILE_MODE = 0o600


def main(arguments: Sequence[str]) -> int:
    """The exit status; 2 for words that cannot be used."""
    wanted = _parser().parse_args(arguments)
    try:
        holder = parse_holder(wanted.tenant, ",".join(wanted.scope or [Scope.USER.value]))
    except ValueError as error:
        sys.stderr.write(f"server.keys: {error}\n")
        return 2
    limits = RateLimits(wanted.requests_per_minute, wanted.tokens_per_minute)
    if any(limit is not None and limit < 1 for limit in astuple(limits)):
        sys.stderr.write("server.keys: a limit is at least 1; leave it out for the server's own\n")
        return 2
    secret = KEY_PREFIX + secrets.token_urlsafe(KEY_NUM_BYTES)
    line = keys_file_line(replace(holder, digest=key_digest(secret.encode()), limits=limits)) + "\n"
    if wanted.file is None:
        sys.stdout.write(f"{secret}\n{line}")
        return 0
    try:
        _append(wanted.file, line)
    except OSError as error:
        sys.stderr.write(f"server.keys: {wanted.file} cannot be written: {error.strerror}\n")
        return 1
    sys.stdout.write(f"{secret}\n")
    return 0


def _append(path: Path, line: str) -> None:
    """One write of whole lines: a server that reads the file meanwhile sees the line or does not."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, FILE_MODE)
    with os.fdopen(descriptor, "rb+") as file:
        is_torn = file.seek(0, os.SEEK_END) > 0 and os.pread(descriptor, 1, file.tell() - 1) != b"\n"
        os.write(descriptor, (("\n" if is_torn else "") + line).encode())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server.keys", description="Makes keys for --api-keys-file.")
    commands = parser.add_subparsers(required=True)
    new = commands.add_parser("new", help="make a key; it is printed once and kept nowhere")
    new.add_argument("--tenant", default=DEFAULT_TENANT, help="whose sessions it opens (default: %(default)s)")
    new.add_argument(
        "--scope", action="append", help=f"{', '.join(Scope)}; may be said several times (default: {Scope.USER})"
    )
    new.add_argument("--requests-per-minute", type=int, help="a limit of this key's own (default: its tenant's)")
    new.add_argument("--tokens-per-minute", type=int, help="the same, in tokens read and written")
    new.add_argument("--file", type=Path, help="append the line to this file; it is made for its owner alone")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

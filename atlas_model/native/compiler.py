"""The kernels' shared library: compiled on first use by the machine's own C++ compiler, and kept in a folder.

It is compiled for the very processor that it runs on, which no wheel could be, so a library's name says what it was
made of: the sources, the compiler and its flags, and the processor's features. Whoever builds writes a file of its own
and renames it, so that processes which start together at worst build twice, and nobody ever loads half a library.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from atlas_model.native.errors import NativeUnavailableError

_logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent
_FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fPIC", "-shared")
_TIMEOUT_SECONDS = 300.0
_CPU_INFO = Path("/proc/cpuinfo")


def default_cache() -> Path:
    """The user's folder for what can be made again (XDG). Raises NativeUnavailableError for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atlas-serve"
    except RuntimeError as error:
        raise NativeUnavailableError("there is no home to keep them in: set XDG_CACHE_HOME") from error


def find_compiler() -> str:
    """Path of $CXX, or of a compiler of C++. Raises NativeUnavailableError."""
    asked = os.environ.get("CXX")
    for name in (asked,) if asked else ("c++", "g++", "clang++"):
        path = shutil.which(name)
        if path is not None:
            return path
    raise NativeUnavailableError(f"there is no C++ compiler ({asked or 'c++, g++, clang++'})")


def build_library(cache: Path | None = None) -> Path:
    """The library in the cache folder, compiled now if nobody has before. Raises NativeUnavailableError."""
    compiler = find_compiler()
    folder = default_cache() if cache is None else cache
    library = folder / f"native-{_fingerprint(compiler)}.so"
    if not library.exists():
        _logger.info("compiling the native kernels, once for this machine")
        began = time.monotonic()
        try:
            _compile(compiler, library)
        except OSError as error:
            raise NativeUnavailableError(f"{folder} cannot be written: {error.strerror}") from error
        _logger.info("compiled them in %.1f s: %s", time.monotonic() - began, library)
    return library


def _compile(compiler: str, library: Path) -> None:
    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        _run(compiler, *_FLAGS, *map(str, sorted(_SOURCES.glob("*.cpp"))), "-o", str(made))
        made.replace(library)


def _fingerprint(compiler: str) -> str:
    digest = hashlib.sha256()
    for part in (_run(compiler, "--version"), *_FLAGS, platform.machine(), _cpu_features()):
        digest.update(part.encode() + b"\0")
    for source in sorted((*_SOURCES.glob("*.h"), *_SOURCES.glob("*.cpp"))):
        digest.update(source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _cpu_features() -> str:
    """What -march=native looks at: model and instructions of the first processor, if the system says."""
    if not _CPU_INFO.is_file():
        return platform.processor()
    first = _CPU_INFO.read_text().partition("\n\n")[0].splitlines()
    names = ("model name", "flags", "Features", "CPU part")
    return "\n".join(line for line in first if line.startswith(names))


def _run(*command: str) -> str:
    """What the command prints. Raises NativeUnavailableError with the line that says what is wrong."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.splitlines() or [f"exit status {done.returncode}"]
        reason = next((line for line in lines if "error" in line), lines[0])
        raise NativeUnavailableError(f"{command[0]} failed: {reason.strip()}")
    return done.stdout

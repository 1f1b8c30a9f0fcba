"""The kernels' library: compiled once for a cache, whoever starts together, and never half there."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from atlas_model.native import compiler
from atlas_model.native.compiler import build_library, default_cache
from atlas_model.native.errors import NativeUnavailableError
from atlas_model.native.library import NativeLibrary
from tests.atlas_model.native_cases import needs_compiler

pytestmark = needs_compiler

# Compiles nothing and says that it did: what is of interest here is who writes what, and when.
COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo "compiler of a test $VERSION"; exit 0; fi
echo compiled >> "{log}"
for last; do :; done
sleep 0.2
echo library > "$last"
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A line for every time that the compiler of these tests has run."""
    program, log = tmp_path / "compiler", tmp_path / "log"
    program.write_text(COMPILER.format(log=log))
    program.chmod(0o700)
    monkeypatch.setenv("CXX", str(program))
    return log


def test_a_library_is_compiled_once_for_a_cache(log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cache = tmp_path / "new" / "cache"
    first = build_library(cache)
    assert build_library(cache) == first
    assert log.read_text().splitlines() == ["compiled"]
    assert list(cache.iterdir()) == [first]
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "compiling the native kernels, once for this machine"
    assert re.fullmatch(rf"compiled them in [\d.]+ s: {first}", messages[1])
    assert len(messages) == 2


def test_another_compiler_or_source_is_another_library(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_library(tmp_path)
    monkeypatch.setenv("VERSION", "2")
    second = build_library(tmp_path)
    monkeypatch.setattr(compiler, "_FLAGS", (*compiler._FLAGS, "-O2"))
    third = build_library(tmp_path)
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "other.cpp").touch()
    monkeypatch.setattr(compiler, "_SOURCES", sources)
    assert len({first, second, third, build_library(tmp_path)}) == 4
    assert len(log.read_text().splitlines()) == 4


def test_those_who_build_at_once_all_get_a_whole_library(log: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with ThreadPoolExecutor() as pool:
        libraries = [future.result() for future in [pool.submit(build_library, cache) for _ in range(3)]]
    assert [library.read_text() for library in libraries] == ["library\n"] * 3
    assert list(cache.iterdir()) == [libraries[0]]


def test_a_compiler_that_fails_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_FLAGS", (*compiler._FLAGS, "-std=c++none"))
    with pytest.raises(NativeUnavailableError, match=r"failed: .*c\+\+none"):
        build_library(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_the_reason_is_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NativeUnavailableError, match=r"no C\+\+ compiler \(no-such-compiler\)"):
        build_library(tmp_path)


def test_a_cache_that_cannot_be_written_is_the_reason(log: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NativeUnavailableError, match="file cannot be written"):
        build_library(tmp_path / "file")


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "native.so").write_text("library")
    with pytest.raises(NativeUnavailableError, match="cannot be loaded"):
        NativeLibrary(tmp_path / "native.so", torch.float32)


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "atlas-serve"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "atlas-serve"

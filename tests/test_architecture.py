"""The rooms and their one direction, read from the imports of every file."""

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("atlas_model", "engine", "server", "clients", "bench")

# Which rooms a room may import.
MAY_IMPORT = {
    "atlas_model": set(),
    "engine": {"atlas_model"},
    "server": {"engine", "atlas_model"},
    "clients": set(),
    "bench": {"clients", "atlas_model", "engine"},
}

# The benches that look inside, by folder or file; the others speak HTTP and know only the generators of text.
BENCHES_THAT_LOOK_INSIDE = (
    "bench/clock.py",
    "bench/failures.py",
    "bench/engine/",
    "bench/gpu/",
    "bench/memory/",
    "bench/peers/",
    "bench/products.py",
    "bench/recall/chain.py",
    "bench/recall/codecs.py",
    "bench/store/",
    "bench/stored_session.py",
    "bench/wire/stub",
)
# What several folders of benches need lives in bench/ itself, but for the machine's limit, which is the engine's.
FOLDERS_A_BENCH_MAY_IMPORT = {"bench/gpu": {"bench/engine"}}
KNOWN_TO_ALL_BENCHES = ("atlas_model.text", "atlas_model.training")

# Third-party package: the files or folders that may import it.
HOMES = {
    "fastapi": ["server/"],
    "gguf": ["bench/peers/gguf_file.py"],
    "httpx": ["clients/"],
    "llama_cpp": ["bench/peers/llama_cpp.py"],
    "matplotlib": ["atlas_model/training/figure.py"],
    "msgpack": ["engine/snapshots/"],
    "numpy": ["atlas_model/", "engine/"],
    "openai": ["bench/recall/askers.py"],
    "platformdirs": ["server/config.py"],
    "prometheus_client": ["server/metrics.py"],
    "pydantic": ["server/"],
    "pydantic_core": ["server/"],
    "python_multipart": ["server/input/multipart.py"],
    "redis": ["engine/stores/redis"],
    "rich": ["clients/"],
    "safetensors": ["atlas_model/"],
    "sentencepiece": ["atlas_model/text/sentencepiece_tokenizer.py"],
    "starlette": ["server/", "bench/wire/bare_server.py"],
    "titans_pytorch": ["bench/peers/titans.py"],
    "tokenizers": ["atlas_model/text/huggingface_tokenizer.py"],
    "torch": ["atlas_model/", "engine/", *BENCHES_THAT_LOOK_INSIDE],
    "transformers": ["bench/peers/llama.py"],
    "typer": ["clients/"],
    "uvicorn": ["server/__main__.py", "server/connections/http_protocol.py", "bench/wire/bare_server.py"],
    "xxhash": ["engine/snapshots/"],
}

FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in zip(NAMES, FILES, strict=True)}
MODULES = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in NAMES}


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Dotted names, those of `from a.b import c` as `a.b.c` when that is a module of ours and as `a.b` otherwise."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            yield from (
                f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module for alias in node.names
            )


IMPORTS = {name: [*imports_of(TREES[name])] for name in NAMES}


def is_of(package: str, name: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_every_file_of_every_room_is_read() -> None:
    assert {name.split("/")[0] for name in NAMES} == set(ROOMS)


@pytest.mark.parametrize("name", NAMES)
def test_a_room_imports_only_the_rooms_below_it(name: str) -> None:
    room = name.split("/")[0]
    rooms = {imported.split(".")[0] for imported in IMPORTS[name]} & {*ROOMS, "tests"}
    assert rooms <= {room, *MAY_IMPORT[room]}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("bench/")])
def test_a_bench_speaks_http_unless_it_is_listed_as_looking_inside(name: str) -> None:
    inside = {
        imported
        for imported in IMPORTS[name]
        if imported.split(".")[0] in {"atlas_model", "engine"}
        and not any(is_of(known, imported) for known in KNOWN_TO_ALL_BENCHES)
    }
    assert name.startswith(BENCHES_THAT_LOOK_INSIDE) or not inside


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("bench/")])
def test_a_bench_imports_its_own_folder_and_what_all_share(name: str) -> None:
    folders = {MODULES[module].rpartition("/")[0] for module in IMPORTS[name] if is_of("bench", module)}
    own = name.rpartition("/")[0]
    assert folders <= {"bench", own, *FOLDERS_A_BENCH_MAY_IMPORT.get(own, set())}


@pytest.mark.parametrize("package", HOMES)
def test_a_third_party_package_is_imported_at_home_only(package: str) -> None:
    users = {name for name in NAMES if any(is_of(package, imported) for imported in IMPORTS[name])}
    assert {name for name in users if not any(name.startswith(home) for home in HOMES[package])} == set()


def test_every_third_party_package_has_a_home() -> None:
    ours = {*ROOMS}
    used = {imported.split(".")[0] for name in NAMES for imported in IMPORTS[name]} - ours
    standard = used & sys.stdlib_module_names
    assert used - standard - set(HOMES) == set()


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {
        module: {other for other in IMPORTS[name] if other in MODULES and other != module}
        for module, name in MODULES.items()
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) >= set(MODULES)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_imported_inside_a_function(name: str) -> None:
    functions = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [list(imports_of(function)) for function in functions if list(imports_of(function))] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_one_idea_of_at_most_400_lines(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 400

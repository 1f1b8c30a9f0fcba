"""A real server in another process, for tests: the process of bench/server_process.py, with the tiny model.

with tiny_server(tmp_path) as server:
    httpx.get(server.base_url + "/v1/models")
    server.kill9()
    server.start()            # the same port, the same environment, the same store
    server.terminate()        # SIGTERM, the exit status
    server.log                # all that was printed
"""

from pathlib import Path

from bench.server_process import ServerDidNotStartError, ServerProcess, find_free_port
from tests.tiny import save_tiny_checkpoint, tiny_config

__all__ = ["ServerDidNotStartError", "ServerProcess", "find_free_port", "tiny_server"]


def tiny_server(folder: Path, **settings: str) -> ServerProcess:
    """A server, not started yet, with the tiny model, a local store and its log in the folder.

    Settings are ATLAS_* variables without the prefix, in lower case: `tiny_server(tmp_path, lease_seconds="1")`.
    """
    model = folder / "tiny"
    if not model.exists():
        save_tiny_checkpoint(model, tiny_config())
    defaults = {"model": str(model), "store": f"local://{folder / 'store'}", "threads": "1"}
    environment = {f"ATLAS_{name.upper()}": value for name, value in {**defaults, **settings}.items()}
    return ServerProcess(environment, log_path=folder / "server.log")

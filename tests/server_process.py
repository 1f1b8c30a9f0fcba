"""A real server in another process, for tests: the process of bench/server_process.py and nothing else.

with ServerProcess({"ATLAS_MODEL": str(folder), "ATLAS_STORE": f"local://{path}"}) as server:
    httpx.get(server.base_url + "/v1/models")
    server.kill9()
    server.start()            # the same port, the same environment
    server.terminate()        # SIGTERM, the exit status
    server.log                # all that was printed
"""

from bench.server_process import ServerDidNotStartError, ServerProcess, find_free_port

__all__ = ["ServerDidNotStartError", "ServerProcess", "find_free_port"]

"""`python -m server`: read the settings, open the store, serve, read the keys again on SIGHUP, and drain on SIGTERM.

Exit status: 0 after a drain, 1 when the process cannot serve (one line says why), 2 for a setting that cannot be used.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import uvicorn

from engine import failpoints
from engine.errors import AtlasError
from server.access.keys_file import KeysFileError
from server.app import create_app
from server.config import ConfigError, ServerConfig
from server.connections.http_protocol import ConnectionLimits, bounded_protocol, most_connections
from server.logs import LogFormat, configure_logging, told_line
from server.runtime import Runtime

# For what is still being sent when everything has ended.
CLOSE_SECONDS = 5
KEEP_ALIVE_SECONDS = 75

_logger = logging.getLogger("server")


class DrainingServer(uvicorn.Server):
    """The first SIGTERM (or Ctrl-C) drains while `/ready` still answers; the second one ends at once."""

    def __init__(self, config: ServerConfig) -> None:
        self.runtime = Runtime(config, self._fail)
        self.exit_status = 0
        self._log_format = LogFormat(config.log_format)
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_draining = False
        limits = ConnectionLimits(
            head_seconds=config.head_timeout_seconds,
            stall_seconds=config.body_timeout_seconds,
            max_num_connections=config.max_connections or most_connections(),
        )
        super().__init__(
            uvicorn.Config(
                create_app(self.runtime),
                host=config.host,
                port=config.port,
                http=bounded_protocol(limits),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                # Its own default believes whoever connects from this machine.
                proxy_headers=config.forwarded_allow_ips is not None,
                forwarded_allow_ips=config.forwarded_allow_ips,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(_log_loop_error)
        self._tasks.append(asyncio.create_task(self._announce()))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is None or self._is_draining:
            self.should_exit = self.force_exit = True
        else:
            self._is_draining = True
            self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._tasks.append(asyncio.create_task(self._drain()))

    async def _drain(self) -> None:
        if not await self.runtime.drain():
            self.force_exit = True
        self.should_exit = True

    async def _announce(self) -> None:
        await self.runtime.loaded.wait()
        checkpoint = self.runtime.serving().checkpoint
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        if ":" in host:
            host = f"[{host}]"
        fields = {
            "url": f"http://{host}:{port}",
            "model": checkpoint.name,
            "num_parameters": checkpoint.model.num_parameters,
            "store": self.runtime.store_name,
        }
        text = (
            f"atlas-serve listening on {fields['url']} · model {checkpoint.name} "
            f"({checkpoint.model.num_parameters:,} parameters) · store {self.runtime.store_name}"
        )
        line = told_line(logging.INFO, "listening", fields) if self._log_format is LogFormat.JSON else text
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def _fail(self, reason: str) -> None:
        _complain(reason, self._log_format)
        self.exit_status = 1
        self.should_exit = True


async def serve(config: ServerConfig) -> tuple[int, bool]:
    """The exit status, and whether the process is to end without waiting for what still runs."""
    try:
        server = DrainingServer(config)
    except KeysFileError as error:
        _complain(str(error), LogFormat.TEXT)
        return 2, False
    if config.api_keys_file is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.runtime.reload_keys)
    try:
        await server.runtime.open_store()
    except AtlasError as error:
        _complain(error.message, LogFormat(config.log_format))
        return 1, False
    await server.serve()
    return server.exit_status, server.force_exit


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    try:
        config = ServerConfig.build(arguments, environment)
        failpoints.arm(environment.get("ATLAS_FAILPOINTS", ""))
    except (ConfigError, ValueError) as error:
        _complain(str(error), LogFormat.TEXT)
        return 2
    configure_logging(LogFormat(config.log_format), config.log_level)
    runner = asyncio.Runner()
    status, is_forced = runner.run(serve(config))
    if not is_forced:
        # Waits for every task and thread, also for one in a store that hangs.
        runner.close()
    return status


def _complain(reason: str, log_format: LogFormat) -> None:
    line = told_line(logging.CRITICAL, reason) if log_format is LogFormat.JSON else f"atlas-serve: {reason}"
    sys.stderr.write(f"{line}\n")


def _log_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Of a task that nobody awaited. The loop's own way would print what the task holds."""
    _logger.error("%s", context["message"], exc_info=context.get("exception"))


if __name__ == "__main__":
    exit_status = main(sys.argv[1:], os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: it would take apart what the thread of an engine that hangs still uses.
    os._exit(exit_status)

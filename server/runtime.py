"""What the routes serve from, and its life: store, model, engine, sessions; loading, ready, draining, stopped.

The store is opened first, because a server without it should say so at once; the model is loaded while `/health`
answers already. What cannot go on ends the process through `on_fatal`.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from atlas_model.checkpoint import Checkpoint, load_checkpoint
from atlas_model.state import session_num_bytes
from engine.engine import Engine
from engine.errors import AtlasError, Draining, EngineDead, Loading, ModelNotFound, StoreUnavailable
from engine.sessions import SessionConfig, SessionManager, Storage, TenantQuota
from engine.snapshots.codecs import Codec
from engine.stores import open_store
from engine.stores.base import Store
from server.access.keys_file import KeyRing
from server.access.rate_limits import RateLimiter
from server.config import ConfigError, ServerConfig
from server.metrics import Metrics

RECONNECT_SECONDS = 2.0
# Between the engine's end and that of the process: for telling those who wait, and those who ask.
FAREWELL_SECONDS = 1.0
READY_TIMEOUT_SECONDS = 5.0
# Beyond the drain time: for commits in flight.
COMMIT_GRACE_SECONDS = 10.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Serving:
    """Everything that exists once the model is loaded."""

    checkpoint: Checkpoint
    engine: Engine
    storage: Storage
    sessions: SessionManager

    def check_model_name(self, name: str | None) -> None:
        """A request need not name the model. Raises ModelNotFound for another one's name."""
        if name not in (None, self.checkpoint.name):
            raise ModelNotFound("the model does not exist; GET /v1/models names the one that is served")


class Runtime:
    """Lives on one event loop. `on_fatal` is told in one line why the process must end."""

    def __init__(self, config: ServerConfig, on_fatal: Callable[[str], None]) -> None:
        self.config = config
        self.key_ring = KeyRing(config.keys, config.api_keys_file)
        self.rate_limiter = RateLimiter(config.rate_limits)
        self.metrics = Metrics()
        self.loaded = asyncio.Event()
        self._on_fatal = on_fatal
        self._store: Store | None = None
        self._serving: Serving | None = None
        self._is_draining = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def store_name(self) -> str:
        return "none yet" if self._store is None else self._store.name

    async def open_store(self) -> None:
        """Raises StoreMisconfigured, and StoreUnavailable unless the store is optional."""
        try:
            self._store = await asyncio.to_thread(self._open_store)
        except StoreUnavailable as error:
            if not self.config.store_optional:
                raise
            _logger.warning("no sessions until the store answers: %s", error.message)

    def reload_keys(self) -> None:
        """Reads the file of keys again; one that cannot be used changes nothing."""
        self.key_ring.reload()
        self.rate_limiter.forget_all_but(self.key_ring.current)

    async def start(self) -> None:
        """Begins to load; `loaded` is set when that is done."""
        self._begin(self._load())

    def serving(self) -> Serving:
        """Raises Draining or Loading."""
        if self._is_draining:
            raise Draining("the server is shutting down")
        if self._serving is None:
            raise Loading("the model is being loaded")
        return self._serving

    def check_alive(self) -> None:
        """Raises EngineDead. Never touches the store."""
        if self._serving is not None and not self._serving.engine.is_alive:
            raise EngineDead("the engine is not running")

    async def check_ready(self) -> None:
        """Raises Draining, Loading, EngineDead or StoreUnavailable."""
        storage = self.serving().storage
        self.check_alive()
        try:
            async with asyncio.timeout(READY_TIMEOUT_SECONDS):
                await storage.check()
        except TimeoutError as error:
            raise StoreUnavailable("the session store does not answer") from error

    async def drain(self) -> bool:
        """Takes no new work and returns when what runs has ended, or has been ended; False when it would not end."""
        self._is_draining = True
        if self._serving is None:
            return True
        seconds = self.config.drain_seconds
        try:
            async with asyncio.timeout(seconds + COMMIT_GRACE_SECONDS):
                await self._serving.sessions.drain(seconds)
        except TimeoutError:
            _logger.warning("some requests did not end while the server was shutting down")
            return False
        return True

    async def stop(self) -> None:
        """Stops everything that `start` began. Twice is safe."""
        self._is_draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._serving is not None:
            await self._serving.engine.stop()
            await asyncio.to_thread(self._serving.storage.close)
        elif self._store is not None:
            await asyncio.to_thread(self._store.close)
        self._serving = self._store = None

    async def _load(self) -> None:
        config = self.config
        try:
            checkpoint = await asyncio.to_thread(load_checkpoint, config.model, config.device)
            _check_room(config.inflight_state_bytes, session_num_bytes(checkpoint.model.config))
            engine = await asyncio.to_thread(Engine, checkpoint, config.engine)
        except Exception as error:
            # Boundary: whatever is wrong with a checkpoint folder or a device, this process cannot serve.
            _logger.debug("loading failed", exc_info=True)
            self._on_fatal(f"cannot serve the model in {config.model}: {str(error).partition(chr(10))[0]}")
            return
        engine.start()
        quota = TenantQuota(config.tenant_max_sessions, config.tenant_max_bytes)
        storage = Storage(checkpoint.model.config, checkpoint.fingerprint, quota, Codec(config.snapshot_codec))
        if self._store is not None:
            storage.attach(self._store)
        else:
            self._begin(self._reconnect(storage))
        sessions = SessionManager(
            engine,
            storage,
            checkpoint.tokenizer,
            checkpoint.chat_format,
            SessionConfig(
                lease_seconds=config.lease_seconds,
                commit_num_tokens=config.ingest_commit_tokens,
                max_host_num_bytes=config.host_cache_bytes,
                max_inflight_num_bytes=config.inflight_state_bytes,
                token_log=config.token_log,
            ),
            self.metrics,
        )
        self.metrics.watch(engine.stats, sessions)
        self._serving = Serving(checkpoint, engine, storage, sessions)
        self._begin(self._watch(engine))
        self.loaded.set()

    async def _watch(self, engine: Engine) -> None:
        reason = await engine.watch()
        await asyncio.sleep(FAREWELL_SECONDS)
        self._on_fatal(reason)

    async def _reconnect(self, storage: Storage) -> None:
        while self._store is None:
            await asyncio.sleep(RECONNECT_SECONDS)
            try:
                self._store = await asyncio.to_thread(self._open_store)
            except StoreUnavailable as error:
                _logger.info("the store is still not there: %s", error.message)
            except AtlasError as error:
                self._on_fatal(error.message)
                return
        storage.attach(self._store)

    def _open_store(self) -> Store:
        store = open_store(self.config.store_url, self.config.kept_versions)
        store.check()
        return store

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _check_room(inflight_state_bytes: int | None, state_num_bytes: int) -> None:
    """Raises ConfigError."""
    if inflight_state_bytes is not None and inflight_state_bytes < state_num_bytes:
        raise ConfigError(f"--inflight-state-bytes must hold at least one state, which has {state_num_bytes} bytes")

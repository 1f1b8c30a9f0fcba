"""Several real redis-servers that belong together: a master with a replica and a sentinel, and a Cluster."""

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from tests.redis_server import RedisServer, free_port

READY_SECONDS = 20.0
NUM_SLOTS = 16384
MASTER_NAME = "mymaster"


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


def client_of(server: RedisServer) -> "redis.Redis":
    return redis.Redis(port=server.port, protocol=2, decode_responses=True)


def ask(server: RedisServer, *command: str | int) -> object:
    with client_of(server) as client:
        return client.execute_command(*command)


def info(server: RedisServer, section: str) -> dict[str, object]:
    reply = ask(server, "INFO", section)
    assert isinstance(reply, dict)
    return reply


def wait_for_replica(master: RedisServer, replica: RedisServer) -> None:
    """Returns when both call the replica up: only then WAIT counts it."""
    wait_until(lambda: info(replica, "replication").get("master_link_status") == "up", "the replica's link")

    def is_online() -> bool:
        state = info(master, "replication")
        known = [state.get(f"slave{number}") for number in range(int(str(state["connected_slaves"])))]
        return any(isinstance(one, dict) and (one["port"], one["state"]) == (replica.port, "online") for one in known)

    wait_until(is_online, "the master's word for its replica")


def wait_for_acknowledgement(master: RedisServer) -> None:
    """Returns when a replica has what was written until now."""
    with client_of(master) as raw:
        raw.set("written to be acknowledged", "", px=1000)
        assert raw.wait(1, int(READY_SECONDS * 1000)) == 1


class _Servers:
    """Started on entry, killed on exit."""

    def __init__(self) -> None:
        self.servers: list[RedisServer] = []

    def start(self) -> None:
        for server in self.servers:
            server.start()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._kill()

    def _kill(self) -> None:
        for server in self.servers:
            server.kill()


class SentinelPair(_Servers):
    """A master, its replica, and a sentinel that makes the replica the master when the master has been gone so long.

    The URL names a second sentinel too, one that is down.
    """

    def __init__(self, directory: Path, down_after_milliseconds: int) -> None:
        super().__init__()
        self.name = MASTER_NAME
        self.directory = directory
        self.master = RedisServer(directory / "master")
        replication = ("--replicaof", "127.0.0.1", str(self.master.port))
        self.replica = RedisServer(directory / "replica", *replication)
        config = directory / "sentinel.conf"
        directory.mkdir(parents=True, exist_ok=True)
        config.write_text(
            f"sentinel monitor {MASTER_NAME} 127.0.0.1 {self.master.port} 1\n"
            f"sentinel down-after-milliseconds {MASTER_NAME} {down_after_milliseconds}\n"
            f"sentinel failover-timeout {MASTER_NAME} 2000\n"
        )
        self.sentinel = RedisServer(directory / "sentinel", "--sentinel", config=config)
        self._absent_port = free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._absent_port},127.0.0.1:{self.sentinel.port}/0?sentinel={MASTER_NAME}"

    def start(self) -> None:
        # The sentinel comes last: it meets the replica at once, and not at its next look in ten seconds.
        self.servers = [self.master, self.replica]
        super().start()
        wait_for_replica(self.master, self.replica)
        self.servers.append(self.sentinel)
        self.sentinel.start()
        wait_until(lambda: self._num_replicas_known() == 1, "the sentinel's replica")

    def change_masters(self) -> None:
        """Makes the living master a replica of its replica."""

        def is_accepted() -> bool:
            # The sentinel takes a replica for fit when it has heard twice from it.
            try:
                return bool(ask(self.sentinel, "SENTINEL FAILOVER", MASTER_NAME))
            except redis.ResponseError:
                return False

        wait_until(is_accepted, "the sentinel's consent")
        self.wait_for_failover()

    def wait_for_failover(self) -> None:
        """Returns when the replica takes writes and the sentinel says so."""
        wait_until(lambda: info(self.replica, "replication")["role"] == "master", "the failover")
        wait_until(lambda: self._master_port() == self.replica.port, "the sentinel's word")

    def _master_port(self) -> int:
        reply = ask(self.sentinel, "SENTINEL GET-MASTER-ADDR-BY-NAME", MASTER_NAME)
        assert isinstance(reply, list | tuple)
        return int(reply[1])

    def _num_replicas_known(self) -> int:
        reply = ask(self.sentinel, "SENTINEL REPLICAS", MASTER_NAME)
        assert isinstance(reply, list)
        return len(reply)


class Cluster(_Servers):
    """Three primaries; `add_replica` gives one of them a replica. A node that is gone so long is taken for dead.

    The URL names a node too that is not there.
    """

    def __init__(self, directory: Path, node_timeout_milliseconds: int) -> None:
        super().__init__()
        self._node_timeout = str(node_timeout_milliseconds)
        self._directory = directory
        self._absent_port = free_port()
        self.servers = [self._node(number) for number in range(3)]

    @property
    def url(self) -> str:
        ports = [self._absent_port, *(server.port for server in self.servers)]
        return f"redis://{','.join(f'127.0.0.1:{port}' for port in ports)}/0?cluster=1"

    def start(self) -> None:
        super().start()
        share = NUM_SLOTS // len(self.servers)
        for number, server in enumerate(self.servers):
            last = NUM_SLOTS - 1 if server is self.servers[-1] else (number + 1) * share - 1
            ask(server, "CLUSTER ADDSLOTSRANGE", number * share, last)
            ask(server, "CLUSTER SET-CONFIG-EPOCH", number + 1)
        for server in self.servers[1:]:
            self._meet(server)
        self._wait_until_whole()

    def slot_of(self, key: bytes) -> int:
        slot = ask(self.servers[0], "CLUSTER KEYSLOT", key.decode())
        assert isinstance(slot, int)
        return slot

    def owner_of(self, slot: int) -> RedisServer:
        """The primary that has this slot, by its own word."""
        for server in self.servers:
            if server.is_running and _has_slot(server, slot):
                return server
        raise LookupError(slot)

    def add_replica(self, primary: RedisServer) -> RedisServer:
        replica = self._node(len(self.servers))
        self.servers.append(replica)
        replica.start()
        self._meet(replica)
        self._wait_until_whole()
        ask(replica, "CLUSTER REPLICATE", _id_of(primary))
        wait_for_replica(primary, replica)
        return replica

    def move_slot(self, slot: int, target: RedisServer, midway: Callable[[], None]) -> None:
        """Slot and keys; `midway` is called when some of its keys are at one node and some at the other."""
        source = self.owner_of(slot)
        ask(target, "CLUSTER SETSLOT", slot, "IMPORTING", _id_of(source))
        ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", _id_of(target))
        keys = ask(source, "CLUSTER GETKEYSINSLOT", slot, 10_000)
        assert isinstance(keys, list)
        for number, key in enumerate(keys):
            if number == len(keys) // 2:
                midway()
            ask(source, "MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        while rest := ask(source, "CLUSTER GETKEYSINSLOT", slot, 10_000):
            assert isinstance(rest, list)
            ask(source, "MIGRATE", "127.0.0.1", target.port, rest[0], 0, 5000)
        for server in (target, source):
            ask(server, "CLUSTER SETSLOT", slot, "NODE", _id_of(target))

    def _node(self, number: int) -> RedisServer:
        options = (
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            self._node_timeout,
            "--cluster-port",
            str(free_port()),
        )
        return RedisServer(self._directory / f"node{number}", *options)

    def _meet(self, server: RedisServer) -> None:
        first = self.servers[0]
        ask(server, "CLUSTER MEET", "127.0.0.1", first.port, _bus_port(first))

    def _wait_until_whole(self) -> None:
        for server in self.servers:
            wait_until(lambda s=server: self._sees_all(s), "a node that knows all others")  # type: ignore[misc]

    def _sees_all(self, server: RedisServer) -> bool:
        state = ask(server, "CLUSTER INFO")
        assert isinstance(state, dict)
        return state["cluster_state"] == "ok" and int(state["cluster_known_nodes"]) == len(self.servers)


def _id_of(server: RedisServer) -> str:
    return str(ask(server, "CLUSTER MYID"))


def _bus_port(server: RedisServer) -> int:
    with client_of(server) as client:
        return int(client.config_get("cluster-port")["cluster-port"])


def _has_slot(server: RedisServer, slot: int) -> bool:
    ranges = ask(server, "CLUSTER SLOTS")
    assert isinstance(ranges, list)
    return any(first <= slot <= last and primary[1] == server.port for first, last, primary, *_ in ranges)

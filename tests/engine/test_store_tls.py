"""`rediss://`: one server, sentinels, and a Cluster, each over TLS with a certificate that is checked."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import StoreUnavailable
from engine.stores import open_store
from tests.engine.store_cases import KEY, commit_number, whole_number
from tests.redis_server import RedisServer, free_port, redis_is_installed
from tests.redis_topologies import NUM_SLOTS, ask, wait_until

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]
Own = Callable[..., RedisServer]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 127.0.0.1, signed by itself; the key beside it."""
    directory = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(directory / "key.pem")]
    subprocess.run([*command, "-out", str(directory / "cert.pem")], check=True, capture_output=True)
    return directory / "cert.pem"


def tls_options(certificate: Path, port: int) -> list[str]:
    files = ["--tls-cert-file", str(certificate), "--tls-key-file", str(certificate.with_name("key.pem"))]
    files += ["--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no"]
    return ["--tls-port", str(port), "--tls-replication", "yes", *files]


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return certificate


def test_a_server_is_reached_over_tls(own: Own, trusted: Path) -> None:
    port = free_port()
    own(*tls_options(trusted, port))
    store = open_store(f"rediss://127.0.0.1:{port}/0")
    store.check()
    commit_number(store, 1, base=None)
    assert whole_number(store) == 1
    store.close()


def test_a_certificate_that_is_not_trusted_is_refused(own: Own, certificate: Path) -> None:
    port = free_port()
    own(*tls_options(certificate, port))
    store = open_store(f"rediss://127.0.0.1:{port}/0")
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        store.check()
    store.close()


def test_sentinels_and_their_master_are_reached_over_tls(own: Own, trusted: Path) -> None:
    master_port, sentinel_port = free_port(), free_port()
    own(*tls_options(trusted, master_port))
    config = f"sentinel monitor main 127.0.0.1 {master_port} 1\n"
    own("--sentinel", *tls_options(trusted, sentinel_port), config=config)
    store = open_store(f"rediss://127.0.0.1:{sentinel_port}/0?sentinel=main")
    store.check()
    commit_number(store, 1, base=None)
    assert whole_number(store) == 1
    store.close()


def test_a_cluster_is_reached_over_tls(own: Own, trusted: Path) -> None:
    port = free_port()
    options = ("--cluster-enabled", "yes", "--tls-cluster", "yes", "--cluster-port", str(free_port()))
    node = own(*options, *tls_options(trusted, port))
    ask(node, "CLUSTER", "ADDSLOTSRANGE", 0, NUM_SLOTS - 1)
    wait_until(lambda: "cluster_state:ok" in str(ask(node, "CLUSTER", "INFO")), "the cluster")
    store = open_store(f"rediss://127.0.0.1:{port}/0?cluster=1")
    store.check()
    commit_number(store, 1, base=None)
    assert whole_number(store, KEY) == 1
    store.close()

"""The fixtures that faults are tried with: those of the servers' tests, and the stores of the engine's."""

from tests.engine.conftest import store, store_url
from tests.server.conftest import forker, model

__all__ = ["forker", "model", "store", "store_url"]

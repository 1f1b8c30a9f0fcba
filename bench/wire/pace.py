"""How often every stream gets an event, as the servers of this folder are told by their environment."""

INTERVAL_VARIABLE = "BENCH_INTERVAL_SECONDS"

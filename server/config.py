"""The server's settings: one frozen object, built once at the edge. A flag goes before the environment, the environment
before the default; a value that cannot be read, and an `ATLAS_*` variable that nobody knows, stop the process."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, Self

import platformdirs

import atlas_model
from engine.config import MATMUL_DTYPES, MIN_STEP_TIMEOUT_SECONDS, NATIVE_KERNELS, EngineConfig
from engine.snapshots.codecs import Codec
from engine.stores.succession import DEFAULT_NUM_KEPT
from server.access.auth import ApiKeys, RateLimits
from server.logs import LogFormat

PREFIX = "ATLAS_"
# Of the same family, and read by others: the failpoints of tests, and the client that runs in the same shell.
FOREIGN_VARIABLES = frozenset({"ATLAS_FAILPOINTS", "ATLAS_BASE_URL", "ATLAS_API_KEY"})
SHIPPED_MODEL = Path(atlas_model.__file__).parent / "pretrained" / "atlas-demo"
# Each kept version of a session stands in its head, which is read at every turn.
MAX_KEPT_VERSIONS = 64
# A machine of several GPUs counts them: cuda:1.
DEVICE = re.compile(r"cpu|cuda(:\d+)?")
# As browsers send it: nothing behind the port.
ORIGIN = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:\d{1,5})?")
LOG_LEVELS = ("debug", "info", "warning", "error")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class ConfigError(Exception):
    """A setting that cannot be used; the message names the flag or the variable and never holds its value."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Sizes are in bytes, times in seconds. Each setting carries the text that `--help` shows."""

    host: Annotated[str, "address to listen on"] = "127.0.0.1"
    port: Annotated[int, "port to listen on; 0 takes a free one"] = 8000
    model: Annotated[Path, "checkpoint folder; its name is the model's id"] = SHIPPED_MODEL
    store: Annotated[
        str | None,
        "local:///ABSOLUTE/PATH[?max_bytes=10GB], redis://…, rediss://… or memory://;"
        " default: a folder below the data directory",
    ] = None
    data_dir: Annotated[Path | None, "where the default store lives; default: the user's data directory"] = None
    store_optional: Annotated[
        bool, "start, not ready, when the store is down; stateless calls work, sessions answer 503"
    ] = False
    kept_versions: Annotated[
        int, "versions without a name that a session keeps beside the committed one, to go back to or to fork from"
    ] = DEFAULT_NUM_KEPT
    snapshot_codec: Annotated[
        str, "how a session's numbers are stored: none, bf16 (half the bytes) or int8 (a quarter); any of them is read"
    ] = Codec.NONE.value
    device: Annotated[str, "where the model runs: cpu or cuda"] = "cpu"
    threads: Annotated[int | None, "torch's threads on the CPU; default: the cores that this process may use"] = None
    matmul_dtype: Annotated[
        str, "the dense layers' products: float32, or bfloat16 where the processor has it, faster and less exact"
    ] = "float32"
    native_kernels: Annotated[
        str, "decode steps by kernels that are compiled at the first start: auto, where it works, off or require"
    ] = "auto"
    cuda_graphs: Annotated[bool, "on CUDA, capture decode steps at the start and replay them"] = True
    allow_tf32: Annotated[
        bool, "on CUDA, multiply float32 matrices faster, their numbers rounded to 10 bits; states stay float32"
    ] = False
    max_num_sequences: Annotated[int, "sequences that run at once"] = 32
    max_num_waiting: Annotated[int, "requests that may wait beyond those; the next one gets 429"] = 256
    max_num_batched_tokens: Annotated[int, "tokens that one step may prefill"] = 2048
    step_timeout_seconds: Annotated[
        float | None,
        "a step of the model that takes longer is a hang and ends the process;"
        " default: two minutes and more for large models, which no step needs that makes progress",
    ] = None
    max_added_itl_seconds: Annotated[
        float, "while answers are written, a step that reads documents takes about so long, and delays them by no more"
    ] = 0.01
    max_tokens_limit: Annotated[int, "the largest max_tokens that a request may ask for"] = 32768
    ingest_commit_tokens: Annotated[int, "a document is committed about every so many tokens"] = 8192
    token_log: Annotated[
        bool, "sessions that begin keep a log of their tokens, 4 bytes each, for POST /v1/sessions/{id}/replay"
    ] = False
    memory_sample_tokens: Annotated[
        int, "a session's memory is sampled every so many tokens, for GET /v1/sessions/{id}/memory; 0: never"
    ] = 8192
    host_cache_bytes: Annotated[int, "committed sessions kept in memory"] = 2**30
    inflight_state_bytes: Annotated[
        int | None,
        "states of sessions on their way: loaded, waiting, being committed or transferred; the next ones wait;"
        " default: 1 GiB, or four for each of max-num-sequences",
    ] = None
    tenant_max_sessions: Annotated[int | None, "sessions that a tenant may store; default: any number"] = None
    tenant_max_bytes: Annotated[
        int | None, "bytes that a tenant's sessions may take in the store, all kept versions; default: any number"
    ] = None
    tenant_requests_per_minute: Annotated[int | None, "requests that a tenant may make; default: any number"] = None
    tenant_tokens_per_minute: Annotated[
        int | None, "tokens that may be read and written for a tenant; default: any number"
    ] = None
    max_body_bytes: Annotated[int, "largest JSON body; documents sent as text/plain have no limit"] = 32 * 2**20
    body_timeout_seconds: Annotated[
        float, "a request whose body stands still for so long is dropped, and a client that reads nothing for so long"
    ] = 60.0
    head_timeout_seconds: Annotated[float, "a request whose head is not there after so long is dropped"] = 20.0
    max_connections: Annotated[
        int | None, "connections at once; the next one gets 503; default: most of the files the process may open"
    ] = None
    forwarded_allow_ips: Annotated[
        str | None,
        "comma-separated addresses or networks of proxies whose X-Forwarded-For names the client; default: none",
    ] = None
    cors_origins: Annotated[
        str | None, "comma-separated origins whose pages may call this server, or *; default: none"
    ] = None
    stream_keepalive_seconds: Annotated[
        float, "a stream that has nothing to say sends a comment so often, against proxies' time-outs; 0: never"
    ] = 15.0
    lease_seconds: Annotated[float, "a session whose server was killed is free again after so long"] = 10.0
    drain_seconds: Annotated[float, "what runs at SIGTERM may go on for so long"] = 30.0
    api_keys: Annotated[
        str | None, "comma-separated keys, each KEY or TENANT:KEY; better given by the environment than by a flag"
    ] = None
    api_keys_file: Annotated[
        Path | None, "keys as digests, each with a tenant and scopes (python -m server.keys new); read again at SIGHUP"
    ] = None
    allow_insecure: Annotated[bool, "listen beyond loopback without keys"] = False
    log_level: Annotated[str, f"one of {', '.join(LOG_LEVELS)}"] = "info"
    log_format: Annotated[str, "json, an object a line, or text"] = LogFormat.JSON.value

    def __post_init__(self) -> None:
        for name in (
            "lease_seconds",
            "drain_seconds",
            "body_timeout_seconds",
            "head_timeout_seconds",
            "max_added_itl_seconds",
        ):
            if not 0 < getattr(self, name) < 86400:
                raise ConfigError(f"{_flag(name)} must be above 0 and less than a day")
        if self.step_timeout_seconds is not None and not self.step_timeout_seconds >= MIN_STEP_TIMEOUT_SECONDS:
            raise ConfigError(
                f"--step-timeout-seconds must be at least {MIN_STEP_TIMEOUT_SECONDS:g};"
                " leave it out for one by the model's size"
            )
        for name in (
            "max_num_sequences",
            "max_num_batched_tokens",
            "max_tokens_limit",
            "ingest_commit_tokens",
            "max_body_bytes",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{_flag(name)} must be at least 1")
        for name in ("max_num_waiting", "memory_sample_tokens", "host_cache_bytes", "stream_keepalive_seconds"):
            # Not a number is neither.
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{_flag(name)} must be 0 or more")
        if self.threads is not None and not 0 < self.threads <= (os.cpu_count() or 1):
            raise ConfigError(f"--threads must be between 1 and the machine's cores, {os.cpu_count() or 1}")
        if not DEVICE.fullmatch(self.device):
            raise ConfigError("--device must be cpu or cuda")
        if self.matmul_dtype not in MATMUL_DTYPES:
            raise ConfigError(f"--matmul-dtype must be one of {', '.join(MATMUL_DTYPES)}")
        if self.native_kernels not in NATIVE_KERNELS:
            raise ConfigError(f"--native-kernels must be one of {', '.join(NATIVE_KERNELS)}")
        if not 0 <= self.kept_versions <= MAX_KEPT_VERSIONS:
            raise ConfigError(f"--kept-versions must be between 0 and {MAX_KEPT_VERSIONS}")
        for name in (
            "tenant_max_sessions",
            "tenant_max_bytes",
            "tenant_requests_per_minute",
            "tenant_tokens_per_minute",
            "inflight_state_bytes",
            "max_connections",
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{_flag(name)} must be at least 1; leave it out for the default")
        for address in _listed(self.forwarded_allow_ips):
            if address != "*" and not _is_network(address):
                raise ConfigError("--forwarded-allow-ips must be addresses or networks, separated by commas, or *")
        for origin in self.allowed_origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ConfigError("--cors-origins must be origins as https://HOST[:PORT], separated by commas, or *")
        if not 0 <= self.port < 65536:
            raise ConfigError("--port must be between 0 and 65535")
        if self.snapshot_codec not in list(Codec):
            raise ConfigError(f"--snapshot-codec must be one of {', '.join(Codec)}")
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(f"--log-level must be one of {', '.join(LOG_LEVELS)}")
        if self.log_format not in tuple(LogFormat):
            raise ConfigError(f"--log-format must be one of {', '.join(LogFormat)}")
        has_keys = bool(self.keys) or self.api_keys_file is not None
        if not has_keys and not self.allow_insecure and not _is_loopback(self.host):
            raise ConfigError(
                f"{self.host} can be reached by others and no keys are set: "
                "set ATLAS_API_KEYS or --api-keys-file, or say --allow-insecure (ATLAS_ALLOW_INSECURE=1)"
            )
        try:
            _ = self.engine
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @classmethod
    def build(cls, arguments: Sequence[str], environment: Mapping[str, str]) -> Self:
        """Raises ConfigError. `--help` prints and exits, as it does everywhere."""
        hints = typing.get_type_hints(cls)
        variables = {_variable(name): name for name in hints}
        values: dict[str, Any] = {}
        for variable, text in environment.items():
            if not variable.startswith(PREFIX) or variable in FOREIGN_VARIABLES:
                continue
            if variable not in variables:
                raise ConfigError(f"unknown environment variable {variable}")
            name = variables[variable]
            values[name] = _read(variable, text, hints[name])
        given = vars(_parser(cls).parse_args(arguments))
        for name, text in given.items():
            values[name] = text if isinstance(text, bool) else _read(_flag(name), text, hints[name])
        return cls(**values)

    @property
    def engine(self) -> EngineConfig:
        return EngineConfig(
            max_num_sequences=self.max_num_sequences,
            max_num_waiting=self.max_num_waiting,
            # A file may bring more tenants at any time.
            is_multi_tenant=len(self.keys.tenants) > 1 or self.api_keys_file is not None,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_added_itl_seconds=self.max_added_itl_seconds,
            memory_sample_tokens=self.memory_sample_tokens,
            step_timeout_seconds=self.step_timeout_seconds,
            num_threads=self.threads,
            device=self.device,
            matmul_dtype=self.matmul_dtype,
            native_kernels=self.native_kernels,
            cuda_graphs=self.cuda_graphs,
            allow_tf32=self.allow_tf32,
        )

    @property
    def keys(self) -> ApiKeys:
        try:
            return ApiKeys.parse(self.api_keys or "")
        except ValueError as error:
            raise ConfigError(f"ATLAS_API_KEYS: {error}") from error

    @property
    def rate_limits(self) -> RateLimits:
        """Of each tenant."""
        return RateLimits(self.tenant_requests_per_minute, self.tenant_tokens_per_minute)

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        return _listed(self.cors_origins)

    @property
    def store_url(self) -> str:
        if self.store is not None:
            return self.store
        data_dir = self.data_dir or Path(platformdirs.user_data_dir("atlas-serve"))
        return f"local://{data_dir.expanduser().absolute() / 'sessions'}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _parser(config: type[ServerConfig]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m server",
        description="Serves a model whose memory learns at test time, over the OpenAI protocol.",
        epilog="Every flag is an environment variable too: --max-num-sequences is ATLAS_MAX_NUM_SEQUENCES.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(config, include_extras=True)
    for setting in dataclasses.fields(config):
        hint, text = typing.get_args(hints[setting.name])
        text = text.replace("%", "%%")
        if hint is bool:
            parser.add_argument(_flag(setting.name), action=argparse.BooleanOptionalAction, help=text)
        else:
            default = "" if setting.default is None else f" (default: {setting.default})"
            parser.add_argument(_flag(setting.name), metavar=_kind(hint).__name__.upper(), help=text + default)
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _kind(hint: Any) -> type:
    """`int` of `int | None`."""
    if isinstance(hint, types.UnionType):
        hint = next(argument for argument in typing.get_args(hint) if argument is not type(None))
    assert isinstance(hint, type)
    return hint


def _read(name: str, text: str, hint: Any) -> Any:
    kind = _kind(hint)
    if kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise ConfigError(f"{name} must be one of {', '.join(_TRUE + _FALSE)}")
        return text.lower() in _TRUE
    if text == "" and kind is not str:
        raise ConfigError(f"{name} is empty")
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{name} must be of type {kind.__name__}") from error


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in (text or "").split(","))))


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

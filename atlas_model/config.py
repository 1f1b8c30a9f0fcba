"""What a model is: every number that changes what it computes, checked once, when it is built.

A configuration is part of a checkpoint (`config.json`) and of its fingerprint. It holds no tuning knob: how fast a
model is served is the engine's configuration. Names are the words of the Atlas family (arXiv 2505.23735); the symbols
of the papers stand in the docstrings.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from atlas_model.memory_networks import NETWORKS
from atlas_model.objectives import OBJECTIVES


class ConfigError(ValueError):
    """A configuration that no model can be built from; the message names the key."""


@dataclass(frozen=True, slots=True)
class Config:
    """Strict reading from and writing to plain JSON or TOML values: what all configurations share.

    However one is built, a value of the wrong type or beyond its choices is a ConfigError that names it.
    """

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            _read(f"{type(self).__name__}.{name}", getattr(self, name), hint)
        self._check()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values. Raises ConfigError for a key that is unknown, missing or of the wrong type."""
        hints = typing.get_type_hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                raise ConfigError(f"{cls.__name__}: unknown key {name!r}")
        for name, field in fields.items():
            if name not in values and field.default is dataclasses.MISSING:
                raise ConfigError(f"{cls.__name__}: missing key {name!r}")
        return cls(**{name: _read(f"{cls.__name__}.{name}", value, hints[name]) for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """The same configuration as plain JSON values."""
        return dataclasses.asdict(self)

    def _check(self) -> None:
        """What must hold of the values beyond their types: refuse through `_require`."""

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            raise ConfigError(f"{type(self).__name__}: {message}")


def _read(name: str, value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{name} must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        return _read(name, value, next(argument for argument in arguments if argument is not type(None)))
    if origin is tuple and arguments[1:] == (Ellipsis,):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} must be a list")
        return tuple(_read(name, item, arguments[0]) for item in value)
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(arguments):
            raise ConfigError(f"{name} must be a list of {len(arguments)} values")
        return tuple(_read(name, item, argument) for item, argument in zip(value, arguments, strict=True))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        if isinstance(value, hint):
            return value
        names = [member.value for member in hint]
        if value not in names:
            raise ConfigError(f"{name} must be one of {', '.join(map(repr, names))}")
        return hint(value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} must be an object")
        return typing.cast(type[Config], hint).from_dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name} must be of type {hint.__name__}")
    return value


@dataclass(frozen=True, slots=True)
class NewtonSchulzConfig(Config):
    """The orthogonalisation of the `muon` rule (Atlas, Eq 32; coefficients of Muon). Part of a checkpoint."""

    num_steps: int = 5
    coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    eps: float = 1e-7

    def _check(self) -> None:
        self._require(self.num_steps >= 1, "num_steps must be at least 1")
        self._require(self.eps > 0, "eps must be positive")


@dataclass(frozen=True, slots=True)
class MemoryConfig(Config):
    """The neural memory of one layer and the rule that trains it while it reads.

    num_heads, key_width, value_width: heads, and the widths d_k and d_v of one head.
    network: `matrix` (x W), `mlp` (Atlas, Eq 42) or `gated_mlp` (Atlas++, Eq 43).
    objective: what an answer is compared with its value by: `l2`, `dot`, `lp` (p = objective_power) or `huber`
    (quadratic up to an error of huber_delta).
    rule: `gd` (OmegaNet: the momentum itself is the step) or `muon` (Atlas: Newton-Schulz of it).
    muon_granularity: Newton-Schulz once a `chunk` or of every `token`'s momentum (Eq 40).
    read_granularity: `token`, each token reads its own memory, or `chunk`, it reads the chunk's first.
    step: `bounded` keeps the sum of a chunk's steps from overshooting; `free` is the papers' rule.
    memory_chunk_size: b, tokens that share one gradient anchor, counted from the start of the session.
    omega_window: c, how many past tokens the Omega loss looks back over (Eq 9); 1 is the plain delta rule.
    feature_degree, feature_width: degree p of the polynomial features and how many projected dimensions r get them.
    feature_kind: `polynomial`, all monomials (the paper's), or `elementwise`, the powers of each dimension alone.
    feature_norm: `unit` scales the features of degree 2 and more to length 1, as those of degree 1 are; `none` is the
    paper's.
    retention: `decay` multiplies the memory by a gate's value a token and a constant a head (alpha, Miras' local and
    global retention); `row_norm` brings each row back to its initial norm after each chunk; `none` keeps all.
    retention_target: what `decay` decays to, `zero` or the learned `initial` memory.
    max_momentum_decay: the largest momentum_decay (theta) a gate can reach, below 1; 0 removes the momentum.
    query_projection: `keys` brings each query onto the keys that were written (TNT, arXiv 2511.07343); `none` does not.
    read_norm_eps: added to the mean square of what is read before it is normalised.
    """

    num_heads: int
    key_width: int
    value_width: int
    network: str = "matrix"
    objective: str = "l2"
    objective_power: float = 3.0
    huber_delta: float = 1.0
    rule: Literal["gd", "muon"] = "gd"
    muon_granularity: Literal["chunk", "token"] = "chunk"
    read_granularity: Literal["token", "chunk"] = "token"
    step: Literal["bounded", "free"] = "bounded"
    memory_chunk_size: int = 32
    omega_window: int = 1
    feature_degree: int = 1
    feature_width: int = 16
    feature_kind: Literal["polynomial", "elementwise"] = "polynomial"
    feature_norm: Literal["none", "unit"] = "none"
    retention: Literal["decay", "row_norm", "none"] = "decay"
    retention_target: Literal["zero", "initial"] = "zero"
    max_momentum_decay: float = 0.9
    query_projection: Literal["none", "keys"] = "none"
    read_norm_eps: float = 1e-6
    newton_schulz: NewtonSchulzConfig = NewtonSchulzConfig()

    def _check(self) -> None:
        for name in ("num_heads", "key_width", "value_width", "memory_chunk_size", "omega_window"):
            self._require(getattr(self, name) >= 1, f"{name} must be at least 1")
        for name, table in (("network", NETWORKS), ("objective", OBJECTIVES)):
            self._require(getattr(self, name) in table, f"{name} must be one of {', '.join(map(repr, table))}")
        self._require(self.feature_degree in (1, 2, 3), "feature_degree must be 1, 2 or 3")
        if self.feature_degree > 1:
            self._require(1 <= self.feature_width <= self.key_width, "feature_width must be between 1 and key_width")
        self._require(self.objective_power > 1, "objective_power must be above 1")
        self._require(self.huber_delta > 0, "huber_delta must be positive")
        self._require(0 <= self.max_momentum_decay < 1, "max_momentum_decay must be in [0, 1)")
        self._require(self.read_norm_eps > 0, "read_norm_eps must be positive")
        if self.rule == "muon":
            self._require(self.step == "free", "rule 'muon' is bounded by Newton-Schulz: set step to 'free'")
            if self.muon_granularity == "chunk":
                self._require(
                    self.read_granularity == "chunk", "muon_granularity 'chunk' needs read_granularity 'chunk'"
                )
        else:
            self._require(self.muon_granularity == "chunk", "muon_granularity is of rule 'muon' alone")
        if self.step == "bounded":
            objective = OBJECTIVES[self.objective](self.objective_power, self.huber_delta)
            self._require(
                objective.has_bounded_curvature, f"objective {self.objective!r} has no bound: set step to 'free'"
            )
        if self.retention_target == "initial":
            self._require(self.retention == "decay", "retention_target is of retention 'decay' alone")
        if self.retention == "row_norm":
            network = NETWORKS[self.network](1, self.key_width, self.value_width)
            self._require(
                all(network.initial(name) > 0 for name in network.shapes()),
                f"retention 'row_norm' needs a memory that does not start at 0, as network {self.network!r} does",
            )


@dataclass(frozen=True, slots=True)
class AttentionConfig(Config):
    """Attention beside the memory: each token sees itself and the `window` - 1 tokens before it.

    In `mac` it sees those in its segment, of `window` tokens, and num_persistent learned tokens (Titans, Eq 22).
    """

    num_heads: int
    window: int
    rotary_base: float = 10_000.0
    num_persistent: int = 0

    def _check(self) -> None:
        self._require(self.num_heads >= 1, "num_heads must be at least 1")
        self._require(self.window >= 1, "window must be at least 1")
        self._require(self.rotary_base > 1, "rotary_base must be above 1")
        self._require(self.num_persistent >= 0, "num_persistent must be at least 0")


@dataclass(frozen=True, slots=True)
class AtlasConfig(Config):
    """A whole model (layouts: Titans, section 4). `lmm` has the memory alone in each block.

    `mag` has sliding-window attention beside it, on the same queries, keys and values, `mal` after it, on its own, and
    `mac` attention before it, within segments, over what the memory holds for each token too. `swa` has attention
    alone, the baseline that a memory is measured against: of the memory's configuration only the widths count.
    Memory and attention have the same inner width, num_heads * key_width of the memory, which must split evenly over
    the attention's heads.
    memory_chunk_sizes: one for each layer, in place of the memory's memory_chunk_size: several frequencies of update.
    """

    vocab_size: int
    width: int
    num_layers: int
    feed_forward_width: int
    layout: Literal["lmm", "mag", "mal", "mac", "swa"]
    memory: MemoryConfig
    attention: AttentionConfig | None = None
    memory_chunk_sizes: tuple[int, ...] | None = None
    conv_width: int = 4
    norm_eps: float = 1e-6
    state_dtype: Literal["float32", "bfloat16", "float64"] = "float32"

    def _check(self) -> None:
        for name in ("vocab_size", "width", "num_layers", "feed_forward_width", "conv_width"):
            self._require(getattr(self, name) >= 1, f"{name} must be at least 1")
        self._require(self.norm_eps > 0, "norm_eps must be positive")
        self._require(
            (self.layout == "lmm") == (self.attention is None),
            f"all layouts but 'lmm' have attention: layout {self.layout!r} with attention={self.attention}",
        )
        if self.memory_chunk_sizes is not None:
            self._require(
                len(self.memory_chunk_sizes) == self.num_layers, "memory_chunk_sizes needs one for each layer"
            )
            self._require(min(self.memory_chunk_sizes) >= 1, "memory_chunk_sizes must be at least 1")
        if self.layout == "lmm":
            self._require(
                self.memory.read_granularity == "token",
                "layout 'lmm' with read_granularity 'chunk' is refused: nothing would see the open chunk",
            )
        if self.attention is not None:
            for inner_width in (self.key_inner_width, self.value_inner_width):
                self._require(
                    inner_width % self.attention.num_heads == 0, "the inner width must split over the attention's heads"
                )
            self._require(
                (self.key_inner_width // self.attention.num_heads) % 2 == 0,
                "rotary attention needs an even width per head",
            )
            self._require(
                self.layout == "mac" or self.attention.num_persistent == 0, "num_persistent is of layout 'mac' alone"
            )
            chunk_sizes = self.memory_chunk_sizes or (self.memory.memory_chunk_size,)
            if self.layout == "mac":
                self._require(
                    all(self.attention.window % size == 0 for size in chunk_sizes),
                    "layout 'mac' needs an attention window, its segment, that is a multiple of the memory_chunk_size",
                )
            elif self.layout != "swa" and self.memory.read_granularity == "chunk":
                self._require(
                    self.attention.window >= max(chunk_sizes),
                    "read_granularity 'chunk' needs an attention window that covers the chunk: "
                    f"the window is {self.attention.window}, a chunk {max(chunk_sizes)}",
                )

    def layer_memory(self, index: int) -> MemoryConfig:
        """The memory of layer 0, 1, ..."""
        if self.memory_chunk_sizes is None:
            return self.memory
        return dataclasses.replace(self.memory, memory_chunk_size=self.memory_chunk_sizes[index])

    @property
    def key_inner_width(self) -> int:
        """Width of all heads' queries (or keys) side by side."""
        return self.memory.num_heads * self.memory.key_width

    @property
    def value_inner_width(self) -> int:
        """Width of all heads' values side by side."""
        return self.memory.num_heads * self.memory.value_width

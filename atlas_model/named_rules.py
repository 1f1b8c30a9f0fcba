"""The literature's rules by name, as points on this memory's axes (Miras, arXiv 2504.13173, draws most of the map).

What a name stands for is the update alone. Widths, chunk and the gates' own form are the model's; the papers' inner
steps are free, and every gate is a scalar per token and head.

    titans      deep memory, l2, momentum, decay, one token's loss                      2501.00663, Eq 13-14
    dla         deep memory, dot: deep linear attention                                 2505.23735, section 4
    swla        matrix, dot over a window: sliding-window linear attention              2505.23735, section 4
    omeganet    deep memory, l2 over a window, polynomial features                      2505.23735, section 3.3
    atlas       omeganet with momentum, orthogonalised for every token                  2505.23735, Eq 32-41
    atlas++     atlas with a gated memory                                               2505.23735, Eq 43

Three points of Miras are not on the axes, and are refused rather than approximated: see `REFUSED`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlas_model.config import ConfigError, MemoryConfig

_OMEGANET: Mapping[str, Any] = {"network": "mlp", "omega_window": 4, "feature_degree": 2, "max_momentum_decay": 0.0}
_ATLAS: Mapping[str, Any] = {
    **_OMEGANET,
    "rule": "muon",
    "muon_granularity": "token",
    "max_momentum_decay": 0.9,
}
NAMED_RULES: Mapping[str, Mapping[str, Any]] = {
    "titans": {"network": "mlp"},
    "dla": {"network": "mlp", "objective": "dot", "max_momentum_decay": 0.0},
    "swla": {"objective": "dot", "omega_window": 4, "max_momentum_decay": 0.0},
    "omeganet": _OMEGANET,
    "atlas": _ATLAS,
    "atlas++": {**_ATLAS, "network": "gated_mlp"},
}
REFUSED: Mapping[str, str] = {
    "moneta": "it divides the memory by a power of its own q-norm before reading, which is none of our retentions",
    "yaad": "it switches from l2 to l1 for a token's whole error, at a threshold that is computed from the token; "
    "objective 'huber' does so for each coordinate, at a fixed one",
    "memora": "its memory is the softmax of an accumulated log-memory (retention by KL divergence)",
}


def named_memory(name: str, **options: Any) -> MemoryConfig:
    """The memory of a named rule. options: at least num_heads, key_width and value_width; any other field too.

    Names are lower case, or as the papers write them. Raises ConfigError for a name that is unknown or that our axes
    do not cover, saying why, and for options that no memory has.
    """
    name = name.lower()
    if name in REFUSED:
        raise ConfigError(f"{name!r} is not one of this memory's rules: {REFUSED[name]}")
    if name not in NAMED_RULES:
        raise ConfigError(f"a rule is one of {', '.join(map(repr, NAMED_RULES))}, not {name!r}")
    return MemoryConfig.from_dict({"step": "free", **NAMED_RULES[name], **options})

"""What an import says of itself: the table, IMPORT.json, the model card, and a recipe to train the result with.

Promises: every one of them that describes the weights says what was not carried over, and none that they are the
source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atlas_model.importing.conversion import Conversion, Fate
from atlas_model.importing.layout import Source
from atlas_model.state import session_num_bytes
from atlas_model.training.recipe import RECIPES, Recipe

REPORT_FILE, CARD_FILE, RECIPE_FILE = "IMPORT.json", "README.md", "recipe.toml"

_STARTING_POINT = "This is a starting point for training, and not the model that was imported:"
_NOTHING_FOUND = (
    "No difference to the source was found in what is computed: its attention, SwiGLU, norms and embedding are all of "
    "it. The memory here is new and silent until it is trained."
)


def table(conversion: Conversion) -> str:
    """Every tensor of both sides, by what becomes of it."""
    lines = []
    for fate in Fate:
        lines.append(f"{fate}:")
        for row in conversion.rows:
            if row.fate is fate:
                names = " -> ".join(name for name in (row.source, row.target) if name)
                lines.append(f"  {names}" + (f"  ({row.note})" if row.note else ""))
    return "\n".join(lines)


def verdict(conversion: Conversion) -> str:
    """Whether and how the result differs from the source."""
    if not conversion.differences:
        return _NOTHING_FOUND
    return "\n".join([_STARTING_POINT, *(f"- {difference}" for difference in conversion.differences)])


def write_report(directory: Path, file_name: str, source: Source, conversion: Conversion) -> None:
    """Write IMPORT.json, the model card and the recipe into a checkpoint folder."""
    report = {
        "source": file_name,
        "layout": "Atlas-MAG",
        "mixing": source.mixing,
        "is_initialisation_only": bool(conversion.differences),
        "differences": conversion.differences,
        "tensors": [asdict(row) for row in conversion.rows],
    }
    recipe = Recipe(conversion.model.config, RECIPES["demo"].stages)
    (directory / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (directory / CARD_FILE).write_text(_card(directory.name, file_name, source, conversion), encoding="utf-8")
    (directory / RECIPE_FILE).write_text(_toml(recipe.to_dict()), encoding="utf-8")


def _card(name: str, file_name: str, source: Source, conversion: Conversion) -> str:
    config = conversion.model.config
    size = (
        f"{config.num_layers} layers of width {config.width}, `{config.layout}`, "
        f"{conversion.model.num_parameters:,} parameters; a session's tensors are "
        f"{session_num_bytes(config) / 1e6:.1f} MB"
    )
    return f"""# {name}

Imported from `{file_name}`, a checkpoint of the public Atlas-MAG layout (blocks: {source.mixing}).

{verdict(conversion)}

{size}. `{REPORT_FILE}` has the same as data.

To train it, put a tokenizer beside it if there is none, edit the stages of `{RECIPE_FILE}` as wanted, and:

    python -m atlas_model.training --recipe {RECIPE_FILE} --start-from . --corpus DIR --out DIR

```
{table(conversion)}
```
"""


def _toml(values: Mapping[str, Any], path: str = "", header: str = "") -> str:
    """Nested plain values as TOML; what is None is left out, as a missing key means the same."""
    plain, nested = [header] if header else [], []
    for key, value in values.items():
        inner = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            nested.append(_toml(value, inner, f"[{inner}]"))
        elif isinstance(value, tuple | list) and value and isinstance(value[0], Mapping):
            nested += [_toml(each, inner, f"[[{inner}]]") for each in value]
        elif value is not None:
            plain.append(f"{key} = {json.dumps(value)}")
    return "\n".join([*plain, "", *nested])

"""The operations of an OpenAPI document, and requests that its schemas allow, drawn from dice."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

MODEL = "atlas-tiny"
SESSIONS = tuple(f"fuzz-{number}" for number in range(12))
MAX_NUM_IDS = 32
OPTIONAL_IS_THERE = 0.2
TEXTS = (
    "Mary went to the garden.",
    "~/notes.txt",
    "Where is Mary?",
    "a",
    "",
    "4 7 1",
    "été \U0001f600",
    "one two three " * 20,
    "\n",
)
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Operation:
    """bodies: of each media type, the schema."""

    method: str
    path: str
    query: tuple[tuple[str, Any], ...]
    bodies: Mapping[str, Any]


@dataclass(slots=True)
class Ids:
    """What answers have called their responses, conversations and items, the latest of each kind."""

    known: dict[str, list[str]] = field(default_factory=lambda: {"resp": [], "conv": [], "msg": []})

    def learn(self, answer: Any) -> None:
        """answer: a JSON value, of which only the ids at the top and in a list of data are looked at."""
        for item in (answer, *_list(answer, "data"), *_list(answer, "output")):
            name = item.get("id") if isinstance(item, dict) else None
            if isinstance(name, str) and (kind := name.partition("_")[0]) in self.known:
                self.known[kind] = [*self.known[kind][1 - MAX_NUM_IDS :], name]

    def draw(self, dice: random.Random, kind: str) -> str:
        return dice.choice(self.known[kind] or [f"{kind}_none"])


def operations_of(document: Mapping[str, Any]) -> list[Operation]:
    return [
        Operation(
            method.upper(),
            path,
            tuple((item["name"], item["schema"]) for item in found.get("parameters", ()) if item["in"] == "query"),
            {kind: body["schema"] for kind, body in found.get("requestBody", {}).get("content", {}).items()},
        )
        for path, methods in sorted(document["paths"].items())
        for method, found in sorted(methods.items())
    ]


class Drawer:
    """Draws what the document's schemas allow."""

    def __init__(self, document: Mapping[str, Any], ids: Ids) -> None:
        self._schemas = document["components"]["schemas"]
        self._ids = ids

    def target(self, dice: random.Random, operation: Operation) -> str:
        """The path with its names filled in, and a query."""
        path = re.sub(r"{(\w+)}", lambda name: quote(str(self._named(dice, name[1])), safe=""), operation.path)
        query = {
            name: self.value(dice, schema, name)
            for name, schema in operation.query
            if dice.random() < OPTIONAL_IS_THERE
        }
        return f"{path}?{urlencode(query)}" if query else path

    def value(self, dice: random.Random, schema: Any, name: str = "") -> Any:
        """A value that the schema allows; `name` is its field's, whose known values it has most of the time."""
        if dice.random() < 0.9 and (known := self._named(dice, name)) is not None:
            return known
        if "$ref" in schema:
            return self.value(dice, self._schemas[schema["$ref"].rpartition("/")[2]], name)
        for several in ("anyOf", "oneOf", "allOf"):
            if several in schema:
                return self.value(dice, dice.choice(schema[several]), name)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return dice.choice(schema["enum"])
        return self._typed(dice, schema)

    def _typed(self, dice: random.Random, schema: Any) -> Any:
        match schema.get("type"):
            case "object":
                return self._object(dice, schema)
            case "array":
                num_items = max(schema.get("minItems", 0), dice.choice((0, 1, 1, 2, 3)))
                return [self.value(dice, schema.get("items", {})) for _ in range(num_items)]
            case "string":
                return dice.choice(TEXTS)[: schema.get("maxLength")].ljust(schema.get("minLength", 0), "a")
            case "integer":
                least = schema.get("minimum", 0)
                return dice.randint(least, max(least, min(schema.get("maximum", 8), 8)))
            case "number":
                return round(dice.uniform(schema.get("minimum", 0), min(schema.get("maximum", 2), 2)), 3)
            case "boolean":
                return dice.random() < 0.5
            case "null":
                return None
        return dice.choice((1, "a", True, None, {}, []))

    def _object(self, dice: random.Random, schema: Any) -> dict[str, Any]:
        required = schema.get("required", ())
        drawn = {
            name: self.value(dice, of_field, name)
            for name, of_field in schema.get("properties", {}).items()
            if name in required or dice.random() < OPTIONAL_IS_THERE
        }
        if isinstance(others := schema.get("additionalProperties"), dict) and dice.random() < 0.5:
            drawn["a"] = self.value(dice, others)
        return drawn

    def _named(self, dice: random.Random, name: str) -> Any:
        """A value that means something here; none for names that may be anything."""
        match name:
            case "model":
                return MODEL
            case "session_id" | "new_id":
                return dice.choice(SESSIONS)
            case "response_id" | "previous_response_id":
                return self._ids.draw(dice, "resp")
            case "conversation_id" | "conversation":
                return self._ids.draw(dice, "conv")
            case "item_id" | "after":
                return self._ids.draw(dice, "msg")
            case "version" | "name":
                return dice.choice((0, 1, 2, 3, "kept"))
            case "max_tokens" | "max_completion_tokens" | "max_output_tokens":
                return dice.choice((1, 2, 4))
            case "history":
                return dice.choice(("auto", "new"))
        return None


def _list(answer: Any, name: str) -> list[Any]:
    found = answer.get(name) if isinstance(answer, dict) else None
    return found if isinstance(found, list) else []

"""The bodies that the server reads, checked field by field. pydantic lives here and nowhere else.

Which fields are served at all is decided in `parameters`; what a sampling value may be, by `SamplingParams`.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.json_schema import models_json_schema

from engine.errors import InvalidRequest
from engine.sampling.sampling_params import SamplingParams
from engine.sessions import History, Message
from engine.sessions.versions import MAX_METADATA_KEY_LENGTH, MAX_METADATA_VALUE_LENGTH, MAX_NUM_METADATA
from server.parameters import shown_name
from server.strict_json import canonical

DEFAULT_MAX_TOKENS = 512
MAX_NUM_CHOICES = 16

MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=MAX_METADATA_KEY_LENGTH)]
MetadataValue = Annotated[str, StringConstraints(max_length=MAX_METADATA_VALUE_LENGTH)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_NUM_METADATA)]
M = TypeVar("M", bound="_Body")


def _version(text: str) -> int | str:
    """No name is all digits."""
    return int(text) if text.isascii() and text.isdigit() else text


VersionName = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_version)]
Version = Annotated[int, Field(ge=0)] | VersionName


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class TextPart(_Body):
    type: Literal["text"]
    text: str


def _joined(content: Any) -> Any:
    """A list of text parts is their text; an assistant's null is an empty text."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(TextPart.model_validate(part).text for part in content)
    return content


class ChatMessage(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined, json_schema_input_type=str | list[TextPart] | None)] = ""

    def to_message(self) -> Message:
        return Message("system" if self.role == "developer" else self.role, self.content)


class StreamOptions(_Body):
    include_usage: bool | None = None


class ChatRequest(_Body):
    """POST /v1/chat/completions."""

    model: str | None = None
    messages: list[ChatMessage]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: Annotated[int, Field(ge=1, le=MAX_NUM_CHOICES)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(lt=2**63)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    user: Annotated[str, StringConstraints(max_length=512)] | None = None
    metadata: Metadata | None = None
    session_id: str | None = None
    history: Literal["auto", "new", "match"] | None = None
    on_divergence: Literal["error", "rewind"] | None = None
    read_only: bool | None = None

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def to_messages(self) -> tuple[Message, ...]:
        return tuple(message.to_message() for message in self.messages)

    def to_history(self) -> History:
        return History(self.history or History.AUTO)

    def to_sampling(self, max_tokens_limit: int) -> SamplingParams:
        """Raises InvalidRequest naming the field."""
        return SamplingParams(
            max_tokens=self._max_tokens(max_tokens_limit),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            # 0 and -1 are how vLLM's clients say "all of them".
            top_k=None if self.top_k in (None, 0, -1) else self.top_k,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            ignore_eos=bool(self.ignore_eos),
            min_tokens=self.min_tokens or 0,
        )

    def digest_source(self) -> bytes:
        """What makes this request what it is; how the answer travels is no part of it."""
        return canonical(self.model_dump(exclude={"stream", "stream_options"}, exclude_none=True))

    def _max_tokens(self, limit: int) -> int:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequest("max_tokens and max_completion_tokens differ", param="max_completion_tokens")
        param = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        value = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        if value is None:
            return min(DEFAULT_MAX_TOKENS, limit)
        if value > limit:
            raise InvalidRequest(f"{param} is at most {limit} here", param=param)
        return value


class _ClosedBody(_Body):
    """A body of our own, in which an unknown field is a mistake."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ForkSource(_ClosedBody):
    """Which version of which session a new one begins from; the committed one by default."""

    session_id: str
    version: Version | None = None


class CreateSessionRequest(_ClosedBody):
    """POST /v1/sessions. Metadata and time to live are the source's when it is a fork that says nothing about them."""

    id: str | None = None
    metadata: Metadata | None = None
    ttl_seconds: int | None = None
    source: Annotated[ForkSource | None, Field(alias="from")] = None


class ForkRequest(_ClosedBody):
    """POST /v1/sessions/{id}/fork."""

    new_id: str | None = None
    version: Version | None = None
    metadata: Metadata | None = None
    ttl_seconds: int | None = None


class RewindRequest(_ClosedBody):
    """POST /v1/sessions/{id}/rewind."""

    version: Version


class NameVersionRequest(_ClosedBody):
    """POST /v1/sessions/{id}/versions; the committed version by default."""

    name: str
    version: Version | None = None


class IngestTextRequest(_ClosedBody):
    """POST /v1/sessions/{id}/ingest with application/json."""

    text: str


class TokenizeRequest(_ClosedBody):
    """POST /tokenize."""

    text: str


class DetokenizeRequest(_ClosedBody):
    """POST /detokenize."""

    tokens: list[int]


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """What a route that reads its body itself adds to its OpenAPI operation."""
    return _request_body("application/json", {"$ref": f"#/components/schemas/{model.__name__}"})


def octets_body() -> dict[str, Any]:
    """The same for a body that is bytes."""
    return _request_body("application/octet-stream", {"type": "string", "format": "binary"})


def _request_body(media_type: str, schema: dict[str, str]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def component_schemas() -> dict[str, Any]:
    """The OpenAPI components that `request_body` refers to."""
    _, schemas = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    components: dict[str, Any] = schemas["$defs"]
    return components


def validate(model: type[M], body: dict[str, Any]) -> M:
    """Raises InvalidRequest naming the field; the input is not echoed."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "extra_forbidden":
            name = shown_name(str(first["loc"][-1]))
            raise InvalidRequest(f"{name or 'a name'} is no field of this request", param=name) from error
        param = _param(first["loc"])
        raise InvalidRequest(f"{param}: {first['msg']}" if param else first["msg"], param=param) from error


_MODELS: tuple[type[BaseModel], ...] = (
    ChatMessage,
    ChatRequest,
    CreateSessionRequest,
    DetokenizeRequest,
    ForkRequest,
    ForkSource,
    IngestTextRequest,
    NameVersionRequest,
    RewindRequest,
    StreamOptions,
    TextPart,
    TokenizeRequest,
)
_FIELDS = frozenset(field.alias or name for model in _MODELS for name, field in model.model_fields.items())


def _param(location: tuple[int | str, ...]) -> str | None:
    """`messages[0].content`, as far as the path goes along names that are ours."""
    param = ""
    for part in location:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part in _FIELDS:
            param += f".{part}" if param else part
        else:
            break
    return param or None

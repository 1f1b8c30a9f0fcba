"""What all bodies have in common: strict types, and fields of our own that several of them have."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from engine.sessions.versions import MAX_METADATA_KEY_LENGTH, MAX_METADATA_VALUE_LENGTH, MAX_NUM_METADATA

MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=MAX_METADATA_KEY_LENGTH)]
MetadataValue = Annotated[str, StringConstraints(max_length=MAX_METADATA_VALUE_LENGTH)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_NUM_METADATA)]


def _version(text: str) -> int | str:
    """No name is all digits."""
    return int(text) if text.isascii() and text.isdigit() else text


VersionName = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_version)]
Version = Annotated[int, Field(ge=0)] | VersionName


def with_examples(*examples: dict[str, Any]) -> ConfigDict:
    """For the OpenAPI document. A test sends each of them to a server, which must take it."""
    return ConfigDict(json_schema_extra={"examples": list(examples)})


class Body(BaseModel):
    """A body that others have defined: what to do with its unknown fields is for `parameters` to say."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class ClosedBody(Body):
    """A body of our own, in which an unknown field is a mistake."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

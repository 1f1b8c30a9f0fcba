"""The file of a multipart/form-data body, as it arrives: nothing of it is kept, however long it is.

One part, named `file`. What else a form could hold would have no effect, so it is refused.
"""

from collections.abc import AsyncGenerator, AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from engine.errors import InvalidRequest
from server.errors import UnsupportedMediaType

MULTIPART_TYPE = "multipart/form-data"
FILE_PART = b"file"
MAX_NUM_HEADERS = 8
_TEXT_CHARSETS = (b"", b"utf-8", b"utf8", b"us-ascii")


def boundary_of(content_type: str) -> bytes:
    """Raises InvalidRequest."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise InvalidRequest("a multipart body needs a boundary of 1 to 70 characters")
    return boundary


async def file_pieces(pieces: AsyncIterator[bytes], boundary: bytes) -> AsyncGenerator[bytes, None]:
    """The bytes of the file. Raises InvalidRequest for a body that is not that one part, whole, and
    UnsupportedMediaType for a file in another encoding; beside what `pieces` raises."""
    part = _FilePart()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": part.begin,
            "on_header_field": part.header_name,
            "on_header_value": part.header_value,
            "on_header_end": part.end_header,
            "on_headers_finished": part.end_headers,
            "on_part_data": part.data,
            "on_end": part.end,
        },
        max_header_count=MAX_NUM_HEADERS,
    )
    async for piece in pieces:
        try:
            parser.write(piece)
        except FormParserError as error:
            raise InvalidRequest("the body is not multipart") from error
        if content := part.take():
            yield content
    if not part.has_ended:
        raise InvalidRequest("the multipart body has no end, or no file")


class _FilePart:
    """What a parser says of the one part, until somebody takes it."""

    def __init__(self) -> None:
        self.has_ended = False
        self._num_parts = 0
        self._name, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._content = bytearray()

    def take(self) -> bytes:
        content = bytes(self._content)
        self._content.clear()
        return content

    def begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > 1:
            raise InvalidRequest("the form holds more than one file")

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def end_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or options.get(b"name") != FILE_PART:
            raise InvalidRequest("the form holds something else than a part named file")
        _, parameters = parse_options_header(self._headers.get(b"content-type"))
        if parameters.get(b"charset", b"").lower() not in _TEXT_CHARSETS:
            raise UnsupportedMediaType("only UTF-8 is supported")
        if self._headers.get(b"content-transfer-encoding", b"binary").lower() not in (b"7bit", b"8bit", b"binary"):
            raise UnsupportedMediaType("encoded files are not supported")

    def data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def end(self) -> None:
        self.has_ended = self._num_parts == 1

"""The state of an upload, without a server."""

import json
from io import BytesIO

import pytest

from clients import ApiError, ClientError, ConnectionFailedError, IngestProgress, IngestResult, OpenIngest, SessionInfo
from clients.upload import Upload, digest_of

TEXT = b"0123456789"


def session(open_ingest: OpenIngest | None, position: int = 40) -> SessionInfo:
    return SessionInfo("s", 3, position, 100, 0.0, 0.0, {}, open_ingest)


def test_a_document_is_named_by_its_content_from_where_it_stands() -> None:
    document = BytesIO(b"xx" + TEXT)
    document.seek(2)
    assert digest_of(document) == digest_of(BytesIO(TEXT)) != digest_of(BytesIO(b"other"))
    assert document.tell() == 2


def test_a_new_document_begins_at_its_first_byte() -> None:
    upload = Upload("s", BytesIO(TEXT), "d")
    upload.begin(None)
    assert upload.request().params == {"offset": "0", "document_id": "d"}
    assert upload.document.read() == TEXT


def test_an_open_document_goes_on_where_it_was_committed() -> None:
    document = BytesIO(b"xx" + TEXT)
    document.seek(2)
    upload = Upload("s", document, "d")
    upload.begin(session(OpenIngest("d", 4)))
    assert upload.request().params["offset"] == "4"
    assert upload.document.read() == TEXT[4:]


def test_another_open_document_is_not_ours_to_continue() -> None:
    upload = Upload("s", BytesIO(TEXT), "d")
    upload.begin(session(OpenIngest("other", 4)))
    assert upload.request().params["offset"] == "0"


def test_progress_counts_the_tokens_since_the_call_began() -> None:
    upload = Upload("s", BytesIO(TEXT), "d")
    upload.begin(session(None, position=40))
    progress = upload.read_session(session(OpenIngest("d", 6), position=43))
    assert (progress.num_committed_bytes, progress.num_total_bytes, progress.num_tokens) == (6, 10, 3)


def test_an_event_is_progress_until_one_says_done() -> None:
    upload = Upload("s", BytesIO(TEXT), "d")
    upload.begin(None)
    progress = upload.read_event(json.dumps({"bytes": 4, "tokens": 3, "position": 3, "version": 1}))
    assert isinstance(progress, IngestProgress)
    assert (progress.num_committed_bytes, progress.num_tokens, progress.version) == (4, 3, 1)
    commit = {"id": "s", "version": 2, "committed": True, "durability": "disk", "position": 8}
    result = upload.read_event(json.dumps({"done": True, "bytes": 10, "tokens": 8, "session": commit}))
    assert isinstance(result, IngestResult)
    assert (result.document_id, result.num_bytes, result.num_tokens, result.session.version) == ("d", 10, 8, 2)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionFailedError("gone"),
        ApiError("busy", code="session_busy", status=409, retry_after_seconds=0.5),
        ApiError("moved", code="ingest_offset", status=409),
        ApiError("wait", code="store_unavailable", status=None),
    ],
)
def test_what_may_pass_is_tried_again_a_little_later_each_time(error: ClientError) -> None:
    upload = Upload("s", BytesIO(TEXT), "d")
    delays = [upload.seconds_before_retry(error) for _ in range(4)]
    assert delays == sorted(delays)
    assert delays[0] >= 0.25
    assert delays[-1] > delays[0]


@pytest.mark.parametrize(
    "code", ["ingest_open", "invalid_unicode", "session_diverged", "memory_diverged", "store_full"]
)
def test_what_will_not_pass_is_raised(code: str) -> None:
    error = ApiError("no", code=code, status=409)
    with pytest.raises(ApiError, match=code):
        Upload("s", BytesIO(TEXT), "d").seconds_before_retry(error)


def test_patience_ends_when_nothing_is_committed() -> None:
    upload = Upload("s", BytesIO(TEXT), "d", patience_seconds=0.2)
    with pytest.raises(ConnectionFailedError):
        upload.seconds_before_retry(ConnectionFailedError("gone"))

"""What reading a document must answer and leave behind: a commit for every so many tokens in whole lines."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from atlas_model.text import ChatFormat, Tokenizer
from tests.faults.state_machine.model import COMMIT_NUM_TOKENS, Document, Memory, Session, committed
from tests.faults.state_machine.operations import BROKEN_OFF, Ingest, Seen
from tests.faults.state_machine.predicted import Prediction, refused


def predict_ingest(
    ingest: Ingest, session: Session | None, tokenizer: Tokenizer, chat_format: ChatFormat
) -> Prediction:
    memory = Memory() if session is None else session.memory
    finished = _finished(memory.documents, ingest)
    if finished is not None:
        return _predict_repeat(finished, ingest)
    if ingest.if_match not in (None, 0 if session is None else session.committed.number):
        return refused("version_conflict")
    opened = memory.open_document
    if opened is not None:
        is_same = ingest.document_id == opened.document_id or (ingest.document_id is None and ingest.offset)
        if not is_same or ingest.offset != len(opened.raw):
            return refused("ingest_offset" if is_same else "ingest_open")
        return _read(ingest, session, opened, [], tokenizer, chat_format)
    if ingest.offset != 0:
        return refused("ingest_offset")
    assert ingest.document_id is not None
    start = [] if memory.token_ids else chat_format.session_start(tokenizer)
    start += chat_format.document_start(tokenizer)
    return _read(ingest, session, Document(ingest.document_id, b""), start, tokenizer, chat_format)


def _read(
    ingest: Ingest,
    session: Session | None,
    document: Document,
    token_ids: list[int],
    tokenizer: Tokenizer,
    chat_format: ChatFormat,
) -> Prediction:
    """`token_ids` come before what is read now."""
    memory = Memory() if session is None else session.memory
    path: list[Session | None] = []
    progress: list[tuple[int, int]] = []
    lines: deque[tuple[bytes, list[int]]] = deque()
    held, num_tokens = b"", 0
    for piece in ingest.pieces:
        *whole, held = (held + piece).split(b"\n")
        lines.extend((line + b"\n", tokenizer.encode(line.decode() + "\n")) for line in whole)
        while sum(len(ids) for _, ids in lines) >= COMMIT_NUM_TOKENS:
            taken = 0
            while taken < COMMIT_NUM_TOKENS:
                line, ids = lines.popleft()
                taken += len(ids)
                token_ids += ids
                document = replace(document, raw=document.raw + line)
            memory = _learned(memory, token_ids, document)
            num_tokens += len(token_ids)
            session, token_ids = committed(session, memory), []
            path.append(session)
            progress.append((len(document.raw), session.committed.number))
    if ingest.breaks_after is not None:
        return Prediction(BROKEN_OFF, tuple(path))
    for line, ids in [*lines, (held, tokenizer.encode(held.decode()))]:
        token_ids += ids
        document = replace(document, raw=document.raw + line)
    if not document.raw:
        return refused("empty_prompt")
    token_ids += chat_format.document_end(tokenizer)
    memory = _learned(memory, token_ids, None)
    seen = Seen(
        version=1 if session is None else session.committed.number + 1,
        position=memory.position,
        num_bytes=len(document.raw),
        num_tokens=num_tokens + len(token_ids),
    )
    document = replace(document, key=ingest.key, seen=seen)
    path.append(committed(session, replace(memory, documents=(*memory.documents, document))))
    return Prediction(replace(seen, progress=tuple(progress)), tuple(path))


def _finished(documents: Sequence[Document], ingest: Ingest) -> Document | None:
    for document in reversed(documents):
        if document.document_id == ingest.document_id or (ingest.key is not None and document.key == ingest.key):
            return document
    return None


def _predict_repeat(finished: Document, ingest: Ingest) -> Prediction:
    """Of a document that is sent from the middle on, only the length is compared."""
    assert finished.seen is not None
    if ingest.breaks_after is not None:
        return Prediction(BROKEN_OFF)
    is_same = ingest.offset > 0 or ingest.raw == finished.raw
    if max(ingest.offset, len(ingest.raw)) != len(finished.raw) or not is_same:
        return refused("idempotency_mismatch")
    return Prediction(finished.seen)


def _learned(memory: Memory, token_ids: Sequence[int], document: Document | None) -> Memory:
    return replace(memory, token_ids=(*memory.token_ids, *token_ids), num_pending=0, open_document=document)

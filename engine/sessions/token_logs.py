"""What a commit adds to its session's token log, and what a log says of the session.

A session has a log from its beginning or never, so that a log is always whole: the setting decides for those that
begin, and one that has a log goes on with it whatever the setting is now.
"""

from array import array
from dataclasses import dataclass, replace
from hashlib import blake2b

from atlas_model.text import Tokenizer
from engine.errors import TokenizerMismatch
from engine.sequence import SequenceState
from engine.sessions.ledger import LEDGER_LIMIT, extend_ledger
from engine.sessions.stored_turns import StoredDocument, StoredTurns
from engine.snapshots.snapshot import SessionRecord
from engine.snapshots.token_log import TokenLogRecord, encode_record, read_history
from engine.snapshots.tokens_digest import DIGEST_NUM_BYTES, INITIAL_DIGEST
from engine.stores.base import Buffer, Generation, Head


@dataclass(frozen=True, slots=True)
class Fed:
    """What a commit adds: the ids that it has fed, ledger entries, a document that it has read to its end.

    since: the generation whose state it goes on from; None is the committed one.
    log: what a new session that goes on from another's generation takes along of its log; None where that has none.
    """

    token_ids: "array[int]"
    entries: tuple[bytes, ...] = ()
    document: StoredDocument | None = None
    since: Generation | None = None
    log: Buffer | None = None


@dataclass(frozen=True, slots=True)
class LoggedSession:
    """What a log says: all ids in order, and what the session is beside its state.

    last: None for a session that has read nothing.   stored: no answers, but the documents and the tokens_digest.
    """

    token_ids: "array[int]"
    ledger: tuple[bytes, ...]
    last: TokenLogRecord | None
    stored: StoredTurns

    def record(self, state: SequenceState) -> SessionRecord:
        """The session's record, given the state that the ids have led to."""
        assert self.last is not None
        return SessionRecord(
            state=replace(state, pending_token_ids=self.last.pending_token_ids),
            ledger=self.ledger,
            system_digest=self.last.system_digest,
            open_ingest=self.last.open_ingest,
        )


class TokenLogs:
    """begins: whether sessions that begin now have a log."""

    def __init__(self, begins: bool, tokenizer: Tokenizer) -> None:
        self._begins = begins
        content = tokenizer.file_name.encode() + b"\0" + tokenizer.file_bytes
        self._tokenizer = blake2b(content, digest_size=DIGEST_NUM_BYTES).digest()

    def beginning(self) -> bytes | None:
        """The log of a session that has read nothing."""
        return b"" if self._begins else None

    def appended(self, base: Head | None, record: SessionRecord | None, fed: Fed | None) -> bytes | None:
        """What the commit of `record` on top of `base` appends: nothing when `fed` is None, because the log leads to
        this record already. None for a session without a log."""
        before = self._before(base, fed)
        if before is None:
            return None
        if fed is None:
            return b""
        since = fed.since if fed.since is not None or base is None else base.committed
        state = None if record is None else record.state
        position = 0 if state is None else state.position
        assert position == (0 if since is None else since.position) + len(fed.token_ids)
        documents = () if fed.document is None else (fed.document,)
        appended = TokenLogRecord(
            continues=0 if since is None or since.log_num_bytes is None else since.log_num_bytes,
            position=position,
            tokens_digest=INITIAL_DIGEST if state is None else state.tokens_digest,
            tokenizer=self._tokenizer,
            token_ids=fed.token_ids,
            pending_token_ids=() if state is None else state.pending_token_ids,
            entries=fed.entries[-LEDGER_LIMIT:],
            system_digest=None if record is None else record.system_digest,
            open_ingest=None if record is None else record.open_ingest,
            document=StoredTurns(documents=documents).encode() if documents else b"",
        )
        return bytes(before) + encode_record(appended)

    def read(self, log: Buffer) -> LoggedSession:
        """Raises StateCorrupt, and TokenizerMismatch when another tokenizer than this model's has made ids of it."""
        token_ids = array("I")
        ledger: tuple[bytes, ...] = ()
        stored = StoredTurns()
        last = None
        for last in read_history(log):
            if last.tokenizer != self._tokenizer:
                raise TokenizerMismatch(last.tokenizer.hex(), self._tokenizer.hex())
            token_ids.extend(last.token_ids)
            ledger = extend_ledger(ledger, last.entries)
            for document in StoredTurns.decode(last.document).documents:
                stored = stored.with_document(document)
        if last is None:
            return LoggedSession(token_ids, ledger, None, stored)
        return LoggedSession(token_ids, ledger, last, replace(stored, tokens_digest=last.tokens_digest.hex()))

    def _before(self, base: Head | None, fed: Fed | None) -> Buffer | None:
        """What the log of a new session begins with, and nothing for one that goes on with its own; None for no log."""
        if base is not None:
            return None if base.log_id is None else b""
        return self.beginning() if fed is None or fed.since is None else fed.log

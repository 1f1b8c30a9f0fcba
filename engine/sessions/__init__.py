"""Sessions: a conversation's durable memory, and the transactions on it (SESSIONS.md)."""

from engine.sessions.beginnings import Branch, NewSession
from engine.sessions.ingest import IngestProgress, IngestRequest, IngestResult, RepeatedIngest
from engine.sessions.learning import LearnRequest
from engine.sessions.ledger import History, Message
from engine.sessions.manager import SessionConfig, SessionManager
from engine.sessions.observer import SessionObserver
from engine.sessions.prompts import Prompt, chat_token_ids, message_token_ids
from engine.sessions.quotas import TenantQuota
from engine.sessions.replay import ReplayProgress, ReplayRequest, ReplayResult
from engine.sessions.storage import Storage
from engine.sessions.stored_turns import RequestIdentity, StoredTurn
from engine.sessions.turn import Answer, CommittedSession, ReadPrompt, Turn, TurnRequest, Usage
from engine.sessions.versions import Versions

__all__ = [
    "Answer",
    "Branch",
    "CommittedSession",
    "History",
    "IngestProgress",
    "IngestRequest",
    "IngestResult",
    "LearnRequest",
    "Message",
    "NewSession",
    "Prompt",
    "ReadPrompt",
    "RepeatedIngest",
    "ReplayProgress",
    "ReplayRequest",
    "ReplayResult",
    "RequestIdentity",
    "SessionConfig",
    "SessionManager",
    "SessionObserver",
    "Storage",
    "StoredTurn",
    "TenantQuota",
    "Turn",
    "TurnRequest",
    "Usage",
    "Versions",
    "chat_token_ids",
    "message_token_ids",
]

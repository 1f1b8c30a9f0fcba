"""What ends a bench with a reason, for it was asked for what is not there. Anything else is a traceback."""

from atlas_model.checkpoint import CheckpointError
from atlas_model.training.prose import CorpusError
from bench.server_process import ServerDidNotStartError
from clients.errors import ClientError

FAILURES = (ClientError, FileNotFoundError, CheckpointError, CorpusError, ServerDidNotStartError)

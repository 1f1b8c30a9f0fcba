"""Committing and resuming sessions through Redis."""

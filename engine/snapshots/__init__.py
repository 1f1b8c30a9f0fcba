"""A session as bytes: snapshots of every schema, the token log, and what tells two histories apart."""

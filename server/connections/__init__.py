"""How bytes come and go: the protocol, streams, clients that leave or stall."""

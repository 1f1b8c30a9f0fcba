"""From a request of any kind to its turn, and from the turn to the answer."""

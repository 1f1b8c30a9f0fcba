"""What clients of a server see: these benches start one, or are given its URL, and speak HTTP."""

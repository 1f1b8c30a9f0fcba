"""Other people's models of the same shape beside ours: one module for each package, what they share, and the bench."""

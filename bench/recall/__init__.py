"""What a model still knows of what it has read."""

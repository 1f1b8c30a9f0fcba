"""What the server costs apart from its engine."""

"""From logits to text: what a caller may ask for, the draw, the end, the characters."""

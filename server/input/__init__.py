"""What comes in, checked before anybody believes it: heads, bodies, JSON, forms."""

"""Training loops of the selector."""

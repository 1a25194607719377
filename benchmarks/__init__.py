"""Measurements beside the library; nothing in it imports them."""

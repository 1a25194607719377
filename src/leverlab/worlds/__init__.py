"""Worlds: where questions, images and answers come from."""

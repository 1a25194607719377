"""The policy: a pointer network that picks demos."""

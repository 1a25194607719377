"""leverlab: declarative reinforcement-learning post-training of small policies."""

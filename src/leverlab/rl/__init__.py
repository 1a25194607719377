"""Reinforcement-learning mathematics: pure functions of tensors."""

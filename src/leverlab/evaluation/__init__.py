"""VQA metric, baselines, statistics, health checks and gates."""

"""Tools on the pipeline itself: dependencies and plans."""

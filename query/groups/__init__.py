"""Groups of episodes, and runs: whether they differ, and how surely."""

"""Policies of openpi: Pi0 and Pi0.5 with its own PyTorch code."""

"""Pi0 of transformers."""

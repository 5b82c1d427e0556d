"""SQL over a store: the user's own, ready-made questions, and episodes chosen by a condition."""

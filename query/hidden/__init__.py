"""Questions to hidden states: how alike two runs' are, and what can be read off them."""

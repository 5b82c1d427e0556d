"""What stands before every endpoint: hosts, origins, tokens, limits, and how a refusal is said."""

"""What openpi's clients send, and what its server writes of it."""

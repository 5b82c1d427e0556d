"""Stores elsewhere: transports, the mirror that reads through them, pulled copies."""

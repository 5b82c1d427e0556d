"""Recordings in DROID's layout."""

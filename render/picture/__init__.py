"""From an episode's maps to the pixels of one picture."""

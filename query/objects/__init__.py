"""Attention on objects: masks, overlap, what an instruction is about, and its course over an episode."""

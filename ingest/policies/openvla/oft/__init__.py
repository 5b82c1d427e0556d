"""OpenVLA-OFT: all actions of a chunk in one pass, every token attending to every other."""

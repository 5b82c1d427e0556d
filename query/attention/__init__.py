"""Quantities derived from attention: shares, active heads, structure, rollout, words, similarity, drift."""

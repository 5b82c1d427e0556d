"""Octo, in JAX."""

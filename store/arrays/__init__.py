"""Zarr arrays of a part: which there are, their chunks and shards, and how blocks are read and written."""

"""Parquet tables of a store: their columns, by the parts that bring them."""

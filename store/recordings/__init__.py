"""What policies saw while they drove: journals, and what of one can be read while it is written."""

"""Charts as SVG and as pictures."""

"""What is written: axes and spans of tokens, geometry, precision, runs and episodes, and the definitions of numbers."""

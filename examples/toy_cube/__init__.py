"""Toy cube: a simulated pick-and-place benchmark, and a tiny Pi0 that is trained on it.

Run its programs from the top of the checkout: ``python -m examples.toy_cube.train``.
"""

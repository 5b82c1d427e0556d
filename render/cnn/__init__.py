"""Pictures and videos of a convolutional network's results, from the store alone."""

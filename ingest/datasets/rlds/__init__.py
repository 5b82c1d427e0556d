"""Reader of RLDS: robot episodes as TensorFlow Datasets writes them, read without TensorFlow."""

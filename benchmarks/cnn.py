"""Activation maximisation: filters a second in batches against one at a time.

Run alone with ``python -m benchmarks.cnn``: torchvision's VGG16 with random weights, whose speed is that
of trained ones.
"""

from __future__ import annotations

import time

from attnstore.ingest.cnn.base import find_layer
from attnstore.ingest.cnn.loading import load_network
from attnstore.ingest.cnn.maximisation import Maximisation, maximise

LAYERS = ("features.2", "features.10", "features.17")
FILTERS = 8
SETTINGS = Maximisation(size=64, iterations=5, shots=0)


def main() -> None:
    network = load_network("vgg16", "random")
    print(f"| layer | batch | filter steps / s ({SETTINGS.size} px) |\n|---|---|---|")
    for name in LAYERS:
        layer = find_layer(network, name)
        maximise(network, layer, [0], Maximisation(size=SETTINGS.size, iterations=1, shots=0))
        for batch in (1, 4, FILTERS):
            begun = time.process_time()
            for start in range(0, FILTERS, batch):
                maximise(network, layer, range(start, start + batch), SETTINGS)
            spent = time.process_time() - begun
            steps = FILTERS * (SETTINGS.iterations + 1)
            print(f"| {name} | {batch} | {steps / spent:.1f} |", flush=True)


if __name__ == "__main__":
    main()

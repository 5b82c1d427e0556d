"""Activation maximisation: images a second in batches against one filter at a time.

torchvision's VGG16 with random weights, whose speed is that of trained ones. An image is one filter's
whole ascent. Rates are per core: of CPU time, since torch runs on one thread.
"""

from __future__ import annotations

from functools import partial

from attnstore.ingest.cnn.base import ConvNetwork, Layer, find_layer
from attnstore.ingest.cnn.loading import load_network
from attnstore.ingest.cnn.maximisation import Maximisation, maximise

from .measure import Figure, Setting, timed

LAYERS = ("features.2", "features.10", "features.17", "features.24")
FILTERS = 8


def run(setting: Setting) -> list[Figure]:
    size, iterations = (32, 2) if setting.toy else (96, 8)
    settings = Maximisation(size=size, iterations=iterations, shots=0)
    # a net of a megabyte where figures mean nothing
    name, layers = ("squeezenet1_1", ("@1",)) if setting.toy else ("vgg16", LAYERS)
    network = load_network(name, "random")
    figures = []
    for name in layers:
        layer = find_layer(network, name)
        maximise(network, layer, [0], Maximisation(size=size, iterations=1, shots=0))
        rates: dict[int, float] = {}
        for batch in (1, 4, FILTERS):
            ascend = partial(_ascend, network, layer, batch, settings)
            rates[batch] = FILTERS / timed(ascend, setting.repeats(2)).cpu_median
            note = f"{size} pixels, {iterations} steps"
            if batch == 1:
                figures.append(Figure(f"{name}, one at a time", rates[1], "images/s", note=note))
                continue
            gain = f"{rates[batch] / rates[1]:.2f} times one at a time"
            figures.append(
                Figure(f"{name}, batches of {batch}", rates[batch], "images/s", gain, note=note)
            )
    return figures


def _ascend(network: ConvNetwork, layer: Layer, batch: int, settings: Maximisation) -> None:
    for start in range(0, FILTERS, batch):
        maximise(network, layer, range(start, start + batch), settings)

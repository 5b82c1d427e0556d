"""Handing what came out of a traced call to an observer: which layer it is of is a count."""

from __future__ import annotations

from collections.abc import Container, Mapping

from attnstore.store.format.generated import DECODE
from attnstore.store.format.hidden import EMBEDDING

from ..base import LAST, Observer
from ..blocking import nothing_left
from ..values import ProjectedValues, Projections, ValueNorms
from .traced import Noisy, Shown, States, Weights


class Showing:
    """One call's results, in the program's order.

    Parameters
    ----------
    observer
        Gets them; None: they are only checked.
    layers
        How many there are, by the phases that results have.
    blocked
        Phases and layers in which something is.
    norms
        Computes value norms.
    outputs
        Per phase and layer, the output projection; of use where values were traced.
    """

    def __init__(
        self,
        observer: Observer | None,
        layers: Mapping[str, int],
        blocked: Container[tuple[str, int]],
        norms: ValueNorms,
        outputs: Mapping[tuple[str, int], Projections],
    ) -> None:
        self._observer, self._layers, self._blocked = observer, layers, blocked
        self._norms, self._outputs = norms, outputs
        self._attended, self._entered = dict.fromkeys(layers, 0), dict.fromkeys(layers, 0)
        self._values: dict[tuple[str, int], ProjectedValues] = {}

    def take(self, each: Shown) -> None:
        """Name the layer of the next result, and hand it on.

        Raises
        ------
        HealthError
            If a query has nothing left to attend to, or values are not those that a layer mixes.
        """
        if isinstance(each, Weights):
            self._take_weights(each)
        elif self._observer is None:
            return
        elif isinstance(each, Noisy):
            self._observer.noisy_actions(each.actions)
        else:
            self._observer.hidden(each.phase, self._layer_left(each), each.states)

    def _take_weights(self, each: Weights) -> None:
        layer = self._attended[each.phase] % self._layers[each.phase]
        self._attended[each.phase] += 1
        if each.emptied:
            # A prompt's last row is the first step of what is written after it.
            phases = (p for p in (each.phase, DECODE) if (p, layer) in self._blocked)
            raise nothing_left(f"{next(phases)} layer {layer}")
        norms = None
        if each.values is not None and each.mixed is not None:
            at = each.phase, layer
            if at not in self._values:
                before = self._values["prefix", layer] if each.phase == "suffix" else None
                self._values[at] = ProjectedValues(self._norms, self._outputs[at], before)
            self._values[at].ran(each.values, each.mixed)
            norms = self._values[at].take(each.weights, f"{each.phase} layer {layer}")
        if self._observer is not None:
            self._observer.attention(each.phase, layer, each.weights, norms)

    def _layer_left(self, each: States) -> int:
        """The layer that hidden states left: what enters one left the one before it."""
        if each.kind == LAST:
            return LAST
        entered = self._entered[each.phase] % (self._layers[each.phase] + 1)
        self._entered[each.phase] += 1
        return entered - 1 if entered else EMBEDDING

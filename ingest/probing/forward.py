"""Running the policy on a keyframe's variants, with the health gate of an ingest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import HealthError, UsageError
from attnstore.store.format.axes import STEPPED_PHASES, VISION
from attnstore.store.format.tokens import TokenLayout

from ..capture import Record, capture
from ..encoders import all_layouts, all_shapes, owners
from ..health import check_axes, check_complete, check_encoded, check_rows
from ..policies.base import Batch, Observation, ObservationError, PhaseShape, Policy, Watch
from ..policies.blocking import Blocked, BlockingPolicy
from ..policies.prefix import REUSABLE, PrefixPolicy
from ..reading import prepare
from ..reduction import compact

if TYPE_CHECKING:
    import torch

Float = NDArray[np.float64]
MapPlace = tuple[str, int | None, int, str]
"""(phase, step, layer, query group)"""


@dataclass(frozen=True, slots=True)
class Ran:
    """What the policy did with one observation."""

    actions: Float
    """Action chunk, (horizon, action_dof), normalised units."""
    layouts: Mapping[str, TokenLayout] = field(repr=False)
    maps: Mapping[MapPlace, Float] = field(default_factory=dict, repr=False)
    """Mean over a group's query tokens, (head, key) compact; of the last step."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """The base that was run last, and what its prefix gave."""

    observation: Observation
    ran: Ran
    prefix: Any


class Forward:
    """Runs a policy on observations as an ingest does, some of its attention blocked.

    Where only the suffix of the base changes, its prefix is reused if the policy can.

    Parameters
    ----------
    policy
        Loaded policy.
    watch
        As the run was ingested with: an eager image encoder differs in the last bits.
    maps
        Whether the maps are kept, for shifts.
    reuse
        Whether a prefix may be reused; it changes no number, only the time.

    Raises
    ------
    UsageError
        If the policy has no actions.
    """

    def __init__(
        self, policy: Policy, watch: Watch, *, maps: bool = False, reuse: bool = True
    ) -> None:
        if not policy.horizon:
            raise UsageError(
                f"policy {policy.name} generates text and no actions; probes measure actions"
            )
        self._policy, self._watch, self._maps = policy, watch, maps
        self._reuse = reuse
        self._base: _Kept | None = None
        self.reused = 0
        """Observations so far whose prefix was not run again."""

    def run_base(self, keyframe: int, observation: Observation) -> Ran:
        """Act on a keyframe's own observation as `run` does, which may reuse its prefix then."""
        policy, self._base = self._policy, None
        if not (self._reuse and isinstance(policy, PrefixPolicy)):
            return self.run(keyframe, [observation])[0]
        with policy.keeping_prefix() as kept:
            (ran,) = self.run(keyframe, [observation])
        if len(kept) == 1:
            self._base = _Kept(observation, ran, kept[0])
        return ran

    def run(
        self,
        keyframe: int,
        observations: Sequence[Observation],
        blocked: Sequence[Sequence[Blocked]] = (),
    ) -> list[Ran]:
        """Act on observations of a keyframe in one batch, or one by one if they make none.

        Raises
        ------
        HealthError
            If the capture fails a check of the health gate, an action is not finite, or attention
            is left where it is blocked.
        UsageError
            If the policy cannot block attention.
        ObservationError
            If the policy cannot take an observation.
        """
        policy, watch = self._policy, self._watch
        try:
            batch = prepare(policy, observations)
        except ObservationError:
            if len(observations) == 1:
                raise
            # Prompts of different lengths make no batch where a checkpoint does not pad.
            each = blocked or [()] * len(observations)
            pairs = zip(observations, each, strict=True)
            return [self.run(keyframe, [one], [own])[0] for one, own in pairs]
        shapes = all_shapes(policy, batch.samples[0].geometry, watch)
        layouts = [all_layouts(policy, s, watch) for s in batch.samples]
        found: list[dict[MapPlace, Float]] = [{} for _ in observations]
        base = self._reusable(observations, layouts, blocked)
        if base is not None:
            shapes = {path: shape for path, shape in shapes.items() if path == REUSABLE}
            found = [{p: m for p, m in base.ran.maps.items() if p[0] != REUSABLE} for _ in found]
            self.reused += len(found)
        gate = _Gate(keyframe, batch, shapes, layouts, blocked, found if self._maps else None)
        if watch.vision:
            check_encoded(batch)
        with ExitStack() as stack:
            session = stack.enter_context(capture(policy, gate.take, watch=watch))
            if any(blocked):
                stack.enter_context(blocking(policy).blocking(blocked))
            if base is not None and isinstance(policy, PrefixPolicy):
                stack.enter_context(policy.reusing_prefix(base.prefix))
            chunk = policy.act(batch)
        encoder = policy.watches_encoder and base is None
        check_complete(session, shapes, batch, encoder=encoder)
        gate.check_blocked()
        actions = np.asarray(chunk.detach().float().cpu().numpy(), np.float64)
        if not np.isfinite(actions).all():
            raise HealthError("the policy's actions are not finite")
        return [Ran(actions[i], layouts[i], found[i]) for i in range(len(observations))]

    def _reusable(
        self,
        observations: Sequence[Observation],
        layouts: Sequence[Mapping[str, TokenLayout]],
        blocked: Sequence[Sequence[Blocked]],
    ) -> _Kept | None:
        """Return the base, if what is to be run differs from it in the suffix alone."""
        base = self._base
        if base is None or any(b.phase != REUSABLE for blocks in blocked for b in blocks):
            return None
        same = all(o is base.observation for o in observations)
        # Padding may depend on the batch, and with it where tokens stand.
        alike = all(dict(layout) == dict(base.ran.layouts) for layout in layouts)
        return base if same and alike else None


def blocking(policy: Policy) -> BlockingPolicy:
    """Return the policy as one whose attention can be blocked.

    Raises
    ------
    UsageError
        If its adapter has no way to.
    """
    if not isinstance(policy, BlockingPolicy):
        raise UsageError(
            f"the adapter of policy {policy.name} cannot block attention: it has no method blocking "
            "(attnstore.ingest.policies.blocking says how to add one)"
        )
    return policy


class _Gate:
    """Checks every layer's weights as they come, and keeps the maps that are asked for."""

    def __init__(
        self,
        keyframe: int,
        batch: Batch,
        shapes: Mapping[str, PhaseShape],
        layouts: Sequence[Mapping[str, TokenLayout]],
        blocked: Sequence[Sequence[Blocked]],
        maps: list[dict[MapPlace, Float]] | None,
    ) -> None:
        self._keyframe = keyframe
        self._batch, self._shapes, self._layouts, self._maps = batch, shapes, layouts, maps
        self._blocked: dict[tuple[int, str, int], list[Blocked]] = {}
        for sample, blocks in enumerate(blocked):
            for block in blocks:
                self._blocked.setdefault((sample, block.phase, block.layer), []).append(block)
        self._seen: set[tuple[int, str, int]] = set()

    def take(self, record: Record) -> None:
        for row, i, path in owners(record, len(record.weights), self._batch):
            layout, shape = self._layouts[i][path], self._shapes[path]
            check_axes(record, layout, shape)
            weights = compact(record.weights[row], layout).float()
            low, high = weights.sum(-1).aminmax()
            check_rows(record, float(low), float(high), self._keyframe)
            place = (i, record.phase, record.layer)
            for block in self._blocked.get(place, ()):
                self._seen.add(place)
                _check_zero(record, row, block)
            last = record.step is None or record.step == (shape.steps or 1) - 1
            if self._maps is not None and last and record.phase != VISION:
                self._keep(self._maps[i], record, weights, layout, shape)

    def check_blocked(self) -> None:
        """Check that every layer that was to be blocked came by."""
        if missing := sorted(set(self._blocked) - self._seen):
            _, phase, layer = missing[0]
            raise HealthError(f"{phase} layer {layer} was to be blocked and did not run")

    @staticmethod
    def _keep(
        into: dict[MapPlace, Float],
        record: Record,
        weights: torch.Tensor,
        layout: TokenLayout,
        shape: PhaseShape,
    ) -> None:
        for group in shape.query_groups:
            rows = [weights[:, s] for s in layout.query.group(group)]
            if rows:
                import torch

                mean = torch.cat(rows, 1).mean(1).cpu().numpy()
                step = record.step if record.phase in STEPPED_PHASES else None
                into[record.phase, step, record.layer, group] = np.asarray(mean, np.float64)


def _check_zero(record: Record, row: int, block: Blocked) -> None:
    import torch

    weights = record.weights[row]
    query = torch.tensor(block.query, device=weights.device)
    key = torch.tensor(block.key, device=weights.device)
    largest = float(weights[:, query[:, None], key].amax())
    if largest != 0:
        raise HealthError(
            f"{record.phase} layer {record.layer}: attention of {largest:g} is left where it is "
            "blocked"
        )

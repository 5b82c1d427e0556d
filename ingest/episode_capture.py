"""From a policy's forward passes to one episode in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.errors import HealthError, ReplayError
from attnstore.store.format.episode import EpisodeSpec, PhaseSpec
from attnstore.store.format.generated import DECODE, at_step, with_tokens
from attnstore.store.format.statistics import SINK_FRACTION, SINK_THRESHOLD
from attnstore.store.format.tokens import GENERATED, TokenLayout
from attnstore.store.format.weighting import Weighting

from .aggregates import episode_stats
from .capture import HiddenRecord, Record, Session, capture
from .datasets.base import Frame, PolicyCall
from .encoders import all_layouts, all_shapes, owners
from .health import check_axes, check_complete, check_encoded, check_rows
from .hidden import HiddenStates, expects_hidden
from .policies.base import ATTENTION_ONLY, Batch, Generated, Policy, Watch
from .policies.values import LEAVE_OUT
from .reduction import compact, compact_norms, encode_on_device, reduce, reduce_carried
from .statistics import HeadStatistics, PhaseReductions, SinkStatistics
from .threads import with_torch_threads
from .token_stats import TokenStatistics
from .writing import WriteQueue

if TYPE_CHECKING:
    import torch


class EpisodeCapture:
    """Runs the policy on batches of keyframes and writes what it attends to.

    Batches are to be given in the order of the keyframes.

    Parameters
    ----------
    policy
        Loaded policy.
    writer
        Where the episode goes.
    queue
        Takes the weights off the model's thread.
    watch
        What is captured beside the attention of the policy's own phases; as the episode was
        described with.
    tolerance
        How far an action may be from one that was recorded when the policy drove; 0: the same bits.
    """

    def __init__(
        self,
        policy: Policy,
        writer: EpisodeWriter,
        queue: WriteQueue,
        watch: Watch = ATTENTION_ONLY,
        tolerance: float = 0.0,
    ) -> None:
        self._policy, self._writer, self._queue, self._watch = policy, writer, queue, watch
        self._spec: EpisodeSpec = writer.spec
        self._shapes = all_shapes(policy, self._spec.geometry, watch)
        self._watches_encoder = policy.watches_encoder
        self._expected_hidden = expects_hidden(
            self._shapes, token_stats=watch.token_stats, stored=watch.hidden
        )
        self._heads = HeadStatistics(self._spec)
        self._sinks = SinkStatistics(SINK_THRESHOLD, SINK_FRACTION)
        self._buffers: dict[str, torch.Tensor] = {}
        self._tolerance = tolerance
        self._differences: list[tuple[float, float]] = []

    @property
    def replay(self) -> dict[str, float] | None:
        """How the actions compare with those recorded when the policy drove; None if none were.

        ``difference`` is of the policy as it is, ``captured_difference`` with eager attention.
        """
        if not self._differences:
            return None
        plain, captured = (max(each) for each in zip(*self._differences, strict=True))
        return {
            "tolerance": self._tolerance,
            "difference": plain,
            "captured_difference": captured,
        }

    def run(self, keyframes: Sequence[int], frames: Sequence[Frame], batch: Batch) -> None:
        """Act on one batch and record it.

        Raises
        ------
        HealthError
            If the capture fails a check of the health gate.
        """
        layouts = [all_layouts(self._policy, s, self._watch) for s in batch.samples]
        reductions = [self._reductions(own, "raw") for own in layouts]
        carried = [self._reductions(own, "value") if self._watch.values else {} for own in layouts]
        norms: list[dict[str, NDArray[np.float32]]] = [{} for _ in keyframes]
        tokens = TokenStatistics(self._spec, batch, layouts) if self._watch.token_stats else None
        hidden = None if self._watch.hidden is None else HiddenStates(self._spec, batch, layouts)
        rows: list[list[tuple[float, float]]] = [[] for _ in keyframes]

        def sink(record: Record) -> None:
            for row, i, path in owners(record, len(record.weights), batch):
                keyframe, shape = keyframes[i], self._shapes[path]
                layout = at_step(layouts[i][path], record.step)
                check_axes(record, layout, shape)
                exact = compact(record.weights[row], layout)
                weights = self._widened(record.phase, exact)
                reduction = reduce(weights, layout.query, self._spec.phases[path].query_groups)
                check_rows(record, *reduction.row_sum, keyframe)
                rows[i].append(reduction.row_sum)
                reductions[i][path].add(record.layer, record.step, reduction)
                if path in carried[i]:
                    own = _norms_of(record, row, layout)
                    weighted = reduce_carried(weights, own, layout.query, shape.query_groups)
                    carried[i][path].add(record.layer, record.step, weighted)
                    self._keep_norms(norms[i], path, record, layout, own.cpu().numpy())
                # float32 rounds to float16 fastest; log8 has a table for values of 16 bits.
                source = weights if self._spec.precision == "float16" else exact
                stored = encode_on_device(source, self._spec.precision)
                write = partial(
                    self._writer.write_attention,
                    path, keyframe, record.layer, stored, layout, record.step,
                )  # fmt: skip
                self._queue.put(write, stored.nbytes)

        def hidden_sink(record: HiddenRecord) -> None:
            if tokens is not None:
                tokens.add(record)
            if hidden is not None:
                hidden.add(record)

        if self._watch.vision:
            check_encoded(batch)
        drove = next((f.call.threads for f in frames if f.call is not None), None)
        with (
            nullcontext() if drove is None else with_torch_threads(drove),
            capture(self._policy, sink, watch=self._watch, hidden=hidden_sink) as session,
        ):
            actions = self._policy.act(batch)
        check_complete(
            session, self._shapes, batch,
            encoder=self._watches_encoder,
            hidden=self._expected_hidden,
        )  # fmt: skip
        differences = self._write_policy(keyframes, frames, batch, actions, session)
        for i, keyframe in enumerate(keyframes):
            text = session.generated[i] if session.generated else None
            if text is not None:
                self._writer.end_steps(DECODE, keyframe, len(text.tokens))
            self._write_keyframe(
                keyframe, frames[i], batch, i, reductions[i], rows[i], text, differences[i]
            )
            for path, values in norms[i].items():
                steps = self._spec.phases[path].steps
                self._writer.write_norms(path, keyframe, values if steps is not None else values[0])
            for weighted in carried[i].values():
                for block in self._heads.rows(keyframe, weighted):
                    self._writer.add_rows("head_stats", block)
                self._sinks.add(weighted)
            for path, form, states in () if hidden is None else hidden.arrays(i):
                self._writer.write_hidden(path, form, keyframe, states)
            for block in () if tokens is None else tokens.rows(i, keyframe):
                self._writer.add_rows("token_stats", block)

    def _reductions(
        self, layouts: Mapping[str, TokenLayout], weighting: Weighting
    ) -> dict[str, PhaseReductions]:
        """Make what takes in a keyframe's phases, by their paths."""
        return {
            path: PhaseReductions(self._spec.phases[path], layouts[path], weighting=weighting)
            for path in self._shapes
            if path in layouts
        }

    def _widened(self, phase: str, weights: torch.Tensor) -> torch.Tensor:
        """Return weights as float32, in a buffer that the phase's next layer overwrites.

        torch reduces and rounds float32 faster than bfloat16, and fresh memory for each layer
        costs as much in page faults as the arithmetic.
        """
        import torch

        if weights.dtype == torch.float32:
            return weights
        buffer = self._buffers.get(phase)
        if buffer is None or buffer.shape != weights.shape:
            buffer = torch.empty(weights.shape, dtype=torch.float32, device=weights.device)
            self._buffers[phase] = buffer
        return buffer.copy_(weights)

    def _keep_norms(
        self,
        kept: dict[str, NDArray[np.float32]],
        path: str,
        record: Record,
        layout: TokenLayout,
        norms: NDArray[np.float32],
    ) -> None:
        """Put one layer's norms, (head, key), in their aligned places, (step, layer, head, key)."""
        spec = self._spec.phases[path]
        if path not in kept:
            shape = (spec.steps or 1, spec.layers, spec.heads, len(spec.key))
            kept[path] = np.full(shape, np.nan, np.float32)
        for stored, own in spec.key.place(layout.key):
            kept[path][record.step or 0, record.layer, :, stored] = norms[:, own]

    def finish(self) -> None:
        """Wait for the weights to be written, and add the tables over the whole episode."""
        self._queue.flush()
        for block in self._sinks.rows():
            self._writer.add_rows("sinks", block)
        self._writer.add_rows("episode_stats", episode_stats(self._writer.rows("head_stats")))

    def _write_policy(
        self,
        keyframes: Sequence[int],
        frames: Sequence[Frame],
        batch: Batch,
        actions: Any,
        session: Session,
    ) -> list[float | None]:
        chunk = actions.detach().float().cpu().numpy()
        differences = [
            None if f.call is None else self._compare(f.call, chunk[i], batch, keyframes[i])
            for i, f in enumerate(frames)
        ]
        # The input of step s + 1 is the result of step s; the last result is the action itself.
        noisy = [n.float().cpu().numpy() for n in session.noisy_actions[1:]]
        denoising = np.stack([*noisy, chunk], axis=1)
        for i, keyframe in enumerate(keyframes):
            self._writer.write_policy("actions", keyframe, chunk[i])
            self._writer.write_policy("actions_recorded", keyframe, frames[i].action)
            self._writer.write_policy("state", keyframe, frames[i].state)
            if session.noisy_actions:
                self._writer.write_policy("denoising", keyframe, denoising[i])
        return differences

    def _compare(
        self, call: PolicyCall, chunk: NDArray[np.float32], batch: Batch, keyframe: int
    ) -> float:
        """Hold the policy to what it did when it drove; return how far it is from that while captured.

        Eager attention rounds otherwise than the kernels that it drove with. So where the captured
        actions are not the recorded ones, the policy acts once more as it is.
        """
        same_shape = call.actions.shape == chunk.shape
        captured = action_difference(call.actions, chunk) if same_shape else 0.0
        plain = 0.0
        if captured or not same_shape:
            with with_torch_threads(call.threads):
                again = self._policy.act(batch).detach().float().cpu().numpy()[0]
            plain = check_actions(call, again, keyframe, self._tolerance)
        if not np.isfinite(captured):
            check_actions(call, chunk, keyframe, self._tolerance)
        self._differences.append((plain, captured))
        return captured

    def _write_keyframe(
        self,
        keyframe: int,
        frame: Frame,
        batch: Batch,
        index: int,
        reductions: dict[str, PhaseReductions],
        rows: Sequence[tuple[float, float]],
        text: Generated | None,
        difference: float | None,
    ) -> None:
        spec, writer, sample = self._spec, self._writer, batch.samples[index]
        for phase in reductions.values():
            for block in self._heads.rows(keyframe, phase):
                writer.add_rows("head_stats", block)
            self._sinks.add(phase)
            for reduction, groups in (("mean", phase.mean), ("max", phase.maximum)):
                for group, values in groups.items():
                    for camera in phase.spec.cameras:
                        maps = phase.camera_maps(values, camera)
                        lead = maps if phase.spec.steps is not None else maps[0]
                        writer.write_map(phase.spec.phase, group, camera, reduction, keyframe, lead)
            layout = phase.layout
            if text is not None:
                layout = with_tokens(layout, text.tokens)
            for axis, aligned, own in (
                ("query", phase.spec.query, layout.query),
                ("key", phase.spec.key, layout.key),
            ):
                _write_axis(writer, keyframe, phase.spec, axis, aligned, own)
        writer.add_rows(
            "keyframes",
            {
                "keyframe": [keyframe],
                "frame": [frame.index],
                "timestamp": [frame.timestamp],
                "instruction": [spec.instruction if frame.call is None else frame.call.instruction],
                "seed": [spec.seeds[keyframe]],
                "state": [frame.state.tolist()],
                "action_recorded": [frame.action.tolist()],
                "row_sum_min": [min(low for low, _ in rows)],
                "row_sum_max": [max(high for _, high in rows)],
                "generated": [None if text is None else text.text],
            },
        )
        if (call := frame.call) is not None:
            writer.add_rows(
                "calls",
                {
                    "keyframe": [keyframe],
                    "frame": [frame.index],
                    "seconds": [call.seconds],
                    "rows": [call.rows],
                    "executed": [call.executed],
                    "action_difference": [difference],
                },
            )
        if text is not None:
            writer.add_rows("tokens", _chosen(keyframe, text))
        # A policy that was told to leave a camera out has no geometry for it.
        seen = [c for c in frame.cameras if c.camera in sample.geometry]
        writer.add_rows(
            "frames",
            {
                "keyframe": [keyframe] * len(seen),
                "frame": [frame.index] * len(seen),
                "camera": [c.camera for c in seen],
                "image": [c.data for c in seen],
                "media_type": [c.media_type for c in seen],
                "height": [c.rgb.shape[0] for c in seen],
                "width": [c.rgb.shape[1] for c in seen],
                "geometry": [sample.geometry[c.camera].to_json() for c in seen],
            },
        )


def _norms_of(record: Record, row: int, layout: TokenLayout) -> torch.Tensor:
    if record.norms is None:
        raise HealthError(
            f"{record.phase} layer {record.layer}: no value norms arrived; {LEAVE_OUT}"
        )
    norms = compact_norms(record.norms[row], layout)
    if not bool(norms.isfinite().all()):
        raise HealthError(
            f"{record.phase} layer {record.layer}: a value norm is not finite; {LEAVE_OUT}"
        )
    return norms


def action_difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Largest difference between two action chunks: 0 if they are the same bits, NaN if one is NaN.

    Examples
    --------
    >>> action_difference(np.zeros((1, 2), np.float32), np.array([[0, 0.5]], np.float32))
    0.5
    """
    first, second = (np.ascontiguousarray(a, np.float32) for a in (one, other))
    if first.tobytes() == second.tobytes():
        return 0.0
    return float(np.max(np.abs(one.astype(np.float64) - other), initial=0.0))


def check_actions(
    call: PolicyCall, chunk: NDArray[np.float32], keyframe: int, tolerance: float
) -> float:
    """Hold an action chunk to the one that was recorded when the policy drove.

    Returns
    -------
    Their largest difference; 0 if both are the same bits.

    Raises
    ------
    ReplayError
        If it is larger than `tolerance`, or the chunks have different shapes.
    """
    recorded = call.actions
    evidence = {"keyframe": keyframe, "recorded": _spelled(recorded), "replayed": _spelled(chunk)}
    if recorded.shape != chunk.shape:
        raise ReplayError(
            f"keyframe {keyframe}: the policy gives actions of shape {chunk.shape}, it gave "
            f"{recorded.shape} when it was recorded: another checkpoint, or other options",
            evidence,
        )
    difference = action_difference(recorded, chunk)
    if not difference <= tolerance:  # nor if it is NaN
        why = (
            f"the call was one of a batch of {call.rows}, which rounds otherwise"
            if call.rows > 1
            else "another data type, machine or library, or it was compiled"
        )
        raise ReplayError(
            f"keyframe {keyframe}: the policy's actions differ from the recorded ones by up to "
            f"{difference:.3g}, more than --tolerance {tolerance:g} ({why})",
            evidence,
        )
    return difference


def _spelled(actions: NDArray[np.float32]) -> list[list[float | None]]:
    """Actions as JSON, which has no NaN."""
    return [[float(v) if np.isfinite(v) else None for v in action] for action in actions]


def _chosen(keyframe: int, written: Generated) -> dict[str, Any]:
    """Rows of ``tokens`` that say what each step of phase decode chose."""
    tokens, actions = written.tokens, written.actions
    count = len(tokens)
    values = {
        "action_bin": [a.bin for a in actions],
        "action_normalised": [a.normalised for a in actions],
        "action_value": [a.value for a in actions],
    }
    spectrum = written.coefficients
    coefficients = {
        "action_coefficients": [None if c is None else list(c.values) for c in spectrum],
        "action_coefficient": [None if c is None else c.first for c in spectrum],
    }
    return (
        (values if actions else {})
        | (coefficients if spectrum else {})
        | {
            "keyframe": [keyframe] * count,
            "phase": [DECODE] * count,
            "axis": ["step"] * count,
            "index": list(range(count)),
            "span": [GENERATED] * count,
            "role": [GENERATED] * count,
            "token_id": [t.id for t in tokens],
            "text": [t.text for t in tokens],
        }
    )


def _write_axis(
    writer: EpisodeWriter, keyframe: int, spec: PhaseSpec, axis: str, aligned: Any, own: Any
) -> None:
    homes, phase = [aligned[span.name] for span in own], spec.phase
    count = len(homes)
    writer.add_rows(
        "spans",
        {
            "keyframe": [keyframe] * count,
            "phase": [phase] * count,
            "axis": [axis] * count,
            "span": [s.name for s in own],
            "kind": [s.kind for s in own],
            "role": [s.role for s in own],
            "camera": [s.camera or spec.camera for s in own],
            "start": [h.start for h in homes],
            "stop": [h.start + len(s) for h, s in zip(homes, own, strict=True)],
            "reserved_stop": [h.stop for h in homes],
            "rows": [s.grid[0] if s.grid else None for s in own],
            "cols": [s.grid[1] if s.grid else None for s in own],
            "model_start": [s.model_start for s in own],
        },
    )
    tokens = [
        (home.start + i, span, token)
        for home, span in zip(homes, own, strict=True)
        for i, token in enumerate(span.tokens)
    ]
    if tokens:
        writer.add_rows(
            "tokens",
            {
                "keyframe": [keyframe] * len(tokens),
                "phase": [phase] * len(tokens),
                "axis": [axis] * len(tokens),
                "index": [i for i, _, _ in tokens],
                "span": [s.name for _, s, _ in tokens],
                "role": [s.role for _, s, _ in tokens],
                "token_id": [t.id for _, _, t in tokens],
                "text": [t.text for _, _, t in tokens],
            },
        )

"""What one episode of a run looks like in the store: its keyframes, cameras, phases and axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import IntegrityError
from .axes import STEPPED_PHASES, phase_path, split_path
from .documents import check
from .geometry import Geometry
from .hidden import HiddenSpec, hidden_from_json, hidden_to_json
from .tokens import AlignedAxis, Span, Token
from .views import check_cameras


@dataclass(frozen=True, slots=True)
class PhaseSpec:
    """Shape and axes of a phase's attention."""

    phase: str
    layers: int
    heads: int
    steps: int | None
    """Number of denoising steps, or the most tokens that may be decoded; None for one-pass phases."""
    query: AlignedAxis
    key: AlignedAxis
    query_groups: tuple[str, ...]
    """Query groups with statistics and overview maps."""
    camera: str | None = None
    """In phase ``vision``: whose image goes through the encoder."""
    causal: bool | None = None
    """Whether no query attends to a token behind it; None if the policy does not say."""
    values: bool = False
    """Whether there are value norms of its keys."""
    hidden: HiddenSpec | None = None
    """Which hidden states of its queries there are; None: none."""

    def __post_init__(self) -> None:
        phase_path(self.phase, self.camera)
        if (self.phase in STEPPED_PHASES) != (self.steps is not None):
            raise ValueError(f"phase {self.phase}: steps are given exactly for stepped phases")
        if self.hidden is not None:
            names = {span.name for span in self.query}
            if lost := {*self.hidden.last, *self.hidden.spans} - names:
                raise ValueError(f"phase {self.phase}: hidden states of no span: {sorted(lost)}")
            if any(layer >= self.layers for layer in self.hidden.layers):
                raise ValueError(
                    f"phase {self.phase}: hidden states of layers {self.hidden.layers}, it has "
                    f"{self.layers}"
                )

    @property
    def path(self) -> str:
        """Group of its attention in ``attention.zarr``: ``prefix``, ``vision/hand_camera``."""
        return phase_path(self.phase, self.camera)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras among the keys, in order."""
        return tuple(s.camera for s in self.key if s.camera is not None)


@dataclass(frozen=True, slots=True)
class EpisodeSpec:
    """Everything that fixes the arrays of a committed episode, known before the policy runs."""

    name: str
    """The dataset's own name; may contain ``/``."""
    outcome: str
    instruction: str
    frames: tuple[int, ...]
    """Frame index of each keyframe."""
    seeds: tuple[int, ...]
    """Noise seed of each keyframe."""
    precision: str
    geometry: Mapping[str, Geometry]
    """Per camera, in the policy's order."""
    phases: Mapping[str, PhaseSpec]
    """By `PhaseSpec.path`."""
    task: str | None = None
    date: str | None = None
    rate: float | None = None
    """Frames per second of the recording."""
    total_frames: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError(f"episode {self.name}: no keyframes")
        if len(self.seeds) != len(self.frames):
            raise ValueError(
                f"episode {self.name}: {len(self.seeds)} seeds for {len(self.frames)} keyframes"
            )
        check_cameras(self.geometry)
        for path, phase in self.phases.items():
            if path != phase.path:
                raise ValueError(f"phase {phase.path} is listed as {path!r}")
            for span in phase.key:
                if span.camera is not None and span.grid != self.geometry[span.camera].grid:
                    raise ValueError(
                        f"phase {phase.phase}: span {span.name!r} is a grid of {span.grid}, "
                        f"its camera's geometry {self.geometry[span.camera].grid}"
                    )


def spec_to_json(spec: EpisodeSpec) -> dict[str, Any]:
    """Attributes of ``attention.zarr``'s root group; `spec_from_json` restores an equal value."""
    return {
        "name": spec.name,
        "outcome": spec.outcome,
        "instruction": spec.instruction,
        "frames": list(spec.frames),
        "seeds": list(spec.seeds),
        "precision": spec.precision,
        "geometry": {camera: g.to_json() for camera, g in spec.geometry.items()},
        "phases": {name: _phase_to_json(p) for name, p in spec.phases.items()},
        "task": spec.task,
        "date": spec.date,
        "rate": spec.rate,
        "total_frames": spec.total_frames,
        "attributes": dict(spec.attributes),
    }


def spec_from_json(raw: Mapping[str, Any]) -> EpisodeSpec:
    """Restore what `spec_to_json` wrote.

    Raises
    ------
    IntegrityError
        If something is missing or of a wrong kind, or the parts contradict each other.
    """
    check(raw, "episode", "not an episode description")
    try:
        return EpisodeSpec(
            name=str(raw["name"]),
            outcome=str(raw["outcome"]),
            instruction=str(raw["instruction"]),
            frames=tuple(int(f) for f in raw["frames"]),
            seeds=tuple(int(s) for s in raw["seeds"]),
            precision=str(raw["precision"]),
            geometry={c: Geometry.from_json(g) for c, g in raw["geometry"].items()},
            phases={n: _phase_from_json(n, p) for n, p in raw["phases"].items()},
            task=_optional(raw, "task", str),
            date=_optional(raw, "date", str),
            rate=_optional(raw, "rate", int | float),
            total_frames=_optional(raw, "total_frames", int),
            attributes=_optional(raw, "attributes", dict) or {},
        )
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise IntegrityError(f"not an episode description: {error!r}") from None


def _optional(raw: Mapping[str, Any], name: str, kind: Any) -> Any:
    value = raw.get(name)
    if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
        return value
    raise TypeError(f"{name} is {str(value)[:80]!r}")


def _phase_to_json(phase: PhaseSpec) -> dict[str, Any]:
    return {
        "layers": phase.layers,
        "heads": phase.heads,
        "steps": phase.steps,
        "query": [_span_to_json(s) for s in phase.query],
        "key": [_span_to_json(s) for s in phase.key],
        "query_groups": list(phase.query_groups),
        **({} if phase.causal is None else {"causal": phase.causal}),
        **({"values": True} if phase.values else {}),
        **({} if phase.hidden is None else {"hidden": hidden_to_json(phase.hidden)}),
    }


def _phase_from_json(path: str, raw: Mapping[str, Any]) -> PhaseSpec:
    phase, camera = split_path(path)
    return PhaseSpec(
        phase=phase,
        layers=int(raw["layers"]),
        heads=int(raw["heads"]),
        steps=raw["steps"],
        query=AlignedAxis(tuple(_span_from_json(s) for s in raw["query"])),
        key=AlignedAxis(tuple(_span_from_json(s) for s in raw["key"])),
        query_groups=tuple(raw["query_groups"]),
        camera=camera,
        causal=raw.get("causal"),
        values=raw.get("values", False),
        hidden=hidden_from_json(raw.get("hidden")),
    )


def _span_to_json(span: Span) -> dict[str, Any]:
    value: dict[str, Any] = {
        "name": span.name,
        "kind": span.kind,
        "start": span.start,
        "stop": span.stop,
    }
    value["model_start"] = span.model_start
    if span.camera is not None:
        value["camera"], value["grid"] = span.camera, list(span.grid or ())
    if span.role is not None:
        value["role"] = span.role
    if span.tokens:
        value["tokens"] = [[t.id, t.text] for t in span.tokens]
    return value


def _span_from_json(raw: Mapping[str, Any]) -> Span:
    grid = raw.get("grid")
    return Span(
        name=raw["name"],
        kind=raw["kind"],
        start=int(raw["start"]),
        stop=int(raw["stop"]),
        model_start=int(raw["model_start"]),
        camera=raw.get("camera"),
        grid=(int(grid[0]), int(grid[1])) if grid else None,
        role=raw.get("role"),
        tokens=tuple(Token(int(i), str(t)) for i, t in raw.get("tokens", ())),
    )

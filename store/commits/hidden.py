"""Rows of ``hidden_states``: what the description of an episode says of them, for SQL."""

from __future__ import annotations

from typing import Any

from ..format.episode import EpisodeSpec
from ..format.hidden import hidden_layers, hidden_path


def hidden_rows(spec: EpisodeSpec) -> dict[str, list[Any]]:
    """Columns of ``hidden_states`` of an episode: a row for each phase, form and span."""
    rows: list[dict[str, Any]] = []
    for phase in spec.phases.values():
        hidden = phase.hidden
        for form in () if hidden is None else hidden.forms:
            assert hidden is not None
            every = tuple(span.name for span in phase.query)
            names = {"mean": every, "last": hidden.last, "tokens": hidden.spans}[form]
            layers = hidden_layers(phase.layers, hidden, form)
            for span in (phase.query[name] for name in names):
                rows.append(
                    {
                        "phase": phase.phase, "form": form, "span": span.name, "kind": span.kind,
                        "role": span.role, "camera": span.camera, "layers": list(layers) or None,
                        "steps": phase.steps, "tokens": len(span), "features": hidden.features,
                        "path": hidden_path(phase.path, form),
                    }
                )  # fmt: skip
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}

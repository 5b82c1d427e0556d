"""Sections on what a run is and whether it is sound."""

from __future__ import annotations

import json
from collections import Counter

from attnstore.query.health import Health
from attnstore.query.sql.chosen import Chosen

from .document import Block, Section, Table, finding, note
from .spelling import number, size

TOLERANCE = 3e-3
"""Of row sums: a bfloat16 softmax has 0.9975 to 1.0024."""


def provenance(chosen: Chosen, found: Health, where: str | None) -> Section:
    """Say what was run on what."""
    config, origin = found.config, found.provenance
    versions = origin.get("versions") or {}
    outcomes = Counter(chosen.outcomes)
    said = ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items()))
    facts = [
        ("run", f"`{chosen.run}`"),
        ("policy", config.policy),
        ("checkpoint", f"{config.checkpoint}, SHA-256 `{config.checkpoint_digest[:16]}…`"),
        ("dataset", config.dataset),
        ("cameras", ", ".join(config.cameras)),
        (
            "episodes",
            f"{len(chosen.episodes)}: {said}" + (f"; those where {where}" if where else ""),
        ),
        ("keyframes", f"{found.keyframes} of {found.frames} frames, every {config.stride}"),
        ("weights", f"{config.dtype}; stored at {config.precision}; noise seed {config.seed}"),
        ("options", json.dumps(config.options, sort_keys=True) if config.options else "none"),
        ("versions", ", ".join(f"{k} {v}" for k, v in sorted(versions.items())) or "not recorded"),
        (
            "ingested on",
            f"{origin.get('device', '?')}, since {str(origin.get('created'))[:19]} UTC",
        ),
        ("definitions", f"semantics {config.semantics}"),
    ]
    return Section("provenance", "What was run", (Table("", ("", ""), tuple(facts)),))


def soundness(found: Health) -> Section:
    """Say whether the numbers can be trusted."""
    low, high = found.row_sums
    sound = abs(low - 1) <= TOLERANCE and abs(high - 1) <= TOLERANCE
    blocks: list[Block] = [
        finding(
            f"Attention rows sum to {number(low) if low < 0.999 else f'{low:.5f}'} to {high:.5f}: "
            + (
                f"within {TOLERANCE:g} of 1, as a softmax of that data type does."
                if sound
                else f"more than {TOLERANCE:g} from 1. Do not rely on these numbers."
            )
        )
    ]
    if found.quarantined:
        blocks.append(
            Table(
                f"{len(found.quarantined)} quarantined: the health gate kept these out",
                ("episode", "reason"),
                found.quarantined,
            )
        )
    else:
        blocks.append(note("No episode of this run is quarantined by the health gate."))
    if found.unreadable:
        blocks.append(
            Table("Left out because they cannot be read", ("part", "reason"), found.unreadable)
        )
    if found.problems is None:
        blocks.append(note("Files were not compared with their SHA-256: `attnstore verify` does."))
    elif found.problems:
        rows = tuple((p,) for p in found.problems[:20])
        blocks.append(Table(f"{len(found.problems)} files are not as committed", ("file",), rows))
    else:
        blocks.append(
            note("Every committed file of the run has the SHA-256 that it was committed with.")
        )
    sizes = tuple((s.kind, str(s.parts), size(s.bytes)) for s in found.sizes)
    blocks.append(Table("Committed parts", ("kind", "parts", "size"), sizes))
    return Section("health", "Whether it is sound", tuple(blocks))

"""``python -m examples.toy_cube.causes``: whether what the policy looks at matters, in centimetres.

Two sources. The probes that are in the store (``attnstore probe``) give the metrics of every
keyframe. For where the robot is then sent, the policy is run again here, with the probes' own
variants: at each episode's first keyframe, where it is to go to a cube, and at the first one that
holds the cube, where it is to go to a bowl. An action says where from the hand; the place that is
commanded last in a chunk is held against where cubes and bowls are.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import attnstore
from attnstore.ingest.policies.base import ATTENTION_ONLY
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.registry import load_policy
from attnstore.ingest.probing.forward import Forward
from attnstore.ingest.probing.keyframe import StoredKeyframe, stored_keyframes
from attnstore.ingest.probing.knockout import Knockout
from attnstore.ingest.probing.pipeline import choose_episodes, choose_run
from attnstore.ingest.probing.regions import Regions
from attnstore.ingest.probing.variant import Variant
from attnstore.query.causes.fidelity import layer_fidelity
from attnstore.query.statistics import clustered_interval, mean_of_episodes
from attnstore.store.errors import NotFoundError
from attnstore.store.opening import open_store
from attnstore.store.reader import Episode

from .architecture import ACTION_MEAN, ACTION_STD, BOWL_WORD, CUBE_WORD
from .scene import BOWLS, CUBES, Float

HELD = (0.3, 0.6)
"""Gripper positions with a cube between the fingers."""
LIFTED = 0.04
"""Height of a cube's centre above which it is held, metres."""
KNOCKED_OUT = ("image", "image:hand_camera", "image:varied_camera_1", "text", "state",
               f"task:{CUBE_WORD}:{CUBE_WORD + 1}", f"task:{BOWL_WORD}:{BOWL_WORD + 1}")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scene:
    """What is true at one keyframe, in the table's plane."""

    keyframe: StoredKeyframe
    hand: Float
    things: Mapping[str, Float]
    """Where the named and the other cube or bowl are, (2,) metres: ``named``, ``other``."""
    colours: Mapping[str, str]
    """What else could be named: the ``other``, and one that is ``absent`` from the table."""

    @property
    def instruction(self) -> str:
        """What the policy was told."""
        return self.keyframe.observation.instruction


def read_scene(episode: Episode, directory: Path, kind: str) -> Scene | None:
    """Find the keyframe where the robot is to go to a cube or bowl; None if there is none."""
    with h5py.File(directory / "trajectory.h5") as file:
        cubes = file["simulation/cube_position"][:]
        bowls = file["simulation/bowl_position"][:]
        hands = file["observation/robot_state/cartesian_position"][:, :3]
        closed = file["observation/robot_state/gripper_position"][:]
        names = json.loads(file.attrs["sim_categories"])
    for keyframe in stored_keyframes(episode):
        at = keyframe.frame
        held = HELD[0] < closed[at] < HELD[1] and cubes[at, 0, 2] > LIFTED
        if held == (kind == "bowl"):
            places = cubes[at, :, :2] if kind == "cube" else bowls[at]
            here = [name.split()[0] for name in names if name.endswith(kind)]
            absent = [c for c in (CUBES if kind == "cube" else BOWLS) if c not in here]
            colours = {"other": here[1], **({"absent": absent[0]} if absent else {})}
            return Scene(keyframe, hands[at], {"named": places[0], "other": places[1]}, colours)
    return None


def told(scene: Scene, kind: str) -> Iterator[Variant]:
    """Name the other one of its kind, one that is not there, and nothing."""
    words = scene.instruction.split()
    place = CUBE_WORD if kind == "cube" else BOWL_WORD
    for name, colour in scene.colours.items():
        text = " ".join([*words[:place], colour, *words[place + 1 :]])
        yield Variant(f"{name} named", scene.keyframe.with_instruction(text))
    yield Variant("empty prompt", scene.keyframe.with_instruction(""))


def removed(scene: Scene) -> Iterator[Variant]:
    """Replace cameras, and objects in every camera that shows them, by the picture's mean."""
    words = scene.instruction.split()
    roles = {f"{words[CUBE_WORD]} cube": "named cube", f"{words[BOWL_WORD]} bowl": "named bowl"}
    probe = Regions(by=("camera", "object"), cameras=("all", "each"))
    for variant in probe.variants(scene.keyframe):
        target, detail = variant.columns["target"], variant.columns["detail"]
        if target == "camera":
            yield Variant(f"blank {detail}", variant.observation)
        elif target == "object together":
            role = "gripper" if detail == "gripper" else f"other {detail.split()[-1]}"
            role = roles.get(detail, role)
            yield Variant(f"removed {role}", variant.observation)


def knocked_out(scene: Scene) -> Iterator[Variant]:
    """Block what action tokens may read, and what words may read of the pictures."""
    for phase, query, keys in (
        ("suffix", "action", KNOCKED_OUT),
        ("prefix", "text", ("image", "image:hand_camera", "image:varied_camera_1")),
        ("prefix", "image", ("text",)),
    ):
        probe = Knockout(keys, query=query, phases=(phase,))
        for variant in probe.variants(scene.keyframe):
            yield Variant(f"blocked {query} > {variant.name.split(' > ')[-1]}",
                          variant.observation, blocked=variant.blocked)  # fmt: skip
    yield from (
        Variant(f"blocked all > {key}", v.observation, blocked=v.blocked)
        for key in ("background", "letterbox")
        for v in Knockout((key,)).variants(scene.keyframe)
    )


def places(policy: Pi0Policy, scene: Scene, kind: str) -> dict[str, Float]:
    """What is commanded last in each variant: x, y, z in metres and the gripper, (4,)."""
    forward = Forward(policy, ATTENTION_ONLY)
    base = forward.run_base(scene.keyframe.index, scene.keyframe.observation)
    scene = replace(scene, keyframe=replace(scene.keyframe, layouts=base.layouts))
    found = {"base": _place(base.actions, scene)}
    for variant in (*told(scene, kind), *removed(scene), *knocked_out(scene)):
        (ran,) = forward.run(scene.keyframe.index, [variant.observation], [variant.blocked])
        found.setdefault(variant.name, _place(ran.actions, scene))
    return found


def _place(actions: Float, scene: Scene) -> Float:
    last = actions[-1, : len(ACTION_MEAN)] * ACTION_STD + ACTION_MEAN
    return np.asarray([*(scene.hand + last[:3]), last[3]])


def commanded(policy: Pi0Policy, episodes: list[Episode], root: Path) -> dict[str, Any]:
    """Distances in cm of the commanded place, mean and interval over episodes, by variant."""
    answer: dict[str, Any] = {}
    for kind in ("cube", "bowl"):
        rows: dict[str, list[list[float]]] = {}
        count = 0
        for episode in episodes:
            scene = read_scene(episode, root / episode.spec.name, kind)
            if scene is None:
                continue
            count += 1
            found = places(policy, scene, kind)
            for name, place in found.items():
                to = [np.linalg.norm(place[:2] - scene.things[t]) for t in ("named", "other")]
                change = place - found["base"]
                cm = [100 * d for d in (*to, np.linalg.norm(change[:2]), abs(change[2]))]
                rows.setdefault(name, []).append([*cm, abs(change[3]), to[1] < to[0]])
        answer[kind] = {"episodes": count, "variants": {n: _summary(v) for n, v in rows.items()}}
    return answer


def _summary(rows: list[list[float]]) -> dict[str, Any]:
    values = np.array(rows, np.float64)
    names = ("to_named_cm", "to_other_cm", "moved_cm", "raised_cm", "gripper", "nearer_other")
    low, high = clustered_interval(values, np.arange(len(rows)).astype(str))
    ends = zip(values.mean(0).tolist(), low.tolist(), high.tolist(), strict=True)
    return {"episodes": len(rows)} | {n: list(e) for n, e in zip(names, ends, strict=True)}


ROLE = """case when detail = 'gripper' then 'gripper'
 when contains(instruction, detail) then 'named ' || split_part(detail, ' ', 2)
 else 'other ' || split_part(detail, ' ', 2) end"""


def probed(store: attnstore.Store, run: str) -> dict[str, Any]:
    """Metrics of all keyframes from the store's probes, with intervals over episodes."""
    layers = layer_fidelity(store, run=run, metrics=["si_mse"])
    strict = layer_fidelity(store, run=run, metrics=["si_mse"], level=1 - 0.05 / len(layers))
    fidelity = [
        {
            "cameras": row.cameras, "layer": row.layer, "attention": row.attention,
            "control": row.control, "fidelity": [row.fidelity, row.low, row.high],
            "bonferroni": [other.low, other.high],
            "pixel_change": [row.attention_change, row.control_change],
            "episodes": row.episodes, "keyframes": row.keyframes,
        }
        for row, other in zip(layers, strict, strict=True)
    ]  # fmt: skip
    effects = _effects(
        store,
        f"""
select probe, target, case when target like 'object%' then {ROLE} else detail end as what,
       array_to_string(cameras, '+') as cameras, layer, phase, query_group,
       episode, keyframe, avg(si_mse), avg(mse), avg(scale)
from interventions where run = '{run}' and probe <> 'fidelity' and target <> 'base' group by all order by all""",
    )
    turns = (
        store.sql(f"""
select part, phase, detail, keyframe, count(*) as episodes, avg(si_mse) as si_mse
from interventions where run = '{run}' and probe = 'knockout' and target <> 'base' and layer is null
group by all order by all""")
        .to_arrow_table()
        .to_pylist()
    )
    ledger = store.sql(f"""
with each as (
  select {ROLE} as what, l.camera, l.phase, l.layer, l.query_group, l.episode,
         avg(l.attention) / avg(l.area) as lift, avg(l.si_mse) as effect, avg(l.area) as area
  from ledger l join episodes using (run, episode)
  where run = '{run}' and target = 'object' group by all)
select what, camera, phase, layer, query_group, count(*) episodes, avg(lift) lift,
       avg(effect) effect, avg(area) area
from each group by all order by all""").to_arrow_table().to_pylist()  # fmt: skip
    return {
        "fidelity": fidelity,
        "effects": effects,
        "knockout_by_keyframe": turns,
        "ledger": ledger,
    }


def _effects(store: attnstore.Store, sql: str) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for row in store.sql(sql).fetchall():
        groups.setdefault(row[:7], []).append(row[7:])
    found = []
    for key, rows in groups.items():
        values = np.array([[np.nan if v is None else v for v in r[2:]] for r in rows], np.float64)
        episodes = np.array([r[0] for r in rows])
        low, high = clustered_interval(values, episodes)
        mean = mean_of_episodes(values, episodes)
        names = ("probe", "target", "what", "cameras", "layer", "phase", "query_group")
        metrics = {
            name: [float(mean[i]), float(low[i]), float(high[i])]
            for i, name in enumerate(("si_mse", "mse", "scale"))
        }
        found.append({**dict(zip(names, key, strict=True)), **metrics,
                      "episodes": len(set(episodes)), "keyframes": len(rows)})  # fmt: skip
    return found


def tables(answer: Mapping[str, Any]) -> str:
    """Write the commanded places as Markdown tables."""
    lines = []
    for kind, found in answer.items():
        lines += [
            "",
            f"| {kind} | commanded place to the named one, cm | to the other, cm | moved, cm "
            "| up or down, cm | gripper | nearer to the other | episodes |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, row in found["variants"].items():
            columns = ("to_named_cm", "to_other_cm", "moved_cm", "raised_cm")
            cells = [_span(row[c], 1) for c in columns]
            cells += [_span(row[c], 2) for c in ("gripper", "nearer_other")]
            lines.append(f"| {name} | {' | '.join(cells)} | {row['episodes']} |")
    return "\n".join(lines)


def _one_line(found: re.Match[str]) -> str:
    return f"[{' '.join(found[1].split())}]"


def _span(interval: list[float], digits: int) -> str:
    mean, low, high = (f"{n:.{digits}f}" for n in interval)
    return f"{mean} ({low} to {high})"


def main() -> None:
    """Print the tables, and write all numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True, type=Path)
    parser.add_argument("--episodes", type=Path, required=True, help="the ingested data set")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--run", help="run of the checkpoint, if the store has several")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    paths = open_store(given.store)
    run = choose_run(paths, given.run)
    policy = load_policy(run.policy, given.checkpoint, dtype=run.dtype)
    assert isinstance(policy, Pi0Policy)
    episodes = choose_episodes(paths, run, ())
    answer = commanded(policy, episodes, given.episodes)
    print(tables(answer))
    about = {"run": run.id, "checkpoint_digest": run.checkpoint_digest}
    whole = {**about, "commanded": answer}
    with suppress(NotFoundError):  # the places need no probe in the store
        whole["probed"] = probed(attnstore.open(given.store), run.id)
    if given.json:
        short = json.loads(json.dumps(whole), parse_float=lambda text: float(f"{float(text):.4g}"))
        rows = json.dumps(short, indent=1)
        given.json.write_text(re.sub(r"\[\s+([^][{}]*?)\s+\]", _one_line, rows) + "\n")


if __name__ == "__main__":
    main()

"""Outcomes that are known after the episodes: a CSV of a lab, a JSON of an evaluation."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from attnstore.store.commits import StorePaths, all_commits, now
from attnstore.store.commits.outcome import set_outcome
from attnstore.store.commits.part import Part
from attnstore.store.episode_names import names_episode
from attnstore.store.errors import UsageError
from attnstore.store.json_text import parse_json
from attnstore.store.recordings.journal import SUFFIX, Journal, read_contents

from ..datasets.outcome import outcome_value
from .dataset import latest, outcome_of

NAME_FIELDS = ("episode", "name", "video_filename", "episode_ix", "episode_index")
OUTCOME_FIELDS = ("outcome", "success")
REWARD_FIELDS = ("reward", "sum_reward")


@dataclass(frozen=True, slots=True)
class Said:
    """What a file says of one episode."""

    episode: str | None
    """Its name, or the last part of one."""
    seed: int | None
    outcome: str
    reward: float | None
    where: str
    """For messages: ``row 3``."""

    def names(self, name: str, seed: Any, by: str) -> bool:
        """Whether it is of an episode of this name and environment seed."""
        if by == "seed":
            return self.seed is not None and self.seed == seed
        return self.episode is not None and names_episode(self.episode, name)


def read_said(file: Path, by: str = "name") -> list[Said]:
    """Read a CSV with a header, or JSON: ``{"name": "success"}``, a list of objects, ``per_episode``.

    Parameters
    ----------
    by
        What tells the episodes: ``name`` or ``seed``.

    Raises
    ------
    UsageError
        If it is none of those, a value is no outcome, or an episode stands twice.
    """
    try:
        said = [_said(row, where, by) for row, where in _rows(file)]
        if not said:
            raise ValueError("it names no episode")
        seen: dict[Any, str] = {}
        for each in said:
            key = each.seed if by == "seed" else each.episode
            if key in seen:
                raise ValueError(f"{key} stands twice, {seen[key]} and {each.where}")
            seen[key] = each.where
        return said
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UsageError(f"{file}: {error}") from None


def _rows(file: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    if file.suffix.lower() != ".json":
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            for number, row in enumerate(reader, 2):
                if None in row or None in row.values():
                    raise ValueError(f"row {number} has not {len(reader.fieldnames or [])} values")
                yield row, f"row {number}"
        return
    loaded = parse_json(file.read_bytes())
    if isinstance(loaded, dict) and isinstance(loaded.get("per_episode"), list):
        loaded = loaded["per_episode"]  # as LeRobot's eval_policy returns
    if isinstance(loaded, dict):
        for name, value in loaded.items():
            row = value if isinstance(value, dict) else {"outcome": value}
            yield {**row, "episode": name}, f"episode {name}"
        return
    if not isinstance(loaded, list):
        raise ValueError(f"neither an object nor a list: {loaded!r:.60}")
    for number, row in enumerate(loaded):
        if not isinstance(row, dict):
            raise ValueError(f"entry {number} is no object: {row!r:.60}")
        yield row, f"entry {number}"


def _said(row: Mapping[str, Any], where: str, by: str) -> Said:
    def only(fields: Sequence[str]) -> Any:
        return next((row[f] for f in fields if row.get(f) not in (None, "")), None)

    name, seed = only(NAME_FIELDS), only(("seed",))
    if row.get("video_filename") and name == row["video_filename"]:
        # openpi's DROID client calls a rollout by its video
        name = PurePosixPath(str(name)).stem
    if (seed if by == "seed" else name) is None:
        fields = "seed" if by == "seed" else ", ".join(NAME_FIELDS)
        raise ValueError(f"{where} has no {fields}; its fields are {', '.join(map(str, row))}")
    given = [row[f] for f in OUTCOME_FIELDS if f in row]
    if not given:
        raise ValueError(f"{where} has no {' or '.join(OUTCOME_FIELDS)}")
    try:
        outcomes = {outcome_value(value) for value in given}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if len(outcomes) > 1:
        raise ValueError(f"{where} says both {' and '.join(sorted(outcomes))}")
    reward = only(REWARD_FIELDS)
    number = None if reward is None else float(reward)
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{where}: a reward is a finite number; got {reward!r}")
    return Said(
        None if name is None else str(name), None if seed is None else int(seed),
        outcomes.pop(), number, where,
    )  # fmt: skip


def join_outcomes(
    paths: StorePaths, said: Sequence[Said], *, by: str = "name", run: str | None = None
) -> list[dict[str, Any]]:
    """Give outcomes to the episodes of a store, and to its recordings.

    Parameters
    ----------
    run
        Only episodes of this run, and no recordings.

    Returns
    -------
    Of every episode that is named: where it is, its outcome, and ``changed`` or ``present``; and of what
    names no episode, ``absent``.

    Raises
    ------
    UsageError
        If an episode is named by two rows, or a row names two episodes of one run.
    """
    targets: list[tuple[str, str, Any, Any]] = []
    for commit in all_commits(paths):
        if commit.part == "base" and run in (None, commit.run):
            seed = Part(paths, commit).spec.attributes.get("seed") if by == "seed" else None
            targets.append((commit.run, str(commit.summary["name"]), seed, commit.key))
    if run is None and paths.recordings.is_dir():
        for path in sorted(paths.recordings.glob(f"*/*{SUFFIX}")):
            places = read_contents(path).places
            if places and any(p.kind == "end" for p in places):
                head = places[0].head
                where = f"recording {path.parent.name}"
                targets.append((where, str(head["name"]), head.get("seed"), path))
    matched: list[tuple[Said, str, str, Any]] = []
    taken: dict[tuple[str, str], str] = {}
    for each in said:
        for where, name, seed, target in targets:
            if not each.names(name, seed, by):
                continue
            if (other := taken.get((where, each.where))) is not None:
                raise UsageError(f"{each.where} names both {other} and {name} in {where}")
            if any(t is target for _, _, _, t in matched):
                raise UsageError(f"two rows name {name} in {where}, one of them {each.where}")
            taken[where, each.where] = name
            matched.append((each, where, name, target))
    done = []
    for each, where, name, target in matched:
        changed = (
            _tell(target, each)
            if isinstance(target, Path)
            else set_outcome(paths, target, each.outcome, _attributes(each)) is not None
        )
        status = "changed" if changed else "present"
        done.append({"status": status, "name": name, "in": where, "outcome": each.outcome})
    named = {each.where for each, *_ in matched}
    for each in said:
        if each.where not in named:
            called = f"seed {each.seed}" if by == "seed" else str(each.episode)
            done.append({"status": "absent", "name": called, "in": "", "outcome": each.outcome})
    return done


def _attributes(said: Said) -> dict[str, Any]:
    return {} if said.reward is None else {"reward": said.reward}


def _tell(path: Path, said: Said) -> bool:
    """Append an outcome to a journal, unless it says so; what it says last counts."""
    contents = read_contents(path)
    last = latest(contents.places)
    reward = last.get("reward") if said.reward is None else said.reward
    if outcome_of(contents.places) == said.outcome and last.get("reward") == reward:
        return False
    if contents.reason is not None:
        raise UsageError(f"{path}: {contents.reason}: attnstore record recover {path.parent}")
    journal = Journal(path, at=contents.good)
    try:
        journal.append(
            {
                "kind": "outcome",
                "outcome": said.outcome,
                "reward": reward,
                "attributes": last.get("attributes", {}),
                "created": now(),
            }
        )
        journal.sync()
    finally:
        journal.close()
    return True

"""Prompts: what the policy does, and where it looks, when it is told something else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from attnstore.store.errors import UsageError
from attnstore.store.format.episode import EpisodeSpec

from .keyframe import StoredKeyframe
from .variant import Probe, Variant

INSTRUCTION = "{instruction}"


@dataclass(frozen=True, slots=True)
class Prompts(Probe):
    """Options of `attnstore probe prompts`."""

    kind: ClassVar[str] = "prompts"
    shifts: ClassVar[bool] = True

    prompts: tuple[tuple[str, str], ...] = ()
    """Name and text; ``{instruction}`` in it stands for the episode's own."""
    replaced: tuple[tuple[str, str], ...] = ()
    """Words of the instruction and what stands for them; left out where they do not occur."""
    empty: bool = False
    """Also no words at all."""
    shuffles: int = 0
    """Also the instruction's words in so many random orders."""

    def __post_init__(self) -> None:
        if not (self.prompts or self.replaced or self.empty or self.shuffles):
            raise UsageError(
                "there is no prompt to try: give --prompts FILE, --replace OLD=NEW, --empty or "
                "--shuffle"
            )
        names = [name for name, _ in self.prompts]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"prompt {twice[0]!r} stands twice; give every prompt its own name")

    def check(self, spec: EpisodeSpec) -> None:
        """Nothing: any episode has an instruction."""

    def forwards(self, spec: EpisodeSpec) -> int:
        """Count the variants of a keyframe."""
        return len(self._texts(spec.instruction))

    def variants(self, keyframe: StoredKeyframe) -> Iterator[Variant]:
        """Yield one variant a prompt that differs from the keyframe's own."""
        own = keyframe.observation.instruction
        texts = self._texts(own)
        for repeat in range(self.shuffles):
            if (text := shuffled(own, keyframe, repeat)) is not None:
                texts[f"shuffled-{repeat}"] = text
        for name, text in texts.items():
            if text != own:
                columns = {"target": "prompt", "detail": name, "instruction": text}
                yield Variant(f"prompt/{name}", keyframe.with_instruction(text), columns)

    def _texts(self, own: str) -> dict[str, str]:
        found = {name: text.replace(INSTRUCTION, own) for name, text in self.prompts}
        for old, new in self.replaced:
            parts = re.split(rf"(?<!\w){re.escape(old)}(?!\w)", own)
            if len(parts) > 1:
                found[f"{old}={new}"] = new.join(parts)
        if self.empty:
            found["empty"] = ""
        for repeat in range(self.shuffles):
            found[f"shuffled-{repeat}"] = own
        return found


def shuffled(text: str, keyframe: StoredKeyframe, repeat: int) -> str | None:
    """Put the words of a text in another order; None if they have one order only."""
    words = text.split()
    if len(set(words)) < 2:
        return None
    # One order an episode, so that keyframes can be compared.
    random = keyframe.episode_random("shuffle", repeat)
    while (found := " ".join(words[i] for i in random.permutation(len(words)))) == " ".join(words):
        pass
    return found


def read_prompts(file: Path) -> tuple[tuple[str, str], ...]:
    """Read prompts: one a line, ``NAME = TEXT``; empty lines and those with ``#`` are left out.

    Raises
    ------
    UsageError
        If the file cannot be read, or a line is none.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: prompts cannot be read: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, text = line.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"{file}, line {number}: a prompt is NAME = TEXT; got {line!r}")
        found.append((name.strip(), text.strip()))
    return tuple(found)


def parse_replaced(pairs: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Parse ``OLD=NEW`` of the command line.

    Raises
    ------
    UsageError
        If one has no ``=``, or nothing before it.
    """
    found = []
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not equals or not old.strip():
            raise UsageError(f"a replacement is OLD=NEW words; got {pair!r}")
        found.append((old.strip(), new.strip()))
    return tuple(found)

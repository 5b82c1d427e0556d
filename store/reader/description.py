"""What an episode is, from its description alone: names, axes, cameras, keyframes."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..commits.part import Part
from ..errors import SelectionError
from ..format.axes import VISION
from ..format.episode import EpisodeSpec, PhaseSpec
from ..format.geometry import Geometry
from ..format.naming import find_tokens, not_found
from .selection import check_index


class EpisodeDescription:
    """Identity and shape of a committed episode; no array is read."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def __repr__(self) -> str:
        return f"<episode {self.name!r} of run {self.run}: {len(self.frames)} keyframes>"

    @property
    def spec(self) -> EpisodeSpec:
        """Description: axes, geometry, keyframes."""
        return self.part.spec

    @property
    def run(self) -> str:
        """Run id."""
        return self.part.commit.run

    @property
    def id(self) -> str:
        """Episode id, a safe directory name."""
        return self.part.commit.episode

    @property
    def name(self) -> str:
        """The dataset's own name."""
        return self.spec.name

    @property
    def outcome(self) -> str:
        """``success``, ``failure`` or ``unknown``."""
        return self.spec.outcome

    @property
    def date(self) -> str | None:
        """Recording date, if known."""
        return self.spec.date

    @property
    def instruction(self) -> str:
        """The prompt."""
        return self.spec.instruction

    @cached_property
    def policy(self) -> str:
        """Name of the policy, from the run's id."""
        return self.run.rsplit("-", 1)[0]

    @cached_property
    def frames(self) -> NDArray[np.int32]:
        """Frame index of each keyframe."""
        return np.asarray(self.spec.frames, np.int32)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names in the policy's order."""
        return tuple(self.spec.geometry)

    @property
    def phases(self) -> tuple[str, ...]:
        """Phases with attention."""
        return tuple(dict.fromkeys(p.phase for p in self.spec.phases.values()))

    def phase(self, phase: str, camera: str | None = None) -> PhaseSpec:
        """Return a phase's shape and axes.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...; also the path of one camera's encoder,
            ``vision/hand_camera``.
        camera
            In phase ``vision``: whose encoder. Other phases have all cameras.

        Returns
        -------
        Layers, heads, steps, query groups, and the token layout of both axes.

        Raises
        ------
        SelectionError
            If there is no such phase, or phase ``vision`` of several cameras needs one.
        """
        if (found := self.spec.phases.get(phase)) is not None:
            return found
        encoders = {p.camera: p for p in self.spec.phases.values() if p.camera is not None}
        if phase == VISION and encoders:
            if camera is None and len(encoders) > 1:
                raise SelectionError(
                    f"phase {phase} is of one camera: name one of {', '.join(map(str, encoders))}"
                )
            camera = camera or next(iter(encoders))
            if camera in encoders:
                return encoders[camera]
            raise SelectionError(
                f"no camera {camera!r} in phase {phase}; there are: {', '.join(map(str, encoders))}"
            )
        hint = "; `attnstore ingest ... --vision` stores it" if phase == VISION else ""
        raise SelectionError(f"no phase {phase!r}; there are: {', '.join(self.phases)}{hint}")

    def layers(self, phase: str) -> int:
        """Return the number of layers of a phase.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...

        Returns
        -------
        At least 1.

        Raises
        ------
        SelectionError
            If there is no such phase.
        """
        return self._any(phase).layers

    def heads(self, phase: str) -> int:
        """Return the number of heads of a layer of a phase.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...

        Returns
        -------
        At least 1.

        Raises
        ------
        SelectionError
            If there is no such phase.
        """
        return self._any(phase).heads

    def steps(self, phase: str) -> int | None:
        """Return the number of steps of a phase.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...

        Returns
        -------
        Denoising steps, of ``decode`` the most tokens of any keyframe; None in a one-pass phase.

        Raises
        ------
        SelectionError
            If there is no such phase.
        """
        return self._any(phase).steps

    def query_groups(self, phase: str) -> tuple[str, ...]:
        """Return the query groups with statistics and overview maps.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...

        Returns
        -------
        Their names; the first is the default.

        Raises
        ------
        SelectionError
            If there is no such phase.
        """
        return self._any(phase).query_groups

    def has_query(self, phase: str, group: str) -> bool:
        """Whether a phase's queries have a group.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...
        group
            Its name; see `attnstore.store.format.naming`.

        Returns
        -------
        Whether any token is in it.
        """
        return group in self.query_groups(phase) or bool(
            len(find_tokens(self._any(phase).query, group))
        )

    def check_query(self, phase: str, group: str) -> None:
        """Check that a phase's queries have a group.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...
        group
            Its name; see `attnstore.store.format.naming`.

        Raises
        ------
        SelectionError
            If they have not; the message says what there is.
        """
        if not self.has_query(phase, group):
            where = f"{self.name}: {phase} query"
            raise not_found(self._any(phase).query, group, where)

    def geometry(self, camera: str) -> Geometry:
        """Return the transform between a camera's pixels and its patches.

        Parameters
        ----------
        camera
            One of `cameras`.

        Returns
        -------
        The geometry, with the coverage of each patch.

        Raises
        ------
        SelectionError
            If there is no such camera.
        """
        self._check_camera(camera)
        return self.spec.geometry[camera]

    def keyframe_of(self, frame: int) -> int:
        """Return the keyframe at a frame index of the recording.

        Parameters
        ----------
        frame
            Frame index, from 0.

        Returns
        -------
        Keyframe, from 0.

        Raises
        ------
        SelectionError
            If that frame is no keyframe; the message names the nearest ones.
        """
        at = np.flatnonzero(self.frames == frame)
        if not len(at):
            near = self.frames[np.argsort(np.abs(self.frames - frame))[:2]]
            raise SelectionError(
                f"frame {frame} is no keyframe; the nearest are {sorted(near.tolist())}"
            )
        return int(at[0])

    def _check_camera(self, camera: str) -> None:
        if camera not in self.spec.geometry:
            raise SelectionError(f"no camera {camera!r}; there are: {', '.join(self.cameras)}")

    def _any(self, phase: str) -> PhaseSpec:
        """Return a phase; of several cameras' encoders one, as the policy has one for all."""
        found = [p for p in self.spec.phases.values() if p.phase == phase]
        return found[0] if found else self.phase(phase)

    def _step(self, phase: str, step: int) -> int:
        steps = self.steps(phase)
        return 0 if steps is None else check_index(step, steps, f"{phase} step")

"""The rules that every answer shares: the step of a phase, the active head, the masks that count.

Each is one function, and SQL that says the same. A question that names no step, asks for the active
head, or for objects of which several masks are stored, is answered by these: in Python, in
``attnstore sql``, in the service and in a picture alike.
`create_macros` makes the SQL of a connection to a catalog:

- ``stands_for_phase(run, phase, step)``: whether a row is of the step that stands for its phase in
  its run; view ``standing_steps`` has them all.
- ``active_head(head, variance)``: an aggregate, the head of the largest variance; NULL if no head
  has a value.
- ``counting_object_parts()``: the parts whose masks and numbers count.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import duckdb
import numpy as np
from numpy.typing import NDArray

from .commits import Commit
from .errors import UsageError
from .format.generated import DECODE
from .format.statistics import grid_variance, image_variance

Active = Literal["image", "lab"]
"""By which variance a head is active: over the patches that show image, weighted by their coverage,
or, as the lab did, over the whole grid, letterbox included."""
ACTIVE: tuple[Active, ...] = get_args(Active)
VARIANCES: dict[Active, str] = {"image": "variance", "lab": "grid_variance"}
"""Column of ``head_stats`` that has it, of mean maps."""
NO_HEAD = -1
"""Instead of a head's number, where no head has a map."""
Place = tuple[str, str, str]
"""(episode, camera, source)"""

_STANDING = f"if(phase = '{DECODE}', 0, max(step))"
MACROS = (
    "CREATE VIEW standing_steps AS SELECT run, phase, "
    f"{_STANDING} AS step FROM episode_stats GROUP BY run, phase",
    # Names of parameters that no column has: they are replaced in the query within, too.
    "CREATE MACRO stands_for_phase(of_run, of_phase, of_step) AS (of_run, of_phase, "
    "coalesce(of_step, -1)) IN (SELECT (run, phase, coalesce(step, -1)) FROM standing_steps)",
    # Of heads with the same variance the first, as NumPy's argmax has it.
    "CREATE MACRO active_head(of_head, its_variance) AS arg_max(of_head, row(its_variance, "
    "-of_head)) FILTER (isfinite(its_variance))",
    "CREATE MACRO counting_object_parts() AS TABLE SELECT run, episode, part, camera, source "
    "FROM commits WHERE starts_with(part, 'objects-') QUALIFY row_number() OVER (PARTITION BY "
    "run, episode, camera, source ORDER BY committed DESC, part DESC) = 1",
)


def create_macros(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the rules' SQL on a connection that has the catalog's tables as views."""
    for statement in MACROS:
        connection.execute(statement)


def standing_step(phase: str, steps: int | None) -> int | None:
    """Return the step that stands for a phase where none is asked for.

    The last denoising step, whose actions are carried out; of ``decode`` the first, which is the one
    that every keyframe has, however long its text.

    Parameters
    ----------
    steps
        How many the phase has in its run; None in a one-pass phase.

    Examples
    --------
    >>> standing_step("suffix", 10), standing_step("decode", 25), standing_step("prefix", None)
    (9, 0, None)
    """
    if steps is None:
        return None
    return 0 if phase == DECODE else steps - 1


def check_active(active: str) -> Active:
    """Return the name of a rule for the active head.

    Raises
    ------
    UsageError
        If there is no such rule.
    """
    if active not in ACTIVE:
        raise UsageError(f"the active head is chosen by {' or '.join(ACTIVE)}; got {active!r}")
    return active


def map_variance(
    maps: NDArray[np.floating[Any]], coverage: NDArray[np.floating[Any]], active: Active = "image"
) -> NDArray[np.float64]:
    """Return by how much each map varies, which is what makes a head active.

    Parameters
    ----------
    maps
        (..., row, col), just as they are shown: of the group or word, reduced over its tokens.
    coverage
        Share of each patch that shows image, (row, col).
    active
        See `Active`.

    Returns
    -------
    (...) float64; NaN where there is no map.
    """
    if active == "lab":
        return np.asarray(grid_variance(maps), np.float64)
    return np.asarray(image_variance(maps, coverage), np.float64)


def active_heads(variance: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """Return the head whose map varies most, over the last axis.

    Of equal ones the first; a head without a value is none. `NO_HEAD` where no head has one: a
    camera that a keyframe lacks has no active head, and above all not head 0.

    Parameters
    ----------
    variance
        (..., head), from `map_variance` or ``head_stats``.

    Examples
    --------
    >>> active_heads(np.array([[0.1, 0.3], [0.2, np.nan], [np.nan, np.nan]])).tolist()
    [1, 0, -1]
    """
    known = np.isfinite(variance)
    best = np.where(known, variance, -np.inf).argmax(-1)
    return np.asarray(np.where(known.any(-1), best, NO_HEAD), np.intp)


def mean_over_keyframes(values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Average over the first axis those values that are there; NaN where none is.

    Rounded as ``episode_stats`` rounds its means, so that both choose the same head.
    """
    known = ~np.isnan(values)
    count = known.sum(0)
    total = np.where(known, values, 0).sum(0, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def describe_active(active: Active = "image") -> str:
    """Say in words what makes a head the active one, for captions: "most active by ...".

    Examples
    --------
    >>> describe_active()
    'variance on the image'
    """
    return "variance on the image" if active == "image" else "variance, padding included (lab)"


def counting_object_parts(commits: Iterable[Commit]) -> dict[Place, Commit]:
    """Return the object parts whose masks and numbers count: one per episode, camera and source.

    The one that was committed last. Parts of other options (threshold, within, tier) stay beside it;
    averaging over them would count keyframes twice.

    Parameters
    ----------
    commits
        Of one run; what are no object parts are left out.
    """
    latest: dict[Place, Commit] = {}
    for commit in commits:
        if commit.part.startswith("objects-"):
            camera, source = (str(commit.summary.get(name)) for name in ("camera", "source"))
            place = commit.episode, camera, source
            before = latest.get(place)
            if before is None or (commit.created, commit.part) > (before.created, before.part):
                latest[place] = commit
    return latest

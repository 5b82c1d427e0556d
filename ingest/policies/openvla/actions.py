"""What action tokens stand for: bins of the normalised range, and numbers in the robot's units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError
from attnstore.store.format.tokens import Token

from ..base import ActionValue, Generated, PolicyError
from ..prompt import token_text

QUANTILES = ("q01", "q99")
"""Bounds of the normalised range in the statistics of OpenVLA's data sets."""


def choose_statistics(
    statistics: Mapping[str, Any], key: str | None, bounds: tuple[str, str] = QUANTILES
) -> str:
    """Return whose statistics un-normalise the actions.

    Parameters
    ----------
    bounds
        Names of the bounds that it must have.

    Raises
    ------
    UsageError
        If there are several and none is named, or it is not among them.
    PolicyError
        If its entry does not say the bounds of actions.
    """
    names = ", ".join(sorted(statistics))
    if key is None and len(statistics) > 1:
        raise UsageError(
            f"the checkpoint has statistics of {len(statistics)} data sets: say whose actions these are "
            f"with --policy-option unnorm_key=NAME; they are {names}"
        )
    chosen = next(iter(statistics)) if key is None else key
    if chosen not in statistics:
        raise UsageError(f"unnorm_key={chosen}: the checkpoint has statistics of {names}")
    action = statistics[chosen].get("action", {}) if isinstance(statistics[chosen], Mapping) else {}
    if not all(isinstance(action.get(b), Sequence) and action[b] for b in bounds):
        raise PolicyError(f"statistics of {chosen}: no bounds {' and '.join(bounds)} of actions")
    return chosen


def action_dof(statistics: Mapping[str, Any], key: str) -> int:
    """Return how many numbers, and so tokens, an action has."""
    return len(statistics[key]["action"]["q01"])


def token_bins(ids: NDArray[np.int64], vocabulary: int, bins: int) -> NDArray[np.int64]:
    """Return the bin of each token, as OpenVLA takes them: from the vocabulary's end, clipped.

    Parameters
    ----------
    vocabulary
        Tokens without those that pad the embedding.

    Examples
    --------
    >>> token_bins(np.array([31999, 31744, 31745, 2]), 32000, 255).tolist()
    [0, 254, 254, 254]
    """
    return np.clip(vocabulary - ids - 1, 0, bins - 1)


def written(
    tokenizer: Any,
    sequence: Sequence[int],
    count: int,
    executed: NDArray[np.float64],
    vocabulary: int,
    centers: NDArray[np.float64],
) -> tuple[Generated, NDArray[np.float32]]:
    """Say what was generated, and the action in normalised units.

    Parameters
    ----------
    sequence
        Prompt and generated token ids.
    count
        How many of them were generated. If fewer than an action has numbers, because an end marker
        came, OpenVLA takes its first numbers from the prompt's last tokens.
    executed
        The action in the robot's units, as ``predict_action`` returned it, (action_dof,).
    centers
        Of the bins.

    Returns
    -------
    The tokens, whose text is the number that they stand for, and the normalised action,
    (action_dof,).
    """
    ids = np.asarray(sequence[-len(executed) :], np.int64)
    bins = token_bins(ids, vocabulary, len(centers))
    normalised = centers[bins]
    # Clipping makes a number of a token that is none, and the robot moves by it.
    genuine = (ids < vocabulary) & (ids >= vocabulary - len(centers) - 1)
    texts = [
        f"{normalised[i]:.4f}" if genuine[i] else token_text(tokenizer, int(ids[i]))
        for i in range(len(ids))
    ]
    own = range(len(ids) - count, len(ids))
    values = tuple(ActionValue(int(bins[i]), float(normalised[i]), float(executed[i])) for i in own)
    tokens = tuple(Token(int(ids[i]), texts[i]) for i in own)
    said = Generated(tokens, " ".join(t.text for t in tokens), values)
    return said, normalised.astype(np.float32)

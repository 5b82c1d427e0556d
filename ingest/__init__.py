"""Running a policy once per keyframe and writing its attention into a store.

Nothing here imports torch or transformers before a policy is loaded.
"""

from __future__ import annotations

from .capture import Record, Session, capture
from .policies.base import Batch, Observation, Policy, PolicyError
from .policies.registry import load_policy

__all__ = [
    "Batch",
    "Observation",
    "Policy",
    "PolicyError",
    "Record",
    "Session",
    "capture",
    "load_policy",
]

"""Recording a policy while it acts: what it saw and did, in journals; attention from them, at once or later."""

from .episode import Episode
from .recorder import Recorder, record

__all__ = ["Episode", "Recorder", "record"]

"""Recording a policy while it acts: what it saw and did, in journals; attention from them, at once or later."""

from .recorder import Episode, Recorder, record

__all__ = ["Episode", "Recorder", "record"]

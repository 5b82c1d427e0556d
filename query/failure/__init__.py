"""Whether a failure is seen coming: scores of what was seen up to a moment, and when they raise an alarm."""

"""Interventions: the policy run again on stored keyframes, with something taken away."""

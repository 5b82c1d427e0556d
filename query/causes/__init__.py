"""What interventions did: fidelity of maps, and effects on the action."""

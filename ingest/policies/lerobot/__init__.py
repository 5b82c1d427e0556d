"""Policies of LeRobot: Pi0, Pi0.5, SmolVLA, ACT."""

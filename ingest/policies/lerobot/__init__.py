"""Policies of LeRobot: Pi0, Pi0.5, Pi0-FAST, SmolVLA, ACT."""

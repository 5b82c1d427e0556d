"""LeRobot's data sets, version 2 and 3."""

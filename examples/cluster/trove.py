"""Shards as tasks of datatrove: ``python trove.py slurm|local ingest droid STORE ...``."""

import sys

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

TASKS = 3


class Attnstore(PipelineStep):
    """Run a command of attnstore on one shard."""

    name = "attnstore"

    def __init__(self, *arguments: str) -> None:
        super().__init__()
        self.arguments = arguments

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        """Do the share of a rank."""
        import subprocess  # here: what this module imports is not in what the job unpickles

        shard = ["--shard", f"{rank}/{world_size}"]
        subprocess.run(["attnstore", *self.arguments, *shard], check=True)


if __name__ == "__main__":
    where, *arguments = sys.argv[1:]
    shared = {"pipeline": [Attnstore(*arguments)], "tasks": TASKS, "logging_dir": "trove-logs"}
    if where == "local":
        LocalPipelineExecutor(**shared, workers=2).run()
    else:
        SlurmPipelineExecutor(**shared, time="01:00:00", partition="all", mem_per_cpu_gb=1).run()

"""Dask's workers as jobs of SLURM (dask-jobqueue): ``python jobqueue.py ingest droid STORE ...``."""

import subprocess
import sys

from dask_jobqueue import SLURMCluster

if __name__ == "__main__":
    # One process and one thread a job; jobs ask for more with job_extra_directives=["--gpus=1"].
    with SLURMCluster(cores=1, processes=1, memory="2GB", walltime="01:00:00") as cluster:
        cluster.scale(jobs=2)
        command = ["attnstore", *sys.argv[1:], "--scheduler", cluster.scheduler_address]
        sys.exit(subprocess.run(command, check=False).returncode)

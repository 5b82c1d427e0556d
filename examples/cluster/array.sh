#!/bin/bash
# An array job of SLURM; each task does its share of the episodes:
#   sbatch --array=0-7 --gpus-per-task=1 --time=4:00:00 array.sh ingest droid STORE EPISODES --policy ...
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120
# srun, since SLURM sends its signals to what srun started
srun attnstore "$@" --shard auto
code=$?
# 75: stopped by SIGUSR1, two minutes before the time is up, or by SIGTERM; what is committed is kept
[ $code = 75 ] && scontrol requeue "$SLURM_JOB_ID"
exit $code

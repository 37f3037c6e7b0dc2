#!/bin/bash
# Workers as a job array of LSF. Change what differs for you, and submit: bsub < lsf.sh
# Of 40 jobs, 10 run at a time; each takes the place of one that its time limit has ended. When the
# queue is empty and no worker holds a task of it, the rest end at once.
#BSUB -J "task-host[1-40]%10"
#BSUB -n 8
#BSUB -R "span[hosts=1]"
#BSUB -W 4:00
# SIGTERM two minutes before the time limit.
#BSUB -wa TERM -wt 2
#BSUB -o task-host.%J.%I.log
set -euo pipefail
export HOST_QUEUE=${HOST_QUEUE:-fq:///lab/queue} HOST_BUCKET=${HOST_BUCKET:-/lab/data}
# The cores that LSF has given.
export HOST_PARALLEL=${LSB_DJOB_NUMPROC:-1}
export HOST_CACHE_DIR=${HOST_CACHE_DIR:-${TMPDIR:-/tmp}/task-host-$USER}
# Running tasks have this time to finish; then they are released for other workers.
export HOST_GRACE=90s HOST_EXIT_WHEN_EMPTY=true HOST_EXIT_WHEN_IDLE=60s HOST_EXIT_ZERO=true
# Reports and logs name the job.
export HOST_FLEET=${LSB_JOBNAME%%\[*} HOST_WORKER=$LSB_JOBID.$LSB_JOBINDEX HOST_WORKER_INDEX=$((LSB_JOBINDEX - 1))
# exec: the signal is for host itself. Stop a worker with `bkill -s TERM`.
exec host run

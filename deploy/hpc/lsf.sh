#!/bin/bash
# Workers as a job array of LSF. Adapt the settings, and submit: bsub < lsf.sh
#
# Of 40 jobs, 10 run at a time. Each replaces a job that its time limit has ended. When the queue is
# empty and no worker holds a task, the remaining jobs end at once.
#BSUB -J "task-host[1-40]%10"
#BSUB -n 8
#BSUB -R "span[hosts=1]"
#BSUB -W 4:00
# Sends SIGTERM two minutes before the time limit.
#BSUB -wa TERM -wt 2
#BSUB -o task-host.%J.%I.log
set -euo pipefail
export HOST_QUEUE=${HOST_QUEUE:-fq:///lab/queue} HOST_BUCKET=${HOST_BUCKET:-/lab/data}
# The number of cores that LSF has allocated.
export HOST_PARALLEL=${LSB_DJOB_NUMPROC:-1}
export HOST_CACHE_DIR=${HOST_CACHE_DIR:-${TMPDIR:-/tmp}/task-host-$USER}
# Running tasks have this time to finish. Then the host releases them for other workers.
export HOST_GRACE=90s HOST_EXIT_WHEN_EMPTY=true HOST_EXIT_WHEN_IDLE=60s HOST_EXIT_ZERO=true
# Reports and logs name the job.
export HOST_FLEET=${LSB_JOBNAME%%\[*} HOST_WORKER=$LSB_JOBID.$LSB_JOBINDEX HOST_WORKER_INDEX=$((LSB_JOBINDEX - 1))
# With exec, signals reach host itself. Stop a worker with `bkill -s TERM`.
exec host run

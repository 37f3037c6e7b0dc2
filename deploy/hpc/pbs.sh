#!/bin/bash
# Workers as a job array of PBS Pro or OpenPBS. Adapt the settings, and submit: qsub pbs.sh
#
# Of 40 jobs, 10 run at a time. Each replaces a job that its time limit has ended. When the queue is
# empty and no worker holds a task, the remaining jobs end at once.
#PBS -N task-host
#PBS -J 1-40%10
#PBS -l select=1:ncpus=8:mem=12gb
#PBS -l walltime=4:00:00
#PBS -j oe
set -euo pipefail
cd "${PBS_O_WORKDIR:-.}"
export HOST_QUEUE=${HOST_QUEUE:-fq:///lab/queue} HOST_BUCKET=${HOST_BUCKET:-/lab/data}
# The number of cores that PBS has allocated.
export HOST_PARALLEL=${NCPUS:-1}
export HOST_CACHE_DIR=${HOST_CACHE_DIR:-${TMPDIR:-/tmp}/task-host-$USER}
# PBS sends no signal before the time limit. Therefore the host stops by itself, and its running
# tasks have ten minutes to finish. Then it releases them for other workers.
export HOST_FOR=3h45m HOST_GRACE=10m HOST_EXIT_WHEN_EMPTY=true HOST_EXIT_WHEN_IDLE=60s HOST_EXIT_ZERO=true
# Reports and logs name the job.
export HOST_FLEET=$PBS_JOBNAME HOST_WORKER=$PBS_JOBID HOST_WORKER_INDEX=$((PBS_ARRAY_INDEX - 1))
# With exec, signals reach host itself.
exec host run

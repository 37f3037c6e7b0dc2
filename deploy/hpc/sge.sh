#!/bin/bash
# Workers as an array job of Grid Engine. Adapt the settings, and submit: qsub sge.sh
#
# Of 40 array tasks, 10 run at a time. Each replaces an array task that its time limit has ended.
# When the queue is empty and no worker holds a task, the remaining array tasks end at once.
#$ -N task-host
#$ -S /bin/bash
#$ -cwd -j y
#$ -t 1-40
#$ -tc 10
#$ -pe smp 8
# h_vmem is not set, because a host reserves 17 GiB of addresses for each slot, and uses little of
# them.
#$ -l h_rt=4:00:00
# Sends SIGUSR1 two minutes before the time limit and, with -notify, SIGUSR2 before a qdel.
#$ -l s_rt=3:58:00
#$ -notify
set -euo pipefail
export HOST_QUEUE=${HOST_QUEUE:-fq:///lab/queue} HOST_BUCKET=${HOST_BUCKET:-/lab/data}
# The number of cores that Grid Engine has allocated.
export HOST_PARALLEL=${NSLOTS:-1}
export HOST_CACHE_DIR=${HOST_CACHE_DIR:-${TMPDIR:-/tmp}/task-host-$USER}
# Running tasks have this time to finish. Then the host releases them for other workers.
export HOST_GRACE=90s HOST_EXIT_WHEN_EMPTY=true HOST_EXIT_WHEN_IDLE=60s HOST_EXIT_ZERO=true
# Reports and logs name the job.
export HOST_FLEET=$JOB_NAME HOST_WORKER=$JOB_ID.$SGE_TASK_ID HOST_WORKER_INDEX=$((SGE_TASK_ID - 1))
# Grid Engine sends its signals to all processes of the job. The host ignores them, and gets SIGTERM
# instead.
(trap '' USR1 USR2; exec host run) &
trap 'kill -TERM $!' USR1 USR2 TERM
# A signal interrupts `wait`, but does not end host.
while kill -0 $! 2> /dev/null; do code=0; wait $! || code=$?; done
exit "$code"

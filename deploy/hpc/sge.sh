#!/bin/bash
# Workers as an array job of Grid Engine. Change what differs for you, and submit: qsub sge.sh
# Of 40 tasks of the array, 10 run at a time; each takes the place of one that its time limit has ended.
# When the queue is empty and no worker holds a task of it, the rest end at once.
#$ -N task-host
#$ -S /bin/bash
#$ -cwd -j y
#$ -t 1-40
#$ -tc 10
#$ -pe smp 8
# Not h_vmem: a host reserves 17 GiB of addresses for each slot, and uses little of them.
#$ -l h_rt=4:00:00
# SIGUSR1 two minutes before the time limit; with -notify, SIGUSR2 before a qdel.
#$ -l s_rt=3:58:00
#$ -notify
set -euo pipefail
export HOST_QUEUE=${HOST_QUEUE:-fq:///lab/queue} HOST_BUCKET=${HOST_BUCKET:-/lab/data}
# The cores that Grid Engine has given.
export HOST_PARALLEL=${NSLOTS:-1}
export HOST_CACHE_DIR=${HOST_CACHE_DIR:-${TMPDIR:-/tmp}/task-host-$USER}
# Running tasks have this time to finish; then they are released for other workers.
export HOST_GRACE=90s HOST_EXIT_WHEN_EMPTY=true HOST_EXIT_WHEN_IDLE=60s HOST_EXIT_ZERO=true
# Reports and logs name the job.
export HOST_FLEET=$JOB_NAME HOST_WORKER=$JOB_ID.$SGE_TASK_ID HOST_WORKER_INDEX=$((SGE_TASK_ID - 1))
# Grid Engine sends its signals to all processes of the job: host ignores them, and gets SIGTERM.
(trap '' USR1 USR2; exec host run) &
trap 'kill -TERM $!' USR1 USR2 TERM
# A signal ends `wait`, not host.
while kill -0 $! 2> /dev/null; do code=0; wait $! || code=$?; done
exit "$code"

"""AWS Batch, as moto has it, with what moto leaves out: jobs wait while their queue has no vCPUs
left, write logs as they run, drain after SIGTERM, and end with their exit codes. Containers are real.

    python batch.py PORT, with DOCKER_HOST
"""

import sys
import threading
import time

from moto.batch import models
from moto.batch.utils import JobStatus
from moto.moto_api import state_manager
from moto.server import main

# Seconds from SIGTERM to SIGKILL.
STOP_TIME = 30
# How often a waiting job checks for free vCPUs, in seconds.
POLL = 0.1

placing = threading.Lock()


def vcpus(job):
    return job.job_definition._get_resource_requirement("vcpus")


def vcpus_for_tests(environment):
    resources = environment.compute_resources
    used = resources.get("tags", {}).get("vCPUs used by others", "0")
    return int(resources["maxvCpus"]) - int(used)


def has_started(job):
    return job._status in (JobStatus.STARTING.value, JobStatus.RUNNING.value)


def takes_room(job):
    """Moves a job to STARTING if its queue has the vCPUs for it."""
    with placing:
        room = sum(vcpus_for_tests(it) for it in job.job_queue.environments)
        used = sum(vcpus(it) for it in job.job_queue.jobs if has_started(it))
        if used + vcpus(job) <= room:
            job.status = JobStatus.STARTING.value
        return has_started(job)


def run(job):
    """Runs a job from its submission to its end."""
    job.status = JobStatus.RUNNABLE.value
    while not takes_room(job):
        if job.stop:
            job._mark_stopped(success=False)
            return
        time.sleep(POLL)
    try:
        job.exit_code = run_container(job)
        job._mark_stopped(success=job.exit_code == 0 and not job.stop)
    except Exception as error:
        job.job_stopped_reason = job.job_stopped_reason or str(error)
        job._mark_stopped(success=False)


def run_container(job):
    container = job.job_definition.container_properties
    variables = {it["name"]: it["value"] for it in job._get_container_property("environment", [])}
    if "index" in job.array_properties:
        variables["AWS_BATCH_JOB_ARRAY_INDEX"] = str(job.array_properties["index"])
    running = job.docker_client.containers.run(
        container["image"],
        container.get("command"),
        environment=variables,
        labels={"batch.name": job.job_name},
        network_mode="host",
        detach=True,
    )
    job.container = running
    try:
        job.job_started_at = models.datetime.now()
        job.log_stream_name = job._stream_name
        job._log_backend.ensure_log_group(job._log_group)
        job._log_backend.ensure_log_stream(job._log_group, job.log_stream_name)
        job.status = JobStatus.RUNNING.value
        if job.stop:
            drain(running)
        copy_logs(job, running)
        return running.wait()["StatusCode"]
    finally:
        running.remove(force=True)


def copy_logs(job, container):
    """Copies lines as they come, until the container ends."""
    rest = b""
    for chunk in container.logs(stream=True, follow=True):
        *lines, rest = (rest + chunk).split(b"\n")
        put_lines(job, lines)
    put_lines(job, [rest])


def put_lines(job, lines):
    now = int(time.time() * 1000)
    lines = [line.decode(errors="replace") for line in lines if line]
    events = [{"timestamp": now, "message": line} for line in lines]
    if events:
        job._log_backend.put_log_events(job._log_group, job.log_stream_name, events)


def drain(container):
    def kill(signal):
        try:
            container.kill(signal)
        except Exception:
            pass  # The container has ended.

    kill("SIGTERM")
    timer = threading.Timer(STOP_TIME, kill, ["SIGKILL"])
    timer.daemon = True
    timer.start()


def terminate(job, reason):
    for child in job._child_jobs or []:
        terminate(child, reason)
    if job._child_jobs or job.job_stopped or job.stop:
        return
    job.stop = True
    job.job_stopped_reason = reason
    if job._status == JobStatus.RUNNING.value:
        drain(job.container)


def cancel_job(backend, job_id, reason):
    job = backend.get_job_by_id(job_id)
    for each in (job._child_jobs or [job]) if job else []:
        if JobStatus.is_job_before_starting(each._status):
            terminate(each, reason)


def container_details(job, moto=models.Job._container_details):
    details = moto(job)
    # AWS returns whole numbers here.
    details["vcpus"] = int(details["vcpus"])
    return details


# Only real events change the state of a job, not moto's timers.
state_manager.set_transition("batch::job", {"progression": "manual", "times": sys.maxsize})
models.Job.run = run
models.Job.terminate = terminate
models.Job._container_details = container_details
models.BatchBackend.cancel_job = cancel_job
# Tests need neither a network nor roles for machines that do not exist.
models.BatchBackend._validate_compute_resources = lambda *_: None

main(["-H", "127.0.0.1", "-p", sys.argv[1]])

"""A stand-in for kubectl and a cluster of one node: what `host fleet` uses of them.

A manifest is checked strictly against the schema of Kubernetes. Objects are in the file `objects.json` of
the directory STAND_IN_CLUSTER. A controller, which ends when it has nothing left to do, runs each pod
as a process of this machine: `host` on the PATH stands for the image. STAND_IN_CPUS is the size of the
node. The command line, the fields of objects and the order of events are those of Kubernetes 1.33.
"""

import argparse
import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

VERSION = "1.37"
IMAGE = "ghcr.io/task-host/task-host:"
JOB = "batch.kubernetes.io/job-name"
INDEX = "batch.kubernetes.io/job-completion-index"
ENDED = ("Succeeded", "Failed")
# How long a failed worker is not replaced, in seconds.
BACK_OFF = 10
state = pathlib.Path(os.environ["STAND_IN_CLUSTER"])


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def suffix():
    return "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))


def fail(problem):
    print(problem, file=sys.stderr)
    sys.exit(1)


@contextlib.contextmanager
def cluster():
    """The objects, which nobody else sees or changes meanwhile."""
    file = state / "objects.json"
    with open(state / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        objects = json.loads(file.read_text()) if file.exists() else {"Job": {}, "Pod": {}, "Event": {}}
        yield objects
        new = state / "objects.new"
        new.write_text(json.dumps(objects))
        new.rename(file)


def selects(text, labels):
    """Whether labels fit a selector such as `a=b,c`."""
    pairs = [term.partition("=") for term in text.split(",")]
    return all(name in labels and (not equals or labels[name] == value) for name, equals, value in pairs)


def field(text, thing):
    for path, value in (term.split("=", 1) for term in text.split(",")):
        found = thing
        for name in path.split("."):
            found = found.get(name, {})
        if found != value:
            return False
    return True


def chosen(objects, kinds, args):
    return [thing for kind in kinds for thing in objects[kind].values()
            if thing["metadata"]["namespace"] == args.namespace
            and (not args.selector or selects(args.selector, thing["metadata"].get("labels", {})))
            and (not args.field_selector or field(args.field_selector, thing))]


def expanded(value, environment):
    """The value of a variable: `$$` is `$`, and `$(NAME)` is the value of a variable before it."""
    def replace(match):
        return "$" if match[0] == "$$" else environment.get(match[1], match[0])
    return re.sub(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)", replace, value)


KINDS = {"jobs": "Job", "pods": "Pod", "events": "Event"}


def create(args):
    import kubernetes_validate
    import yaml

    created = []
    for job in yaml.safe_load_all(sys.stdin.read()):
        try:
            kubernetes_validate.validate(job, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            fail(f"error: error validating STDIN: {error.message}")
        if job["kind"] != "Job":
            fail(f"the stand-in does not know {job['kind']}")
        metadata = job["metadata"]
        metadata.update(namespace=args.namespace, uid=suffix(), creationTimestamp=now())
        job["status"] = {}
        created.append(job)
    with cluster() as objects:
        for job in created:
            name = job["metadata"]["name"]
            if name in objects["Job"]:
                fail(f'Error from server (AlreadyExists): error when creating "STDIN": jobs.batch "{name}" already exists')
            if args.dry_run != "server":
                objects["Job"][name] = job
            print("job.batch/" + name)
    if args.dry_run != "server":
        control()


def get(args):
    with cluster() as objects:
        items = chosen(objects, [KINDS[kind] for kind in args.kinds.split(",")], args)
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def delete(args):
    with cluster() as objects:
        for thing in chosen(objects, [KINDS[args.kinds]], args):
            metadata = thing["metadata"]
            print(f'{args.kinds[:-1]} "{metadata["name"]}" deleted')
            if thing["kind"] == "Job" and args.cascade == "orphan":
                del objects["Job"][metadata["name"]]
            else:
                metadata.setdefault("deletionTimestamp", now())
    control()


def logs(args):
    with cluster() as objects:
        pods = chosen(objects, ["Pod"], args)
    shown = {}
    while True:
        with cluster() as objects:
            alive = [pod for pod in pods
                     if objects["Pod"].get(pod["metadata"]["name"], pod)["status"]["phase"] not in ENDED
                     and pod["metadata"]["name"] in objects["Pod"]]
        for name in sorted(pod["metadata"]["name"] for pod in pods):
            log = state / "logs" / name
            lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
            first = shown.get(name, 0 if args.tail < 0 else max(0, len(lines) - args.tail))
            for line in lines[first:]:
                if line.endswith(b"\n"):
                    sys.stdout.buffer.write(f"[pod/{name}/{args.container}] ".encode() + line)
                    first += 1
            shown[name] = first
        sys.stdout.flush()
        if not args.follow or not alive:
            return
        time.sleep(0.1)


def control():
    """Starts the controller, if there is none."""
    subprocess.Popen([sys.executable, __file__, "controller"], start_new_session=True,
                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                     stderr=open(state / "controller.log", "a"))


class Controller:
    def __init__(self):
        self.processes = {}
        self.stopped = {}
        self.back_off = {}

    def run(self):
        with open(state / "controller", "w") as lock:
            # Waits for an earlier controller that is about to end.
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                while state.exists():
                    with cluster() as objects:
                        if not self.reconcile(objects):
                            return
                    time.sleep(0.05)
            finally:
                for process in self.processes.values():
                    process.kill()

    def reconcile(self, objects):
        """One step towards what the objects ask for. False if there is nothing left to do."""
        jobs, pods = objects["Job"], objects["Pod"]
        for job in list(jobs.values()):
            self.fill(job, pods)
        for pod in list(pods.values()):
            self.progress(pod, jobs, pods)
        for name, job in list(jobs.items()):
            if "deletionTimestamp" in job["metadata"] and not self.of(job, pods):
                del jobs[name]
        return any("deletionTimestamp" in job["metadata"] or not job["status"].get("conditions")
                   for job in jobs.values()) or any(
            pod["status"]["phase"] not in ENDED or "deletionTimestamp" in pod["metadata"]
            for pod in pods.values())

    def of(self, job, pods):
        return [pod for pod in pods.values() if pod["metadata"]["labels"][JOB] == job["metadata"]["name"]]

    def fill(self, job, pods):
        """Creates the pods that a job lacks, and ends those that it has too many of."""
        metadata, spec, status, own = job["metadata"], job["spec"], job["status"], self.of(job, pods)
        if "deletionTimestamp" in metadata or status.get("conditions"):
            for pod in own:
                if "deletionTimestamp" in metadata or pod["status"]["phase"] not in ENDED:
                    pod["metadata"].setdefault("deletionTimestamp", now())
            return
        lost = {int(index) for index in status.get("failedIndexes", "").split(",") if index}
        waits = {index for index, until in self.back_off.get(metadata["name"], {}).items() if until > time.monotonic()}
        taken = {int(pod["metadata"]["labels"][INDEX]) for pod in own if pod["status"]["phase"] != "Failed"}
        for index in range(spec["completions"]):
            if index in taken or index in lost or index in waits:
                continue
            template = spec["template"]
            name = f"{metadata['name']}-{index}-{suffix()}"
            pods[name] = {
                "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
                "metadata": {
                    "name": name, "namespace": metadata["namespace"], "creationTimestamp": now(),
                    "labels": {**template["metadata"]["labels"], JOB: metadata["name"], INDEX: str(index)},
                    "annotations": template["metadata"].get("annotations", {}),
                    "ownerReferences": [{"kind": "Job", "name": metadata["name"]}],
                },
                "status": {"phase": "Pending"},
            }

    def progress(self, pod, jobs, pods):
        name, status = pod["metadata"]["name"], pod["status"]
        is_going = "deletionTimestamp" in pod["metadata"]
        process = self.processes.get(name)
        if status["phase"] == "Pending" and not is_going:
            self.schedule(pod, pods)
        elif process and process.poll() is not None:
            del self.processes[name]
            code = process.returncode if process.returncode >= 0 else 128 - process.returncode
            reason = "Completed" if code == 0 else "Error"
            status["phase"] = "Succeeded" if code == 0 else "Failed"
            status["containerStatuses"] = [{"name": "host", "state": {"terminated": {
                "exitCode": code, "reason": reason}}}]
            job = jobs.get(pod["metadata"]["labels"][JOB])
            if job:
                self.account(job, pod, code)
        elif process and is_going:
            began = self.stopped.get(name)
            if began is None:
                self.stopped[name] = time.monotonic()
                process.send_signal(signal.SIGTERM)
            elif time.monotonic() - began > pod["spec"]["terminationGracePeriodSeconds"]:
                process.kill()
        if is_going and name not in self.processes:
            del pods[name]

    def schedule(self, pod, pods):
        container, status = pod["spec"]["containers"][0], pod["status"]
        cpus = [int(other["spec"]["containers"][0]["resources"]["requests"]["cpu"])
                for other in pods.values() if other["metadata"]["name"] in self.processes]
        if sum(cpus) + int(container["resources"]["requests"]["cpu"]) > int(os.environ.get("STAND_IN_CPUS", 64)):
            status["conditions"] = [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/1 nodes are available: 1 Insufficient cpu."}]
            return
        status["conditions"] = [{"type": "PodScheduled", "status": "True"}]
        if not container["image"].startswith(IMAGE):
            status["containerStatuses"] = [{"name": "host", "state": {"waiting": {
                "reason": "ErrImagePull", "message": f"{container['image']}: not found"}}}]
            return
        self.processes[pod["metadata"]["name"]] = self.start(pod, container)
        status["phase"] = "Running"
        status["containerStatuses"] = [{"name": "host", "state": {"running": {}}}]

    def start(self, pod, container):
        name = pod["metadata"]["name"]
        root = state / "volumes" / name
        environment = {"PATH": os.environ["PATH"], "HOSTNAME": name, "KUBERNETES_SERVICE_HOST": "127.0.0.1",
                       "JOB_COMPLETION_INDEX": pod["metadata"]["labels"][INDEX]}
        for variable in container["env"]:
            if "value" in variable:
                environment[variable["name"]] = expanded(variable["value"], environment)
            else:
                path = variable["valueFrom"]["fieldRef"]["fieldPath"].split(".")
                environment[variable["name"]] = pod[path[0]][path[1]]
        # An `emptyDir` volume becomes a directory on this machine.
        empty = {volume["name"] for volume in pod["spec"]["volumes"] if "emptyDir" in volume}
        for mount in container["volumeMounts"]:
            if mount["name"] in empty:
                directory = root / mount["name"]
                directory.mkdir(parents=True)
                for variable, value in environment.items():
                    if value == mount["mountPath"]:
                        environment[variable] = str(directory)
            elif not pathlib.Path(mount["mountPath"]).is_dir():
                fail(f"{mount['mountPath']} is not there")
        environment["HOST_LISTEN"] = "127.0.0.1:0"
        for directory in ("logs", "pids"):
            (state / directory).mkdir(exist_ok=True)
        with open(state / "logs" / name, "wb") as log:
            process = subprocess.Popen([shutil.which("host"), *container["args"]], cwd=root, env=environment,
                                       stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        (state / "pids" / name).write_text(str(process.pid))
        return process

    def account(self, job, pod, code):
        """Counts the end of a pod, by the job's podFailurePolicy."""
        status, spec = job["status"], job["spec"]
        index = pod["metadata"]["labels"][INDEX]
        if code == 0:
            status["succeeded"] = status.get("succeeded", 0) + 1
        else:
            status["failed"] = status.get("failed", 0) + 1
            actions = [rule["action"] for rule in spec["podFailurePolicy"]["rules"]
                       if code in rule.get("onExitCodes", {}).get("values", [])]
            action = actions[0] if actions else "Count"
            failures = job["metadata"].setdefault("annotations", {})
            if action == "FailJob":
                status["conditions"] = [{
                    "type": "Failed", "status": "True", "reason": "PodFailurePolicy",
                    "message": f"Container host for pod {pod['metadata']['name']} failed with exit code {code}"}]
            elif action == "Count":
                self.back_off.setdefault(job["metadata"]["name"], {})[int(index)] = time.monotonic() + BACK_OFF
                count = int(failures.get(f"stand-in/failures-{index}", 0)) + 1
                failures[f"stand-in/failures-{index}"] = str(count)
                if count > spec["backoffLimitPerIndex"]:
                    lost = [*filter(None, status.get("failedIndexes", "").split(",")), index]
                    status["failedIndexes"] = ",".join(lost)
        lost = len([*filter(None, status.get("failedIndexes", "").split(","))])
        if status.get("succeeded", 0) + lost == spec["completions"] and not status.get("conditions"):
            status["conditions"] = [
                {"type": "Failed", "status": "True", "reason": "FailedIndexes", "message": "Job has failed indexes"}
                if lost else {"type": "Complete", "status": "True"}]


def main():
    if sys.argv[1:] == ["controller"]:
        return Controller().run()
    # Each verb accepts the flags for the namespace and the context. Other flags are errors.
    place = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    place.add_argument("--namespace", default="default")
    place.add_argument("--context")
    place.add_argument("--selector")
    place.add_argument("--field-selector")
    parser = argparse.ArgumentParser(prog="kubectl", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(run):
        added = verbs.add_parser(run.__name__, parents=[place], allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    added = verb(create)
    added.add_argument("--filename", choices=["-"], required=True)
    added.add_argument("--output", choices=["name"], required=True)
    added.add_argument("--dry-run", choices=["server"])
    added = verb(get)
    added.add_argument("kinds")
    added.add_argument("--output", choices=["json"], required=True)
    added = verb(delete)
    added.add_argument("kinds", choices=["jobs", "pods"])
    added.add_argument("--cascade", choices=["foreground", "orphan"])
    added.add_argument("--wait", choices=["false"], required=True)
    added.add_argument("--ignore-not-found", action="store_true")
    added = verb(logs)
    added.add_argument("--container", required=True)
    added.add_argument("--tail", type=int, default=10)
    added.add_argument("--prefix", action="store_true", required=True)
    added.add_argument("--ignore-errors", action="store_true")
    added.add_argument("--max-log-requests", type=int, default=5)
    added.add_argument("--follow", action="store_true")
    args = parser.parse_args()
    try:
        state.mkdir(exist_ok=True)
    except FileNotFoundError:
        fail("The connection to the server localhost:8080 was refused - did you specify the right host or port?")
    return args.run(args)


main()

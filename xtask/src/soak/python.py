"""The Python worker of a soak run: does what the guest does, in the same queue and bucket,
until there is a file `stop`."""
import os
import time
import traceback
import uuid

from taskqueue import RegisteredTask, TaskQueue


class Soak(RegisteredTask):
    def __init__(self, basic_info, payload_info):
        super().__init__(basic_info, payload_info)

    def execute(self):
        base = "data/bucket/" + self.basic_info["base_directory"]
        for step in self.payload_info["steps"]:
            if step["do"] == "sleep":
                time.sleep(step["secs"])
            elif step["do"] == "copy":
                for key in self.basic_info["inputs"]:
                    with open(f"{base}/{key}", "rb") as source:
                        publish(f"{base}/out/{key}", source.read())
            else:
                name = f"{self.basic_info['id']}-python-{uuid.uuid4().hex}"
                publish(f"{base}/{step['dir']}/{name}", b"")


def publish(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open("python.tmp", "wb") as file:
        file.write(data)
    os.rename("python.tmp", path)


def stopped():
    return os.path.exists("stop")


queue = TaskQueue("fq://" + os.path.abspath("data/queue"), progress=False)
while not stopped():
    try:
        queue.poll(lease_seconds=60, stop_fn=stopped, max_backoff_window=1, tally=True)
    except Exception:
        traceback.print_exc()

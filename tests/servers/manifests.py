"""Checks manifests strictly: a field that Kubernetes or KEDA does not know is an error.

Reads YAML from standard input and prints the objects as one JSON list.
"""

import json
import pathlib
import sys

import jsonschema
import kubernetes_validate
import yaml

VERSION = "1.37"
KEDA = json.loads(pathlib.Path(__file__).with_name("keda.schema.json").read_text())

objects = [thing for thing in yaml.safe_load_all(sys.stdin.read()) if thing]
for thing in objects:
    if thing["apiVersion"].startswith("keda.sh/"):
        jsonschema.validate(thing, KEDA)
        if thing["kind"] == "ScaledJob":
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "checked"},
                   "spec": thing["spec"]["jobTargetRef"]}
            kubernetes_validate.validate(job, VERSION, strict=True)
    else:
        kubernetes_validate.validate(thing, VERSION, strict=True)
print(json.dumps(objects))

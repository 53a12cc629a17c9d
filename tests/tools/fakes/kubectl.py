"""Stands in for `kubectl create -f FILE` on a cluster with Volcano: starts the containers of a job, and waits for them.

Environment variables are those of Volcano's plugins env and svc. The pods' addresses are in FAKE_ADDRESSES. SIGTERM
stands for `kubectl delete`: every container's first process gets one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import yaml


def containers(job: dict, addresses: list[str]) -> list[tuple[list[str], dict[str, str]]]:
    """(command line, environment) of every pod of the job."""
    assert job["apiVersion"] == "batch.volcano.sh/v1alpha1" and job["kind"] == "Job"
    spec, found = job["spec"], []
    assert spec["schedulerName"] == "volcano"
    assert spec["minAvailable"] == sum(task["replicas"] for task in spec["tasks"])
    for task in spec["tasks"]:
        [container] = task["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        volumes = {volume["name"] for volume in task["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        for index in range(task["replicas"]):
            environment = {}
            if "env" in spec["plugins"]:
                environment |= {"VC_TASK_INDEX": str(index), "VK_TASK_INDEX": str(index)}
            if "svc" in spec["plugins"]:
                name = task["name"].upper().replace("-", "_")
                hosts = addresses[: task["replicas"]]
                environment |= {f"VC_{name}_HOSTS": ",".join(hosts), f"VC_{name}_NUM": str(len(hosts))}
            found.append((container["command"] + container["args"], {**environment, "FAKE_ADDRESS": addresses[index]}))
    return found


def main() -> int:
    assert sys.argv[1:3] == ["create", "-f"], sys.argv
    with open(sys.argv[3], encoding="utf-8") as file:
        job = yaml.safe_load(file)
    pods = [
        subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True)
        for command, environment in containers(job, os.environ["FAKE_ADDRESSES"].split(","))
    ]
    signal.signal(signal.SIGTERM, lambda number, _: [pod.send_signal(number) for pod in pods])
    return max(pod.wait() for pod in pods)


if __name__ == "__main__":
    sys.exit(main())

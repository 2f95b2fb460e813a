"""The files of launch/ as they stand: shellcheck, the fields of the JobSet, the Dockerfile, commands in the README."""

from __future__ import annotations

import math
import re
import shlex
import shutil
import subprocess
import tomllib

import launching
import pytest
import yaml

from jaxkd import main

SCRIPTS = ("local.sh", "slurm.sbatch", "tpu_pod.sh")


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_pass_shellcheck_and_explain_themselves(script):
    done = launching.call(script, "--help")
    assert done.returncode == 0 and done.stdout.startswith("Usage: ") and "ARGUMENTS OF jaxkd.main" in done.stdout
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (extra `test`)")
    checked = subprocess.run(["shellcheck", launching.LAUNCH / script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


# The fields of a JobSet, from config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml in kubernetes-sigs/jobset
# (v1alpha2). A tuple is an enumeration, a list holds the fields of each element. Job templates are Kubernetes' own.
RULE = {
    "action": ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
    "name": str,
    "onJobFailureReasons": [str],
    "targetReplicatedJobs": [str],
}
JOB = {"template": dict, "completionMode": ("Indexed", "NonIndexed"), "podFailurePolicy": dict} | {
    name: int for name in ("completions", "parallelism", "backoffLimit", "activeDeadlineSeconds")
}
REPLICATED = {"name": str, "replicas": int, "groupName": str, "template": {"metadata": dict, "spec": JOB}}
SPEC = {
    "coordinator": {"replicatedJob": str, "jobIndex": int, "podIndex": int},
    "failurePolicy": {"maxRestarts": int, "restartStrategy": ("Recreate", "BlockingRecreate"), "rules": [RULE]},
    "managedBy": str,
    "network": {"enableDNSHostnames": bool, "publishNotReadyAddresses": bool, "subdomain": str},
    "replicatedJobs": [REPLICATED],
    "successPolicy": {"operator": ("All", "Any"), "targetReplicatedJobs": [str]},
    "suspend": bool,
    "ttlSecondsAfterFinished": int,
}
JOBSET = {"apiVersion": ("jobset.x-k8s.io/v1alpha2",), "kind": ("JobSet",), "metadata": dict, "spec": SPEC}
REQUIRED = {id(RULE): {"action", "name"}, id(REPLICATED): {"name", "template"}, id(JOBSET): {"spec", "metadata"}}


def wrong_fields(value, fields, path=""):
    """Paths in `value` that are no field, are missing or have the wrong type."""
    if isinstance(fields, tuple):
        return [] if value in fields else [f"{path}: {value!r}"]
    if isinstance(fields, list):
        found = [wrong_fields(v, fields[0], f"{path}[{i}]") for i, v in enumerate(value)]
        return [p for paths in found for p in paths] if isinstance(value, list) else [f"{path}: no list"]
    if isinstance(fields, type):
        return [] if type(value) is fields else [f"{path}: {value!r}"]
    wrong = [f"{path}.{name}" for name in (value.keys() - fields) | (REQUIRED.get(id(fields), set()) - value.keys())]
    return wrong + [
        p for name in value.keys() & fields for p in wrong_fields(value[name], fields[name], f"{path}.{name}")
    ]


@pytest.fixture(scope="module")
def manifest():
    return yaml.safe_load((launching.LAUNCH / "jobset.yaml").read_text())


def test_the_manifest_has_the_fields_of_a_jobset(manifest):
    assert wrong_fields(manifest, JOBSET) == []


def test_the_manifest_starts_one_process_on_each_machine_of_the_slice(manifest):
    (workers,) = manifest["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    machines = chips // container["resources"]["limits"]["google.com/tpu"]
    assert job["completions"] == job["parallelism"] == machines == 4
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    given = main.parse(container["args"])
    shared = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "shared"]
    assert given.distributed and given.workdir.startswith(f"{shared[0]}/")
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_dockerfile_copies_what_exists_and_installs_an_extra():
    text = (launching.LAUNCH / "Dockerfile").read_text()
    extras = tomllib.loads((launching.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    always = re.search(r"\$\{EXTRA\},([\w,]+)\]", text)[1].split(",")
    named = {*re.findall(r"EXTRA=(\w+)", text), *always}
    assert named == {"cuda", "tpu", "shards", "storage"} and named <= extras.keys()
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert "jaxkd" in copied and all((launching.ROOT / word).exists() for word in copied)


def documented():
    """The commands of launch/README.md and of the scripts' own help that take arguments of `jaxkd.main` or a verb."""
    texts = [(launching.LAUNCH / name).read_text() for name in ("README.md", *SCRIPTS)]
    texts += [(launching.ROOT / "docs" / page).read_text() for page in ("howto/devices.md", "tutorials/pod.md")]
    line = re.compile(
        r"^ *((?:sbatch (?:-\S+ )*)?launch/(?:local\.sh|tpu_pod\.sh|slurm\.sbatch) (?:[^\n\\]|\\\n)*)$", re.M
    )
    return [command for text in texts for command in line.findall(text)]


def test_commands_are_found():
    assert len(documented()) == 11


@pytest.mark.parametrize("command", documented())
def test_documented_commands_are_accepted(command, monkeypatch):
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    before, after = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    monkeypatch.chdir(launching.ROOT)
    if after:
        main.parse(after)
    if before[0] == "launch/tpu_pod.sh":
        done = launching.call("tpu_pod.sh", *before[1:], "--dry-run", *(["--", *after] if after else []))
        assert done.returncode == 0, done.stderr
    else:
        assert after

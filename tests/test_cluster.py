"""cluster/: what a platform team applies is what the API server takes, and the night's script says how it went.

tests/crds/ holds the schemas (openAPIV3Schema of the served version v1, without descriptions) of KubeRay's custom
resources, Apache-2.0, from ray-operator/config/crd/bases (the same in helm-chart/kuberay-operator/crds). The files
do not name their KubeRay; by their fields (historyServerOptions, tlsOptions) it is v1.7. They were made by

    def bare(node):  # a *property* called description is a dict, and stays
        if isinstance(node, dict):
            return {k: bare(v) for k, v in node.items() if not (k == "description" and isinstance(v, str))}
        return [bare(item) for item in node] if isinstance(node, list) else node

    for name in ("rayjobs", "raycronjobs"):
        crd = yaml.safe_load(Path(f"ray.io_{name}.yaml").read_text())
        v1 = next(version for version in crd["spec"]["versions"] if version["name"] == "v1")
        text = json.dumps(bare(v1["schema"]["openAPIV3Schema"]), separators=(",", ":"))
        Path(f"tests/crds/{name}.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))

Not checked: the schemas' CEL rules (x-kubernetes-validations: none is about a field that we set), and what the
operator itself refuses.
"""

import copy
import functools
import gzip
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from raygen.config import load_config
from raygen.errors import UserError
from raygen.publish.config import RefreshConfig

ROOT = Path(__file__).parent.parent
CRON_JOB = ROOT / "cluster" / "refresh-cronjob.yaml"
RAY_CRON_JOB = ROOT / "cluster" / "refresh-raycronjob.yaml"
DAY = 24 * 3600

_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_OWNER = {name: {"type": "string"} for name in ("apiVersion", "kind", "name", "uid")}
METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "generateName": {"type": "string"},
        "labels": _STRINGS,
        "annotations": _STRINGS,
        "ownerReferences": {
            "type": "array",
            "items": {"type": "object", "properties": _OWNER, "required": list(_OWNER)},
        },
    },
    "minProperties": 1,
}
"""Of ObjectMeta, which a CRD leaves to the API server, what our files use."""


def structural(schema: dict[str, Any]) -> dict[str, Any]:
    """A CRD's schema as JSON Schema, read as strict field validation does: what it does not name is refused."""
    made = dict(schema)
    if "properties" in schema:
        made["properties"] = {name: structural(child) for name, child in schema["properties"].items()}
        # defaults are filled in before anything is checked
        made["required"] = [r for r in schema.get("required", []) if "default" not in schema["properties"][r]]
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            made[key] = structural(schema[key])
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
        made.pop("anyOf", None)  # the same, said twice
    return {"anyOf": [made, {"type": "null"}]} if schema.get("nullable") else made


@functools.cache
def schema_of(kind: str) -> dict[str, Any]:
    file = ROOT / "tests" / "crds" / f"{kind.lower()}s.json.gz"
    schema = json.loads(gzip.decompress(file.read_bytes()))
    schema["properties"]["metadata"] = METADATA
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return structural(schema)


def refusals(document: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    errors = Draft202012Validator(schema).iter_errors(document)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def problems(document: dict[str, Any]) -> list[str]:
    """What an API server with KubeRay's CRDs would refuse."""
    if document["apiVersion"] != "ray.io/v1":
        return [f"apiVersion {document['apiVersion']}"]
    return refusals(document, schema_of(document["kind"]))


def read(path: Path) -> dict[str, Any]:
    """A file's documents by kind; none is there twice, and none asks for a namespace of its own."""
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    by_kind = {document["kind"]: document for document in documents}
    assert len(by_kind) == len(documents)
    assert not [kind for kind, document in by_kind.items() if "namespace" in document["metadata"]]
    return by_kind


def ray_job() -> dict[str, Any]:
    return yaml.safe_load(read(CRON_JOB)["ConfigMap"]["data"]["rayjob.yaml"])


def document_of(kind: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The document of this kind, and where in it the RayJob's spec stands."""
    if kind == "RayJob":
        return ray_job(), ("spec",)
    return read(RAY_CRON_JOB)["RayCronJob"], ("spec", "jobTemplate")


# --------------------------------------------------------------------------------------- against KubeRay's CRDs


def test_kuberay_takes_both() -> None:
    assert problems(ray_job()) == []
    assert list(read(RAY_CRON_JOB)) == ["RayCronJob"]
    assert problems(read(RAY_CRON_JOB)["RayCronJob"]) == []


def test_both_are_the_same_night() -> None:
    assert ray_job()["spec"] == read(RAY_CRON_JOB)["RayCronJob"]["spec"]["jobTemplate"]
    for key in ("schedule", "timeZone"):
        assert read(CRON_JOB)["CronJob"]["spec"][key] == read(RAY_CRON_JOB)["RayCronJob"]["spec"][key]


_HEAD = ("rayClusterSpec", "headGroupSpec")
_GROUP = ("rayClusterSpec", "workerGroupSpecs", 0)
_CONTAINER = (*_GROUP, "template", "spec", "containers", 0)
_GONE = object()


def mutated(document: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    node: Any = changed
    for step in path[:-1]:
        node = node[step]
    if value is _GONE:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return changed


@pytest.mark.parametrize("kind", ["RayJob", "RayCronJob"])
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("submisionMode",), "K8sJobMode", "'submisionMode' was unexpected"),
        ((*_GROUP, "minReplica"), 0, "'minReplica' was unexpected"),
        ((*_CONTAINER, "envForm"), [], "'envForm' was unexpected"),
        ((*_GROUP, "template", "metadata"), {"label": {}}, "'label' was unexpected"),
        (("backoffLimit",), "0", "'0' is not of type 'integer'"),
        (("shutdownAfterJobFinishes",), "true", "'true' is not of type 'boolean'"),
        ((*_HEAD, "rayStartParams", "num-cpus"), 0, "0 is not of type 'string'"),
        ((*_CONTAINER, "envFrom", 0, "secretRef"), "raygen-s3", "is not of type 'object'"),
        ((*_CONTAINER, "resources", "limits", "cpu"), True, "True is not of type 'integer', 'string'"),
        ((*_CONTAINER, "resources", "limits", "memory"), "32 GB", "'32 GB' does not match"),
        (("rayClusterSpec", "autoscalerOptions", "version"), "v3", "'v3' is not one of"),
        (("preRunningDeadlineSeconds",), 0, "0 is less than the minimum of 1"),
        (_HEAD, _GONE, "'headGroupSpec' is a required property"),
        ((*_GROUP, "template"), _GONE, "'template' is a required property"),
        ((*_CONTAINER, "name"), _GONE, "'name' is a required property"),
    ],
)
def test_kuberay_refuses(kind: str, path: tuple[str | int, ...], value: Any, message: str) -> None:
    document, spec = document_of(kind)
    (problem,) = problems(mutated(document, (*spec, *path), value))
    assert message in problem


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        # When this one fails, KubeRay has learned it: say Forbid in the file, too.
        (("spec", "concurrencyPolicy"), "Forbid", "'concurrencyPolicy' was unexpected"),
        (("spec", "schedule"), _GONE, "'schedule' is a required property"),
        (("spec", "timeZone"), "", "'' should be non-empty"),
        (("metadata", "label"), {}, "'label' was unexpected"),
        (("apiVersion",), "ray.io/v1alpha1", "apiVersion ray.io/v1alpha1"),
    ],
)
def test_kuberay_refuses_a_ray_cron_job(path: tuple[str | int, ...], value: Any, message: str) -> None:
    (problem,) = problems(mutated(read(RAY_CRON_JOB)["RayCronJob"], path, value))
    assert message in problem


def test_what_kubernetes_adds_to_json_schema() -> None:
    schema = {
        "type": "object",
        "required": ["default"],
        "properties": {
            "port": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "bare-port": {"x-kubernetes-int-or-string": True},
            "time": {"type": "string", "nullable": True},
            "strict-time": {"type": "string"},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            "closed": {"type": "object", "properties": {}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "default": {"type": "integer", "default": 1},
        },
    }
    validator = Draft202012Validator(structural(schema))
    validator.check_schema(validator.schema)
    for taken in (
        {"port": 1, "bare-port": 1},
        {"port": "http", "bare-port": "http"},
        {"time": None, "open": {"x": 1}, "labels": {"x": "1"}, "closed": {}},
    ):
        assert validator.is_valid(taken)
    for refused in (
        {"port": 1.5},
        {"bare-port": []},
        {"time": 1},
        {"strict-time": None},
        {"closed": {"x": 1}},
        {"labels": {"x": 1}},
        {"x": 1},
    ):
        assert not validator.is_valid(refused)


# ------------------------------------------------------------------------------------------- what no schema knows


def overrides_of(entrypoint: str) -> tuple[list[str], list[str]]:
    """A refresh's command line -> (script and recipe, its `--set` values)."""
    python, script, recipe, *flags = shlex.split(entrypoint)
    assert python == "python"
    assert set(flags[::2]) == {"--set"}
    return [script, recipe], flags[1::2]


def test_no_field_of_the_cron_job_is_misspelled() -> None:
    cron = read(CRON_JOB)["CronJob"]["spec"]
    assert set(cron) == {
        "schedule",
        "timeZone",
        "concurrencyPolicy",
        "startingDeadlineSeconds",
        "successfulJobsHistoryLimit",
        "failedJobsHistoryLimit",
        "jobTemplate",
    }
    job = cron["jobTemplate"]["spec"]
    assert set(job) == {"backoffLimit", "activeDeadlineSeconds", "template"}
    # KubeRay's schema holds a whole PodTemplateSpec.
    cluster = schema_of("RayJob")["properties"]["spec"]["properties"]["rayClusterSpec"]
    template = cluster["properties"]["headGroupSpec"]["properties"]["template"]
    assert refusals(job["template"], template) == []
    (problem,) = refusals(mutated(job["template"], ("spec", "serviceAcountName"), "x"), template)
    assert "'serviceAcountName' was unexpected" in problem


@pytest.mark.parametrize("kind", ["RayJob", "RayCronJob"])
def test_the_command_is_one_of_this_repository(kind: str) -> None:
    document, spec = document_of(kind)
    for step in spec:
        document = document[step]
    files, overrides = overrides_of(document["entrypoint"])
    assert files == ["jobs/refresh.py", "jobs/refresh.toml"]
    assert all((ROOT / file).is_file() for file in files)
    config = load_config(RefreshConfig, ROOT / files[1], overrides)
    assert all(uri.startswith("s3://") for uri in (config.pool, config.table, config.checkpoint))
    with pytest.raises(UserError, match="unknown key 'tabel'"):
        load_config(RefreshConfig, ROOT / files[1], [*overrides, "tabel=s3://bucket/defects"])


def test_the_night_is_bounded_and_not_tried_again() -> None:
    job, cron = ray_job()["spec"], read(CRON_JOB)["CronJob"]["spec"]
    pod = cron["jobTemplate"]["spec"]["template"]["spec"]
    poll = int({item["name"]: item.get("value") for item in pod["containers"][0]["env"]}["POLL_SECONDS"])
    assert job["backoffLimit"] == cron["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"
    assert job["activeDeadlineSeconds"] < cron["jobTemplate"]["spec"]["activeDeadlineSeconds"] < DAY
    assert cron["startingDeadlineSeconds"] < DAY
    assert job["shutdownAfterJobFinishes"]
    assert 2 * poll < job["ttlSecondsAfterFinished"] < 3600
    assert job["submissionMode"] == "K8sJobMode"


def test_the_cluster() -> None:
    cluster = ray_job()["spec"]["rayClusterSpec"]
    head, (group,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert cluster["rayVersion"] == importlib.metadata.version("ray")  # what these tests run on
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"]
    assert group["minReplicas"] == 0
    # The preflight counts the cluster's GPUs once: workers must be there by then, and must not have left.
    assert 0 < group["replicas"] <= group["maxReplicas"]
    deadline = ray_job()["spec"]["preRunningDeadlineSeconds"]
    assert deadline <= cluster["autoscalerOptions"]["idleTimeoutSeconds"]
    for template in (head["template"], group["template"]):
        (container,) = template["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "raygen-s3"}}]
        assert container["image"] == "registry.example.com/raygen:0.1"
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        assert template["spec"]["securityContext"]["runAsUser"] > 0
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert int(worker["resources"]["limits"]["cpu"]) >= 2


def test_the_cron_job_and_what_it_names() -> None:
    documents = read(CRON_JOB)
    assert {kind: document["apiVersion"] for kind, document in documents.items()} == {
        "ServiceAccount": "v1",
        "Role": "rbac.authorization.k8s.io/v1",
        "RoleBinding": "rbac.authorization.k8s.io/v1",
        "ConfigMap": "v1",
        "CronJob": "batch/v1",
    }
    names = {kind: document["metadata"]["name"] for kind, document in documents.items()}
    cron, data = documents["CronJob"]["spec"], documents["ConfigMap"]["data"]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert cron["successfulJobsHistoryLimit"] > 0 < cron["failedJobsHistoryLimit"]

    pod = cron["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == names["ServiceAccount"]
    assert pod["volumes"] == [{"name": "night", "configMap": {"name": names["ConfigMap"]}}]
    (container,) = pod["containers"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == "night"
    shell, script = container["command"]
    assert shell == "sh"
    assert Path(script).parent == Path(mount["mountPath"])
    assert Path(script).name in data
    assert re.fullmatch(r"[a-z/.-]+:\d+\.\d+\.\d+", container["image"])
    assert {item["name"] for item in container["env"]} == set(re.findall(r"\$([A-Z_]+)", data["night.sh"]))

    binding = documents["RoleBinding"]
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "Role",
        "name": names["Role"],
    }
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": names["ServiceAccount"]}]
    (rule,) = documents["Role"]["rules"]
    assert (rule["apiGroups"], rule["resources"]) == (["ray.io"], ["rayjobs"])
    assert set(rule["verbs"]) == set(re.findall(r"kubectl (\w+)", data["night.sh"]))

    # KubeRay's longest name of a RayJob has 47 characters; the API server, or the RayCronJob, adds up to 11.
    for name in (ray_job()["metadata"]["generateName"], read(RAY_CRON_JOB)["RayCronJob"]["metadata"]["name"]):
        assert re.fullmatch(r"[a-z][a-z0-9-]{,35}", name)


# ------------------------------------------------------------------------------------------------- the script

_KUBECTL = """#!/bin/sh
# answers `get` with the files 0, 1, … beside it, again and again with the last
cd "${0%/*}"
echo "$@" >> calls
case $1 in
  create)
    cat > created.yaml
    [ ! -e forbidden ] || exit 1
    echo rayjob.ray.io/raygen-refresh-x7k2p
    ;;
  get)
    next=$(cat next)
    [ ! -e $((next + 1)) ] || echo $((next + 1)) > next
    [ "$(cat $next)" != refused ] || exit 1
    cat $next
    ;;
esac
"""


class Night:
    """night.sh, started beside a kubectl that gives these answers."""

    def __init__(self, folder: Path, *answers: str) -> None:
        self.folder = folder
        data = read(CRON_JOB)["ConfigMap"]["data"]
        for name, text in {**data, "kubectl": _KUBECTL, "next": "0", "calls": ""}.items():
            (folder / name).write_text(text, encoding="utf-8")
        for number, answer in enumerate(answers):
            (folder / str(number)).write_text(answer, encoding="utf-8")
        (folder / "kubectl").chmod(0o755)
        self.process = subprocess.Popen(
            ["sh", str(folder / "night.sh")],
            env={
                "PATH": f"{folder}:{os.environ['PATH']}",
                "POLL_SECONDS": "0.01",
                "JOB_NAME": "raygen-refresh-29384755",
                "JOB_UID": "5f0e",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=30)
        return self.process.returncode, output

    def calls(self) -> list[list[str]]:
        return [line.split() for line in (self.folder / "calls").read_text(encoding="utf-8").splitlines()]


RUNNING = "RayJob Running RUNNING  "
ENTRYPOINT = "Job entrypoint command failed with exit code"  # Ray's words: its job_supervisor.py


def failed(code: int, log: str = "raygen: audit failed: …") -> str:
    """What the status of a RayJob says when the driver has ended with this code."""
    message = f"{ENTRYPOINT} {code}, last available logs (truncated to 20,000 chars):"
    return f"RayJob Failed FAILED AppFailed {message}\n{log}\n"


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        (("RayJob    ", "RayJob Initializing   ", RUNNING, "RayJob Complete SUCCEEDED  "), 0),
        ((RUNNING, "refused", RUNNING, "RayJob Complete SUCCEEDED  "), 0),  # no answer is no outcome
        (("RayJob Running SUCCEEDED  ", "RayJob Complete SUCCEEDED  "), 0),  # the submitter is to end, too
        ((RUNNING, failed(1)), 1),
        ((failed(2),), 2),
        ((RUNNING, failed(3, "… the entrypoint command failed with exit code 5, once\n* ? $HOME")), 3),
        ((failed(4),), 4),
        ((f"RayJob Failed FAILED AppFailed {ENTRYPOINT} 3. No logs available.",), 3),
        ((failed(-9, f"{ENTRYPOINT} 5, says a log"),), 1),
        (("RayJob Failed  PreRunningDeadlineExceeded no GPUs",), 1),
        (("RayJob Failed RUNNING DeadlineExceeded too late",), 1),
        (("RayJob ValidationFailed  ValidationFailed wrong",), 1),
        (("RayJob Complete STOPPED  stopped by a person",), 1),
        ((RUNNING, ""), 1),  # deleted
    ],
)
def test_the_jobs_exit_code_is_the_refreshs(tmp_path: Path, answers: tuple[str, ...], code: int) -> None:
    night = Night(tmp_path, *answers)
    returned, output = night.finish()
    assert returned == code, output
    reason = answers[-1].strip() or "was deleted"
    assert "succeeded" in output if code == 0 else f"raygen-refresh-x7k2p: {reason}" in output
    assert [call[0] for call in night.calls()] == ["create", *["get"] * len(answers)]

    created = yaml.safe_load((tmp_path / "created.yaml").read_text(encoding="utf-8"))
    assert problems(created) == []
    (owner,) = created["metadata"]["ownerReferences"]
    assert (owner["name"], owner["uid"]) == ("raygen-refresh-29384755", "5f0e")


def test_a_job_that_is_stopped_stops_its_night(tmp_path: Path) -> None:
    night = Night(tmp_path, RUNNING)
    deadline = time.monotonic() + 20
    while "get" not in (call[0] for call in night.calls()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    night.process.terminate()
    assert night.finish()[0] == 143
    assert night.calls()[-1] == ["delete", "rayjob.ray.io/raygen-refresh-x7k2p", "--wait=false"]


def test_a_ray_job_that_cannot_be_created_fails_the_night(tmp_path: Path) -> None:
    (tmp_path / "forbidden").touch()
    night = Night(tmp_path, RUNNING)
    assert night.finish()[0] == 1
    assert [call[0] for call in night.calls()] == ["create"]

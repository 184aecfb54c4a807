"""The files of deploy/, by their own schemas and by what must never be in them. No container is started."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
from ruamel.yaml import YAML

from headstart import __version__

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
# Beside this Python, whether or not that is on the path.
CHECKER = str(Path(sys.executable).with_name("check-jsonschema"))
MANIFESTS = ("servers.yaml", "worker.yaml")
KUBERNETES_VERSION = "1.31"
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(:[?-][^}]*)?\}")
SECRETS = ("PASSWORD", "SECRET", "TOKEN", "KEY", "AUTH_STRING")


def load(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def manifests() -> Iterator[dict[str, Any]]:
    for name in MANIFESTS:
        yield from YAML(typ="safe").load_all(DEPLOY / "kubernetes" / name)


def containers() -> Iterator[dict[str, Any]]:
    for one in manifests():
        if one["kind"] in ("Deployment", "StatefulSet"):
            yield from one["spec"]["template"]["spec"]["containers"]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = load(DEPLOY / "compose.yaml")
    return found


# ---------------------------------------------------------------------------------------------- compose


def test_compose_is_what_the_compose_specification_says() -> None:
    done = subprocess.run(
        [CHECKER, "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_is_in_force(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text("services: {a: {image: b, prots: [80]}}\n")
    done = subprocess.run(
        [CHECKER, "--builtin-schema", "vendor.compose-spec", str(wrong)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "prots" in done.stdout


def test_every_variable_is_in_the_example_and_every_secret_must_be_set() -> None:
    declared = dict(
        line.split("=", 1)
        for line in (DEPLOY / ".env.example").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    )
    used = VARIABLE.findall((DEPLOY / "compose.yaml").read_text("utf-8"))
    assert {name for name, _ in used} == set(declared)
    for name, default in used:
        if any(word in name for word in SECRETS) or not declared[name]:
            assert default.startswith(":?"), f"{name} has to be set: ${{{name}:?what it is}}"
            assert len(default) > 2, f"say what {name} is"
            assert declared[name] == "", f"{name} has a value in .env.example"


def test_no_secret_stands_in_a_file(compose: dict[str, Any]) -> None:
    found = [
        (service, name, value)
        for service, settings in compose["services"].items()
        for name, value in settings.get("environment", {}).items()
        if any(word in name for word in SECRETS)
    ]
    assert len(found) > 8
    for service, name, value in found:
        assert VARIABLE.sub("", str(value)).strip(":") == "", f"{service}: {name}"


def test_git_ignores_the_filled_in_environment() -> None:
    done = subprocess.run(["git", "check-ignore", "deploy/.env"], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, "add /deploy/.env to .gitignore"


def test_images_are_pinned_and_named_without_a_registry(compose: dict[str, Any]) -> None:
    named = [one["image"] for one in compose["services"].values()] + [one["image"] for one in containers()]
    named.append(_pool()["variables"]["properties"]["image"]["default"])
    lines = (DEPLOY / "Containerfile").read_text("utf-8").splitlines()
    named += [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert len(named) > 10
    for image in named:
        name, _, tag = image.rpartition(":")
        assert re.search(r"\d+\.\d+|\d{4}-\d\d", tag), image
        assert "." not in name.split("/")[0], image


def test_our_image_has_the_version_of_the_code(compose: dict[str, Any]) -> None:
    texts = [
        path.read_text("utf-8") for path in (DEPLOY / "compose.yaml", *(DEPLOY / "kubernetes").iterdir())
    ]
    tags = {tag for text in texts for tag in re.findall(r"headstart:(\d[\w.]*)", text)}
    assert tags == {__version__}


def test_only_the_proxy_and_the_store_are_reachable_and_on_the_loopback_address(
    compose: dict[str, Any],
) -> None:
    ports = {name: one["ports"] for name, one in compose["services"].items() if "ports" in one}
    assert set(ports) == {"proxy", "store"}
    for published in ports.values():
        assert all(port.startswith("${BIND:-127.0.0.1}:") for port in published)


def test_every_server_has_a_health_check_and_starts_after_what_it_needs(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in ("postgres", "store", "prefect", "mlflow", "proxy"):
        assert services[name]["healthcheck"]["test"], name
    for name, one in services.items():
        for needed, how in one.get("depends_on", {}).items():
            finished = how["condition"] == "service_completed_successfully"
            assert finished or "healthcheck" in services[needed], f"{name} waits for {needed}"


def test_data_lie_in_volumes(compose: dict[str, Any]) -> None:
    mounted = {
        volume.split(":")[0] for one in compose["services"].values() for volume in one.get("volumes", ())
    }
    assert set(compose["volumes"]) <= mounted
    local = [one for one in mounted if one.startswith("./")]
    assert local
    for one in local:
        assert (DEPLOY / one).exists(), one


# ------------------------------------------------------------------------------------ image and entrypoint


def test_the_shell_understands_the_scripts() -> None:
    for path in (DEPLOY / "entrypoint", DEPLOY / "backup", DEPLOY / "restore"):
        assert path.stat().st_mode & 0o111, f"{path} cannot be run"
        subprocess.run(["sh", "-n", str(path)], check=True)


@pytest.mark.parametrize(("what", "named"), [("prefect", "HEADSTART_USER"), ("buckets", "S3_BUCKET")])
def test_the_entrypoint_names_what_is_not_set(what: str, named: str) -> None:
    command = ["sh", str(DEPLOY / "entrypoint"), what]
    nothing = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=nothing, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"error: {named} is not set" in done.stderr


def test_the_image_has_all_the_code_and_no_secret() -> None:
    """What the ignore file lets through is what git has, without the file of passwords."""
    allowed = [
        line.removeprefix("!")
        for line in (DEPLOY / "Containerfile.dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    ]
    assert all((ROOT / one).exists() for one in allowed)
    assert not any(".env" in one or one == "deploy" for one in allowed)
    assert {"steps", "flows", "headstart", "requirements.lock", "deploy/entrypoint"} <= set(allowed)


# ------------------------------------------------------------------------------------------- Kubernetes


def test_every_manifest_is_what_kubernetes_takes() -> None:
    found = list(manifests())
    assert len(found) > 8
    for one in found:
        kubernetes_validate.validate(one, KUBERNETES_VERSION, strict=True)


def test_manifests_take_secrets_by_reference() -> None:
    for one in containers():
        for variable in one.get("env", ()):
            if any(word in variable["name"] for word in SECRETS):
                by_reference = "secretKeyRef" in variable.get("valueFrom", {})
                assert by_reference or variable["value"] == "$(HEADSTART_USER):$(HEADSTART_PASSWORD)"


def test_the_secret_made_from_the_example_has_every_key_the_manifests_name() -> None:
    example = (DEPLOY / ".env.example").read_text("utf-8")
    for one in containers():
        for variable in one.get("env", ()):
            key = variable.get("valueFrom", {}).get("secretKeyRef", {}).get("key")
            assert key is None or f"\n{key}=" in example, key


def test_our_containers_run_as_nobody_special() -> None:
    for one in containers():
        if one["image"].startswith("headstart:"):
            assert one["securityContext"]["allowPrivilegeEscalation"] is False
            assert one["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert one["resources"]["limits"]["memory"]


def test_the_pools_template_declares_every_variable_it_uses() -> None:
    pool = _pool()
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(pool["job_configuration"])))
    assert used == set(pool["variables"]["properties"])


def test_the_pools_template_has_all_that_prefects_own_has() -> None:
    """Prefect ships the template of its Kubernetes worker; ours adds to it and takes nothing away."""
    import prefect

    views = Path(prefect.__file__).parent / "server/api/collections_data/views"
    shipped = json.loads((views / "aggregate-worker-metadata.json").read_text("utf-8"))
    default = shipped["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]
    ours = _pool()
    assert set(default["job_configuration"]) == set(ours["job_configuration"])
    for name, about in default["variables"]["properties"].items():
        assert ours["variables"]["properties"][name].get("type") == about.get("type"), name


def test_a_job_made_from_the_pools_template_is_what_kubernetes_takes() -> None:
    pool = _pool()
    values: dict[str, Any] = {
        name: about.get("default", {"object": {}, "integer": 60}.get(about.get("type"), "x"))
        for name, about in pool["variables"]["properties"].items()
    }
    values |= {
        "env": [{"name": "A", "value": "b"}],
        "command": ["python", "-m", "prefect.engine"],
        "name": "run",
    }
    job = _filled(pool["job_configuration"]["job_manifest"], values)
    kubernetes_validate.validate(job, KUBERNETES_VERSION, strict=True)
    assert job["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


def test_prefects_server_takes_the_pools_template() -> None:
    from prefect.server.schemas.actions import WorkPoolCreate

    made = WorkPoolCreate(name="headstart", type="kubernetes", base_job_template=_pool())
    assert made.base_job_template["variables"]["properties"]["namespace"]["default"] == "headstart"
    wrong = _pool()
    del wrong["variables"]["properties"]["image"]
    with pytest.raises(ValueError, match="image"):
        WorkPoolCreate(name="headstart", type="kubernetes", base_job_template=wrong)


def _pool() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "kubernetes/work-pool.json").read_text("utf-8"))
    return found


def _filled(template: Any, values: dict[str, Any]) -> Any:
    if isinstance(template, dict):
        return {key: _filled(value, values) for key, value in template.items()}
    if isinstance(template, list):
        return [_filled(one, values) for one in template]
    if isinstance(template, str):
        whole = re.fullmatch(r"\{\{ (\w+) \}\}", template)
        return (
            values[whole[1]] if whole else re.sub(r"\{\{ (\w+) \}\}", lambda m: str(values[m[1]]), template)
        )
    return template

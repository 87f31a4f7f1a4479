"""The control plane: the Azure CLI, unmodified, makes a pool, activates and uses it, deletes, recovers and purges it; and
no right or call there reaches into a pool."""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import time
import urllib.error
import urllib.request
import uuid

import by_address
import holdfast
import pytest
from azure.identity import ClientSecretCredential
from test_az import CLOUD, Az, another
from test_security_domain import Holder

GROUP = ["--resource-group", "quickstart"]
VERSION = "api-version=2024-11-01"
ARM = "https://management.azure.com/.default"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    with holdfast.Pool(tmp_path_factory.mktemp("control")) as pool:
        yield pool


@pytest.fixture(scope="module")
def variables(own):
    return own.exports("--az")


@pytest.fixture(scope="module")
def az(variables, tmp_path_factory):
    """Logged in as owner of the subscription."""
    az = Az(variables, tmp_path_factory.mktemp("az-owner"))
    az("cloud", "register", "--name", CLOUD, "--endpoint-resource-manager", variables["ARM_URL"])
    az("cloud", "set", "--name", CLOUD)
    az.login(variables["HOLDFAST_ADMIN_CLIENT_ID"], f"--password={variables['HOLDFAST_ADMIN_CLIENT_SECRET']}")
    return az


class Arm:
    """One principal's calls of the resource manager."""

    def __init__(self, variables, name):
        self.variables = variables
        self.object_id = variables[f"HOLDFAST_{name}_OBJECT_ID"]
        self.context = ssl.create_default_context(cafile=variables["CA_BUNDLE"])
        credential = ClientSecretCredential(
            variables["TENANT_ID"],
            variables[f"HOLDFAST_{name}_CLIENT_ID"],
            variables[f"HOLDFAST_{name}_CLIENT_SECRET"],
            authority=variables["AUTHORITY_HOST"],
            disable_instance_discovery=True,
            connection_verify=variables["CA_BUNDLE"],
        )
        self.token = credential.get_token(ARM).token
        [subscription] = self("GET", "/subscriptions")[1]["value"]
        self.subscription = subscription["id"]
        self.group = f"{self.subscription}/resourceGroups/quickstart"
        self.pools = f"{self.group}/providers/Microsoft.KeyVault/managedHSMs"

    def __call__(self, method, path, body=None, token=None, version=VERSION):
        headers = {"Authorization": f"Bearer {token or self.token}", "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body is not None else None
        url = f"{self.variables['ARM_URL']}{path}" + (f"?{version}" if version else "")
        request = urllib.request.Request(url, data, headers, method=method)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.context)
        )
        try:
            with opener.open(request, timeout=60) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())["error"]


@pytest.fixture(scope="module")
def owner(variables):
    return Arm(variables, "ADMIN")


@pytest.fixture(scope="module")
def reader(variables):
    return Arm(variables, "APP")


def wanted(arm, **more):
    properties = {
        "tenantId": arm.variables["TENANT_ID"],
        "initialAdminObjectIds": [arm.variables["HOLDFAST_ADMIN_OBJECT_ID"]],
        "softDeleteRetentionInDays": 7,
        **more,
    }
    return {"location": "local", "sku": {"family": "B", "name": "Standard_B1"}, "properties": properties}


def test_az_takes_a_pool_through_its_life(az, variables, tmp_path):
    def listed(kind="list"):
        return {pool["name"] for pool in az("keyvault", kind, "--resource-type", "hsm")}

    administrator = variables["HOLDFAST_ADMIN_OBJECT_ID"]
    assert az("keyvault", "check-name", "--name", "payroll", "--resource-type", "hsm")["nameAvailable"]
    others, deleted_others = listed(), listed("list-deleted")
    began = time.monotonic()
    create = ["keyvault", "create", "--hsm-name", "payroll", *GROUP, "--location", "local"]
    made = az(*create, "--administrators", administrator, "--retention-days", "7")
    assert made["properties"]["provisioningState"] == "Succeeded", time.monotonic() - began
    assert made["properties"]["securityDomainProperties"]["activationStatus"] == "NotActivated"
    assert not az("keyvault", "check-name", "--name", "Payroll", "--resource-type", "hsm")["nameAvailable"]
    assert listed() == others | {"payroll"} and "demo" in others
    updated = az("keyvault", "update-hsm", "--hsm-name", "payroll", *GROUP, "--set", "tags.a=b")
    assert updated["tags"] == {"a": "b"}

    certificates = make_holders(tmp_path)
    domain = str(tmp_path / "payroll.json")
    download = ["keyvault", "security-domain", "download", "--hsm-name", "payroll"]
    az(*download, "--sd-wrapping-keys", *certificates, "--sd-quorum", "2", "--security-domain-file", domain)
    wait(lambda: shown(az, "payroll")["securityDomainProperties"]["activationStatus"] == "Active")

    user = ["--assignee-object-id", administrator, "--assignee-principal-type", "ServicePrincipal"]
    role = ["keyvault", "role", "assignment", "create", "--hsm-name", "payroll", "--scope", "/"]
    az(*role, "--role", "Managed HSM Crypto User", *user)
    key = ["--hsm-name", "payroll", "--name", "first"]
    made = az("keyvault", "key", "create", *key, "--kty", "EC-HSM", "--curve", "P-256")
    assert "payroll.managedhsm.localhost" in made["key"]["kid"]
    digest = ["--digest", "3q2+796tvu/erb7v3q2+796tvu/erb7v3q2+796tvu8="]
    signed = az("keyvault", "key", "sign", *key, "--algorithm", "ES256", *digest)
    verified = az(
        "keyvault", "key", "verify", *key, "--algorithm", "ES256", *digest, "--signature", signed["signature"]
    )
    assert verified["isValid"]

    az("keyvault", "delete", "--hsm-name", "payroll", *GROUP)
    assert listed() == others
    assert listed("list-deleted") == deleted_others | {"payroll"}
    assert az("keyvault", "show-deleted", "--hsm-name", "payroll")["name"] == "payroll"
    az.refused("keyvault", "key", "show", *key)
    az("keyvault", "recover", "--hsm-name", "payroll", "--location", "local", *GROUP)
    assert az("keyvault", "key", "show", *key)["key"]["kid"] == made["key"]["kid"]

    az("keyvault", "delete", "--hsm-name", "payroll", *GROUP)
    az("keyvault", "purge", "--hsm-name", "payroll", "--location", "local")
    assert listed("list-deleted") == deleted_others
    assert az("keyvault", "check-name", "--name", "payroll", "--resource-type", "hsm")["nameAvailable"]


def shown(az, name):
    return az("keyvault", "show", "--hsm-name", name)["properties"]


def wait(condition, seconds=120):
    """Until it holds. Who cannot be reached meanwhile, as it is not there yet or not any more, is asked again."""
    deadline = time.monotonic() + seconds
    while True:
        failure = None
        try:
            if condition():
                return
        except (OSError, http.client.HTTPException) as error:
            failure = error
        assert time.monotonic() < deadline, f"not within {seconds} s: {failure or 'it does not hold'}"
        time.sleep(0.1)


def make_holders(directory):
    """Certificates of three holders."""
    return [str(Holder(directory, f"holder-{number}").certificate) for number in range(3)]


@pytest.fixture(scope="module")
def steady(owner):
    """A pool that no test deletes."""
    assert owner("PUT", f"{owner.pools}/steady", wanted(owner))[0] == 200
    return f"{owner.pools}/steady"


def test_a_pool_outlives_its_process_and_the_control_plane(own, owner, steady):
    before = owner("GET", steady)[1]
    pid = process_of(own, "steady")
    os.kill(pid, signal.SIGKILL)
    wait(lambda: process_of(own, "steady") != pid)
    wait(lambda: owner("GET", steady)[1] == before)
    pid = process_of(own, "steady")
    assert pid in children(own.process.pid)
    own.kill()
    # A child that is nobody's any more ends by itself.
    wait(lambda: is_zombie(pid))
    # Its directory is not for another pool of that name.
    words = ["quickstart", "--data", own.data, "--port", str(own.port), "--blank-pool", "steady"]
    refused = subprocess.run([holdfast.binary(), *words], capture_output=True, text=True, timeout=300, env=holdfast.clean_environment())
    assert refused.returncode == 1 and "named steady already" in refused.stderr, refused
    own.start()
    wait(lambda: owner("GET", steady)[1] == before)


def test_a_deleted_pool_comes_back_beside_one_that_was_made_meanwhile(own, owner):
    """Each keeps its port, whether it runs or not."""
    ports = []
    for name in ("former", "later"):
        assert owner("PUT", f"{owner.pools}/{name}", wanted(owner))[0] == 200
        ports.append((own.data / "pools" / name / "port").read_text())
        if name == "former":
            assert owner("DELETE", f"{owner.pools}/{name}")[0] == 200
    assert ports[0] != ports[1]
    assert owner("PUT", f"{owner.pools}/former", wanted(owner, createMode="recover"))[0] == 200
    for name in ("former", "later"):
        status = owner("GET", f"{owner.pools}/{name}")[1]["properties"]["securityDomainProperties"]["activationStatus"]
        assert status == "NotActivated", name
        assert owner("DELETE", f"{owner.pools}/{name}")[0] == 200


def process_state(pid):
    """Its letter of proc_pid_stat(5) and its parent; `Z` and none of one that is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            state, parent = stat.read().rsplit(")", 1)[1].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return "Z", None
    return state, int(parent)


def is_zombie(pid):
    """Or gone since it was seen."""
    return process_state(pid)[0] == "Z"


def children(pid):
    """Those that live. Not by `/proc/PID/task/*/children`: threads end while they are read, and their children move."""
    processes = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    states = ((one, *process_state(one)) for one in processes)
    return sorted(one for one, state, parent in states if parent == pid and state != "Z")


def process_of(own, name):
    """The process that listens at a pool's administration socket. What it has open only root may see."""
    port = (own.data / "pools" / name / "port").read_text()
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(60)
        stream.connect(str(own.data / "run" / f"{port}.adm"))
        pid, _, _ = struct.unpack("3i", stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return pid


def open_files(pid):
    """What a process has open, and has not closed since it was looked at."""
    targets = []
    try:
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                targets.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended
    return targets


def directory_of(pid):
    """Where a process is; `None` of one that has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return os.readlink(f"/proc/{pid}/cwd")


def test_nobody_does_what_their_role_does_not_allow(owner, reader, steady):
    pool = steady
    for method, path, body in [
        ("PUT", f"{owner.pools}/other", wanted(owner)),
        ("PUT", pool, {"properties": "malformed, which only a writer is told"}),
        ("PATCH", pool, {"tags": {}}),
        ("DELETE", pool, None),
        ("POST", f"{owner.subscription}/providers/Microsoft.KeyVault/checkMhsmNameAvailability", {"name": "x"}),
        (
            "POST",
            f"{owner.subscription}/providers/Microsoft.KeyVault/locations/local/deletedManagedHSMs/steady/purge",
            None,
        ),
        (
            "PUT",
            f"{owner.subscription}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}",
            {"properties": {"principalId": reader.object_id, "roleDefinitionId": "8e3af657-a8ff-443c-a75c-2fe8c4bcb635"}},
        ),
    ]:
        status, error = reader(method, path, body)
        assert (status, error["code"]) == (403, "AuthorizationFailed"), (method, path, error)
        assert reader.object_id in error["message"] and "over scope" in error["message"]
    assert reader("GET", pool)[0] == 200


def test_a_token_for_another_audience_opens_nothing(own, owner):
    for token in ("x", "", own.token()):
        assert owner("GET", owner.pools, token=token or "-")[0] == 401


def test_a_right_in_the_control_plane_is_none_in_a_pool(own, owner, variables):
    """The owner of the subscription is no administrator of a pool that names another, and cannot become one."""
    other = variables["HOLDFAST_APP_OBJECT_ID"]
    assert owner("PUT", f"{owner.pools}/vault", wanted(owner, initialAdminObjectIds=[other]))[0] == 200
    pool = f"{owner.pools}/vault"
    for change in (
        {"initialAdminObjectIds": [owner.object_id]},
        {"softDeleteRetentionInDays": 90},
        {"enablePurgeProtection": True},
    ):
        for method in ("PUT", "PATCH"):
            status, error = owner(method, pool, {"properties": change})
            assert status == 400 and next(iter(change)) in error["message"], error
    assignment = f"{pool}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}"
    body = {
        "properties": {
            "principalId": owner.object_id,
            "roleDefinitionId": f"{owner.subscription}/providers/Microsoft.Authorization/roleDefinitions/8e3af657-a8ff-443c-a75c-2fe8c4bcb635",
        }
    }
    assert owner("PUT", assignment, body)[0] == 201
    assert owner("PUT", assignment, body)[0] == 200
    status, error = owner("PUT", f"{assignment[:-36]}{uuid.uuid4()}", body)
    assert (status, error["code"]) == (409, "RoleAssignmentExists"), error
    port = int(owner("GET", pool)[1]["properties"]["hsmUri"].rstrip("/").rsplit(":", 1)[1])
    definitions = "/providers/Microsoft.Authorization/roleDefinitions?api-version=7.4"
    assert data_plane(variables, port, definitions, own.token("admin")) == 403
    assert data_plane(variables, port, definitions, owner.token) == 401
    # Deleted and recovered with other administrators named, it has those that it was made with.
    assert owner("DELETE", pool)[0] == 200
    recovery = wanted(owner, createMode="recover")
    assert owner("PUT", pool, recovery)[0] == 200
    assert owner("GET", pool)[1]["properties"]["initialAdminObjectIds"] == [other]
    assert data_plane(variables, port, definitions, own.token("admin")) == 403


def data_plane(variables, port, path, token):
    """Of the pool `vault`, through the gateway."""
    name = "vault.managedhsm.localhost"
    return by_address.call("127.0.0.1", port, variables["CA_BUNDLE"], name=name, path=path, token=token)["status"]


def test_bad_input_is_refused_in_words_and_changes_nothing(owner):
    before = owner("GET", owner.pools)[1]
    for name, body, said in [
        ("x", wanted(owner), "3 to 24"),
        ("a--b", wanted(owner), "hyphens"),
        ("good", wanted(owner, initialAdminObjectIds=[]), "initialAdminObjectIds"),
        ("good", wanted(owner, initialAdminObjectIds=["ada"]), "initialAdminObjectIds"),
        ("good", wanted(owner, softDeleteRetentionInDays="6"), "softDeleteRetentionInDays"),
        ("good", wanted(owner, tenantId=str(uuid.uuid4())), "tenantId"),
        ("good", wanted(owner, networkAcls={"defaultAction": "No"}), "networkAcls"),
        ("good", wanted(owner, publicNetworkAccess="No"), "publicNetworkAccess"),
        ("good", {**wanted(owner), "location": "moon"}, "location"),
        ("good", {**wanted(owner), "sku": {"family": "C", "name": "X"}}, "sku"),
        ("good", [], "object"),
    ]:
        status, error = owner("PUT", f"{owner.pools}/{name}", body)
        assert status == 400 and said in error["message"], (name, body, error)
    assert owner("PUT", f"{owner.pools}/good", wanted(owner), version="")[1]["code"] == "MissingApiVersionParameter"
    status, error = owner("PUT", f"{owner.pools}/good", wanted(owner), version="api-version=2019-01-01")
    assert (status, error["code"]) == (400, "InvalidApiVersionParameter")
    assert owner("DELETE", f"{owner.pools}/demo")[0] == 409
    assert owner("PUT", f"{owner.pools}/demo", wanted(owner))[0] == 409
    assert owner("GET", owner.pools)[1] == before


def test_purge_protection_keeps_a_deleted_pool(owner):
    pool = f"{owner.pools}/kept"
    assert owner("PUT", pool, wanted(owner, enablePurgeProtection=True))[0] == 200
    assert owner("DELETE", pool)[0] == 200
    deleted = f"{owner.subscription}/providers/Microsoft.KeyVault/locations/local/deletedManagedHSMs/kept"
    assert owner("POST", f"{deleted}/purge")[0] == 405
    assert owner("PUT", pool, wanted(owner))[0] == 409
    assert owner("GET", deleted)[1]["properties"]["purgeProtectionEnabled"]


def test_purging_destroys_the_root_key_and_the_sealed_data(own, owner):
    pool, key = f"{owner.pools}/short", own.data / "root" / "short.key"
    assert owner("PUT", pool, wanted(owner))[0] == 200
    assert key.exists()
    assert owner("DELETE", pool)[0] == 200
    assert key.exists(), "a deleted pool can be recovered"
    deleted = f"{owner.subscription}/providers/Microsoft.KeyVault/locations/local/deletedManagedHSMs/short"
    assert owner("POST", f"{deleted}/purge")[0] == 202
    assert not key.exists() and not (own.data / "pools" / "short").exists()
    assert owner("GET", deleted)[0] == 404

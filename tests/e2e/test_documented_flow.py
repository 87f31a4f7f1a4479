"""The documented flow, command by command: from an empty directory, by the Azure CLI as it is, with `--hsm-name`. A pool
from its creation to its purge, and a second one that becomes the first again.

The commands are those of the service's own documentation; what each answers is checked, and not only that it succeeds.
"""

import base64
import hashlib
import json
import os
import pathlib
import re
import subprocess

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

import by_address
import holdfast
from holdfast import clean_environment, fresh_name
from test_az import Az, program
from test_control_plane import GROUP, shown, wait
from test_security_domain import Holder

MESSAGE = "pay 100 to Ada"
DIGEST_BYTES = hashlib.sha256(MESSAGE.encode()).digest()
DIGEST = base64.b64encode(DIGEST_BYTES).decode()
LOCATION = ["--location", "local"]
KEYS = "/keys?api-version=7.4"
# What a private endpoint is reached at here: another address of this machine.
PRIVATE = "127.0.0.2"


@pytest.fixture(scope="module")
def own(tmp_path_factory, storage):
    flags = [*storage.flags(), "--private-listen", f"office={PRIVATE}"]
    with holdfast.Pool(tmp_path_factory.mktemp("flow"), *flags) as pool:
        yield pool


@pytest.fixture(scope="module")
def az(own, tmp_path_factory):
    """Who owns the subscription, logged in as `quickstart --az` prints it."""
    variables = own.exports("--az")
    az = Az(variables, tmp_path_factory.mktemp("az-flow"))
    printed = own.run("quickstart", "--az").stdout
    assert printed == own.run("env", "--az").stdout
    once = printed.split("# Once:\n")[1].split("# Then")[0]
    commands = [line.removeprefix("#   ") for line in once.splitlines()]
    assert [command.split()[1] for command in commands] == ["cloud", "cloud", "login"], printed
    # Of the two principals that it names for such things, the one with an HSM to make.
    admin = {name: variables[f"HOLDFAST_ADMIN_{name}"] for name in ("CLIENT_ID", "CLIENT_SECRET")}
    path = os.pathsep.join([str(pathlib.Path(program()).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euc", "\n".join(commands)],
        capture_output=True,
        text=True,
        timeout=300,
        env=clean_environment(**{**az.variables, **admin, "PATH": path}),
    )
    assert done.returncode == 0, done
    return az


@pytest.mark.timeout(1800)  # a hundred starts of the Azure CLI
def test_the_documented_flow(own, az, storage, tmp_path):
    holders = [Holder(tmp_path, f"holder-{number}") for number in range(3)]
    container = storage.make_container(fresh_name("flow"))
    admin, app = az.variables["HOLDFAST_ADMIN_OBJECT_ID"], az.variables["HOLDFAST_APP_OBJECT_ID"]
    create_and_activate(az, admin, holders, tmp_path)
    roles(az, admin, app)
    made = keys(az, tmp_path)
    cryptography(az, made)
    certificate_login(own, az, app, made, tmp_path)
    settings(az)
    network_rules(own, az)
    regions(az)
    private_endpoints(own, az)
    folder = backup_and_restore(az, container, storage, made)
    another_becomes_it(az, admin, holders, container, storage, folder, made, tmp_path)
    delete_recover_purge(az, made)


def create_and_activate(az, admin, holders, directory):
    check = ["keyvault", "check-name", "--name", "flow", "--resource-type", "hsm"]
    assert az(*check)["nameAvailable"] is True
    administrators = ["--administrators", admin, "--retention-days", "7"]
    made = az("keyvault", "create", "--hsm-name", "flow", *GROUP, *LOCATION, *administrators)
    properties = made["properties"]
    assert made["id"].endswith("/providers/Microsoft.KeyVault/managedHSMs/flow"), made
    assert (made["name"], made["location"], made["sku"]["name"]) == ("flow", "local", "Standard_B1")
    assert properties["hsmUri"].startswith("https://flow.managedhsm.localhost:")
    assert (properties["initialAdminObjectIds"], properties["softDeleteRetentionInDays"]) == ([admin], 7)
    assert (properties["provisioningState"], properties["enableSoftDelete"]) == ("Succeeded", True)
    assert properties["securityDomainProperties"]["activationStatus"] == "NotActivated"
    taken = az(*check)
    assert (taken["nameAvailable"], taken["reason"]) == (False, "AlreadyExists"), taken
    assert {one["name"]: one["type"] for one in az("keyvault", "list", "--resource-type", "hsm", *GROUP)} == {
        name: "Microsoft.KeyVault/managedHSMs" for name in ("demo", "flow")
    }
    assert az("keyvault", "show", "--hsm-name", "flow")["id"] == made["id"]
    updated = az("keyvault", "update-hsm", "--hsm-name", "flow", *GROUP, "--set", "tags.team=payroll")
    assert updated["tags"] == {"team": "payroll"} and updated["properties"]["hsmUri"] == properties["hsmUri"]

    domain = directory / "flow-domain.json"
    wrapping = ["--sd-wrapping-keys", *(str(holder.certificate) for holder in holders), "--sd-quorum", "2"]
    az("keyvault", "security-domain", "download", "--hsm-name", "flow", *wrapping, "--security-domain-file", str(domain))
    held = json.loads(domain.read_text())
    assert len(held["SharedKeys"]["enc_shares"]) == 3 and held["SharedKeys"]["required"] == 2
    wait(lambda: shown(az, "flow")["securityDomainProperties"]["activationStatus"] == "Active")


def roles(az, admin, app):
    hsm = ["--hsm-name", "flow"]
    listed = az("keyvault", "role", "definition", "list", *hsm)
    names = {one["roleName"] for one in listed}
    assert {"Managed HSM Administrator", "Managed HSM Crypto User", "Managed HSM Crypto Officer"} <= names
    assert all(one["roleType"] == "AKVBuiltInRole" for one in listed), listed
    definition = {
        "roleName": "Reads keys",
        "description": "",
        "actions": [],
        "notActions": [],
        "dataActions": ["Microsoft.KeyVault/managedHsm/keys/read/action"],
        "notDataActions": [],
    }
    custom = ["keyvault", "role", "definition"]
    made = az(*custom, "create", *hsm, "--role-definition", json.dumps(definition))
    assert (made["roleName"], made["roleType"]) == ("Reads keys", "CustomRole")
    signs = "Microsoft.KeyVault/managedHsm/keys/sign/action"
    changed = {**definition, "name": made["name"], "id": made["id"], "dataActions": [*definition["dataActions"], signs]}
    updated = az(*custom, "update", *hsm, "--role-definition", json.dumps(changed))
    assert updated["name"] == made["name"] and signs in updated["permissions"][0]["dataActions"]
    found = az(*custom, "show", *hsm, "--name", made["name"])
    assert found["permissions"] == updated["permissions"]

    assign = ["keyvault", "role", "assignment"]
    of = lambda principal, scope: ["--assignee-object-id", principal, "--scope", scope]
    service = ["--assignee-principal-type", "ServicePrincipal"]
    for role, principal, scope in [
        ("Managed HSM Crypto User", admin, "/"),
        ("Managed HSM Crypto Officer", admin, "/"),
        ("Reads keys", app, "/keys"),
    ]:
        given = az(*assign, "create", *hsm, "--role", role, *of(principal, scope), *service)
        assert (given["roleName"], given["principalId"], given["scope"]) == (role, principal, scope), given
    held = az(*assign, "list", *hsm, "--scope", "/", "--assignee-object-id", admin)
    expected = {"Managed HSM Administrator", "Managed HSM Crypto User", "Managed HSM Crypto Officer"}
    assert {one["roleName"] for one in held} == expected
    az(*assign, "delete", *hsm, "--role", "Reads keys", *of(app, "/keys"))
    assert az(*assign, "list", *hsm, "--scope", "/keys", "--assignee-object-id", app) == []
    az(*custom, "delete", *hsm, "--name", made["name"])
    assert az(*custom, "list", *hsm, "--custom-role-only") == []
    az(*assign, "create", *hsm, "--role", "Managed HSM Crypto User", *of(app, "/keys/ec"), *service)


def key(name):
    return ["--hsm-name", "flow", "--name", name]


def keys(az, directory):
    """Bundles by name, as they are at the end."""
    made = {}
    for name, words, kty in [
        ("rsa", ["--kty", "RSA-HSM", "--size", "3072", "--ops", "encrypt", "decrypt", "sign", "verify"], "RSA-HSM"),
        ("ec", ["--kty", "EC-HSM", "--curve", "P-256", "--ops", "sign", "verify", "--tags", "of=Ada"], "EC-HSM"),
        ("oct", ["--kty", "oct-HSM", "--size", "256", "--ops", "encrypt", "decrypt"], "oct-HSM"),
    ]:
        made[name] = az("keyvault", "key", "create", *key(name), *words)
        assert made[name]["key"]["kty"] == kty and made[name]["attributes"]["enabled"] is True
        assert re.match(rf"https://flow\.managedhsm\.localhost:\d+/keys/{name}/[0-9a-f]{{32}}$", made[name]["key"]["kid"])
    assert made["oct"]["key"]["k"] is None and len(base64.b64decode(made["rsa"]["key"]["n"])) == 384
    assert made["ec"]["tags"] == {"of": "Ada"}
    listed = az("keyvault", "key", "list", "--hsm-name", "flow")
    assert sorted(one["name"] for one in listed) == ["ec", "oct", "rsa"]
    assert az("keyvault", "key", "show", *key("ec")) == made["ec"]
    changed = az("keyvault", "key", "set-attributes", *key("oct"), "--enabled", "false", "--tags", "a=b")
    assert (changed["attributes"]["enabled"], changed["tags"]) == (False, {"a": "b"})
    made["oct"] = az("keyvault", "key", "set-attributes", *key("oct"), "--enabled", "true")
    assert made["oct"]["attributes"]["enabled"] is True

    # A rotation policy, and what it makes of a rotation.
    policy = directory / "policy.json"
    action = {"trigger": {"timeAfterCreate": "P60D"}, "action": {"type": "Rotate"}}
    policy.write_text(json.dumps({"lifetimeActions": [action], "attributes": {"expiryTime": "P90D"}}))
    az("keyvault", "key", "rotation-policy", "update", *key("rsa"), "--value", str(policy))
    held = az("keyvault", "key", "rotation-policy", "show", *key("rsa"))
    assert (held["expiresIn"], held["lifetimeActions"][0]["timeAfterCreate"]) == ("P90D", "P60D"), held
    first, made["rsa"] = made["rsa"], az("keyvault", "key", "rotate", *key("rsa"))
    assert made["rsa"]["key"]["n"] != first["key"]["n"] and made["rsa"]["attributes"]["expires"]
    versions = az("keyvault", "key", "list-versions", *key("rsa"))
    assert {one["kid"] for one in versions} == {first["key"]["kid"], made["rsa"]["key"]["kid"]}

    # Brought in, put away, and back.
    private = rsa.generate_private_key(65537, 2048)
    pem = directory / "brought.pem"
    plain = serialization.NoEncryption()
    pem.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    brought = az("keyvault", "key", "import", *key("brought"), "--pem-file", str(pem))
    assert int.from_bytes(base64.b64decode(brought["key"]["n"]), "big") == private.public_key().public_numbers().n
    file = directory / "brought.backup"
    az("keyvault", "key", "backup", *key("brought"), "--file", str(file))
    deleted = az("keyvault", "key", "delete", *key("brought"))
    assert deleted["recoveryId"].endswith("/deletedkeys/brought") and deleted["scheduledPurgeDate"]
    assert [one["name"] for one in az("keyvault", "key", "list-deleted", "--hsm-name", "flow")] == ["brought"]
    assert az("keyvault", "key", "show-deleted", *key("brought"))["key"] == brought["key"]
    assert az("keyvault", "key", "recover", *key("brought"))["key"] == brought["key"]
    az("keyvault", "key", "delete", *key("brought"))
    az("keyvault", "key", "purge", *key("brought"))
    assert "KeyNotFound" in az.refused("keyvault", "key", "show-deleted", *key("brought"))
    made["brought"] = az("keyvault", "key", "restore", "--hsm-name", "flow", "--file", str(file))
    assert made["brought"]["key"] == brought["key"]
    return made


def cryptography(az, made):
    for name, algorithm in [("rsa", "RSA-OAEP-256"), ("oct", "A256GCM")]:
        words = [*key(name), "--algorithm", algorithm, "--data-type", "plaintext"]
        sealed = az("keyvault", "key", "encrypt", *words, "--value", MESSAGE)
        assert sealed["algorithm"] == algorithm and sealed["kid"] == made[name]["key"]["kid"]
        parts = [word for part in ("iv", "tag") if sealed[part] for word in (f"--{part}", sealed[part])]
        assert az("keyvault", "key", "decrypt", *words, "--value", sealed["result"], *parts)["result"] == MESSAGE
    signing = [*key("ec"), "--algorithm", "ES256", "--digest", DIGEST]
    signature = az("keyvault", "key", "sign", *signing)["signature"]
    verifies(made["ec"], signature)
    assert az("keyvault", "key", "verify", *signing, "--signature", signature)["isValid"] is True
    signature = az("keyvault", "key", "sign", *key("rsa"), "--algorithm", "PS256", "--digest", DIGEST)["signature"]
    numbers = [int.from_bytes(base64.b64decode(made["rsa"]["key"][part]), "big") for part in ("e", "n")]
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    rsa.RSAPublicNumbers(*numbers).public_key().verify(
        base64.b64decode(signature), DIGEST_BYTES, pss, utils.Prehashed(hashes.SHA256())
    )
    drawn = base64.b64decode(az("keyvault", "key", "random", "--hsm-name", "flow", "--count", "32")["value"])
    assert len(drawn) == 32 and drawn != bytes(32)


def verifies(bundle, signature):
    """By the public half, elsewhere."""
    signature = base64.b64decode(signature)
    x, y = (int.from_bytes(base64.b64decode(bundle["key"][part]), "big") for part in ("x", "y"))
    der = utils.encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key().verify(
        der, DIGEST_BYTES, ec.ECDSA(utils.Prehashed(hashes.SHA256()))
    )


def certificate_login(own, az, app, made, directory):
    """By certificate, as somebody who was given one key."""
    other = Az(az.variables, directory / "az-app")
    other("cloud", "register", "--name", "holdfast", "--endpoint-resource-manager", az.variables["ARM_URL"])
    other("cloud", "set", "--name", "holdfast")
    other.login(az.variables["HOLDFAST_APP_CLIENT_ID"], "--certificate", az.variables["HOLDFAST_APP_CERTIFICATE"])
    signing = ["--algorithm", "ES256", "--digest", DIGEST]
    verifies(made["ec"], other("keyvault", "key", "sign", *key("ec"), *signing)["signature"])
    refusal = other.refused("keyvault", "key", "show", *key("rsa"))
    assert f"Principal {app} may not do" in refusal and "at scope /keys/rsa" in refusal, refusal


def settings(az):
    hsm, name = ["--hsm-name", "flow"], "AllowKeyManagementOperationsThroughARM"
    assert {one["name"]: one["value"] for one in az("keyvault", "setting", "list", *hsm)}[name] == "false"
    changed = az("keyvault", "setting", "update", *hsm, "--name", name, "--value", "true")
    assert (changed["name"], changed["value"]) == (name, "true"), changed
    found = az("keyvault", "setting", "show", *hsm, "--name", name)
    assert (found["value"], found["settingType"]) == ("true", "boolean"), found


def answers(own, address="127.0.0.1"):
    """Status and inner code of a list of keys at the gateway, without a token."""
    answer = by_address.call(
        address, port=own.port + 1, ca=own.ca_file, name="flow.managedhsm.localhost", path=KEYS
    )
    return answer["status"], answer["body"]["error"].get("innererror", {}).get("code")


def network_rules(own, az):
    hsm = ["--hsm-name", "flow", *GROUP]
    added = az("keyvault", "network-rule", "add", *hsm, "--ip-address", "192.0.2.0/24")
    assert added["properties"]["networkAcls"]["ipRules"] == [{"value": "192.0.2.0/24"}]
    az("keyvault", "update-hsm", *hsm, "--default-action", "Deny", "--bypass", "None")
    listed = az("keyvault", "network-rule", "list", *hsm)
    assert (listed["defaultAction"], listed["bypass"]) == ("Deny", "None")
    assert listed["ipRules"] == [{"value": "192.0.2.0/24"}]
    assert answers(own) == (403, "ForbiddenByFirewall")
    assert "ForbiddenByFirewall" in az.refused("keyvault", "key", "list", "--hsm-name", "flow")
    removed = az("keyvault", "network-rule", "remove", *hsm, "--ip-address", "192.0.2.0/24")
    assert removed["properties"]["networkAcls"]["ipRules"] == []
    opened = az("keyvault", "update-hsm", *hsm, "--default-action", "Allow", "--bypass", "AzureServices")
    assert opened["properties"]["networkAcls"]["defaultAction"] == "Allow"
    assert answers(own)[0] == 401


def regions(az):
    """There is one, and it says so: a second would be a copy that nobody keeps."""
    hsm = ["--hsm-name", "flow", *GROUP]
    assert [(one["name"], one["isPrimary"]) for one in az("keyvault", "region", "list", *hsm)] == [("local", True)]
    assert "there is one region" in az.refused("keyvault", "region", "add", *hsm, "--region", "elsewhere")
    assert az("keyvault", "region", "remove", *hsm, "--region", "elsewhere")["properties"]["regions"] == []


def private_endpoints(own, az):
    hsm = ["--hsm-name", "flow", *GROUP]
    [resource] = az("keyvault", "private-link-resource", "list", *hsm)
    assert resource["groupId"] == "managedhsm", resource
    closed = az("keyvault", "update-hsm", *hsm, "--public-network-access", "Disabled")
    assert closed["properties"]["publicNetworkAccess"] == "Disabled"
    assert answers(own) == (403, "ForbiddenByFirewall")

    endpoint = ["network", "private-endpoint"]
    link = ["--private-connection-resource-id", closed["id"], "--group-id", "managedhsm"]
    subnet = ["--vnet-name", "private", "--subnet", "office"]
    asked = ["--connection-name", "to-flow", "--manual-request", "true", "--request-message", "let us in"]
    made = az(*endpoint, "create", "--name", "from-office", *GROUP, *LOCATION, *subnet, *link, *asked)
    [request] = made["manualPrivateLinkServiceConnections"]
    assert (made["provisioningState"], request["privateLinkServiceId"]) == ("Succeeded", closed["id"])
    assert request["privateLinkServiceConnectionState"]["status"] == "Pending", made

    connection = ["keyvault", "private-endpoint-connection"]
    [listed] = az(*connection, "list", *hsm)
    named = [*hsm, "--name", listed["name"]]
    state = lambda one: one["privateLinkServiceConnectionState"]["status"]
    assert state(listed) == "Pending" and listed["privateEndpoint"]["id"] == made["id"]
    assert answers(own, PRIVATE) == (403, "ForbiddenByFirewall")
    assert state(az(*connection, "approve", *named, "--description", "of the office")) == "Approved"
    # Before anybody is asked who they are, as on any other way in.
    assert answers(own, PRIVATE)[0] == 401
    assert answers(own) == (403, "ForbiddenByFirewall")
    found = az(*connection, "show", *named)
    assert (state(found), found["privateLinkServiceConnectionState"]["description"]) == ("Approved", "of the office")
    assert [one["id"] for one in shown(az, "flow")["privateEndpointConnections"]] == [found["id"]]
    assert state(az(*connection, "reject", *named)) == "Rejected"
    assert answers(own, PRIVATE) == (403, "ForbiddenByFirewall")
    az(*connection, "delete", *named)
    assert az(*connection, "list", *hsm) == []
    az(*endpoint, "delete", "--name", "from-office", *GROUP)
    assert az("keyvault", "update-hsm", *hsm, "--public-network-access", "Enabled")["properties"]["publicNetworkAccess"] == "Enabled"


def in_storage(name, container, storage):
    return ["--hsm-name", name, "--storage-resource-uri", container, "--storage-container-SAS-token", storage.sas()]


def backup_and_restore(az, container, storage, made):
    done = az("keyvault", "backup", "start", *in_storage("flow", container, storage))
    assert done["folderUrl"].startswith(f"{container}/mhsm-flow-"), done
    folder = done["folderUrl"].rsplit("/", 1)[1]
    az("keyvault", "key", "create", *key("later"), "--kty", "EC-HSM", "--curve", "P-256")
    az("keyvault", "restore", "start", *in_storage("flow", container, storage), "--backup-folder", folder)
    assert "KeyNotFound" in az.refused("keyvault", "key", "show", *key("later"))
    assert az("keyvault", "key", "show", *key("ec"))["key"] == made["ec"]["key"]
    return folder


def another_becomes_it(az, admin, holders, container, storage, folder, made, directory):
    """As the service's guide has it: a new HSM, the first one's domain by a quorum, a backup of it, a restore."""
    words = ["--hsm-name", "second", *GROUP, *LOCATION, "--administrators", admin, "--retention-days", "7"]
    assert az("keyvault", "create", *words)["properties"]["provisioningState"] == "Succeeded"
    exchange, blob = directory / "exchange.cer", directory / "restore.json"
    domain = ["keyvault", "security-domain"]
    az(*domain, "init-recovery", "--hsm-name", "second", "--sd-exchange-key", str(exchange))
    quorum = ["--sd-wrapping-keys", *(str(holder.key) for holder in holders[:2])]
    bring = ["--sd-exchange-key", str(exchange), "--sd-file", str(directory / "flow-domain.json")]
    az(*domain, "restore-blob", *bring, *quorum, "--sd-file-restore-blob", str(blob))
    az(*domain, "upload", "--hsm-name", "second", "--sd-file", str(blob), "--restore-blob")
    wait(lambda: shown(az, "second")["securityDomainProperties"]["activationStatus"] == "Active")
    az("keyvault", "backup", "start", *in_storage("second", container, storage))
    az("keyvault", "restore", "start", *in_storage("second", container, storage), "--backup-folder", folder)
    held = {one["name"] for one in az("keyvault", "key", "list", "--hsm-name", "second")}
    assert held == set(made)
    signing = ["--hsm-name", "second", "--name", "ec", "--algorithm", "ES256", "--digest", DIGEST]
    # The very key: its signature verifies by what the first HSM showed.
    verifies(made["ec"], az("keyvault", "key", "sign", *signing)["signature"])
    az("keyvault", "delete", "--hsm-name", "second", *GROUP)
    az("keyvault", "purge", "--hsm-name", "second", *LOCATION)


def delete_recover_purge(az, made):
    deleted = ["--hsm-name", "flow", *LOCATION]
    before = az("keyvault", "show", "--hsm-name", "flow")
    az("keyvault", "delete", "--hsm-name", "flow", *GROUP)
    assert [one["name"] for one in az("keyvault", "list", "--resource-type", "hsm")] == ["demo"]
    [listed] = az("keyvault", "list-deleted", "--resource-type", "hsm")
    assert listed["name"] == "flow" and listed["properties"]["mhsmId"] == before["id"]
    found = az("keyvault", "show-deleted", *deleted)
    assert found["properties"]["scheduledPurgeDate"] > found["properties"]["deletionDate"]
    assert found["properties"]["tags"] == {"team": "payroll"}
    az.refused("keyvault", "key", "show", *key("ec"))
    az("keyvault", "recover", *deleted, *GROUP)
    assert az("keyvault", "key", "show", *key("ec"))["key"] == made["ec"]["key"]
    assert az("keyvault", "show", "--hsm-name", "flow") == before
    az("keyvault", "delete", "--hsm-name", "flow", *GROUP)
    az("keyvault", "purge", *deleted)
    assert az("keyvault", "list-deleted", "--resource-type", "hsm") == []
    assert az("keyvault", "check-name", "--name", "flow", "--resource-type", "hsm")["nameAvailable"] is True

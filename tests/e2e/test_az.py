"""The Azure CLI, unmodified, against a pool: it finds the pool as in a cloud of its own, logs in, and its keyvault
commands work by the pool's name and by address.

`HOLDFAST_AZ` names the program. Each principal has a configuration of its own: `az` keeps tokens by client id and
would log in again with a wrong secret as long as it has one.
"""

import base64
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives import hashes, keywrap
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)

import holdfast
from holdfast import clean_environment, fresh_name

CLOUD = "holdfast"
MESSAGE = "pay 100 to Ada"
DIGEST = base64.b64encode(hashlib.sha256(MESSAGE.encode()).digest()).decode()
OTHER_DIGEST = base64.b64encode(hashlib.sha256(b"pay 900 to Ada").digest()).decode()
MARKER = "<!-- e2e: az -->"


def program():
    path = os.environ.get("HOLDFAST_AZ")
    if not path:
        raise RuntimeError("HOLDFAST_AZ must name the Azure CLI; `cargo xtask e2e` sets it")
    return str(pathlib.Path(path).resolve(strict=True))


class Az:
    """The Azure CLI with a configuration directory of its own."""

    def __init__(self, variables, directory):
        self.variables = {**variables, "AZURE_CONFIG_DIR": str(directory)}

    def run(self, *words):
        return subprocess.run(
            [program(), *words, "--only-show-errors", "--output", "json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            env=clean_environment(**self.variables),
        )

    def __call__(self, *words):
        """What a command that must succeed prints, parsed."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    def refused(self, *words):
        """What a command that must fail says."""
        done = self.run(*words)
        assert done.returncode != 0, f"{words}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr

    def login(self, client_id, *proof):
        tenant = self.variables["TENANT_ID"]
        return self("login", "--service-principal", "--username", client_id, *proof, "--tenant", tenant)


@pytest.fixture(scope="module")
def az_pool(tmp_path_factory):
    """A pool of this file's own: it changes roles and settings."""
    with holdfast.Pool(tmp_path_factory.mktemp("az"), "--with-conformance-principal") as pool:
        yield pool


@pytest.fixture(scope="module")
def nobody(az_pool, tmp_path_factory):
    """Knows the cloud and has not logged in."""
    az = Az(az_pool.exports("--az"), tmp_path_factory.mktemp("az-nobody"))
    az("cloud", "register", "--name", CLOUD, "--endpoint-resource-manager", az.variables["AUTHORITY_HOST"])
    az("cloud", "set", "--name", CLOUD)
    return az


def another(nobody, directory):
    """`nobody` with a configuration of its own, without a call."""
    az = Az(nobody.variables, directory)
    shutil.copytree(nobody.variables["AZURE_CONFIG_DIR"], directory, dirs_exist_ok=True)
    return az


@pytest.fixture(scope="module")
def app(nobody, tmp_path_factory):
    """Logged in as Crypto User."""
    az = another(nobody, tmp_path_factory.mktemp("az-app"))
    az.login(az.variables["HOLDFAST_APP_CLIENT_ID"], f"--password={az.variables['HOLDFAST_APP_CLIENT_SECRET']}")
    return az


@pytest.fixture(scope="module")
def az(az_pool, nobody, tmp_path_factory):
    """Logged in as the principal that may do everything."""
    variables = az_pool.exports("--conformance")
    az = another(nobody, tmp_path_factory.mktemp("az-everything"))
    # With `=`: a secret may begin with a hyphen.
    az.login(variables["CLIENT_ID"], f"--password={variables['CLIENT_SECRET']}")
    return az


class Names:
    """How a pool and its keys are named to `az`: by the pool's name, or by address."""

    def __init__(self, kind, pool):
        self.by_name = kind == "--hsm-name"
        self.url = f"https://127.0.0.1:{pool.port}"
        self.host = f"https://demo.managedhsm.localhost:{pool.port}" if self.by_name else self.url

    def pool(self):
        return ["--hsm-name", "demo"] if self.by_name else ["--id", self.url]

    def key(self, name):
        return ["--hsm-name", "demo", "--name", name] if self.by_name else ["--id", f"{self.url}/keys/{name}"]

    def deleted(self, name):
        return (
            ["--hsm-name", "demo", "--name", name]
            if self.by_name
            else ["--id", f"{self.url}/deletedkeys/{name}"]
        )


@pytest.fixture(params=["--hsm-name", "--id"])
def names(request, az_pool):
    return Names(request.param, az_pool)


def test_login_finds_one_subscription_and_the_pool(app, az_pool):
    account = app("account", "show")
    assert account["environmentName"] == CLOUD
    assert account["tenantId"] == app.variables["TENANT_ID"]
    assert account["user"] == {"name": app.variables["HOLDFAST_APP_CLIENT_ID"], "type": "servicePrincipal"}
    # Both the vaults, of which there are none, and the pools.
    assert [found["name"] for found in app("keyvault", "list")] == ["demo"]
    shown = app("keyvault", "show", "--hsm-name", "demo")
    assert shown["properties"]["hsmUri"] == f"https://demo.managedhsm.localhost:{az_pool.port}/"
    assert shown["properties"]["initialAdminObjectIds"] == [app.variables["HOLDFAST_ADMIN_OBJECT_ID"]]
    # What is not there is said, not a crash.
    assert "read-only view" in app.refused("keyvault", "list-deleted")


def test_a_wrong_secret_is_refused_in_words(nobody, tmp_path):
    az = another(nobody, tmp_path)
    words = ["login", "--service-principal", "--username", az.variables["HOLDFAST_APP_CLIENT_ID"]]
    refusal = az.refused(*words, "--password=not-the-secret", "--tenant", az.variables["TENANT_ID"])
    assert "AADSTS7000215: Invalid client secret" in refusal
    assert "not-the-secret" not in refusal


@pytest.mark.parametrize("more", [[], ["--use-cert-sn-issuer"]], ids=["thumbprint", "with x5c"])
def test_a_certificate_logs_in(nobody, tmp_path, more):
    az = another(nobody, tmp_path)
    certificate = az.variables["HOLDFAST_APP_CERTIFICATE"]
    az.login(az.variables["HOLDFAST_APP_CLIENT_ID"], "--certificate", certificate, *more)
    made = az("keyvault", "key", "create", "--hsm-name", "demo", "--name", fresh_name(), "--kty", "EC-HSM")
    assert made["key"]["kty"] == "EC-HSM"


def test_a_certificate_of_somebody_else_is_refused_in_words(nobody, tmp_path):
    az = another(nobody, tmp_path / "config")
    words = ["login", "--service-principal", "--username", az.variables["HOLDFAST_ADMIN_CLIENT_ID"]]
    words += ["--certificate", az.variables["HOLDFAST_APP_CERTIFICATE"], "--tenant", az.variables["TENANT_ID"]]
    assert "AADSTS700027" in az.refused(*words)


def test_the_machine_logs_in(nobody, az_pool, tmp_path):
    az = another(nobody, tmp_path)
    az.variables = {**az_pool.exports("--managed-identity"), **az.variables}
    az("login", "--identity")
    assert [found["name"] for found in az("keyvault", "list")] == ["demo"]
    made = az("keyvault", "key", "create", "--hsm-name", "demo", "--name", fresh_name(), "--kty", "EC-HSM")
    assert made["key"]["kty"] == "EC-HSM"


def test_no_pool_takes_a_token_for_the_resource_manager_or_graph(app, az_pool):
    for resource in ("https://management.core.windows.net/", app.variables["AUTHORITY_HOST"] + "/"):
        token = app("account", "get-access-token", "--resource", resource)["accessToken"]
        answer = az_pool.call("GET", "/keys/any", token=token)
        assert answer.status == 401, answer
        assert answer.headers["WWW-Authenticate"].startswith("Bearer authorization=")


def test_a_key_has_a_rotation_policy_and_is_rotated(az, names, tmp_path):
    name = fresh_name("rotated")
    first = az("keyvault", "key", "create", *names.key(name), "--kty", "EC-HSM", "--curve", "P-256")
    file = tmp_path / "policy.json"
    action = {"trigger": {"timeAfterCreate": "P6M"}, "action": {"type": "Rotate"}}
    file.write_text(json.dumps({"lifetimeActions": [action], "attributes": {"expiryTime": "P2Y"}}))
    az("keyvault", "key", "rotation-policy", "update", *names.key(name), "--value", str(file))
    shown = az("keyvault", "key", "rotation-policy", "show", *names.key(name))
    assert shown["expiresIn"] == "P2Y" and shown["lifetimeActions"][0]["timeAfterCreate"] == "P6M", shown
    rotated = az("keyvault", "key", "rotate", *names.key(name))
    assert rotated["key"]["kid"] != first["key"]["kid"] and rotated["attributes"]["expires"]
    assert len(az("keyvault", "key", "list-versions", *names.key(name))) == 2


def test_an_attestation_that_az_kept_verifies(az, names, az_pool, tmp_path):
    name = fresh_name("attested")
    az("keyvault", "key", "create", *names.key(name), "--kty", "EC-HSM", "--curve", "P-384", "--ops", "sign", "verify")
    file = tmp_path / "attestation.json"
    az("keyvault", "key", "get-attestation", *names.key(name), "--file", str(file))
    held = json.loads(file.read_text())
    assert base64.b64decode(held["certificatePemFile"]).startswith(b"-----BEGIN CERTIFICATE-----")
    done = az_pool.run("attest", "verify", str(file), "--key", name, "--ops", "sign,verify", "--output", "table")
    assert done.stdout.splitlines()[-1] == "verified", done.stdout
    assert "EC-HSM P-384" in done.stdout


def test_a_key_comes_in_a_byok_file(az, az_pool, tmp_path):
    names = Names("--id", az_pool)
    kek, name = fresh_name("kek"), fresh_name("byok")
    made = az("keyvault", "key", "create", *names.key(kek), "--kty", "RSA-HSM", "--size", "3072", "--ops", "import")
    pem = tmp_path / "kek.pem"
    az("keyvault", "key", "download", *names.key(kek), "--file", str(pem), "--encoding", "PEM")
    public = load_pem_public_key(pem.read_bytes())
    secret, private = os.urandom(32), ec.generate_private_key(ec.SECP384R1())
    oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
    target = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    ciphertext = public.encrypt(secret, oaep) + keywrap.aes_key_wrap_with_padding(secret, target)
    header = {"kid": made["key"]["kid"], "alg": "dir", "enc": "CKM_RSA_AES_KEY_WRAP"}
    file = tmp_path / "target.byok"
    text = base64.urlsafe_b64encode(ciphertext).decode().rstrip("=")
    file.write_text(json.dumps({"schema_version": "1.0.0", "header": header, "ciphertext": text, "generator": "test"}))
    brought = az(
        "keyvault", "key", "import", *names.key(name), "--kty", "EC", "--curve", "P-384", "--byok-file", str(file)
    )
    assert (brought["key"]["kty"], brought["key"]["crv"]) == ("EC-HSM", "P-384")
    x = int.from_bytes(base64.b64decode(brought["key"]["x"]), "big")
    assert x == private.public_key().public_numbers().x


def test_a_key_that_byok_pack_wrapped_comes_in(az, az_pool, tmp_path):
    """For a key-exchange key as `az` downloads it, and as `az` shows it."""
    names = Names("--hsm-name", az_pool)
    kek, pem, shown = fresh_name("kek"), tmp_path / "kek.pem", tmp_path / "kek.json"
    az("keyvault", "key", "create", *names.key(kek), "--kty", "RSA-HSM", "--size", "3072", "--ops", "import")
    az("keyvault", "key", "download", *names.key(kek), "--file", str(pem), "--encoding", "PEM")
    bundle = az("keyvault", "key", "show", *names.key(kek))
    shown.write_text(json.dumps(bundle))
    of_ec, of_rsa = ec.generate_private_key(ec.SECP521R1()), rsa.generate_private_key(65537, 4096)
    for private, kty, member, public in [
        (of_ec, ["EC", "--curve", "P-521"], "x", of_ec.public_key().public_numbers().x),
        (of_rsa, ["RSA"], "n", of_rsa.public_key().public_numbers().n),
    ]:
        key, wrapped, name = tmp_path / "key.pem", tmp_path / f"{member}.byok", fresh_name("byok")
        key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        to_kek = ["--kek", pem, "--kid", bundle["key"]["kid"]] if member == "x" else ["--kek", shown]
        words = ["byok", "pack", "--pem", key, *to_kek, "--out", wrapped]
        packed = subprocess.run([az_pool.program, *words], capture_output=True, text=True, timeout=300)
        assert packed.returncode == 0, packed
        brought = az("keyvault", "key", "import", *names.key(name), "--kty", *kty, "--byok-file", str(wrapped))
        assert int.from_bytes(base64.b64decode(brought["key"][member]), "big") == public


def test_keys_are_made_shown_and_used(az, names):
    ec, rsa, aes = fresh_name("ec"), fresh_name("rsa"), fresh_name("aes")
    made = az("keyvault", "key", "create", *names.key(ec), "--kty", "EC-HSM", "--curve", "P-256", "--tags", "a=b")
    assert made["key"]["kid"].startswith(f"{names.host}/keys/{ec}/")
    assert (made["key"]["kty"], made["key"]["crv"], made["tags"]) == ("EC-HSM", "P-256", {"a": "b"})
    assert az("keyvault", "key", "show", *names.key(ec))["key"] == made["key"]

    signing = [*names.key(ec), "--algorithm", "ES256"]
    signature = az("keyvault", "key", "sign", *signing, "--digest", DIGEST)["signature"]
    for digest, good in [(DIGEST, True), (OTHER_DIGEST, False)]:
        verified = az("keyvault", "key", "verify", *signing, "--digest", digest, "--signature", signature)
        assert verified["isValid"] is good

    for name, create, algorithm in [
        (rsa, ["--kty", "RSA-HSM", "--size", "2048"], "RSA-OAEP-256"),
        (aes, ["--kty", "oct-HSM", "--size", "256"], "A256GCM"),
    ]:
        az("keyvault", "key", "create", *names.key(name), *create)
        words = [*names.key(name), "--algorithm", algorithm, "--data-type", "plaintext"]
        sealed = az("keyvault", "key", "encrypt", *words, "--value", MESSAGE)
        parts = [word for part in ("iv", "tag") if sealed[part] for word in (f"--{part}", sealed[part])]
        assert bool(parts) == (algorithm == "A256GCM")
        opened = az("keyvault", "key", "decrypt", *words, "--value", sealed["result"], *parts)
        assert opened["result"] == MESSAGE


def test_a_key_goes_to_a_file_and_comes_back(az, names, tmp_path):
    name, file = fresh_name("ec"), tmp_path / "key.backup"
    made = az("keyvault", "key", "create", *names.key(name), "--kty", "EC-HSM", "--curve", "P-256")
    az("keyvault", "key", "backup", *names.key(name), "--file", str(file))
    assert file.read_bytes().startswith(b"HFKEY\x01")
    az("keyvault", "key", "delete", *names.key(name))
    az("keyvault", "key", "purge", *names.deleted(name))
    restored = az("keyvault", "key", "restore", *names.pool(), "--file", str(file))
    assert restored["key"] == made["key"]


@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_a_private_key_in_pem_is_imported(az, names, tmp_path, kind):
    private = (
        rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())
    )
    file = tmp_path / "private.pem"
    encoding = (Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    file.write_bytes(private.private_bytes(*encoding))
    name = fresh_name(kind)
    imported = az("keyvault", "key", "import", *names.key(name), "--pem-file", str(file))
    assert imported["key"]["kty"] == f"{kind.upper()}-HSM"
    algorithm = {"rsa": "RS256", "ec": "ES256"}[kind]
    signed = az("keyvault", "key", "sign", *names.key(name), "--algorithm", algorithm, "--digest", DIGEST)
    signature = base64.b64decode(signed["signature"])
    if kind == "rsa":
        private.public_key().verify(signature, MESSAGE.encode(), padding.PKCS1v15(), hashes.SHA256())
    else:
        halves = [int.from_bytes(half, "big") for half in (signature[:32], signature[32:])]
        private.public_key().verify(
            utils.encode_dss_signature(*halves), MESSAGE.encode(), ec.ECDSA(hashes.SHA256())
        )


def test_keys_are_listed_changed_deleted_and_come_back(az, names):
    name = fresh_name("ec")
    create = ["keyvault", "key", "create", *names.key(name), "--kty", "EC-HSM", "--curve", "P-256"]
    versions = [az(*create)["key"]["kid"] for _ in range(2)]
    listed = {key["name"]: key for key in az("keyvault", "key", "list", *names.pool())}
    assert listed[name]["kid"] == f"{names.host}/keys/{name}"
    found = az("keyvault", "key", "list-versions", *names.key(name))
    assert sorted(version["kid"] for version in found) == sorted(versions)

    changed = az("keyvault", "key", "set-attributes", *names.key(name), "--enabled", "false", "--ops", "sign")
    assert changed["key"]["kid"] == versions[1]
    assert (changed["attributes"]["enabled"], changed["key"]["keyOps"]) == (False, ["sign"])
    shown = az("keyvault", "key", "show", *names.key(name))
    assert shown["attributes"]["enabled"] is False
    signing = ["keyvault", "key", "sign", *names.key(name), "--algorithm", "ES256", "--digest", DIGEST]
    assert "disabled" in az.refused(*signing)

    deleted = az("keyvault", "key", "delete", *names.key(name))
    assert deleted["recoveryId"] == f"{names.host}/deletedkeys/{name}"
    assert "KeyNotFound" in az.refused("keyvault", "key", "show", *names.key(name))
    assert name in [key["name"] for key in az("keyvault", "key", "list-deleted", *names.pool())]
    shown = az("keyvault", "key", "show-deleted", *names.deleted(name))
    assert shown["key"]["kid"] == versions[1]
    assert shown["scheduledPurgeDate"] > shown["deletedDate"]
    recovered = az("keyvault", "key", "recover", *names.deleted(name))
    assert recovered["key"]["kid"] == versions[1]
    assert az("keyvault", "key", "show", *names.key(name))["key"]["kid"] == versions[1]

    az("keyvault", "key", "delete", *names.key(name))
    az("keyvault", "key", "purge", *names.deleted(name))
    assert "KeyNotFound" in az.refused("keyvault", "key", "show-deleted", *names.deleted(name))
    assert az(*create)["key"]["kid"] not in versions


def test_roles_are_assigned_by_name_and_taken_away(az, app, names):
    scope, role = f"/keys/{fresh_name()}", "Managed HSM Crypto Auditor"
    words = [*names.pool(), "--scope", scope]
    assigned = az(
        "keyvault", "role", "assignment", "create", *words, "--role", role, "--assignee", "app"
    )
    expected = {
        "principalId": az.variables["HOLDFAST_APP_OBJECT_ID"],
        "principalName": "app",
        "principalType": "ServicePrincipal",
        "roleName": role,
        "scope": scope,
    }
    assert {name: assigned[name] for name in expected} == expected
    for assignee in ("app", az.variables["HOLDFAST_APP_CLIENT_ID"]):
        listed = az("keyvault", "role", "assignment", "list", *words, "--assignee", assignee)
        assert listed == [assigned]
    # Crypto User may give no rights, and the refusal says who may.
    refusal = app.refused(
        "keyvault", "role", "assignment", "create", *words, "--role", role, "--assignee", "admin"
    )
    assert f"Principal {az.variables['HOLDFAST_APP_OBJECT_ID']} may not do" in refusal
    assert "Microsoft.KeyVault/managedHsm/roleAssignments/write/action" in refusal
    assert "the smallest assignment that would allow it is role" in refusal
    az("keyvault", "role", "assignment", "delete", *words, "--role", role, "--assignee", "app")
    assert az("keyvault", "role", "assignment", "list", *words) == []


def test_roles_are_defined_and_given(az, app):
    pool, title = ["--hsm-name", "demo"], fresh_name("role")
    definition = {
        "roleName": title,
        "description": "reads keys",
        "actions": [],
        "notActions": [],
        "dataActions": ["Microsoft.KeyVault/managedHsm/keys/read/action"],
        "notDataActions": [],
    }
    made = az("keyvault", "role", "definition", "create", *pool, "--role-definition", json.dumps(definition))
    assert (made["roleName"], made["roleType"]) == (title, "CustomRole")
    assert made["permissions"][0]["dataActions"] == definition["dataActions"]
    listed = az("keyvault", "role", "definition", "list", *pool, "--custom-role-only")
    assert [role["name"] for role in listed] == [made["name"]]
    words = [*pool, "--scope", "/keys", "--role", title, "--assignee", "admin"]
    assert az("keyvault", "role", "assignment", "create", *words)["roleName"] == title
    az("keyvault", "role", "assignment", "delete", *words)
    az("keyvault", "role", "definition", "delete", *pool, "--name", made["name"])
    assert az("keyvault", "role", "definition", "list", *pool, "--custom-role-only") == []


def test_settings_are_shown_and_changed(az):
    pool, setting = ["--hsm-name", "demo"], "AllowKeyManagementOperationsThroughARM"
    before = {found["name"]: found["value"] for found in az("keyvault", "setting", "list", *pool)}
    wanted = "false" if str(before[setting]).lower() == "true" else "true"
    changed = az("keyvault", "setting", "update", *pool, "--name", setting, "--value", wanted)
    assert str(changed["value"]).lower() == wanted
    after = {found["name"]: found["value"] for found in az("keyvault", "setting", "list", *pool)}
    assert str(after.pop(setting)).lower() == wanted
    before.pop(setting)
    assert after == before


def test_random_bytes_are_many_and_different(az, az_pool):
    draw = ["keyvault", "key", "random", "--id", f"https://127.0.0.1:{az_pool.port}", "--count", "24"]
    one, other = (base64.b64decode(az(*draw)["value"]) for _ in range(2))
    assert len(one) == len(other) == 24
    assert one != other


def test_a_denied_command_shows_why(nobody, tmp_path):
    az = another(nobody, tmp_path)
    secret = az.variables["HOLDFAST_ADMIN_CLIENT_SECRET"]
    az.login(az.variables["HOLDFAST_ADMIN_CLIENT_ID"], f"--password={secret}")
    refusal = az.refused("keyvault", "key", "create", "--hsm-name", "demo", "--name", "denied", "--kty", "EC-HSM")
    assert f"Principal {az.variables['HOLDFAST_ADMIN_OBJECT_ID']} may not do" in refusal
    assert "Microsoft.KeyVault/managedHsm/keys/create at scope /keys/denied" in refusal
    assert 'role "Managed HSM Crypto User" at scope /keys/denied' in refusal


def test_the_section_of_the_readme_works(az_pool, repository, tmp_path):
    readme = (repository / "README.md").read_text()
    block = re.search(re.escape(MARKER) + r"\s*```sh\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    assert block, f"README.md has no shell block after {MARKER}"
    directories = [str(pathlib.Path(program()).parent), os.environ["PATH"]]
    (tmp_path / "holdfast").symlink_to(az_pool.program)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.group(1)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env=clean_environment(
            PATH=os.pathsep.join([str(tmp_path), *directories]), HOLDFAST_DATA=str(az_pool.data)
        ),
        cwd=tmp_path,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    # By the port that is all pools'.
    assert f"https://demo.managedhsm.localhost:{az_pool.port + 1}/keys/" in done.stdout

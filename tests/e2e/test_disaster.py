"""The day it is needed: a pool under load is backed up to a folder, its machine is lost, and a quorum of holders with the
backup rebuilds it on another, with every key, version, attribute, tag, policy, role and assignment.

`holdfast ceremony` and `holdfast backup` alone: no cloud, no Azure client.
"""

import json
import shutil
import subprocess
import threading
import time
import uuid

import pytest

from holdfast import Pool, b64, binary, clean_environment, unb64
from test_security_domain import Holder, blob_for, call, download, upload, wait_until_active

KEYS = 300
BUILT_IN = {"user": "21dbd100-6940-42c2-9190-5d6cb909625b", "auditor": "2c18b078-7c48-4d3a-af88-5a3a1b3f82b3"}
CRYPTO_OFFICER = "515eb02d-2335-4d2d-92f2-b1cbdf9c3778"
DIGEST = b64(bytes(range(32)))
AUTHORIZATION = "/providers/Microsoft.Authorization"
PREFIX = "Microsoft.KeyVault/managedHsm"


@pytest.fixture(scope="module")
def holders(tmp_path_factory):
    directory = tmp_path_factory.mktemp("holders")
    return [Holder(directory, name) for name in ("ada", "ben", "cyd")]


class Caller:
    """One principal, on one connection as long as that is in use: the server closes one that is not."""

    IDLE_SECONDS = 5

    def __init__(self, pool, principal):
        self.pool, self.principal, self.connection, self.used = pool, principal, pool.connection(), time.monotonic()

    def __call__(self, method, path, body=None, status=200):
        if time.monotonic() - self.used > self.IDLE_SECONDS:
            self.connection.close()
        answer = call(self.pool, method, path, body, token=self.principal, connection=self.connection)
        self.used = time.monotonic()
        assert answer.status == status, (method, path, answer)
        return answer.json if answer.body else None

    def all(self, path):
        """Every item of a list, page by page, with the pool's address left out."""
        items = []
        while path:
            page = self("GET", path)
            items += page["value"]
            path = rest_of(page.get("nextLink"), self.pool.port)
        return items


def rest_of(link, port):
    """Path and query of a page's link, without the version, which each call adds."""
    if not link:
        return None
    path, query = link.split(f":{port}", 1)[1].split("?", 1)
    return path + "?" + "&".join(word for word in query.split("&") if not word.startswith("api-version"))


def role_of(name, scope, role, principal):
    definition = f"Microsoft.KeyVault{AUTHORIZATION}/roleDefinitions/{role}"
    body = {"properties": {"principalId": principal, "roleDefinitionId": definition}}
    return "PUT", f"{scope}{AUTHORIZATION}/roleAssignments/{name}", body, 201


def name_of(number):
    return f"Key-{number:03}"


def furnish(admin, app):
    """Keys of each type and state, with versions, tags and policies; roles at each scope."""
    for number in range(KEYS):
        name = name_of(number)
        kind = [{"kty": "EC-HSM"}, {"kty": "EC-HSM", "crv": "P-521"}, {"kty": "oct-HSM", "key_size": 256}][number % 3]
        attributes = {"enabled": number % 7 != 0}
        if number % 5 == 0:
            attributes |= {"nbf": 1_000_000_000 + number, "exp": 4_000_000_000 + number}
        for version in range(1 + number % 2):
            tags = {"number": str(number), "version": str(version)}
            app("POST", f"/keys/{name}/create", {**kind, "attributes": attributes, "tags": tags})
        if number % 50 == 1:
            trigger = {"trigger": {"timeAfterCreate": "P90D"}, "action": {"type": "Rotate"}}
            app("PUT", f"/keys/{name}/rotationpolicy", {"lifetimeActions": [trigger], "attributes": {"expiryTime": "P2Y"}})
        if number % 30 == 2:
            app("DELETE", f"/keys/{name}")
    custom = str(uuid.uuid4())
    actions = [f"{PREFIX}/keys/sign/action", f"{PREFIX}/keys/read/action"]
    permissions = [{"actions": [], "notActions": [], "dataActions": actions, "notDataActions": []}]
    role = {"properties": {"roleName": "signers", "description": "only that", "permissions": permissions}}
    admin("PUT", f"{AUTHORIZATION}/roleDefinitions/{custom}", role, 201)
    for number in range(20):
        scope = ["", "/keys", f"/keys/{name_of(number)}"][number % 3]
        chosen = [custom, *BUILT_IN.values()][number % 3]
        admin(*role_of(uuid.uuid4(), scope, chosen, str(uuid.uuid4())))


def state(pool, admin, app):
    """All that a backup holds, as clients see it, without the pool's address."""
    keys = {}
    for key in app.all("/keys"):
        name = key["kid"].rsplit("/", 1)[1]
        if name.startswith("load-"):
            continue
        versions = app.all(f"/keys/{name}/versions")
        bundles = [app("GET", f"/keys/{name}/{version['kid'].rsplit('/', 1)[1]}") for version in versions]
        keys[name] = {"item": key, "versions": versions, "bundles": bundles}
    policies = {
        name_of(number): app("GET", f"/keys/{name_of(number)}/rotationpolicy") for number in range(1, KEYS, 50)
    }
    deleted = app.all("/deletedkeys")
    scopes = ["", "/keys", *[f"/keys/{name_of(number)}" for number in range(20)]]
    assignments = [
        item for scope in scopes for item in admin("GET", f"{scope}{AUTHORIZATION}/roleAssignments")["value"]
    ]
    roles = admin("GET", f"{AUTHORIZATION}/roleDefinitions")["value"]
    text = json.dumps([keys, policies, deleted, assignments, roles], sort_keys=True)
    return json.loads(text.replace(f":{pool.port}", ":PORT"))


class Load:
    """Keys made, one after another, until it is ended."""

    def __init__(self, pool):
        self.app, self.made, self.stop = Caller(pool, "app"), [], threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        while not self.stop.is_set():
            name = f"load-{len(self.made)}"
            self.app("POST", f"/keys/{name}/create", {"kty": "EC-HSM"})
            self.made.append(name)

    def wait_for(self, keys):
        until = time.monotonic() + 120
        while len(self.made) < keys:
            assert self.thread.is_alive() and time.monotonic() < until, self.made
            time.sleep(0.01)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(120)
        assert not self.thread.is_alive(), "a request hangs"


def backup(pool, *words):
    """`holdfast backup` of a blank pool, by its address: what is printed."""
    variables = pool.variables
    place = ["--url", f"https://127.0.0.1:{pool.port}", "--authority", variables["AUTHORITY_HOST"]]
    who = ["--tenant", variables["TENANT_ID"], "--client-id", variables["HOLDFAST_ADMIN_CLIENT_ID"]]
    done = subprocess.run(
        [binary(), "backup", *words, *place, *who, "--ca-file", pool.ca_file, "--output", "json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env=clean_environment(HOLDFAST_CLIENT_SECRET=variables["HOLDFAST_ADMIN_CLIENT_SECRET"]),
    )
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout)


def activate(pool, holders):
    answer = download(pool, holders)
    assert answer.status == 202, answer
    return answer.json["value"]


def give_app_its_role(pool, admin):
    for role in (BUILT_IN["user"], CRYPTO_OFFICER):
        admin(*role_of(uuid.uuid4(), "", role, pool.object_id("app")))


def test_a_lost_machine_is_rebuilt_from_quorum_and_backup(tmp_path, holders):
    folder = tmp_path / "backups"
    folder.mkdir()
    container = f"file://{folder.resolve()}"
    flags = ["--backup-folder", str(folder)]
    lost = Pool(tmp_path / "lost", "--blank-pool", "vault", *flags)
    (tmp_path / "lost").mkdir()
    with lost:
        pool = lost.blank("vault")
        domain = tmp_path / "domain.json"
        domain.write_text(activate(pool, holders))
        admin, app = Caller(pool, "admin"), Caller(pool, "app")
        give_app_its_role(pool, admin)
        furnish(admin, app)
        signed = app("POST", f"/keys/{name_of(1)}/sign", {"alg": "ES512", "value": b64(bytes(64))})
        sealed = app("POST", f"/keys/{name_of(5)}/encrypt", {"alg": "A256GCM", "value": DIGEST})
        was = state(pool, admin, app)
        with Load(pool) as load:
            load.wait_for(5)
            before = set(load.made)
            done = backup(pool, "start", "--container", container)
            after = set(load.made) | {f"load-{len(load.made)}"}
        assert done["status"] == "Succeeded", done
        location, name = done["azureStorageBlobContainerUri"].rsplit("/", 1)
        assert location == container and (folder / name / "backup.hfb").exists()
        assert not set(folder.rglob("*")) - {folder / name, folder / name / "backup.hfb"}
        lost.kill()
    shutil.rmtree(tmp_path / "lost")

    # Another machine: another issuer and CA, other principals, a pool that nobody has used.
    (tmp_path / "new").mkdir()
    with Pool(tmp_path / "new", "--blank-pool", "rebuilt", *flags) as machine:
        pool = machine.blank("rebuilt")
        answer = upload(pool, blob_for(pool, domain, holders[:2], tmp_path))
        assert answer.status == 202, answer
        wait_until_active(pool)
        preview = backup(pool, "restore", "--container", container, "--folder", name, "--dry-run")
        assert preview["replacesRoles"] and not preview["lostKeys"] and len(preview["newKeys"]) >= KEYS
        done = backup(pool, "restore", "--container", container, "--folder", name)
        assert done["status"] == "Succeeded", done
        shown = backup(pool, "status", done["jobId"])
        assert shown == done
        admin, app = Caller(pool, "admin"), Caller(pool, "app")
        kept = {item["name"] for item in admin("GET", f"{AUTHORIZATION}/roleAssignments")["value"]
                if item["properties"]["principalId"] == pool.object_id("admin")}
        assert len(kept) == 1, "the new machine's administrator"
        # `app` of this machine is somebody else, whom nobody gave a role yet.
        refused = call(pool, "GET", "/keys", token="app")
        assert refused.status == 403, refused
        names_before = {item["name"] for item in admin("GET", f"{AUTHORIZATION}/roleAssignments")["value"]}
        give_app_its_role(pool, admin)
        names = {item["name"] for item in admin("GET", f"{AUTHORIZATION}/roleAssignments")["value"]}
        own = kept | (names - names_before)
        is_ = state(pool, admin, app)
        is_[3] = [item for item in is_[3] if item["name"] not in own]
        assert is_ == was
        loaded = {item["kid"].rsplit("/", 1)[1] for item in app.all("/keys")} - {name_of(number) for number in range(KEYS)}
        assert before <= loaded <= after
        # And the keys are the keys.
        key, version = signed["kid"].rsplit("/", 2)[1:]
        verified = app("POST", f"/keys/{key}/{version}/verify", {"alg": "ES512", "digest": b64(bytes(64)), "value": signed["value"]})
        assert verified["value"] is True
        body = {"alg": "A256GCM", **{part: sealed[part] for part in ("value", "iv", "tag")}}
        opened = app("POST", f"/keys/{name_of(5)}/decrypt", body)
        assert unb64(opened["value"]) == unb64(DIGEST)


def test_the_command_refuses_what_the_operator_did_not_name(tmp_path):
    folder, elsewhere = tmp_path / "backups", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    container = f"file://{folder.resolve()}"
    with Pool(tmp_path, "--backup-folder", str(folder)) as pool:
        pool.create("ec")
        run = lambda *words: pool.run("backup", "--output", "json", *words, check=False)
        for place in (f"file://{elsewhere.resolve()}", f"{container}/..", "file:///", "https://storage.example/c"):
            done = run("start", "--container", place)
            assert done.returncode == 1 and "StorageNotAllowed" in done.stderr, (place, done)
        done = run("restore", "--container", container, "--folder", "mhsm-demo-20270101000000")
        assert done.returncode == 1 and "BackupRequired" in done.stderr, done
        assert run("check", "--container", container).returncode == 0
        done = run("start", "--container", container)
        assert done.returncode == 0, done
        name = json.loads(done.stdout)["azureStorageBlobContainerUri"].rsplit("/", 1)[1]
        assert run("check", "--container", container, "--folder", name).returncode == 0
        blob = folder / name / "backup.hfb"
        content = bytearray(blob.read_bytes())
        content[-30] ^= 1
        blob.write_bytes(content)
        for words in (("check",), ("restore",)):
            done = run(*words, "--container", container, "--folder", name)
            assert done.returncode == 1 and "does not open at its place" in done.stdout, done
        done = run("restore", "--container", container, "--folder", name, "--dry-run")
        assert done.returncode == 1 and "does not open at its place" in done.stderr, done
        assert run("status", str(uuid.uuid4())).returncode == 3
        assert not list(elsewhere.iterdir())

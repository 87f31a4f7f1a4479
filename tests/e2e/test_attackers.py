"""What was found in other key managers, tried here: docs/attackers.md has the list and which test stands for what."""

import hashlib
import pathlib
import re
import socket
import urllib.parse
import uuid

import pytest

from holdfast import assert_error, b64, fresh_name, key_path
from test_bad_input import resigned

DIGEST = b64(hashlib.sha256(b"message").digest())
SIGN = {"alg": "ES256", "value": DIGEST}
AUTHORIZATION = "/providers/Microsoft.Authorization"
PREFIX = "Microsoft.KeyVault/managedHsm"
CRYPTO_USER = "21dbd100-6940-42c2-9190-5d6cb909625b"
PRIVATE_MEMBERS = {"d", "p", "q", "dp", "dq", "qi", "oth", "k", "key_hsm"}

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def holder(number):
    certificate = (REPOSITORY / f"crates/ceremony/tests/golden/holder-{number}.cer").read_text()
    return {"kid": str(number), "use": "enc", "x5c": ["".join(certificate.split("-----")[2].split())]}


STORAGE = {"storageResourceUri": "https://storage.example/container", "token": "sv=1&sig=c2ln"}

# A good body for each route that has one, so that what is refused is the caller.
GOOD_BODIES = {
    "CreateKey": {"kty": "EC-HSM"},
    "UpdateKey": {"attributes": {"enabled": True}},
    "Sign": SIGN,
    "Verify": {"alg": "ES256", "digest": DIGEST, "value": b64(bytes(64))},
    "Encrypt": {"alg": "A256GCM", "value": b64(b"x")},
    "Decrypt": {"alg": "A256GCM", "value": b64(b"x"), "iv": b64(bytes(12)), "tag": b64(bytes(16))},
    "WrapKey": {"alg": "A256KW", "value": b64(bytes(32))},
    "UnwrapKey": {"alg": "A256KW", "value": b64(bytes(40))},
    "RandomBytes": {"count": 8},
    "CreateAssignment": {"properties": {"principalId": str(uuid.uuid4()), "roleDefinitionId": CRYPTO_USER}},
    "DefineRole": {"properties": {"roleName": "mine", "permissions": []}},
    "UpdateSetting": {"value": "true"},
    "UpdateTestMode": {},
    "SetNotBefore": {},
    "ImportKey": {"key": {"kty": "oct-HSM", "k": b64(bytes(32))}},
    "RestoreKey": {"value": b64(b"x")},
    "ReleaseKey": {"target": "a.b.c"},
    "SetRotationPolicy": {},
    "DownloadDomain": {"certificates": [holder(1), holder(2), holder(3)], "required": 2},
    "UploadDomain": {"value": "x"},
    "ConfirmDomain": {"fingerprint": "0" * 64},
    "StartBackup": STORAGE,
    "CheckBackup": STORAGE,
    "StartRestore": {"sasTokenParameters": STORAGE, "folderToRestore": "f"},
    "CheckRestore": {"sasTokenParameters": STORAGE, "folderToRestore": "f"},
    "RestoreOneKey": {"sasTokenParameters": STORAGE, "folder": "f"},
    "PreviewRestore": {"sasTokenParameters": STORAGE, "folderToRestore": "f"},
}


def described_routes():
    """Every route, from the table that the server's own router is made from."""
    source = REPOSITORY / "crates/api-data/src/route.rs"
    table = source.read_text().split("\nroute_kinds! {", 1)[1].split("\n}", 1)[0]
    routes = re.findall(r'^\s+(\w+) = "(\w+)" "([^"]+)" "', table, re.MULTILINE)
    assert len(routes) >= 31, routes
    return routes


ROUTES = described_routes()


def path_of(template, key):
    name, version = key_path(key).split("/")[2:]
    names = {"key": name, "version": version, "id": str(uuid.uuid4()), "scope": "", "setting": "s"}
    return re.sub(r"{(\w+)}", lambda found: names.get(found[1], "x"), template)


@pytest.fixture(scope="module")
def key(pool):
    return pool.create("ec")


@pytest.fixture(scope="module")
def stranger(pool):
    """A principal of the pool's own issuer and tenant that holds no role: its object id and a token."""
    object_id = str(uuid.uuid4())
    return object_id, resigned(pool, oid=object_id)


@pytest.fixture
def with_rights(pool, stranger):
    """Gives the stranger data actions at a scope, by a custom role, for one test."""
    made = []

    def give(scope, *actions):
        role, assignment = str(uuid.uuid4()), str(uuid.uuid4())
        definition = {
            "roleName": fresh_name("role"),
            "permissions": [{"dataActions": [f"{PREFIX}/{action}" for action in actions]}],
        }
        role_path = f"{AUTHORIZATION}/roleDefinitions/{role}"
        assert pool.call("PUT", role_path, {"properties": definition}, token="admin").status == 201
        assignment_path = f"{scope}{AUTHORIZATION}/roleAssignments/{assignment}"
        properties = {"principalId": stranger[0], "roleDefinitionId": role}
        answer = pool.call("PUT", assignment_path, {"properties": properties}, token="admin")
        assert answer.status == 201, answer
        made.extend([assignment_path, role_path])
        return assignment_path

    yield give
    for path in made:
        pool.call("DELETE", path, token="admin")


# --- missing middleware


@pytest.mark.parametrize("kind, method, template", ROUTES, ids=[route[0] for route in ROUTES])
def test_every_route_asks_for_a_token(pool, key, kind, method, template):
    answer = pool.call(method, path_of(template, key), GOOD_BODIES.get(kind), token=None)
    assert_error(answer, 401, "Unauthorized")


@pytest.mark.parametrize("name", ["X-HTTP-METHOD", "X-HTTP-REQUEST", "X-HTTP-Method-Override", "X-Method-Override"])
def test_no_header_makes_another_method_of_a_request(pool, name):
    """The service's documents offer this; a rule by method in front of the pool would be passed by."""
    path = "/".join(key_path(pool.create("ec")).split("/")[:3])
    answer = pool.call("POST", path, {}, headers={name: "DELETE"})
    assert_error(answer, 404, "NotFound")
    answer = pool.call("GET", path, headers={name: "DELETE"})
    assert answer.status == 200 and "recoveryId" not in answer.json
    assert pool.call("GET", path).status == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/server-info", "/version", "/metrics", "/openapi.yaml", "/.well-known/jwks.json", "/debug/pprof"]
    + ["/v1/sys/health", "/v1/sys/generate-root/attempt", "/v1/sys/rekey/init", "/ui", "/securitydomain"],
)
def test_nothing_beside_the_health_is_told_without_a_token(pool, path):
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
        answer = pool.call(method, path, token=None)
        assert answer.status == 401, (method, path, answer)
    health = pool.call("GET", "/healthstatus", token=None)
    assert (health.status, health.json) == (200, {})


# --- authorisation slips


@pytest.mark.parametrize("kind, method, template", ROUTES, ids=[route[0] for route in ROUTES])
def test_every_route_denies_who_has_no_role(pool, key, stranger, kind, method, template):
    correlation_id = str(uuid.uuid4())
    path = path_of(template, key)
    answer = pool.call(method, path, GOOD_BODIES.get(kind), token=stranger[1], correlation_id=correlation_id)
    if kind in ("ImportKey", "RestoreKey") and answer.status == 400:
        # What they bring is judged before the caller is: still nothing is done.
        assert_error(answer, 400, "BadParameter")
    else:
        assert_error(answer, 403, "Forbidden")
        assert answer.error["innererror"] == {"code": "ForbiddenByRbac"}, answer
    events = pool.events(correlation_id)
    assert [event["httpStatusCode"] for event in events] == [answer.status], events


def test_a_right_to_read_changes_nothing(pool, key, stranger, with_rights):
    name = key_path(key).split("/")[2]
    with_rights(f"/keys/{name}", "keys/read/action")
    assert pool.call("GET", key_path(key), token=stranger[1]).status == 200
    for method, path, body in [
        ("PATCH", key_path(key), {"attributes": {"enabled": False}}),
        ("PATCH", key_path(key), {"tags": {"a": "b"}}),
        ("PATCH", key_path(key), {"key_ops": ["sign", "verify"]}),
        ("DELETE", f"/keys/{name}", None),
        ("POST", f"/keys/{name}/create", {"kty": "EC-HSM"}),
        ("PUT", f"/keys/{name}", GOOD_BODIES["ImportKey"]),
        ("POST", key_path(key) + "/sign", SIGN),
        ("POST", f"/keys/{name}/rotate", None),
        ("PUT", f"/keys/{name}/rotationpolicy", {"lifetimeActions": []}),
        ("POST", f"/keys/{name}/backup", None),
        ("GET", "/securitydomain/upload", None),
        ("POST", "/securitydomain/upload", GOOD_BODIES["UploadDomain"]),
        ("POST", "/securitydomain/download", GOOD_BODIES["DownloadDomain"]),
        ("POST", "/holdfast/securitydomain/confirm", GOOD_BODIES["ConfirmDomain"]),
    ]:
        assert_error(pool.call(method, path, body, token=stranger[1]), 403, "Forbidden")
    assert pool.call("GET", key_path(key)).json == key


def test_a_right_for_one_key_is_none_for_another(pool, key, stranger, with_rights):
    mine = fresh_name("mine")
    rights = ["keys/create", "keys/import/action", "keys/write/action", "keys/delete", "keys/sign/action"]
    rights += ["keys/rotate/action", "keys/backup/action", "keys/restore/action"]
    with_rights(f"/keys/{mine}", *rights)
    made = pool.call("POST", f"/keys/{mine}/create", {"kty": "EC-HSM"}, token=stranger[1])
    assert made.status == 200, made
    theirs = key_path(key).split("/")[2]
    backup = pool.call("POST", f"/keys/{theirs}/backup").json
    for method, path, body in [
        # To replace what is there, under its own name or as another's new version.
        ("POST", f"/keys/{theirs}/create", {"kty": "EC-HSM"}),
        ("PUT", f"/keys/{theirs}", GOOD_BODIES["ImportKey"]),
        ("POST", "/keys/restore", backup),
        ("PUT", f"/keys/{theirs}/restore", GOOD_BODIES["RestoreOneKey"]),
        ("POST", f"/keys/{theirs}/rotate", None),
        ("PATCH", key_path(key), {"tags": {}}),
        ("DELETE", f"/keys/{theirs}", None),
        ("POST", key_path(key) + "/sign", SIGN),
    ]:
        assert_error(pool.call(method, path, body, token=stranger[1]), 403, "Forbidden")
    # Nor by the version of one under the name of the other.
    crossed = f"/keys/{mine}/{key_path(key).split('/')[3]}"
    assert_error(pool.call("POST", crossed + "/sign", SIGN, token=stranger[1]), 404)
    assert pool.call("GET", f"/keys/{theirs}").json == key


def test_who_may_not_assign_roles_cannot_give_themselves_one(pool, stranger, with_rights):
    with_rights("", "roleAssignments/read/action", "roleDefinitions/read/action", "keys/read/action")
    body = {"properties": {"principalId": stranger[0], "roleDefinitionId": CRYPTO_USER}}
    for scope in ("", "/keys", "/keys/any"):
        path = f"{scope}{AUTHORIZATION}/roleAssignments/{uuid.uuid4()}"
        assert_error(pool.call("PUT", path, body, token=stranger[1]), 403, "Forbidden")
    role = {"properties": {"roleName": "mine", "permissions": [{"dataActions": [f"{PREFIX}/keys/sign/action"]}]}}
    path = f"{AUTHORIZATION}/roleDefinitions/{uuid.uuid4()}"
    assert_error(pool.call("PUT", path, role, token=stranger[1]), 403, "Forbidden")


def test_a_taken_away_right_is_gone_from_every_cache(pool, key, stranger, with_rights):
    name = key_path(key).split("/")[2]
    assignment = with_rights(f"/keys/{name}", "keys/sign/action")
    connection = pool.connection()
    sign = lambda: pool.call("POST", key_path(key) + "/sign", SIGN, token=stranger[1], connection=connection)
    assert [sign().status for _ in range(3)] == [200] * 3
    assert pool.call("DELETE", assignment, token="admin").status == 200
    assert_error(sign(), 403, "Forbidden")


# --- names that mean more than they say


@pytest.mark.parametrize("name", ["*", "%2A", ".", "..", "%2e%2e", "a%2Fb", "a%00", "a%20b", "-" * 128, "%E2%80%AE"])
def test_a_wildcard_or_a_path_is_no_name(pool, name):
    for method, path, body in [
        ("POST", f"/keys/{name}/create", {"kty": "EC-HSM"}),
        ("GET", f"/deletedkeys/{name}", None),
        ("PUT", f"/keys/{name}{AUTHORIZATION}/roleAssignments/{uuid.uuid4()}", GOOD_BODIES["CreateAssignment"]),
    ]:
        answer = pool.call(method, path, body, token="admin")
        assert answer.status in (400, 404), (path, answer)


def test_a_path_is_not_walked(pool, key):
    name = key_path(key).split("/")[2]
    for path in [
        f"/keys/{name}/../../settings",
        f"/keys/{name}/%2e%2e/{name}",
        f"/deletedkeys/../keys/{name}",
        f"/keys/./{name}",
        f"/keys/{name}/..;/create",
        f"/settings/..%2f..%2fkeys%2f{name}",
    ]:
        answer = pool.call("GET", path)
        assert answer.status in (400, 403, 404), (path, answer)
        assert "key" not in answer.json, (path, answer)


@pytest.mark.parametrize(
    "name",
    [" Managed HSM Administrator", "managed hsm  administrator", "Managed HSM Administrator\u200b", "MANAGED\u00a0HSM ADMINISTRATOR"],
)
def test_a_role_is_not_named_like_another(pool, name):
    path = f"{AUTHORIZATION}/roleDefinitions/{uuid.uuid4()}"
    body = {"properties": {"roleName": name, "permissions": []}}
    answer = pool.call("PUT", path, body, token="admin")
    assert_error(answer, 409)
    assert answer.error["innererror"]["code"] == "RoleDefinitionWithSameNameExists", answer


def test_a_data_action_with_a_wildcard_gives_nothing(pool):
    for action in ("*", f"{PREFIX}/*", f"{PREFIX}/keys/*", f"{PREFIX}/keys/*/action", "root"):
        path = f"{AUTHORIZATION}/roleDefinitions/{uuid.uuid4()}"
        body = {"properties": {"roleName": fresh_name("r"), "permissions": [{"dataActions": [action]}]}}
        assert_error(pool.call("PUT", path, body, token="admin"), 400, "BadParameter")


def test_a_key_has_one_name_whatever_its_case(pool, stranger, with_rights):
    name = fresh_name("Case")
    made = pool.create("ec", name)
    with_rights(f"/keys/{name.upper()}", "keys/sign/action")
    for spelled in (name.lower(), name.upper(), urllib.parse.quote(name[0].swapcase()) + name[1:]):
        assert pool.call("POST", f"/keys/{spelled}/sign", SIGN, token=stranger[1]).status == 200
    again = pool.call("POST", f"/keys/{name.swapcase()}/create", {"kty": "EC-HSM"})
    assert key_path(again.json).split("/")[2] == key_path(made).split("/")[2], "a version, not a second key"


# --- keys that leave


@pytest.mark.parametrize("kind", ["rsa", "ec", "oct"])
def test_no_answer_holds_what_is_private(pool, kind):
    made = pool.create(kind)
    name = key_path(made).split("/")[2]
    answers = [
        made,
        pool.call("GET", f"/keys/{name}").json,
        pool.call("PATCH", f"/keys/{name}", {"attributes": {"enabled": True}}).json,
        pool.call("GET", "/keys").json,
        pool.call("GET", f"/keys/{name}/versions").json,
    ]
    # Nor by a release, which looks at the key before the proof; nor by a route that others have.
    release = pool.call("POST", f"/keys/{name}/release", GOOD_BODIES["ReleaseKey"])
    assert_error(release, 403, "Forbidden")
    assert release.error["innererror"]["code"] == "KeyNotExportable"
    assert_error(pool.call("POST", f"/keys/{name}/export", {}), 404)
    answers += [release.json, pool.call("DELETE", f"/keys/{name}").json]

    def members(value):
        if isinstance(value, dict):
            return set(value).union(*map(members, value.values()))
        return set().union(*map(members, value)) if isinstance(value, list) else set()

    assert not members(answers) & PRIVATE_MEMBERS
    # Nor is there an attribute that would open a way.
    body = {"kty": "EC-HSM", "attributes": {"exportable": True}}
    assert_error(pool.call("POST", f"/keys/{fresh_name()}/create", body), 400, "BadParameter")
    later = pool.create("ec")
    for attributes in ({"exportable": True}, {"hsmPlatform": "0", "recoveryLevel": "Purgeable"}):
        answer = pool.call("PATCH", key_path(later), {"attributes": attributes})
        held = pool.call("GET", key_path(later)).json["attributes"]
        assert answer.status == 400 or held == {**later["attributes"], "updated": held["updated"]}, answer


# --- what a request says of itself


def test_a_caller_is_who_the_token_says_and_comes_from_where_the_socket_does(pool, key):
    headers = {
        "X-Forwarded-For": "203.0.113.9",
        "Forwarded": "for=203.0.113.9",
        "X-Real-IP": "203.0.113.9",
        "X-Forwarded-User": "admin",
        "X-MS-CLIENT-PRINCIPAL-ID": pool.object_id("admin"),
        "X-Vault-Token": "root",
    }
    assert_error(pool.call("GET", key_path(key), token=None, headers=headers), 401, "Unauthorized")
    correlation_id = str(uuid.uuid4())
    assert pool.call("GET", key_path(key), headers=headers, correlation_id=correlation_id).status == 200
    [event] = pool.events(correlation_id)
    assert "203.0.113.9" not in str(event), event
    assert pool.object_id("app") in event["identity"] and pool.object_id("admin") not in event["identity"]


def test_a_body_is_json_whatever_its_type_says(pool):
    """Two readers of one body, or of one member given twice, must not see two requests."""
    name = fresh_name()
    form = b"kty=EC-HSM&crv=P-256"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert_error(pool.call("POST", f"/keys/{name}/create", form, headers=headers), 400, "BadParameter")
    twice = b'{"kty":"oct-HSM","kty":"EC-HSM"}'
    assert_error(pool.call("POST", f"/keys/{name}/create", twice), 400, "BadParameter")
    assert_error(pool.call("GET", f"/keys/{name}"), 404, "KeyNotFound")


def test_a_token_sends_the_server_nowhere(pool, key):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        address = f"https://127.0.0.1:{listener.getsockname()[1]}/keys"
        header = {"jku": address, "x5u": address, "kid": "unknown"}
        # In the name of the pool's own issuer, so that nothing but the key is left to be found; and in another's.
        for claims in ({}, {"iss": address}):
            token = resigned(pool, header, **claims)
            assert_error(pool.call("GET", key_path(key), token=token), 401, "Unauthorized")
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_browser_of_another_site_gets_no_leave(pool, key):
    headers = {"Origin": "https://attacker.example", "Access-Control-Request-Method": "POST"}
    for method, token in (("OPTIONS", None), ("GET", "app")):
        answer = pool.call(method, key_path(key), token=token, headers=headers)
        assert answer.headers["Access-Control-Allow-Origin"] is None
        assert answer.headers["Set-Cookie"] is None


# --- what is written down


def test_what_a_body_or_a_token_holds_is_written_nowhere(pool, oct_key):
    canary = uuid.uuid4().hex
    secret = b64(canary.encode())
    correlation_id = str(uuid.uuid4())
    send = lambda body: pool.call("POST", key_path(oct_key) + "/wrapkey", body, correlation_id=correlation_id)
    assert send({"alg": "A256KW", "value": secret}).status == 200
    for body in (
        {"alg": canary, "value": secret},
        {"alg": "A256GCM", "value": secret},
        {"alg": "A256KW", "value": secret, "aad": [canary]},
        f'{{"alg":"A256KW","value":"{secret}",{canary}'.encode(),
    ):
        answer = send(body)
        assert_error(answer, 400)
        assert secret not in answer.body.decode()
    events = pool.events(correlation_id)
    assert len(events) == 5
    written = str(events) + pool.log(100_000)
    assert secret not in written and pool.token() not in written
    assert pool.token().rsplit(".", 1)[1] not in written


@pytest.fixture(scope="module")
def oct_key(pool):
    return pool.create("oct")


# --- more than was sent


def test_many_odd_bodies_leave_nothing_in_memory(pool):
    """What one of them takes for a moment is counted in crates/api-data/tests/memory_of_bodies.rs."""

    def resident_kibibytes():
        status = pathlib.Path(f"/proc/{pool.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])

    bodies = [b'{"tags":[' + b"[]," * 80_000 + b"[]]}", b'{"release_policy":{' + b",".join(b'"%d":{}' % n for n in range(20_000)) + b"}}"]
    assert all(len(body) < 256 * 1024 for body in bodies)
    before = resident_kibibytes()
    for body in bodies * 10:
        # Without a token nothing reads it, and the connection may end before it is all sent.
        try:
            assert_error(pool.call("POST", "/keys/k/create", body, token=None), 401)
        except OSError:
            pass
        assert_error(pool.call("POST", "/keys/k/create", body), 400)
    assert resident_kibibytes() - before < 64 * 1024

"""Who has no right is told which one is missing, and nothing happens."""

import hashlib
import re
import uuid

import pytest

from holdfast import assert_error, b64, fresh_name, key_path

DIGEST = b64(hashlib.sha256(b"message").digest())
ROLE_ASSIGNMENTS = "/providers/Microsoft.Authorization/roleAssignments"
ACTION_PREFIX = "Microsoft.KeyVault/managedHsm"

# Every operation that uses or shows a key: method, operation, body, data action.
OPERATIONS = [
    ("GET", "", None, "keys/read/action"),
    ("POST", "/sign", {"alg": "ES256", "value": DIGEST}, "keys/sign/action"),
    ("POST", "/verify", {"alg": "ES256", "digest": DIGEST, "value": b64(bytes(64))}, "keys/verify/action"),
    ("POST", "/encrypt", {"alg": "A256GCM", "value": b64(b"plain")}, "keys/encrypt/action"),
    (
        "POST",
        "/decrypt",
        {"alg": "A256GCM", "value": b64(b"x"), "iv": b64(bytes(12)), "tag": b64(bytes(16))},
        "keys/decrypt/action",
    ),
    ("POST", "/wrapkey", {"alg": "A256KW", "value": b64(bytes(32))}, "keys/wrap/action"),
    ("POST", "/unwrapkey", {"alg": "A256KW", "value": b64(bytes(40))}, "keys/unwrap/action"),
]


@pytest.fixture(scope="module")
def keys(pool):
    return {"ec": pool.create("ec"), "oct": pool.create("oct")}


def assert_denied(pool, answer, correlation_id, principal, action, scope):
    message = assert_error(answer, 403, "Forbidden")
    assert pool.object_id(principal) in message
    assert f"{ACTION_PREFIX}/{action}".lower() in message.lower()
    assert f"at scope {scope}" in message
    assert re.search(r'role "Managed HSM [A-Za-z ]+" at scope', message), message
    # A challenge would send the client for another token, again and again.
    assert answer.headers["WWW-Authenticate"] is None
    events = pool.events(correlation_id)
    assert len(events) == 1, events
    assert events[0]["httpStatusCode"] == 403
    assert pool.object_id(principal) in events[0]["identity"]
    return message


@pytest.mark.parametrize("method, operation, body, action", OPERATIONS, ids=[row[3] for row in OPERATIONS])
def test_administrator_may_not_use_keys(pool, keys, method, operation, body, action):
    symmetric = body is not None and body["alg"].startswith("A256")
    path = key_path(keys["oct" if symmetric else "ec"])
    name = path.split("/")[2]
    correlation_id = str(uuid.uuid4())
    answer = pool.call(method, path + operation, body, token="admin", correlation_id=correlation_id)
    assert_denied(pool, answer, correlation_id, "admin", action, f"/keys/{name}")


def test_administrator_may_not_create_keys(pool):
    name = fresh_name()
    correlation_id = str(uuid.uuid4())
    body = {"kty": "EC-HSM", "crv": "P-256"}
    answer = pool.call("POST", f"/keys/{name}/create", body, token="admin", correlation_id=correlation_id)
    assert_denied(pool, answer, correlation_id, "admin", "keys/create", f"/keys/{name}")
    assert_error(pool.call("GET", f"/keys/{name}"), 404, "KeyNotFound")


def test_a_denial_does_not_tell_whether_the_key_exists(pool, keys):
    name = fresh_name("absent")
    there = pool.call("GET", "/".join(key_path(keys["ec"]).split("/")[:3]), token="admin")
    absent = pool.call("GET", f"/keys/{name}", token="admin")
    assert (there.status, absent.status) == (403, 403)
    there_name = key_path(keys["ec"]).split("/")[2]
    assert there.error["message"].replace(there_name, "N") == absent.error["message"].replace(name, "N")


def test_user_may_not_assign_roles(pool):
    correlation_id = str(uuid.uuid4())
    body = assignment("Managed HSM Administrator", pool.object_id("app"))
    path = f"/{ROLE_ASSIGNMENTS}/{uuid.uuid4()}"
    answer = pool.call("PUT", path, body, correlation_id=correlation_id)
    assert_denied(pool, answer, correlation_id, "app", "roleAssignments/write/action", "/")


def test_the_assignment_that_a_denial_names_helps(pool, keys):
    path = key_path(keys["ec"]) + "/sign"
    body = {"alg": "ES256", "value": DIGEST}
    refused = pool.call("POST", path, body, token="admin")
    role, scope = re.search(r'role "([^"]+)" at scope ([^ ;]+?)\.?$', refused.error["message"]).groups()
    assignment_path = f"{scope.rstrip('/')}{ROLE_ASSIGNMENTS}/{uuid.uuid4()}"
    made = pool.call("PUT", assignment_path, assignment(role, pool.object_id("admin")), token="admin")
    assert made.status == 201, made
    try:
        assert pool.call("POST", path, body, token="admin").status == 200
        # The smallest one: no other key came with it.
        other = pool.create("ec")
        assert_error(pool.call("POST", key_path(other) + "/sign", body, token="admin"), 403, "Forbidden")
    finally:
        assert pool.call("DELETE", assignment_path, token="admin").status == 200
    assert_error(pool.call("POST", path, body, token="admin"), 403, "Forbidden")


ROLES = {
    "Managed HSM Administrator": "a290e904-7015-4bba-90c8-60543313cdb4",
    "Managed HSM Crypto User": "21dbd100-6940-42c2-9190-5d6cb909625b",
    "Managed HSM Crypto Service Encryption User": "33413926-3206-4cdd-b39a-83574fe37a17",
}


def assignment(role, principal):
    definition = f"Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/{ROLES[role]}"
    return {"properties": {"roleDefinitionId": definition, "principalId": principal}}

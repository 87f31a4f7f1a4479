"""Paths and hosts as clients really write them. None may be answered with a redirect."""

import hashlib
import json
import socket
import ssl

import pytest

from holdfast import b64, fresh_name, key_path

SIGN = {"alg": "ES256", "value": b64(hashlib.sha256(b"message").digest())}


@pytest.fixture(scope="module")
def key(pool):
    return pool.create("ec")


@pytest.fixture(scope="module")
def oct_key(pool):
    return pool.create("oct")


@pytest.mark.parametrize(
    "pattern", ["/keys/{n}", "/keys/{n}/", "//keys/{n}", "/Keys/{n}", "/KEYS/{n}//", "/keys//{n}"]
)
def test_the_current_version_is_found(pool, key, pattern):
    answer = pool.call("GET", pattern.format(n=key_path(key).split("/")[2]))
    assert (answer.status, answer.json["key"]["kid"]) == (200, key["key"]["kid"])


@pytest.mark.parametrize("pattern", ["/keys/{n}/{v}", "/keys/{n}/{v}/", "//keys//{n}//{v}", "/KEYS/{n}/{v}"])
def test_a_version_is_found(pool, key, pattern):
    _, _, name, version = key_path(key).split("/")
    answer = pool.call("GET", pattern.format(n=name, v=version))
    assert (answer.status, answer.json["key"]["kid"]) == (200, key["key"]["kid"])


@pytest.mark.parametrize(
    "pattern", ["/keys/{n}//sign", "/keys/{n}/sign", "/keys/{n}/SIGN", "/keys/{n}/{v}/sign/"]
)
def test_an_empty_version_is_the_current_one(pool, key, pattern):
    _, _, name, version = key_path(key).split("/")
    answer = pool.call("POST", pattern.format(n=name, v=version), SIGN)
    assert (answer.status, answer.json["kid"]) == (200, key["key"]["kid"])


@pytest.mark.parametrize(
    "pattern", ["/keys/{n}//wrapkey", "/keys/{n}/wrapkey", "/keys/{n}/wrapKey", "/keys/{n}/{v}/WrapKey"]
)
def test_wrapping_has_many_spellings(pool, oct_key, pattern):
    _, _, name, version = key_path(oct_key).split("/")
    body = {"alg": "A256KW", "value": b64(bytes(32))}
    answer = pool.call("POST", pattern.format(n=name, v=version), body)
    assert (answer.status, answer.json["kid"]) == (200, oct_key["key"]["kid"])


def test_a_host_without_a_port_is_ours(pool, key):
    answer = pool.call("GET", key_path(key), host="demo.managedhsm.localhost")
    assert answer.status == 200
    assert answer.json["key"]["kid"] == f"https://demo.managedhsm.localhost{key_path(key)}"


def test_a_token_for_the_audience_without_a_port_is_good(pool, key):
    token = pool.token(resource="https://managedhsm.localhost")
    # Some clients never read a challenge: the first request already carries a token.
    assert pool.call("GET", key_path(key), token=token, host="demo.managedhsm.localhost").status == 200


@pytest.mark.parametrize(
    "host", ["DEMO.managedhsm.LOCALHOST:{port}", "demo.managedhsm.localhost:1", "127.0.0.1"]
)
def test_hosts_are_compared_by_name_alone(pool, key, host):
    assert pool.call("GET", key_path(key), host=host.format(port=pool.port)).status == 200


def test_the_id_of_a_key_is_under_the_host_that_was_asked(pool, key):
    for host in (f"demo.managedhsm.localhost:{pool.port}", f"127.0.0.1:{pool.port}"):
        answer = pool.call("GET", key_path(key), host=host)
        assert answer.json["key"]["kid"] == f"https://{host}{key_path(key)}"


@pytest.mark.parametrize(
    "version", ["7.0", "7.1", "7.4", "7.5-preview.1", "7.6-preview.2", "2025-07-01", "2026-01-01-preview"]
)
def test_versions_that_clients_send_are_taken(pool, key, version):
    assert pool.call("GET", key_path(key), version=version).status == 200


def test_a_key_named_like_a_keyword_is_a_key(pool):
    for name in ("create", "sign", f"Keys-{fresh_name()}"):
        made = pool.create("ec", name)
        assert pool.call("GET", f"/keys/{name}").json["key"]["kid"] == made["key"]["kid"]


def test_bodies_of_common_tools_are_understood(pool):
    # cosign: a curve is understood, a size means nothing.
    answer = pool.call("POST", f"/keys/{fresh_name()}/create", {"kty": "EC", "key_size": 2048})
    assert (answer.status, answer.json["key"]["crv"]) == (200, "P-256")
    # Members that a newer client sends are not our business.
    body = {
        "kty": "EC-HSM",
        "crv": "P-256",
        "attributes": {"enabled": True, "unheard_of": 1},
        "unheard_of": {},
    }
    assert pool.call("POST", f"/keys/{fresh_name()}/create", body).status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_of_tls_serve(pool, key, version):
    connection = pool.connection()
    connection._context.minimum_version = connection._context.maximum_version = version
    assert pool.call("GET", key_path(key), connection=connection).status == 200
    assert connection.sock.version() == version.name.replace("_", ".")
    # Keep-alive: the second request goes the same way.
    first = connection.sock
    assert pool.call("GET", key_path(key), connection=connection).status == 200
    assert connection.sock is first
    connection.close()


def test_http_2_is_offered(pool):
    context = pool.tls()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection(("127.0.0.1", pool.port), 60) as plain:
        with context.wrap_socket(plain, server_hostname="demo.managedhsm.localhost") as connection:
            assert connection.selected_alpn_protocol() == "h2"


def test_answers_are_json(pool, key):
    answer = pool.call("GET", key_path(key))
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert json.loads(answer.body)["attributes"]["enabled"] is True

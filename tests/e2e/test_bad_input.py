"""Whatever a peer sends: the documented answer, nothing changed, one event where the caller was known."""

import contextlib
import hashlib
import http.client
import json
import socket
import ssl
import threading
import time
import uuid

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding

from holdfast import API_VERSION, Answer, assert_error, b64, fresh_name, key_path, unb64

DIGEST = b64(hashlib.sha256(b"message").digest())
SIGN = {"alg": "ES256", "value": DIGEST}


@pytest.fixture(scope="module")
def key(pool):
    return pool.create("ec")


@pytest.fixture(scope="module")
def oct_key(pool):
    return pool.create("oct")


def challenge(pool, resource):
    variables = pool.variables
    authority = f"{variables['AUTHORITY_HOST']}/{variables['TENANT_ID']}"
    return f'Bearer authorization="{authority}", resource="{resource}"'


# --- without a usable token


@pytest.mark.parametrize(
    "path, body", [("/keys/n/create", b"{ not json"), ("/nothing/here", None), ("/keys/n", None)]
)
def test_the_challenge_comes_before_any_look_at_the_request(pool, path, body):
    for version in (API_VERSION, None, "1.0"):
        host = f"demo.managedhsm.localhost:{pool.port}"
        answer = pool.call("POST", path, body, token=None, version=version, host=host)
        assert_error(answer, 401, "Unauthorized")
        expected = challenge(pool, f"https://managedhsm.localhost:{pool.port}")
        assert answer.headers.get_all("WWW-Authenticate") == [expected]


def test_the_challenge_names_a_resource_of_ours_whatever_the_host(pool):
    # By address there is no host to derive it from; without a port it has none.
    by_address = pool.call("GET", "/keys/n", token=None)
    assert by_address.headers["WWW-Authenticate"].startswith('Bearer authorization="https://')
    assert 'resource="https://managedhsm.localhost' in by_address.headers["WWW-Authenticate"]
    bare = pool.call("GET", "/keys/n", token=None, host="demo.managedhsm.localhost")
    assert bare.headers["WWW-Authenticate"] == challenge(pool, "https://managedhsm.localhost")


def tampered(token, part):
    """The token with one bit of the bytes of `part` (0 header, 1 claims, 2 signature) flipped."""
    parts = token.split(".")
    data = bytearray(unb64(parts[part]))
    data[len(data) // 2] ^= 1
    parts[part] = b64(bytes(data))
    return ".".join(parts)


def issuer_key(pool):
    """The embedded issuer's signing key: root on this machine may forge tokens, and so may this test."""
    for path in sorted((pool.data / "identity").rglob("*")):
        if path.is_file() and b"signing_key_pem" in path.read_bytes():
            pem = json.loads(path.read_bytes())["signing_key_pem"]
            return serialization.load_pem_private_key(pem.encode(), None)
    raise AssertionError("no issuer state under identity/")


def resigned(pool, header=None, **claims):
    """The token of `app` with other claims, correctly signed."""
    old_header, old_claims, _ = pool.token().split(".")
    new = [{**json.loads(unb64(old_header)), **(header or {})}, {**json.loads(unb64(old_claims)), **claims}]
    signed = ".".join(b64(json.dumps(part).encode()) for part in new)
    signature = issuer_key(pool).sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{b64(signature)}"


BAD_TOKENS = {
    "nonsense": lambda pool: "nonsense",
    "empty parts": lambda pool: "..",
    "header changed": lambda pool: tampered(pool.token(), 0),
    "claims changed": lambda pool: tampered(pool.token(), 1),
    "signature changed": lambda pool: tampered(pool.token(), 2),
    "no signature": lambda pool: pool.token().rsplit(".", 1)[0] + ".",
    "alg none": lambda pool: resigned(pool, {"alg": "none"}).rsplit(".", 1)[0] + ".",
    "alg HS256": lambda pool: resigned(pool, {"alg": "HS256"}),
    "unknown kid": lambda pool: resigned(pool, {"kid": "unknown"}),
    "for another resource": lambda pool: pool.token(resource="https://management.azure.com"),
    "expired": lambda pool: resigned(pool, exp=int(time.time()) - 1),
    "not valid yet": lambda pool: resigned(pool, nbf=int(time.time()) + 3600),
    "from another issuer": lambda pool: resigned(pool, iss="https://issuer.example/v2.0"),
    "of another tenant": lambda pool: resigned(pool, tid=str(uuid.uuid4())),
    "too long": lambda pool: "a" * 20_000,
}


@pytest.mark.parametrize("make", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_a_bad_token_is_challenged(pool, key, make):
    answer = pool.call("POST", key_path(key) + "/sign", SIGN, token=make(pool))
    assert_error(answer, 401, "Unauthorized")
    assert len(answer.headers.get_all("WWW-Authenticate")) == 1


def test_a_token_made_by_the_test_itself_is_good(pool, key):
    """So that the refusals above are for what they say."""
    assert pool.call("POST", key_path(key) + "/sign", SIGN, token=resigned(pool)).status == 200


def test_other_schemes_are_challenged(pool, key):
    for value in ("", "Bearer", "Basic YTpi", "bearer", pool.token()):
        answer = pool.call("GET", key_path(key), token=None, headers={"Authorization": value})
        assert_error(answer, 401, "Unauthorized")


# --- with a good token

DEEP = b"[" * 100_000
BODIES = {
    "empty": (b"", 400),
    "not JSON": (b"{ not json", 400),
    "not UTF-8": (b'{"alg":"ES256","value":"\xff\xfe"}', 400),
    "not an object": (b'"text"', 400),
    "deep": (DEEP, 400),
    "no alg": ({"value": DIGEST}, 400),
    "no value": ({"alg": "ES256"}, 400),
    "value null": ({"alg": "ES256", "value": None}, 400),
    "value a number": ({"alg": "ES256", "value": 7}, 400),
    "value not base64url": ({"alg": "ES256", "value": "/+==" + DIGEST[4:]}, 400),
    "value with a space": ({"alg": "ES256", "value": " " + DIGEST}, 400),
    "digest short": ({"alg": "ES256", "value": b64(bytes(31))}, 400),
    "digest long": ({"alg": "ES256", "value": b64(bytes(33))}, 400),
    "digest empty": ({"alg": "ES256", "value": ""}, 400),
    "alg unknown": ({"alg": "ES257", "value": DIGEST}, 400),
    "alg in lower case": ({"alg": "es256", "value": DIGEST}, 400),
    "alg of another key": ({"alg": "RS256", "value": DIGEST}, 400),
    "alg for encryption": ({"alg": "A256GCM", "value": DIGEST}, 400),
    "too large": (b'{"alg":"ES256","value":"' + b"A" * 300_000 + b'"}', 413),
}


@pytest.mark.parametrize("body, status", BODIES.values(), ids=BODIES)
def test_a_bad_body_is_refused_and_recorded(pool, key, body, status):
    refused_once(pool, "POST", key_path(key) + "/sign", body, status)


ENCRYPTIONS = {
    "iv that the caller chose short": (
        "/decrypt",
        {"alg": "A256GCM", "value": "AA", "iv": b64(bytes(8)), "tag": b64(bytes(16))},
    ),
    "no tag": ("/decrypt", {"alg": "A256GCM", "value": "AA", "iv": b64(bytes(12))}),
    "tag short": ("/decrypt", {"alg": "A256GCM", "value": "AA", "iv": b64(bytes(12)), "tag": b64(bytes(4))}),
    "tag wrong": ("/decrypt", {"alg": "A256GCM", "value": "AA", "iv": b64(bytes(12)), "tag": b64(bytes(16))}),
    "size of another key": ("/encrypt", {"alg": "A128GCM", "value": "AA"}),
    "wrapped material of odd length": ("/unwrapkey", {"alg": "A256KW", "value": b64(bytes(39))}),
    "wrapped material that is none": ("/unwrapkey", {"alg": "A256KW", "value": b64(bytes(40))}),
    "material of odd length": ("/wrapkey", {"alg": "A256KW", "value": b64(bytes(31))}),
    "aad not base64url": ("/encrypt", {"alg": "A256GCM", "value": "AA", "aad": "***"}),
}


@pytest.mark.parametrize("operation, body", ENCRYPTIONS.values(), ids=ENCRYPTIONS)
def test_bad_parts_of_an_encryption_are_refused_and_recorded(pool, oct_key, operation, body):
    refused_once(pool, "POST", key_path(oct_key) + operation, body, 400)


KEYS = {
    "no kty": {},
    "kty unknown": {"kty": "DSA"},
    "kty a number": {"kty": 7},
    "RSA of 1024 bits": {"kty": "RSA-HSM", "key_size": 1024},
    "RSA of a negative size": {"kty": "RSA-HSM", "key_size": -2048},
    "curve unknown": {"kty": "EC-HSM", "crv": "P-255"},
    "oct of 100 bits": {"kty": "oct-HSM", "key_size": 100},
    "key_ops unknown": {"kty": "EC-HSM", "crv": "P-256", "key_ops": ["sing"]},
    "tags too many": {"kty": "EC-HSM", "crv": "P-256", "tags": {f"t{i}": "v" for i in range(16)}},
    "tag too long": {"kty": "EC-HSM", "crv": "P-256", "tags": {"t": "v" * 257}},
    "attributes a list": {"kty": "EC-HSM", "crv": "P-256", "attributes": []},
}


@pytest.mark.parametrize("body", KEYS.values(), ids=KEYS)
def test_a_key_that_cannot_be_is_not_made(pool, body):
    name = fresh_name("bad")
    refused_once(pool, "POST", f"/keys/{name}/create", body, 400)
    assert_error(pool.call("GET", f"/keys/{name}"), 404, "KeyNotFound")


@pytest.mark.parametrize(
    "version", [None, "", "1.0", "7.4-", "7.4-preview.x", "2016-10-02", "7.4'", "9" * 500]
)
def test_another_api_version_is_refused(pool, key, version):
    correlation_id = str(uuid.uuid4())
    path = key_path(key) if version is None else f"{key_path(key)}?api-version={version}"
    answer = pool.call("GET", path, version=None, correlation_id=correlation_id)
    assert "api-version" in assert_error(answer, 400, "BadParameter")
    assert_one_event(pool, correlation_id, 400)


@pytest.mark.parametrize(
    "method, path",
    [
        ("GET", "/"),
        ("GET", "/nothing"),
        ("POST", "/keys/n/nothing"),
        ("GET", "/keys/n/o/p/q"),
        ("TRACE", "/keys/n"),
    ],
)
def test_an_unknown_path_is_not_found_and_recorded(pool, method, path):
    correlation_id = str(uuid.uuid4())
    assert_error(pool.call(method, path, correlation_id=correlation_id), 404)
    assert_one_event(pool, correlation_id, 404)


@pytest.mark.parametrize(
    "name", ["a_b", "a%2Fb", "a b".replace(" ", "%20"), "%00", "%ff", "n" * 128, "ü".encode().hex()]
)
def test_a_malformed_name_is_refused(pool, name):
    path = f"/keys/{name}/create"
    answer = pool.call("POST", path, {"kty": "EC-HSM", "crv": "P-256"})
    if name.isalnum() and len(name) < 128:
        assert answer.status == 200
    else:
        assert_error(answer, 400, "BadParameter")


def test_absent_keys_and_versions_are_not_found(pool, key):
    name = key_path(key).split("/")[2]
    for path in (f"/keys/{fresh_name()}", f"/keys/{name}/{'0' * 32}"):
        assert_error(pool.call("GET", path), 404, "KeyNotFound")
        assert_error(pool.call("POST", path + "/sign", SIGN), 404, "KeyNotFound")


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "managedhsm.localhost",
        "other.managedhsm.localhost",
        "demo.managedhsm.localhost.evil",
        "",
    ],
)
def test_a_foreign_host_is_misdirected(pool, host):
    for token in ("app", None):
        answer = pool.call("GET", "/keys/n", token=token, headers={"Host": host})
        # Without any host the request is malformed before it is misdirected.
        assert_error(answer, 421) if host else assert_status(answer, (400, 421))


def test_a_connection_for_a_foreign_name_is_refused(pool):
    context = pool.tls()
    context.check_hostname = False
    with socket.create_connection(("127.0.0.1", pool.port), 60) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="example.com") as connection:
                assert_status(exchange(connection, head(pool, "GET", "/keys/n")), (421,))
        except ssl.SSLError:
            pass  # refused in the handshake: earlier still


# --- what is not a request at all

GARBAGE = {
    "header without end": b"GET /keys/n HTTP/1.1\r\nHost: 127.0.0.1\r\nx: " + b"a" * 1_000_000,
    "many headers": b"GET /keys/n HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    "long path": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "negative length": b"POST /keys/n/create HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "bad chunk": b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "not HTTP": b"\x00\x01\x02\x03" * 100 + b"\r\n\r\n",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_answered_or_cut_and_the_server_goes_on(pool, data):
    with tls_connection(pool) as connection:
        answer = exchange(connection, data)
        assert answer is None or 400 <= answer.status < 500, answer
    assert pool.call("GET", "/healthstatus", token=None).status == 200


def test_plain_text_on_the_tls_port_does_no_harm(pool):
    with socket.create_connection(("127.0.0.1", pool.port), 60) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        try:
            assert b"200" not in plain.recv(1000)
        except ConnectionError:
            pass
    assert pool.call("GET", "/healthstatus", token=None).status == 200


def test_who_dawdles_is_cut_off(pool, key):
    """A slow handshake, a slow head and a slow body, side by side: each ends in bounded time."""
    # The longest that the server gives is half a minute; without an end this would be given a multiple of it.
    limit_seconds = 180
    ended = {}
    correlation_id = str(uuid.uuid4())

    def dribble(name, connection, first):
        """Sends a byte a second until the server closes; keeps what it answered."""
        began = time.monotonic()
        answer = b""
        connection.sendall(first)
        connection.settimeout(1)
        while time.monotonic() - began < limit_seconds:
            try:
                received = connection.recv(65536)
            except (TimeoutError, ssl.SSLWantReadError):
                # Where the server has closed meanwhile, what it said before is read in the next round.
                with contextlib.suppress(OSError):
                    connection.sendall(b"a")
                continue
            except (OSError, ValueError):
                break
            if not received:
                break
            answer += received
        ended[name] = (time.monotonic() - began, answer)
        connection.close()

    body_head = head(pool, "POST", key_path(key) + "/sign", correlation_id=correlation_id, length=1000)
    threads = [
        # The record header announces more than will come.
        threading.Thread(
            target=dribble,
            args=(
                "handshake",
                socket.create_connection(("127.0.0.1", pool.port)),
                b"\x16\x03\x01\x02\x00\x01",
            ),
        ),
        threading.Thread(target=dribble, args=("head", tls_connection(pool), b"GET /keys/n HTTP/1.1\r\nx: ")),
        threading.Thread(target=dribble, args=("body", tls_connection(pool), body_head)),
    ]
    for thread in threads:
        thread.start()
    # Meanwhile everybody else is served.
    assert pool.call("POST", key_path(key) + "/sign", SIGN).status == 200
    for thread in threads:
        thread.join(limit_seconds + 60)
    assert len(ended) == len(threads), ended
    for name, (seconds, _) in ended.items():
        assert seconds < limit_seconds - 1, f"{name}: {ended}"
    assert b" 408 " in ended["body"][1].split(b"\r\n")[0], ended["body"]
    assert_one_event(pool, correlation_id, 408)


# --- helpers


def refused_once(pool, method, path, body, status):
    """Refused with `status`, recorded once, and the object at `path` is as it was."""
    correlation_id = str(uuid.uuid4())
    resource = "/".join(path.split("/")[:3])
    before = pool.call("GET", resource)
    if isinstance(body, bytes):
        with tls_connection(pool) as connection:
            answer = exchange(connection, head(pool, method, path, correlation_id, len(body)) + body)
            assert answer is not None, "connection closed without an answer"
    else:
        answer = pool.call(method, path, body, correlation_id=correlation_id)
    assert_error(answer, status)
    after = pool.call("GET", resource)
    assert (before.status, before.body if before.status == 200 else b"") == (
        after.status,
        after.body if after.status == 200 else b"",
    )
    assert_one_event(pool, correlation_id, status)


def assert_one_event(pool, correlation_id, status):
    events = pool.events(correlation_id)
    assert [event["httpStatusCode"] for event in events] == [status], events
    assert events[0]["resultType"] != "Success"


def assert_status(answer, allowed):
    assert answer is not None and answer.status in allowed, answer


def tls_connection(pool):
    plain = socket.create_connection(("127.0.0.1", pool.port), 60)
    return pool.tls().wrap_socket(plain, server_hostname="127.0.0.1")


def head(pool, method, path, correlation_id="none", length=None):
    lines = [
        f"{method} {path}?api-version={API_VERSION} HTTP/1.1",
        f"Host: 127.0.0.1:{pool.port}",
        f"Authorization: Bearer {pool.token()}",
        f"x-ms-client-request-id: {correlation_id}",
        "Content-Type: application/json",
    ]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def exchange(connection, data):
    """Sends `data`, and reads one answer; None where the server closed instead.

    An answer may come before all was sent, after which sending fails.
    """
    connection.settimeout(60)
    try:
        connection.sendall(data)
    except OSError:
        pass
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        return Answer(response)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        response.close()

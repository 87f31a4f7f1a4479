"""One port for all pools, the control plane and the issuer: a name leads to its owner and to nobody else, whatever a client
says before or inside TLS; and pools beside each other do not disturb each other."""

import concurrent.futures
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time

import by_address
import holdfast
import pytest
from test_az import CLOUD, Az
from test_control_plane import Arm, children, process_of, wait, wanted

ROLES = "/providers/Microsoft.Authorization/roleDefinitions?api-version=7.4"
KEYS = "/keys?api-version=7.4"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    with holdfast.Pool(tmp_path_factory.mktemp("gateway")) as pool:
        yield pool


@pytest.fixture(scope="module")
def owner(own):
    return Arm(own.exports("--az"), "ADMIN")


@pytest.fixture(scope="module")
def payroll(own, owner):
    status, made = owner("PUT", f"{owner.pools}/payroll", wanted(owner))
    assert status == 200
    assert made["properties"]["hsmUri"] == f"https://payroll.managedhsm.localhost:{own.port + 1}/"
    return made


def call(own, pool="payroll", **more):
    name = f"{pool}.managedhsm.localhost" if pool else None
    request = {"name": name, "path": ROLES, "token": own.token("admin"), **more}
    return by_address.call("127.0.0.1", request.pop("port", own.port + 1), own.ca_file, **request)


def code(answer):
    return answer["body"]["error"]["code"]


def test_each_name_leads_to_its_owner(own, owner, payroll):
    # Only the first pool is active, so that the two can be told apart.
    app = {"path": KEYS, "token": own.token("app")}
    assert call(own, "demo", **app)["status"] == 200
    answer = call(own, "payroll", path=KEYS)
    assert answer["body"]["error"]["innererror"]["code"] == "HsmNotActivated", answer
    assert call(own, "payroll")["status"] == 200
    # Who names nobody, or this machine, gets the first pool.
    assert call(own, None, host=f"127.0.0.1:{own.port + 1}", **app)["status"] == 200
    assert call(own, None, name="localhost", **app)["status"] == 200
    subscriptions = call(own, name="management.localhost", path="/subscriptions?api-version=2022-12-01", token=owner.token)
    assert subscriptions["body"]["value"][0]["id"] == owner.subscription
    tenant = own.variables["TENANT_ID"]
    discovery = call(own, name="issuer.localhost", path=f"/{tenant}/v2.0/.well-known/openid-configuration", token=None)
    assert discovery["status"] == 200 and "issuer" in discovery["body"]


def test_a_name_that_nobody_has_is_said_to_be_nobodys(own, payroll):
    for path in ("/", KEYS, "/healthstatus"):
        answer = call(own, "nobody", path=path)
        assert (answer["status"], code(answer)) == (404, "NotFound"), answer
        assert answer["headers"]["content-type"].startswith("application/json")
        # A client that comes again finds whoever has the name by then.
        assert answer["headers"]["connection"] == "close"


def test_a_host_other_than_the_name_is_misdirected(own, payroll):
    for name, host in [("payroll", "demo"), ("demo", "payroll"), ("payroll", "nobody")]:
        answer = call(own, name, host=f"{host}.managedhsm.localhost:{own.port + 1}")
        assert (answer["status"], code(answer)) == (421, "MisdirectedRequest"), answer


def test_nobody_but_the_gateway_says_who_a_client_is(own, payroll):
    header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes([192, 0, 2, 7, 127, 0, 0, 1]) + b"\x01\x02\x20\xfc"
    direct = int((own.data / "pools" / "payroll" / "port").read_text())
    listeners = [own.port, own.port + 1, own.port + 2, own.port + 3, direct]
    for port in listeners:
        with pytest.raises((OSError, ssl.SSLError)):
            call(own, None, port=port, before_hex=header.hex())
    for port in listeners:
        request = {"name": None, "port": port, "token": None, "path": "/healthstatus"}
        refused_as_stranger(own, own.data / "run" / f"{port}.sock", header, **request)
    assert call(own, "payroll")["status"] == 200


def refused_as_stranger(own, way, header, **request):
    """Says at the gateway's own `way` in who the client is, as the same user and not as the gateway's process."""
    request = {"port": own.port + 1, "ca": own.ca_file, "before_hex": header.hex(), **request}
    before = strangers(own)
    with pytest.raises((ConnectionError, ssl.SSLEOFError)):
        by_address.call(str(way), **request)
    # Whoever is listened to and says nothing is closed as well, after the ten seconds of a handshake: this one was not.
    wait(lambda: strangers(own) > before)


def strangers(own):
    """How many came to the gateway's sockets, as those who listen there have written down."""
    logs = [own.log_path, *(own.data / "run").glob("*.log")]
    return sum(log.read_text(errors="replace").count("a stranger came to the gateway's socket") for log in logs)


def heard(stream, sent):
    try:
        stream.sendall(sent)
        return stream.recv(1)
    except ConnectionError:
        return b""


def test_garbage_and_silence_harm_nobody(own, payroll):
    idle = [socket.create_connection(("127.0.0.1", own.port + 1), timeout=60) for _ in range(50)]
    for stream, begin in zip(idle, [b"", b"\x16", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] * 12):
        stream.sendall(begin)
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x00", os.urandom(4096), b"\x16\x03\x01\x40\x00" + bytes(1 << 14)):
        with socket.create_connection(("127.0.0.1", own.port + 1), timeout=60) as stream:
            assert heard(stream, garbage) == b""
    assert call(own, "payroll")["status"] == 200
    for stream in idle:
        stream.close()


def test_a_full_disk_is_one_pools_own(own, owner, payroll):
    name, directory = "full", own.data / "pools" / "full"
    directory.mkdir(mode=0o700, parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=0700", "none", directory], capture_output=True)
    if mounted.returncode:
        if os.environ.get("CI"):
            pytest.fail("CI must be able to mount a file system of its own")
        pytest.skip("a file system of its own needs root: a full disk was not tested")
    try:
        assert owner("PUT", f"{owner.pools}/{name}", wanted(owner))[0] == 200
        assert call(own, name)["status"] == 200
        with open(directory / "filler", "wb") as filler:
            free = os.statvfs(directory)
            os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize - (1 << 20))
        # Its log has room left for a while: events as long as they can be use that up.
        done = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            signing = threads.submit(sign_until, own, done)
            try:
                error = fill_log(own, name)
            finally:
                done.set()
        took = signing.result()
        print(f"while a disk ran full, another pool signed {len(took)} times: {min(took):.3f} to {max(took):.3f} s")
        assert error["code"] == "ServiceUnavailable" and "disk" in error["message"], error
        assert {call(own, other)["status"] for other in ("payroll", "demo") for _ in range(5)} <= {200}
        (directory / "filler").unlink()
        wait(lambda: call(own, name)["status"] == 200)
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def test_az_needs_one_port(tmp_path):
    with holdfast.Pool(tmp_path, "--one-port") as pool:
        variables = pool.exports("--az")
        for name in ("MHSM_URL", "AUTHORITY_HOST", "ARM_URL"):
            assert variables[name].endswith(f".localhost:{pool.port + 1}"), variables[name]
        az = Az(variables, tmp_path / "az")
        az("cloud", "register", "--name", CLOUD, "--endpoint-resource-manager", variables["ARM_URL"])
        az("cloud", "set", "--name", CLOUD)
        az.login(variables["CLIENT_ID"], f"--password={variables['CLIENT_SECRET']}")
        words = ["--hsm-name", "demo", "--name", "first", "--kty", "EC-HSM", "--curve", "P-256"]
        made = az("keyvault", "key", "create", *words)
        assert made["key"]["kid"].startswith(f"https://demo.managedhsm.localhost:{pool.port + 1}/keys/first/")


def sign_until(own, done):
    """How long each signature took; ten come after the end."""
    path, digest = f"{holdfast.key_path(own.create('ec'))}/sign", holdfast.b64(bytes(32))
    connection, took = own.connection(), []
    # Some of them in any case while the disk is full.
    after = 0
    while after < 10:
        after += done.is_set()
        began = time.monotonic()
        answer = own.call("POST", path, {"alg": "ES256", "value": digest}, connection=connection)
        assert answer.status == 200, answer
        took.append(time.monotonic() - began)
    return took


def fill_log(own, name):
    """Asks on one connection until the pool refuses; gives its error."""
    host = f"{name}.managedhsm.localhost"
    headers = {"Authorization": f"Bearer {own.token('admin')}", "User-Agent": "u" * 256, "Host": host}
    with socket.create_connection(("127.0.0.1", own.port + 1), timeout=60) as plain:
        with own.tls().wrap_socket(plain, server_hostname=host) as stream:
            connection = http.client.HTTPSConnection(host)
            connection.sock = stream
            for _ in range(6000):
                connection.request("GET", f"/{'x' * 1900}", headers=headers)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status == 503:
                    return json.loads(body)["error"]
    raise AssertionError("a full disk is not noticed")


def test_the_other_pools_go_on(own, owner):
    """Nine pools beside the one that is ill-treated; all are asked for something that leaves an event in their logs."""
    assert owner("PUT", f"{owner.pools}/victim", wanted(owner))[0] == 200
    names = [f"side-{index}" for index in range(9)]
    took = []
    for name in names:
        began = time.monotonic()
        assert owner("PUT", f"{owner.pools}/{name}", wanted(owner))[0] == 200
        took.append(time.monotonic() - began)
    print(f"a new pool is ready for activation after {min(took):.2f} to {max(took):.2f} s")
    token = own.token("admin")

    def ask_all(rounds):
        """Every answer's status, and the longest time that one took."""

        def ask(name):
            began = time.monotonic()
            return call(own, name, token=token)["status"], time.monotonic() - began

        with concurrent.futures.ThreadPoolExecutor(9) as threads:
            answers = list(threads.map(ask, names * rounds))
        return {status for status, _ in answers}, max(seconds for _, seconds in answers)

    statuses, longest = ask_all(2)
    assert statuses == {200}
    print(f"undisturbed: at most {longest:.2f} s")
    victim = process_of(own, "victim")
    os.kill(victim, signal.SIGKILL)
    statuses, longest = ask_all(3)
    assert statuses == {200}, "a killed pool disturbs the others"
    print(f"while one was killed and started again: at most {longest:.2f} s")
    wait(lambda: call(own, "victim", token=token)["status"] == 200)

    # It runs, and answers nobody: that is noticed.
    victim = process_of(own, "victim")
    os.kill(victim, signal.SIGSTOP)
    statuses, longest = ask_all(3)
    assert statuses == {200}, "a pool that hangs disturbs the others"
    print(f"while one hung: at most {longest:.2f} s")
    wait(lambda: victim not in children(own.process.pid))
    wait(lambda: call(own, "victim", token=token)["status"] == 200)

    # Its data are garbage at its next start: it stays away, and says so.
    store = own.data / "pools" / "victim" / "pool" / "store"
    victim = process_of(own, "victim")
    # Or it could put right what it wrote itself.
    os.kill(victim, signal.SIGSTOP)
    for file in [store] if store.is_file() else [file for file in store.rglob("*") if file.is_file()]:
        file.write_bytes(os.urandom(4096))
    os.kill(victim, signal.SIGKILL)
    statuses, longest = ask_all(3)
    assert statuses == {200}, "a pool with garbage for a store disturbs the others"
    wait(lambda: call(own, "victim", token=token)["status"] == 503)
    answer = call(own, "victim", token=token)
    assert code(answer) == "ServiceUnavailable" and answer["headers"]["retry-after"], answer
    assert answer["headers"]["connection"] == "close"
    assert call(own, "side-0", token=token)["status"] == 200

"""The first minutes: one command serves, and running it again finds everything as it was."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import time

import pytest

from holdfast import STOP_SECONDS, Pool, clean_environment, key_path

NAMES = {
    "MHSM_URL",
    "AUTHORITY_HOST",
    "TENANT_ID",
    "CLIENT_ID",
    "CLIENT_SECRET",
    "PRINCIPAL_ID",
    "CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "HOLDFAST_PROXY",
    "HOLDFAST_POOL_URL_IP",
    *(
        f"HOLDFAST_{principal}_{what}"
        for principal in ("ADMIN", "APP")
        for what in ("CLIENT_ID", "CLIENT_SECRET", "OBJECT_ID")
    ),
}


def test_ready_soon_and_again_as_it_was(own_pool):
    first_start = own_pool.start()
    exports = own_pool.exports()
    bundle = own_pool.create("rsa", tags={"kept": "yes"})
    token = own_pool.token()
    own_pool.stop()

    second_start = own_pool.start()
    print(f"ready after {first_start:.2f} s, again after {second_start:.2f} s")
    assert own_pool.exports() == exports, "ids, secrets or addresses have changed"
    assert own_pool.call("GET", key_path(bundle)).json == bundle
    # The issuer's key is the same: a token from before is good.
    assert own_pool.call("GET", key_path(bundle), token=token).status == 200
    own_pool.stop()


def test_env_is_for_a_shell(pool):
    exports = pool.exports()
    assert NAMES <= set(exports), NAMES - set(exports)
    assert exports["MHSM_URL"] == f"https://demo.managedhsm.localhost:{pool.port}"
    assert exports["HOLDFAST_POOL_URL_IP"] == f"https://127.0.0.1:{pool.port}"
    assert exports["HOLDFAST_PROXY"] == f"http://127.0.0.1:{pool.port + 4}"
    assert exports["AUTHORITY_HOST"].endswith(f":{pool.port + 3}")
    assert exports["CLIENT_ID"] == exports["HOLDFAST_APP_CLIENT_ID"]
    assert exports["PRINCIPAL_ID"] == exports["HOLDFAST_APP_OBJECT_ID"]
    for name in ("CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        assert "BEGIN CERTIFICATE" in open(exports[name]).read()
    # Every line is one export with its value quoted, so that no value is ever run.
    for line in pool.run("env").stdout.splitlines():
        assert re.fullmatch(r"(#.*|export [A-Z_]+='([^']|'\\'')*')", line), line


def test_the_conformance_principal_is_made_on_request(tmp_path):
    with Pool(tmp_path, "--with-conformance-principal") as pool:
        plain, conformance = pool.exports(), pool.exports("--conformance")
        assert plain["CLIENT_ID"] == plain["HOLDFAST_APP_CLIENT_ID"]
        taken = {plain["HOLDFAST_APP_CLIENT_ID"], plain["HOLDFAST_ADMIN_CLIENT_ID"]}
        assert conformance["CLIENT_ID"] not in taken
        assert conformance["MHSM_URL"] == plain["MHSM_URL"]


def test_files_are_private(pool):
    for name in ("pool", "identity", "ca", "root"):
        directory = pool.data / name
        assert directory.is_dir(), name
        for path in (directory, *directory.rglob("*")):
            try:
                of = path.stat()
            except FileNotFoundError:
                continue  # the pool runs, and does away with files
            mode = stat.S_IMODE(of.st_mode)
            if path == pool.data / "ca" / "ca.pem":
                # The public root: anybody may read it, nobody else may change it.
                assert mode in (0o600, 0o644), oct(mode)
            elif stat.S_ISDIR(of.st_mode):
                assert mode == 0o700, (str(path), oct(mode))
            else:
                assert mode == 0o600, (str(path), oct(mode))


def test_no_secret_in_the_log(pool):
    pool.create("ec")
    log = pool.log_path.read_text()
    # What it prints to be pasted tells where secrets are; a log file is often readable by many.
    for name in ("HOLDFAST_ADMIN_CLIENT_SECRET", "HOLDFAST_APP_CLIENT_SECRET"):
        assert pool.variables[name] not in log, name
    assert pool.exports("--managed-identity")["IDENTITY_HEADER"] not in log
    assert pool.token() not in log
    assert "PRIVATE KEY" not in log


@pytest.mark.parametrize("offset", [0, 3, 4, 5], ids=["data plane", "issuer", "proxy", "managed identity"])
def test_a_port_in_use_is_named(own_pool, offset):
    port = own_pool.port + offset
    with socket.socket() as taken:
        # What an earlier pool's connections left on the port is in nobody's way.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        words = [own_pool.program, "quickstart", "--data", str(own_pool.data), "--port", str(own_pool.port)]
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            env=clean_environment(),
        )
    assert done.returncode != 0
    assert str(port) in done.stderr and "--port" in done.stderr, done.stderr
    # The failure left nothing that would stop the next try.
    own_pool.start()
    own_pool.stop()


def test_more_addresses_than_the_gateway_takes_are_refused(own_pool):
    """Handed to a process that cannot take them, it would be started again for ever."""
    words = [own_pool.program, "quickstart", "--data", str(own_pool.data), "--port", str(own_pool.port)]
    for number in range(64):
        words += ["--listen", f"127.1.0.{number + 1}"]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, env=clean_environment()
    )
    assert done.returncode != 0 and "and can at 64" in done.stderr, done.stderr


def test_a_second_process_is_refused_and_told_the_first(own_pool):
    own_pool.start()
    second = Pool(own_pool.data.parent)
    words = [own_pool.program, "quickstart", "--data", str(own_pool.data), "--port", str(second.port)]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, env=clean_environment()
    )
    assert done.returncode != 0
    assert re.search(rf"\b{own_pool.process.pid}\b", done.stderr), done.stderr
    assert own_pool.call("GET", "/healthstatus", token=None).status == 200
    own_pool.stop()


def test_detach_and_stop(own_pool):
    own_pool.run("quickstart", "--detach", "--port", str(own_pool.port))
    try:
        # It returned, so it serves.
        assert own_pool.call("GET", "/healthstatus", token=None).status == 200
        bundle = own_pool.create("ec")
    finally:
        own_pool.run("stop")
    deadline = time.monotonic() + 120
    with pytest.raises(OSError):
        while time.monotonic() < deadline:
            socket.create_connection(("127.0.0.1", own_pool.port), 1).close()
    own_pool.start()
    assert own_pool.call("GET", key_path(bundle)).json == bundle
    own_pool.stop()


def test_control_c_ends_it_well(own_pool):
    own_pool.start()
    own_pool.process.send_signal(signal.SIGINT)
    assert own_pool.process.wait(STOP_SECONDS) in (0, 130, -signal.SIGINT), own_pool.log()
    own_pool.verify_audit()


def test_hosts_lines(own_pool):
    done = subprocess.run(
        [own_pool.program, "quickstart", "--hosts", "--data", str(own_pool.data)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^127\.0\.0\.1\s.*\bdemo\.managedhsm\.localhost\b", done.stdout, re.MULTILINE
    ), done.stdout


def test_the_proxy_opens_only_our_own_names(pool):
    def connect(target):
        with socket.create_connection(("127.0.0.1", pool.port + 4), 60) as connection:
            connection.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            return connection.recv(1000).split(b"\r\n")[0]

    assert b" 200 " in connect(f"demo.managedhsm.localhost:{pool.port}")
    for target in (
        "example.com:443",
        "127.0.0.1:22",
        f"demo.managedhsm.localhost.example:{pool.port}",
        "nonsense",
    ):
        status = connect(target)
        assert re.match(rb"HTTP/1\.1 4\d\d ", status), (target, status)


def test_audit_show_and_verify(own_pool):
    own_pool.start()
    bundle = own_pool.create("ec")
    events = own_pool.audit()
    created = [event for event in events if event["operationName"] == "KeyCreate"]
    assert len(created) == 1
    event = created[0]
    assert event["category"] == "AuditEvent"
    assert event["httpStatusCode"] == 200
    assert event["callerIpAddress"] == "127.0.0.1"
    assert own_pool.object_id("app") in event["identity"]
    assert json.loads(event["identity"])["claim"]["appid"] == own_pool.variables["HOLDFAST_APP_CLIENT_ID"]
    assert key_path(bundle).split("/")[2] in event["requestUri"]
    assert own_pool.run("audit", "show").stdout.strip(), "a person gets lines"
    own_pool.stop()
    # Offline, with nothing but the data directory.
    assert own_pool.verify_audit().stdout.strip()
    # Without a running pool nobody can read the events, and the message says so.
    refused = own_pool.run("audit", "show", "--json", check=False)
    assert refused.returncode != 0 and refused.stderr.strip()
    assert os.path.isdir(own_pool.data / "pool")


def test_a_start_refuses_an_owner_key_or_a_node_that_was_changed(own_pool, pool):
    """The key beside the log is what an auditor verifies with: another's would find a forged log in order."""
    own_pool.start()
    made = own_pool.create("ec")
    own_pool.stop()
    directory = own_pool.data / "pool"
    for name, content, told in [
        ("owner.pem", (pool.data / "pool" / "owner.pem").read_bytes(), "is not this pool's owner key"),
        ("owner.pem", b"nothing", "is not a public key"),
        ("node", b"nobody", "is damaged"),
    ]:
        good = (directory / name).read_bytes()
        (directory / name).write_bytes(content)
        with pytest.raises(AssertionError, match=f"{name} {told}"):
            own_pool.start()
        (directory / name).write_bytes(good)
    (directory / "owner.pem").unlink()
    own_pool.start()
    assert own_pool.call("GET", key_path(made)).json == made
    own_pool.verify_audit()
    own_pool.stop()

"""Starts, calls and stops the built server, as a user would: through its command line and over HTTPS.

Nothing here knows how the server works inside. `HOLDFAST_BIN` names the binary.
"""

import base64
import contextlib
import copy
import http.client
import itertools
import json
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import time
import uuid

import requests
from azure.identity import ClientSecretCredential
from azure.keyvault.keys import KeyClient

API_VERSION = "7.4"
# A blank pool's port, counted from the first pool's.
BLANK_OFFSET = 10
# Deadlines and not durations: what waits goes on at once, and a loaded machine may take ten times what it takes alone.
READY_SECONDS = 90
STOP_SECONDS = 60
ANSWER_SECONDS = 60
# What is left of a token's hour when another is fetched.
TOKEN_MARGIN_SECONDS = 20 * 60
# Every pool of this run that was started and may still run, for the log of a failed test.
RUNNING = []


def binary():
    path = os.environ.get("HOLDFAST_BIN")
    if not path:
        raise RuntimeError("HOLDFAST_BIN must name the server's binary; `cargo xtask e2e` sets it")
    return str(pathlib.Path(path).resolve(strict=True))


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


PORTS_TOGETHER = 6
FIRST_PORT, END_OF_PORTS = 20000, 32000
CANDIDATE_PORTS = itertools.chain(
    range(FIRST_PORT + os.getpid() % 1000 * PORTS_TOGETHER, END_OF_PORTS, PORTS_TOGETHER),
    range(FIRST_PORT, FIRST_PORT + os.getpid() % 1000 * PORTS_TOGETHER, PORTS_TOGETHER),
)
# Held until this process ends, however it ends.
RESERVATIONS = []


def reserve(first):
    """Keeps other runs of these tests from a block of ports: between a look and a start, and while a pool is down, they are
    free for whoever asks the kernel."""
    reservation = socket.socket(socket.AF_UNIX)
    try:
        # In the abstract name space, which needs no directory that all users can write to.
        reservation.bind(f"\0holdfast-tests-ports-{first}")
    except OSError:
        reservation.close()
        return False
    RESERVATIONS.append(reservation)
    return True


def free_ports(count=PORTS_TOGETHER):
    """The first of `count` neighbouring ports that nobody uses, below the range of outgoing connections.

    No two pools of one run get the same: the SDK remembers for a host and port where its tokens come from.
    """
    for first in CANDIDATE_PORTS:
        if not all(reserve(block) for block in range(first, first + count, PORTS_TOGETHER)):
            continue
        if not are_free(first, count):
            continue
        for _ in range((count - 1) // PORTS_TOGETHER):
            next(CANDIDATE_PORTS)
        return first
    raise RuntimeError(f"no free ports below {END_OF_PORTS}")


def clean_environment(**more):
    """Ours, without what would send a client elsewhere or change the server."""
    dropped = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper() not in dropped and not name.startswith(("HOLDFAST_", "AZURE_"))
    }
    return {**kept, **more}


def are_free(first, count):
    with contextlib.ExitStack() as stack:
        for port in range(first, first + count):
            probe = stack.enter_context(socket.socket())
            # As the server itself does: a port in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


class Answer:
    """One HTTP answer, read to its end."""

    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]

    def __repr__(self):
        return f"<{self.status} {self.body[:400]!r}>"


class Pool:
    """A quickstart pool with its own data directory and ports."""

    def __init__(self, directory, *flags, program=None, environment=None):
        self.data = pathlib.Path(directory) / "data"
        self.log_path = pathlib.Path(directory) / "server.log"
        self.flags = flags
        self.blank_pools = [name for flag, name in zip(flags, flags[1:]) if flag == "--blank-pool"]
        self.ports = BLANK_OFFSET + len(self.blank_pools) if self.blank_pools else PORTS_TOGETHER
        self.port = free_ports(self.ports)
        self.program = program or binary()
        self.environment = environment or {}
        self.process = None
        self._exports = None
        self._tokens = {}

    # --- life

    def start(self):
        """Starts the server in the foreground of its own process; returns the seconds until it answered."""
        assert self.process is None, "already started"
        began = time.monotonic()
        words = ["quickstart", "--data", str(self.data), "--port", str(self.port), *self.flags]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [self.program, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(**self.environment),
            )
        RUNNING.append(self)
        try:
            self._wait_until_ready(began)
        except BaseException:
            self.kill()
            raise
        return time.monotonic() - began

    def _wait_until_ready(self, began):
        while True:
            if self.process.poll() is not None:
                raise AssertionError(f"server ended with {self.process.returncode}:\n{self.log()}")
            try:
                if self.call("GET", "/healthstatus", token=None, timeout=2).status == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            if time.monotonic() - began > READY_SECONDS:
                raise AssertionError(f"server not ready after {READY_SECONDS} s:\n{self.log()}")
            time.sleep(0.01)

    def wait_for_holders(self, seconds=300):
        """Until the first pool's domain is with the quickstart's holders, whose keys take seconds to make, and minutes where
        the machine is busy. It leaves an event: who counts the log's events waits for it first."""
        file = self.data / "ceremony" / "security-domain.json"
        until = time.monotonic() + seconds
        while not file.exists():
            assert time.monotonic() < until, f"no {file} after {seconds} s:\n{self.log()}"
            time.sleep(0.05)
        return file

    def kill(self):
        """SIGKILL: as near as a process gets to power loss."""
        self._end(signal.SIGKILL)

    def stop(self):
        """Asks the server to end, and checks that it ends well."""
        code = self._end(signal.SIGTERM)
        assert code in (0, -signal.SIGTERM), f"server ended with {code}:\n{self.log()}"

    def _end(self, number):
        process, self.process = self.process, None
        if self in RUNNING:
            RUNNING.remove(self)
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(number)
        try:
            code = process.wait(STOP_SECONDS)
            self._wait_until_gone()
            return code
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(
                f"server did not end within {STOP_SECONDS} s of signal {number}:\n{self.log()}"
            ) from None

    def _wait_until_gone(self):
        """The gateway's process, which ends with its quickstart, has its port for some moments longer."""
        until = time.monotonic() + STOP_SECONDS
        while not are_free(self.port, self.ports):
            assert time.monotonic() < until, f"a process of the pool did not end with it:\n{self.log()}"
            time.sleep(0.01)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.stop()
        else:
            self.kill()

    def log(self, lines=60):
        if not self.log_path.exists():
            return "(no log)"
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def blank(self, name):
        """The pool `--blank-pool NAME` of the same process, to be called; it is started and ended with this one."""
        other = copy.copy(self)
        other.port = self.port + BLANK_OFFSET + self.blank_pools.index(name)
        return other

    # --- command line

    def run(self, *words, check=True, timeout=300):
        done = subprocess.run(
            [self.program, *words, "--data", str(self.data)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=clean_environment(**self.environment),
        )
        if check:
            assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def exports(self, *flags):
        """What `holdfast env` sets, as a shell understands it."""
        script = 'set -eu; eval "$("$0" env --data "$1" ${2:-})"; env -0'
        done = subprocess.run(
            ["bash", "-c", script, self.program, str(self.data), *flags],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=300,
            env=clean_environment(),
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        before = clean_environment()
        pairs = (item.partition("=") for item in done.stdout.decode().split("\0") if item)
        return {name: value for name, _, value in pairs if before.get(name) != value and name != "_"}

    @property
    def variables(self):
        if self._exports is None:
            self._exports = self.exports()
        return self._exports

    def audit(self, start=0):
        """Every event of the log from index `start`, read through the running pool."""
        return json.loads(self.run("audit", "show", "--json", "--from", str(start)).stdout)

    def events(self, correlation_id):
        return [event for event in self.audit() if event["correlationId"] == correlation_id]

    def verify_audit(self):
        return self.run("audit", "verify")

    # --- HTTPS

    @property
    def ca_file(self):
        return str(self.data / "ca" / "ca.pem")

    def tls(self):
        return ssl.create_default_context(cafile=self.ca_file)

    def connection(self, timeout=ANSWER_SECONDS):
        return http.client.HTTPSConnection("127.0.0.1", self.port, context=self.tls(), timeout=timeout)

    def token(self, principal="app", resource=None, fresh=False):
        """An access token for one of the quickstart's principals, from the embedded issuer."""
        variables = self.variables
        resource = resource or f"https://managedhsm.localhost:{self.port}"
        kept = self._tokens.get((principal, resource))
        # One pool serves a whole run, which may take longer than a token lives.
        if kept and not fresh and expiry(kept) - time.time() > TOKEN_MARGIN_SECONDS:
            return kept
        answer = requests.post(
            f"{variables['AUTHORITY_HOST']}/{variables['TENANT_ID']}/oauth2/v2.0/token",
            data={
                "grant_type": "client_credentials",
                "client_id": variables[f"HOLDFAST_{principal.upper()}_CLIENT_ID"],
                "client_secret": variables[f"HOLDFAST_{principal.upper()}_CLIENT_SECRET"],
                "scope": f"{resource}/.default",
            },
            verify=self.ca_file,
            timeout=ANSWER_SECONDS,
        )
        assert answer.status_code == 200, answer.text
        token = answer.json()["access_token"]
        self._tokens[principal, resource] = token
        return token

    def object_id(self, principal):
        return self.variables[f"HOLDFAST_{principal.upper()}_OBJECT_ID"]

    def call(
        self,
        method,
        path,
        body=None,
        *,
        token="app",
        version=API_VERSION,
        headers=None,
        host=None,
        correlation_id=None,
        connection=None,
        timeout=ANSWER_SECONDS,
    ):
        """One request as written: nothing normalises its path. `token`: a principal's name, a token, or None.

        `body`: bytes as they are, anything else as JSON.
        """
        sent = {"Host": host or f"127.0.0.1:{self.port}", **(headers or {})}
        if token is not None:
            sent["Authorization"] = f"Bearer {self.token(token) if token in ('app', 'admin') else token}"
        if correlation_id:
            sent["x-ms-client-request-id"] = correlation_id
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        if version is not None:
            path = f"{path}{'&' if '?' in path else '?'}api-version={version}"
        own = connection or self.connection(timeout)
        try:
            own.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                own.putheader(name, value)
            if body is not None or method in ("POST", "PUT"):
                own.putheader("Content-Length", str(len(body or b"")))
            own.endheaders(body)
            return Answer(own.getresponse())
        finally:
            if connection is None:
                own.close()

    def create(self, kind, name=None, **more):
        """Makes a key of `kind` (rsa, ec, oct) as `app`; gives its bundle."""
        body = {
            "rsa": {"kty": "RSA-HSM", "key_size": 2048},
            "ec": {"kty": "EC-HSM", "crv": "P-256"},
            "oct": {"kty": "oct-HSM", "key_size": 256},
        }[kind]
        answer = self.call("POST", f"/keys/{name or fresh_name(kind)}/create", {**body, **more})
        assert answer.status == 200, answer
        return answer.json

    def https_url(self):
        return f"https://127.0.0.1:{self.port}"


def expiry(token):
    """Of a JWT, in seconds since 1970."""
    return json.loads(unb64(token.split(".")[1]))["exp"]


def fresh_name(prefix="key"):
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def key_path(bundle):
    """`/keys/NAME/VERSION` of a key bundle."""
    return "/" + bundle["key"]["kid"].split("/", 3)[3]


def assert_error(answer, status, code=None):
    """The error has the service's shape, and says something."""
    assert answer.status == status, answer
    assert set(answer.json) == {"error"}, answer
    assert isinstance(answer.error["code"], str) and answer.error["code"], answer
    assert isinstance(answer.error["message"], str) and len(answer.error["message"]) > 10, answer
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    if code is not None:
        assert answer.error["code"] == code, answer
    return answer.error["message"]


def app_credential(variables):
    """Of the principal that `holdfast env` names, as the SDKs take it."""
    return ClientSecretCredential(
        variables["TENANT_ID"],
        variables["CLIENT_ID"],
        variables["CLIENT_SECRET"],
        authority=variables["AUTHORITY_HOST"],
        # The issuer is not in Microsoft's directory of clouds.
        disable_instance_discovery=True,
    )


@contextlib.contextmanager
def key_client(pool):
    """The SDK's client of that principal, by the pool's address; meanwhile the SDK trusts the pool's CA."""
    variables = pool.variables
    before = os.environ.get("REQUESTS_CA_BUNDLE")
    os.environ["REQUESTS_CA_BUNDLE"] = variables["REQUESTS_CA_BUNDLE"]
    try:
        with KeyClient(
            variables["HOLDFAST_POOL_URL_IP"], app_credential(variables), verify_challenge_resource=False
        ) as client:
            yield client
    finally:
        del os.environ["REQUESTS_CA_BUNDLE"]
        if before is not None:
            os.environ["REQUESTS_CA_BUNDLE"] = before

"""A pool of class production, as an operator makes one: an issuer and a CA that are not its own, a passphrase that is not on
the machine, a domain that a quorum holds.

The issuer is a quickstart's, with its keys and its CA pinned. The certificate is signed by a CA made here.
"""

import contextlib
import ctypes
import datetime
import hashlib
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import uuid

import jwt
import pytest
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, SignatureAlgorithm
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import holdfast
from holdfast import Answer, Pool, app_credential, assert_error, binary, clean_environment, free_ports
from test_az import CLOUD, Az
from test_disaster import AUTHORIZATION, BUILT_IN, CRYPTO_OFFICER, role_of
from test_security_domain import Holder, blob_for, ceremony, download, upload, wait_until_active

PASSPHRASE = "correct horse battery staple"
SUFFIX = "managedhsm.localhost"
ADMINISTRATOR = "a290e904-7015-4bba-90c8-60543313cdb4"
CAP_IPC_LOCK, PR_CAPBSET_DROP = 14, 24
# Of a start, in which a key is derived from the passphrase, and of what follows a signal.
READY_SECONDS = 120


class Ca:
    """Of the operator: nobody else knows its key."""

    def __init__(self, directory):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an operator's CA")])
        made = self.builder(self.name, self.key.public_key(), 365)
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        self.certificate = made.add_extension(constraints, critical=True).sign(self.key, hashes.SHA256())
        self.path = directory / "ca.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def builder(self, subject, public_key, days):
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=days))
        )

    def sign(self, request, days=90):
        request = x509.load_pem_x509_csr(request.read_bytes())
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        made = self.builder(request.subject, request.public_key(), days)
        made = made.add_extension(names, critical=False).sign(self.key, hashes.SHA256())
        return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (made, self.certificate))


@pytest.fixture(scope="module")
def issuer(tmp_path_factory):
    with Pool(tmp_path_factory.mktemp("issuer")) as pool:
        yield pool


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return Ca(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def holders(tmp_path_factory):
    directory = tmp_path_factory.mktemp("holders")
    return [Holder(directory, name) for name in ("ada", "ben", "cyd")]


@pytest.fixture(autouse=True)
def ended():
    """Whatever happens to a test, no pool of it is left running."""
    yield
    for pool in [pool for pool in holdfast.RUNNING if isinstance(pool, Production)]:
        pool.kill()


class Production:
    """A pool of class production; named, called and logged as `holdfast.Pool` is."""

    def __init__(self, directory, name, issuer, ca, *flags):
        directory.mkdir()
        self.directory, self.data, self.name, self.issuer, self.ca = directory, directory / "data", name, issuer, ca
        self.port, self.flags, self.process = free_ports(), flags, None
        self.host = f"{name}.{SUFFIX}"
        self.log_path = directory / "server.log"
        self.passphrase = directory / "passphrase"
        self.passphrase.write_text(PASSPHRASE + "\n")
        self.bundle = directory / "trusted.pem"
        self.bundle.write_bytes(ca.path.read_bytes() + open(issuer.ca_file, "rb").read())

    # --- command line

    def run(self, *words, code=0):
        done = subprocess.run(
            [binary(), *map(str, words)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            env=clean_environment(HOLDFAST_CLIENT_SECRET=self.issuer.variables["HOLDFAST_ADMIN_CLIENT_SECRET"]),
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def founding(self, *more):
        issuer = self.issuer
        tenant = issuer.variables["TENANT_ID"]
        keys_url = f"https://127.0.0.1:{issuer.port + 3}/{tenant}/discovery/v2.0/keys"
        keys = self.directory / "keys.json"
        keys.write_bytes(fetch(keys_url, issuer.ca_file))
        return [
            *("pool", "create", "--data", self.data, "--name", self.name, "--domain", "localhost"),
            *("--issuer", f"https://issuer.localhost/{tenant}/v2.0", "--tenant", tenant),
            *("--authority", f"{issuer.variables['AUTHORITY_HOST']}/{tenant}"),
            *("--issuer-keys", keys, "--issuer-keys-url", keys_url, "--issuer-ca", issuer.ca_file),
            *("--administrator", issuer.object_id("admin"), "--root-credential", self.passphrase),
            *more,
        ]

    def create(self):
        said = self.run(*self.founding("--purge-protection"))
        self.genesis = re.search(r"^  genesis +([0-9a-f]{64})$", said, re.MULTILINE)[1]
        chain = self.directory / "chain.pem"
        chain.write_bytes(self.ca.sign(self.data / "tls" / "request.pem"))
        self.run("pool", "certificate", "install", "--data", self.data, "--chain", chain)
        return said

    def client(self, *words, code=0):
        """A command over the wire API, as the administrator."""
        variables = self.issuer.variables
        place = ["--url", self.url(), "--authority", variables["AUTHORITY_HOST"]]
        who = ["--tenant", variables["TENANT_ID"], "--client-id", variables["HOLDFAST_ADMIN_CLIENT_ID"]]
        return self.run(*words, *place, *who, "--ca-file", self.bundle, code=code)

    # --- life

    def start(self, *, credential=True, says="serves at", preexec=None):
        words = ["pool", "serve", "--data", str(self.data), "--listen", f"127.0.0.1:{self.port}", *self.flags]
        if credential:
            words += ["--root-credential", str(self.passphrase)]
        with open(self.log_path, "ab") as log:
            start = log.tell()
            self.process = subprocess.Popen(
                [binary(), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
                preexec_fn=preexec,
            )
        holdfast.RUNNING.append(self)
        return self.until_it_says(says, start)

    def until_it_says(self, says, start):
        """In its log, from that byte on."""
        until = time.monotonic() + READY_SECONDS
        while says.encode() not in self.log_path.read_bytes()[start:]:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log()}"
            assert time.monotonic() < until, f"does not say {says!r}:\n{self.log()}"
            time.sleep(0.02)
        return self

    def kill(self):
        if self in holdfast.RUNNING:
            holdfast.RUNNING.remove(self)
        if self.process is not None:
            self.process.kill()
            self.process.wait(holdfast.STOP_SECONDS)
            self.process = None

    def stop(self):
        self.process.terminate()
        assert self.process.wait(holdfast.STOP_SECONDS) == 0, self.log()
        self.kill()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.kill()

    def log(self, lines=60):
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    # --- HTTPS

    def url(self):
        return f"https://{self.host}:{self.port}"

    def token(self, principal):
        return self.issuer.token(principal, f"https://{SUFFIX}:{self.port}")

    def call(self, method, path, body=None, *, token="app", version="7.5", timeout=holdfast.ANSWER_SECONDS, host=None, tls=None, source=None, **_):
        tls = tls or ssl.create_default_context(cafile=self.bundle)
        source = (source, 0) if source else None
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout, source_address=source) as plain:
            with tls.wrap_socket(plain, server_hostname=self.host) as stream:
                connection = http.client.HTTPConnection(self.host, self.port)
                connection.sock = stream
                headers = {"Host": host or f"{self.host}:{self.port}", "Content-Type": "application/json"}
                if token is not None:
                    known = token in ("app", "admin")
                    headers["Authorization"] = f"Bearer {self.token(token) if known else token}"
                sent = json.dumps(body) if body is not None else None
                connection.request(method, f"{path}?api-version={version}", sent, headers)
                return Answer(connection.getresponse())

    def admin_socket(self, method, path):
        """Without a token, on the machine itself."""
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(str(self.data / "run" / "admin.sock"))
        connection = http.client.HTTPConnection(self.host, timeout=holdfast.ANSWER_SECONDS)
        connection.sock = stream
        connection.request(method, f"{path}?api-version=7.5")
        return Answer(connection.getresponse())

    def admin(self, method, path, body=None, status=200):
        answer = self.call(method, path, body, token="admin")
        assert answer.status == status, (method, path, answer)
        return answer.json

    def give_app_its_role(self):
        for role in (BUILT_IN["user"], CRYPTO_OFFICER):
            self.admin(*role_of(uuid.uuid4(), "", role, self.issuer.object_id("app")))

    @contextlib.contextmanager
    def sdk(self, monkeypatch):
        """The SDK by the pool's name, with its challenge check on. What the name leads to is a resolver's affair."""
        true = socket.getaddrinfo

        def resolve(host, *rest, **more):
            return true("127.0.0.1" if host == self.host else host, *rest, **more)

        with monkeypatch.context() as patched:
            patched.setattr(socket, "getaddrinfo", resolve)
            patched.setenv("REQUESTS_CA_BUNDLE", str(self.bundle))
            credential = app_credential(self.issuer.variables)
            with KeyClient(self.url(), credential) as client:
                yield client, credential


class Standalone(Production):
    """Its issuer is nobody but this test, which has pinned a key: a token says what it is to say."""

    ISSUER = "https://login.example/tenant/v2.0"
    TENANT, GROUP, ADMIN, MEMBER = (str(uuid.uuid4()) for _ in range(4))

    def founding(self, *more):
        self.key = ec.generate_private_key(ec.SECP256R1())
        key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        keys = self.directory / "keys.json"
        keys.write_text(json.dumps({"keys": [{**key, "kid": "one", "use": "sig", "alg": "ES256"}]}))
        return [
            *("pool", "create", "--data", self.data, "--name", self.name, "--domain", "localhost"),
            *("--issuer", self.ISSUER, "--tenant", self.TENANT, "--issuer-keys", keys),
            *("--administrator", self.ADMIN, "--root-credential", self.passphrase),
            *("--break-glass-group", self.GROUP, *more),
        ]

    def token(self, principal, groups=()):
        now = int(time.time())
        claims = {"iss": self.ISSUER, "aud": f"https://{SUFFIX}", "tid": self.TENANT, "groups": list(groups)}
        claims |= {"oid": {"admin": self.ADMIN}.get(principal, principal), "iat": now, "nbf": now, "exp": now + 600}
        return jwt.encode(claims, self.key, algorithm="ES256", headers={"kid": "one"})


def fetch(url, ca_file):
    return holdfast.requests.get(url, verify=ca_file, timeout=holdfast.ANSWER_SECONDS).content


def fields(text):
    """`name   value` lines of `holdfast ceremony inspect`."""
    return {line[:14].strip(): line[14:].strip() for line in text.splitlines() if not line.startswith(" ")}


def without_checks():
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def test_a_pool_is_founded_activated_used_lost_and_rebuilt(tmp_path, issuer, ca, holders, monkeypatch):
    folder = tmp_path / "backups"
    folder.mkdir()
    pool = Production(tmp_path / "first", "payroll", issuer, ca, "--backup-folder", str(folder))
    said = pool.create()
    assert "class production" in said and pool.host in said
    # Founding is once.
    again = pool.run(*pool.founding(), code=1)
    assert "holds a pool already" in again and pool.genesis in again

    with pool:
        # Provisioned: one challenge, one name, no key.
        challenge = pool.call("GET", "/keys", token=None)
        assert_error(challenge, 401, "Unauthorized")
        assert f'resource="https://{SUFFIX}:{pool.port}"' in challenge.headers["WWW-Authenticate"]
        assert "x-holdfast-class" not in challenge.headers
        assert_error(pool.call("GET", "/keys", token=None, host="127.0.0.1"), 421)
        assert pool.call("GET", "/keys").error["innererror"]["code"] == "HsmNotActivated"
        # Whoever holds a token of the tenant for some other Managed HSM.
        foreign = issuer.token("admin", "https://managedhsm.azure.net")
        assert_error(pool.call("GET", "/keys", token=foreign), 401, "Unauthorized")
        denied = download(pool, holders, token="app")
        assert_error(denied, 403, "Forbidden")

        answer = download(pool, holders)
        assert answer.status == 202, answer
        domain = tmp_path / "domain.json"
        domain.write_text(answer.json["value"])
        shown = fields(ceremony("inspect", domain))
        assert (shown["class"], shown["genesis"]) == ("production", pool.genesis)
        assert pool.log().count(shown["owner key"]) == 0 and shown["owner key"] in said
        assert_error(download(pool, holders[:2] + [Holder(tmp_path, "eve")]), 409, "Conflict")

        pool.give_app_its_role()
        with pool.sdk(monkeypatch) as (client, credential):
            key = client.create_ec_key("signer", curve="P-256", hardware_protected=True)
            crypto = CryptographyClient(key, credential)
            signed = crypto.sign(SignatureAlgorithm.es256, bytes(32))

        # What is for class test alone.
        refused = pool.call("PATCH", "/holdfast/test", {"clockAdvanceSeconds": 60}, token="admin")
        assert "class test" in assert_error(refused, 400, "BadParameter")
        done = json.loads(pool.client("backup", "start", "--container", f"file://{folder}", "--output", "json"))
        assert done["status"] == "Succeeded", done
        backup = done["azureStorageBlobContainerUri"].rsplit("/", 1)[1]
        told = pool.run("doctor", "--data", pool.data, "--output", "json")
        states = {row["check"]: row["state"] for row in json.loads(told)["findings"]}
        for check in ("class", "security domain", "root of trust", "core files and debuggers", "certificate of the pool"):
            assert states[check] == "ok", told
        pool.kill()

    # Without the passphrase it stays sealed, says so, and takes it when it comes.
    pool.start(credential=False, says="sealed: the pool")
    with pytest.raises(ssl.SSLCertVerificationError):
        pool.call("GET", "/keys", token=None)
    sealed = pool.call("GET", "/keys", token=None, tls=without_checks())
    assert sealed.status == 503 and sealed.error["innererror"]["code"] == "HsmSealed", sealed
    assert "--root-credential" in pool.log()
    pool.kill()
    pool.passphrase.write_text("another passphrase, and wrong\n")
    pool.start(says="sealed: the pool")
    assert pool.call("GET", "/keys", token=None, tls=without_checks()).status == 503
    start = pool.log_path.stat().st_size
    pool.passphrase.write_text(PASSPHRASE + "\n")
    pool.until_it_says("serves at", start)
    with pool.sdk(monkeypatch) as (client, credential):
        crypto = CryptographyClient(client.get_key("signer"), credential)
        assert crypto.verify(SignatureAlgorithm.es256, bytes(32), signed.signature).is_valid
    pool.kill()

    # Another machine takes in the domain, and does nothing until an administrator says that it is the right one.
    other = Production(tmp_path / "second", "rebuilt", issuer, ca, "--backup-folder", str(folder))
    other.create()
    with other as rebuilt:
        answer = upload(rebuilt, blob_for(rebuilt, domain, holders[:2], tmp_path))
        assert answer.status == 202, answer
        wait_until_active(rebuilt)
        fingerprint = shown["owner key"]
        for restart in (False, True):
            if restart:
                rebuilt.kill()
                rebuilt.start(says="holdfast pool confirm")
            closed = rebuilt.call("GET", "/settings", token="admin")
            assert fingerprint in assert_error(closed, 403, "Forbidden")
            assert "holdfast pool confirm" in closed.error["message"]
            assert closed.error["innererror"]["code"] == "SecurityDomainNotConfirmed"
            told = rebuilt.run("doctor", "--data", rebuilt.data)
            assert fingerprint in told and "nobody has confirmed it" in told
        restore = ("backup", "restore", "--container", f"file://{folder}", "--folder", backup)
        assert "SecurityDomainNotConfirmed" in rebuilt.client(*restore, code=3)
        wrong = rebuilt.client("pool", "confirm", "--fingerprint", "0" * 64, code=1)
        assert fingerprint in wrong, wrong
        assert_error(rebuilt.call("GET", "/settings", token="admin"), 403)
        confirm = {"fingerprint": fingerprint}
        assert_error(rebuilt.call("POST", "/holdfast/securitydomain/confirm", confirm, token="app"), 403)
        assert "confirmed" in rebuilt.client("pool", "confirm", "--fingerprint", fingerprint.upper())
        events = rebuilt.run("audit", "show", "--json", "--data", rebuilt.data)
        assert "SecurityDomainConfirm" in events
        rebuilt.client(*restore)
        with rebuilt.sdk(monkeypatch) as (client, credential):
            crypto = CryptographyClient(client.get_key("signer"), credential)
            assert crypto.verify(SignatureAlgorithm.es256, bytes(32), signed.signature).is_valid
            crypto.sign(SignatureAlgorithm.es256, bytes(32))


class ToLoopback(socketserver.ThreadingTCPServer):
    """A CONNECT proxy, as a resolver would lead there: every name under `localhost` is this machine."""

    allow_reuse_address = daemon_threads = True

    class Tunnel(socketserver.StreamRequestHandler):
        def handle(self):
            host, port = self.rfile.readline().split()[1].decode().rsplit(":", 1)
            while self.rfile.readline().strip():
                pass
            if not (host == "localhost" or host.endswith(".localhost") or host == "127.0.0.1"):
                return
            with socket.create_connection(("127.0.0.1", int(port))) as there:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                pump = threading.Thread(target=self.pass_on, args=(there, self.connection), daemon=True)
                pump.start()
                self.pass_on(self.connection, there)
                pump.join()

        @staticmethod
        def pass_on(source, sink):
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def test_az_activates_a_pool_and_brings_its_domain_into_another(tmp_path, issuer, ca, holders):
    first = Production(tmp_path / "first", "alpha", issuer, ca)
    second = Production(tmp_path / "second", "beta", issuer, ca)
    for pool in (first, second):
        pool.create()
    with first, second, ToLoopback(("127.0.0.1", 0), ToLoopback.Tunnel) as proxy:
        # Whatever way the quickstart would send it.
        variables = {name: value for name, value in issuer.exports("--az").items() if "PROXY" not in name.upper()}
        variables["HTTPS_PROXY"] = f"http://127.0.0.1:{proxy.server_address[1]}"
        variables["REQUESTS_CA_BUNDLE"] = str(first.bundle)
        az = Az(variables, tmp_path / "az")
        az("cloud", "register", "--name", CLOUD, "--endpoint-resource-manager", variables["AUTHORITY_HOST"])
        az("cloud", "set", "--name", CLOUD)
        secret = variables["HOLDFAST_ADMIN_CLIENT_SECRET"]
        az.login(variables["HOLDFAST_ADMIN_CLIENT_ID"], f"--password={secret}")
        of_first, of_second = ["--id", first.url()], ["--id", second.url()]
        file, exchange = tmp_path / "domain.json", tmp_path / "exchange.pem"
        az(
            *("keyvault", "security-domain", "download", *of_first, "--sd-quorum", "2"),
            *("--sd-wrapping-keys", *[str(holder.certificate) for holder in holders]),
            *("--security-domain-file", str(file)),
        )
        assign = ["keyvault", "role", "assignment", "create", "--scope", "/", "--role", "Managed HSM Crypto User"]
        admin = ["--assignee-object-id", issuer.object_id("admin")]
        az(*assign, *admin, *of_first)
        az("keyvault", "key", "create", "--id", f"{first.url()}/keys/from-az", "--kty", "EC-HSM", "--curve", "P-256")

        az("keyvault", "security-domain", "init-recovery", *of_second, "--sd-exchange-key", str(exchange))
        done = az(
            *("keyvault", "security-domain", "upload", *of_second, "--sd-file", str(file)),
            *("--sd-exchange-key", str(exchange), "--sd-wrapping-keys", str(holders[0].key), str(holders[2].key)),
        )
        assert done["status"] == "Success", done
        fingerprint = fields(ceremony("inspect", file))["owner key"]
        refusal = az.refused(*assign, *admin, *of_second)
        assert "holdfast pool confirm" in refusal and fingerprint in refusal
        second.client("pool", "confirm", "--fingerprint", fingerprint)
        az(*assign, *admin, *of_second)
        az("keyvault", "key", "create", "--id", f"{second.url()}/keys/from-az", "--kty", "EC-HSM", "--curve", "P-256")


def test_a_domain_of_class_test_does_not_come_in(tmp_path, issuer, ca, holders):
    (tmp_path / "test").mkdir()
    with Pool(tmp_path / "test", "--blank-pool", "source") as quickstart:
        answer = download(quickstart.blank("source"), holders)
        domain = tmp_path / "domain.json"
        domain.write_text(answer.json["value"])
    pool = Production(tmp_path / "prod", "strict", issuer, ca)
    pool.create()
    with pool:
        answer = upload(pool, blob_for(pool, domain, holders[:2], tmp_path))
        assert answer.error["innererror"]["code"] == "RestoreBlobNotOpened", answer
        assert pool.call("GET", "/settings", token="admin").error["innererror"]["code"] == "HsmNotActivated"


def without_lockable_memory():
    """As a user without rights starts it: root may lock whatever it wants."""
    assert ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) == 0
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))


def test_it_does_not_start_where_keys_could_reach_a_disk(tmp_path, issuer, ca):
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("CI must be root, which can take a right from itself")
        pytest.skip("needs root, which can take a right from itself: lockable memory was not tested")
    pool = Production(tmp_path / "prod", "strict", issuer, ca)
    pool.create()
    serve = ["pool", "serve", "--data", str(pool.data), "--listen", f"127.0.0.1:{pool.port}"]
    for words in (serve + ["--root-credential", str(pool.passphrase)], list(map(str, pool.founding()))):
        done = subprocess.run(
            [binary(), *words],
            capture_output=True,
            text=True,
            timeout=300,
            env=clean_environment(),
            preexec_fn=without_lockable_memory,
        )
        assert done.returncode == 1, done
        assert "a pool of class production does not start" in done.stderr and "RLIMIT_MEMLOCK" in done.stderr
    # Neither is it served as if it were a quickstart.
    done = subprocess.run(
        [binary(), "quickstart", "--data", str(pool.data)],
        capture_output=True,
        text=True,
        timeout=300,
        env=clean_environment(),
    )
    assert done.returncode == 1 and "holdfast pool serve" in done.stderr
    assert not (pool.data / "identity").exists()


def test_founding_refuses_what_makes_no_pool(tmp_path, issuer, ca):
    pool = Production(tmp_path / "prod", "strict", issuer, ca)
    garbage = tmp_path / "garbage"
    garbage.write_text("{}")
    short = tmp_path / "short"
    short.write_text("short\n")

    def refused(option, value, code=1):
        words = list(map(str, pool.founding()))
        words[words.index(option) + 1] = str(value)
        return pool.run(*words, code=code)

    assert "garbage" in refused("--issuer-keys", garbage)
    assert refused("--issuer-ca", garbage)
    assert "does not begin with https://" in refused("--issuer", "http://issuer.example/")
    assert "fewer than 12 characters" in refused("--root-credential", short)
    assert "--domain" in refused("--domain", "https://example.com")
    assert refused("--administrator", "me", code=2)
    assert refused("--data", issuer.data).count("has a quickstart")
    assert not pool.data.exists()
    serve = ("pool", "serve", "--listen", f"127.0.0.1:{pool.port}", "--root-credential", pool.passphrase)
    assert "holdfast pool create" in pool.run(*serve, "--data", pool.data, code=1)
    pool.run(*pool.founding())
    assert "no certificate yet" in pool.run(*serve, "--data", pool.data, code=1)
    foreign = tmp_path / "foreign.pem"
    foreign.write_bytes(ca.path.read_bytes())
    install = ("pool", "certificate", "install", "--data", pool.data, "--chain", foreign)
    assert f"does not name {pool.host}" in pool.run(*install, code=1)


def test_what_is_missing_is_not_made_anew(tmp_path, issuer, ca):
    pool = Production(tmp_path / "prod", "strict", issuer, ca)
    pool.create()
    serve = ("pool", "serve", "--listen", f"127.0.0.1:{pool.port}", "--root-credential", pool.passphrase, "--data", pool.data)
    for name in ("node", "domain.sealed", "store"):
        path, aside = pool.data / "pool" / name, tmp_path / name
        path.rename(aside)
        for words in (serve, pool.founding()):
            assert f"{name} is missing" in pool.run(*words, code=1)
        assert not path.exists()
        aside.rename(path)
    # A founding that was cut short before it asked for a certificate is gone on with.
    (pool.data / "tls" / "request.pem").unlink()
    assert pool.genesis in pool.run(*pool.founding())
    assert (pool.data / "tls" / "request.pem").exists()
    with pool:
        assert_error(pool.call("GET", "/keys", token=None), 401)


def test_a_certificate_is_renewed_with_a_key_of_its_own(tmp_path, issuer, ca):
    pool = Production(tmp_path / "prod", "strict", issuer, ca)
    pool.create()
    keys = set((pool.data / "tls").glob("*.sealed"))
    request = ["pool", "certificate", "request", "--data", pool.data, "--root-credential"]
    wrong = tmp_path / "wrong"
    wrong.write_text("another passphrase, and wrong\n")
    assert "stays sealed" in pool.run(*request, wrong, code=1)
    asked = tmp_path / "request.pem"
    asked.write_text(pool.run(*request, pool.passphrase))
    assert len(set((pool.data / "tls").glob("*.sealed")) - keys) == 1
    with pool:
        assert_error(pool.call("GET", "/keys", token=None), 401)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(ca.sign(asked))
    pool.run("pool", "certificate", "install", "--data", pool.data, "--chain", chain)
    with pool:
        assert_error(pool.call("GET", "/keys", token=None), 401)


def test_another_passphrase(tmp_path, issuer, ca):
    pool = Production(tmp_path / "prod", "strict", issuer, ca)
    pool.create()
    old, new, wrong, short = (tmp_path / name for name in ("old", "new", "wrong", "short"))
    for path, line in ((old, PASSPHRASE), (new, "a new one for the pool"), (wrong, "another, and wrong"), (short, "short")):
        path.write_text(line + "\n")
    request = ["pool", "certificate", "request", "--data", pool.data, "--root-credential"]
    pool.run(*request, old)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(ca.sign(pool.data / "tls" / "request.pem"))
    pool.run("pool", "certificate", "install", "--data", pool.data, "--chain", chain)

    def change(before, after, code=0, data=pool.data):
        return pool.run(
            *("pool", "passphrase", "--data", data), *("--root-credential", before, "--new-root-credential", after), code=code
        )

    def sealed():
        paths = [pool.data / "pool" / "domain.sealed", *(pool.data / "tls").glob("*.sealed")]
        return {path: path.read_bytes() for path in paths}

    before = sealed()
    assert len(before) == 3
    with pool:
        assert f"(pid {pool.process.pid})" in change(old, new, code=1)
    assert "stays sealed" in change(wrong, new, code=1)
    assert "is the one that the pool has" in change(old, old, code=1)
    assert "fewer than 12 characters" in change(old, short, code=1)
    assert "cannot read the passphrase file" in change(old, tmp_path / "absent", code=1)
    assert "holdfast pool create" in change(old, new, code=1, data=tmp_path / "nothing")
    if os.geteuid() == 0:
        # What root wrote, the user that serves the pool could not read.
        os.chown(pool.data / "tls", 1234, 1234)
        assert "is user 1234's" in change(old, new, code=1)
        os.chown(pool.data / "tls", 0, 0)
    assert sealed() == before and not (pool.data / "passphrase.next").exists()

    # What a change leaves that is cut short: made in a copy.
    ahead, left = tmp_path / "ahead", pool.data / "passphrase.next"
    shutil.copytree(pool.data, ahead, ignore=shutil.ignore_patterns("run"))
    assert "sealed under the new passphrase: 3 files" in change(old, new, data=ahead)

    def cut_short(*, marked):
        for path in before:
            path = path.relative_to(pool.data)
            (left / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ahead / path, left / path)
        if marked:
            (left / "complete").touch()

    cut_short(marked=False)
    with pool:
        assert_error(pool.call("GET", "/keys", token=None), 401)
    assert sealed() == before and not left.exists()
    cut_short(marked=True)
    pool.passphrase.write_bytes(new.read_bytes())
    with pool:
        assert_error(pool.call("GET", "/keys", token=None), 401)
    assert "has the new passphrase already" in change(old, new, code=1)

    between = sealed()
    assert "sealed under the new passphrase: 3 files" in change(new, old)
    after = sealed()
    for path in before:
        assert len({before[path], between[path], after[path]}) == 3, path
    assert not left.exists()
    # The one that it had opens nothing, and the other the pool with its own certificate.
    pool.start(says="sealed: the pool")
    assert pool.call("GET", "/keys", token=None, tls=without_checks()).status == 503
    pool.kill()
    pool.passphrase.write_bytes(old.read_bytes())
    with pool:
        assert_error(pool.call("GET", "/keys", token=None), 401)
        events = json.loads(pool.run("audit", "show", "--json", "--data", pool.data))
    # Each start says what it opened, so that the log shows the changes; the first was when the pool was made.
    starts = [event["holdfast"]["detail"] for event in events if event["operationName"] == "PoolStart"]
    domain = pool.data / "pool" / "domain.sealed"
    digests = [hashlib.sha256(files[domain]).hexdigest() for files in (before, before, before, between, after)]
    assert len(starts) == len(digests), starts
    for start, digest in zip(starts, digests, strict=True):
        assert f"opened with a credential, SHA-256 of what it opened {digest}" in start, starts
    assert "stays sealed" in pool.run(*request, new, code=1)
    pool.run(*request, old)
    # A copy of when it had the other opens with that for ever.
    pool.run("pool", "certificate", "request", "--data", ahead, "--root-credential", new)


def test_network_rules_are_asked_before_the_token(tmp_path, issuer, ca):
    pool = Production(tmp_path / "prod", "strict", issuer, ca)
    pool.create()
    rules = pool.data / "pool.toml"
    rules.write_text('[network]\ndefault_action = "Deny"\nip_rules = ["127.0.0.2"]\ntrusted_services = ["127.0.0.3"]\n')
    with pool:
        for token in (None, "admin", "no token"):
            refused = pool.call("GET", "/keys", token=token)
            error = assert_error(refused, 403, "Forbidden")
            assert refused.error["innererror"]["code"] == "ForbiddenByFirewall" and "127.0.0.1" in error, refused
        for source in ("127.0.0.2", "127.0.0.3"):
            assert_error(pool.call("GET", "/keys", token=None, source=source), 401)
        assert pool.admin_socket("GET", "/keys").status == 401
        events = pool.run("audit", "show", "--json", "--data", pool.data)
        assert events.count('"NetworkRulesApplied"') == 1 and events.count("ForbiddenByFirewall") == 1, events

        # A change takes a signal and no restart; one that cannot be meant lets nobody in and nobody out.
        def told(text, says):
            start = pool.log_path.stat().st_size
            rules.write_text(text)
            pool.process.send_signal(signal.SIGHUP)
            pool.until_it_says(says, start)

        def diagnosed():
            told = json.loads(pool.run("doctor", "--data", pool.data, "--output", "json"))
            row = next(row for row in told["findings"] if row["check"] == "network rules")
            return row["state"], row["found"]

        state, found = diagnosed()
        assert state == "ok" and "127.0.0.2" in found, found
        told('[network]\ndefault_action = "Deny"\nip_rules = ["127.0.0.1"]\n', "network rules: ")
        assert_error(pool.call("GET", "/keys", token=None), 401)
        assert_error(pool.call("GET", "/keys", token=None, source="127.0.0.3"), 403)
        told('[network]\nip_rules = []\n', "the network rules stay as they are")
        assert_error(pool.call("GET", "/keys", token=None), 401)
        assert_error(pool.call("GET", "/keys", token=None, source="127.0.0.3"), 403)
        state, found = diagnosed()
        assert state == "weak" and "needs network.default_action" in found, found
        told('[network]\ndefault_action = "Allow"\n', "network rules: ")
        assert_error(pool.call("GET", "/keys", token=None, source="127.0.0.3"), 401)
        state, found = diagnosed()
        assert state == "weak" and "any address" in found, found
        rules.write_text('[network]\ndefault_action = "Deny"\n')
        state, found = diagnosed()
        assert state == "weak" and "in pool.toml: public access enabled, default Deny" in found, found
        events = pool.run("audit", "show", "--json", "--data", pool.data)
        assert events.count('"NetworkRulesApplied"') == 3, events
    # What cannot be meant stops the start.
    serve = ["pool", "serve", "--data", pool.data, "--listen", f"127.0.0.1:{pool.port}"]
    serve += ["--root-credential", pool.passphrase]
    for text, said in (
        ('ip_rules = ["127.0.0.2"]', "needs network.default_action"),
        ('default_action = "Deny"\nip_rules = ["127.0.0.2/8"]', "its network is 127.0.0.0/8"),
        ('default_action = "None"', "unknown variant"),
    ):
        rules.write_text(f"[network]\n{text}\n")
        assert said in pool.run(*serve, code=1)
    rules.unlink()
    with pool:
        assert_error(pool.call("GET", "/keys", token=None), 401)


def test_the_break_glass_group_makes_an_administrator_when_none_is_left(tmp_path, issuer, ca, holders):
    pool = Standalone(tmp_path / "prod", "strict", issuer, ca)
    assert Standalone.GROUP in pool.create()
    assignments = f"{AUTHORIZATION}/roleAssignments"
    method, path, recovery, created = role_of(uuid.uuid4(), "", ADMINISTRATOR, pool.MEMBER)
    with pool:
        member = pool.token(pool.MEMBER, groups=[str(uuid.uuid4()), pool.GROUP])
        early = pool.call(method, path, recovery, token=member)
        assert early.status == 403 and early.error["innererror"]["code"] == "HsmNotActivated", early
        assert download(pool, holders).status == 202
        for held in pool.admin("GET", assignments)["value"]:
            pool.admin("DELETE", f"{assignments}/{held['name']}")
        assert_error(pool.call("GET", assignments, token="admin"), 403, "Forbidden")

        for groups in ([], [str(uuid.uuid4())], [pool.MEMBER]):
            other = pool.token(pool.MEMBER, groups)
            assert_error(pool.call(method, path, recovery, token=other), 403, "Forbidden")
        for role in (CRYPTO_OFFICER, BUILT_IN["user"]):
            wish = role_of(uuid.uuid4(), "", role, pool.MEMBER)[:3]
            assert_error(pool.call(*wish, token=member), 403, "Forbidden")
        at_keys = role_of(uuid.uuid4(), "/keys", ADMINISTRATOR, pool.MEMBER)[:3]
        assert_error(pool.call(*at_keys, token=member), 403, "Forbidden")
        assert_error(pool.call("GET", assignments, token=member), 403, "Forbidden")

        assert pool.call(method, path, recovery, token=member).status == created
        # An administrator like any other, by the role and without the group.
        again = pool.call("GET", assignments, token=pool.token(pool.MEMBER))
        assert [held["name"] for held in again.json["value"]] == [path.rsplit("/", 1)[1]]
        events = pool.run("audit", "show", "--json", "--data", pool.data)
        assert events.count(f"by the break-glass group {pool.GROUP}") == 1, events
        assert pool.GROUP in pool.run("doctor", "--data", pool.data)

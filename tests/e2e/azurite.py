"""The storage emulator, behind a certificate of a test's own CA, and the tokens that it takes."""

import base64
import contextlib
import datetime
import hashlib
import hmac
import ipaddress
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from holdfast import ANSWER_SECONDS, clean_environment, free_ports

READY_SECONDS = 180
VERSION = "2021-12-02"
# The emulator's own, published account.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
ALL = "rwdlac"


def program():
    path = os.environ.get("HOLDFAST_AZURITE")
    if not path:
        raise RuntimeError("HOLDFAST_AZURITE must name the storage emulator; `cargo xtask e2e` sets it")
    return str(pathlib.Path(path).absolute())


def certificate(directory):
    """A CA, and a certificate of it for 127.0.0.1: paths of the CA's certificate, the server's and its key."""
    now = datetime.datetime.now(datetime.UTC)

    def make(name, issuer, issuer_key, key, *extensions):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(issuer_key, hashes.SHA256())

    name = lambda text: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    authority = (x509.BasicConstraints(True, 0), True), (usage, True)
    ca = make(name("storage CA"), name("storage CA"), ca_key, ca_key, *authority)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = make(name("storage"), ca.subject, ca_key, key, (address, False), (x509.BasicConstraints(False, None), True))
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths = [directory / "storage-ca.pem", directory / "storage.pem", directory / "storage.key"]
    for path, content in zip(paths, (ca.public_bytes(pem), made.public_bytes(pem), private)):
        path.write_bytes(content)
    return paths


class Azurite:
    def __init__(self, directory):
        directory = pathlib.Path(directory)
        self.port = free_ports(1)
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"https://{self.host}/{ACCOUNT}"
        self.ca, self.certificate, self.key = certificate(directory)
        self.log_path = directory / "azurite.log"
        self.process = None

    def __enter__(self):
        words = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--inMemoryPersistence"]
        words += ["--cert", str(self.certificate), "--key", str(self.key)]
        words += ["--oauth", "basic", "--disableTelemetry"]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [program(), *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=clean_environment()
            )
        until = time.monotonic() + READY_SECONDS
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            ended = self.process.poll() is not None
            assert not ended and time.monotonic() < until, self.log_path.read_text()
            time.sleep(0.1)

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    @contextlib.contextmanager
    def silent(self):
        """Meanwhile it takes connections, and answers nobody."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def flags(self):
        """What a pool is to be told."""
        return ["--trust-ca", str(self.ca), "--blob-endpoint", self.host]

    def sas(self, permissions=ALL, hours=(-1, 24), key=KEY):
        """A token for all containers of the account (an account SAS)."""
        now = datetime.datetime.now(datetime.UTC)
        start, end = [(now + datetime.timedelta(hours=hour)).strftime("%Y-%m-%dT%H:%M:%SZ") for hour in hours]
        text = "\n".join([ACCOUNT, permissions, "b", "sco", start, end, "", "https", VERSION, "", ""])
        fields = {"sv": VERSION, "ss": "b", "srt": "sco", "sp": permissions, "st": start, "se": end, "spr": "https"}
        return urllib.parse.urlencode({**fields, "sig": signature(text, key)})

    def container_sas(self, container, permissions="crdw"):
        """A token for one container (a service SAS), as the service's documents describe it for backups."""
        end = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        resource = f"/blob/{ACCOUNT}/{container}"
        text = "\n".join([permissions, "", end, resource, "", "", "https", VERSION, "c", "", "", "", "", "", "", ""])
        fields = {"sv": VERSION, "sr": "c", "sp": permissions, "se": end, "spr": "https"}
        return urllib.parse.urlencode({**fields, "sig": signature(text, KEY)})

    def call(self, method, path, body=None, **headers):
        """`path` is below the account; gives status and body."""
        separator = "&" if "?" in path else "?"
        url = f"{self.url}/{path}{separator}{self.sas()}"
        headers = {"x-ms-version": VERSION, **{name.replace("_", "-"): value for name, value in headers.items()}}
        request = urllib.request.Request(url, data=body, method=method, headers=headers)
        context = ssl.create_default_context(cafile=str(self.ca))
        try:
            with urllib.request.urlopen(request, context=context, timeout=ANSWER_SECONDS) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def make_container(self, name):
        """Its URI, as a backup's `storageResourceUri` has it."""
        status, body = self.call("PUT", f"{name}?restype=container", b"")
        assert status == 201, (status, body)
        return f"{self.url}/{name}"

    def blobs(self, container):
        """Names of all that can be seen there."""
        status, body = self.call("GET", f"{container}?restype=container&comp=list")
        assert status == 200, (status, body)
        return [part.split("</Name>")[0] for part in body.decode().split("<Name>")[1:]]

    def get(self, container, name):
        status, body = self.call("GET", f"{container}/{name}")
        assert status == 200, (status, body)
        return body

    def put(self, container, name, body):
        status, answer = self.call("PUT", f"{container}/{name}", body, x_ms_blob_type="BlockBlob")
        assert status == 201, (status, answer)


def signature(text, key):
    return base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()

"""Who a caller is, in every way that the unpatched Azure SDK can show it: certificate, workload federation, managed
identity. And what becomes of those who only pretend."""

import base64
import hmac
import http.client
import json
import time
import uuid

import jwt
import pytest
import requests
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import (
    CertificateCredential,
    ClientAssertionCredential,
    ClientSecretCredential,
    CredentialUnavailableError,
    ManagedIdentityCredential,
    WorkloadIdentityCredential,
)
from azure.keyvault.keys import KeyClient
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from holdfast import Pool, b64, fresh_name, unb64
from test_az import CLOUD, Az

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
AUDIENCE = "api://AzureADTokenExchange"
OTHER_ISSUER = "https://kubernetes.example"
SUBJECT = "system:serviceaccount:default:app"


class OtherIssuer:
    """An issuer that vouches for a workload: a key, and tokens signed with it."""

    def __init__(self, kid="workload"):
        self.kid = kid
        self.key = ec.generate_private_key(ec.SECP256R1())

    @property
    def key_set(self):
        point = self.key.public_key().public_numbers()
        x, y = (b64(value.to_bytes(32)) for value in (point.x, point.y))
        return {"keys": [{"kty": "EC", "crv": "P-256", "kid": self.kid, "x": x, "y": y}]}

    def token(self, **changes):
        now = int(time.time())
        claims = {"iss": OTHER_ISSUER, "sub": SUBJECT, "aud": [AUDIENCE], "iat": now, "nbf": now}
        claims |= {"exp": now + 3600, **changes}
        return jwt.encode(claims, self.key, algorithm="ES256", headers={"kid": self.kid})


@pytest.fixture(scope="module")
def other_issuer():
    return OtherIssuer()


@pytest.fixture(scope="module")
def pool(tmp_path_factory, other_issuer):
    """A pool whose `app` is federated with another issuer."""
    directory = tmp_path_factory.mktemp("identity")
    file = directory / "federation.json"
    credential = {"issuer": OTHER_ISSUER, "subject": SUBJECT, "key_set": other_issuer.key_set}
    file.write_text(json.dumps({"version": 1, "federated": [credential]}))
    with Pool(directory, "--federate", str(file)) as pool:
        yield pool


@pytest.fixture
def settings(pool, monkeypatch):
    """What every credential here is told."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", pool.ca_file)
    return {"authority": pool.variables["AUTHORITY_HOST"], "disable_instance_discovery": True}


def make_and_get_a_key(pool, credential):
    """The SDK makes a key and reads it back; the log says that `app` did."""
    with KeyClient(pool.https_url(), credential, verify_challenge_resource=False) as client:
        key = client.create_ec_key(fresh_name("ec"), curve="P-256", hardware_protected=True)
        assert client.get_key(key.name).id == key.id
    event = next(event for event in reversed(pool.audit()) if event["operationName"] == "KeyGet")
    assert pool.object_id("app") in json.dumps(event["identity"]), event


def ask(pool, tenant=None, **fields):
    """One token request, as `app` unless the fields say otherwise."""
    fields = {
        "grant_type": "client_credentials",
        "client_id": pool.variables["HOLDFAST_APP_CLIENT_ID"],
        "scope": f"https://managedhsm.localhost:{pool.port}/.default",
        **fields,
    }
    url = f"{pool.variables['AUTHORITY_HOST']}/{tenant or pool.variables['TENANT_ID']}/oauth2/v2.0/token"
    return requests.post(url, data=fields, verify=pool.ca_file, timeout=60)


def present(pool, assertion, **fields):
    return ask(pool, client_assertion_type=ASSERTION_TYPE, client_assertion=assertion, **fields)


def assert_refused(answer, number):
    assert answer.status_code == 401, answer.text
    body = answer.json()
    assert body["error"] == "invalid_client" and body["error_codes"] == [number], body
    assert body["error_description"].startswith(f"AADSTS{number}: "), body
    assert "access_token" not in body


class Certificate:
    """The certificate of `app`, and assertions signed with its key."""

    def __init__(self, pool):
        pem = open(pool.variables["HOLDFAST_APP_CERTIFICATE"], "rb").read()
        self.key = serialization.load_pem_private_key(pem, None)
        self.certificate = x509.load_pem_x509_certificate(pem)
        self.claims = {
            "aud": f"{pool.variables['AUTHORITY_HOST']}/{pool.variables['TENANT_ID']}/oauth2/v2.0/token",
            "iss": pool.variables["HOLDFAST_APP_CLIENT_ID"],
            "sub": pool.variables["HOLDFAST_APP_CLIENT_ID"],
        }

    def assertion(self, key=None, algorithm="RS256", headers=None, **changes):
        now = time.time()
        claims = {**self.claims, "jti": str(uuid.uuid4()), "iat": now, "exp": now + 600, **changes}
        sha1 = base64.urlsafe_b64encode(self.certificate.fingerprint(hashes.SHA1())).decode()
        return jwt.encode(claims, key or self.key, algorithm=algorithm, headers=headers or {"x5t": sha1})


# --- certificate


@pytest.mark.parametrize("chain", [False, True], ids=["thumbprint", "with x5c"])
def test_a_client_certificate_gets_a_key(pool, settings, chain):
    credential = CertificateCredential(
        pool.variables["TENANT_ID"],
        pool.variables["HOLDFAST_APP_CLIENT_ID"],
        pool.variables["HOLDFAST_APP_CERTIFICATE"],
        send_certificate_chain=chain,
        **settings,
    )
    make_and_get_a_key(pool, credential)
    # The SDK sends the same assertion for another resource, and from a second thread for the same one.
    assert credential.get_token("https://management.azure.com/.default").token


def test_another_certificate_is_refused(pool, settings, tmp_path):
    key = rsa.generate_private_key(65537, 2048)
    ours = Certificate(pool).certificate
    # Whatever a certificate says of itself: the same names, the same validity, another key.
    forged = (
        x509.CertificateBuilder()
        .subject_name(ours.subject)
        .issuer_name(ours.issuer)
        .public_key(key.public_key())
        .serial_number(ours.serial_number)
        .not_valid_before(ours.not_valid_before_utc)
        .not_valid_after(ours.not_valid_after_utc)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "forged.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + forged.public_bytes(serialization.Encoding.PEM)
    )
    for chain in (False, True):
        credential = CertificateCredential(
            pool.variables["TENANT_ID"],
            pool.variables["HOLDFAST_APP_CLIENT_ID"],
            str(file),
            send_certificate_chain=chain,
            **settings,
        )
        with pytest.raises(ClientAuthenticationError, match="AADSTS700027"):
            credential.get_token(f"https://managedhsm.localhost:{pool.port}/.default")


def test_another_principal_cannot_use_the_certificate(pool, settings):
    credential = CertificateCredential(
        pool.variables["TENANT_ID"],
        pool.variables["HOLDFAST_ADMIN_CLIENT_ID"],
        pool.variables["HOLDFAST_APP_CERTIFICATE"],
        **settings,
    )
    with pytest.raises(ClientAuthenticationError, match="AADSTS700027"):
        credential.get_token(f"https://managedhsm.localhost:{pool.port}/.default")


def test_ps256_and_the_sha256_thumbprint_serve_as_well(pool):
    certificate = Certificate(pool)
    sha256 = base64.urlsafe_b64encode(certificate.certificate.fingerprint(hashes.SHA256())).decode()
    for name in (sha256, sha256.rstrip("=")):
        answer = present(pool, certificate.assertion(algorithm="PS256", headers={"x5t#S256": name}))
        assert answer.status_code == 200, answer.text


def test_an_assertion_out_of_its_time_is_refused(pool):
    certificate, now = Certificate(pool), time.time()
    assert_refused(present(pool, certificate.assertion(exp=now - 1)), 700024)
    assert_refused(present(pool, certificate.assertion(exp=now + 86_400)), 700024)
    assert_refused(present(pool, certificate.assertion(nbf=now + 3000)), 700024)


def test_an_assertion_for_somebody_else_is_refused(pool):
    certificate = Certificate(pool)
    login = "https://login.microsoftonline.com/t/oauth2/v2.0/token"
    assert_refused(present(pool, certificate.assertion(aud=login)), 700023)
    assert_refused(present(pool, certificate.assertion(sub=str(uuid.uuid4()))), 700021)
    assert_refused(present(pool, certificate.assertion(iss=str(uuid.uuid4()))), 700211)
    other = rsa.generate_private_key(65537, 2048)
    assert_refused(present(pool, certificate.assertion(key=other)), 700027)
    public = certificate.key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    # The classic confusion. The library does not make such a token, so by hand: right claims, public key as secret.
    header, claims, _ = certificate.assertion().split(".")
    header = b64(json.dumps({**json.loads(unb64(header)), "alg": "HS256"}).encode())
    tag = hmac.digest(public, f"{header}.{claims}".encode(), "sha256")
    assert_refused(present(pool, f"{header}.{claims}.{b64(tag)}"), 50027)


def test_a_jti_is_used_once(pool):
    certificate = Certificate(pool)
    jti = str(uuid.uuid4())
    first = certificate.assertion(jti=jti)
    assert present(pool, first).status_code == 200
    # Another assertion with that jti, at any time; how long the same one may come again is a matter of a clock, which
    # crates/identity/tests/assertions.rs has.
    assert_refused(present(pool, certificate.assertion(jti=jti, nbf=time.time())), 700024)
    assert_refused(present(pool, certificate.assertion(jti="")), 50027)


# --- workload federation


def test_a_federated_workload_gets_a_key(pool, settings, other_issuer, tmp_path):
    tenant, client = pool.variables["TENANT_ID"], pool.variables["HOLDFAST_APP_CLIENT_ID"]
    file = tmp_path / "token"
    file.write_text(other_issuer.token())
    make_and_get_a_key(
        pool,
        WorkloadIdentityCredential(
            tenant_id=tenant, client_id=client, token_file_path=str(file), **settings
        ),
    )
    make_and_get_a_key(pool, ClientAssertionCredential(tenant, client, other_issuer.token, **settings))
    # A workload's token is in a file for an hour: it is presented more than once.
    token = other_issuer.token()
    assert [present(pool, token).status_code for _ in range(3)] == [200, 200, 200]


def test_a_token_that_is_not_federated_is_refused(pool, other_issuer):
    now = int(time.time())
    for changes, number in (
        ({"iss": OTHER_ISSUER + "/"}, 700211),
        ({"sub": "system:serviceaccount:default:other"}, 700213),
        ({"aud": ["https://kubernetes.default.svc"]}, 700212),
        ({"aud": [AUDIENCE, "https://kubernetes.default.svc"]}, 50027),
        ({"exp": now - 1}, 700024),
        ({"exp": now + 10 * 86_400}, 700024),
        ({"nbf": now + 3000}, 700024),
    ):
        assert_refused(present(pool, other_issuer.token(**changes)), number)
    assert_refused(present(pool, OtherIssuer().token()), 700027)
    assert_refused(present(pool, OtherIssuer("unknown").token()), 700027)
    admin = pool.variables["HOLDFAST_ADMIN_CLIENT_ID"]
    assert_refused(present(pool, other_issuer.token(), client_id=admin), 700211)
    # The pool trusts one issuer, and that is not this one.
    assert pool.call("GET", "/keys", token=other_issuer.token()).status == 401


def test_federation_stays_until_it_is_replaced(own_pool, tmp_path, other_issuer):
    file = tmp_path / "federation.json"
    credential = {"issuer": OTHER_ISSUER, "subject": SUBJECT, "key_set": other_issuer.key_set}
    file.write_text(json.dumps({"version": 1, "federated": [credential]}))
    own_pool.flags = ("--federate", str(file))
    own_pool.start()
    own_pool.stop()
    own_pool.flags = ()
    own_pool.start()
    assert present(own_pool, other_issuer.token()).status_code == 200
    own_pool.stop()
    file.write_text(json.dumps({"version": 1, "federated": []}))
    own_pool.flags = ("--federate", str(file))
    own_pool.start()
    assert_refused(present(own_pool, other_issuer.token()), 700211)
    own_pool.stop()


# --- managed identity


@pytest.fixture
def machine(pool):
    """What `holdfast env --managed-identity` adds to the environment."""
    added = pool.exports("--managed-identity")
    names = {"IDENTITY_ENDPOINT", "IDENTITY_HEADER", "AZURE_POD_IDENTITY_AUTHORITY_HOST"}
    # Only where it was asked for: DefaultAzureCredential would take it before what the user means.
    assert added.keys() - pool.variables.keys() == names
    return {name: added[name] for name in names}


@pytest.fixture(params=["instance metadata", "App Service"])
def form(request, machine, settings, monkeypatch):
    if request.param == "App Service":
        names = ("IDENTITY_ENDPOINT", "IDENTITY_HEADER")
    else:
        names = ("AZURE_POD_IDENTITY_AUTHORITY_HOST",)
    for name in names:
        monkeypatch.setenv(name, machine[name])
    return request.param


def test_a_managed_identity_gets_a_key(pool, form):
    make_and_get_a_key(pool, ManagedIdentityCredential())
    client_id = pool.variables["HOLDFAST_APP_CLIENT_ID"]
    make_and_get_a_key(pool, ManagedIdentityCredential(client_id=client_id))
    make_and_get_a_key(
        pool, ManagedIdentityCredential(identity_config={"object_id": pool.object_id("app")})
    )


def test_an_identity_that_the_machine_does_not_have_is_refused(pool, form):
    scope = f"https://managedhsm.localhost:{pool.port}/.default"
    for credential in (
        ManagedIdentityCredential(client_id=pool.variables["HOLDFAST_ADMIN_CLIENT_ID"]),
        ManagedIdentityCredential(identity_config={"object_id": pool.object_id("admin")}),
    ):
        with pytest.raises((ClientAuthenticationError, CredentialUnavailableError)):
            credential.get_token(scope)
    with pytest.raises((ClientAuthenticationError, CredentialUnavailableError)):
        ManagedIdentityCredential().get_token("https://vault.azure.net/.default")


def test_without_the_header_there_is_no_identity(pool, machine):
    resource = f"https://managedhsm.localhost:{pool.port}"
    metadata = f"{machine['AZURE_POD_IDENTITY_AUTHORITY_HOST']}/metadata/identity/oauth2/token"
    app_service = machine["IDENTITY_ENDPOINT"]

    def get(url, version, **headers):
        query = {"api-version": version, "resource": resource}
        return requests.get(url, params=query, headers=headers, timeout=60)

    assert get(metadata, "2018-02-01", Metadata="true").status_code == 200
    refused = get(metadata, "2018-02-01")
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_request")
    secret = {"X-IDENTITY-HEADER": machine["IDENTITY_HEADER"]}
    assert get(app_service, "2019-08-01", **secret).status_code == 200
    assert get(app_service, "2019-08-01").status_code == 401
    assert get(app_service, "2019-08-01", **{"X-IDENTITY-HEADER": "guessed", "Metadata": "true"}).status_code == 401
    # A page whose name was made to point to this machine, and whatever a proxy passed on.
    for url, version in ((metadata, "2018-02-01"), (app_service, "2019-08-01")):
        for more in ({"Host": "rebound.example"}, {"Host": "169.254.169.254"}, {"X-Forwarded-For": "192.0.2.1"}):
            assert get(url, version, Metadata="true", **secret, **more).status_code == 400, more


def test_managed_identity_listens_on_loopback_alone(pool):
    """And is no way to anything else of the issuer's."""
    connection = http.client.HTTPConnection("127.0.0.1", pool.port + 5, timeout=60)
    connection.request("GET", f"/{pool.variables['TENANT_ID']}/discovery/v2.0/keys")
    assert connection.getresponse().status == 404
    listening = [line.split() for line in open("/proc/net/tcp").read().splitlines()[1:]]
    ours = {local for _, local, _, state, *_ in listening if state == "0A" and int(local[-4:], 16) == pool.port + 5}
    assert ours == {f"0100007F:{pool.port + 5:04X}"}


def test_a_quickstart_can_do_without_managed_identity(own_pool):
    own_pool.flags = ("--no-managed-identity",)
    own_pool.start()
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", own_pool.port + 5, timeout=60).connect()
    refused = own_pool.run("env", "--managed-identity", check=False)
    assert refused.returncode == 1 and "--no-managed-identity" in refused.stderr, refused
    own_pool.stop()


# --- the Azure CLI


@pytest.fixture(scope="module")
def az_proofs(pool, other_issuer):
    """How `az login` shows that it is `app`, beside its secret, and what the environment has for it."""
    client, tenant = pool.variables["HOLDFAST_APP_CLIENT_ID"], pool.variables["TENANT_ID"]
    service = ("--service-principal", "--username", client, "--tenant", tenant)
    certificate = ("--certificate", pool.variables["HOLDFAST_APP_CERTIFICATE"])
    machine = pool.exports("--managed-identity")
    metadata = {"AZURE_POD_IDENTITY_AUTHORITY_HOST": machine["AZURE_POD_IDENTITY_AUTHORITY_HOST"]}
    app_service = {name: machine[name] for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER")}
    return {
        "certificate": ((*service, *certificate), {}),
        "certificate chain": ((*service, *certificate, "--use-cert-sn-issuer"), {}),
        "federated token": ((*service, "--federated-token", other_issuer.token()), {}),
        "instance metadata": (("--identity",), metadata),
        "App Service": (("--identity", "--client-id", client), app_service),
    }


@pytest.mark.parametrize(
    "proof", ["certificate", "certificate chain", "federated token", "instance metadata", "App Service"]
)
def test_the_azure_cli_logs_in(pool, az_proofs, proof, tmp_path):
    words, environment = az_proofs[proof]
    az = Az({**pool.exports("--az"), **environment}, tmp_path)
    az("cloud", "register", "--name", CLOUD, "--endpoint-resource-manager", az.variables["AUTHORITY_HOST"])
    az("cloud", "set", "--name", CLOUD)
    (subscription,) = az("login", *words)
    assert subscription["tenantId"] == pool.variables["TENANT_ID"]
    assert isinstance(az("keyvault", "key", "list", "--hsm-name", "demo"), list)
    # It asks for any tenant's endpoints before it forgets who it was.
    az("logout")
    assert "az login" in az.refused("keyvault", "key", "list", "--hsm-name", "demo")


# --- the tenant named adfs


def test_the_tenant_adfs_serves_who_asks_for_it(own_pool, monkeypatch):
    own_pool.flags = ("--adfs",)
    own_pool.start()
    challenge = own_pool.call("GET", "/keys", token=None).headers["WWW-Authenticate"]
    assert f'authorization="{own_pool.variables["AUTHORITY_HOST"]}/adfs"' in challenge
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", own_pool.ca_file)
    # Nothing is said of instance discovery: clients do not think of it for this tenant.
    credential = ClientSecretCredential(
        "adfs",
        own_pool.variables["CLIENT_ID"],
        own_pool.variables["CLIENT_SECRET"],
        authority=own_pool.variables["AUTHORITY_HOST"],
    )
    make_and_get_a_key(own_pool, credential)
    certificate = CertificateCredential(
        "adfs",
        own_pool.variables["CLIENT_ID"],
        own_pool.variables["HOLDFAST_APP_CERTIFICATE"],
        authority=own_pool.variables["AUTHORITY_HOST"],
    )
    make_and_get_a_key(own_pool, certificate)
    own_pool.stop()


# --- a new key


def kid(token):
    return jwt.get_unverified_header(token)["kid"]


def test_the_pool_follows_its_issuer_to_a_new_key(own_pool):
    own_pool.start()
    first = own_pool.token()
    bundle = own_pool.create("ec")
    path = f"/keys/{bundle['key']['kid'].split('/')[4]}"
    own_pool.stop()

    own_pool.flags = ("--rotate-issuer-key",)
    own_pool.start()
    second = own_pool.token(fresh=True)
    assert kid(second) != kid(first)
    keys = f"{own_pool.variables['AUTHORITY_HOST']}/{own_pool.variables['TENANT_ID']}/discovery/v2.0/keys"
    served = requests.get(keys, verify=own_pool.ca_file, timeout=60).json()["keys"]
    assert [key["kid"] for key in served] == [kid(second), kid(first)]
    assert all("d" not in key for key in served)
    # Genesis pins the first key alone: the pool has asked.
    assert own_pool.call("GET", path, token=second).status == 200
    assert own_pool.call("GET", path, token=first).status == 200, "the key before is listed still"
    assert "IssuerKeysReplaced" in [event["operationName"] for event in own_pool.audit()]
    own_pool.stop()

    own_pool.start()
    third = own_pool.token(fresh=True)
    assert kid(third) not in (kid(first), kid(second))
    assert own_pool.call("GET", path, token=third).status == 200
    assert own_pool.call("GET", path, token=second).status == 200
    # Though genesis pins it, and the token has not expired.
    refused = own_pool.call("GET", path, token=first)
    assert refused.status == 401 and "not among the issuer's keys" in refused.error["message"], refused
    own_pool.stop()

    # Without another rotation all is as it was.
    own_pool.flags = ()
    own_pool.start()
    assert kid(own_pool.token(fresh=True)) == kid(third)
    assert own_pool.call("GET", path, token=third).status == 200
    own_pool.stop()


def test_a_blank_pool_follows_its_issuer_to_a_new_key(tmp_path):
    """Nobody could bring a domain into it, and it would stay blank for ever."""
    with Pool(tmp_path, "--blank-pool", "vault") as own:
        own.stop()
        own.flags = (*own.flags, "--rotate-issuer-key")
        own.start()
        vault = own.blank("vault")
        answer = vault.call("GET", "/securitydomain/upload/pending", token="admin", version="7.5")
        assert answer.status == 200, answer


def test_with_another_ca_the_key_is_not_rotated(own_pool):
    """The pool could not ask for it: it would refuse every token, for ever."""
    own_pool.start()
    own_pool.stop()
    for name in ("ca.key", "ca.pem"):
        (own_pool.data / "ca" / name).unlink()
    done = own_pool.run("quickstart", "--port", str(own_pool.port), "--rotate-issuer-key", check=False)
    assert done.returncode == 1 and "another CA" in done.stderr, done
    own_pool.start()
    assert own_pool.call("GET", "/keys/none", token=own_pool.token()).status == 404
    own_pool.stop()

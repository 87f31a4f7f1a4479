"""Key attestation: the SDK gets it (with `az`: test_az.py), `holdfast attest verify` judges it offline, and nothing bent passes."""

import json
import os
import subprocess

import pytest
from azure.keyvault.keys import KeyClient
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from holdfast import app_credential, assert_error, b64, fresh_name, unb64

@pytest.fixture(scope="module")
def bundle(pool):
    """An attested EC key, as the service answered."""
    name = pool.create("ec")["key"]["kid"].split("/")[-2]
    answer = pool.call("GET", f"/keys/{name}//attestation")
    assert answer.status == 200, answer
    return answer.json


@pytest.fixture
def verify(pool, tmp_path):
    """Runs the verifier over a bundle; gives its exit code and the verdicts by claim."""

    def verify(document, *flags, check_output=True):
        file = tmp_path / "attestation.json"
        file.write_text(document if isinstance(document, str) else json.dumps(document))
        done = pool.run("attest", "verify", str(file), "--output", "json", *flags, check=False)
        if not check_output:
            return done
        assert done.stdout, done.stderr
        report = json.loads(done.stdout)
        assert report["verified"] == (done.returncode == 0), done
        return done.returncode, {claim["claim"]: claim for claim in report["claims"]}

    return verify


def verdicts(claims):
    return {name: claim["verdict"] for name, claim in claims.items()}


def bent(bundle, **members):
    document = json.loads(json.dumps(bundle))
    document["attributes"]["attestation"].update(members)
    return document


def members_of(bundle):
    return bundle["attributes"]["attestation"]


def test_the_sdk_gets_an_attestation_and_it_verifies(pool, verify, monkeypatch):
    variables = pool.variables
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", variables["REQUESTS_CA_BUNDLE"])
    url = variables["HOLDFAST_POOL_URL_IP"]
    with KeyClient(url, app_credential(variables), verify_challenge_resource=False) as client:
        made = client.create_rsa_key(fresh_name("attested"), size=2048, hardware_protected=True)
        for version in (None, made.properties.version):
            held = client.get_key_attestation(made.name, version)
            attestation = held.properties.attestation
            assert held.id == made.id and held.key.n == made.key.n
            assert attestation.version == "holdfast-1"
            document = {
                "version": attestation.version,
                "certificatePemFile": b64(attestation.certificate_pem_file),
                "privateKeyAttestation": b64(attestation.private_key_attestation),
                "publicKeyAttestation": b64(attestation.public_key_attestation),
            }
            code, claims = verify(document, "--key", made.name, "--origin", "generated", "--not-exportable")
            assert code == 0, claims
            assert claims["type"]["value"] == "RSA-HSM 2048"
            assert verdicts(claims)["release policy"] == "not claimed"
        oct_key = client.create_oct_key(fresh_name("attested"), size=256, hardware_protected=True)
        attestation = client.get_key_attestation(oct_key.name).properties.attestation
        assert attestation.private_key_attestation and attestation.public_key_attestation is None


def test_the_chain_is_one_that_other_tools_build(pool, bundle, tmp_path):
    pem = unb64(members_of(bundle)["certificatePemFile"])
    instance, owner = x509.load_pem_x509_certificates(pem)
    owner_key = x509.load_pem_x509_certificates(pem)[1].public_key()
    assert isinstance(owner_key.curve, ec.SECP384R1)
    for certificate in (instance, owner):
        assert certificate.issuer == owner.subject
        owner_key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(SHA384()))
    text = (pool.data / "pool" / "owner.pem").read_text()
    assert owner_key == load_pem_public_key(text.encode())
    (tmp_path / "owner.pem").write_bytes(pem[pem.index(b"-----BEGIN", 10) :])
    (tmp_path / "instance.pem").write_bytes(pem[: pem.index(b"-----BEGIN", 10)])
    done = subprocess.run(
        ["openssl", "verify", "-CAfile", tmp_path / "owner.pem", tmp_path / "instance.pem"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done


def test_every_claim_has_its_verdict(pool, bundle, verify, tmp_path):
    held = members_of(bundle)
    code, claims = verify(bundle)
    assert code == 0, claims
    said = verdicts(claims)
    for claim in ("owner", "certificate", "purpose", "certified for", "private statement", "public statement"):
        assert said[claim] == "PASS", claims
    for claim in ("time", "key", "version", "type", "public key", "key_ops", "created", "exportable"):
        assert said[claim] == "PASS", claims
    for claim in ("pool", "security domain", "class", "genesis", "origin", "stored material"):
        assert said[claim] == "claimed", claims
    assert said["release policy"] == "not claimed"

    name, version = bundle["key"]["kid"].split("/")[-2:]
    pem = tmp_path / "key.pem"
    pem.write_text(pool.run("key", "show", name, "--pem").stdout)
    wanted = {
        "pool": ("--pool", claims["pool"]["value"], "11111111-1111-1111-1111-111111111111"),
        "class": ("--class", "test", "production"),
        "genesis": ("--genesis", claims["genesis"]["value"], "00" * 32),
        "key": ("--key", name.upper(), "other"),
        "version": ("--key-version", version, "0" * 32),
        "key_ops": ("--ops", "verify,sign", "sign"),
        "origin": ("--origin", "generated", "wrapped"),
        "time": ("--max-age", "1h", "0h"),
    }
    good = [word for flag, value, _ in wanted.values() for word in (flag, value)]
    owner = claims["owner"]["value"]
    code, claims = verify(bundle, *good, "--public-key", str(pem), "--not-exportable", "--owner-fingerprint", owner)
    assert code == 0, claims
    assert all(verdict in ("PASS", "not claimed") for name, verdict in verdicts(claims).items() if name in wanted)
    assert held["version"] == "holdfast-1"
    for claim, (flag, _, wrong) in wanted.items():
        if claim != "time":
            code, claims = verify(bundle, flag, wrong)
            assert code == 1 and verdicts(claims)[claim] == "FAIL", (claim, claims)
            assert [name for name, verdict in verdicts(claims).items() if verdict == "FAIL"] == [claim]
    other = tmp_path / "other.pem"
    other.write_text(pool.run("key", "show", pool.create("ec")["key"]["kid"].split("/")[-2], "--pem").stdout)
    assert verdicts(verify(bundle, "--public-key", str(other))[1])["public key"] == "FAIL"
    (tmp_path / "policy.json").write_text("{}")
    assert verdicts(verify(bundle, "--release-policy", str(tmp_path / "policy.json"))[1])["release policy"] == "FAIL"


def flipped(text, at):
    data = bytearray(unb64(text))
    data[at] ^= 1
    return b64(bytes(data))


def test_no_byte_of_a_statement_can_be_changed(bundle, verify):
    held = members_of(bundle)
    size = len(unb64(held["privateKeyAttestation"]))
    for member, claim in (("privateKeyAttestation", "private statement"), ("publicKeyAttestation", "public statement")):
        for at in range(size - 1, 0, -23):
            code, claims = verify(bent(bundle, **{member: flipped(held[member], at)}))
            said = verdicts(claims)
            assert code == 1, (member, at, claims)
            assert said.get("statement") == "FAIL" or said[claim] == "FAIL", (member, at, claims)
            proven = {name for name in ("pool", "key", "origin", "exportable") if said.get(name, "unproven") != "unproven"}
            assert not proven, (member, at, claims)


def test_what_stands_around_the_statement_must_be_what_is_signed(bundle, verify):
    for path, claim, wrong in [
        (("key", "kid"), "key", "https://h/keys/another/" + "0" * 32),
        (("key", "kty"), "type", "RSA-HSM"),
        (("key", "x"), "public key", b64(bytes(32))),
        (("key", "crv"), "public key", "P-384"),
        (("key", "key_ops"), "key_ops", ["sign"]),
        (("attributes", "created"), "created", 1),
        (("attributes", "exportable"), "exportable", True),
    ]:
        document = json.loads(json.dumps(bundle))
        document[path[0]][path[1]] = wrong
        code, claims = verify(document)
        assert code == 1 and verdicts(claims)[claim] == "FAIL", (path, claims)


def test_statements_do_not_stand_in_for_each_other(pool, bundle, verify):
    held = members_of(bundle)
    private, public = held["privateKeyAttestation"], held["publicKeyAttestation"]
    for members in (
        {"privateKeyAttestation": public},
        {"publicKeyAttestation": private},
        {"publicKeyAttestation": None},
    ):
        code, claims = verify(bent(bundle, **members))
        assert code == 1 and "FAIL" in verdicts(claims).values(), claims
    other = pool.call("GET", f"/keys/{pool.create('ec')['key']['kid'].split('/')[-2]}/attestation").json
    code, claims = verify(bent(bundle, publicKeyAttestation=members_of(other)["publicKeyAttestation"]))
    assert (code, verdicts(claims)["public statement"]) == (1, "FAIL")
    # A whole statement of another key, in this one's bundle.
    code, claims = verify(bent(bundle, **members_of(other)))
    assert (code, verdicts(claims)["key"], verdicts(claims)["public key"]) == (1, "FAIL", "FAIL")


def test_another_owner_proves_nothing(bundle, verify, tmp_path):
    code, claims = verify(bundle, "--owner-fingerprint", "00" * 32)
    assert (code, verdicts(claims)["owner"], verdicts(claims)["key"]) == (1, "FAIL", "unproven")
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    pem = tmp_path / "another.pem"
    pem.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    code, claims = verify(bundle, "--owner-key", str(pem))
    assert (code, verdicts(claims)["certificate"], verdicts(claims)["pool"]) == (1, "FAIL", "unproven")
    # The certificate of the log's key, by the right owner, is for something else: it cannot be had over the wire.
    only = unb64(members_of(bundle)["certificatePemFile"]).split(b"-----END CERTIFICATE-----\n")[0]
    alone = b64(only + b"-----END CERTIFICATE-----\n")
    assert verify(bent(bundle, certificatePemFile=alone))[0] == 0
    code, claims = verify(bent(bundle, certificatePemFile=alone), "--owner-fingerprint", "00" * 32)
    assert (code, verdicts(claims)["owner"]) == (1, "FAIL")


def test_the_security_domain_file_is_trust_enough(pool, bundle, verify):
    pool.wait_for_holders()
    (file,) = (pool.data / "ceremony").glob("*domain*.json")
    code, claims = verify(bundle, "--domain-file", str(file))
    assert code == 0, claims
    for claim in ("owner", "pool", "security domain", "class", "genesis"):
        assert verdicts(claims)[claim] == "PASS", claims


@pytest.mark.parametrize(
    "text, told",
    [
        ("{", "not JSON"),
        ("{}", "holds no key attestation"),
        ('{"version":"1.0"}', "of version `1.0`"),
        ('{"version":"holdfast-1"}', "has no certificatePemFile"),
        ('{"version":"holdfast-1","certificatePemFile":"+-"}', "certificatePemFile is not base64"),
        ('{"version":"holdfast-1","certificatePemFile":7}', "certificatePemFile is not base64"),
    ],
)
def test_what_is_no_attestation_is_refused_in_words(verify, text, told):
    done = verify(text, check_output=False)
    assert done.returncode == 2 and told in done.stderr, done


def test_origin_is_what_happened(pool, verify):
    jwk = ec.generate_private_key(ec.SECP256R1())
    numbers = jwk.private_numbers()
    body = {"key": {"kty": "EC-HSM", "crv": "P-256", "d": b64(numbers.private_value.to_bytes(32, "big"))}}
    body["key"]["x"] = b64(numbers.public_numbers.x.to_bytes(32, "big"))
    body["key"]["y"] = b64(numbers.public_numbers.y.to_bytes(32, "big"))
    name = fresh_name("attested")
    assert pool.call("PUT", f"/keys/{name}", body).status == 200
    code, claims = verify(pool.call("GET", f"/keys/{name}/attestation").json, "--origin", "imported")
    assert (code, claims["origin"]["value"]) == (0, "imported"), claims
    # A backup and its restore do not launder it.
    backup = pool.call("POST", f"/keys/{name}/backup").json
    pool.call("DELETE", f"/keys/{name}")
    pool.call("DELETE", f"/deletedkeys/{name}", token="admin")
    officer = pool.call("POST", "/keys/restore", backup)
    if officer.status == 200:
        _, claims = verify(pool.call("GET", f"/keys/{name}/attestation").json)
        assert claims["origin"]["value"] == "imported", claims


def test_disabled_keys_are_attested_and_deleted_ones_are_not(pool, verify):
    name = pool.create("oct")["key"]["kid"].split("/")[-2]
    pool.call("PATCH", f"/keys/{name}", {"attributes": {"enabled": False}})
    answer = pool.call("GET", f"/keys/{name}/attestation", correlation_id=f"attest-{name}")
    assert answer.status == 200
    code, claims = verify(answer.json)
    assert (code, verdicts(claims)["public statement"]) == (0, "not claimed"), claims
    (event,) = pool.events(f"attest-{name}")
    assert event["operationName"] == "KeyAttestationGet"
    pool.call("DELETE", f"/keys/{name}")
    assert_error(pool.call("GET", f"/keys/{name}/attestation"), 404, "KeyNotFound")


def test_no_right_to_read_no_attestation(pool, bundle):
    path = "/".join(bundle["key"]["kid"].split("/")[-3:]) + "/attestation"
    denied = pool.call("GET", f"/{path}", token="admin")
    assert_error(denied, 403, "Forbidden")
    assert "keys/read/action" in denied.error["message"]


def test_get_keeps_the_answer_as_it_came(pool, tmp_path):
    kid = pool.create("ec")["key"]["kid"]
    name, version = kid.split("/")[-2:]
    out = tmp_path / "kept.json"
    pool.run("attest", "get", name, "--version", version, "--out", str(out))
    assert json.loads(out.read_text())["key"]["kid"].endswith(f"/keys/{name}/{version}")
    assert os.stat(out).st_mode & 0o777 == 0o600
    assert pool.run("attest", "verify", str(out), "--output", "table").stdout.endswith("verified\n")

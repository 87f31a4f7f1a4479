"""Secure key release with the SDK: who proves to be what the policy asks for gets the key, and nobody else does.

The authority is the one in the box, which vouches for whatever it is asked to; the environment is played by this process.
"""

import base64
import json
import os
import uuid

import pytest
import requests
from azure.core.exceptions import HttpResponseError
from azure.keyvault.keys import KeyReleasePolicy
from cryptography import x509
from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast import assert_error, b64, fresh_name, key_client, key_path, unb64

HASHES = {"CKM_RSA_AES_KEY_WRAP": hashes.SHA1, "RSA_AES_KEY_WRAP_256": hashes.SHA256, "RSA_AES_KEY_WRAP_384": hashes.SHA384}
WRAPPING = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def number(value):
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def environment_key(**more):
    public = WRAPPING.public_key().public_numbers()
    kid = {"kid": "HCLTransferKey", "kty": "RSA", "key_ops": ["encrypt"]}
    return {**kid, "n": number(public.n), "e": number(public.e), **more}


@pytest.fixture(scope="module")
def client(pool):
    with key_client(pool) as client:
        yield client


@pytest.fixture(scope="module")
def authority(pool):
    return pool.variables["HOLDFAST_ATTESTATION_URL"]


def vouch(pool, authority, kind="sevsnpvm", keys=None, **claims):
    evidence = {"type": kind, "keys": [environment_key()] if keys is None else keys, "claims": claims}
    answer = requests.post(f"{authority}/tokens", json=evidence, verify=pool.ca_file, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["token"]


def policy(authority, *conditions, **more):
    conditions = conditions or ({"claim": "x-ms-sevsnpvm-is-debuggable", "equals": False},)
    return {"version": "1.0.0", "anyOf": [{"authority": authority, "allOf": list(conditions)}], **more}


def sdk_policy(document, **more):
    return KeyReleasePolicy(json.dumps(document).encode(), **more)


def body_policy(document, **more):
    return {"data": b64(json.dumps(document).encode()), **more}


def opened(value):
    """The key in an answer, opened as software for confidential machines does; and the answer's payload."""
    payload = json.loads(unb64(value.split(".")[1]))
    wrapped = json.loads(unb64(payload["response"]["key"]["key"]["key_hsm"]))
    enc = payload["request"]["enc"]
    assert wrapped["header"] == {"kid": "HCLTransferKey", "alg": "dir", "enc": enc}
    assert wrapped["schema_version"] == "1.0.0"
    ciphertext = unb64(wrapped["ciphertext"])
    algorithm = HASHES[enc]()
    oaep = padding.OAEP(padding.MGF1(algorithm), algorithm, None)
    key = WRAPPING.decrypt(ciphertext[:256], oaep)
    assert len(key) == 32
    return keywrap.aes_key_unwrap_with_padding(key, ciphertext[256:]), payload


def check_signature(pool, value):
    """The answer is signed by a key of this pool's, which its owner key certified for releases."""
    head, payload, signature = value.split(".")
    header = json.loads(unb64(head))
    certificate = x509.load_der_x509_certificate(base64.b64decode(header["x5c"][0]))
    signature = unb64(signature)
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    certificate.public_key().verify(
        encode_dss_signature(r, s), f"{head}.{payload}".encode(), ec.ECDSA(hashes.SHA256())
    )
    owner = serialization.load_pem_public_key((pool.data / "pool" / "owner.pem").read_bytes())
    owner.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(hashes.SHA384()))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "purpose=release" in names.get_values_for_type(x509.UniformResourceIdentifier)[0]


@pytest.mark.parametrize("enc", [None, *HASHES])
def test_the_sdk_releases_an_rsa_key_that_is_the_pools(pool, client, authority, enc):
    name = fresh_name("released")
    document = policy(authority)
    key = client.create_rsa_key(
        name, size=2048, hardware_protected=True, exportable=True, release_policy=sdk_policy(document), tags={"a": "b"}
    )
    assert key.properties.exportable
    assert json.loads(key.properties.release_policy.encoded_policy) == document
    assert not key.properties.release_policy.immutable
    more = {"algorithm": enc} if enc else {}
    result = client.release_key(name, vouch(pool, authority), nonce="a nonce", **more)
    material, payload = opened(result.value)
    check_signature(pool, result.value)
    released = serialization.load_der_private_key(material, None)
    assert released.public_key().public_numbers().n == int.from_bytes(key.key.n, "big")
    assert payload["request"]["kid"] == key.id
    assert payload["request"]["nonce"] == "a nonce"
    assert payload["request"]["enc"] == enc or (enc is None and payload["request"]["enc"] == "CKM_RSA_AES_KEY_WRAP")
    assert payload["request"]["api-version"]
    shown = payload["response"]["key"]
    assert shown["key"]["kid"] == key.id and shown["key"]["kty"] == "RSA-HSM" and shown["key"]["key_ops"]
    assert shown["attributes"]["exportable"] and shown["tags"] == {"a": "b"}
    assert json.loads(unb64(shown["release_policy"]["data"])) == document
    # What the released key signs, the pool's public half verifies.
    signature = released.sign(b"text", padding.PKCS1v15(), hashes.SHA256())
    public = rsa.RSAPublicNumbers(int.from_bytes(key.key.e, "big"), int.from_bytes(key.key.n, "big")).public_key()
    public.verify(signature, b"text", padding.PKCS1v15(), hashes.SHA256())


@pytest.mark.parametrize("curve", ["P-256", "P-256K", "P-384", "P-521"])
def test_elliptic_curve_keys_come_in_pkcs8(pool, client, authority, curve):
    name = fresh_name("released")
    key = client.create_ec_key(
        name, curve=curve, hardware_protected=True, exportable=True, release_policy=sdk_policy(policy(authority))
    )
    material, _ = opened(client.release_key(name, vouch(pool, authority)).value)
    numbers = serialization.load_der_private_key(material, None).public_key().public_numbers()
    assert (numbers.x, numbers.y) == (int.from_bytes(key.key.x, "big"), int.from_bytes(key.key.y, "big"))


def test_a_symmetric_key_opens_what_the_pool_sealed(pool, client, authority):
    name = fresh_name("released")
    client.create_oct_key(
        name, size=256, hardware_protected=True, exportable=True, release_policy=sdk_policy(policy(authority))
    )
    sealed = pool.call("POST", f"/keys/{name}/encrypt", {"alg": "A256GCM", "value": b64(b"text")}).json
    material, _ = opened(client.release_key(name, vouch(pool, authority)).value)
    assert AESGCM(material).decrypt(unb64(sealed["iv"]), unb64(sealed["value"]) + unb64(sealed["tag"]), None) == b"text"


def test_an_imported_key_comes_back_as_it_was(pool, authority):
    own = os.urandom(32)
    name = fresh_name("released")
    body = {
        "key": {"kty": "oct-HSM", "k": b64(own)},
        "attributes": {"exportable": True},
        "release_policy": body_policy(policy(authority)),
    }
    assert pool.call("PUT", f"/keys/{name}", body).status == 200
    answer = pool.call("POST", f"/keys/{name}//release", {"target": vouch(pool, authority)})
    assert answer.status == 200, answer
    assert opened(answer.json["value"])[0] == own


@pytest.mark.parametrize(
    "kind, claim, good, bad",
    [
        ("sevsnpvm", "x-ms-sevsnpvm-hostdata", "aa" * 32, "bb" * 32),
        ("tdxvm", "tdx_mrtd", "aa" * 32, "bb" * 32),
        ("sgx", "x-ms-sgx-mrenclave", "aa" * 32, "bb" * 32),
    ],
)
def test_each_type_of_environment_is_held_to_its_measurement(pool, authority, kind, claim, good, bad):
    conditions = [{"claim": "x-ms-attestation-type", "equals": kind}, {"claim": claim, "equals": good}]
    key = pool.create("oct", attributes={"exportable": True}, release_policy=body_policy(policy(authority, *conditions)))
    release = f"{key_path(key)}/release"
    answer = pool.call("POST", release, {"target": vouch(pool, authority, kind, **{claim: good})})
    assert answer.status == 200 and len(opened(answer.json["value"])[0]) == 32
    answer = pool.call("POST", release, {"target": vouch(pool, authority, kind, **{claim: bad})})
    assert claim in assert_error(answer, 403, "Forbidden")
    assert answer.error["innererror"]["code"] == "ReleasePolicyNotMet"


@pytest.fixture(scope="module")
def releasable(pool, authority):
    key = pool.create("ec", attributes={"exportable": True}, release_policy=body_policy(policy(authority)))
    return f"{key_path(key)}/release"


def changed(token):
    head, payload, signature = token.split(".")
    claims = json.loads(unb64(payload))
    claims["x-ms-sevsnpvm-vmpl"] = 3
    return ".".join([head, b64(json.dumps(claims).encode()), signature])


def unsigned(token):
    payload = token.split(".")[1]
    return f"{b64(json.dumps({'alg': 'none', 'typ': 'JWT', 'kid': 'x'}).encode())}.{payload}."


def other_key(token):
    head, payload, signature = token.split(".")
    header = {**json.loads(unb64(head)), "kid": "another"}
    return ".".join([b64(json.dumps(header).encode()), payload, signature])


@pytest.mark.parametrize(
    "make, status, inner, words",
    [
        (lambda p, a: vouch(p, a, **{"x-ms-sevsnpvm-is-debuggable": True}), 403, "ReleasePolicyNotMet", "is-debuggable"),
        (lambda p, a: vouch(p, a, **{"x-ms-sevsnpvm-is-debuggable": "false"}), 403, "ReleasePolicyNotMet", "is-debuggable"),
        (lambda p, a: vouch(p, a, kind="sgx"), 403, "ReleasePolicyNotMet", "is-debuggable"),
        (lambda p, a: vouch(p, a, exp=1), 403, "AttestationNotVerified", "expired"),
        (lambda p, a: vouch(p, a, nbf=4_000_000_000), 403, "AttestationNotVerified", "not valid before"),
        (lambda p, a: vouch(p, a, keys=[]), 403, "AttestationNotVerified", "no key to wrap"),
        (lambda p, a: vouch(p, a, keys=[environment_key(key_ops=["sign"])]), 403, "AttestationNotVerified", "no key to wrap"),
        (lambda p, a: vouch(p, a, keys=[environment_key(e="AQ")]), 403, "ReleaseKeyUnusable", "exponent"),
        (lambda p, a: changed(vouch(p, a)), 403, "AttestationNotVerified", "signature does not verify"),
        (lambda p, a: other_key(vouch(p, a)), 403, "AttestationNotVerified", "not among its authority's keys"),
        (lambda p, a: unsigned(vouch(p, a)), 400, None, "RS256"),
        (lambda p, a: "not a token", 400, None, "not a signed JWT"),
        (lambda p, a: "a." + "b" * 100_000 + ".c", 400, None, "over the limit"),
        # A token for the pool is no assertion about an environment.
        (lambda p, a: p.token("app"), 403, "AttestationNotVerified", "is not an authority"),
    ],
)
def test_what_proves_nothing_gets_nothing_and_leaves_an_event(pool, authority, releasable, make, status, inner, words):
    correlation_id = str(uuid.uuid4())
    body = {"target": make(pool, authority)}
    answer = pool.call("POST", releasable, body, correlation_id=correlation_id)
    message = assert_error(answer, status)
    assert words in message, message
    assert answer.error.get("innererror", {}).get("code") == inner
    [event] = pool.events(correlation_id)
    assert event["operationName"] == "KeyRelease" and event["httpStatusCode"] == status


def test_an_assertion_is_not_good_for_another_principal(pool, authority, releasable):
    key = releasable.split("/")[2]
    role = "21dbd100-6940-42c2-9190-5d6cb909625c"
    path = f"/keys/{key}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}"
    body = {"properties": {"principalId": pool.object_id("admin"), "roleDefinitionId": role}}
    assert pool.call("PUT", path, body, token="admin").status == 201
    target = {"target": vouch(pool, authority)}
    assert pool.call("POST", releasable, target, token="admin").status == 200
    assert pool.call("POST", releasable, target, token="admin").status == 200
    refused = pool.call("POST", releasable, target)
    assert_error(refused, 403, "Forbidden")
    assert refused.error["innererror"]["code"] == "AttestationReplayed"


def test_an_authority_without_a_trusted_certificate_is_not_believed(pool, own_pool, authority):
    own_pool.start()
    stranger = own_pool.variables["HOLDFAST_ATTESTATION_URL"]
    key = pool.create("ec", attributes={"exportable": True}, release_policy=body_policy(policy(stranger)))
    answer = pool.call("POST", f"{key_path(key)}/release", {"target": vouch(own_pool, stranger)})
    message = assert_error(answer, 403, "Forbidden")
    assert "cannot be had" in message and "certificate" not in message, "a caller is not told what is there"
    assert "certificate" in pool.log(400)
    own_pool.stop()


def test_policies_are_checked_when_a_key_is_made(pool, authority):
    def refused(**more):
        answer = pool.call("POST", f"/keys/{fresh_name()}/create", {"kty": "EC-HSM", **more})
        return assert_error(answer, 400, "BadParameter")

    exportable = {"attributes": {"exportable": True}}
    assert "needs a release_policy" in refused(**exportable)
    assert "chosen when a key is made" in refused(release_policy=body_policy(policy(authority)))
    bad = policy(authority, {"claim": "a", "equals": None})
    assert "anyOf[0].allOf[0].equals" in refused(**exportable, release_policy=body_policy(bad))
    assert "https://host" in refused(**exportable, release_policy=body_policy(policy("attest.example")))
    import_only = {"kty": "RSA-HSM", "key_ops": ["import"], **exportable}
    assert "cannot be exportable" in refused(**import_only, release_policy=body_policy(policy(authority)))


def test_a_policy_changes_until_it_is_immutable(pool, client, authority):
    name = fresh_name("released")
    client.create_ec_key(
        name, curve="P-256", hardware_protected=True, exportable=True, release_policy=sdk_policy(policy(authority))
    )
    strict = policy(authority, {"claim": "own", "equals": 7})
    updated = client.update_key_properties(name, release_policy=sdk_policy(strict, immutable=True))
    assert json.loads(updated.properties.release_policy.encoded_policy) == strict
    assert updated.properties.release_policy.immutable
    with pytest.raises(HttpResponseError) as refused:
        client.release_key(name, vouch(pool, authority))
    assert refused.value.status_code == 403
    opened(client.release_key(name, vouch(pool, authority, own=7)).value)
    with pytest.raises(HttpResponseError) as refused:
        client.update_key_properties(name, release_policy=sdk_policy(policy(authority), immutable=True))
    assert refused.value.error.innererror["code"] == "ReleasePolicyImmutable"
    held = client.update_key_properties(name, tags={"a": "b"})
    assert json.loads(held.properties.release_policy.encoded_policy) == strict


def test_a_key_that_is_not_exportable_or_disabled_stays(pool, client, authority):
    name = fresh_name("kept")
    client.create_ec_key(name, curve="P-256", hardware_protected=True)
    target = {"target": vouch(pool, authority)}
    answer = pool.call("POST", f"/keys/{name}/release", target)
    assert_error(answer, 403, "Forbidden")
    assert answer.error["innererror"]["code"] == "KeyNotExportable"
    key = pool.create("ec", attributes={"exportable": True}, release_policy=body_policy(policy(authority)))
    path = key_path(key)
    assert pool.call("PATCH", path, {"attributes": {"enabled": False}}).status == 200
    answer = pool.call("POST", f"{path}/release", target)
    assert answer.error["innererror"]["code"] == "KeyDisabled", answer
    assert pool.call("PATCH", path, {"attributes": {"enabled": True, "exp": 1}}).status == 200
    assert pool.call("POST", f"{path}/release", target).status == 200


def test_a_release_needs_its_right(pool, authority):
    key = pool.create("ec", attributes={"exportable": True}, release_policy=body_policy(policy(authority)))
    answer = pool.call("POST", f"{key_path(key)}/release", {"target": vouch(pool, authority)}, token="admin")
    message = assert_error(answer, 403, "Forbidden")
    assert "keys/release/action" in message and key_path(key).split("/")[2] in message


def test_a_rotated_or_restored_key_keeps_its_policy(pool, authority):
    key = pool.create("ec", attributes={"exportable": True}, release_policy=body_policy(policy(authority), immutable=True))
    name = key_path(key).split("/")[2]
    rotation = {
        "lifetimeActions": [{"trigger": {"timeAfterCreate": "P90D"}, "action": {"type": "Rotate"}}],
        "attributes": {"expiryTime": "P1Y"},
    }
    assert pool.call("PUT", f"/keys/{name}/rotationpolicy", rotation).status == 200
    rotated = pool.call("POST", f"/keys/{name}/rotate").json
    assert rotated["release_policy"] == key["release_policy"] and rotated["attributes"]["exportable"]
    answer = pool.call("POST", f"/keys/{name}/release", {"target": vouch(pool, authority)})
    material, payload = opened(answer.json["value"])
    assert payload["request"]["kid"] == rotated["key"]["kid"]
    x = serialization.load_der_private_key(material, None).public_key().public_numbers().x
    assert x == int.from_bytes(unb64(rotated["key"]["x"]), "big")


def test_the_command_makes_shows_changes_and_releases_exportable_keys(pool, authority, tmp_path):
    name, document = fresh_name("released"), json.dumps(policy(authority), indent=2) + "\n"
    file, assertion, out = tmp_path / "policy.json", tmp_path / "assertion", tmp_path / "released.jws"
    file.write_text(document)
    made = json.loads(pool.run("key", "create", name, "--type", "oct", "--exportable", "--policy", str(file)).stdout)
    assert made["attributes"]["exportable"] and not made["release_policy"]["immutable"]
    assert unb64(made["release_policy"]["data"]).decode() == document
    assert pool.run("key", "show", name, "--policy").stdout == document
    shown = pool.run("key", "show", name, "--output", "table").stdout
    assert f"exportable  by the word of {authority}; mutable policy\n" in shown, shown

    assertion.write_text(vouch(pool, authority) + "\n")
    words = ["key", "release", name, "--attestation", str(assertion), "--nonce", "a nonce", "--enc", "rsa_aes_key_wrap_256"]
    pool.run(*words, "--out", str(out))
    value = out.read_text().strip()
    check_signature(pool, value)
    material, payload = opened(value)
    assert payload["request"]["nonce"] == "a nonce" and payload["request"]["enc"] == "RSA_AES_KEY_WRAP_256"
    sealed = pool.call("POST", f"/keys/{name}/encrypt", {"alg": "A256GCM", "value": b64(b"text")}).json
    assert AESGCM(material).decrypt(unb64(sealed["iv"]), unb64(sealed["value"]) + unb64(sealed["tag"]), None) == b"text"
    version = made["key"]["kid"].rsplit("/", 1)[1]
    whole = pool.run("key", "release", name, "--version", version, "--attestation", str(assertion), "--output", "json")
    assert opened(json.loads(whole.stdout)["value"])[0] == material

    file.write_text(json.dumps(policy(authority, {"claim": "own", "equals": 7})))
    changed = json.loads(pool.run("key", "update", name, "--policy", str(file), "--immutable").stdout)
    assert changed["release_policy"]["immutable"]
    refused = pool.run(*words, check=False)
    assert refused.returncode == 3 and not refused.stdout and "ReleasePolicyNotMet" in refused.stderr, refused
    assertion.write_text(vouch(pool, authority, own=7))
    assert opened(pool.run(*words).stdout.strip())[0] == material
    file.write_text(document)
    refused = pool.run("key", "update", name, "--policy", str(file), check=False)
    assert refused.returncode == 3 and "ReleasePolicyImmutable" in refused.stderr, refused

    own = os.urandom(32)
    raw = tmp_path / "own.bin"
    raw.write_bytes(own)
    imported = fresh_name("released")
    pool.run("key", "import", imported, "--raw", str(raw), "--exportable", "--policy", str(file))
    done = pool.run("key", "release", imported, "--attestation", str(assertion))
    assert opened(done.stdout.strip())[0] == own

    # What makes no sense is not sent.
    pool.wait_for_holders()
    before = len(pool.audit())
    file.write_text(document.replace("claim", "clam"))
    for words, told in (
        (["create", "k", "--type", "ec", "--exportable"], "--exportable goes with --policy"),
        (["create", "k", "--type", "ec", "--exportable", "--policy", str(file)], "member `clam` is not known"),
        (["import", "k", "--raw", str(raw), "--policy", str(file)], "--policy goes with --exportable"),
        (["update", name, "--policy", str(file)], "anyOf[0].allOf[0]"),
        (["release", name, "--attestation", str(tmp_path / "gone")], "cannot read"),
    ):
        refused = pool.run("key", *words, check=False)
        assert refused.returncode in (1, 2) and told in refused.stderr and not refused.stdout, refused
    assert len(pool.audit()) == before

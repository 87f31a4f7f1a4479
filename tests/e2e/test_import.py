"""Keys made elsewhere and handed in: the pool uses them as their owner would, and refuses what does not belong together.

The keys are made by `cryptography`, and handed in by the SDK and as other clients write them.
"""

import base64
import os
import uuid

import pytest
from azure.core.exceptions import HttpResponseError
from azure.keyvault.keys import JsonWebKey, KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, EncryptionAlgorithm, SignatureAlgorithm
from cryptography.hazmat.primitives import hashes, keywrap
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from holdfast import app_credential, assert_error, b64, fresh_name

CURVES = {
    "P-256": (ec.SECP256R1(), hashes.SHA256(), SignatureAlgorithm.es256, 32),
    "P-256K": (ec.SECP256K1(), hashes.SHA256(), SignatureAlgorithm.es256_k, 32),
    "P-384": (ec.SECP384R1(), hashes.SHA384(), SignatureAlgorithm.es384, 48),
    "P-521": (ec.SECP521R1(), hashes.SHA512(), SignatureAlgorithm.es512, 66),
}
OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


def minimal(number):
    """Big-endian without leading zeros, as the Azure CLI writes every number."""
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def rsa_members(private):
    numbers = private.private_numbers()
    public = numbers.public_numbers
    named = {"n": public.n, "e": public.e, "d": numbers.d, "p": numbers.p, "q": numbers.q}
    named |= {"dp": numbers.dmp1, "dq": numbers.dmq1, "qi": numbers.iqmp}
    return {name: minimal(number) for name, number in named.items()}


def ec_members(private):
    numbers = private.private_numbers()
    public = numbers.public_numbers
    return {name: minimal(number) for name, number in [("x", public.x), ("y", public.y), ("d", numbers.private_value)]}


def body(members, **more):
    return {"key": {**{name: b64(value) for name, value in members.items()}, **more}, "Hsm": False}


def ec_with_leading_zeros(curve, length, wanted):
    """A key of which x, y or d begins with a zero byte (of P-521, with more of them than always)."""
    while True:
        private = ec.generate_private_key(curve)
        if len(ec_members(private)[wanted]) < length:
            return private


@pytest.fixture
def credential(pool, monkeypatch):
    variables = pool.variables
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", variables["REQUESTS_CA_BUNDLE"])
    return app_credential(variables)


@pytest.fixture
def client(pool, credential):
    url = pool.variables["HOLDFAST_POOL_URL_IP"]
    with KeyClient(url, credential, verify_challenge_resource=False) as client:
        yield client


def digest_of(algorithm, message=b"message"):
    digest = hashes.Hash(algorithm)
    digest.update(message)
    return digest.finalize()


@pytest.mark.parametrize("size", [2048, 3072, 4096])
def test_an_rsa_key_of_the_sdk_signs_and_decrypts(client, credential, size):
    private = rsa.generate_private_key(65537, size)
    key = JsonWebKey(kty="RSA", key_ops=["sign", "verify", "encrypt", "decrypt"], **rsa_members(private))
    imported = client.import_key(fresh_name("rsa"), key, hardware_protected=True, tags={"a": "b"})
    assert imported.key.kty == "RSA-HSM"
    assert (imported.properties.tags, imported.properties.enabled) == ({"a": "b"}, True)
    assert imported.key.n == rsa_members(private)["n"]
    assert imported.key.d is None and imported.key.p is None
    user = CryptographyClient(imported, credential, verify_challenge_resource=False)
    digest = digest_of(hashes.SHA256())
    signature = user.sign(SignatureAlgorithm.ps256, digest).signature
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    private.public_key().verify(signature, digest, pss, utils.Prehashed(hashes.SHA256()))
    sealed = private.public_key().encrypt(b"a secret", OAEP)
    assert user.decrypt(EncryptionAlgorithm.rsa_oaep_256, sealed).plaintext == b"a secret"


@pytest.mark.parametrize("name", CURVES)
def test_an_ec_key_of_the_sdk_signs(client, credential, name):
    curve, algorithm, signing, length = CURVES[name]
    private = ec.generate_private_key(curve)
    padded = {member: value.rjust(length, b"\0") for member, value in ec_members(private).items()}
    imported = client.import_key(fresh_name("ec"), JsonWebKey(kty="EC-HSM", crv=name, **padded))
    assert (imported.key.kty, imported.key.crv) == ("EC-HSM", name)
    assert (imported.key.x, imported.key.y) == (padded["x"], padded["y"])
    user = CryptographyClient(imported, credential, verify_challenge_resource=False)
    digest = digest_of(algorithm)
    signature = user.sign(signing, digest).signature
    r, s = (int.from_bytes(half, "big") for half in (signature[:length], signature[length:]))
    private.public_key().verify(utils.encode_dss_signature(r, s), digest, ec.ECDSA(utils.Prehashed(algorithm)))


@pytest.mark.parametrize("member", ["x", "y", "d"])
@pytest.mark.parametrize("name", CURVES)
def test_lost_leading_zeros_are_put_back(pool, name, member):
    curve, _, _, length = CURVES[name]
    private = ec_with_leading_zeros(curve, length, member)
    members = ec_members(private)
    answer = pool.call("PUT", f"/keys/{fresh_name('ec')}", body(members, kty="EC", crv=name))
    assert answer.status == 200, answer
    shown = answer.json["key"]
    assert "d" not in shown
    assert shown["x"] == b64(members["x"].rjust(length, b"\0"))
    assert shown["y"] == b64(members["y"].rjust(length, b"\0"))


def test_what_does_not_belong_together_is_refused_without_a_value(pool):
    private = rsa_members(rsa.generate_private_key(65537, 2048))
    other = rsa_members(rsa.generate_private_key(65537, 2048))
    point = ec_members(ec.generate_private_key(ec.SECP256R1()))
    name = fresh_name("none")
    cases = [
        ({**private, member: other[member]}, {"kty": "RSA"}) for member in ("n", "d", "p", "q", "dp", "dq", "qi")
    ]
    cases += [
        ({**private, "e": b"\x01"}, {"kty": "RSA"}),
        (rsa_members(rsa.generate_private_key(65537, 1024)), {"kty": "RSA"}),
        ({**point, "d": b"\x01"}, {"kty": "EC", "crv": "P-256"}),
        (point, {"kty": "EC", "crv": "P-256K"}),
        (point, {"kty": "EC", "crv": "P-384"}),
        ({"k": b"0123456789abcde"}, {"kty": "oct"}),
        ({**point, "k": b"0123456789abcdef"}, {"kty": "EC", "crv": "P-256"}),
        ({"key_hsm": b"{}"}, {"kty": "RSA-HSM"}),
    ]
    for members, more in cases:
        answer = pool.call("PUT", f"/keys/{name}", body(members, **more))
        assert_error(answer, 400, "BadParameter")
        for value in members.values():
            assert len(value) < 8 or b64(value)[:8] not in answer.error["message"], answer
    assert_error(pool.call("GET", f"/keys/{name}"), 404, "KeyNotFound")


def test_a_version_is_added_and_a_deleted_name_is_refused(pool, client):
    name = fresh_name("ec")
    created = pool.create("ec", name)
    private = body(ec_members(ec.generate_private_key(ec.SECP256R1())), kty="EC", crv="P-256")
    correlation = str(uuid.uuid4())
    imported = pool.call("PUT", f"/keys/{name}", private, correlation_id=correlation).json
    assert imported["key"]["kid"] != created["key"]["kid"]
    assert pool.call("GET", f"/keys/{name}").json["key"] == imported["key"]
    assert len(list(client.list_properties_of_key_versions(name))) == 2
    [event] = pool.events(correlation)
    assert event["operationName"] == "KeyImport"
    client.begin_delete_key(name).wait()
    answer = pool.call("PUT", f"/keys/{name}", private)
    assert_error(answer, 409, "Conflict")
    assert answer.error["innererror"]["code"] == "ObjectIsDeletedButRecoverable"


def test_an_administrator_may_not_import(pool):
    private = body(ec_members(ec.generate_private_key(ec.SECP256R1())), kty="EC", crv="P-256")
    answer = pool.call("PUT", f"/keys/{fresh_name('ec')}", private, token="admin")
    assert_error(answer, 403, "Forbidden")


@pytest.mark.parametrize("length", [16, 24, 32])
def test_a_symmetric_key_wraps_as_elsewhere(pool, client, length):
    secret = os.urandom(length)
    name = fresh_name("oct")
    key = client.import_key(name, JsonWebKey(kty="oct-HSM", k=secret, key_ops=["wrapKey", "unwrapKey"]))
    assert key.key_type == "oct-HSM" and key.key.k is None
    wanted = os.urandom(32)
    wrap = {"alg": f"A{length * 8}KW", "value": b64(wanted)}
    wrapped = pool.call("POST", f"/keys/{name}/wrapkey", wrap).json["value"]
    assert keywrap.aes_key_unwrap(secret, base64.urlsafe_b64decode(wrapped + "==")) == wanted


def test_the_sdk_shows_why(client):
    key = JsonWebKey(kty="oct-HSM", k=b"0123456789abcde")
    with pytest.raises(HttpResponseError, match="16, 24 or 32 bytes"):
        client.import_key(fresh_name("oct"), key)

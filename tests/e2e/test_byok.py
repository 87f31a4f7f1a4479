"""Keys that come wrapped for a key of the pool: made by `cryptography` as an HSM would, brought in over the wire (by `az`:
test_az.py), and used; and each single mistake, refused in its own words."""

import base64
import json
import os
import uuid

import pytest
from cryptography.hazmat.primitives import hashes, keywrap
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from holdfast import assert_error, b64, fresh_name, unb64
from test_import import CURVES, body, digest_of, rsa_members

OAEP_SHA1 = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
CRYPTO_USER = "21dbd100-6940-42c2-9190-5d6cb909625b"


class Kek:
    """A key of the pool that other keys are wrapped for."""

    def __init__(self, pool, size=2048, key_ops=("import",)):
        self.name = fresh_name("kek")
        body = {"kty": "RSA-HSM", "key_size": size, "key_ops": list(key_ops)}
        made = pool.call("POST", f"/keys/{self.name}/create", body)
        assert made.status == 200, made
        self.kid = made.json["key"]["kid"]
        numbers = (int.from_bytes(unb64(made.json["key"][member]), "big") for member in ("e", "n"))
        self.public = rsa.RSAPublicNumbers(*numbers).public_key()

    def wrap(self, key, aes=32):
        """CKM_RSA_AES_KEY_WRAP."""
        secret = os.urandom(aes)
        return self.public.encrypt(secret, OAEP_SHA1) + keywrap.aes_key_wrap_with_padding(secret, key)

    def file(self, ciphertext, **header):
        header = {"kid": self.kid, "alg": "dir", "enc": "CKM_RSA_AES_KEY_WRAP", **header}
        return {
            "schema_version": "1.0.0",
            "header": header,
            "ciphertext": b64(ciphertext),
            "generator": "tests; cryptography",
        }


def pkcs8(private):
    return private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def bring(pool, file, kty, name=None, token="app", **more):
    text = file if isinstance(file, str) else b64(json.dumps(file).encode())
    body = {"key": {"kty": kty, "key_hsm": text, **more}}
    return pool.call("PUT", f"/keys/{name or fresh_name('byok')}", body, token=token)


@pytest.fixture(scope="module")
def kek(pool):
    return Kek(pool)


@pytest.mark.parametrize("kek_size, size, aes", [(2048, 4096, 32), (3072, 3072, 24), (4096, 2048, 16)])
def test_an_rsa_key_signs(pool, kek_size, size, aes):
    kek, private = Kek(pool, kek_size), rsa.generate_private_key(65537, size)
    brought = bring(pool, kek.file(kek.wrap(pkcs8(private), aes)), "RSA-HSM")
    assert brought.status == 200, brought
    key = brought.json["key"]
    assert key["kty"] == "RSA-HSM" and int.from_bytes(unb64(key["n"]), "big") == private.public_key().public_numbers().n
    assert "import" not in key["key_ops"] and brought.json["attributes"]["exportable"] is False
    digest = digest_of(hashes.SHA256())
    path = key["kid"].split("/", 3)[3]
    signed = pool.call("POST", f"/{path}/sign", {"alg": "PS256", "value": b64(digest)})
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    private.public_key().verify(unb64(signed.json["value"]), digest, pss, utils.Prehashed(hashes.SHA256()))


@pytest.mark.parametrize("name", CURVES)
def test_an_ec_key_signs(pool, kek, name):
    curve, algorithm, signing, length = CURVES[name]
    private = ec.generate_private_key(curve)
    brought = bring(pool, kek.file(kek.wrap(pkcs8(private))), "EC-HSM", crv=name)
    assert brought.status == 200, brought
    digest = digest_of(algorithm)
    path = brought.json["key"]["kid"].split("/", 3)[3]
    signed = unb64(pool.call("POST", f"/{path}/sign", {"alg": signing.value, "value": b64(digest)}).json["value"])
    r, s = (int.from_bytes(half, "big") for half in (signed[:length], signed[length:]))
    private.public_key().verify(utils.encode_dss_signature(r, s), digest, ec.ECDSA(utils.Prehashed(algorithm)))


def without_public_key(private):
    """As HSMs write it: RFC 5915 leaves the public key optional."""
    length = (private.key_size + 7) // 8
    scalar = private.private_numbers().private_value.to_bytes(length, "big")
    inner = bytes([2, 1, 1, 4, length]) + scalar
    inner = bytes([0x30, len(inner)]) + inner
    full = pkcs8(private)
    # The algorithm, as it stands behind the version.
    algorithm = full[full.index(b"\x30", 4) :]
    algorithm = algorithm[: 2 + algorithm[1]]
    content = b"\x02\x01\x00" + algorithm + bytes([4, len(inner)]) + inner
    return bytes([0x30, len(content)]) + content


@pytest.mark.parametrize("name", ["P-256", "P-384", "P-521"])
def test_an_ec_key_without_its_public_key_has_it_computed(pool, kek, name):
    private = ec.generate_private_key(CURVES[name][0])
    brought = bring(pool, kek.file(kek.wrap(without_public_key(private))), "EC-HSM", crv=name)
    assert brought.status == 200, brought
    assert int.from_bytes(unb64(brought.json["key"]["x"]), "big") == private.public_key().public_numbers().x


@pytest.mark.parametrize("size", [16, 24, 32])
def test_a_symmetric_key_unwraps_what_it_wrapped_elsewhere(pool, kek, size):
    secret, inner = os.urandom(size), os.urandom(32)
    brought = bring(pool, kek.file(kek.wrap(secret)), "oct-HSM", key_ops=["wrapKey", "unwrapKey"])
    assert brought.status == 200, brought
    assert "k" not in brought.json["key"]
    wrapped = keywrap.aes_key_wrap(secret, inner)
    path = brought.json["key"]["kid"].split("/", 3)[3]
    opened = pool.call("POST", f"/{path}/unwrapkey", {"alg": f"A{size * 8}KW", "value": b64(wrapped)})
    assert unb64(opened.json["value"]) == inner


def test_each_mistake_has_its_own_words_and_makes_no_key(pool, kek):
    private = rsa.generate_private_key(65537, 2048)
    good = kek.wrap(pkcs8(private))
    other = Kek(pool)
    on_p256 = kek.wrap(pkcs8(ec.generate_private_key(ec.SECP256R1())))
    secret = os.urandom(32)
    outer = kek.public.encrypt(secret, OAEP_SHA1)
    damaged = good[:-1] + bytes([good[-1] ^ 1])
    signs = Kek(pool, key_ops=("sign", "verify"))
    disabled = Kek(pool)
    path = disabled.kid.split("/", 3)[3]
    assert pool.call("PATCH", f"/{path}", {"attributes": {"enabled": False}}).status == 200
    no_version = kek.kid.rsplit("/", 1)[0]
    cases = [
        (kek.file(good, kid=f"{no_version}/{uuid.uuid4().hex}"), "RSA-HSM", "cannot unwrap: version"),
        (kek.file(good, kid=no_version.replace(kek.name, "nobody") + "/" + uuid.uuid4().hex), "RSA-HSM", "named nobody"),
        (kek.file(good, kid=no_version), "RSA-HSM", "not the identifier of a key version"),
        (signs.file(signs.wrap(pkcs8(private))), "RSA-HSM", "operation import is not among the key's key_ops"),
        (disabled.file(disabled.wrap(pkcs8(private))), "RSA-HSM", "operation import is not allowed on a disabled key"),
        (kek.file(other.wrap(pkcs8(private))), "RSA-HSM", "do not open with the KEK"),
        (kek.file(b"\0" * 256 + good[256:]), "RSA-HSM", "do not open with the KEK"),
        (kek.file(good[:200]), "RSA-HSM", "has 200 bytes"),
        (kek.file(good[:256]), "RSA-HSM", "has 256 bytes"),
        (kek.file(kek.public.encrypt(b"short", OAEP_SHA1) + good[256:]), "RSA-HSM", "holds no AES key"),
        (kek.file(damaged), "RSA-HSM", "second layer of ciphertext does not open"),
        (kek.file(outer + good[256:]), "RSA-HSM", "second layer of ciphertext does not open"),
        (kek.file(kek.wrap(b"no key at all")), "RSA-HSM", "not a private key in PKCS#8"),
        (kek.file(kek.wrap(pkcs8(private) + b"\0")), "RSA-HSM", "not a private key in PKCS#8"),
        (kek.file(kek.wrap(pkcs8(rsa.generate_private_key(65537, 1024)))), "RSA-HSM", "2048, 3072 or 4096 bits, not 1024"),
        (kek.file(on_p256), "RSA-HSM", "the wrapped key is of type EC"),
        (kek.file(kek.wrap(bytes(15))), "oct-HSM", "16, 24 or 32 bytes"),
        (kek.file(good, enc="CKM_AES_KEY_WRAP_PAD"), "RSA-HSM", "header.enc"),
        ({**kek.file(good), "schema_version": "2.0.0"}, "RSA-HSM", "schema_version"),
        ("not base64!", "RSA-HSM", "key.key_hsm is not base64"),
        (b64(b"[]"), "RSA-HSM", "not a BYOK file"),
    ]
    name = fresh_name("none")
    for file, kty, told in cases:
        answer = bring(pool, file, kty, name)
        assert_error(answer, 400, "BadParameter")
        assert told.lower() in answer.error["message"].lower(), (told, answer)
    for crv, file, told in [("P-384", on_p256, "is on P-256, and not on P-384"), ("P-256", good, "is of type RSA")]:
        answer = bring(pool, kek.file(file), "EC-HSM", name, crv=crv)
        assert_error(answer, 400, "BadParameter")
        assert told.lower() in answer.error["message"].lower(), answer
    assert pool.call("GET", f"/keys/{name}").status == 404
    assert bring(pool, kek.file(good), "RSA-HSM", name).status == 200


def test_the_right_to_import_one_key_is_no_right_to_use_the_kek(pool, kek):
    name = fresh_name("theirs")
    principal = pool.object_id("admin")
    definition = f"Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/{CRYPTO_USER}"
    body = {"properties": {"roleDefinitionId": definition, "principalId": principal}}
    path = f"/keys/{name}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}"
    assert pool.call("PUT", path, body, token="admin").status == 201
    file = kek.file(kek.wrap(os.urandom(32)))
    denied = bring(pool, file, "oct-HSM", name, token="admin")
    assert_error(denied, 403, "Forbidden")
    assert f"/keys/{kek.name}" in denied.error["message"] and "keys/import/action" in denied.error["message"], denied
    assert pool.call("GET", f"/keys/{name}").status == 404
    assert pool.call("DELETE", path, token="admin").status == 200


def test_a_kek_does_nothing_but_import(pool, kek):
    path = kek.kid.split("/", 3)[3]
    for operation, body in [
        ("decrypt", {"alg": "RSA-OAEP", "value": b64(bytes(256))}),
        ("unwrapkey", {"alg": "RSA-OAEP", "value": b64(bytes(256))}),
        ("sign", {"alg": "PS256", "value": b64(bytes(32))}),
    ]:
        assert_error(pool.call("POST", f"/{path}/{operation}", body), 403, "Forbidden")


def test_the_event_names_the_kek(pool, kek):
    text = b64(json.dumps(kek.file(kek.wrap(os.urandom(32)))).encode())
    correlation_id = str(uuid.uuid4())
    body = {"key": {"kty": "oct-HSM", "key_hsm": text}}
    made = pool.call("PUT", f"/keys/{fresh_name('byok')}", body, correlation_id=correlation_id)
    assert made.status == 200, made
    (event,) = pool.events(correlation_id)
    assert event["operationName"] == "KeyImport" and f"wrapped for {kek.name}/" in json.dumps(event)
    # Base64 as the documents say, with padding, is taken as well.
    plain = base64.b64encode(json.dumps(kek.file(kek.wrap(os.urandom(32)))).encode()).decode()
    assert pool.call("PUT", f"/keys/{fresh_name('byok')}", {"key": {"kty": "oct-HSM", "key_hsm": plain}}).status == 200


def test_who_brings_a_key_in_makes_no_key_exchange_key_of_it(pool, kek):
    """They know it, and could read what its owner wraps for the pool."""
    private = rsa.generate_private_key(65537, 2048)
    plain = body(rsa_members(private), kty="RSA-HSM", key_ops=["import"])
    for name in (kek.name, fresh_name("kek")):
        for answer in (
            pool.call("PUT", f"/keys/{name}", plain),
            bring(pool, kek.file(kek.wrap(pkcs8(private))), "RSA-HSM", name, key_ops=["import"]),
        ):
            assert "is for a key that is made in the pool" in assert_error(answer, 400, "BadParameter")
    assert pool.call("GET", f"/keys/{kek.name}").json["key"]["kid"] == kek.kid
    assert pool.call("GET", f"/keys/{name}").status == 404

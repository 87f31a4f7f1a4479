"""The tour of a new user: the unpatched Azure SDK makes keys, signs, verifies, wraps and encrypts.

Both ways in: by host name through the loopback proxy with the SDK's own check of the challenge left on, and by
address with that check off.
"""

import hashlib

import pytest
from azure.core.exceptions import HttpResponseError
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import EncryptionAlgorithm, KeyWrapAlgorithm, SignatureAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.hashes import SHA256

from holdfast import app_credential, b64, fresh_name, key_path, unb64

MESSAGE = b"the quick brown fox"
DIGEST = hashlib.sha256(MESSAGE).digest()


@pytest.fixture(params=["by name, challenge checked", "by address"])
def client(request, pool, monkeypatch):
    variables = pool.variables
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", variables["REQUESTS_CA_BUNDLE"])
    if request.param == "by address":
        url, more = variables["HOLDFAST_POOL_URL_IP"], {"verify_challenge_resource": False}
        assert url == f"https://127.0.0.1:{pool.port}"
    else:
        url, more = variables["MHSM_URL"], {}
        assert url == f"https://demo.managedhsm.localhost:{pool.port}"
        monkeypatch.setenv("HTTPS_PROXY", variables["HOLDFAST_PROXY"])
    credential = app_credential(variables)
    with KeyClient(url, credential, **more) as client:
        yield client


def test_rsa_signs_and_verifies(client, pool):
    name = fresh_name("rsa")
    key = client.create_rsa_key(name, size=2048, hardware_protected=True)
    assert key.id.startswith(f"{client.vault_url}/keys/{name}/")
    assert key.key_type == "RSA-HSM"
    assert set(key.key_operations) >= {"sign", "verify"}
    public = rsa.RSAPublicNumbers(int.from_bytes(key.key.e), int.from_bytes(key.key.n)).public_key()
    assert public.key_size == 2048
    crypto = client.get_cryptography_client(name, key_version=key.properties.version)
    paddings = {
        SignatureAlgorithm.rs256: padding.PKCS1v15(),
        SignatureAlgorithm.ps256: padding.PSS(padding.MGF1(SHA256()), salt_length=32),
    }
    for algorithm, scheme in paddings.items():
        signed = crypto.sign(algorithm, DIGEST)
        assert signed.key_id == key.id
        public.verify(signed.signature, DIGEST, scheme, utils.Prehashed(SHA256()))
        assert crypto.verify(algorithm, DIGEST, signed.signature).is_valid
        assert_pool_verifies(pool, key.id, algorithm.value, signed.signature)


@pytest.mark.parametrize("name", ["RSA-OAEP-256", "RSA-OAEP"])
def test_rsa_encrypts_and_wraps(client, pool, name):
    key = client.create_rsa_key(fresh_name("rsa"), size=2048, hardware_protected=True)
    crypto = client.get_cryptography_client(key.name, key_version=key.properties.version)
    # The SDK encrypts in the client and the pool opens it: both must mean the same padding.
    sealed = crypto.encrypt(EncryptionAlgorithm(name), MESSAGE)
    assert crypto.decrypt(EncryptionAlgorithm(name), sealed.ciphertext).plaintext == MESSAGE
    material = bytes(range(32))
    wrapped = crypto.wrap_key(KeyWrapAlgorithm(name), material)
    assert crypto.unwrap_key(KeyWrapAlgorithm(name), wrapped.encrypted_key).key == material
    # And the pool's own half, which the SDK never asks for.
    answer = pool.call(
        "POST", "/" + key.id.split("/", 3)[3] + "/encrypt", {"alg": name, "value": b64(MESSAGE)}
    )
    assert answer.status == 200, answer
    assert crypto.decrypt(EncryptionAlgorithm(name), unb64(answer.json["value"])).plaintext == MESSAGE


def test_ec_signs_and_verifies(client, pool):
    name = fresh_name("ec")
    key = client.create_ec_key(name, curve="P-256", hardware_protected=True)
    assert (key.key_type, key.key.crv) == ("EC-HSM", "P-256")
    crypto = client.get_cryptography_client(name, key_version=key.properties.version)
    signed = crypto.sign(SignatureAlgorithm.es256, DIGEST)
    # On the wire r and s side by side, elsewhere DER.
    assert len(signed.signature) == 64
    der = utils.encode_dss_signature(
        int.from_bytes(signed.signature[:32]), int.from_bytes(signed.signature[32:])
    )
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(key.key.x), int.from_bytes(key.key.y), ec.SECP256R1()
    )
    numbers.public_key().verify(der, DIGEST, ec.ECDSA(utils.Prehashed(SHA256())))
    assert crypto.verify(SignatureAlgorithm.es256, DIGEST, signed.signature).is_valid
    assert_pool_verifies(pool, key.id, "ES256", signed.signature)


def test_oct_wraps_and_encrypts(client):
    name = fresh_name("oct")
    key = client.create_oct_key(name, size=256, hardware_protected=True)
    assert key.key_type == "oct-HSM"
    assert key.key.k is None, "material must not come out"
    crypto = client.get_cryptography_client(name, key_version=key.properties.version)

    material = bytes(range(32))
    wrapped = crypto.wrap_key(KeyWrapAlgorithm.aes_256, material)
    assert len(wrapped.encrypted_key) == 40
    assert crypto.unwrap_key(KeyWrapAlgorithm.aes_256, wrapped.encrypted_key).key == material

    for aad in (None, b"bound to this"):
        more = {"additional_authenticated_data": aad} if aad else {}
        sealed = crypto.encrypt(EncryptionAlgorithm.a256_gcm, MESSAGE, **more)
        assert len(sealed.iv) == 12 and len(sealed.tag) == 16 and len(sealed.ciphertext) == len(MESSAGE)
        parts = {"iv": sealed.iv, "authentication_tag": sealed.tag, **more}
        opened = crypto.decrypt(EncryptionAlgorithm.a256_gcm, sealed.ciphertext, **parts)
        assert opened.plaintext == MESSAGE
        again = crypto.encrypt(EncryptionAlgorithm.a256_gcm, MESSAGE, **more)
        assert again.iv != sealed.iv
        for name, part in parts.items():
            flipped = {**parts, name: bytes([part[0] ^ 1]) + part[1:]}
            with pytest.raises(HttpResponseError) as refused:
                crypto.decrypt(EncryptionAlgorithm.a256_gcm, sealed.ciphertext, **flipped)
            assert refused.value.status_code == 400, name


def test_keys_are_found_by_name_and_by_version(client):
    name = fresh_name("ec")
    first = client.create_ec_key(name, curve="P-256", hardware_protected=True, tags={"made": "first"})
    second = client.create_ec_key(name, curve="P-256", hardware_protected=True)
    assert first.properties.version != second.properties.version
    current = client.get_key(name)
    assert current.id == second.id
    assert (current.key.x, current.key.y) == (second.key.x, second.key.y)
    older = client.get_key(name, first.properties.version)
    assert older.id == first.id
    assert (older.key.x, older.key.y) == (first.key.x, first.key.y)
    assert older.properties.tags == {"made": "first"}
    # An old version still signs, with its own key.
    signed = client.get_cryptography_client(name, key_version=first.properties.version).sign(
        SignatureAlgorithm.es256, DIGEST
    )
    assert signed.key_id == first.id


def assert_pool_verifies(pool, key_id, algorithm, signature):
    """The SDK verifies in the client where it can, so the pool is asked by hand."""
    path = "/" + key_id.split("/", 3)[3]
    body = {"alg": algorithm, "digest": b64(DIGEST), "value": b64(signature)}
    answer = pool.call("POST", f"{path}/verify", body)
    assert (answer.status, answer.json) == (200, {"value": True}), answer
    other = {**body, "digest": b64(hashlib.sha256(b"another message").digest())}
    answer = pool.call("POST", f"{path}/verify", other)
    assert (answer.status, answer.json) == (200, {"value": False}), answer


def test_answers_carry_the_services_headers(pool):
    bundle = pool.create("ec")
    answer = pool.call("GET", key_path(bundle), correlation_id="2a9a2a3f-6d0a-4c45-9f0a-3a2f7f6f2b11")
    assert answer.headers["x-ms-client-request-id"] == "2a9a2a3f-6d0a-4c45-9f0a-3a2f7f6f2b11"
    assert answer.headers["x-ms-request-id"]
    assert answer.headers["x-holdfast-receipt"]
    assert answer.json["key"] == bundle["key"]
    assert len(unb64(answer.json["key"]["x"])) == 32

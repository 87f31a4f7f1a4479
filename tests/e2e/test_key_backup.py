"""A key goes out as a blob and comes back as it was: with the SDK, over the wire, and with `holdfast key`."""

import base64
import hashlib
import subprocess
import uuid

import pytest
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, SignatureAlgorithm

from holdfast import Pool, app_credential, assert_error, clean_environment, fresh_name

DIGEST = hashlib.sha256(b"message").digest()
CRYPTO_OFFICER = "515eb02d-2335-4d2d-92f2-b1cbdf9c3778"


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """`app` may purge as well here. Not in the pool that other tests share."""
    with Pool(tmp_path_factory.mktemp("backup")) as pool:
        definition = f"Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/{CRYPTO_OFFICER}"
        body = {"properties": {"roleDefinitionId": definition, "principalId": pool.object_id("app")}}
        path = f"/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}"
        made = pool.call("PUT", path, body, token="admin")
        assert made.status == 201, made
        yield pool


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


def test_the_sdk_backs_up_and_restores_all_versions(client, credential):
    name = fresh_name("backup")
    first = client.create_ec_key(name, curve="P-256", hardware_protected=True, tags={"made": "first"})
    second = client.create_rsa_key(name, size=2048, hardware_protected=True, enabled=True)
    client.update_key_properties(name, first.properties.version, enabled=False)
    was = {key.version: key for key in client.list_properties_of_key_versions(name)}
    blob = client.backup_key(name)

    with pytest.raises(ResourceExistsError) as refused:
        client.restore_key_backup(blob)
    assert refused.value.error.innererror["code"] == "KeyAlreadyExists"
    client.begin_delete_key(name, _polling_interval=0.05).result()
    with pytest.raises(ResourceExistsError) as refused:
        client.restore_key_backup(blob)
    assert refused.value.error.innererror["code"] == "ObjectIsDeletedButRecoverable"
    with pytest.raises(ResourceNotFoundError):
        client.backup_key(name)
    client.purge_deleted_key(name)

    restored = client.restore_key_backup(blob)
    assert (restored.id, restored.key.n) == (second.id, second.key.n)
    now = {key.version: key for key in client.list_properties_of_key_versions(name)}
    assert now.keys() == was.keys() and len(now) == 2
    for version, key in now.items():
        for member in ("enabled", "created_on", "updated_on", "expires_on", "not_before", "tags"):
            assert getattr(key, member) == getattr(was[version], member), member
    signature = client.get_cryptography_client(name).sign(SignatureAlgorithm.ps256, DIGEST).signature
    # The public key as it was before: verified without the server.
    assert CryptographyClient.from_jwk(second.key).verify(SignatureAlgorithm.ps256, DIGEST, signature).is_valid
    client.update_key_properties(name, first.properties.version, enabled=True)
    old = CryptographyClient(first.id, credential, verify_challenge_resource=False)
    signature = old.sign(SignatureAlgorithm.es256, DIGEST).signature
    assert CryptographyClient.from_jwk(first.key).verify(SignatureAlgorithm.es256, DIGEST, signature).is_valid


def test_what_is_no_backup_of_this_domain_is_refused(client, tmp_path_factory):
    name = fresh_name("damaged")
    client.create_oct_key(name, size=256, hardware_protected=True)
    blob = client.backup_key(name)
    for wrong, message in [
        (b"garbage", "not a backup of a key"),
        (blob[:-1], "cut off"),
        (blob + b"\0", "followed by 1 bytes"),
        (blob[:100] + bytes([blob[100] ^ 1]) + blob[101:], "damaged"),
        (blob[:30] + bytes([blob[30] ^ 1]) + blob[31:], "only there"),
    ]:
        with pytest.raises(HttpResponseError) as refused:
            client.restore_key_backup(wrong)
        assert refused.value.status_code == 400
        assert message in refused.value.message


def test_a_body_as_large_as_a_backup_may_be_is_read_on_that_route_alone(pool):
    largest = base64.urlsafe_b64encode(bytes(5 << 18)).decode()
    assert_error(pool.call("POST", "/keys/restore", {"value": largest}), 400, "BadParameter")
    too_large = {"value": largest + "A" * 4096}
    assert_error(pool.call("POST", "/keys/restore", too_large), 413, "RequestEntityTooLarge")
    assert_error(pool.call("POST", "/keys/n/sign", {"value": largest}), 413, "RequestEntityTooLarge")


def test_the_client_backs_up_and_restores(pool, tmp_path):
    name = fresh_name("cli")
    file = tmp_path / "key.backup"

    def holdfast(*words):
        where = ["--data", str(pool.data)]
        done = subprocess.run(
            [pool.program, "key", *words, *where],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, env=clean_environment(), timeout=300,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    assert holdfast("create", name, "--type", "oct-HSM")[0] == 0
    assert holdfast("backup", name, "--out", str(file)) == (0, "")
    assert file.read_bytes().startswith(b"HFKEY\x01")
    assert file.stat().st_mode & 0o777 == 0o600
    code, said = holdfast("restore", str(file))
    assert code != 0 and "exists in this pool" in said
    assert holdfast("delete", name)[0] == 0
    assert holdfast("purge", name, "--yes")[0] == 0
    code, said = holdfast("restore", str(file))
    assert code == 0 and name in said

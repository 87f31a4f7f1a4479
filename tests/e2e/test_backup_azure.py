"""Full backups in Azure Blob storage, by the SDK and the Azure CLI as they are: written, read and refused."""

import base64
import hashlib
import time

import pytest
from azure.identity import ClientSecretCredential
from azure.keyvault.administration import KeyVaultBackupClient
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from azurite import KEY
from holdfast import Pool, assert_error, b64, fresh_name, key_path, unb64
from test_az import CLOUD, Az
from test_security_domain import NAMES, Holder, assignment, blob_for, wait_until_active

VERSION = "7.5"
CRYPTO_OFFICER_ROLE = "515eb02d-2335-4d2d-92f2-b1cbdf9c3778"
SECONDS = 300
DIGEST = hashlib.sha256(b"pay 100 to Ada").digest()
WRONG_KEY = base64.b64encode(b"somebody else's key").decode()


@pytest.fixture(scope="module")
def holders(tmp_path_factory):
    directory = tmp_path_factory.mktemp("holders")
    return {name: Holder(directory, name) for name in NAMES[:3]}


@pytest.fixture(scope="module")
def pool(tmp_path_factory, storage):
    blank = [word for name in ("source", "target", "crossed") for word in ("--blank-pool", name)]
    with Pool(tmp_path_factory.mktemp("backups"), *storage.flags(), *blank) as pool:
        yield pool


@pytest.fixture
def container(storage):
    """Name and URI of a container of the test's own."""
    name = fresh_name("backups")
    return name, storage.make_container(name)


def admin_client(pool):
    variables = pool.variables
    credential = ClientSecretCredential(
        variables["TENANT_ID"],
        variables["HOLDFAST_ADMIN_CLIENT_ID"],
        variables["HOLDFAST_ADMIN_CLIENT_SECRET"],
        authority=variables["AUTHORITY_HOST"],
        disable_instance_discovery=True,
        connection_verify=pool.ca_file,
    )
    return KeyVaultBackupClient(
        pool.https_url(), credential, verify_challenge_resource=False, connection_verify=pool.ca_file
    )


def call(pool, method, path, body=None, token="admin", **more):
    return pool.call(method, path, body, token=token, version=VERSION, **more)


def finished(pool, answer):
    """The last status of a job that was taken on."""
    assert answer.status == 202, answer
    assert answer.json["status"] == "InProgress", answer
    place = answer.headers["Azure-AsyncOperation"]
    path = place.split(str(pool.port), 1)[1]
    until = time.monotonic() + SECONDS
    while True:
        # As clients follow it: verbatim, without a version.
        shown = pool.call("GET", path, token="admin", version=None)
        assert shown.status == 200, shown
        if shown.json["status"] != "InProgress":
            return shown.json
        assert time.monotonic() < until, shown
        time.sleep(0.05)


def refusal(pool, answer):
    """Why a job was not taken on, or failed."""
    if answer.status != 202:
        return assert_error(answer, answer.status)
    job = finished(pool, answer)
    assert job["status"] == "Failed", job
    return job["error"]["message"]


def backup_body(uri, sas):
    return {"storageResourceUri": uri, "token": sas}


def back_up(pool, uri, sas):
    """A backup's folder."""
    job = finished(pool, call(pool, "POST", "/backup", backup_body(uri, sas)))
    assert job["status"] == "Succeeded", job
    assert job["azureStorageBlobContainerUri"].startswith(f"{uri}/mhsm-"), job
    return job["azureStorageBlobContainerUri"].rsplit("/", 1)[1]


def restore(pool, uri, sas, folder, key=None, **more):
    parameters = {"sasTokenParameters": backup_body(uri, sas)}
    if key:
        return call(pool, "PUT", f"/keys/{key}/restore", {**parameters, "folder": folder}, **more)
    return call(pool, "PUT", "/restore", {**parameters, "folderToRestore": folder}, **more)


def signs(pool, bundle):
    """The very key that `bundle` shows, and no other of its name."""
    answer = pool.call("POST", f"{key_path(bundle)}/sign", {"alg": "ES256", "value": b64(DIGEST)}, token="app")
    assert answer.status == 200, answer
    signature = unb64(answer.json["value"])
    key = bundle["key"]
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(unb64(key["x"])), int.from_bytes(unb64(key["y"])), ec.SECP256R1()
    )
    der = utils.encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
    numbers.public_key().verify(der, DIGEST, ec.ECDSA(utils.Prehashed(hashes.SHA256())))


def may_purge(pool):
    """Path and body by which `admin` becomes a Crypto Officer."""
    path, body = assignment(pool)
    definition = f"Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/{CRYPTO_OFFICER_ROLE}"
    return path, {"properties": {"principalId": pool.object_id("admin"), "roleDefinitionId": definition}}


# --- the SDK


def test_the_sdk_checks_backs_up_and_restores_by_sas(pool, storage, container):
    name, uri = container
    sas = storage.sas()
    kept = pool.create("ec", tags={"of": "Ada"})
    with admin_client(pool) as client:
        client.begin_pre_backup(uri, sas_token=sas, _polling_interval=1).wait()
        assert storage.blobs(name) == [], "a check leaves nothing"
        done = client.begin_backup(uri, sas_token=sas, _polling_interval=1).result()
        assert done.folder_url.startswith(f"{uri}/mhsm-demo-"), done.folder_url
        folder = done.folder_url.rsplit("/", 1)[1]
        assert storage.blobs(name) and all(blob.startswith(f"{folder}/") for blob in storage.blobs(name))
        later = pool.create("ec")
        before = storage.blobs(name)
        client.begin_pre_restore(done.folder_url, sas_token=sas, _polling_interval=1).wait()
        assert pool.call("GET", key_path(later), token="app").status == 200, "a check changes nothing"
        client.begin_restore(done.folder_url, sas_token=sas, _polling_interval=1).wait()
    assert storage.blobs(name) == before
    assert_error(pool.call("GET", key_path(later), token="app"), 404)
    restored = pool.call("GET", key_path(kept), token="app")
    assert restored.json["key"] == kept["key"] and restored.json["tags"] == {"of": "Ada"}
    signs(pool, kept)


def test_the_sdk_backs_up_by_managed_identity(pool, storage, container):
    name, uri = container
    kept = pool.create("ec")
    with admin_client(pool) as client:
        client.begin_pre_backup(uri, use_managed_identity=True, _polling_interval=1).wait()
        done = client.begin_backup(uri, use_managed_identity=True, _polling_interval=1).result()
        assert storage.blobs(name)
        client.begin_pre_restore(done.folder_url, use_managed_identity=True, _polling_interval=1).wait()
        client.begin_restore(done.folder_url, use_managed_identity=True, _polling_interval=1).wait()
    signs(pool, kept)


def test_one_key_comes_back_out_of_a_backup(pool, storage, container):
    _, uri = container
    sas = storage.sas()
    kept, other = pool.create("ec"), pool.create("ec")
    name = key_path(kept).split("/")[2]
    folder = back_up(pool, uri, sas)
    # As the SDK's own tests have it: what is there, unchanged, is restored already.
    assert finished(pool, restore(pool, uri, sas, folder, key=name))["status"] == "Succeeded"
    changed = pool.call("PATCH", key_path(kept), {"tags": {"of": "Ada"}})
    assert changed.status == 200, changed
    assert name in refusal(pool, restore(pool, uri, sas, folder, key=name))
    assert pool.call("DELETE", f"/keys/{name}").status == 200
    assert refusal(pool, restore(pool, uri, sas, folder, key=name))
    assert call(pool, "PUT", *may_purge(pool)).status == 201
    assert call(pool, "DELETE", f"/deletedkeys/{name}").status == 204
    absent = fresh_name()
    assert absent in refusal(pool, restore(pool, uri, sas, folder, key=absent))
    assert finished(pool, restore(pool, uri, sas, folder, key=name))["status"] == "Succeeded"
    assert pool.call("GET", key_path(kept)).json.get("tags", {}) == {}
    for bundle in (kept, other):
        signs(pool, bundle)


# --- what is refused


def test_storage_that_refuses_is_told_in_its_own_words(pool, storage, container):
    name, uri = container
    good = storage.sas()
    for sas, words in [
        (storage.sas(key=WRONG_KEY), "AuthorizationFailure"),
        (storage.sas(hours=(-3, -1)), "AuthorizationFailure"),
        (storage.sas(hours=(1, 3)), "AuthorizationFailure"),
        (storage.sas(permissions="rl"), "AuthorizationPermissionMismatch"),
        ("sv=2021-12-02", "not a SAS"),
        (f"{good}&comp=list", "not a SAS"),
        (f"{good}#", "not a SAS"),
    ]:
        for path in ("/backup", "/prebackup"):
            message = refusal(pool, call(pool, "POST", path, backup_body(uri, sas)))
            assert words in message, (words, message)
            assert "sig=" not in message and good not in message, message
    absent = f"{storage.url}/{fresh_name('absent')}"
    assert "ContainerNotFound" in refusal(pool, call(pool, "POST", "/backup", backup_body(absent, good)))
    assert storage.blobs(name) == []
    assert "sig=" not in pool.log_path.read_text(errors="replace")


def test_a_pool_calls_nobody_that_its_operator_did_not_list(pool, storage, container):
    _, uri = container
    good = storage.sas()
    for other in [
        uri.replace("https://", "http://"),
        uri.replace("127.0.0.1", "localhost"),
        uri.replace("127.0.0.1", "127.0.0.2"),
        uri.replace("127.0.0.1", "127.1"),
        uri.replace("127.0.0.1", "2130706433"),
        uri.replace("127.0.0.1", "[::1]"),
        uri.replace("https://", "https://user@"),
        uri.replace("https://", f"https://{storage.host}@"),
        uri.replace(str(storage.port), str(pool.port)),
        f"https://169.254.169.254/{uri.rsplit('/', 1)[1]}",
        "https://account.blob.core.windows.net/backups",
        f"{uri}?{good}",
        f"{uri}/../{uri.rsplit('/', 1)[1]}",
        "",
    ]:
        message = refusal(pool, call(pool, "POST", "/backup", backup_body(other, good)))
        assert "sig=" not in message, message


def test_a_backup_is_restored_whole_or_not_at_all(pool, storage, container):
    name, uri = container
    sas = storage.sas()
    pool.create("ec")
    folder = back_up(pool, uri, sas)
    later = pool.create("ec")
    content = {blob: storage.get(name, blob) for blob in storage.blobs(name)}
    for blob, whole in content.items():
        for number, changed in enumerate(
            [whole[:-1], whole[: len(whole) // 2], b"", whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:]]
        ):
            bad = f"mhsm-demo-2026010100000{number}"
            for other, same in content.items():
                storage.put(name, other.replace(folder, bad), changed if other == blob else same)
            assert refusal(pool, restore(pool, uri, sas, bad))
    assert refusal(pool, restore(pool, uri, sas, "mhsm-demo-20200101000000"))
    for path in ("../backup", "", "/", f"{folder}/..", "a\\b"):
        assert refusal(pool, restore(pool, uri, sas, path))
    assert pool.call("GET", key_path(later), token="app").status == 200
    assert finished(pool, restore(pool, uri, sas, folder))["status"] == "Succeeded"


def test_who_may_not_is_told_which_right_is_missing(pool, storage, container):
    _, uri = container
    sas = storage.sas()
    for answer, action in [
        (call(pool, "POST", "/backup", backup_body(uri, sas), token="app"), "backup/start/action"),
        (restore(pool, uri, sas, "mhsm-demo-20260101000000", token="app"), "restore/start/action"),
        (restore(pool, uri, sas, "mhsm-demo-20260101000000", key="k", token="app"), "restore/start/action"),
    ]:
        message = assert_error(answer, 403)
        assert action in message, message


def test_one_at_a_time(pool, storage, container):
    _, uri = container
    sas = storage.sas()
    # The first ends no sooner than the storage answers.
    with storage.silent():
        first, *others = [call(pool, "POST", "/backup", backup_body(uri, sas)) for _ in range(8)]
    assert first.status == 202, first
    for answer in others:
        assert_error(answer, 409)
    assert finished(pool, first)["status"] == "Succeeded"
    assert finished(pool, call(pool, "POST", "/backup", backup_body(uri, sas)))["status"] == "Succeeded"


# --- the Azure CLI


@pytest.fixture(scope="module")
def az(pool, tmp_path_factory):
    az = Az(pool.exports("--az"), tmp_path_factory.mktemp("az"))
    az("cloud", "register", "--name", CLOUD, "--endpoint-resource-manager", az.variables["AUTHORITY_HOST"])
    az("cloud", "set", "--name", CLOUD)
    secret = az.variables["HOLDFAST_ADMIN_CLIENT_SECRET"]
    az.login(az.variables["HOLDFAST_ADMIN_CLIENT_ID"], f"--password={secret}")
    return az


def of(pool, uri, sas):
    at = ["--id", pool.https_url(), "--storage-resource-uri", uri]
    return [*at, f"--storage-container-SAS-token={sas}"]


def test_az_takes_a_pool_to_another_with_a_quorum_and_a_backup(pool, storage, container, az, holders, tmp_path):
    """The whole promise: nothing of the first pool is used after its backup but that, its domain file and two of three
    holders."""
    _, uri = container
    sas = storage.container_sas(container[0])
    source, target = pool.blank("source"), pool.blank("target")
    file, exchange = tmp_path / "domain.json", tmp_path / "exchange.pem"
    wrapping = [str(holder.certificate) for holder in holders.values()]
    get = ["keyvault", "security-domain", "download", "--id", source.https_url(), "--sd-wrapping-keys", *wrapping]
    az(*get, "--sd-quorum", "2", "--security-domain-file", str(file))
    for asked in (assignment(source), may_purge(source)):
        assert call(source, "PUT", *asked).status == 201
    keys = [source.create("ec") for _ in range(5)]
    names = [key_path(bundle).split("/")[2] for bundle in keys]
    again = source.call("POST", f"/keys/{names[0]}/create", {"kty": "EC-HSM", "crv": "P-256"})
    keys.append(again.json)

    done = az("keyvault", "backup", "start", *of(source, uri, sas))
    assert done["status"] == "Succeeded", done
    folder = done["folderUrl"].rsplit("/", 1)[1]

    az("keyvault", "security-domain", "init-recovery", "--id", target.https_url(), "--sd-exchange-key", str(exchange))
    bring = ["--sd-file", str(file), "--sd-exchange-key", str(exchange)]
    quorum = ["--sd-wrapping-keys", *[str(holders[name].key) for name in ("ben", "cyd")]]
    put = ["keyvault", "security-domain", "upload", "--id", target.https_url()]
    blob = tmp_path / "blob.json"
    make = ["keyvault", "security-domain", "restore-blob", *bring, *quorum, "--sd-file-restore-blob", str(blob)]
    az(*make)
    az(*put, "--sd-file", str(blob), "--restore-blob")
    wait_until_active(target)
    # Whose domain it is not cannot read the backup, whatever right it has.
    assert "domain" in refusal(pool, restore(pool, uri, sas, folder))
    az("keyvault", "restore", "start", *of(target, uri, sas), "--backup-folder", folder)
    for bundle in keys:
        signs(target, bundle)

    lost = keys[1]
    target.call("DELETE", f"/keys/{names[1]}", token="app")
    refused = az.refused(
        *("keyvault", "restore", "start", *of(target, uri, sas), "--backup-folder", folder, "--key-name", names[1])
    )
    assert "deleted key holds this name" in refused, refused
    assert call(target, "DELETE", f"/deletedkeys/{names[1]}").status == 204
    az("keyvault", "restore", "start", *of(target, uri, sas), "--backup-folder", folder, "--key-name", names[1])
    signs(target, lost)

    # Crossed: a blob of `holdfast ceremony` from the CLI's file, brought by the CLI.
    crossed = pool.blank("crossed")
    ours = tmp_path / "ours.json"
    ours.write_text(blob_for(crossed, file, [holders["ada"], holders["cyd"]], tmp_path))
    put = ["keyvault", "security-domain", "upload", "--id", crossed.https_url()]
    az(*put, "--sd-file", str(ours), "--restore-blob")
    wait_until_active(crossed)
    assert finished(crossed, restore(crossed, uri, sas, folder))["status"] == "Succeeded"
    for bundle in keys:
        signs(crossed, bundle)

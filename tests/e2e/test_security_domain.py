"""The security domain, by the Azure CLI and by hand: handed out once, opened by a quorum and no fewer, and taken in whole
or not at all by a pool that waits for one.

`HOLDFAST_KILL_ROUNDS` (default 10, at most 14) says how often an upload is killed, `HOLDFAST_KILL_SEED` repeats a run's
moments.
"""

import base64
import datetime
import http.client
import json
import os
import random
import subprocess
import threading
import time
import uuid

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from holdfast import Pool, assert_error, binary, clean_environment, fresh_name
from test_az import CLOUD, Az

VERSION = "7.5"
CRYPTO_USER = "Managed HSM Crypto User"
CRYPTO_USER_ROLE = "21dbd100-6940-42c2-9190-5d6cb909625b"
NAMES = ("ada", "ben", "cyd", "dot")
SECONDS = 120
ROUNDS = min(int(os.environ.get("HOLDFAST_KILL_ROUNDS", "10")), 14)
SEED = int(os.environ.get("HOLDFAST_KILL_SEED", str(random.SystemRandom().randrange(2**32))))
NOT_OPENED = "The restore blob does not open with this pool's exchange key."
UNREADABLE = "Not a restore blob of Holdfast"
NO_KEY = "No exchange key waits for this blob"


class Holder:
    """A key without a passphrase and its certificate, as `az` looks for them: NAME.key beside NAME.cer."""

    def __init__(self, directory, name):
        self.key, self.certificate = directory / f"{name}.key", directory / f"{name}.cer"
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=365))
            .sign(key, hashes.SHA256())
        )
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        self.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        self.certificate.write_bytes(made.public_bytes(pem))
        self.x5c = base64.b64encode(made.public_bytes(serialization.Encoding.DER)).decode()


@pytest.fixture(scope="module")
def holders(tmp_path_factory):
    directory = tmp_path_factory.mktemp("holders")
    return {name: Holder(directory, name) for name in NAMES}


def ceremony(*words, code=0):
    done = subprocess.run(
        [binary(), "ceremony", *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env=clean_environment(),
        start_new_session=True,
    )
    assert done.returncode == code, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout if code == 0 else done.stderr


def call(pool, method, path, body=None, token="admin", **more):
    return pool.call(method, path, body, token=token, version=VERSION, **more)


def download(pool, holders, required=2, **more):
    certificates = [{"x5c": [holder.x5c]} for holder in holders]
    body = {"certificates": certificates, "required": required}
    return call(pool, "POST", "/securitydomain/download", body, **more)


def upload(pool, blob, **more):
    return call(pool, "POST", "/securitydomain/upload", {"value": blob}, **{"timeout": SECONDS, **more})


def status(pool):
    answer = call(pool, "GET", "/securitydomain/upload/pending")
    assert answer.status == 200, answer
    return answer.json["status"]


def exchange_key(pool, path):
    # An RSA key is made, at low priority: seconds, and more where the machine is busy.
    answer = call(pool, "GET", "/securitydomain/upload", timeout=300)
    assert answer.status == 200, answer
    key = json.loads(answer.json["transfer_key"])
    pem = f"-----BEGIN CERTIFICATE-----\n{key['x5c'][0]}\n-----END CERTIFICATE-----\n"
    path.write_text(pem)
    der = x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256()).hex()
    return ["--exchange-key", path, "--exchange-thumbprint", der]


def blob_for(pool, file, holders, directory):
    """A blob with the domain in `file`, for a new exchange key of `pool`."""
    name = uuid.uuid4().hex
    exchange = exchange_key(pool, directory / f"{name}.cer")
    keys = [word for holder in holders for word in ("--key", holder.key)]
    out = directory / f"{name}.json"
    ceremony("restore-blob", file, *keys, *exchange, "--out", out)
    return out.read_text()


def wait_until_active(pool):
    """The answer came before the pool was made anew; connections break meanwhile."""
    until = time.monotonic() + SECONDS
    while True:
        try:
            if status(pool) == "Success":
                return
        except (OSError, http.client.HTTPException):
            pass
        assert time.monotonic() < until, f"not active after {SECONDS} s\n{pool.log()}"
        time.sleep(0.05)


def directory_of(pool, name):
    return pool.data / "pools" / name


def kept(pool, name):
    """What is on disk of a pool, but for its store and log, which each request writes to."""
    directory = directory_of(pool, name)
    files = ("node", "domain.sealed", "owner.pem")
    return sorted(os.listdir(directory)), [(directory / "pool" / file).read_bytes() for file in files]


def assignment(pool):
    """Path and body by which `app` becomes a Crypto User."""
    definition = f"Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/{CRYPTO_USER_ROLE}"
    properties = {"principalId": pool.object_id("app"), "roleDefinitionId": definition}
    return f"/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}", {"properties": properties}


def makes_and_uses_a_key(pool):
    """An initial administrator gives `app` a role, and `app` works."""
    assigned = call(pool, "PUT", *assignment(pool))
    assert assigned.status == 201, assigned
    pool.create("ec")


@pytest.fixture(scope="module")
def file(tmp_path_factory, domain):
    path = tmp_path_factory.mktemp("domain") / "domain.json"
    path.write_text(domain)
    return path


TARGETS = ("untouched", "refused", "taken", "other", "late")


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    names = [word for name in ("source", *TARGETS) for word in ("--blank-pool", name)]
    with Pool(tmp_path_factory.mktemp("pools"), *names) as pool:
        yield pool


@pytest.fixture(scope="module")
def domain(pools, holders):
    """The source's domain, which is handed out here."""
    answer = download(pools.blank("source"), [holders[name] for name in NAMES[:3]])
    assert answer.status == 202, answer
    return answer.json["value"]


# --- the Azure CLI


def test_az_hands_a_domain_out_and_a_quorum_brings_it_into_another_pool(tmp_path, holders):
    with Pool(tmp_path, "--blank-pool", "source", "--blank-pool", "target") as pool:
        source, target = pool.blank("source"), pool.blank("target")
        az = Az(pool.exports("--az"), tmp_path / "az")
        az("cloud", "register", "--name", CLOUD, "--endpoint-resource-manager", az.variables["AUTHORITY_HOST"])
        az("cloud", "set", "--name", CLOUD)
        secret = az.variables["HOLDFAST_ADMIN_CLIENT_SECRET"]
        az.login(az.variables["HOLDFAST_ADMIN_CLIENT_ID"], f"--password={secret}")

        def certificates(*names):
            return ["--sd-wrapping-keys", *[str(holders[name].certificate) for name in names]]

        file = tmp_path / "domain.json"
        get = ["keyvault", "security-domain", "download", "--id", source.https_url()]
        az(*get, *certificates("ada", "ben", "cyd"), "--sd-quorum", "2", "--security-domain-file", str(file))
        assert status(source) == "Success"
        second = ["--sd-quorum", "3", "--security-domain-file", str(tmp_path / "second.json")]
        refusal = az.refused(*get, *certificates("ada", "ben", "cyd"), *second)
        assert "holdfast ceremony rekey" in refusal

        assign = ["keyvault", "role", "assignment", "create", "--id", source.https_url(), "--scope", "/"]
        admin = az.variables["HOLDFAST_ADMIN_OBJECT_ID"]
        az(*assign, "--role", CRYPTO_USER, "--assignee-object-id", admin)
        key = f"{source.https_url()}/keys/{fresh_name()}"
        made = az("keyvault", "key", "create", "--id", key, "--kty", "EC-HSM")
        assert made["key"]["kty"] == "EC-HSM"

        exchange, blob = tmp_path / "exchange.pem", tmp_path / "blob.json"
        recover = ["keyvault", "security-domain", "init-recovery", "--id", target.https_url()]
        az(*recover, "--sd-exchange-key", str(exchange))
        bring = ["--sd-file", str(file), "--sd-exchange-key", str(exchange), "--sd-wrapping-keys"]
        # One holder fewer than the quorum: the CLI cannot even make a blob.
        az.refused(
            *("keyvault", "security-domain", "restore-blob", *bring, str(holders["ada"].key)),
            *("--sd-file-restore-blob", str(blob)),
        )
        assert not blob.exists()
        assert status(target) == "InProgress"
        keys = [str(holders[name].key) for name in ("cyd", "ada")]
        put = ["keyvault", "security-domain", "upload", "--id", target.https_url()]
        done = az(*put, *bring, *keys)
        assert done["status"] == "Success", done
        owners = [(directory_of(pool, name) / "pool" / "owner.pem").read_bytes() for name in ("source", "target")]
        assert owners[0] == owners[1]
        makes_and_uses_a_key(target)


# --- by hand


def test_before_activation_there_is_the_domain_and_only_for_its_administrators(pools):
    pool = pools.blank("untouched")
    for method, path, body in [
        ("POST", "/keys/k/create", {"kty": "EC-HSM", "crv": "P-256"}),
        ("GET", "/keys", None),
        ("POST", "/rng", {"count": 8}),
        ("GET", "/settings", None),
        ("PUT", *assignment(pool)),
    ]:
        for token in ("admin", "app"):
            answer = call(pool, method, path, body, token=token)
            assert_error(answer, 403, "Forbidden")
            assert answer.error["innererror"]["code"] == "HsmNotActivated", (path, answer)
    for method, path in [("GET", "/securitydomain/upload/pending"), ("GET", "/securitydomain/download/pending")]:
        assert call(pool, method, path).status == 200
        assert_error(call(pool, method, path, token="app"), 403)
    assert_error(call(pool, "GET", "/securitydomain/upload", token="app"), 403)
    assert_error(upload(pool, "{}", token="app"), 403)


def test_a_domain_is_handed_out_once(pools, holders, domain):
    source = pools.blank("source")
    again = download(source, [holders[name] for name in ("cyd", "ada", "ben")])
    assert (again.status, again.json["value"]) == (202, domain)
    for names, required in [(("ada", "ben", "dot"), 2), (("ada", "ben", "cyd"), 3), (NAMES, 2)]:
        message = assert_error(download(source, [holders[name] for name in names], required), 409)
        assert "holdfast ceremony rekey" in message
    assert_error(download(source, [holders[name] for name in NAMES[:3]], token="app"), 403)
    assert_error(call(source, "GET", "/securitydomain/upload"), 409)
    assert_error(upload(source, "{}"), 409)


def test_one_holder_fewer_than_the_quorum_opens_nothing(pools, holders, file, tmp_path):
    exchange = exchange_key(pools.blank("other"), tmp_path / "exchange.cer")
    out = tmp_path / "blob.json"
    for name in NAMES[:3]:
        ceremony("verify", file, "--key", holders[name].key, code=1)
        ceremony("restore-blob", file, "--key", holders[name].key, *exchange, "--out", out, code=1)
        # Who holds no share of it makes no quorum, and neither does one holder twice.
        ceremony("verify", file, "--key", holders[name].key, "--key", holders["dot"].key, code=1)
        ceremony("verify", file, "--key", holders[name].key, "--key", holders[name].key, code=1)
    assert not out.exists()
    ceremony("verify", file, "--key", holders["ada"].key, "--key", holders["cyd"].key)


def test_what_is_not_the_blob_asked_for_changes_nothing(pools, holders, file, tmp_path):
    pool, other = pools.blank("refused"), pools.blank("other")
    quorum = [holders["ada"], holders["ben"]]
    before = kept(pools, "refused")
    of_another_pool = blob_for(other, file, quorum, tmp_path)
    assert NO_KEY in assert_error(upload(pool, of_another_pool), 400)
    superseded = blob_for(pool, file, quorum, tmp_path)
    blob = blob_for(pool, file, quorum, tmp_path)
    for foreign in (of_another_pool, superseded):
        assert assert_error(upload(pool, foreign), 400) == NOT_OPENED
    moments = random.Random(SEED)
    opened_not = 0
    for _ in range(20):
        place, flip = moments.randrange(len(blob)), moments.randrange(1, 128)
        changed = blob[:place] + chr(ord(blob[place]) ^ flip) + blob[place + 1 :]
        answer = upload(pool, changed)
        message = assert_error(answer, 400)
        if answer.error.get("innererror", {}).get("code") == "RestoreBlobNotOpened":
            opened_not += 1
            assert message == NOT_OPENED
        else:
            assert message.startswith(UNREADABLE), f"seed {SEED}: {message}"
    print(f"seed {SEED}: {opened_not} of 20 did not open, the others could not be read")
    for cut in (blob[:-1], blob[: len(blob) // 2], "", "{}", blob + blob):
        assert assert_error(upload(pool, cut), 400).startswith(UNREADABLE)
    assert status(pool) == "InProgress"
    assert kept(pools, "refused") == before
    assert_error(call(pool, "GET", "/keys"), 403)
    # The key that all of these failed with is still good for the blob that was made for it.
    assert upload(pool, blob).status == 202
    wait_until_active(pool)
    assert_error(upload(pool, blob), 409)


def test_a_pool_that_took_a_domain_in_is_of_that_domain_and_still_itself(pools, holders, file, tmp_path):
    pool = pools.blank("taken")
    before, _ = kept(pools, "taken")
    node = (directory_of(pools, "taken") / "pool" / "node").read_bytes()
    provisioned_owner = (directory_of(pools, "taken") / "pool" / "owner.pem").read_bytes()
    blob = blob_for(pool, file, [holders["ben"], holders["cyd"]], tmp_path)
    answer = upload(pool, blob)
    assert answer.status == 202 and answer.json["status"] == "InProgress", answer
    assert answer.headers["Azure-AsyncOperation"].endswith("/securitydomain/upload/pending")
    wait_until_active(pool)
    assert_error(upload(pool, blob), 409)
    assert_error(call(pool, "GET", "/securitydomain/upload"), 409)
    assert_error(download(pool, [holders[name] for name in ("ada", "ben", "dot")]), 409)
    makes_and_uses_a_key(pool)

    directory = directory_of(pools, "taken")
    owner = (directory / "pool" / "owner.pem").read_bytes()
    assert owner == (directory_of(pools, "source") / "pool" / "owner.pem").read_bytes() != provisioned_owner
    assert (directory / "pool" / "node").read_bytes() == node
    # The provisioned pool and its log are there to be read; nothing else is left.
    assert before == ["pool"] and sorted(os.listdir(directory)) == ["pool", "pool.replaced-1"]
    replaced = directory / "pool.replaced-1"
    assert (replaced / "owner.pem").read_bytes() == provisioned_owner
    pools.stop()
    for log in (directory, directory_of(pools, "source")):
        verified = subprocess.run(
            [binary(), "audit", "verify", "--data", str(log)], capture_output=True, text=True, timeout=300
        )
        assert verified.returncode == 0, verified.stdout + verified.stderr
    pools.start()
    assert status(pool) == "Success"
    pool.create("ec")


def test_the_issuers_key_is_replaced_once_in_a_start_though_the_pools_open_anew(holders, file, tmp_path):
    with Pool(tmp_path, "--blank-pool", "target") as own:
        before = own.token()
        own.stop()
        own.flags = (*own.flags, "--rotate-issuer-key")
        own.start()
        target = own.blank("target")
        upload(target, blob_for(target, file, [holders["ada"], holders["ben"]], tmp_path))
        wait_until_active(target)
        answer = own.call("GET", "/keys", token=before)
        assert answer.status == 200, answer


def test_an_exchange_key_does_not_outlive_its_process(pools, holders, file, tmp_path):
    pool = pools.blank("late")
    blob = blob_for(pool, file, [holders["ada"], holders["ben"]], tmp_path)
    pools.stop()
    pools.start()
    assert NO_KEY in assert_error(upload(pool, blob), 400)
    assert status(pool) == "InProgress"


@pytest.mark.timeout(max(900, ROUNDS * 120))
def test_an_upload_that_is_killed_leaves_the_old_pool_or_the_new_one(tmp_path, holders):
    moments = random.Random(SEED)
    print(f"seed {SEED}, {ROUNDS} rounds")
    names = [f"target-{number}" for number in range(ROUNDS)]
    flags = [word for name in ("source", *names) for word in ("--blank-pool", name)]
    pools = Pool(tmp_path, *flags)
    pools.start()
    try:
        quorum = [holders["ada"], holders["ben"]]
        file = tmp_path / "domain.json"
        answer = download(pools.blank("source"), [holders[name] for name in NAMES[:3]])
        assert answer.status == 202, answer
        file.write_text(answer.json["value"])
        source_owner = (directory_of(pools, "source") / "pool" / "owner.pem").read_bytes()
        came_through = 0
        for number, name in enumerate(names):
            context = f"round {number}, seed {SEED}"
            pool = pools.blank(name)
            blob = blob_for(pool, file, quorum, tmp_path)
            answers = []
            thread = threading.Thread(target=answer_of, args=(pool, blob, answers), daemon=True)
            thread.start()
            time.sleep(moments.uniform(0, 0.5))
            pools.kill()
            thread.join(SECONDS)
            assert not thread.is_alive(), f"{context}: a request hangs although the server is gone"
            pools.start()
            taken_in = status(pool) == "Success"
            assert taken_in or not answers, f"{context}: what was acknowledged is gone"
            assert all(answer.status == 202 for answer in answers), f"{context}: {answers}"
            came_through += taken_in
            if not taken_in:
                assert_error(call(pool, "GET", "/keys"), 403)
                assert upload(pool, blob_for(pool, file, quorum, tmp_path)).status == 202, context
                wait_until_active(pool)
            assert (directory_of(pools, name) / "pool" / "owner.pem").read_bytes() == source_owner, context
            assert not (directory_of(pools, name) / "pool.next").exists(), context
            makes_and_uses_a_key(pool)
        pools.stop()
        print(f"{came_through} of {ROUNDS} uploads came through before the kill")
    finally:
        pools.kill()


def answer_of(pool, blob, answers):
    try:
        answers.append(upload(pool, blob))
    except (OSError, http.client.HTTPException):
        pass  # the server is gone; what has no whole answer was not acknowledged

"""The commands `key`, `role` and `doctor`: clients like any other, with exit codes and errors that help."""

import hashlib
import json
import os
import pty
import re
import shlex
import subprocess
import threading
import time
import uuid

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from holdfast import Pool, assert_error, b64, clean_environment, fresh_name, key_path, unb64

FAILED, USAGE, NOT_FOUND_OR_ALLOWED = 1, 2, 3
ROLE_ASSIGNMENTS = "/providers/Microsoft.Authorization/roleAssignments"


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A pool whose third principal may do all that the others may not: recover and purge."""
    with Pool(tmp_path_factory.mktemp("cli"), "--with-conformance-principal") as pool:
        pool.wait_for_holders()
        yield pool


class Done:
    def __init__(self, words, process):
        self.words, self.code = words, process.returncode
        self.out, self.bytes = process.stdout.decode(errors="replace"), process.stdout
        self.err = process.stderr.decode(errors="replace")

    @property
    def json(self):
        return json.loads(self.out)

    def __repr__(self):
        return f"<{' '.join(self.words)}: {self.code}\n{self.out}{self.err}>"


def holdfast(pool, *words, stdin=b"", code=0, environment=None, data=True):
    """Runs a command as somebody would who is not at a terminal; checks its exit code."""
    where = ["--data", str(pool.data)] if data else []
    process = subprocess.run(
        [pool.program, *words, *where],
        input=stdin,
        capture_output=True,
        timeout=300,
        env=clean_environment(**(environment or {})),
    )
    done = Done(words, process)
    if code is not None:
        assert done.code == code, done
    # Whatever is asked: nobody asks for these.
    if (pool.data / "identity" / "principals.json").exists():
        for name in ("HOLDFAST_ADMIN_CLIENT_SECRET", "HOLDFAST_APP_CLIENT_SECRET"):
            assert pool.variables[name] not in done.out + done.err, words
    assert "eyJ" not in done.err, "a token in an error"
    return done


def at_a_terminal(pool, *words, typed="", code=0):
    """Runs a command with a terminal for all that it reads and writes."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [pool.program, *words, "--data", str(pool.data)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=clean_environment(),
        start_new_session=True,
    )
    os.close(follower)
    shown = b""
    if typed:
        # The question comes first, whatever the machine's load.
        while b"Type its name" not in shown:
            shown += os.read(leader, 4096)
        os.write(leader, typed.encode() + b"\n")
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    assert process.wait(300) == code, shown
    os.close(leader)
    return shown.decode(errors="replace").replace("\r\n", "\n")


def fields(text):
    """A table of names and values."""
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines())


def rows(text):
    """A table with a head."""
    head, *rest = text.splitlines()
    return [dict(zip(re.split(r"\s{2,}", head), re.split(r"\s{2,}", line))) for line in rest]


# --- keys


KINDS = [
    (["--type", "RSA-HSM"], "RSA-HSM 2048"),
    (["--type", "rsa", "--size", "3072"], "RSA-HSM 3072"),
    (["--type", "EC-HSM"], "EC-HSM P-256"),
    (["--type", "ec", "--curve", "P-256K"], "EC-HSM P-256K"),
    (["--type", "EC-HSM", "--curve", "P-384"], "EC-HSM P-384"),
    (["--type", "EC-HSM", "--curve", "p-521"], "EC-HSM P-521"),
    (["--type", "oct-HSM", "--size", "128"], "oct-HSM"),
]


@pytest.mark.parametrize("words, shown", KINDS, ids=[row[1] for row in KINDS])
def test_every_kind_of_key_is_made_and_shown(pool, words, shown):
    name = fresh_name()
    made = holdfast(pool, "key", "create", name, *words, "--output", "json").json
    by_name = pool.call("GET", f"/keys/{name}", host=f"demo.managedhsm.localhost:{pool.port}")
    assert made == by_name.json, "JSON is the service's own"
    table = fields(holdfast(pool, "key", "show", name, "--output", "table").out)
    assert table["name"] == name
    assert table["type"] == shown
    assert f"/keys/{name}/{table['version']}" in table["id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", table["created"])
    by_version = holdfast(pool, "key", "show", name, "--version", table["version"], "--output", "json").json
    assert by_version == made
    if shown.startswith("oct"):
        refused = holdfast(pool, "key", "show", name, "--pem", code=FAILED)
        assert "symmetric" in refused.err
        return
    public = load_pem_public_key(holdfast(pool, "key", "show", name, "--pem").bytes)
    key = made["key"]
    if isinstance(public, rsa.RSAPublicKey):
        assert public.public_numbers().n == int.from_bytes(unb64(key["n"]))
    else:
        numbers = public.public_numbers()
        assert (numbers.x, numbers.y) == tuple(int.from_bytes(unb64(key[name])) for name in "xy")


def test_create_passes_on_what_was_said(pool):
    name = fresh_name()
    before = int(time.time())
    words = ["--type", "oct", "--ops", "encrypt,DECRYPT", "--expires", "+90d", "--not-before", "2020-01-31"]
    words += ["--disabled", "--tag", "team=pay=roll", "--tag", "empty="]
    made = holdfast(pool, "key", "create", name, *words).json
    assert made["key"]["key_ops"] == ["encrypt", "decrypt"]
    attributes = made["attributes"]
    assert attributes["enabled"] is False
    assert attributes["nbf"] == 1580428800
    assert before + 90 * 86400 <= attributes["exp"] <= int(time.time()) + 90 * 86400
    assert made["tags"] == {"team": "pay=roll", "empty": ""}
    table = fields(holdfast(pool, "key", "show", name, "--output", "table").out)
    assert table["not before"] == "2020-01-31T00:00:00Z"
    assert table["enabled"] == "false"
    encrypt = ["key", "encrypt", name, "--alg", "A256GCM"]
    refused = holdfast(pool, *encrypt, stdin=b"x", code=NOT_FOUND_OR_ALLOWED)
    assert "KeyDisabled" in refused.err


def test_text_of_others_does_not_reach_the_terminal_as_it_is(pool):
    name = fresh_name()
    pool.create("ec", name, tags={"note": "\x1b]0;owned\x07\x1b[2J"})
    for output in ("table", "json"):
        assert "\x1b" not in holdfast(pool, "key", "show", name, "--output", output).out


def test_what_makes_no_sense_is_refused_before_it_is_sent(pool):
    events = len(pool.audit())
    for words in (
        ["create", "a_b", "--type", "ec"],
        ["create", "k", "--type", "rsa", "--size", "1024"],
        ["create", "k", "--type", "ec", "--expires", "soon"],
        ["update", "k"],
        ["sign", "k", "--alg", "ES257"],
        ["sign", "k", "--alg", "ES256", "--digest", b64(b"short")],
        ["verify", "k", "--alg", "ES256", "--digest", b64(bytes(32))],
        ["encrypt", "k", "--alg", "A256GCM", "--raw"],
        ["purge", "k"],
        ["show", "k", "--as", "nobody"],
        ["show", "k", "--url", pool.https_url()],
    ):
        refused = holdfast(pool, "key", *words, code=USAGE)
        assert refused.err.strip() and not refused.out, refused
    assert len(pool.audit()) == events


def test_versions(pool):
    name = fresh_name()
    ids = [holdfast(pool, "key", "create", name, "--type", "ec").json["key"]["kid"] for _ in range(2)]
    listed = holdfast(pool, "key", "versions", name, "--output", "json").json
    assert {item["kid"] for item in listed["value"]} == set(ids)
    table = rows(holdfast(pool, "key", "versions", name, "--output", "table").out)
    assert {row["VERSION"] for row in table} == {kid.rsplit("/", 1)[1] for kid in ids}


def test_update(pool):
    name = fresh_name()
    first = holdfast(pool, "key", "create", name, "--type", "ec", "--tag", "a=b").json
    version = first["key"]["kid"].rsplit("/", 1)[1]
    changed = holdfast(pool, "key", "update", name, "--disabled", "--expires", "2040-01-01T00:00:00Z").json
    assert changed["attributes"]["enabled"] is False
    assert changed["attributes"]["exp"] == 2208988800
    assert changed["tags"] == {"a": "b"}, "what was not named stays"
    words = ["--version", version, "--enabled", "--ops", "sign", "--tag", "c=d"]
    changed = holdfast(pool, "key", "update", name, *words).json
    assert (changed["attributes"]["enabled"], changed["key"]["key_ops"]) == (True, ["sign"])
    assert changed["tags"] == {"c": "d"}
    assert "tags" not in holdfast(pool, "key", "update", name, "--no-tags").json
    assert changed["key"]["kid"] == first["key"]["kid"]
    holdfast(pool, "key", "update", fresh_name("absent"), "--enabled", code=NOT_FOUND_OR_ALLOWED)


def test_lists_are_whole_whatever_their_pages(own_pool):
    """60 keys are three pages of 25."""
    own_pool.start()
    names = [f"page-{number:03}" for number in range(60)]
    for name in names:
        own_pool.create("ec", name)
    first = own_pool.call("GET", "/keys")
    assert first.status == 200 and first.json["nextLink"], "one page does not hold them all"
    listed = holdfast(own_pool, "key", "list").json
    assert sorted(item["kid"].rsplit("/", 1)[1] for item in listed["value"]) == names
    assert listed["nextLink"] is None
    table = rows(holdfast(own_pool, "key", "list", "--output", "table").out)
    assert sorted(row["NAME"] for row in table) == names
    own_pool.stop()


def test_deleted_recovered_purged(pool):
    name = fresh_name()
    made = holdfast(pool, "key", "create", name, "--type", "ec").json
    deleted = holdfast(pool, "key", "delete", name).json
    assert deleted["recoveryId"].endswith(f"/deletedkeys/{name}")
    holdfast(pool, "key", "show", name, code=NOT_FOUND_OR_ALLOWED)
    officer = ["--as", "conformance"]
    shown = holdfast(pool, "key", "show", name, "--deleted", "--output", "table", *officer)
    assert fields(shown.out)["purge due"] > fields(shown.out)["deleted"]
    listed = rows(holdfast(pool, "key", "list", "--deleted", "--output", "table", *officer).out)
    assert name in {row["NAME"] for row in listed}
    in_json = holdfast(pool, "key", "list", "--deleted", *officer).json["value"]
    assert any(item["recoveryId"] == deleted["recoveryId"] for item in in_json)
    # Who may delete may not recover: another role does.
    refused = holdfast(pool, "key", "recover", name, code=NOT_FOUND_OR_ALLOWED)
    assert 'role "Managed HSM Crypto Officer"' in refused.err
    recovered = holdfast(pool, "key", "recover", name, *officer).json
    assert recovered["key"] == made["key"]
    holdfast(pool, "key", "delete", name)
    # Nobody to ask, nobody who said yes.
    refused = holdfast(pool, "key", "purge", name, *officer, stdin=name.encode() + b"\n", code=USAGE)
    assert "--yes" in refused.err
    shown = at_a_terminal(pool, "key", "purge", name, *officer, typed="another", code=FAILED)
    assert "not purged" in shown
    assert pool_has_deleted(pool, name)
    assert f"purged {name}" in at_a_terminal(pool, "key", "purge", name, *officer, typed=name)
    assert not pool_has_deleted(pool, name)
    holdfast(pool, "key", "purge", name, "--yes", *officer, code=NOT_FOUND_OR_ALLOWED)


def pool_has_deleted(pool, name):
    done = holdfast(pool, "key", "show", name, "--deleted", "--as", "conformance", code=None)
    assert done.code in (0, NOT_FOUND_OR_ALLOWED), done
    return done.code == 0


def test_purge_with_yes_asks_nobody(pool):
    name = fresh_name()
    holdfast(pool, "key", "create", name, "--type", "ec")
    holdfast(pool, "key", "delete", name)
    assert holdfast(pool, "key", "purge", name, "--yes", "--as", "conformance").out == ""
    assert not pool_has_deleted(pool, name)


# --- using keys


SIGNATURES = [
    ("ec", "ES256"),
    ("rsa", "RS256"),
    ("rsa", "RS384"),
    ("rsa", "RS512"),
    ("rsa", "PS256"),
    ("rsa", "PS384"),
    ("rsa", "PS512"),
    ("oct", "HS256"),
    ("oct", "HS384"),
    ("oct", "HS512"),
]
HASHES = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}


@pytest.fixture(scope="module")
def keys(pool):
    return {kind: key_path(pool.create(kind)).split("/")[2] for kind in ("rsa", "ec", "oct")}


def public_verifies(pem, algorithm, signature, message):
    public, hash = load_pem_public_key(pem), HASHES[algorithm[2:]]()
    if algorithm.startswith("ES"):
        half = len(signature) // 2
        pair = (int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))
        public.verify(utils.encode_dss_signature(*pair), message, ec.ECDSA(hash))
    elif algorithm.startswith("PS"):
        public.verify(signature, message, padding.PSS(padding.MGF1(hash), hash.digest_size), hash)
    else:
        public.verify(signature, message, padding.PKCS1v15(), hash)


@pytest.mark.parametrize("kind, algorithm", SIGNATURES, ids=[row[1] for row in SIGNATURES])
def test_a_file_is_signed_and_checked(pool, keys, tmp_path, kind, algorithm):
    name, message = keys[kind], os.urandom(100_000)
    path, other = tmp_path / "message", tmp_path / "other"
    path.write_bytes(message)
    other.write_bytes(message[:-1] + bytes([message[-1] ^ 1]))
    use = ["--alg", algorithm]
    signature = holdfast(pool, "key", "sign", name, *use, "--file", str(path)).out.strip()
    if kind != "oct":
        pem = holdfast(pool, "key", "show", name, "--pem").bytes
        public_verifies(pem, algorithm, unb64(signature), message)
    check = ["key", "verify", name, *use, "--signature", signature]
    assert holdfast(pool, *check, "--file", str(path)).out == "valid\n"
    assert holdfast(pool, *check, stdin=message).out == "valid\n"
    digest = hashlib.new(f"sha{algorithm[2:]}", message).digest()
    assert holdfast(pool, *check, "--digest", b64(digest)).out == "valid\n"
    assert holdfast(pool, *check, "--file", str(other), code=FAILED).out == "not valid\n"
    body = holdfast(pool, *check, "--file", str(other), "--output", "json", code=FAILED).json
    assert body == {"value": False}


def test_the_curves_with_other_hashes(pool, tmp_path):
    for curve, algorithm in (("P-384", "ES384"), ("P-521", "ES512"), ("P-256K", "ES256K")):
        name = fresh_name()
        holdfast(pool, "key", "create", name, "--type", "ec", "--curve", curve)
        signature = tmp_path / algorithm
        sign = ["key", "sign", name, "--alg", algorithm, "--out", str(signature)]
        assert holdfast(pool, *sign, stdin=b"message").out == ""
        verify = ["key", "verify", name, "--alg", algorithm, "--signature-file", str(signature)]
        assert holdfast(pool, *verify, stdin=b"message").out == "valid\n"
        holdfast(pool, *verify, stdin=b"another", code=FAILED)
        if algorithm != "ES256K":
            pem = holdfast(pool, "key", "show", name, "--pem").bytes
            public_verifies(pem, algorithm, signature.read_bytes(), b"message")


def test_sign_in_json_names_the_version(pool, keys):
    body = holdfast(pool, "key", "sign", keys["ec"], "--alg", "ES256", "--output", "json", stdin=b"m").json
    assert set(body) == {"kid", "value"}
    version = body["kid"].rsplit("/", 1)[1]
    words = ["--version", version, "--alg", "ES256", "--signature", body["value"]]
    assert holdfast(pool, "key", "verify", keys["ec"], *words, stdin=b"m").out == "valid\n"


def test_rsnull_signs_what_is_there(pool, keys):
    words = ["key", "sign", keys["rsa"], "--alg", "RSNULL"]
    signature = unb64(holdfast(pool, *words, stdin=b"bare").out.strip())
    public = load_pem_public_key(holdfast(pool, "key", "show", keys["rsa"], "--pem").bytes).public_numbers()
    padded = pow(int.from_bytes(signature), public.e, public.n).to_bytes(256)
    assert padded.endswith(b"\xff\x00bare")


@pytest.mark.parametrize(
    "kind, algorithm, more",
    [
        ("rsa", "RSA-OAEP-256", []),
        ("oct", "A256GCM", ["--aad", b64(b"invoice 17")]),
        ("oct", "A256GCM", []),
        ("oct", "A256CBCPAD", []),
    ],
    ids=["RSA-OAEP-256", "GCM with additional data", "GCM", "CBC"],
)
def test_what_was_encrypted_is_decrypted_as_it_is(pool, keys, tmp_path, kind, algorithm, more):
    name, plaintext, path = keys[kind], os.urandom(60) + b"\n\n", tmp_path / "document"
    words = ["key", "encrypt", name, "--alg", algorithm, *more]
    assert holdfast(pool, *words, "--out", str(path), stdin=plaintext).out == ""
    document = json.loads(path.read_text())
    assert (document["version"], document["alg"]) == (1, algorithm)
    assert f"/keys/{name}/" in document["kid"]
    assert ("iv" in document) == (kind == "oct")
    assert ("aad" in document) == bool(more)
    assert holdfast(pool, "key", "decrypt", name, "--file", str(path)).bytes == plaintext
    assert holdfast(pool, "key", "decrypt", name, stdin=path.read_bytes()).bytes == plaintext
    out = tmp_path / "plain"
    assert holdfast(pool, "key", "decrypt", name, "--file", str(path), "--out", str(out)).out == ""
    assert out.read_bytes() == plaintext and out.stat().st_mode & 0o777 == 0o600
    body = holdfast(pool, "key", "decrypt", name, "--file", str(path), "--output", "json").json
    assert unb64(body["value"]) == plaintext
    # A new version does not disturb what an older one encrypted.
    pool.create(kind, name)
    assert holdfast(pool, "key", "decrypt", name, "--file", str(path)).bytes == plaintext
    other = "oct" if kind == "rsa" else "rsa"
    refused = holdfast(pool, "key", "decrypt", keys[other], "--file", str(path), code=USAGE)
    assert f"with the key {name}" in refused.err
    document["value"] = b64(bytes([unb64(document["value"])[0] ^ 1]) + unb64(document["value"])[1:])
    changed = holdfast(pool, "key", "decrypt", name, stdin=json.dumps(document).encode(), code=None)
    if algorithm != "A256CBCPAD":
        assert changed.code == FAILED and "BadParameter" in changed.err, changed


def test_a_bare_ciphertext(pool, keys):
    name = keys["rsa"]
    encrypt = ["key", "encrypt", name, "--alg", "rsa-oaep-256", "--raw"]
    ciphertext = holdfast(pool, *encrypt, stdin=b"plain").bytes
    assert len(ciphertext) == 256
    decrypt = ["key", "decrypt", name, "--alg", "RSA-OAEP-256"]
    assert holdfast(pool, *decrypt, stdin=ciphertext).bytes == b"plain"
    refused = holdfast(pool, "key", "decrypt", name, stdin=ciphertext, code=USAGE)
    assert "--alg" in refused.err
    name = keys["oct"]
    made = holdfast(pool, "key", "encrypt", name, "--alg", "A256GCM", "--output", "json", stdin=b"plain").json
    parts = ["--iv", made["iv"], "--tag", made["tag"]]
    decrypt = ["key", "decrypt", name, "--alg", "A256GCM", "--version", made["kid"].rsplit("/", 1)[1]]
    assert holdfast(pool, *decrypt, *parts, stdin=unb64(made["value"])).bytes == b"plain"
    wrong = ["--iv", made["iv"], "--tag", b64(bytes(16))]
    assert "BadParameter" in holdfast(pool, *decrypt, *wrong, stdin=unb64(made["value"]), code=FAILED).err


def test_too_much_for_one_call(pool, keys):
    words = ["key", "encrypt", keys["oct"], "--alg", "A256GCM"]
    assert "64 KiB" in holdfast(pool, *words, stdin=bytes(200_000), code=USAGE).err
    assert "BadParameter" in holdfast(pool, *words, stdin=bytes(65_537), code=FAILED).err
    document = holdfast(pool, *words, stdin=bytes(65_536)).bytes
    assert holdfast(pool, "key", "decrypt", keys["oct"], stdin=document).bytes == bytes(65_536)


@pytest.mark.parametrize("kind, algorithm", [("oct", "A256KW"), ("rsa", "RSA-OAEP-256")])
def test_a_key_is_wrapped_and_unwrapped(pool, keys, kind, algorithm):
    secret = os.urandom(32)
    document = holdfast(pool, "key", "wrap", keys[kind], "--alg", algorithm, stdin=secret).bytes
    assert secret not in document and json.loads(document)["alg"] == algorithm
    assert holdfast(pool, "key", "unwrap", keys[kind], stdin=document).bytes == secret


def test_random(pool, tmp_path):
    first, second = (holdfast(pool, "key", "random", "32").out.strip() for _ in range(2))
    assert len(unb64(first)) == 32 and first != second
    path = tmp_path / "random"
    assert holdfast(pool, "key", "random", "16", "--out", str(path)).out == ""
    assert len(path.read_bytes()) == 16
    assert len(unb64(holdfast(pool, "key", "random", "8", "--output", "json").json["value"])) == 8
    assert "BadParameter" in holdfast(pool, "key", "random", "1000000", code=FAILED).err


# --- roles


def test_roles_are_listed(pool):
    listed = holdfast(pool, "role", "list").json["value"]
    principals = {item["properties"]["principalId"] for item in listed}
    assert principals >= {pool.object_id("app"), pool.object_id("admin")}
    table = rows(holdfast(pool, "role", "list", "--output", "table").out)
    by_principal = {row["PRINCIPAL"]: row for row in table}
    app = by_principal[f"{pool.object_id('app')} (app)"]
    assert (app["ROLE"], app["SCOPE"]) == ("Managed HSM Crypto User", "/")
    assert holdfast(pool, "role", "list", "--scope", "/keys").json["value"] == []
    definitions = holdfast(pool, "role", "definitions").json["value"]
    table = rows(holdfast(pool, "role", "definitions", "--output", "table").out)
    assert len(table) == len(definitions) >= 9
    auditor = next(row for row in table if row["ROLE"] == "Managed HSM Crypto Auditor")
    assert "keys/read" in auditor["ALLOWS"].split() and "keys/sign" not in auditor["ALLOWS"].split()


def test_the_command_that_explain_names_helps(pool, keys):
    scope, principal = f"/keys/{keys['ec']}", pool.object_id("admin")
    ask = ["role", "explain", "--principal", "admin", "--action", "sign", "--scope", scope]
    said = holdfast(pool, *ask, "--output", "table", code=NOT_FOUND_OR_ALLOWED).out
    assert said.startswith(f"not allowed: Microsoft.KeyVault/managedHsm/keys/sign/action at {scope}")
    assert "holds Managed HSM Administrator at /" in said
    command = re.search(r"^ +(holdfast role assign .*)$", said, re.MULTILINE).group(1)
    in_json = holdfast(pool, *ask, code=NOT_FOUND_OR_ALLOWED).json
    assert (in_json["allowed"], in_json["principalId"]) == (False, principal)
    assert in_json["wouldHelp"]["roleName"] == "Managed HSM Crypto User"
    sign = ["key", "sign", keys["ec"], "--alg", "ES256", "--as", "admin"]
    holdfast(pool, *sign, stdin=b"m", code=NOT_FOUND_OR_ALLOWED)
    assigned = holdfast(pool, *shlex.split(command)[1:], "--output", "table").out
    id = re.fullmatch(r"assigned, as (\S+)\n", assigned).group(1)
    try:
        assert id in holdfast(pool, *ask, "--output", "table").out
        assert holdfast(pool, *ask).json["allowedBy"][0]["id"] == id
        holdfast(pool, *sign, stdin=b"m")
    finally:
        holdfast(pool, "role", "remove", "--id", id, "--scope", scope)
    holdfast(pool, *ask, code=NOT_FOUND_OR_ALLOWED)
    holdfast(pool, *sign, stdin=b"m", code=NOT_FOUND_OR_ALLOWED)
    holdfast(pool, "role", "remove", "--id", id, "--scope", scope, code=NOT_FOUND_OR_ALLOWED)


def test_explain_looks_at_every_scope_above_and_at_groups(pool, keys):
    someone, group = str(uuid.uuid4()), str(uuid.uuid4())
    scope = f"/keys/{keys['ec']}"
    made = []
    for principal, role, where in ((someone, "crypto auditor", "/keys"), (group, "Crypto User", scope)):
        words = ["--principal", principal, "--role", role, "--scope", where]
        made.append((holdfast(pool, "role", "assign", *words).json["name"], where))
    try:
        ask = ["role", "explain", "--principal", someone, "--scope", scope]
        assert "at /keys" in holdfast(pool, *ask, "--action", "KEYS/READ/ACTION", "--output", "table").out
        holdfast(pool, *ask, "--action", "sign", code=NOT_FOUND_OR_ALLOWED)
        through = holdfast(pool, *ask, "--action", "sign", "--group", group, "--output", "table").out
        assert f"through group {group}" in through
        elsewhere = ["role", "explain", "--principal", someone, "--scope", "/keys/other", "--group", group]
        holdfast(pool, *elsewhere, "--action", "sign", code=NOT_FOUND_OR_ALLOWED)
        holdfast(pool, *elsewhere, "--action", "read")
    finally:
        for id, where in made:
            holdfast(pool, "role", "remove", "--id", id, "--scope", where)


def test_a_role_of_ones_own(pool, keys):
    name, someone = fresh_name("Signers of"), str(uuid.uuid4())
    define = ["role", "define", name, "--allow", "sign,keys/verify/action", "--description", "d"]
    made = holdfast(pool, *define).json
    id = made["name"]
    assert made["properties"]["permissions"][0]["dataActions"] == [
        "Microsoft.KeyVault/managedHsm/keys/sign/action",
        "Microsoft.KeyVault/managedHsm/keys/verify/action",
    ]
    table = rows(holdfast(pool, "role", "definitions", "--output", "table").out)
    assert {"ROLE": name, "ID": id, "TYPE": "custom", "ALLOWS": "keys/sign keys/verify"} in table
    scope = f"/keys/{keys['ec']}"
    ask = ["role", "explain", "--principal", someone, "--action", "sign", "--scope", scope]
    # It has fewer rights than any built-in role that may sign.
    assert holdfast(pool, *ask, code=NOT_FOUND_OR_ALLOWED).json["wouldHelp"]["roleName"] == name
    words = ["role", "assign", "--principal", someone, "--role", name, "--scope", scope]
    assignment = holdfast(pool, *words).json["name"]
    assert f"by {name} at {scope}" in holdfast(pool, *ask, "--output", "table").out
    holdfast(pool, "role", "define", name, "--allow", "verify", "--id", id)
    holdfast(pool, *ask, code=NOT_FOUND_OR_ALLOWED)
    assert id in holdfast(pool, "role", "undefine", "--id", id, "--output", "table").out
    said = holdfast(pool, *ask, "--output", "table", code=NOT_FOUND_OR_ALLOWED).out
    assert f"holds {id} (no such role)" in said
    listed = rows(holdfast(pool, "role", "list", "--scope", scope, "--output", "table").out)
    assert [row["ROLE"] for row in listed] == [f"{id} (no such role)"]
    holdfast(pool, "role", "remove", "--id", assignment, "--scope", scope)
    holdfast(pool, "role", "undefine", "--id", id, code=NOT_FOUND_OR_ALLOWED)
    built_in = "a290e904-7015-4bba-90c8-60543313cdb4"
    assert "RoleIsBuiltIn" in holdfast(
        pool, "role", "define", "x", "--allow", "sign", "--id", built_in, code=NOT_FOUND_OR_ALLOWED
    ).err
    holdfast(pool, "role", "define", "x", "--allow", "fly", code=USAGE)


def test_roles_that_make_no_sense(pool):
    assign = ["role", "assign", "--principal", "app", "--scope", "/"]
    assert "Managed HSM Crypto User" in holdfast(pool, *assign, "--role", "King", code=USAGE).err
    assert "admin, app" in holdfast(
        pool, "role", "assign", "--principal", "x", "--role", "Backup", "--scope", "/", code=USAGE
    ).err
    holdfast(pool, "role", "list", "--scope", "/secrets", code=USAGE)
    unknown = ["role", "explain", "--principal", "app", "--action", "fly", "--scope", "/"]
    assert "keys/sign" in holdfast(pool, *unknown, code=USAGE).err
    unknown = holdfast(pool, *assign, "--role", str(uuid.uuid4()), code=NOT_FOUND_OR_ALLOWED)
    assert "RoleDefinitionNotFound" in unknown.err
    denied = holdfast(pool, *assign, "--role", "Backup", "--as", "app", code=NOT_FOUND_OR_ALLOWED)
    assert "roleAssignments/write/action" in denied.err


# --- tokens and settings


def test_tokens_are_withdrawn(own_pool):
    own_pool.start()
    key = own_pool.create("ec")
    stolen = own_pool.token("app")
    assert own_pool.call("GET", key_path(key), token=stolen).status == 200
    assert holdfast(own_pool, "token", "list").json["value"] == []
    holdfast(own_pool, "token", "withdraw", "--principal", "app")
    assert own_pool.call("GET", key_path(key), token=stolen).status == 401
    (row,) = rows(holdfast(own_pool, "token", "list", "--output", "table").out)
    assert row["PRINCIPAL"] == f"{own_pool.object_id('app')} (app)"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["WITHDRAWN UP TO"])
    words = ["token", "withdraw", "--principal", own_pool.object_id("app"), "--until", "2020-01-31"]
    # What was withdrawn stays so.
    assert "2020-01-31T00:00:00Z" not in holdfast(own_pool, *words, "--output", "table").out
    assert own_pool.call("GET", key_path(key), token=stolen).status == 401
    future = ["token", "withdraw", "--principal", "app", "--until", "+1h"]
    assert "future" in holdfast(own_pool, *future, code=FAILED).err
    restore = ["token", "restore", "--principal", "app"]
    assert holdfast(own_pool, *restore, "--output", "table").out == "restored\n"
    gone = holdfast(own_pool, *restore, code=NOT_FOUND_OR_ALLOWED)
    assert "holdfast token list" in gone.err
    assert "2020-01-31T00:00:00Z" in holdfast(own_pool, *words, "--output", "table").out
    # It was issued after that.
    assert own_pool.call("GET", key_path(key), token=stolen).status == 200
    denied = ["token", "withdraw", "--principal", "admin", "--as", "app"]
    holdfast(own_pool, *denied, code=NOT_FOUND_OR_ALLOWED)
    own_pool.stop()


def test_settings(own_pool):
    own_pool.start()
    name = "HoldfastAllowRsa15Decryption"
    listed = holdfast(own_pool, "setting", "list").json["settings"]
    assert {"name": name, "value": "true", "type": "boolean"} in listed
    table = rows(holdfast(own_pool, "setting", "list", "--output", "table").out)
    assert {"NAME": name, "VALUE": "true"} in table and len(table) == len(listed)
    key = own_pool.create("rsa")["key"]["kid"].split("/")[4]
    document = holdfast(own_pool, "key", "encrypt", key, "--alg", "RSA1_5", stdin=b"plain").bytes
    assert report(own_pool)["RSA1_5"]["state"] == "weak"
    # As doctor says it.
    remedy = re.match(r"holdfast (setting set \w+ false)", report(own_pool)["RSA1_5"]["remedy"])
    assert holdfast(own_pool, *remedy.group(1).split()).json["value"] == "false"
    assert rows(holdfast(own_pool, "setting", "show", name, "--output", "table").out) == [
        {"NAME": name, "VALUE": "false"}
    ]
    assert report(own_pool)["RSA1_5"]["state"] == "ok"
    refused = holdfast(own_pool, "key", "decrypt", key, stdin=document, code=NOT_FOUND_OR_ALLOWED)
    assert "AlgorithmTurnedOff" in refused.err
    block = own_pool.create("oct")["key"]["kid"].split("/")[4]
    cbc = ("key", "encrypt", block, "--alg", "A256CBCPAD")
    holdfast(own_pool, *cbc, stdin=b"plain")
    assert report(own_pool)["CBC"]["state"] == "weak"
    remedy = re.match(r"holdfast (setting set \w+ false)", report(own_pool)["CBC"]["remedy"])
    assert holdfast(own_pool, *remedy.group(1).split()).json["value"] == "false"
    assert report(own_pool)["CBC"]["state"] == "ok"
    refused = holdfast(own_pool, *cbc, stdin=b"plain", code=NOT_FOUND_OR_ALLOWED)
    assert "AlgorithmTurnedOff" in refused.err
    refused = holdfast(own_pool, "setting", "set", name, "perhaps", code=FAILED)
    assert "must be" in refused.err
    unknown = holdfast(own_pool, "setting", "set", "no/such", "true", code=NOT_FOUND_OR_ALLOWED)
    assert "SettingNotFound" in unknown.err and "holdfast setting list" in unknown.err
    holdfast(own_pool, "setting", "set", name, "true", "--as", "app", code=NOT_FOUND_OR_ALLOWED)
    own_pool.stop()


# --- errors, and where the target comes from


def test_an_error_says_what_the_service_said_and_its_number(pool):
    name = fresh_name("absent")
    done = holdfast(pool, "key", "show", name, code=NOT_FOUND_OR_ALLOWED)
    said = assert_error(pool.call("GET", f"/keys/{name}"), 404, "KeyNotFound")
    assert f"holdfast: KeyNotFound: {said}\n" in done.err
    request_id = re.search(r"request id (\S+)", done.err).group(1)
    assert any(event["holdfast"]["requestId"] == request_id for event in pool.audit())
    assert "holdfast key list" in done.err
    assert done.out == ""


def test_one_command_is_one_correlation_in_the_log(pool, keys):
    before = len(pool.audit())
    ask = ["role", "explain", "--principal", "app", "--action", "sign"]
    holdfast(pool, *ask, "--scope", f"/keys/{keys['ec']}")
    events = [event for event in pool.audit() if event["holdfast"]["index"] >= before]
    assert len(events) >= 4
    assert len({event["correlationId"] for event in events}) == 1
    assert {event["clientInfo"].split("/")[0] for event in events} == {"holdfast"}


def test_by_the_environment_as_the_sdks_tests(pool, keys):
    names = ("MHSM_URL", "AUTHORITY_HOST", "TENANT_ID", "REQUESTS_CA_BUNDLE")
    variables = {name: pool.variables[name] for name in names}
    for principal in ("APP", "ADMIN"):
        for what in ("CLIENT_ID", "CLIENT_SECRET", "OBJECT_ID"):
            name = f"HOLDFAST_{principal}_{what}"
            variables[name] = pool.variables[name]
    # Nothing may come from a data directory.
    variables["HOLDFAST_DATA"] = "/nonexistent"
    shown = holdfast(pool, "key", "show", keys["ec"], environment=variables, data=False).json
    assert shown["key"]["kid"].startswith(variables["MHSM_URL"] + "/")
    holdfast(pool, "role", "list", environment=variables, data=False)
    by_address = {**variables, "HOLDFAST_POOL_URL_IP": pool.variables["HOLDFAST_POOL_URL_IP"]}
    del by_address["MHSM_URL"]
    shown = holdfast(pool, "key", "show", keys["ec"], environment=by_address, data=False).json
    assert shown["key"]["kid"].startswith(f"https://127.0.0.1:{pool.port}/")
    del variables["HOLDFAST_APP_CLIENT_SECRET"]
    partly = holdfast(pool, "key", "show", keys["ec"], environment=variables, data=False, code=USAGE)
    assert "HOLDFAST_APP_CLIENT_SECRET is not set" in partly.err
    nothing = {"HOLDFAST_DATA": "/nonexistent"}
    none = holdfast(pool, "key", "list", environment=nothing, data=False, code=FAILED)
    assert "/nonexistent" in none.err and "--url" in none.err


def explicit(pool, **changes):
    options = {
        "url": pool.variables["MHSM_URL"],
        "authority": pool.variables["AUTHORITY_HOST"],
        "tenant": pool.variables["TENANT_ID"],
        "client-id": pool.variables["CLIENT_ID"],
        "ca-file": pool.ca_file,
        **changes,
    }
    return [word for name, value in options.items() if value for word in (f"--{name}", str(value))]


def test_by_explicit_options(pool, keys, tmp_path):
    secret = {"HOLDFAST_CLIENT_SECRET": pool.variables["CLIENT_SECRET"]}
    show = ["key", "show", keys["ec"]]
    holdfast(pool, *show, *explicit(pool), environment=secret, data=False)
    path = tmp_path / "secret"
    path.write_text(pool.variables["CLIENT_SECRET"] + "\n")
    holdfast(pool, *show, *explicit(pool), "--client-secret-file", str(path), data=False)
    missing = holdfast(pool, *show, *explicit(pool), data=False, code=USAGE)
    assert "HOLDFAST_CLIENT_SECRET" in missing.err
    without = explicit(pool, authority=None)
    partly = holdfast(pool, *show, *without, environment=secret, data=False, code=USAGE)
    assert "--authority" in partly.err
    wrong = holdfast(
        pool, *show, *explicit(pool), environment={"HOLDFAST_CLIENT_SECRET": "wrong"}, data=False, code=FAILED
    )
    assert "AADSTS7000215" in wrong.err
    other = holdfast(
        pool, *show, *explicit(pool, tenant="other"), environment=secret, data=False, code=FAILED
    )
    assert "tenant" in other.err
    plain = explicit(pool, url=f"http://127.0.0.1:{pool.port}")
    assert "https://" in holdfast(pool, *show, *plain, environment=secret, data=False, code=USAGE).err


def test_a_server_that_is_not_there_or_not_ours(pool, tmp_path, hostile):
    secret = {"HOLDFAST_CLIENT_SECRET": pool.variables["CLIENT_SECRET"]}
    show = ["key", "show", "k"]
    nowhere = explicit(pool, url="https://127.0.0.1:1")
    done = holdfast(pool, *show, *nowhere, environment=secret, data=False, code=FAILED)
    assert "cannot reach https://127.0.0.1:1" in done.err and "holdfast quickstart" in done.err
    # The pool's own CA did not sign that server's certificate.
    foreign = explicit(pool, url=hostile.url)
    done = holdfast(pool, *show, *foreign, environment=secret, data=False, code=FAILED)
    assert "is not trusted" in done.err and pool.ca_file in done.err
    assert hostile.requests == []
    for content in ("", "nonsense"):
        path = tmp_path / "ca.pem"
        path.write_text(content)
        empty = explicit(pool, **{"ca-file": path})
        assert str(path) in holdfast(pool, *show, *empty, environment=secret, data=False, code=FAILED).err


def test_a_terminal_gets_a_table_and_a_program_json(pool, keys):
    assert fields(at_a_terminal(pool, "key", "show", keys["ec"]))["name"] == keys["ec"]
    assert holdfast(pool, "key", "show", keys["ec"]).json["key"]["kty"] == "EC-HSM"


# --- a server that means harm


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A CA of the tests' own and a certificate for this machine."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509.oid import NameOID

    directory = tmp_path_factory.mktemp("hostile")
    now = datetime.datetime.now(datetime.timezone.utc)

    def certificate(name, key, issuer, issuer_key, *extensions):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(issuer_key, hashes.SHA256())

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = certificate("hostile CA", ca_key, None, ca_key, (x509.BasicConstraints(True, 0), True))
    names = [x509.DNSName(name) for name in ("localhost", "*.hsm.localhost")]
    names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    leaf = certificate("hostile", key, ca.subject, ca_key, (x509.SubjectAlternativeName(names), False))
    pem = serialization.Encoding.PEM
    (directory / "ca.pem").write_bytes(ca.public_bytes(pem))
    (directory / "leaf.pem").write_bytes(leaf.public_bytes(pem))
    (directory / "leaf.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return directory


@pytest.fixture
def hostile(certificates):
    """Answers what a test tells it to, and keeps what it was sent."""
    import http.server
    import ssl

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.server.requests.append((self.command, self.path, self.headers, body))
            status, headers, content = self.server.script(self)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            try:
                self.wfile.write(content)
            except OSError:
                self.close_connection = True

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, *_):
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "leaf.pem", certificates / "leaf.key")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    # In the thread of its connection: a handshake that fails must not end the server.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None
    server.requests, server.script = [], lambda _: (500, {}, b"")
    server.ca = certificates / "ca.pem"
    server.port = server.server_address[1]
    server.url = f"https://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


SECRET = "s3cret-of-the-client"


def call_hostile(hostile, pool, *words, code=FAILED, name=None):
    options = {
        "url": f"https://{name}:{hostile.port}" if name else hostile.url,
        "authority": hostile.url,
        "tenant": "t",
        "client-id": "c",
        "ca-file": hostile.ca,
    }
    words += tuple(word for option, value in options.items() for word in (f"--{option}", str(value)))
    done = holdfast(
        pool, *words, code=code, environment={"HOLDFAST_CLIENT_SECRET": SECRET}, data=False
    )
    assert SECRET not in done.out + done.err and "the-token" not in done.out + done.err
    return done


def challenge(resource="https://hsm.localhost", tenant="t"):
    authority = f"https://login.example/{tenant}"
    return {"WWW-Authenticate": f'Bearer authorization="{authority}", resource="{resource}"'}


def pretending(answer, resource="https://hsm.localhost"):
    """A pool's manners, then `answer` to whoever has a token."""

    def script(request):
        if request.path.endswith("/oauth2/v2.0/token"):
            return 200, {}, json.dumps({"access_token": "the-token", "token_type": "Bearer"}).encode()
        if "Authorization" not in request.headers:
            return 401, challenge(resource), b"{}"
        return answer(request)

    return script


def test_the_first_request_carries_neither_token_nor_body(hostile, pool):
    hostile.script = pretending(lambda _: (200, {}, b'{"kid":"k","value":"AA"}'))
    words = ["key", "sign", "k", "--alg", "ES256", "--digest", b64(bytes(32))]
    assert call_hostile(hostile, pool, *words, code=0).out == "AA\n"
    (first, login, second) = hostile.requests
    assert (first[0], first[3]) == ("POST", b"") and "Authorization" not in first[2]
    assert first[2]["Content-Length"] == "0"
    form = login[3].decode()
    assert "scope=https%3A%2F%2Fhsm%2Elocalhost%2F%2Edefault" in form and "client_secret=s3cret" in form
    assert "Authorization" not in login[2]
    assert second[2]["Authorization"] == "Bearer the-token" and json.loads(second[3])["alg"] == "ES256"


def test_no_token_is_fetched_for_what_is_not_the_pools(hostile, pool):
    for resource, name in (
        ("https://vault.azure.net", "a.hsm.localhost"),
        ("https://other.localhost", "a.hsm.localhost"),
        ("https://a.hsm.localhost", "a.hsm.localhost"),
        ("http://hsm.localhost", "a.hsm.localhost"),
        ("nonsense", "a.hsm.localhost"),
    ):
        hostile.requests.clear()
        hostile.script = pretending(lambda _: (200, {}, b"{}"), resource)
        done = call_hostile(hostile, pool, "key", "show", "k", name=name)
        assert "asks for a token" in done.err, done
        assert len(hostile.requests) == 1, "nobody was asked for a token"
    hostile.script = lambda _: (401, challenge(tenant="theirs"), b"{}")
    assert "tenant theirs" in call_hostile(hostile, pool, "key", "show", "k").err
    for header in ({}, {"WWW-Authenticate": "Basic realm=x"}, {"WWW-Authenticate": "Bearer"}):
        hostile.requests.clear()
        hostile.script = lambda _, header=header: (401, header, b"{}")
        assert "without saying which" in call_hostile(hostile, pool, "key", "show", "k").err
        assert len(hostile.requests) == 1


def test_a_refused_token_is_the_end(hostile, pool):
    def script(request):
        if request.path.endswith("/token"):
            return pretending(None)(request)
        return 401, challenge(), b'{"error":{"code":"Unauthorized","message":"No good."}}'

    hostile.script = script
    assert "Unauthorized: No good." in call_hostile(hostile, pool, "key", "show", "k").err
    assert len(hostile.requests) == 3, "one challenge, one token, one more try"


def test_links_to_another_server_are_not_followed(hostile, pool):
    for link in (
        "https://evil.example/keys",
        f"http://127.0.0.1:{hostile.port}/keys",
        f"https://127.0.0.1:{hostile.port}@evil.example/keys",
        f"https://localhost:{hostile.port}/keys",
        "/keys?page=2",
    ):
        hostile.requests.clear()
        page = json.dumps({"value": [], "nextLink": link}).encode()
        hostile.script = pretending(lambda _, page=page: (200, {}, page))
        assert "not followed" in call_hostile(hostile, pool, "key", "list").err
        assert len(hostile.requests) == 3


def test_pages_are_followed_at_the_same_server(hostile, pool):
    def answer(request):
        number = int(request.path.partition("page=")[2] or 0)
        link = f"{hostile.url}/keys?page={number + 1}" if number < 3 else None
        items = [{"kid": f"{hostile.url}/keys/k{number}", "attributes": {}}] if number != 1 else []
        return 200, {}, json.dumps({"value": items, "nextLink": link}).encode()

    hostile.script = pretending(answer)
    done = call_hostile(hostile, pool, "key", "list", "--output", "table", code=0)
    assert [row["NAME"] for row in rows(done.out)] == ["k0", "k2", "k3"], "an empty page is not the end"


@pytest.mark.parametrize(
    "answer, said",
    [
        ((200, {}, b"x" * (5 << 20)), "more than"),
        ((200, {}, b"<html>"), "not a list"),
        ((200, {}, b'{"value":7}'), "not a list"),
        ((200, {}, b""), "not a list"),
        ((302, {"Location": "https://evil.example/"}, b""), "302 Found"),
        ((502, {}, b"<html>"), "502 Bad Gateway"),
        ((503, {"Retry-After": "7"}, b'{"error":{"code":"Busy","message":"Full."}}'), "try again in 7 s"),
        ((400, {}, b'{"error":{"code":"Bad\\u001b[2J","message":"\\u001b]0;x\\u0007"}}'), "Bad\\u{1b}[2J"),
    ],
    ids=["endless", "html", "no list", "nothing", "redirect", "gateway", "busy", "control characters"],
)
def test_whatever_is_answered_is_said_and_bounded(hostile, pool, answer, said):
    hostile.script = pretending(lambda _: answer)
    done = call_hostile(hostile, pool, "key", "list")
    assert said in done.err and "\x1b" not in done.err, done


def test_a_server_that_closes_after_each_answer_is_called_again(hostile, pool):
    answered = pretending(lambda _: (200, {}, b'{"value":"AA"}'))

    def script(request):
        status, headers, content = answered(request)
        return status, {**headers, "Connection": "close"}, content

    hostile.script = script
    assert call_hostile(hostile, pool, "key", "random", "1", code=0).out == "AA\n"
    assert len(hostile.requests) == 3


def test_who_does_not_ask_for_a_token_is_no_pool(hostile, pool):
    hostile.script = lambda _: (200, {}, b'{"value":"AA"}')
    plaintext = b"to nobody's eyes"
    done = holdfast(
        pool,
        *["key", "encrypt", "k", "--alg", "RSA-OAEP-256", "--url", hostile.url, "--authority", hostile.url],
        *["--tenant", "t", "--client-id", "c", "--ca-file", str(hostile.ca)],
        stdin=plaintext,
        environment={"HOLDFAST_CLIENT_SECRET": SECRET},
        data=False,
        code=FAILED,
    )
    assert "no pool" in done.err
    assert all(b64(plaintext).encode() not in body for *_, body in hostile.requests)


# --- doctor


def report(pool, *words, code=0):
    findings = holdfast(pool, "doctor", *words, "--output", "json", code=code).json["findings"]
    assert len({finding["check"] for finding in findings}) == len(findings)
    for finding in findings:
        assert finding["found"], finding
        if finding["state"] in ("weak", "missing"):
            assert finding["why"] and finding["remedy"], finding
    return {finding["check"]: finding for finding in findings}


def test_doctor_says_what_protects_and_what_does_not(pool, keys):
    ending = fresh_name("ending")
    holdfast(pool, "key", "create", ending, "--type", "rsa", "--ops", "wrapKey,unwrapKey", "--expires", "+7d")
    found = report(pool)
    states = {check: finding["state"] for check, finding in found.items()}
    for check in ("service", "retention", "audit durability", "core files and debuggers", "gain of rights"):
        assert states[check] == "ok", found[check]
    for check in ("audit log", "modes and owners", "certificate of the CA", "certificate of the pool", "clock"):
        assert states[check] == "ok", found[check]
    for check in ("class", "root of trust", "purge protection", "identity issuer", "certificate authority"):
        assert states[check] == "weak", found[check]
    for check in ("clients' secrets", "managed identity", "conformance principal", "RSA1_5", "CBC", "expiry of keys"):
        assert states[check] == "weak", found[check]
    assert states["security domain"] == "weak" and "3 of its holders' keys" in found["security domain"]["found"]
    for check in ("backup", "rollback", "live root"):
        assert states[check] == "missing", found[check]
    assert str(pool.process.pid) in found["service"]["found"]
    assert "undetected" in found["rollback"]["found"]
    assert f"within 30 days: {ending}" in found["expiry of keys"]["found"]
    uses = found["what keys are for"]["found"]
    assert re.search(rf"sops: needs encrypt and decrypt, not with .*{ending}", uses)
    holdfast(pool, "doctor", "--strict", code=FAILED)
    text = holdfast(pool, "doctor", "--output", "table").out
    assert re.search(r"^missing  rollback: undetected", text, re.MULTILINE)
    assert max(len(line) for line in text.splitlines() if str(pool.data) not in line) <= 100
    # Who may not read keys is told so, and all else is the same.
    other = report(pool, "--as", "admin")
    assert other["keys"]["state"] == "unknown" and "admin" in other["keys"]["found"]
    assert other["CBC"]["state"] == "weak"


def test_doctor_sees_what_others_could_read(own_pool):
    own_pool.start()
    path = own_pool.data / "root" / "root.key"
    path.chmod(0o644)
    found = report(own_pool)["modes and owners"]
    assert found["state"] == "weak" and f"{path} has mode 644" in found["found"]
    path.chmod(0o600)
    assert report(own_pool)["modes and owners"]["state"] == "ok"
    own_pool.stop()


def test_doctor_sees_a_key_that_cannot_rotate(own_pool):
    own_pool.data.mkdir(mode=0o700)
    (own_pool.data / "pool.toml").write_text("[limits]\nversions_per_key = 2\n")
    own_pool.start()
    full, young = fresh_name("full"), fresh_name("young")
    for name in (full, young, full):
        own_pool.create("ec", name)
    found = report(own_pool)["versions of keys"]
    assert (found["state"], found["found"]) == ("weak", f"at the limit of 2: {full}")
    assert_error(own_pool.call("POST", f"/keys/{full}/rotate"), 400)
    own_pool.stop()


def test_doctor_sees_a_flipped_bit_in_the_log(own_pool):
    own_pool.start()
    own_pool.create("ec")
    assert report(own_pool)["audit log"]["state"] == "ok"
    own_pool.stop()
    segment = own_pool.data / "pool" / "audit" / "segment-00000000.log"
    content = bytearray(segment.read_bytes())
    content[len(content.rstrip(b"\0")) // 2] ^= 1
    segment.write_bytes(content)
    found = report(own_pool)["audit log"]
    assert found["state"] == "weak" and "audit verify" in found["remedy"], found


def test_doctor_of_a_pool_that_does_not_run(own_pool):
    own_pool.start()
    own_pool.stop()
    found = report(own_pool)
    assert found["service"]["state"] == "missing"
    assert "quickstart --detach" in found["service"]["remedy"]
    for check in ("class", "purge protection", "memory of the process", "keys"):
        assert found[check]["state"] == "unknown", found[check]
    assert found["modes and owners"]["state"] == "ok"
    assert found["rollback"]["state"] == "missing"
    holdfast(own_pool, "doctor", "--strict", code=FAILED)


def test_doctor_where_there_is_nothing_to_look_at(own_pool):
    nothing = holdfast(own_pool, "doctor", code=FAILED)
    assert "there is no quickstart" in nothing.err and not nothing.out
    own_pool.start()
    assert own_pool.variables
    own_pool.stop()
    settings = own_pool.data / "quickstart.json"
    kept = settings.rename(own_pool.data / "kept")
    settings.mkdir()
    unreadable = holdfast(own_pool, "doctor", code=FAILED)
    assert f"cannot read what is in {own_pool.data}" in unreadable.err
    assert unreadable.err == holdfast(own_pool, "key", "list", code=FAILED).err
    settings.rmdir()
    kept.rename(settings)
    (own_pool.data / "identity" / "principals.json").write_text("{")
    damaged = holdfast(own_pool, "doctor", code=FAILED)
    assert "principals.json is damaged" in damaged.err

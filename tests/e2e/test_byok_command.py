"""`holdfast byok` and `holdfast key import`: a key of somebody's own is wrapped where it is and brought in (by the Azure CLI:
test_az.py); what is wrong with a wrapped key is said without a private key."""

import json
import subprocess

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from holdfast import b64, fresh_name, key_path, unb64
from test_byok import Kek, pkcs8
from test_cli import FAILED, USAGE, holdfast
from test_import import CURVES, digest_of, ec_members

PASSPHRASE = "correct horse battery"


@pytest.fixture(scope="module")
def kek(pool):
    return Kek(pool)


@pytest.fixture
def kek_pem(kek, tmp_path):
    path = tmp_path / "kek.pem"
    path.write_bytes(kek.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def offline(pool, *words, code=0):
    """A command that asks no pool: without a data directory or a network that it could use."""
    return holdfast(pool, *map(str, words), code=code, data=False, environment={"HOME": "/nowhere"})


def pem_file(directory, private, passphrase=None, form=PrivateFormat.PKCS8):
    path = directory / f"{fresh_name()}.pem"
    encryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    path.write_bytes(private.private_bytes(Encoding.PEM, form, encryption))
    return path


def signs(pool, bundle, private):
    """The pool's key is the private key."""
    if isinstance(private, rsa.RSAPrivateKey):
        digest = digest_of(hashes.SHA256())
        signed = pool.call("POST", f"{key_path(bundle)}/sign", {"alg": "PS256", "value": b64(digest)})
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
        private.public_key().verify(unb64(signed.json["value"]), digest, pss, utils.Prehashed(hashes.SHA256()))
        return
    _, algorithm, signing, length = CURVES[bundle["key"]["crv"]]
    digest = digest_of(algorithm)
    signed = pool.call("POST", f"{key_path(bundle)}/sign", {"alg": signing.value, "value": b64(digest)})
    r, s = (int.from_bytes(half, "big") for half in (unb64(signed.json["value"])[:length], unb64(signed.json["value"])[length:]))
    private.public_key().verify(utils.encode_dss_signature(r, s), digest, ec.ECDSA(utils.Prehashed(algorithm)))


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_ec_keys_come_in_wrapped(pool, kek, kek_pem, tmp_path, curve, form):
    private = ec.generate_private_key(CURVES[curve][0])
    wrapped, name = tmp_path / "ec.byok", fresh_name("byok")
    source = ["--pem", pem_file(tmp_path, private, form=form)]
    offline(pool, "byok", "pack", *source, "--kek", kek_pem, "--kid", kek.kid, "--out", wrapped)
    assert wrapped.stat().st_mode & 0o777 == 0o600
    checked = offline(pool, "byok", "check", wrapped, "--kek", kek_pem, "--kid", kek.kid)
    assert "an EC key, by the length" in checked.out and "NO PROBLEM" in checked.out
    words = ["--byok-file", str(wrapped), "--type", "EC-HSM", "--curve", curve, "--output", "json"]
    signs(pool, holdfast(pool, "key", "import", name, *words).json, private)


def test_a_symmetric_key_comes_in_wrapped_and_as_it_is(pool, kek, kek_pem, tmp_path):
    raw, wrapped = tmp_path / "raw.key", tmp_path / "raw.byok"
    raw.write_bytes(bytes(range(200, 232)))
    offline(pool, "byok", "pack", "--raw", raw, "--kek", kek_pem, "--kid", kek.kid, "--out", wrapped)
    names = fresh_name("byok"), fresh_name("raw")
    options = ["--ops", "wrapKey,unwrapKey", "--tag", "a=b", "--expires", "+90d", "--output", "json"]
    first = holdfast(
        pool, "key", "import", names[0], "--byok-file", str(wrapped), "--type", "oct-HSM", *options
    ).json
    second = holdfast(pool, "key", "import", names[1], "--raw", str(raw), "--disabled", *options).json
    for bundle in (first, second):
        assert bundle["key"]["key_ops"] == ["wrapKey", "unwrapKey"] and bundle["tags"] == {"a": "b"}
        assert "exp" in bundle["attributes"] and "k" not in bundle["key"]
    assert (first["attributes"]["enabled"], second["attributes"]["enabled"]) == (True, False)
    assert pool.call("PATCH", key_path(second), {"attributes": {"enabled": True}}).status == 200
    value = {"alg": "A256KW", "value": b64(bytes(16))}
    wrappings = {pool.call("POST", f"{key_path(bundle)}/wrapkey", value).json["value"] for bundle in (first, second)}
    assert len(wrappings) == 1, "the same key wraps the same"


def test_private_keys_come_in_from_every_form_of_file(pool, tmp_path):
    on_p384, of_rsa = ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)
    passphrase = tmp_path / "passphrase"
    passphrase.write_text(PASSPHRASE + "\n")

    def imported(*words):
        return holdfast(pool, "key", "import", fresh_name("in"), *map(str, words), "--output", "json").json

    for private in (on_p384, of_rsa):
        for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
            signs(pool, imported("--pem", pem_file(tmp_path, private, form=form)), private)
        encrypted = pem_file(tmp_path, private, PASSPHRASE)
        signs(pool, imported("--pem", encrypted, "--passphrase-file", passphrase), private)
    jwk = tmp_path / "jwk.json"
    members = {name: b64(value) for name, value in ec_members(on_p384).items()}
    jwk.write_text(json.dumps({"kty": "EC", "crv": "P-384", "key_ops": ["sign"], **members}, indent=1) + "\n")
    bundle = imported("--jwk", jwk)
    assert bundle["key"]["key_ops"] == ["sign"]
    signs(pool, bundle, on_p384)


def test_a_key_is_wrapped_for_one_that_its_owner_vouches_for_and_for_no_other(pool, kek, kek_pem, tmp_path):
    """Who hands over a key-exchange key of their own reads what is wrapped for it."""
    name, version = kek.kid.rsplit("/", 2)[1:]
    attested, owner = tmp_path / "kek.json", pool.data / "pool" / "owner.pem"
    holdfast(pool, "attest", "get", name, "--version", version, "--out", str(attested))
    raw, wrapped = tmp_path / "raw.key", tmp_path / "raw.byok"
    raw.write_bytes(bytes(range(32)))

    def pack(file, *words, code=0):
        done = offline(pool, "byok", "pack", "--raw", raw, "--kek", file, "--out", wrapped, *words, code=code)
        assert wrapped.exists() == (code == 0)
        wrapped.unlink(missing_ok=True)
        return done

    genuine = json.loads(attested.read_text())
    pool_id = offline(pool, "attest", "verify", attested, "--owner-key", owner, "--output", "json").json
    [pool_id] = [claim["value"] for claim in pool_id["claims"] if claim["claim"] == "pool"]
    assert f"proven        made in pool {pool_id}" in pack(attested, "--owner-key", owner).out
    assert "NOT PROVEN    where that key was made" in pack(attested).out
    assert "NOT PROVEN" in pack(kek_pem, "--kid", kek.kid).out

    numbers = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
    forged = {"n": b64(numbers.n.to_bytes(256, "big")), "e": b64(b"\1\0\1")}
    members = genuine["attributes"]["attestation"]
    signer = pool.create("rsa", key_ops=["sign"])["key"]["kid"].rsplit("/", 2)[1:]
    signing = holdfast(pool, "attest", "get", signer[0]).json
    signing["key"]["key_ops"] = ["import"]
    other_owner = tmp_path / "other.pem"
    other_owner.write_bytes(
        ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    other_version = kek.kid[:-32] + "0" * 32
    for file, words, said in [
        # A key of the forger's, in place of the attested one or beside an attestation that stands alone.
        ({**genuine, "key": {**genuine["key"], **forged}}, [], "public key"),
        ({**members, "kty": "RSA-HSM", "kid": kek.kid, **forged}, [], "public key"),
        (signing, [], "key_ops sign"),
        ({**genuine, "key": {**genuine["key"], "kid": other_version}}, [], "version"),
        ({"key": genuine["key"]}, [], "no key attestation"),
        (genuine, ["--owner-key", other_owner], "owner"),
    ]:
        bent = tmp_path / "bent.json"
        bent.write_text(json.dumps(file))
        refused = pack(bent, *(words or ["--owner-key", owner]), code=FAILED)
        assert said in refused.err, (said, refused)
    assert "--kid says" in pack(attested, "--kid", other_version, "--owner-key", owner, code=USAGE).err


def test_what_no_pool_would_take_is_refused_where_the_key_is(pool, kek, kek_pem, tmp_path):
    private = rsa.generate_private_key(65537, 2048)
    good = pem_file(tmp_path, private)
    out = tmp_path / "out.byok"
    to_kek = ["--kek", kek_pem, "--kid", kek.kid, "--out", out]
    passphrase, digits = tmp_path / "passphrase", tmp_path / "digits"
    passphrase.write_text("wrong horse battery\n")
    digits.write_text("ab" * 16)
    encrypted = pem_file(tmp_path, private, PASSPHRASE)
    other = Kek(pool, key_ops=("sign", "verify"))
    shown = tmp_path / "signs.json"
    shown.write_text(json.dumps(pool.call("GET", f"/keys/{other.name}").json))
    ec_public = tmp_path / "ec.pem"
    on_curve = ec.generate_private_key(ec.SECP224R1())
    ec_public.write_bytes(on_curve.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    cases = [
        (["--raw", digits, *to_kek], USAGE, "holds text"),
        (["--raw", "/dev/null", *to_kek], FAILED, "16, 24 or 32 bytes"),
        (["--pem", kek_pem, *to_kek], FAILED, "not a private key in PEM"),
        (["--pem", pem_file(tmp_path, on_curve), *to_kek], FAILED, "none of P-256"),
        (["--pem", pem_file(tmp_path, rsa.generate_private_key(65537, 1024)), *to_kek], FAILED, "not 1024"),
        (["--pem", encrypted, "--passphrase-file", passphrase, *to_kek], FAILED, str(encrypted)),
        (["--pem", good, "--kek", kek_pem, "--out", out], USAGE, "give --kid"),
        (["--pem", good, "--kek", kek_pem, "--kid", kek.kid.rsplit("/", 1)[0], "--out", out], USAGE, "key version"),
        (["--pem", good, "--kek", ec_public, "--kid", kek.kid, "--out", out], FAILED, "not an RSA key"),
        (["--pem", good, "--kek", good, "--kid", kek.kid, "--out", out], FAILED, "not a public key"),
        (["--pem", good, "--kek", shown, "--out", out], FAILED, "not `import` alone"),
        (["--pem", good, "--raw", digits, *to_kek], USAGE, "cannot be used with"),
        (["--raw", digits, "--passphrase-file", passphrase, *to_kek], USAGE, "cannot be used with"),
        (["--pem", good, "--kek", kek_pem, "--kid", kek.kid, "--out", kek_pem], FAILED, "not overwritten"),
    ]
    for words, code, told in cases:
        done = offline(pool, "byok", "pack", *words, code=code)
        assert told in done.err, done
        assert not out.exists(), done
    name = fresh_name("none")
    jwk = tmp_path / "jwk.json"
    jwk.write_text('["hunter2"]')
    for words, code, told in [
        (["--jwk", jwk], USAGE, "not a JSON Web Key"),
        (["--pem", encrypted, "--passphrase-file", passphrase], FAILED, str(encrypted)),
        (["--byok-file", good], USAGE, "--type"),
        ([], USAGE, "required"),
        (["--pem", good, "--type", "RSA-HSM"], USAGE, "cannot be used with"),
        (["--byok-file", good, "--type", "RSA-HSM"], FAILED, "not a BYOK file"),
    ]:
        done = holdfast(pool, "key", "import", name, *map(str, words), code=code)
        assert told in done.err and "hunter2" not in done.err, done
    assert pool.call("GET", f"/keys/{name}").status == 404


def test_check_says_what_is_wrong(pool, kek, kek_pem, tmp_path):
    good = kek.wrap(pkcs8(rsa.generate_private_key(65537, 2048)))
    path = tmp_path / "file.byok"

    def checked(file, *words, code=FAILED):
        path.write_text(file if isinstance(file, str) else json.dumps(file))
        return offline(pool, "byok", "check", path, *words, code=code)

    to_kek = ["--kek", kek_pem, "--kid", kek.kid]
    assert "an RSA key of 2048 bits" in checked(kek.file(good), code=0).out
    assert "NO PROBLEM" in checked(kek.file(good), *to_kek, code=0).out
    other = f"{kek.kid[:-32]}{'0' * 32}"
    beyond = b"\xff" * 256 + good[256:]
    for file, words, told in [
        ("not json", [], "not a BYOK file"),
        ({**kek.file(good), "schema_version": "2.0.0"}, [], "schema_version"),
        (kek.file(good, enc="A256GCM"), [], "header.enc"),
        (kek.file(good, alg=None), [], "header.alg of the BYOK file is missing"),
        (kek.file(good, kid="kek"), [], "header.kid"),
        (kek.file(good[:200]), [], "whatever the size of the KEK"),
        (kek.file(good[:-1]), to_kek, "a multiple of 8"),
        (kek.file(good[:256]), to_kek, "has 256 bytes"),
        (kek.file(beyond), to_kek, "beyond the modulus"),
        (kek.file(good, kid=other), to_kek, f"header.kid is `{other}`"),
    ]:
        done = checked(file, *words)
        assert told in done.out and "PROBLEM" in done.out and "NO PROBLEM" not in done.out, (told, done)
    several = {**kek.file(good[:200], alg="x", enc="y"), "schema_version": "0"}
    assert checked(several, *to_kek).out.count("PROBLEM ") == 4
    # A name in a file cannot move the cursor.
    assert "\x1b" not in checked({**kek.file(good), "generator": "\x1b[2J"}, code=0).out


def test_no_secret_is_an_argument_or_a_variable(pool):
    """Neither command has an option that takes a passphrase or a key as its value, or from the environment."""
    for words in (["byok", "pack"], ["key", "import"]):
        text = subprocess.run([pool.program, *words, "--help"], capture_output=True, text=True, timeout=300).stdout
        assert "--passphrase-file <FILE>" in text and "--passphrase <" not in text and "--password" not in text
        assert "[env:" not in text

"""Published vectors (NIST CAVP) with their publisher's own keys, handed in over the wire and used over the wire.

`tests/vectors/make_nist.py` says where they are from, and counts in each file what is passed over and why; docs/testing.md has
the counts. What no algorithm of a pool allows is refused, and counted by the test.
"""

import collections
import json
import os
import pathlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

import holdfast
from holdfast import assert_error, b64, unb64
from test_byok import OAEP_SHA1, Kek
from test_import import CURVES, minimal
from test_vectors import accepts, ask, made, rows_of, says
from test_wycheproof_http import HASHES, flipped, hand_in, judge, private_keys, secret_keys

VECTORS = pathlib.Path(__file__).resolve().parents[1] / "vectors" / "nist"
AS_THEY_ARE = {"id", "result", "curve", "hash", "why"}
SOAK = bool(os.environ.get("HOLDFAST_SOAK"))


@pytest.fixture(scope="module")
def vector_pool(tmp_path_factory):
    """Of its own: hundreds of keys would make every list of the others long."""
    with holdfast.Pool(tmp_path_factory.mktemp("nist")) as pool:
        yield pool


def load(name):
    """The vectors as dictionaries, bytes as bytes; and the keys that stand before them, if any do."""
    data = json.loads((VECTORS / f"{name}.json").read_text())
    rows = rows_of(data, AS_THEY_ARE)
    return [{**row, "tcId": row["id"], "number": number} for number, row in enumerate(rows)], data.get("keys", [])


# --- secret keys


def test_aes_cbc(vector_pool):
    rows, _ = load("aes-cbc")
    keys = secret_keys(vector_pool, "cbc", rows)

    def work(call, row):
        key, algorithm = keys[row["key"]], f"A{len(row['key']) * 8}CBC"
        assert made(ask(call, key, "encrypt", algorithm, row["plaintext"], iv=row["iv"])) == row["ciphertext"], row
        return accepts(ask(call, key, "decrypt", algorithm, row["ciphertext"], iv=row["iv"]), row["plaintext"])

    judge(vector_pool, "aes-cbc", rows, work).expect(1099, 0)


def test_aes_gcm(vector_pool):
    rows, _ = load("aes-gcm")
    keys = secret_keys(vector_pool, "gcm", rows)
    other_lengths, refusals = [], set()

    def work(call, row):
        parts = {name: row[name] for name in ("iv", "aad", "tag")}
        algorithm = f"A{len(row['key']) * 8}GCM"
        answer = ask(call, keys[row["key"]], "decrypt", algorithm, row["ciphertext"], **parts)
        if (len(row["iv"]), len(row["tag"])) != (12, 16):
            # A pool makes every iv of 12 bytes and every tag of 16, and opens no other.
            assert_error(answer, 400, "BadParameter")
            other_lengths.append(row)
            return None
        if answer.status != 200:
            refusals.add((answer.status, answer.error["code"], answer.error["message"]))
        return accepts(answer, row["plaintext"])

    judge(vector_pool, "aes-gcm", rows, work).expect(150, 150)
    assert len(other_lengths) == 60
    assert len(refusals) == 1, refusals


def test_aes_key_wrap(vector_pool):
    rows, _ = load("aes-kw")
    keys = secret_keys(vector_pool, "kw", rows)
    refusals = set()

    def work(call, row):
        key, algorithm = keys[row["key"]], f"A{len(row['key']) * 8}KW"
        answer = ask(call, key, "unwrapkey", algorithm, row["wrapped"])
        accepted = accepts(answer, row["material"])
        if accepted:
            assert made(ask(call, key, "wrapkey", algorithm, row["material"])) == row["wrapped"], row
        else:
            refusals.add((answer.status, answer.error["code"], answer.error["message"]))
        return accepted

    judge(vector_pool, "aes-kw", rows, work).expect(90, 45)
    assert len(refusals) == 1, refusals


def test_aes_key_wrap_with_padding_as_the_second_layer_of_a_wrapped_key(vector_pool):
    """None of them holds as many bytes as a symmetric key of a pool has: that a layer opened is seen from that refusal."""
    rows, _ = load("aes-kwp")
    kek = Kek(vector_pool)
    refusals = collections.defaultdict(set)

    def work(call, row):
        file = kek.file(kek.public.encrypt(row["key"], OAEP_SHA1) + row["wrapped"])
        text = b64(json.dumps(file).encode())
        name = f"kwp-{row['id'].replace('_', '-').replace(':', '-')}"
        message = assert_error(call("PUT", f"/keys/{name}", {"key": {"kty": "oct-HSM", "key_hsm": text}}), 400, "BadParameter")
        opened = "16, 24 or 32 bytes" in message
        assert opened or "second layer of ciphertext does not open" in message, (message, row)
        refusals[opened].add(message)
        return opened

    judge(vector_pool, "aes-kwp", rows, work).expect(90, 45)
    assert len(refusals[False]) == 1, refusals


# --- private keys


def test_ecdsa(vector_pool):
    """A hash that is not as long as the algorithm's is cut to its first bytes, or put behind zeros: the same number to ECDSA
    (FIPS 186-3 section 6.4)."""
    rows, _ = load("ecdsa")
    as_published = []

    def work(call, row):
        number = row["number"]
        curve, sha, algorithm, length = CURVES[row["curve"]]
        members = {name: minimal(int.from_bytes(row[name])) for name in "dxy"}
        key = hand_in(call, f"ecdsa-{number}", members, kty="EC-HSM", crv=row["curve"])
        public = [int.from_bytes(unb64(key["key"][name])) for name in "xy"]
        assert public == [int.from_bytes(row[name]) for name in "xy"], row

        digest = row["digest"][: sha.digest_size].rjust(sha.digest_size, b"\0")
        if digest == row["digest"]:
            as_published.append(row)
        signature = b"".join(int.from_bytes(row[name]).to_bytes(length) for name in "rs")

        def verifies(signature, digest):
            return says(ask(call, key, "verify", algorithm.value, signature, digest=digest))

        assert not verifies(flipped(signature, number), digest), row
        assert not verifies(signature, flipped(digest, number)), row
        own = made(ask(call, key, "sign", algorithm.value, digest))
        r, s = (int.from_bytes(half) for half in (own[:length], own[length:]))
        there = ec.EllipticCurvePublicNumbers(*public, curve).public_key()
        there.verify(utils.encode_dss_signature(r, s), digest, ec.ECDSA(utils.Prehashed(sha)))
        return verifies(signature, digest)

    judge(vector_pool, "ecdsa", rows, work).expect(270, 0)
    assert len(as_published) == 45


def of_few_keys(rows, published, most, bits=2048):
    """An RSA key takes some tenths of a second to check when it comes in, a long one more. Unless there is time, `most` keys
    of no more than `bits`, which are those with most vectors."""
    if SOAK:
        return rows
    vectors_of = collections.Counter(row["key"] for row in rows if len(published[row["key"]]["n"]) * 4 <= bits)
    wanted = {key for key, _ in vectors_of.most_common(most)}
    return [row for row in rows if row["key"] in wanted]


def pkcs1_algorithm(row):
    """SHA-1 and SHA-224 are in no algorithm of a pool: RSNULL takes them with what stands before the digest."""
    return {"SHA256": "RS256", "SHA384": "RS384", "SHA512": "RS512"}.get(row["hash"], "RSNULL")


@pytest.mark.timeout(600)
def test_rsa_pkcs1_generated(vector_pool):
    """What the pool signs is what was published, to the byte."""
    rows, published = load("rsa-pkcs1-generated")
    rows = of_few_keys(rows, published, 2, 3072)
    keys = private_keys(vector_pool, "generated", published, {row["key"] for row in rows})

    def work(call, row):
        key, algorithm = keys[row["key"]], pkcs1_algorithm(row)
        bent = flipped(row["signature"], row["number"])
        assert not says(ask(call, key, "verify", algorithm, bent, digest=row["digest"])), row
        verifies = says(ask(call, key, "verify", algorithm, row["signature"], digest=row["digest"]))
        return verifies and made(ask(call, key, "sign", algorithm, row["digest"])) == row["signature"]

    judge(vector_pool, "rsa-pkcs1-generated", rows, work).expect(150 if SOAK else 100, 0)


@pytest.mark.timeout(600)
def test_rsa_pkcs1_verified(vector_pool):
    """Of most, the message, the signature, the public exponent or the padding was changed."""
    rows, published = load("rsa-pkcs1-verified")
    rows = of_few_keys(rows, published, 3)
    keys = private_keys(vector_pool, "verified", published, {row["key"] for row in rows})

    def work(call, row):
        answer = ask(call, keys[row["key"]], "verify", pkcs1_algorithm(row), row["signature"], digest=row["digest"])
        assert answer.status == 200, (answer, row)
        return says(answer)

    judge(vector_pool, "rsa-pkcs1-verified", rows, work).expect(*((45, 292) if SOAK else (15, 65)))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name, salt, counts", [("generated", 20, (30, 0)), ("verified", 10, (9, 44) if SOAK else (3, 15))])
def test_rsa_pss(vector_pool, name, salt, counts):
    """The salts are of 10 and 20 bytes, as long as no hash of a pool: good elsewhere, they do not verify here."""
    rows, published = load(f"rsa-pss-{name}")
    rows = of_few_keys(rows, published, 1)
    keys = private_keys(vector_pool, f"pss-{name}", published, {row["key"] for row in rows})

    def work(call, row):
        key, sha = keys[row["key"]], HASHES[row["hash"].removeprefix("SHA")]
        algorithm, digest = f"PS{sha.digest_size * 8}", row["digest"]
        assert not says(ask(call, key, "verify", algorithm, row["signature"], digest=digest)), row
        own = made(ask(call, key, "sign", algorithm, digest))
        assert says(ask(call, key, "verify", algorithm, own, digest=digest)), row
        numbers = (int(published[row["key"]][member], 16) for member in "en")
        scheme = padding.PSS(padding.MGF1(sha), salt)
        try:
            rsa.RSAPublicNumbers(*numbers).public_key().verify(row["signature"], digest, scheme, utils.Prehashed(sha))
        except InvalidSignature:
            return False
        return True

    judge(vector_pool, f"rsa-pss-{name}", rows, work).expect(*counts)

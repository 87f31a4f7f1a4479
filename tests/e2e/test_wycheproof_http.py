"""Published vectors (C2SP/wycheproof) with their publisher's own keys, handed in over the wire and used over the wire;
where only a public key is published, cases of our own with keys made here by `cryptography`.

Secret keys come in as JSON Web Keys. AES key wrap with padding is no algorithm of a pool, but the second layer of a
wrapped key: its vectors run as BYOK. What a vector asks that the wire contract does not have is judged by a rule that the
test names and counts; docs/testing.md has the counts.
"""

import collections
import hashlib
import hmac
import json
import os
import pathlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

import block_modes
import holdfast
import lanes
from holdfast import assert_error, b64, unb64
from test_byok import OAEP_SHA1, Kek
from test_import import CURVES, body, ec_members, rsa_members
from test_vectors import Tally, accepts, ask, made, rows_of, says

VECTORS = pathlib.Path(__file__).resolve().parents[1] / "vectors" / "wycheproof"
HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
CASES = 20


@pytest.fixture(scope="module")
def vector_pool(tmp_path_factory):
    """Of its own: hundreds of keys would make every list of the others long."""
    with holdfast.Pool(tmp_path_factory.mktemp("vectors")) as pool:
        yield pool


def load(name):
    """The vectors as dictionaries, bytes as bytes; and the keys that stand before them, if any do."""
    data = json.loads((VECTORS / f"own-{name}.json").read_text())
    return rows_of(data, {"result", "algorithm"}), data.get("keys", [])


def hand_in(call, name, members, **more):
    answer = call("PUT", f"/keys/{name}", body(members, **more))
    assert answer.status == 200, (name, answer)
    return answer.json


def secret_keys(pool, group, rows):
    """Every key of the group, handed in once: its bytes, and the pool's bundle."""
    keys = sorted({row["key"] for row in rows})

    def work(call, job):
        number, key = job
        return hand_in(call, f"{group}-{number}", {"k": key}, kty="oct-HSM")

    return dict(zip(keys, lanes.each(pool, enumerate(keys), work)))


def judge(pool, name, rows, work):
    """`work(call, row)` says whether the pool accepted; None where a rule of the test's own has judged."""
    tally = Tally(name)
    for row, accepted in zip(rows, lanes.each(pool, rows, work)):
        if accepted is not None:
            tally.judge(row, accepted)
    return tally


# --- secret keys


def test_aes_gcm(vector_pool):
    rows, _ = load("aes-gcm")
    keys = secret_keys(vector_pool, "gcm", rows)
    other_iv = []

    def work(call, row):
        algorithm = f"A{len(row['key']) * 8}GCM"
        parts = {name: row[name] for name in ("iv", "aad", "tag")}
        answer = ask(call, keys[row["key"]], "decrypt", algorithm, row["ct"], **parts)
        if len(row["iv"]) == 12:
            return accepts(answer, row["msg"])
        # The pool makes every iv itself, of 12 bytes.
        assert_error(answer, 400, "BadParameter")
        other_iv.append(row)
        return None

    judge(vector_pool, "aes-gcm", rows, work).expect(116, 81)
    assert len(other_iv) == 119


def test_aes_cbc_with_padding(vector_pool):
    rows, _ = load("aes-cbc-pkcs7")
    keys = secret_keys(vector_pool, "cbc", rows)

    def work(call, row):
        key, algorithm = keys[row["key"]], f"A{len(row['key']) * 8}CBCPAD"
        accepted = accepts(ask(call, key, "decrypt", algorithm, row["ct"], iv=row["iv"]), row["msg"])
        if accepted:
            assert made(ask(call, key, "encrypt", algorithm, row["msg"], iv=row["iv"])) == row["ct"], row
        return accepted

    judge(vector_pool, "aes-cbc-pkcs7", rows, work).expect(72, 144)


def test_aes_key_wrap(vector_pool):
    rows, _ = load("aes-kw")
    keys = secret_keys(vector_pool, "kw", rows)

    def work(call, row):
        key, algorithm = keys[row["key"]], f"A{len(row['key']) * 8}KW"
        accepted = accepts(ask(call, key, "unwrapkey", algorithm, row["ct"]), row["msg"])
        if accepted:
            assert made(ask(call, key, "wrapkey", algorithm, row["msg"])) == row["ct"], row
        return accepted

    judge(vector_pool, "aes-kw", rows, work).expect(36, 126, 3)


def test_aes_key_wrap_with_padding_as_the_second_layer_of_a_wrapped_key(vector_pool):
    """Whether the layer opened is seen from the key that it held, or from what was wrong with that."""
    rows, _ = load("aes-kwp")
    kek = Kek(vector_pool)
    other_length, digest = [], hashlib.sha256(b"message").digest()

    def work(call, row):
        file = kek.file(kek.public.encrypt(row["key"], OAEP_SHA1) + row["ct"])
        text = b64(json.dumps(file).encode())
        answer = call("PUT", f"/keys/kwp-{row['tcId']}", {"key": {"kty": "oct-HSM", "key_hsm": text}})
        if answer.status == 200:
            mac = made(ask(call, answer.json, "sign", "HS256", digest))
            assert mac == hmac.digest(row["msg"], digest, "sha256"), row
            return True
        message = assert_error(answer, 400, "BadParameter")
        if "16, 24 or 32 bytes" in message:
            other_length.append(row)
            return True
        expected = "second layer of ciphertext does not open" if row["ct"] else "has 256 bytes"
        assert expected in message, (message, row)
        return False

    judge(vector_pool, "aes-kwp", rows, work).expect(77, 177)
    assert len(other_length) == 50


@pytest.mark.parametrize(
    "sha, counts, as_published, truncated", [("256", (60, 108), 4, 84), ("384", (6, 0), 0, 3), ("512", (6, 0), 0, 3)]
)
def test_hmac(vector_pool, sha, counts, as_published, truncated):
    """A pool MACs digests alone. A message as long as one stands for it; of another, the digest is taken, and the tag is
    wrong by the bits by which the publisher's is. A truncated tag is good as far as it goes, and not for a pool."""
    rows, _ = load(f"hmac-sha{sha}")
    keys = secret_keys(vector_pool, f"hmac{sha}", rows)
    cut, unchanged = [], []

    def work(call, row):
        digest, tag, name = row["msg"], row["tag"], f"sha{sha}"
        if len(digest) * 8 == int(sha):
            unchanged.append(row)
        else:
            difference = block_modes.xor(hmac.digest(row["key"], digest, name)[: len(tag)], tag)
            digest = hashlib.new(name, digest).digest()
            tag = block_modes.xor(hmac.digest(row["key"], digest, name)[: len(tag)], difference)
        key = keys[row["key"]]
        whole = made(ask(call, key, "sign", f"HS{sha}", digest))
        assert whole == hmac.digest(row["key"], digest, name), row
        said = says(ask(call, key, "verify", f"HS{sha}", tag, digest=digest))
        if len(tag) < len(whole):
            assert not said, row
            cut.append(row)
            return whole.startswith(tag)
        return said

    judge(vector_pool, f"hmac-sha{sha}", rows, work).expect(*counts)
    assert (len(unchanged), len(cut)) == (as_published, truncated)


# --- private keys


def private_keys(pool, group, published, wanted):
    """Those of the publisher's keys whose numbers are in `wanted`, handed in: number, and the pool's bundle."""

    def work(call, number):
        members = {name: bytes.fromhex(value) for name, value in published[number].items()}
        return hand_in(call, f"{group}-{number}", members, kty="RSA-HSM")

    wanted = sorted(wanted)
    return dict(zip(wanted, lanes.each(pool, wanted, work)))


def test_rsa_oaep(vector_pool):
    rows, published = load("rsa-oaep")
    keys = private_keys(vector_pool, "oaep", published, range(len(published)))
    labelled, refusals = [], set()

    def work(call, row):
        accepted = []
        for operation in ("decrypt", "unwrapkey"):
            answer = ask(call, keys[row["key"]], operation, row["algorithm"], row["ct"])
            accepted.append(accepts(answer, row["msg"]))
            if not accepted[-1] and len(row["ct"]) == len(published[row["key"]]["n"]) // 2 - 1:
                refusals.add((answer.status, answer.error["code"], answer.error["message"]))
        assert accepted[0] == accepted[1], row
        if row["label"]:
            # The wire contract has no label, so what was made with one does not open.
            assert not accepted[0], row
            labelled.append(row)
            return None
        return accepted[0]

    judge(vector_pool, "rsa-oaep", rows, work).expect(58, 76)
    assert len(labelled) == 31
    assert len(refusals) == 1, refusals


def test_rsa_pkcs1_decryption(vector_pool):
    """Most keys are for one vector each, and a long key takes half a second to check: of 3072 and 4096 bits the key with
    most vectors, unless there is time."""
    rows, published = load("rsa-rsa1_5")
    vectors_of = collections.Counter(row["key"] for row in rows)
    if not os.environ.get("HOLDFAST_SOAK"):
        rows = [row for row in rows if vectors_of[row["key"]] > 1 or len(row["ct"]) <= 256]
    keys = private_keys(vector_pool, "rsa15", published, {row["key"] for row in rows})
    refusals = set()

    def work(call, row):
        answer = ask(call, keys[row["key"]], "decrypt", "RSA1_5", row["ct"])
        accepted = accepts(answer, row["msg"])
        if not accepted and len(row["ct"]) == len(published[row["key"]]["n"]) // 2 - 1:
            refusals.add((answer.status, answer.error["code"], answer.error["message"]))
        return accepted

    counts = (124, 77) if os.environ.get("HOLDFAST_SOAK") else (62, 75)
    judge(vector_pool, "rsa1_5", rows, work).expect(*counts)
    # Whatever is wrong behind a ciphertext of the right length, the answer is the same.
    assert len(refusals) == 1, refusals


# --- keys made here, for what is published with public keys alone


@pytest.fixture(scope="module")
def made_here(vector_pool):
    """A key of each kind: the private key, and the pool's bundle of it."""
    call = vector_pool.call
    keys = {}
    for bits in (2048, 3072, 4096):
        private = rsa.generate_private_key(65537, bits)
        keys[bits] = private, hand_in(call, f"here-rsa-{bits}", rsa_members(private), kty="RSA-HSM")
    for name, (curve, *_) in CURVES.items():
        private = ec.generate_private_key(curve)
        keys[name] = private, hand_in(call, f"here-{name}", ec_members(private), kty="EC-HSM", crv=name)
    return keys


def flipped(value, number):
    """One bit is wrong, another one in each case."""
    value = bytearray(value)
    position = number * 37 % (len(value) * 8)
    value[position // 8] ^= 1 << position % 8
    return bytes(value)


def both_ways(pool, key, algorithm, digest_of_case, sign, verify):
    """What the pool signs verifies elsewhere and what is signed elsewhere verifies in the pool, 20 times; a changed
    signature, a changed digest and a signature cut short do neither."""

    def work(call, number):
        digest = digest_of_case(number)
        verify(made(ask(call, key, "sign", algorithm, digest)), digest)
        good = sign(digest)
        bad = [(flipped(good, number), digest), (good, flipped(digest, number)), (good[:-1], digest)]
        said = [says(ask(call, key, "verify", algorithm, signature, digest=of)) for signature, of in [(good, digest), *bad]]
        assert said == [True, False, False, False], (algorithm, number, said)
        return True

    assert sum(lanes.each(pool, range(CASES), work)) == CASES


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
@pytest.mark.parametrize("algorithm", [f"{kind}{sha}" for kind in ("RS", "PS") for sha in HASHES])
def test_rsa_signatures_with_keys_made_here(vector_pool, made_here, algorithm, bits):
    private, key = made_here[bits]
    sha = HASHES[algorithm[2:]]
    if algorithm.startswith("RS"):
        scheme = padding.PKCS1v15()
    else:
        scheme = padding.PSS(padding.MGF1(sha), sha.digest_size)
    hashed = utils.Prehashed(sha)
    both_ways(
        vector_pool,
        key,
        algorithm,
        lambda _: os.urandom(sha.digest_size),
        lambda digest: private.sign(digest, scheme, hashed),
        lambda signature, digest: private.public_key().verify(signature, digest, scheme, hashed),
    )


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_rsnull_with_keys_made_here(vector_pool, made_here, bits):
    """Bytes of any length that fits, behind the padding as they are; `cryptography` has no such scheme."""
    private, key = made_here[bits]
    numbers = private.private_numbers()
    n, e, length = numbers.public_numbers.n, numbers.public_numbers.e, bits // 8

    def padded(text):
        return b"\0\1" + b"\xff" * (length - 3 - len(text)) + b"\0" + text

    def sign(text):
        # By the primes apart (RFC 8017 section 5.1.2), as it takes a quarter of the time.
        number = int.from_bytes(padded(text), "big")
        of_p, of_q = pow(number, numbers.dmp1, numbers.p), pow(number, numbers.dmq1, numbers.q)
        return (of_q + (of_p - of_q) * numbers.iqmp % numbers.p * numbers.q).to_bytes(length, "big")

    def verify(signature, text):
        assert pow(int.from_bytes(signature, "big"), e, n) == int.from_bytes(padded(text), "big")

    both_ways(vector_pool, key, "RSNULL", lambda number: os.urandom(1 + number * 11), sign, verify)


@pytest.mark.parametrize("name", CURVES)
def test_ecdsa_signatures_with_keys_made_here(vector_pool, made_here, name):
    private, key = made_here[name]
    _, sha, algorithm, length = CURVES[name]
    scheme = ec.ECDSA(utils.Prehashed(sha))

    def sign(digest):
        return b"".join(part.to_bytes(length, "big") for part in utils.decode_dss_signature(private.sign(digest, scheme)))

    def verify(signature, digest):
        r, s = (int.from_bytes(half, "big") for half in (signature[:length], signature[length:]))
        private.public_key().verify(utils.encode_dss_signature(r, s), digest, scheme)

    both_ways(vector_pool, key, algorithm.value, lambda _: os.urandom(sha.digest_size), sign, verify)


@pytest.mark.parametrize("size", [128, 192, 256])
def test_aes_cbc_with_keys_made_here(vector_pool, size):
    secret = os.urandom(size // 8)
    key = hand_in(vector_pool.call, f"here-cbc-{size}", {"k": secret}, kty="oct-HSM")

    def work(call, number):
        iv, plaintext = os.urandom(16), os.urandom(16 * (1 + number))
        cipher = Cipher(algorithms.AES(secret), modes.CBC(iv)).encryptor()
        ciphertext = cipher.update(plaintext) + cipher.finalize()
        assert made(ask(call, key, "encrypt", f"A{size}CBC", plaintext, iv=iv)) == ciphertext
        assert accepts(ask(call, key, "decrypt", f"A{size}CBC", ciphertext, iv=iv), plaintext)
        assert not accepts(ask(call, key, "decrypt", f"A{size}CBC", ciphertext[:-1], iv=iv), plaintext)
        return True

    assert sum(lanes.each(vector_pool, range(CASES), work)) == CASES

"""Published vectors (C2SP/wycheproof) through the API, moved to keys of the pool: `tests/vectors/make.py` says how.

Nothing takes a foreign public key in. What runs with the publishers' keys runs in `test_wycheproof_http.py` where they are
private or secret, and below the API in `crates/crypto-software/src/vectors.rs`; the last test here prints those counts and
holds docs/testing.md to them.
"""

import json
import pathlib
import re

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

import block_modes
import lanes
from holdfast import assert_error, b64, key_path, unb64
from test_signatures import CURVES

VECTORS = pathlib.Path(__file__).resolve().parents[1] / "vectors" / "wycheproof"
HASHES = ("256", "384", "512")
SIZES = (128, 192, 256)


@pytest.fixture(scope="module")
def keys(pool):
    made = {size: pool.create("oct", key_size=size) for size in SIZES}
    made |= {bits: pool.create("rsa", key_size=bits) for bits in (2048, 3072, 4096)}
    return made | {row[0]: pool.create("ec", crv=row[0]) for row in CURVES.values()}


def load(name):
    return rows_of(json.loads((VECTORS / f"{name}.json").read_text()), {"result", "replaced by"})


def rows_of(data, as_they_are):
    """Vectors as dictionaries, bytes as bytes."""
    return [
        {
            column: bytes.fromhex(value) if isinstance(value, str) and column not in as_they_are else value
            for column, value in zip(data["columns"], row, strict=True)
        }
        for row in data["vectors"]
    ]


class Tally:
    """Judges each vector, and at the end whether as many ran as were expected: none running is a failure, too."""

    def __init__(self, name):
        self.name = name
        self.counts = {"valid": 0, "invalid": 0, "acceptable": 0}
        self.accepted = 0

    def judge(self, vector, accepted):
        if vector["result"] == "acceptable":
            self.accepted += accepted
        else:
            context = f"{self.name} {vector['tcId']} is {vector['result']}"
            assert accepted == (vector["result"] == "valid"), f"{context}; accepted: {accepted}"
        self.counts[vector["result"]] += 1

    def expect(self, valid, invalid, acceptable=0):
        print(f"{self.name}: {self.counts}, of the acceptable accepted: {self.accepted}")
        # Either would do; that it stays the same is for whoever reads docs/testing.md.
        assert self.accepted == 0, self.name
        assert self.counts == {"valid": valid, "invalid": invalid, "acceptable": acceptable}, self.name


def ask(call, key, operation, algorithm, value, **parts):
    body = {"alg": algorithm, "value": b64(value), **{name: b64(part) for name, part in parts.items()}}
    return call("POST", f"{key_path(key)}/{operation}", body)


def made(answer, member="value"):
    assert answer.status == 200, answer
    return unb64(answer.json[member])


def accepts(answer, plaintext):
    """Whether a decryption went well, and then to the right text. A refusal says that it was the caller's mistake."""
    if answer.status != 200:
        assert_error(answer, 400, "BadParameter")
        return False
    assert made(answer) == plaintext, answer
    return True


def says(answer):
    """Whether a verification says true."""
    if answer.status != 200:
        assert_error(answer, 400, "BadParameter")
        return False
    assert isinstance(answer.json["value"], bool), answer
    return answer.json["value"]


def run(pool, name, work):
    """`work(call, vector)` says whether the pool accepted; gives the tally."""
    tally = Tally(name)
    vectors = list(load(name))
    for vector, accepted in zip(vectors, lanes.each(pool, vectors, work)):
        tally.judge(vector, accepted)
    return tally


# --- RSA


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
@pytest.mark.parametrize("sha, counts", [("256", (9, 230, 1)), ("384", (7, 230, 1)), ("512", (8, 230, 1))])
def test_rsa_signatures(pool, keys, sha, counts, bits):
    """Malformed, misnamed and overlong DigestInfo behind a correct padding, which RSNULL makes."""
    key, algorithm = keys[bits], f"RS{sha}"

    def work(call, vector):
        signature = made(ask(call, key, "sign", "RSNULL", vector["behind padding"]))
        answer = ask(call, key, "verify", algorithm, signature, digest=vector["digest"])
        return says(answer)

    run(pool, f"rsa-signature-sha{sha}", work).expect(*counts)


@pytest.mark.parametrize(
    "algorithm, counts", [("RSA1_5", (42, 19)), ("RSA-OAEP", (13, 13)), ("RSA-OAEP-256", (13, 13))]
)
@pytest.mark.parametrize("operation", ["decrypt", "unwrapkey"])
def test_rsa_decryption(pool, keys, algorithm, counts, operation):
    """Padded messages of all kinds of damage, encrypted to the pool's public key as they are."""
    key = keys[2048]
    numbers = rsa.RSAPublicNumbers(*(int.from_bytes(unb64(key["key"][name])) for name in "en"))

    def work(call, vector):
        padded = int.from_bytes(vector["padded message"])
        if padded >= numbers.n:
            # No ciphertext of this key opens to it; refused for sure.
            assert vector["result"] == "invalid"
            return False
        ciphertext = pow(padded, numbers.e, numbers.n).to_bytes(256)
        return accepts(ask(call, key, operation, algorithm, ciphertext), vector["plaintext"])

    run(pool, f"rsa-decryption-{algorithm.lower().removeprefix('rsa-')}", work).expect(*counts)


# --- AES


def block_cipher(call, key, size):
    """The block cipher under a key of the pool, which is its CBC of one block under an iv of zeros."""

    def encrypt(block):
        return made(ask(call, key, "encrypt", f"A{size}CBC", block, iv=bytes(16)))

    return encrypt


def test_aes_cbc_with_padding(pool, keys):
    """Bad paddings, put there by CBC without padding."""

    def work(call, vector):
        size, iv = vector["key size"], vector["iv"]
        key = keys[size]
        ciphertext = vector["ciphertext as published"]
        if vector["padded plaintext"] is not None:
            ciphertext = made(ask(call, key, "encrypt", f"A{size}CBC", vector["padded plaintext"], iv=iv))
        answer = ask(call, key, "decrypt", f"A{size}CBCPAD", ciphertext, iv=iv)
        accepted = accepts(answer, vector["plaintext"])
        if accepted:
            again = made(ask(call, key, "encrypt", f"A{size}CBCPAD", vector["plaintext"], iv=iv))
            assert again == ciphertext
        return accepted

    run(pool, "aes-cbc-pkcs7", work).expect(72, 144)


def test_aes_key_wrap(pool, keys):
    """Changed check values, wrapped here with the pool's own block cipher."""

    def work(call, vector):
        size = vector["key size"]
        key = keys[size]
        wrapped = vector["wrapped as published"]
        register = vector["check value and material before wrapping"]
        if register is not None:
            wrapped = block_modes.key_wrap(block_cipher(call, key, size), register[8:], check=register[:8])
        accepted = accepts(ask(call, key, "unwrapkey", f"A{size}KW", wrapped), vector["material"])
        if accepted:
            assert made(ask(call, key, "wrapkey", f"A{size}KW", vector["material"])) == wrapped
        return accepted

    run(pool, "aes-key-wrap", work).expect(36, 126, 3)


def test_aes_gcm(pool, keys):
    """Changed tags and counters that wrap, computed here with the pool's own block cipher."""

    def work(call, vector):
        size, iv, additional = vector["key size"], vector["iv"], vector["aad"]
        key = keys[size]
        encrypt = block_cipher(call, key, size)
        ciphertext, tag = block_modes.gcm(encrypt, iv, additional, vector["plaintext"])
        tag = block_modes.xor(tag, vector["difference of tag"])
        answer = ask(call, key, "decrypt", f"A{size}GCM", ciphertext, iv=iv, aad=additional, tag=tag)
        return accepts(answer, vector["plaintext"])

    run(pool, "aes-gcm", work).expect(116, 81)


# --- HMAC


@pytest.mark.parametrize("sha", HASHES)
def test_hmac(pool, keys, sha):
    """Changed and truncated tags. A truncated one is good as far as it goes, and not for a pool."""
    key, algorithm = keys[256], f"HS{sha}"
    truncated = []

    def work(call, vector):
        whole = made(ask(call, key, "sign", algorithm, vector["digest"]))
        difference = vector["difference of tag"]
        tag = block_modes.xor(whole[: len(difference)], difference)
        said = says(ask(call, key, "verify", algorithm, tag, digest=vector["digest"]))
        if len(tag) < len(whole):
            assert not said, vector
            truncated.append(vector)
            return whole.startswith(tag)
        return said

    run(pool, f"hmac-sha{sha}", work).expect(66, 108)
    assert len(truncated) == 87


# --- ECDSA


def number(text, order, value):
    """What replaces `value`, as the publisher's comment writes it: `r + n`, `n - r`, `r + 256 * n`, `r + 2**256`."""
    words = re.fullmatch(r"([rs]|n) ([+-]) (?:(\d+) \* )?(n|[rs]|2\*\*(\d+))", text)
    assert words, text

    def term(name):
        return {"n": order, "r": value, "s": value}.get(name) or 2 ** int(name.removeprefix("2**"))

    second = int(words[3] or 1) * term(words[4])
    return term(words[1]) + second if words[2] == "+" else term(words[1]) - second


@pytest.mark.parametrize(
    "algorithm, name, count",
    [("ES256", "256r1", 89), ("ES256K", "256k1", 85), ("ES384", "384r1", 87), ("ES512", "521r1", 87)],
)
def test_ecdsa_signatures(pool, keys, algorithm, name, count):
    """Numbers out of range and numbers made for no key. The valid vectors need their publisher's public keys."""
    curve, _, size, _, order = CURVES[algorithm]
    key = keys[curve]
    bent = []

    def work(call, vector):
        signature = vector["signature as published"]
        if vector["replaced by"]:
            which, how = vector["replaced by"]
            good = made(ask(call, key, "sign", algorithm, vector["digest"]))
            values = {"r": int.from_bytes(good[:size]), "s": int.from_bytes(good[size:])}
            values[which] = number(how, order, values[which])
            assert values[which] >= 0
            # As the publisher does: both numbers as long as the longer one needs.
            length = max(size, *((value.bit_length() + 7) // 8 for value in values.values()))
            signature = values["r"].to_bytes(length) + values["s"].to_bytes(length)
            bent.append(vector)
        return says(ask(call, key, "verify", algorithm, signature, digest=vector["digest"]))

    run(pool, f"ecdsa-secp{name}", work).expect(0, count)
    assert len(bent) >= 5


# --- base64url


# RFC 4648 section 10.
BASE64 = {
    "": "",
    "f": "Zg==",
    "fo": "Zm8=",
    "foo": "Zm9v",
    "foob": "Zm9vYg==",
    "fooba": "Zm9vYmE=",
    "foobar": "Zm9vYmFy",
}


@pytest.mark.parametrize("text, written", BASE64.items())
def test_base64_on_the_wire(pool, keys, text, written):
    path = key_path(keys[256])
    for spelling in {written, written.rstrip("=")}:
        sealed = pool.call("POST", f"{path}/encrypt", {"alg": "A256GCM", "value": spelling})
        assert len(made(sealed)) == len(text)
        parts = {name: sealed.json[name] for name in ("value", "iv", "tag")}
        opened = pool.call("POST", f"{path}/decrypt", {"alg": "A256GCM", **parts})
        assert opened.json["value"] == written.rstrip("="), opened


# --- what runs below the API


def below_the_api(repository):
    """Group: [valid, invalid, acceptable], as `crates/crypto-software/src/vectors.rs` asserts them."""
    source = (repository / "crates/crypto-software/src/vectors.rs").read_text()
    named = re.findall(r"^ {8}\((\w+), .*?(\[[\d, ]+\])(?:, \d+)?\),$", source, re.MULTILINE)
    single = re.findall(r'tally\.expect\("([\w-]+)", (\[[\d, ]+\])', source)
    return {name: json.loads(counts) for name, counts in [*named, *single]}


def test_the_vectors_below_the_api_are_documented(repository):
    groups = below_the_api(repository)
    for name, counts in groups.items():
        print(f"{name}: {counts[0]} valid, {counts[1]} invalid, {counts[2]} acceptable")
    total = [sum(column) for column in zip(*groups.values())]
    print(f"all: {total[0]} valid, {total[1]} invalid, {total[2]} acceptable, in {len(groups)} groups")
    # 4 curves, 9 of RSA PKCS#1, 3 of HMAC, and PSS, OAEP, RSA1_5, GCM, CBC, KW.
    assert len(groups) == 22, "the pattern that reads the source misses some"
    documented = (repository / "docs/testing.md").read_text()
    for name, counts in groups.items():
        row = f"| `{name}` | {counts[0]} | {counts[1]} | {counts[2]} |"
        assert row in documented, f"docs/testing.md lacks: {row}"

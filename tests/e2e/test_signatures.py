"""Signatures of the pool, judged by an implementation that is not the pool's; and what is none is not taken for one.

`HOLDFAST_SIGNATURES` says how many are made for each curve (default 1000).
"""

import os

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

import lanes
from holdfast import assert_error, b64, fresh_name, key_path, unb64

SIGNATURES = int(os.environ.get("HOLDFAST_SIGNATURES", "1000"))
# For RSA, which costs more, and has no numbers of varying length in it.
RSA_SIGNATURES = max(10, SIGNATURES // 20)
# A leading zero comes once in 256 signatures: none in so many is a bug, not bad luck.
MOST_SIGNATURES = SIGNATURES + 6000

HASHES = {32: hashes.SHA256(), 48: hashes.SHA384(), 64: hashes.SHA512()}
# The orders of the groups (SEC 2), from the bit where they stop being all ones.
P256_ORDER = 2**256 - 2**224 + 2**192 - 0x4319055258E8617B0C46353D039CDAAF
P256K_ORDER = 2**256 - 0x14551231950B75FC4402DA1732FC9BEBF
P384_ORDER = 2**384 - 0x389CB27E0BC8D220A7E5F24DB74F58851313E695333AD68D
P521_ORDER = 2**521 - 0x5AE79787C40D069948033FEB708F65A2FC44A36477663B851449048E16EC79BF7
# Algorithm: curve, its name elsewhere, bytes of a number, bytes of a digest, order of the group.
CURVES = {
    "ES256": ("P-256", ec.SECP256R1(), 32, 32, P256_ORDER),
    "ES256K": ("P-256K", ec.SECP256K1(), 32, 32, P256K_ORDER),
    "ES384": ("P-384", ec.SECP384R1(), 48, 48, P384_ORDER),
    "ES512": ("P-521", ec.SECP521R1(), 66, 64, P521_ORDER),
}
# Algorithm: bytes of a digest.
PKCS1 = {"RS256": 32, "RS384": 48, "RS512": 64}
PSS = {"PS256": 32, "PS384": 48, "PS512": 64}
HMAC = {"HS256": 32, "HS384": 48, "HS512": 64}
DIGEST_BYTES = {**{name: row[3] for name, row in CURVES.items()}, **PKCS1, **PSS, **HMAC}


@pytest.fixture(scope="module")
def keys(pool):
    """One key of each type, by a short name."""
    made = {row[0]: pool.create("ec", crv=row[0]) for row in CURVES.values()}
    made |= {f"RSA {bits}": pool.create("rsa", key_size=bits) for bits in (2048, 3072, 4096)}
    made |= {f"oct {bits}": pool.create("oct", key_size=bits) for bits in (128, 192, 256)}
    return made


def sign(call, key, algorithm, digest):
    answer = call("POST", key_path(key) + "/sign", {"alg": algorithm, "value": b64(digest)})
    assert answer.status == 200, f"{algorithm} over {digest.hex()}: {answer}"
    assert set(answer.json) == {"kid", "value"} and answer.json["kid"] == key["key"]["kid"], answer
    return unb64(answer.json["value"])


def verdict(call, key, algorithm, digest, signature):
    """True, False, or 400 where the pool does not even judge."""
    body = {"alg": algorithm, "digest": b64(digest), "value": b64(signature)}
    answer = call("POST", key_path(key) + "/verify", body)
    if answer.status == 400:
        assert_error(answer, 400, "BadParameter")
        return 400
    assert answer.status == 200 and set(answer.json) == {"value"}, answer
    assert isinstance(answer.json["value"], bool), answer
    return answer.json["value"]


def assert_not_accepted(pool, key, algorithm, cases):
    """`cases`: what is wrong: (digest, signature). The pool says false or 400 to each."""
    wrong = lanes.each(pool, cases.values(), lambda call, case: verdict(call, key, algorithm, *case))
    accepted = {what: (said, cases[what]) for what, said in zip(cases, wrong) if said is True}
    assert not accepted, f"{algorithm}, public key {key['key']}: {accepted}"


def flipped(data, position):
    """`data` with one bit of the byte at `position` flipped, another one at each place."""
    return data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :]


def lengths_off(signature):
    return {
        "empty": b"",
        "first byte missing": signature[1:],
        "last byte missing": signature[:-1],
        "half": signature[: len(signature) // 2],
        "zero before": b"\0" + signature,
        "zero after": signature + b"\0",
        "twice": signature * 2,
    }


# --- EC


def ec_public_key(key, algorithm):
    _, curve, size, _, _ = CURVES[algorithm]
    numbers = [unb64(key["key"][name]) for name in "xy"]
    assert [len(number) for number in numbers] == [size, size], "a coordinate lost its leading zeros"
    return ec.EllipticCurvePublicNumbers(*map(int.from_bytes, numbers), curve).public_key()


def split(signature):
    return signature[: len(signature) // 2], signature[len(signature) // 2 :]


def verifies(public, digest, signature):
    der = utils.encode_dss_signature(*map(int.from_bytes, split(signature)))
    try:
        public.verify(der, digest, ec.ECDSA(utils.Prehashed(HASHES[len(digest)])))
    except InvalidSignature:
        return False
    return True


@pytest.mark.timeout(max(900, SIGNATURES // 10))
@pytest.mark.parametrize("algorithm", CURVES)
def test_ec_signatures_verify_elsewhere(pool, keys, algorithm):
    curve, _, size, digest_bytes, order = CURVES[algorithm]
    key = keys[curve]
    public = ec_public_key(key, algorithm)
    digests = [bytes(digest_bytes), b"\xff" * digest_bytes]
    count, leading_zeros, first_numbers = 0, 0, set()
    while count < SIGNATURES or leading_zeros == 0:
        assert count < MOST_SIGNATURES, f"no r or s with a leading zero in {count} signatures"
        digests += [os.urandom(digest_bytes) for _ in range(min(1000, SIGNATURES) - len(digests))]
        signatures = lanes.each(pool, digests, lambda call, digest: sign(call, key, algorithm, digest))
        for digest, signature in zip(digests, signatures):
            context = f"{algorithm}, {key['key']}, digest {digest.hex()}, signature {signature.hex()}"
            assert len(signature) == 2 * size, context
            for number in split(signature):
                assert 0 < int.from_bytes(number) < order, context
                leading_zeros += number[0] == 0
            assert verifies(public, digest, signature), context
            first_numbers.add(split(signature)[0])
        count += len(digests)
        digests = []
    # The same r twice is the same nonce twice, which gives the key away.
    assert len(first_numbers) == count
    print(f"{algorithm}: {count} signatures verify, {leading_zeros} numbers with a leading zero")


@pytest.mark.parametrize("algorithm", CURVES)
def test_the_pool_agrees_on_ec_signatures(pool, keys, algorithm):
    """Good ones, leading zeros among them, and their twins: (r, n - s) is as good as (r, s) in ECDSA."""
    curve, _, size, digest_bytes, order = CURVES[algorithm]
    key = keys[curve]
    public = ec_public_key(key, algorithm)

    def work(call, digest):
        signature = sign(call, key, algorithm, digest)
        r, s = split(signature)
        twin = r + (order - int.from_bytes(s)).to_bytes(size)
        assert verifies(public, digest, twin)
        for good in (signature, twin):
            assert verdict(call, key, algorithm, digest, good) is True, (key, digest.hex(), good.hex())

    lanes.each(pool, [os.urandom(digest_bytes) for _ in range(max(100, SIGNATURES // 10))], work)


@pytest.mark.parametrize("algorithm", CURVES)
def test_what_is_no_ec_signature_is_refused(pool, keys, algorithm):
    curve, _, size, digest_bytes, order = CURVES[algorithm]
    key = keys[curve]
    digest = os.urandom(digest_bytes)
    signature = sign(pool.call, key, algorithm, digest)
    r, s = split(signature)
    another_key = pool.create("ec", crv=curve)
    assert verdict(pool.call, key, algorithm, digest, signature) is True
    cases = {f"bit flipped in byte {at}": (digest, flipped(signature, at)) for at in range(2 * size)}
    for at in range(digest_bytes):
        cases[f"bit of the digest flipped, byte {at}"] = (flipped(digest, at), signature)
    cases |= {what: (digest, other) for what, other in lengths_off(signature).items()}
    cases |= {
        "another digest": (os.urandom(digest_bytes), signature),
        "digest backwards": (digest[::-1], signature),
        "s and r swapped": (digest, s + r),
        "DER": (digest, utils.encode_dss_signature(int.from_bytes(r), int.from_bytes(s))),
        "numbers backwards": (digest, r[::-1] + s[::-1]),
        "of another key": (digest, sign(pool.call, another_key, algorithm, digest)),
        "n - r": (digest, (order - int.from_bytes(r)).to_bytes(size) + s),
    }
    special = {"0": 0, "1": 1, "n - 1": order - 1, "n": order, "n + 1": order + 1, "all ones": 256**size - 1}
    for what, number in special.items():
        cases[f"r = {what}"] = (digest, number.to_bytes(size) + s)
        cases[f"s = {what}"] = (digest, r + number.to_bytes(size))
        for other, another in special.items():
            cases[f"r = {what}, s = {other}"] = (digest, number.to_bytes(size) + another.to_bytes(size))
    for what, number, place in (("r", r, 0), ("s", s, 1)):
        # Congruent, and still not in range: 521 bits leave room for it, and so does a small number elsewhere.
        larger = int.from_bytes(number) + order
        if larger < 256**size:
            parts = [r, s]
            parts[place] = larger.to_bytes(size)
            cases[f"{what} + n"] = (digest, b"".join(parts))
    assert algorithm != "ES512" or {"r + n", "s + n"} <= set(cases)
    assert_not_accepted(pool, key, algorithm, cases)


def test_coordinates_keep_their_leading_zeros(pool):
    """Half of all coordinates on P-521 begin with a zero byte; each must be there on the wire."""
    name = fresh_name("ec")
    for _ in range(64):
        key = pool.create("ec", name, crv="P-521")
        ec_public_key(key, "ES512")
        if 0 in (unb64(key["key"]["x"])[0], unb64(key["key"]["y"])[0]):
            return
    raise AssertionError("no coordinate with a leading zero among 128")


# --- RSA


def rsa_public_key(key):
    return rsa.RSAPublicNumbers(*(int.from_bytes(unb64(key["key"][name])) for name in "en")).public_key()


def rsa_scheme(algorithm):
    """Padding and hash. The salt is as long as the digest: any other length must not verify."""
    size = DIGEST_BYTES[algorithm]
    if algorithm in PKCS1:
        return padding.PKCS1v15(), HASHES[size]
    return padding.PSS(padding.MGF1(HASHES[size]), salt_length=size), HASHES[size]


@pytest.mark.timeout(max(900, SIGNATURES // 2))
@pytest.mark.parametrize("bits", [2048, 3072, 4096])
@pytest.mark.parametrize("algorithm", [*PKCS1, *PSS])
def test_rsa_signatures_verify_elsewhere(pool, keys, algorithm, bits):
    key = keys[f"RSA {bits}"]
    public = rsa_public_key(key)
    assert public.key_size == bits and len(unb64(key["key"]["n"])) == bits // 8
    scheme, function = rsa_scheme(algorithm)
    digests = [os.urandom(DIGEST_BYTES[algorithm]) for _ in range(RSA_SIGNATURES)]

    def work(call, digest):
        signature = sign(call, key, algorithm, digest)
        context = f"{algorithm}, {key['key']}, digest {digest.hex()}, signature {signature.hex()}"
        assert len(signature) == bits // 8, context
        public.verify(signature, digest, scheme, utils.Prehashed(function))
        assert verdict(call, key, algorithm, digest, signature) is True, context
        return signature

    lanes.each(pool, digests, work)
    again = {sign(pool.call, key, algorithm, digests[0]) for _ in range(3)}
    assert len(again) == (1 if algorithm in PKCS1 else 3), "PKCS#1 has no salt, PSS a new one each time"


def test_rsa_signatures_keep_their_leading_zeros(pool, keys):
    key = keys["RSA 2048"]
    public = rsa_public_key(key)
    scheme, function = rsa_scheme("RS256")
    for _ in range(30):
        digests = [os.urandom(32) for _ in range(200)]
        signatures = lanes.each(pool, digests, lambda call, digest: sign(call, key, "RS256", digest))
        short = [pair for pair in zip(digests, signatures) if pair[1][0] == 0]
        for digest, signature in short:
            assert len(signature) == 256
            public.verify(signature, digest, scheme, utils.Prehashed(function))
            assert verdict(pool.call, key, "RS256", digest, signature) is True
            assert verdict(pool.call, key, "RS256", digest, signature.lstrip(b"\0")) is not True
        if short:
            return
    raise AssertionError("no signature with a leading zero among 6000")


@pytest.mark.parametrize("algorithm", [*PKCS1, *PSS])
def test_what_is_no_rsa_signature_is_refused(pool, keys, algorithm):
    key = keys["RSA 2048"]
    modulus = int.from_bytes(unb64(key["key"]["n"]))
    digest = os.urandom(DIGEST_BYTES[algorithm])
    signature = sign(pool.call, key, algorithm, digest)
    assert verdict(pool.call, key, algorithm, digest, signature) is True
    cases = {f"bit flipped in byte {at}": (digest, flipped(signature, at)) for at in range(0, 256, 3)}
    cases |= {what: (digest, other) for what, other in lengths_off(signature).items()}
    cases |= {
        "another digest": (os.urandom(len(digest)), signature),
        "bit of the digest flipped": (flipped(digest, len(digest) - 1), signature),
        "backwards": (digest, signature[::-1]),
        "zero": (digest, bytes(256)),
        "one": (digest, bytes(255) + b"\1"),
        "modulus": (digest, modulus.to_bytes(256)),
        "modulus - 1": (digest, (modulus - 1).to_bytes(256)),
        "all ones": (digest, b"\xff" * 256),
        "of another key": (digest, sign(pool.call, pool.create("rsa"), algorithm, digest)),
    }
    larger = int.from_bytes(signature) + modulus
    if larger < 256**256:
        cases["signature + modulus"] = (digest, larger.to_bytes(256))
    # The other padding, and the same padding with another hash that has room for this digest's length.
    for other in {**PKCS1, **PSS}:
        if other != algorithm and DIGEST_BYTES[other] == len(digest):
            cases[f"made by {other}"] = (digest, sign(pool.call, key, other, digest))
    cases["the digest alone behind the padding"] = (digest, sign(pool.call, key, "RSNULL", digest))
    assert_not_accepted(pool, key, algorithm, cases)


def padded(data, size):
    """EMSA-PKCS1-v1_5 (RFC 8017 section 9.2) around `data` as it stands."""
    return b"\0\1" + b"\xff" * (size - len(data) - 3) + b"\0" + data


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_rsnull_pads_what_it_is_given(pool, keys, bits):
    key = keys[f"RSA {bits}"]
    public = rsa_public_key(key).public_numbers()
    most = bits // 8 - 11
    # 36 bytes: MD5 and SHA-1 side by side, as old TLS signed them.
    for length in (1, 20, 32, 36, 51, most - 1, most):
        data = os.urandom(length)
        signature = sign(pool.call, key, "RSNULL", data)
        opened = pow(int.from_bytes(signature), public.e, public.n).to_bytes(bits // 8)
        assert opened == padded(data, bits // 8), length
        assert verdict(pool.call, key, "RSNULL", data, signature) is True
        cases = {
            "bit flipped": (data, flipped(signature, 100)),
            "other data": (flipped(data, 0), signature),
            "data longer by a zero": (data + b"\0", signature),
            "data longer by a zero before": (b"\0" + data, signature),
            **{what: (data, other) for what, other in lengths_off(signature).items()},
        }
        if length > 1:
            cases["data shorter"] = (data[:-1], signature)
        assert_not_accepted(pool, key, "RSNULL", cases)
    for length in (0, most + 1, bits // 8):
        answer = pool.call("POST", key_path(key) + "/sign", {"alg": "RSNULL", "value": b64(bytes(length))})
        message = assert_error(answer, 400, "BadParameter")
        assert f"1 to {most} bytes" in message and str(length) in message, message


# The DER of a DigestInfo before its digest (RFC 8017 section 9.2, note 1).
DIGEST_INFO = {
    "RS256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "RS384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "RS512": bytes.fromhex("3051300d060960864801650304020305000440"),
}


@pytest.mark.parametrize("algorithm", PKCS1)
def test_rsnull_over_a_digest_info_is_the_signature(pool, keys, algorithm):
    key = keys["RSA 2048"]
    digest = os.urandom(PKCS1[algorithm])
    info = DIGEST_INFO[algorithm] + digest
    signature = sign(pool.call, key, algorithm, digest)
    assert sign(pool.call, key, "RSNULL", info) == signature
    assert verdict(pool.call, key, "RSNULL", info, signature) is True
    # By this way bytes that are nearly a DigestInfo can be signed; none of them may pass for one.
    sha1 = bytes.fromhex("3021300906052b0e03021a05000414")
    nearly = {
        "no parameters": bytes.fromhex("30") + bytes([info[1] - 2, 0x30, 0x0B]) + info[4:15] + info[17:],
        "trailing zero": info + b"\0",
        "leading zero": b"\0" + info,
        "length in long form": b"\x30\x81" + info[1:],
        "cut": info[:-1],
        "another hash's name": sha1 + digest,
        "hash's name of another length": next(
            prefix for name, prefix in DIGEST_INFO.items() if name != algorithm
        )
        + digest,
    }
    cases = {what: (digest, sign(pool.call, key, "RSNULL", data)) for what, data in nearly.items()}
    assert_not_accepted(pool, key, algorithm, cases)


# --- HMAC


@pytest.mark.parametrize("bits", [128, 192, 256])
@pytest.mark.parametrize("algorithm", HMAC)
def test_macs_are_bound_to_key_algorithm_and_digest(pool, keys, algorithm, bits):
    """The key of a MAC never leaves, so nobody else can compute one: `crates/crypto-software` has known answers."""
    key = keys[f"oct {bits}"]
    size = HMAC[algorithm]
    digests = [os.urandom(size) for _ in range(RSA_SIGNATURES)]

    def work(call, digest):
        mac = sign(call, key, algorithm, digest)
        assert len(mac) == size
        assert sign(call, key, algorithm, digest) == mac, "a MAC is a function of key and digest"
        assert verdict(call, key, algorithm, digest, mac) is True
        return mac

    macs = lanes.each(pool, digests, work)
    assert len(set(macs)) == len(macs)
    digest, mac = digests[0], macs[0]
    cases = {f"bit flipped in byte {at}": (digest, flipped(mac, at)) for at in range(size)}
    cases |= {f"bit of the digest flipped, byte {at}": (flipped(digest, at), mac) for at in range(size)}
    cases |= {what: (digest, other) for what, other in lengths_off(mac).items()}
    cases |= {f"first {length} bytes": (digest, mac[:length]) for length in (1, 10, 16, size - 8)}
    cases |= {
        "another digest": (digests[1], mac),
        "of another key": (digest, sign(pool.call, pool.create("oct", key_size=bits), algorithm, digest)),
        "the digest itself": (digest, digest),
        "zeros": (digest, bytes(size)),
    }
    assert_not_accepted(pool, key, algorithm, cases)


# --- what goes with what


def fits(algorithm, name):
    if algorithm in CURVES:
        return name == CURVES[algorithm][0]
    return name.startswith("oct" if algorithm in HMAC else "RSA")


@pytest.mark.parametrize("algorithm", [*DIGEST_BYTES, "RSNULL"])
def test_each_key_takes_its_own_algorithms_alone(pool, keys, algorithm):
    digest = b64(os.urandom(DIGEST_BYTES.get(algorithm, 32)))
    for name, key in keys.items():
        signed = pool.call("POST", key_path(key) + "/sign", {"alg": algorithm, "value": digest})
        body = {"alg": algorithm, "digest": digest, "value": b64(bytes(64))}
        verified = pool.call("POST", key_path(key) + "/verify", body)
        if fits(algorithm, name):
            assert signed.status == 200, (name, signed)
            assert (verified.status, verified.json) == (200, {"value": False}), (name, verified)
        else:
            for answer in (signed, verified):
                message = assert_error(answer, 400, "BadParameter")
                assert algorithm in message, message
                assert answer.error["innererror"] == {"code": "KeySizeIncorrect"}, answer


@pytest.mark.parametrize("algorithm", DIGEST_BYTES)
def test_a_digest_has_the_length_of_its_hash(pool, keys, algorithm):
    key = next(key for name, key in keys.items() if fits(algorithm, name))
    right = DIGEST_BYTES[algorithm]
    for length in {0, 1, 20, 32, 48, 64, right - 1, right + 1, 2 * right, 4096} - {right}:
        digest = b64(bytes(length))
        bodies = {
            "/sign": {"alg": algorithm, "value": digest},
            "/verify": {"alg": algorithm, "digest": digest, "value": b64(bytes(64))},
        }
        for operation, body in bodies.items():
            answer = pool.call("POST", key_path(key) + operation, body)
            message = assert_error(answer, 400, "BadParameter")
            assert f"{right} bytes" in message and f"{length} bytes" in message, message

"""wrapKey and unwrapKey, encrypt and decrypt: what goes in comes out, byte for byte, at every length; what cannot be is
refused with the reason; and the bytes between are those of the published algorithms.
"""

import base64
import os

import pytest
from cryptography.hazmat.primitives import hashes, keywrap
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import block_modes
import lanes
from holdfast import assert_error, b64, key_path, unb64

SIZES = (128, 192, 256)
LONGEST = 512
MOST_BYTES = 64 * 1024
RSA_BITS = (2048, 3072, 4096)


@pytest.fixture(scope="module")
def keys(pool):
    made = {size: pool.create("oct", key_size=size) for size in SIZES}
    return made | {bits: pool.create("rsa", key_size=bits) for bits in RSA_BITS}


def padded_b64(data):
    return base64.urlsafe_b64encode(data).decode()


def spelling(number):
    """base64url without its padding or with it, in turn."""
    return padded_b64 if number % 2 else b64


def ask(call, key, operation, algorithm, value, write=b64, **parts):
    body = {"alg": algorithm, "value": write(value)}
    body |= {name: write(part) for name, part in parts.items()}
    return call("POST", f"{key_path(key)}/{operation}", body)


def done(answer, key, members=()):
    """The bytes of an answer that went well. Answers are always written without padding."""
    assert answer.status == 200, answer
    assert set(answer.json) == {"kid", "value", *members}, answer
    assert answer.json["kid"] == key["key"]["kid"], answer
    assert b"=" not in answer.body, answer
    parts = {name: unb64(answer.json[name]) for name in ("value", *members)}
    return parts if members else parts["value"]


def refused(answer, *words):
    message = assert_error(answer, 400, "BadParameter")
    for word in words:
        assert word in message, message
    return message


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :]


# --- AES key wrap


@pytest.mark.parametrize("size", SIZES)
def test_key_wrap_at_every_length(pool, keys, size):
    """RFC 3394: whole half blocks, two at least."""
    key, algorithm = keys[size], f"A{size}KW"

    def work(call, length):
        material = os.urandom(length)
        answer = ask(call, key, "wrapkey", algorithm, material, spelling(length // 8))
        if length % 8 or length < 16:
            refused(answer, algorithm, "multiple of 8 bytes, at least 16", f"not {length}")
            return
        wrapped = done(answer, key)
        assert len(wrapped) == length + 8
        answer = ask(call, key, "unwrapkey", algorithm, wrapped, spelling(length // 8 + 1))
        assert done(answer, key) == material, length

    lanes.each(pool, range(LONGEST + 1), work)
    material = os.urandom(MOST_BYTES)
    wrapped = done(ask(pool.call, key, "wrapkey", algorithm, material), key)
    assert done(ask(pool.call, key, "unwrapkey", algorithm, wrapped), key) == material
    refused(ask(pool.call, key, "wrapkey", algorithm, bytes(MOST_BYTES + 8)), f"at most {MOST_BYTES} bytes")


@pytest.mark.parametrize("size", SIZES)
def test_what_was_not_wrapped_does_not_unwrap(pool, keys, size):
    key, algorithm = keys[size], f"A{size}KW"
    material = os.urandom(32)
    wrapped = done(ask(pool.call, key, "wrapkey", algorithm, material), key)
    another_key = pool.create("oct", key_size=size)
    messages = {refused(ask(pool.call, another_key, "unwrapkey", algorithm, wrapped))}
    for at in range(len(wrapped)):
        messages.add(refused(ask(pool.call, key, "unwrapkey", algorithm, flipped(wrapped, at))))
    for other in (wrapped[8:], wrapped[:-8], wrapped[::-1], os.urandom(24), os.urandom(40), bytes(40)):
        messages.add(refused(ask(pool.call, key, "unwrapkey", algorithm, other)))
    assert len(messages) == 1, f"why it failed is told: {messages}"
    for length in {*range(24), *range(25, 80)} - set(range(24, 80, 8)):
        answer = ask(pool.call, key, "unwrapkey", algorithm, bytes(length))
        refused(answer, algorithm, "multiple of 8 bytes, at least 24", f"not {length}")


# --- AES-GCM, AES-CBC, AES-CBC with padding


@pytest.mark.parametrize("size", SIZES)
def test_gcm_at_every_length(pool, keys, size):
    key, algorithm = keys[size], f"A{size}GCM"

    def work(call, length):
        plaintext, additional = os.urandom(length), os.urandom(length % 37)
        bound = {"aad": additional} if additional else {}
        answer = ask(call, key, "encrypt", algorithm, plaintext, spelling(length // 3), **bound)
        sealed = done(answer, key, {"iv", "tag", *bound})
        assert [len(sealed[name]) for name in ("value", "iv", "tag")] == [length, 12, 16]
        assert sealed.get("aad", b"") == additional
        ciphertext = sealed.pop("value")
        answer = ask(call, key, "decrypt", algorithm, ciphertext, spelling(length // 3 + 1), **sealed)
        assert done(answer, key) == plaintext, length
        return sealed["iv"]

    ivs = lanes.each(pool, range(LONGEST + 1), work)
    assert len(set(ivs)) == len(ivs), "an iv came twice"
    plaintext = os.urandom(MOST_BYTES)
    sealed = done(ask(pool.call, key, "encrypt", algorithm, plaintext), key, {"iv", "tag"})
    assert done(ask(pool.call, key, "decrypt", algorithm, sealed.pop("value"), **sealed), key) == plaintext
    refused(ask(pool.call, key, "encrypt", algorithm, bytes(MOST_BYTES + 1)), f"at most {MOST_BYTES} bytes")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", [0, 1, 16, 33])
def test_gcm_opens_what_it_sealed_alone(pool, keys, size, length):
    key, algorithm = keys[size], f"A{size}GCM"
    plaintext, additional = os.urandom(length), b"bound to this"
    sealed = done(
        ask(pool.call, key, "encrypt", algorithm, plaintext, aad=additional), key, {"iv", "tag", "aad"}
    )

    def opened(under=key, **changed):
        parts = {**sealed, **changed}
        return ask(pool.call, under, "decrypt", algorithm, parts.pop("value"), **parts)

    assert done(opened(), key) == plaintext
    messages = {refused(opened(under=pool.create("oct", key_size=size)))}
    for name, part in sealed.items():
        for at in range(len(part)):
            messages.add(refused(opened(**{name: flipped(part, at)})))
    messages.add(refused(opened(aad=additional[:-1])))
    messages.add(refused(opened(value=sealed["value"] + b"\0")))
    messages.add(refused(opened(tag=bytes(16))))
    assert len(messages) == 1, f"why it failed is told: {messages}"
    for bad in range(16):
        refused(opened(tag=sealed["tag"][:bad]), "tag of 16 bytes", f"not {bad}")
    for bad in {*range(17)} - {12}:
        refused(opened(iv=bytes(bad)), "iv of 12 bytes", f"not {bad}")


@pytest.mark.parametrize("size", SIZES)
def test_cbc_at_every_length(pool, keys, size):
    """One byte at least; zeros fill up the last block, and come back."""
    key, algorithm = keys[size], f"A{size}CBC"

    def work(call, length):
        plaintext = os.urandom(length)
        own_iv = {"iv": os.urandom(16)} if length // 16 % 2 else {}
        answer = ask(call, key, "encrypt", algorithm, plaintext, spelling(length // 16), **own_iv)
        if length == 0:
            refused(answer, algorithm, "whole blocks of 16 bytes", f"not {length}")
            return
        made = done(answer, key, {"iv"})
        filled = plaintext + bytes(-length % 16)
        assert (len(made["value"]), len(made["iv"])) == (len(filled), 16)
        assert made["iv"] == own_iv.get("iv", made["iv"])
        answer = ask(
            call, key, "decrypt", algorithm, made["value"], spelling(length // 16 + 1), iv=made["iv"]
        )
        assert done(answer, key) == filled, length

    lanes.each(pool, range(LONGEST + 1), work)


@pytest.mark.parametrize("mode", ["CBC", "CBCPAD"])
def test_cbc_passes_over_additional_data(pool, keys, mode):
    """As the service does, whose clients send it with every algorithm. It is authenticated by nothing."""
    key, algorithm, plaintext = keys[256], f"A256{mode}", os.urandom(32)
    made = done(ask(pool.call, key, "encrypt", algorithm, plaintext, aad=b"a"), key, {"iv"})
    for parts in ({}, {"aad": b"a"}, {"aad": b"b"}):
        answer = ask(pool.call, key, "decrypt", algorithm, made["value"], iv=made["iv"], **parts)
        assert done(answer, key) == plaintext


@pytest.mark.parametrize("size", SIZES)
def test_cbc_with_padding_at_every_length(pool, keys, size):
    key, algorithm = keys[size], f"A{size}CBCPAD"

    def work(call, length):
        plaintext = os.urandom(length)
        padding_bytes = 16 - length % 16
        answer = ask(call, key, "encrypt", algorithm, plaintext, spelling(length // 3))
        made = done(answer, key, {"iv"})
        assert len(made["value"]) == length + padding_bytes
        answer = ask(
            call, key, "decrypt", algorithm, made["value"], spelling(length // 3 + 1), iv=made["iv"]
        )
        assert done(answer, key) == plaintext, length
        # The same key without padding shows what was added: PKCS#7 (RFC 5652 section 6.3).
        answer = ask(call, key, "decrypt", f"A{size}CBC", made["value"], iv=made["iv"])
        assert done(answer, key) == plaintext + bytes([padding_bytes]) * padding_bytes, length

    lanes.each(pool, range(LONGEST + 1), work)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["CBC", "CBCPAD"])
def test_cbc_refuses_what_is_no_ciphertext(pool, keys, size, mode):
    key, algorithm, iv = keys[size], f"A{size}{mode}", bytes(16)
    for length in {*range(65)} - {16, 32, 48, 64}:
        answer = ask(pool.call, key, "decrypt", algorithm, bytes(length), iv=iv)
        refused(answer, "whole blocks of 16 bytes", f"not {length}")
    for length in {*range(33)} - {16}:
        for operation in ("encrypt", "decrypt"):
            answer = ask(pool.call, key, operation, algorithm, bytes(16), iv=bytes(length))
            refused(answer, "iv of 16 bytes", f"not {length}")
    refused(ask(pool.call, key, "decrypt", algorithm, bytes(16)), "iv of 16 bytes", "not 0")


# Algorithm's end, operation, a part that the algorithm has no place for.
OUT_OF_PLACE = [
    ("GCM", "encrypt", {"iv": bytes(12)}),
    ("CBC", "decrypt", {"iv": bytes(16), "tag": bytes(16)}),
    ("KW", "wrapkey", {"iv": bytes(8)}),
    ("KW", "wrapkey", {"aad": b"a"}),
    ("KW", "unwrapkey", {"tag": bytes(16)}),
]


@pytest.mark.parametrize("end, operation, parts", OUT_OF_PLACE)
def test_a_part_out_of_place_is_refused(pool, keys, end, operation, parts):
    """Ignored, it would let a caller believe in what nobody looks at."""
    answer = ask(pool.call, keys[256], operation, f"A256{end}", bytes(32), **parts)
    refused(answer, f"A256{end} takes no ")


# --- the published modes over the pool's own block cipher


class BlockCipher:
    """The block cipher under a key of the pool: CBC of one block, the iv being zeros."""

    def __init__(self, call, key, size):
        self.call, self.key, self.algorithm = call, key, f"A{size}CBC"

    def encrypt(self, block):
        answer = ask(self.call, self.key, "encrypt", self.algorithm, block, iv=bytes(16))
        return done(answer, self.key, {"iv"})["value"]

    def decrypt(self, block):
        return done(ask(self.call, self.key, "decrypt", self.algorithm, block, iv=bytes(16)), self.key)


def test_the_modes_of_these_tests_are_the_published_ones():
    """Against another implementation, so that what the pool is compared with is right."""
    for size in SIZES:
        secret, iv, additional = os.urandom(size // 8), os.urandom(12), os.urandom(21)
        cipher = Cipher(algorithms.AES(secret), modes.ECB()).encryptor()
        for length in (0, 1, 16, 50):
            plaintext = os.urandom(length)
            ciphertext, tag = block_modes.gcm(cipher.update, iv, additional, plaintext)
            assert ciphertext + tag == AESGCM(secret).encrypt(iv, plaintext, additional)
        for length in (16, 24, 64):
            material = os.urandom(length)
            assert block_modes.key_wrap(cipher.update, material) == keywrap.aes_key_wrap(secret, material)


@pytest.mark.parametrize("size", SIZES)
def test_the_pools_modes_are_the_published_ones(pool, keys, size):
    """The key is not known here, but the modes are built of its block cipher in one way only."""
    key = keys[size]
    with_own_connection = pool.connection()

    def call(*words, **more):
        return pool.call(*words, connection=with_own_connection, **more)

    cipher = BlockCipher(call, key, size)
    block = os.urandom(16)
    assert cipher.decrypt(cipher.encrypt(block)) == block
    for length in (16, 32, 40):
        material = os.urandom(length)
        wrapped = done(ask(call, key, "wrapkey", f"A{size}KW", material), key)
        assert wrapped == block_modes.key_wrap(cipher.encrypt, material), length
    for length in (0, 1, 16, 50):
        plaintext, additional = os.urandom(length), os.urandom(21)
        answer = ask(call, key, "encrypt", f"A{size}GCM", plaintext, aad=additional)
        made = done(answer, key, {"iv", "tag", "aad"})
        expected = block_modes.gcm(cipher.encrypt, made["iv"], additional, plaintext)
        assert (made["value"], made["tag"]) == expected, length
    plaintext = os.urandom(64)
    made = done(ask(call, key, "encrypt", f"A{size}CBC", plaintext), key, {"iv"})
    previous = made["iv"]
    for at in range(0, 64, 16):
        previous = cipher.encrypt(block_modes.xor(plaintext[at : at + 16], previous))
        assert made["value"][at : at + 16] == previous
    with_own_connection.close()


# --- RSA

# Algorithm: bytes of the modulus that the padding takes, the padding elsewhere.
RSA = {
    "RSA-OAEP": (42, padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)),
    "RSA-OAEP-256": (66, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)),
    "RSA1_5": (11, padding.PKCS1v15()),
}
DIRECTIONS = {"encrypt": "decrypt", "wrapkey": "unwrapkey"}


def rsa_public_key(key):
    return rsa.RSAPublicNumbers(*(int.from_bytes(unb64(key["key"][name])) for name in "en")).public_key()


@pytest.mark.parametrize("bits", RSA_BITS)
@pytest.mark.parametrize("algorithm", RSA)
def test_rsa_up_to_its_limit(pool, keys, algorithm, bits):
    key = keys[bits]
    overhead, scheme = RSA[algorithm]
    limit = bits // 8 - overhead
    public = rsa_public_key(key)
    lengths = {*range(0, limit, 1 if bits == 2048 else 16), 1, 31, limit - 1, limit}

    def work(call, length):
        plaintext = os.urandom(length)
        for number, (there, back) in enumerate(DIRECTIONS.items()):
            write = spelling(length // 3 + number)
            ours = done(ask(call, key, there, algorithm, plaintext, write), key)
            assert len(ours) == bits // 8
            for ciphertext in (ours, public.encrypt(plaintext, scheme)):
                opened = done(ask(call, key, back, algorithm, ciphertext, write), key)
                assert opened == plaintext, (there, length)

    lanes.each(pool, sorted(lengths), work)
    for there in DIRECTIONS:
        for length in (limit + 1, bits // 8, bits // 8 + 1):
            answer = ask(pool.call, key, there, algorithm, bytes(length))
            refused(answer, algorithm, f"{bits} bits", f"at most {limit} bytes, not {length}")


@pytest.mark.parametrize("algorithm", RSA)
def test_rsa_ciphertext_opens_with_its_own_key_and_padding_alone(pool, keys, algorithm):
    key = keys[2048]
    another_key = pool.create("rsa")
    plaintext = os.urandom(32)
    ciphertexts = {done(ask(pool.call, key, "wrapkey", algorithm, plaintext), key) for _ in range(3)}
    assert len(ciphertexts) == 3, "the padding is random"
    ciphertext = ciphertexts.pop()
    assert done(ask(pool.call, key, "unwrapkey", algorithm, ciphertext), key) == plaintext
    for back in DIRECTIONS.values():
        assert not opens_to(pool, another_key, back, algorithm, ciphertext, plaintext)
        for other in set(RSA) - {algorithm}:
            assert not opens_to(pool, key, back, other, ciphertext, plaintext)
        for at in range(0, 256, 5):
            assert not opens_to(pool, key, back, algorithm, flipped(ciphertext, at), plaintext)
        for length in (0, 1, 255, 257, 512):
            answer = ask(pool.call, key, back, algorithm, bytes(length))
            refused(answer, algorithm, "256 bytes", f"not {length}")


def opens_to(pool, key, back, algorithm, ciphertext, plaintext):
    """Refused, as a rule. RSA1_5 has so little redundancy that one in 100,000 opens to something else."""
    answer = ask(pool.call, key, back, algorithm, ciphertext)
    if answer.status == 400 or algorithm != "RSA1_5":
        refused(answer)
        return False
    return done(answer, key) == plaintext


def test_a_failed_rsa_decryption_does_not_say_why(pool, keys):
    """Padded messages that are wrong in one way each: all get one and the same message."""
    key = keys[2048]
    numbers = rsa_public_key(key).public_numbers()

    def raised(padded):
        return pow(int.from_bytes(padded), numbers.e, numbers.n).to_bytes(256)

    filler = b"\x55" * 300
    bad = {
        "no zero behind the padding": b"\0\2" + filler[:254],
        "type 1": b"\0\1" + b"\xff" * 221 + b"\0" + filler[:32],
        "type 0": b"\0\0" + filler[:221] + b"\0" + filler[:32],
        "first byte one": b"\1\2" + filler[:221] + b"\0" + filler[:32],
        "padding of seven bytes": b"\0\2" + filler[:7] + b"\0" + filler[:246],
        "no padding": b"\0\2\0" + filler[:253],
        "zero": bytes(256),
        "one": bytes(255) + b"\1",
    }
    messages = {refused(ask(pool.call, key, "decrypt", "RSA1_5", raised(data))) for data in bad.values()}
    assert len(messages) == 1, messages
    labelled = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"label")
    other_mask = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA256(), None)
    bad_oaep = [raised(data) for data in bad.values()]
    bad_oaep += [rsa_public_key(key).encrypt(b"text", scheme) for scheme in (labelled, other_mask)]
    bad_oaep.append((numbers.n - 1).to_bytes(256))
    messages = {refused(ask(pool.call, key, "decrypt", "RSA-OAEP-256", data)) for data in bad_oaep}
    assert len(messages) == 1, messages


@pytest.mark.parametrize("algorithm", RSA)
def test_rsa_takes_no_part_beside_the_text(pool, keys, algorithm):
    for parts in ({"iv": bytes(12)}, {"aad": b"a"}):
        for there in DIRECTIONS:
            refused(ask(pool.call, keys[2048], there, algorithm, b"text", **parts), f"{algorithm} takes no ")


# --- what goes with what


@pytest.mark.parametrize("operation", ["encrypt", "decrypt", "wrapkey", "unwrapkey"])
def test_each_key_takes_its_own_algorithms_alone(pool, keys, operation):
    """The table of the service: GCM and CBC encrypt and do not wrap, KW wraps and does not encrypt, EC does neither."""
    own = {"encrypt": ("GCM", "CBC", "CBCPAD"), "wrapkey": ("KW",)}
    own |= {back: own[there] for there, back in DIRECTIONS.items()}
    everything = [*RSA, *(f"A{size}{end}" for size in SIZES for end in ("GCM", "CBC", "CBCPAD", "KW"))]
    all_keys = {**keys, "EC": pool.create("ec")}
    for name, key in all_keys.items():
        for algorithm in everything:
            allowed = (name in RSA_BITS and algorithm in RSA) or (
                name in SIZES and algorithm in {f"A{name}{end}" for end in own[operation]}
            )
            answer = ask(pool.call, key, operation, algorithm, bytes(32))
            if name == "EC":
                # Of an EC key the operation itself is no key_op.
                assert_error(answer, 403, "Forbidden")
                assert answer.error["innererror"] == {"code": "KeyOperationForbidden"}, answer
            elif allowed:
                assert answer.status == 200 or "innererror" not in answer.error, (name, algorithm, answer)
            else:
                refused(answer, algorithm)
                assert answer.error["innererror"] == {"code": "KeySizeIncorrect"}, (name, algorithm, answer)

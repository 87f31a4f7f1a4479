"""Where keys are in the memory of a running server: in the arena, which no core file has, and nowhere else.

The test learns the keys as an attacker with the arena in hand would: the modulus is public, and a factor of it lies there.
Then it looks for them in everything else that the process maps. The control runs without the arena and finds them.
"""

import math
import os
import pathlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from holdfast import Pool, b64, fresh_name, key_path, unb64
from lanes import each

OPERATIONS = 1000
MIB = 1 << 20
DIGEST = bytes(range(32))
BLOCK = bytes(range(16))
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.fixture
def dumpable(tmp_path):
    """Starts the server that lets its memory be read; with `HOLDFAST_DANGER_...` as given."""
    program = os.environ.get("HOLDFAST_BIN_UNSEALED")
    if not program:
        missing = "HOLDFAST_BIN_UNSEALED is not set: NOBODY HAS SHOWN where keys are in memory"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    started = []

    def start(**switches):
        environment = {f"HOLDFAST_DANGER_{name}": value for name, value in switches.items()}
        pool = Pool(
            tmp_path / str(len(started)),
            program=str(pathlib.Path(program).resolve(strict=True)),
            environment={"HOLDFAST_DANGER_DUMPABLE": "1", **environment},
        )
        pool.data.parent.mkdir()
        pool.start()
        started.append(pool)
        return pool

    yield start
    for pool in started:
        pool.kill()


class Mapping:
    """One mapping of a process, as `smaps` shows it."""

    def __init__(self, line):
        words = line.split()
        start, end = words[0].split("-")
        self.start, self.end = int(start, 16), int(end, 16)
        self.permissions = words[1]
        self.name = words[5] if len(words) > 5 else "anonymous"
        self.flags = []

    @property
    def is_arena(self):
        """Left out of dumps and empty in children: nothing else in the server is both."""
        return {"dd", "wf"} <= set(self.flags)

    def read(self, memory):
        memory.seek(self.start)
        try:
            return memory.read(self.end - self.start)
        except (OSError, OverflowError, ValueError):  # the kernel's own pages
            return b""


def mappings(pool):
    found = []
    for line in pathlib.Path(f"/proc/{pool.process.pid}/smaps").read_text().splitlines():
        if line.startswith("VmFlags:"):
            found[-1].flags = line.split()[1:]
        elif "-" in line.split()[0]:
            found.append(Mapping(line))
    return found


def contents(pool, wanted):
    """The mappings that `wanted` chooses, with what is in them."""
    with open(f"/proc/{pool.process.pid}/mem", "rb", buffering=0) as memory:
        for mapping in mappings(pool):
            if mapping.permissions.startswith("r") and wanted(mapping):
                yield mapping, mapping.read(memory)


def use(pool):
    """Makes an RSA and an AES key and uses them a thousand times; gives what a caller may know of them."""
    rsa = pool.create("rsa", fresh_name("rsa"))
    oct_ = pool.create("oct", fresh_name("oct"))
    jobs = [
        (rsa, "sign", {"alg": "RS256", "value": b64(DIGEST)}),
        (rsa, "sign", {"alg": "PS256", "value": b64(DIGEST)}),
        (oct_, "encrypt", {"alg": "A256GCM", "value": b64(DIGEST)}),
        (oct_, "encrypt", {"alg": "A256CBC", "value": b64(BLOCK), "iv": b64(BLOCK)}),
        (oct_, "wrapkey", {"alg": "A256KW", "value": b64(DIGEST)}),
    ]

    def work(call, job):
        bundle, operation, body = job
        answer = call("POST", f"{key_path(bundle)}/{operation}", body)
        assert answer.status == 200, answer
        return answer.json["value"]

    answers = each(pool, [jobs[index % len(jobs)] for index in range(OPERATIONS)], work)
    modulus = int.from_bytes(unb64(rsa["key"]["n"]), "big")
    exponent = int.from_bytes(unb64(rsa["key"]["e"]), "big")
    return modulus, exponent, unb64(answers[3])


def factor_in(memory, modulus):
    """A prime factor of the modulus that lies in memory as little-endian words."""
    size = (modulus.bit_length() + 15) // 16
    for start in range(0, len(memory) - size, 8):
        # Odd, and as long as half a modulus: most of memory is neither.
        if memory[start] & 1 and memory[start + size - 1] >= 0xB0:
            candidate = int.from_bytes(memory[start : start + size], "little")
            if modulus % candidate == 0:
                return candidate
    return None


def aes_key_in(memory, ciphertext):
    """The 256 bits that encrypt one known block as the pool did."""
    for start in range(0, len(memory) - 32, 8):
        # Keys are random; pointers, text and zeros are not. One key in 64 has a zero among these four bytes, none has three.
        if memory[start + 7 : start + 32 : 8].count(0) < 3:
            candidate = memory[start : start + 32]
            if len(set(candidate)) >= 22:
                encryptor = Cipher(algorithms.AES256(candidate), modes.ECB()).encryptor()
                if encryptor.update(bytes(16)) == ciphertext:  # the block is its own iv
                    return candidate
    return None


def pieces(modulus, exponent, factor, aes_key):
    """Sixteen bytes each of every secret, in both orders of bytes, and of every part of it."""
    p, q = factor, modulus // factor
    d = pow(exponent, -1, math.lcm(p - 1, q - 1))
    numbers = {
        "p": p,
        "q": q,
        "d": d,
        "d mod p-1": d % (p - 1),
        "d mod q-1": d % (q - 1),
        "1/q mod p": pow(q, -1, p),
        "1/p mod q": pow(p, -1, q),
    }
    for name, number in numbers.items():
        for order in ("little", "big"):
            data = number.to_bytes((number.bit_length() + 63) // 64 * 8, order)
            for start in range(0, len(data) - 15, 48):
                yield f"{name}, {order}-endian", data[start : start + 16]
    yield "aes key", aes_key[:16]
    yield "aes key", aes_key[16:]


def test_no_nonce_of_a_signature_is_in_memory(dumpable):
    """Whoever has the nonce of one ECDSA signature has the key. The last ones are those that a stack may still have."""
    pool = dumpable()
    made = pool.create("ec", fresh_name("ec"))
    body = {"alg": "ES256", "value": b64(DIGEST)}

    def sign(call, _):
        return unb64(call("POST", key_path(made) + "/sign", body).json["value"])

    signatures = each(pool, range(200), sign)[-16:]
    arena = b"".join(memory for _, memory in contents(pool, lambda mapping: mapping.is_arena))
    scalar = scalar_in(arena, int.from_bytes(unb64(made["key"]["x"]), "big"))
    assert scalar, "the key is not in the arena"
    secrets = {"scalar": scalar}
    for number, signature in enumerate(signatures):
        r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
        nonce = pow(s, -1, P256_ORDER) * (int.from_bytes(DIGEST, "big") + r * scalar) % P256_ORDER
        assert point_of(nonce) % P256_ORDER == r
        secrets[f"nonce {number}"] = nonce
    spelled = [
        (f"{name}, {order}-endian", secret.to_bytes(32, order)[start : start + 16])
        for name, secret in secrets.items()
        for order in ("little", "big")
        for start in (0, 16)
    ]
    found, _ = search(pool, lambda mapping: not mapping.is_arena, spelled)
    assert found == set()


def scalar_in(memory, x):
    """The private scalar on P-256 whose point has this coordinate, from little-endian words."""
    for start in range(0, len(memory) - 32, 8):
        candidate = memory[start : start + 32]
        if len(set(candidate)) >= 22:
            scalar = int.from_bytes(candidate, "little")
            if scalar < P256_ORDER and point_of(scalar) == x:
                return scalar
    return None


def point_of(scalar):
    return ec.derive_private_key(scalar, ec.SECP256R1()).public_key().public_numbers().x


def search(pool, wanted, secrets):
    """What is where: (secret, mapping)."""
    found, searched = set(), 0
    for mapping, memory in contents(pool, wanted):
        searched += len(memory)
        found |= {(name, mapping.name) for name, piece in secrets if piece in memory}
    return found, searched


def test_no_key_is_outside_the_arena_after_a_thousand_operations(dumpable):
    pool = dumpable()
    modulus, exponent, ciphertext = use(pool)
    arena = b"".join(memory for _, memory in contents(pool, lambda mapping: mapping.is_arena))
    factor, aes_key = factor_in(arena, modulus), aes_key_in(arena, ciphertext)
    assert factor and aes_key, "keys are not in the arena either"
    secrets = list(pieces(modulus, exponent, factor, aes_key))
    found, searched = search(pool, lambda mapping: not mapping.is_arena, secrets)
    assert searched > 8 * MIB
    assert found == set()


def test_control_without_the_arena_they_are_found(dumpable):
    """The same search; it shows that the test above would fail if keys were elsewhere."""
    pool = dumpable(NO_ARENA="1")
    modulus, exponent, ciphertext = use(pool)
    assert not [mapping for mapping in mappings(pool) if mapping.is_arena]
    heap = b"".join(
        memory for _, memory in contents(pool, lambda mapping: mapping.permissions.startswith("rw"))
    )
    factor, aes_key = factor_in(heap, modulus), aes_key_in(heap, ciphertext)
    assert factor and aes_key
    found, _ = search(pool, lambda _: True, list(pieces(modulus, exponent, factor, aes_key)))
    names = {name for name, _ in found}
    assert {"p, little-endian", "q, little-endian", "d, little-endian", "aes key"} <= names


def test_the_arena_is_locked_and_has_guards(dumpable):
    pool = dumpable()
    arena = [mapping for mapping in mappings(pool) if mapping.is_arena]
    used = [mapping for mapping in arena if mapping.permissions == "rw-p"]
    assert used and all(mapping.permissions in ("rw-p", "---p") for mapping in arena)
    for mapping in used:
        neighbours = [other.permissions for other in arena if other.end == mapping.start or other.start == mapping.end]
        assert neighbours == ["---p", "---p"], hex(mapping.start)
    if "memory is not locked" not in pool.log():
        assert all("lo" in mapping.flags for mapping in used)


def test_a_full_arena_makes_room_and_the_pool_goes_on(dumpable):
    pool = dumpable(ARENA_BYTES=str(2 * MIB))
    sign = {"alg": "ES256", "value": b64(DIGEST)}

    def fill(call, name):
        """Makes a key and uses it: from then on it is held in the clear, until others need its room."""
        made = call("POST", f"/keys/{name}/create", {"kty": "EC-HSM", "crv": "P-256"})
        return made if made.status != 200 else call("POST", key_path(made.json) + "/sign", sign)

    # At 700 bytes each (docs/memory.md) half as many again as there is room for.
    answers = each(pool, [fresh_name("key") for _ in range(3600)], fill)
    assert [answer for answer in answers if answer.status != 200] == []
    paths = ["/" + answer.json["kid"].split("/", 3)[3] + "/sign" for answer in answers]
    # Those that had to leave memory work as the others do.
    answers = each(pool, paths, lambda call, path: call("POST", path, sign))
    assert [answer for answer in answers if answer.status != 200] == []
    assert pool.call("GET", "/healthstatus", token=None).status == 200
    assert pool.process.poll() is None


def test_the_real_binary_is_not_dumpable(pool, tmp_path):
    process = pathlib.Path(f"/proc/{pool.process.pid}")
    limits = (process / "limits").read_text()
    assert "Max core file size        0                    0" in limits
    assert "NoNewPrivs:\t1" in (process / "status").read_text()
    switched = Pool(
        tmp_path, environment={"HOLDFAST_DANGER_DUMPABLE": "1", "HOLDFAST_DANGER_NO_ARENA": "1"}
    )
    with switched:
        limits = pathlib.Path(f"/proc/{switched.process.pid}/limits").read_text()
        assert "Max core file size        0                    0" in limits
        if os.geteuid() == 0:
            assert any(mapping.is_arena for mapping in mappings(switched)), "the switch is in the real binary"

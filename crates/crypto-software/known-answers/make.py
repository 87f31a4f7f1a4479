"""Makes src/known_answers.rs and known-answers/*.der: answers of an implementation other than the partition's.

Needs the Python package `cryptography` (OpenSSL). Keys are made for this purpose and are used nowhere else. Keys, PSS,
ECDSA and encryption are random, so each run gives other answers; all of them must be right.
"""

import hashlib
import hmac
import pathlib

from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.kbkdf import CounterLocation, KBKDFHMAC, Mode

crate = pathlib.Path(__file__).resolve().parent.parent
message = b"holdfast known answer"
digests = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512}
hash_of = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
constants = []


def constant(name, value):
    rows = [", ".join(f"0x{byte:02x}" for byte in value[at : at + 16]) for at in range(0, len(value), 16)]
    body = "\n".join(f"    {row}," for row in rows)
    constants.append(f"#[rustfmt::skip]\npub(super) const {name}: [u8; {len(value)}] = [\n{body}\n];\n")


constant("MESSAGE", message)
for bits, digest in digests.items():
    constant(f"SHA_{bits}", digest(message).digest())

secret = bytes(range(32))
constant("SECRET", secret)
# The golden file of masked material (docs/formats/masked-material.md), by another implementation.
label, salt = b"holdfast masked material v1", bytes([6] * 24)
single_use_key = KBKDFHMAC(
    algorithm=hashes.SHA256(), mode=Mode.CounterMode, length=32, rlen=4, llen=4,
    location=CounterLocation.BeforeFixed, label=label, context=salt, fixed=None,
).derive(bytes([8] * 32))
associated = label + b"\x31" + b"a pool, a name, a version"
constant("MASKED", b"\x01" + salt + AESGCM(single_use_key).encrypt(bytes(12), bytes([7] * 16), associated))
for bits, digest in digests.items():
    constant(f"HS_{bits}", hmac.new(secret, digest(message).digest(), digest).digest())

blocks = bytes(range(0x40, 0x60))
additional = b"additional"
for bits in (128, 192, 256):
    key = secret[: bits // 8]
    sealed = AESGCM(key).encrypt(bytes(range(12)), message, additional)
    constant(f"GCM_{bits}", sealed)
    encryptor = Cipher(algorithms.AES(key), modes.CBC(bytes(range(16)))).encryptor()
    constant(f"CBC_{bits}", encryptor.update(blocks) + encryptor.finalize())
    constant(f"KW_{bits}", keywrap.aes_key_wrap(key, blocks))

key = rsa.generate_private_key(65537, 2048)
(crate / "known-answers/rsa-2048.der").write_bytes(
    key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
)
for bits, digest in digests.items():
    prehashed = utils.Prehashed(hash_of[bits])
    constant(f"RS_{bits}", key.sign(digest(message).digest(), padding.PKCS1v15(), prehashed))
    pss = padding.PSS(padding.MGF1(hash_of[bits]), hash_of[bits].digest_size)
    constant(f"PS_{bits}", key.sign(digest(message).digest(), pss, prehashed))
numbers = key.private_numbers()
modulus_bytes = 256
padded = b"\x00\x01" + b"\xff" * (modulus_bytes - 3 - len(message)) + b"\x00" + message
signature = pow(int.from_bytes(padded, "big"), numbers.d, numbers.public_numbers.n)
constant("RSNULL", signature.to_bytes(modulus_bytes, "big"))
public = key.public_key()
constant("RSA1_5", public.encrypt(message, padding.PKCS1v15()))
for name, hash_function in (("RSA_OAEP", hashes.SHA1()), ("RSA_OAEP_256", hashes.SHA256())):
    oaep = padding.OAEP(padding.MGF1(hash_function), hash_function, None)
    constant(name, public.encrypt(message, oaep))

for name, curve, bits in (
    ("P256", ec.SECP256R1(), "256"),
    ("P256K", ec.SECP256K1(), "256"),
    ("P384", ec.SECP384R1(), "384"),
    ("P521", ec.SECP521R1(), "512"),
):
    key = ec.generate_private_key(curve)
    size = (curve.key_size + 7) // 8
    scalar = key.private_numbers().private_value.to_bytes(size, "big")
    point = key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    constant(f"{name}_KEY", scalar + point)
    der = key.sign(digests[bits](message).digest(), ec.ECDSA(utils.Prehashed(hash_of[bits])))
    r, s = utils.decode_dss_signature(der)
    constant(f"{name}_SIGNATURE", r.to_bytes(size, "big") + s.to_bytes(size, "big"))

header = (
    "//! Answers of another implementation (OpenSSL, through Python's `cryptography`): made by `known-answers/make.py`,\n"
    "//! not edited by hand. The keys are public and used nowhere else.\n\n"
)
(crate / "src/known_answers.rs").write_text(header + "\n".join(constants))

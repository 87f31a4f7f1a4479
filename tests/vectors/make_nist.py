"""Makes `nist/*.json` from response files of NIST's Cryptographic Algorithm Validation Program (CAVP), as published:
`python make_nist.py DIRECTORY`, where DIRECTORY is the folder `cryptography_vectors` of the package of that name:

    pip download --no-deps cryptography_vectors==50.0.2
    unzip cryptography_vectors-50.0.2-py3-none-any.whl

They are works of the government of the United States and in the public domain there. Needs `cryptography`.

Every vector keeps its publisher's key, which is handed in: the private or secret half must be published. Signatures are
over digests on the wire, so messages are hashed here. Where a file has many vectors alike, the first few of each of its
sections are taken. What is not taken is counted under the rule that passes it over. A vector's id is its file and its
place there, counted from 1.

Not used are files whose vectors are all in another that is, or are of algorithms that no pool has: encryption by GCM with an
iv from outside, signatures of RSA by X9.31, key wrap with the inverse cipher or TDEA. The package has no file of NIST's for
HMAC.
"""

import collections
import hashlib
import json
import math
import pathlib
import re
import sys

from cryptography.hazmat.primitives.asymmetric import rsa

OUT = pathlib.Path(__file__).parent / "nist"
# Of each section of a file of which not all is taken: so many that are valid, and as many that are not.
GCM_SAMPLE, WRAP_SAMPLE = 2, 3

TWICE = "there already"
SAMPLE = "alike, beyond the first of the section"
PRIVATE = "no private key is published"
CURVE = "a curve that pools do not have"
MODULUS = "a key size that pools do not hold"
LONG_PSS = "of a key of more than 2048 bits, with a salt that pools do not take"
PSS_HASH = "a hash that no PSS algorithm of a pool uses"
NO_SUCH_KEY = "a public exponent with which there is no private one"
IV_OR_TAG = "an iv that is not of 12 bytes or a tag that is not of 16, beyond one vector for each pair of lengths"

# What stands before a digest in a PKCS#1 v1.5 signature (RFC 8017 section 9.2).
DIGEST_INFO = {
    "SHA1": "3021300906052b0e03021a05000414",
    "SHA224": "302d300d06096086480165030402040500041c",
}


def published(directory, name):
    """Every record with its place, the lines in brackets that hold for it, and its members."""
    place, section, record = 0, {}, {}
    for line in [*(directory / name).read_text().splitlines(), ""]:
        line = line.strip()
        bracketed = re.fullmatch(r"\[(.*)\]", line)
        if record and (not line or bracketed):
            place += 1
            yield f"{pathlib.Path(name).stem}:{place}", dict(section), record
            record = {}
        if bracketed:
            name_of, found, value = bracketed[1].partition("=")
            section[name_of.strip() if found else "name"] = value.strip() if found else bracketed[1]
        elif line and not line.startswith("#"):
            member, _, value = line.partition("=")
            record[member.strip()] = value.strip()


class Sample:
    """The first vectors of each section: `size` that are valid, and as many that are not."""

    def __init__(self, size):
        self.size, self.taken = size, collections.Counter()

    def takes(self, section, result):
        key = (*section.values(), result)
        self.taken[key] += 1
        return self.taken[key] <= self.size


def write(name, sources, columns, vectors, passed_over, **more):
    head = {"source": "NIST CAVP, in the package cryptography_vectors 50.0.2", "files": sources}
    head |= {"passed_over": dict(sorted(passed_over.items())), **more, "columns": ["id", "result", *columns]}
    lines = ",\n    ".join(json.dumps(vector) for vector in vectors)
    text = json.dumps(head, indent=2)[:-2] + f',\n  "vectors": [\n    {lines}\n  ]\n}}\n'
    (OUT / f"{name}.json").write_text(text)
    results = collections.Counter(vector[1] for vector in vectors)
    print(f"{name}: {dict(results)}, passed over {dict(passed_over)}, {len(text)} bytes")


def aes_cbc(directory):
    """Most files have the same vectors twice, to encrypt and to decrypt; they are taken once, and all run both ways."""
    kinds = ("GFSbox", "KeySbox", "VarKey", "VarTxt", "MMT")
    sources = [f"ciphers/AES/CBC/CBC{kind}{size}.rsp" for kind in kinds for size in (128, 192, 256)]
    vectors, passed_over = {}, collections.Counter()
    for place, _, record in (found for source in sources for found in published(directory, source)):
        members = tuple(record[member] for member in ("KEY", "IV", "PLAINTEXT", "CIPHERTEXT"))
        passed_over[TWICE] += members in vectors
        vectors.setdefault(members, place)
    vectors = [[place, "valid", *members] for members, place in vectors.items()]
    yield "aes-cbc", sources, ["key", "iv", "plaintext", "ciphertext"], vectors, passed_over


def aes_gcm(directory):
    sources = [f"ciphers/AES/GCM/gcmDecrypt{size}.rsp" for size in (128, 192, 256)]
    vectors, passed_over, sample, of_lengths = [], collections.Counter(), Sample(GCM_SAMPLE), set()
    for source in sources:
        for place, section, record in published(directory, source):
            result = "invalid" if "FAIL" in record else "valid"
            if (section["IVlen"], section["Taglen"]) != ("96", "128"):
                lengths = section["Keylen"], section["IVlen"], section["Taglen"]
                if result != "valid" or section["PTlen"] != "128" or lengths in of_lengths:
                    passed_over[IV_OR_TAG] += 1
                    continue
                of_lengths.add(lengths)
            elif not sample.takes(section, result):
                passed_over[SAMPLE] += 1
                continue
            members = [record[member] for member in ("Key", "IV", "AAD", "CT", "Tag")]
            vectors.append([place, result, *members, record.get("PT", "")])
    yield "aes-gcm", sources, ["key", "iv", "aad", "ciphertext", "tag", "plaintext"], vectors, passed_over


def key_wrap(directory):
    for name in ("KW", "KWP"):
        sources = [f"keywrap/kwtestvectors/{name}_{way}_{size}.txt" for way in ("AE", "AD") for size in (128, 192, 256)]
        vectors, passed_over = [], collections.Counter()
        for source in sources:
            sample = Sample(WRAP_SAMPLE)
            for place, section, record in published(directory, source):
                result = "invalid" if "FAIL" in record else "valid"
                if sample.takes(section, result):
                    vectors.append([place, result, record["K"], record.get("P", ""), record["C"]])
                else:
                    passed_over[SAMPLE] += 1
        yield f"aes-{name.lower()}", sources, ["key", "material", "wrapped"], vectors, passed_over


def ecdsa(directory):
    """Signatures, each of a key of its own."""
    sources = [f"asymmetric/ECDSA/FIPS_186-{part}/{name}" for part in (2, 3) for name in ("SigGen.txt", "SigVer.rsp")]
    vectors, passed_over = [], collections.Counter()
    for source in sources:
        for place, section, record in published(directory, source):
            # FIPS 186-2 knows no other hash than SHA-1.
            curve, _, sha = section["name"].partition(",")
            sha = sha.replace("-", "") or "SHA1"
            if curve not in ("P-256", "P-384", "P-521"):
                passed_over[CURVE] += 1
            elif "d" not in record:
                passed_over[PRIVATE] += 1
            else:
                # A number of 521 bits may have an odd number of digits.
                members = [record[member].zfill(len(record[member]) + 1 & ~1) for member in ("d", "Qx", "Qy", "R", "S")]
                vectors.append([f"{place} of {source.split('/')[2]}", "valid", curve, sha, digest(sha, record), *members])
    columns = ["curve", "hash", "digest", "d", "x", "y", "r", "s"]
    yield "ecdsa", sources, columns, vectors, passed_over


def digest(sha, record):
    return hashlib.new(sha.lower(), bytes.fromhex(record["Msg"])).hexdigest()


def rsa_records(directory, source):
    """As `published`, each record of a signature with the numbers of its key, some of which stand before it."""
    numbers = {}
    for place, section, record in published(directory, source):
        numbers = {} if "n" in record else numbers
        numbers |= {name: int(record[name], 16) for name in "nedpq" if name in record}
        if "Msg" in record:
            yield place, int(section["mod"]), dict(numbers), record


def rsa_key(numbers):
    """The key in full. Where the public exponent was exchanged, the private one that belongs to it, if any does."""
    if "p" not in numbers:
        p, q = rsa.rsa_recover_prime_factors(numbers["n"], numbers["e"], numbers["d"])
        numbers = {**numbers, "p": p, "q": q}
    order = math.lcm(numbers["p"] - 1, numbers["q"] - 1)
    if math.gcd(numbers["e"], order) != 1:
        return None
    numbers["d"] = pow(numbers["e"], -1, order)
    return {name: f"{number:0{(number.bit_length() + 7) // 8 * 2}x}" for name, number in sorted(numbers.items())}


def rsa_pkcs1(directory):
    sources = {
        "rsa-pkcs1-generated": ["SigGen15_186-2.txt", "SigGen15_186-3.rsp"],
        "rsa-pkcs1-verified": ["SigVer15_186-3.rsp", "../SigVer15EMTest.txt"],
    }
    yield from signatures(directory, sources, lambda bits, sha: None)


def rsa_pss(directory):
    """Of these, every salt is shorter than a pool's, which is as long as the hash: a pool takes none."""

    def refuses(bits, sha):
        return LONG_PSS if bits > 2048 else PSS_HASH if sha in DIGEST_INFO else None

    sources = {
        "rsa-pss-generated": ["SigGenPSS_186-2.txt", "SigGenPSS_186-3.rsp"],
        "rsa-pss-verified": ["SigVerPSS_186-3.rsp"],
    }
    yield from signatures(directory, sources, refuses)


def signatures(directory, sources, refuses):
    for name, files in sources.items():
        files = [str(pathlib.PurePosixPath("asymmetric/RSA/FIPS_186-2") / file).replace("FIPS_186-2/../", "") for file in files]
        vectors, keys, passed_over = [], [], collections.Counter()
        for place, bits, numbers, record in (found for file in files for found in rsa_records(directory, file)):
            sha = record["SHAAlg"]
            rule = MODULUS if bits < 2048 else PRIVATE if "d" not in numbers else refuses(bits, sha)
            key = None if rule else rsa_key(numbers)
            if rule or not key:
                passed_over[rule or NO_SUCH_KEY] += 1
                continue
            if key not in keys:
                keys.append(key)
            said = re.match(r"(P|F)\b(?: \((.*?)\s*\))?", record.get("Result", "P"))
            result = {"P": "valid", "F": "invalid"}[said[1]]
            vector = [place, result, keys.index(key), sha, DIGEST_INFO.get(sha, "") + digest(sha, record)]
            vectors.append([*vector, record["S"], said[2] or ""])
        columns = ["key", "hash", "digest", "signature", "why"]
        yield name, files, columns, vectors, passed_over, keys


def main():
    directory = pathlib.Path(sys.argv[1])
    OUT.mkdir(exist_ok=True)
    for make in (aes_cbc, aes_gcm, key_wrap, ecdsa):
        for made in make(directory):
            write(*made)
    for make in (rsa_pkcs1, rsa_pss):
        for *made, keys in make(directory):
            write(*made, keys=keys)


main()

"""Makes the assertions that tests verify, with another implementation: python3 make.py writes assertions.json beside it.

An authority with a good key and with keys that must not be used; tokens, good and bad, each by the name of what is wrong with
it; and the private keys of both: other tests sign claims of their own, and open what was released.
"""
import base64
import datetime
import json
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

NOW = 1_800_000_000
ISSUER = "https://attest.example"


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def new_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def numbers(key):
    public = key.public_key().public_numbers()
    return {name: b64(n.to_bytes((n.bit_length() + 7) // 8, "big")) for name, n in (("n", public.n), ("e", public.e))}


def certificate(key, issuer_key, start=2020, end=2120, name="leaf", issuer="leaf"):
    def common_name(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def day(year):
        return datetime.datetime(year, 1, 1, tzinfo=datetime.timezone.utc)

    return (
        x509.CertificateBuilder()
        .subject_name(common_name(name))
        .issuer_name(common_name(issuer))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(day(start))
        .not_valid_after(day(end))
        .sign(issuer_key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def x5c(*certificates):
    return {"x5c": [base64.b64encode(der).decode() for der in certificates]}


GOOD, ROOT, STRANGER, ENVIRONMENT = new_key(), new_key(), new_key(), new_key()
OWN = certificate(GOOD, GOOD)
KEYS = [
    {"kid": "good", "kty": "RSA", "use": "sig", "alg": "RS256", **numbers(GOOD), **x5c(OWN)},
    {"kid": "chained", "kty": "RSA", **x5c(certificate(GOOD, ROOT, issuer="root"), certificate(ROOT, ROOT, name="root", issuer="root"))},
    {"kid": "not chained", "kty": "RSA", **x5c(certificate(GOOD, STRANGER, issuer="root"), certificate(ROOT, ROOT, name="root", issuer="root"))},
    {"kid": "confused", "kty": "RSA", **numbers(STRANGER), **x5c(OWN)},
    {"kid": "no certificate", "kty": "RSA", **numbers(GOOD)},
    {"kid": "old certificate", "kty": "RSA", **x5c(certificate(GOOD, GOOD, 2020, 2021))},
    {"kid": "symmetric", "kty": "oct", "k": "AAAA", **x5c(OWN)},
    {"kid": "for encryption", "kty": "RSA", "use": "enc", **x5c(OWN)},
    {"kid": "twice", "kty": "RSA", **x5c(OWN)},
    {"kid": "twice", "kty": "RSA", **x5c(OWN)},
    {"kid": "broken", "kty": "RSA", "x5c": ["AAAA"]},
    {"kty": "RSA", **x5c(OWN)},
]
WRAPPING = {"kid": "TpmEphemeralEncryptionKey", "kty": "RSA", "key_ops": ["encrypt"], **numbers(ENVIRONMENT)}
CLAIMS = {
    "iss": ISSUER,
    "iat": NOW - 60,
    "nbf": NOW - 60,
    "exp": NOW + 3600,
    "x-ms-ver": "1.0",
    "x-ms-attestation-type": "sevsnpvm",
    "x-ms-sevsnpvm-is-debuggable": False,
    "x-ms-sevsnpvm-guestsvn": 2,
    "x-ms-runtime": {"keys": [{"kid": "signs", "kty": "RSA", "use": "sig", **numbers(STRANGER)}, WRAPPING]},
}
HEADER = {"alg": "RS256", "typ": "JWT", "kid": "good", "jku": "https://elsewhere.example/keys"}


def sign(payload, key=GOOD, **header):
    header = {name: value for name, value in {**HEADER, **header}.items() if value is not None}
    signed = b64(json.dumps(header).encode()) + "." + b64(payload if isinstance(payload, bytes) else json.dumps(payload).encode())
    algorithm = header.get("alg")
    if algorithm == "none":
        return signed + "."
    if algorithm == "HS256":
        # The public key as if it were a secret.
        mac = hmac.HMAC(GOOD.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo), hashes.SHA256())
        mac.update(signed.encode())
        return signed + "." + b64(mac.finalize())
    pad = padding.PSS(padding.MGF1(hashes.SHA256()), 32) if algorithm == "PS256" else padding.PKCS1v15()
    return signed + "." + b64(key.sign(signed.encode(), pad, hashes.SHA256()))


def claims(**changes):
    changed = {**CLAIMS, **{name.replace("_", "-") if name.startswith("x_") else name: value for name, value in changes.items()}}
    return {name: value for name, value in changed.items() if value is not None}


def runtime(*keys):
    return claims(x_ms_runtime={"keys": list(keys)})


def without(*names):
    return {name: value for name, value in WRAPPING.items() if name not in names}


TEXT = json.dumps(CLAIMS)
TOKENS = {
    "good": sign(CLAIMS),
    "good PS256": sign(CLAIMS, alg="PS256", kid="chained"),
    "good chained": sign(CLAIMS, kid="chained"),
    "good use enc": sign(runtime({**without("key_ops"), "use": "enc"})),
    "good x5c": sign(runtime({**without("n", "e"), **x5c(certificate(ENVIRONMENT, ENVIRONMENT))})),
    "forged": sign(CLAIMS, key=STRANGER),
    "changed": sign(CLAIMS).rsplit(".", 2)[0] + "." + b64(TEXT.replace("false", "true ").encode()) + "." + sign(CLAIMS).rsplit(".", 1)[1],
    "no signature": sign(CLAIMS).rsplit(".", 1)[0] + ".",
    "expired": sign(claims(exp=NOW)),
    "no exp": sign(claims(exp=None)),
    "exp is text": sign(claims(exp="1900000000")),
    "not yet valid": sign(claims(nbf=NOW + 301)),
    "issued in the future": sign(claims(iat=NOW + 301)),
    "no issuer": sign(claims(iss=None)),
    "issuer is a list": sign(claims(iss=[ISSUER])),
    "other issuer": sign(claims(iss="https://evil.example")),
    "debuggable": sign({**CLAIMS, "x-ms-sevsnpvm-is-debuggable": True}),
    "debuggable as text": sign({**CLAIMS, "x-ms-sevsnpvm-is-debuggable": "false"}),
    "none": sign(CLAIMS, alg="none"),
    "HS256": sign(CLAIMS, alg="HS256"),
    "RS512": sign(CLAIMS, alg="RS512"),
    "no alg": sign(CLAIMS, alg=None),
    "other algorithm": sign(CLAIMS, alg="PS256"),
    "no kid": sign(CLAIMS, kid=None),
    "critical": sign(CLAIMS, crit=["exp"]),
    "other type": sign(CLAIMS, typ="JOSE"),
    "unknown key": sign(CLAIMS, kid="gone"),
    "not chained": sign(CLAIMS, kid="not chained"),
    "confused": sign(CLAIMS, key=STRANGER, kid="confused"),
    "no certificate": sign(CLAIMS, kid="no certificate"),
    "old certificate": sign(CLAIMS, kid="old certificate"),
    "symmetric": sign(CLAIMS, kid="symmetric"),
    "for encryption": sign(CLAIMS, kid="for encryption"),
    "twice": sign(CLAIMS, kid="twice"),
    "broken": sign(CLAIMS, kid="broken"),
    "duplicate claim": sign((TEXT[:-1] + ', "x-ms-sevsnpvm-is-debuggable": false}').encode()),
    "duplicate issuer": sign((TEXT[:-1] + ', "iss": "https://evil.example"}').encode()),
    "deep": sign((TEXT[:-1] + ', "a": ' + "[" * 1000 + "]" * 1000 + "}").encode()),
    "payload is a list": sign(b"[]"),
    "no runtime": sign(claims(x_ms_runtime=None)),
    "runtime is text": sign(claims(x_ms_runtime="keys")),
    "keys at the top": sign({**claims(x_ms_runtime={"keys": []}), "keys": [WRAPPING]}),
    "keys in isolation-tee": sign({**claims(x_ms_runtime={"keys": []}), "x-ms-isolation-tee": {"x-ms-runtime": {"keys": [WRAPPING]}}}),
    "no key for encryption": sign(runtime({**WRAPPING, "key_ops": ["sign"]}, {**WRAPPING, "kty": "EC"}, without("key_ops"))),
    "key without kid": sign(runtime(without("kid"))),
    "key without numbers": sign(runtime(without("n", "e"))),
    "key of 1024 bits": sign(runtime({**WRAPPING, "n": b64(b"\x81" * 128)})),
    "key with exponent 1": sign(runtime({**WRAPPING, "e": "AQ"})),
}


def main():
    def private(key):
        return key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).hex()

    out = {
        "now": NOW,
        "issuer": ISSUER,
        "keys": {"keys": KEYS},
        "authority": private(GOOD),
        "environment": private(ENVIRONMENT),
        "claims": CLAIMS,
        "tokens": TOKENS,
    }
    pathlib.Path(__file__).with_name("assertions.json").write_text(json.dumps(out, indent=1) + "\n")


main()

"""What the Azure CLI's own code makes of security domains. Runs in the Azure CLI's environment, for test_ceremony.py.

Reads one JSON request from standard input and writes one JSON answer. Nothing here computes what the Azure CLI computes
itself, but for packing a share: the CLI packs for a reader that it does not have (`x << 8`, where it reads `x >> 9`).
"""

import json
import sys

from azure.cli.command_modules.keyvault.custom import _security_domain_gen_share_arrays
from azure.cli.command_modules.keyvault.security_domain.byte_shares import Share
from azure.cli.command_modules.keyvault.security_domain.jwe import JWE
from azure.cli.command_modules.keyvault.security_domain.shared_secret import SharedSecret
from azure.cli.command_modules.keyvault.security_domain.sp800_108 import KDF
from azure.cli.command_modules.keyvault.security_domain.utils import Utils
from cryptography.hazmat.primitives.serialization import load_der_private_key
from cryptography.x509 import load_pem_x509_certificate


def data_key(master, tag):
    return KDF.sp800_108(master, label=tag, context="", bit_length=512)


def plaintexts(master, encrypted):
    opened = {}
    for datum in encrypted["data"]:
        plaintext = JWE(datum["compact_jwe"]).decrypt_using_bytes(data_key(master, datum["tag"]))
        opened[datum["tag"]] = None if plaintext is None else plaintext.hex()
    return opened


def open_file(file, keys, passphrases, required):
    """The data of a security domain file, by holders' keys; `required` as the caller says."""
    arrays = _security_domain_gen_share_arrays(keys, passphrases, file["SharedKeys"], required)
    master = SharedSecret.get_plaintext(arrays, required=required)
    return {"master": master.hex(), "data": plaintexts(master, file["EncData"])}


def open_blob(blob, exchange_key):
    """The data of a restore blob, by the private key that it was made for."""
    key = load_der_private_key(bytes.fromhex(exchange_key), password=None)
    master = JWE(blob["WrappedKey"]["enc_key"]).decrypt_using_private_key(key)
    return {"master": master.hex(), "data": plaintexts(master, blob["EncData"])}


def make_file(data, master, certificates, required, holdfast):
    """A security domain file in which all but `holdfast` is the Azure CLI's work."""
    master = bytes.fromhex(master)
    secret = SharedSecret(shares=len(certificates), required=required)

    def values_at(byte):
        # Before the CLI packs them: its packing shifts by 8 and loses a value of 256 at every odd place.
        secret.byte_shares.set_secret_byte(byte)
        return [secret.byte_shares.make_share(place).v for place in range(1, len(certificates) + 1)]

    table = [values_at(byte) for byte in master]
    shares = []
    for place, path in enumerate(certificates, 1):
        values = [row[place - 1] for row in table]
        packed = b"".join((place << 9 | value).to_bytes(2, "little") for value in values)
        assert all(Share.from_uint16(place << 9 | value).v == value for value in values)
        with open(path, "rb") as file:
            certificate = load_pem_x509_certificate(file.read())
        jwe = JWE()
        jwe.encrypt_using_cert(certificate, packed)
        thumbprint = Utils.security_domain_b64_url_encode(Utils.get_SHA256_thumbprint(certificate))
        shares.append({"enc_key": jwe.encode_compact(), "x5t_256": thumbprint})
    encrypted = []
    for tag, plaintext in data.items():
        jwe = JWE()
        jwe.encrypt_using_bytes(data_key(master, tag), bytes.fromhex(plaintext), "A256CBC-HS512", kid=tag)
        encrypted.append({"compact_jwe": jwe.encode_compact(), "tag": tag})
    return {
        "EncData": {"data": encrypted, "kdf": "sp108_kdf"},
        "SharedKeys": {"enc_shares": shares, "key_algorithm": "shamir_share", "required": required},
        "holdfast": holdfast,
    }


def many(requests):
    """The answers, each on its own: what went wrong is a text. Loading the CLI takes longer than most work."""
    answers = []
    for request in requests:
        try:
            answers.append(answer(request))
        except Exception as error:  # whatever the CLI raises
            answers.append(f"{type(error).__name__}: {error}")
    return answers


def answer(request):
    work = {"open-file": open_file, "open-blob": open_blob, "make-file": make_file, "many": many}
    return work[request.pop("work")](**request)


def main():
    json.dump(answer(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()

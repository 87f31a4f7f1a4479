"""`holdfast ceremony`, and its files against the Azure CLI's own code: each opens what the other made.

The domain is that of crates/ceremony's golden files, re-keyed for holders whose keys are made here.
"""

import base64
import hashlib
import json
import os
import pathlib
import pty
import re
import select
import stat
import subprocess

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from holdfast import binary, clean_environment

GOLDEN = pathlib.Path(__file__).parents[2] / "crates/ceremony/tests/golden"
TRANSFER_KEY_MAGIC = b"HFXFR\x01"
NAMES = ("ada", "ben", "cyd", "dot")


def az():
    path = os.environ.get("HOLDFAST_AZ")
    if not path:
        raise RuntimeError("HOLDFAST_AZ must name the Azure CLI; `cargo xtask e2e` sets it")
    return pathlib.Path(path).absolute()


def run(words, **more):
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=300,
        env=clean_environment(),
        # No terminal to ask at.
        start_new_session=True,
        **{"stdin": subprocess.DEVNULL, **more},
    )


def ceremony(*words):
    done = run([binary(), "ceremony", *words])
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


def refused(*words, code=1):
    done = run([binary(), "ceremony", *words])
    assert done.returncode == code and not done.stdout, f"{words}\n{done.stdout}{done.stderr}"
    assert "panicked" not in done.stderr, done.stderr
    return done.stderr


def az_code(work, **request):
    """An answer of az_security_domain.py, or what went wrong there."""
    script = pathlib.Path(__file__).with_name("az_security_domain.py")
    text = json.dumps({"work": work, **request})
    done = run([az().parent / "python", script], stdin=None, input=text)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


class Holder:
    def __init__(self, directory, name):
        self.key, self.certificate = directory / f"{name}.key", directory / f"{name}.cer"
        self.passphrase = f"correct horse of {name}"
        self.passphrase_file = directory / f"{name}.passphrase"
        self.passphrase_file.write_text(self.passphrase + "\n")
        ceremony("keygen", name, "--out", directory, "--passphrase-file", self.passphrase_file)

    @property
    def words(self):
        return ["--key", self.key, "--passphrase-file", self.passphrase_file]


def quorum(*holders):
    return [word for holder in holders for word in holder.words]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("ceremony")


@pytest.fixture(scope="module")
def holders(directory):
    return [Holder(directory, name) for name in NAMES]


@pytest.fixture(scope="module")
def domain(directory, holders):
    """The golden domain, for two of ada, ben and cyd."""
    path = directory / "domain.json"
    new = [word for holder in holders[:3] for word in ("--holder", holder.certificate)]
    old = ["--key", GOLDEN / "holder-1.key", "--key", GOLDEN / "holder-2.key"]
    ceremony("rekey", GOLDEN / "security-domain-v1.json", *old, *new, "--required", 2, "--out", path)
    return path


@pytest.fixture(scope="module")
def exchange(directory):
    """The golden exchange key: its certificate as the Azure CLI writes it, its thumbprint, its private key."""
    content = (GOLDEN / "transfer-key-v1.bin").read_bytes()
    assert content.startswith(TRANSFER_KEY_MAGIC)
    length = int.from_bytes(content[6:10], "big")
    der, pkcs8 = content[10 : 10 + length], content[10 + length :]
    text = base64.b64encode(der).decode()
    lines = [text[at : at + 65] for at in range(0, len(text), 65)]
    path = directory / "exchange.cer"
    path.write_text("\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----"]))
    return path, hashlib.sha256(der).hexdigest(), pkcs8.hex()


def az_open(domain, holders, required=2):
    return az_code(
        "open-file",
        file=json.loads(domain.read_text()),
        keys=[str(holder.key) for holder in holders],
        passphrases=[holder.passphrase for holder in holders],
        required=required,
    )


def test_a_holders_key_is_encrypted_private_and_never_overwritten(directory, holders):
    ada = holders[0]
    assert ada.key.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    for path in (ada.key, ada.certificate):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = ada.key.read_bytes()
    again = ["keygen", "ada", "--out", directory, "--passphrase-file", ada.passphrase_file]
    assert "not overwritten" in refused(*again)
    assert ada.key.read_bytes() == before
    # Another tool opens it with the same passphrase.
    key = load_pem_private_key(before, ada.passphrase.encode())
    certificate = load_pem_x509_certificate(ada.certificate.read_bytes())
    assert key.key_size == 3072 and certificate.public_key() == key.public_key()
    with pytest.raises(ValueError):
        load_pem_private_key(before, b"correct horse of ben")


def test_a_passphrase_is_long_enough_and_no_argument(tmp_path):
    short = tmp_path / "short"
    short.write_text("too short\n")
    words = ["keygen", "eve", "--out", tmp_path]
    assert "fewer than 12" in refused(*words, "--passphrase-file", short)
    assert "--passphrase-file" in refused(*words)
    assert "unexpected argument" in refused(*words, "--passphrase", "correct horse battery", code=2)
    assert not (tmp_path / "eve.key").exists()


def test_a_passphrase_comes_from_a_descriptor_too(tmp_path, domain, holders):
    ada, ben, _, _ = holders
    reading, writing = os.pipe()
    os.write(writing, ada.passphrase.encode())
    os.close(writing)
    words = ["ceremony", "verify", domain, "--key", ada.key, "--key", ben.key]
    files = ["--passphrase-file", f"/dev/fd/{reading}", "--passphrase-file", ben.passphrase_file]
    done = run([binary(), *words, *files], pass_fds=[reading])
    os.close(reading)
    assert done.returncode == 0, done.stderr


class Terminal:
    """A command at a terminal of its own."""

    def __init__(self, *words):
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.execve(binary(), [binary(), *map(str, words)], clean_environment())
        self.read = b""

    @property
    def seen(self):
        return self.read.decode(errors="replace")

    def more(self):
        """Whether there was something."""
        assert select.select([self.terminal], [], [], 300)[0], f"nothing more came after: {self.seen}"
        try:
            part = os.read(self.terminal, 4096)
        except OSError:
            part = b""
        self.read += part
        return bool(part)

    def until(self, text):
        while text not in self.seen:
            assert self.more(), f"ended without {text!r}: {self.seen}"

    def type(self, text):
        os.write(self.terminal, text.encode())

    def end(self):
        while self.more():
            pass
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def test_a_passphrase_typed_at_the_terminal_is_not_shown(tmp_path, domain, holders):
    terminal = Terminal("ceremony", "keygen", "fay", "--out", tmp_path)
    terminal.until("at least 12 characters: ")
    terminal.type("correct horsX\x7fe of fay\n")
    terminal.until("Again: ")
    terminal.type("correct horse of fay\n")
    assert terminal.end() == 0, terminal.seen
    assert "horse" not in terminal.seen and "thumbprint" in terminal.seen
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse of fay")
    words = ["--key", tmp_path / "fay.key", "--passphrase-file", passphrase]
    # The key opens; it is only no holder's.
    assert "is not among the holders" in refused("verify", domain, *words, *holders[0].words)

    terminal = Terminal("ceremony", "keygen", "gus", "--out", tmp_path)
    terminal.until("at least 12 characters: ")
    terminal.type("correct horse\x03")
    assert terminal.end() == 1 and "interrupted" in terminal.seen
    assert not (tmp_path / "gus.key").exists()


def test_inspect_needs_no_key_and_says_that_it_proves_nothing(domain, holders, exchange):
    shown = ceremony("inspect", domain, *[holder.certificate for holder in holders])
    for expected in ("payroll", "production", "2 of 3", "ab" * 32, "CN=ada", "CN=cyd", "NOT PROVEN"):
        assert expected in shown, shown
    assert "CN=dot" not in shown
    certificate, thumbprint, _ = exchange
    shown = ceremony("inspect", certificate)
    assert thumbprint in shown and "exchange key of pool 09090909-" in shown


def test_a_quorum_verifies_and_less_does_not(domain, holders):
    ada, ben, cyd, dot = holders
    for pair in ([ada, ben], [cyd, ada], [ada, ben, cyd]):
        assert "VERIFIED" in ceremony("verify", domain, *quorum(*pair))
    assert "a quorum is 2 keys" in refused("verify", domain, *quorum(ada))
    assert "given twice" in refused("verify", domain, *quorum(ada, ada))
    assert "is not among the holders" in refused("verify", domain, *quorum(ada, dot))
    wrong = ["--key", ada.key, "--key", ben.key, "--passphrase-file", ben.passphrase_file]
    assert "wrong passphrase" in refused("verify", domain, *wrong, "--passphrase-file", ben.passphrase_file)


def test_an_edited_file_is_found_out(tmp_path, domain, holders):
    file = json.loads(domain.read_text())
    edits = {
        "class": lambda: file["holdfast"].update({"class": "test"}),
        "genesis": lambda: file["holdfast"].update({"genesis_sha256": "ac" * 32}),
        "name": lambda: file["holdfast"].update({"pool_name": "payrolls"}),
    }
    for name, edit in edits.items():
        file = json.loads(domain.read_text())
        edit()
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(file))
        assert "NOT PROVEN" in ceremony("inspect", path)
        assert "the file was changed" in refused("verify", path, *quorum(*holders[:2]))


def test_the_azure_cli_opens_our_file_and_our_shares(domain, holders):
    opened = az_open(domain, holders[:2])
    assert set(opened["data"]) == {"holdfast.domain-secrets.v1", "holdfast.description.v1"}
    secrets = (GOLDEN / "../../../crypto/tests/golden/domain-secrets-v1.bin").resolve().read_bytes()
    assert bytes.fromhex(opened["data"]["holdfast.domain-secrets.v1"]) == secrets
    assert len(bytes.fromhex(opened["master"])) == 32
    for pair in ([1, 0], [0, 2], [2, 1]):
        assert az_open(domain, [holders[index] for index in pair]) == opened
    # One share less gives neither the key nor the data, whatever quorum is claimed.
    assert "Insufficient shares" in az_open(domain, holders[:1])
    three = domain.with_name("three-of-three.json")
    certificates = [word for holder in holders[:3] for word in ("--holder", holder.certificate)]
    ceremony("rekey", domain, *quorum(*holders[:2]), *certificates, "--required", 3, "--out", three)
    guessed = az_open(three, holders[:2])
    assert isinstance(guessed, str) or not any(guessed["data"].values())
    by_three = az_open(three, holders[:3], required=3)["data"]
    assert bytes.fromhex(by_three["holdfast.domain-secrets.v1"]) == secrets


def test_we_open_a_file_and_shares_of_the_azure_cli(tmp_path, domain, holders):
    opened = az_open(domain, holders[:2])
    master = os.urandom(32).hex()
    made = az_code(
        "make-file",
        data=opened["data"],
        master=master,
        certificates=[str(holder.certificate) for holder in holders[:3]],
        required=2,
        holdfast=json.loads(domain.read_text())["holdfast"],
    )
    assert isinstance(made, dict), made
    path = tmp_path / "made-by-az.json"
    path.write_text(json.dumps(made))
    for pair in ([0, 1], [2, 0], [1, 2]):
        assert "VERIFIED" in ceremony("verify", path, *quorum(*[holders[index] for index in pair]))
    # Another master key behind the same data.
    made["SharedKeys"] = json.loads(domain.read_text())["SharedKeys"]
    path.write_text(json.dumps(made))
    assert "does not open" in refused("verify", path, *quorum(*holders[:2]))


def test_restore_blobs_of_both_mean_the_same(tmp_path, domain, holders, exchange):
    certificate, thumbprint, private_key = exchange
    theirs, ours = tmp_path / "theirs.json", tmp_path / "ours.json"
    pair = holders[:2]
    done = run(
        [az(), "keyvault", "security-domain", "restore-blob", "--sd-file", domain]
        + ["--sd-exchange-key", certificate, "--sd-file-restore-blob", theirs]
        + ["--sd-wrapping-keys", *[holder.key for holder in pair]]
        + ["--passwords", *[holder.passphrase for holder in pair]]
    )
    assert done.returncode == 0, done.stderr
    words = ["--exchange-key", certificate, "--exchange-thumbprint", thumbprint, "--out", ours]
    shown = ceremony("restore-blob", domain, *quorum(*pair), *words)
    assert "for pool 09090909-" in shown

    blobs = [json.loads(path.read_text()) for path in (theirs, ours)]
    assert blobs[0].keys() == blobs[1].keys()
    assert blobs[0]["WrappedKey"]["x5t_256"] == blobs[1]["WrappedKey"]["x5t_256"]
    opened = [az_code("open-blob", blob=blob, exchange_key=private_key) for blob in blobs]
    assert opened[0]["data"] == opened[1]["data"] == az_open(domain, pair)["data"]
    masters = {opened[0]["master"], opened[1]["master"], az_open(domain, pair)["master"]}
    assert len(masters) == 3, "each blob has a master key of its own"
    shown = [re.search("for +(.*)", ceremony("inspect", path)).group(1) for path in (theirs, ours)]
    assert shown[0] == shown[1]
    assert "not overwritten" in refused("restore-blob", domain, *quorum(*pair), *words)


def test_the_azure_clis_blob_opens_with_our_code(tmp_path, domain, holders, exchange):
    """Its data and its master key, put behind shares that `verify` opens."""
    certificate, _, private_key = exchange
    blob_path = tmp_path / "blob.json"
    pair = holders[:2]
    done = run(
        [az(), "keyvault", "security-domain", "restore-blob", "--sd-file", domain]
        + ["--sd-exchange-key", certificate, "--sd-file-restore-blob", blob_path]
        + ["--sd-wrapping-keys", *[holder.key for holder in pair]]
        + ["--passwords", *[holder.passphrase for holder in pair]]
    )
    assert done.returncode == 0, done.stderr
    blob = json.loads(blob_path.read_text())
    opened = az_code("open-blob", blob=blob, exchange_key=private_key)
    made = az_code(
        "make-file",
        data={},
        master=opened["master"],
        certificates=[str(holder.certificate) for holder in holders[:3]],
        required=2,
        holdfast=json.loads(domain.read_text())["holdfast"],
    )
    made["EncData"] = blob["EncData"]
    path = tmp_path / "file.json"
    path.write_text(json.dumps(made))
    assert "VERIFIED" in ceremony("verify", path, *quorum(*pair))


def test_a_blob_is_for_a_transfer_key_that_somebody_vouched_for(tmp_path, domain, holders, exchange):
    certificate, thumbprint, _ = exchange
    out = tmp_path / "blob.json"
    words = ["restore-blob", domain, *quorum(*holders[:2]), "--out", out]
    wrong = "0" * 64
    said = refused(*words, "--exchange-key", certificate, "--exchange-thumbprint", wrong)
    assert "the exchange key's thumbprint is" in said
    assert "--exchange-thumbprint" in refused(*words, "--exchange-key", certificate)
    assert "transfer key" in refused(*words, "--exchange-key", holders[3].certificate)
    assert not out.exists()
    terminal = Terminal("ceremony", *words, "--exchange-key", certificate)
    terminal.until("Type yes: ")
    terminal.type("no\n")
    assert terminal.end() == 1 and "not confirmed" in terminal.seen
    assert not out.exists()
    terminal = Terminal("ceremony", *words, "--exchange-key", certificate)
    terminal.until("Type yes: ")
    terminal.type("yes\n")
    assert terminal.end() == 0 and out.exists(), terminal.seen


def test_rekeying_makes_new_holders_and_says_that_old_files_live_on(tmp_path, domain, holders):
    ada, ben, cyd, dot = holders
    new = tmp_path / "new.json"
    certificates = [word for holder in (ben, cyd, dot) for word in ("--holder", holder.certificate)]
    words = ["rekey", domain, *quorum(ada, cyd), *certificates, "--out", new]
    for required, said in ((1, "a quorum of 1"), (4, "cannot be had from 3")):
        assert said in refused(*words, "--required", required)
    same = ["--holder", ben.certificate, "--required", 2]
    assert "are for the same key" in refused(*words, *same)
    assert "destroy" in ceremony(*words, "--required", 3)
    assert "VERIFIED" in ceremony("verify", new, *quorum(dot, ben, cyd))
    assert "is not among the holders" in refused("verify", new, *quorum(ada, ben, cyd))
    assert "VERIFIED" in ceremony("verify", domain, *quorum(ada, ben))
    assert stat.S_IMODE(new.stat().st_mode) == 0o600

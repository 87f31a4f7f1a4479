"""`holdfast apply`: a pool becomes what a file says, once; what the file gets wrong is said before anything is changed."""

import json
import re
import time

import pytest

from holdfast import Pool, unb64

FILE = """\
version = 1

[settings]
HoldfastAllowRsa15Decryption = false

[roles."Applied signer"]
description = "signs"
allow = ["sign", "verify", "keys/read"]

[keys.applied]
type = "EC-HSM"
curve = "P-384"
ops = ["sign", "verify"]
expires = "2035-01-01"
tags = { team = "pay" }

[keys.applied.rotation]
rotate_after_create = "P90D"
expires_after = "P2Y"

[keys.applied-box]
type = "oct-HSM"
size = 256
enabled = false

[[assignments]]
principal = "app"
role = "Applied signer"
scope = "/keys/applied"
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A pool of this file's own: it counts events and changes roles and settings."""
    with Pool(tmp_path_factory.mktemp("apply"), "--with-conformance-principal") as pool:
        pool.wait_for_holders()
        yield pool


def applied_to(pool, directory):
    def apply(text, *flags):
        file = directory / "pool.toml"
        file.write_text(text)
        return pool.run("apply", str(file), *flags, check=False)

    return apply


@pytest.fixture
def apply(pool, tmp_path):
    return applied_to(pool, tmp_path)


def changes(done):
    assert done.stdout, done
    return [(change["action"], change["kind"], change["name"]) for change in json.loads(done.stdout)["changes"]]


def test_a_file_makes_a_pool_what_it_says_and_the_second_time_nothing(pool, apply):
    # Names that no other test gives.
    file = FILE.replace("applied", "begun").replace("Applied", "Begun")
    dry = apply(file, "--dry-run")
    assert dry.returncode == 4, dry
    assert pool.call("GET", "/keys/begun").status == 404, "a dry run changes nothing"
    done = apply(file)
    assert done.returncode == 0, done
    assert changes(done) == changes(dry)
    assert ("create", "key", "begun") in changes(done) and ("create", "rotation policy", "begun") in changes(done)
    key = pool.call("GET", "/keys/begun").json
    assert (key["key"]["crv"], key["key"]["key_ops"], key["tags"]) == ("P-384", ["sign", "verify"], {"team": "pay"})
    assert key["attributes"]["exp"] == 2051222400
    policy = pool.call("GET", "/keys/begun/rotationpolicy").json
    assert policy["attributes"]["expiryTime"] == "P2Y"
    assert pool.call("GET", "/keys/begun-box").json["attributes"]["enabled"] is False
    setting = pool.call("GET", "/settings/HoldfastAllowRsa15Decryption", token="admin").json
    assert setting["value"] == "false"
    held = json.loads(pool.run("role", "list", "--scope", "/keys/begun", "--output", "json").stdout)["value"]
    assert [item["properties"]["principalId"] for item in held] == [pool.object_id("app")]

    before = len(pool.audit())
    for flags in ((), ("--dry-run",)):
        again = apply(file, *flags)
        assert (again.returncode, changes(again)) == (0, []), again
    verbs = {event["operationName"] for event in pool.audit(before)}
    assert not any(verb.endswith(("Create", "Update", "Set", "Delete")) for verb in verbs), verbs
    table = apply(file, "--output", "table")
    assert table.stdout == "nothing to change\n", table


def test_only_what_differs_is_changed(pool, apply):
    apply(FILE)
    version = pool.call("GET", "/keys/applied").json["key"]["kid"]
    other = FILE.replace('team = "pay"', 'team = "hr"').replace("P90D", "P60D").replace('"verify", "keys/read"', '"verify"')
    other = other.replace("enabled = false", "enabled = true")
    shown = apply(other, "--dry-run", "--output", "table").stdout
    assert "~ key applied: tags\n" in shown and "~ rotation policy applied\n" in shown, shown
    assert "~ key applied-box: enabled\n" in shown and "~ role Applied signer: what it allows\n" in shown, shown
    assert shown.endswith("4 to change; nothing was changed\n"), shown
    assert len(changes(apply(other))) == 4
    key = pool.call("GET", "/keys/applied").json
    assert (key["tags"], key["key"]["kid"]) == ({"team": "hr"}, version)
    assert changes(apply(other)) == []
    # What is not named is left alone.
    assert changes(apply(re.sub(r"tags = .*\n|ops = .*\n|expires = .*\n", "", other))) == []
    assert changes(apply("version = 1\n")) == []


def test_every_mistake_is_named_before_anything_is_changed(pool, apply):
    apply(FILE)
    before = len(pool.audit())
    bad = FILE.replace("P-384", "P-999").replace("P90D", "90 days").replace('"keys/read"', '"fly"') + "\n[keys.new]\ntype = 'EC'\n"
    done = apply(bad)
    assert done.returncode == 2 and not done.stdout, done
    for told in ("line 8: roles.Applied signer.allow", "line 12: keys.applied.curve", "line 18: keys.applied.rotation"):
        assert told in done.stderr, done.stderr
    assert len(pool.audit()) == before, "the pool was not even asked"
    unknown = apply(FILE.replace("curve", "curb"))
    assert unknown.returncode == 2 and "line 12" in unknown.stderr and "unknown field `curb`" in unknown.stderr

    # What only the pool can tell is told all at once as well, and the new key is not made.
    pool.create("ec", "applied-gone")
    pool.call("DELETE", "/keys/applied-gone")
    wrong = FILE.replace('curve = "P-384"', 'curve = "P-256"')
    wrong = wrong.replace('role = "Applied signer"', 'role = "Nobody"').replace('principal = "app"', 'principal = "who"')
    wrong += "\n[keys.applied-gone]\ntype = 'EC'\n\n[keys.applied-new]\ntype = 'EC'\n"
    # Who may not see deleted keys, as `app` and `admin` may not, learns of one when the key is made.
    done = apply(wrong, "--as", "conformance")
    assert done.returncode == 2 and not done.stdout, done
    for told in (
        "line 10: keys.applied.type: the pool has a key of this name that is EC-HSM P-384, and EC-HSM P-256 was asked for",
        "line 26: assignments.principal: `who` is not an object id",
        "line 26: assignments.role: no role is called `Nobody`",
        "keys.applied-gone: a deleted key has this name",
    ):
        assert told in done.stderr, done.stderr
    assert pool.call("GET", "/keys/applied-new").status == 404


RELEASED = """\
version = 1

[settings]
HoldfastReleaseAuthorities = "https://attest.example"

[keys.sealed]
type = "EC-HSM"
exportable = true

[keys.sealed.release_policy]
document = '''
{ "version": "1.0.0", "anyOf": [ { "authority": "https://attest.example",
  "allOf": [ { "claim": "measurement", "equals": "aa" } ] } ] }
'''

[keys.sealed-box]
type = "oct-HSM"
release_policy = { file = "policy.json", immutable = true }

[keys.stays]
type = "EC-HSM"
exportable = false
"""


def test_release_policies_are_as_the_file_says_until_they_are_immutable(pool, apply, tmp_path):
    def document(measurement):
        condition = {"claim": "measurement", "equals": measurement}
        return json.dumps({"anyOf": [{"authority": "https://attest.example", "allOf": [condition]}]})

    def held(name):
        key = pool.call("GET", f"/keys/{name}").json
        return key["attributes"]["exportable"], unb64(key["release_policy"]["data"]).decode(), key["release_policy"]["immutable"]

    (tmp_path / "policy.json").write_text(document("bb"))
    shown = apply(RELEASED, "--dry-run", "--output", "table")
    assert shown.returncode == 4, shown
    for told in (
        "~ setting HoldfastReleaseAuthorities: nothing becomes https://attest.example\n",
        "+ key sealed: EC-HSM P-256, exportable by the word of https://attest.example; mutable policy\n",
        "+ key sealed-box: oct-HSM 256, exportable by the word of https://attest.example; immutable policy\n",
        "+ key stays: EC-HSM P-256\n",
    ):
        assert told in shown.stdout, shown.stdout
    assert apply(RELEASED).returncode == 0
    assert changes(apply(RELEASED)) == []
    assert held("sealed-box") == (True, document("bb"), True)
    exportable, given, immutable = held("sealed")
    assert (exportable, json.loads(given)["anyOf"][0]["allOf"][0]["equals"], immutable) == (True, "aa", False)
    assert "release_policy" not in pool.call("GET", "/keys/stays").json

    # Written otherwise, it says the same; what a section does not name stays.
    respelled = RELEASED.replace('"version": "1.0.0", ', "").replace('"anyOf"', '"anyof"')
    assert changes(apply(respelled)) == []
    assert changes(apply(RELEASED.replace(", immutable = true", ""))) == []

    # Only what differs is sent, and from then on it is fixed.
    stricter = RELEASED.replace('"aa"', '"cc"').replace("'''\n\n[keys.sealed-box]", "'''\nimmutable = true\n\n[keys.sealed-box]")
    done = apply(stricter, "--output", "table")
    told = "~ key sealed: release_policy (by the word of https://attest.example; immutable policy)\n"
    assert (done.returncode, told in done.stdout) == (0, True), done
    assert json.loads(held("sealed")[1])["anyOf"][0]["allOf"][0]["equals"] == "cc" and held("sealed")[2]
    assert changes(apply(stricter)) == []

    # What can never be made so is said before anything is sent.
    before = len(pool.audit())
    (tmp_path / "policy.json").write_text(document("dd"))
    wrong = stricter.replace("immutable = true\n\n", "immutable = false\n\n")
    wrong = wrong.replace("exportable = false", "release_policy = { file = 'policy.json' }")
    wrong += "\n[keys.sealed-new]\ntype = 'EC'\n"
    for flags in ((), ("--dry-run",)):
        done = apply(wrong, *flags)
        assert done.returncode == 2 and not done.stdout, done
        for told in (
            "keys.sealed.release_policy: the key's policy is immutable, and false was asked for",
            "keys.sealed-box.release_policy: the key's policy says something else, and is immutable",
            "keys.stays.release_policy: the pool has a key of this name that is not exportable, which never changes",
        ):
            assert told in done.stderr, done.stderr
    done = apply("version = 1\n[keys.sealed]\ntype = 'EC'\nexportable = false\n")
    assert "keys.sealed.exportable: the pool has a key of this name that is exportable" in done.stderr, done
    verbs = {event["operationName"] for event in pool.audit(before)}
    assert not any(verb.endswith(("Create", "Update", "Set", "Delete")) for verb in verbs), verbs
    assert pool.call("GET", "/keys/sealed-new").status == 404

    # And what is wrong with a document, before the pool is asked.
    (tmp_path / "policy.json").write_text(document("dd").replace("claim", "clam"))
    done = apply(RELEASED)
    assert done.returncode == 2 and "line 18: keys.sealed-box.release_policy.file: policy.json: " in done.stderr, done
    assert "anyOf[0].allOf[0]: member `clam` is not known" in done.stderr, done


def test_nothing_is_deleted_unless_it_was_asked_for(own_pool, tmp_path):
    """In a pool of its own: it takes what others made."""
    own_pool.start()
    pool, apply = own_pool, applied_to(own_pool, tmp_path)
    apply(FILE)
    pool.create("ec", "stray")
    pool.run("role", "define", "Stray", "--allow", "sign")
    admin = pool.object_id("admin")
    pool.run("role", "assign", "--principal", admin, "--role", "Crypto Auditor", "--scope", "/keys/stray")
    assert changes(apply(FILE)) == []
    listed = apply(FILE, "--prune", "--dry-run")
    assert listed.returncode == 4
    deleted = [change for change in changes(listed) if change[0] == "delete"]
    assert ("delete", "key", "stray") in deleted and ("delete", "role", "Stray") in deleted, deleted
    assert ("delete", "assignment", "Managed HSM Crypto Auditor at /keys/stray") in deleted, deleted
    assert not any("Administrator" in name for _, _, name in deleted), deleted
    assert pool.call("GET", "/keys/stray").status == 200
    # A section that is not there loses nothing.
    assert changes(apply("version = 1\n[settings]\n", "--prune", "--dry-run")) == []
    keep = FILE + '\n[[assignments]]\nprincipal = "app"\nrole = "Crypto User"\nscope = "/"\n'
    done = apply(keep, "--prune")
    assert done.returncode == 0, done
    assert pool.call("GET", "/keys/stray").status == 404
    assert changes(apply(keep, "--prune")) == []


def test_who_may_not_is_refused_and_what_was_done_is_listed(pool, apply):
    text = 'version = 1\n[keys.made-first]\ntype = "EC"\n'
    denied = apply(text, "--as", "admin")
    assert denied.returncode == 3 and "keys/" in denied.stderr, denied
    assert pool.call("GET", "/keys/made-first").status == 404


def test_the_example_in_the_docs_is_applied(pool, apply, repository):
    text = (repository / "docs" / "cli.md").read_text()
    example = re.search(r"<!-- apply: example -->\n```toml\n(.*?)```", text, re.S).group(1)
    done = apply(example)
    assert done.returncode == 0, done
    assert changes(apply(example)) == []


def test_a_quickstart_can_begin_as_a_file_says(tmp_path):
    file = tmp_path / "seed.toml"
    file.write_text(FILE)
    with Pool(tmp_path, "--seed", str(file)) as pool:
        began = time.monotonic()
        # The pool answers before it says that it is ready.
        while pool.call("GET", "/keys/applied-box").status != 200:
            assert time.monotonic() - began < 120, pool.log()
            time.sleep(0.05)
        first = pool.call("GET", "/keys/applied").json
        pool.stop()
        pool.start()
        assert pool.call("GET", "/keys/applied").json == first

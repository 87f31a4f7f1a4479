"""The life of a key: deleted, recovered, purged and made again, a thousand times over; what is refused on the way;
lists in pages.

`HOLDFAST_LIFE_CYCLES` says how often (default 1000).
"""

import contextlib
import hashlib
import os
import urllib.parse
import uuid

import pytest
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import SignatureAlgorithm

import lanes
from holdfast import Pool, app_credential, assert_error, b64, fresh_name, key_path

CYCLES = int(os.environ.get("HOLDFAST_LIFE_CYCLES", "1000"))
DIGEST = hashlib.sha256(b"message").digest()
SIGN = {"alg": "ES256", "value": b64(DIGEST)}
EC = {"kty": "EC-HSM", "crv": "P-256"}
CRYPTO_OFFICER = "515eb02d-2335-4d2d-92f2-b1cbdf9c3778"
DAY = 86_400


def may_recover_and_purge(pool):
    """Makes `app` a Crypto Officer as well. Not in the pool that other tests share: there it assigns no roles."""
    definition = f"Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/{CRYPTO_OFFICER}"
    body = {"properties": {"roleDefinitionId": definition, "principalId": pool.object_id("app")}}
    path = f"/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}"
    made = pool.call("PUT", path, body, token="admin")
    assert made.status == 201, made
    return pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with Pool(tmp_path_factory.mktemp("life")) as pool:
        yield may_recover_and_purge(pool)


@pytest.fixture
def client(pool, monkeypatch):
    variables = pool.variables
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", variables["REQUESTS_CA_BUNDLE"])
    credential = app_credential(variables)
    with KeyClient(variables["HOLDFAST_POOL_URL_IP"], credential, verify_challenge_resource=False) as client:
        yield client


def ok(answer, status=200):
    assert answer.status == status, answer
    return answer.json if answer.body else None


# --- with the SDK


def test_the_sdk_deletes_recovers_and_purges(client):
    name = fresh_name("sdk")
    first = client.create_ec_key(name, curve="P-256", hardware_protected=True, tags={"made": "first"})
    deleted = client.begin_delete_key(name, _polling_interval=0.05).result()
    assert deleted.id == first.id
    assert deleted.recovery_id == f"{client.vault_url}/deletedkeys/{name}"
    assert (deleted.scheduled_purge_date - deleted.deleted_date).days == 90
    assert name in {key.name for key in client.list_deleted_keys()}
    assert name not in {key.name for key in client.list_properties_of_keys()}
    with pytest.raises(ResourceExistsError) as refused:
        client.create_ec_key(name, curve="P-256", hardware_protected=True)
    assert refused.value.error.innererror["code"] == "ObjectIsDeletedButRecoverable"
    with pytest.raises(ResourceNotFoundError):
        client.get_key(name)

    recovered = client.begin_recover_deleted_key(name, _polling_interval=0.05).result()
    assert (recovered.id, recovered.key.x) == (first.id, first.key.x)
    updated = client.update_key_properties(name, enabled=False, tags={"made": "later"})
    assert (updated.properties.enabled, updated.properties.tags) == (False, {"made": "later"})
    signer = client.get_cryptography_client(name)
    with pytest.raises(HttpResponseError) as refused:
        signer.sign(SignatureAlgorithm.es256, DIGEST)
    assert refused.value.status_code == 403
    client.update_key_properties(name, enabled=True)
    assert len(signer.sign(SignatureAlgorithm.es256, DIGEST).signature) == 64

    client.begin_delete_key(name, _polling_interval=0.05).result()
    client.purge_deleted_key(name)
    with pytest.raises(ResourceNotFoundError):
        client.get_deleted_key(name)
    second = client.create_ec_key(name, curve="P-256", hardware_protected=True)
    assert second.key.x != first.key.x
    assert second.properties.tags is None


# --- what is refused

# What is tried, of a key in which state: method, path, body; status, code, inner code.
NOT_FOUND = (404, "KeyNotFound", None)
DELETED = (409, "Conflict", "ObjectIsDeletedButRecoverable")
CONFLICTS = {
    "create a deleted key": ("deleted", "POST", "/keys/{n}/create", EC, *DELETED),
    "get a deleted key": ("deleted", "GET", "/keys/{n}", None, *NOT_FOUND),
    "get a version of a deleted key": ("deleted", "GET", "/keys/{n}/{v}", None, *NOT_FOUND),
    "list versions of a deleted key": ("deleted", "GET", "/keys/{n}/versions", None, *NOT_FOUND),
    "update a deleted key": ("deleted", "PATCH", "/keys/{n}", {"tags": {}}, *NOT_FOUND),
    "update a version of a deleted key": ("deleted", "PATCH", "/keys/{n}/{v}", {"tags": {}}, *NOT_FOUND),
    "use a deleted key": ("deleted", "POST", "/keys/{n}/sign", SIGN, *NOT_FOUND),
    "use a version of a deleted key": ("deleted", "POST", "/keys/{n}/{v}/sign", SIGN, *NOT_FOUND),
    "delete a key twice": ("deleted", "DELETE", "/keys/{n}", None, *NOT_FOUND),
    "get a live key as deleted": ("live", "GET", "/deletedkeys/{n}", None, *NOT_FOUND),
    "recover a live key": ("live", "POST", "/deletedkeys/{n}/recover", None, *NOT_FOUND),
    "purge a live key": ("live", "DELETE", "/deletedkeys/{n}", None, *NOT_FOUND),
    "delete an absent key": ("absent", "DELETE", "/keys/{n}", None, *NOT_FOUND),
    "recover an absent key": ("absent", "POST", "/deletedkeys/{n}/recover", None, *NOT_FOUND),
    "purge an absent key": ("absent", "DELETE", "/deletedkeys/{n}", None, *NOT_FOUND),
    "get a purged key": ("purged", "GET", "/keys/{n}", None, *NOT_FOUND),
    "recover a purged key": ("purged", "POST", "/deletedkeys/{n}/recover", None, *NOT_FOUND),
    "purge a key twice": ("purged", "DELETE", "/deletedkeys/{n}", None, *NOT_FOUND),
}


def key_in(pool, state):
    """Name and version of a new key in `state`."""
    name, version = fresh_name(state), "0" * 32
    if state != "absent":
        version = key_path(pool.create("ec", name)).split("/")[3]
    if state in ("deleted", "purged"):
        ok(pool.call("DELETE", f"/keys/{name}"))
    if state == "purged":
        ok(pool.call("DELETE", f"/deletedkeys/{name}"), 204)
    return name, version


def assert_refused(pool, method, path, body, status, code, inner_code):
    """As the table says, and recorded as such, once."""
    correlation_id = str(uuid.uuid4())
    answer = pool.call(method, path, body, correlation_id=correlation_id)
    assert_error(answer, status, code)
    assert answer.error.get("innererror", {}).get("code") == inner_code, answer
    events = pool.events(correlation_id)
    assert [event["httpStatusCode"] for event in events] == [status], events


@pytest.mark.parametrize("conflict", CONFLICTS)
def test_what_the_state_of_a_key_forbids_is_refused(pool, conflict):
    state, method, path, body, *expected = CONFLICTS[conflict]
    name, version = key_in(pool, state)

    def seen():
        answers = [pool.call("GET", place) for place in (f"/keys/{name}", f"/deletedkeys/{name}")]
        return [(answer.status, answer.json) for answer in answers]

    before = seen()
    assert_refused(pool, method, path.format(n=name, v=version), body, *expected)
    assert seen() == before, "a refused request changed something"


def test_purge_protection(own_pool):
    """Nobody purges before retention has passed; everything else goes on. Both are fixed when the pool is made."""
    own_pool.flags = ("--purge-protection", "--retention-days", "7")
    own_pool.start()
    may_recover_and_purge(own_pool)
    made = own_pool.create("ec")
    name = key_path(made).split("/")[2]
    attributes = made["attributes"]
    assert (attributes["recoveryLevel"], attributes["recoverableDays"]) == ("CustomizedRecoverable", 7)
    deleted = ok(own_pool.call("DELETE", f"/keys/{name}"))
    assert deleted["scheduledPurgeDate"] == deleted["deletedDate"] + 7 * DAY
    protected = (403, "Forbidden", "PurgeProtectionEnabled")
    assert_refused(own_pool, "DELETE", f"/deletedkeys/{name}", None, *protected)
    assert_refused(own_pool, "POST", f"/keys/{name}/create", EC, *DELETED)
    # No later start takes it away.
    own_pool.stop()
    own_pool.flags = ("--retention-days", "90")
    own_pool.start()
    assert ok(own_pool.call("GET", f"/deletedkeys/{name}")) == deleted
    assert_refused(own_pool, "DELETE", f"/deletedkeys/{name}", None, *protected)
    assert ok(own_pool.call("POST", f"/deletedkeys/{name}/recover")) == made


def test_a_deleted_key_is_described_under_the_host_that_was_asked(pool):
    made = pool.create("ec", tags={"a": "b"})
    path = key_path(made)
    name = path.split("/")[2]
    ok(pool.call("DELETE", f"/keys/{name}"))
    for host in (f"127.0.0.1:{pool.port}", f"demo.managedhsm.localhost:{pool.port}"):
        deleted = ok(pool.call("GET", f"/deletedkeys/{name}", host=host))
        assert set(deleted) == {*made, "recoveryId", "deletedDate", "scheduledPurgeDate"}
        assert deleted["key"]["kid"] == f"https://{host}{path}"
        assert deleted["recoveryId"] == f"https://{host}/deletedkeys/{name}"
        assert deleted["scheduledPurgeDate"] == deleted["deletedDate"] + 90 * DAY
        assert {**made, "key": deleted["key"]} == {name: deleted[name] for name in made}
        items = ok(pool.call("GET", "/deletedkeys", host=host))["value"]
        item = next(item for item in items if item["recoveryId"] == deleted["recoveryId"])
        assert item["kid"] == f"https://{host}/keys/{name}"
        assert (item["deletedDate"], item["tags"]) == (deleted["deletedDate"], {"a": "b"})


# --- pages

COUNT = 60


@pytest.fixture(scope="module")
def full_pool(tmp_path_factory):
    """A pool with 60 keys, 60 deleted keys, and 60 versions of one more key."""
    with Pool(tmp_path_factory.mktemp("pages")) as pool:
        may_recover_and_purge(pool)
        jobs = [*(f"page-{number:02}" for number in range(COUNT)), *(f"gone-{n:02}" for n in range(COUNT))]

        def work(call, name):
            ok(call("POST", f"/keys/{name}/create", EC))
            if name.startswith("gone"):
                ok(call("DELETE", f"/keys/{name}"))

        lanes.each(pool, jobs, work)
        # One after the other: who writes one key side by side with others may be told to try again.
        with contextlib.closing(pool.connection()) as connection:
            for _ in range(COUNT):
                ok(pool.call("POST", "/keys/many/create", EC, connection=connection))
        yield pool


# List: how many it has.
LISTS = {"/keys": COUNT + 1, "/deletedkeys": COUNT, "/keys/many/versions": COUNT}


def pages(pool, path, maxresults=None, host=None):
    """Every page, by following nextLink as it stands."""
    place = path if maxresults is None else f"{path}?maxresults={maxresults}"
    page = ok(pool.call("GET", place, host=host))
    yield page["value"]
    while page["nextLink"] is not None:
        link = urllib.parse.urlsplit(page["nextLink"])
        expected_host = host or f"127.0.0.1:{pool.port}"
        assert (link.scheme, link.netloc, link.path) == ("https", expected_host, path), page["nextLink"]
        page = ok(follow(pool, page["nextLink"], host))
        yield page["value"]


def follow(pool, link, host=None):
    parts = urllib.parse.urlsplit(link)
    return pool.call("GET", f"{parts.path}?{parts.query}", version=None, host=host)


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("maxresults", [1, 7, 25, None])
def test_pages_show_everything_once(full_pool, path, maxresults):
    host = f"demo.managedhsm.localhost:{full_pool.port}" if maxresults == 7 else None
    found = list(pages(full_pool, path, maxresults, host))
    size = maxresults or 25
    assert [len(page) for page in found[:-1]] == [size] * (len(found) - 1)
    assert len(found[-1]) <= size
    ids = [item["kid"] for page in found for item in page]
    assert len(ids) == len(set(ids)) == LISTS[path]
    assert all(kid.startswith(f"https://{host or f'127.0.0.1:{full_pool.port}'}/keys/") for kid in ids)


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("maxresults", ["0", "26", "-1", "", "x", "1.0", "9" * 30])
def test_a_page_has_one_to_25_items(full_pool, path, maxresults):
    message = assert_error(full_pool.call("GET", f"{path}?maxresults={maxresults}"), 400, "BadParameter")
    assert "maxresults must be 1 to 25" in message.lower(), message


def first_link(pool, path, maxresults=7):
    return ok(pool.call("GET", f"{path}?maxresults={maxresults}"))["nextLink"]


def with_token(link, token):
    parts = urllib.parse.urlsplit(link)
    query = dict(urllib.parse.parse_qsl(parts.query))
    assert "$skiptoken" in query, link
    return parts._replace(query=urllib.parse.urlencode({**query, "$skiptoken": token})).geturl()


def token_of(link):
    return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(link).query))["$skiptoken"]


@pytest.mark.parametrize("path", LISTS)
def test_a_damaged_token_is_refused(full_pool, path):
    link = first_link(full_pool, path)
    token = token_of(link)
    other_list = "/keys/many/versions" if path != "/keys/many/versions" else "/keys"
    bad = {
        "empty": "",
        "nonsense": "nonsense",
        "not base64url": "***",
        "cut to half": token[: len(token) // 4],
        "of another list": token_of(first_link(full_pool, other_list)),
        "backwards": token[::-1],
        "twice": token + token,
        "long": "A" * 4000,
        "zero bytes": b64(bytes(40)),
    }
    for what, token_sent in bad.items():
        answer = follow(full_pool, with_token(link, token_sent))
        assert "skiptoken" in assert_error(answer, 400, "BadParameter"), (what, answer)
    # A changed token may name another place, and gives no right: whatever it says, it is answered in order.
    everything = {item["kid"] for page in pages(full_pool, path) for item in page}
    for at in range(len(token)):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        answer = follow(full_pool, with_token(link, changed))
        if answer.status == 200:
            assert {item["kid"] for item in answer.json["value"]} <= everything
        else:
            assert_error(answer, 400, "BadParameter")


def test_a_token_survives_what_happens_between_two_pages(tmp_path):
    """A restart, and the end of the very key at which the page ended."""
    with Pool(tmp_path) as pool:
        may_recover_and_purge(pool)
        names = [f"key-{number:02}" for number in range(30)]
        lanes.each(pool, names, lambda call, name: ok(call("POST", f"/keys/{name}/create", EC)))
        page = ok(pool.call("GET", "/keys?maxresults=7"))
        shown = [item["kid"] for item in page["value"]]
        pool.stop()
        pool.start()
        last = shown[-1].rsplit("/", 1)[1]
        ok(pool.call("DELETE", f"/keys/{last}"))
        ok(pool.call("DELETE", f"/deletedkeys/{last}"), 204)
        while page["nextLink"] is not None:
            page = ok(follow(pool, page["nextLink"]))
            shown += [item["kid"] for item in page["value"]]
        assert sorted(kid.rsplit("/", 1)[1] for kid in shown) == names


def test_the_sdk_follows_the_pages(full_pool, monkeypatch):
    variables = full_pool.variables
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", variables["REQUESTS_CA_BUNDLE"])
    credential = app_credential(variables)
    url = variables["HOLDFAST_POOL_URL_IP"]
    with KeyClient(url, credential, verify_challenge_resource=False) as client:
        assert len(list(client.list_properties_of_keys(max_page_size=7))) == COUNT + 1
        assert len(list(client.list_deleted_keys(max_page_size=25))) == COUNT
        assert len(list(client.list_properties_of_key_versions("many"))) == COUNT


# --- again and again: last, as the tests above read the whole log


@pytest.mark.timeout(max(900, CYCLES))
def test_delete_purge_create_again_and_again(pool):
    """A purged name is free at once, and what is made under it has nothing of what was there."""
    prefix = fresh_name("cycle")
    before = {}

    def work(call, number):
        lane = number % lanes.LANES
        name = f"{prefix}-{lane}"
        made = ok(call("POST", f"/keys/{name}/create", {**EC, "tags": {"number": str(number)}}))
        assert made["tags"] == {"number": str(number)}
        if lane in before:
            assert made["key"]["x"] != before[lane]["key"]["x"]
            assert_error(call("GET", key_path(before[lane])), 404, "KeyNotFound")
            versions = ok(call("GET", f"/keys/{name}/versions"))["value"]
            assert [item["kid"] for item in versions] == [made["key"]["kid"]]
        before[lane] = made
        ok(call("POST", f"/keys/{name}/sign", SIGN))
        deleted = ok(call("DELETE", f"/keys/{name}"))
        assert deleted["key"] == made["key"]
        ok(call("DELETE", f"/deletedkeys/{name}"), 204)
        assert_error(call("GET", f"/deletedkeys/{name}"), 404, "KeyNotFound")

    lanes.each(pool, range(CYCLES), work)


@pytest.mark.timeout(max(900, CYCLES))
def test_delete_recover_update_again_and_again(pool):
    """A recovered key is as it was, and may be changed at once."""
    names = [fresh_name("cycle") for _ in range(lanes.LANES)]
    held = [pool.create("ec", name) for name in names]

    def work(call, number):
        lane = number % lanes.LANES
        name = names[lane]
        deleted = ok(call("DELETE", f"/keys/{name}"))
        assert ok(call("GET", f"/deletedkeys/{name}")) == deleted
        assert ok(call("POST", f"/deletedkeys/{name}/recover")) == held[lane]
        tags = {"number": str(number)}
        updated = ok(call("PATCH", f"/keys/{name}", {"tags": tags}))
        assert (updated["key"], updated["tags"]) == (held[lane]["key"], tags)
        assert ok(call("GET", key_path(updated))) == updated
        held[lane] = updated
        ok(call("POST", f"/keys/{name}/sign", SIGN))

    lanes.each(pool, range(CYCLES), work)

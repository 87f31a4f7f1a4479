"""Test mode: time that passes at a word, refusals as of a busy service, roles that arrive late; and a header that says so."""

import datetime
import time

import pytest
from azure.core.exceptions import HttpResponseError
from azure.keyvault.keys import KeyClient

from holdfast import Pool, app_credential, assert_error, fresh_name

DAY = 86_400
PATH = "/holdfast/test"
HEADER = "x-holdfast-test-mode"


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A pool of this file's own: its clock cannot be set back."""
    with Pool(tmp_path_factory.mktemp("test-mode")) as pool:
        yield pool


@pytest.fixture(autouse=True)
def nothing_stays(pool):
    yield
    if pool.process:
        pool.call("PATCH", PATH, {"throttle": None, "roleDelaySeconds": 0}, token="admin")


def change(pool, **members):
    answer = pool.call("PATCH", PATH, members, token="admin")
    assert answer.status == 200, answer
    return answer.json


def advance(pool, days):
    return change(pool, clockAdvanceSeconds=days * DAY)


def policy(after):
    trigger = {"trigger": {"timeAfterCreate": after}, "action": {"type": "Rotate"}}
    return {"lifetimeActions": [trigger], "attributes": {"expiryTime": "P2Y"}}


def versions(pool, name):
    return pool.call("GET", f"/keys/{name}/versions").json["value"]


def test_nothing_is_altered_until_asked_for(own_pool):
    own_pool.start()
    answer = own_pool.call("GET", PATH, token="admin")
    held = answer.json
    assert (held["clockOffsetSeconds"], held["throttle"], held["roleDelaySeconds"]) == (0, None, 0)
    assert abs(held["keyTime"] - time.time()) < 600
    assert answer.headers[HEADER] is None and answer.headers["x-holdfast-class"] == "test"
    assert change(own_pool, roleDelaySeconds=5)["roleDelaySeconds"] == 5
    for path, token in (("/keys", "app"), ("/keys", None), ("/nothing", "app")):
        assert own_pool.call("GET", path, token=token).headers[HEADER] == "role-delay=5s"
    assert own_pool.call("GET", "/healthstatus", token=None).headers[HEADER] == "role-delay=5s"


def test_rotation_comes_when_time_passes_and_survives_a_restart(pool):
    name = pool.create("ec")["key"]["kid"].split("/")[-2]
    assert pool.call("PUT", f"/keys/{name}/rotationpolicy", policy("P30D")).status == 200
    before = pool.call("GET", PATH, token="admin").json["keyTime"]
    advance(pool, 29)
    assert len(versions(pool, name)) == 1
    held = advance(pool, 2)
    assert 31 * DAY <= held["keyTime"] - before < 32 * DAY
    rotated = versions(pool, name)
    assert len(rotated) == 2, "done before the answer, without waiting for the schedule"
    created = sorted(item["attributes"]["created"] for item in rotated)
    assert 31 * DAY <= created[1] - created[0] < 32 * DAY
    pool.stop()
    pool.start()
    again = pool.call("GET", PATH, token="admin")
    assert again.json["clockOffsetSeconds"] == held["clockOffsetSeconds"]
    assert again.headers[HEADER] == f"clock=+{held['clockOffsetSeconds']}s"
    assert len(versions(pool, name)) == 2
    # Missed five times, it is done once; by the command line as well.
    shown = pool.run("clock", "advance", "150d", "--output", "table").stdout
    assert "time for keys" in shown and "ahead by" in shown
    assert len(versions(pool, name)) == 3
    # The log is on the machine's clock, and whole.
    events = [event for event in pool.audit() if event["operationName"] in ("TestModeUpdate", "KeyRotateIfDue")]
    times = [datetime.datetime.fromisoformat(event["time"]).timestamp() for event in events]
    assert times and max(times) < time.time() + DAY, events
    assert "test mode: clock=+" in str(events)
    pool.verify_audit()


def test_windows_and_retention_follow_the_clock_and_tokens_do_not(pool):
    now = pool.call("GET", PATH, token="admin").json["keyTime"]
    expiring = fresh_name("expiring")
    made = pool.call("POST", f"/keys/{expiring}/create", {"kty": "EC", "attributes": {"exp": now + 10 * DAY}})
    assert made.status == 200, made
    deleted = pool.create("ec")["key"]["kid"].split("/")[-2]
    pool.call("DELETE", f"/keys/{deleted}")
    token = pool.token("app")
    sign = {"alg": "ES256", "value": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"}
    assert pool.call("POST", f"/keys/{expiring}/sign", sign).status == 200
    advance(pool, 11)
    refused = pool.call("POST", f"/keys/{expiring}/sign", sign)
    assert_error(refused, 403, "Forbidden")
    assert refused.error["innererror"]["code"] == "KeyExpired"
    advance(pool, 95)
    purges = [event for event in pool.audit() if event["operationName"] == "KeyPurge"]
    assert any(f"/keys/{deleted}" in str(event) for event in purges), "purged, as its retention has passed"
    # The same token, long out of date by the time of keys.
    assert pool.token("app") == token and pool.call("GET", "/keys").status == 200


def test_refusals_are_real_and_the_sdk_comes_again(pool, monkeypatch):
    variables = pool.variables
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", variables["REQUESTS_CA_BUNDLE"])
    pool.run("simulate", "--throttle-every", "3", "--retry-after", "1")
    answers = [pool.call("GET", "/keys", correlation_id="throttled") for _ in range(6)]
    statuses = [answer.status for answer in answers]
    assert sorted(statuses) == [200] * 4 + [429] * 2, statuses
    refused = answers[statuses.index(429)]
    assert_error(refused, 429, "Throttled")
    assert refused.headers["Retry-After"] == "1" and refused.headers[HEADER].endswith("throttle=1/3")
    assert sorted(event["httpStatusCode"] for event in pool.events("throttled")) == sorted(statuses)
    with KeyClient(
        variables["HOLDFAST_POOL_URL_IP"], app_credential(variables), verify_challenge_resource=False
    ) as client:
        for _ in range(4):
            client.create_ec_key(fresh_name("again"), curve="P-256", hardware_protected=True)
    with KeyClient(
        variables["HOLDFAST_POOL_URL_IP"],
        app_credential(variables),
        verify_challenge_resource=False,
        retry_total=0,
    ) as client:
        change(pool, throttle={"every": 1, "retryAfterSeconds": 1})
        with pytest.raises(HttpResponseError) as error:
            client.get_key("whatever")
        assert error.value.status_code == 429
    # Even then it can be turned off.
    pool.run("simulate", "--off")
    assert pool.call("GET", "/keys").status == 200


def test_a_change_of_roles_arrives_late(pool):
    pool.create("ec", "late")
    admin = pool.object_id("admin")
    assert_error(pool.call("GET", "/keys/late", token="admin"), 403, "Forbidden")
    change(pool, roleDelaySeconds=2)
    began = time.monotonic()
    pool.run("role", "assign", "--role", "Managed HSM Crypto User", "--principal", admin, "--scope", "/keys/late")
    while pool.call("GET", "/keys/late", token="admin").status != 200:
        assert time.monotonic() - began < 120, "it never arrives"
        time.sleep(0.1)
    assert time.monotonic() - began >= 2


@pytest.mark.parametrize(
    "body, told",
    [
        ({"clockAdvanceSeconds": -1}, "clockAdvanceSeconds"),
        ({"clockAdvanceSeconds": 10**11}, "at most 100 years"),
        ({"throttle": {"every": 0, "retryAfterSeconds": 1}}, "throttle.every must be at least 1"),
        ({"throttle": {"every": 1, "retryAfterSeconds": 0}}, "retryAfterSeconds must be 1 to 3600"),
        ({"throttle": {"every": 1}}, "retryAfterSeconds"),
        ({"roleDelaySeconds": 3601}, "at most 3600"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(pool, body, told):
    before = pool.call("GET", PATH, token="admin").json
    answer = pool.call("PATCH", PATH, body, token="admin")
    assert_error(answer, 400, "BadParameter")
    assert told in answer.error["message"] or "line" in answer.error["message"], answer
    after = pool.call("GET", PATH, token="admin").json
    assert {**after, "keyTime": 0} == {**before, "keyTime": 0}


def test_only_an_administrator_may(pool):
    for method, body in (("GET", None), ("PATCH", {"clockAdvanceSeconds": DAY})):
        denied = pool.call(method, PATH, body)
        assert_error(denied, 403, "Forbidden")
        assert "settings/" in denied.error["message"]

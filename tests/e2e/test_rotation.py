"""Rotation policies and rotation on demand, with the SDK and over the wire (with `az`: test_az.py)."""

import json

import pytest
from azure.core.exceptions import HttpResponseError
from azure.keyvault.keys import (
    KeyRotationLifetimeAction,
    KeyRotationPolicy,
    KeyRotationPolicyAction,
)
from azure.keyvault.keys.crypto import EncryptionAlgorithm

from holdfast import assert_error, fresh_name, key_client

ROTATE = KeyRotationPolicyAction.rotate


@pytest.fixture(scope="module")
def client(pool):
    with key_client(pool) as client:
        yield client


def policy(after="P90D", expiry="P1Y"):
    trigger = {"trigger": {"timeAfterCreate": after}, "action": {"type": "Rotate"}}
    return {"lifetimeActions": [trigger], "attributes": {"expiryTime": expiry}}


def test_the_sdk_sets_reads_and_clears_a_policy(client):
    name = fresh_name("rotated")
    client.create_ec_key(name, curve="P-256", hardware_protected=True)
    none = client.get_key_rotation_policy(name)
    assert (none.lifetime_actions, none.expires_in) == ([], None)
    wanted = [
        KeyRotationLifetimeAction(ROTATE, time_before_expiry="P30D"),
        KeyRotationLifetimeAction(KeyRotationPolicyAction.notify, time_after_create="P2M"),
    ]
    client.update_key_rotation_policy(name, KeyRotationPolicy(lifetime_actions=wanted, expires_in="P1Y6M"))
    held = client.get_key_rotation_policy(name)
    assert held.expires_in == "P1Y6M" and held.created_on and held.updated_on
    shown = [(a.action, a.time_after_create, a.time_before_expiry) for a in held.lifetime_actions]
    assert shown == [(ROTATE, None, "P30D"), (KeyRotationPolicyAction.notify, "P2M", None)]
    assert held.id.endswith(f"/keys/{name}/rotationpolicy")
    client.update_key_rotation_policy(name, KeyRotationPolicy(lifetime_actions=[]))
    assert client.get_key_rotation_policy(name).lifetime_actions == []


def test_a_rotated_key_encrypts_anew_and_opens_what_it_sealed_before(client):
    name = fresh_name("rotated")
    first = client.create_rsa_key(name, size=2048, hardware_protected=True, tags={"team": "pay"})
    with pytest.raises(HttpResponseError) as refused:
        client.rotate_key(name)
    assert refused.value.status_code == 400
    assert refused.value.error.innererror["code"] == "RotationPolicyNotSet"
    actions = [KeyRotationLifetimeAction(ROTATE, time_after_create="P18M")]
    client.update_key_rotation_policy(name, KeyRotationPolicy(lifetime_actions=actions, expires_in="P2Y"))
    old = client.get_cryptography_client(name, key_version=first.properties.version)
    sealed = old.encrypt(EncryptionAlgorithm.rsa_oaep_256, b"text")
    second = client.rotate_key(name)
    assert second.properties.version != first.properties.version and second.key.n != first.key.n
    assert second.key.key_ops == first.key.key_ops and second.properties.tags == {"team": "pay"}
    life = second.properties.expires_on - second.properties.created_on
    assert 730 <= life.days <= 731
    assert client.get_key(name).id == second.id
    assert len(list(client.list_properties_of_key_versions(name))) == 2
    assert old.decrypt(sealed.algorithm, sealed.ciphertext).plaintext == b"text"


@pytest.mark.parametrize(
    "body, told",
    [
        (policy(after="P27D"), "at least 28 days"),
        (policy(after="P1Y", expiry="P1Y"), "must be shorter than"),
        (policy(expiry="P20D"), "attributes.expiryTime must be at least"),
        (policy(after="90 days"), "`90 days` is not a duration"),
        ({"lifetimeActions": policy()["lifetimeActions"]}, "attributes.expiryTime is required"),
        ({"lifetimeActions": policy()["lifetimeActions"] * 2, "attributes": {"expiryTime": "P1Y"}}, "twice"),
    ],
    ids=["too soon", "too late", "short life", "no duration", "no expiry", "twice"],
)
def test_a_policy_that_breaks_a_rule_is_refused_and_changes_nothing(pool, body, told):
    name = pool.create("ec")["key"]["kid"].split("/")[-2]
    path = f"/keys/{name}/rotationpolicy"
    good = pool.call("PUT", path, policy())
    assert good.status == 200, good
    answer = pool.call("PUT", path, body)
    assert_error(answer, 400, "BadParameter")
    assert told in answer.error["message"], answer
    assert pool.call("GET", path).json == good.json


def test_events_say_what_was_asked_and_who_was_refused(pool):
    name = pool.create("ec")["key"]["kid"].split("/")[-2]
    pool.call("PUT", f"/keys/{name}/rotationpolicy", policy(), correlation_id="rotation-set")
    denied = pool.call("POST", f"/keys/{name}/rotate", token="admin", correlation_id="rotation-denied")
    assert_error(denied, 403, "Forbidden")
    assert "Microsoft.KeyVault/managedHsm/keys/rotate/action" in denied.error["message"], denied
    (set_event,) = pool.events("rotation-set")
    assert set_event["operationName"] == "KeyRotationPolicySet"
    assert "rotate P90D after creation" in json.dumps(set_event)
    (denied_event,) = pool.events("rotation-denied")
    assert (denied_event["operationName"], denied_event["httpStatusCode"]) == ("KeyRotate", 403)

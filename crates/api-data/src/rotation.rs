//! Rotation policies as JSON (behaviour section 7.1).

use crate::wire::{List, bad, parse as parse_json, shorten};
use domain::rotation::{LifetimeAction, Period, RotationPolicy, Trigger};
use serde::Deserialize;
use serde_json::{Value, json};
use service::{Error, NewRotationPolicy, RotationView};

/// More than there are kinds of action, so that the domain can say what is wrong with a third one.
const MAX_ACTIONS: usize = 8;

#[derive(Deserialize)]
struct PolicyBody {
    #[serde(rename = "lifetimeActions")]
    actions: Option<List<ActionBody>>,
    attributes: Option<AttributesBody>,
}

#[derive(Deserialize)]
struct ActionBody {
    trigger: Option<TriggerBody>,
    action: Option<TypeBody>,
}

#[derive(Deserialize)]
struct TriggerBody {
    #[serde(rename = "timeAfterCreate")]
    after_create: Option<String>,
    #[serde(rename = "timeBeforeExpiry")]
    before_expiry: Option<String>,
}

#[derive(Deserialize)]
struct TypeBody {
    #[serde(rename = "type")]
    name: Option<String>,
}

/// Of what an answer has besides, and a client may send back.
#[derive(Deserialize)]
struct AttributesBody {
    #[serde(rename = "expiryTime")]
    expiry: Option<String>,
}

pub(crate) fn parse(body: &[u8]) -> Result<NewRotationPolicy, Error> {
    let body: PolicyBody = parse_json(body)?;
    let List(actions) = body.actions.unwrap_or_default();
    if actions.len() > MAX_ACTIONS {
        return Err(bad(format!("lifetimeActions has more than {MAX_ACTIONS} members")));
    }
    let expiry = body.attributes.and_then(|attributes| attributes.expiry);
    Ok(NewRotationPolicy {
        actions: actions.into_iter().map(action).collect::<Result<_, _>>()?,
        expiry: expiry.map(|text| period("attributes.expiryTime", &text)).transpose()?,
    })
}

fn action(body: ActionBody) -> Result<(LifetimeAction, Trigger), Error> {
    let name = body.action.and_then(|action| action.name);
    let name = name.ok_or_else(|| bad("lifetimeActions.action.type is missing".into()))?;
    let action = match name.to_ascii_lowercase().as_str() {
        "rotate" => LifetimeAction::Rotate,
        "notify" => LifetimeAction::Notify,
        _ => {
            return Err(bad(format!(
                "lifetimeActions.action.type `{}` is neither Rotate nor Notify",
                shorten(&name)
            )));
        }
    };
    let trigger = body.trigger.ok_or_else(|| bad("lifetimeActions.trigger is missing".into()))?;
    let trigger = match (trigger.after_create, trigger.before_expiry) {
        (Some(text), None) => Trigger::AfterCreate(period("timeAfterCreate", &text)?),
        (None, Some(text)) => Trigger::BeforeExpiry(period("timeBeforeExpiry", &text)?),
        (None, None) | (Some(_), Some(_)) => {
            return Err(
                bad("lifetimeActions.trigger has one of timeAfterCreate and timeBeforeExpiry".into()),
            );
        }
    };
    Ok((action, trigger))
}

fn period(member: &str, text: &str) -> Result<Period, Error> {
    Period::parse(text).map_err(|error| bad(format!("{member} `{}` is {error}", shorten(text))))
}

/// As the service takes and shows them (behaviour section 7.1).
pub fn lifetime_actions(policy: &RotationPolicy) -> Vec<Value> {
    let action = |(action, trigger): &(LifetimeAction, Trigger)| {
        let name = match action {
            LifetimeAction::Rotate => "Rotate",
            LifetimeAction::Notify => "Notify",
        };
        let trigger = match trigger {
            Trigger::AfterCreate(period) => json!({ "timeAfterCreate": period.to_string() }),
            Trigger::BeforeExpiry(period) => json!({ "timeBeforeExpiry": period.to_string() }),
        };
        json!({ "trigger": trigger, "action": { "type": name } })
    };
    policy.actions().iter().map(action).collect()
}

pub(crate) fn render(origin: &str, view: &RotationView) -> Value {
    let id = format!("{origin}/keys/{}/rotationpolicy", view.name);
    let Some(policy) = &view.policy else {
        return json!({ "id": id, "lifetimeActions": [], "attributes": {} });
    };
    let mut attributes = json!({
        "created": policy.created.unix_seconds(),
        "updated": policy.updated.unix_seconds(),
    });
    if let Some(period) = policy.expiry() {
        attributes["expiryTime"] = period.to_string().into();
    }
    json!({
        "id": id,
        "lifetimeActions": lifetime_actions(policy),
        "attributes": attributes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(body: Value) -> String {
        parse(body.to_string().as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn each_mistake_is_named() {
        let with = |trigger: Value, kind: Value| json!({ "lifetimeActions": [{ "trigger": trigger, "action": { "type": kind } }] });
        let both = json!({ "timeAfterCreate": "P30D", "timeBeforeExpiry": "P30D" });
        for (body, told) in [
            (with(both, "Rotate".into()), "one of timeAfterCreate"),
            (with(json!({}), "Rotate".into()), "one of timeAfterCreate"),
            (with(Value::Null, "Rotate".into()), "trigger is missing"),
            (with(json!({ "timeAfterCreate": "P30D" }), "Delete".into()), "`Delete` is neither"),
            (with(json!({ "timeAfterCreate": "P30D" }), Value::Null), "type is missing"),
            (
                with(json!({ "timeAfterCreate": "30 days" }), "Rotate".into()),
                "timeAfterCreate `30 days` is not a duration",
            ),
            (json!({ "attributes": { "expiryTime": "P200Y" } }), "attributes.expiryTime `P200Y` is longer"),
            (json!({ "lifetimeActions": vec![json!({}); 9] }), "more than 8"),
        ] {
            let message = message(body.clone());
            assert!(message.contains(told), "{body}: {message}");
        }
    }

    #[test]
    fn what_a_client_sends_back_is_taken() {
        let body = json!({
            "id": "https://a/keys/b/rotationpolicy",
            "lifetimeActions": [{ "trigger": { "timeAfterCreate": null, "timeBeforeExpiry": "P30D" }, "action": { "type": "rotate" } }],
            "attributes": { "expiryTime": "P1Y", "created": 1, "updated": 2 },
        });
        let new = parse(body.to_string().as_bytes()).unwrap();
        assert_eq!(new.actions.len(), 1);
        let nothing = NewRotationPolicy { actions: vec![], expiry: None };
        for empty in [
            "{}",
            r#"{"lifetimeActions":[],"attributes":{}}"#,
            r#"{"lifetimeActions":null,"attributes":null}"#,
        ] {
            assert_eq!(parse(empty.as_bytes()).unwrap(), nothing);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200), text in "P[0-9YMWDT]{0,12}") {
            let _ = parse(&body);
            let _ = parse(json!({ "attributes": { "expiryTime": text } }).to_string().as_bytes());
        }
    }
}

//! The body of `/holdfast/test`, in and out. No other Managed HSM has this path.

use crate::wire;
use domain::test_mode::{TestModeChange, Throttle};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use service::{Error, TestModeView};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    clock_advance_seconds: Option<u64>,
    /// `null` turns it off; left out it stays as it is.
    #[serde(default, deserialize_with = "named")]
    throttle: Option<Option<ThrottleBody>>,
    role_delay_seconds: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ThrottleBody {
    every: u32,
    retry_after_seconds: u32,
}

fn named<'de, D: Deserializer<'de>>(member: D) -> Result<Option<Option<ThrottleBody>>, D::Error> {
    Option::deserialize(member).map(Some)
}

pub(crate) fn parse(body: &[u8]) -> Result<TestModeChange, Error> {
    let body: Body = wire::parse(body)?;
    let throttle = |ThrottleBody { every, retry_after_seconds }| Throttle { every, retry_after_seconds };
    Ok(TestModeChange {
        advance_seconds: body.clock_advance_seconds.unwrap_or_default(),
        throttle: body.throttle.map(|member| member.map(throttle)),
        role_delay_seconds: body.role_delay_seconds,
    })
}

pub(crate) fn render(view: &TestModeView) -> Value {
    let TestModeView { mode, key_time } = view;
    let throttle = mode.throttle().map(
        |throttle| json!({ "every": throttle.every, "retryAfterSeconds": throttle.retry_after_seconds }),
    );
    json!({
        "clockOffsetSeconds": mode.clock_offset_seconds(),
        "keyTime": key_time.unix_seconds(),
        "throttle": throttle,
        "roleDelaySeconds": mode.role_delay_seconds(),
    })
}

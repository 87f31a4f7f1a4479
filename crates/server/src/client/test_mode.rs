//! `holdfast clock` and `holdfast simulate`: what a pool of class test does otherwise on demand. Over the wire API, with the
//! right to change settings; the path is the pool's own, and a pool of class production refuses it.

use super::login::{self, Client, Target};
use super::moment;
use super::output::{self, Format};
use super::{Arguments, run as run_client, usage};
use crate::CommandError;
use bytes::Bytes;
use clap::Subcommand;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use std::process::ExitCode;
use time::Duration;

const PATH: &str = "/holdfast/test";
const DEFAULT_RETRY_AFTER_SECONDS: u32 = 1;

#[derive(Subcommand)]
pub enum ClockCommand {
    /// Show what time it is for keys.
    Show,
    /// Let time pass for keys: rotations and purges that are due by then are done. There is no way back.
    Advance {
        /// 12h, 90d, 2w.
        #[arg(value_parser = parse_length)]
        by: Duration,
    },
}

#[derive(clap::Args)]
pub struct Simulate {
    #[command(flatten)]
    login: login::Arguments,
    #[command(flatten)]
    output: output::Arguments,
    /// Refuse each Nth request with 429, as a busy service does.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "off")]
    throttle_every: Option<u32>,
    /// What a refusal asks to wait: its Retry-After, in seconds.
    #[arg(long, value_name = "SECONDS", requires = "throttle_every", default_value_t = DEFAULT_RETRY_AFTER_SECONDS)]
    retry_after: u32,
    /// How long a change of roles takes until it counts, in seconds.
    #[arg(long, value_name = "SECONDS", conflicts_with = "off")]
    role_delay: Option<u32>,
    /// Refuse and delay nothing any more. The clock stays where it is.
    #[arg(long)]
    off: bool,
}

pub fn clock(arguments: Arguments<ClockCommand>) -> Result<ExitCode, CommandError> {
    let body = match arguments.command {
        ClockCommand::Show => None,
        ClockCommand::Advance { by } => Some(json!({ "clockAdvanceSeconds": by.whole_seconds() })),
    };
    run(arguments.login, arguments.output.format(), body)
}

pub fn simulate(arguments: Simulate) -> Result<ExitCode, CommandError> {
    let mut body = json!({});
    if arguments.off {
        body = json!({ "throttle": null, "roleDelaySeconds": 0 });
    }
    if let Some(every) = arguments.throttle_every {
        body["throttle"] = json!({ "every": every, "retryAfterSeconds": arguments.retry_after });
    }
    if let Some(seconds) = arguments.role_delay {
        body["roleDelaySeconds"] = seconds.into();
    }
    let changes = body.as_object().is_some_and(|members| !members.is_empty());
    run(arguments.login, arguments.output.format(), changes.then_some(body))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct View {
    clock_offset_seconds: u64,
    key_time: i64,
    throttle: Option<Throttle>,
    role_delay_seconds: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Throttle {
    every: u32,
    retry_after_seconds: u32,
}

/// Shows test mode, after `change` if there is one.
fn run(login: login::Arguments, format: Format, change: Option<Value>) -> Result<ExitCode, CommandError> {
    run_client(async move {
        let mut client = Client::new(Target::find(&login, "admin")?);
        let (method, body) = match change {
            Some(change) => (Method::PATCH, Some(Bytes::from(change.to_string()))),
            None => (Method::GET, None),
        };
        let answer = client.call(method, PATH, body).await?;
        if format == Format::Json {
            output::print_body(&answer.body)?;
            return Ok(ExitCode::SUCCESS);
        }
        let view: View = serde_json::from_slice(&answer.body)
            .map_err(|_| usage("the service's answer does not say what test mode is".into()))?;
        let throttle = view.throttle.map_or_else(
            || "off".to_owned(),
            |held| format!("1 of {} requests, retry after {} s", held.every, held.retry_after_seconds),
        );
        output::print_fields(&[
            ("time for keys", moment::show(view.key_time)),
            ("ahead by", format!("{} s", view.clock_offset_seconds)),
            ("throttle", throttle),
            ("role delay", format!("{} s", view.role_delay_seconds)),
        ])?;
        Ok(ExitCode::SUCCESS)
    })
}

fn parse_length(text: &str) -> Result<Duration, String> {
    moment::parse_length(text).ok_or_else(|| "expected a time such as 12h, 90d or 2w".to_owned())
}

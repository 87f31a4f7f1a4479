//! `holdfast pool confirm`: an administrator confirms the domain that was uploaded, over the wire API. The path is the
//! pool's own; no other Managed HSM has it.

use super::login::{self, Client, Target};
use super::output::{self, Format};
use super::{run as run_client, usage};
use crate::CommandError;
use crate::output::line;
use http::Method;
use serde_json::{Value, json};
use std::process::ExitCode;

const PATH: &str = "/holdfast/securitydomain/confirm";
const FINGERPRINT_DIGITS: usize = 64;

#[derive(clap::Args)]
pub struct Arguments {
    /// The owner key of the domain, as `holdfast ceremony inspect` shows it of the domain's file: not as the pool says it.
    #[arg(long, value_name = "HEX")]
    fingerprint: String,
    #[command(flatten)]
    login: login::Arguments,
    #[command(flatten)]
    output: output::Arguments,
}

pub fn run(arguments: Arguments) -> Result<ExitCode, CommandError> {
    let fingerprint = arguments.fingerprint.to_ascii_lowercase();
    if fingerprint.len() != FINGERPRINT_DIGITS || !fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(usage(format!("a fingerprint has {FINGERPRINT_DIGITS} hexadecimal digits")));
    }
    let format = arguments.output.format();
    run_client(async move {
        let mut client = Client::new(Target::find(&arguments.login, "admin")?);
        let body = json!({ "fingerprint": fingerprint }).to_string();
        let answer = client.call(Method::POST, PATH, Some(body.into())).await?;
        match format {
            Format::Json => output::print_body(&answer.body)?,
            Format::Table => {
                let view: Value = serde_json::from_slice(&answer.body)?;
                // A server that says yes to whatever it is told has confirmed nothing.
                if view["fingerprint"] != fingerprint.as_str() || view["confirmed"] != true {
                    return Err("the answer does not confirm that domain".into());
                }
                line(format_args!("confirmed: keys work in this pool"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

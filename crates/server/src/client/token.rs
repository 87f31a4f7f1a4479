//! `holdfast token`: withdraws what a principal's tokens allow, over the wire API. The paths are the pool's own; no other
//! Managed HSM has them.

use super::login::{Client, Target};
use super::moment::{self, Moment};
use super::output::{self, Format, Table};
use super::{Arguments, list, role, run as run_client, usage};
use crate::CommandError;
use crate::output::line;
use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};
use std::process::ExitCode;
use time::OffsetDateTime;

const PATH: &str = "/holdfast/tokens";

#[derive(Subcommand)]
pub enum Command {
    /// List the principals whose tokens were withdrawn, and up to when.
    List,
    /// Refuse the tokens that a principal got so far. Its roles stay: with a new token it is as before.
    Withdraw {
        /// An object id; or app, admin where they are known.
        #[arg(long)]
        principal: String,
        /// Those that were issued up to then, instead of up to now.
        #[arg(long, value_name = "DATE")]
        until: Option<Moment>,
    },
    /// Take a principal's earlier tokens again, as far as they still hold.
    Restore {
        #[arg(long)]
        principal: String,
    },
}

pub fn run(arguments: Arguments<Command>) -> Result<ExitCode, CommandError> {
    let format = arguments.output.format();
    run_client(async move {
        let mut client = Client::new(Target::find(&arguments.login, "admin")?);
        let answer = match arguments.command {
            Command::List => {
                let items = list::all(&mut client, PATH).await?;
                print(&client, &items, format)?;
                return Ok(ExitCode::SUCCESS);
            }
            Command::Withdraw { principal, until } => {
                let path = format!("{PATH}/{}", role::named(&client, &principal)?);
                let until = until.map(|moment| {
                    let date = moment.int_date(OffsetDateTime::now_utc());
                    date.ok_or_else(|| usage("the calendar ends before that date".into()))
                });
                let body = match until.transpose()? {
                    Some(date) => json!({ "notBefore": date.unix_seconds() }),
                    None => json!({}),
                };
                client.call(Method::PUT, &path, Some(body.to_string().into())).await?
            }
            Command::Restore { principal } => {
                let path = format!("{PATH}/{}", role::named(&client, &principal)?);
                let answer = client.call(Method::DELETE, &path, None).await?;
                if format == Format::Table {
                    line(format_args!("restored"))?;
                    return Ok(ExitCode::SUCCESS);
                }
                answer
            }
        };
        match format {
            Format::Json => output::print_body(&answer.body)?,
            Format::Table => print(&client, &[serde_json::from_slice(&answer.body)?], format)?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn print(client: &Client, items: &[Value], format: Format) -> Result<(), CommandError> {
    if format == Format::Json {
        return Ok(list::print(items)?);
    }
    let mut table = Table::new(&["PRINCIPAL", "WITHDRAWN UP TO"]);
    for item in items {
        let foreign = || "the service's answer holds what is no withdrawal of tokens";
        let principal = item["principalId"].as_str().and_then(|id| id.parse().ok()).ok_or_else(foreign)?;
        let until = item["notBefore"].as_i64().ok_or_else(foreign)?;
        table.row([role::show_principal(client, principal), moment::show(until)]);
    }
    Ok(table.print()?)
}

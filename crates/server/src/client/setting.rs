//! `holdfast setting`: what an Administrator may change while a pool runs, over the wire API alone.

use super::login::{Client, Target};
use super::output::{self, Format, Table};
use super::{Arguments, run as run_client};
use crate::CommandError;
use clap::Subcommand;
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::json;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum Command {
    /// List the settings of a pool.
    List,
    /// Show one setting.
    Show { name: String },
    /// Change a setting.
    Set { name: String, value: String },
}

/// A setting as the service writes it. Its value is a word, whatever its type.
#[derive(Deserialize)]
pub struct Setting {
    pub name: String,
    pub value: String,
}

#[derive(Deserialize)]
struct Settings {
    settings: Vec<Setting>,
}

pub fn run(arguments: Arguments<Command>) -> Result<ExitCode, CommandError> {
    let format = arguments.output.format();
    run_client(async move {
        let mut client = Client::new(Target::find(&arguments.login, "admin")?);
        let (method, path, body) = match arguments.command {
            Command::List => (Method::GET, "/settings".to_owned(), None),
            Command::Show { name } => (Method::GET, path(&name), None),
            Command::Set { name, value } => {
                let body = json!({ "value": value }).to_string();
                (Method::PATCH, path(&name), Some(body.into()))
            }
        };
        let answer = client.call(method, &path, body).await?;
        if format == Format::Json {
            output::print_body(&answer.body)?;
            return Ok(ExitCode::SUCCESS);
        }
        let listed = path == "/settings";
        let settings =
            if listed { parse(&answer.body)? } else { vec![serde_json::from_slice(&answer.body)?] };
        let mut table = Table::new(&["NAME", "VALUE"]);
        settings.into_iter().for_each(|Setting { name, value }| table.row([name, value]));
        table.print()?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Every setting of a pool, for whoever may read them.
pub async fn all(client: &mut Client) -> Result<Vec<Setting>, CommandError> {
    parse(&client.call(Method::GET, "/settings", None).await?.body)
}

fn parse(body: &[u8]) -> Result<Vec<Setting>, CommandError> {
    let parsed = serde_json::from_slice::<Settings>(body);
    Ok(parsed.map_err(|_| "the service's answer holds no settings")?.settings)
}

fn path(name: &str) -> String {
    format!("/settings/{}", utf8_percent_encode(name, NON_ALPHANUMERIC))
}

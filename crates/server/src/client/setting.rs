//! `holdfast setting`: what an Administrator may change while a pool runs, over the wire API alone.

use super::login::{Client, Target};
use super::output::{self, Format, Table};
use super::{Arguments, Refused, run as run_client};
use crate::CommandError;
use clap::Subcommand;
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
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
#[derive(Deserialize, Serialize)]
pub struct Setting {
    pub name: String,
    pub value: String,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize, Serialize)]
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
        if path == "/settings" {
            return list(&mut client, format).await;
        }
        let answer = client.call(method, &path, body).await?;
        if format == Format::Json {
            output::print_body(&answer.body)?;
            return Ok(ExitCode::SUCCESS);
        }
        print(vec![serde_json::from_slice(&answer.body)?])
    })
}

async fn list(client: &mut Client, format: Format) -> Result<ExitCode, CommandError> {
    let settings = all(client).await?;
    match format {
        Format::Json => {
            output::print_body(&serde_json::to_vec(&Settings { settings })?)?;
            Ok(ExitCode::SUCCESS)
        }
        Format::Table => print(settings),
    }
}

fn print(settings: Vec<Setting>) -> Result<ExitCode, CommandError> {
    let mut table = Table::new(&["NAME", "VALUE"]);
    settings.into_iter().for_each(|Setting { name, value, .. }| table.row([name, value]));
    table.print()?;
    Ok(ExitCode::SUCCESS)
}

/// Every setting of a pool, for whoever may read them: those that the service lists, and ours that it gives by name alone.
pub async fn all(client: &mut Client) -> Result<Vec<Setting>, CommandError> {
    let answer = client.call(Method::GET, "/settings", None).await?;
    let listed = serde_json::from_slice::<Settings>(&answer.body);
    let mut settings = listed.map_err(|_| "the service's answer holds no settings")?.settings;
    for setting in domain::setting::Setting::ALL {
        if settings.iter().any(|held| held.name == setting.name()) {
            continue;
        }
        match client.call(Method::GET, &path(setting.name()), None).await {
            Ok(answer) => settings.push(serde_json::from_slice(&answer.body)?),
            // A service that does not have it.
            Err(error) if error.downcast_ref::<Refused>().is_some_and(Refused::is_not_found) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(settings)
}

fn path(name: &str) -> String {
    format!("/settings/{}", utf8_percent_encode(name, NON_ALPHANUMERIC))
}

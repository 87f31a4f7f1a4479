//! The commands `key`, `attest`, `backup`, `role`, `setting`, `token`, `apply`, `clock` and `simulate`: clients of the
//! wire API, with no way in but the one that every client has.

pub mod apply;
pub mod attest;
pub mod backup;
pub mod confirm;
pub mod connection;
pub mod document;
mod explain;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod import;
pub mod input;
pub mod key;
pub mod list;
pub mod login;
pub mod moment;
pub mod output;
pub mod public_key;
mod release;
pub mod role;
pub mod setting;
pub mod test_mode;
pub mod token;
pub mod verdict;

use crate::CommandError;
use clap::Subcommand;
use connection::{Answer, Unreachable};
use http::StatusCode;
use output::clean;
use serde::Deserialize;
use std::fmt;
use std::future::Future;
use std::process::ExitCode;

/// What the groups of commands have in common: which pool, as whom, and how it is printed.
#[derive(clap::Args)]
pub struct Arguments<C: Subcommand> {
    #[command(flatten)]
    login: login::Arguments,
    #[command(flatten)]
    output: output::Arguments,
    #[command(subcommand)]
    command: C,
}

/// The command was understood by the parser, and makes no sense all the same. Exit code 2, as the parser's own.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(String);

pub fn usage(reason: String) -> CommandError {
    Usage(reason).into()
}

/// An error answer of the service, in its own words.
#[derive(Debug)]
pub struct Refused {
    status: StatusCode,
    code: String,
    inner_code: Option<String>,
    message: String,
    request_id: Option<String>,
    retry_after: Option<String>,
}

impl Refused {
    pub fn read(answer: &Answer) -> Self {
        #[derive(Deserialize)]
        struct Body {
            error: Problem,
        }
        #[derive(Deserialize)]
        struct Problem {
            code: String,
            message: String,
            innererror: Option<Inner>,
        }
        #[derive(Deserialize)]
        struct Inner {
            code: String,
        }
        let header = |name| answer.header(name).map(clean);
        let status = answer.status;
        let (code, inner_code, message) = match serde_json::from_slice::<Body>(&answer.body) {
            Ok(Body { error }) => {
                (clean(&error.code), error.innererror.map(|inner| clean(&inner.code)), clean(&error.message))
            }
            // Something in between answered.
            Err(_) => (status.to_string(), None, "the answer is not one of the service".to_owned()),
        };
        Self {
            status,
            code,
            inner_code,
            message,
            request_id: header("x-ms-request-id"),
            retry_after: header("retry-after"),
        }
    }

    pub fn is_forbidden(&self) -> bool {
        self.status == StatusCode::FORBIDDEN
    }

    pub fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    fn hints(&self) -> Vec<String> {
        let mut hints = Vec::new();
        hints.extend(self.retry_after.as_ref().map(|seconds| format!("try again in {seconds} s")));
        hints.extend(match self.code.as_str() {
            "KeyNotFound" => {
                Some("`holdfast key list` shows the keys, with --deleted the deleted ones".into())
            }
            "RoleAssignmentNotFound" => {
                Some("`holdfast role list --scope SCOPE` shows the assignments made at a scope".into())
            }
            "SettingNotFound" => Some("`holdfast setting list` shows the settings".into()),
            "PrincipalNotFound" => Some("`holdfast token list` shows whose tokens were withdrawn".into()),
            "RoleDefinitionNotFound" => Some("`holdfast role definitions` shows the roles".into()),
            _ => None,
        });
        hints.extend(self.request_id.as_ref().map(|id| format!("request id {id}")));
        hints
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(inner) = &self.inner_code {
            write!(f, " ({inner})")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Refused {}

/// 3: not there, or not allowed. 2: the command makes no sense. 1: everything else.
pub fn exit_code(error: &CommandError) -> ExitCode {
    match error.downcast_ref::<Refused>() {
        Some(refused) if refused.is_forbidden() || refused.is_not_found() => ExitCode::from(3),
        _ if error.is::<Usage>() => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

/// What to do about an error, or whom to ask with which number; a line each.
pub fn hints(error: &CommandError) -> Vec<String> {
    if let Some(refused) = error.downcast_ref::<Refused>() {
        return refused.hints();
    }
    if error.is::<Unreachable>() {
        return vec!["does the pool run? `holdfast quickstart --detach` starts one".to_owned()];
    }
    Vec::new()
}

/// Runs one command of a client. Nothing of it lands in a core file, as a plaintext or a token may be in its memory.
fn run(command: impl Future<Output = Result<ExitCode, CommandError>>) -> Result<ExitCode, CommandError> {
    crate::hardening::harden();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;
    use zeroize::Zeroizing;

    fn refused(status: u16, body: &str) -> Refused {
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-request-id", "r-1".parse().unwrap());
        headers.insert("retry-after", "10".parse().unwrap());
        Refused::read(&Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers,
            body: Zeroizing::new(body.as_bytes().to_vec()),
        })
    }

    #[test]
    fn a_refusal_is_shown_in_the_services_words() {
        let body =
            r#"{"error":{"code":"Forbidden","message":"No.\u001b[2J","innererror":{"code":"KeyDisabled"}}}"#;
        let error = refused(403, body);
        assert_eq!(error.to_string(), "Forbidden (KeyDisabled): No.\\u{1b}[2J");
        assert_eq!(error.hints(), ["try again in 10 s", "request id r-1"]);
        let foreign = refused(502, "<html>");
        assert_eq!(foreign.to_string(), "502 Bad Gateway: the answer is not one of the service");
    }

    #[test]
    fn exit_codes_tell_what_is_not_there_from_what_went_wrong() {
        let code = |error: CommandError| format!("{:?}", exit_code(&error));
        let exit = |code: u8| format!("{:?}", ExitCode::from(code));
        for (status, expected) in [(403, 3), (404, 3), (400, 1), (409, 1), (429, 1), (503, 1)] {
            assert_eq!(code(refused(status, "{}").into()), exit(expected), "{status}");
        }
        assert_eq!(code(usage("no".into())), exit(2));
        assert_eq!(code("other".into()), exit(1));
    }
}

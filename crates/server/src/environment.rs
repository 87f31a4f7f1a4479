//! `holdfast env`: shell exports, so that `eval "$(holdfast env)"` points any client at a quickstart.

use crate::CommandError;
use crate::files;
use crate::layout::{self, Layout, POOL_NAME, RESOURCE_SUFFIX};
use crate::output;
use crate::state::{Principal, Principals, Settings};
use identity::issuer::APP_SERVICE_PATH;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// Where the quickstart keeps everything.
    #[arg(long = "data", value_name = "DIR", default_value_os_t = layout::default_directory())]
    data: PathBuf,
    /// CLIENT_ID and CLIENT_SECRET of the principal that may do everything, for conformance suites.
    #[arg(long)]
    conformance: bool,
    /// Also IDENTITY_ENDPOINT, IDENTITY_HEADER and AZURE_POD_IDENTITY_AUTHORITY_HOST, for managed identity. Whoever looks
    /// for any credential it can find, as DefaultAzureCredential does, takes that one then.
    #[arg(long)]
    managed_identity: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode, CommandError> {
    let layout = Layout::new(arguments.data.clone());
    let missing = || {
        format!("there is no quickstart in {}; start one with `holdfast quickstart`", layout.data.display())
    };
    let settings = Settings::read(&layout)?.ok_or_else(missing)?;
    let principals = Principals::read(&layout)?.ok_or_else(missing)?;
    let chosen = match (arguments.conformance, &principals.conformance) {
        (false, _) => &principals.app,
        (true, Some(conformance)) => conformance,
        (true, None) => {
            return Err(
                "this quickstart has no conformance principal; start it with --with-conformance-principal"
                    .into(),
            );
        }
    };
    let ca = std::path::absolute(layout.ca_certificate())?.display().to_string();
    let port = settings.port;
    export("MHSM_URL", &format!("https://{POOL_NAME}.{RESOURCE_SUFFIX}:{port}"))?;
    export("HOLDFAST_POOL_URL_IP", &format!("https://127.0.0.1:{port}"))?;
    export("AUTHORITY_HOST", &settings.issuer_url())?;
    export("HOLDFAST_PROXY", &format!("http://127.0.0.1:{}", settings.proxy_port()))?;
    export("TENANT_ID", &principals.tenant)?;
    export("CLIENT_ID", &chosen.client_id)?;
    export("CLIENT_SECRET", &chosen.client_secret)?;
    export("PRINCIPAL_ID", &chosen.object_id)?;
    for name in ["CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"] {
        export(name, &ca)?;
    }
    export_principal("ADMIN", &principals.admin)?;
    export_principal("APP", &principals.app)?;
    let certificate = std::path::absolute(layout.app_certificate())?;
    export("HOLDFAST_APP_CERTIFICATE", &certificate.display().to_string())?;
    if arguments.managed_identity {
        let header = files::read(&layout.identity_header())?.ok_or_else(missing)?;
        let url = settings.managed_identity_url();
        export("IDENTITY_ENDPOINT", &format!("{url}{APP_SERVICE_PATH}"))?;
        export("IDENTITY_HEADER", std::str::from_utf8(&header)?)?;
        export("AZURE_POD_IDENTITY_AUTHORITY_HOST", &url)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn export_principal(name: &str, principal: &Principal) -> io::Result<()> {
    export(&format!("HOLDFAST_{name}_CLIENT_ID"), &principal.client_id)?;
    export(&format!("HOLDFAST_{name}_CLIENT_SECRET"), &principal.client_secret)?;
    export(&format!("HOLDFAST_{name}_OBJECT_ID"), &principal.object_id)
}

fn export(name: &str, value: &str) -> io::Result<()> {
    output::line(format_args!("export {name}={}", quote(value)))
}

/// One shell word to paste, quoted only where it has to be.
pub fn word(value: &str) -> String {
    let plain = !value.is_empty()
        && value.chars().all(|letter| letter.is_ascii_alphanumeric() || "/._-+".contains(letter));
    if plain { value.to_owned() } else { quote(value) }
}

/// One shell word, whatever is in it.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for value in ["plain", "it's", "$(reboot) `x` \"y\" \\", "two\nlines", "''"] {
            for quoted in [quote(value), word(value)] {
                let script = format!("printf %s {quoted}");
                let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
                assert_eq!(output.stdout, value.as_bytes(), "{quoted}");
            }
        }
    }
}

//! `holdfast env`: shell exports, so that `eval "$(holdfast env)"` points any client at a quickstart.

use crate::CommandError;
use crate::control;
use crate::files;
use crate::layout::{self, Layout, POOL_NAME, RESOURCE_SUFFIX};
use crate::output;
use crate::state::{Principal, Principals, Settings};
use domain::principal::TenantId;
use identity::issuer::{APP_SERVICE_PATH, subscription_id};
use std::io;
use std::net::ToSocketAddrs;
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
    /// Also what the Azure CLI needs, and as comments the commands to log in with. For a shell of its own: where the
    /// pool's name does not resolve, all that this shell starts goes through the quickstart's proxy.
    #[arg(long)]
    az: bool,
}

impl Arguments {
    pub fn for_az(data: PathBuf) -> Self {
        Self { data, conformance: false, managed_identity: false, az: true }
    }
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
    export("MHSM_URL", &format!("https://{POOL_NAME}.{RESOURCE_SUFFIX}:{}", settings.pool_port()))?;
    // By the names that conformance suites read; what the first two blank pools are for is up to whoever made them.
    const BLANK: [&[&str]; 4] =
        [&["SD_SOURCE_URL"], &["SD_TARGET_URL", "MHSM2_URL"], &["SD_SOURCE2_URL"], &["SD_TARGET2_URL"]];
    for (index, name) in settings.blank_pools.iter().enumerate() {
        let url = format!("https://{name}.{RESOURCE_SUFFIX}:{}", settings.blank_port(index));
        for variable in BLANK.get(index).copied().unwrap_or_default() {
            export(variable, &url)?;
        }
        output::line(format_args!("# blank pool {name}: {url}"))?;
    }
    export("HOLDFAST_POOL_URL_IP", &format!("https://127.0.0.1:{port}"))?;
    export("AUTHORITY_HOST", &settings.issuer_url())?;
    export("HOLDFAST_ATTESTATION_URL", &settings.attestation_url())?;
    export("ARM_URL", &settings.control_url())?;
    export("SUBSCRIPTION_ID", &subscription_id(&TenantId::parse(&principals.tenant)?).to_string())?;
    export("LOCATION", control::LOCATION)?;
    export("HOLDFAST_PROXY", &settings.proxy_url())?;
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
        let header = files::read(&layout.identity_header())?
            .ok_or("this quickstart never had managed identity; start it without --no-managed-identity")?;
        let url = settings.managed_identity_url();
        export("IDENTITY_ENDPOINT", &format!("{url}{APP_SERVICE_PATH}"))?;
        export("IDENTITY_HEADER", std::str::from_utf8(&header)?)?;
        export("AZURE_POD_IDENTITY_AUTHORITY_HOST", &url)?;
    }
    if arguments.az {
        print_for_az(&layout, &settings)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_for_az(layout: &Layout, settings: &Settings) -> Result<(), CommandError> {
    // Absolute, as `az` remembers in it wherever it is called; never the person's own, which has other logins.
    let directory = std::path::absolute(layout.az_configuration(settings.port))?;
    export("AZURE_CONFIG_DIR", &directory.display().to_string())?;
    // Else it asks Microsoft's login host about ours.
    export("AZURE_CORE_INSTANCE_DISCOVERY", "false")?;
    export("AZURE_CORE_COLLECT_TELEMETRY", "false")?;
    let name = format!("{POOL_NAME}.{RESOURCE_SUFFIX}");
    if !resolves_to_loopback(&name, settings.port) {
        for name in ["HTTPS_PROXY", "https_proxy"] {
            export(name, &settings.proxy_url())?;
        }
        // `localhost` in it would keep the pool's name from the proxy as well.
        output::line(format_args!("unset NO_PROXY no_proxy"))?;
    }
    Ok(output::line(format_args!(
        "# Once:
#   az cloud register --name holdfast --endpoint-resource-manager \"$ARM_URL\"
#   az cloud set --name holdfast
#   az login --service-principal --username \"$CLIENT_ID\" --password=\"$CLIENT_SECRET\" --tenant \"$TENANT_ID\"
# Then for instance:
#   az keyvault key create --hsm-name {POOL_NAME} --name first --kty EC-HSM --curve P-256
# As $HOLDFAST_ADMIN_CLIENT_ID, who owns the subscription, a pool of your own:
#   az keyvault create --hsm-name payroll --resource-group {} --location {} --retention-days 7 \\
#     --administrators \"$HOLDFAST_ADMIN_OBJECT_ID\"
#   az keyvault security-domain download --hsm-name payroll --sd-wrapping-keys 1.cer 2.cer 3.cer --sd-quorum 2 \\
#     --security-domain-file payroll.json
# It takes keys once that is done; `holdfast ceremony keygen 1` makes 1.key and 1.cer.",
        control::RESOURCE_GROUP,
        control::LOCATION
    ))?)
}

/// Whether clients find the pool by its name, by a resolver that knows names under localhost or a line in /etc/hosts.
fn resolves_to_loopback(name: &str, port: u16) -> bool {
    let Ok(addresses) = (name, port).to_socket_addrs() else { return false };
    let mut addresses = addresses.peekable();
    addresses.peek().is_some() && addresses.all(|address| address.ip().is_loopback())
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

//! Which pool, as whom; and a token for it, got as an SDK gets one.
//!
//! The first request goes without a token and without a body. The 401 that answers it names the resource; the token comes
//! from the authority that this client was told of, never from one that an answer names.

use super::connection::{Answer, Channel, Message, Origin, Roots};
use super::{Refused, usage};
use crate::CommandError;
use crate::layout::{self, Layout, POOL_NAME, RESOURCE_SUFFIX};
use crate::state::{Principal, Principals, Settings};
use bytes::Bytes;
use domain::guid::Guid;
use domain::principal::TenantId;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use service::{Random, SystemRandom};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const API_VERSION: &str = "7.5";
const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
const SECRET_VARIABLE: &str = "HOLDFAST_CLIENT_SECRET";
/// Longer than any secret, short enough that a wrong file is not read for long.
const MAX_SECRET_BYTES: usize = 4096;

/// Where the pool is and who asks. Without any of these, the environment says it (`eval "$(holdfast env)"`), else the
/// quickstart in the default data directory.
#[derive(clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Which pool, as whom")]
pub struct Arguments {
    /// The quickstart that keeps everything here.
    #[arg(long = "data", value_name = "DIR", global = true)]
    pub data: Option<PathBuf>,
    /// One of its principals: app (the default for keys), admin (for roles), conformance.
    #[arg(long = "as", id = "as", value_name = "PRINCIPAL", global = true)]
    pub principal: Option<String>,
    /// The pool, https://host[:port]. Goes with the next four; the secret is in $HOLDFAST_CLIENT_SECRET or a file.
    #[arg(long, value_name = "URL", global = true)]
    url: Option<Origin>,
    /// Who gives tokens, https://host[:port].
    #[arg(long, value_name = "URL", global = true)]
    authority: Option<Origin>,
    #[arg(long, global = true)]
    tenant: Option<String>,
    #[arg(long, value_name = "ID", global = true)]
    client_id: Option<String>,
    /// Certificate authorities to trust, in PEM. No others are.
    #[arg(long, value_name = "FILE", global = true)]
    ca_file: Option<PathBuf>,
    #[arg(long, value_name = "FILE", global = true)]
    client_secret_file: Option<PathBuf>,
}

/// A pool, and a principal with what proves that it is.
pub struct Target {
    pool: Origin,
    authority: Origin,
    tenant: TenantId,
    client_id: String,
    client_secret: Zeroizing<String>,
    roots: Roots,
    /// Object ids that have a name here.
    pub known: Vec<(String, Guid)>,
}

impl Target {
    pub fn find(arguments: &Arguments, default_principal: &str) -> Result<Self, CommandError> {
        let principal = arguments.principal.as_deref().unwrap_or(default_principal);
        if let Some(explicit) = Self::explicit(arguments)? {
            return Ok(explicit);
        }
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        match &arguments.data {
            Some(data) => Self::quickstart(&Layout::new(data.clone()), principal),
            None => match Self::environment(variable, principal)? {
                Some(target) => Ok(target),
                None => Self::quickstart(&Layout::new(layout::default_directory()), principal),
            },
        }
    }

    /// A quickstart on this machine, by its files.
    pub fn quickstart(layout: &Layout, principal: &str) -> Result<Self, CommandError> {
        let missing = || {
            format!(
                "there is no quickstart in {}; start one with `holdfast quickstart`, or say which pool with --data, --url or the environment",
                layout.data.display()
            )
        };
        let settings = Settings::read(layout).map_err(|error| located(error, layout))?;
        let principals = Principals::read(layout).map_err(|error| located(error, layout))?;
        let settings = settings.ok_or_else(missing)?;
        let principals = principals.ok_or_else(missing)?;
        let known: Vec<_> = principals
            .named()
            .map(|(name, principal)| Ok((name.to_owned(), principal.object_id()?)))
            .collect::<Result<_, CommandError>>()?;
        let names = principals.named().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
        let (_, Principal { client_id, client_secret, .. }) =
            principals.named().find(|(name, _)| *name == principal).ok_or_else(|| {
                usage(format!("this quickstart has no principal `{principal}`; it has {names}"))
            })?;
        Ok(Self {
            pool: format!("https://{POOL_NAME}.{RESOURCE_SUFFIX}:{}", settings.port).parse()?,
            authority: settings.issuer_url().parse()?,
            tenant: TenantId::parse(&principals.tenant)?,
            client_id: client_id.clone(),
            client_secret: client_secret.clone(),
            roots: Roots::read(&layout.ca_certificate())?,
            known,
        })
    }

    /// The options that name everything, if one of them is given.
    fn explicit(arguments: &Arguments) -> Result<Option<Self>, CommandError> {
        let Arguments { data, principal, url, authority, tenant, client_id, ca_file, client_secret_file } =
            arguments;
        let given = [
            url.is_some(),
            authority.is_some(),
            tenant.is_some(),
            client_id.is_some(),
            ca_file.is_some(),
            client_secret_file.is_some(),
        ];
        if !given.contains(&true) {
            return Ok(None);
        }
        let (Some(url), Some(authority), Some(tenant), Some(client_id), Some(ca_file)) =
            (url, authority, tenant, client_id, ca_file)
        else {
            return Err(usage(
                "--url, --authority, --tenant, --client-id and --ca-file go together: all or none".into(),
            ));
        };
        if data.is_some() || principal.is_some() {
            return Err(usage(
                "--data and --as are for a quickstart; --url and what goes with it name all".into(),
            ));
        }
        let client_secret = match client_secret_file {
            Some(path) => read_secret(path)?,
            None => std::env::var(SECRET_VARIABLE).map(Zeroizing::new).map_err(|_| {
                usage(format!(
                    "the client's secret is missing: set {SECRET_VARIABLE} or give --client-secret-file"
                ))
            })?,
        };
        Ok(Some(Self {
            pool: url.clone(),
            authority: authority.clone(),
            tenant: TenantId::parse(tenant).map_err(|error| usage(format!("--tenant: {error}")))?,
            client_id: client_id.clone(),
            client_secret,
            roots: Roots::read(ca_file)?,
            known: Vec::new(),
        }))
    }

    /// What `holdfast env` sets, as the Azure SDKs' tests read it.
    fn environment(
        variable: impl Fn(&str) -> Option<String>,
        principal: &str,
    ) -> Result<Option<Self>, CommandError> {
        let Some(url) = variable("MHSM_URL").or_else(|| variable("HOLDFAST_POOL_URL_IP")) else {
            return Ok(None);
        };
        let needed = |name: &str| {
            variable(name).ok_or_else(|| {
                usage(format!("MHSM_URL or HOLDFAST_POOL_URL_IP names a pool, but {name} is not set: eval \"$(holdfast env)\" sets all, and --data DIR needs none"))
            })
        };
        let prefix = format!("HOLDFAST_{}", principal.to_ascii_uppercase());
        let known = ["admin", "app"].into_iter().filter_map(|name| {
            let id = variable(&format!("HOLDFAST_{}_OBJECT_ID", name.to_ascii_uppercase()))?;
            Some((name.to_owned(), id.parse().ok()?))
        });
        Ok(Some(Self {
            pool: url.parse()?,
            authority: needed("AUTHORITY_HOST")?.parse()?,
            tenant: TenantId::parse(&needed("TENANT_ID")?)?,
            client_id: needed(&format!("{prefix}_CLIENT_ID"))?,
            client_secret: Zeroizing::new(needed(&format!("{prefix}_CLIENT_SECRET"))?),
            roots: Roots::read(Path::new(&needed("REQUESTS_CA_BUNDLE")?))?,
            known: known.collect(),
        }))
    }
}

/// The system's own messages do not say where.
pub fn located(error: CommandError, layout: &Layout) -> CommandError {
    if error.is::<std::io::Error>() {
        return format!("cannot read what is in {}: {error}", layout.data.display()).into();
    }
    error
}

fn read_secret(path: &Path) -> Result<Zeroizing<String>, CommandError> {
    let failed = |reason: String| format!("cannot read the client's secret in {}: {reason}", path.display());
    let content = Zeroizing::new(std::fs::read(path).map_err(|error| failed(error.to_string()))?);
    let text = std::str::from_utf8(&content).map_err(|_| failed("it is not text".into()))?.trim_end();
    if text.is_empty() || text.len() > MAX_SECRET_BYTES {
        return Err(failed(format!("a secret has 1 to {MAX_SECRET_BYTES} bytes")).into());
    }
    Ok(Zeroizing::new(text.to_owned()))
}

/// A client of one pool.
pub struct Client {
    target: Target,
    channel: Channel,
    token: Option<Zeroizing<String>>,
    /// One for the whole command, so that its events are found together in the audit log.
    request_id: Guid,
}

impl Client {
    pub fn new(target: Target) -> Self {
        let channel = Channel::new(target.pool.clone(), target.roots.clone());
        Self { target, channel, token: None, request_id: SystemRandom.guid() }
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The answer to a request whose `path` is without a query.
    pub async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Answer, CommandError> {
        self.follow(method, &format!("{path}?api-version={API_VERSION}"), body).await
    }

    /// The answer to a request whose path has its query, as a link that the service gave.
    pub async fn follow(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Answer, CommandError> {
        let mut may_log_in = true;
        loop {
            let body = if self.token.is_some() { body.clone() } else { None };
            let asked_without_token = self.token.is_none();
            let answer = self.channel.send(self.message(method.clone(), path, body)?).await?;
            match answer.status {
                StatusCode::UNAUTHORIZED if may_log_in => {
                    // A token that is refused is asked for anew once, as a long list may outlive one.
                    may_log_in = false;
                    self.log_in(&answer).await?;
                }
                status if status.is_success() && asked_without_token => {
                    return Err(format!(
                        "{} answers without asking who calls: this is no pool",
                        self.target.pool
                    )
                    .into());
                }
                status if status.is_success() => return Ok(answer),
                _ => return Err(Refused::read(&answer).into()),
            }
        }
    }

    fn message(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<Message, CommandError> {
        let mut headers = vec![
            (USER_AGENT, HeaderValue::from_static(concat!("holdfast/", env!("CARGO_PKG_VERSION")))),
            (CLIENT_REQUEST_ID, HeaderValue::try_from(self.request_id.to_string())?),
        ];
        if body.is_some() {
            headers.push((CONTENT_TYPE, HeaderValue::from_static("application/json")));
        }
        if let Some(token) = &self.token {
            let bearer = Zeroizing::new(format!("Bearer {}", token.as_str()));
            let mut value = HeaderValue::try_from(bearer.as_str())?;
            value.set_sensitive(true);
            headers.push((AUTHORIZATION, value));
        }
        Ok(Message { method, path: path.to_owned(), headers, body: body.unwrap_or_default() })
    }

    async fn log_in(&mut self, refusal: &Answer) -> Result<(), CommandError> {
        let challenge = refusal
            .header(WWW_AUTHENTICATE.as_str())
            .and_then(Challenge::parse)
            .ok_or_else(|| format!("{} asks for a token without saying which", self.target.pool))?;
        challenge.check(&self.target.pool, &self.target.tenant)?;
        self.token = Some(self.target.token(&challenge.resource).await?);
        Ok(())
    }
}

impl Target {
    /// A token by client credentials (RFC 6749 section 4.4).
    async fn token(&self, resource: &str) -> Result<Zeroizing<String>, CommandError> {
        #[derive(Deserialize)]
        struct Granted {
            access_token: Zeroizing<String>,
        }
        #[derive(Deserialize)]
        struct Denied {
            error_description: String,
        }
        let encoded = |text: &str| Zeroizing::new(utf8_percent_encode(text, NON_ALPHANUMERIC).to_string());
        let form = Zeroizing::new(format!(
            "grant_type=client_credentials&client_id={}&client_secret={}&scope={}",
            *encoded(&self.client_id),
            *encoded(&self.client_secret),
            *encoded(&format!("{resource}/.default")),
        ));
        let mut channel = Channel::new(self.authority.clone(), self.roots.clone());
        let message = Message {
            method: Method::POST,
            path: format!("/{}/oauth2/v2.0/token", self.tenant),
            headers: vec![(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))],
            body: Bytes::from_owner(Zeroizing::new(form.as_bytes().to_vec())),
        };
        let answer = channel.send(message).await?;
        if answer.status != StatusCode::OK {
            let reason = serde_json::from_slice::<Denied>(&answer.body).map_or_else(
                |_| answer.status.to_string(),
                |denied| super::output::clean(&denied.error_description),
            );
            return Err(
                format!("{} gives no token to client {}: {reason}", self.authority, self.client_id).into()
            );
        }
        let granted = serde_json::from_slice::<Granted>(&answer.body);
        let granted = granted.map_err(|_| format!("{} answered without a token", self.authority))?;
        Ok(granted.access_token)
    }
}

/// What a 401 asks for.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Challenge {
    pub tenant: String,
    pub resource: String,
}

impl Challenge {
    /// `Bearer authorization="https://LOGIN/TENANT", resource="https://RESOURCE"`
    pub fn parse(header: &str) -> Option<Self> {
        let (scheme, parameters) = header.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let value = |wanted: &[&str]| {
            parameters.split(',').find_map(|pair| {
                let (name, value) = pair.trim().split_once('=')?;
                wanted.contains(&name).then(|| value.trim_matches('"').to_owned())
            })
        };
        let authority: http::Uri = value(&["authorization", "authorization_uri"])?.parse().ok()?;
        let tenant = authority.path().trim_matches('/').split('/').next()?.to_owned();
        let resource = value(&["resource"])?;
        Some(Self { tenant, resource: resource.strip_suffix('/').unwrap_or(&resource).to_owned() })
    }

    /// A server that asks for a token for somebody else would have it, and use it there.
    pub fn check(&self, pool: &Origin, tenant: &TenantId) -> Result<(), CommandError> {
        let resource: Origin = self
            .resource
            .parse()
            .map_err(|_| format!("{pool} asks for a token for what is no resource of a pool"))?;
        // An address and `localhost` tell nothing about which resource is theirs.
        let fits = pool.is_address_or_localhost()
            || pool.host().strip_suffix(resource.host()).is_some_and(|label| label.ends_with('.'));
        if !fits {
            return Err(format!(
                "{pool} asks for a token for {resource}, which is not its own: a pool's name ends in that of its resource"
            )
            .into());
        }
        if !self.tenant.eq_ignore_ascii_case(tenant.as_str()) {
            let theirs = super::output::clean(&self.tenant);
            return Err(format!("{pool} takes callers of tenant {theirs}, not of {tenant}").into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn challenge(resource: &str) -> Challenge {
        Challenge { tenant: "t".into(), resource: resource.into() }
    }

    #[test]
    fn a_challenge_is_read_as_the_sdks_read_it() {
        for header in [
            r#"Bearer authorization="https://login.example:8446/t", resource="https://managedhsm.example""#,
            r#"bearer authorization_uri="https://login.example/t/v2.0", resource="https://managedhsm.example/""#,
        ] {
            assert_eq!(Challenge::parse(header), Some(challenge("https://managedhsm.example")), "{header}");
        }
        for header in [
            "",
            "Bearer",
            "Basic realm=\"x\"",
            "Bearer resource=\"https://managedhsm.example\"",
            "Bearer authorization=\"https://login.example/t\"",
        ] {
            assert_eq!(Challenge::parse(header), None, "{header}");
        }
    }

    #[test]
    fn no_token_is_asked_for_that_is_somebody_elses() {
        let tenant = TenantId::parse("T").unwrap();
        let check = |resource: &str, pool: &str| challenge(resource).check(&pool.parse().unwrap(), &tenant);
        for (resource, pool) in [
            ("https://managedhsm.localhost:8443", "https://demo.managedhsm.localhost:8443"),
            ("https://managedhsm.example", "https://a.managedhsm.example:8443"),
            ("https://managedhsm.localhost:8443", "https://127.0.0.1:8443"),
            ("https://managedhsm.localhost", "https://[::1]:8443"),
            ("https://managedhsm.localhost", "https://localhost:8443"),
        ] {
            check(resource, pool).unwrap();
        }
        for (resource, pool) in [
            ("https://vault.azure.net", "https://demo.managedhsm.localhost:8443"),
            ("https://demo.managedhsm.localhost", "https://demo.managedhsm.localhost"),
            ("https://hsm.localhost", "https://demo.managedhsm.localhost"),
            ("https://a.b.managedhsm.localhost", "https://b.managedhsm.localhost"),
            ("http://managedhsm.localhost", "https://demo.managedhsm.localhost"),
            ("nonsense", "https://demo.managedhsm.localhost"),
        ] {
            assert!(check(resource, pool).is_err(), "{resource} for {pool}");
        }
        let other = TenantId::parse("other").unwrap();
        let refusal = challenge("https://example").check(&"https://a.example".parse().unwrap(), &other);
        assert!(refusal.unwrap_err().to_string().contains("tenant t, not of other"));
    }

    #[test]
    fn the_environment_names_a_pool_whole_or_not_at_all() {
        let find = |variables: &[(&str, &str)], principal: &str| {
            let variables: HashMap<_, _> = variables.iter().copied().collect();
            Target::environment(|name| variables.get(name).map(|value| (*value).to_owned()), principal)
        };
        assert!(find(&[("AUTHORITY_HOST", "https://localhost:8446")], "app").unwrap().is_none());
        let partly = [
            ("HOLDFAST_POOL_URL_IP", "https://127.0.0.1:8443"),
            ("AUTHORITY_HOST", "https://localhost:8446"),
            ("TENANT_ID", "t"),
            ("HOLDFAST_APP_CLIENT_ID", "id"),
        ];
        let refusal = |principal| find(&partly, principal).err().unwrap().to_string();
        assert!(refusal("app").contains("HOLDFAST_APP_CLIENT_SECRET is not set"));
        assert!(refusal("admin").contains("HOLDFAST_ADMIN_CLIENT_ID is not set"));
    }

    #[test]
    fn a_secrets_file_holds_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, "s3cret\n").unwrap();
        assert_eq!(read_secret(&path).unwrap().as_str(), "s3cret");
        for content in [&b""[..], b"\n", &[0xff, 0xfe], &[b'a'; MAX_SECRET_BYTES + 1]] {
            std::fs::write(&path, content).unwrap();
            assert!(!read_secret(&path).err().unwrap().to_string().contains("aaaa"));
        }
    }
}

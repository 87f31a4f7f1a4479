//! What a quickstart keeps of itself between starts: its port, its principals. Formats: `docs/formats/quickstart.md`.

use crate::CommandError;
use crate::files;
use crate::layout::{CONTROL_HOST, ISSUER_HOST, Layout};
use domain::guid::Guid;
use domain::name::PoolName;
use identity::issuer::generate_client_secret;
use serde::{Deserialize, Serialize};
use service::{Random, SystemRandom};
use std::path::Path;
use zeroize::Zeroizing;

/// The other listeners' ports, counted from the pool's.
pub const GATEWAY_OFFSET: u16 = 1;
pub const CONTROL_OFFSET: u16 = 2;
pub const ISSUER_OFFSET: u16 = 3;
pub const PROXY_OFFSET: u16 = 4;
pub const MANAGED_IDENTITY_OFFSET: u16 = 5;
/// The first blank pool's; the others follow.
pub const BLANK_OFFSET: u16 = 10;
const MAX_BLANK_POOLS: usize = 16;
/// The last one that a pool can have: the others count on from it.
pub const LAST_PORT: u16 = u16::MAX - MANAGED_IDENTITY_OFFSET;
const VERSION: u32 = 1;

/// What is to be as it was at the next start.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    version: u32,
    pub port: u16,
    /// Names of the pools beside the first one, in the order of their ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blank_pools: Vec<String>,
    /// Whether clients are sent to the gateway for everything.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_port: bool,
}

/// The principals of a quickstart, with their secrets, for `holdfast env`.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Principals {
    version: u32,
    pub tenant: String,
    pub admin: Principal,
    pub app: Principal,
    pub conformance: Option<Principal>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Principal {
    pub client_id: String,
    pub object_id: String,
    pub client_secret: Zeroizing<String>,
}

impl Settings {
    pub fn read(layout: &Layout) -> Result<Option<Self>, CommandError> {
        let held: Option<Self> = read(&layout.settings())?;
        if let Some(Self { port, .. }) = held
            && !(1..=LAST_PORT).contains(&port)
        {
            let path = layout.settings();
            return Err(format!("{} is damaged: there is no port {port} for a pool", path.display()).into());
        }
        Ok(held)
    }

    /// The settings as they were, with `port` where one is given and `blank_pools` where they are new; and whether
    /// that changed them.
    pub fn updated(
        before: Option<Self>,
        port: Option<u16>,
        blank_pools: &[PoolName],
        one_port: bool,
    ) -> Result<(Self, bool), CommandError> {
        let held = before.as_ref().map(|before| before.port);
        let had_one_port = before.as_ref().is_some_and(|before| before.one_port);
        let one_port = one_port || had_one_port;
        let port = port.or(held).unwrap_or(crate::layout::DEFAULT_PORT);
        let mut pools = before.map(|before| before.blank_pools).unwrap_or_default();
        let were = pools.len();
        for name in blank_pools {
            if name.as_str() == crate::layout::POOL_NAME {
                return Err(format!("a pool named {name} is there already").into());
            }
            if !pools.iter().any(|held| held == name.as_str()) {
                pools.push(name.to_string());
            }
        }
        let changed = held != Some(port) || pools.len() != were || one_port != had_one_port;
        let settings = Self { version: VERSION, port, blank_pools: pools, one_port };
        if settings.blank_pools.len() > MAX_BLANK_POOLS {
            return Err(format!("a quickstart has at most {MAX_BLANK_POOLS} blank pools").into());
        }
        if usize::from(port) + usize::from(BLANK_OFFSET) + settings.blank_pools.len() > 0xffff {
            return Err(format!("port {port} leaves no room for the blank pools' ports").into());
        }
        Ok((settings, changed))
    }

    pub fn blank_port(&self, index: usize) -> u16 {
        self.port + BLANK_OFFSET + index as u16
    }

    pub fn write(&self, layout: &Layout) -> Result<(), CommandError> {
        write(&layout.settings(), self)
    }

    pub fn gateway_port(&self) -> u16 {
        self.port + GATEWAY_OFFSET
    }

    pub fn control_port(&self) -> u16 {
        self.port + CONTROL_OFFSET
    }

    pub fn control_url(&self) -> String {
        if self.one_port {
            format!("https://{CONTROL_HOST}:{}", self.gateway_port())
        } else {
            format!("https://localhost:{}", self.control_port())
        }
    }

    pub fn issuer_port(&self) -> u16 {
        self.port + ISSUER_OFFSET
    }

    pub fn issuer_url(&self) -> String {
        if self.one_port {
            format!("https://{ISSUER_HOST}:{}", self.gateway_port())
        } else {
            format!("https://localhost:{}", self.issuer_port())
        }
    }

    /// Where the first pool is called by its name.
    pub fn pool_port(&self) -> u16 {
        if self.one_port { self.gateway_port() } else { self.port }
    }

    /// Of the authority that vouches for whatever it is asked to.
    pub fn attestation_url(&self) -> String {
        format!("{}{}", self.issuer_url(), identity::issuer::attestation::PATH)
    }

    pub fn proxy_port(&self) -> u16 {
        self.port + PROXY_OFFSET
    }

    pub fn managed_identity_port(&self) -> u16 {
        self.port + MANAGED_IDENTITY_OFFSET
    }

    pub fn managed_identity_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.managed_identity_port())
    }

    pub fn proxy_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.proxy_port())
    }
}

impl Principals {
    pub fn read(layout: &Layout) -> Result<Option<Self>, CommandError> {
        read(&layout.principals())
    }

    /// Reads the principals; makes those that are missing.
    pub fn open(layout: &Layout, with_conformance: bool) -> Result<Self, CommandError> {
        let held = Self::read(layout)?;
        let complete = held.as_ref().is_some_and(|held| held.conformance.is_some() || !with_conformance);
        let mut principals = match held {
            Some(held) => held,
            None => Self {
                version: VERSION,
                tenant: SystemRandom.guid().to_string(),
                admin: Principal::new()?,
                app: Principal::new()?,
                conformance: None,
            },
        };
        if with_conformance && principals.conformance.is_none() {
            principals.conformance = Some(Principal::new()?);
        }
        if !complete {
            write(&layout.principals(), &principals)?;
        }
        Ok(principals)
    }

    pub fn named(&self) -> impl Iterator<Item = (&'static str, &Principal)> {
        let conformance = self.conformance.as_ref().map(|principal| ("conformance", principal));
        [("admin", &self.admin), ("app", &self.app)].into_iter().chain(conformance)
    }
}

impl Principal {
    fn new() -> Result<Self, CommandError> {
        Ok(Self {
            client_id: SystemRandom.guid().to_string(),
            object_id: SystemRandom.guid().to_string(),
            client_secret: generate_client_secret()?,
        })
    }

    pub fn object_id(&self) -> Result<Guid, CommandError> {
        Ok(self.object_id.parse()?)
    }
}

/// Messages give line and column and never repeat content, which may be a secret.
fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, CommandError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Some(content) = files::read(path)? else { return Ok(None) };
    let damaged = |error: serde_json::Error| {
        format!("{} is damaged (line {}, column {})", path.display(), error.line(), error.column())
    };
    let Version { version } = serde_json::from_slice(&content).map_err(damaged)?;
    if version != VERSION {
        let path = path.display();
        return Err(
            format!("{path} is of format version {version}; this program knows version {VERSION}").into()
        );
    }
    Ok(Some(serde_json::from_slice(&content).map_err(damaged)?))
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), CommandError> {
    Ok(files::write(path, &to_json(value)?)?)
}

fn to_json<T: Serialize>(value: &T) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    let mut json = Zeroizing::new(serde_json::to_vec_pretty(value)?);
    json.push(b'\n');
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTINGS: &[u8] = include_bytes!("../tests/golden/quickstart-settings-v1.json");
    const PRINCIPALS: &[u8] = include_bytes!("../tests/golden/quickstart-principals-v1.json");

    fn layout(directory: &tempfile::TempDir) -> Layout {
        let layout = Layout::new(directory.path().join("data"));
        layout.directories().iter().for_each(|path| files::create_directory(path).unwrap());
        layout
    }

    #[test]
    fn golden_files_are_read_and_written_again_byte_for_byte() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        files::write(&layout.settings(), SETTINGS).unwrap();
        files::write(&layout.principals(), PRINCIPALS).unwrap();
        let settings = Settings::read(&layout).unwrap().unwrap();
        assert_eq!((settings.port, settings.issuer_port(), settings.proxy_port()), (8443, 8446, 8447));
        assert_eq!(to_json(&settings).unwrap().as_slice(), SETTINGS);
        // Nothing is missing, so nothing is made.
        let principals = Principals::open(&layout, true).unwrap();
        assert_eq!(
            principals.named().map(|(name, _)| name).collect::<Vec<_>>(),
            ["admin", "app", "conformance"]
        );
        assert_eq!(to_json(&principals).unwrap().as_slice(), PRINCIPALS);
        assert_eq!(files::read(&layout.principals()).unwrap().unwrap().as_slice(), PRINCIPALS);
    }

    #[test]
    fn the_conformance_principal_comes_later_and_the_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        let first = Principals::open(&layout, false).unwrap();
        assert!(first.conformance.is_none());
        let second = Principals::open(&layout, true).unwrap();
        assert_eq!(second.app.client_secret, first.app.client_secret);
        let third = Principals::open(&layout, false).unwrap();
        assert_eq!(third.conformance.unwrap().client_id, second.conformance.unwrap().client_id);
    }

    #[test]
    fn damage_and_later_formats_are_named_without_their_content() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        let refusal = |content: &[u8]| {
            files::write(&layout.principals(), content).unwrap();
            Principals::read(&layout).err().unwrap().to_string()
        };
        let cut = refusal(&PRINCIPALS[..PRINCIPALS.len() / 2]);
        assert!(cut.contains("principals.json is damaged (line "), "{cut}");
        let unknown = String::from_utf8(PRINCIPALS.to_vec()).unwrap().replace("\"app\"", "\"hidden\"");
        assert!(!refusal(unknown.as_bytes()).contains("hidden"));
        assert!(refusal(br#"{"version":2,"more":[]}"#).contains("format version 2"));
    }

    #[test]
    fn a_port_that_leaves_no_room_for_the_others_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        for (port, good) in
            [(1, true), (LAST_PORT, true), (0, false), (LAST_PORT + 1, false), (u16::MAX, false)]
        {
            files::write(&layout.settings(), format!(r#"{{"version":1,"port":{port}}}"#).as_bytes()).unwrap();
            match Settings::read(&layout) {
                Ok(held) => assert!(
                    good && held.unwrap().managed_identity_port() == port + MANAGED_IDENTITY_OFFSET,
                    "{port}"
                ),
                Err(error) => assert!(!good && error.to_string().contains("is damaged"), "{port}: {error}"),
            }
        }
    }

    proptest! {
        /// Cut, with bytes changed, or anything at all: read whole, or refused.
        #[test]
        fn damaged_files_never_panic(
            position in 0usize..2000,
            value in any::<u8>(),
            length in 0usize..2000,
            anything in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let layout = layout(&directory);
            for golden in [SETTINGS, PRINCIPALS] {
                let mut changed = golden.to_vec();
                changed[position % golden.len()] = value;
                for content in [&changed, &golden[..length % golden.len()], &anything] {
                    files::write(&layout.settings(), content).unwrap();
                    files::write(&layout.principals(), content).unwrap();
                    if let Ok(Some(settings)) = Settings::read(&layout) {
                        prop_assert!((1..=LAST_PORT).contains(&settings.port));
                    }
                    let _ = Principals::read(&layout);
                }
            }
        }
    }
}

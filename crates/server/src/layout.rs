//! Where a quickstart keeps what. Four directories that could be four machines: the pool (opaque), the issuer, the CA,
//! the root of trust; and `run`, which holds nothing worth keeping.

use crate::instance::Place;
use crate::root_of_trust::RootOfTrust;
use domain::name::PoolName;
use domain::pool::PoolClass;
use std::path::PathBuf;

pub const DEFAULT_PORT: u16 = 8443;
pub const POOL_NAME: &str = "demo";
/// Under this name the pool knows its issuer, which has another for clients. It is not looked up and says nothing of ports.
pub const ISSUER_HOST: &str = "issuer.localhost";
/// The control plane's at the gateway.
pub const CONTROL_HOST: &str = "management.localhost";
/// The pool's host name minus its first label.
pub const RESOURCE_SUFFIX: &str = "managedhsm.localhost";

#[derive(Clone)]
pub struct Layout {
    pub data: PathBuf,
    /// For all pools, in the place of a key file each.
    credential: Option<RootOfTrust>,
}

impl Layout {
    pub fn new(data: PathBuf) -> Self {
        Self { data, credential: None }
    }

    pub fn with_credential(self, credential: Option<RootOfTrust>) -> Self {
        Self { credential, ..self }
    }

    fn root(&self, key_file: PathBuf) -> RootOfTrust {
        self.credential.clone().unwrap_or(RootOfTrust::KeyFile(key_file))
    }

    pub fn directories(&self) -> [PathBuf; 6] {
        [
            self.data.clone(),
            self.pool(),
            self.data.join("identity"),
            self.data.join("ca"),
            self.data.join("root"),
            self.data.join("run"),
        ]
    }

    pub fn pool(&self) -> PathBuf {
        self.data.join("pool")
    }

    /// The pool that every quickstart has.
    pub fn first_place(&self) -> Place {
        Place {
            directory: self.pool(),
            root: self.root(self.root_key()),
            class: PoolClass::Test,
            clock_is_right: false,
        }
    }

    /// A pool beside it.
    pub fn place(&self, name: PoolName) -> Place {
        let (pools, root) = (self.data.join("pools"), self.data.join("root"));
        Place {
            directory: pools.join(name.as_str()).join("pool"),
            root: self.root(root.join(format!("{name}.key"))),
            class: PoolClass::Test,
            clock_is_right: false,
        }
    }

    /// The one pool of class production, under the credential that `root` is.
    pub fn production_place(&self, root: RootOfTrust) -> Place {
        Place { directory: self.pool(), root, class: PoolClass::Production, clock_is_right: false }
    }

    /// TLS keys of a pool of class production, sealed, what its CA is asked and what the CA answered. Only there.
    pub fn tls(&self) -> PathBuf {
        self.data.join("tls")
    }

    /// The holders' keys of a quickstart, which real holders keep apart, and the domain that a quorum of them opens.
    pub fn ceremony(&self) -> PathBuf {
        self.data.join("ceremony")
    }

    pub fn store(&self) -> PathBuf {
        self.pool().join("store")
    }

    pub fn audit(&self) -> PathBuf {
        self.pool().join("audit")
    }

    pub fn sealed_domain(&self) -> PathBuf {
        self.pool().join("domain.sealed")
    }

    pub fn node(&self) -> PathBuf {
        self.pool().join("node")
    }

    pub fn owner_key(&self) -> PathBuf {
        self.pool().join("owner.pem")
    }

    /// The control plane's own.
    pub fn fabric(&self) -> PathBuf {
        self.data.join("fabric")
    }

    pub fn issuer(&self) -> PathBuf {
        self.data.join("identity").join("issuer.json")
    }

    pub fn principals(&self) -> PathBuf {
        self.data.join("identity").join("principals.json")
    }

    /// Key and certificate by which the principal `app` signs assertions.
    pub fn app_certificate(&self) -> PathBuf {
        self.data.join("identity").join("app.pem")
    }

    /// What programs on this machine show to the App Service form of managed identity.
    pub fn identity_header(&self) -> PathBuf {
        self.data.join("identity").join("identity-header")
    }

    pub fn ca_certificate(&self) -> PathBuf {
        self.data.join("ca").join("ca.pem")
    }

    pub fn ca_key(&self) -> PathBuf {
        self.data.join("ca").join("ca.key")
    }

    pub fn root_key(&self) -> PathBuf {
        self.data.join("root").join("root.key")
    }

    pub fn settings(&self) -> PathBuf {
        self.data.join("quickstart.json")
    }

    /// Which users its processes were given, where root started it.
    pub fn users(&self) -> PathBuf {
        self.data.join("users.json")
    }

    /// Written by the operator, if at all.
    pub fn limits(&self) -> PathBuf {
        self.data.join("pool.toml")
    }

    /// What `az` remembers: logins, and addresses with the port that they had.
    pub fn az_configuration(&self, port: u16) -> PathBuf {
        self.data.join("az").join(port.to_string())
    }

    pub fn process(&self) -> PathBuf {
        self.data.join("run").join("holdfast.pid")
    }

    pub fn log(&self) -> PathBuf {
        self.data.join("run").join("holdfast.log")
    }

    pub fn run(&self) -> PathBuf {
        self.data.join("run")
    }

    /// No pool has this one: theirs end otherwise.
    pub fn gateway_log(&self) -> PathBuf {
        self.run().join("gateway.err")
    }

    /// Where the gateway reaches the listener that has `port` as well. Named so, it is no longer than the administration
    /// socket: the system takes about 100 bytes.
    pub fn gateway_socket(&self, port: u16) -> PathBuf {
        self.run().join(socket_name(port))
    }

    /// Likewise for clients that come to the gateway from a private network.
    pub fn private_socket(&self, port: u16) -> PathBuf {
        self.run().join(private_socket_name(port))
    }

    /// Likewise the administration socket of a pool with a process of its own.
    pub fn pool_admin_socket(&self, port: u16) -> PathBuf {
        self.data.join("run").join(format!("{port}.adm"))
    }

    pub fn admin_socket(&self) -> PathBuf {
        self.data.join("run").join("admin.sock")
    }
}

pub fn socket_name(port: u16) -> String {
    format!("{port}.sock")
}

pub fn private_socket_name(port: u16) -> String {
    format!("{port}.priv")
}

/// `$HOLDFAST_DATA`, else `$XDG_DATA_HOME/holdfast`, else `~/.local/share/holdfast`, else `./holdfast-data`.
pub fn default_directory() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("HOLDFAST_DATA")
        .or_else(|| from("XDG_DATA_HOME").map(|data| data.join("holdfast")))
        .or_else(|| from("HOME").map(|home| home.join(".local/share/holdfast")))
        .unwrap_or_else(|| PathBuf::from("holdfast-data"))
}

//! Where a pool may call to and whom it believes there: what the operator gave, at a start or in `pool.toml`. Without it a
//! pool calls nobody but the issuer that genesis pins.

use crate::CommandError;
use crate::azure_blob::{AzureBlob, IdentityEndpoint, IdentityTokens};
use crate::backup_folder::{BackupFolder, Places};
use crate::https::Client;
use crate::limits::{self, OutgoingTable};
use host::Destination;
use host_embedded::TcpDial;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use service::backup::BackupTargets;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Until a connection stands, name resolution included.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// What a start may give. Not kept: the next start needs it again.
#[derive(Clone, Debug, Default, clap::Args, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// Trust the CAs in this PEM file, and no others, for calls that the pool makes: to the storage of backups and to
    /// attestation authorities. A file of the machine's own, such as /etc/ssl/certs/ca-certificates.crt, will do.
    #[arg(long, value_name = "FILE")]
    pub trust_ca: Option<PathBuf>,
    /// Let backups be written to and read from Azure Blob storage at this host, or with `*.` in front at every host directly
    /// below it, such as *.blob.core.windows.net. Port 443 unless one is named. Needs --trust-ca. Can be given again.
    #[arg(long = "blob-endpoint", value_name = "HOST[:PORT]")]
    pub blob_endpoints: Vec<Destination>,
    /// Let backups be written to and read from this folder, which must be there: clients name it as file:// and its path.
    #[arg(long, value_name = "DIR")]
    pub backup_folder: Option<PathBuf>,
    /// Where the pool gets tokens for storage, unless `pool.toml` names another place.
    #[arg(skip)]
    pub identity: Option<IdentityEndpoint>,
}

impl Given {
    /// For another process, which may be at another place.
    pub fn absolute(&self) -> std::io::Result<Self> {
        let trust_ca = self.trust_ca.as_ref().map(std::path::absolute).transpose()?;
        let backup_folder = self.backup_folder.as_ref().map(std::path::absolute).transpose()?;
        Ok(Self { trust_ca, backup_folder, ..self.clone() })
    }

    /// The same as words of a command, with absolute paths.
    pub fn words(&self) -> std::io::Result<Vec<OsString>> {
        let mut words = Vec::new();
        if let Some(path) = self.absolute()?.trust_ca {
            words.extend(["--trust-ca".into(), path.into_os_string()]);
        }
        if let Some(path) = self.absolute()?.backup_folder {
            words.extend(["--backup-folder".into(), path.into_os_string()]);
        }
        for endpoint in &self.blob_endpoints {
            words.extend(["--blob-endpoint".into(), endpoint.to_string().into()]);
        }
        Ok(words)
    }
}

/// Whom a pool may call.
#[derive(Clone)]
pub struct Outgoing {
    /// PEM.
    roots: Vec<u8>,
    blob_endpoints: Vec<Destination>,
    identity: Option<IdentityEndpoint>,
    backup_folder: Option<PathBuf>,
}

impl Outgoing {
    /// What a start gave, and what `pool.toml` at `path` adds.
    pub fn read(path: &Path, given: &Given) -> Result<Self, CommandError> {
        let OutgoingTable { trust_ca, blob_endpoints, identity_endpoint, backup_folder } =
            limits::read_outgoing(path)?;
        let beside = |file: PathBuf| path.parent().map_or(file.clone(), |directory| directory.join(&file));
        let files = given.trust_ca.clone().into_iter().chain(trust_ca.map(beside));
        let mut roots = Vec::new();
        for file in files {
            roots.extend_from_slice(&read_roots(&file)?);
            roots.push(b'\n');
        }
        let blob_endpoints = [given.blob_endpoints.clone(), blob_endpoints].concat();
        let identity = identity_endpoint.or_else(|| given.identity.clone());
        let backup_folder = backup_folder.map(beside).or_else(|| given.backup_folder.clone());
        backup_folder.as_deref().map(BackupFolder::new).transpose()?;
        let outgoing = Self { roots, blob_endpoints, identity, backup_folder };
        if outgoing.roots.is_empty() && !outgoing.blob_endpoints.is_empty() {
            return Err("blob endpoints need to be told which CAs to trust: give --trust-ca FILE, or trust_ca in pool.toml".into());
        }
        Ok(outgoing)
    }

    /// CAs that count for what the pool calls, in PEM.
    pub fn roots(&self) -> &[u8] {
        &self.roots
    }

    /// Azure Blob storage, if backups may go there.
    pub fn azure_blob(&self) -> Result<Option<AzureBlob>, CommandError> {
        let identity = self.identity.clone().map(|endpoint| Arc::new(IdentityTokens::new(endpoint)));
        Ok(self.client(&self.blob_endpoints)?.map(|client| AzureBlob::new(client, identity)))
    }

    /// Where backups may go: nowhere, unless the operator has said so.
    pub fn backup_targets(&self) -> Result<Arc<dyn BackupTargets>, CommandError> {
        let storage = self.azure_blob()?.map(|storage| Arc::new(storage) as Arc<dyn BackupTargets>);
        let folder = self.backup_folder.as_deref().map(BackupFolder::new).transpose()?;
        Ok(Arc::new(Places { storage, folder }))
    }

    fn client(&self, destinations: &[Destination]) -> Result<Option<Client>, CommandError> {
        if destinations.is_empty() {
            return Ok(None);
        }
        let dial = Arc::new(TcpDial::new(destinations.iter().cloned(), CONNECT_TIME));
        Client::new(&self.roots, destinations.iter().cloned(), dial).map(Some)
    }
}

fn read_roots(path: &Path) -> Result<Vec<u8>, CommandError> {
    let pem = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let mut certificates = CertificateDer::pem_slice_iter(&pem).peekable();
    if certificates.peek().is_none() || certificates.any(|certificate| certificate.is_err()) {
        return Err(
            format!("{} holds no certificate in PEM, or something that is none", path.display()).into()
        );
    }
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::https::tests::Server;

    fn read(file: &str, given: Given) -> Result<Outgoing, String> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), Server::new().roots).unwrap();
        std::fs::write(directory.path().join("not.pem"), "no certificate").unwrap();
        let path = directory.path().join("pool.toml");
        std::fs::write(&path, file).unwrap();
        let trust_ca = given.trust_ca.map(|name| directory.path().join(name));
        Outgoing::read(&path, &Given { trust_ca, ..given }).map_err(|error| error.to_string())
    }

    fn given(trust_ca: Option<&str>, endpoints: &[&str]) -> Given {
        let blob_endpoints = endpoints.iter().map(|text| text.parse().unwrap()).collect();
        Given { trust_ca: trust_ca.map(PathBuf::from), blob_endpoints, backup_folder: None, identity: None }
    }

    #[test]
    fn nobody_is_called_unless_the_operator_says_so() {
        assert!(read("", given(None, &[])).unwrap().azure_blob().unwrap().is_none());
        // Trust alone opens nothing.
        assert!(read("", given(Some("ca.pem"), &[])).unwrap().azure_blob().unwrap().is_none());
        let file = "[outgoing]\ntrust_ca = \"ca.pem\"\nblob_endpoints = [\"*.blob.core.windows.net\"]\n";
        let outgoing = read(file, given(None, &["127.0.0.1:10000"])).unwrap();
        let client = outgoing.client(&outgoing.blob_endpoints).unwrap().unwrap();
        for url in ["https://a.blob.core.windows.net/c", "https://127.0.0.1:10000/a/c"] {
            client.may_call(&url.parse().unwrap()).unwrap();
        }
        assert!(client.may_call(&"https://127.0.0.1/a/c".parse().unwrap()).is_err());
    }

    #[test]
    fn what_cannot_work_is_refused_at_the_start() {
        let endpoint = ["a.example"];
        for (file, given, words) in [
            ("", given(None, &endpoint), "which CAs to trust"),
            ("[outgoing]\nblob_endpoints = [\"a.example\"]\n", given(None, &[]), "which CAs to trust"),
            ("", given(Some("not.pem"), &[]), "holds no certificate in PEM"),
            ("", given(Some("absent.pem"), &[]), "cannot read"),
            (
                "[outgoing]\nblob_endpoints = [\"https://a.example\"]\n",
                given(None, &[]),
                "is not a host name",
            ),
            ("[outgoing]\nblob_endpoint = []\n", given(None, &[]), "unknown field"),
        ] {
            let error = read(file, given).err().unwrap();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}

//! The ceremony of a quickstart: three holders' keys beside the pool, two of them a quorum, and the domain handed out to
//! them. Real holders make their keys on machines of their own and keep them apart.

use crate::CommandError;
use crate::SECONDS_PER_DAY;
use crate::files;
use ceremony::HolderSet;
use crypto::transport::{SelfSigned, TransportCertificate, TransportKey};
use domain::time::IntDate;
use service::{Clock, Pool, SystemClock};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

const HOLDERS: usize = 3;
const QUORUM: u64 = 2;
const VALIDITY_SECONDS: i64 = 10 * 365 * SECONDS_PER_DAY;

/// The domain, as its holders are given it.
pub const FILE: &str = "security-domain.json";

/// Whether an earlier start made the holders and did not come to write the file: it is theirs to get again.
pub fn were_cut_short(directory: &Path) -> bool {
    directory.join(format!("holder-{HOLDERS}.cer")).exists() && !directory.join(FILE).exists()
}

/// Makes what is missing and hands the domain out. Keys take seconds, so the pool serves meanwhile; what goes wrong is
/// tried again at the next start.
pub async fn hand_out(pool: Arc<Pool>, directory: PathBuf, closing: watch::Receiver<bool>) {
    let made = tokio::task::spawn_blocking({
        let directory = directory.clone();
        move || certificates(&directory, || *closing.borrow()).map_err(|error| error.to_string())
    });
    // Not left behind at an end: the next start, in this process or another, goes on where it stopped.
    let made = made.await;
    let handed_out = async {
        let Some(certificates) = made.map_err(|error| error.to_string())?? else { return Ok(()) };
        let holders = HolderSet::new(certificates, QUORUM).map_err(|error| error.to_string())?;
        let file = pool.bootstrap_domain(&holders).await.map_err(|error| error.to_string())?;
        files::write(&directory.join(FILE), file.as_bytes()).map_err(|error| error.to_string())
    };
    let handed_out: Result<(), String> = handed_out.await;
    if let Err(error) = handed_out {
        tracing::error!(error, "the security domain could not be handed out to the quickstart's holders");
    }
}

/// The holders' certificates; their keys are beside them, named as the Azure CLI looks for them. `None` where the
/// server ends before all are made.
fn certificates(
    directory: &Path,
    closing: impl Fn() -> bool,
) -> Result<Option<Vec<TransportCertificate>>, CommandError> {
    files::create_directory(directory)?;
    (1..=HOLDERS)
        .map(|number| {
            let certificate = directory.join(format!("holder-{number}.cer"));
            // The certificate is written last: where it is, the key is.
            if let Some(held) = files::read(&certificate)? {
                return Ok(Some(TransportCertificate::from_file(&held)?));
            }
            if closing() {
                return Ok(None);
            }
            let key = TransportKey::generate();
            let now = SystemClock.now().int_date();
            let made = key.certify(&SelfSigned {
                common_name: &format!("holder {number} of a quickstart"),
                uri: None,
                not_before: now,
                not_after: IntDate::from_unix_seconds(now.unix_seconds() + VALIDITY_SECONDS),
            })?;
            let pem = pem::encode(&pem::Pem::new("PRIVATE KEY", key.danger_export_pkcs8().danger_expose()));
            let pem = zeroize::Zeroizing::new(pem);
            files::write(&directory.join(format!("holder-{number}.key")), pem.as_bytes())?;
            files::write(&certificate, made.to_pem().as_bytes())?;
            Ok(Some(made))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn an_end_between_two_holders_is_gone_on_from_and_the_file_is_made_up_for() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("ceremony");
        let asked = Cell::new(0);
        let after_the_first = || {
            asked.set(asked.get() + 1);
            asked.get() > 1
        };
        assert!(certificates(&directory, after_the_first).unwrap().is_none());
        let first = files::read(&directory.join("holder-1.cer")).unwrap().unwrap();
        assert!(!directory.join("holder-2.key").exists());
        assert!(!were_cut_short(&directory));
        let made = certificates(&directory, || false).unwrap().unwrap();
        assert_eq!(made.len(), HOLDERS);
        assert_eq!(made[0].to_pem().as_bytes(), first.as_slice());
        for (certificate, number) in made.iter().zip(1..) {
            let key = std::fs::read_to_string(directory.join(format!("holder-{number}.key"))).unwrap();
            let key = crypto::SecretBytes::new(pem::parse(key).unwrap().into_contents());
            assert!(TransportKey::from_pkcs8(key).unwrap().is_for(certificate));
        }
        // Recorded as theirs, perhaps, and not written.
        assert!(were_cut_short(&directory));
        // Again, while the server ends: there is nothing left to be made.
        assert!(certificates(&directory, || true).unwrap().is_some());
        files::write(&directory.join(FILE), b"{}").unwrap();
        assert!(!were_cut_short(&directory));
    }
}

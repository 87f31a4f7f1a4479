//! The ceremony of a quickstart: three holders' keys beside the pool, two of them a quorum, and the domain handed out to
//! them. Real holders make their keys on machines of their own and keep them apart.

use crate::CommandError;
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
const VALIDITY_SECONDS: i64 = 10 * 365 * 86_400;

/// Makes what is missing and hands the domain out. Keys take seconds, so the pool serves meanwhile; what goes wrong is
/// tried again at the next start.
pub async fn hand_out(pool: Arc<Pool>, directory: PathBuf, mut closing: watch::Receiver<bool>) {
    let made = tokio::task::spawn_blocking({
        let directory = directory.clone();
        move || certificates(&directory).map_err(|error| error.to_string())
    });
    let made = tokio::select! {
        made = made => made,
        _ = closing.wait_for(|closing| *closing) => return,
    };
    let handed_out = async {
        let certificates = made.map_err(|error| error.to_string())??;
        let holders = HolderSet::new(certificates, QUORUM).map_err(|error| error.to_string())?;
        let file = pool.bootstrap_domain(&holders).await.map_err(|error| error.to_string())?;
        files::write(&directory.join("security-domain.json"), file.as_bytes())
            .map_err(|error| error.to_string())
    };
    let handed_out: Result<(), String> = handed_out.await;
    if let Err(error) = handed_out {
        tracing::error!(error, "the security domain could not be handed out to the quickstart's holders");
    }
}

/// The holders' certificates; their keys are beside them, named as the Azure CLI looks for them.
fn certificates(directory: &Path) -> Result<Vec<TransportCertificate>, CommandError> {
    files::create_directory(directory)?;
    (1..=HOLDERS)
        .map(|number| {
            let certificate = directory.join(format!("holder-{number}.cer"));
            // The certificate is written last: where it is, the key is.
            if let Some(held) = files::read(&certificate)? {
                return Ok(TransportCertificate::from_file(&held)?);
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
            Ok(made)
        })
        .collect()
}

//! Bodies of full backup and restore.

use crate::wire::{bad, parse};
use domain::time::IntDate;
use serde::Deserialize;
use serde_json::{Value, json};
use service::backup::{
    Age, Difference, JobView, Names, RestoreSource, SasToken, StorageAccess, StorageLocation,
};
use zeroize::Zeroizing;

/// Longest shared access signature that is taken; real ones have some 200 characters.
const MAX_TOKEN_BYTES: usize = 4096;

type Parsed<T> = Result<T, service::Error>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LocationBody {
    storage_resource_uri: Option<String>,
    token: Option<Zeroizing<String>>,
    use_managed_identity: Option<bool>,
}

/// `{"storageResourceUri","token"}`, or `"useManagedIdentity": true` for a token that the server has.
pub(crate) fn parse_location(body: &[u8]) -> Parsed<StorageLocation> {
    location(parse(body)?)
}

fn location(body: LocationBody) -> Parsed<StorageLocation> {
    let container = body.storage_resource_uri.filter(|uri| !uri.is_empty());
    let container = container.ok_or_else(|| bad("storageResourceUri is missing".into()))?;
    // A signature there would be logged, and shown to whoever asks for the job.
    if container.contains(['?', '#', '@']) {
        return Err(bad(
            "storageResourceUri must be without query, fragment and user; a SAS goes into token".into(),
        ));
    }
    let token = body.token.filter(|token| !token.is_empty());
    let access = match (token, body.use_managed_identity.unwrap_or_default()) {
        (Some(token), false) if token.len() > MAX_TOKEN_BYTES => {
            return Err(bad(format!("token must have at most {MAX_TOKEN_BYTES} characters")));
        }
        (Some(token), false) => StorageAccess::Sas(SasToken::new(&token)),
        (None, true) => StorageAccess::ManagedIdentity,
        (Some(_), true) => return Err(bad("token and useManagedIdentity exclude one another".into())),
        (None, false) => {
            return Err(bad("token is missing, and useManagedIdentity is not true".into()));
        }
    };
    Ok(StorageLocation { container, access })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RestoreBody {
    sas_token_parameters: Option<LocationBody>,
    folder_to_restore: Option<String>,
    /// The same, where one key is restored.
    folder: Option<String>,
}

/// `{"sasTokenParameters":{…},"folderToRestore"}`
pub(crate) fn parse_restore(body: &[u8]) -> Parsed<RestoreSource> {
    let body: RestoreBody = parse(body)?;
    source(body.sas_token_parameters, body.folder_to_restore, "folderToRestore")
}

/// `{"sasTokenParameters":{…},"folder"}`
pub(crate) fn parse_selective(body: &[u8]) -> Parsed<RestoreSource> {
    let body: RestoreBody = parse(body)?;
    source(body.sas_token_parameters, body.folder, "folder")
}

fn source(
    location_body: Option<LocationBody>,
    folder: Option<String>,
    member: &str,
) -> Parsed<RestoreSource> {
    let missing = |member: &str| bad(format!("{member} is missing"));
    let location = location(location_body.ok_or_else(|| missing("sasTokenParameters"))?)?;
    Ok(RestoreSource { location, folder: folder.ok_or_else(|| missing(member))? })
}

/// A job's state (behaviour section 10.5). Where the backup is, a restore does not say.
pub(crate) fn job(view: &JobView) -> Value {
    let job = &view.0;
    let end = job.end.as_ref();
    let failure = end.and_then(|end| end.failure.as_ref());
    let status = match (end, failure) {
        (None, _) => "InProgress",
        (Some(_), None) => "Succeeded",
        (Some(_), Some(_)) => "Failed",
    };
    let details =
        failure.map(|(_, message)| message).or(end.map(|end| &end.detail)).filter(|text| !text.is_empty());
    let mut body = json!({
        "jobId": job.id.to_string(),
        "status": status,
        "statusDetails": details,
        "error": failure.map(|(code, message)| json!({ "code": code, "message": message })),
        "startTime": job.started.unix_seconds(),
        "endTime": end.map(|end| end.at.unix_seconds()),
    });
    if job.kind == service::JobKind::Backup {
        body["azureStorageBlobContainerUri"] = view.location().into();
    }
    body
}

/// What a restore would change.
pub(crate) fn difference(difference: &Difference) -> Value {
    let Age { made_at, generation, log_size, older_than } = difference.age;
    let names = |names: &Names| names.iter().map(Value::from).collect::<Vec<_>>();
    json!({
        "madeAt": made_at.unix_seconds(),
        "generation": generation,
        "logSize": log_size,
        "olderThanBackupOf": older_than.map(IntDate::unix_seconds),
        "newKeys": names(&difference.new_keys),
        "lostKeys": names(&difference.lost_keys),
        "lostVersions": names(&difference.lost_versions),
        "changedKeys": names(&difference.changed_keys),
        "replacesRoles": difference.replaces_roles,
        "newRoles": names(&difference.new_roles),
        "lostRoles": names(&difference.lost_roles),
        // Of long lists only the first names are shown.
        "counts": {
            "newKeys": difference.new_keys.count(),
            "lostKeys": difference.lost_keys.count(),
            "lostVersions": difference.lost_versions.count(),
            "changedKeys": difference.changed_keys.count(),
            "newRoles": difference.new_roles.count(),
            "lostRoles": difference.lost_roles.count(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message<T>(parsed: Parsed<T>) -> String {
        parsed.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_clients_send_is_understood() {
        let body = br#"{"storageResourceUri":"https://s.example/c","token":"?sv=1&sig=x","useManagedIdentity":false}"#;
        let location = parse_location(body).unwrap();
        assert_eq!(location.container, "https://s.example/c");
        let StorageAccess::Sas(token) = location.access else { panic!("no signature") };
        assert_eq!(token.danger_expose(), "sv=1&sig=x");
        let body = br#"{"sasTokenParameters":{"storageResourceUri":"https://s.example/c","useManagedIdentity":true},"folderToRestore":"f"}"#;
        let source = parse_restore(body).unwrap();
        assert!(matches!(source.location.access, StorageAccess::ManagedIdentity) && source.folder == "f");
        assert_eq!(message(parse_selective(body)), "folder is missing");
    }

    #[test]
    fn what_is_missing_or_does_not_belong_is_named_and_no_token_is_shown() {
        for (body, expected) in [
            (json!({}), "storageResourceUri is missing"),
            (json!({ "storageResourceUri": "" }), "storageResourceUri is missing"),
            (json!({ "storageResourceUri": "https://s/c" }), "token is missing"),
            (
                json!({ "storageResourceUri": "https://s/c", "token": "secret", "useManagedIdentity": true }),
                "exclude",
            ),
            (json!({ "storageResourceUri": "https://s/c?sig=secret", "token": "t" }), "without query"),
            (json!({ "storageResourceUri": "https://u:secret@s/c", "token": "t" }), "without query"),
            (json!({ "storageResourceUri": "https://s/c", "token": "secret".repeat(1000) }), "at most 4096"),
            (json!({ "storageResourceUri": 1, "token": "secret" }), "expected"),
        ] {
            let message = message(parse_location(body.to_string().as_bytes()));
            assert!(message.contains(expected) && !message.contains("secret"), "{message}");
        }
        assert_eq!(message(parse_restore(b"{}")), "sasTokenParameters is missing");
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_location(&body);
            let _ = parse_restore(&body);
            let _ = parse_selective(&body);
        }
    }
}

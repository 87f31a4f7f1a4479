//! The envelope of a wrapped key (`docs/formats/byok.md`): JSON, as the vendors of HSMs write it.

use crate::route::Route;
use crate::wire::{BASE64URL, bad, shorten};
use base64::Engine as _;
use http::{Method, Uri};
use serde::Deserialize;
use service::{Error, KeyReference};

/// Of the file, and of the ciphertext in it: about 2,900 bytes for an RSA-4096 key and KEK.
const MAX_FILE_BYTES: usize = 64 * 1024;
const MAX_CIPHERTEXT_BYTES: usize = 8 * 1024;
const VERSION: &str = "1.0.0";
const ALGORITHM: &str = "dir";
const ENCRYPTION: &str = "CKM_RSA_AES_KEY_WRAP";

#[derive(Deserialize)]
struct Envelope {
    schema_version: Option<String>,
    header: Option<Header>,
    ciphertext: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    kid: Option<String>,
    alg: Option<String>,
    enc: Option<String>,
}

/// The file in `key.key_hsm`, in base64 of either alphabet: the key that it is wrapped for, and the ciphertext.
pub(crate) fn parse(text: &str) -> Result<(KeyReference, Vec<u8>), Error> {
    if text.len() > MAX_FILE_BYTES {
        return Err(bad(format!("key.key_hsm has more than {MAX_FILE_BYTES} characters")));
    }
    let file = decode(text).ok_or_else(|| bad("key.key_hsm is not base64".into()))?;
    let envelope: Envelope = serde_json::from_slice(&file).map_err(|_| {
        bad("key.key_hsm is not a BYOK file: JSON with schema_version, header and ciphertext".into())
    })?;
    expect("schema_version", envelope.schema_version.as_deref(), VERSION)?;
    let header = envelope.header.ok_or_else(|| missing("header"))?;
    expect("header.alg", header.alg.as_deref(), ALGORITHM)?;
    expect("header.enc", header.enc.as_deref(), ENCRYPTION)?;
    let kek = key_of(&header.kid.ok_or_else(|| missing("header.kid"))?)?;
    let ciphertext = envelope.ciphertext.ok_or_else(|| missing("ciphertext"))?;
    let ciphertext = decode(&ciphertext)
        .filter(|bytes| (1..=MAX_CIPHERTEXT_BYTES).contains(&bytes.len()))
        .ok_or_else(|| {
            bad(format!("ciphertext of the BYOK file is not base64url of 1 to {MAX_CIPHERTEXT_BYTES} bytes"))
        })?;
    Ok((kek, ciphertext))
}

/// Documents say base64, clients send base64url.
fn decode(text: &str) -> Option<Vec<u8>> {
    let url_safe = |character| match character {
        '+' => '-',
        '/' => '_',
        other => other,
    };
    let text: String = text.trim_ascii().chars().map(url_safe).collect();
    BASE64URL.decode(text).ok()
}

/// The key and version that an identifier names. Its host is not compared: a pool has several names, and a version of 128
/// random bits is in the pools of one security domain alone.
fn key_of(kid: &str) -> Result<KeyReference, Error> {
    let path = kid.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("https"));
    let route = path.and_then(|uri| Route::parse(&Method::GET, uri.path()).ok());
    match route {
        Some(Route::ReadKey(key)) if key.version.is_some() => Ok(key),
        Some(_) | None => Err(bad(format!(
            "header.kid `{}` is not the identifier of a key version, https://HOST/keys/NAME/VERSION",
            shorten(kid)
        ))),
    }
}

fn expect(member: &str, found: Option<&str>, expected: &str) -> Result<(), Error> {
    match found {
        Some(found) if found == expected => Ok(()),
        Some(found) => {
            Err(bad(format!("{member} of the BYOK file is `{}`, not `{expected}`", shorten(found))))
        }
        None => Err(missing(member)),
    }
}

fn missing(member: &str) -> Error {
    bad(format!("{member} of the BYOK file is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const VERSION_ID: &str = "0123456789abcdef0123456789abcdef";

    fn envelope() -> Value {
        json!({
            "schema_version": "1.0.0",
            "header": {
                "kid": format!("https://demo.managedhsm.localhost:8443/keys/kek/{VERSION_ID}"),
                "alg": "dir", "enc": "CKM_RSA_AES_KEY_WRAP",
            },
            "ciphertext": "__79", "generator": "a tool",
        })
    }

    fn message(change: impl FnOnce(&mut Value)) -> String {
        let mut envelope = envelope();
        change(&mut envelope);
        parse(&BASE64URL.encode(envelope.to_string())).err().unwrap().to_string()
    }

    /// The file as an HSM's tool wrote it stays readable.
    #[test]
    fn the_golden_file_is_read_in_both_alphabets() {
        let golden = include_bytes!("../tests/golden/envelope.byok");
        for text in [BASE64URL.encode(golden), STANDARD.encode(golden)] {
            let (kek, ciphertext) = parse(&text).unwrap();
            assert_eq!((kek.name.to_string().as_str(), ciphertext), ("kek", vec![0xff, 0xfe, 0xfd]));
            assert_eq!(kek.version.unwrap().to_string(), VERSION_ID);
        }
    }

    #[test]
    fn each_mistake_is_named() {
        let said = message(|file| file["schema_version"] = "2.0.0".into());
        assert!(said.contains("schema_version of the BYOK file is `2.0.0`"), "{said}");
        assert!(message(|file| file["header"]["alg"] = "RSA-OAEP".into()).contains("header.alg"));
        assert!(message(|file| file["header"]["enc"] = "A256GCM".into()).contains("header.enc"));
        assert!(message(|file| file["header"] = Value::Null).contains("header of the BYOK file is missing"));
        assert!(message(|file| file["ciphertext"] = "?".into()).contains("ciphertext"));
        assert!(message(|file| file["ciphertext"] = "".into()).contains("ciphertext"));
        for kid in [
            "".to_owned(),
            "kek".to_owned(),
            "https://h/keys/kek".to_owned(),
            "https://h/keys/kek/versions".to_owned(),
            format!("http://h/keys/kek/{VERSION_ID}"),
            "https://h/deletedkeys/kek".to_owned(),
        ] {
            assert!(
                message(|file| file["header"]["kid"] = kid.as_str().into()).contains("header.kid"),
                "{kid}"
            );
        }
        let refused = |text: &str| parse(text).err().unwrap().to_string();
        assert!(refused("{}").contains("not base64"));
        assert!(refused(&BASE64URL.encode("text")).contains("not a BYOK file"));
        assert!(refused(&"A".repeat(MAX_FILE_BYTES + 1)).contains("more than"));
    }

    proptest! {
        #[test]
        fn arbitrary_files_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), kid in "\\PC{0,60}") {
            let _ = parse(&BASE64URL.encode(&bytes));
            let _ = key_of(&kid);
        }
    }
}

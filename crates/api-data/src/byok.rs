//! The envelope of a wrapped key (`docs/formats/byok.md`): JSON, as the vendors of HSMs write it.

use crate::route::Route;
use crate::wire::{BASE64URL, bad, shorten};
use base64::Engine as _;
use http::{Method, Uri};
use serde::Deserialize;
use serde_json::Value;
use service::{Error, KeyReference};

/// Of the file, and of the ciphertext in it: about 2,900 bytes for an RSA-4096 key and KEK.
const MAX_FILE_BYTES: usize = 48 * 1024;
/// Of the file in base64.
const MAX_TEXT_BYTES: usize = MAX_FILE_BYTES / 3 * 4;
const MAX_CIPHERTEXT_BYTES: usize = 8 * 1024;
const VERSION: &str = "1.0.0";
const ALGORITHM: &str = "dir";
const ENCRYPTION: &str = "CKM_RSA_AES_KEY_WRAP";

#[derive(Deserialize)]
struct Envelope {
    schema_version: Option<String>,
    header: Option<Header>,
    ciphertext: Option<String>,
    /// Free text; whatever it is, an import passes over it.
    generator: Option<Value>,
}

#[derive(Deserialize)]
struct Header {
    kid: Option<String>,
    alg: Option<String>,
    enc: Option<String>,
}

/// What a file says, and all that is wrong with it as far as is seen without the key that it is wrapped for.
#[derive(Debug, Default)]
pub struct Examined {
    /// In the words, and in the order, of the refusals of an import.
    pub problems: Vec<String>,
    pub kid: Option<String>,
    pub kek: Option<KeyReference>,
    pub ciphertext: Option<Vec<u8>>,
    pub generator: Option<String>,
}

/// The file in `key.key_hsm`, in base64 of either alphabet: the key that it is wrapped for, and the ciphertext.
pub(crate) fn parse(text: &str) -> Result<(KeyReference, Vec<u8>), Error> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(bad(format!("key.key_hsm has more than {MAX_TEXT_BYTES} characters")));
    }
    let file = decode(text).ok_or_else(|| bad("key.key_hsm is not base64".into()))?;
    let examined = examine(&file);
    match (examined.problems.into_iter().next(), examined.kek, examined.ciphertext) {
        (None, Some(kek), Some(ciphertext)) => Ok((kek, ciphertext)),
        (problem, ..) => Err(bad(problem.unwrap_or_else(|| "key.key_hsm is not a BYOK file".into()))),
    }
}

/// The file as a tool wrote it. What an import takes has no problem here, and the other way round.
pub fn examine(file: &[u8]) -> Examined {
    let mut examined = Examined::default();
    let envelope = if file.len() > MAX_FILE_BYTES { None } else { serde_json::from_slice(file).ok() };
    let Some(Envelope { schema_version, header, ciphertext, generator }) = envelope else {
        examined.problems.push(
            "this is not a BYOK file: JSON with schema_version, header and ciphertext, at most 48 KiB".into(),
        );
        return examined;
    };
    let mut problem = |result: Result<(), String>| examined.problems.extend(result.err());
    problem(expect("schema_version", schema_version.as_deref(), VERSION));
    match header {
        None => problem(Err(missing("header"))),
        Some(header) => {
            problem(expect("header.alg", header.alg.as_deref(), ALGORITHM));
            problem(expect("header.enc", header.enc.as_deref(), ENCRYPTION));
            match header.kid.as_deref().ok_or_else(|| missing("header.kid")).and_then(key_of) {
                Ok(kek) => examined.kek = Some(kek),
                Err(error) => problem(Err(error)),
            }
            examined.kid = header.kid;
        }
    }
    let bytes = ciphertext.ok_or_else(|| missing("ciphertext")).and_then(|text| {
        decode(&text).filter(|bytes| (1..=MAX_CIPHERTEXT_BYTES).contains(&bytes.len())).ok_or_else(|| {
            format!("ciphertext of the BYOK file is not base64url of 1 to {MAX_CIPHERTEXT_BYTES} bytes")
        })
    });
    match bytes {
        Ok(bytes) => examined.ciphertext = Some(bytes),
        Err(error) => examined.problems.push(error),
    }
    examined.generator = generator.and_then(|generator| generator.as_str().map(str::to_owned));
    examined
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
fn key_of(kid: &str) -> Result<KeyReference, String> {
    let path = kid.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("https"));
    let route = path.and_then(|uri| Route::parse(&Method::GET, uri.path()).ok());
    match route {
        Some(Route::ReadKey(key)) if key.version.is_some() => Ok(key),
        Some(_) | None => Err(format!(
            "header.kid `{}` is not the identifier of a key version, https://HOST/keys/NAME/VERSION",
            shorten(kid)
        )),
    }
}

fn expect(member: &str, found: Option<&str>, expected: &str) -> Result<(), String> {
    match found {
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(format!("{member} of the BYOK file is `{}`, not `{expected}`", shorten(found))),
        None => Err(missing(member)),
    }
}

fn missing(member: &str) -> String {
    format!("{member} of the BYOK file is missing")
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;
    use serde_json::json;

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
        assert!(refused(&"A".repeat(MAX_TEXT_BYTES + 1)).contains("more than"));
    }

    #[test]
    fn all_that_is_wrong_is_found_at_once() {
        let file = json!({ "schema_version": "2", "header": { "alg": "x" }, "ciphertext": 5 }).to_string();
        assert_eq!(examine(file.as_bytes()).problems.len(), 1, "a member of another type");
        let file = json!({ "header": { "alg": "x", "kid": "k" }, "generator": 7 }).to_string();
        let examined = examine(file.as_bytes());
        assert_eq!(examined.problems.len(), 5, "{:?}", examined.problems);
        assert_eq!(examined.kid.as_deref(), Some("k"));
        let examined = examine(include_bytes!("../tests/golden/envelope.byok"));
        assert!(examined.problems.is_empty() && examined.ciphertext.is_some(), "{examined:?}");
        assert!(examined.generator.is_some());
    }

    proptest! {
        #[test]
        fn arbitrary_files_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), kid in "\\PC{0,60}") {
            let _ = parse(&BASE64URL.encode(&bytes));
            let _ = key_of(&kid);
        }
    }
}

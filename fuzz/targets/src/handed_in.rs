//! Keys that somebody hands in, and the files around them.

use api_data::byok::examine;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crypto::SecretBytes;
use crypto::key_exchange::KeyExchangeKey;
use crypto::key_file::{AnyKeyFile, KeyFile};
use crypto_software::ClientKey;
use serde_json::json;

/// PKCS#8 as it comes out of a wrapped key, and what PKCS#8 wraps. A key that is taken is written and taken again.
pub fn private_key_info(bytes: &[u8]) {
    let der = SecretBytes::copy(bytes);
    for read in [ClientKey::from_pkcs8, ClientKey::from_pkcs1, ClientKey::from_sec1] {
        if let Ok(key) = read(&der) {
            let again = ClientKey::from_pkcs8(key.danger_encoding()).unwrap();
            assert_eq!(again.spec(), key.spec());
            assert_eq!(again.danger_encoding().danger_expose(), key.danger_encoding().danger_expose());
            assert!(!key.danger_json_web_key().is_empty());
        }
    }
}

/// A private key in PEM, of whatever form. Passphrases are not tried: they take their time by design.
pub fn private_key_pem(bytes: &[u8]) {
    match AnyKeyFile::read(&SecretBytes::copy(bytes)) {
        Ok(AnyKeyFile::Pkcs8(KeyFile::Plain(der)) | AnyKeyFile::Pkcs1(der) | AnyKeyFile::Sec1(der)) => {
            assert!(der.len() < bytes.len());
        }
        Ok(AnyKeyFile::Pkcs8(KeyFile::Encrypted(_))) | Err(_) => {}
    }
}

/// The public half of a key-exchange key, to which a key is then wrapped.
pub fn key_exchange_key(bytes: &[u8]) {
    let Ok(key) = KeyExchangeKey::from_file(bytes) else { return };
    let wrapped = key.wrap(&SecretBytes::new(vec![7; 16]));
    if let Ok(wrapped) = wrapped {
        assert_eq!(wrapped.len(), key.size().bytes() + 24);
        assert!(key.admits(&wrapped[..key.size().bytes()]));
    }
}

/// A `.byok` file. `holdfast byok check` finds something wrong with it where an import does, and only there.
pub fn byok_file(bytes: &[u8]) {
    let examined = examine(bytes);
    let good = examined.problems.is_empty();
    assert!(!good || (examined.kek.is_some() && examined.ciphertext.is_some()));
    assert!(examined.problems.iter().all(|problem| problem.len() < 300));
    let body = json!({ "key": { "kty": "RSA-HSM", "key_hsm": URL_SAFE_NO_PAD.encode(bytes) } }).to_string();
    let taken = api_data::fuzzing::body(api_data::RouteKind::ImportKey, body.as_bytes());
    assert_eq!(taken.is_some_and(|result| result.is_ok()), good, "{:?}", examined.problems);
}

//! What goes between holders and pool: the security domain's files and the requests for them.

macro_rules! same {
    ($($name:ident = $of:ident,)*) => {
        $(pub fn $name(bytes: &[u8]) {
            ceremony::fuzz::$of(bytes);
        })*
    };
}

same! {
    domain_request = download_request,
    domain_file = domain_file,
    domain_restore_blob = restore_blob,
    domain_jwe = jwe,
    domain_share = share,
    domain_transfer_key = transfer_key,
    holder_certificate = certificate,
    holder_key_file = key_file,
}

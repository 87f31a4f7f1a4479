//! What the server reads beside requests: of its pools' processes, of those that it calls, of files; and what its commands
//! read as clients.

macro_rules! same {
    ($($name:ident,)*) => {
        $(pub fn $name(bytes: &[u8]) {
            server::fuzzing::$name(bytes);
        })*
    };
}

same! {
    certificate_request,
    certificate_request_attributes,
    pool_process_lines,
    connect_head,
    http_answer,
    storage_location,
    identity_answer,
    tls_chain,
    federated_credentials,
    client_challenge,
    client_link,
    client_refusal,
    client_key,
    encrypted_document,
    attestation_file,
    apply_file,
}

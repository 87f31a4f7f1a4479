//! Development only: what is fuzzed. A target takes any bytes and panics where a promise is broken; refusing the bytes
//! is always right.
//!
//! The same functions run over the inputs of `fuzz/corpus` as an ordinary test, and under a coverage-guided engine in
//! `cargo xtask soak` (`fuzz/README.md`).
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a finding

mod assertions;
mod backups;
mod control;
mod disk;
mod domain_files;
mod gateway;
mod handed_in;
mod http_surface;
mod memory;
mod release;
mod requests;
mod server;
mod tokens;

/// What is fuzzed, and the name of its directory in `fuzz/corpus`.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

macro_rules! targets {
    ($($module:ident::$name:ident,)*) => {
        &[$(Target { name: stringify!($name), run: $module::$name },)*]
    };
}

pub const TARGETS: &[Target] = targets![
    requests::route,
    requests::query,
    requests::body,
    control::control_route,
    control::control_body,
    control::control_record,
    tokens::jwt,
    tokens::jwt_claims,
    tokens::jwk_set,
    tokens::issuer_state,
    tokens::client_certificate,
    assertions::assertion,
    assertions::client_assertion,
    assertions::federated_token,
    assertions::token_form,
    assertions::managed_identity,
    handed_in::private_key_info,
    handed_in::private_key_pem,
    handed_in::key_exchange_key,
    handed_in::byok_file,
    release::release_policy,
    release::release_assertion,
    release::authority_keys,
    disk::certificate,
    disk::owner_pem,
    disk::key_statement,
    disk::attestation_chain,
    disk::record,
    disk::key_backup,
    disk::key_backup_content,
    disk::pool_state,
    disk::genesis,
    disk::genesis_content,
    disk::sealed_record,
    disk::sealed_file,
    disk::domain_secrets,
    domain_files::domain_request,
    domain_files::domain_file,
    domain_files::domain_restore_blob,
    domain_files::domain_jwe,
    domain_files::domain_share,
    domain_files::domain_transfer_key,
    domain_files::holder_certificate,
    domain_files::holder_key_file,
    backups::full_backup,
    backups::full_backup_chunk,
    backups::full_backup_manifest,
    disk::audit_segment,
    disk::audit_body,
    disk::audit_event,
    disk::receipt,
    gateway::client_hello,
    gateway::proxy_header,
    gateway::network_rules,
    server::certificate_request,
    server::certificate_request_attributes,
    server::pool_process_lines,
    server::connect_head,
    server::http_answer,
    server::storage_location,
    server::identity_answer,
    server::tls_chain,
    server::federated_credentials,
    server::client_challenge,
    server::client_link,
    server::client_refusal,
    server::client_key,
    server::encrypted_document,
    server::attestation_file,
    server::apply_file,
    http_surface::http_surface,
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

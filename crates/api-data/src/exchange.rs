//! One authenticated request on a known route: reads the body, calls the use case, writes the answer's body.

use crate::answers::{self, Json};
use crate::api::{Answer, query};
use crate::backup;
use crate::key_import::{self, Import};
use crate::paging::{self, Place};
use crate::route::{KeyUse, Route};
use crate::test_mode;
use crate::wire;
use crate::{release, rotation};
use bytes::Bytes;
use http::{StatusCode, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body;
use serde_json::Value;
use service::backup::JobView;
use service::{EncryptInput, Error, KeyReference, Page, PageRequest, Pool, Recorded, Ticket};
use std::error::Error as StdError;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// A body of 64 KiB of plaintext is 88 KiB of base64url.
const MAX_BODY_BYTES: usize = 256 * 1024;
/// The largest backup in base64url, and the JSON around it.
const MAX_RESTORE_BODY_BYTES: usize = service::MAX_BACKUP_BYTES / 3 * 4 + 1024;
const MAX_BODY_SECONDS: u64 = 10;
/// Of a body that is too large, read before the connection is given up.
const MAX_PASSED_OVER_BYTES: usize = 4 << 20;

pub(crate) struct Exchange<'a> {
    pub pool: &'a Arc<Pool>,
    pub ticket: Ticket,
    /// `https://` and the host as the client wrote it.
    pub origin: String,
    pub uri: &'a Uri,
    pub full_receipt: bool,
    pub max_body_bytes: usize,
}

/// How large a body of `route` may be.
pub(crate) fn max_body_bytes(route: &Route) -> usize {
    match route {
        Route::RestoreKey => MAX_RESTORE_BODY_BYTES,
        _ => MAX_BODY_BYTES,
    }
}

impl Exchange<'_> {
    pub async fn answer<B>(self, route: Route, body: B) -> Answer
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        // Apart, so that what is asked all the time does not carry the size of everything else.
        match route {
            Route::ReadKey(key) => {
                let Self { pool, ticket, origin, full_receipt, .. } = self;
                let recorded = pool.read_key(ticket, key).await;
                Answer::recorded(recorded, full_receipt, |view| answers::key_bundle(&origin, &view))
            }
            Route::UseKey(operation, key) => self.use_key(operation, key, body).await,
            route => Box::pin(self.answer_others(route, body)).await,
        }
    }

    async fn answer_others<B>(self, route: Route, body: B) -> Answer
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let pool = self.pool;
        let origin = self.origin.clone();
        match route {
            Route::CreateKey(name) => {
                let parse = |body: &[u8]| wire::parse_create(name, body);
                let act = |ticket, new| pool.create_key(ticket, new);
                self.with_body(body, parse, act, |view| answers::key_bundle(&origin, &view)).await
            }
            Route::ImportKey(name) => {
                let parse = |body: &[u8]| key_import::parse(name, body);
                let act = |ticket, import| async move {
                    match import {
                        Import::Parts(imported) => pool.import_key(ticket, imported).await,
                        Import::Wrapped(wrapped) => pool.import_wrapped_key(ticket, wrapped).await,
                    }
                };
                self.with_body(body, parse, act, |view| answers::key_bundle(&origin, &view)).await
            }
            Route::ReadKey(key) => {
                let recorded = pool.read_key(self.ticket, key).await;
                Answer::recorded(recorded, self.full_receipt, |view| answers::key_bundle(&origin, &view))
            }
            Route::AttestKey(key) => {
                let recorded = pool.attest_key(self.ticket, key).await;
                Answer::recorded(recorded, self.full_receipt, |attested| {
                    wire::attested_key(&origin, &attested)
                })
            }
            Route::UpdateKey(key) => {
                let act = |ticket, change| pool.update_key(ticket, key, change);
                self.with_body(body, wire::parse_update, act, |view| answers::key_bundle(&origin, &view))
                    .await
            }
            Route::ListKeys => self.list(|ticket, page| pool.list_keys(ticket, page), wire::key_item).await,
            Route::ListVersions(name) => {
                let act = |ticket, page| pool.list_versions(ticket, name, page);
                self.list(act, wire::version_item).await
            }
            Route::DeleteKey(name) => {
                let recorded = pool.delete_key(self.ticket, name).await;
                Answer::recorded(recorded, self.full_receipt, |view| wire::deleted_bundle(&origin, &view))
            }
            Route::ReadDeletedKey(name) => {
                let recorded = pool.read_deleted_key(self.ticket, name).await;
                Answer::recorded(recorded, self.full_receipt, |view| wire::deleted_bundle(&origin, &view))
            }
            Route::ListDeletedKeys => {
                self.list(|ticket, page| pool.list_deleted_keys(ticket, page), wire::deleted_item).await
            }
            Route::RecoverKey(name) => {
                let recorded = pool.recover_key(self.ticket, name).await;
                Answer::recorded(recorded, self.full_receipt, |view| answers::key_bundle(&origin, &view))
            }
            Route::PurgeKey(name) => {
                let mut ticket = self.ticket;
                ticket.succeeds_with(StatusCode::NO_CONTENT.as_u16());
                let recorded = pool.purge_key(ticket, name).await;
                Answer::recorded(recorded, self.full_receipt, |()| Value::Null)
                    .succeeding_with(StatusCode::NO_CONTENT)
            }
            Route::UseKey(operation, key) => self.use_key(operation, key, body).await,
            Route::ReleaseKey(key) => {
                let api_version = query(self.uri, "api-version").unwrap_or_default();
                let act = |ticket, (request, nonce): (_, Option<String>)| {
                    let (origin, api_version) = (&origin, &api_version);
                    async move {
                        let render = |released: &service::ReleasedKey| {
                            release::payload(origin, api_version, nonce.as_deref(), released)
                        };
                        pool.release_key(ticket, key, request, render).await
                    }
                };
                let render = |value: String| serde_json::json!({ "value": value });
                self.with_body(body, release::parse, act, render).await
            }
            Route::BackupKey(name) => {
                let recorded = pool.backup_key(self.ticket, name).await;
                Answer::recorded(recorded, self.full_receipt, |blob| wire::key_backup(&blob))
            }
            Route::RestoreKey => {
                let act = |ticket, blob| pool.restore_key(ticket, blob);
                self.with_body(body, wire::parse_restore, act, |view| answers::key_bundle(&origin, &view))
                    .await
            }
            Route::RotateKey(name) => {
                let recorded = pool.rotate_key(self.ticket, name).await;
                Answer::recorded(recorded, self.full_receipt, |view| answers::key_bundle(&origin, &view))
            }
            Route::ReadRotationPolicy(name) => {
                let recorded = pool.read_rotation_policy(self.ticket, name).await;
                Answer::recorded(recorded, self.full_receipt, |view| rotation::render(&origin, &view))
            }
            Route::SetRotationPolicy(name) => {
                let act = |ticket, new| pool.set_rotation_policy(ticket, name, new);
                self.with_body(body, rotation::parse, act, |view| rotation::render(&origin, &view)).await
            }
            Route::RandomBytes => {
                let act = |ticket, count| pool.random_bytes(ticket, count);
                self.with_body(body, wire::parse_random, act, |bytes| wire::random(&bytes)).await
            }
            Route::CreateAssignment(scope, name) => {
                let parse = |body: &[u8]| wire::parse_assignment(scope, name, body);
                let act = |ticket, new| pool.create_assignment(ticket, new);
                self.creating(body, parse, act, |made| wire::assignment(&made)).await
            }
            Route::ReadAssignment(scope, name) => {
                let recorded = pool.read_assignment(self.ticket, scope, name).await;
                Answer::recorded(recorded, self.full_receipt, |held| wire::assignment(&held))
            }
            Route::DeleteAssignment(scope, name) => {
                let recorded = pool.delete_assignment(self.ticket, scope, name).await;
                Answer::recorded(recorded, self.full_receipt, |held| wire::assignment(&held))
            }
            Route::ListAssignments(scope) => {
                let filter = query(self.uri, "$filter");
                let filter = match wire::assignment_filter(filter.as_deref().unwrap_or_default()) {
                    Ok(filter) => filter,
                    Err(error) => {
                        return Box::pin(Answer::refused(self.ticket, error, self.full_receipt)).await;
                    }
                };
                let recorded = pool.list_assignments(self.ticket, scope, filter).await;
                let list = |held: Vec<_>| wire::list(held.iter().map(wire::assignment).collect());
                Answer::recorded(recorded, self.full_receipt, list)
            }
            Route::DefineRole(scope, id) => {
                let parse = |body: &[u8]| wire::parse_role(id, body);
                let act = |ticket, role| pool.define_role(ticket, scope, role);
                self.creating(body, parse, act, |role| wire::role(&role)).await
            }
            Route::ReadRole(scope, id) => {
                let recorded = pool.read_role(self.ticket, scope, id).await;
                Answer::recorded(recorded, self.full_receipt, |role| wire::role(&role))
            }
            Route::DeleteRole(scope, id) => {
                let recorded = pool.delete_role(self.ticket, scope, id).await;
                Answer::recorded(recorded, self.full_receipt, |role| wire::role(&role))
            }
            Route::ListRoles(scope) => {
                let recorded = pool.list_roles(self.ticket, scope).await;
                let list = |roles: Vec<_>| wire::list(roles.iter().map(wire::role).collect());
                Answer::recorded(recorded, self.full_receipt, list)
            }
            Route::ListSettings => {
                let recorded = pool.list_settings(self.ticket).await;
                Answer::recorded(recorded, self.full_receipt, |held| wire::settings(&held))
            }
            Route::ReadSetting(name) => {
                let recorded = pool.read_setting(self.ticket, name).await;
                Answer::recorded(recorded, self.full_receipt, |held| wire::setting(&held))
            }
            Route::UpdateSetting(name) => {
                let act = |ticket, value| pool.update_setting(ticket, name, value);
                self.with_body(body, wire::parse_setting, act, |held| wire::setting(&held)).await
            }
            Route::ReadTestMode => {
                let recorded = pool.read_test_mode(self.ticket).await;
                Answer::recorded(recorded, self.full_receipt, |view| test_mode::render(&view))
            }
            Route::UpdateTestMode => {
                let act = |ticket, change| pool.update_test_mode(ticket, change);
                self.with_body(body, test_mode::parse, act, |view| test_mode::render(&view)).await
            }
            Route::ListNotBefore => {
                let recorded = pool.list_not_before(self.ticket).await;
                let list = |held: Vec<_>| wire::list(held.iter().map(wire::not_before).collect());
                Answer::recorded(recorded, self.full_receipt, list)
            }
            Route::SetNotBefore(principal) => {
                let act = |ticket, not_before| pool.set_not_before(ticket, principal, not_before);
                self.with_body(body, wire::parse_not_before, act, |held| wire::not_before(&held)).await
            }
            Route::DownloadDomain => {
                let mut exchange = self;
                exchange.ticket.succeeds_with(StatusCode::ACCEPTED.as_u16());
                let act = |ticket, request| pool.download_domain(ticket, request);
                let render = |file: String| serde_json::json!({ "value": file });
                let answer = exchange.with_body(body, wire::parse_download, act, render).await;
                answer.begun(format!("{origin}/securitydomain/download/pending"))
            }
            Route::DomainDownloadStatus => {
                let recorded = pool.download_status(self.ticket).await;
                Answer::recorded(recorded, self.full_receipt, wire::domain_status).ask_again_soon()
            }
            Route::NewTransferKey => {
                let recorded = pool.new_transfer_key(self.ticket).await;
                Answer::recorded(recorded, self.full_receipt, |key| wire::transfer_key(&key))
            }
            Route::UploadDomain => {
                let mut exchange = self;
                exchange.ticket.succeeds_with(StatusCode::ACCEPTED.as_u16());
                let act = |ticket, blob| pool.upload_domain(ticket, blob);
                let answer = exchange.with_body(body, wire::parse_upload, act, wire::domain_status).await;
                answer.begun(format!("{origin}/securitydomain/upload/pending"))
            }
            Route::DomainUploadStatus => {
                let recorded = pool.upload_status(self.ticket).await;
                Answer::recorded(recorded, self.full_receipt, wire::domain_status).ask_again_soon()
            }
            Route::ConfirmDomain => {
                let act = |ticket, fingerprint| pool.confirm_domain(ticket, fingerprint);
                self.with_body(body, wire::parse_confirm, act, |view| wire::domain(&view)).await
            }
            Route::StartBackup => {
                let act = |ticket, location| pool.start_backup(ticket, location);
                self.beginning(body, backup::parse_location, act, "backup").await
            }
            Route::CheckBackup => {
                let act = |ticket, location| pool.check_backup(ticket, location);
                self.beginning(body, backup::parse_location, act, "backup").await
            }
            Route::BackupStatus(id) => {
                let recorded = pool.backup_job(self.ticket, id).await;
                Answer::recorded(recorded, self.full_receipt, |view| backup::job(&view)).ask_again_soon()
            }
            Route::StartRestore => {
                let act = |ticket, source| pool.start_restore(ticket, source);
                self.beginning(body, backup::parse_restore, act, "restore").await
            }
            Route::CheckRestore => {
                let act = |ticket, source| pool.check_restore_from(ticket, source);
                self.beginning(body, backup::parse_restore, act, "restore").await
            }
            Route::RestoreStatus(id) => {
                let recorded = pool.restore_job(self.ticket, id).await;
                Answer::recorded(recorded, self.full_receipt, |view| backup::job(&view)).ask_again_soon()
            }
            Route::RestoreOneKey(name) => {
                let act = |ticket, source| pool.start_selective_restore(ticket, name, source);
                self.beginning(body, backup::parse_selective, act, "restore").await
            }
            Route::PreviewRestore => {
                let act = |ticket, source| pool.preview_restore(ticket, source);
                self.with_body(body, backup::parse_restore, act, |made| backup::difference(&made)).await
            }
            Route::ClearNotBefore(principal) => {
                let recorded = pool.clear_not_before(self.ticket, principal).await;
                Answer::recorded(recorded, self.full_receipt, |held| wire::not_before(&held))
            }
        }
    }

    async fn use_key<B>(self, operation: KeyUse, key: KeyReference, body: B) -> Answer
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let pool = self.pool;
        let origin = self.origin.clone();
        match operation {
            KeyUse::Sign => {
                let act = |ticket, (algorithm, digest)| pool.sign(ticket, key, algorithm, digest);
                self.with_body(body, wire::parse_sign, act, |used| answers::used_key(&origin, &used)).await
            }
            KeyUse::Verify => {
                let act = |ticket, (algorithm, digest, signature)| {
                    pool.verify(ticket, key, algorithm, digest, signature)
                };
                let render = |used: service::UsedKey<bool>| serde_json::json!({ "value": used.result });
                self.with_body(body, wire::parse_verify, act, render).await
            }
            KeyUse::Encrypt | KeyUse::WrapKey => {
                let act = |ticket, (algorithm, input): (_, EncryptInput)| async move {
                    let additional_data = input.additional_data.clone();
                    let recorded = match operation {
                        KeyUse::Encrypt => pool.encrypt(ticket, key, algorithm, input).await,
                        _ => pool.wrap_key(ticket, key, algorithm, input).await,
                    };
                    recorded.map(|used| (used, additional_data))
                };
                let render = |(used, additional_data): (_, Option<Vec<u8>>)| {
                    answers::encrypted(&origin, &used, additional_data.as_deref())
                };
                self.with_body(body, wire::parse_encrypt, act, render).await
            }
            KeyUse::Decrypt => {
                let act = |ticket, (algorithm, input)| pool.decrypt(ticket, key, algorithm, input);
                self.with_body(body, wire::parse_decrypt, act, |used| answers::decrypted(&origin, &used))
                    .await
            }
            KeyUse::UnwrapKey => {
                let act = |ticket, (algorithm, input)| pool.unwrap_key(ticket, key, algorithm, input);
                self.with_body(body, wire::parse_decrypt, act, |used| answers::decrypted(&origin, &used))
                    .await
            }
        }
    }

    /// A use case that takes what `parse` reads from the body.
    async fn with_body<B, P, T, F, J: Into<Json>>(
        self,
        body: B,
        parse: impl FnOnce(&[u8]) -> Result<P, Error>,
        act: impl FnOnce(Ticket, P) -> F,
        render: impl FnOnce(T) -> J,
    ) -> Answer
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
        F: Future<Output = Recorded<T>>,
    {
        match read_body(body, self.max_body_bytes).await.and_then(|body| parse(&body)) {
            Ok(parsed) => Answer::recorded(act(self.ticket, parsed).await, self.full_receipt, render),
            Err(error) => Box::pin(Answer::refused(self.ticket, error, self.full_receipt)).await,
        }
    }

    /// Likewise, for what goes on as a job: answered with 202 and where to ask for it.
    async fn beginning<B, P, F>(
        mut self,
        body: B,
        parse: impl FnOnce(&[u8]) -> Result<P, Error>,
        act: impl FnOnce(Ticket, P) -> F,
        what: &str,
    ) -> Answer
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
        F: Future<Output = Recorded<JobView>>,
    {
        self.ticket.succeeds_with(StatusCode::ACCEPTED.as_u16());
        let origin = self.origin.clone();
        let mut status_address = String::new();
        let render = |view: JobView| {
            status_address = format!("{origin}/{what}/{}/pending", view.0.id);
            backup::job(&view)
        };
        let answer = self.with_body(body, parse, act, render).await;
        answer.begun(status_address)
    }

    /// Likewise, answered with 201.
    async fn creating<B, P, T, F, J: Into<Json>>(
        mut self,
        body: B,
        parse: impl FnOnce(&[u8]) -> Result<P, Error>,
        act: impl FnOnce(Ticket, P) -> F,
        render: impl FnOnce(T) -> J,
    ) -> Answer
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
        F: Future<Output = Recorded<T>>,
    {
        self.ticket.succeeds_with(StatusCode::CREATED.as_u16());
        self.with_body(body, parse, act, render).await.succeeding_with(StatusCode::CREATED)
    }

    /// A list in pages.
    async fn list<C: Place, T, F>(
        self,
        act: impl FnOnce(Ticket, PageRequest<C>) -> F,
        render: impl Fn(&str, &T) -> Value,
    ) -> Answer
    where
        F: Future<Output = Recorded<Page<T, C>>>,
    {
        let max_results = query(self.uri, "maxresults");
        let token = query(self.uri, "$skiptoken");
        match paging::page_request(max_results.as_deref(), token.as_deref()) {
            Ok(request) => {
                let limit = request.limit;
                let recorded = act(self.ticket, request).await;
                let api_version = query(self.uri, "api-version").unwrap_or_default();
                let (origin, path) = (&self.origin, self.uri.path());
                Answer::recorded(recorded, self.full_receipt, |page| {
                    let items = page.items.iter().map(|item| render(origin, item)).collect();
                    let next =
                        page.next.map(|place| paging::next_link(origin, path, &api_version, limit, &place));
                    wire::page(items, next)
                })
            }
            Err(error) => Box::pin(Answer::refused(self.ticket, error, self.full_receipt)).await,
        }
    }
}

/// The whole body, within its limits of size and time. Wiped when dropped, as it may hold keys to be wrapped.
async fn read_body<B>(mut body: B, limit: usize) -> Result<Zeroizing<Vec<u8>>, Error>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let read = async {
        match Limited::new(&mut body, limit).collect().await {
            Ok(collected) => Ok(Zeroizing::new(collected.to_bytes().to_vec())),
            Err(error) if error.is::<LengthLimitError>() => {
                pass_over(&mut body).await;
                Err(Error::BodyTooLarge { limit })
            }
            Err(_) => Err(Error::BodyIncomplete),
        }
    };
    tokio::time::timeout(Duration::from_secs(MAX_BODY_SECONDS), read)
        .await
        .map_err(|_| Error::BodyTooSlow { limit_seconds: MAX_BODY_SECONDS })?
}

/// Reads on without keeping anything: most clients read no answer before they have written everything, and would find
/// the connection cut instead.
async fn pass_over<B: Body<Data = Bytes> + Unpin>(body: &mut B) {
    let mut passed_over = 0;
    while let Some(Ok(frame)) = body.frame().await {
        passed_over += frame.data_ref().map_or(0, Bytes::len);
        if passed_over > MAX_PASSED_OVER_BYTES {
            return;
        }
    }
}

//! Full backups in Azure Blob storage: block blobs, written block by block and visible when the last is there.
//!
//! A pool goes where its caller says, within what the operator listed. Its right there is the caller's token (SAS), passed
//! on as it was given, or an identity of its own; neither is in an error or a log. What comes back is bounded here and
//! believed nowhere: the backup's format checks it.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod identity;
mod location;

pub use identity::{IdentityEndpoint, IdentityTokens};

use crate::https::{Call, CallError, Client, Limits, Url};
use crate::output::chain;
use async_trait::async_trait;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderName, HeaderValue, IF_NONE_MATCH};
use http::{HeaderMap, Method, Response, StatusCode};
use location::{Container, check_sas};
use parking_lot::Mutex;
use service::backup::{
    BackupTarget, BackupTargets, BlobWriter, SasToken, StorageAccess, StorageLocation, TargetError,
};
use service::{Random, SystemRandom};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

/// The version of the storage's interface. A SAS has its own, which says how it is signed.
const VERSION: HeaderValue = HeaderValue::from_static("2021-12-02");
const X_MS_VERSION: HeaderName = HeaderName::from_static("x-ms-version");
const X_MS_RANGE: HeaderName = HeaderName::from_static("x-ms-range");
const X_MS_ERROR_CODE: HeaderName = HeaderName::from_static("x-ms-error-code");
/// Metadata of a blob: who wrote it.
const X_MS_META_WRITER: HeaderName = HeaderName::from_static("x-ms-meta-writer");
/// Of containers whose blobs cannot be changed.
const IMMUTABLE: [&str; 3] =
    ["x-ms-has-immutability-policy", "x-ms-has-legal-hold", "x-ms-immutable-storage-with-versioning-enabled"];

/// What is held of a backup while it is written, and while it is read.
const BLOCK_BYTES: usize = 4 << 20;
/// Azure's bound on the blocks of a blob.
const MAX_BLOCKS: u32 = 50_000;
/// Of one call with its block.
const TIME: Duration = Duration::from_secs(60);
/// Of an answer that is no content: an error's body, which is not looked at.
const ANSWER_BYTES: usize = 64 * 1024;
const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Opens containers of the endpoints that the operator listed.
pub struct AzureBlob {
    client: Client,
    identity: Option<Arc<IdentityTokens>>,
    first_pause: Duration,
}

impl AzureBlob {
    /// `identity`: how the pool gets tokens of its own; without it only a SAS opens anything.
    pub fn new(client: Client, identity: Option<Arc<IdentityTokens>>) -> Self {
        Self { client, identity, first_pause: FIRST_PAUSE }
    }
}

#[async_trait]
impl BackupTargets for AzureBlob {
    async fn open(&self, location: &StorageLocation) -> Result<Box<dyn BackupTarget>, TargetError> {
        let container = Container::parse(&location.container)?;
        self.client.may_call(container.url()).map_err(|error| TargetError::NotAllowed(error.to_string()))?;
        let access = match &location.access {
            StorageAccess::Sas(sas) => {
                check_sas(sas.danger_expose())?;
                Access::Sas(SasToken::new(sas.danger_expose()))
            }
            StorageAccess::ManagedIdentity => match &self.identity {
                Some(identity) => Access::Identity(identity.clone()),
                None => {
                    let message = "this pool has no managed identity: give a SAS as the token";
                    return Err(TargetError::NotAllowed(message.to_owned()));
                }
            },
        };
        let storage =
            Storage { client: self.client.clone(), container, access, first_pause: self.first_pause };
        Ok(Box::new(AzureContainer { storage: Arc::new(storage), window: Mutex::new(None) }))
    }
}

enum Access {
    Sas(SasToken),
    Identity(Arc<IdentityTokens>),
}

struct Storage {
    client: Client,
    container: Container,
    access: Access,
    first_pause: Duration,
}

/// What is asked of the storage.
struct Asked<'a> {
    method: Method,
    path: &'a str,
    query: &'a [(&'a str, &'a str)],
    headers: &'a [(HeaderName, HeaderValue)],
    body: Bytes,
    answer_bytes: usize,
}

impl<'a> Asked<'a> {
    fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, query: &[], headers: &[], body: Bytes::new(), answer_bytes: ANSWER_BYTES }
    }
}

/// An answer, and whether an earlier attempt may have been obeyed too without an answer.
struct Answered {
    response: Response<Bytes>,
    again: bool,
}

impl Storage {
    /// As often as it takes and is bearable. All that is asked here may be done twice.
    async fn ask(&self, asked: Asked<'_>) -> Result<Answered, TargetError> {
        let mut pause = self.first_pause;
        for attempt in 1.. {
            let outcome = self.ask_once(&asked).await?;
            let passing = match &outcome {
                Ok(response) => is_passing(response.status()),
                Err(error) => error.is_passing(),
            };
            if !passing || attempt == ATTEMPTS {
                let again = attempt > 1;
                return outcome.map(|response| Answered { response, again }).map_err(|error| match error {
                    CallError::NotAllowed { .. } => TargetError::NotAllowed(error.to_string()),
                    error => TargetError::Unreachable(chain(&error)),
                });
            }
            tokio::time::sleep(pause).await;
            pause *= 3;
        }
        unreachable!("the last attempt returns")
    }

    async fn ask_once(&self, asked: &Asked<'_>) -> Result<Result<Response<Bytes>, CallError>, TargetError> {
        let Asked { method, path, query, headers, body, answer_bytes } = asked;
        let mut call = Call { method: method.clone(), headers: HeaderMap::new(), body: body.clone() };
        call.headers.insert(X_MS_VERSION, VERSION);
        for (name, value) in *headers {
            call.headers.insert(name, value.clone());
        }
        let sas = match &self.access {
            Access::Sas(sas) => Some(sas.danger_expose()),
            Access::Identity(identity) => {
                call.headers.insert(AUTHORIZATION, identity.bearer().await?);
                None
            }
        };
        let url: Url = self.container.at(path, query, sas).map_err(|_| {
            TargetError::NotAllowed("storageResourceUri, folder and token make no URI".to_owned())
        })?;
        Ok(self.client.call(&url, call, Limits { time: TIME, body_bytes: *answer_bytes }).await)
    }

    fn blob_path(&self, name: &str) -> Result<String, TargetError> {
        self.container.blob_path(name)
    }
}

fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Azure's word for what went wrong, if there is one that could be.
fn error_code(response: &Response<Bytes>) -> Option<&str> {
    let code = response.headers().get(X_MS_ERROR_CODE)?.to_str().ok()?;
    let is_word = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_word && !code.is_empty()).then_some(code)
}

/// An answer that is not the one hoped for. Of its body nothing is repeated: what was signed may be in there.
fn refusal(response: &Response<Bytes>) -> TargetError {
    let code = error_code(response);
    let help = match code {
        Some("AuthenticationFailed") => Some("the token is wrong, has expired or is not valid yet"),
        // Emulators say so of a token that is wrong or has expired, too.
        Some("AuthorizationFailure") => {
            Some("the storage does not take this token or identity, or not from here")
        }
        Some("AuthorizationPermissionMismatch") => {
            Some("the token or the identity lacks a permission: a backup needs to create, read and write")
        }
        Some("AuthorizationResourceTypeMismatch" | "AuthorizationServiceMismatch") => {
            Some("the token is for another kind of resource")
        }
        Some("ContainerNotFound") => Some("there is no such container"),
        Some("BlobImmutableDueToPolicy" | "ContainerImmutableStorageNotSupported") => {
            Some("the container has an immutability policy")
        }
        None if response.status().is_redirection() => {
            Some("it answers with a redirect, which is not followed")
        }
        _ => None,
    };
    let message = match (code, help) {
        (Some(code), Some(help)) => format!("{code}: {help}"),
        (Some(code), None) => code.to_owned(),
        (None, Some(help)) => help.to_owned(),
        (None, None) => "no reason given".to_owned(),
    };
    TargetError::Refused { status: response.status().as_u16(), message }
}

/// By the answer to HEAD: how long the blob is, or that there is none.
fn size_of(name: &str, response: &Response<Bytes>) -> Result<Option<u64>, TargetError> {
    match response.status() {
        StatusCode::OK => {
            let length = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
            let length = length.and_then(|length| length.parse().ok());
            length.map(Some).ok_or_else(|| TargetError::Io(format!("no length of {name}")))
        }
        StatusCode::NOT_FOUND if error_code(response).is_none_or(|code| code == "BlobNotFound") => Ok(None),
        _ => Err(refusal(response)),
    }
}

struct AzureContainer {
    storage: Arc<Storage>,
    /// What was read last, as whoever reads goes on from there.
    window: Mutex<Option<Window>>,
}

struct Window {
    name: String,
    offset: u64,
    bytes: Bytes,
}

impl Window {
    fn of(name: &str, offset: u64, response: Response<Bytes>) -> Result<Self, TargetError> {
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            // All of it: what was asked for began at its begin.
            StatusCode::OK if offset == 0 => {}
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(TargetError::Io(format!("{name} ends before byte {offset}")));
            }
            StatusCode::NOT_FOUND if error_code(&response) == Some("BlobNotFound") => {
                return Err(TargetError::Missing(name.to_owned()));
            }
            _ => return Err(refusal(&response)),
        }
        Ok(Self { name: name.to_owned(), offset, bytes: response.into_body() })
    }

    fn part(&self, name: &str, offset: u64, length: usize) -> Option<Bytes> {
        let begin = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        let end = begin.checked_add(length)?;
        (self.name == name && end <= self.bytes.len()).then(|| self.bytes.slice(begin..end))
    }
}

impl AzureContainer {
    /// A container whose blobs cannot be changed is none for backups. Not every SAS may ask; then writing will tell.
    async fn check_properties(&self) -> Result<(), TargetError> {
        let path = self.storage.container.own_path();
        let query = [("restype", "container")];
        let answered = self.storage.ask(Asked { query: &query, ..Asked::new(Method::HEAD, path) }).await?;
        let response = answered.response;
        match response.status() {
            StatusCode::OK => {
                let says = |name: &&&str| {
                    response
                        .headers()
                        .get(**name)
                        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
                };
                match IMMUTABLE.iter().find(says) {
                    None => Ok(()),
                    Some(name) => Err(TargetError::NotAllowed(format!(
                        "the container is immutable ({name}): backups go to one without an immutability policy and legal hold"
                    ))),
                }
            }
            // For an account whose SAS is wrong, too: the next call says which.
            StatusCode::FORBIDDEN => Ok(()),
            _ => Err(refusal(&response)),
        }
    }

    async fn head(&self, name: &str) -> Result<Response<Bytes>, TargetError> {
        let path = self.storage.blob_path(name)?;
        Ok(self.storage.ask(Asked::new(Method::HEAD, &path)).await?.response)
    }
}

#[async_trait]
impl BackupTarget for AzureContainer {
    /// To write: one block of one byte, of which no blob is made; nobody sees it, and the storage forgets it after a week.
    /// To read: a blob that is not there is found not to be there, which tells apart a missing right and container.
    async fn check(&self, write: bool) -> Result<(), TargetError> {
        let container = &self.storage.container;
        if !container.is_whole() {
            return match write {
                true => Err(TargetError::NotAllowed("storageResourceUri names no container".to_owned())),
                // The container is in the folder's name; reading will tell.
                false => Ok(()),
            };
        }
        let probe = format!("holdfast-check-{}", SystemRandom.guid());
        if !write {
            return self.size(&probe).await.map(drop);
        }
        self.check_properties().await?;
        let path = self.storage.blob_path(&probe)?;
        let block = BASE64_STANDARD.encode(probe.as_bytes());
        let query = [("comp", "block"), ("blockid", block.as_str())];
        let body = Bytes::from_static(b"?");
        let answered =
            self.storage.ask(Asked { query: &query, body, ..Asked::new(Method::PUT, &path) }).await?;
        match answered.response.status() {
            StatusCode::CREATED => Ok(()),
            _ => Err(refusal(&answered.response)),
        }
    }

    async fn create(&self, name: &str) -> Result<Box<dyn BlobWriter>, TargetError> {
        let path = self.storage.blob_path(name)?;
        if self.size(name).await?.is_some() {
            return Err(TargetError::Exists(name.to_owned()));
        }
        let writer = SystemRandom.guid().to_string();
        let (name, storage) = (name.to_owned(), self.storage.clone());
        Ok(Box::new(BlockWriter { storage, name, path, writer, blocks: 0, waiting: BytesMut::new() }))
    }

    async fn size(&self, name: &str) -> Result<Option<u64>, TargetError> {
        size_of(name, &self.head(name).await?)
    }

    async fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, TargetError> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        if let Some(part) = self.window.lock().as_ref().and_then(|window| window.part(name, offset, length)) {
            return Ok(part);
        }
        let path = self.storage.blob_path(name)?;
        let asked = length.max(BLOCK_BYTES);
        let too_far = || TargetError::Io(format!("no byte {offset} of {name}"));
        let last = offset.checked_add(asked as u64 - 1).ok_or_else(too_far)?;
        let range = HeaderValue::from_str(&format!("bytes={offset}-{last}")).map_err(|_| too_far())?;
        let headers = [(X_MS_RANGE, range)];
        let asked = Asked { headers: &headers, answer_bytes: asked, ..Asked::new(Method::GET, &path) };
        let window = Window::of(name, offset, self.storage.ask(asked).await?.response)?;
        let part = window.part(name, offset, length);
        *self.window.lock() = Some(window);
        part.ok_or_else(|| {
            TargetError::Io(format!("{name} ends within bytes {offset} to {}", offset + length as u64))
        })
    }
}

/// Blocks have names that no other writer's have, so that two who write one blob never make a mixture of both.
struct BlockWriter {
    storage: Arc<Storage>,
    name: String,
    path: String,
    writer: String,
    blocks: u32,
    waiting: BytesMut,
}

impl BlockWriter {
    /// All of one length, as Azure demands.
    fn block_id(&self, number: u32) -> String {
        BASE64_STANDARD.encode(format!("{}-{number:08}", self.writer))
    }

    async fn put_block(&mut self, body: Bytes) -> Result<(), TargetError> {
        if self.blocks == MAX_BLOCKS {
            return Err(TargetError::Io(format!("a blob has at most {MAX_BLOCKS} blocks")));
        }
        let block = self.block_id(self.blocks);
        let query = [("comp", "block"), ("blockid", block.as_str())];
        let asked = Asked { query: &query, body, ..Asked::new(Method::PUT, &self.path) };
        let answered = self.storage.ask(asked).await?;
        if answered.response.status() != StatusCode::CREATED {
            return Err(refusal(&answered.response));
        }
        self.blocks += 1;
        Ok(())
    }

    /// Whether the blob that is there is the one of this writer, whose answer was lost.
    async fn is_ours(&self) -> Result<bool, TargetError> {
        let response = self.storage.ask(Asked::new(Method::HEAD, &self.path)).await?.response;
        let writer = response.headers().get(X_MS_META_WRITER);
        Ok(response.status() == StatusCode::OK && writer.is_some_and(|writer| writer == self.writer.as_str()))
    }
}

#[async_trait]
impl BlobWriter for BlockWriter {
    async fn write(&mut self, mut bytes: Bytes) -> Result<(), TargetError> {
        while !bytes.is_empty() {
            let length = bytes.len().min(BLOCK_BYTES - self.waiting.len());
            self.waiting.extend_from_slice(&bytes.split_to(length));
            if self.waiting.len() == BLOCK_BYTES {
                let block = self.waiting.split().freeze();
                self.put_block(block).await?;
            }
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<(), TargetError> {
        if !self.waiting.is_empty() {
            let block = self.waiting.split().freeze();
            self.put_block(block).await?;
        }
        let mut list = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
        for number in 0..self.blocks {
            let _ = write!(list, "<Uncommitted>{}</Uncommitted>", self.block_id(number));
        }
        list.push_str("</BlockList>");
        let writer =
            HeaderValue::from_str(&self.writer).map_err(|error| TargetError::Io(error.to_string()))?;
        let headers = [(IF_NONE_MATCH, HeaderValue::from_static("*")), (X_MS_META_WRITER, writer)];
        let query = [("comp", "blocklist")];
        let asked = Asked {
            query: &query,
            headers: &headers,
            body: list.into(),
            ..Asked::new(Method::PUT, &self.path)
        };
        let Answered { response, again } = self.storage.ask(asked).await?;
        match response.status() {
            StatusCode::CREATED => Ok(()),
            StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED | StatusCode::BAD_REQUEST
                if again && self.is_ours().await? =>
            {
                Ok(())
            }
            StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED
                if matches!(error_code(&response), Some("BlobAlreadyExists" | "ConditionNotMet")) =>
            {
                Err(TargetError::Exists(self.name.clone()))
            }
            _ => Err(refusal(&response)),
        }
    }
}

#[cfg(test)]
mod tests;

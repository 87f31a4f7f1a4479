//! One audit event, and how Azure shows it (behaviour section 18.2). `docs/formats/audit-event.md`.

use domain::guid::Guid;
use domain::time::Time;
use minicbor::{Decode, Encode};
use serde_json::{Value, json};
use time::OffsetDateTime;

const FORMAT_VERSION: u8 = 1;
const MAX_URI_BYTES: usize = 2048;
const MAX_DETAIL_BYTES: usize = 512;
const MAX_CORRELATION_ID_BYTES: usize = 128;
/// Of every other text: names, codes, addresses, the client's `User-Agent`.
const MAX_SHORT_BYTES: usize = 256;

/// What happened, as far as it was known when it was recorded: a request, or what a core did of its own accord. Holds no
/// secret: whoever fills it in leaves secrets out of `request_uri` and `detail`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Event {
    pub time: Time,
    /// `KeySign` and the like (behaviour section 18.3).
    pub operation: String,
    pub api_version: String,
    pub result: EventResult,
    /// 0 for what no request caused.
    pub http_status: u16,
    pub duration_microseconds: u64,
    pub caller: Option<CallerIdentity>,
    pub client_address: String,
    pub user_agent: String,
    /// The client's own id for the request.
    pub correlation_id: String,
    pub request_id: Option<Guid>,
    pub request_uri: String,
    pub key_name: Option<String>,
    pub key_version: Option<String>,
    pub algorithm: Option<String>,
    pub data_action: Option<String>,
    pub scope: Option<String>,
    pub detail: String,
    pub pool: String,
    pub node: Guid,
    pub incarnation: Guid,
    /// It was committed to the store, with what it tells: a store that does not have it is older than the log.
    pub committed: bool,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum EventResult {
    #[default]
    Success,
    Failure {
        code: String,
        inner_code: Option<String>,
    },
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CallerIdentity {
    pub tenant: String,
    pub object_id: Guid,
    pub application_id: Option<String>,
    pub user_principal_name: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not an audit event of format version 1")]
pub struct MalformedEvent;

/// Text is borrowed: an event is encoded on the path of each request.
#[derive(Decode, Encode)]
struct EventV1<'a> {
    #[n(0)]
    format: u8,
    #[n(1)]
    unix_milliseconds: i64,
    #[b(2)]
    operation: &'a str,
    #[b(3)]
    api_version: &'a str,
    /// Absent on success.
    #[b(4)]
    failure: Option<&'a str>,
    #[b(5)]
    inner_failure: Option<&'a str>,
    #[n(6)]
    http_status: u16,
    #[n(7)]
    duration_microseconds: u64,
    #[b(8)]
    tenant: Option<&'a str>,
    #[cbor(n(9), with = "minicbor::bytes")]
    object_id: Option<[u8; 16]>,
    #[b(10)]
    application_id: Option<&'a str>,
    #[b(11)]
    user_principal_name: Option<&'a str>,
    #[b(12)]
    client_address: &'a str,
    #[b(13)]
    user_agent: &'a str,
    #[b(14)]
    correlation_id: &'a str,
    #[cbor(n(15), with = "minicbor::bytes")]
    request_id: Option<[u8; 16]>,
    #[b(16)]
    request_uri: &'a str,
    #[b(17)]
    key_name: Option<&'a str>,
    #[b(18)]
    key_version: Option<&'a str>,
    #[b(19)]
    algorithm: Option<&'a str>,
    #[b(20)]
    data_action: Option<&'a str>,
    #[b(21)]
    scope: Option<&'a str>,
    #[b(22)]
    detail: &'a str,
    #[b(23)]
    pool: &'a str,
    #[cbor(n(24), with = "minicbor::bytes")]
    node: [u8; 16],
    #[cbor(n(25), with = "minicbor::bytes")]
    incarnation: [u8; 16],
    /// Absent but where it is true.
    #[n(26)]
    committed: Option<bool>,
}

impl Event {
    /// Format version 1. Text above its bound is cut, so that no request can be too long to be recorded.
    pub fn encode(&self) -> Vec<u8> {
        let (failure, inner_failure) = match &self.result {
            EventResult::Success => (None, None),
            EventResult::Failure { code, inner_code } => (Some(code), inner_code.as_ref()),
        };
        let caller = self.caller.as_ref();
        let wire = EventV1 {
            format: FORMAT_VERSION,
            unix_milliseconds: self.time.unix_milliseconds(),
            operation: cut(&self.operation, MAX_SHORT_BYTES),
            api_version: cut(&self.api_version, MAX_SHORT_BYTES),
            failure: cut_option(failure),
            inner_failure: cut_option(inner_failure),
            http_status: self.http_status,
            duration_microseconds: self.duration_microseconds,
            tenant: cut_option(caller.map(|caller| &caller.tenant)),
            object_id: caller.map(|caller| caller.object_id.0),
            application_id: cut_option(caller.and_then(|caller| caller.application_id.as_ref())),
            user_principal_name: cut_option(caller.and_then(|caller| caller.user_principal_name.as_ref())),
            client_address: cut(&self.client_address, MAX_SHORT_BYTES),
            user_agent: cut(&self.user_agent, MAX_SHORT_BYTES),
            correlation_id: cut(&self.correlation_id, MAX_CORRELATION_ID_BYTES),
            request_id: self.request_id.map(|id| id.0),
            request_uri: cut(&self.request_uri, MAX_URI_BYTES),
            key_name: cut_option(self.key_name.as_ref()),
            key_version: cut_option(self.key_version.as_ref()),
            algorithm: cut_option(self.algorithm.as_ref()),
            data_action: cut_option(self.data_action.as_ref()),
            scope: cut_option(self.scope.as_ref()),
            detail: cut(&self.detail, MAX_DETAIL_BYTES),
            pool: cut(&self.pool, MAX_SHORT_BYTES),
            node: self.node.0,
            incarnation: self.incarnation.0,
            committed: self.committed.then_some(true),
        };
        let mut encoded = Vec::with_capacity(1024);
        minicbor::encode(&wire, &mut encoded).expect("writing to memory does not fail");
        encoded
    }

    /// Reads format version 1, fields of later versions passed over.
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedEvent> {
        let wire: EventV1<'_> = minicbor::decode(bytes).map_err(|_| MalformedEvent)?;
        if wire.format != FORMAT_VERSION {
            return Err(MalformedEvent);
        }
        let text = |text: Option<&str>| text.map(str::to_owned);
        let caller = match (wire.tenant, wire.object_id) {
            (Some(tenant), Some(object_id)) => Some(CallerIdentity {
                tenant: tenant.to_owned(),
                object_id: Guid(object_id),
                application_id: text(wire.application_id),
                user_principal_name: text(wire.user_principal_name),
            }),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return Err(MalformedEvent),
        };
        let result = match wire.failure {
            None => EventResult::Success,
            Some(code) => {
                EventResult::Failure { code: code.to_owned(), inner_code: text(wire.inner_failure) }
            }
        };
        Ok(Self {
            time: Time::from_unix_milliseconds(wire.unix_milliseconds),
            operation: wire.operation.to_owned(),
            api_version: wire.api_version.to_owned(),
            result,
            http_status: wire.http_status,
            duration_microseconds: wire.duration_microseconds,
            caller,
            client_address: wire.client_address.to_owned(),
            user_agent: wire.user_agent.to_owned(),
            correlation_id: wire.correlation_id.to_owned(),
            request_id: wire.request_id.map(Guid),
            request_uri: wire.request_uri.to_owned(),
            key_name: text(wire.key_name),
            key_version: text(wire.key_version),
            algorithm: text(wire.algorithm),
            data_action: text(wire.data_action),
            scope: text(wire.scope),
            detail: wire.detail.to_owned(),
            pool: wire.pool.to_owned(),
            node: Guid(wire.node),
            incarnation: Guid(wire.incarnation),
            committed: wire.committed == Some(true),
        })
    }

    /// A record of Azure's category `AuditEvent` (behaviour section 18.2), and under `holdfast` what Azure's schema has
    /// no place for. `index` is the event's place in the log.
    pub fn to_azure_json(&self, index: u64) -> Value {
        let (result_type, inner_code) = match &self.result {
            EventResult::Success => ("Success", None),
            EventResult::Failure { code, inner_code } => (code.as_str(), inner_code.as_deref()),
        };
        let request_id = self.request_id.map(|id| id.to_string());
        // Azure always shows one; where the client sent none it is the service's own.
        let correlation_id = match self.correlation_id.as_str() {
            "" => request_id.as_deref().unwrap_or_default(),
            sent => sent,
        };
        let resource_id =
            format!("/providers/Microsoft.KeyVault/managedHSMs/{}", self.pool).to_ascii_uppercase();
        json!({
            "TenantId": self.caller.as_ref().map(|caller| caller.tenant.clone()).unwrap_or_default(),
            "time": iso_8601(self.time),
            "resourceId": resource_id,
            "operationName": self.operation,
            "operationVersion": self.api_version,
            "category": "AuditEvent",
            "resultType": result_type,
            "properties": { "PoolType": "M-HSM", "sku_Family": "B", "sku_Name": "Standard_B1" },
            "durationMs": self.duration_microseconds / 1000,
            "callerIpAddress": self.client_address,
            "identity": self.identity().to_string(),
            "clientInfo": self.user_agent,
            "correlationId": correlation_id,
            "subnetId": "(unknown)",
            "httpStatusCode": self.http_status,
            "PoolName": self.pool,
            "requestUri": self.request_uri,
            "resourceGroup": "",
            "resourceProvider": "MICROSOFT.KEYVAULT",
            "resource": self.pool,
            "resourceType": "managedHSMs",
            "holdfast": {
                "index": index,
                "requestId": request_id,
                "durationUs": self.duration_microseconds,
                "innerCode": inner_code,
                "key": self.key_name,
                "version": self.key_version,
                "algorithm": self.algorithm,
                "dataAction": self.data_action,
                "scope": self.scope,
                "detail": self.detail,
                "node": self.node.to_string(),
                "incarnation": self.incarnation.to_string(),
            },
        })
    }

    /// Claims as Azure nests them: their URLs with underscores.
    fn identity(&self) -> Value {
        let Some(caller) = &self.caller else { return json!({}) };
        let mut claim = json!({
            "http_schemas_microsoft_com_identity": {
                "claims": { "objectidentifier": caller.object_id.to_string() }
            }
        });
        if let Some(application_id) = &caller.application_id {
            claim["appid"] = application_id.clone().into();
        }
        if let Some(name) = &caller.user_principal_name {
            claim["http_schemas_xmlsoap_org_ws_2005_05_identity"] = json!({ "claims": { "upn": name } });
        }
        json!({ "claim": claim })
    }
}

/// The longest start of `text` that is at most `bytes` long.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn cut_option(text: Option<&String>) -> Option<&str> {
    text.map(|text| cut(text, MAX_SHORT_BYTES))
}

/// UTC with milliseconds.
fn iso_8601(moment: Time) -> String {
    let nanoseconds = i128::from(moment.unix_milliseconds()) * 1_000_000;
    let moment = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let format = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
    );
    moment.format(&format).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Event {
        Event {
            time: Time::from_unix_milliseconds(1_772_600_767_089),
            operation: "KeySign".into(),
            api_version: "7.5".into(),
            result: EventResult::Failure { code: "Forbidden".into(), inner_code: Some("KeyDisabled".into()) },
            http_status: 403,
            duration_microseconds: 12_345,
            caller: Some(CallerIdentity {
                tenant: "11111111-2222-4333-8444-555555555555".into(),
                object_id: Guid([0xbb; 16]),
                application_id: Some("aaaaaaaa-0000-4000-8000-000000000001".into()),
                user_principal_name: None,
            }),
            client_address: "192.0.2.7".into(),
            user_agent: "example-client/1.0".into(),
            correlation_id: "cccccccc-0000-4000-8000-000000000003".into(),
            request_id: Some(Guid([0xdd; 16])),
            request_uri: "https://hsm1.example/keys/k1/sign?api-version=7.5".into(),
            key_name: Some("k1".into()),
            key_version: None,
            algorithm: Some("RS256".into()),
            data_action: Some("Microsoft.KeyVault/managedHsm/keys/sign/action".into()),
            scope: Some("/keys/k1".into()),
            detail: "operation sign is not allowed on a disabled key".into(),
            pool: "hsm1".into(),
            node: Guid([1; 16]),
            incarnation: Guid([2; 16]),
            committed: false,
        }
    }

    #[test]
    fn an_event_matches_its_golden_file_both_ways() {
        let golden = include_bytes!("../tests/golden/audit-event-v1.cbor");
        assert_eq!(sample().encode(), golden);
        assert_eq!(Event::decode(golden), Ok(sample()));
        let internal = Event { operation: "PoolStart".into(), ..Event::default() };
        assert_eq!(Event::decode(&internal.encode()), Ok(internal));
    }

    /// One more element; all others are as they were before there was one.
    #[test]
    fn a_committed_event_says_so_behind_everything_else() {
        let golden = include_bytes!("../tests/golden/audit-event-v1.cbor");
        let committed = Event { committed: true, ..sample() };
        assert_eq!(golden[..2], [0x98, 26]);
        assert_eq!(committed.encode(), [&[0x98, 27], &golden[2..], &[0xf5]].concat());
        assert_eq!(Event::decode(&committed.encode()), Ok(committed));
    }

    /// A client chooses some of the text; it never chooses whether it is recorded.
    #[test]
    fn text_above_its_bound_is_cut_at_a_character() {
        let long = "é".repeat(5000);
        let event = Event {
            user_agent: long.clone(),
            correlation_id: format!("x{long}"),
            request_uri: long.clone(),
            detail: long.clone(),
            scope: Some(long),
            ..sample()
        };
        let recorded = Event::decode(&event.encode()).unwrap();
        let lengths =
            [&recorded.user_agent, &recorded.correlation_id, &recorded.request_uri, &recorded.detail];
        assert_eq!(lengths.map(String::len), [256, 127, 2048, 512]);
        assert_eq!(recorded.scope.unwrap().len(), 256);
    }

    #[test]
    fn an_event_is_shown_as_azure_shows_it() {
        let shown = sample().to_azure_json(7);
        assert_eq!(shown["time"], "2026-03-04T05:06:07.089Z");
        assert_eq!(shown["resourceId"], "/PROVIDERS/MICROSOFT.KEYVAULT/MANAGEDHSMS/HSM1");
        assert_eq!(shown["durationMs"], 12);
        assert_eq!(
            shown["identity"],
            "{\"claim\":{\"appid\":\"aaaaaaaa-0000-4000-8000-000000000001\",\
             \"http_schemas_microsoft_com_identity\":{\"claims\":{\"objectidentifier\":\
             \"bbbbbbbb-bbbb-bbbb-bbbb-bbbbbbbbbbbb\"}}}}"
        );
        assert_eq!(shown["resultType"], "Forbidden");
        assert_eq!(shown["httpStatusCode"], 403);
        assert_eq!(shown["correlationId"], "cccccccc-0000-4000-8000-000000000003");
        assert_eq!(shown["holdfast"]["index"], 7);
        assert_eq!(shown["holdfast"]["durationUs"], 12_345);
        let unnamed = Event { correlation_id: String::new(), ..sample() }.to_azure_json(0);
        assert_eq!(unnamed["correlationId"], "dddddddd-dddd-dddd-dddd-dddddddddddd");
        let members = [
            "TenantId",
            "time",
            "resourceId",
            "operationName",
            "operationVersion",
            "category",
            "resultType",
            "properties",
            "durationMs",
            "callerIpAddress",
            "identity",
            "clientInfo",
            "correlationId",
            "subnetId",
            "httpStatusCode",
            "PoolName",
            "requestUri",
            "resourceGroup",
            "resourceProvider",
            "resource",
            "resourceType",
            "holdfast",
        ];
        let shown = shown.as_object().unwrap();
        assert_eq!(shown.len(), members.len());
        members.iter().for_each(|member| assert!(shown.contains_key(*member), "{member}"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Event::decode(&bytes);
        }
    }
}

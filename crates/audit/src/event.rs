//! One audit event, and how Azure shows it (behaviour section 18.2). `docs/formats/audit-event.md`.

use domain::guid::Guid;
use domain::time::Time;
use minicbor::{Decode, Encode};
use serde_json::{Value, json};
use time::OffsetDateTime;

const FORMAT_VERSION: u8 = 1;

/// What happened, as far as it was known when it was recorded. Text is bounded by whoever fills it in.
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

#[derive(Decode, Encode)]
struct EventV1 {
    #[n(0)]
    format: u8,
    #[n(1)]
    unix_milliseconds: i64,
    #[n(2)]
    operation: String,
    #[n(3)]
    api_version: String,
    /// Absent on success.
    #[n(4)]
    failure: Option<String>,
    #[n(5)]
    inner_failure: Option<String>,
    #[n(6)]
    http_status: u16,
    #[n(7)]
    duration_microseconds: u64,
    #[n(8)]
    tenant: Option<String>,
    #[cbor(n(9), with = "minicbor::bytes")]
    object_id: Option<[u8; 16]>,
    #[n(10)]
    application_id: Option<String>,
    #[n(11)]
    user_principal_name: Option<String>,
    #[n(12)]
    client_address: String,
    #[n(13)]
    user_agent: String,
    #[n(14)]
    correlation_id: String,
    #[cbor(n(15), with = "minicbor::bytes")]
    request_id: Option<[u8; 16]>,
    #[n(16)]
    request_uri: String,
    #[n(17)]
    key_name: Option<String>,
    #[n(18)]
    key_version: Option<String>,
    #[n(19)]
    algorithm: Option<String>,
    #[n(20)]
    data_action: Option<String>,
    #[n(21)]
    scope: Option<String>,
    #[n(22)]
    detail: String,
    #[n(23)]
    pool: String,
    #[cbor(n(24), with = "minicbor::bytes")]
    node: [u8; 16],
    #[cbor(n(25), with = "minicbor::bytes")]
    incarnation: [u8; 16],
}

impl Event {
    pub fn encode(&self) -> Vec<u8> {
        let (failure, inner_failure) = match &self.result {
            EventResult::Success => (None, None),
            EventResult::Failure { code, inner_code } => (Some(code.clone()), inner_code.clone()),
        };
        let caller = self.caller.clone();
        let wire = EventV1 {
            format: FORMAT_VERSION,
            unix_milliseconds: self.time.unix_milliseconds(),
            operation: self.operation.clone(),
            api_version: self.api_version.clone(),
            failure,
            inner_failure,
            http_status: self.http_status,
            duration_microseconds: self.duration_microseconds,
            tenant: caller.as_ref().map(|caller| caller.tenant.clone()),
            object_id: caller.as_ref().map(|caller| caller.object_id.0),
            application_id: caller.as_ref().and_then(|caller| caller.application_id.clone()),
            user_principal_name: caller.and_then(|caller| caller.user_principal_name),
            client_address: self.client_address.clone(),
            user_agent: self.user_agent.clone(),
            correlation_id: self.correlation_id.clone(),
            request_id: self.request_id.map(|id| id.0),
            request_uri: self.request_uri.clone(),
            key_name: self.key_name.clone(),
            key_version: self.key_version.clone(),
            algorithm: self.algorithm.clone(),
            data_action: self.data_action.clone(),
            scope: self.scope.clone(),
            detail: self.detail.clone(),
            pool: self.pool.clone(),
            node: self.node.0,
            incarnation: self.incarnation.0,
        };
        minicbor::to_vec(&wire).expect("writing to memory does not fail")
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedEvent> {
        let wire: EventV1 = minicbor::decode(bytes).map_err(|_| MalformedEvent)?;
        if wire.format != FORMAT_VERSION {
            return Err(MalformedEvent);
        }
        let caller = match (wire.tenant, wire.object_id) {
            (Some(tenant), Some(object_id)) => Some(CallerIdentity {
                tenant,
                object_id: Guid(object_id),
                application_id: wire.application_id,
                user_principal_name: wire.user_principal_name,
            }),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return Err(MalformedEvent),
        };
        let result = match wire.failure {
            None => EventResult::Success,
            Some(code) => EventResult::Failure { code, inner_code: wire.inner_failure },
        };
        Ok(Self {
            time: Time::from_unix_milliseconds(wire.unix_milliseconds),
            operation: wire.operation,
            api_version: wire.api_version,
            result,
            http_status: wire.http_status,
            duration_microseconds: wire.duration_microseconds,
            caller,
            client_address: wire.client_address,
            user_agent: wire.user_agent,
            correlation_id: wire.correlation_id,
            request_id: wire.request_id.map(Guid),
            request_uri: wire.request_uri,
            key_name: wire.key_name,
            key_version: wire.key_version,
            algorithm: wire.algorithm,
            data_action: wire.data_action,
            scope: wire.scope,
            detail: wire.detail,
            pool: wire.pool,
            node: Guid(wire.node),
            incarnation: Guid(wire.incarnation),
        })
    }

    /// A record of Azure's category `AuditEvent` (behaviour section 18.2), and under `holdfast` what Azure's schema has
    /// no place for. `index` is the event's place in the log.
    pub fn to_azure_json(&self, index: u64) -> Value {
        let (result_type, code) = match &self.result {
            EventResult::Success => ("Success", None),
            EventResult::Failure { code, inner_code } => {
                (code.as_str(), Some(inner_code.clone().unwrap_or_else(|| code.clone())))
            }
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
            "correlationId": self.correlation_id,
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
                "requestId": self.request_id.map(|id| id.to_string()),
                "durationUs": self.duration_microseconds,
                "code": code,
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
        assert_eq!(shown["holdfast"]["index"], 7);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Event::decode(&bytes);
        }
    }
}

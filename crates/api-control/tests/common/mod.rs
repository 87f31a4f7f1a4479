//! The control plane without a listener: requests handed to its router, a store in a directory of its own, and pools that
//! are there as soon as somebody asks for them.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used)] // a failed check is a failed test

use api_control::{Control, ControlConfig};
use async_trait::async_trait;
use axum::body::Body;
use axum::http::Request;
use fabric::{
    Fabric, FabricConfig, InstanceState, Network, Parameters, ProvisionError, Provisioner, Reach, Role,
};
use host_embedded::{EngineOptions, RedbEngine};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use tower::ServiceExt;

pub const OWNER: &str = "00000000-0000-0000-0000-000000000001";
pub const POOLS: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/managedHSMs";

/// Whatever it is asked for is done at once.
struct Willing;

#[async_trait]
impl Provisioner for Willing {
    async fn start(&self, _: &Parameters) -> Result<(), ProvisionError> {
        Ok(())
    }
    async fn stop(&self, _: &str) -> Result<(), ProvisionError> {
        Ok(())
    }
    async fn remove(&self, _: &str) -> Result<(), ProvisionError> {
        Ok(())
    }
    fn check_network(&self, network: Network) -> Result<Network, String> {
        Ok(network)
    }
    async fn set_reach(&self, _: &str, _: &Reach) -> Result<(), ProvisionError> {
        Ok(())
    }
    fn state(&self, _: &str) -> InstanceState {
        InstanceState::Active
    }
    fn uri(&self, name: &str) -> String {
        format!("https://{name}.example/")
    }
}

pub struct Bench {
    pub control: Arc<Control>,
    _directory: tempfile::TempDir,
}

impl Bench {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let engine =
            Arc::new(RedbEngine::open(directory.path().join("store"), EngineOptions::default()).unwrap());
        let config = FabricConfig {
            name: "cloud".into(),
            tenant: "00000000-0000-0000-0000-00000000000f".into(),
            subscription: "s".into(),
            resource_group: "g".into(),
            location: "here".into(),
            private_networks: BTreeMap::from([("office".to_owned(), [10, 0, 0, 5].into())]),
            now: || 1_700_000_000,
        };
        let fabric = Arc::new(Fabric::open(config, engine, Arc::new(Willing), vec![]).await.unwrap());
        fabric.bootstrap("first", OWNER, Role::Owner).await.unwrap();
        let control = Arc::new(Control {
            fabric,
            config: ControlConfig {
                base_url: "https://arm.example".into(),
                authority: "https://login.example".into(),
                graph: "https://graph.example".into(),
                pool_suffix: "managedhsm.example".into(),
                audiences: vec!["https://management.azure.com".into()],
            },
            // The token is the caller.
            authenticate: Box::new(|token| match token.len() {
                36 => Ok(token.to_owned()),
                _ => Err("no token".into()),
            }),
        });
        Self { control, _directory: directory }
    }

    pub async fn send(
        &self,
        token: Option<&str>,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        self.send_body(token, method, path, body).await
    }

    pub async fn send_body(&self, token: Option<&str>, method: &str, path: &str, body: Body) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(format!("{path}?api-version=2026-02-01"));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = self.control.clone().router().oneshot(request.body(body).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }
}

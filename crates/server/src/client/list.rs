//! Lists come in pages; a client follows the links, and only to where it was.

use super::login::Client;
use super::output;
use crate::CommandError;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

/// Far above what a pool can hold: a server that links for ever is no pool.
const MAX_PAGES: usize = 10_000;

#[derive(Deserialize)]
struct Page {
    value: Vec<Value>,
    #[serde(rename = "nextLink")]
    next_link: Option<String>,
}

/// Every item of the list at `path`.
pub async fn all(client: &mut Client, path: &str) -> Result<Vec<Value>, CommandError> {
    let mut items = Vec::new();
    let mut answer = client.call(Method::GET, path, None).await?;
    for _ in 0..MAX_PAGES {
        let page: Page = serde_json::from_slice(&answer.body)
            .map_err(|_| format!("the service's answer to {path} is not a list"))?;
        items.extend(page.value);
        let Some(link) = page.next_link.filter(|link| !link.is_empty()) else { return Ok(items) };
        let next = client.channel().origin().own_path(&link).ok_or_else(|| {
            format!("the list goes on at another server, {}: not followed", output::clean(&link))
        })?;
        answer = client.follow(Method::GET, &next, None).await?;
    }
    Err(format!("the list has more than {MAX_PAGES} pages: given up").into())
}

/// All pages as the service writes one that is the last.
pub fn print(items: &[Value]) -> std::io::Result<()> {
    output::print_body(json!({ "value": items, "nextLink": null }).to_string().as_bytes())
}

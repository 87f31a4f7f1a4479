//! A CONNECT proxy (RFC 9110 section 9.3.6) for machines whose resolver does not know `*.localhost`: it listens on
//! loopback, opens the quickstart's own names at its own ports, and goes nowhere else.

use crate::layout::{CONTROL_HOST, ISSUER_HOST, RESOURCE_SUFFIX};
use crate::provisioner::Ports;
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

const HEAD_BYTES: usize = 8 * 1024;
const HEAD_TIME: Duration = Duration::from_secs(10);

/// `tunnels`: open at once, at most; whoever comes then is closed.
pub async fn serve(
    listener: TcpListener,
    ports: Vec<u16>,
    pools: Ports,
    tunnels: usize,
    mut closing: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(tunnels));
    let ports = Arc::new(ports);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closing.wait_for(|closing| *closing) => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (ports, pools) = (ports.clone(), pools.clone());
        tokio::spawn(async move {
            let _place = place;
            // Whatever fails here, both ends see their connection close.
            let _ = tunnel(stream, &ports, &pools).await;
        });
    }
}

async fn tunnel(mut client: TcpStream, ports: &[u16], pools: &Ports) -> std::io::Result<()> {
    let head = tokio::time::timeout(HEAD_TIME, read_head(&mut client)).await;
    let port = match head {
        Ok(Ok(Some(head))) => destination(&head, ports, &pools.borrow()),
        Ok(Ok(None)) | Err(_) => Err("400 Bad Request"),
        Ok(Err(error)) => return Err(error),
    };
    let refuse = |status: &str| {
        let body =
            format!("this proxy opens {RESOURCE_SUFFIX} names and localhost at ports {ports:?} only\n");
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    };
    let port = match port {
        Ok(port) => port,
        Err(status) => return client.write_all(refuse(status).as_bytes()).await,
    };
    let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
        return client.write_all(refuse("502 Bad Gateway").as_bytes()).await;
    };
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.split(), server.split());
    let upwards = async {
        copy(&mut from_client, &mut to_server).await?;
        to_server.shutdown().await
    };
    let downwards = async {
        copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::pin!(downwards);
    // The server closes what is idle for long, and that is the tunnel's end, whatever the client still holds open.
    tokio::select! {
        ended = downwards.as_mut() => ended,
        ended = upwards => {
            ended?;
            downwards.await
        }
    }
}

/// Up to and with the empty line. The client sends nothing behind it before it has the answer.
async fn read_head(client: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_BYTES {
            return Ok(None);
        }
        head.push(client.read_u8().await?);
    }
    Ok(Some(head))
}

/// A pool with a process of its own is found by its name at the first pool's port as well, where clients that put its name
/// together with the cloud's suffix look for it.
pub fn destination(head: &[u8], ports: &[u16], pools: &HashMap<String, u16>) -> Result<u16, &'static str> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| "400 Bad Request")?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("400 Bad Request");
    };
    if method != "CONNECT" {
        return Err("405 Method Not Allowed");
    }
    let (host, port) = target.rsplit_once(':').ok_or("400 Bad Request")?;
    let port: u16 = port.parse().map_err(|_| "400 Bad Request")?;
    if let Some(own) = label(host).and_then(|label| pools.get(&label).copied())
        && (port == own || ports.first() == Some(&port))
    {
        return Ok(own);
    }
    if is_ours(host) && pools.values().any(|own| *own == port) {
        return Ok(port);
    }
    if is_ours(host) && ports.contains(&port) { Ok(port) } else { Err("403 Forbidden") }
}

fn is_ours(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    ["localhost", "127.0.0.1", CONTROL_HOST, ISSUER_HOST].contains(&host.as_str()) || label(&host).is_some()
}

/// A pool's name, of a host that could be one's.
fn label(host: &str) -> Option<String> {
    let host = host.to_ascii_lowercase();
    let label = host.strip_suffix(RESOURCE_SUFFIX)?.strip_suffix('.')?;
    (!label.is_empty() && !label.contains('.')).then(|| label.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_our_names_at_our_ports() {
        let ask = |line: &str| {
            destination(
                format!("{line}\r\n\r\n").as_bytes(),
                &[8443, 8446],
                &HashMap::from([("own".to_owned(), 8500)]),
            )
        };
        assert_eq!(ask("CONNECT demo.managedhsm.localhost:8443 HTTP/1.1"), Ok(8443));
        for at in ["own.managedhsm.localhost:8443", "OWN.managedhsm.localhost:8500", "localhost:8500"] {
            assert_eq!(ask(&format!("CONNECT {at} HTTP/1.1")), Ok(8500), "{at}");
        }
        assert_eq!(ask("CONNECT own.managedhsm.localhost:8446 HTTP/1.1"), Ok(8446));
        assert_eq!(ask("CONNECT LOCALHOST:8446 HTTP/1.1"), Ok(8446));
        for (line, status) in [
            ("CONNECT example.com:8443 HTTP/1.1", "403 Forbidden"),
            ("CONNECT localhost:22 HTTP/1.1", "403 Forbidden"),
            ("CONNECT demo.managedhsm.localhost.example.com:8443 HTTP/1.1", "403 Forbidden"),
            ("CONNECT a.b.managedhsm.localhost:8443 HTTP/1.1", "403 Forbidden"),
            ("CONNECT xmanagedhsm.localhost:8443 HTTP/1.1", "403 Forbidden"),
            ("CONNECT nonsense HTTP/1.1", "400 Bad Request"),
            ("GET / HTTP/1.1", "405 Method Not Allowed"),
            ("CONNECT", "400 Bad Request"),
        ] {
            assert_eq!(ask(line), Err(status), "{line}");
        }
    }

    proptest! {
        #[test]
        fn an_arbitrary_head_leads_to_our_ports_or_nowhere(
            line in "(CONNECT |[ -~]|\\PC|\r|\n|:8443|:22|localhost|127\\.0\\.0\\.1|\\.managedhsm| HTTP/1\\.1){0,12}",
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            for head in [line.as_bytes(), &bytes, &[b"CONNECT ", line.as_bytes(), b" HTTP/1.1\r\n\r\n"].concat()] {
                if let Ok(port) = destination(head, &[8443], &HashMap::new()) {
                    prop_assert_eq!(port, 8443);
                }
            }
        }
    }
}

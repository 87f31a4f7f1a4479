use super::*;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::UnixListener;

struct Sockets(PathBuf);

impl Directory for Sockets {
    fn find(&self, name: Option<&str>) -> Option<PathBuf> {
        match name {
            Some("known.example") => Some(self.0.join("known")),
            Some("ended.example") => Some(self.0.join("ended")),
            Some("gone.example") => Some(self.0.join("gone")),
            Some(_) => None,
            None => Some(self.0.join("default")),
        }
    }

    fn nobody(&self) -> PathBuf {
        self.0.join("nobody")
    }
}

/// Says who it is and who came, then whatever it is told.
fn echo(directory: &Path, name: &'static str) {
    let listener = UnixListener::bind(directory.join(name)).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let ends = Ends::read(&mut stream).await.unwrap();
                stream.write_all(format!("{name} {}\n", ends.client).as_bytes()).await.unwrap();
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await.unwrap();
            });
        }
    });
}

/// A ClientHello with this name or none, and nothing that a handshake would need.
fn hello(name: Option<&str>) -> Vec<u8> {
    let vector = |content: &[u8]| [&u16::try_from(content.len()).unwrap().to_be_bytes(), content].concat();
    let extensions = name.map_or(vec![], |name| {
        let list = vector(&[&[0], &vector(name.as_bytes())[..]].concat());
        [&[0, 0][..], &vector(&list)].concat()
    });
    let body = [&[3, 3][..], &[7; 32], &[0], &vector(&[0x13, 1]), &[1, 0], &vector(&extensions)].concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[22, 3, 1][..], &vector(&[&[1], &length[1..], &body].concat())].concat()
}

struct Bench {
    directory: tempfile::TempDir,
    address: std::net::SocketAddr,
    open: Arc<AtomicUsize>,
    _close: watch::Sender<bool>,
}

struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Bench {
    async fn new(places: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["known", "default", "nobody"] {
            echo(directory.path(), name);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = Arc::new(AtomicUsize::new(0));
        let admit = {
            let open = open.clone();
            move |_| {
                let place = (open.fetch_add(1, Ordering::SeqCst), Place(open.clone()));
                (place.0 < places).then_some(place.1)
            }
        };
        let (close, closing) = watch::channel(false);
        let sockets = Arc::new(Sockets(directory.path().to_owned()));
        tokio::spawn(serve(listener, sockets, admit, closing));
        Self { directory, address, open, _close: close }
    }

    /// What comes back for these bytes, when no more are sent.
    async fn ask(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // A peer that is refused may be gone before it has read.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer
    }
}

#[tokio::test]
async fn each_name_has_its_server_and_all_bytes_arrive() {
    let bench = Bench::new(100).await;
    for (name, server) in [
        (Some("known.example"), "known"),
        (Some("KNOWN.example"), "known"),
        (Some("gone.example"), "nobody"),
        (Some("other.example"), "nobody"),
        (Some("127.0.0.1"), "default"),
        (None, "default"),
    ] {
        let sent = [hello(name), vec![9; 300_000]].concat();
        let answer = bench.ask(&sent).await;
        let end = answer.iter().position(|byte| *byte == b'\n').unwrap();
        let said = String::from_utf8_lossy(&answer[..end]).into_owned();
        assert!(said.starts_with(&format!("{server} 127.0.0.1:")), "{name:?}: {said}");
        assert!(answer[end + 1..] == sent[..], "{name:?}: {} bytes", answer.len());
    }
}

/// As when a process is killed while clients wait for it.
#[tokio::test]
async fn who_ends_before_a_word_is_like_who_is_not_there() {
    let bench = Bench::new(100).await;
    let listener = UnixListener::bind(bench.directory.path().join("ended")).unwrap();
    let ended = tokio::spawn(async move {
        // One is taken and read, one is left waiting.
        let (mut taken, _) = listener.accept().await.unwrap();
        Ends::read(&mut taken).await.unwrap();
    });
    let sent = hello(Some("ended.example"));
    for _ in 0..2 {
        let answer = bench.ask(&sent).await;
        assert!(answer.starts_with(b"nobody ") && answer.ends_with(&sent), "{answer:?}");
    }
    ended.await.unwrap();
}

#[tokio::test]
async fn who_speaks_no_tls_reaches_nobody() {
    let bench = Bench::new(100).await;
    let forged = [Ends { client: bench.address, called: bench.address }.header(), hello(None)].concat();
    for bytes in [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), forged, vec![], hello(None)[..20].to_vec()] {
        assert_eq!(bench.ask(&bytes).await, b"", "{bytes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_never_finishes_the_hello_gives_the_place_back() {
    let bench = Bench::new(1).await;
    let mut slow = TcpStream::connect(bench.address).await.unwrap();
    slow.write_all(&hello(None)[..20]).await.unwrap();
    // Time passes by itself once nothing else can happen.
    let mut nothing = Vec::new();
    let _ = slow.read_to_end(&mut nothing).await;
    assert_eq!(nothing, b"");
    while bench.open.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
    tokio::time::resume();
    assert!(bench.ask(&hello(None)).await.starts_with(b"default"));
}

#[tokio::test]
async fn a_place_too_many_is_closed_and_no_other() {
    let bench = Bench::new(1).await;
    let mut first = TcpStream::connect(bench.address).await.unwrap();
    first.write_all(&hello(Some("known.example"))).await.unwrap();
    let mut said = [0; 5];
    first.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"known");
    assert_eq!(bench.ask(&hello(None)).await, b"");
    first.write_all(b"still here").await.unwrap();
    drop(first);
    let _ = bench.directory.path();
}

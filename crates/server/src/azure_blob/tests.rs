//! What a storage may answer, and does not in a test with a real one: it is overloaded, its containers are immutable, an
//! answer is lost. `tests/e2e/test_backup_azure.py` has the rest.

use super::*;
use crate::https::tests::{AnyName, Served, Server, answer};

const FOUND: &str = "200 OK\r\nContent-Length: 7";
const ABSENT: &str = "404 Not Found\r\nx-ms-error-code: BlobNotFound\r\nContent-Length: 0";
const BUSY: &str = "503 Service Unavailable\r\nx-ms-error-code: ServerBusy\r\nContent-Length: 0";
const CREATED: &str = "201 Created\r\nContent-Length: 0";
const SAS: &str = "sv=2021-12-02&sig=secret%2B";

const PAUSE: Duration = Duration::from_millis(1);

/// A head, or a head and a body.
fn with_blank_line(text: &str) -> Vec<u8> {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    answer(head, body.as_bytes())
}

async fn serve(server: &Server, answers: &[&str]) -> Served {
    server.serve_each(answers.iter().map(|head| with_blank_line(head)).collect()).await
}

fn client(server: &Server, served: &Served) -> Client {
    let dial = Arc::new(AnyName { port: served.port });
    Client::new(&server.roots, ["issuer.localhost".parse().unwrap()], dial).unwrap()
}

async fn container(server: &Server, answers: &[&str]) -> (Served, Box<dyn BackupTarget>) {
    let served = serve(server, answers).await;
    let azure = AzureBlob { client: client(server, &served), identity: None, first_pause: PAUSE };
    let target = azure.open(&location("https://issuer.localhost/backups")).await.unwrap();
    (served, target)
}

fn location(container: &str) -> StorageLocation {
    StorageLocation { container: container.into(), access: StorageAccess::Sas(SasToken::new(SAS)) }
}

fn first_lines(served: &Served) -> Vec<String> {
    served.requests().iter().map(|request| request.lines().next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_blob_is_written_in_blocks_and_then_made_of_them() {
    let server = Server::new();
    let (served, target) = container(&server, &[ABSENT, CREATED, CREATED]).await;
    let mut writer = target.create("folder/backup").await.unwrap();
    writer.write(Bytes::from_static(b"first")).await.unwrap();
    writer.write(Bytes::from_static(b"second")).await.unwrap();
    writer.finish().await.unwrap();
    let requests = served.requests();
    let [head, block, list] = requests.as_slice() else { panic!("{requests:?}") };
    assert!(
        head.starts_with("HEAD /backups/folder/backup?sv=2021-12-02&sig=secret%2B HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(block.starts_with("PUT /backups/folder/backup?comp=block&blockid="), "{block}");
    assert!(
        block.ends_with("\r\n\r\nfirstsecond") && block.contains("x-ms-version: 2021-12-02\r\n"),
        "{block}"
    );
    assert!(list.contains("if-none-match: *\r\n"), "{list}");
    assert_eq!(list.matches("<Uncommitted>").count(), 1, "{list}");
}

#[tokio::test]
async fn a_storage_that_is_busy_is_asked_again_and_not_for_ever() {
    let server = Server::new();
    let (served, target) = container(&server, &[BUSY, BUSY, BUSY, FOUND]).await;
    assert_eq!(target.size("f/b").await, Ok(Some(7)));
    assert_eq!(served.requests().len(), 4);

    let (served, target) = container(&server, &[BUSY; 6]).await;
    let refused = TargetError::Refused { status: 503, message: "ServerBusy".into() };
    assert_eq!(target.size("f/b").await, Err(refused));
    assert_eq!(served.requests().len(), 4);

    // What is not passing is not asked again.
    let (served, target) = container(&server, &["403 Forbidden\r\nContent-Length: 0", FOUND]).await;
    assert!(matches!(target.size("f/b").await, Err(TargetError::Refused { status: 403, .. })));
    assert_eq!(served.requests().len(), 1);
}

/// The storage made the blob, and its answer was lost: the second attempt finds it there.
#[tokio::test]
async fn a_lost_answer_is_no_failure_and_a_foreign_blob_is() {
    let server = Server::new();
    let conflict = "409 Conflict\r\nx-ms-error-code: BlobAlreadyExists\r\nContent-Length: 0";
    let foreign = "200 OK\r\nx-ms-meta-writer: somebody\r\nContent-Length: 7";
    let exists = TargetError::Exists("f/b".into());

    let (served, target) = container(&server, &[ABSENT, CREATED, BUSY, conflict, foreign]).await;
    let mut writer = target.create("f/b").await.unwrap();
    writer.write(Bytes::from_static(b"content")).await.unwrap();
    assert_eq!(writer.finish().await, Err(exists.clone()));
    assert_eq!(served.requests().len(), 5);

    let (_served, target) = container(&server, &[ABSENT, CREATED, conflict]).await;
    let mut writer = target.create("f/b").await.unwrap();
    writer.write(Bytes::from_static(b"content")).await.unwrap();
    assert_eq!(writer.finish().await, Err(exists.clone()));

    let (_served, target) = container(&server, &[FOUND]).await;
    assert_eq!(target.create("f/b").await.err(), Some(exists));

    let ours = "200 OK\r\nx-ms-meta-writer: this-one\r\nContent-Length: 7";
    let served = serve(&server, &[CREATED, BUSY, conflict, ours]).await;
    let storage = Arc::new(Storage {
        client: client(&server, &served),
        container: Container::parse("https://issuer.localhost/backups").unwrap(),
        access: Access::Sas(SasToken::new(SAS)),
        first_pause: PAUSE,
    });
    let (name, path, writer) = ("f/b".to_owned(), "/backups/f/b".to_owned(), "this-one".to_owned());
    let mut writer =
        Box::new(BlockWriter { storage, name, path, writer, blocks: 0, waiting: BytesMut::new() });
    writer.write(Bytes::from_static(b"content")).await.unwrap();
    assert_eq!(writer.finish().await, Ok(()));
}

#[tokio::test]
async fn a_container_is_looked_at_before_a_backup() {
    let server = Server::new();
    let (served, target) = container(&server, &["200 OK\r\nContent-Length: 0", CREATED]).await;
    target.check(true).await.unwrap();
    let lines = first_lines(&served);
    assert!(lines[0].starts_with("HEAD /backups?restype=container&sv="), "{lines:?}");
    assert!(
        lines[1].starts_with("PUT /backups/holdfast-check-") && lines[1].contains("?comp=block&"),
        "{lines:?}"
    );

    // A SAS of the container may not ask for its properties.
    let forbidden = "403 Forbidden\r\nx-ms-error-code: AuthorizationFailure\r\nContent-Length: 0";
    let (_served, target) = container(&server, &[forbidden, CREATED]).await;
    target.check(true).await.unwrap();
    let (_served, target) = container(&server, &[forbidden, forbidden]).await;
    assert!(matches!(target.check(true).await, Err(TargetError::Refused { status: 403, .. })));

    for name in IMMUTABLE {
        let head = format!("200 OK\r\n{name}: true\r\nContent-Length: 0");
        let (served, target) = container(&server, &[&head, CREATED]).await;
        let Err(TargetError::NotAllowed(message)) = target.check(true).await else { panic!("{name}") };
        assert!(message.contains("immutable"), "{message}");
        assert_eq!(served.requests().len(), 1);
    }

    let (_served, target) = container(&server, &[ABSENT]).await;
    target.check(false).await.unwrap();
    let gone = "404 Not Found\r\nx-ms-error-code: ContainerNotFound\r\nContent-Length: 0";
    for write in [true, false] {
        let (_served, target) = container(&server, &[gone]).await;
        let refused = target.check(write).await.unwrap_err().to_string();
        assert!(refused.contains("ContainerNotFound: there is no such container"), "{refused}");
    }
}

#[tokio::test]
async fn what_is_read_is_what_was_asked_for() {
    let server = Server::new();
    let part = "206 Partial Content\r\nContent-Length: 10\r\n\r\n0123456789";
    let (served, target) = container(&server, &[part]).await;
    assert_eq!(target.read("f/b", 0, 4).await.unwrap(), &b"0123"[..]);
    assert_eq!(target.read("f/b", 4, 6).await.unwrap(), &b"456789"[..]);
    assert_eq!(served.requests().len(), 1, "the second was in the first answer");
    assert!(served.requests()[0].contains("x-ms-range: bytes=0-4194303\r\n"));

    let short = "206 Partial Content\r\nContent-Length: 3\r\n\r\n012";
    let whole = "200 OK\r\nContent-Length: 10\r\n\r\n0123456789";
    let moved = "302 Found\r\nLocation: https://issuer.localhost/\r\nContent-Length: 0";
    for (answer, offset, words) in [
        (short, 0, "ends within bytes 0 to 4"),
        ("416 Range Not Satisfiable\r\nContent-Length: 0", 9, "ends before byte 9"),
        (ABSENT, 0, "nothing at f/b"),
        // Not from where it was asked for.
        (whole, 4, "status 200"),
        (moved, 0, "redirect"),
        ("206 Partial Content\r\nContent-Length: 4194305", 0, "longer than 4194304 bytes"),
    ] {
        let (_served, target) = container(&server, &[answer]).await;
        let error = target.read("f/b", offset, 4).await.unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

/// A storage can say anything in its errors; of that only a word of Azure's kind is passed on.
#[tokio::test]
async fn an_error_has_azures_word_and_no_text_of_the_storage() {
    let server = Server::new();
    for (code, words) in [
        ("AuthenticationFailed", "AuthenticationFailed: the token is wrong"),
        ("SomethingNew", "SomethingNew"),
        ("sig=secret", "no reason given"),
        (&"x".repeat(65), "no reason given"),
    ] {
        let head = format!("403 Forbidden\r\nx-ms-error-code: {code}\r\nContent-Length: 6\r\n\r\nsecret");
        let (_served, target) = container(&server, &[&head]).await;
        let error = target.read("f/b", 0, 1).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }
}

#[tokio::test]
async fn only_listed_endpoints_and_only_good_tokens_are_opened() {
    let server = Server::new();
    let dial = Arc::new(AnyName { port: 1 });
    let client = Client::new(&server.roots, ["*.blob.localhost".parse().unwrap()], dial).unwrap();
    let azure = AzureBlob::new(client, None);
    assert!(azure.open(&location("https://a.blob.localhost/c")).await.is_ok());
    let elsewhere = azure.open(&location("https://evil.example/c")).await.err().unwrap();
    assert!(elsewhere.to_string().contains("evil.example:443 is not a destination"), "{elsewhere}");
    let container = || "https://a.blob.localhost/c".to_owned();
    for access in [StorageAccess::Sas(SasToken::new("sv=1")), StorageAccess::ManagedIdentity] {
        let refused = azure.open(&StorageLocation { container: container(), access }).await.err();
        assert!(matches!(refused, Some(TargetError::NotAllowed(_))), "{refused:?}");
    }
}

//! What every engine must do. Engines differ in where they start counting and in whether other writers make
//! revisions jump, so revisions are compared, not predicted.

use std::future::Future;
use std::time::Duration;

use host::{
    Change, Commit, CommitOutcome, Engine, EngineError, Entry, Expectation, Mutation, OperationId, Revision,
    WatchBatch,
};

/// A wait this long has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs all cases, each on a new, empty engine. The engine must keep what `host::Engine` promises and no
/// more; a failed case panics.
pub async fn engine_suite<E: Engine + 'static>(open: impl Fn() -> E) {
    an_empty_engine_has_nothing(&open()).await;
    a_commit_is_read_back_at_its_revision(&open()).await;
    a_failed_expectation_writes_nothing(&open()).await;
    expectations_hold_against_deleted_and_absent_keys(&open()).await;
    a_commit_without_mutations_only_compares(&open()).await;
    a_repeated_commit_is_answered_and_not_applied_again(&open()).await;
    settle_tells_applied_from_not_applied(&open()).await;
    ten_thousand_operations_are_remembered(&open()).await;
    concurrent_commits_to_one_key_win_once(&open()).await;
    a_scan_shows_one_revision_while_writes_go_on(&open()).await;
    a_scan_keeps_to_its_prefix(&open()).await;
    a_watch_sees_each_commit_once_and_in_order(&open()).await;
    a_watch_waits_for_the_next_commit(&open()).await;
    a_scan_and_a_watch_leave_no_gap(&open()).await;
    limits_are_enforced(&open()).await;
    values_are_any_bytes(&open()).await;
}

/// An operation id for tests.
pub fn operation(number: u64) -> OperationId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    OperationId(id)
}

pub fn put(key: &str, value: &str) -> Mutation {
    Mutation::Put { key: key.as_bytes().to_vec(), value: value.as_bytes().to_vec() }
}

pub fn commit(number: u64, expectations: Vec<Expectation>, mutations: Vec<Mutation>) -> Commit {
    Commit { operation: operation(number), expectations, mutations }
}

fn delete(key: &str) -> Mutation {
    Mutation::Delete { key: key.as_bytes().to_vec() }
}

fn expect(key: &str, revision: Option<Revision>) -> Expectation {
    Expectation { key: key.as_bytes().to_vec(), revision }
}

async fn write(engine: &impl Engine, number: u64, mutations: Vec<Mutation>) -> Revision {
    committed(engine.commit(commit(number, Vec::new(), mutations)).await.unwrap())
}

fn committed(outcome: CommitOutcome) -> Revision {
    match outcome {
        CommitOutcome::Committed(revision) => revision,
        CommitOutcome::Conflict { key } => panic!("conflict at {}", String::from_utf8_lossy(&key)),
    }
}

async fn value(engine: &impl Engine, key: &str) -> Option<String> {
    let entry = engine.get(key.as_bytes()).await.unwrap();
    entry.map(|entry| String::from_utf8(entry.value).unwrap())
}

async fn all(engine: &impl Engine, prefix: &str, page: usize) -> (Vec<Entry>, Revision) {
    let mut scan = engine.scan(prefix.as_bytes()).await.unwrap();
    let mut entries = Vec::new();
    loop {
        let page_entries = scan.next_page(page).await.unwrap();
        assert!(page_entries.len() <= page, "a page is at most as long as asked for");
        if page_entries.is_empty() {
            return (entries, scan.revision());
        }
        entries.extend(page_entries);
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("the engine answers in time")
}

async fn an_empty_engine_has_nothing(engine: &impl Engine) {
    assert_eq!(engine.get(b"a").await.unwrap(), None);
    assert_eq!(all(engine, "", 10).await.0, []);
    assert_eq!(engine.settle(operation(1)).await.unwrap(), None);
    engine.health().await.unwrap();
}

async fn a_commit_is_read_back_at_its_revision(engine: &impl Engine) {
    let before = engine.health().await.unwrap();
    let first = write(engine, 1, vec![put("a", "1"), put("b", "2")]).await;
    assert!(first > before, "{first:?} after {before:?}");
    let second = write(engine, 2, vec![put("a", "3"), delete("b"), delete("never there")]).await;
    assert!(second > first, "{second:?} after {first:?}");
    let entry = Entry { key: b"a".to_vec(), value: b"3".to_vec(), revision: second };
    assert_eq!(engine.get(b"a").await.unwrap(), Some(entry));
    assert_eq!(engine.get(b"b").await.unwrap(), None);
    assert!(engine.health().await.unwrap() >= second);
}

async fn a_failed_expectation_writes_nothing(engine: &impl Engine) {
    let first = write(engine, 1, vec![put("a", "1"), put("b", "1")]).await;
    let second = write(engine, 2, vec![put("b", "2")]).await;
    let stale = commit(
        3,
        vec![expect("a", Some(first)), expect("b", Some(first)), expect("c", Some(first))],
        vec![put("a", "lost"), put("d", "lost")],
    );
    let outcome = engine.commit(stale).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Conflict { key: b"b".to_vec() }, "the first that failed is named");
    assert_eq!(value(engine, "a").await.as_deref(), Some("1"));
    assert_eq!(value(engine, "d").await, None);
    let fresh = commit(4, vec![expect("a", Some(first)), expect("b", Some(second))], vec![put("a", "won")]);
    committed(engine.commit(fresh).await.unwrap());
    assert_eq!(value(engine, "a").await.as_deref(), Some("won"));
}

async fn expectations_hold_against_deleted_and_absent_keys(engine: &impl Engine) {
    committed(engine.commit(commit(1, vec![expect("a", None)], vec![put("a", "1")])).await.unwrap());
    let exists = engine.commit(commit(2, vec![expect("a", None)], vec![put("a", "2")])).await.unwrap();
    assert_eq!(exists, CommitOutcome::Conflict { key: b"a".to_vec() });
    write(engine, 3, vec![delete("a")]).await;
    committed(engine.commit(commit(4, vec![expect("a", None)], vec![put("a", "4")])).await.unwrap());
    assert_eq!(value(engine, "a").await.as_deref(), Some("4"));
}

async fn a_commit_without_mutations_only_compares(engine: &impl Engine) {
    let written = write(engine, 1, vec![put("a", "1")]).await;
    let outcome = engine.commit(commit(2, vec![expect("a", Some(written))], Vec::new())).await.unwrap();
    assert!(committed(outcome) >= written);
    let outcome = engine.commit(commit(3, vec![expect("a", None)], Vec::new())).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Conflict { key: b"a".to_vec() });
    assert_eq!(all(engine, "", 10).await.0.len(), 1);
}

async fn a_repeated_commit_is_answered_and_not_applied_again(engine: &impl Engine) {
    let first = write(engine, 1, vec![put("a", "1")]).await;
    write(engine, 2, vec![put("a", "2")]).await;
    // The same id with other content is still the same operation.
    let repeated = commit(1, vec![expect("a", None)], vec![put("a", "again")]);
    assert_eq!(committed(engine.commit(repeated).await.unwrap()), first);
    assert_eq!(value(engine, "a").await.as_deref(), Some("2"));
    // Both at once: whichever comes second is answered like the first.
    let (left, right) = tokio::join!(
        engine.commit(commit(3, Vec::new(), vec![put("b", "3")])),
        engine.commit(commit(3, Vec::new(), vec![put("b", "3")])),
    );
    assert_eq!(committed(left.unwrap()), committed(right.unwrap()));
}

async fn settle_tells_applied_from_not_applied(engine: &impl Engine) {
    let applied = write(engine, 1, vec![put("a", "1")]).await;
    let refused = engine.commit(commit(2, vec![expect("a", None)], vec![put("a", "2")])).await.unwrap();
    assert_eq!(refused, CommitOutcome::Conflict { key: b"a".to_vec() });
    assert_eq!(engine.settle(operation(1)).await.unwrap(), Some(applied));
    assert_eq!(engine.settle(operation(2)).await.unwrap(), None, "a conflict was not applied");
    assert_eq!(engine.settle(operation(3)).await.unwrap(), None, "never sent");
    // An operation that was refused may be tried again under its id.
    let retried = write(engine, 2, vec![put("a", "2")]).await;
    assert_eq!(engine.settle(operation(2)).await.unwrap(), Some(retried));
}

async fn ten_thousand_operations_are_remembered(engine: &(impl Engine + 'static)) {
    const REMEMBERED: u64 = 10_000;
    const AT_ONCE: u64 = 500;
    let first = write(engine, 0, vec![put("first", "0")]).await;
    let mut number = 1;
    while number < REMEMBERED {
        let commits = (number..(number + AT_ONCE).min(REMEMBERED)).map(|number| {
            engine.commit(commit(number, Vec::new(), vec![put(&format!("{}", number % 7), "x")]))
        });
        for outcome in join_all(commits).await {
            committed(outcome.unwrap());
        }
        number += AT_ONCE;
    }
    assert_eq!(engine.settle(operation(0)).await.unwrap(), Some(first));
}

async fn concurrent_commits_to_one_key_win_once(engine: &impl Engine) {
    let commits = (1..=50u64).map(|number| {
        engine.commit(commit(number, vec![expect("a", None)], vec![put("a", &number.to_string())]))
    });
    let outcomes = join_all(commits).await;
    let winners: Vec<usize> = (0..outcomes.len())
        .filter(|index| matches!(outcomes[*index], Ok(CommitOutcome::Committed(_))))
        .collect();
    assert_eq!(winners.len(), 1, "{outcomes:?}");
    assert_eq!(value(engine, "a").await, Some((winners[0] + 1).to_string()));
}

async fn a_scan_shows_one_revision_while_writes_go_on(engine: &impl Engine) {
    let mutations = (0..100).map(|index| put(&format!("key/{index:03}"), "old")).collect();
    let written = write(engine, 1, mutations).await;
    let mut scan = engine.scan(b"key/").await.unwrap();
    assert!(scan.revision() >= written);
    let mut entries = scan.next_page(10).await.unwrap();
    write(engine, 2, vec![delete("key/050"), put("key/060", "new"), put("key/100", "new")]).await;
    loop {
        let page = scan.next_page(7).await.unwrap();
        if page.is_empty() {
            break;
        }
        entries.extend(page);
        write(engine, 1000 + entries.len() as u64, vec![put("key/099", "newer")]).await;
    }
    let expected: Vec<Entry> = (0..100)
        .map(|index| Entry {
            key: format!("key/{index:03}").into_bytes(),
            value: b"old".to_vec(),
            revision: written,
        })
        .collect();
    assert_eq!(entries, expected);
    let (after, revision) = all(engine, "key/", 1000).await;
    assert!(revision > written);
    assert_eq!(after.len(), 100, "one deleted, one added");
}

async fn a_scan_keeps_to_its_prefix(engine: &impl Engine) {
    let keys: [&[u8]; 6] = [b"a", b"b", b"b\x00", b"b\xff", b"b\xff\xff", b"c"];
    let put = |key: &&[u8]| Mutation::Put { key: key.to_vec(), value: Vec::new() };
    write(engine, 1, keys.iter().map(put).collect()).await;
    for (prefix, expected) in [
        (&b"b"[..], &keys[1..5]),
        (&b"b\xff"[..], &keys[3..5]),
        (&b"b\x01"[..], &keys[..0]),
        (&b"d"[..], &keys[..0]),
        (&b""[..], &keys[..]),
    ] {
        let mut scan = engine.scan(prefix).await.unwrap();
        let page = scan.next_page(100).await.unwrap();
        let found: Vec<&[u8]> = page.iter().map(|entry| entry.key.as_slice()).collect();
        assert_eq!(found, expected, "prefix {prefix:?}");
        assert_eq!(scan.next_page(100).await.unwrap(), []);
        assert_eq!(scan.next_page(100).await.unwrap(), [], "the end stays the end");
    }
}

async fn a_watch_sees_each_commit_once_and_in_order(engine: &impl Engine) {
    let from = engine.health().await.unwrap();
    let first = write(engine, 1, vec![put("a", "1"), put("b", "1")]).await;
    let mut watch = engine.watch(from).await.unwrap();
    let mut late = engine.watch(first).await.unwrap();
    let refused = engine.commit(commit(2, vec![expect("a", None)], vec![put("a", "2")])).await.unwrap();
    assert_eq!(refused, CommitOutcome::Conflict { key: b"a".to_vec() });
    let second = write(engine, 3, vec![delete("a"), delete("absent"), put("b", "3")]).await;
    let entry = |key: &str, value: &str, revision| {
        Change::Put(Entry { key: key.as_bytes().to_vec(), value: value.as_bytes().to_vec(), revision })
    };
    let batches = [
        WatchBatch {
            revision: first,
            operation: operation(1),
            changes: vec![entry("a", "1", first), entry("b", "1", first)],
        },
        WatchBatch {
            revision: second,
            operation: operation(3),
            changes: vec![Change::Deleted { key: b"a".to_vec() }, entry("b", "3", second)],
        },
    ];
    for batch in &batches {
        assert_eq!(&sorted(soon(watch.next()).await.unwrap()), batch);
    }
    assert_eq!(sorted(soon(late.next()).await.unwrap()), batches[1]);
}

/// Changes of one commit are in no order.
fn sorted(mut batch: WatchBatch) -> WatchBatch {
    batch.changes.sort_by(|left, right| changed_key(left).cmp(changed_key(right)));
    batch
}

fn changed_key(change: &Change) -> &[u8] {
    match change {
        Change::Put(entry) => &entry.key,
        Change::Deleted { key } => key,
    }
}

async fn a_watch_waits_for_the_next_commit(engine: &impl Engine) {
    write(engine, 1, vec![put("a", "1")]).await;
    let current = engine.health().await.unwrap();
    let mut watch = engine.watch(current).await.unwrap();
    {
        let next = watch.next();
        tokio::pin!(next);
        tokio::select! {
            biased;
            batch = &mut next => panic!("nothing was committed, but {batch:?}"),
            () = std::future::ready(()) => {}
        }
    }
    // Giving up a wait loses nothing.
    let (batch, written) = tokio::join!(soon(watch.next()), write(engine, 2, vec![put("a", "2")]));
    assert_eq!(batch.unwrap().revision, written);
}

async fn a_scan_and_a_watch_leave_no_gap(engine: &impl Engine) {
    write(engine, 1, vec![put("a", "0")]).await;
    let writes = async {
        for number in 2..100u64 {
            write(engine, number, vec![put("a", &number.to_string())]).await;
            tokio::task::yield_now().await;
        }
    };
    let follow = async {
        let (entries, revision) = all(engine, "a", 10).await;
        let mut last = entries[0].clone();
        let mut watch = engine.watch(revision).await.unwrap();
        while last.value != b"99" {
            let batch = soon(watch.next()).await.unwrap();
            assert!(batch.revision > last.revision);
            let [Change::Put(entry)] = &batch.changes[..] else { panic!("{batch:?}") };
            let (before, after) = (number(&last), number(entry));
            assert_eq!(after, before.max(1) + 1, "each commit, exactly once");
            last = entry.clone();
        }
    };
    tokio::join!(writes, follow);
}

fn number(entry: &Entry) -> u64 {
    String::from_utf8(entry.value.clone()).unwrap().parse().unwrap()
}

async fn limits_are_enforced(engine: &impl Engine) {
    const VALUE: usize = 256 * 1024;
    let put = |key: String, bytes: usize| Mutation::Put { key: key.into_bytes(), value: vec![7; bytes] };
    let refuse = async |number, mutations, what: &str| {
        let result = engine.commit(commit(number, Vec::new(), mutations)).await;
        assert!(matches!(result, Err(EngineError::TooLarge { .. })), "{what}: {result:?}");
    };
    write(engine, 1, vec![put("largest".to_owned(), VALUE)]).await;
    assert_eq!(engine.get(b"largest").await.unwrap().unwrap().value.len(), VALUE);
    refuse(2, vec![put("a".to_owned(), VALUE + 1)], "a value over 256 KiB").await;
    refuse(3, (0..7).map(|index| put(index.to_string(), VALUE)).collect(), "a commit over 1.5 MiB").await;
    write(engine, 4, (0..128).map(|index| put(format!("{index:03}"), 1)).collect()).await;
    refuse(5, (0..129).map(|index| put(index.to_string(), 1)).collect(), "129 mutations").await;
    let twice = engine.commit(commit(6, Vec::new(), vec![delete("a"), delete("a")])).await;
    assert!(matches!(twice, Err(EngineError::Malformed(_))), "a key mutated twice: {twice:?}");
    assert_eq!(engine.settle(operation(5)).await.unwrap(), None);
    assert_eq!(all(engine, "", 1000).await.0.len(), 129);
}

async fn values_are_any_bytes(engine: &impl Engine) {
    let key: Vec<u8> = (0..=255).collect();
    let value: Vec<u8> = (0..=255).rev().collect();
    let mutations = vec![
        Mutation::Put { key: key.clone(), value: value.clone() },
        Mutation::Put { key: b"empty".to_vec(), value: Vec::new() },
    ];
    let revision = write(engine, 1, mutations).await;
    assert_eq!(engine.get(&key).await.unwrap(), Some(Entry { key, value, revision }));
    assert_eq!(engine.get(b"empty").await.unwrap().unwrap().value, b"");
}

/// Polls all until all are done; results in order.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut waiting = false;
        for (future, output) in &mut pending {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(done) => *output = Some(done),
                    std::task::Poll::Pending => waiting = true,
                }
            }
        }
        if waiting { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    pending.into_iter().filter_map(|(_, output)| output).collect()
}
